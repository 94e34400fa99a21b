"""Gaussian sums over all pairs of points, in Triton: tile by tile, as attention kernels do, without storing a weight.

    out_p = sum over q of exp(-|f_p - f_q|^2 / 2) v_q

A program holds a tile of rows p and goes through the tiles of columns q: differences of features, squares, exp2, and
the product with the values, summed in float32 (by tensor cores in three TF32 products, which keep float32's digits).
Distances come from differences, not from products, so that nothing cancels; they are taken in the features' own type.
w_pq and w_qp are the same number, so that W is symmetric and its own adjoint.

Traffic: values once for each tile of rows; for 94,000 points and 21 classes some 1,500 x 8 MB from the second-level
cache. Work: N^2 (2 F + 2 K) operations and N^2 exponentials, which is what it should be limited by.

The package triton is needed to import this module, which is done where CUDA tensors arrive, and in tests under Triton's
interpreter (TRITON_INTERPRET=1).
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

_ROWS, _COLUMNS = 64, 64
_CLASSES = 64  # at most so many at a time
_POWER = tl.constexpr(math.log2(math.e) / 2)  # exp(-d / 2) = exp2(-d * power)


@triton.jit
def _sums(
    features: tl.tensor,  # (N, F)
    values: tl.tensor,  # (N, K) float32
    out: tl.tensor,  # (N, K) float32
    points: tl.tensor,
    classes: tl.tensor,
    FEATURES: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    WIDTH: tl.constexpr,
) -> None:
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    there = rows < points
    total = tl.zeros((ROWS, WIDTH), dtype=tl.float32)
    for begin in range(0, points, COLUMNS):
        others = begin + tl.arange(0, COLUMNS)
        here = others < points
        squares = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
        for feature in tl.static_range(FEATURES):
            f = tl.load(features + rows * FEATURES + feature, mask=there, other=0.0)
            g = tl.load(features + others * FEATURES + feature, mask=here, other=0.0)
            difference = (f[:, None] - g[None, :]).to(tl.float32)
            squares += difference * difference
        weights = tl.exp2(-squares * _POWER)
        places = others[:, None] * classes + column[None, :]
        known = tl.load(values + places, mask=here[:, None] & (column < classes)[None, :], other=0.0)
        total = tl.dot(weights, known, total, input_precision="tf32x3")
    places = rows[:, None] * classes + column[None, :]
    tl.store(out + places, total, mask=there[:, None] & (column < classes)[None, :])


@torch.library.custom_op("regloss::gaussian_sums", mutates_args=())
def gaussian_sums(features: Tensor, values: Tensor) -> Tensor:
    """The sums (N, K), float32.

    Args:
        features: (N, F) f, float32 or float64, contiguous.
        values: (N, K) v, float32, contiguous, on the same device.
    """
    points, classes = values.shape
    out = torch.empty_like(values)
    if points == 0 or classes == 0:
        return out
    width = min(max(triton.next_power_of_2(classes), 16), _CLASSES)  # products on tensor cores take 16 at least
    grid = (triton.cdiv(points, _ROWS), triton.cdiv(classes, width))
    _sums[grid](
        features, values, out, points, classes, FEATURES=features.shape[1], ROWS=_ROWS, COLUMNS=_COLUMNS, WIDTH=width
    )
    return out


@gaussian_sums.register_fake
def _(features: Tensor, values: Tensor) -> Tensor:
    return torch.empty_like(values)
