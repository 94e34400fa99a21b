"""How the scripts of this folder write numbers of several seeds."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean, stdev


def mean_and_spread(values: Sequence[float], digits: int) -> str:
    """Mean and, of more than one value, standard deviation, as "1.5 ± 0.7"."""
    spread = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{mean(values):.{digits}f}{spread}"
