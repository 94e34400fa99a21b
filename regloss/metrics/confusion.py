"""Accuracy, IoU and Dice from the confusion of classes: of a whole set, and of each group.

With the confusion matrix ``C[truth, prediction]`` over all pixels whose label is not 255:

    accuracy = trace(C) / sum(C)
    IoU_k    = C_kk / (row_k + column_k - C_kk)          mean IoU: over the classes whose denominator is positive
    Dice_k   = 2 C_kk / (row_k + column_k)               (the F-score of class k)

A class that is neither in the truth nor in the prediction has no IoU and no Dice: it is left out of the means instead
of being counted as 0 or 1. Means over groups (patients' volumes) and means over the whole set answer different
questions, so both are given.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from regloss.errors import UsageError
from regloss.metrics.groups import NOTHING, GroupMetric
from regloss.metrics.labels import (
    Counts,
    by_class,
    check_classes,
    checked_pair,
    confusion_of,
    json_number,
    mean_of_defined,
    ratio,
)


class Confusion(GroupMetric):
    """Confusion by group; image by image, so that memory does not grow with the images of a group.

    Args:
        classes: the K >= 2 class names; index 0 is the background.

    Raises:
        UsageError: fewer than two classes, or a name given twice.

    >>> confusion = Confusion(["background", "heart"])
    >>> confusion.update(torch.tensor([[0, 1, 1, 1]]), torch.tensor([[0, 0, 1, 255]]), group="patient-1")
    >>> result = confusion.compute()
    >>> result["confusion"], result["iou"]
    ([[1, 1], [0, 1]], {'background': 0.5, 'heart': 0.5})
    """

    images: Tensor

    def __init__(self, classes: Sequence[str]) -> None:
        names = check_classes(classes)
        super().__init__((len(names), len(names)), torch.int64)
        self.classes = names
        self.add_state("images", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, label: Tensor, group: str) -> None:
        """Add one image.

        Args:
            prediction: (*S) integer class indices, two or three axes.
            label: (*S) integer class indices; pixels with 255 are left out.
            group: what the image belongs to (its patient's volume, or its own id).

        Raises:
            UsageError: the shapes differ, or a value is no class index.
        """
        predicted, truth = checked_pair(prediction, label, len(self.classes))
        self.add(group, confusion_of(predicted, truth, len(self.classes)))
        self.images += 1

    def compute(self) -> dict[str, Any]:
        """Scores so far.

        Returns:
            ``images``, ``pixels`` (those that count) and ``confusion`` (K rows of truth);
            ``accuracy``, ``mean-iou``, ``iou`` and ``dice`` by class, all from the confusion of the whole set;
            ``groups``: for each group ``dice`` by class and ``mean-foreground-dice``, the mean over the classes from
            index 1 on that occur in the group's truth or prediction; ``dice-per-group``: for each class the mean over
            the groups where it occurs; ``mean-foreground-dice``: the mean over the groups that have foreground.

        Raises:
            UsageError: nothing has been scored.
        """
        if not int(self.images):
            raise UsageError(NOTHING)
        groups = {group: counts.numpy() for group, counts in self.by_group().items()}
        total = np.sum(list(groups.values()), axis=0)
        dice = {group: dice_of(counts) for group, counts in groups.items()}
        foreground = {group: mean_of_defined(values[1:]) for group, values in dice.items()}
        return {
            "images": int(self.images),
            "pixels": int(total.sum()),
            "accuracy": json_number(accuracy_of(total)),
            "mean-iou": json_number(mean_of_defined(iou_of(total))),
            "mean-foreground-dice": json_number(mean_of_defined(list(foreground.values()))),
            "iou": by_class(self.classes, iou_of(total)),
            "dice": by_class(self.classes, dice_of(total)),
            "dice-per-group": by_class(
                self.classes, [mean_of_defined(values) for values in zip(*dice.values(), strict=True)]
            ),
            "groups": {
                group: {
                    "dice": by_class(self.classes, dice[group]),
                    "mean-foreground-dice": json_number(foreground[group]),
                }
                for group in dice
            },
            "confusion": total.tolist(),
        }

    def _setting(self) -> object:
        return self.classes


def accuracy_of(confusion: Counts) -> float:
    """Share of the pixels on the diagonal of ``confusion`` (K, K)."""
    return ratio(np.trace(confusion), confusion.sum())


def iou_of(confusion: Counts) -> list[float]:
    """IoU of each class, NaN where it does not occur."""
    hits, union = np.diag(confusion), confusion.sum(0) + confusion.sum(1) - np.diag(confusion)
    return [ratio(*pair) for pair in zip(hits, union, strict=True)]


def dice_of(confusion: Counts) -> list[float]:
    """Dice of each class, NaN where it does not occur."""
    hits, sizes = np.diag(confusion), confusion.sum(0) + confusion.sum(1)
    return [ratio(2 * hit, size) for hit, size in zip(hits, sizes, strict=True)]
