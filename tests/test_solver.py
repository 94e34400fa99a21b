"""`solve` and what surrounds it: what it refuses and how, what it hands to a solver, and the small helpers."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, ClassVar

import pytest
import torch

import regloss
from regloss import (
    Form,
    Graph,
    GridCRF,
    GridGraph,
    Problem,
    Saddle,
    Solution,
    Solver,
    Status,
    Term,
    TotalVariation,
    Volume,
    solve,
)
from regloss.numerics import one_hot
from regloss.solver import linear_energy, negative_entropy, negotiate, statuses, usable_cores


class Recorder(Solver):
    """Keeps the problem that it is given and answers with the cheapest labels."""

    accepts: ClassVar[tuple[type[Form], ...]] = (GridGraph, Graph)

    def __init__(self, state: Any = None) -> None:
        self.state = state
        self.problem: Problem | None = None
        self.gradients: bool | None = None

    def minimise(self, problem: Problem) -> Solution:
        self.problem, self.gradients = problem, torch.is_grad_enabled()
        labels = problem.unary.argmin(1)
        probabilities = one_hot(labels, problem.unary.shape[1], problem.unary.dtype)
        energy = linear_energy(problem.unary, probabilities, problem.roi)
        batch = len(labels)
        return Solution(
            probabilities=probabilities,
            labels=labels,
            energy=energy,
            bound=torch.full_like(energy, -math.inf),
            steps=torch.zeros(batch, dtype=torch.int64),
            status=(Status.CONVERGED,) * batch,
            start_energy=torch.full_like(energy, math.nan),
            state=self.state,
        )

    def seen(self) -> Problem:
        assert self.problem is not None
        return self.problem


@pytest.fixture
def term() -> Term:
    return GridCRF().bind(torch.zeros(2, 1, 3, 4))


@pytest.fixture
def unary() -> torch.Tensor:
    return torch.rand(2, 3, 3, 4, generator=torch.Generator().manual_seed(0))


# --------------------------------------------------------------------------------------------------------------------
# What is refused


def zeros(*shape: int, dtype: torch.dtype = torch.int64) -> torch.Tensor:
    return torch.zeros(shape, dtype=dtype)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (zeros(2, 3, 3, 4), r"unary must be a floating-point tensor; got torch\.int64"),
        ([[1.0]], "unary must be a floating-point tensor; got list"),
        (torch.zeros(2, 3), r"unary must have the shape \(B, K, \*S\); got \(2, 3\)"),
        (torch.zeros(2, 1, 3, 4), r"unary has K = 1 class.*at least two.*pair \(0, z\)"),
        (torch.zeros(2, 3, 4, 3), r"unary \(2, 3, 4, 3\) does not fit .*\(B, \*S\) = \(2, 3, 4\)"),
        (torch.zeros(1, 3, 3, 4), r"unary \(1, 3, 3, 4\) does not fit .*\(B, \*S\) = \(2, 3, 4\)"),
        (torch.full((2, 3, 3, 4), math.nan), r"unary holds 72 values that are NaN or infinite.*allowed=.*fixed="),
        (torch.full((2, 3, 3, 4), math.inf), r"unary holds 72 values that are NaN or infinite.*allowed=.*fixed="),
        (
            torch.full((2, 3, 3, 4), -1e38),
            r"costs of up to 1e\+38, .* torch\.float32 cannot hold.*3\.4e\+30.*allowed=.*fixed=",
        ),
    ],
)
def test_unary_is_checked(term: Term, bad: Any, message: str) -> None:
    with pytest.raises(regloss.UsageError, match=message):
        solve(term, bad, Recorder())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"entropy": -0.1}, r"entropy must be finite and not negative; got -0\.1"),
        ({"entropy": math.inf}, "entropy must be finite and not negative; got inf"),
        ({"entropy": math.nan}, "entropy must be finite and not negative; got nan"),
        ({"entropy": 1e31}, r"entropy must be at most 1e30; got 1e\+31"),
        ({"entropy": "0.5"}, "entropy must be finite and not negative; got '0.5'"),
        ({"fixed": zeros(2, 3, 4, dtype=torch.float32)}, r"integers.*got torch\.float32"),
        ({"fixed": zeros(2, 3, 4, dtype=torch.bool)}, r"integers.*got torch\.bool"),
        ({"fixed": zeros(2, 4, 3)}, r"shape \(2, 3, 4\) \(B, \*S\); got \(2, 4, 3\)"),
        (
            {"fixed": zeros(2, 3, 4) + 3},
            r"fixed must hold labels from -1 to 2 \(-1 where free\); got values from 3 to 3",
        ),
        ({"fixed": zeros(2, 3, 4) - 2}, r"fixed must hold labels from -1 to 2 .*got values from -2 to -2"),
        ({"fixed": zeros(2, 3, 4) + 255}, r"fixed must hold labels from -1 to 2 \(-1 where free\); .* 255 to 255"),
        (
            {"allowed": zeros(2, 3)},
            r"allowed must be bool of shape \(B, K\) = \(2, 3\); got torch\.int64 of shape \(2, 3\)",
        ),
        ({"allowed": zeros(3, dtype=torch.bool)}, r"allowed must be bool .*got torch\.bool of shape \(3,\)"),
        ({"allowed": torch.tensor([[True] * 3, [False] * 3])}, "allowed admits no label at all in at least one image"),
        (
            {
                "allowed": torch.tensor([[True] * 3, [True, False, True]]),
                "fixed": torch.tensor([1, 1, 2]).repeat(2, 4).reshape(2, 3, 4),
            },
            r"fixed gives 8 pixels of image 1 of the batch labels that allowed does not admit there: 1\. Allow these",
        ),
        ({"warm": zeros(2, 4, 3)}, r"shape \(2, 3, 4\) \(B, \*S\); got \(2, 4, 3\)"),
        ({"warm": zeros(2, 3, 4) - 1}, r"warm must hold labels from 0 to 2 .*got values from -1 to -1"),
        ({"warm": zeros(2, 3, 4) + 3}, r"warm must hold labels from 0 to 2 .*got values from 3 to 3"),
    ],
)
def test_arguments_are_checked(term: Term, unary: torch.Tensor, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(regloss.UsageError, match=message):
        solve(term, unary, Recorder(), **arguments)


def test_start_may_be_anything_outside_the_region_of_interest(unary: torch.Tensor) -> None:
    roi = torch.ones(2, 3, 4, dtype=torch.bool)
    roi[:, 0] = False
    warm = torch.zeros(2, 3, 4, dtype=torch.int64)
    warm[:, 0] = 255
    solver = Recorder()
    solve(GridCRF().bind(torch.zeros(2, 1, 3, 4), roi), unary, solver, warm=warm)
    assert solver.seen().warm is warm
    warm[:, 1] = 255
    with pytest.raises(regloss.UsageError, match="warm must hold labels"):
        solve(GridCRF().bind(torch.zeros(2, 1, 3, 4), roi), unary, solver, warm=warm)


def test_unknown_solver(term: Term, unary: torch.Tensor) -> None:
    with pytest.raises(regloss.UnknownComponent, match=r"solver called 'alpha-expantion'.*'alpha-expansion'"):
        solve(term, unary, "alpha-expantion")
    with pytest.raises(regloss.UsageError, match=r"Expected a solver.*got int"):
        solve(term, unary, 3)  # type: ignore[arg-type]


# --------------------------------------------------------------------------------------------------------------------
# Which form is used


@pytest.mark.parametrize("solver", ["alpha-expansion", "mean-field"])
def test_no_common_form(solver: str) -> None:
    term = TotalVariation(isotropic=True).bind(torch.zeros(1, 1, 3, 4))
    with pytest.raises(regloss.MissingForm) as caught:
        solve(term, torch.zeros(1, 2, 3, 4), solver)
    message = str(caught.value)
    assert message.startswith(f"Cannot use {solver} with tv: it offers Saddle, {solver} needs GridGraph")
    assert "Solvers that can: " in message
    assert isinstance(caught.value, regloss.UsageError)


@pytest.fixture
def fussy() -> Iterator[type[Solver]]:
    @regloss.register("solver", "fussy")
    class Fussy(Recorder):
        accepts = (regloss.Projection,)

    yield Fussy
    regloss.unregister("solver", "fussy")


def test_error_names_both_sides_and_who_can(fussy: type[Solver]) -> None:
    with pytest.raises(regloss.MissingForm) as caught:
        negotiate(GridCRF(), fussy())
    message = str(caught.value)
    assert message.startswith("Cannot use fussy with grid-crf: it offers GridGraph, Graph, fussy needs Projection.")
    suggested = message.partition("Solvers that can: ")[2].rstrip(".").split(", ")
    assert {"alpha-expansion", "mean-field"} <= set(suggested)
    assert "fussy" not in suggested


def test_first_form_that_the_solver_likes_is_used(term: Term, unary: torch.Tensor) -> None:
    class Backwards(Recorder):
        accepts = (regloss.Saddle, Graph, GridGraph)

    for solver, kind in ((Recorder(), GridGraph), (Backwards(), Graph)):
        assert negotiate(term.regularizer, solver) is kind
        solve(term, unary, solver)
        assert type(solver.seen().form) is kind


# --------------------------------------------------------------------------------------------------------------------
# What a solver is given


def test_problem_as_it_arrives(unary: torch.Tensor) -> None:
    roi = torch.ones(2, 3, 4, dtype=torch.bool)
    roi[:, 0, 0] = False
    term, solver = GridCRF().bind(torch.zeros(2, 1, 3, 4), roi), Recorder()
    fixed = torch.full((2, 3, 4), -1, dtype=torch.int32)
    allowed = torch.tensor([[True, True, False], [False, True, True]])
    solve(term, unary.half().requires_grad_(), solver, entropy=2, fixed=fixed, allowed=allowed)
    problem = solver.seen()
    assert problem.unary.dtype == torch.float32  # never half precision
    assert not problem.unary.requires_grad
    assert solver.gradients is False
    assert problem.fixed is not None
    assert problem.fixed.dtype == torch.int64
    assert isinstance(problem.entropy, float)
    assert problem.entropy == 2
    assert problem.allowed is allowed
    assert problem.roi is roi
    assert problem.warm is None

    solve(term, unary.double(), solver)
    assert solver.seen().unary.dtype == torch.float64
    assert solver.seen().fixed is None
    assert solver.seen().allowed is None


def test_autocast_is_switched_off(term: Term, unary: torch.Tensor) -> None:
    class Multiplies(Recorder):
        def minimise(self, problem: Problem) -> Solution:
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
            return super().minimise(problem)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
        solve(term, unary, Multiplies())


@pytest.mark.parametrize("state", [None, "anything"])
def test_earlier_solution_hands_on_its_state_or_its_labels(term: Term, unary: torch.Tensor, state: Any) -> None:
    solver = Recorder(state)
    earlier = solve(term, unary, solver)
    solve(term, unary, solver, warm=earlier)
    assert solver.seen().warm is (earlier.labels if state is None else state)


# --------------------------------------------------------------------------------------------------------------------
# Solutions and helpers


def test_gap_is_energy_less_bound(term: Term, unary: torch.Tensor) -> None:
    solution = solve(term, unary, Recorder())
    assert solution.gap.isposinf().all()
    solution = Solution(
        probabilities=unary,
        labels=unary.argmax(1),
        energy=torch.tensor([3.0, 5.0]),
        bound=torch.tensor([2.5, 5.0]),
        steps=torch.tensor([1, 1]),
        status=statuses([False, True], yes=Status.OPTIMAL),
        start_energy=torch.tensor([math.nan, math.nan]),
    )
    assert solution.gap.tolist() == [0.5, 0.0]
    assert solution.status == (Status.MAX_STEPS, Status.OPTIMAL)
    assert solution.state is None


class Boaster(Recorder):
    """A stranger's solver that passes over constraints, and may say that they hold."""

    accepts: ClassVar[tuple[type[Form], ...]] = (Saddle,)

    def __init__(self, claim: float | None) -> None:
        super().__init__()
        self.claim = claim

    def minimise(self, problem: Problem) -> Solution:
        found = super().minimise(problem)
        return found if self.claim is None else replace(found, violation=torch.full_like(found.energy, self.claim))


@pytest.mark.parametrize("claim", [None, 0.0, 7.0])
def test_violations_are_measured_whatever_a_solver_says(claim: float | None) -> None:
    """Volumes of 4 pixels each, and an iterate with 8 of one class in the first image and 4 in the second."""
    volume = Volume(volumes=(4, 4)).bind(torch.zeros(2, 1, 2, 4))
    unary = torch.zeros(2, 2, 2, 4)
    unary[0, 1], unary[1, 1, 0], unary[1, 0, 1] = 1, 1, 1
    found = solve(volume, unary, Boaster(claim))
    expected = volume.violation(one_hot(unary.argmin(1), 2, unary.dtype))
    assert found.violation.tolist() == expected.tolist()
    assert float(expected[0]) > 0 == float(expected[1])
    assert found.status == (Status.NOT_MET, Status.CONVERGED)
    assert volume.violation_of_labels(found.labels, 2).tolist() == [0, 0]
    free = solve(TotalVariation().bind(torch.zeros(2, 1, 2, 4)), unary, Boaster(claim))
    assert free.violation.tolist() == [0, 0]
    # What nobody has measured is no claim that the constraints hold.
    alone = Boaster(None).minimise(Problem(volume.form(Saddle), unary))
    assert bool(alone.violation.isnan().all())


def test_energies_count_inside_the_region_of_interest_only() -> None:
    probabilities = torch.tensor([[[0.5, 0.0, 0.25], [0.5, 1.0, 0.75]]], requires_grad=True)
    unary = torch.tensor([[[1.0, 2.0, 3.0], [10.0, 20.0, 30.0]]])
    roi = torch.tensor([[True, True, False]])
    assert linear_energy(unary, probabilities, None).tolist() == [0.5 + 5 + 20 + 0.75 + 22.5]
    assert linear_energy(unary, probabilities, roi).tolist() == [0.5 + 5 + 20]
    half, quarter = math.log(0.5), 0.25 * math.log(0.25) + 0.75 * math.log(0.75)
    assert negative_entropy(probabilities, None).tolist() == pytest.approx([half + quarter])
    assert negative_entropy(probabilities, roi).tolist() == pytest.approx([half])  # 0 log 0 = 0


def test_one_hot_puts_classes_second() -> None:
    labels = torch.tensor([[[0, 2], [1, 1]]])
    probabilities = one_hot(labels, 3, torch.float64)
    assert probabilities.shape == (1, 3, 2, 2)
    assert probabilities.dtype == torch.float64
    assert torch.equal(probabilities.argmax(1), labels)
    assert torch.equal(probabilities.sum(1), torch.ones(1, 2, 2, dtype=torch.float64))


def test_cores_that_this_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {0, 3, 5}, raising=False)
    assert usable_cores() == 3
    monkeypatch.delattr("os.sched_getaffinity")  # as on macOS and Windows
    monkeypatch.setattr("os.cpu_count", lambda: 7)
    assert usable_cores() == 7
    monkeypatch.setattr("os.cpu_count", lambda: None)
    assert usable_cores() == 1


def test_seeds_outside_the_region_of_interest_contradict_nothing() -> None:
    """And those of an image in which their label is allowed neither."""
    roi = torch.ones(2, 3, 4, dtype=torch.bool)
    roi[0, 0, 0] = False
    fixed = torch.full((2, 3, 4), -1)
    fixed[:, 0, 0] = 1
    allowed = torch.tensor([[True, False, True], [True, True, True]])
    solver = Recorder()
    solve(GridCRF().bind(torch.zeros(2, 1, 3, 4), roi), torch.zeros(2, 3, 3, 4), solver, fixed=fixed, allowed=allowed)
    assert solver.seen().allowed is allowed
    fixed[0, 0, 1] = 1
    with pytest.raises(regloss.UsageError, match="fixed gives 1 pixels of image 0"):
        solve(
            GridCRF().bind(torch.zeros(2, 1, 3, 4), roi), torch.zeros(2, 3, 3, 4), solver, fixed=fixed, allowed=allowed
        )
