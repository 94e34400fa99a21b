"""Conjugate gradients of the implicit gradient in Triton: a step of one part or of several.

For A = Q (K S' K^T + c) Q and its diagonal M, with the residual r and z = Q M^-1 r (see `regloss.implicit`),

    d = z + beta d,  a = A d        beta, alpha: numbers of each image, 0 where it has ended
    nu += alpha d,   r -= alpha a

A step is three launches a part and two more. One of pixels gathers K^T z; the last part's adds up what K^T d is, and
takes S' of it over the classes. One of differences makes d and a, and sums of <d, a> over its programs, from which one
for all parts makes alpha. One of differences moves nu and r, makes z, and sums of <r, z>, from which one makes beta.
What has ended stays as it is, and nothing waits for the host. The classes of a pixel, and those of a difference, lie
side by side. Edges are like the differences along one axis but for where their ends lie.

The package triton is needed to import this module, which is done where CUDA tensors arrive, and in tests under Triton's
interpreter (TRITON_INTERPRET=1).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from regloss_plugins.kernels.grid_differences_triton import stride_along, strides_of
from regloss_plugins.kernels.points_triton import block_of

# Rows of the numbers of each image.
_POWER = tl.constexpr(0)  # <r, z>
_TARGET = tl.constexpr(1)  # power at which to stop
_ACTIVE = tl.constexpr(2)  # 1, or 0 = ended
_ALPHA = tl.constexpr(3)
_BETA = tl.constexpr(4)
_SUMS = tl.constexpr(128)


@triton.jit
def _gathered(
    total: tl.tensor,  # (pixels, classes) K^T z of a part
    adjoint: tl.tensor,  # (B, N, K) K^T of the last d, overwritten with that of this one
    s: tl.tensor,  # (B, N, K)
    points: tl.tensor,  # (B, N, K), written: K^T z so far, then S' K^T d
    places: tl.tensor,
    inside: tl.tensor,
    beta: tl.tensor,
    inverse_entropy: tl.tensor,
    FIRST: tl.constexpr,
    LAST: tl.constexpr,
) -> tl.tensor:
    """What was written: of the last part, S' K^T d."""
    if not FIRST:
        total += tl.load(points + places, mask=inside, other=0.0)
    if LAST:
        total += beta * tl.load(adjoint + places, mask=inside, other=0.0)
        tl.store(adjoint + places, total, mask=inside)
        weighted = tl.load(s + places, mask=inside, other=0.0)
        mean = tl.sum(weighted * total, axis=1)
        total = weighted * (total - mean[:, None]) * inverse_entropy
    tl.store(points + places, total, mask=inside)
    return total


@triton.jit
def _grid_points(
    steepest: tl.tensor,  # (B, AXES, N, K) z
    weights: tl.tensor,  # (B, AXES, N)
    adjoint: tl.tensor,  # (B, N, K), see `_gathered`, as are the next two
    s: tl.tensor,
    points: tl.tensor,
    numbers: tl.tensor,  # (5, B)
    batch: tl.tensor,
    classes: tl.tensor,
    pixels: tl.tensor,
    inverse_entropy: tl.tensor,
    stride_0: tl.tensor,
    stride_1: tl.tensor,
    stride_2: tl.tensor,
    AXES: tl.constexpr,
    FIRST: tl.constexpr,
    LAST: tl.constexpr,
    CLASSES: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    number = tl.program_id(1).to(tl.int64)
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    label = tl.arange(0, CLASSES)
    there, known = pixel < pixels, label < classes
    inside = there[:, None] & known[None, :]
    total = tl.zeros((BLOCK, CLASSES), dtype=tl.float32)
    for axis in tl.static_range(AXES):
        stride = stride_along(axis, stride_0, stride_1, stride_2)
        first = (number * AXES + axis) * pixels + pixel
        weight = tl.load(weights + first, mask=there, other=0.0)
        places = first[:, None] * classes + label[None, :]
        total -= weight[:, None] * tl.load(steepest + places, mask=inside, other=0.0)
        back = there & (pixel >= stride)
        weight = tl.load(weights + first - stride, mask=back, other=0.0)
        behind = back[:, None] & known[None, :]
        total += weight[:, None] * tl.load(steepest + places - stride * classes, mask=behind, other=0.0)
    places = (number * pixels + pixel)[:, None] * classes + label[None, :]
    beta = tl.load(numbers + _BETA * batch + number)
    _gathered(total, adjoint, s, points, places, inside, beta, inverse_entropy, FIRST, LAST)


@triton.jit
def _edge_points(
    steepest: tl.tensor,  # (B, E, width) z
    weights: tl.tensor,  # (B, E)
    start: tl.tensor,  # (B, N + 1) int32
    order: tl.tensor,  # (B, 2 E) int32
    adjoint: tl.tensor,  # (B, N, K), see `_gathered`, as are the next two
    s: tl.tensor,
    points: tl.tensor,
    numbers: tl.tensor,  # (5, B)
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
    number = tl.program_id(1).to(tl.int64)
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    label = tl.arange(0, CLASSES)
    there, known = pixel < pixels, label < classes
    own = (label >= column) & (label < column + width)
    begin = tl.load(start + number * (pixels + 1) + pixel, mask=there, other=0)
    count = tl.load(start + number * (pixels + 1) + pixel + 1, mask=there, other=0) - begin
    total = tl.zeros((BLOCK, CLASSES), dtype=tl.float32)
    for k in range(tl.max(count, axis=0)):
        here = k < count
        entry = tl.load(order + 2 * number * edges + begin + k, mask=here, other=0)
        edge = tl.where(entry < edges, entry, entry - edges)
        weight = tl.load(weights + number * edges + edge, mask=here, other=0.0)
        weight = tl.where(entry < edges, -weight, weight)
        places = (number * edges + edge)[:, None] * width + (label - column)[None, :]
        total += weight[:, None] * tl.load(steepest + places, mask=here[:, None] & own[None, :], other=0.0)
    places = (number * pixels + pixel)[:, None] * classes + label[None, :]
    beta = tl.load(numbers + _BETA * batch + number)
    inside = there[:, None] & known[None, :]
    _gathered(total, adjoint, s, points, places, inside, beta, inverse_entropy, FIRST, LAST)


@triton.jit
def _sums_points(
    steepest: tl.tensor,  # (B, SIDES, K) z
    weights: tl.tensor,  # (B,)
    region: tl.tensor,  # (B, N) 1 or 0
    totals: tl.tensor,  # (B, blocks, K), written: sums of S' K^T d over the region's pixels of a program
    adjoint: tl.tensor,  # (B, N, K), see `_gathered`, as are the next two
    s: tl.tensor,
    points: tl.tensor,
    numbers: tl.tensor,  # (5, B)
    batch: tl.tensor,
    classes: tl.tensor,
    pixels: tl.tensor,
    inverse_entropy: tl.tensor,
    SIDES: tl.constexpr,
    FIRST: tl.constexpr,
    CLASSES: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    block, number = tl.program_id(0), tl.program_id(1).to(tl.int64)
    pixel = block * BLOCK + tl.arange(0, BLOCK)
    label = tl.arange(0, CLASSES)
    there, known = pixel < pixels, label < classes
    rise = tl.load(steepest + number * SIDES * classes + label, mask=known, other=0.0)
    if SIDES == 2:
        rise -= tl.load(steepest + (number * SIDES + 1) * classes + label, mask=known, other=0.0)
    rise *= tl.load(weights + number)
    counts = tl.load(region + number * pixels + pixel, mask=there, other=0.0)
    places = (number * pixels + pixel)[:, None] * classes + label[None, :]
    inside = there[:, None] & known[None, :]
    beta = tl.load(numbers + _BETA * batch + number)
    total = counts[:, None] * rise[None, :]
    total = _gathered(total, adjoint, s, points, places, inside, beta, inverse_entropy, FIRST, True)
    total = tl.sum(counts[:, None] * total, axis=0)
    tl.store(totals + (number * tl.num_programs(0) + block) * classes + label, total, mask=known)


@triton.jit
def _order_points(
    steepest: tl.tensor,  # (B, N, K) z
    weights: tl.tensor,  # (B, N)
    adjoint: tl.tensor,  # (B, N, K), see `_gathered`, as are the next two
    s: tl.tensor,
    points: tl.tensor,
    numbers: tl.tensor,  # (5, B)
    batch: tl.tensor,
    classes: tl.tensor,
    pixels: tl.tensor,
    inverse_entropy: tl.tensor,
    FIRST: tl.constexpr,
    LAST: tl.constexpr,
    CLASSES: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    number = tl.program_id(1).to(tl.int64)
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    label = tl.arange(0, CLASSES)
    there = pixel < pixels
    inside = there[:, None] & (label < classes)[None, :]
    places = (number * pixels + pixel)[:, None] * classes + label[None, :]
    total = tl.load(steepest + places, mask=inside, other=0.0)
    total -= tl.load(steepest + places - 1, mask=inside & (label > 0)[None, :], other=0.0)
    total *= tl.load(weights + number * pixels + pixel, mask=there, other=0.0)[:, None]
    beta = tl.load(numbers + _BETA * batch + number)
    _gathered(total, adjoint, s, points, places, inside, beta, inverse_entropy, FIRST, LAST)


@triton.jit
def _image(
    points: tl.tensor,  # (B, N, K)
    steepest: tl.tensor,  # (B, AXES, E, width) z; E is N on grids
    direction: tl.tensor,  # (B, AXES, E, width) the last d, overwritten
    image: tl.tensor,  # (B, AXES, E, width) a, written
    weights: tl.tensor,  # (B, AXES, E)
    inverse: tl.tensor,  # (B, AXES, E, width) of the diagonal, 0 where the variable is not free
    normals: tl.tensor,  # (B, AXES, E, width), where JOINT
    curvature: tl.tensor,  # (B, E, width), where JOINT
    ends: tl.tensor,  # (B, E, 2) int64, of edges
    numbers: tl.tensor,  # (5, B)
    sums: tl.tensor,  # (B, row), written
    row: tl.tensor,
    batch: tl.tensor,
    classes: tl.tensor,
    pixels: tl.tensor,
    column: tl.tensor,  # the first class of d
    width: tl.tensor,
    edges: tl.tensor,
    stride_0: tl.tensor,
    stride_1: tl.tensor,
    stride_2: tl.tensor,
    GRAPH: tl.constexpr,
    AXES: tl.constexpr,
    JOINT: tl.constexpr,
    CLASSES: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    number = tl.program_id(1).to(tl.int64)
    edge = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    label = tl.arange(0, CLASSES)
    there = edge < edges
    inside = there[:, None] & (label < width)[None, :]
    of_points = points + column + label[None, :]
    beta = tl.load(numbers + _BETA * batch + number)
    first = edge.to(tl.int64)
    if GRAPH:
        first = tl.load(ends + 2 * (number * edges + edge), mask=there, other=0)
    own = tl.load(of_points + (number * pixels + first)[:, None] * classes, mask=inside, other=0.0)
    bend = tl.zeros((BLOCK, CLASSES), dtype=tl.float32)
    if JOINT:
        bend = tl.load(curvature + (number * edges + edge)[:, None] * width + label[None, :], mask=inside, other=0.0)
    outward = tl.zeros((BLOCK, CLASSES), dtype=tl.float32)
    total = tl.zeros((BLOCK, CLASSES), dtype=tl.float32)
    # Where the axes are bounded together, once for what sticks out of the tangent and once for the rest.
    for turn in tl.static_range(2 if JOINT else 1):
        for axis in tl.static_range(AXES):
            second = first + stride_along(axis, stride_0, stride_1, stride_2)
            if GRAPH:
                second = tl.load(ends + 2 * (number * edges + edge) + 1, mask=there, other=0)
            onward = inside & (second < pixels)[:, None]
            line = (number * AXES + axis) * edges + edge
            places = line[:, None] * width + label[None, :]
            ahead = tl.load(steepest + places, mask=inside, other=0.0)
            ahead += beta * tl.load(direction + places, mask=inside, other=0.0)
            value = tl.load(of_points + (number * pixels + second)[:, None] * classes, mask=onward, other=0.0) - own
            value = tl.load(weights + line, mask=there, other=0.0)[:, None] * value + bend * ahead
            if JOINT:
                normal = tl.load(normals + places, mask=inside, other=0.0)
            if JOINT and turn == 0:
                outward += normal * value
            else:
                if JOINT:
                    value -= normal * outward
                else:
                    value = tl.where(tl.load(inverse + places, mask=inside, other=0.0) > 0, value, 0.0)
                tl.store(direction + places, ahead, mask=inside)
                tl.store(image + places, value, mask=inside)
                total += ahead * value
    total = tl.sum(tl.sum(total, axis=1), axis=0)
    tl.store(sums + number * row + tl.program_id(0), total)


@triton.jit
def _sums_image(
    totals: tl.tensor,  # (B, blocks, K)
    steepest: tl.tensor,  # (B, SIDES, K) z
    direction: tl.tensor,  # (B, SIDES, K) the last d, overwritten
    image: tl.tensor,  # (B, SIDES, K) a, written
    weights: tl.tensor,  # (B,)
    inverse: tl.tensor,  # (B, SIDES, K) of the diagonal, 0 where the variable is not free
    numbers: tl.tensor,  # (5, B)
    sums: tl.tensor,  # (B, row), written
    row: tl.tensor,
    batch: tl.tensor,
    classes: tl.tensor,
    blocks: tl.tensor,
    SIDES: tl.constexpr,
    CLASSES: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    number = tl.program_id(0).to(tl.int64)
    label = tl.arange(0, CLASSES)
    known = label < classes
    parts = tl.zeros((BLOCK, CLASSES), dtype=tl.float64)
    for begin in range(0, blocks, BLOCK):
        block = begin + tl.arange(0, BLOCK)
        places = (number * blocks + block)[:, None] * classes + label[None, :]
        parts += tl.load(totals + places, mask=(block < blocks)[:, None] & known[None, :], other=0.0).to(tl.float64)
    covered = tl.sum(parts, axis=0).to(tl.float32) * tl.load(weights + number)
    beta = tl.load(numbers + _BETA * batch + number)
    total = tl.zeros((CLASSES,), dtype=tl.float32)
    for side in tl.static_range(SIDES):
        places = (number * SIDES + side) * classes + label
        ahead = tl.load(steepest + places, mask=known, other=0.0)
        ahead += beta * tl.load(direction + places, mask=known, other=0.0)
        value = covered if side == 0 else -covered
        value = tl.where(tl.load(inverse + places, mask=known, other=0.0) > 0, value, 0.0)
        tl.store(direction + places, ahead, mask=known)
        tl.store(image + places, value, mask=known)
        total += ahead * value
    tl.store(sums + number * row, tl.sum(total, axis=0))


@triton.jit
def _order_image(
    points: tl.tensor,  # (B, N, K)
    steepest: tl.tensor,  # (B, N, K) z
    direction: tl.tensor,  # (B, N, K) the last d, overwritten
    image: tl.tensor,  # (B, N, K) a, written
    weights: tl.tensor,  # (B, N)
    inverse: tl.tensor,  # (B, N, K) of the diagonal, 0 where the variable is not free, as that of the last class
    numbers: tl.tensor,  # (5, B)
    sums: tl.tensor,  # (B, row), written
    row: tl.tensor,
    batch: tl.tensor,
    classes: tl.tensor,
    pixels: tl.tensor,
    CLASSES: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    number = tl.program_id(1).to(tl.int64)
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    label = tl.arange(0, CLASSES)
    there = pixel < pixels
    inside = there[:, None] & (label < classes - 1)[None, :]
    places = (number * pixels + pixel)[:, None] * classes + label[None, :]
    ahead = tl.load(steepest + places, mask=inside, other=0.0)
    ahead += tl.load(numbers + _BETA * batch + number) * tl.load(direction + places, mask=inside, other=0.0)
    value = tl.load(points + places, mask=inside, other=0.0) - tl.load(points + places + 1, mask=inside, other=0.0)
    value *= tl.load(weights + number * pixels + pixel, mask=there, other=0.0)[:, None]
    value = tl.where(tl.load(inverse + places, mask=inside, other=0.0) > 0, value, 0.0)
    tl.store(direction + places, ahead, mask=inside)
    tl.store(image + places, value, mask=there[:, None] & (label < classes)[None, :])  # 0 for the last class
    total = tl.sum(tl.sum(ahead * value, axis=1), axis=0)
    tl.store(sums + number * row + tl.program_id(0), total)


@triton.jit
def _update(
    solution: tl.tensor,  # (B, AXES, E, width) nu, overwritten, as is the next
    residual: tl.tensor,  # r
    steepest: tl.tensor,  # z, written
    direction: tl.tensor,  # d
    image: tl.tensor,  # a
    inverse: tl.tensor,
    normals: tl.tensor,  # where JOINT
    numbers: tl.tensor,  # (5, B)
    sums: tl.tensor,  # (B, row), written
    row: tl.tensor,
    batch: tl.tensor,
    width: tl.tensor,
    edges: tl.tensor,
    AXES: tl.constexpr,
    JOINT: tl.constexpr,
    CLASSES: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    number = tl.program_id(1).to(tl.int64)
    edge = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    label = tl.arange(0, CLASSES)
    inside = (edge < edges)[:, None] & (label < width)[None, :]
    alpha = tl.load(numbers + _ALPHA * batch + number)
    outward = tl.zeros((BLOCK, CLASSES), dtype=tl.float32)
    total = tl.zeros((BLOCK, CLASSES), dtype=tl.float32)
    for turn in tl.static_range(2 if JOINT else 1):
        for axis in tl.static_range(AXES):
            places = ((number * AXES + axis) * edges + edge)[:, None] * width + label[None, :]
            left = tl.load(residual + places, mask=inside, other=0.0)
            left -= alpha * tl.load(image + places, mask=inside, other=0.0)
            scaled = tl.load(inverse + places, mask=inside, other=0.0) * left
            if JOINT:
                normal = tl.load(normals + places, mask=inside, other=0.0)
            if JOINT and turn == 0:
                outward += normal * scaled
            else:
                if JOINT:
                    scaled -= normal * outward
                value = tl.load(solution + places, mask=inside, other=0.0)
                value += alpha * tl.load(direction + places, mask=inside, other=0.0)
                tl.store(solution + places, value, mask=inside)
                tl.store(residual + places, left, mask=inside)
                tl.store(steepest + places, scaled, mask=inside)
                total += left * scaled
    total = tl.sum(tl.sum(total, axis=1), axis=0)
    tl.store(sums + number * row + tl.program_id(0), total)


@triton.jit
def _numbers(
    numbers: tl.tensor,  # (5, B), overwritten
    sums: tl.tensor,  # (B, blocks)
    batch: tl.tensor,
    blocks: tl.tensor,
    ALPHA: tl.constexpr,
) -> None:
    """Alpha, from sums of <d, a>; or beta, from those of <r, z>."""
    number = tl.program_id(0)
    parts = tl.zeros((_SUMS,), dtype=tl.float32)
    for begin in range(0, blocks, _SUMS):
        one = begin + tl.arange(0, _SUMS)
        parts += tl.load(sums + number * blocks + one, mask=one < blocks, other=0.0)
    total = tl.sum(parts, axis=0)
    power = tl.load(numbers + _POWER * batch + number)
    active = tl.load(numbers + _ACTIVE * batch + number) > 0
    if ALPHA:
        active = active & (total > 0)  # rounding can leave a direction that the matrix does not see
        tl.store(numbers + _ALPHA * batch + number, tl.where(active, power / tl.where(active, total, 1.0), 0.0))
    else:
        tl.store(numbers + _BETA * batch + number, tl.where(active, total / tl.where(active, power, 1.0), 0.0))
        tl.store(numbers + _POWER * batch + number, total)
        active = active & (total > tl.load(numbers + _TARGET * batch + number))
    tl.store(numbers + _ACTIVE * batch + number, tl.where(active, 1.0, 0.0))


class Step(NamedTuple):
    """What the parts of a step share.

    Attributes:
        points: (B, N, K) scratch.
        totals: (B, blocks, K) scratch for sums over the pixels of a program.
        sums: (B, blocks) scratch for sums over the differences of a program.
        adjoint: (B, N, K) K^T d.
        numbers: (5, B), see `adjoint_steps`.
        s: (B, N, K) probabilities.
        entropy: > 0.
        size: of the grid, if the pixels form one.
    """

    points: Tensor
    totals: Tensor
    sums: Tensor
    adjoint: Tensor
    numbers: Tensor
    s: Tensor
    entropy: float
    size: Sequence[int]

    @property
    def of_points(self) -> tuple[Tensor | int | float, ...]:
        """What all launches over pixels take."""
        return self.adjoint, self.s, self.points, self.numbers, *self.shape, 1 / self.entropy

    @property
    def shape(self) -> tuple[int, int, int]:
        """Images, classes, pixels."""
        batch, pixels, classes = self.s.shape
        return batch, classes, pixels

    @property
    def grid(self) -> tuple[int, int]:
        """Programs of a launch over pixels."""
        batch, pixels, classes = self.s.shape
        return triton.cdiv(pixels, block_of(classes)[1]), batch


@dataclass
class AdjointPart(ABC):
    """One part: its variables and matrix. All tensors are contiguous, and float32 but for indices.

    Args:
        solution: nu (B, axes, E, classes that it has), 0 before the first step; E may be 1, N or the edges.
        residual: r, likewise.
        steepest: z, likewise.
        direction: the last d, likewise, 0 before the first step.
        weights: of K.
        inverse: of the diagonal, as ``residual``; but for balls 0 where a variable is not free.
        column: the first class that it has.
    """

    solution: Tensor
    residual: Tensor
    steepest: Tensor
    direction: Tensor
    weights: Tensor
    inverse: Tensor
    column: int

    MOVING: ClassVar[tuple[str, ...]] = ("solution", "residual", "steepest", "direction")
    FIXED: ClassVar[tuple[str, ...]] = ("weights", "inverse")
    takes_sums: ClassVar[bool] = False
    """Whether it looks at ``totals`` of the step, and so has to be the last one."""

    @property
    def blocks(self) -> int:
        """Programs an image that sum up."""
        edges, width = self.solution.shape[2:]
        return int(triton.cdiv(edges, block_of(width)[1]))

    @property
    def bends(self) -> tuple[Tensor, ...]:
        """Normals as ``residual`` and the curvature c (B, E, classes); () where variables are bounded one by one."""
        return ()

    @abstractmethod
    def gather(self, step: Step, first: bool, last: bool) -> None:
        """Add K^T z to the step's points; the last part makes S' K^T d of them."""

    @abstractmethod
    def apply(self, step: Step, image: Tensor, begin: int) -> None:
        """Make d and a, and sums of <d, a> from column ``begin`` on."""

    def move(self, step: Step, image: Tensor, begin: int) -> None:
        """Move nu and r, make z, and sums of <r, z> from column ``begin`` on."""
        batch, axes, edges, width = self.solution.shape
        padded, block = block_of(width)
        _update[self.blocks, batch](
            self.solution,
            self.residual,
            self.steepest,
            self.direction,
            image,
            self.inverse,
            self.bends[0] if self.bends else self.inverse,
            step.numbers,
            step.sums[:, begin:],
            step.sums.shape[1],
            batch,
            width,
            edges,
            AXES=axes,
            JOINT=bool(self.bends),
            CLASSES=padded,
            BLOCK=block,
        )

    def _apply(self, step: Step, image: Tensor, begin: int, ends: Tensor | None) -> None:
        batch, axes, edges, width = self.solution.shape
        padded, block = block_of(width)
        _image[self.blocks, batch](
            step.points,
            self.steepest,
            self.direction,
            image,
            self.weights,
            self.inverse,
            *(self.bends or (self.inverse, self.inverse)),
            self.inverse if ends is None else ends,
            step.numbers,
            step.sums[:, begin:],
            step.sums.shape[1],
            *step.shape,
            self.column,
            width,
            edges,
            *strides_of(step.size),
            GRAPH=ends is not None,
            AXES=axes,
            JOINT=bool(self.bends),
            CLASSES=padded,
            BLOCK=block,
        )


class GridAdjoint(AdjointPart):
    """Differences of a grid, E being N."""

    def gather(self, step: Step, first: bool, last: bool) -> None:
        """As of `AdjointPart`."""
        padded, block = block_of(step.s.shape[2])
        constants = {"AXES": self.solution.shape[1], "FIRST": first, "LAST": last, "CLASSES": padded, "BLOCK": block}
        _grid_points[step.grid](self.steepest, self.weights, *step.of_points, *strides_of(step.size), **constants)

    def apply(self, step: Step, image: Tensor, begin: int) -> None:
        """As of `AdjointPart`."""
        self._apply(step, image, begin, None)


@dataclass
class BallsAdjoint(GridAdjoint):
    """Likewise, where lengths over the axes are bounded.

    Args:
        normals: (B, axes, N, K) of unit length on the rim, 0 inside.
        curvature: (B, N, K) c.
    """

    normals: Tensor
    curvature: Tensor

    FIXED: ClassVar[tuple[str, ...]] = ("weights", "inverse", "normals", "curvature")

    @property
    def bends(self) -> tuple[Tensor, ...]:
        """As of `AdjointPart`."""
        return self.normals, self.curvature


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

    def gather(self, step: Step, first: bool, last: bool) -> None:
        """As of `AdjointPart`."""
        edges, width = self.solution.shape[2:]
        padded, block = block_of(step.s.shape[2])
        constants = {"FIRST": first, "LAST": last, "CLASSES": padded, "BLOCK": block}
        graph = self.weights, self.start, self.order
        _edge_points[step.grid](self.steepest, *graph, *step.of_points, self.column, width, edges, **constants)

    def apply(self, step: Step, image: Tensor, begin: int) -> None:
        """As of `AdjointPart`."""
        self._apply(step, image, begin, self.ends)


@dataclass
class SumsAdjoint(AdjointPart):
    """Sums over pixels; the axes are the one or two sides, and E is 1.

    Args:
        region: (B, N) 1 inside, 0 outside.
    """

    region: Tensor

    FIXED: ClassVar[tuple[str, ...]] = ("weights", "inverse", "region")
    takes_sums: ClassVar[bool] = True

    def gather(self, step: Step, first: bool, last: bool) -> None:
        """As of `AdjointPart`; it is the last."""
        assert last
        padded, block = block_of(step.s.shape[2])
        constants = {"SIDES": self.solution.shape[1], "FIRST": first, "CLASSES": padded, "BLOCK": block}
        _sums_points[step.grid](self.steepest, self.weights, self.region, step.totals, *step.of_points, **constants)

    def apply(self, step: Step, image: Tensor, begin: int) -> None:
        """As of `AdjointPart`."""
        batch, blocks, classes = step.totals.shape
        padded, block = block_of(classes)
        _sums_image[batch,](
            step.totals,
            self.steepest,
            self.direction,
            image,
            self.weights,
            self.inverse,
            step.numbers,
            step.sums[:, begin:],
            step.sums.shape[1],
            batch,
            classes,
            blocks,
            SIDES=self.solution.shape[1],
            CLASSES=padded,
            BLOCK=block,
        )


class OrderAdjoint(AdjointPart):
    """Differences between classes, E being N; the last class of each pixel has a variable that stays 0."""

    def gather(self, step: Step, first: bool, last: bool) -> None:
        """As of `AdjointPart`."""
        padded, block = block_of(step.s.shape[2])
        constants = {"FIRST": first, "LAST": last, "CLASSES": padded, "BLOCK": block}
        _order_points[step.grid](self.steepest, self.weights, *step.of_points, **constants)

    def apply(self, step: Step, image: Tensor, begin: int) -> None:
        """As of `AdjointPart`."""
        batch, classes, pixels = step.shape
        padded, block = block_of(classes)
        _order_image[self.blocks, batch](
            step.points,
            self.steepest,
            self.direction,
            image,
            self.weights,
            self.inverse,
            step.numbers,
            step.sums[:, begin:],
            step.sums.shape[1],
            batch,
            classes,
            pixels,
            CLASSES=padded,
            BLOCK=block,
        )


_KINDS: dict[str, type[AdjointPart]] = {
    kind.__name__: kind for kind in (GridAdjoint, BallsAdjoint, EdgeAdjoint, SumsAdjoint, OrderAdjoint)
}


@torch.library.custom_op("regloss::adjoint_steps", mutates_args=("moving", "adjoint", "numbers"))
def adjoint_steps(
    kinds: str,
    moving: Sequence[Tensor],
    adjoint: Tensor,
    numbers: Tensor,
    s: Tensor,
    fixed: Sequence[Tensor],
    columns: Sequence[int],
    size: Sequence[int],
    entropy: float,
    steps: int,
) -> None:
    """Take ``steps`` steps.

    Args:
        kinds: names of the parts' classes; the one that takes sums, if there is one, is the last.
        moving: what moves in each part, one part after the other: see `AdjointPart`.
        adjoint: (B, N, K) K^T d, 0 before the first step.
        numbers: (5, B) <r, z>, the value of it at which to stop, 1 where that is not reached, alpha, and beta, which
            is 0 before the first step.
        s: (B, N, K) probabilities.
        fixed: what does not move, as ``moving``.
        columns: see `AdjointPart`, one a part.
        size: of the grid, if the pixels form one.
        entropy: > 0.
        steps: how many.
    """
    parts: list[AdjointPart] = []
    for name, column in zip(kinds.split(), columns, strict=True):
        kind = _KINDS[name]
        tensors = {**dict(zip(kind.MOVING, moving, strict=False)), **dict(zip(kind.FIXED, fixed, strict=False))}
        moving, fixed = moving[len(kind.MOVING) :], fixed[len(kind.FIXED) :]
        parts.append(kind(**tensors, column=column))
    batch, pixels, classes = s.shape
    blocks = sum(part.blocks for part in parts)
    images = [torch.empty_like(part.solution) for part in parts]
    totals = s.new_empty(batch, -(-pixels // block_of(classes)[1]), classes)
    step = Step(torch.empty_like(s), totals, s.new_empty(batch, blocks), adjoint, numbers, s, entropy, size)
    begins = [sum(part.blocks for part in parts[:number]) for number in range(len(parts))]
    for _ in range(steps):
        for part in parts:
            part.gather(step, part is parts[0], part is parts[-1])
        for part, image, begin in zip(parts, images, begins, strict=True):
            part.apply(step, image, begin)
        _numbers[batch,](numbers, step.sums, batch, blocks, ALPHA=True)
        for part, image, begin in zip(parts, images, begins, strict=True):
            part.move(step, image, begin)
        _numbers[batch,](numbers, step.sums, batch, blocks, ALPHA=False)


@dataclass
class AdjointSteps:
    """Conjugate gradients of a batch, from 0; see `adjoint_steps`."""

    parts: list[AdjointPart]
    s: Tensor
    size: Sequence[int]
    entropy: float
    tolerance: float
    adjoint: Tensor = field(init=False)
    numbers: Tensor = field(init=False)
    first: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.adjoint = torch.zeros_like(self.s)
        powers = [(part.residual * part.steepest).flatten(1).sum(1) for part in self.parts]
        self.first = torch.stack(powers).sum(0)
        self.numbers = self.s.new_zeros(5, len(self.s))
        self.numbers[0] = self.first
        self.numbers[1] = self.tolerance**2 * self.first
        self.numbers[2] = (self.first > self.numbers[1]).to(self.numbers)

    @property
    def active(self) -> Tensor:
        """(B,) bool: images that have not ended."""
        return self.numbers[2] > 0

    @property
    def relative_residual(self) -> Tensor:
        """(B,) in the preconditioner's norm."""
        ratio = self.numbers[0] / torch.where(self.first > 0, self.first, 1)
        return torch.where(self.first > 0, ratio, 0).clamp(min=0).sqrt()

    def advance(self, steps: int) -> None:
        """Take ``steps`` steps."""
        adjoint_steps(
            " ".join(type(part).__name__ for part in self.parts),
            [getattr(part, name) for part in self.parts for name in part.MOVING],
            self.adjoint,
            self.numbers,
            self.s,
            [getattr(part, name) for part in self.parts for name in part.FIXED],
            [part.column for part in self.parts],
            self.size,
            self.entropy,
            steps,
        )
