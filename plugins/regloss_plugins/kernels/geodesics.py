"""Geodesic distances on a grid: arrays in, arrays out.

Shortest paths over neighbours from given pixels, by sweeps: forward, each row of pixels takes what the rows before it
offer, then passes it on to the right and to the left; backward likewise from the rows behind it. Sweeps go on until
nothing changes, so that distances are exact, and look only at rows beside which something has changed. Within a row the
offers of other rows are taken by vectorised code.

Source: Criminisi, Sharp, Blake, "GeoS: geodesic image segmentation", ECCV 2008; sweeps: Toivanen, "New geodesic
distance transforms for gray-scale images", Pattern Recognition Letters 1996.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .compiling import kernel


@kernel()
def path_lengths(
    values: NDArray[Any], offsets: NDArray[np.int64], squares: NDArray[Any], lengths: NDArray[Any]
) -> None:
    """Fill ``lengths`` (n, Z, Y, X) of the steps from each pixel to the one at each of ``offsets``.

    A step's length is sqrt(squares[i] + |difference of the values|^2), inf where it leaves the grid.

    Args:
        values: (C, Z, Y, X).
        offsets: (n, 3).
        squares: (n,), squared lengths of the offsets.
        lengths: overwritten.
    """
    channels, depth, height, width = values.shape
    for n in range(len(offsets)):
        dz, dy, dx = offsets[n]
        low, high = max(0, -dx), min(width, width - dx)
        for z in range(depth):
            for y in range(height):
                line = lengths[n, z, y]
                if not (0 <= z + dz < depth and 0 <= y + dy < height):
                    line[:] = np.inf
                    continue
                line[:low] = np.inf
                line[high:] = np.inf
                line[low:high] = squares[n]
                for c in range(channels):
                    here, there = values[c, z, y], values[c, z + dz, y + dy]
                    for x in range(low, high):
                        difference = here[x] - there[x + dx]
                        line[x] += difference * difference
                for x in range(low, high):
                    line[x] = np.sqrt(line[x])


def sweep_distances(lengths: NDArray[Any], offsets: NDArray[np.int64], distance: NDArray[Any]) -> None:
    """Lower ``distance`` (Z, Y, X), in place, to the shortest paths from what it is to begin with.

    Args:
        lengths: (n, Z, Y, X), as `path_lengths` gives them.
        offsets: (n, 3), of two opposite ones that which leads backward: first (0, 0, -1), the others to earlier rows.
        distance: 0 at the pixels to start from, inf elsewhere; or any upper bounds.
    """
    rows = distance.shape[0] * distance.shape[1]
    memory = np.ones(rows, np.int64), np.zeros((2, rows), np.int64), np.empty(distance.shape[2], distance.dtype)
    _sweep(lengths, offsets, distance, *memory)


@kernel()
def _sweep(
    lengths: NDArray[Any],
    offsets: NDArray[np.int64],
    distance: NDArray[Any],
    changed: NDArray[np.int64],
    seen: NDArray[np.int64],
    before: NDArray[Any],
) -> None:
    """All sweeps.

    ``changed`` (rows,), of ones, is the sweep in which each row changed last, ``seen`` (2, rows), of zeros, the one in
    which it was looked at last, forward and backward; ``before`` (X,) is memory.
    """
    depth, height, width = distance.shape
    rows = depth * height
    number = 1
    going = True
    while going:
        going = False
        for backward in range(2):
            number += 1
            for place in range(rows):
                row = rows - 1 - place if backward else place
                z, y = row // height, row % height
                sign = -1 if backward else 1
                latest = changed[row]
                for n in range(1, len(offsets)):
                    zz, yy = z + sign * offsets[n, 0], y + sign * offsets[n, 1]
                    if 0 <= zz < depth and 0 <= yy < height:
                        latest = max(latest, changed[zz * height + yy])
                if latest <= seen[backward, row]:
                    continue
                seen[backward, row] = number
                line = distance[z, y]
                for x in range(width):
                    before[x] = line[x]
                for n in range(1, len(offsets)):
                    zz, yy, dx = z + sign * offsets[n, 0], y + sign * offsets[n, 1], sign * offsets[n, 2]
                    if not (0 <= zz < depth and 0 <= yy < height):
                        continue
                    other = distance[zz, yy]
                    low, high = max(0, -dx), min(width, width - dx)
                    if backward:
                        step = lengths[n, zz, yy]
                        for x in range(low, high):
                            line[x] = min(line[x], other[x + dx] + step[x + dx])
                    else:
                        step = lengths[n, z, y]
                        for x in range(low, high):
                            line[x] = min(line[x], other[x + dx] + step[x])
                step = lengths[0, z, y]
                for x in range(1, width):
                    line[x] = min(line[x], line[x - 1] + step[x])
                for x in range(width - 2, -1, -1):
                    line[x] = min(line[x], line[x + 1] + step[x + 1])
                different = False
                for x in range(width):
                    different |= line[x] != before[x]
                if different:
                    changed[row] = number
                    going = True
