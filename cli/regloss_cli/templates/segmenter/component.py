"""Nearest colours: the labels of pixels by the mean colours of regions, smoothed by votes of the neighbourhood.

    labels and means m minimise   F = sum over pixels p of |I_p - m_(l_p)|^2     (the energy that is reported)

by turns from the scribbles or the start: means of the colours of each class, then for every pixel the class of the
least mean cost in a window around it. Only the means lower F for sure, so that the best of all rounds is kept.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import avg_pool1d, avg_pool2d, avg_pool3d

from regloss.dataset import IGNORE
from regloss.errors import UsageError
from regloss.numerics import one_hot
from regloss.segmenter import EnergyRecord, Segmentation, Segmenter, Task
from regloss.solver import Status


@dataclass(frozen=True)
class MyComponent(Segmenter):
    """Classes of nearest colour in windows of (2 radius + 1)^d pixels.

    Args:
        radius: of the window, pixels, >= 0.
        max_rounds: >= 1.

    Raises:
        UsageError: a setting outside its range; in a call, a start by another name than "brightness", or classes that
            have no pixels to start from.
    """

    radius: int = 1
    max_rounds: int = 20

    def __post_init__(self) -> None:
        if self.radius < 0 or self.max_rounds < 1:
            raise UsageError(
                f"radius must not be negative, max_rounds at least 1; got {self.radius} and {self.max_rounds}."
            )

    def segment(self, task: Task) -> Segmentation:
        """Alternate between the means and the labels."""
        image, seeds = task.image, task.scribbles
        labels, history = seeds if seeds is not None else self._start(task), []
        best, lowest, status = labels, float("inf"), Status.MAX_STEPS
        for number in range(1, self.max_rounds + 1):
            costs = self._costs(image, labels, task.phases)
            if task.allowed is not None:
                costs = costs.masked_fill(~task.allowed.reshape(1, -1, *[1] * (image.ndim - 2)), float("inf"))
            found = self._smooth(costs).argmin(1)
            if seeds is not None:
                found = torch.where(seeds != IGNORE, seeds, found)
            energy = float(costs.gather(1, found.unsqueeze(1)).sum())
            history.append(EnergyRecord(number, "labels", 0, energy, -float("inf")))
            if task.callback is not None:
                task.callback(f"round {number}: energy {energy:.6g}")
            if energy < lowest:
                best, lowest = found, energy
            if torch.equal(found, labels):
                status = Status.CONVERGED
                break
            labels = found
        return Segmentation(
            labels=best,
            probabilities=one_hot(best, task.phases, image.dtype),
            energy=lowest,
            steps=len(history),
            status=status,
            history=tuple(history),
        )

    def _start(self, task: Task) -> Tensor:
        """The given phases, or as many classes of brightness, each with as many pixels."""
        if isinstance(task.start, Tensor):
            return task.start
        if task.start not in (None, "brightness"):
            raise UsageError(f'start must hold phases or be "brightness"; got {task.start!r}.')
        order = task.image.sum(1).flatten().argsort(stable=True)
        labels = torch.empty_like(order)
        labels[order] = torch.arange(len(order), device=order.device) * task.phases // len(order)
        return labels.reshape(1, *task.image.shape[2:])

    def _costs(self, image: Tensor, labels: Tensor, classes: int) -> Tensor:
        """|I - m_k|^2 (1, K, *S), with the means of ``labels``; inf for a class without pixels."""
        weights = one_hot(labels.masked_fill(labels == IGNORE, 0), classes, image.dtype) * (labels != IGNORE)
        counts = weights.flatten(2).sum(2)
        means = torch.einsum("bkn,bcn->bkc", weights.flatten(2), image.flatten(2)) / counts.clamp(min=1).unsqueeze(2)
        means = means.reshape(*means.shape, *[1] * (image.ndim - 2))
        costs = (image.unsqueeze(1) - means).square().sum(2)
        return costs.masked_fill((counts == 0).reshape(1, -1, *[1] * (image.ndim - 2)), float("inf"))

    def _smooth(self, costs: Tensor) -> Tensor:
        """Means over windows, of the pixels that lie in the image."""
        pool = {3: avg_pool1d, 4: avg_pool2d, 5: avg_pool3d}[costs.ndim]
        size, finite = 2 * self.radius + 1, costs.isfinite()
        filled = costs.masked_fill(~finite, 0.0)
        smooth: Tensor = pool(filled, size, stride=1, padding=self.radius, count_include_pad=False)
        return smooth.masked_fill(~finite, float("inf"))
