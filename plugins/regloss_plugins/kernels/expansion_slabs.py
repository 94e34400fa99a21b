"""Alpha-expansion on volumes that are too large to be expanded as a whole: slab by slab.

A slab is a number of consecutive slices, whose pixels move while all others keep their labels; the pairs between both
count, so its expansions never raise the energy of the volume. What is larger than a slab cannot move in one. So they
start from the labels of the same problem at half the resolution, constant on blocks of two pixels along each axis, for
which a slab of the same memory has eight times the volume; or, if its energy is lower, from a pass over the slabs in
which slices that come after one do not count yet. Slabs overlap by a quarter, so that a boundary that one of them ends
at can move in the next. They are expanded in turn until none changes, whence the result cannot be improved by any
expansion inside of one slab. That is less than what expansions of the whole volume would say: there is no bound on the
minimum, for two labels either.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from operator import itemgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .arguments import pair_slices
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
    # Few bytes a label: there are several of these arrays, each of the size of the volume.
    labels = np.array(labels, np.min_scalar_type(-1 - max(len(unary), int(labels.max(initial=0)))))

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
    if len(slabs) > 1 and max_cycles > 0:
        given = labels.copy()
        coarse = _coarse_labels(unary, offsets, weights, labels, fixed, roi, allowed, max_cycles, slab)
        for start, stop in slabs:
            expand(start, stop, max_cycles, ahead=False)
        starts = [(_energy(unary, offsets, weights, start, roi), start) for start in (labels, coarse)]
        _, labels = min(*starts, (start_energy, given), key=itemgetter(0))
        del given, coarse, starts
    waiting = [True] * len(slabs)
    cycles = 0
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
    return Expansion(labels.astype(np.int64), energy, start_energy, cycles, converged, -math.inf)


def _coarse_labels(
    unary: NDArray[Any],
    offsets: NDArray[np.int64],
    weights: NDArray[Any],
    labels: NDArray[Any],
    fixed: NDArray[np.int64],
    roi: NDArray[np.bool_],
    allowed: NDArray[np.bool_],
    max_cycles: int,
    slab: int,
) -> NDArray[Any]:
    """``labels`` with those of the problem at half the resolution where pixels are free, and these are allowed."""
    corner = (slice(None, None, 2),) * labels.ndim
    costs, steps, cuts, held, inside = _halved(unary, offsets, weights, fixed, roi)
    larger = slab * 2 ** (labels.ndim - 1)  # as many pixels
    coarse = expand_slabs(costs, steps, cuts, labels[corner], held, inside, allowed, max_cycles, larger)
    found = coarse.labels.astype(labels.dtype)
    del costs, cuts
    for axis, size in enumerate(labels.shape):
        found = found.repeat(2, axis).take(range(size), axis)
    return np.where(roi & (fixed < 0) & allowed[found], found, labels)


def _halved(
    unary: NDArray[Any],
    offsets: NDArray[np.int64],
    weights: NDArray[Any],
    fixed: NDArray[np.int64],
    roi: NDArray[np.bool_],
) -> tuple[NDArray[Any], NDArray[np.int64], NDArray[Any], NDArray[np.int64], NDArray[np.bool_]]:
    """Unary, offsets, weights, fixed labels and region for blocks of two pixels along each axis.

    For labels that are constant on blocks the energy is the same, but for pixels that are fixed: a block has the label
    of one of those that it holds.
    """
    size = roi.shape
    half = tuple(-(-length // 2) for length in size)
    corners = list(np.ndindex(*(2,) * len(size)))
    of_corner = {corner: tuple(slice(start, None, 2) for start in corner) for corner in corners}
    blocks = {
        corner: tuple(slice(0, len(range(start, length, 2))) for start, length in zip(corner, size, strict=True))
        for corner in corners
    }
    costs = np.zeros((len(unary), *half), unary.dtype)
    held, inside = np.full(half, -1, np.int64), np.zeros(half, np.bool_)
    for corner in corners:
        part, block = of_corner[corner], blocks[corner]
        costs[(slice(None), *block)] += np.where(roi[part], unary[(slice(None), *part)], 0)
        inside[block] |= roi[part]
        held[block] = np.where(roi[part] & (fixed[part] >= 0), fixed[part], held[block])
    pairs: dict[tuple[int, ...], NDArray[Any]] = {}
    for offset, weight in zip(offsets, weights, strict=True):
        first, second = pair_slices(offset, size)
        cut = np.zeros(size, weights.dtype)
        cut[first] = np.where(roi[first] & roi[second], weight[first], 0)
        for corner in corners:
            step = tuple((start + int(move)) // 2 for start, move in zip(corner, offset, strict=True))
            if not any(step):
                continue  # both ends in one block
            of_block = np.zeros(half, weights.dtype)
            of_block[blocks[corner]] = cut[of_corner[corner]]
            near, far = pair_slices(step, half)
            opposite = tuple(-each for each in step)
            if step > opposite:  # each pair of blocks once, whichever way an edge goes
                pairs.setdefault(step, np.zeros(half, weights.dtype))[near] += of_block[near]
            else:
                pairs.setdefault(opposite, np.zeros(half, weights.dtype))[far] += of_block[near]
    steps = np.array(list(pairs), np.int64).reshape(-1, len(size))
    return costs, steps, np.stack(list(pairs.values())) if pairs else np.zeros((0, *half), weights.dtype), held, inside


def _starts(length: int, slab: int) -> list[int]:
    count = math.ceil((length - slab) / max(1, math.floor(slab * (1 - _OVERLAP)))) + 1 if length > slab else 1
    return [round(place) for place in np.linspace(0, max(length - slab, 0), count).tolist()]


def _energy(
    unary: NDArray[Any],
    offsets: Sequence[Sequence[int]] | NDArray[np.int64],
    weights: NDArray[Any],
    labels: NDArray[Any],
    roi: NDArray[np.bool_],
) -> float:
    """Inside ``roi``, a slice at a time, exactly summed."""
    sums = []
    for costs, chosen, inside in zip(np.moveaxis(unary, 1, 0), labels, roi, strict=True):
        values = np.take_along_axis(costs, np.where(inside, chosen, 0)[None], 0)[0]
        sums.append(float(values[inside].sum(dtype=np.float64)))
    for offset, weight in zip(offsets, weights, strict=True):
        first, second = pair_slices(offset, roi.shape)
        cut = (labels[first] != labels[second]) & roi[first] & roi[second]
        sums.append(float(weight[first][cut].sum(dtype=np.float64)))
    return math.fsum(sums)
