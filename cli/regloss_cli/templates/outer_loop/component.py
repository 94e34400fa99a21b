"""Gradient descent on the regularized loss, whose regularizer fades in.

    data(S, Y) + factor(t) * R(S; image) / N            factor: from 0 at t = 0 to 1 at t = warm_up, then 1

t is the fraction of the training that is done and N the number of pixels. A prior that is strong from the beginning may
hold an untrained network at one class everywhere; this one lets it learn its labels first.

Other loops derive from `regloss.OuterLoop`: with `propose` if they make proposals (`propose_from` if those come of
several decoders), with `attach` and `updates` if they keep a copy of the network or train others beside it.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from regloss import Batch, GradientDescent, Proposal, Schedule
from regloss.errors import UsageError


class MyComponent(GradientDescent):
    """Gradient descent with a regularizer that fades in.

    Args:
        regularizer: one or several (objects, names or tables).
        data_term: one or several (objects, names or tables).
        warm_up: fraction of the training after which the regularizer has its full weight, 0 < warm_up <= 1.

    Raises:
        UsageError: a warm_up outside its range.
    """

    presets: ClassVar[dict[str, dict[str, Any]]] = {}  # published settings by name, with their source

    def __init__(
        self, regularizer: Any = "grid-crf", data_term: Any = "partial-cross-entropy", warm_up: float = 0.3
    ) -> None:
        if not 0 < warm_up <= 1:
            raise UsageError(f"warm_up must lie in (0, 1], a fraction of the training; got {warm_up}.")
        super().__init__(regularizer, data_term, Schedule(0.0, 1.0, "cosine", finish=warm_up))

    def objective(self, logits: Tensor, batch: Batch, proposal: Proposal | None = None) -> Tensor:
        """The scalar to back-propagate; ``parts`` holds its terms, and ``metrics`` the factor, for the log."""
        self.log_metric(factor=torch.tensor(self.weight_schedule.at(self.progress)))
        return super().objective(logits, batch, proposal)
