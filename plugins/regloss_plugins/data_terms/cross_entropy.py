"""Cross entropy over labelled pixels: -log softmax(logits) at the given label.

Pixels whose label is 255 or which lie outside the region of interest do not count. With class weights c the mean is
sum(c_y * loss) / sum(c_y), as torch's own cross entropy has it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch import Tensor

from regloss.batch import Batch
from regloss.checks import at_least_float32, check_labels
from regloss.data_term import DataTerm
from regloss.dataset import IGNORE
from regloss.errors import UsageError
from regloss.outer_loop import check_logits


@dataclass(frozen=True)
class WeightedLabels(DataTerm):
    """Labels whose classes may count differently, and which may be smoothed.

    Args:
        class_weights: one positive number a class, or None for 1 each.
        label_smoothing: fraction of each label that is spread evenly over the classes, 0 <= value < 1.

    Raises:
        UsageError: weights that are not positive and finite, a smoothing outside its range.
    """

    class_weights: Sequence[float] | None = None
    label_smoothing: float = 0.0
    needs_image: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise UsageError(f"label_smoothing must lie in [0, 1); got {self.label_smoothing}.")
        if self.class_weights is None:
            return
        weights = tuple(float(value) for value in self.class_weights)
        if not all(0 < value < float("inf") for value in weights):
            raise UsageError(f"Class weights must be positive and finite; got {list(weights)}.")
        object.__setattr__(self, "class_weights", weights)


@dataclass(frozen=True)
class CrossEntropy(WeightedLabels):
    """Cross entropy with dense labels; 255 is ignored.

    Args:
        class_weights: one positive number a class, or None for 1 each.
        label_smoothing: fraction of each label that is spread evenly over the classes, 0 <= value < 1.

    Raises:
        UsageError: labels outside 0..K-1 and 255, no labels in the batch, weights that do not fit K.
    """

    def __call__(self, logits: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Sums (B,) of the weighted loss and of the weights."""
        labels, counts = given_labels(logits, batch, self.class_weights)
        logits = at_least_float32(logits)
        weights = None if self.class_weights is None else logits.new_tensor(self.class_weights)
        losses = F.cross_entropy(
            logits,
            labels.masked_fill(counts == 0, IGNORE),
            weight=weights,
            ignore_index=IGNORE,
            label_smoothing=self.label_smoothing,
            reduction="none",
        )
        return losses.flatten(1).sum(1), counts.flatten(1).sum(1)


def given_labels(logits: Tensor, batch: Batch, class_weights: Sequence[float] | None = None) -> tuple[Tensor, Tensor]:
    """Labels (B, *S) int64, 0 where there is none, and what each pixel counts (B, *S): its class's weight, or 0.

    Raises:
        UsageError: logits of another size, labels outside 0..K-1 and 255, none in the batch, weights that do not fit K.
    """
    check_logits(logits, batch)
    classes = logits.shape[1]
    if batch.labels is None:
        raise UsageError("Cross entropy needs labels in the batch, and it has none.")
    check_labels(batch.labels, batch.shape, classes)
    labelled = batch.labelled.to(logits.device)
    labels = batch.labels.to(logits.device).masked_fill(~labelled, 0).long()
    counts = labelled.to(at_least_float32(logits).dtype)
    if class_weights is not None:
        if len(class_weights) != classes:
            raise UsageError(f"{len(class_weights)} class weights were given for K = {classes} classes.")
        counts = counts * counts.new_tensor(class_weights)[labels]
    return labels, counts
