"""Conjugate gradients of the implicit gradient in Triton: total variation, on grids and on graphs.

For A = Q (K S' K^T + c) Q and its diagonal M, with the residual r and z = Q M^-1 r (see `regloss.implicit`),

    d = z + beta d,  a = A d        beta, alpha: numbers of each image, 0 where it has ended
    nu += alpha d,   r -= alpha a

A step is five launches. One of pixels gathers K^T z, from which K^T d follows, and takes S' of it over the classes. One
of differences makes d and a, and sums of <d, a> over its programs; one sums these up to alpha. One of differences moves
nu and r, makes z, and sums of <r, z>; one sums these up to beta. What has ended stays as it is, and nothing waits for
the host. The classes of a pixel, and those of a difference, lie side by side. Edges are like the differences along one
axis but for where their ends lie.

The package triton is needed to import this module, which is done where CUDA tensors arrive, and in tests under Triton's
interpreter (TRITON_INTERPRET=1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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
def _respond(
    total: tl.tensor,  # (pixels, classes) K^T z
    adjoint: tl.tensor,  # (B, N, K) K^T of the last d, overwritten with that of this one
    s: tl.tensor,  # (B, N, K)
    points: tl.tensor,  # (B, N, K), written
    places: tl.tensor,
    inside: tl.tensor,
    beta: tl.tensor,
    inverse_entropy: tl.tensor,
) -> None:
    """S' K^T d."""
    total += beta * tl.load(adjoint + places, mask=inside, other=0.0)
    tl.store(adjoint + places, total, mask=inside)
    weighted = tl.load(s + places, mask=inside, other=0.0)
    mean = tl.sum(weighted * total, axis=1)
    tl.store(points + places, weighted * (total - mean[:, None]) * inverse_entropy, mask=inside)


@triton.jit
def _grid_points(
    steepest: tl.tensor,  # (B, AXES, N, K) z
    weights: tl.tensor,  # (B, AXES, N)
    adjoint: tl.tensor,  # (B, N, K), see `_respond`, as are the next two
    s: tl.tensor,
    points: tl.tensor,
    numbers: tl.tensor,  # (5, B)
    batch: tl.tensor,
    classes: tl.tensor,
    pixels: tl.tensor,
    stride_0: tl.tensor,
    stride_1: tl.tensor,
    stride_2: tl.tensor,
    inverse_entropy: tl.tensor,
    AXES: tl.constexpr,
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
    _respond(total, adjoint, s, points, places, inside, beta, inverse_entropy)


@triton.jit
def _edge_points(
    steepest: tl.tensor,  # (B, E, K) z
    weights: tl.tensor,  # (B, E)
    start: tl.tensor,  # (B, N + 1) int32
    order: tl.tensor,  # (B, 2 E) int32
    adjoint: tl.tensor,  # (B, N, K), see `_respond`, as are the next two
    s: tl.tensor,
    points: tl.tensor,
    numbers: tl.tensor,  # (5, B)
    batch: tl.tensor,
    classes: tl.tensor,
    pixels: tl.tensor,
    edges: tl.tensor,
    inverse_entropy: tl.tensor,
    CLASSES: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    number = tl.program_id(1).to(tl.int64)
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    label = tl.arange(0, CLASSES)
    there, known = pixel < pixels, label < classes
    begin = tl.load(start + number * (pixels + 1) + pixel, mask=there, other=0)
    count = tl.load(start + number * (pixels + 1) + pixel + 1, mask=there, other=0) - begin
    total = tl.zeros((BLOCK, CLASSES), dtype=tl.float32)
    for k in range(tl.max(count, axis=0)):
        here = k < count
        entry = tl.load(order + 2 * number * edges + begin + k, mask=here, other=0)
        edge = tl.where(entry < edges, entry, entry - edges)
        weight = tl.load(weights + number * edges + edge, mask=here, other=0.0)
        weight = tl.where(entry < edges, -weight, weight)
        places = (number * edges + edge)[:, None] * classes + label[None, :]
        total += weight[:, None] * tl.load(steepest + places, mask=here[:, None] & known[None, :], other=0.0)
    places = (number * pixels + pixel)[:, None] * classes + label[None, :]
    beta = tl.load(numbers + _BETA * batch + number)
    _respond(total, adjoint, s, points, places, there[:, None] & known[None, :], beta, inverse_entropy)


@triton.jit
def _image(
    points: tl.tensor,  # (B, N, K)
    steepest: tl.tensor,  # (B, AXES, E, K) z; E is N on grids
    direction: tl.tensor,  # (B, AXES, E, K) the last d, overwritten
    image: tl.tensor,  # (B, AXES, E, K) a, written
    weights: tl.tensor,  # (B, AXES, E)
    inverse: tl.tensor,  # (B, AXES, E, K) of the diagonal, 0 where the variable is not free
    normals: tl.tensor,  # (B, AXES, E, K), where JOINT
    curvature: tl.tensor,  # (B, E, K), where JOINT
    ends: tl.tensor,  # (B, E, 2) int64, of edges
    numbers: tl.tensor,  # (5, B)
    sums: tl.tensor,  # (B, blocks), written
    batch: tl.tensor,
    classes: tl.tensor,
    pixels: tl.tensor,
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
    there, known = edge < edges, label < classes
    inside = there[:, None] & known[None, :]
    beta = tl.load(numbers + _BETA * batch + number)
    first = edge.to(tl.int64)
    if GRAPH:
        first = tl.load(ends + 2 * (number * edges + edge), mask=there, other=0)
    own = tl.load(points + (number * pixels + first)[:, None] * classes + label[None, :], mask=inside, other=0.0)
    bend = tl.zeros((BLOCK, CLASSES), dtype=tl.float32)
    if JOINT:
        bend = tl.load(curvature + (number * edges + edge)[:, None] * classes + label[None, :], mask=inside, other=0.0)
    outward = tl.zeros((BLOCK, CLASSES), dtype=tl.float32)
    total = tl.zeros((BLOCK, CLASSES), dtype=tl.float32)
    # Where the axes are bounded together, once for what sticks out of the tangent and once for the rest.
    for turn in tl.static_range(2 if JOINT else 1):
        for axis in tl.static_range(AXES):
            second = first + stride_along(axis, stride_0, stride_1, stride_2)
            if GRAPH:
                second = tl.load(ends + 2 * (number * edges + edge) + 1, mask=there, other=0)
            onward = inside & (second < pixels)[:, None]
            row = (number * AXES + axis) * edges + edge
            places = row[:, None] * classes + label[None, :]
            ahead = tl.load(steepest + places, mask=inside, other=0.0)
            ahead += beta * tl.load(direction + places, mask=inside, other=0.0)
            at = (number * pixels + second)[:, None] * classes + label[None, :]
            value = tl.load(points + at, mask=onward, other=0.0) - own
            value = tl.load(weights + row, mask=there, other=0.0)[:, None] * value + bend * ahead
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
    tl.store(sums + number * tl.num_programs(0) + tl.program_id(0), total)


@triton.jit
def _update(
    solution: tl.tensor,  # (B, AXES, E, K) nu, overwritten, as is the next
    residual: tl.tensor,  # r
    steepest: tl.tensor,  # z, written
    direction: tl.tensor,  # d
    image: tl.tensor,  # a
    inverse: tl.tensor,
    normals: tl.tensor,  # where JOINT
    numbers: tl.tensor,  # (5, B)
    sums: tl.tensor,  # (B, blocks), written
    batch: tl.tensor,
    classes: tl.tensor,
    edges: tl.tensor,
    AXES: tl.constexpr,
    JOINT: tl.constexpr,
    CLASSES: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    number = tl.program_id(1).to(tl.int64)
    edge = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    label = tl.arange(0, CLASSES)
    inside = (edge < edges)[:, None] & (label < classes)[None, :]
    alpha = tl.load(numbers + _ALPHA * batch + number)
    outward = tl.zeros((BLOCK, CLASSES), dtype=tl.float32)
    total = tl.zeros((BLOCK, CLASSES), dtype=tl.float32)
    for turn in tl.static_range(2 if JOINT else 1):
        for axis in tl.static_range(AXES):
            places = ((number * AXES + axis) * edges + edge)[:, None] * classes + label[None, :]
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
    tl.store(sums + number * tl.num_programs(0) + tl.program_id(0), total)


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


@torch.library.custom_op(
    "regloss::adjoint_steps",
    mutates_args=("solution", "residual", "steepest", "direction", "adjoint", "numbers"),
)
def adjoint_steps(
    solution: Tensor,
    residual: Tensor,
    steepest: Tensor,
    direction: Tensor,
    adjoint: Tensor,
    numbers: Tensor,
    s: Tensor,
    weights: Tensor,
    inverse: Tensor,
    bends: Sequence[Tensor],
    graph: Sequence[Tensor],
    size: Sequence[int],
    entropy: float,
    steps: int,
) -> None:
    """Take ``steps`` steps. All tensors are contiguous, and float32 but for those of the graph.

    Args:
        solution: (B, axes, N, K) nu; of a graph (B, 1, E, K), as all of this shape.
        residual: r, likewise.
        steepest: z, likewise.
        direction: the last d, likewise; 0 before the first step.
        adjoint: (B, N, K) K^T of it.
        numbers: (5, B) <r, z>, the value of it at which to stop, 1 where that is not reached, alpha, and beta, which
            is 0 before the first step.
        s: (B, N, K) probabilities.
        weights: (B, axes, N) of K.
        inverse: (B, axes, N, K) of the diagonal; where variables are bounded one by one, 0 where they are not free.
        bends: where they are bounded together, along the axes: the normals (B, axes, N, K), 0 where they are free, and
            the curvature c (B, N, K). Empty else.
        graph: of edges, ends (B, E, 2) int64, start and order, see `regloss.operators.edge_differences.Incidence`.
        size: of a grid; empty of a graph.
        entropy: > 0.
        steps: how many.
    """
    batch, axes, edges, classes = solution.shape
    pixels = s.shape[1]
    width, block = block_of(classes)
    image, points = torch.empty_like(solution), torch.empty_like(s)
    blocks = triton.cdiv(edges, block)
    sums = solution.new_empty(batch, blocks)
    normals, curvature = bends or (inverse, inverse)  # the latter are not looked at
    constants = {"AXES": axes, "JOINT": bool(bends), "CLASSES": width, "BLOCK": block}
    for _ in range(steps):
        shared = (adjoint, s, points, numbers, batch, classes, pixels)
        grid = triton.cdiv(pixels, block), batch
        if graph:
            _edge_points[grid](steepest, weights, *graph[1:], *shared, edges, 1 / entropy, CLASSES=width, BLOCK=block)
        else:
            _grid_points[grid](
                steepest, weights, *shared, *strides_of(size), 1 / entropy, AXES=axes, CLASSES=width, BLOCK=block
            )
        _image[blocks, batch](
            points,
            steepest,
            direction,
            image,
            weights,
            inverse,
            normals,
            curvature,
            graph[0] if graph else inverse,
            numbers,
            sums,
            batch,
            classes,
            pixels,
            edges,
            *strides_of(size),
            GRAPH=bool(graph),
            **constants,
        )
        _numbers[batch,](numbers, sums, batch, blocks, ALPHA=True)
        _update[blocks, batch](
            solution,
            residual,
            steepest,
            direction,
            image,
            inverse,
            normals,
            numbers,
            sums,
            batch,
            classes,
            edges,
            **constants,
        )
        _numbers[batch,](numbers, sums, batch, blocks, ALPHA=False)


@dataclass
class AdjointSteps:
    """Conjugate gradients of a batch, from 0; see `adjoint_steps` for shapes."""

    residual: Tensor
    steepest: Tensor
    s: Tensor
    weights: Tensor
    inverse: Tensor
    bends: list[Tensor]
    graph: list[Tensor]
    size: Sequence[int]
    entropy: float
    tolerance: float

    def __post_init__(self) -> None:
        self.solution, self.direction = torch.zeros_like(self.residual), torch.zeros_like(self.residual)
        self.adjoint = torch.zeros_like(self.s)
        self.numbers = self.residual.new_zeros(5, len(self.residual))
        self.first = (self.residual * self.steepest).flatten(1).sum(1)
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
            self.solution,
            self.residual,
            self.steepest,
            self.direction,
            self.adjoint,
            self.numbers,
            self.s,
            self.weights,
            self.inverse,
            self.bends,
            self.graph,
            self.size,
            self.entropy,
            steps,
        )
