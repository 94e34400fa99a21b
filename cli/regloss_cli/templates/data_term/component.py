"""Focal loss over labelled pixels: cross entropy that looks less at pixels which are right already.

    mean over labelled pixels of -(1 - S_y)^gamma log S_y            S = softmax(logits), y = the label

gamma = 0 is cross entropy.
Source: Lin, Goyal, Girshick, He, Dollar, "Focal loss for dense object detection", ICCV 2017.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from regloss.batch import Batch
from regloss.checks import check_labels
from regloss.data_term import DataTerm
from regloss.divergence import gather_labels, log_softmax
from regloss.errors import UsageError
from regloss.outer_loop import check_logits


@dataclass(frozen=True)
class MyComponent(DataTerm):
    """Focal loss, a mean over labelled pixels; 255 = unlabelled.

    Args:
        gamma: how little pixels count that are right, 0 or at least 1 (between them the gradient at S_y = 1 is inf).

    Raises:
        UsageError: another gamma; labels outside 0..K-1 and 255, no labels in the batch.
    """

    gamma: float = 2.0

    def __post_init__(self) -> None:
        if not (self.gamma == 0 or 1 <= self.gamma < math.inf):
            raise UsageError(f"gamma must be 0 (cross entropy) or at least 1; got {self.gamma}.")

    def __call__(self, logits: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Sums (B,) of the loss, and numbers (B,) of labelled pixels; the outer loop divides."""
        check_logits(logits, batch)
        if batch.labels is None:
            raise UsageError("my-component needs labels in the batch, and it has none.")
        check_labels(batch.labels, batch.shape, logits.shape[1])
        labelled = batch.labelled  # inside the region of interest
        log_right = gather_labels(log_softmax(logits), batch.labels.masked_fill(~labelled, 0).long())
        losses = (-log_right.expm1()) ** self.gamma * -log_right
        sums = torch.where(labelled, losses, 0).flatten(1).sum(1)
        return sums, labelled.flatten(1).sum(1).to(sums.dtype)
