"""Exact nearest neighbours of all points of a set among the others, everywhere or in a window of a grid, in Triton.

A program owns a tile of points and goes through all tiles, its own first and the others from near to far in the order
of the points. It keeps the best of each of its points, and tells by the boxes around two tiles whether any of the other
one can be better: in images, whose points are in the order of their pixels, nearly all are left out after the first
few. What is left is a tile of differences, squares and sums, from which the best are taken one by one.

The package triton is needed to import this module, which is done where CUDA tensors arrive, and in tests under Triton's
interpreter (TRITON_INTERPRET=1).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_TILE = 64


@triton.jit
def _search(
    features: tl.tensor,  # (F, N) float32
    lower: tl.tensor,  # (F, tiles) float32, of each tile
    upper: tl.tensor,
    places: tl.tensor,  # (AXES, N) int32
    first: tl.tensor,  # (AXES, tiles) int32, of each tile
    last: tl.tensor,
    found: tl.tensor,  # (N, count) int32, written
    squares: tl.tensor,  # (N, count) float32, written
    width: tl.tensor,
    points: tl.tensor,
    tiles: tl.tensor,
    count: tl.tensor,
    radius: tl.tensor,
    AXES: tl.constexpr,  # 0 = everywhere
    SLOTS: tl.constexpr,
    TILE: tl.constexpr,
) -> None:
    own = tl.program_id(0)
    lane, slot = tl.arange(0, TILE), tl.arange(0, SLOTS)
    row = own * TILE + lane
    there = row < points
    # More slots than neighbours are never the worst.
    best = tl.where((slot < count)[None, :] & there[:, None], float("inf"), -float("inf"))
    which = tl.full((TILE, SLOTS), -1, dtype=tl.int32)
    worst = tl.max(best, axis=1)
    for k in range(tiles):
        tile = (own + tl.where(k % 2 == 1, (k + 1) // 2, tiles - k // 2)) % tiles
        bound = 0.0
        for f in range(width):
            here, other = f * tiles + own, f * tiles + tile
            gap = tl.maximum(tl.load(lower + other) - tl.load(upper + here), 0.0)
            gap = tl.maximum(gap, tl.load(lower + here) - tl.load(upper + other))
            bound += gap * gap
        for axis in tl.static_range(AXES):
            here, other = axis * tiles + own, axis * tiles + tile
            apart = tl.maximum(tl.load(first + other) - tl.load(last + here), 0)
            apart = tl.maximum(apart, tl.load(first + here) - tl.load(last + other))
            bound = tl.where(apart > radius, float("inf"), bound)
        if bound < tl.max(worst, axis=0):
            column = tile * TILE + lane
            known = column < points
            near = there[:, None] & known[None, :] & (row[:, None] != column[None, :])
            square = tl.zeros((TILE, TILE), dtype=tl.float32)
            for f in range(width):
                ours = tl.load(features + f * points + row, mask=there, other=0.0)
                theirs = tl.load(features + f * points + column, mask=known, other=0.0)
                difference = ours[:, None] - theirs[None, :]
                square += difference * difference
            for axis in tl.static_range(AXES):
                ours = tl.load(places + axis * points + row, mask=there, other=0)
                theirs = tl.load(places + axis * points + column, mask=known, other=0)
                near = near & (tl.abs(ours[:, None] - theirs[None, :]) <= radius)
            square = tl.where(near, square, float("inf"))
            least = tl.min(square, axis=1)
            while tl.max((least < worst).to(tl.int32), axis=0) > 0:
                at = tl.argmin(square, axis=1)
                replaced = (slot[None, :] == tl.argmax(best, axis=1)[:, None]) & (least < worst)[:, None]
                best = tl.where(replaced, least[:, None], best)
                which = tl.where(replaced, (tile * TILE + at)[:, None], which)
                square = tl.where(lane[None, :] == at[:, None], float("inf"), square)
                least = tl.min(square, axis=1)
                worst = tl.max(best, axis=1)
    places_of = row[:, None] * count + slot[None, :]
    inside = there[:, None] & (slot < count)[None, :]
    tl.store(found + places_of, which, mask=inside)
    tl.store(squares + places_of, best, mask=inside)


@torch.library.custom_op("regloss::nearest", mutates_args=())
def nearest(features: Tensor, places: Tensor | None, radius: int, count: int) -> tuple[Tensor, Tensor]:
    """The ``count`` nearest others of each point: (N, count) int64, and squared distances float32, nearest first.

    Where there are fewer, -1 and inf.

    Args:
        features: (N, F) float32.
        places: (N, axes) int64 where they lie on a grid; None = neighbours are looked for everywhere.
        radius: with places, how far away along each axis a neighbour may be.
        count: >= 1.
    """
    points = len(features)
    tiles, axes = triton.cdiv(points, _TILE), 0 if places is None else places.shape[1]
    rows, spots = features.T.contiguous(), features.new_empty(0, points, dtype=torch.int32)
    if places is not None:
        spots = places.T.to(torch.int32).contiguous()
    found = features.new_empty(points, count, dtype=torch.int32)
    squares = features.new_empty(points, count)
    _search[tiles,](
        rows,
        *_boxes(rows),
        spots,
        *_boxes(spots),
        found,
        squares,
        features.shape[1],
        points,
        tiles,
        count,
        radius,
        AXES=axes,
        SLOTS=triton.next_power_of_2(count),
        TILE=_TILE,
    )
    squares, order = squares.sort(dim=1, stable=True)
    return found.gather(1, order).long(), squares


@nearest.register_fake
def _(features: Tensor, places: Tensor | None, radius: int, count: int) -> tuple[Tensor, Tensor]:
    squares = features.new_empty(len(features), count)
    return torch.empty_like(squares, dtype=torch.int64), squares


def _boxes(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Least and largest of each tile of ``rows`` (F, N), (F, tiles) each; the last tile repeats the last point."""
    if not len(rows):
        return rows, rows
    missing = -rows.shape[1] % _TILE
    filled = torch.cat([rows, rows[:, -1:].expand(-1, missing)], 1)
    least, largest = filled.reshape(len(rows), -1, _TILE).aminmax(dim=2)
    return least.contiguous(), largest.contiguous()
