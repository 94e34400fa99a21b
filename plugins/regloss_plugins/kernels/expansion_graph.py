"""Expansion moves on graphs in compressed-row form, by incremental breadth-first search.

Moves and energy are those of `regloss_plugins.kernels.expansion`; every cut looks at all pixels.

Numba's on-disk cache looks at the file of a function but not at what it calls: after a change in ``maxflow.py`` or
``sums.py``, touch this file too.
"""

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from . import maxflow
from .sums import add_compensated


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
    forth, back = edges.first[p] + filled[p], edges.first[q] + filled[q]
    filled[p] += 1
    filled[q] += 1
    edges.head[forth], edges.head[back] = q, p
    edges.sister[forth], edges.sister[back] = back, forth
    edges.weight[forth] = edges.weight[back] = weight


@njit(nogil=True, cache=True)
def grid_edges(
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
def list_edges(
    pairs: NDArray[np.int64], weights: NDArray[np.float64], roi: NDArray[np.bool_]
) -> tuple[bool, NDArray[np.uint32], NDArray[np.uint32], NDArray[np.uint32], NDArray[np.float64]]:
    """Edges inside ``roi`` (N,) from pairs (E, 2) with weights (E,), as :func:`grid_edges`."""
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
def expand_edges(
    unary: NDArray[np.float64],
    first: NDArray[np.uint32],
    head: NDArray[np.uint32],
    sister: NDArray[np.uint32],
    weight: NDArray[np.float64],
    labels: NDArray[np.int64],
    free: NDArray[np.bool_],
    roi: NDArray[np.bool_],
    choices: NDArray[np.int64],
    max_cycles: int,
) -> tuple[NDArray[np.int64], float, float, int, bool, float]:
    """All moves from an admissible start; the fields of :class:`Expansion`."""
    edges = Edges(first, head, sister, weight)
    pixels = len(labels)
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
