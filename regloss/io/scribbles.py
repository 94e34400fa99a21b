"""Scribbles: shortening, to study how much of them a method needs, and simulation where only dense labels exist."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from regloss.dataset import IGNORE
from regloss.errors import UsageError
from regloss.grid import neighbor_offsets, pair_slices

if TYPE_CHECKING:
    from scipy import sparse


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
    from scipy import ndimage  # here and below: whoever reads scribbles as they are does without

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


def simulate(label: npt.NDArray[np.uint8], *, margin: float = 2.0, least: int = 20) -> npt.NDArray[np.uint8]:
    """Scribbles such as a person might draw: one stroke along the middle of every region of a class.

    A region is a connected component of one class. Within it, less a margin, a stroke joins the two pixels that are
    farthest from each other, on the path on which the sum of 1 / (distance to the region's boundary) is least. It is
    one pixel wide, and nothing is random.

    Args:
        label: (*S) uint8 class indices, 255 = ignored; not modified.
        margin: pixels that a stroke stays away from the boundary and the image's border, where the region is wide
            enough; in narrower ones it is half of the largest distance that there is.
        least: regions of fewer pixels get no stroke, but for the largest of each class.

    Returns:
        (*S) uint8, 255 where there is no stroke.

    >>> simulate(np.array([[0, 0, 0, 1], [0, 0, 0, 1], [0, 0, 0, 1]], dtype=np.uint8))
    array([[255, 255, 255,   1],
           [255,   0, 255,   1],
           [255, 255, 255,   1]], dtype=uint8)
    """
    if not margin >= 0 or least < 0:
        raise UsageError(f"margin and least of simulated scribbles must not be negative; got {margin} and {least}.")
    from scipy import ndimage

    scribble = np.full_like(label, IGNORE)
    for k in np.unique(label[label != IGNORE]):
        regions, count = ndimage.label(label == k)
        sizes = np.bincount(regions.ravel(), minlength=count + 1)[1:]
        for number in range(1, count + 1):
            if sizes[number - 1] >= least or sizes[number - 1] == sizes.max():
                scribble[_stroke(regions == number, margin)] = k
    return scribble


def _stroke(region: npt.NDArray[np.bool_], margin: float) -> tuple[npt.NDArray[np.int64], ...]:
    """Indices of the pixels of a region's stroke."""
    from scipy import ndimage
    from scipy.sparse import csgraph

    distance = ndimage.distance_transform_edt(np.pad(region, 1))[(slice(1, -1),) * region.ndim]
    inner = distance > min(margin, float(distance.max()) / 2)
    parts, _ = ndimage.label(inner, structure=np.ones((3,) * region.ndim))
    inner = parts == np.bincount(parts.ravel())[1:].argmax() + 1
    places = np.argwhere(inner)
    lengths, costs = _path_graphs(inner, distance)
    # The pixel farthest from any pixel is one end, the pixel farthest from that the other.
    first = int(csgraph.dijkstra(lengths, directed=False, indices=0).argmax())
    last = int(csgraph.dijkstra(lengths, directed=False, indices=first).argmax())
    _, before = csgraph.dijkstra(costs, directed=False, indices=first, return_predecessors=True)
    path = [last]
    while path[-1] != first:
        path.append(int(before[path[-1]]))
    return tuple(places[path].T)


def _path_graphs(inner: npt.NDArray[np.bool_], distance: npt.NDArray[np.float64]) -> tuple[sparse.csr_array, ...]:
    """Neighbouring pixels of ``inner`` as graphs: with the lengths of steps, and with what they cost."""
    from scipy import sparse

    index = np.full(inner.shape, -1, dtype=np.int32)  # what csgraph takes in all versions of scipy
    index[inner] = np.arange(int(inner.sum()), dtype=np.int32)
    rows, columns, steps = [], [], []
    for offset in neighbor_offsets(inner.ndim, 3**inner.ndim - 1):
        near, far = pair_slices(offset)
        pair = inner[near] & inner[far]
        rows.append(index[near][pair])
        columns.append(index[far][pair])
        steps.append(np.full(int(pair.sum()), np.linalg.norm(offset)))
    ends, others, length = np.concatenate(rows), np.concatenate(columns), np.concatenate(steps)
    depth = distance[inner]
    cost = length * (1 / depth[ends] + 1 / depth[others]) / 2
    shape = (len(depth), len(depth))
    return tuple(sparse.csr_array((values, (ends, others)), shape=shape) for values in (length, cost))
