"""Where boundaries are and how far they are off: trimap scores, boundary density (a stand-in for RE)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from regloss.dataset import IGNORE
from regloss.errors import UsageError
from regloss.grid import neighbor_offsets, pair_slices, pick
from regloss.metrics.confusion import accuracy_of, iou_of
from regloss.metrics.groups import NOTHING, ScoreMetric
from regloss.metrics.labels import (
    check_classes,
    check_map,
    checked_pair,
    confusion_of,
    json_number,
    mean_of_defined,
)


class TrimapScores(ScoreMetric):
    """Accuracy and mean IoU within bands around true boundaries.

    Args:
        classes: the K >= 2 class names.
        widths: of the bands, in pixels (see `trimap`).

    Raises:
        UsageError: classes as for `Confusion`; a width given twice, or one that is not positive.

    >>> scores = TrimapScores(["background", "heart"], [2])
    >>> scores.update(torch.tensor([[0, 1, 1, 1, 1, 0]]), torch.tensor([[0, 0, 0, 1, 1, 1]]))
    >>> scores.compute()
    {'2': {'accuracy': 0.5, 'mean-iou': 0.25, 'pixels': 4}}
    """

    confusion: Tensor

    def __init__(self, classes: Sequence[str], widths: Sequence[int]) -> None:
        super().__init__()
        self.classes, self.widths = check_classes(classes), tuple(widths)
        if len(set(self.widths)) < len(self.widths) or not all(width > 0 for width in self.widths):
            raise UsageError(f"Trimap widths must be different positive numbers of pixels; got {widths!r}.")
        count = len(self.classes)
        self.add_state("confusion", torch.zeros(len(self.widths), count, count, dtype=torch.int64), "sum")

    def update(self, prediction: Tensor, label: Tensor, group: str = "") -> None:
        """Add one image; see `Confusion.update`. Its group plays no part."""
        predicted, truth = checked_pair(prediction, label, len(self.classes))
        if self.widths:
            distance = boundary_distance(truth)
            for index, width in enumerate(self.widths):
                band = truth.where(distance < width, IGNORE)
                self.confusion[index] += confusion_of(predicted, band, len(self.classes)).to(self.device)

    def compute(self) -> dict[str, Any]:
        """For each width (a text) ``accuracy``, ``mean-iou`` and ``pixels`` within the band."""
        return {
            str(width): {
                "accuracy": json_number(accuracy_of(counts)),
                "mean-iou": json_number(mean_of_defined(iou_of(counts))),
                "pixels": int(counts.sum()),
            }
            for width, counts in zip(self.widths, self.confusion.cpu().numpy(), strict=True)
        }

    def _setting(self) -> object:
        return self.classes, self.widths


class BoundaryDensity(ScoreMetric):
    """How ragged predictions are, and labels: means over images of `boundary_density`.

    Pixels whose label is 255 count in the prediction's density, which is its own.

    Args:
        classes: the K >= 2 class names.
    """

    sums: Tensor
    images: Tensor

    def __init__(self, classes: Sequence[str]) -> None:
        super().__init__()
        self.classes = check_classes(classes)
        self.add_state("sums", torch.zeros(2, dtype=torch.float64), "sum")  # of predictions, of labels
        self.add_state("images", torch.tensor(0), "sum")

    def update(self, prediction: Tensor, label: Tensor, group: str = "") -> None:
        """Add one image; see `Confusion.update`. Its group plays no part."""
        pair = checked_pair(prediction, label, len(self.classes))
        self.sums += torch.tensor([boundary_density(labels) for labels in pair], dtype=torch.float64).to(self.device)
        self.images += 1

    def compute(self) -> dict[str, Any]:
        """``boundary-density`` of the predictions, ``true-boundary-density`` of the labels, in percent.

        Raises:
            UsageError: nothing has been scored.
        """
        if not int(self.images):
            raise UsageError(NOTHING)
        predicted, true = self.sums.tolist()
        return {"boundary-density": predicted / int(self.images), "true-boundary-density": true / int(self.images)}

    def _setting(self) -> object:
        return self.classes


def boundary_distance(label: Tensor) -> Tensor:
    """Euclidean distance, in pixels, of every pixel to the nearest boundary pixel of ``label``.

    A boundary pixel has a neighbour along an axis (4 neighbours in 2D, 6 in 3D) with another class; changes to and
    from 255 do not count. So a label map whose classes are parted by a band of 255 (PASCAL VOC's) has boundaries only
    where classes touch.

    Args:
        label: (*S) integers, two or three axes; 255 = ignored.

    Returns:
        (*S) float64 on the label's device: 0 on boundary pixels, infinite everywhere where there is no boundary.
    """
    boundary = torch.zeros_like(label, dtype=torch.bool)
    for offset in neighbor_offsets(label.ndim, 2 * label.ndim):
        change = _changes(label, offset)
        for side in pair_slices(offset):
            pick(boundary, side).logical_or_(change)
    if not bool(boundary.any()):
        return torch.full(label.shape, torch.inf, dtype=torch.float64, device=label.device)
    distance = ndimage.distance_transform_edt(~boundary.cpu().numpy())
    return torch.from_numpy(distance).to(label.device)


def trimap(label: Tensor, width: float) -> Tensor:
    """The band of pixels whose distance to the nearest boundary pixel of ``label`` is below ``width``.

    Args:
        label: (*S) integers, two or three axes; 255 = ignored.
        width: in pixels, positive; at 1 the band is the boundary pixels themselves.

    Returns:
        (*S) bool; ignored pixels are never inside.

    Raises:
        UsageError: the width is not positive, or the label is no map of integers with two or three axes.

    >>> trimap(torch.tensor([[0, 0, 0, 1, 1, 1]]), 2).int()
    tensor([[0, 1, 1, 1, 1, 0]], dtype=torch.int32)
    """
    if not width > 0:
        raise UsageError(f"A trimap's width must be a positive number of pixels; got {width}.")
    check_map(label)
    return (boundary_distance(label) < width) & (label != IGNORE)


def boundary_density(labels: Tensor) -> float:
    """Boundary length per area in percent: how ragged a segmentation is, lower is smoother.

        100 * (pi / 8) * (n_4 + n_d / sqrt(2)) / N

    with the numbers ``n_4`` and ``n_d`` of label changes between neighbours along the axes and along the diagonals,
    and ``N`` pixels. The weights are those of the Cauchy-Crofton formula with four directions: a disc's perimeter
    comes out right to 0.4 %, where ``n_4`` alone is 27 % too long. It stands in for the RE score that papers on
    regularized softmax layers report, whose definition they do not give; the numbers need not coincide.

    A volume is measured slice by slice along its first axis.

    Args:
        labels: (*S) integers, two or three axes. Pixels with 255 are not counted, nor are changes to and from them.

    Returns:
        Percent of boundary length (pixels) per area (pixels squared); 0 where every pixel is 255.

    Raises:
        UsageError: the labels have not two or three axes.

    >>> round(boundary_density(torch.tensor([[0, 1], [0, 1]])), 3)
    33.519
    """
    check_map(labels)
    area = int((labels != IGNORE).sum())
    straight, diagonal = (
        sum(int(_changes(labels, offset).sum()) for offset in neighbor_offsets(2, 8) if sum(map(abs, offset)) == steps)
        for steps in (1, 2)
    )
    return 100 * np.pi / 8 * (straight + diagonal / 2**0.5) / area if area else 0.0


def _changes(labels: Tensor, offset: tuple[int, ...]) -> Tensor:
    """Where a pixel and its neighbour at ``offset`` (in the last axes) have different classes, both not 255."""
    first, second = (pick(labels, side) for side in pair_slices(offset))
    return (first != second) & (first != IGNORE) & (second != IGNORE)
