"""Dual ascent on the differences of a grid in Triton, beside other parts: total variation with constraints.

    (K s)_ap = w_ap (s_{p + a} - s_p)  along each axis a                                   (`points_triton`: a step)

Total variation alone has a kernel of its own, in `grid_ascent_triton`, which takes one launch. Arrays are flat over the
pixels, in any number of axes up to three; what leaves the grid, or a region, has weights of 0. A step reads four or
five numbers an axis, pixel and class, and writes one.

The package triton is needed to import this module, which is done where CUDA tensors arrive, and in tests under Triton's
interpreter (TRITON_INTERPRET=1).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import triton
import triton.language as tl
from torch import Tensor

from regloss_plugins.kernels.points_triton import Part, Step, ahead, block_of, finished


@triton.jit
def stride_along(axis: tl.constexpr, stride_0: tl.tensor, stride_1: tl.tensor, stride_2: tl.tensor) -> tl.tensor:
    """Pixels to the next one along ``axis``."""
    stride = stride_0
    if axis == 1:
        stride = stride_1
    if axis == 2:
        stride = stride_2
    return stride


@triton.jit
def _add(
    scores: tl.tensor,  # (B, N, K)
    dual: tl.tensor,  # (B, AXES, N, K), as is the next
    before: tl.tensor,
    weights: tl.tensor,  # (B, AXES, N)
    points: tl.tensor,  # (B, N, K), written
    extrapolations: tl.tensor,  # (B,)
    classes: tl.tensor,
    pixels: tl.tensor,
    stride_0: tl.tensor,
    stride_1: tl.tensor,
    stride_2: tl.tensor,
    factor: tl.tensor,
    AXES: tl.constexpr,
    LAST: tl.constexpr,
    ENTROPY: tl.constexpr,
    CLASSES: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    number = tl.program_id(1).to(tl.int64)
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    label = tl.arange(0, CLASSES)
    there, known = pixel < pixels, label < classes
    inside = there[:, None] & known[None, :]
    extrapolation = tl.load(extrapolations + number)
    places = (number * pixels + pixel)[:, None] * classes + label[None, :]
    score = tl.load(scores + places, mask=inside, other=0.0)
    for axis in tl.static_range(AXES):
        stride = stride_along(axis, stride_0, stride_1, stride_2)
        first = (number * AXES + axis) * pixels + pixel
        weight = tl.load(weights + first, mask=there, other=0.0)
        places = first[:, None] * classes + label[None, :]
        score -= weight[:, None] * ahead(dual, before, places, inside, extrapolation)
        back = there & (pixel >= stride)
        weight = tl.load(weights + first - stride, mask=back, other=0.0)
        places = (first - stride)[:, None] * classes + label[None, :]
        score += weight[:, None] * ahead(dual, before, places, back[:, None] & known[None, :], extrapolation)
    places = (number * pixels + pixel)[:, None] * classes + label[None, :]
    tl.store(points + places, finished(score, known, factor, LAST, ENTROPY), mask=inside)


@triton.jit
def _move(
    points: tl.tensor,  # (B, N, K) s
    dual: tl.tensor,  # (B, AXES, N, K)
    before: tl.tensor,  # (B, AXES, N, K), overwritten with y+
    weights: tl.tensor,  # (B, AXES, N)
    steps: tl.tensor,  # (B, AXES, N, K) tau, or (B, AXES, N)
    extrapolations: tl.tensor,  # (B,)
    gains: tl.tensor,  # (B, row), written
    row: tl.tensor,
    classes: tl.tensor,
    pixels: tl.tensor,
    stride_0: tl.tensor,
    stride_1: tl.tensor,
    stride_2: tl.tensor,
    low: tl.tensor,
    high: tl.tensor,
    AXES: tl.constexpr,
    JOINT: tl.constexpr,
    EACH: tl.constexpr,
    CLASSES: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    number = tl.program_id(1).to(tl.int64)
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    label = tl.arange(0, CLASSES)
    there, known = pixel < pixels, label < classes
    inside = there[:, None] & known[None, :]
    extrapolation = tl.load(extrapolations + number)
    at = (number * pixels + pixel)[:, None] * classes + label[None, :]
    own = tl.load(points + at, mask=inside, other=0.0)
    square = tl.zeros((BLOCK, CLASSES), dtype=tl.float32)
    gain = tl.zeros((BLOCK, CLASSES), dtype=tl.float32)
    # Where the axes are bounded together, once for their length and once to move.
    for turn in tl.static_range(2 if JOINT else 1):
        shrink = tl.where(square > high * high, high / tl.sqrt(tl.where(square > 0, square, 1.0)), 1.0)
        for axis in tl.static_range(AXES):
            stride = stride_along(axis, stride_0, stride_1, stride_2)
            first = (number * AXES + axis) * pixels + pixel
            places = first[:, None] * classes + label[None, :]
            weight = tl.load(weights + first, mask=there, other=0.0)
            if EACH:
                tau = tl.load(steps + places, mask=inside, other=0.0)
            else:
                tau = tl.load(steps + first, mask=there, other=0.0)[:, None]
            onward = (there & (pixel + stride < pixels))[:, None] & known[None, :]
            difference = tl.load(points + at + stride * classes, mask=onward, other=0.0) - own
            point = ahead(dual, before, places, inside, extrapolation)
            moved = point + tau * weight[:, None] * difference
            if JOINT and turn == 0:
                square += moved * moved
            else:
                moved = moved * shrink if JOINT else tl.minimum(tl.maximum(moved, low), high)
                value = tl.load(dual + places, mask=inside, other=0.0)
                gain += tl.where(tau > 0, (point - moved) * (moved - value) / tl.where(tau > 0, tau, 1.0), 0.0)
                tl.store(before + places, moved, mask=inside)
    total = tl.sum(tl.sum(tl.where(inside, gain, 0.0), axis=1), axis=0)
    tl.store(gains + number * row + tl.program_id(0), total)


@dataclass
class GridPart(Part):
    """Differences along the axes of a grid.

    Args:
        duals: (2, B, axes, N, K).
        weights: (B, axes, N).
        steps: (B, axes, N, K or 1).
    """

    joint: ClassVar[bool] = False
    """Whether ``high`` bounds the length over the axes instead of each entry."""

    @property
    def blocks(self) -> int:
        """As of `Part`."""
        pixels, classes = self.duals.shape[3:]
        return int(triton.cdiv(pixels, block_of(classes)[1]))

    def add(self, step: Step, scores: Tensor, last: bool) -> None:
        """As of `Part`."""
        batch, pixels, classes = scores.shape
        padded, block = block_of(classes)
        _add[triton.cdiv(pixels, block), batch](
            scores,
            self.duals[step.now],
            self.duals[1 - step.now],
            self.weights,
            step.points,
            step.extrapolations,
            classes,
            pixels,
            *strides_of(step.size),
            step.factor,
            AXES=len(step.size),
            LAST=last,
            ENTROPY=step.entropy,
            CLASSES=padded,
            BLOCK=block,
        )

    def move(self, step: Step, begin: int) -> None:
        """As of `Part`."""
        batch, pixels, classes = step.points.shape
        padded, block = block_of(classes)
        _move[self.blocks, batch](
            step.points,
            self.duals[step.now],
            self.duals[1 - step.now],
            self.weights,
            self.steps,
            step.extrapolations,
            step.gains[:, begin:],
            step.gains.shape[1],
            classes,
            pixels,
            *strides_of(step.size),
            self.low,
            self.high,
            AXES=len(step.size),
            JOINT=self.joint,
            EACH=self.steps.shape[3] > 1,
            CLASSES=padded,
            BLOCK=block,
        )


class BallsPart(GridPart):
    """Likewise; the lengths over the axes are bounded."""

    joint = True


def strides_of(size: Sequence[int]) -> tuple[int, ...]:
    """Pixels to the next one along each axis, with zeros for axes up to three that are not there."""
    return (*(math.prod(size[axis + 1 :]) for axis in range(len(size))), 0, 0, 0)[:3]
