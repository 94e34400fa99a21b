"""Filtering along the minimum spanning tree of an image: arrays in, arrays out, O(pixels) for building and filtering.

    (A v)_p = sum over q of v_q * product over the edges e of the tree's path from p to q of w_e

Neighbours on the grid are joined by edges, and of these the tree keeps the lightest that join everything: the path
between two pixels then goes around whatever is unlike them, where it can. Where the region of interest is in several
pieces, each has a tree of its own. A is symmetric, and computed in two passes: from the leaves towards the root, each
pixel collecting what lies below it, and back, each getting what lies elsewhere.

Source: Bao, Song, Yang, Yuan, Wang, "Tree filtering: efficient structure-preserving smoothing with a minimum spanning
tree", 2014; Song, Li, Sun et al., "Learnable tree filter for structure-preserving feature transform", NeurIPS 2019.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from regloss_plugins.kernels.compiling import kernel


class Tree(NamedTuple):
    """A rooted forest on the N pixels of an image."""

    sequence: NDArray[np.int64]  # (M,) pixels of the region of interest, every one after its parent
    parents: NDArray[np.int64]  # (N,), -1 at roots and outside
    costs: NDArray[Any]  # (N,) of the edge to the parent, 0 at roots and outside


def spanning_tree(first: NDArray[np.int64], second: NDArray[np.int64], costs: NDArray[Any], inside: Any) -> Tree:
    """The minimum spanning forest of a graph; of equal edges those that are listed first are taken.

    Args:
        first: (E,) one end of each edge.
        second: (E,) the other.
        costs: (E,), float.
        inside: (N,) bool, pixels that count; edges that leave them must not be listed.
    """
    order = np.argsort(costs, kind="stable")
    taken = np.empty(len(order), np.int64)
    taken = taken[: _kruskal(first, second, order, np.arange(len(inside)), np.ones(len(inside), np.int64), taken)]
    sequence, parents, chosen = _rooted(first[taken], second[taken], inside)
    weights = np.zeros(len(inside), dtype=costs.dtype)
    has_parent = chosen >= 0
    weights[has_parent] = costs[taken][chosen[has_parent]]
    return Tree(sequence, parents, weights)


@kernel()
def _kruskal(first: Any, second: Any, order: Any, leader: Any, size: Any, taken: Any) -> int:
    """Fill in the places of the edges that are taken, and return their number.

    ``leader`` (N,) are each pixel's own numbers to begin with, and ``size`` (N,) ones.
    """
    count = 0
    for i in range(len(order)):
        edge = order[i]
        a = first[edge]
        while leader[a] != a:
            leader[a] = leader[leader[a]]
            a = leader[a]
        b = second[edge]
        while leader[b] != b:
            leader[b] = leader[leader[b]]
            b = leader[b]
        if a == b:
            continue
        if size[a] < size[b]:
            a, b = b, a
        leader[b] = a
        size[a] += size[b]
        taken[count] = edge
        count += 1
    return count


def _rooted(
    first: NDArray[np.int64], second: NDArray[np.int64], inside: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Breadth first from the first pixel of every piece: sequence, parents, and the edge to each parent."""
    pixels = len(inside)
    degree = np.bincount(first, minlength=pixels) + np.bincount(second, minlength=pixels)
    pointers = np.concatenate([[0], np.cumsum(degree)])
    neighbours, edges = np.empty(2 * len(first), np.int64), np.empty(2 * len(first), np.int64)
    sequence, parents, chosen = np.empty(pixels, np.int64), np.full(pixels, -1), np.full(pixels, -1)
    rows = pointers, pointers[:-1].copy(), neighbours, edges
    count = _walk(first, second, *rows, ~inside, sequence, parents, chosen)
    return sequence[:count], parents, chosen


@kernel()
def _walk(
    first: Any,
    second: Any,
    pointers: Any,
    place: Any,
    neighbours: Any,
    edges: Any,
    seen: Any,
    sequence: Any,
    parents: Any,
    chosen: Any,
) -> int:
    for edge in range(len(first)):
        a, b = first[edge], second[edge]
        neighbours[place[a]] = b
        edges[place[a]] = edge
        place[a] += 1
        neighbours[place[b]] = a
        edges[place[b]] = edge
        place[b] += 1
    head = tail = 0
    for root in range(len(seen)):
        if seen[root]:
            continue
        seen[root] = True
        sequence[tail] = root
        tail += 1
        while head < tail:
            pixel = sequence[head]
            head += 1
            for number in range(pointers[pixel], pointers[pixel + 1]):
                other = neighbours[number]
                if not seen[other]:
                    seen[other] = True
                    parents[other] = pixel
                    chosen[other] = edges[number]
                    sequence[tail] = other
                    tail += 1
    return tail


def filter_tree(tree: Tree, weights: NDArray[Any], values: NDArray[Any]) -> NDArray[Any]:
    """A ``values`` (K, N); 0 outside the region of interest.

    Args:
        tree: of the image.
        weights: (N,) in [0, 1], w of the edge to the parent.
        values: (K, N) of the weights' type.
    """
    rows = np.zeros((values.shape[1], values.shape[0]), dtype=values.dtype)
    rows[tree.sequence] = values.T[tree.sequence]
    _two_passes(tree.sequence, tree.parents, weights.astype(values.dtype), rows)
    return np.ascontiguousarray(rows.T)


@kernel()
def _two_passes(sequence: Any, parents: Any, weights: Any, rows: Any) -> None:
    channels = rows.shape[1]
    for number in range(len(sequence) - 1, -1, -1):
        pixel = sequence[number]
        parent = parents[pixel]
        if parent >= 0:
            weight = weights[pixel]
            for channel in range(channels):
                rows[parent, channel] += weight * rows[pixel, channel]
    for number in range(len(sequence)):
        pixel = sequence[number]
        parent = parents[pixel]
        if parent >= 0:
            weight = weights[pixel]
            for channel in range(channels):
                # What the parent has from elsewhere is all but what came from here.
                below = rows[pixel, channel]
                rows[pixel, channel] = below + weight * (rows[parent, channel] - weight * below)
