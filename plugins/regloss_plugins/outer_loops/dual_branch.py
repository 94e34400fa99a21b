"""Dual branch: two decoders of one network learn what a random mixture of both predicts.

    X = argmax of  a S_1 + (1 - a) S_2,   a uniform in [0, 1], drawn in every step        X_p = y_p on scribbles
    min over theta   sum over decoders j of   data(S_j, Y) + weight * L(S_j, X) + R(S_j; image) / N

with the softmax S_j of decoder j and a loss L of pseudo-labels X, Dice by default. The decoders share an encoder, whose
features the second sees with some dropped, so that they err at different places; the mixture takes now the one's side,
now the other's. R is none as published. The first decoder predicts.

Source: Luo, Hu, Liao, Zhai, Song, Wang, Zhang, "Scribble-supervised medical image segmentation via dual-branch network
and dynamically mixed pseudo labels supervision", MICCAI 2022. Differs from it in: 1. scribbles keep their labels in X;
2. Dice is taken for each image over the classes that X has, not over the batch and all classes; 3. the decoders' losses
add up, without the factor 1/2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from regloss.batch import Batch
from regloss.checks import at_least_float32, check_finite, without_value_checks
from regloss.data_term import DataTerm, combine_data_terms
from regloss.dataset import IGNORE
from regloss.errors import UsageError
from regloss.outer_loop import OuterLoop, Proposal, check_logits
from regloss.registry import resolve
from regloss.regularizer import Regularizer, combine
from regloss.schedule import Schedule, as_schedule

_DICE = {"name": "partial-dice", "squared": True}


class DualBranch(OuterLoop):
    """Pseudo-labels mixed of two decoders' predictions, anew in every step, which both learn.

    The network needs a second decoder: ``auxiliary-decoder = true`` of "unet".

    Args:
        regularizer: R, one or several (objects, names or tables); None = none.
        data_term: one or several (objects, names or tables).
        weight: factor of the pseudo-labels' loss, >= 0, a number or a schedule.
        pseudo_label_term: L, the data term whose labels are X; None = Dice with squares, as published.

    Raises:
        UsageError: a negative weight.

    Two decoders that disagree: where their mixture is on the second's side depends on the draw.

    >>> _ = torch.manual_seed(0)
    >>> loop = DualBranch()
    >>> first, second = torch.tensor([[[[9.0]], [[0.0]]]]), torch.tensor([[[[0.0]], [[9.0]]]])
    >>> batch = Batch(torch.zeros(1, 1, 1, 1), torch.full((1, 1, 1), 255))
    >>> sorted({loop.propose_from([first, second], batch).labels.item() for _ in range(40)})
    [0, 1]
    """

    decoders: ClassVar[int] = 2
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        # Luo et al., MICCAI 2022: lambda of equation 3.
        "acdc-scribbles": {"weight": 0.5},
    }

    def __init__(
        self,
        regularizer: Any = None,
        data_term: Any = "partial-cross-entropy",
        weight: float | Schedule | dict[str, Any] = 0.5,
        pseudo_label_term: Any = None,
    ) -> None:
        super().__init__("step")
        self.regularizer: Regularizer | None = combine(regularizer)
        self.data_term = combine_data_terms(data_term)
        self.weight = as_schedule(weight, "weight")
        if min(self.weight.start, self.weight.end) < 0:
            raise UsageError(f"weight must not be negative; got {weight!r}.")
        self.pseudo_label_term: DataTerm = resolve(
            "data-term", _DICE if pseudo_label_term is None else pseudo_label_term
        )

    def propose(self, logits: Tensor, batch: Batch, warm: Tensor | None = None) -> Proposal:
        """The argmax of one decoder; an earlier labelling ``warm`` is not used."""
        return self.propose_from([logits], batch)

    def propose_from(self, branches: Sequence[Tensor], batch: Batch) -> Proposal:
        """The argmax of a mixture of all decoders, whose weights are uniform over those that sum to 1."""
        for logits in branches:
            check_logits(logits, batch)
            check_finite(logits, "logits", "Has the training diverged?")
        # Of exponentials divided by their sum; for two decoders the first's share is uniform in [0, 1].
        shares = -torch.rand(len(branches)).clamp(min=torch.finfo(torch.float32).tiny).log()
        shares = shares / shares.sum()
        probabilities = [at_least_float32(logits.detach()).softmax(1) for logits in branches]
        mixture = torch.stack([share * each for share, each in zip(shares.tolist(), probabilities, strict=True)]).sum(0)
        labels = mixture.argmax(1)
        if batch.labels is not None:
            labels = torch.where(batch.labelled, batch.labels.to(labels), labels)
        return Proposal(labels if batch.roi is None else labels.masked_fill(~batch.roi, IGNORE))

    def objective(self, logits: Tensor, batch: Batch, proposal: Proposal | None = None) -> Tensor:
        """Of one decoder: mean data term, weighted mean loss of the pseudo-labels, and regularizer per pixel."""
        if proposal is None:
            raise UsageError(
                "DualBranch.objective needs a proposal: what loop.propose_from([logits, auxiliary], batch) gave."
            )
        check_logits(logits, batch)
        with without_value_checks():
            given = replace(batch, labels=proposal.labels)
        pseudo = self.weight.at(self.progress) * self.mean(*self.pseudo_label_term(logits, given))
        terms = self.data_loss_terms(logits, batch)
        return self.total_loss(
            **terms, pseudo_labels=pseudo, **self.regularizer_loss_terms(self.regularizer, 1.0, logits, batch)
        )
