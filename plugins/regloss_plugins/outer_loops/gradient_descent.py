"""Gradient descent on the regularized loss itself.

    data(S, Y) + R(S; image) / N            S = softmax(logits), N = pixels of the region of interest

Source: Tang et al., "On regularized losses for weakly-supervised CNN segmentation", ECCV 2018. The grid CRF by gradient
descent: Marin et al., CVPR 2019.
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from regloss.batch import Batch
from regloss.checks import at_least_float32
from regloss.errors import UsageError
from regloss.outer_loop import OuterLoop, Proposal, check_logits
from regloss.registry import resolve
from regloss.regularizer import combine
from regloss.schedule import Schedule, as_schedule


class GradientDescent(OuterLoop):
    """Data term plus the regularizer's relaxation, minimised by the network's optimizer alone.

    Args:
        regularizer: one or several (objects, names or tables); None trains with the data term alone.
        data_term: an object, a name or a table.
        strength: factor of the regularizer, a number or a schedule; its own weight is constant.

    >>> GradientDescent.preset("grid-crf-scribbles").regularizer.weight
    25.0
    """

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        # Marin, Boykov, ICCV 2021: weight 100 on the mean over neighbour pairs; four pairs a pixel make it 25 a pair.
        "grid-crf-scribbles": {"regularizer": {"name": "grid-crf", "weight": 25.0, "relaxation": "bilinear"}},
    }

    def __init__(
        self,
        regularizer: Any = None,
        data_term: Any = "partial-cross-entropy",
        strength: float | Schedule | dict[str, Any] = 1.0,
    ) -> None:
        super().__init__("never")
        self.regularizer = combine(regularizer)
        self.data_term = resolve("data-term", data_term)
        self.strength = as_schedule(strength, "strength")
        if min(self.strength.start, self.strength.end) < 0:
            raise UsageError(f"strength must not be negative; got {strength!r}.")

    def propose(self, logits: Tensor, batch: Batch, warm: Tensor | None = None) -> None:
        """No proposal: the network follows the gradient of the regularizer."""
        return None

    def objective(self, logits: Tensor, batch: Batch, proposal: Proposal | None = None) -> Tensor:
        """Mean data term plus regularizer per pixel."""
        check_logits(logits, batch)
        addends = {"data": self.mean(*self.data_term(logits, batch))}
        strength = self.strength.at(self.progress)
        if self.regularizer is not None and strength > 0:
            probabilities = at_least_float32(logits).softmax(1)
            energy = self.regularizer.bind(batch.image, batch.roi).penalty(probabilities)
            addends["regularizer"] = strength * self.mean(energy, batch.pixels)
        return self.record(**addends)
