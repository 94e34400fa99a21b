"""Long sums in compiled code without loss. Numbers in, numbers out."""

from __future__ import annotations

from .compiling import helper


@helper()
def add_compensated(value: float, total: float, lost: float) -> tuple[float, float]:
    """One step of Neumaier's summation: ``total`` with ``value`` added, and what rounding has lost so far.

    Begin with 0 and 0; total + lost is the sum, exact but for its last bits. What one addition loses is found as Knuth
    does, without a branch. Source: Neumaier, "Rundungsfehleranalyse einiger Verfahren zur Summation endlicher Summen",
    1974; Knuth, "The art of computer programming" 2, 4.2.2.
    """
    longer = total + value
    added = longer - total
    return longer, lost + ((total - (longer - added)) + (value - added))
