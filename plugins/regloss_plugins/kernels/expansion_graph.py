"""Expansion moves on graphs in compressed-row form, by incremental breadth-first search.

Moves and energy are those of `regloss_plugins.kernels.expansion`; every cut looks at all pixels.

Numba's on-disk cache looks at the file of a function but not at what it calls: after a change in ``maxflow.py`` or
``sums.py``, touch this file too.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from . import maxflow
from .arguments import pair_slices
from .compiling import helper, kernel
from .sums import add_compensated


class Edges(NamedTuple):
    """An undirected weighted graph in compressed-row form; every edge is two arcs."""

    first: NDArray[np.uint32]  # (N + 1,) where the arcs of each pixel begin
    head: NDArray[np.uint32]  # (A,) pixel at the end of each arc
    sister: NDArray[np.uint32]  # (A,) the opposite arc
    weight: NDArray[np.float64]  # (A,)


def _rows(degree: NDArray[np.int32]) -> Edges:
    """Empty rows for pixels with these numbers of arcs."""
    first = np.zeros(len(degree) + 1, np.uint32)
    first[1:] = np.cumsum(degree)
    arcs = int(first[-1])
    return Edges(first, np.empty(arcs, np.uint32), np.empty(arcs, np.uint32), np.empty(arcs, np.float64))


def list_edges(pairs: NDArray[np.int64], weights: NDArray[np.float64], roi: NDArray[np.bool_]) -> tuple[Edges, bool]:
    """Edges inside ``roi`` (N,) from pairs (E, 2) with weights (E,), zeros left out.

    Returns also whether the weights are finite and >= 0.
    """
    first, second = pairs[:, 0], pairs[:, 1]
    inside = roi[first] & roi[second]
    valid = bool(((weights[inside] >= 0.0) & (weights[inside] < np.inf)).all())  # NaN fails too
    kept = inside & (weights != 0.0) & (first != second)
    first, second, weights = first[kept], second[kept], weights[kept]
    degree = np.bincount(first, minlength=len(roi)) + np.bincount(second, minlength=len(roi))
    edges = _rows(degree)
    _connect(first, second, weights, edges.first[:-1].copy(), *edges[1:])
    return edges, valid


def grid_edges(offsets: NDArray[np.int64], weights: NDArray[np.float64], roi: NDArray[np.bool_]) -> tuple[Edges, bool]:
    """As :func:`list_edges`, from weights (n, Z, Y, X) towards the pixels at offsets (n, 3)."""
    places = np.arange(roi.size).reshape(roi.shape)
    firsts, seconds, values = [], [], []
    for offset, value in zip(offsets, weights, strict=True):
        near, far = pair_slices(offset, roi.shape)
        firsts.append(places[near].ravel())
        seconds.append(places[far].ravel())
        values.append(value[near].ravel())
    # Pixel by pixel, as moves look at them.
    first = np.concatenate(firsts)
    order = np.argsort(first, kind="stable")
    pairs = np.stack([first, np.concatenate(seconds)], 1)[order]
    return list_edges(pairs, np.concatenate(values)[order], roi.ravel())


@kernel()
def _connect(
    first: NDArray[np.int64],
    second: NDArray[np.int64],
    weights: NDArray[np.float64],
    free: NDArray[np.uint32],
    head: NDArray[np.uint32],
    sister: NDArray[np.uint32],
    weight: NDArray[np.float64],
) -> None:
    """Put edges into rows; ``free`` (N,), the next place in each, is overwritten."""
    for e in range(len(first)):
        p, q = first[e], second[e]
        forth, back = free[p], free[q]
        free[p] += 1
        free[q] += 1
        head[forth] = q
        head[back] = p
        sister[forth] = back
        sister[back] = forth
        weight[forth] = weights[e]
        weight[back] = weights[e]


@helper()
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


@helper()
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


@kernel()
def _sum_up(
    unary: NDArray[np.float64], edge_arrays: tuple[Any, ...], labels: NDArray[np.int64], roi: NDArray[np.bool_]
) -> float:
    return _energy(unary, Edges(*edge_arrays), labels, roi)


@kernel()
def _move(
    choices: NDArray[np.int64],
    unary: NDArray[np.float64],
    edge_arrays: tuple[Any, ...],
    free: NDArray[np.bool_],
    roi: NDArray[np.bool_],
    labels: NDArray[np.int64],
    graph_arrays: tuple[Any, ...],
    scratch_arrays: tuple[Any, ...],
    trial: NDArray[np.int64],
    tried: NDArray[np.int64],
    energy: float,
    max_cycles: int,
) -> tuple[float, int, bool]:
    """All moves from ``labels``, which are overwritten; their energy, the cycles begun, and whether no move is left.

    ``tried`` says of each choice how many changes there had been when it was expanded last, -1 = never.
    """
    edges, graph, scratch = Edges(*edge_arrays), maxflow.Graph(*graph_arrays), maxflow.Scratch(*scratch_arrays)
    # A label need not be tried again until another label's expansion has changed something.
    changes = 0
    cycles = 0
    while cycles < max_cycles:
        cycles += 1
        for i in range(len(choices)):
            if tried[i] == changes:
                continue
            if _expand_one(choices[i], unary, edges, free, labels, graph, scratch, trial):
                trial_energy = _energy(unary, edges, trial, roi)
                if trial_energy < energy:
                    energy = trial_energy
                    for p in range(len(labels)):
                        labels[p] = trial[p]
                    changes += 1
            tried[i] = changes
        converged = True
        for i in range(len(choices)):
            if tried[i] != changes:
                converged = False
        if converged:
            return energy, cycles, True
    return energy, cycles, False


def expand_edges(
    unary: NDArray[np.float64],
    edges: Edges,
    start: NDArray[np.int64],
    free: NDArray[np.bool_],
    roi: NDArray[np.bool_],
    choices: NDArray[np.int64],
    max_cycles: int,
) -> tuple[NDArray[np.int64], float, float, int, bool, float]:
    """All moves from an admissible start; the fields of :class:`Expansion`."""
    start_energy = energy = _sum_up(unary, tuple(edges), start, roi)
    if len(choices) <= 1 or not free.any():
        return start, energy, start_energy, 0, True, energy
    if max_cycles <= 0:
        return start, energy, start_energy, 0, False, -np.inf

    labels, tried = start.copy(), np.full(len(choices), -1)
    binary = len(choices) == 2
    if binary:
        # From the constant labelling, one expansion of the other label reaches every labelling: there is one cycle.
        labels[free] = choices[0]
        energy = _sum_up(unary, tuple(edges), labels, roi)
        tried[0] = 0
        max_cycles = 1
    graph = maxflow.Graph(*edges[:3], np.empty(len(edges.head)), np.empty(len(start)))
    scratch = maxflow.new_scratch(len(start))
    memory = tuple(graph), tuple(scratch), start.copy(), tried
    energy, cycles, converged = _move(choices, unary, tuple(edges), free, roi, labels, *memory, energy, max_cycles)
    if energy > start_energy:  # only with two labels, and only by rounding: the start is a minimum too
        labels, energy = start, start_energy
    return labels, energy, start_energy, cycles, converged or binary, energy if binary else -np.inf
