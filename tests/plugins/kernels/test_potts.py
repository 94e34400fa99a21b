"""Reducing a Potts problem to its free part changes no energy."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from regloss_plugins.kernels.potts import FreeProblem, free_problem


@pytest.mark.parametrize("seed", range(5))
def test_energies_are_those_of_the_whole(seed: int) -> None:
    random = np.random.default_rng(seed)
    pixels, classes = 12, 4
    unary = random.random((classes, pixels))
    pairs = np.array([(p, q) for p in range(pixels) for q in range(p + 1, pixels)])
    edges = pairs[random.random(len(pairs)) < 0.5]
    edges[::2] = edges[::2, ::-1]  # either end may come first
    weights = random.random(len(edges)) * (random.random(len(edges)) < 0.9)
    labels = random.integers(classes, size=pixels)
    fixed = np.where(random.random(pixels) < 0.3, random.integers(classes, size=pixels), -1)
    roi = random.random(pixels) < 0.8
    allowed = np.array([True, False, True, True])
    given = (unary, edges, weights, labels, fixed, roi, allowed)
    before = [array.copy() for array in given]
    problem = free_problem(*given)
    assert all((array == old).all() for array, old in zip(given, before, strict=True))

    assert (problem.pixels == np.flatnonzero(roi & (fixed < 0))).all()
    assert problem.choices.tolist() == [0, 2, 3]
    start = problem.everywhere(problem.start)
    kept = roi & (fixed < 0) & allowed[labels]
    assert (start[kept] == labels[kept]).all()
    replaced = roi & (fixed < 0) & ~allowed[labels]
    assert (start[replaced] == np.array([0, 2, 3])[unary[[0, 2, 3]].argmin(0)][replaced]).all()
    for _ in range(20):
        free = random.integers(3, size=len(problem.pixels))
        whole = problem.everywhere(free)
        assert (whole[roi & (fixed >= 0)] == fixed[roi & (fixed >= 0)]).all()
        assert problem.energy(free) == pytest.approx(energy(unary, edges, weights, whole, roi), rel=1e-12)


def energy(
    unary: NDArray[np.float64],
    edges: NDArray[np.int64],
    weights: NDArray[np.float64],
    labels: NDArray[np.int64],
    roi: NDArray[np.bool_],
) -> float:
    total = sum(unary[labels[p], p] for p in np.flatnonzero(roi))
    for (p, q), weight in zip(edges, weights, strict=True):
        if roi[p] and roi[q] and labels[p] != labels[q]:
            total += weight
    return float(total)


@pytest.mark.parametrize("roi", [True, False])
def test_nothing_free(roi: bool) -> None:
    """All pixels given, or none of interest."""
    problem: FreeProblem = free_problem(
        np.ones((2, 3)),
        np.array([[0, 1], [1, 2], [1, 1]]),
        np.array([2.0, 4.0, 8.0]),
        np.zeros(3, np.int64),
        np.array([0, 1, 1]),
        np.full(3, roi),
        np.array([True, True]),
    )
    nothing = np.zeros(0, np.int64)
    assert len(problem.pixels) == len(problem.edges) == 0
    assert problem.energy(nothing) == (3 + 2 if roi else 0)
    assert problem.everywhere(nothing).tolist() == ([0, 1, 1] if roi else [0, 0, 0])
