"""Conjugate gradients on the differences of a grid in Triton: total variation.

    (K s)_ap = w_ap (s_{p + a} - s_p)  along each axis a                            (`adjoint_parts_triton`: a step)

Arrays are flat over the pixels, as in `grid_differences_triton`; what leaves the grid, or a region, has weights of 0.

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
from regloss_plugins.kernels.grid_differences_triton import stride_along, strides_of


@triton.jit
def _gather(
    steepest: tl.tensor,  # (B, AXES, N, K) z
    weights: tl.tensor,  # (B, AXES, N)
    adjoint: tl.tensor,  # see `gathered`, as are the next seven
    s: tl.tensor,
    points: tl.tensor,
    numbers: tl.tensor,
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
    total = tl.zeros((BLOCK, CLASSES), dtype=tl.float32)
    for axis in tl.static_range(AXES):
        stride = stride_along(axis, stride_0, stride_1, stride_2)
        first = (number * AXES + axis) * pixels + pixel
        weight = tl.load(weights + first, mask=there, other=0.0)
        places = first[:, None] * classes + label[None, :]
        total -= weight[:, None] * tl.load(steepest + places, mask=there[:, None] & known[None, :], other=0.0)
        back = there & (pixel >= stride)
        weight = tl.load(weights + first - stride, mask=back, other=0.0)
        behind = back[:, None] & known[None, :]
        total += weight[:, None] * tl.load(steepest + places - stride * classes, mask=behind, other=0.0)
    gathered(total, pixel, adjoint, s, points, numbers, batch, classes, pixels, inverse_entropy, FIRST, LAST, CLASSES)


@triton.jit
def _apply(
    points: tl.tensor,  # (B, N, K)
    steepest: tl.tensor,  # (B, AXES, N, K) z
    direction: tl.tensor,  # (B, AXES, N, K) the last d, overwritten
    image: tl.tensor,  # (B, AXES, N, K) a, written
    weights: tl.tensor,  # (B, AXES, N)
    inverse: tl.tensor,  # (B, AXES, N, K) of the diagonal, 0 where the variable is not free, unless JOINT
    numbers: tl.tensor,  # (5, B)
    sums: tl.tensor,  # (B, row), written
    row: tl.tensor,
    batch: tl.tensor,
    classes: tl.tensor,
    pixels: tl.tensor,
    normals: tl.tensor,  # (B, AXES, N, K), where JOINT
    curvature: tl.tensor,  # (B, N, K), where JOINT
    stride_0: tl.tensor,
    stride_1: tl.tensor,
    stride_2: tl.tensor,
    AXES: tl.constexpr,
    JOINT: tl.constexpr,
    CLASSES: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    number = tl.program_id(1).to(tl.int64)
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    label = tl.arange(0, CLASSES)
    there, known = pixel < pixels, label < classes
    inside = there[:, None] & known[None, :]
    beta = tl.load(numbers + BETA * batch + number)
    at = (number * pixels + pixel)[:, None] * classes + label[None, :]
    own = tl.load(points + at, mask=inside, other=0.0)
    bend = tl.zeros((BLOCK, CLASSES), dtype=tl.float32)
    if JOINT:
        bend = tl.load(curvature + at, mask=inside, other=0.0)
    outward = tl.zeros((BLOCK, CLASSES), dtype=tl.float32)
    total = tl.zeros((BLOCK, CLASSES), dtype=tl.float32)
    # Where the axes are bounded together, once for what sticks out of the tangent and once for the rest.
    for turn in tl.static_range(2 if JOINT else 1):
        for axis in tl.static_range(AXES):
            stride = stride_along(axis, stride_0, stride_1, stride_2)
            onward = (there & (pixel + stride < pixels))[:, None] & known[None, :]
            first = (number * AXES + axis) * pixels + pixel
            places = first[:, None] * classes + label[None, :]
            ahead = conjugate(steepest, direction, places, inside, beta)
            value = tl.load(points + at + stride * classes, mask=onward, other=0.0) - own
            value = tl.load(weights + first, mask=there, other=0.0)[:, None] * value + bend * ahead
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


class GridAdjoint(AdjointPart):
    """Differences of a grid, E being N."""

    def gather(self, step: AdjointStep, first: bool, last: bool) -> None:
        """As of `AdjointPart`."""
        given = self.steepest, self.weights, *step.of_gather, *strides_of(step.size)
        _gather[step.grid](*given, AXES=len(step.size), FIRST=first, LAST=last, **step.tile)

    def apply(self, step: AdjointStep, image: Tensor, begin: int) -> None:
        """As of `AdjointPart`."""
        bends = self.bends or (self.inverse, self.inverse)
        given = step.points, *self.of_apply(step, image, begin), *bends, *strides_of(step.size)
        _apply[self.blocks, len(image)](*given, AXES=len(step.size), JOINT=bool(self.bends), **self.tile)


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
