"""NearestSeed: every pixel takes the label of the scribble that is nearest along the image.

    energy = sum over pixels of   min over paths to a scribble of   sum of steps' lengths * (1 + slope / contrast)

by relaxing all steps of the paths until none gets shorter (Bellman, 1958; Ford, 1956), which is exact.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from regloss import grid
from regloss.dataset import IGNORE
from regloss.errors import UsageError
from regloss.numerics import one_hot
from regloss.segmenter import Segmentation, Segmenter, Task
from regloss.solver import Status


@dataclass(frozen=True)
class NearestSeed(Segmenter):
    """contrast: slope that doubles a step's length, in image values a pixel, > 0."""

    takes_phases = False  # scribbles alone

    contrast: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.contrast < math.inf:
            raise UsageError(f"contrast must be positive, in image values a pixel; got {self.contrast}.")

    def segment(self, task: Task) -> Segmentation:
        """Distances (1, K, *S) to the scribbles of each class, and the nearest of them."""
        assert task.scribbles is not None
        given = task.scribbles != IGNORE
        seeds = one_hot(task.scribbles.masked_fill(~given, 0), task.phases, task.image.dtype) * given.unsqueeze(1)
        distances = torch.where(seeds > 0, 0.0, math.inf).to(task.image)
        steps, before = 0, torch.full_like(distances, -1.0)
        while not torch.equal(distances, before):
            before, steps = distances.clone(), steps + 1
            for offset in grid.neighbor_offsets(task.image.ndim - 2, 2 * (task.image.ndim - 2)):
                self._relax(distances, task.image, offset)
        labels = distances.argmin(1)
        energy = float(distances.amin(1).sum())
        return Segmentation(
            labels=labels,
            probabilities=one_hot(labels, task.phases, task.image.dtype),
            energy=energy,
            bound=energy,
            steps=steps,
            status=Status.OPTIMAL,
        )

    def _relax(self, distances: Tensor, image: Tensor, offset: grid.Offset) -> None:
        """Shorten ``distances`` by steps along ``offset``, in place."""
        first, second = grid.pair_slices(offset)
        slope = torch.linalg.vector_norm(grid.pick(image, first) - grid.pick(image, second), dim=1, keepdim=True)
        for here, there in ((first, second), (second, first)):
            through = grid.pick(distances, there) + 1 + slope / self.contrast
            grid.pick(distances, here).copy_(torch.minimum(grid.pick(distances, here), through))
