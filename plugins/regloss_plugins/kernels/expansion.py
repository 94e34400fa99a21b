r"""Alpha-expansion for the Potts energy on regular grids and general graphs.

Minimises over labels ``x_p`` in {0, .., K - 1}

    E(x) = sum_p unary[x_p, p] + sum_{pq} w_pq [x_p != x_q],    w >= 0

by moves in which every pixel keeps its label or takes the label alpha. The best such move is a minimum cut: of a pair
that keep (x_p, x_q), keep and take, take and keep, or both take, the costs are w [x_p != x_q], w, w and 0, and

    pair(t_p, t_q) = c |t_p - t_q| - (w - c) (t_p + t_q) + 2 (w - c),    c = w if x_p = x_q, w / 2 otherwise

with ``t = 1`` for take; ``c`` is the capacity of both arcs and the rest is unary, so no auxiliary nodes are needed.
Pixels that are fixed or already alpha are constants. A move is taken if it lowers the energy, moves go on in cycles
over the labels until none helps, and then E is at most twice the minimum (for unaries >= 0). With two labels a single
move from the constant labelling reaches every labelling, so its cut is the minimum.

Source: Boykov, Veksler and Zabih, PAMI 2001 (moves, bound); Kolmogorov and Zabih, PAMI 2004 (the cut's construction).

On grids a move costs little where little can change: which pixels gain anything by taking alpha is seen from sums that
are kept up to date, and the cut looks at these and at what their excess reaches. A label whose last expansion could not
improve is tried again only about what has changed since: each connected part of an improving move must hold a pixel
that changed, or its neighbour, or it would have improved before. So the cut of a window about these is enough, made as
if all pixels around it took alpha (which favours taking inside): if no part of it that holds such a pixel reaches the
window's rim, that is the move; otherwise all pixels are looked at. General graphs, and grids with more
than 16 offsets, have their cuts by incremental breadth-first search.

The compiled functions hold no lock, so threads over images scale. Numba's on-disk cache looks at the file of a function
but not at what it calls: after a change in ``maxflow.py`` or ``push_relabel.py``, touch this file too.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import ArrayLike, NDArray

from . import maxflow
from .push_relabel import (
    LABELLED,
    MOST_ARCS,
    REACHED,
    Network,
    Scratch,
    arc_steps,
    mask_type,
    min_cut,
    min_cut_among,
    new_network,
    new_scratch,
)
from .sums import add_compensated

__all__ = ["Expansion", "expand_graph", "expand_grid"]

FREE = -1  # entry of ``fixed`` at a pixel that may change
NEVER = np.int64(-1)
RINGS = 6  # of pixels about those that moves concern; more cost as much as a look at all


@dataclass(frozen=True)
class Expansion:
    """A labelling and what is known about it.

    Attributes:
        labels: int64, in the shape of the labels that were given.
        energy: of ``labels``; never above ``start_energy``.
        start_energy: of the start, after fixed pixels and labels that are not allowed were replaced.
        cycles: how many cycles over the labels were begun.
        converged: no expansion of any allowed label lowers the energy.
        bound: a lower bound on the minimum; ``energy`` itself where at most two labels are allowed (and ``max_cycles``
            was not 0), -inf otherwise.
    """

    labels: NDArray[np.int64]
    energy: float
    start_energy: float
    cycles: int
    converged: bool
    bound: float


class Edges(NamedTuple):
    """An undirected weighted graph in compressed-row form; every edge is two arcs."""

    first: NDArray[np.uint32]  # (N + 1,) where the arcs of each pixel begin
    head: NDArray[np.uint32]  # (A,) pixel at the end of each arc
    sister: NDArray[np.uint32]  # (A,) the opposite arc
    weight: NDArray[np.float64]  # (A,)


@njit(nogil=True)
def _rows(degree: NDArray[np.int32]) -> Edges:
    """Empty rows for pixels with these numbers of arcs."""
    first = np.zeros(len(degree) + 1, np.uint32)
    for p in range(len(degree)):
        first[p + 1] = first[p] + degree[p]
    arcs = first[-1]
    return Edges(first, np.empty(arcs, np.uint32), np.empty(arcs, np.uint32), np.empty(arcs, np.float64))


@njit(nogil=True)
def _connect(edges: Edges, filled: NDArray[np.int32], p: int, q: int, weight: float) -> None:
    """Add the edge pq; ``filled`` counts the arcs that each pixel already has."""
    there, back = edges.first[p] + filled[p], edges.first[q] + filled[q]
    filled[p] += 1
    filled[q] += 1
    edges.head[there], edges.head[back] = q, p
    edges.sister[there], edges.sister[back] = back, there
    edges.weight[there] = edges.weight[back] = weight


@njit(nogil=True, cache=True)
def _grid_edges(
    offsets: NDArray[np.int64], weights: NDArray[np.float64], roi: NDArray[np.bool_]
) -> tuple[bool, NDArray[np.uint32], NDArray[np.uint32], NDArray[np.uint32], NDArray[np.float64]]:
    """Edges inside ``roi`` (Z, Y, X) from weights (n, Z, Y, X) towards the pixels at offsets (n, 3), zeros left out.

    Returns whether the weights are finite and >= 0, and the fields of :class:`Edges`.
    """
    depth, height, width = roi.shape
    valid = True
    degree = np.zeros(roi.size, np.int32)
    edges = _rows(degree)
    for connecting in (False, True):
        if connecting:
            edges = _rows(degree)
            degree[:] = 0
        for z in range(depth):
            for y in range(height):
                for x in range(width):
                    if not roi[z, y, x]:
                        continue
                    p = (z * height + y) * width + x
                    for n in range(len(offsets)):
                        qz, qy, qx = z + offsets[n, 0], y + offsets[n, 1], x + offsets[n, 2]
                        if not (0 <= qz < depth and 0 <= qy < height and 0 <= qx < width and roi[qz, qy, qx]):
                            continue
                        q = (qz * height + qy) * width + qx
                        weight = weights[n, z, y, x]
                        valid &= 0.0 <= weight < np.inf  # NaN fails too
                        if weight == 0.0 or p == q:
                            continue
                        if connecting:
                            _connect(edges, degree, p, q, weight)
                        else:
                            degree[p] += 1
                            degree[q] += 1
    return valid, edges.first, edges.head, edges.sister, edges.weight


@njit(nogil=True, cache=True)
def _list_edges(
    pairs: NDArray[np.int64], weights: NDArray[np.float64], roi: NDArray[np.bool_]
) -> tuple[bool, NDArray[np.uint32], NDArray[np.uint32], NDArray[np.uint32], NDArray[np.float64]]:
    """Edges inside ``roi`` (N,) from pairs (E, 2) with weights (E,), as :func:`_grid_edges`."""
    valid = True
    degree = np.zeros(len(roi), np.int32)
    edges = _rows(degree)
    for connecting in (False, True):
        if connecting:
            edges = _rows(degree)
            degree[:] = 0
        for e in range(len(pairs)):
            p, q = pairs[e]
            if not (roi[p] and roi[q]):
                continue
            weight = weights[e]
            valid &= 0.0 <= weight < np.inf  # NaN fails too
            if weight == 0.0 or p == q:
                continue
            if connecting:
                _connect(edges, degree, p, q, weight)
            else:
                degree[p] += 1
                degree[q] += 1
    return valid, edges.first, edges.head, edges.sister, edges.weight


@njit(nogil=True)
def _admissible(
    unary: NDArray[Any],
    start: NDArray[np.int64],
    fixed: NDArray[np.int64],
    roi: NDArray[np.bool_],
    allowed: NDArray[np.bool_],
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """The start with fixed labels in place and the cheapest where a label is not allowed, and which pixels are free."""
    choices = np.flatnonzero(allowed)
    labels = start.copy()
    free = np.zeros(len(start), np.bool_)
    for p in range(len(start)):
        if not roi[p]:
            continue
        if fixed[p] != FREE:
            labels[p] = fixed[p]
            continue
        free[p] = True
        if not (0 <= start[p] < len(allowed) and allowed[start[p]]):
            cheapest = choices[0]
            for k in choices:
                if unary[k, p] < unary[cheapest, p]:
                    cheapest = k
            labels[p] = cheapest
    return labels, free


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
    since: NDArray[np.int64]  # (choices,) how many were noted at each label's last expansion; NEVER = look at all
    window: NDArray[np.uint32]  # (N,) pixels about those touched, and these first
    core: NDArray[np.int64]  # (1,) how many of the window are touched
    member: NDArray[np.bool_]  # (N,) whether a pixel is in the window


@njit(nogil=True)
def _new_history(pixels: int, choices: int) -> History:
    return History(
        touched=np.empty(pixels, np.uint32),
        noted=np.zeros(1, np.int64),
        changes=np.zeros(1, np.int64),
        since=np.full(choices, NEVER),
        window=np.empty(pixels, np.uint32),
        core=np.zeros(1, np.int64),
        member=np.zeros(pixels, np.bool_),
    )


@njit(nogil=True, cache=True)
def _grid_cells(
    offsets: NDArray[np.int64],
    weights: NDArray[Any],
    roi: NDArray[np.bool_],
    free: NDArray[np.bool_],
    bit: NDArray[Any],
    arcs: NDArray[Any],
    weight: NDArray[Any],
) -> bool:
    """Weights (N, D) of all arcs from those (n, Z, Y, X) towards the pixels at offsets (n, 3), inside ``roi``.

    Fills ``weight`` and ``arcs``, given as zeros; returns whether the weights are finite and >= 0.
    """
    depth, height, width = roi.shape
    neighbors = len(offsets)
    inside, movable = roi.ravel(), free.ravel()
    valid = True
    for n in range(neighbors):
        dz, dy, dx = offsets[n]
        step = (dz * height + dy) * width + dx
        if step == 0:
            continue  # a pixel and itself never differ
        back = 2 * neighbors - 1 - n
        for z in range(max(0, -dz), min(depth, depth - dz)):
            for y in range(max(0, -dy), min(height, height - dy)):
                for x in range(max(0, -dx), min(width, width - dx)):
                    p = (z * height + y) * width + x
                    q = p + step
                    if not (inside[p] and inside[q]):
                        continue
                    value = weights[n, z, y, x]
                    valid &= 0.0 <= value < np.inf  # NaN fails too
                    weight[p, n] = value
                    weight[q, back] = value
                    if movable[p] and movable[q] and value > 0.0:
                        arcs[p] |= bit[n]
                        arcs[q] |= bit[back]
    return valid


@njit(nogil=True)
def _grid_energy(unary: NDArray[Any], cells: Cells, labels: NDArray[np.int32], roi: NDArray[np.bool_]) -> float:
    """Energy inside ``roi``, by Neumaier's compensated summation: exact but for the last bits of the result.

    Results are compared by this number, so rounding must not make a worse labelling look better.
    """
    forward = len(cells.step) // 2
    total, lost = 0.0, 0.0
    for p in range(len(labels)):
        if not roi[p]:
            continue
        label = labels[p]
        cut = 0.0
        for k in range(forward):
            weight = np.float64(cells.weight[p, k])
            if weight > 0.0 and labels[np.uint32(p + cells.step[k])] != label:
                cut += weight
        total, lost = add_compensated(np.float64(unary[label, p]), total, lost)
        if cut > 0.0:  # at few pixels
            total, lost = add_compensated(cut, total, lost)
    return total + lost


@njit(nogil=True)
def _begin(
    unary: NDArray[Any],
    cells: Cells,
    labels: NDArray[np.int32],
    roi: NDArray[np.bool_],
    keeping: NDArray[Any],
    border: NDArray[np.float64],
) -> float:
    """As :func:`_grid_energy`; fills ``keeping`` with the unaries of the labels and ``border``, given as zeros, too."""
    forward = len(cells.step) // 2
    free = cells.free
    total, lost = 0.0, 0.0
    for p in range(len(labels)):
        label = labels[p]
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
                    if free[p] and free[q]:
                        border[p] += 0.5 * weight
                        border[q] += 0.5 * weight
                elif free[p] != free[q]:
                    border[p if free[p] else q] -= weight
        total, lost = add_compensated(np.float64(keeping[p]), total, lost)
        if cut > 0.0:  # at few pixels
            total, lost = add_compensated(cut, total, lost)
    return total + lost


@njit(nogil=True, forceinline=True)
def _border(cells: Cells, labels: NDArray[np.int32], p: Any) -> float:
    """What the neighbours add to the excess of a free pixel in the expansion of a label that none of them has."""
    own = labels[p]
    total = 0.0
    for k in range(len(cells.step)):
        weight = np.float64(cells.weight[p, k])
        if weight > 0.0:
            q = np.uint32(p + cells.step[k])
            if labels[q] != own:
                if cells.free[q]:
                    total += 0.5 * weight
            elif not cells.free[q]:
                total -= weight
    return total


@njit(nogil=True)
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
    network.ready[:] = False
    leaving[:] = cells.arcs
    for p in range(len(excess)):
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
    network.entering[:] = leaving


@njit(nogil=True)
def _gain(
    alpha: int, unary: NDArray[Any], cells: Cells, keeping: NDArray[Any], network: Network, scratch: Scratch, size: int
) -> float:
    """By how much the energy changes if the pixels ``region[:size]``, marked as reached, take ``alpha``."""
    labels = network.labels
    total, lost = 0.0, 0.0
    for i in range(size):
        p = scratch.region[i]
        own = labels[p]
        term = np.float64(unary[alpha, p]) - np.float64(keeping[p])
        for k in range(len(cells.step)):
            weight = np.float64(cells.weight[p, k])
            if weight > 0.0:
                q = np.uint32(p + cells.step[k])
                if scratch.seen[q] == REACHED:
                    if labels[q] != own:
                        term -= 0.5 * weight  # each of both ends counts half
                elif labels[q] == own:
                    term += weight
                elif labels[q] == alpha:
                    term -= weight
        total, lost = add_compensated(term, total, lost)
    return total + lost


@njit(nogil=True)
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
    history.touched[noted : noted + touched] = scratch.queue[:touched]
    history.noted[0] = noted + touched


@njit(nogil=True)
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


@njit(nogil=True)
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
    """As :func:`_set_up`, of the window alone, as if all about it that may take ``alpha`` did."""
    labels = network.labels
    for i in range(size):
        p = history.window[i]
        own = labels[p]
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
                    excess += weight if labels[q] == own else 0.5 * weight
        network.excess[p] = excess
        network.entering[p] = network.leaving[p]
        network.ready[p] = False


@njit(nogil=True)
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


@njit(nogil=True)
def _cut_window(
    alpha: int,
    first: int,
    unary: NDArray[Any],
    cells: Cells,
    keeping: NDArray[Any],
    border: NDArray[np.float64],
    network: Network,
    scratch: Scratch,
    history: History,
) -> int:
    """The expansion of ``alpha``, whose last one came before the pixels touched since ``first`` and could not improve.

    Returns the number of pixels that take ``alpha``, as :func:`min_cut` does, or -1 if a look at all pixels is needed.
    """
    size = _find_window(alpha, first, len(keeping) // 16, cells, network, history)
    if size <= 0:
        return size
    _set_up_window(alpha, unary, cells, keeping, border, network, history, size)
    found = min_cut_among(network, scratch, history.window[:size])
    found = _connected(alpha, cells, network, scratch, history, found)
    for i in range(size):
        history.member[history.window[i]] = False
    return found


@njit(nogil=True, cache=True)
def _expand_cells(
    unary: NDArray[Any],
    step: NDArray[np.uint32],
    bit: NDArray[Any],
    weight: NDArray[Any],
    arcs: NDArray[Any],
    start: NDArray[np.int64],
    fixed: NDArray[np.int64],
    roi: NDArray[np.bool_],
    allowed: NDArray[np.bool_],
    max_cycles: int,
    residual: NDArray[np.float64],
) -> tuple[NDArray[np.int64], float, float, int, bool, float]:
    """All moves on a grid; the fields of :class:`Expansion`. ``residual`` (N, D) is memory to work in."""
    given, free = _admissible(unary, start, fixed, roi, allowed)
    cells = Cells(step, bit, weight, arcs, free)
    choices = np.flatnonzero(allowed)
    labels = np.zeros(len(given), np.int32)  # outside roi nothing counts
    for p in range(len(given)):
        if roi[p]:
            labels[p] = given[p]

    keeping = np.empty(len(labels), unary.dtype)
    border = np.zeros(len(labels))
    start_energy = energy = _begin(unary, cells, labels, roi, keeping, border)
    if len(choices) <= 1 or not free.any():
        return given, energy, start_energy, 0, True, energy
    if max_cycles <= 0:
        return given, energy, start_energy, 0, False, -np.inf

    binary = len(choices) == 2
    if binary:
        # From a constant labelling, one expansion of the other label reaches every labelling. Of the two ways round,
        # the one with less to push is the faster.
        balance = 0.0
        border[:] = 0.0
        for p in range(len(labels)):
            if free[p]:
                balance += np.float64(unary[choices[0], p]) - np.float64(unary[choices[1], p])
            elif roi[p] and (labels[p] == choices[0] or labels[p] == choices[1]):
                for k in range(len(step)):
                    q = np.uint32(p + step[k])
                    if weight[p, k] > 0.0 and free[q]:
                        balance += np.float64(weight[p, k]) * (1.0 if labels[p] == choices[1] else -1.0)
        if balance > 0.0:
            choices = choices[::-1].copy()
        for p in range(len(labels)):
            if free[p]:
                labels[p] = choices[0]
                keeping[p] = unary[choices[0], p]
            elif roi[p] and labels[p] == choices[0]:
                for k in range(len(step)):
                    q = np.uint32(p + step[k])
                    if weight[p, k] > 0.0 and free[q]:
                        border[q] -= np.float64(weight[p, k])

    network = new_network(step, bit, weight, labels, arcs, residual)
    scratch = new_scratch(len(labels))

    # A label need not be tried again until another label's expansion has changed something, and then only about it.
    history = _new_history(0 if binary else len(labels), len(choices))
    tried_at = np.full(len(choices), NEVER)
    if binary:
        tried_at[0] = 0
    converged = False
    cycles = 0
    while cycles < max_cycles and not converged:
        cycles += 1
        for i in range(len(choices)):
            if tried_at[i] == history.changes[0]:
                continue
            size = -1
            if history.since[i] != NEVER:
                size = _cut_window(
                    choices[i], history.since[i], unary, cells, keeping, border, network, scratch, history
                )
            if size < 0:
                _set_up(choices[i], unary, cells, keeping, border, network)
                size = min_cut(network, scratch)
            if binary:
                for j in range(size):
                    labels[scratch.region[j]] = choices[i]
            elif size > 0 and _gain(choices[i], unary, cells, keeping, network, scratch, size) < 0.0:
                _take(choices[i], unary, cells, keeping, border, network, scratch, size, history)
            tried_at[i] = history.changes[0]
            history.since[i] = history.noted[0]
        converged = binary or (tried_at == history.changes[0]).all()

    if binary or history.changes[0] > 0:
        energy = _grid_energy(unary, cells, labels, roi)
    if energy > start_energy:  # only by rounding
        return given, start_energy, start_energy, cycles, converged, start_energy if binary else -np.inf
    for p in range(len(labels)):
        if roi[p]:
            given[p] = labels[p]
    return given, energy, start_energy, cycles, converged, energy if binary else -np.inf


@njit(nogil=True)
def _energy(unary: NDArray[np.float64], edges: Edges, labels: NDArray[np.int64], roi: NDArray[np.bool_]) -> float:
    """Energy inside ``roi``, by Neumaier's compensated summation: exact but for the last bits of the result.

    Moves are judged by this number, so rounding must not make a worse labelling look better.
    """
    total, lost = 0.0, 0.0
    for p in range(len(labels)):
        if not roi[p]:
            continue
        label = labels[p]
        pixel = unary[label, p]
        for a in range(edges.first[p], edges.first[p + 1]):
            q = edges.head[a]
            if q > p and labels[q] != label:
                pixel += edges.weight[a]
        total, lost = add_compensated(pixel, total, lost)
    return total + lost


@njit(nogil=True)
def _expand_one(
    alpha: int,
    unary: NDArray[np.float64],
    edges: Edges,
    free: NDArray[np.bool_],
    labels: NDArray[np.int64],
    graph: maxflow.Graph,
    scratch: maxflow.Scratch,
    trial: NDArray[np.int64],
) -> bool:
    """Write to ``trial`` the best expansion of ``alpha`` from ``labels``; return whether it differs (ties do not)."""
    for p in range(len(labels)):
        keeps = labels[p]
        if not free[p] or keeps == alpha:
            graph.excess[p] = 0.0
            for a in range(edges.first[p], edges.first[p + 1]):
                graph.residual[a] = 0.0
            continue
        # Being on the source side is to take alpha, so what keeping costs more is a capacity from the source.
        excess = unary[keeps, p] - unary[alpha, p]
        for a in range(edges.first[p], edges.first[p + 1]):
            q = edges.head[a]
            weight = edges.weight[a]
            theirs = labels[q]
            capacity = 0.0
            if theirs == alpha:
                excess += weight
            elif not free[q]:
                if theirs == keeps:
                    excess -= weight
            elif theirs == keeps:
                capacity = weight
            else:
                capacity = 0.5 * weight
                excess += capacity
            graph.residual[a] = capacity
        graph.excess[p] = excess
    maxflow.min_cut(graph, scratch)

    changed = False
    for p in range(len(labels)):
        takes = scratch.level[p] > 0
        trial[p] = alpha if takes else labels[p]
        changed |= takes
    return changed


@njit(nogil=True, cache=True)
def _expand(
    unary: NDArray[np.float64],
    first: NDArray[np.uint32],
    head: NDArray[np.uint32],
    sister: NDArray[np.uint32],
    weight: NDArray[np.float64],
    start: NDArray[np.int64],
    fixed: NDArray[np.int64],
    roi: NDArray[np.bool_],
    allowed: NDArray[np.bool_],
    max_cycles: int,
) -> tuple[NDArray[np.int64], float, float, int, bool, float]:
    """All moves; the fields of :class:`Expansion`."""
    edges = Edges(first, head, sister, weight)
    pixels = len(start)
    choices = np.flatnonzero(allowed)
    labels, free = _admissible(unary, start, fixed, roi, allowed)

    start_energy = energy = _energy(unary, edges, labels, roi)
    if len(choices) <= 1 or not free.any():
        return labels, energy, start_energy, 0, True, energy
    if max_cycles <= 0:
        return labels, energy, start_energy, 0, False, -np.inf

    graph = maxflow.Graph(first, head, sister, np.empty(len(head), np.float64), np.empty(pixels, np.float64))
    scratch = maxflow.new_scratch(pixels)
    trial = labels.copy()
    # A label need not be tried again until another label's expansion has changed something.
    changes = 0
    tried_at = np.full(len(choices), -1, np.int64)
    binary = len(choices) == 2
    given = labels
    if binary:
        # From the constant labelling, one expansion of the other label reaches every labelling.
        labels = given.copy()
        labels[free] = choices[0]
        energy = _energy(unary, edges, labels, roi)
        tried_at[0] = changes
    converged = False
    cycles = 0
    while cycles < max_cycles and not converged:
        cycles += 1
        for i in range(len(choices)):
            if tried_at[i] == changes:
                continue
            if _expand_one(choices[i], unary, edges, free, labels, graph, scratch, trial):
                trial_energy = _energy(unary, edges, trial, roi)
                if trial_energy < energy:
                    energy = trial_energy
                    labels, trial = trial, labels
                    changes += 1
            tried_at[i] = changes
        converged = binary or (tried_at == changes).all()

    if energy > start_energy:  # only with two labels, and only by rounding: the start is a minimum too
        labels, energy = given, start_energy
    return labels, energy, start_energy, cycles, converged, energy if binary else -np.inf


@njit(nogil=True, cache=True)
def _finite_unaries(
    unary: NDArray[Any], fixed: NDArray[np.int64], roi: NDArray[np.bool_], allowed: NDArray[np.bool_]
) -> bool:
    """Whether all unaries that can count are finite."""
    for k in range(len(unary)):
        for p in range(len(roi)):
            counts = roi[p] and (allowed[k] if fixed[p] == FREE else fixed[p] == k)
            if counts and not np.isfinite(unary[k, p]):
                return False
    return True


def _array(values: ArrayLike, dtype: Any, name: str, shape: Sequence[int]) -> NDArray[Any]:
    """C-ordered and writeable, so that there is one compiled function for all; the values are not written to."""
    array = np.require(values, dtype, ["C", "A", "W"])
    if array.shape != tuple(shape):
        raise ValueError(f"expected {name} of shape {tuple(shape)}, got {array.shape}")
    return array


def _solve(
    unary: NDArray[Any],
    edges: Edges | Cells,
    labels: NDArray[np.int64],
    fixed: NDArray[np.int64],
    roi: NDArray[np.bool_],
    allowed: NDArray[np.bool_],
    max_cycles: int,
    valid_weights: bool,
) -> Expansion:
    """Check the values of flattened arguments and expand."""
    if not valid_weights:
        raise ValueError("expected finite weights >= 0, got negative, infinite or NaN ones")
    if np.any(roi & ((fixed < FREE) | (fixed >= len(unary)))):
        raise ValueError(f"expected fixed labels 0 .. {len(unary) - 1}, or -1 where free, got others inside roi")
    if not allowed.any() and np.any(roi & (fixed == FREE)):
        raise ValueError("expected at least one allowed label for the free pixels, got none")
    if not _finite_unaries(unary, fixed, roi, allowed):
        raise ValueError("expected finite unaries of all labels that a pixel may take, got infinite or NaN ones")
    if isinstance(edges, Cells):
        step, bit, weight, arcs, _ = edges
        # The largest arrays are NumPy's: it asks the system for huge pages, and small ones are a quarter of the time
        # of an easy cut.
        residual = np.empty(weight.shape)
        found = _expand_cells(unary, step, bit, weight, arcs, labels, fixed, roi, allowed, max_cycles, residual)
        return Expansion(*found)
    first, head, sister, weight = edges
    return Expansion(*_expand(unary, first, head, sister, weight, labels, fixed, roi, allowed, max_cycles))


def expand_grid(
    unary: ArrayLike,
    offsets: ArrayLike,
    weights: ArrayLike,
    labels: ArrayLike,
    fixed: ArrayLike,
    roi: ArrayLike,
    allowed: ArrayLike,
    max_cycles: int,
) -> Expansion:
    """Alpha-expansion on a regular grid S of 1, 2 or 3 dimensions.

    Args:
        unary: (K, *S) cost of each label at each pixel.
        offsets: (n, D) integers, from a pixel to its partner in each of n edges; each edge once, not both directions.
        weights: (n, *S), >= 0; ``weights[i, p]`` is that of the edge from p to ``p + offsets[i]``. Entries whose
            partner lies outside the array, or with an end outside ``roi``, are ignored.
        labels: (*S) integers, the start. Where a free pixel's label is not allowed, the cheapest allowed one is taken.
        fixed: (*S) integers, labels that must stay, -1 where a pixel is free. They need not be allowed.
        roi: (*S) bool; outside it nothing counts and nothing changes.
        allowed: (K,) bool, labels that a free pixel may take.
        max_cycles: how many times at most every label is expanded. 0 only replaces labels and reports the energy.

    Returns:
        An :class:`Expansion`. Its labels are the exact minimum if at most two labels are allowed, and then the energy
        does not depend on the start; with more labels, unaries >= 0 and ``converged`` it is at most twice the minimum.

    Raises:
        ValueError: where a weight is negative, infinite or NaN, a unary that can count is infinite or NaN, a fixed
            label is not a label, no label is allowed, or shapes do not match.

    A weak opinion in the middle of a row gives in to its neighbours, a strong one does not:

    >>> unary = [[0.0, 0.9, 0.0, 9.0], [1.0, 0.0, 1.0, 0.0]]
    >>> result = expand_grid(
    ...     unary, [[1]], [[1.0, 1.0, 1.0, 0.0]], [0] * 4, [-1] * 4, [True] * 4, [True, True], max_cycles=5
    ... )
    >>> result.labels.tolist(), result.energy
    ([0, 0, 0, 1], 1.9)
    """
    shape = np.shape(labels)
    steps = np.asarray(offsets)
    if len(np.shape(unary)) != len(shape) + 1 or steps.ndim != 2 or steps.shape[1] != len(shape):
        raise ValueError(
            f"expected unary (K, *S) and offsets (n, {len(shape)}) for labels {shape}, "
            f"got {np.shape(unary)} and {steps.shape}"
        )
    if not 1 <= len(shape) <= 3:
        raise ValueError(f"expected a grid of 1, 2 or 3 dimensions, got {len(shape)}")
    classes, neighbors = np.shape(unary)[0], len(steps)
    single = all(getattr(values, "dtype", None) == np.float32 for values in (unary, weights))
    precision = np.float32 if single else np.float64  # of the input; all sums are of float64
    dense_unary = _array(unary, precision, "unary", (classes, *shape)).reshape(classes, -1)
    dense_weights = _array(weights, precision, "weights", (neighbors, *shape))
    dense_labels = _array(labels, np.int64, "labels", shape).ravel()
    dense_fixed = _array(fixed, np.int64, "fixed", shape).ravel()
    dense_roi = _array(roi, np.bool_, "roi", shape)
    dense_allowed = _array(allowed, np.bool_, "allowed", (classes,))
    if 2 * neighbors * dense_roi.size >= 2**32 - 2:
        raise ValueError(f"expected fewer than 2^32 - 2 arcs, got {neighbors} offsets on {dense_roi.size} pixels")

    volume = (1,) * (3 - len(shape)) + shape
    steps = np.concatenate([np.zeros((neighbors, 3 - len(shape)), np.int64), steps.astype(np.int64)], axis=1)
    dense_weights = dense_weights.reshape(neighbors, *volume)
    edges: Edges | Cells
    if 2 * neighbors <= MOST_ARCS:
        free = dense_roi & (dense_fixed == FREE).reshape(shape)
        bit = (1 << np.arange(2 * neighbors)).astype(mask_type(2 * neighbors))
        step = arc_steps(steps, volume)
        arcs = np.zeros(dense_roi.size, bit.dtype)
        weight = np.zeros((dense_roi.size, 2 * neighbors), dense_weights.dtype)
        valid = _grid_cells(steps, dense_weights, dense_roi.reshape(volume), free.reshape(volume), bit, arcs, weight)
        edges = Cells(step, bit, weight, arcs, free.ravel())
    else:
        dense_unary, dense_weights = dense_unary.astype(np.float64), dense_weights.astype(np.float64)
        valid, first, head, sister, weight = _grid_edges(steps, dense_weights, dense_roi.reshape(volume))
        edges = Edges(first, head, sister, weight)
    result = _solve(dense_unary, edges, dense_labels, dense_fixed, dense_roi.ravel(), dense_allowed, max_cycles, valid)
    return replace(result, labels=result.labels.reshape(shape))


def expand_graph(
    unary: ArrayLike,
    edges: ArrayLike,
    weights: ArrayLike,
    labels: ArrayLike,
    fixed: ArrayLike,
    roi: ArrayLike,
    allowed: ArrayLike,
    max_cycles: int,
) -> Expansion:
    """Alpha-expansion on a general graph: as :func:`expand_grid`, but for its edges.

    Args:
        unary: (K, N) cost of each label at each node.
        edges: (E, 2) integers 0 .. N - 1, each edge once; repeated edges add up.
        weights: (E,), >= 0. Edges with an end outside ``roi`` are ignored.
        labels: (N,) integers, the start.
        fixed: (N,) integers, labels that must stay, -1 where free.
        roi: (N,) bool.
        allowed: (K,) bool.
        max_cycles: how many times at most every label is expanded.

    Returns:
        An :class:`Expansion`.

    Raises:
        ValueError: as :func:`expand_grid`, and where an edge names a node that is not there.

    >>> unary = [[0.0, 0.6, 5.0], [2.0, 0.5, 0.0]]
    >>> result = expand_graph(
    ...     unary, [[0, 1], [1, 2]], [1.0, 0.5], [0] * 3, [-1] * 3, [True] * 3, [True, True], max_cycles=5
    ... )
    >>> result.labels.tolist(), result.energy, result.bound
    ([0, 0, 1], 1.1, 1.1)
    """
    shape = np.shape(labels)
    if len(shape) != 1 or len(np.shape(unary)) != 2:
        raise ValueError(f"expected unary (K, N) and labels (N,), got {np.shape(unary)} and {shape}")
    classes = np.shape(unary)[0]
    dense_unary = _array(unary, np.float64, "unary", (classes, *shape))
    dense_weights = _array(weights, np.float64, "weights", (np.shape(edges)[0],))
    dense_edges = _array(edges, np.int64, "edges", (len(dense_weights), 2))
    dense_labels = _array(labels, np.int64, "labels", shape)
    dense_fixed = _array(fixed, np.int64, "fixed", shape)
    dense_roi = _array(roi, np.bool_, "roi", shape)
    dense_allowed = _array(allowed, np.bool_, "allowed", (classes,))
    if dense_edges.size and not (dense_edges.min() >= 0 and dense_edges.max() < len(dense_labels)):
        raise ValueError(f"expected edges between nodes 0 .. {len(dense_labels) - 1}, got others")
    if 2 * len(dense_edges) >= 2**32 - 2:
        raise ValueError(f"expected fewer than 2^32 - 2 arcs, got {len(dense_edges)} edges")
    valid, first, head, sister, weight = _list_edges(dense_edges, dense_weights, dense_roi)
    return _solve(
        dense_unary,
        Edges(first, head, sister, weight),
        dense_labels,
        dense_fixed,
        dense_roi,
        dense_allowed,
        max_cycles,
        valid,
    )
