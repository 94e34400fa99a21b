"""Dual ascent on sums over pixels in Triton, class by class: volumes.

    (K s)_k = w * sum over the region's pixels of s_k, and for two bounds minus that       (`points_triton`: a step)

There are one or two variables a class. The launch that adds them to the scores is the last to do so, and sums up s over
the pixels of each program while it has it in its registers; the other, of one program an image, sums these up in double
precision, always in the same order, and moves. A step reads the scores and the region once.

The package triton is needed to import this module, which is done where CUDA tensors arrive, and in tests under Triton's
interpreter (TRITON_INTERPRET=1).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import triton
import triton.language as tl
from torch import Tensor

from regloss_plugins.kernels.points_triton import Part, Step, ahead, block_of, finished


@triton.jit
def _add(
    scores: tl.tensor,  # (B, N, K)
    dual: tl.tensor,  # (B, SIDES, K), as is the next
    before: tl.tensor,
    weights: tl.tensor,  # (B,) float64
    region: tl.tensor,  # (B, N), 1 or 0
    points: tl.tensor,  # (B, N, K), written
    sums: tl.tensor,  # (B, blocks, K), written
    extrapolations: tl.tensor,  # (B,)
    classes: tl.tensor,
    pixels: tl.tensor,
    factor: tl.tensor,
    SIDES: tl.constexpr,
    ENTROPY: tl.constexpr,
    CLASSES: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    block, number = tl.program_id(0), tl.program_id(1).to(tl.int64)
    pixel = block * BLOCK + tl.arange(0, BLOCK)
    label = tl.arange(0, CLASSES)
    there, known = pixel < pixels, label < classes
    inside = there[:, None] & known[None, :]
    extrapolation = tl.load(extrapolations + number)
    rise = ahead(dual, before, number * SIDES * classes + label, known, extrapolation)
    if SIDES == 2:
        rise -= ahead(dual, before, (number * SIDES + 1) * classes + label, known, extrapolation)
    rise *= tl.load(weights + number).to(tl.float32)
    counts = tl.load(region + number * pixels + pixel, mask=there, other=0.0)
    places = (number * pixels + pixel)[:, None] * classes + label[None, :]
    score = tl.load(scores + places, mask=inside, other=0.0) + counts[:, None] * rise[None, :]
    s = finished(score, known, factor, True, ENTROPY)
    tl.store(points + places, s, mask=inside)
    total = tl.sum(tl.where(inside, counts[:, None] * s, 0.0), axis=0)
    tl.store(sums + (number * tl.num_programs(0) + block) * classes + label, total, mask=known)


@triton.jit
def sums_of_blocks(
    sums: tl.tensor,  # (B, blocks, K)
    number: tl.tensor,  # of the image
    classes: tl.tensor,
    blocks: tl.tensor,
    CLASSES: tl.constexpr,
    BLOCK: tl.constexpr,
) -> tl.tensor:
    """(CLASSES,) float64: what the programs of a launch have summed up, always in the same order."""
    label = tl.arange(0, CLASSES)
    parts = tl.zeros((BLOCK, CLASSES), dtype=tl.float64)
    for begin in range(0, blocks, BLOCK):
        block = begin + tl.arange(0, BLOCK)
        places = (number * blocks + block)[:, None] * classes + label[None, :]
        inside = (block < blocks)[:, None] & (label < classes)[None, :]
        parts += tl.load(sums + places, mask=inside, other=0.0).to(tl.float64)
    return tl.sum(parts, axis=0)


@triton.jit
def _move(
    sums: tl.tensor,  # (B, blocks, K)
    dual: tl.tensor,  # (B, SIDES, K)
    before: tl.tensor,  # (B, SIDES, K), overwritten with y+
    weights: tl.tensor,  # (B,) float64
    shift: tl.tensor,  # (B, SIDES, K) float64
    steps: tl.tensor,  # (B, SIDES, K)
    extrapolations: tl.tensor,  # (B,)
    gains: tl.tensor,  # (B, row), written
    row: tl.tensor,
    classes: tl.tensor,
    blocks: tl.tensor,
    low: tl.tensor,
    high: tl.tensor,
    SIDES: tl.constexpr,
    CLASSES: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    number = tl.program_id(0).to(tl.int64)
    label = tl.arange(0, CLASSES)
    known = label < classes
    total = sums_of_blocks(sums, number, classes, blocks, CLASSES, BLOCK) * tl.load(weights + number)
    extrapolation = tl.load(extrapolations + number)
    gain = tl.zeros((CLASSES,), dtype=tl.float32)
    for side in tl.static_range(SIDES):
        places = (number * SIDES + side) * classes + label
        value = tl.load(dual + places, mask=known, other=0.0)
        point = ahead(dual, before, places, known, extrapolation)
        tau = tl.load(steps + places, mask=known, other=0.0)
        excess = (total if side == 0 else -total) - tl.load(shift + places, mask=known, other=0.0)
        moved = tl.minimum(tl.maximum(point + tau * excess.to(tl.float32), low), high)
        tl.store(before + places, moved, mask=known)
        gain += tl.where(tau > 0, (point - moved) * (moved - value) / tl.where(tau > 0, tau, 1.0), 0.0)
    tl.store(gains + number * row, tl.sum(gain, axis=0))


@dataclass
class SumsPart(Part):
    """Sums over pixels.

    Args:
        duals: (2, B, 1 or 2, K).
        weights: (B,) float64.
        steps: (B, 1 or 2, K).
        region: (B, N) 1 inside, 0 outside.
        shift: b (B, 1 or 2, K) float64.
    """

    region: Tensor
    shift: Tensor

    FIXED: ClassVar[tuple[str, ...]] = ("weights", "steps", "region", "shift")
    takes_sums: ClassVar[bool] = True

    @property
    def blocks(self) -> int:
        """One."""
        return 1

    def add(self, step: Step, scores: Tensor, last: bool) -> None:
        """As of `Part`; it is the last."""
        assert last
        batch, pixels, classes = scores.shape
        padded, block = block_of(classes)
        _add[triton.cdiv(pixels, block), batch](
            scores,
            self.duals[step.now],
            self.duals[1 - step.now],
            self.weights,
            self.region,
            step.points,
            step.sums,
            step.extrapolations,
            classes,
            pixels,
            step.factor,
            SIDES=self.duals.shape[2],
            ENTROPY=step.entropy,
            CLASSES=padded,
            BLOCK=block,
        )

    def move(self, step: Step, begin: int) -> None:
        """As of `Part`."""
        batch, blocks, classes = step.sums.shape
        padded, block = block_of(classes)
        _move[batch,](
            step.sums,
            self.duals[step.now],
            self.duals[1 - step.now],
            self.weights,
            self.shift,
            self.steps,
            step.extrapolations,
            step.gains[:, begin:],
            step.gains.shape[1],
            classes,
            blocks,
            self.low,
            self.high,
            SIDES=self.duals.shape[2],
            CLASSES=padded,
            BLOCK=block,
        )
