"""Potts solvers at the edges of what they may be given: the right labels, or an error that says what is wrong."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

import regloss
from regloss import Concave, GridCRF, GridGraph, Problem, Solution, Solver, UsageError, solve
from regloss.errors import MissingDependency
from regloss.regularizer import offered_kind

SOLVERS = ["alpha-expansion", "dual-chains", "parallel-potts"]
RIGHT, DOWN = (0, 1), (1, 0)


@pytest.fixture(params=SOLVERS)
def solver(request: pytest.FixtureRequest) -> Solver:
    made: Solver = regloss.create("solver", request.param)
    return made


def energies(problem: Problem, labels: Tensor) -> Tensor:
    """Energies (n,) of labellings (n, H, W) of the first image, from the definition."""
    form = problem.form
    assert isinstance(form, GridGraph)
    height, width = labels.shape[1:]
    total = problem.unary[0].double().gather(0, labels).sum((1, 2))
    for (dy, dx), weight in zip(form.offsets, form.weights[0].double(), strict=True):
        first, second = labels[:, : height - dy, : width - dx], labels[:, dy:, dx:]
        total = total + (weight[: height - dy, : width - dx] * (first != second)).sum((1, 2))
    return total


def check_minimum(problem: Problem, solution: Solution) -> None:
    """The labels are a minimum and respect the seeds; the energy is theirs, and the bound not above it."""
    classes, height, width = problem.unary.shape[1:]
    feasible = torch.tensor(list(itertools.product(range(classes), repeat=height * width)))
    feasible = feasible.reshape(-1, height, width)
    if problem.fixed is not None:
        seeded = problem.fixed[0] >= 0
        feasible = feasible[(feasible == problem.fixed[0])[:, seeded].all(1)]
        assert torch.equal(solution.labels[0][seeded], problem.fixed[0][seeded])
    least = energies(problem, feasible).min().item()
    assert energies(problem, solution.labels).item() == pytest.approx(least, rel=1e-6, abs=1e-35)
    assert solution.energy.item() == pytest.approx(least, rel=1e-6, abs=1e-35)
    assert solution.bound.item() <= least + 1e-6 * abs(least)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_unaries_that_are_not_finite_are_refused(solver: Solver, bad: float) -> None:
    unary = torch.zeros(1, 3, 4, 5)
    unary[0, 1, 2, 3] = bad
    with pytest.raises(UsageError, match="unary"):
        solve(GridCRF().bind(torch.rand(1, 1, 4, 5)), unary, solver)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -1.0])
def test_bad_weights_are_refused(bad: float) -> None:
    """By the regularizer, and once more by solvers, since strangers' regularizers give them weights too."""
    with pytest.raises(UsageError, match="weight"):
        GridCRF(weight=bad)
    weights = torch.ones(1, 1, 3, 4)
    weights[0, 0, 1, 1] = bad
    for name in SOLVERS:
        with pytest.raises(ValueError, match="finite weights >= 0"):
            regloss.create("solver", name).minimise(Problem(GridGraph((RIGHT,), weights), torch.zeros(1, 2, 3, 4)))


@pytest.mark.parametrize("classes", [2, 3])
def test_neighbouring_seeds_that_disagree_are_both_kept(solver: Solver, classes: int) -> None:
    fixed = torch.full((1, 2, 4), -1)
    fixed[0, 0, 1], fixed[0, 0, 2] = 0, 1
    unary = torch.rand(1, classes, 2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    form = GridGraph((RIGHT, DOWN), torch.full((1, 2, 2, 4), 0.3, dtype=torch.float64))
    problem = Problem(form, unary, fixed=fixed)
    check_minimum(problem, solver.minimise(problem))


def test_an_empty_region_of_interest(solver: Solver) -> None:
    """Binding refuses one; a solver that is given one says that it costs nothing."""
    roi = torch.ones(2, 4, 5, dtype=torch.bool)
    roi[1] = False
    with pytest.raises(UsageError, match="empty"):
        GridCRF().bind(torch.rand(2, 1, 4, 5), roi)
    unary = torch.rand(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    form = GridGraph((RIGHT, DOWN), torch.ones(2, 2, 4, 5))
    for batch in (slice(0, 2), slice(1, 2)):
        solution = solver.minimise(Problem(GridGraph(form.offsets, form.weights[batch]), unary[batch], roi=roi[batch]))
        assert solution.energy[-1].item() == 0
        assert solution.bound[-1].item() <= 0
        assert bool(((solution.labels >= 0) & (solution.labels < 3)).all())


@pytest.mark.parametrize("classes", [2, 3])
def test_a_single_pixel(solver: Solver, classes: int) -> None:
    unary = torch.tensor([3.0, 1.0, 2.0])[:classes].reshape(1, classes, 1, 1)
    solution = solve(GridCRF().bind(torch.rand(1, 1, 1, 1)), unary, solver)
    assert solution.labels.item() == 1
    assert solution.energy.item() == pytest.approx(1.0)


@pytest.mark.parametrize("shape", [(1, 8), (8, 1)])
@pytest.mark.parametrize("classes", [2, 3])
def test_a_row_and_a_column(solver: Solver, shape: tuple[int, int], classes: int) -> None:
    unary = torch.rand(1, classes, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(classes))
    weights = 0.2 * torch.rand(1, 2, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    problem = Problem(GridGraph((RIGHT, DOWN), weights), unary)
    check_minimum(problem, solver.minimise(problem))


def test_one_class_is_refused_and_one_allowed_class_is_taken(solver: Solver) -> None:
    term = GridCRF().bind(torch.rand(1, 1, 4, 5))
    with pytest.raises(UsageError, match="K = 1 class"):
        solve(term, torch.rand(1, 1, 4, 5), solver)
    unary = torch.rand(1, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    solution = solve(term, unary, solver, allowed=torch.tensor([[False, True, False]]))
    assert bool((solution.labels == 1).all())
    assert solution.energy.item() == pytest.approx(unary[:, 1].sum().item(), rel=1e-6)


@pytest.mark.parametrize("classes", [2, 3])
def test_weights_of_very_different_size(solver: Solver, classes: int) -> None:
    """Pairs of 1e12 are not cut, pairs of 1e-30 do not matter, and neither overflows into the rest."""
    weights = torch.tensor([[[[1e12, 1e-30, 1e12, 1e-30, 0.0]]]], dtype=torch.float64)
    unary = torch.tensor([[0.0, 5.0, 0.0, 2.0, 0.0], [9.0, 0.0, 3.0, 0.0, 3.0], [9.0, 9.0, 9.0, 9.0, 0.5]])
    problem = Problem(GridGraph((RIGHT,), weights), unary[:classes].double().reshape(1, classes, 1, 5))
    solution = solver.minimise(problem)
    assert solution.labels.flatten().tolist() == [0, 0, 0, 0, 0]
    assert solution.energy.item() == pytest.approx(7.0, rel=1e-6)
    assert solution.bound.item() <= 7.0 * (1 + 1e-6)


@pytest.mark.parametrize("size", [(1, 1), (1, 4), (4, 1), (1,), (3,), (1, 1, 1), (1, 3, 1)])
@pytest.mark.parametrize("name", ["gated-crf", "grid-crf", "tv", "dense-crf", "threshold-dynamics"])
def test_images_of_one_pixel_or_one_row(name: str, size: tuple[int, ...]) -> None:
    """Every solver that can: minima agree with brute force over labels, and without pairs they are the cheapest."""
    settings = {"gated-crf": {"radius": 5}, "grid-crf": {"connectivity": 2}}.get(name, {})
    if name == "grid-crf" and len(size) > 1:
        settings = {}
    regularizer = regloss.create("regularizer", name, **{"weight": 0.7, **settings})
    random = torch.Generator().manual_seed(3)
    image = torch.rand(2, 3, *size, generator=random, dtype=torch.float64)
    unary = torch.randn(2, 3, *size, generator=random, dtype=torch.float64)
    term, pixels, solved = regularizer.bind(image), math.prod(size), 0
    labels = torch.tensor(list(itertools.product(range(3), repeat=pixels))).reshape(-1, *size)
    hard = torch.nn.functional.one_hot(labels, 3).movedim(-1, 1).double()
    least = []
    for i in range(2):
        alone = regularizer.bind(image[[i]].expand(len(labels), -1, *size))
        least.append(float(((unary[i] * hard).flatten(1).sum(1) + alone.energy(hard)).min()))
    for solver in ("alpha-expansion", "dual-chains", "parallel-potts", "pymaxflow", "mean-field", "pdhg", "dca"):
        try:
            made = regloss.create("solver", solver)
        except MissingDependency:
            continue
        form = next((found for kind in made.accepts if (found := offered_kind(regularizer, kind))), None)
        if form is None:
            continue
        try:
            found = solve(term, unary, made, entropy=1e-3 if made.entropies(form) == "positive" else 0.0)
        except UsageError as error:  # gated-crf's wider windows
            assert "every offset needs an odd component" in str(error)  # noqa: PT017
            continue
        solved += 1
        assert bool(found.energy.isfinite().all())
        assert bool((found.bound <= found.energy + 1e-9).all())
        for i in range(2):
            assert float(found.bound[i]) <= least[i] + 1e-9
            if pixels == 1:
                assert torch.equal(found.labels, unary.argmin(1))
            elif made.entropies(form) == "zero" and form is not Concave:
                assert float(found.energy[i]) >= least[i] - 1e-9
                if solver in ("alpha-expansion", "parallel-potts"):
                    assert float(found.energy[i]) == pytest.approx(least[i])
    assert solved >= {"gated-crf": 3, "grid-crf": 4}.get(name, 1)
