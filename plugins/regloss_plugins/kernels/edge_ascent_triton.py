"""Dual ascent on the differences along the edges of graphs, in Triton: nonlocal total variation, and trees.

    (K s)_e = w_e (s_j - s_i),  e = ij,  for all classes, or for one                       (`points_triton`: a step)

A program of the first launch owns some pixels and all their classes, and gathers K^T y from the edges at each; as K^T
is linear, K^T x follows from that and the sums before. One of the second owns some edges, reads s at both ends, moves
and writes y+ over the y before. Nothing is added to memory that others add to, and nothing waits for the host. A step
reads five numbers an edge and class, and writes one.

The package triton is needed to import this module, which is done where CUDA tensors arrive, and in tests under Triton's
interpreter (TRITON_INTERPRET=1).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import triton
import triton.language as tl
from torch import Tensor

from regloss_plugins.kernels.points_triton import Part, Step, block_of, finished


@triton.jit
def sums_at_pixels(
    dual: tl.tensor,  # (B, E, width)
    weights: tl.tensor,  # (B, E)
    start: tl.tensor,  # (B, N + 1) int32
    order: tl.tensor,  # (B, 2 E) int32
    pixel: tl.tensor,  # (BLOCK,)
    first: tl.tensor,
    width: tl.tensor,
    pixels: tl.tensor,
    edges: tl.tensor,
    CLASSES: tl.constexpr,
    BLOCK: tl.constexpr,
) -> tl.tensor:
    """(BLOCK, CLASSES) K^T y at some pixels of the program's image, gathered from the edges at each."""
    number = tl.program_id(1).to(tl.int64)
    column = tl.arange(0, CLASSES) - first
    own = (column >= 0) & (column < width)
    there = pixel < pixels
    begin = tl.load(start + number * (pixels + 1) + pixel, mask=there, other=0)
    count = tl.load(start + number * (pixels + 1) + pixel + 1, mask=there, other=0) - begin
    total = tl.zeros((BLOCK, CLASSES), dtype=tl.float32)
    for k in range(tl.max(count, axis=0)):
        here = k < count
        entry = tl.load(order + 2 * number * edges + begin + k, mask=here, other=0)
        edge = tl.where(entry < edges, entry, entry - edges)
        weight = tl.load(weights + number * edges + edge, mask=here, other=0.0)
        weight = tl.where(entry < edges, -weight, weight)
        places = (number * edges + edge)[:, None] * width + column[None, :]
        total += weight[:, None] * tl.load(dual + places, mask=here[:, None] & own[None, :], other=0.0)
    return total


@triton.jit
def _add(
    scores: tl.tensor,  # (B, N, K)
    dual: tl.tensor,  # (B, E, width)
    weights: tl.tensor,  # (B, E)
    start: tl.tensor,  # (B, N + 1) int32
    order: tl.tensor,  # (B, 2 E) int32
    before: tl.tensor,  # (B, N, width) K^T of the y before
    adjoint: tl.tensor,  # (B, N, width) K^T y, written
    points: tl.tensor,  # (B, N, K), written
    extrapolations: tl.tensor,  # (B,)
    classes: tl.tensor,
    first: tl.tensor,
    width: tl.tensor,
    pixels: tl.tensor,
    edges: tl.tensor,
    factor: tl.tensor,
    LAST: tl.constexpr,
    ENTROPY: tl.constexpr,
    CLASSES: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    number = tl.program_id(1).to(tl.int64)
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    label = tl.arange(0, CLASSES)
    column = label - first
    own = (column >= 0) & (column < width)
    there = pixel < pixels
    known = label < classes
    total = sums_at_pixels(dual, weights, start, order, pixel, first, width, pixels, edges, CLASSES, BLOCK)
    places = (number * pixels + pixel)[:, None] * width + column[None, :]
    mine = there[:, None] & own[None, :]
    tl.store(adjoint + places, total, mask=mine)
    change = total - tl.load(before + places, mask=mine, other=0.0)
    places = (number * pixels + pixel)[:, None] * classes + label[None, :]
    inside = there[:, None] & known[None, :]
    score = tl.load(scores + places, mask=inside, other=0.0) + total + tl.load(extrapolations + number) * change
    tl.store(points + places, finished(score, known, factor, LAST, ENTROPY), mask=inside)


@triton.jit
def _move(
    ends: tl.tensor,  # (B, E, 2) int64
    points: tl.tensor,  # (B, N, K) s
    dual: tl.tensor,  # (B, E, width)
    before: tl.tensor,  # (B, E, width), overwritten with y+
    weights: tl.tensor,  # (B, E)
    steps: tl.tensor,  # (B, E, width) tau, or (B, E)
    extrapolations: tl.tensor,  # (B,)
    gains: tl.tensor,  # (B, row), written
    row: tl.tensor,
    classes: tl.tensor,
    first: tl.tensor,
    width: tl.tensor,
    pixels: tl.tensor,
    edges: tl.tensor,
    low: tl.tensor,
    high: tl.tensor,
    EACH: tl.constexpr,
    CLASSES: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    number = tl.program_id(1).to(tl.int64)
    edge = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    label = tl.arange(0, CLASSES)
    there = edge < edges
    inside = there[:, None] & (label < width)[None, :]
    at_i = number * pixels + tl.load(ends + 2 * (number * edges + edge), mask=there, other=0)
    at_j = number * pixels + tl.load(ends + 2 * (number * edges + edge) + 1, mask=there, other=0)
    difference = tl.load(points + at_j[:, None] * classes + (first + label)[None, :], mask=inside, other=0.0)
    difference -= tl.load(points + at_i[:, None] * classes + (first + label)[None, :], mask=inside, other=0.0)
    places = (number * edges + edge)[:, None] * width + label[None, :]
    value = tl.load(dual + places, mask=inside, other=0.0)
    point = value - tl.load(before + places, mask=inside, other=0.0)
    point = value + tl.load(extrapolations + number) * point
    if EACH:
        tau = tl.load(steps + places, mask=inside, other=0.0)
    else:
        tau = tl.load(steps + number * edges + edge, mask=there, other=0.0)[:, None]
    weight = tl.load(weights + number * edges + edge, mask=there, other=0.0)
    moved = tl.minimum(tl.maximum(point + tau * weight[:, None] * difference, low), high)
    tl.store(before + places, moved, mask=inside)
    gain = tl.where(tau > 0, (point - moved) * (moved - value) / tl.where(tau > 0, tau, 1.0), 0.0)
    tl.store(gains + number * row + tl.program_id(0), tl.sum(tl.sum(gain, axis=1), axis=0))


@dataclass
class EdgePart(Part):
    """Differences along edges.

    Args:
        duals: (2, B, E, classes that it has).
        weights: (B, E).
        steps: (B, E, those classes or 1).
        adjoints: (2, B, N, those classes) K^T of both: 0 before the first step, when both are alike.
        ends: (B, E, 2) int64 pixels i and j.
        start: (B, N + 1) int32, see `regloss.operators.edge_differences.Incidence`.
        order: (B, 2 E) int32, likewise.
    """

    adjoints: Tensor
    ends: Tensor
    start: Tensor
    order: Tensor

    MOVING: ClassVar[tuple[str, ...]] = ("duals", "adjoints")
    FIXED: ClassVar[tuple[str, ...]] = ("weights", "steps", "ends", "start", "order")

    @property
    def blocks(self) -> int:
        """As of `Part`."""
        edges, width = self.duals.shape[2:]
        return int(triton.cdiv(edges, block_of(width)[1]))

    def add(self, step: Step, scores: Tensor, last: bool) -> None:
        """As of `Part`."""
        batch, pixels, classes = scores.shape
        edges, width = self.duals.shape[2:]
        padded, block = block_of(classes)
        _add[triton.cdiv(pixels, block), batch](
            scores,
            self.duals[step.now],
            self.weights,
            self.start,
            self.order,
            self.adjoints[1 - step.now],
            self.adjoints[step.now],
            step.points,
            step.extrapolations,
            classes,
            self.first,
            width,
            pixels,
            edges,
            step.factor,
            LAST=last,
            ENTROPY=step.entropy,
            CLASSES=padded,
            BLOCK=block,
        )

    def move(self, step: Step, begin: int) -> None:
        """As of `Part`."""
        batch, pixels, classes = step.points.shape
        edges, width = self.duals.shape[2:]
        padded, block = block_of(width)
        _move[self.blocks, batch](
            self.ends,
            step.points,
            self.duals[step.now],
            self.duals[1 - step.now],
            self.weights,
            self.steps,
            step.extrapolations,
            step.gains[:, begin:],
            step.gains.shape[1],
            classes,
            self.first,
            width,
            pixels,
            edges,
            self.low,
            self.high,
            EACH=self.steps.shape[2] > 1,
            CLASSES=padded,
            BLOCK=block,
        )
