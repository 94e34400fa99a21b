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

Grids with at most 16 offsets have their moves in `expansion_grid`, which looks only about what has changed; general
graphs, and grids with more offsets, have theirs in `expansion_graph`. The compiled functions hold no lock, so threads
over images scale.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .arguments import as_volume, dense
from .expansion_graph import Edges, expand_edges, grid_edges, list_edges
from .expansion_grid import Cells, expand_cells, grid_cells
from .expansion_start import FREE, admissible, finite_unaries
from .push_relabel import MOST_ARCS

__all__ = ["Expansion", "expand_graph", "expand_grid"]


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
    if not finite_unaries(unary, fixed, roi, allowed):
        raise ValueError("expected finite unaries of all labels that a pixel may take, got infinite or NaN ones")
    start, free = admissible(unary, labels, fixed, roi, allowed)
    if isinstance(edges, Cells):
        return Expansion(*expand_cells(unary, edges, start, roi, allowed, max_cycles))
    return Expansion(*expand_edges(unary, edges, start, free, roi, np.flatnonzero(allowed), max_cycles))


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
    shape, volume, steps = as_volume(unary, offsets, labels)
    classes, neighbors = np.shape(unary)[0], len(steps)
    single = all(getattr(values, "dtype", None) == np.float32 for values in (unary, weights))
    precision = np.float32 if single else np.float64  # of the input; all sums are of float64
    dense_unary = dense(unary, precision, "unary", (classes, *shape)).reshape(classes, -1)
    dense_weights = dense(weights, precision, "weights", (neighbors, *shape))
    dense_labels = dense(labels, np.int64, "labels", shape).ravel()
    dense_fixed = dense(fixed, np.int64, "fixed", shape).ravel()
    dense_roi = dense(roi, np.bool_, "roi", shape)
    dense_allowed = dense(allowed, np.bool_, "allowed", (classes,))
    if 2 * neighbors * dense_roi.size >= 2**32 - 2:
        raise ValueError(f"expected fewer than 2^32 - 2 arcs, got {neighbors} offsets on {dense_roi.size} pixels")

    dense_weights = dense_weights.reshape(neighbors, *volume)
    edges: Edges | Cells
    if 2 * neighbors <= MOST_ARCS:
        free = dense_roi & (dense_fixed == FREE).reshape(shape)
        edges, valid = grid_cells(steps, dense_weights, dense_roi.reshape(volume), free.reshape(volume))
    else:
        dense_unary, dense_weights = dense_unary.astype(np.float64), dense_weights.astype(np.float64)
        edges, valid = grid_edges(steps, dense_weights, dense_roi.reshape(volume))
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
    dense_unary = dense(unary, np.float64, "unary", (classes, *shape))
    dense_weights = dense(weights, np.float64, "weights", (np.shape(edges)[0],))
    dense_edges = dense(edges, np.int64, "edges", (len(dense_weights), 2))
    dense_labels = dense(labels, np.int64, "labels", shape)
    dense_fixed = dense(fixed, np.int64, "fixed", shape)
    dense_roi = dense(roi, np.bool_, "roi", shape)
    dense_allowed = dense(allowed, np.bool_, "allowed", (classes,))
    if dense_edges.size and not (dense_edges.min() >= 0 and dense_edges.max() < len(dense_labels)):
        raise ValueError(f"expected edges between nodes 0 .. {len(dense_labels) - 1}, got others")
    if 2 * len(dense_edges) >= 2**32 - 2:
        raise ValueError(f"expected fewer than 2^32 - 2 arcs, got {len(dense_edges)} edges")
    graph, valid = list_edges(dense_edges, dense_weights, dense_roi)
    return _solve(
        dense_unary,
        graph,
        dense_labels,
        dense_fixed,
        dense_roi,
        dense_allowed,
        max_cycles,
        valid,
    )
