"""Dual ascent for total variation on a grid, in Triton: a step is one launch and a small one, a whole batch at a time.

    x = y + extrapolation * (y - the y before)
    s = softmax(-(cost + K^T x) / epsilon), or -(cost + K^T x) / epsilon
    y+ = P(x + tau K s),                                                        (K s)_pa = w_pa (s_{p + a} - s_p)

A program owns a block of pixels. The dual variables of a pixel need s there and at the next pixel along each axis,
whose softmax it takes as well rather than wait for a neighbour: their dual variables come from the cache. So a step
reads y, the y before and the cost from memory once, and writes y+. A second launch, of one program an image, makes of
the sums of <x - y+, (y+ - y) / tau> what the next step extrapolates by: nothing waits for the host, and a step is as
long as its traffic, 3 axes + 1 numbers a pixel and class.

Arrays are flat over the pixels, in any number of axes up to three; what leaves the grid, or a region, has weights of 0.
The package triton is needed to import this module, which is done where CUDA tensors arrive, and in tests under Triton's
interpreter (TRITON_INTERPRET=1).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from regloss_plugins.kernels.momentum_triton import momentum

_BLOCK = 128
_LEAST = tl.constexpr(-3.0e38)  # below every score; -inf less -inf would be no number


@triton.jit
def _ahead(
    dual: tl.tensor, before: tl.tensor, place: tl.tensor, there: tl.tensor, extrapolation: tl.tensor
) -> tl.tensor:
    """The point x."""
    value = tl.load(dual + place, mask=there, other=0.0)
    return value + extrapolation * (value - tl.load(before + place, mask=there, other=0.0))


@triton.jit
def _scores(
    cost: tl.tensor,
    dual: tl.tensor,
    before: tl.tensor,
    weights: tl.tensor,
    row: tl.tensor,
    at: tl.tensor,
    there: tl.tensor,
    extrapolation: tl.tensor,
    factor: tl.tensor,
    pixels: tl.tensor,
    stride_0: tl.tensor,
    stride_1: tl.tensor,
    stride_2: tl.tensor,
    AXES: tl.constexpr,
) -> tl.tensor:
    """-(cost + K^T x) * factor at the pixels ``at``; ``row`` is the image's number times K plus the class."""
    value = tl.load(cost + row * pixels + at, mask=there, other=0.0)
    for axis in tl.static_range(AXES):
        stride = stride_0
        if axis == 1:
            stride = stride_1
        if axis == 2:
            stride = stride_2
        first = (row * AXES + axis) * pixels
        w = tl.load(weights + axis * pixels + at, mask=there, other=0.0)
        value -= w * _ahead(dual, before, first + at, there, extrapolation)
        back = there & (at >= stride)
        w = tl.load(weights + axis * pixels + at - stride, mask=back, other=0.0)
        value += w * _ahead(dual, before, first + at - stride, back, extrapolation)
    return -value * factor


@triton.jit
def _step(
    cost: tl.tensor,  # (B, K, N)
    dual: tl.tensor,  # (B, K, AXES, N), as are the next two
    before: tl.tensor,
    out: tl.tensor,
    weights: tl.tensor,  # (B or 1, AXES, N), as are the next two
    moves: tl.tensor,  # tau * w
    metric: tl.tensor,  # 1 / tau
    extrapolations: tl.tensor,  # (B,)
    gains: tl.tensor,  # (B, blocks)
    batch_stride: tl.tensor,  # of the weights, 0 where all images share them
    classes: tl.tensor,
    pixels: tl.tensor,
    stride_0: tl.tensor,
    stride_1: tl.tensor,
    stride_2: tl.tensor,
    radius: tl.tensor,
    factor: tl.tensor,
    AXES: tl.constexpr,
    PLACES: tl.constexpr,
    ENTROPY: tl.constexpr,
    JOINT: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    block, image = tl.program_id(0), tl.program_id(1).to(tl.int64)  # batches may hold more than 2^31 numbers
    pixel = block * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < pixels
    # The pixel itself, and the next one along each axis.
    place = tl.arange(0, PLACES)
    shift = tl.where(place == 1, stride_0, tl.where(place == 2, stride_1, tl.where(place == 3, stride_2, 0)))
    at = pixel[None, :] + shift[:, None]
    there = at < pixels
    here = image * batch_stride
    extrapolation = tl.load(extrapolations + image)
    top = tl.full((PLACES, BLOCK), _LEAST, dtype=tl.float32)
    total = tl.zeros((PLACES, BLOCK), dtype=tl.float32)
    if ENTROPY:
        for k in range(classes):
            row = image * classes + k
            score = _scores(
                cost,
                dual,
                before,
                weights + here,
                row,
                at,
                there,
                extrapolation,
                factor,
                pixels,
                stride_0,
                stride_1,
                stride_2,
                AXES,
            )
            new = tl.maximum(top, score)
            total = total * tl.exp2(top - new) + tl.exp2(score - new)
            top = new
    gain = tl.zeros((BLOCK,), dtype=tl.float32)
    for k in range(classes):
        row = image * classes + k
        s = _scores(
            cost,
            dual,
            before,
            weights + here,
            row,
            at,
            there,
            extrapolation,
            factor,
            pixels,
            stride_0,
            stride_1,
            stride_2,
            AXES,
        )
        if ENTROPY:
            s = tl.exp2(s - top) / total
        own = tl.sum(tl.where((place == 0)[:, None], s, 0.0), axis=0)
        shrink = tl.full((BLOCK,), 1.0, dtype=tl.float32)
        if JOINT:
            square = tl.zeros((BLOCK,), dtype=tl.float32)
            for axis in tl.static_range(AXES):
                first = (row * AXES + axis) * pixels
                known = here + axis * pixels + pixel
                next_one = tl.sum(tl.where((place == axis + 1)[:, None], s, 0.0), axis=0)
                moved = _ahead(dual, before, first + pixel, inside, extrapolation)
                moved += tl.load(moves + known, mask=inside, other=0.0) * (next_one - own)
                square += moved * moved
            length = tl.sqrt(square)
            shrink = tl.where(length > radius, radius / length, 1.0)
        for axis in tl.static_range(AXES):
            first = (row * AXES + axis) * pixels
            known = here + axis * pixels + pixel
            next_one = tl.sum(tl.where((place == axis + 1)[:, None], s, 0.0), axis=0)
            point = _ahead(dual, before, first + pixel, inside, extrapolation)
            moved = point + tl.load(moves + known, mask=inside, other=0.0) * (next_one - own)
            moved = moved * shrink if JOINT else tl.minimum(tl.maximum(moved, -radius), radius)
            value = tl.load(dual + first + pixel, mask=inside, other=0.0)
            gain += tl.load(metric + known, mask=inside, other=0.0) * (point - moved) * (moved - value)
            tl.store(out + first + pixel, moved, mask=inside)
    tl.store(gains + image * tl.num_programs(0) + block, tl.sum(tl.where(inside, gain, 0.0), axis=0))


@torch.library.custom_op("regloss::grid_ascent", mutates_args=("duals", "momenta", "extrapolations"))
def grid_ascent(
    duals: Tensor,
    momenta: Tensor,
    extrapolations: Tensor,
    cost: Tensor,
    weights: Tensor,
    moves: Tensor,
    metric: Tensor,
    strides: Sequence[int],
    current: int,
    steps: int,
    radius: float,
    isotropic: bool,
    smoothing_weight: float,
    entropy: bool,
    most: float,
) -> None:
    """Take ``steps`` steps; the variables y are duals[(current + steps) % 3] then.

    Args:
        duals: (3, B, K, axes, N) float32: at ``current`` y, after it room for the next, before it the y before.
        momenta: (B,) t.
        extrapolations: (B,) of the next step.
        cost: (B, K, N).
        weights: (B or 1, axes, N) w >= 0.
        moves: likewise, tau * w.
        metric: likewise, 1 / tau, 0 where tau is 0.
        strides: of the axes over pixels.
        current: see above.
        steps: how many.
        radius: bound of the dual variables.
        isotropic: bound the length over the axes instead of each entry.
        smoothing_weight: epsilon, > 0.
        entropy: softmax instead of the identity.
        most: largest extrapolation; 0 = projected gradient steps.
    """
    _, batch, classes, axes, pixels = duals.shape
    blocks = triton.cdiv(pixels, _BLOCK)
    gains = duals.new_empty(batch, blocks)
    first, second, third = (*strides, 0, 0)[:3]
    # Powers of two in the place of those of e, which the factor makes up for.
    factor = (math.log2(math.e) if entropy else 1.0) / smoothing_weight
    for step in range(current, current + steps):
        _step[blocks, batch](
            cost,
            duals[step % 3],
            duals[(step + 2) % 3],
            duals[(step + 1) % 3],
            weights,
            moves,
            metric,
            extrapolations,
            gains,
            0 if len(weights) == 1 else axes * pixels,
            classes,
            pixels,
            first,
            second,
            third,
            radius,
            factor,
            AXES=axes,
            PLACES=triton.next_power_of_2(axes + 1),
            ENTROPY=entropy,
            JOINT=isotropic,
            BLOCK=_BLOCK,
        )
        if most > 0:
            momentum[batch,](gains, momenta, extrapolations, blocks, most)


@dataclass
class GridSteps:
    """The iteration on a batch; see `grid_ascent` for shapes."""

    duals: Tensor
    momenta: Tensor
    extrapolations: Tensor
    cost: Tensor
    weights: Tensor
    moves: Tensor
    metric: Tensor
    strides: list[int]
    radius: float
    isotropic: bool
    smoothing_weight: float
    entropy: bool
    most: float
    current: int = 0

    def advance(self, steps: int) -> Tensor:
        """Take ``steps`` steps, and give y (B, K, axes, N), which later steps overwrite."""
        grid_ascent(
            self.duals,
            self.momenta,
            self.extrapolations,
            self.cost,
            self.weights,
            self.moves,
            self.metric,
            self.strides,
            self.current,
            steps,
            self.radius,
            self.isotropic,
            self.smoothing_weight,
            self.entropy,
            self.most,
        )
        self.current = (self.current + steps) % 3
        return self.duals[self.current]

    def keep(self, images: Tensor) -> None:
        """Go on with the images (M,) alone."""
        self.duals, self.cost = self.duals[:, images], self.cost[images]
        self.momenta, self.extrapolations = self.momenta[images], self.extrapolations[images]
        if len(self.weights) > 1:
            self.weights, self.moves, self.metric = (
                values[images] for values in (self.weights, self.moves, self.metric)
            )
