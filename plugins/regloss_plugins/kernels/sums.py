"""Long sums in compiled code without loss. Numbers in, numbers out."""

from __future__ import annotations

from numba import njit


@njit(nogil=True)
def add_compensated(value: float, total: float, lost: float) -> tuple[float, float]:
    """One step of Neumaier's summation: ``total`` with ``value`` added, and what rounding has lost so far.

    Begin with 0 and 0; total + lost is the sum, exact but for its last bits. Source: Neumaier, "Rundungsfehleranalyse
    einiger Verfahren zur Summation endlicher Summen", 1974.
    """
    longer = total + value
    if abs(total) >= abs(value):
        lost += (total - longer) + value
    else:
        lost += (value - longer) + total
    return longer, lost
