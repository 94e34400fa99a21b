"""What expansion moves on grids and on graphs share: which pixels are free, and whether their costs can be summed."""

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

FREE = -1  # entry of ``fixed`` at a pixel that may change


@njit(nogil=True)
def admissible(
    unary: NDArray[Any],
    start: NDArray[np.int64],
    fixed: NDArray[np.int64],
    roi: NDArray[np.bool_],
    allowed: NDArray[np.bool_],
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """The start with fixed labels in place and the cheapest where a label is not allowed, and which pixels are free."""
    choices = np.flatnonzero(allowed)
    labels = start.copy()
    free = np.zeros(len(start), np.bool_)
    for p in range(len(start)):
        if not roi[p]:
            continue
        if fixed[p] != FREE:
            labels[p] = fixed[p]
            continue
        free[p] = True
        if not (0 <= start[p] < len(allowed) and allowed[start[p]]):
            cheapest = choices[0]
            for k in choices:
                if unary[k, p] < unary[cheapest, p]:
                    cheapest = k
            labels[p] = cheapest
    return labels, free


@njit(nogil=True, cache=True)
def finite_unaries(
    unary: NDArray[Any], fixed: NDArray[np.int64], roi: NDArray[np.bool_], allowed: NDArray[np.bool_]
) -> bool:
    """Whether all unaries that can count are finite."""
    for k in range(len(unary)):
        for p in range(len(roi)):
            counts = roi[p] and (allowed[k] if fixed[p] == FREE else fixed[p] == k)
            if counts and not np.isfinite(unary[k, p]):
                return False
    return True
