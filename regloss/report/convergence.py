"""How the energy fell while one image was segmented: a table and a picture.

An alternation records it after each half step, and solvers that iterate whenever they look at their certificate in
between; other segmenters have records of their own.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regloss.segmenter import EnergyRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_INK, _PRIMAL, _DUAL = "#1f2937", "#2563eb", "#d97706"


def has_curve(history: Sequence[Any]) -> bool:
    """Whether there are two energies to compare."""
    return sum(math.isfinite(record.energy) for record in history) > 1


def write_table(history: Sequence[Any], path: Path) -> None:
    """As CSV, one line a record, one column a field of it that is not None everywhere."""
    names = [column.name for column in fields(history[0])]
    names = [name for name in names if any(getattr(record, name) is not None for record in history)]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(names)
        writer.writerows([getattr(record, name) for name in names] for record in history)


def write_chart(history: Sequence[EnergyRecord], path: Path) -> None:
    """As PNG: the energy by half step, and the solver's primal and dual energy by its steps where it told them."""
    from matplotlib.figure import Figure  # not needed by those who write the table alone

    steps = [record for record in history if record.event == "step"]
    halves = [record for record in history if record.event != "step"]
    figure = Figure(figsize=(10 if steps and len(halves) > 2 else 5.6, 3.6), layout="constrained")
    columns = (len(halves) > 2 or not steps) + bool(steps)
    drawn = list(figure.subplots(1, columns, squeeze=False)[0])
    if steps:
        _by_step(drawn.pop(), steps)
    if drawn:
        _by_half_step(drawn.pop(), halves)
    figure.savefig(path, dpi=150, facecolor="white")


def _by_half_step(axes: Axes, halves: Sequence[EnergyRecord]) -> None:
    _label(axes, "Energy by half step", "round")
    # The statistics of a round are fitted before its labels are found.
    place = {"start": 0.0, "statistics": -0.5, "labels": 0.0}
    known = [row for row in halves if math.isfinite(row.energy)]
    xs, ys = [row.round + place[row.event] for row in known], [row.energy for row in known]
    axes.plot(xs, ys, color=_PRIMAL, linewidth=1.2)
    for event, marker, meaning in (("statistics", "s", "statistics fitted"), ("labels", "o", "labels solved for")):
        points = [(x, y) for x, y, row in zip(xs, ys, known, strict=True) if row.event == event]
        if points:
            axes.plot(*zip(*points, strict=True), marker, color=_PRIMAL, markersize=4, label=meaning)
    bounds = [(row.round, row.bound) for row in halves if math.isfinite(row.bound)]
    if bounds:
        axes.plot(*zip(*bounds, strict=True), "_", color=_DUAL, markersize=10, label="lower bound, statistics given")
    later = [row.energy for row in known if row.round > 0] + [bound for _, bound in bounds]
    if len(known) > len(later) - len(bounds) and len(set(later)) > 1:
        # A start is often so far above that nothing could be seen of what follows.
        margin = 0.08 * (max(later) - min(later))
        axes.set_ylim(min(later) - margin, max(later) + 3 * margin)
        axes.set_title(f"start: {known[0].energy:.6g}", loc="right", fontsize=8, color=_INK)
    axes.legend(frameon=False, fontsize=8)


def _by_step(axes: Axes, steps: Sequence[EnergyRecord]) -> None:
    _label(axes, "Energy by step of the solver", "step")
    offset, xs = 0, []
    for index, row in enumerate(steps):
        if index and row.round != steps[index - 1].round:
            offset += steps[index - 1].step
            axes.axvline(offset, color="#e5e7eb", linewidth=0.8)
        xs.append(offset + row.step)
    energies, bounds = [row.energy for row in steps], [row.bound for row in steps]
    marker = "o" if len(steps) <= 40 else None
    for values, color, name in ((energies, _PRIMAL, "primal"), (bounds, _DUAL, "dual")):
        points = [(x, y) for x, y in zip(xs, values, strict=True) if math.isfinite(y)]
        if points:
            axes.plot(*zip(*points, strict=True), color=color, label=name, linewidth=1.2, marker=marker, markersize=3)
    axes.legend(frameon=False, fontsize=8)


def _label(axes: Axes, title: str, x: str) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_title(title, loc="left", fontsize=11, color=_INK)
    axes.set_xlabel(x, fontsize=9, color=_INK)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.tick_params(labelsize=8, colors=_INK)
    axes.ticklabel_format(axis="y", useOffset=False)
    axes.grid(axis="y", color="#e5e7eb", linewidth=0.8)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
