"""Scores of segmentations: accuracy, IoU, Dice (whole set and per group), trimap scores, boundary density, HD95.

`Scores` is for networks that know the classes, `ForegroundScores` for phases that were found without labels.

With the confusion matrix ``C[truth, prediction]`` over all pixels whose label is not 255:

    accuracy = trace(C) / sum(C)
    IoU_k    = C_kk / (row_k + column_k - C_kk)          mean IoU: over the classes whose denominator is positive
    Dice_k   = 2 C_kk / (row_k + column_k)               (the F-score of class k)

A class that is neither in the truth nor in the prediction has no IoU and no Dice: it is left out of the means instead
of being counted as 0 or 1. Means over groups (patients' volumes) and means over the whole set answer different
questions, so both are given.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage
from torch import Tensor
from torchmetrics.functional.classification import multiclass_confusion_matrix

from regloss.dataset import IGNORE
from regloss.errors import UsageError
from regloss.grid import neighbor_offsets, pair_slices, pick

Counts = npt.NDArray[np.int64]


class Scores:
    """Confusion over a whole set, and per group; image by image, so that memory does not grow with the images.

    Args:
        classes: the K >= 2 class names; index 0 is the background.
        trimap_widths: widths in pixels of the bands around true boundaries that are scored apart (see `trimap`).
        hausdorff: whether to measure how far boundaries are off (see `hausdorff_distance`), which takes two distance
            transforms a class and image.

    Raises:
        UsageError: fewer than two classes, a name or a width given twice, or a width that is not positive.

    >>> scores = Scores(["background", "heart"])
    >>> truth = torch.tensor([[0, 0, 1, 255]])
    >>> scores.update(torch.tensor([[0, 1, 1, 1]]), truth, group="patient-1")
    >>> result = scores.compute()
    >>> result["confusion"], result["iou"]
    ([[1, 1], [0, 1]], {'background': 0.5, 'heart': 0.5})
    """

    def __init__(self, classes: Sequence[str], trimap_widths: Sequence[int] = (), hausdorff: bool = False) -> None:
        self.classes = tuple(classes)
        self.hausdorff = hausdorff
        # By group, for each class: sum of distances, images where it is in both, images where it is in one alone.
        self._hausdorff: dict[str, npt.NDArray[np.float64]] = {}
        self.trimap_widths = tuple(trimap_widths)
        if isinstance(classes, str) or not 2 <= len(set(self.classes)) == len(self.classes) <= IGNORE:
            raise UsageError(f"Scores need 2 to {IGNORE} different class names, background first; got {classes!r}.")
        if len(set(self.trimap_widths)) < len(self.trimap_widths) or any(width <= 0 for width in self.trimap_widths):
            raise UsageError(f"Trimap widths must be different positive numbers of pixels; got {trimap_widths!r}.")
        self._groups: dict[str, Counts] = {}
        self._trimaps = {width: self._no_counts() for width in self.trimap_widths}
        self._boundary_sum, self._true_boundary_sum = 0.0, 0.0
        self._images = 0

    def update(self, prediction: Tensor, label: Tensor, group: str) -> None:
        """Add one image.

        Args:
            prediction: (*S) integer class indices, two or three axes.
            label: (*S) integer class indices; pixels with 255 are left out of every score except the prediction's
                boundary density, which is its own.
            group: what the image belongs to (its patient's volume, or its own id).

        Raises:
            UsageError: the shapes differ, or a value is no class index.
        """
        _check_pair(prediction, label)
        predicted = self._checked(prediction, "A prediction")
        truth = self._checked(label, "A label")
        self._groups[group] = self._groups.get(group, self._no_counts()) + self._confusion(predicted, truth)
        if self.trimap_widths:
            distance = boundary_distance(truth)
            for width in self.trimap_widths:
                band = truth.where(distance < width, IGNORE)
                self._trimaps[width] += self._confusion(predicted, band)
        if self.hausdorff:
            found = self._hausdorff.setdefault(group, np.zeros((3, len(self.classes))))
            for k in range(len(self.classes)):
                apart = hausdorff_distance(predicted, truth, k)
                if np.isinf(apart):
                    found[2, k] += 1
                elif not np.isnan(apart):
                    found[:2, k] += (apart, 1)
        self._boundary_sum += boundary_density(predicted)
        self._true_boundary_sum += boundary_density(truth)
        self._images += 1

    def compute(self) -> dict[str, Any]:
        """All scores so far, ready for JSON: what is undefined is None.

        Returns:
            ``images``, ``pixels`` (those that count) and ``confusion`` (K rows of truth);
            ``accuracy``, ``mean-iou``, ``iou`` and ``dice`` by class, all from the confusion of the whole set;
            ``groups``: for each group ``dice`` by class and ``mean-foreground-dice``, the mean over the classes from
            index 1 on that occur in the group's truth or prediction; ``dice-per-group``: for each class the mean over
            the groups where it occurs; ``mean-foreground-dice``: the mean over the groups that have foreground;
            ``trimap``: for each width (a string) ``accuracy``, ``mean-iou`` and ``pixels`` within the band;
            ``boundary-density``: mean over images of the predictions' boundary length per area in percent, and
            ``true-boundary-density`` of the labels (see `boundary_density`);
            with ``hausdorff`` also ``hd95`` by class and ``mean-foreground-hd95`` in pixels: `hausdorff_distance`,
            averaged over a group's images that have the class in truth and prediction, then over groups, then over the
            classes from index 1 on; and ``unmatched``, of all images and classes from 1 on with the class in truth or
            prediction the fraction that have it in one of them alone, where there is no distance.

        Raises:
            UsageError: nothing has been scored.
        """
        if self._images == 0:
            raise UsageError("There is nothing to score: no image has been added. Is the subset empty, or unlabelled?")
        total = sum(self._groups.values(), self._no_counts())
        dice = {group: _dice(confusion) for group, confusion in sorted(self._groups.items())}
        foreground = {group: _mean(values[1:]) for group, values in dice.items()}
        apart: dict[str, Any] = {}
        if self.hausdorff:
            parts = np.stack([of for _, of in sorted(self._hausdorff.items())])
            of_groups = [[_ratio(*pair) for pair in zip(of[0], of[1], strict=True)] for of in parts]
            by_class = [_mean(values) for values in zip(*of_groups, strict=True)]
            alone, both = parts[:, 2, 1:].sum(), parts[:, 1, 1:].sum()
            apart = {
                "hd95": self._by_class(by_class),
                "mean-foreground-hd95": _number(_mean(by_class[1:])),
                "unmatched": _number(_ratio(alone, alone + both)),
            }
        return {
            "images": self._images,
            "pixels": int(total.sum()),
            "accuracy": _number(_accuracy(total)),
            "mean-iou": _number(_mean(_iou(total))),
            "mean-foreground-dice": _number(_mean(list(foreground.values()))),
            "boundary-density": self._boundary_sum / self._images,
            "true-boundary-density": self._true_boundary_sum / self._images,
            "iou": self._by_class(_iou(total)),
            "dice": self._by_class(_dice(total)),
            "dice-per-group": self._by_class([_mean(values) for values in zip(*dice.values(), strict=True)]),
            "groups": {
                group: {"dice": self._by_class(dice[group]), "mean-foreground-dice": _number(foreground[group])}
                for group in dice
            },
            "trimap": {
                str(width): {
                    "accuracy": _number(_accuracy(confusion)),
                    "mean-iou": _number(_mean(_iou(confusion))),
                    "pixels": int(confusion.sum()),
                }
                for width, confusion in self._trimaps.items()
            },
            "confusion": total.tolist(),
            **apart,
        }

    def state(self) -> dict[str, Any]:
        """What has been counted, as plain numbers, strings and lists: to be sent to another process, or stored."""
        return {
            "classes": list(self.classes),
            "images": self._images,
            "boundary-sum": self._boundary_sum,
            "true-boundary-sum": self._true_boundary_sum,
            "groups": {group: confusion.tolist() for group, confusion in self._groups.items()},
            "trimap": {str(width): confusion.tolist() for width, confusion in self._trimaps.items()},
            "hausdorff": {group: of.tolist() for group, of in self._hausdorff.items()},
        }

    def merge(self, state: Mapping[str, Any]) -> None:
        """Add the counts of another process, given as its `state`; a group may be spread over several processes.

        Raises:
            UsageError: the other counts are of other classes or other trimap widths.
        """
        mine = [list(self.classes), [str(width) for width in self.trimap_widths]]
        theirs = [list(state["classes"]), list(state["trimap"])]
        if mine != theirs:
            raise UsageError(
                f"Only scores of the same classes and trimap widths add up; these have {mine}, those have {theirs}."
            )
        for group, confusion in state["groups"].items():
            self._groups[group] = self._groups.get(group, self._no_counts()) + np.asarray(confusion, dtype=np.int64)
        for width in self.trimap_widths:
            self._trimaps[width] += np.asarray(state["trimap"][str(width)], dtype=np.int64)
        for group, of in state["hausdorff"].items():
            self._hausdorff[group] = self._hausdorff.get(group, np.zeros((3, len(self.classes)))) + np.asarray(of)
        self._boundary_sum += state["boundary-sum"]
        self._true_boundary_sum += state["true-boundary-sum"]
        self._images += state["images"]

    def _no_counts(self) -> Counts:
        return np.zeros((len(self.classes), len(self.classes)), dtype=np.int64)

    def _checked(self, labels: Tensor, name: str) -> Tensor:
        """``labels`` as int64; a prediction may not be 255, but where the label is 255 that does no harm."""
        if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
            raise UsageError(
                f"{name} must hold integer class indices; got {labels.dtype}. Of probabilities take the argmax."
            )
        integers = labels.detach().long()
        wrong = (integers != IGNORE) & ((integers < 0) | (integers >= len(self.classes)))
        if bool(wrong.any()):
            values = sorted(set(integers[wrong].tolist()))[:10]
            raise UsageError(f"{name} must hold the classes 0 to {len(self.classes) - 1}, or 255; found also {values}.")
        return integers

    def _confusion(self, predicted: Tensor, truth: Tensor) -> Counts:
        missing = int(((predicted == IGNORE) & (truth != IGNORE)).sum())
        if missing:
            raise UsageError(
                f"A prediction is 255 (no class) at {missing} pixels that have a label. Give every pixel a class, "
                "or set the label to 255 there."
            )
        # validate_args would look for the same errors again, image by image, with messages about tensors.
        confusion = multiclass_confusion_matrix(
            predicted, truth, num_classes=len(self.classes), ignore_index=IGNORE, validate_args=False
        )
        counts: Counts = confusion.cpu().numpy().astype(np.int64)
        return counts

    def _by_class(self, values: Sequence[float]) -> dict[str, float | None]:
        return {name: _number(value) for name, value in zip(self.classes, values, strict=True)}


RULES = ("best", "border", "last")
"""How phases are matched with the foreground; see `ForegroundScores`."""


class ForegroundScores:
    """Scores of phases that know no class names: an unsupervised method finds regions, not which of them is meant.

    The foreground of the truth is every class but 0. With TP, FP, FN and TN pixels of one image, those labelled 255
    left out,

        F = 2 TP / (2 TP + FP + FN)     foreground IoU = TP / (TP + FP + FN)     accuracy = (TP + TN) / all

    after phases have been declared foreground by a rule; F and IoU are 1 where both foregrounds are empty. The rules
    stand beside each other, since they answer different questions:

        best      the phases that give this image its highest IoU: how well the regions are found. It looks at the truth
        border    two phases: the one that has less of the image's border (of as much, phase 1); more: all but the one
                  that has most of it. A prior, without the truth: objects are seldom cut off
        last      all phases but 0: for methods that keep their numbering from image to image, as trained networks do

    Some phases and never all are foreground; so a prediction of one phase only, whichever it is, scores at best as
    everything or nothing.

    Args:
        phases: K, at least 2.

    Raises:
        UsageError: fewer than two phases.

    >>> scores = ForegroundScores(2)
    >>> truth = torch.tensor([[0, 0, 0], [0, 1, 0], [0, 0, 0]])
    >>> found = torch.tensor([[1, 1, 1], [1, 0, 1], [1, 1, 1]])
    >>> scores.update(found, truth, "photograph")
    >>> result = scores.compute()
    >>> result["best"]["foreground-iou"], result["border"]["foreground-iou"], result["last"]["foreground-iou"]
    (1.0, 1.0, 0.0)
    """

    def __init__(self, phases: int) -> None:
        if not 2 <= phases <= IGNORE:
            raise UsageError(f"Foreground scores need 2 to {IGNORE} phases; got {phases}.")
        self.phases = phases
        self._images: dict[str, dict[str, tuple[float, float, float]]] = {}

    def update(self, prediction: Tensor, label: Tensor, image: str) -> None:
        """Add one image.

        Args:
            prediction: (*S) integer phase indices, two or three axes; 255 only where the label is 255 too.
            label: (*S) integer class indices, 0 = background; pixels with 255 are left out.
            image: its name, new to these scores.

        Raises:
            UsageError: shapes differ, a value is no phase, or the name has been given before.
        """
        _check_pair(prediction, label)
        if image in self._images:
            raise UsageError(f"The image {image!r} has been scored already; names must differ.")
        predicted, truth = prediction.detach().cpu().long(), label.detach().cpu().long()
        counted = truth != IGNORE
        wrong = counted & ((predicted < 0) | (predicted >= self.phases))
        if bool(wrong.any()):
            values = sorted(set(predicted[wrong].tolist()))[:10]
            raise UsageError(f"A prediction must hold the phases 0 to {self.phases - 1}; found {values}.")
        inside = torch.bincount(predicted[counted & (truth > 0)], minlength=self.phases).numpy()
        outside = torch.bincount(predicted[counted & (truth == 0)], minlength=self.phases).numpy()
        foregrounds = {"best": _best_phases(inside, outside), "border": _off_border(predicted, self.phases)}
        foregrounds["last"] = [phase for phase in range(1, self.phases)]
        self._images[image] = {
            rule: _foreground_scores(inside, outside, foreground) for rule, foreground in foregrounds.items()
        }

    def compute(self) -> dict[str, Any]:
        """Scores so far, ready for JSON.

        Returns:
            For each rule ``f-measure``, ``foreground-iou`` and ``accuracy``, means over the images; and ``images``: for
            each image the same by rule.

        Raises:
            UsageError: nothing has been scored.
        """
        if not self._images:
            raise UsageError("There is nothing to score: no image has been added. Is the subset empty, or unlabelled?")
        images = dict(sorted(self._images.items()))  # sums do not depend on who scored which image
        result: dict[str, Any] = {
            rule: _named(np.mean([of[rule] for of in images.values()], axis=0).tolist()) for rule in RULES
        }
        result["images"] = {
            image: {rule: _named(values) for rule, values in of.items()} for image, of in images.items()
        }
        return result

    def state(self) -> dict[str, Any]:
        """What has been scored, as plain numbers, strings and lists: to be sent to another process, or stored."""
        return {
            "phases": self.phases,
            "images": {
                image: {rule: list(values) for rule, values in of.items()} for image, of in self._images.items()
            },
        }

    def merge(self, state: Mapping[str, Any]) -> None:
        """Add the images of another process, given as its `state`.

        Raises:
            UsageError: the other has another number of phases, or scored one of these images too.
        """
        if state["phases"] != self.phases:
            raise UsageError(f"Only scores of as many phases add up; these have {self.phases}, not {state['phases']}.")
        twice = sorted(set(self._images) & set(state["images"]))
        if twice:
            raise UsageError(f"The images {', '.join(twice[:10])} are in both scores.")
        for image, of in state["images"].items():
            self._images[image] = {rule: (values[0], values[1], values[2]) for rule, values in of.items()}


def _named(values: Sequence[float]) -> dict[str, float]:
    return dict(zip(("f-measure", "foreground-iou", "accuracy"), map(float, values), strict=True))


def _best_phases(inside: Counts, outside: Counts) -> list[int]:
    """The phases, neither none nor all, with the highest IoU, given each phase's pixels in the foreground and outside.

    IoU = sum of inside / (foreground + sum of outside): the best set holds the phases whose inside / outside is above
    some number, so it is enough to add them in that order.
    """
    share = inside / np.maximum(inside + outside, 1)
    order = np.argsort(-share, kind="stable").tolist()
    candidates = [order[:count] for count in range(1, len(order))]
    return max(candidates, key=lambda chosen: _foreground_scores(inside, outside, chosen)[1])


def _off_border(prediction: Tensor, phases: int) -> list[int]:
    """All phases but the one with most pixels on the faces of the image (the lowest of those with as many)."""
    border = torch.zeros(prediction.shape, dtype=torch.bool)
    for axis in range(prediction.ndim):
        border.select(axis, 0).fill_(True)
        border.select(axis, -1).fill_(True)
    on_border = prediction[border & (prediction >= 0) & (prediction < phases)]
    background = int(torch.bincount(on_border, minlength=phases).argmax())
    return [phase for phase in range(phases) if phase != background]


def _foreground_scores(inside: Counts, outside: Counts, foreground: Sequence[int]) -> tuple[float, float, float]:
    """F, IoU and accuracy."""
    hits, false = int(inside[list(foreground)].sum()), int(outside[list(foreground)].sum())
    missed, total = int(inside.sum()) - hits, int(inside.sum() + outside.sum())
    if hits + false + missed == 0:
        return 1.0, 1.0, 1.0
    return (
        2 * hits / (2 * hits + false + missed),
        hits / (hits + false + missed),
        (total - false - missed) / total,
    )


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


def hausdorff_distance(prediction: Tensor, label: Tensor, k: int, percentile: float = 95.0) -> float:
    """How far the boundary of class ``k`` is off, in pixels: the HD95 of medical papers.

    With A and B the boundary pixels of the class in prediction and truth, it is the larger of two percentiles: of the
    distances from pixels of A to the nearest one of B, and from B to A; 100 makes it the Hausdorff distance. A boundary
    pixel is one with a neighbour along an axis that is not of the class or lies outside the image. Pixels whose label
    is 255 belong to no class, in the prediction either.

    Args:
        prediction: (*S) integers, two or three axes.
        label: (*S) integers; 255 = ignored.
        k: the class.
        percentile: in (0, 100].

    Returns:
        NaN where neither has the class, infinity where one of them alone has it.

    >>> hausdorff_distance(torch.tensor([[0, 0, 1, 1]]), torch.tensor([[1, 1, 1, 1]]), 1, 100)
    2.0
    """
    known = label != IGNORE
    masks = [((labels == k) & known).cpu().numpy() for labels in (prediction, label)]
    if not masks[0].any() and not masks[1].any():
        return float("nan")
    if not masks[0].any() or not masks[1].any():
        return float("inf")
    first, second = (mask & ~ndimage.binary_erosion(mask) for mask in masks)
    there = ndimage.distance_transform_edt(~second)[first]
    back = ndimage.distance_transform_edt(~first)[second]
    return float(max(np.percentile(there, percentile), np.percentile(back, percentile)))


def trimap(label: Tensor, width: float) -> Tensor:
    """The band of pixels whose distance to the nearest boundary pixel of ``label`` is below ``width``.

    Args:
        label: (*S) integers, two or three axes; 255 = ignored.
        width: in pixels, positive; at 1 the band is the boundary pixels themselves.

    Returns:
        (*S) bool; ignored pixels are never inside.

    Raises:
        UsageError: the width is not positive, or the label has not two or three axes.

    >>> trimap(torch.tensor([[0, 0, 0, 1, 1, 1]]), 2).int()
    tensor([[0, 1, 1, 1, 1, 0]], dtype=torch.int32)
    """
    if not width > 0:
        raise UsageError(f"A trimap's width must be a positive number of pixels; got {width}.")
    _check_axes(label)
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
    _check_axes(labels)
    area = int((labels != IGNORE).sum())
    straight, diagonal = (
        sum(int(_changes(labels, offset).sum()) for offset in neighbor_offsets(2, 8) if sum(map(abs, offset)) == steps)
        for steps in (1, 2)
    )
    return 100 * np.pi / 8 * (straight + diagonal / 2**0.5) / area if area else 0.0


def _check_pair(prediction: Tensor, label: Tensor) -> None:
    if prediction.shape != label.shape or label.ndim not in (2, 3) or label.numel() == 0:
        raise UsageError(
            "A prediction and its label must have the same shape (*S) with 2 or 3 axes (one image, no batch axis); "
            f"got {tuple(prediction.shape)} and {tuple(label.shape)}. Resample the prediction to the label's size."
        )


def _check_axes(labels: Tensor) -> None:
    if labels.ndim not in (2, 3):
        raise UsageError(f"A label map must have the shape (*S) with 2 or 3 axes; got {tuple(labels.shape)}.")


def _changes(labels: Tensor, offset: tuple[int, ...]) -> Tensor:
    """Where a pixel and its neighbour at ``offset`` (in the last axes) have different classes, both not 255."""
    first, second = (pick(labels, side) for side in pair_slices(offset))
    return (first != second) & (first != IGNORE) & (second != IGNORE)


def _accuracy(confusion: Counts) -> float:
    return _ratio(np.trace(confusion), confusion.sum())


def _iou(confusion: Counts) -> list[float]:
    hits, union = np.diag(confusion), confusion.sum(0) + confusion.sum(1) - np.diag(confusion)
    return [_ratio(*pair) for pair in zip(hits, union, strict=True)]


def _dice(confusion: Counts) -> list[float]:
    hits, sizes = np.diag(confusion), confusion.sum(0) + confusion.sum(1)
    return [_ratio(2 * hit, size) for hit, size in zip(hits, sizes, strict=True)]


def _ratio(numerator: np.number[Any], denominator: np.number[Any]) -> float:
    return float(numerator / denominator) if denominator else float("nan")


def _mean(values: Sequence[float]) -> float:
    """Mean of what is defined; NaN where nothing is (numpy's nanmean would warn)."""
    defined = [value for value in values if not np.isnan(value)]
    return float(np.mean(defined)) if defined else float("nan")


def _number(value: float) -> float | None:
    """JSON knows no NaN."""
    return None if np.isnan(value) else value
