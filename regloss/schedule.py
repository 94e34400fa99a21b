"""Settings that change over training: the coupling of the trust region, the epsilon of the robust loss, a weight."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from regloss.errors import UsageError
from regloss.settings import fits

SHAPES = ("linear", "cosine", "exponential", "step")


@dataclass(frozen=True)
class Schedule:
    """A number that goes from ``start`` to ``end`` while training goes from ``begin`` to ``finish``.

    Args:
        start: value up to ``begin``.
        end: value from ``finish`` on.
        shape: "linear", "cosine" (half a period), "exponential" (constant ratio; both values positive) or "step"
            (``start`` before ``finish``, ``end`` from then on).
        begin: fraction of the training up to which it stands still, 0 <= begin < finish.
        finish: fraction of the training from which on it does, finish <= 1.

    >>> Schedule(0.0, 0.7).at(0.5)
    0.35
    >>> Schedule(0.1, 0.03, shape="step", finish=0.5).at(0.5)
    0.03
    """

    start: float
    end: float
    shape: str = "linear"
    begin: float = 0.0
    finish: float = 1.0

    def __post_init__(self) -> None:
        if self.shape not in SHAPES:
            raise UsageError(f"A schedule's shape is one of {', '.join(SHAPES)}; got {self.shape!r}.")
        for name in ("start", "end", "begin", "finish"):
            if not fits(getattr(self, name), float):
                raise UsageError(f"{name} of a schedule must be a number; got {getattr(self, name)!r}.")
        if not (math.isfinite(self.start) and math.isfinite(self.end)):
            raise UsageError(f"A schedule goes between two finite numbers; got {self.start} and {self.end}.")
        if not 0 <= self.begin < self.finish <= 1:
            raise UsageError(
                "A schedule needs 0 <= begin < finish <= 1 (fractions of the training); got "
                f"{self.begin}, {self.finish}."
            )
        if self.shape == "exponential" and not (self.start > 0 and self.end > 0):
            raise UsageError(f"An exponential schedule needs positive values; got {self.start} and {self.end}.")

    def at(self, progress: float) -> float:
        """The value when the fraction ``progress`` (0 to 1) of the training is done."""
        t = min(max((progress - self.begin) / (self.finish - self.begin), 0.0), 1.0)
        if self.shape == "step":
            return self.start if progress < self.finish else self.end
        if self.shape == "exponential":
            return float(self.start * (self.end / self.start) ** t)
        if self.shape == "cosine":
            t = (1 - math.cos(math.pi * t)) / 2
        return self.start + (self.end - self.start) * t


def as_schedule(given: float | Schedule | Mapping[str, Any], name: str) -> Schedule:
    """A `Schedule` from a number (constant), a schedule, or a table such as ``{start = 0.1, end = 0.03}``."""
    if isinstance(given, Schedule):
        return given
    if isinstance(given, Mapping):
        try:
            return Schedule(**given)
        except TypeError as cause:
            raise UsageError(
                f"{name} as a table takes start, end, shape, begin and finish; got {', '.join(given)}."
            ) from cause
    if isinstance(given, bool) or not isinstance(given, int | float) or not math.isfinite(given):
        raise UsageError(f"{name} must be a finite number or a schedule {{start = ..., end = ...}}; got {given!r}.")
    return Schedule(float(given), float(given))
