"""Conjugate gradients on the differences along the edges of graphs, in Triton: nonlocal total variation, and trees.

    (K s)_e = w_e (s_j - s_i),  e = ij,  for all classes, or for one                (`adjoint_parts_triton`: a step)

A program over pixels gathers K^T z from the edges at each, as in `edge_ascent_triton`.

The package triton is needed to import this module, which is done where CUDA tensors arrive, and in tests under Triton's
interpreter (TRITON_INTERPRET=1).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import triton
import triton.language as tl
from torch import Tensor

from regloss_plugins.kernels.adjoint_parts_triton import BETA, AdjointPart, AdjointStep, conjugate, gathered
from regloss_plugins.kernels.edge_ascent_triton import sums_at_pixels


@triton.jit
def _gather(
    steepest: tl.tensor,  # (B, E, width) z
    weights: tl.tensor,  # (B, E)
    start: tl.tensor,  # (B, N + 1) int32
    order: tl.tensor,  # (B, 2 E) int32
    adjoint: tl.tensor,  # see `gathered`, as are the next seven
    s: tl.tensor,
    points: tl.tensor,
    numbers: tl.tensor,
    batch: tl.tensor,
    classes: tl.tensor,
    pixels: tl.tensor,
    inverse_entropy: tl.tensor,
    column: tl.tensor,  # the first class of z
    width: tl.tensor,
    edges: tl.tensor,
    FIRST: tl.constexpr,
    LAST: tl.constexpr,
    CLASSES: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    total = sums_at_pixels(steepest, weights, start, order, pixel, column, width, pixels, edges, CLASSES, BLOCK)
    gathered(total, pixel, adjoint, s, points, numbers, batch, classes, pixels, inverse_entropy, FIRST, LAST, CLASSES)


@triton.jit
def _apply(
    points: tl.tensor,  # (B, N, K)
    steepest: tl.tensor,  # (B, E, width) z
    direction: tl.tensor,  # (B, E, width) the last d, overwritten
    image: tl.tensor,  # (B, E, width) a, written
    weights: tl.tensor,  # (B, E)
    inverse: tl.tensor,  # (B, E, width) of the diagonal, 0 where the variable is not free
    numbers: tl.tensor,  # (5, B)
    sums: tl.tensor,  # (B, row), written
    row: tl.tensor,
    batch: tl.tensor,
    classes: tl.tensor,
    pixels: tl.tensor,
    ends: tl.tensor,  # (B, E, 2) int64
    column: tl.tensor,  # the first class of d
    width: tl.tensor,
    edges: tl.tensor,
    CLASSES: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    number = tl.program_id(1).to(tl.int64)
    edge = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    label = tl.arange(0, CLASSES)
    there = edge < edges
    inside = there[:, None] & (label < width)[None, :]
    line = number * edges + edge
    at_i = number * pixels + tl.load(ends + 2 * line, mask=there, other=0)
    at_j = number * pixels + tl.load(ends + 2 * line + 1, mask=there, other=0)
    value = tl.load(points + at_j[:, None] * classes + (column + label)[None, :], mask=inside, other=0.0)
    value -= tl.load(points + at_i[:, None] * classes + (column + label)[None, :], mask=inside, other=0.0)
    value *= tl.load(weights + line, mask=there, other=0.0)[:, None]
    places = line[:, None] * width + label[None, :]
    value = tl.where(tl.load(inverse + places, mask=inside, other=0.0) > 0, value, 0.0)
    ahead = conjugate(steepest, direction, places, inside, tl.load(numbers + BETA * batch + number))
    tl.store(direction + places, ahead, mask=inside)
    tl.store(image + places, value, mask=inside)
    total = tl.sum(tl.sum(ahead * value, axis=1), axis=0)
    tl.store(sums + number * row + tl.program_id(0), total)


@dataclass
class EdgeAdjoint(AdjointPart):
    """Differences along edges.

    Args:
        ends: (B, E, 2) int64 pixels i and j.
        start: (B, N + 1) int32, see `regloss.operators.edge_differences.Incidence`.
        order: (B, 2 E) int32, likewise.
    """

    ends: Tensor
    start: Tensor
    order: Tensor

    FIXED: ClassVar[tuple[str, ...]] = ("weights", "inverse", "ends", "start", "order")

    def gather(self, step: AdjointStep, first: bool, last: bool) -> None:
        """As of `AdjointPart`."""
        given = self.steepest, self.weights, self.start, self.order, *step.of_gather, *self._columns
        _gather[step.grid](*given, FIRST=first, LAST=last, **step.tile)

    def apply(self, step: AdjointStep, image: Tensor, begin: int) -> None:
        """As of `AdjointPart`."""
        given = step.points, *self.of_apply(step, image, begin), self.ends, *self._columns
        _apply[self.blocks, len(image)](*given, **self.tile)

    @property
    def _columns(self) -> tuple[int, int, int]:
        """The first class, how many, and edges."""
        edges, width = self.solution.shape[2:]
        return self.column, width, edges
