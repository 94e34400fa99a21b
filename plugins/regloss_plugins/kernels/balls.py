"""Sums over lattice balls: B_r = all lattice points z with |z|^2 <= r^2, outside the grid counts as 0.

A ball is a stack of segments along the last axis, and the sum over a segment is a difference of two cumulative sums, so
the cost per pixel is the number of segments (about 2 r in 2D) instead of the number of points (about 3 r^2).
"""

from __future__ import annotations

import itertools
import math

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch import Tensor

from .precision import knows_doubles


def ball_segments(radius: float, ndim: int) -> list[tuple[tuple[int, ...], int]]:
    """The ball's segments along the last axis: (offset in the other axes, half width).

    >>> ball_segments(1.5, 2)
    [((-1,), 1), ((0,), 1), ((1,), 1)]
    """
    reach = math.floor(radius)
    segments = []
    for lead in itertools.product(range(-reach, reach + 1), repeat=ndim - 1):
        left = radius**2 - sum(step**2 for step in lead)
        if left >= 0:
            segments.append((lead, math.isqrt(math.floor(left))))
    return segments


def ball_size(radius: float, ndim: int) -> int:
    """Number of lattice points in the ball.

    >>> [ball_size(radius, 2) for radius in (1, 1.5, 2, 3)]
    [5, 9, 13, 29]
    """
    return sum(2 * half + 1 for _, half in ball_segments(radius, ndim))


def ball_sums(values: Tensor, radius: float, ndim: int) -> Tensor:
    """Sum of ``values`` over the ball around every pixel, differentiable.

    Args:
        values: (..., *S); bool and integers are summed exactly, floats in double precision, where there is one.
        radius: in pixels, >= 0.
        ndim: number of spatial axes.

    Returns:
        (..., *S): int32 for bool and integers, else of the values' type.

    >>> ball_sums(torch.tensor([[[0, 0, 0], [0, 1, 0], [0, 0, 1]]]), 1, 2)[0, 2]
    tensor([0, 2, 1], dtype=torch.int32)
    """
    floating = values.is_floating_point()
    size = values.shape[-ndim:]
    width = size[-1]
    # Reaching beyond the grid from its far end finds only zeros, so larger pads are never needed.
    reach = [min(math.floor(radius), length) for length in size]
    pads = [reach[-1] + 1, reach[-1]]
    for length in reversed(reach[:-1]):
        pads += [length, length]
    exact = torch.float64 if knows_doubles(values.device) else torch.float32
    accumulator = exact if floating else torch.int32
    running = F.pad(values.to(accumulator), pads).cumsum(-1, dtype=accumulator)
    total = torch.zeros(values.shape, dtype=accumulator, device=values.device)
    for lead, half in ball_segments(radius, ndim):
        if any(abs(step) > most for step, most in zip(lead, reach[:-1], strict=True)):
            continue
        rows = running
        for axis, (step, most) in enumerate(zip(lead, reach[:-1], strict=True)):
            rows = rows.narrow(axis - ndim, most + step, size[axis])
        half = min(half, reach[-1])
        last = rows.narrow(-1, reach[-1] + 1 + half, width)
        before = rows.narrow(-1, reach[-1] - half, width)
        total = total + (last - before)
    return total.to(values.dtype) if floating else total
