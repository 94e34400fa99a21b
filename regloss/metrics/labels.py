"""What all scores ask of predictions and labels, and the numbers that they share."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torchmetrics.functional.classification import multiclass_confusion_matrix

from regloss.dataset import IGNORE
from regloss.errors import UsageError

Counts = npt.NDArray[np.int64]


def check_classes(classes: Sequence[str]) -> tuple[str, ...]:
    """The class names, once they are known to be some and to differ.

    Raises:
        UsageError: fewer than two, more than 255, or one given twice.
    """
    if isinstance(classes, str) or not 2 <= len(set(classes)) == len(classes) <= IGNORE:
        raise UsageError(f"Scores need 2 to {IGNORE} different class names, background first; got {classes!r}.")
    return tuple(classes)


def check_pair(prediction: Tensor, label: Tensor) -> None:
    """Raise `UsageError` unless both are maps (*S) of one shape."""
    if prediction.shape != label.shape or label.ndim not in (2, 3) or label.numel() == 0:
        raise UsageError(
            "A prediction and its label must have the same shape (*S) with 2 or 3 axes (one image, no batch axis); "
            f"got {tuple(prediction.shape)} and {tuple(label.shape)}. Resample the prediction to the label's size."
        )


def check_integers(labels: Tensor, name: str) -> None:
    """Raise `UsageError` unless ``labels`` are integers: probabilities, logits and masks are no class indices."""
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise UsageError(
            f"{name} must hold integer class indices; got {labels.dtype}. Of probabilities take the argmax."
        )


def check_map(labels: Tensor) -> None:
    """Raise `UsageError` unless this is a map (*S) of integers with two or three axes."""
    check_integers(labels, "A label map")
    if labels.ndim not in (2, 3):
        raise UsageError(f"A label map must have the shape (*S) with 2 or 3 axes; got {tuple(labels.shape)}.")


def checked(labels: Tensor, classes: int, name: str) -> Tensor:
    """``labels`` as int64; a prediction may not be 255, but where the label is 255 that does no harm.

    Raises:
        UsageError: they are no integers, or neither classes nor 255.
    """
    check_integers(labels, name)
    integers = labels.detach().long()
    wrong = (integers != IGNORE) & ((integers < 0) | (integers >= classes))
    if bool(wrong.any()):
        values = sorted(set(integers[wrong].tolist()))[:10]
        raise UsageError(f"{name} must hold the classes 0 to {classes - 1}, or 255; found also {values}.")
    return integers


def checked_pair(prediction: Tensor, label: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Prediction and label of one image as int64 (*S).

    Raises:
        UsageError: the shapes differ, or a value is no class index.
    """
    check_pair(prediction, label)
    return checked(prediction, classes, "A prediction"), checked(label, classes, "A label")


def confusion_of(predicted: Tensor, truth: Tensor, classes: int) -> Tensor:
    """(K, K) int64: pixels by class of the truth (rows) and of the prediction, those with truth 255 left out.

    Raises:
        UsageError: the prediction is 255 where the truth is not.
    """
    missing = int(((predicted == IGNORE) & (truth != IGNORE)).sum())
    if missing:
        raise UsageError(
            f"A prediction is 255 (no class) at {missing} pixels that have a label. Give every pixel a class, "
            "or set the label to 255 there."
        )
    # validate_args would look for the same errors again, image by image, with messages about tensors.
    confusion: Tensor = multiclass_confusion_matrix(
        predicted, truth, num_classes=classes, ignore_index=IGNORE, validate_args=False
    )
    return confusion.long()


def json_number(value: float) -> float | None:
    """The number, None if it is not defined: JSON knows no NaN."""
    return None if np.isnan(value) else value


def by_class(classes: Sequence[str], values: Sequence[float]) -> dict[str, float | None]:
    """One number for each class, by its name."""
    return {name: json_number(value) for name, value in zip(classes, values, strict=True)}


def mean_of_defined(values: Sequence[float]) -> float:
    """Mean of what is defined; NaN where nothing is (numpy's nanmean would warn)."""
    defined = [value for value in values if not np.isnan(value)]
    return float(np.mean(defined)) if defined else float("nan")


def ratio(numerator: float | np.number, denominator: float | np.number) -> float:
    """The quotient, NaN where the denominator is zero."""
    return float(numerator / denominator) if denominator else float("nan")
