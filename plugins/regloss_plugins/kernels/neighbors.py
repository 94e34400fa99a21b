"""Exact nearest neighbours of all points of a set among the others: everywhere, or in a window of a grid."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regloss_plugins.kernels.compiling import kernel


def nearest(features: NDArray[np.float64], count: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The ``count`` nearest others of each point, in Euclidean distance.

    Args:
        features: (N, F) points.
        count: 1 to N - 1.

    Returns:
        Indices (N, count) int64 and squared distances (N, count), nearest first. Among equally near points the choice
        is arbitrary, but the same every time.
    """
    from scipy.spatial import cKDTree  # takes longer to import than all else here

    points = len(features)
    tree = cKDTree(features, leafsize=32)
    distances, found = tree.query(features, k=count + 1)
    # A point is among its own nearest, unless so many others coincide with it that it was left out.
    itself = found == np.arange(points)[:, None]
    itself[~itself.any(axis=1), -1] = True
    kept = ~itself
    indices: NDArray[np.int64] = found[kept].reshape(points, count).astype(np.int64)
    squared: NDArray[np.float64] = np.square(distances[kept].reshape(points, count))
    return indices, squared


def nearest_in_window(
    features: NDArray[np.float64],
    places: NDArray[np.int64],
    shape: tuple[int, ...],
    radius: int,
    count: int,
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The ``count`` nearest others of each point among those at most ``radius`` away along each axis of a grid.

    Args:
        features: (N, F) points.
        places: (N, axes) where they lie on the grid.
        shape: of the grid.
        radius: in pixels, >= 1.
        count: >= 1.

    Returns:
        Indices (N, count) int64, -1 where the window holds fewer, and squared distances, inf there; nearest first.
    """
    margin = tuple(size + 2 * radius for size in shape)
    numbers = np.full(margin, -1, dtype=np.int64)
    moved = places + radius
    numbers[tuple(moved.T)] = np.arange(len(places))
    strides = np.array(numbers.strides) // numbers.itemsize
    steps = [step for step in itertools.product(range(-radius, radius + 1), repeat=len(shape)) if any(step)]
    # Near pixels come first: they are the likely neighbours, so that most of the rest is turned down at a glance.
    steps.sort(key=lambda step: (sum(value * value for value in step), step))
    offsets = np.array(steps, dtype=np.int64) @ strides
    found = np.empty((len(places), count), dtype=np.int64)
    squared = np.empty((len(places), count))
    _search(np.ascontiguousarray(features), numbers.ravel(), moved @ strides, offsets, found, squared)
    return found, squared


@kernel()
def _search(features: Any, numbers: Any, start: Any, offsets: Any, found: Any, squared: Any) -> None:
    points, width = features.shape
    count = found.shape[1]
    for i in range(points):
        found[i] = -1
        squared[i] = np.inf
        for k in range(len(offsets)):
            j = numbers[start[i] + offsets[k]]
            if j < 0:
                continue
            worst = squared[i, count - 1]
            distance = 0.0
            for f in range(width):
                step = features[i, f] - features[j, f]
                distance += step * step
                if distance >= worst:
                    break
            if distance >= worst:
                continue
            place = count - 1
            while place > 0 and squared[i, place - 1] > distance:
                squared[i, place] = squared[i, place - 1]
                found[i, place] = found[i, place - 1]
                place -= 1
            squared[i, place] = distance
            found[i, place] = j
