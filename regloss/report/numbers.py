"""Columns of logs as numbers, and numbers and names as text."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

TIMES = {"train-seconds": "network training", "network-seconds": "network inference", "solver-seconds": "solver"}
"""Columns of an epoch's seconds, by what they were spent on."""


def is_number(value: object) -> bool:
    """Whether a value of a log is a finite number."""
    return isinstance(value, int | float | np.number) and math.isfinite(value)


def columns(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names of all columns, in the order of their first appearance."""
    return list(dict.fromkeys(key for row in rows for key in row))


def series(
    rows: Sequence[Mapping[str, Any]], x: str, y: str
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Two columns as arrays, of the rows where both are finite numbers."""
    chosen = [row for row in rows if is_number(row.get(x)) and is_number(row.get(y))]
    return np.array([float(row[x]) for row in chosen]), np.array([float(row[y]) for row in chosen])


def left_out(rows: Sequence[Mapping[str, Any]], column: str) -> str:
    """A curve must not hide that a run diverged."""
    count = sum(1 for row in rows if row.get(column) is not None and not is_number(row[column]))
    return f"{count} values of the {column} are NaN or infinite; they are not drawn." if count else ""


def time_parts(rows: Sequence[Mapping[str, Any]]) -> dict[str, npt.NDArray[np.float64]]:
    """Seconds of each row by what they were spent on; "other" is what the total has more than its parts."""
    parts = {
        name: np.array([float(row[key]) if is_number(row.get(key)) else 0.0 for row in rows])
        for key, name in TIMES.items()
    }
    total = np.array([float(row["seconds"]) for row in rows])
    parts["other"] = np.maximum(total - sum(parts.values()), 0.0)
    return parts


def percent(value: Any) -> str:
    """A share with one decimal, "n/a" for what is no number."""
    return f"{100 * value:.1f} %" if is_number(value) else "n/a"


def duration(seconds: float) -> str:
    """Seconds in the two largest units that fit.

    >>> duration(3725), duration(75), duration(4.2)
    ('1 h 2 min', '1 min 15 s', '4.2 s')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = int(seconds) // 60
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min {int(seconds) % 60} s"


def short(name: str, length: int) -> str:
    """``name``, cut to so many characters."""
    return name if len(name) <= length else name[: length - 1] + "…"


def slug(name: str) -> str:
    """``name`` as part of a file name."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-.") or "unnamed"
