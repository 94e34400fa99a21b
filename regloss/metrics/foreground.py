"""Scores of phases that were found without labels, and so know no class names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from regloss.dataset import IGNORE
from regloss.errors import UsageError
from regloss.metrics.groups import NOTHING, GroupMetric
from regloss.metrics.labels import Counts, check_pair

RULES = ("best", "border", "last")
"""How phases are matched with the foreground; see `ForegroundScores`."""

_SCORES = ("f-measure", "foreground-iou", "accuracy")


class ForegroundScores(GroupMetric):
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
        super().__init__((len(RULES), len(_SCORES)), torch.float64)
        self.phases = phases

    def update(self, prediction: Tensor, label: Tensor, image: str) -> None:
        """Add one image.

        Args:
            prediction: (*S) integer phase indices, two or three axes; 255 only where the label is 255 too.
            label: (*S) integer class indices, 0 = background; pixels with 255 are left out.
            image: its name, new to these scores.

        Raises:
            UsageError: shapes differ, a value is no phase, or the name has been given before.
        """
        check_pair(prediction, label)
        if self.place_of(image) is not None:
            raise UsageError(f"The image {image!r} has been scored already; names must differ.")
        predicted, truth = prediction.detach().cpu().long(), label.detach().cpu().long()
        counted = truth != IGNORE
        wrong = counted & ((predicted < 0) | (predicted >= self.phases))
        if bool(wrong.any()):
            values = sorted(set(predicted[wrong].tolist()))[:10]
            raise UsageError(f"A prediction must hold the phases 0 to {self.phases - 1}; found {values}.")
        inside = torch.bincount(predicted[counted & (truth > 0)], minlength=self.phases).numpy()
        outside = torch.bincount(predicted[counted & (truth == 0)], minlength=self.phases).numpy()
        foregrounds = {
            "best": _best_phases(inside, outside),
            "border": _off_border(predicted, self.phases),
            "last": list(range(1, self.phases)),
        }
        scores = [_foreground_scores(inside, outside, foregrounds[rule]) for rule in RULES]
        self.add(image, torch.tensor(scores, dtype=torch.float64))

    def compute(self) -> dict[str, Any]:
        """Scores so far, ready for JSON.

        Returns:
            For each rule ``f-measure``, ``foreground-iou`` and ``accuracy``, means over the images; and ``images``: for
            each image the same by rule.

        Raises:
            UsageError: nothing has been scored.
        """
        images = {name: scores.numpy() for name, scores in self.by_group().items()}
        if not images:
            raise UsageError(NOTHING)
        means = np.mean(list(images.values()), axis=0)
        return {**_by_rule(means), "images": {image: _by_rule(scores) for image, scores in images.items()}}

    def merge_state(self, incoming_state: dict[str, Any] | Metric) -> None:
        """Add the images of other scores.

        Raises:
            UsageError: the other has another number of phases, or scored one of these images too.
        """
        if isinstance(incoming_state, ForegroundScores):
            if incoming_state.phases != self.phases:
                raise UsageError(
                    f"Only scores of as many phases add up; these have {self.phases}, not {incoming_state.phases}."
                )
            twice = sorted(self.by_group().keys() & incoming_state.by_group().keys())
            if twice:
                raise UsageError(f"The images {', '.join(twice[:10])} are in both scores.")
        super().merge_state(incoming_state)

    def _setting(self) -> object:
        return self.phases


def _by_rule(scores: np.ndarray[Any, np.dtype[np.float64]]) -> dict[str, dict[str, float]]:
    return {rule: dict(zip(_SCORES, values, strict=True)) for rule, values in zip(RULES, scores.tolist(), strict=True)}


def _best_phases(inside: Counts, outside: Counts) -> list[int]:
    """The phases, neither none nor all, with the highest IoU, given each phase's pixels in the foreground and outside.

    IoU = sum of inside / (foreground + sum of outside): without a phase that is left out, the best set holds those of
    the others whose inside / outside is above some number, so it is enough to add them in that order. Every set that is
    not all leaves some phase out.
    """
    sizes = inside + outside
    share = np.where(sizes > 0, inside / np.maximum(sizes, 1), 1)  # a phase without pixels does no harm
    order = np.argsort(-share, kind="stable")
    best, highest = [0], (-1.0, -1.0)
    for left_out in range(len(order)):
        others = order[order != left_out]
        hits, false = np.cumsum(inside[others]), np.cumsum(outside[others])
        union, right = inside.sum() + false, hits - false
        iou = np.where(union > 0, hits / np.maximum(union, 1), 1.0)
        count = int(np.lexsort((right, iou))[-1])
        if (float(iou[count]), float(right[count])) > highest:
            best, highest = others[: count + 1].tolist(), (float(iou[count]), float(right[count]))
    return best


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
