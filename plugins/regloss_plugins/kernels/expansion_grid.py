"""Expansion moves on grids, whose cost is small where little can change.

Which pixels gain anything by taking alpha is seen from sums that are kept up to date, and the cut looks at these and at
what their excess reaches. A label whose last expansion could not improve is tried again only about what has changed
since: each connected part of an improving move must hold a pixel that changed, or its neighbour, or it would have
improved before. So the cut of a window about these is enough, made as if all pixels around it took alpha (which favours
taking inside): if no part of it that holds such a pixel reaches the window's rim, that is the move; otherwise all
pixels are looked at. Moves and energy are those of `regloss_plugins.kernels.expansion`.

Numba's on-disk cache looks at the file of a function but not at what it calls: after a change of code in
``push_relabel.py`` or ``sums.py``, touch this file too.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .compiling import helper, kernel
from .push_relabel import (
    LABELLED,
    REACHED,
    Network,
    Scratch,
    arc_steps,
    mask_type,
    new_network,
    new_scratch,
    push_all,
    start_among,
    start_everywhere,
)
from .sums import add_compensated

NEVER = np.int64(-1)
RINGS = 6  # of pixels about those that moves concern; more cost as much as a look at all


class Cells(NamedTuple):
    """A grid of pixels whose arcs are numbered as in :class:`~regloss_plugins.kernels.push_relabel.Network`."""

    step: NDArray[np.uint32]  # (D,)
    bit: NDArray[Any]  # (D,)
    weight: NDArray[Any]  # (N, D); 0 where there is no edge
    arcs: NDArray[Any]  # (N,) bits of the arcs between free pixels
    free: NDArray[np.bool_]  # (N,)


class History(NamedTuple):
    """Whom the moves since each label's last expansion concern."""

    touched: NDArray[np.uint32]  # (N,) pixels that changed, and their neighbours, move by move
    noted: NDArray[np.int64]  # (1,) how many they are
    changes: NDArray[np.int64]  # (1,) how many moves have changed something
    tried: NDArray[np.int64]  # (choices,) how many had at each label's last expansion; NEVER = there was none
    since: NDArray[np.int64]  # (choices,) how many were noted at each label's last expansion; NEVER = look at all
    window: NDArray[np.uint32]  # (N,) pixels about those touched, and these first
    core: NDArray[np.int64]  # (1,) how many of the window are touched
    member: NDArray[np.bool_]  # (N,) whether a pixel is in the window


def new_history(pixels: int, choices: int) -> History:
    """Nothing has been tried."""
    return History(
        touched=np.empty(pixels, np.uint32),
        noted=np.zeros(1, np.int64),
        changes=np.zeros(1, np.int64),
        tried=np.full(choices, NEVER),
        since=np.full(choices, NEVER),
        window=np.empty(pixels, np.uint32),
        core=np.zeros(1, np.int64),
        member=np.zeros(pixels, np.bool_),
    )


def grid_cells(
    offsets: NDArray[np.int64], weights: NDArray[Any], roi: NDArray[np.bool_], free: NDArray[np.bool_]
) -> tuple[Cells, bool]:
    """The cells of a grid (Z, Y, X) from weights (n, Z, Y, X) towards the pixels at offsets (n, 3), inside ``roi``.

    Returns also whether the weights are finite and >= 0.
    """
    arcs, shape = 2 * len(offsets), np.array(roi.shape)
    bit = (1 << np.arange(arcs)).astype(mask_type(arcs))
    cells = Cells(
        arc_steps(offsets, roi.shape),
        bit,
        np.zeros((roi.size, arcs), weights.dtype),
        np.zeros(roi.size, bit.dtype),
        free.ravel(),
    )
    first, end = np.maximum(0, -offsets), np.minimum(shape, shape - offsets)
    flat = weights.reshape(len(offsets), roi.size)
    valid: bool = _fill(tuple(cells), offsets, first, end, roi.shape[1], roi.shape[2], flat, roi.ravel())
    return cells, valid


@kernel()
def _fill(
    cell_arrays: tuple[Any, ...],
    offsets: NDArray[np.int64],
    first: NDArray[np.int64],
    end: NDArray[np.int64],
    height: int,
    width: int,
    weights: NDArray[Any],
    roi: NDArray[np.bool_],
) -> bool:
    """Fill the weights and arcs of ``cells``, given as zeros; pixels from ``first`` to ``end`` (n, 3) have partners."""
    cells = Cells(*cell_arrays)
    weight, arcs, free, bit = cells.weight, cells.arcs, cells.free, cells.bit
    neighbors = len(offsets)
    valid = True
    for n in range(neighbors):
        step = (offsets[n, 0] * height + offsets[n, 1]) * width + offsets[n, 2]
        if step == 0:
            continue  # a pixel and itself never differ
        back = 2 * neighbors - 1 - n
        for z in range(first[n, 0], end[n, 0]):
            for y in range(first[n, 1], end[n, 1]):
                row = (z * height + y) * width
                for p in range(row + first[n, 2], row + end[n, 2]):
                    q = p + step
                    if not (roi[p] and roi[q]):
                        continue
                    value = weights[n, p]
                    valid &= 0.0 <= value < np.inf  # NaN fails too
                    weight[p, n] = value
                    weight[q, back] = value
                    if free[p] and free[q] and value > 0.0:
                        arcs[p] |= bit[n]
                        arcs[q] |= bit[back]
    return valid


@kernel()
def _energy(
    unary: NDArray[Any],
    cell_arrays: tuple[Any, ...],
    labels: NDArray[np.int32],
    roi: NDArray[np.bool_],
    keeping: NDArray[Any],
    border: NDArray[np.float64],
    beginning: bool,
) -> float:
    """Energy inside ``roi``, by Neumaier's compensated summation: exact but for the last bits of the result.

    Results are compared by this number, so rounding must not make a worse labelling look better. At the beginning
    ``keeping`` is filled with the unaries of the labels, and ``border``, given as zeros, too.
    """
    cells = Cells(*cell_arrays)
    forward = len(cells.step) // 2
    free = cells.free
    total, lost = 0.0, 0.0
    for p in range(len(labels)):
        label = labels[p]
        if beginning:
            keeping[p] = unary[label, p]
        if not roi[p]:
            continue
        cut = 0.0
        for k in range(forward):
            weight = np.float64(cells.weight[p, k])
            if weight > 0.0:
                q = np.uint32(p + cells.step[k])
                if labels[q] != label:
                    cut += weight
                    if beginning and free[p] and free[q]:
                        border[p] += 0.5 * weight
                        border[q] += 0.5 * weight
                elif beginning and free[p] != free[q]:
                    border[p if free[p] else q] -= weight
        total, lost = add_compensated(np.float64(unary[label, p]), total, lost)
        if cut > 0.0:  # at few pixels
            total, lost = add_compensated(cut, total, lost)
    return total + lost


@helper(forceinline=True)
def _border(cells: Cells, labels: NDArray[np.int32], p: Any) -> float:
    """What the neighbours add to the excess of a free pixel in the expansion of a label that none of them has."""
    label = labels[p]
    total = 0.0
    for k in range(len(cells.step)):
        weight = np.float64(cells.weight[p, k])
        if weight > 0.0:
            q = np.uint32(p + cells.step[k])
            if labels[q] != label:
                if cells.free[q]:
                    total += 0.5 * weight
            elif not cells.free[q]:
                total -= weight
    return total


@helper()
def _set_up(
    alpha: int,
    unary: NDArray[Any],
    cells: Cells,
    keeping: NDArray[Any],
    border: NDArray[np.float64],
    network: Network,
) -> None:
    """Make ``network`` that of the expansion of ``alpha`` from its labels; taking is the source side.

    ``keeping`` (N,) are the unaries of the labels, ``border`` (N,) what :func:`_border` says.
    """
    excess, leaving = network.excess, network.leaving
    taking = unary[alpha]
    for p in range(len(excess)):
        network.ready[p] = False
        leaving[p] = cells.arcs[p]
        excess[p] = (np.float64(keeping[p]) - np.float64(taking[p])) + border[p]
    for p in range(len(excess)):
        if network.labels[p] == alpha:
            excess[p] = 0.0
            leaving[p] = 0
            for k in range(len(cells.step)):
                weight = np.float64(cells.weight[p, k])
                if weight > 0.0:
                    q = np.uint32(p + cells.step[k])
                    back = np.uint32(len(cells.step) - 1 - k)
                    leaving[q] &= ~cells.bit[back]
                    if cells.free[q] and network.labels[q] != alpha:
                        excess[q] += 0.5 * weight if cells.free[p] else weight
        elif not cells.free[p]:
            excess[p] = 0.0
    for p in range(len(excess)):
        network.entering[p] = leaving[p]


@kernel()
def _cut(
    alpha: int,
    unary: NDArray[Any],
    cell_arrays: tuple[Any, ...],
    keeping: NDArray[Any],
    border: NDArray[np.float64],
    network_arrays: tuple[Any, ...],
    scratch_arrays: tuple[Any, ...],
) -> int:
    """The expansion of ``alpha``; returns the number of pixels that take it, as :func:`push_all` does."""
    cells = Cells(*cell_arrays)
    network = Network(*network_arrays)
    scratch = Scratch(*scratch_arrays)
    _set_up(alpha, unary, cells, keeping, border, network)
    return push_all(network, scratch, start_everywhere(network, scratch), len(keeping) // 4)


@helper()
def _gain(
    alpha: int, unary: NDArray[Any], cells: Cells, keeping: NDArray[Any], network: Network, scratch: Scratch, size: int
) -> float:
    """By how much the energy changes if the pixels ``region[:size]``, marked as reached, take ``alpha``."""
    labels = network.labels
    total, lost = 0.0, 0.0
    for i in range(size):
        p = scratch.region[i]
        label = labels[p]
        term = np.float64(unary[alpha, p]) - np.float64(keeping[p])
        for k in range(len(cells.step)):
            weight = np.float64(cells.weight[p, k])
            if weight > 0.0:
                q = np.uint32(p + cells.step[k])
                if scratch.seen[q] == REACHED:
                    if labels[q] != label:
                        term -= 0.5 * weight  # each of both ends counts half
                elif labels[q] == label:
                    term += weight
                elif labels[q] == alpha:
                    term -= weight
        total, lost = add_compensated(term, total, lost)
    return total + lost


@helper()
def _take(
    alpha: int,
    unary: NDArray[Any],
    cells: Cells,
    keeping: NDArray[Any],
    border: NDArray[np.float64],
    network: Network,
    scratch: Scratch,
    size: int,
    history: History,
) -> None:
    """Give ``alpha`` to the pixels ``region[:size]``, marked as reached, and note whom it concerns."""
    done = REACHED + 1
    touched = 0
    for i in range(size):
        p = scratch.region[i]
        network.labels[p] = alpha
        keeping[p] = unary[alpha, p]
    for i in range(size):
        p = scratch.region[i]
        if scratch.seen[p] != done:
            scratch.seen[p] = done
            border[p] = _border(cells, network.labels, p)
            scratch.queue[touched] = p
            touched += 1
        for k in range(len(cells.step)):
            if cells.weight[p, k] > 0.0:
                q = np.uint32(p + cells.step[k])
                if cells.free[q] and scratch.seen[q] != done:
                    scratch.seen[q] = done
                    border[q] = _border(cells, network.labels, q)
                    scratch.queue[touched] = q
                    touched += 1
    history.changes[0] += 1
    noted = history.noted[0]
    if noted + touched > len(history.touched):
        history.since[:] = NEVER
        noted = 0
    for i in range(touched):
        history.touched[noted + i] = scratch.queue[i]
    history.noted[0] = noted + touched


@helper()
def _find_window(alpha: int, first: int, most: int, cells: Cells, network: Network, history: History) -> int:
    """Collect the pixels touched since ``first`` and so many rings about them in ``window``, those that may take alpha.

    Returns how many they are, or -1 if more than ``most``; ``history.core`` of them are those touched.
    """
    window, member, labels = history.window, history.member, network.labels
    if history.noted[0] - first > most:
        return -1
    size = 0
    for i in range(first, history.noted[0]):
        p = history.touched[i]
        if labels[p] != alpha and not member[p]:
            member[p] = True
            window[size] = p
            size += 1
    history.core[0] = size
    begin = 0
    for _ in range(RINGS):
        end = size
        if size > most:
            break
        while begin < end:
            p = window[begin]
            begin += 1
            for k in range(len(cells.step)):
                if cells.weight[p, k] > 0.0:
                    q = np.uint32(p + cells.step[k])
                    if cells.free[q] and labels[q] != alpha and not member[q]:
                        member[q] = True
                        window[size] = q
                        size += 1
    if size > most:
        for i in range(size):
            member[window[i]] = False
        return -1
    return size


@helper()
def _set_up_window(
    alpha: int,
    unary: NDArray[Any],
    cells: Cells,
    keeping: NDArray[Any],
    border: NDArray[np.float64],
    network: Network,
    history: History,
    size: int,
) -> None:
    """As in :func:`_cut`, for the window alone, as if all about it that may take ``alpha`` did."""
    labels = network.labels
    for i in range(size):
        p = history.window[i]
        label = labels[p]
        excess = (np.float64(keeping[p]) - np.float64(unary[alpha, p])) + border[p]
        network.leaving[p] = 0
        for k in range(len(cells.step)):
            weight = np.float64(cells.weight[p, k])
            if weight > 0.0:
                q = np.uint32(p + cells.step[k])
                if labels[q] == alpha:
                    excess += 0.5 * weight if cells.free[q] else weight
                elif history.member[q]:
                    network.leaving[p] |= cells.bit[k]
                elif cells.free[q]:
                    excess += weight if labels[q] == label else 0.5 * weight
        network.excess[p] = excess
        network.entering[p] = network.leaving[p]
        network.ready[p] = False


@helper()
def _connected(alpha: int, cells: Cells, network: Network, scratch: Scratch, history: History, size: int) -> int:
    """Of the pixels ``region[:size]``, marked as reached, keep those that hang together with touched ones.

    Returns how many they are, or -1 if some lie beside pixels outside the window that may take ``alpha`` too.
    """
    seen, region = scratch.seen, scratch.region
    for i in range(size):
        seen[region[i]] = LABELLED
    kept = 0
    for i in range(history.core[0]):
        p = history.window[i]
        if seen[p] == LABELLED:
            seen[p] = REACHED
            region[kept] = p
            kept += 1
    i = 0
    while i < kept:
        p = region[i]
        i += 1
        for k in range(len(cells.step)):
            if cells.weight[p, k] > 0.0:
                q = np.uint32(p + cells.step[k])
                if seen[q] == LABELLED:
                    seen[q] = REACHED
                    region[kept] = q
                    kept += 1
                elif not history.member[q] and cells.free[q] and network.labels[q] != alpha:
                    return -1
    return kept


@helper()
def _begin_window(
    alpha: int,
    first: int,
    unary: NDArray[Any],
    cells: Cells,
    keeping: NDArray[Any],
    border: NDArray[np.float64],
    network: Network,
    scratch: Scratch,
    history: History,
) -> tuple[int, int]:
    """Set up the expansion of ``alpha``, whose last one came before the pixels touched since ``first`` and was no gain.

    Returns the size of the window, -1 if a look at all pixels is needed, and how many of its pixels have excess.
    """
    size = _find_window(alpha, first, len(keeping) // 16, cells, network, history)
    if size <= 0:
        return size, 0
    _set_up_window(alpha, unary, cells, keeping, border, network, history, size)
    return size, start_among(network, scratch, history.window, size)


@helper()
def _end_window(
    alpha: int, cells: Cells, network: Network, scratch: Scratch, history: History, size: int, found: int
) -> int:
    """The number of pixels of the window's cut that take ``alpha``, -1 if a look at all pixels is needed."""
    kept = _connected(alpha, cells, network, scratch, history, found)
    for i in range(size):
        history.member[history.window[i]] = False
    return kept


@kernel()
def _constant_start(
    choices: NDArray[np.int64],
    unary: NDArray[Any],
    cell_arrays: tuple[Any, ...],
    labels: NDArray[np.int32],
    roi: NDArray[np.bool_],
    keeping: NDArray[Any],
    border: NDArray[np.float64],
) -> int:
    """Give one of two labels to all free pixels; returns which of them.

    From a constant labelling, one expansion of the other label reaches every labelling. Of the two ways round, the one
    with less to push is the faster.
    """
    cells = Cells(*cell_arrays)
    balance, chosen = 0.0, 0
    for filling in (False, True):
        label = choices[chosen]
        for p in range(len(labels)):
            if cells.free[p]:
                if filling:
                    labels[p] = label
                    keeping[p] = unary[label, p]
                else:
                    border[p] = 0.0
                    balance += np.float64(unary[choices[0], p]) - np.float64(unary[choices[1], p])
            elif roi[p] and (labels[p] == label or (not filling and labels[p] == choices[1])):
                for k in range(len(cells.step)):
                    weight = np.float64(cells.weight[p, k])
                    q = np.uint32(p + cells.step[k])
                    if weight > 0.0 and cells.free[q]:
                        if filling:
                            border[q] -= weight
                        else:
                            balance += weight if labels[p] == choices[1] else -weight
        chosen = 1 if balance > 0.0 else 0
    return chosen


@kernel()
def _move(
    choices: NDArray[np.int64],
    unary: NDArray[Any],
    cell_arrays: tuple[Any, ...],
    keeping: NDArray[Any],
    border: NDArray[np.float64],
    network_arrays: tuple[Any, ...],
    scratch_arrays: tuple[Any, ...],
    history_arrays: tuple[Any, ...],
    max_cycles: int,
) -> tuple[int, bool]:
    """All moves over three labels or more; returns how many cycles were begun, and whether no move is left."""
    cells = Cells(*cell_arrays)
    network = Network(*network_arrays)
    scratch = Scratch(*scratch_arrays)
    history = History(*history_arrays)
    # A label need not be tried again until another label's expansion has changed something, and then only about it.
    tried, pixels = history.tried, len(keeping)
    cycles = 0
    while cycles < max_cycles:
        cycles += 1
        for i in range(len(choices)):
            alpha = choices[i]
            if tried[i] == history.changes[0]:
                continue
            size, window, count = -1, 0, 0
            everywhere = history.since[i] == NEVER
            while size < 0:
                if not everywhere:
                    window, count = _begin_window(
                        alpha, history.since[i], unary, cells, keeping, border, network, scratch, history
                    )
                    everywhere = window < 0
                if everywhere:
                    _set_up(alpha, unary, cells, keeping, border, network)
                    count = start_everywhere(network, scratch)
                size = push_all(network, scratch, count, pixels // 4 if everywhere else 4 * pixels)
                if not everywhere:
                    size = _end_window(alpha, cells, network, scratch, history, window, size)
                    everywhere = size < 0
            if size > 0 and _gain(alpha, unary, cells, keeping, network, scratch, size) < 0.0:
                _take(alpha, unary, cells, keeping, border, network, scratch, size, history)
            tried[i] = history.changes[0]
            history.since[i] = history.noted[0]
        converged = True
        for i in range(len(choices)):
            if tried[i] != history.changes[0]:
                converged = False
        if converged:
            return cycles, True
    return cycles, False


def expand_cells(
    unary: NDArray[Any],
    cells: Cells,
    start: NDArray[np.int64],
    roi: NDArray[np.bool_],
    allowed: NDArray[np.bool_],
    max_cycles: int,
) -> tuple[NDArray[np.int64], float, float, int, bool, float]:
    """All moves on a grid from an admissible start; the fields of :class:`Expansion`."""
    choices = np.flatnonzero(allowed)
    labels = np.where(roi, start, 0).astype(np.int32)  # outside roi nothing counts
    keeping, border = np.empty(len(labels), unary.dtype), np.zeros(len(labels))
    start_energy = energy = _energy(unary, tuple(cells), labels, roi, keeping, border, True)
    if len(choices) <= 1 or not cells.free.any():
        return start, energy, start_energy, 0, True, energy
    if max_cycles <= 0:
        return start, energy, start_energy, 0, False, -np.inf

    # Memory is NumPy's: it asks the system for huge pages, and small ones are a quarter of the time of an easy cut.
    network = new_network(cells.step, cells.bit, cells.weight, labels, cells.arcs, np.empty(cells.weight.shape))
    scratch = new_scratch(len(labels))
    binary = len(choices) == 2
    if binary:
        other = choices[1 - _constant_start(choices, unary, tuple(cells), labels, roi, keeping, border)]
        size = _cut(other, unary, tuple(cells), keeping, border, tuple(network), tuple(scratch))
        labels[scratch.region[:size]] = other
        cycles, converged, moved = 1, True, True
    else:
        history = new_history(len(labels), len(choices))
        arrays = tuple(network), tuple(scratch), tuple(history)
        cycles, converged = _move(choices, unary, tuple(cells), keeping, border, *arrays, max_cycles)
        moved = history.changes[0] > 0
    if moved:
        energy = _energy(unary, tuple(cells), labels, roi, keeping, border, False)
    found = np.where(roi, labels, start)
    if energy > start_energy:  # only by rounding
        found, energy = start, start_energy
    return found, energy, start_energy, cycles, converged, energy if binary else -np.inf
