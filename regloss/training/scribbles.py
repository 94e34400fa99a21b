"""Scribbles: shortening, to study how much of them a method needs."""

from __future__ import annotations

from collections import deque

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from regloss.dataset import IGNORE
from regloss.errors import UsageError


def shorten(scribble: npt.NDArray[np.uint8], length: float) -> npt.NDArray[np.uint8]:
    """Keep a fraction of every stroke's length.

    A stroke is a connected component of one class; its pixels are ordered by their distance, along the stroke, from one
    of its ends, and those up to ``length`` times the largest distance stay. At 0 one pixel of each stays: a click.

    Args:
        scribble: (*S) uint8 class indices, 255 = unlabelled; not modified.
        length: fraction between 0 and 1.

    >>> shorten(np.array([[255, 1, 1, 1, 1, 1, 255]], dtype=np.uint8), 0.5)
    array([[255, 255, 255,   1,   1,   1, 255]], dtype=uint8)
    """
    if not 0 <= length <= 1:
        raise UsageError(f"A scribble's length is a fraction between 0 and 1; got {length}.")
    kept = np.full_like(scribble, IGNORE)
    neighbourhood = np.ones((3,) * scribble.ndim, dtype=bool)
    for label in np.unique(scribble[scribble != IGNORE]):
        strokes, count = ndimage.label(scribble == label, structure=neighbourhood)
        for number in range(1, count + 1):
            pixels = [tuple(p) for p in np.argwhere(strokes == number).tolist()]
            # The pixel farthest from any pixel of a stroke is one of its ends; of a tie, the first in reading order.
            from_any = _distances(pixels, pixels[0])
            end = max(pixels, key=lambda p: from_any[p])
            from_end = _distances(pixels, end)
            limit = length * max(from_end.values())
            for pixel in pixels:
                if from_end[pixel] <= limit:
                    kept[pixel] = label
    return kept


def _distances(pixels: list[tuple[int, ...]], start: tuple[int, ...]) -> dict[tuple[int, ...], int]:
    """Steps from ``start`` to each pixel within the stroke, over the full neighbourhood."""
    offsets = list(np.ndindex((3,) * len(start)))
    members = set(pixels)
    distances = {start: 0}
    queue = deque([start])
    while queue:
        pixel = queue.popleft()
        for offset in offsets:
            neighbour = tuple(a + b - 1 for a, b in zip(pixel, offset, strict=True))
            if neighbour in members and neighbour not in distances:
                distances[neighbour] = distances[pixel] + 1
                queue.append(neighbour)
    return distances
