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
from numba import njit
from numpy.typing import NDArray


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
    taken = _kruskal(first, second, order, len(inside))
    sequence, parents, chosen = _rooted(first[taken], second[taken], inside)
    weights = np.zeros(len(inside), dtype=costs.dtype)
    has_parent = chosen >= 0
    weights[has_parent] = costs[taken][chosen[has_parent]]
    return Tree(sequence, parents, weights)


@njit(cache=True, nogil=True)
def _kruskal(first, second, order, pixels):  # type: ignore[no-untyped-def]
    """Places of the edges that are taken."""
    leader = np.arange(pixels)
    size = np.ones(pixels, np.int64)
    taken = np.empty(max(pixels - 1, 0), np.int64)
    count = 0
    for edge in order:
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
    return taken[:count]


@njit(cache=True, nogil=True)
def _rooted(first, second, inside):  # type: ignore[no-untyped-def]
    """Breadth first from the first pixel of every piece: sequence, parents, and the edge to each parent."""
    pixels = len(inside)
    pointers = np.zeros(pixels + 1, np.int64)
    for edge in range(len(first)):
        pointers[first[edge] + 1] += 1
        pointers[second[edge] + 1] += 1
    pointers = np.cumsum(pointers)
    place = pointers[:-1].copy()
    neighbours = np.empty(2 * len(first), np.int64)
    edges = np.empty(2 * len(first), np.int64)
    for edge in range(len(first)):
        a, b = first[edge], second[edge]
        neighbours[place[a]], edges[place[a]] = b, edge
        place[a] += 1
        neighbours[place[b]], edges[place[b]] = a, edge
        place[b] += 1
    parents = np.full(pixels, -1, np.int64)
    chosen = np.full(pixels, -1, np.int64)
    seen = ~inside
    sequence = np.empty(pixels, np.int64)
    head = tail = 0
    for root in range(pixels):
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
                    parents[other], chosen[other] = pixel, edges[number]
                    sequence[tail] = other
                    tail += 1
    return sequence[:tail], parents, chosen


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


@njit(cache=True, nogil=True)
def _two_passes(sequence, parents, weights, rows):  # type: ignore[no-untyped-def]
    channels = rows.shape[1]
    for number in range(len(sequence) - 1, -1, -1):
        pixel = sequence[number]
        parent = parents[pixel]
        if parent >= 0:
            weight = weights[pixel]
            for channel in range(channels):
                rows[parent, channel] += weight * rows[pixel, channel]
    for pixel in sequence:
        parent = parents[pixel]
        if parent >= 0:
            weight = weights[pixel]
            for channel in range(channels):
                # What the parent has from elsewhere is all but what came from here.
                below = rows[pixel, channel]
                rows[pixel, channel] = below + weight * (rows[parent, channel] - weight * below)
