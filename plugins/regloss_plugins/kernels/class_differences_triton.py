"""Dual ascent on the differences between neighbouring classes in Triton: ordered sets.

    (K s)_k = w (s_k - s_{k + 1})  at each pixel                                           (`points_triton`: a step)

The last class of each pixel has a variable too, which stays 0, so that all arrays are of one shape. A step reads eight
numbers a pixel and class, and writes two.

The package triton is needed to import this module, which is done where CUDA tensors arrive, and in tests under Triton's
interpreter (TRITON_INTERPRET=1).
"""

from __future__ import annotations

from dataclasses import dataclass

import triton
import triton.language as tl
from torch import Tensor

from regloss_plugins.kernels.points_triton import Part, Step, ahead, block_of, finished


@triton.jit
def _add(
    scores: tl.tensor,  # (B, N, K)
    dual: tl.tensor,  # (B, N, K), as is the next
    before: tl.tensor,
    weights: tl.tensor,  # (B, N)
    points: tl.tensor,  # (B, N, K), written
    extrapolations: tl.tensor,  # (B,)
    classes: tl.tensor,
    pixels: tl.tensor,
    factor: tl.tensor,
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
    change = ahead(dual, before, places, inside, extrapolation)
    change -= ahead(dual, before, places - 1, inside & (label > 0)[None, :], extrapolation)
    weight = tl.load(weights + number * pixels + pixel, mask=there, other=0.0)
    score = tl.load(scores + places, mask=inside, other=0.0) + weight[:, None] * change
    tl.store(points + places, finished(score, known, factor, LAST, ENTROPY), mask=inside)


@triton.jit
def _move(
    points: tl.tensor,  # (B, N, K) s
    dual: tl.tensor,  # (B, N, K)
    before: tl.tensor,  # (B, N, K), overwritten with y+
    weights: tl.tensor,  # (B, N)
    steps: tl.tensor,  # (B, N, K) tau, 0 for the last class
    extrapolations: tl.tensor,  # (B,)
    gains: tl.tensor,  # (B, row), written
    row: tl.tensor,
    classes: tl.tensor,
    pixels: tl.tensor,
    low: tl.tensor,
    high: tl.tensor,
    CLASSES: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    number = tl.program_id(1).to(tl.int64)
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    label = tl.arange(0, CLASSES)
    there = pixel < pixels
    inside = there[:, None] & (label < classes - 1)[None, :]
    places = (number * pixels + pixel)[:, None] * classes + label[None, :]
    difference = tl.load(points + places, mask=inside, other=0.0) - tl.load(points + places + 1, mask=inside, other=0.0)
    value = tl.load(dual + places, mask=inside, other=0.0)
    point = ahead(dual, before, places, inside, tl.load(extrapolations + number))
    tau = tl.load(steps + places, mask=inside, other=0.0)
    weight = tl.load(weights + number * pixels + pixel, mask=there, other=0.0)
    moved = tl.minimum(tl.maximum(point + tau * weight[:, None] * difference, low), high)
    tl.store(before + places, moved, mask=inside)
    gain = tl.where(tau > 0, (point - moved) * (moved - value) / tl.where(tau > 0, tau, 1.0), 0.0)
    tl.store(gains + number * row + tl.program_id(0), tl.sum(tl.sum(gain, axis=1), axis=0))


@dataclass
class OrderPart(Part):
    """Differences between classes.

    Args:
        duals: (2, B, N, K), 0 for the last class.
        weights: (B, N).
        steps: (B, N, K), likewise.
    """

    @property
    def blocks(self) -> int:
        """As of `Part`."""
        pixels, classes = self.duals.shape[2:]
        return int(triton.cdiv(pixels, block_of(classes)[1]))

    def add(self, step: Step, scores: Tensor, last: bool) -> None:
        """As of `Part`."""
        batch, pixels, classes = scores.shape
        padded, block = block_of(classes)
        _add[self.blocks, batch](
            scores,
            self.duals[step.now],
            self.duals[1 - step.now],
            self.weights,
            step.points,
            step.extrapolations,
            classes,
            pixels,
            step.factor,
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
            self.low,
            self.high,
            CLASSES=padded,
            BLOCK=block,
        )
