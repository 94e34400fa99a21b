"""What is particular to our own alpha-expansion; the tables over all solvers over labels are in test_discrete.py."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

import regloss
from regloss import AlphaExpansion, Graph, GridCRF, GridGraph, Problem, Status, Term, UsageError, solve
from regloss.solver import Solver
from regloss.testing import SolverConformance


def problem(classes: int, shape: tuple[int, ...], batch: int = 3) -> tuple[Term, Tensor]:
    random = torch.Generator().manual_seed(7)
    image = torch.rand(batch, 1, *shape, dtype=torch.float64, generator=random)
    return GridCRF(weight=0.4).bind(image), torch.rand(batch, classes, *shape, dtype=torch.float64, generator=random)


def ring(batch: int, pixels: int) -> Graph:
    """A ring with chords: a graph that is no grid."""
    pixel = torch.arange(pixels)
    edges = torch.cat([torch.stack([pixel, (pixel + step) % pixels], dim=1) for step in (1, 3)])
    weights = torch.rand(batch, len(edges), dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return Graph(edges, 0.3 * weights)


@pytest.mark.parametrize("solver", ["alpha-expansion", "pymaxflow"])
@pytest.mark.parametrize(("classes", "factor"), [(2, 1.0), (3, 2.0)])
def test_graph_against_enumeration(solver: str, classes: int, factor: float) -> None:
    if solver == "pymaxflow":
        pytest.importorskip("maxflow")
    unary = torch.rand(4, classes, 2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(classes))
    graph, flat = ring(4, 8), unary.flatten(2)
    solution = regloss.create("solver", solver).minimise(Problem(graph, unary))
    labellings = torch.tensor(list(itertools.product(range(classes), repeat=8)))
    for b in range(4):
        cut = graph.weights[b] * (labellings[:, graph.edges[:, 0]] != labellings[:, graph.edges[:, 1]])
        least = (flat[b][labellings, torch.arange(8)].sum(1) + cut.sum(1)).min().item()
        assert least - 1e-9 <= solution.energy[b].item() <= factor * least + 1e-9


def test_grid_graph_and_its_graph_are_one_problem() -> None:
    term, unary = problem(4, (9, 11))
    on_grid, on_graph = (AlphaExpansion().minimise(Problem(term.form(kind), unary)) for kind in (GridGraph, Graph))
    assert torch.equal(on_grid.labels, on_graph.labels)
    assert on_grid.energy.tolist() == pytest.approx(on_graph.energy.tolist(), rel=1e-12)


@pytest.mark.parametrize("shape", [(40,), (9, 11), (5, 4, 6)])
def test_batch_is_one_by_one_and_threads_change_nothing(shape: tuple[int, ...]) -> None:
    connectivity = 2 if len(shape) == 1 else 8
    random = torch.Generator().manual_seed(3)
    image = torch.rand(4, 1, *shape, dtype=torch.float64, generator=random)
    unary = torch.rand(4, 3, *shape, dtype=torch.float64, generator=random)
    crf = GridCRF(weight=0.4, connectivity=connectivity)
    together = [solve(crf.bind(image), unary, AlphaExpansion(workers=workers)) for workers in (None, 1, 3)]
    alone = [solve(crf.bind(image[b : b + 1]), unary[b : b + 1], "alpha-expansion") for b in range(4)]
    for solution in together:
        assert torch.equal(solution.labels, torch.cat([one.labels for one in alone]))
        assert torch.equal(solution.energy, torch.cat([one.energy for one in alone]))
        assert torch.equal(solution.steps, torch.cat([one.steps for one in alone]))
        assert solution.status == tuple(one.status[0] for one in alone)


def test_two_labels_are_optimal_and_say_so() -> None:
    term, unary = problem(2, (12, 10))
    solution = solve(term, unary, "alpha-expansion")
    assert solution.status == (Status.OPTIMAL,) * 3
    assert torch.equal(solution.gap, torch.zeros(3, dtype=torch.float64))


def test_cycles_are_counted_and_resumed() -> None:
    term, unary = problem(5, (24, 24))
    full = solve(term, unary, "alpha-expansion")
    assert full.status == (Status.CONVERGED,) * 3
    assert int(full.steps.min()) > 1

    first = solve(term, unary, AlphaExpansion(max_cycles=1))
    assert first.status == (Status.MAX_STEPS,) * 3
    assert first.steps.tolist() == [1, 1, 1]
    # Cycle by cycle from its own state, it does what it does in one go.
    solution = first
    for _ in range(int(full.steps.max()) - 1):
        solution = solve(term, unary, AlphaExpansion(max_cycles=1), warm=solution)
    assert torch.equal(solution.labels, full.labels)


def test_energy_is_that_of_the_term() -> None:
    term, unary = problem(3, (6, 7))
    solution = solve(term, unary.float(), "alpha-expansion")
    value = term.energy(solution.probabilities) + (unary * solution.probabilities).flatten(1).sum(1)
    assert solution.energy.tolist() == pytest.approx(value.tolist(), rel=1e-6)


def test_start_outside_the_region_of_interest_may_be_anything() -> None:
    image = torch.rand(1, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    roi = torch.ones(1, 4, 4, dtype=torch.bool)
    roi[:, 0] = False
    warm = torch.ones(1, 4, 4, dtype=torch.int64)
    warm[:, 0] = 255
    solution = solve(GridCRF().bind(image, roi), torch.rand(1, 2, 4, 4), "alpha-expansion", warm=warm)
    assert int(solution.labels.max()) <= 1


@pytest.mark.parametrize("workers", [0, -1])
def test_refuses_no_workers(workers: int) -> None:
    with pytest.raises(UsageError, match=f"workers must be at least 1, or None.*got {workers}"):
        AlphaExpansion(workers=workers)


def test_bound_on_request() -> None:
    """A bound for more than two labels, never above the least energy of all labellings; the labels do not change."""
    term, unary = problem(3, (2, 4), batch=6)
    plain, bounded = (solve(term, unary, AlphaExpansion(bound_steps=steps)) for steps in (0, 50))
    assert torch.equal(plain.labels, bounded.labels)
    assert plain.bound.tolist() == [-float("inf")] * 6
    labellings, graph = torch.tensor(list(itertools.product(range(3), repeat=8))), term.form(Graph)
    for b in range(6):
        cut = graph.weights[b] * (labellings[:, graph.edges[:, 0]] != labellings[:, graph.edges[:, 1]])
        least = (unary[b].flatten(1)[labellings, torch.arange(8)].sum(1) + cut.sum(1)).min().item()
        assert bounded.bound[b].item() <= least + 1e-9
        assert bounded.bound[b].item() >= 0.9 * least


def test_bound_needs_a_grid_and_steps() -> None:
    unary = torch.rand(1, 3, 2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with pytest.raises(UsageError, match="regular grid"):
        AlphaExpansion(bound_steps=5).minimise(Problem(ring(1, 8), unary))
    with pytest.raises(UsageError, match="bound_steps must not be negative; got -1"):
        AlphaExpansion(bound_steps=-1)


@pytest.mark.parametrize("solver", ["alpha-expansion", "dual-chains"])
def test_threads_work_in_inference_mode(solver: str) -> None:
    """The mode is each thread's own, and forbids others to write to what it makes."""
    image = torch.rand(3, 1, 6, 7, generator=torch.Generator().manual_seed(0))
    unary = torch.rand(3, 3, 6, 7, generator=torch.Generator().manual_seed(1))
    plain = solve(GridCRF(weight=0.3).bind(image), unary, regloss.create("solver", solver, workers=2))
    with torch.inference_mode():
        found = solve(GridCRF(weight=0.3).bind(image), unary, regloss.create("solver", solver, workers=2))
    assert torch.equal(found.labels, plain.labels)
    assert torch.equal(found.probabilities, plain.probabilities)


class TestAlphaExpansion(SolverConformance):
    exact_for_two = True

    def make(self) -> Solver:
        return AlphaExpansion(workers=1)
