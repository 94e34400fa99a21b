"""Conjugate gradients on sums over pixels in Triton, class by class: volumes.

    (K s)_k = w * sum over the region's pixels of s_k, and for two bounds minus that   (`adjoint_parts_triton`: a step)

The launch of pixels is the last to gather, and sums up S' K^T d over the pixels of each program while it has it in its
registers, as in `class_sums_triton`.

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
from regloss_plugins.kernels.class_sums_triton import sums_of_blocks


@triton.jit
def _gather(
    steepest: tl.tensor,  # (B, SIDES, K) z
    weights: tl.tensor,  # (B,)
    region: tl.tensor,  # (B, N) 1 or 0
    totals: tl.tensor,  # (B, blocks, K), written: sums of S' K^T d over the region's pixels of a program
    adjoint: tl.tensor,  # see `gathered`, as are the next seven
    s: tl.tensor,
    points: tl.tensor,
    numbers: tl.tensor,
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
    known = label < classes
    rise = tl.load(steepest + number * SIDES * classes + label, mask=known, other=0.0)
    if SIDES == 2:
        rise -= tl.load(steepest + (number * SIDES + 1) * classes + label, mask=known, other=0.0)
    rise *= tl.load(weights + number)
    counts = tl.load(region + number * pixels + pixel, mask=pixel < pixels, other=0.0)[:, None]
    total = counts * rise[None, :]
    total = gathered(
        total, pixel, adjoint, s, points, numbers, batch, classes, pixels, inverse_entropy, FIRST, True, CLASSES
    )
    total = tl.sum(counts * total, axis=0)
    tl.store(totals + (number * tl.num_programs(0) + block) * classes + label, total, mask=known)


@triton.jit
def _apply(
    totals: tl.tensor,  # (B, blocks, K)
    blocks: tl.tensor,
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
    pixels: tl.tensor,
    SIDES: tl.constexpr,
    CLASSES: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    number = tl.program_id(0).to(tl.int64)
    label = tl.arange(0, CLASSES)
    known = label < classes
    covered = sums_of_blocks(totals, number, classes, blocks, CLASSES, BLOCK).to(tl.float32)
    covered *= tl.load(weights + number)
    beta = tl.load(numbers + BETA * batch + number)
    total = tl.zeros((CLASSES,), dtype=tl.float32)
    for side in tl.static_range(SIDES):
        places = (number * SIDES + side) * classes + label
        ahead = conjugate(steepest, direction, places, known, beta)
        value = covered if side == 0 else -covered
        value = tl.where(tl.load(inverse + places, mask=known, other=0.0) > 0, value, 0.0)
        tl.store(direction + places, ahead, mask=known)
        tl.store(image + places, value, mask=known)
        total += ahead * value
    tl.store(sums + number * row, tl.sum(total, axis=0))


@dataclass
class SumsAdjoint(AdjointPart):
    """Sums over pixels; the axes are the one or two sides, and E is 1.

    Args:
        region: (B, N) 1 inside, 0 outside.
    """

    region: Tensor

    FIXED: ClassVar[tuple[str, ...]] = ("weights", "inverse", "region")
    takes_sums: ClassVar[bool] = True

    def gather(self, step: AdjointStep, first: bool, last: bool) -> None:
        """As of `AdjointPart`; it is the last."""
        assert last
        given = self.steepest, self.weights, self.region, step.totals, *step.of_gather
        _gather[step.grid](*given, SIDES=self.solution.shape[1], FIRST=first, **step.tile)

    def apply(self, step: AdjointStep, image: Tensor, begin: int) -> None:
        """As of `AdjointPart`."""
        given = step.totals, step.totals.shape[1], *self.of_apply(step, image, begin)
        _apply[len(image),](*given, SIDES=self.solution.shape[1], **self.tile)
