"""Lower bounds against enumeration, dynamic programming and expansion moves."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from regloss import grid
from regloss_plugins.kernels.chains import DualBound, bound_grid
from regloss_plugins.kernels.expansion import expand_grid

ROUNDING = 1e-12


def random_problem(shape: tuple[int, ...], classes: int, seed: int, strength: float = 1.0) -> dict[str, Any]:
    """Arguments of `bound_grid` with random seeds, holes in the region and forbidden labels."""
    rng = np.random.default_rng(seed)
    connectivity = {1: 2, 2: int(rng.choice([4, 8])), 3: int(rng.choice([6, 26]))}[len(shape)]
    offsets = grid.neighbor_offsets(len(shape), connectivity)
    allowed = np.ones(classes, bool)
    allowed[rng.integers(classes)] = classes == 2 or rng.random() < 0.5
    return {
        "unary": rng.normal(size=(classes, *shape)),
        "offsets": np.array(offsets),
        "weights": strength * rng.random((len(offsets), *shape)) * (rng.random((len(offsets), *shape)) < 0.9),
        "labels": rng.integers(classes, size=shape),
        "fixed": np.where(rng.random(shape) < 0.15, rng.integers(classes, size=shape), -1),
        "roi": rng.random(shape) < 0.9,
        "allowed": allowed,
    }


def energies(problem: dict[str, Any], labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """Energies (M,) of ``labels`` (M, *S), written out anew."""
    roi, shape = problem["roi"], problem["roi"].shape
    total = np.zeros(len(labels))
    for p in np.ndindex(shape):
        if not roi[p]:
            continue
        at_p = labels[(slice(None), *p)]
        total += problem["unary"][(at_p, *p)]
        for offset, weights in zip(problem["offsets"], problem["weights"], strict=True):
            q = tuple(np.add(p, offset))
            if all(0 <= a < size for a, size in zip(q, shape, strict=True)) and roi[q]:
                total += weights[p] * (at_p != labels[(slice(None), *q)])
    return total


def feasible(problem: dict[str, Any]) -> NDArray[np.int64]:
    """All labellings (M, *S) that respect what is fixed and allowed; outside the region they are 0."""
    choices = np.flatnonzero(problem["allowed"]).tolist()
    options = [
        [0] if not inside else [seed] if seed >= 0 else choices
        for inside, seed in zip(problem["roi"].ravel().tolist(), problem["fixed"].ravel().tolist(), strict=True)
    ]
    return np.array(list(itertools.product(*options))).reshape(-1, *problem["roi"].shape)


def check(problem: dict[str, Any], found: DualBound, least: float) -> None:
    """What holds for every result."""
    assert found.bound <= least + ROUNDING
    assert found.bound <= found.energy <= found.start_energy
    assert found.energy >= least - ROUNDING
    inside = np.where(problem["roi"], found.labels, 0)
    assert energies(problem, inside[None])[0] == pytest.approx(found.energy, abs=1e-10)
    assert (np.diff(found.bounds) >= -ROUNDING).all(), "the bound fell"
    assert (found.bounds <= least + ROUNDING).all()
    assert found.steps == len(found.bounds)


@pytest.mark.parametrize("classes", [2, 3, 4])
@pytest.mark.parametrize("shape", [(3, 3), (2, 2, 2)])
@pytest.mark.parametrize("strength", [0.3, 2.0])
def test_bound_is_never_above_the_minimum(classes: int, shape: tuple[int, ...], strength: float) -> None:
    gaps = []
    for seed in range(30):
        problem = random_problem(shape, classes, seed, strength)
        least = energies(problem, feasible(problem)).min()
        found = bound_grid(**problem, max_steps=60, tolerance=0.0)
        check(problem, found, least)
        gaps.append(least - found.bound)
    assert np.mean(np.array(gaps) < 1e-6) > 0.6  # tight where chance and cycles allow it, so not vacuous


def test_signs_of_offsets_do_not_matter() -> None:
    """A pair given from its other end is the same pair."""
    problem = random_problem((5, 6), 3, seed=1)
    offsets, weights = problem["offsets"], problem["weights"]
    flipped = np.zeros_like(weights)
    for i, offset in enumerate(offsets):
        first, second = grid.pair_slices(tuple(offset.tolist()))
        flipped[i][second] = weights[i][first]
    found = bound_grid(**problem, max_steps=20)
    other = bound_grid(**{**problem, "offsets": -offsets, "weights": flipped}, max_steps=20)
    assert other.bound == pytest.approx(found.bound, rel=1e-12)
    assert other.energy == pytest.approx(found.energy, rel=1e-12)


@pytest.mark.parametrize("shape", [(1,), (9,), (1, 300), (700, 1), (1, 1, 40)])
def test_a_chain_is_solved(shape: tuple[int, ...]) -> None:
    """Against dynamic programming; long ones begin with a coarser problem."""
    for seed in range(10):
        problem = random_problem(shape, 4, seed)
        found = bound_grid(**problem, max_steps=5, tolerance=0.0)
        assert found.bound == pytest.approx(chain_minimum(problem), abs=1e-9)
        assert found.energy == found.bound
        assert found.converged


def chain_minimum(problem: dict[str, Any]) -> float:
    """Minimum on a grid with one axis of more than one pixel."""
    axis = int(np.argmax(problem["roi"].shape))
    along = [i for i, offset in enumerate(problem["offsets"]) if offset[axis] == 1 and np.abs(offset).sum() == 1]
    weights = problem["weights"][along[0]].ravel()
    roi, fixed = problem["roi"].ravel(), problem["fixed"].ravel()
    unary = problem["unary"].reshape(len(problem["allowed"]), -1)
    cost = np.zeros(len(unary))
    for p in range(len(roi)):
        if p:
            weight = weights[p - 1] if roi[p] and roi[p - 1] else 0.0
            cost = np.minimum(cost, cost.min() + weight)
        if roi[p]:
            may = problem["allowed"] if fixed[p] < 0 else np.arange(len(unary)) == fixed[p]
            cost = cost + np.where(may, unary[:, p], np.inf)
    return float(cost.min())


@pytest.mark.parametrize("classes", [2, 5])
def test_two_labels_are_solved_and_more_nearly(classes: int) -> None:
    """At a size that starts from coarser problems, against expansion moves; independent unaries leave a gap of .7 %."""
    rng = np.random.default_rng(classes)
    problem = random_problem((33, 41), classes, seed=3, strength=0.6)
    problem["roi"] = rng.random((33, 41)) < 0.97
    expansion = expand_grid(**problem, max_cycles=10)
    found = bound_grid(**problem, max_steps=300, tolerance=0.0)
    check(problem, found, expansion.energy if classes == 2 else found.energy)
    assert found.bound <= expansion.energy + 1e-9
    assert found.bound >= expansion.energy - (1e-3 if classes == 2 else 1e-2) * abs(expansion.energy)


def test_stops_when_the_bound_stands_still() -> None:
    problem = random_problem((20, 21), 3, seed=5, strength=0.5)
    long, short = (bound_grid(**problem, max_steps=40, tolerance=tolerance) for tolerance in (1e-9, 0.9))
    assert short.converged
    assert short.steps < long.steps
    assert short.bound <= long.bound
    assert not bound_grid(**problem, max_steps=1, tolerance=0.0).converged


def test_arguments_are_not_modified() -> None:
    problem = random_problem((20, 21), 3, seed=6)
    before = {name: value.copy() for name, value in problem.items()}
    for value in problem.values():
        value.flags.writeable = False
    bound_grid(**problem, max_steps=3)
    assert all(np.array_equal(problem[name], value) for name, value in before.items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": -1.0}, "finite weights >= 0"),
        ({"weights": np.nan}, "finite weights >= 0"),
        ({"unary": np.inf}, "finite unaries"),
        ({"fixed": 3}, "fixed labels 0 .. 2"),
        ({"allowed": False}, "at least one allowed label"),
    ],
)
def test_refuses_what_has_no_meaning(change: dict[str, Any], message: str) -> None:
    problem = random_problem((3, 4), 3, seed=7)
    problem["roi"][:] = True
    for name, value in change.items():
        problem[name] = np.full_like(problem[name], value)
    with pytest.raises(ValueError, match=message):
        bound_grid(**problem, max_steps=3)


def test_refuses_other_shapes() -> None:
    problem = random_problem((3, 4), 3, seed=8)
    with pytest.raises(ValueError, match=r"offsets \(n, 2\)"):
        bound_grid(**{**problem, "offsets": problem["offsets"][:, :1]}, max_steps=3)
    with pytest.raises(ValueError, match=r"expected roi of shape \(3, 4\)"):
        bound_grid(**{**problem, "roi": problem["roi"][1:]}, max_steps=3)
