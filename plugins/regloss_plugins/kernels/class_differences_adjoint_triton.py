"""Conjugate gradients on the differences between neighbouring classes in Triton: ordered sets.

    (K s)_k = w (s_k - s_{k + 1})  at each pixel                                    (`adjoint_parts_triton`: a step)

The last class of each pixel has a variable too, which stays 0, so that all arrays are of one shape.

The package triton is needed to import this module, which is done where CUDA tensors arrive, and in tests under Triton's
interpreter (TRITON_INTERPRET=1).
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from regloss_plugins.kernels.adjoint_parts_triton import BETA, AdjointPart, AdjointStep, conjugate, gathered


@triton.jit
def _gather(
    steepest: tl.tensor,  # (B, N, K) z
    weights: tl.tensor,  # (B, N)
    adjoint: tl.tensor,  # see `gathered`, as are the next seven
    s: tl.tensor,
    points: tl.tensor,
    numbers: tl.tensor,
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
    gathered(total, pixel, adjoint, s, points, numbers, batch, classes, pixels, inverse_entropy, FIRST, LAST, CLASSES)


@triton.jit
def _apply(
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
    ahead = conjugate(steepest, direction, places, inside, tl.load(numbers + BETA * batch + number))
    value = tl.load(points + places, mask=inside, other=0.0) - tl.load(points + places + 1, mask=inside, other=0.0)
    value *= tl.load(weights + number * pixels + pixel, mask=there, other=0.0)[:, None]
    value = tl.where(tl.load(inverse + places, mask=inside, other=0.0) > 0, value, 0.0)
    tl.store(direction + places, ahead, mask=inside)
    tl.store(image + places, value, mask=there[:, None] & (label < classes)[None, :])  # 0 for the last class
    total = tl.sum(tl.sum(ahead * value, axis=1), axis=0)
    tl.store(sums + number * row + tl.program_id(0), total)


class OrderAdjoint(AdjointPart):
    """Differences between classes, E being N; the last class of each pixel has a variable that stays 0."""

    def gather(self, step: AdjointStep, first: bool, last: bool) -> None:
        """As of `AdjointPart`."""
        given = self.steepest, self.weights, *step.of_gather
        _gather[step.grid](*given, FIRST=first, LAST=last, **step.tile)

    def apply(self, step: AdjointStep, image: Tensor, begin: int) -> None:
        """As of `AdjointPart`."""
        _apply[self.blocks, len(image)](step.points, *self.of_apply(step, image, begin), **self.tile)
