"""Arguments of problems on grids, as compiled code wants them: arrays in, arrays out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray


def dense(values: ArrayLike, dtype: Any, name: str, shape: Sequence[int]) -> NDArray[Any]:
    """C-ordered and writeable, so that there is one compiled function for all; the values are not written to.

    Raises:
        ValueError: ``values`` are not of that shape.
    """
    array = np.require(values, dtype, ["C", "A", "W"])
    if array.shape != tuple(shape):
        raise ValueError(f"expected {name} of shape {tuple(shape)}, got {array.shape}")
    return array


def as_volume(
    unary: ArrayLike, offsets: ArrayLike, labels: ArrayLike
) -> tuple[tuple[int, ...], tuple[int, int, int], NDArray[np.int64]]:
    """The shape S of a grid, the same with three axes, and offsets (n, 3) in it.

    Args:
        unary: (K, *S).
        offsets: (n, D).
        labels: (*S), 1 to 3 axes.

    Raises:
        ValueError: shapes do not match, or the grid has more axes.

    >>> as_volume(np.zeros((2, 4, 5)), [[0, 1]], np.zeros((4, 5)))
    ((4, 5), (1, 4, 5), array([[0, 0, 1]]))
    """
    shape, steps = np.shape(labels), np.asarray(offsets)
    if len(np.shape(unary)) != len(shape) + 1 or steps.ndim != 2 or steps.shape[1] != len(shape):
        raise ValueError(
            f"expected unary (K, *S) and offsets (n, {len(shape)}) for labels {shape}, "
            f"got {np.shape(unary)} and {steps.shape}"
        )
    if not 1 <= len(shape) <= 3:
        raise ValueError(f"expected a grid of 1, 2 or 3 dimensions, got {len(shape)}")
    depth, height, width = (1,) * (3 - len(shape)) + shape
    padded = np.concatenate([np.zeros((len(steps), 3 - len(shape)), np.int64), steps.astype(np.int64)], axis=1)
    return shape, (depth, height, width), padded


def pair_slices(
    offset: Sequence[int] | NDArray[np.int64], shape: Sequence[int]
) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Where the first and the second pixels of all pairs (p, p + offset) lie in an array of this ``shape``.

    >>> values = np.arange(5)
    >>> first, second = pair_slices([-2], values.shape)
    >>> values[first].tolist(), values[second].tolist()
    ([2, 3, 4], [0, 1, 2])
    """
    first = tuple(slice(max(-step, 0), max(size - step, 0)) for step, size in zip(offset, shape, strict=True))
    second = tuple(slice(max(step, 0), max(size + step, 0)) for step, size in zip(offset, shape, strict=True))
    return first, second
