"""What expansion moves on grids and on graphs share: which pixels are free, and whether their costs can be summed."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .compiling import kernel

FREE = -1  # entry of ``fixed`` at a pixel that may change


def admissible(
    unary: NDArray[Any],
    start: NDArray[np.int64],
    fixed: NDArray[np.int64],
    roi: NDArray[np.bool_],
    allowed: NDArray[np.bool_],
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """The start with fixed labels in place and the cheapest where a label is not allowed, and which pixels are free."""
    free = roi & (fixed == FREE)
    labels = np.where(roi & ~free, fixed, start)
    if not (allowed.all() and start.size and start.min() >= 0 and start.max() < len(allowed)):
        known = (start >= 0) & (start < len(allowed))
        replaced = np.flatnonzero(free & ~(known & allowed[np.where(known, start, 0)]))
        choices = np.flatnonzero(allowed)
        if len(replaced):
            labels[replaced] = choices[unary[np.ix_(choices, replaced)].argmin(0)]
    return labels, free


def finite_unaries(
    unary: NDArray[Any], fixed: NDArray[np.int64], roi: NDArray[np.bool_], allowed: NDArray[np.bool_]
) -> bool:
    """Whether all unaries that can count are finite."""
    with np.errstate(over="ignore", invalid="ignore"):
        all_finite = bool(np.isfinite(unary.sum()))
    return all_finite or _finite_where_counted(unary, fixed, roi, allowed)


@kernel()
def _finite_where_counted(
    unary: NDArray[Any], fixed: NDArray[np.int64], roi: NDArray[np.bool_], allowed: NDArray[np.bool_]
) -> bool:
    for k in range(len(unary)):
        for p in range(len(roi)):
            counts = roi[p] and (allowed[k] if fixed[p] == FREE else fixed[p] == k)
            if counts and not np.isfinite(unary[k, p]):
                return False
    return True
