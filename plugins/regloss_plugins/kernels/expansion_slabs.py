"""Alpha-expansion on volumes that are too large to be expanded as a whole: slab by slab.

A slab is a number of consecutive slices, whose pixels move while all others keep their labels; the pairs between both
count, so its expansions never raise the energy of the volume. In the first pass the slices that come after a slab,
which have no labels yet that are worth anything, are left out. Slabs overlap by a quarter, so that a boundary that one
of them ends at can move in the next. They are expanded in turn until none changes, whence the result cannot be improved
by any expansion inside of one slab. That is less than what expansions of the whole volume would say: there is no bound
on the minimum, for two labels either.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .expansion import Expansion, expand_grid

_OVERLAP = 0.25


def expand_slabs(
    unary: NDArray[Any],
    offsets: NDArray[np.int64],
    weights: NDArray[Any],
    labels: NDArray[np.int64],
    fixed: NDArray[np.int64],
    roi: NDArray[np.bool_],
    allowed: NDArray[np.bool_],
    max_cycles: int,
    slab: int,
) -> Expansion:
    """As `regloss_plugins.kernels.expansion.expand_grid` for a volume S, so many slices of its first axis at a time.

    Args:
        unary: see `expand_grid`, like all that follow but the last.
        offsets: see `expand_grid`.
        weights: see `expand_grid`.
        labels: see `expand_grid`.
        fixed: see `expand_grid`.
        roi: see `expand_grid`.
        allowed: see `expand_grid`.
        max_cycles: of expansions within a slab, and of passes over the slabs.
        slab: slices, >= 1.
    """
    length = len(labels)
    reach = int(np.abs(offsets[:, 0]).max(initial=0))
    labels = np.array(labels, np.int64)

    def expand(start: int, stop: int, cycles: int, *, ahead: bool = True) -> bool:
        """Expand slices from start to stop, those after it counting or not; whether a label has changed."""
        low, high = max(0, start - reach), min(length, stop + reach * ahead)
        held = fixed[low:high].copy()
        held[: start - low], held[stop - low :] = labels[low:start], labels[stop:high]
        part = slice(low, high)
        found = expand_grid(
            unary[:, part], offsets, weights[:, part], labels[part], held, roi[part], allowed, cycles
        ).labels[start - low : stop - low]
        changed = bool((found != labels[start:stop]).any())
        labels[start:stop] = found
        return changed

    for start in range(0, length, slab):
        expand(start, min(start + slab, length), 0)  # puts fixed and allowed labels in place
    start_energy = _energy(unary, offsets, weights, labels, roi)
    slabs = [(start, min(start + slab, length)) for start in _starts(length, slab)]
    given = labels.copy()
    for start, stop in slabs:
        expand(start, stop, max_cycles, ahead=False)
    if _energy(unary, offsets, weights, labels, roi) > start_energy:
        labels[:] = given
    del given
    waiting = [True] * len(slabs)
    cycles = 1
    while any(waiting) and cycles < max_cycles:
        cycles += 1
        for number, (start, stop) in enumerate(slabs):
            if not waiting[number]:
                continue
            waiting[number] = False
            if expand(start, stop, max_cycles):
                for other, (first, last) in enumerate(slabs):
                    if other != number and first - reach < stop and start < last + reach:
                        waiting[other] = True
    converged = not any(waiting)
    energy = _energy(unary, offsets, weights, labels, roi)
    return Expansion(labels, energy, start_energy, cycles, converged, -math.inf)


def _starts(length: int, slab: int) -> list[int]:
    count = math.ceil((length - slab) / max(1, math.floor(slab * (1 - _OVERLAP)))) + 1 if length > slab else 1
    return [round(place) for place in np.linspace(0, max(length - slab, 0), count).tolist()]


def _energy(
    unary: NDArray[Any],
    offsets: Sequence[Sequence[int]] | NDArray[np.int64],
    weights: NDArray[Any],
    labels: NDArray[np.int64],
    roi: NDArray[np.bool_],
) -> float:
    """Inside ``roi``, a slice at a time, exactly summed."""
    sums = []
    for costs, chosen, inside in zip(np.moveaxis(unary, 1, 0), labels, roi, strict=True):
        values = np.take_along_axis(costs, np.where(inside, chosen, 0)[None], 0)[0]
        sums.append(float(values[inside].sum(dtype=np.float64)))
    for offset, weight in zip(offsets, weights, strict=True):
        first = tuple(slice(max(-step, 0), max(size - step, 0)) for step, size in zip(offset, roi.shape, strict=True))
        second = tuple(slice(max(step, 0), max(size + step, 0)) for step, size in zip(offset, roi.shape, strict=True))
        cut = (labels[first] != labels[second]) & roi[first] & roi[second]
        sums.append(float(weight[first][cut].sum(dtype=np.float64)))
    return math.fsum(sums)
