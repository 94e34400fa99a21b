"""Cross entropy over labelled pixels: -log softmax(logits) at the given label.

Pixels whose label is 255 or which lie outside the region of interest do not count. With class weights c the mean is
sum(c_y * loss) / sum(c_y), as torch's own cross entropy has it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch import Tensor

from regloss.batch import Batch
from regloss.checks import at_least_float32, check_labels
from regloss.data_term import DataTerm
from regloss.dataset import IGNORE
from regloss.errors import UsageError
from regloss.outer_loop import check_logits


@dataclass(frozen=True)
class CrossEntropy(DataTerm):
    """Cross entropy with dense labels; 255 is ignored.

    Args:
        class_weights: one positive number a class, or None for 1 each.
        label_smoothing: fraction of each label that is spread evenly over the classes, 0 <= value < 1.

    Raises:
        UsageError: labels outside 0..K-1 and 255, no labels in the batch, weights that do not fit K.
    """

    class_weights: Sequence[float] | None = None
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        if self.class_weights is not None:
            weights = tuple(float(value) for value in self.class_weights)
            if not all(0 < value < float("inf") for value in weights):
                raise UsageError(f"Class weights must be positive and finite; got {list(weights)}.")
            object.__setattr__(self, "class_weights", weights)
        if not 0 <= self.label_smoothing < 1:
            raise UsageError(f"label_smoothing must lie in [0, 1); got {self.label_smoothing}.")

    def __call__(self, logits: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Sums (B,) of the weighted loss and of the weights."""
        check_logits(logits, batch)
        classes = logits.shape[1]
        if batch.labels is None:
            raise UsageError("Cross entropy needs labels in the batch, and it has none.")
        check_labels(batch.labels, batch.shape, classes)
        logits = at_least_float32(logits)
        weights = None
        if self.class_weights is not None:
            if len(self.class_weights) != classes:
                raise UsageError(f"{len(self.class_weights)} class weights were given for K = {classes} classes.")
            weights = logits.new_tensor(self.class_weights)
        labelled = batch.labelled
        labels = batch.labels.to(logits.device).masked_fill(~labelled, IGNORE).long()
        losses = F.cross_entropy(
            logits,
            labels,
            weight=weights,
            ignore_index=IGNORE,
            label_smoothing=self.label_smoothing,
            reduction="none",
        )
        counts = labelled.to(logits.dtype)
        if weights is not None:
            counts = counts * weights[labels.masked_fill(~labelled, 0)]
        return losses.flatten(1).sum(1), counts.flatten(1).sum(1)
