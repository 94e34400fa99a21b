"""How far the surfaces of classes are off: HD95, average surface distance, normalised surface Dice, in mm.

With A and B the boundary pixels of a class in prediction and truth, and d(a, B) the distance of a to the nearest of B:

    HD95 = max of the 95th percentiles of d(a, B) over a in A, and of d(b, A) over b in B
    ASD  = (sum_a d(a, B) + sum_b d(b, A)) / (|A| + |B|)
    NSD  = (number of a with d(a, B) <= tolerance + number of b with d(b, A) <= tolerance) / (|A| + |B|)

A boundary pixel has a neighbour along an axis that is not of the class or lies outside the image. Pixels whose label is
255 belong to no class, in the prediction either. Distances are in mm where the spacing is known, else in pixels; every
boundary pixel counts the same.

Sources: Huttenlocher et al., PAMI 1993; Heimann et al., TMI 28, 2009; Nikolov et al., JMIR 23, 2021, who weight by the
area of surface elements.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage
from torch import Tensor

from regloss.checks import check_spacing
from regloss.dataset import IGNORE
from regloss.errors import UsageError
from regloss.metrics.groups import NOTHING, GroupMetric
from regloss.metrics.labels import (
    by_class,
    check_classes,
    check_integers,
    check_pair,
    checked_pair,
    json_number,
    mean_of_defined,
    ratio,
)

Distances = npt.NDArray[np.float64]


class SurfaceDistances(GroupMetric):
    """HD95, average surface distance and normalised surface Dice; see the top of this module.

    Takes two distance transforms a class and image, of the part that the class covers.

    Args:
        classes: the K >= 2 class names; index 0 is the background.
        tolerance: of the surface Dice, in mm, or pixels; > 0.

    Raises:
        UsageError: classes as for `Confusion`, or a tolerance that is not positive.
    """

    physical: Tensor

    def __init__(self, classes: Sequence[str], tolerance: float = 1.0) -> None:
        names = check_classes(classes)
        if not 0 < tolerance < float("inf"):
            raise UsageError(f"The tolerance of the surface Dice must be positive; got {tolerance}.")
        # For each class: sums of HD95, ASD and NSD, images where it is in both, images where it is in one alone.
        super().__init__((5, len(names)), torch.float64)
        self.classes, self.tolerance = names, tolerance
        self.add_state("physical", torch.zeros(2, dtype=torch.int64), "sum")  # images in pixels, in mm

    def update(self, prediction: Tensor, label: Tensor, group: str, spacing: Sequence[float] | None = None) -> None:
        """Add one image, or one volume.

        Args:
            prediction: (*S) integer class indices, two or three axes.
            label: (*S) integer class indices; 255 = ignored.
            group: what it belongs to.
            spacing: of its axes, in mm; None = not known.

        Raises:
            UsageError: the shapes differ, or a value is no class index.
        """
        predicted, truth = checked_pair(prediction, label, len(self.classes))
        found = torch.zeros(5, len(self.classes), dtype=torch.float64)
        for k in range(len(self.classes)):
            distances = surface_distances(predicted, truth, k, spacing)
            if distances is None:
                continue
            if not all(len(part) for part in distances):
                found[4, k] = 1
                continue
            both = np.concatenate(distances)
            values = [hd95_of(distances), both.mean(), (both <= self.tolerance).mean(), 1.0]
            found[:4, k] = torch.tensor(values, dtype=torch.float64)
        self.add(group, found)
        self.physical[int(spacing is not None)] += 1

    def compute(self) -> dict[str, Any]:
        """Distances so far.

        Returns:
            ``hd95``, ``surface-distance`` and ``surface-dice`` by class, and ``mean-foreground-`` of each: averaged
            over a group's images that have the class in truth and prediction, then over groups, then over the classes
            from index 1 on; ``unmatched``, of all images and classes from 1 on with the class in truth or prediction
            the fraction that have it in one of them alone, where there is no distance; ``distance-unit``, "mm",
            "pixels" or "mm and pixels"; and ``surface-tolerance``.

        Raises:
            UsageError: nothing has been scored.
        """
        groups = self.by_group()
        if not groups:
            raise UsageError(NOTHING)
        parts = np.stack([sums.numpy() for sums in groups.values()])
        result: dict[str, Any] = {}
        for row, name in enumerate(("hd95", "surface-distance", "surface-dice")):
            of_groups = [[ratio(*pair) for pair in zip(of[row], of[3], strict=True)] for of in parts]
            of_classes = [mean_of_defined(values) for values in zip(*of_groups, strict=True)]
            result[name] = by_class(self.classes, of_classes)
            result[f"mean-foreground-{name}"] = json_number(mean_of_defined(of_classes[1:]))
        alone, both = parts[:, 4, 1:].sum(), parts[:, 3, 1:].sum()
        units = [unit for unit, count in zip(("pixels", "mm"), self.physical.tolist(), strict=True) if count]
        return {
            **result,
            "unmatched": json_number(ratio(alone, alone + both)),
            "distance-unit": " and ".join(reversed(units)),
            "surface-tolerance": self.tolerance,
        }

    def _setting(self) -> object:
        return self.classes, self.tolerance


def surface_distances(
    prediction: Tensor, label: Tensor, k: int, spacing: Sequence[float] | None = None
) -> tuple[Distances, Distances] | None:
    """Distances between the boundaries of class ``k`` in prediction and truth; see the top of this module.

    Args:
        prediction: (*S) integers, two or three axes.
        label: (*S) integers; 255 = ignored.
        k: the class.
        spacing: of the axes; None = 1.

    Returns:
        Distances of the prediction's boundary pixels to the truth's boundary, and of the truth's to the prediction's;
        both empty where one of them alone has the class, None where neither has it.

    Raises:
        UsageError: maps of different shapes, or not of integers.

    >>> surface_distances(torch.tensor([[0, 0, 1, 1]]), torch.tensor([[1, 1, 1, 1]]), 1, (1.0, 0.5))
    (array([0., 0.]), array([1. , 0.5, 0. , 0. ]))
    """
    check_pair(prediction, label)
    check_integers(prediction, "A prediction")
    check_integers(label, "A label")
    steps = check_spacing(spacing, label.ndim)
    known = label != IGNORE
    masks = [((labels == k) & known).cpu().numpy() for labels in (prediction, label)]
    if not any(mask.any() for mask in masks):
        return None
    if not all(mask.any() for mask in masks):
        return np.zeros(0), np.zeros(0)
    # All that distances are measured between lies in the box around both masks.
    (box,) = ndimage.find_objects((masks[0] | masks[1]).astype(np.uint8))
    boundaries = [mask[box] & ~ndimage.binary_erosion(mask[box]) for mask in masks]
    to_prediction, to_label = (ndimage.distance_transform_edt(~of, sampling=steps) for of in boundaries)
    return to_label[boundaries[0]], to_prediction[boundaries[1]]


def hd95_of(distances: tuple[Distances, Distances], percentile: float = 95.0) -> float:
    """The larger of both percentiles."""
    return float(max(np.percentile(part, percentile) for part in distances))


def hausdorff_distance(
    prediction: Tensor, label: Tensor, k: int, percentile: float = 95.0, spacing: Sequence[float] | None = None
) -> float:
    """The HD95 of class ``k``, or with ``percentile`` 100 the Hausdorff distance; arguments as of `surface_distances`.

    Returns:
        NaN where neither has the class, infinity where one of them alone has it.

    Raises:
        UsageError: as `surface_distances`, or a percentile that is none.

    >>> hausdorff_distance(torch.tensor([[0, 0, 1, 1]]), torch.tensor([[1, 1, 1, 1]]), 1, 100)
    2.0
    """
    if not 0 <= percentile <= 100:
        raise UsageError(f"A percentile must lie between 0 and 100; got {percentile}.")
    distances = surface_distances(prediction, label, k, spacing)
    if distances is None:
        return float("nan")
    return hd95_of(distances, percentile) if len(distances[0]) else float("inf")
