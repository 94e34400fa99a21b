"""A Potts problem reduced to what is free, for max-flow libraries that know neither seeds nor masks.

    E(x) = sum over p of unary[x_p, p] + sum over edges pq of w_pq [x_p != x_q],      w >= 0

Pixels outside the region of interest vanish with their edges. A fixed pixel's edges become unaries of their free ends,
which costs no precision, unlike large numbers. Only the allowed labels stay. What is left is a plain Potts problem over
n pixels and k labels, both numbered from 0, whose energies differ from E by a constant.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class FreeProblem:
    """The free part of a Potts problem.

    Attributes:
        unary: (k, n) float64.
        edges: (m, 2) int64, both ends free, no loops. weights: (m,) float64, > 0.
        start: (n,) int64 in 0..k-1; where the given label is not allowed, the cheapest.
        constant: energy of what is fixed.
        pixels: (n,) where the free pixels lie among all. choices: (k,) the allowed labels among all.
        rest: (N,) labels of all pixels before the free ones are filled in.
    """

    unary: NDArray[np.float64]
    edges: NDArray[np.int64]
    weights: NDArray[np.float64]
    start: NDArray[np.int64]
    constant: float
    pixels: NDArray[np.int64]
    choices: NDArray[np.int64]
    rest: NDArray[np.int64]

    def energy(self, labels: NDArray[np.int64]) -> float:
        """E at ``labels`` (n,), the constant included."""
        first, second = labels[self.edges].T
        cut = self.weights[first != second].sum()
        return float(self.constant + self.unary[labels, np.arange(len(labels))].sum() + cut)

    def everywhere(self, labels: NDArray[np.int64]) -> NDArray[np.int64]:
        """Labels (N,) of all pixels from those (n,) of the free ones, in the numbers that were given."""
        whole = self.rest.copy()
        whole[self.pixels] = self.choices[labels]
        return whole


def free_problem(
    unary: NDArray[np.float64],
    edges: NDArray[np.int64],
    weights: NDArray[np.float64],
    labels: NDArray[np.int64],
    fixed: NDArray[np.int64],
    roi: NDArray[np.bool_],
    allowed: NDArray[np.bool_],
) -> FreeProblem:
    """Reduce a Potts problem over N pixels and K labels to its free pixels and allowed labels.

    Args:
        unary: (K, N), finite; float32 or float64, which all sums are of.
        edges: (E, 2) in 0..N-1.
        weights: (E,), >= 0.
        labels: (N,) in 0..K-1, the start.
        fixed: (N,) labels that are given, which need not be allowed, -1 where free.
        roi: (N,) bool.
        allowed: (K,) bool, at least one.

    The middle pixel is free, and its right neighbour is held at label 1:

    >>> problem = free_problem(
    ...     np.zeros((2, 3)), np.array([[0, 1], [1, 2]]), np.array([5.0, 3.0]), np.array([0, 0, 0]),
    ...     np.array([-1, -1, 1]), np.array([False, True, True]), np.array([True, True]),
    ... )
    >>> problem.unary.tolist(), len(problem.edges), problem.everywhere(np.array([1])).tolist()
    ([[3.0], [0.0]], 0, [0, 1, 1])
    """
    seeded = roi & (fixed >= 0)
    pixels = np.flatnonzero(roi & (fixed < 0))
    choices = np.flatnonzero(allowed)
    rest = np.where(seeded, fixed, labels)
    number = np.full(len(roi), -1)
    number[pixels] = np.arange(len(pixels))

    weights = weights.astype(np.float64)
    first, second = edges.T
    counts = roi[first] & roi[second] & (first != second) & (weights > 0)
    first, second, weights = first[counts], second[counts], weights[counts]
    both = seeded[first] & seeded[second]
    apart = fixed[first[both]] != fixed[second[both]]
    constant = unary[rest[seeded], np.flatnonzero(seeded)].sum(dtype=np.float64) + weights[both][apart].sum()

    unary = unary[np.ix_(choices, pixels)].astype(np.float64)
    cheapest = unary.argmin(0)
    for end, other in ((first, second), (second, first)):
        touches = ~seeded[end] & seeded[other]
        for choice, row in zip(choices, unary, strict=True):
            costs = weights[touches] * (fixed[other[touches]] != choice)
            row += np.bincount(number[end[touches]], costs, len(pixels))

    inside = ~seeded[first] & ~seeded[second]
    wanted = np.full(len(allowed), -1)
    wanted[choices] = np.arange(len(choices))
    start = wanted[rest[pixels]]
    return FreeProblem(
        unary=unary,
        edges=np.stack([number[first[inside]], number[second[inside]]], axis=1),
        weights=weights[inside],
        start=np.where(start >= 0, start, cheapest),
        constant=float(constant),
        pixels=pixels,
        choices=choices,
        rest=rest,
    )
