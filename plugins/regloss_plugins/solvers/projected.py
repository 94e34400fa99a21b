"""Constraints that are reached by filling a region: solve, fill, hold what was filled, solve again.

    min over s in the simplex at every pixel of   <unary, s> + entropy <s, log s> + R(s)     with the region of s in C

for constraints C without a convex form, of which all that is known is a map into C that adds pixels to a region
(`ConvexShape`). From A empty, repeat until A no longer grows:

    s = argmin of the problem without C, but with the pixels of A given (another solver, from where it ended last)
    A = A and the pixels that the map adds to s

So s lies in C in the end, R has seen what was added, and among all s with these pixels given it is as good as the other
solver makes it. A grows in every round, so that there are at most as many rounds as pixels, and few in fact. The bound
is that of the problem without C, which is a bound on this one. C is not convex, and no other s in C is ruled out.

Differentiated, s depends on the costs where it was not filled; where it was, it does not move. A network whose
predictions are still noise, and filled nearly everywhere, would learn nothing from that. So by default the gradient is
handed straight through: forward the filled s, backward the derivative of the first, unfilled one.

Source: Liu, Wang, Tai, arXiv:2002.03989 (the projection between steps of threshold dynamics; there what was added is
given free again in each step).
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from regloss.checks import check_at_least_one, check_not_negative
from regloss.constraint import Constraints
from regloss.errors import MissingForm, UsageError
from regloss.forms import Concave, ConcaveFunction, Form, Graph, GridGraph, Saddle
from regloss.grid import spread
from regloss.numerics import one_hot, widest_float
from regloss.registry import create, name_of, resolve
from regloss.regularizer import Constrained, form_names
from regloss.solver import DifferentiableSolver, Problem, Pullback, Solution, Solver, statuses

# Probability of other labels at a pixel that was filled: finite in logarithms, and far from 1/2.
_UNSURE = 1e-7


@dataclass(frozen=True)
class ProjectedState:
    """Where `Projected` stopped.

    Attributes:
        free: of the other solver, without the constraint.
        held: of the other solver, with the filled pixels given.
        labels: (B, *S) int64 labels of the pixels that were filled, -1 elsewhere.
    """

    free: Any
    held: Any
    labels: Tensor


@dataclass(frozen=True)
class Projected(DifferentiableSolver):
    """Another solver, and the fill of what it finds; batched, on any device that the other solver takes.

    Args:
        max_steps: of the other solver, each time, if it iterates over probabilities; >= 1.
        tolerance: likewise, >= 0.
        inner: the other solver: an object, a name or a table, whose form the rest of the prior must offer. "auto" =
            pdhg for saddle forms and where there is no other prior, dca for concave ones and sums of both, and without
            entropy alpha-expansion for graphs.
        max_rounds: largest number of times that it is asked, >= 1; the last fill counts in any case.
        straight_through: hand gradients through the fill; False = the derivative, 0 at pixels that were filled.

    Raises:
        UsageError: a setting outside its range.

    >>> from regloss import ConvexShape, solve
    >>> unary = torch.tensor([[[0, 0, 0, 0, 0], [-1, -1, 1, -1, -1]]]).float()
    >>> solve(ConvexShape(radii=(1.5,)).bind(torch.zeros(1, 1, 5)), unary, Projected(), entropy=0.5).labels
    tensor([[1, 1, 1, 1, 1]])
    """

    max_steps: int = 300
    tolerance: float = 1e-5
    inner: Any = "auto"
    max_rounds: int = 20
    straight_through: bool = True
    accepts: ClassVar[tuple[type[Form], ...]] = (Constrained,)

    def __post_init__(self) -> None:
        check_at_least_one(max_steps=self.max_steps, max_rounds=self.max_rounds)
        check_not_negative(tolerance=self.tolerance)

    def minimise(self, problem: Problem) -> Solution:
        """Solve and fill all images of the batch side by side."""
        rest, inner, constraints = self._parts(problem)
        warm = problem.warm
        free = inner.minimise(replace(rest, warm=warm.free if isinstance(warm, ProjectedState) else warm))
        held, steps = free, free.steps.clone()
        labels = torch.full_like(free.labels, -1)
        quiet = torch.zeros(len(labels), dtype=torch.bool, device=labels.device)
        for number in range(self.max_rounds):
            s = self._log_iterate(inner, self._given(rest, labels), held)
            added = self._added(constraints, s, labels)
            quiet = ~(added >= 0).flatten(1).any(1)
            labels = torch.where(labels >= 0, labels, added)
            if bool(quiet.all()) or number == self.max_rounds - 1:
                break
            held = inner.minimise(replace(self._given(rest, labels), warm=held.state, callback=None))
            steps = steps + torch.where(quiet, 0, held.steps)
        chosen = one_hot(labels.clamp(min=0), s.shape[1], s.dtype)
        probabilities = torch.where((labels >= 0).unsqueeze(1), chosen, s.exp()).to(problem.unary.dtype)
        done = torch.tensor([status.is_done for status in held.status], device=labels.device) & quiet
        return Solution(
            probabilities=probabilities,
            labels=probabilities.argmax(1),
            # Of the unfilled s where pixels were filled last; `regloss.solve` looks at the filled one itself.
            energy=held.energy,
            bound=free.bound,
            steps=steps,
            status=statuses(done.tolist()),
            start_energy=free.start_energy,
            state=ProjectedState(free.state if free.state is not None else free.labels, held.state, labels),
        )

    def parameters(self, form: Form) -> tuple[Tensor, ...]:
        """Those of the other solver."""
        assert isinstance(form, Constrained)
        if not form.rest:
            return ()
        inner = self._differentiable(self._inner(form, 1.0))
        return inner.parameters(form.rest[_kind(inner, form)]())

    def log_probabilities(self, problem: Problem, solution: Solution) -> Tensor:
        """Of the other solver where nothing was filled; nearly certain where something was."""
        rest, inner, _ = self._parts(problem)
        state = solution.state
        assert isinstance(state, ProjectedState)
        given = self._given(rest, state.labels)
        found = self._differentiable(inner).log_probabilities(given, replace(solution, state=state.held))
        return _filled(found, state.labels)

    def unroll(self, problem: Problem, entropy: Tensor) -> Tensor:
        """The other solver's steps, with what a run without derivative has filled."""
        rest, inner, _ = self._parts(replace(problem, entropy=float(entropy.detach())))
        plain = replace(problem, unary=problem.unary.detach(), entropy=float(entropy.detach()))
        with torch.no_grad():
            solution = self.minimise(plain)
        state = solution.state
        assert isinstance(state, ProjectedState)
        solver = self._differentiable(inner)
        start = problem.warm.free if isinstance(problem.warm, ProjectedState) else problem.warm
        if not self.straight_through:
            given = replace(self._given(rest, state.labels), warm=start)
            return _filled(solver.unroll(given, entropy), state.labels)
        free = solver.unroll(replace(rest, warm=start), entropy)
        with torch.no_grad():
            shown = self.log_probabilities(plain, solution)
        return free + (shown - free).detach()

    def pullback(
        self, problem: Problem, solution: Solution, cotangent: Tensor, *, max_steps: int, tolerance: float
    ) -> Pullback:
        """The other solver's, at its unfilled solution, or at the filled one with no force on what was filled."""
        rest, inner, _ = self._parts(problem)
        state, solver = solution.state, self._differentiable(inner)
        assert isinstance(state, ProjectedState)
        if self.straight_through:
            at, given = replace(solution, state=state.free, log_probabilities=None), rest
        else:
            at = replace(solution, state=state.held, log_probabilities=None)
            given = self._given(rest, state.labels)
            cotangent = cotangent.masked_fill((state.labels >= 0).unsqueeze(1), 0)
        return solver.pullback(given, at, cotangent, max_steps=max_steps, tolerance=tolerance)

    def _parts(self, problem: Problem) -> tuple[Problem, Solver, Constraints | None]:
        """The problem without the constraint, the other solver, and the constraint."""
        form = problem.form
        assert isinstance(form, Constrained)
        inner = self._inner(form, problem.entropy)
        constraints = Constraints.of(form.terms, problem.unary, problem.fixed, problem.allowed)
        built = form.rest[_kind(inner, form)]() if form.rest else _nothing(inner, problem.entropy)
        return replace(problem, form=built, constraints=None), inner, constraints

    def _inner(self, form: Constrained, entropy: float) -> Solver:
        if self.inner != "auto":
            chosen = resolve("solver", self.inner)
        elif entropy > 0:
            chosen = create("solver", "pdhg" if Saddle in form.rest or not form.rest else "dca")
        else:
            graph = GridGraph in form.rest or Graph in form.rest
            chosen = create("solver", "alpha-expansion" if graph else "dca")
        if isinstance(chosen, Projected):
            raise UsageError('projected needs another solver for the rest of the prior, such as inner = "pdhg".')
        if isinstance(chosen, DifferentiableSolver):
            settings = {"max_steps": self.max_steps, "tolerance": self.tolerance}
            chosen = dataclasses.replace(chosen, **settings)  # type: ignore[type-var]
        found: Solver = chosen
        return found

    def _differentiable(self, inner: Solver) -> DifferentiableSolver:
        if not isinstance(inner, DifferentiableSolver):
            raise UsageError(f"{name_of(inner)} cannot be differentiated. Give projected another inner solver (pdhg).")
        return inner

    def _given(self, rest: Problem, labels: Tensor) -> Problem:
        """``rest`` with the filled pixels given."""
        seeds = torch.full_like(labels, -1) if rest.fixed is None else rest.fixed.to(labels)
        return replace(rest, fixed=torch.where(labels >= 0, labels, seeds))

    def _log_iterate(self, inner: Solver, problem: Problem, solution: Solution) -> Tensor:
        if problem.entropy > 0 and isinstance(inner, DifferentiableSolver):
            return inner.log_probabilities(problem, solution)
        return solution.probabilities.log()

    def _added(self, constraints: Constraints | None, logs: Tensor, labels: Tensor) -> Tensor:
        """(B, *S) labels of pixels that a fill made certain of another label, -1 elsewhere."""
        if constraints is None:  # they have no weight
            return torch.full_like(labels, -1)
        before = logs.to(widest_float(logs.device)).exp()
        after, violation = constraints.feasible(logs)
        sure = after.amax(1) == 1
        moved = (after - before).abs().amax(1) > 1e-6
        changed = sure & moved & (labels < 0) & spread(violation <= 0, labels)
        return torch.where(changed, after.argmax(1), -1)


class _Zero(ConcaveFunction):
    """R = 0."""

    def value(self, s: Tensor) -> Tensor:
        return s.new_zeros(len(s))

    def supergradient(self, s: Tensor) -> Tensor:
        return torch.zeros_like(s)

    def __getitem__(self, images: Tensor) -> _Zero:
        return self


def _filled(logs: Tensor, labels: Tensor) -> Tensor:
    """``logs`` (B, K, *S), nearly certain where there are labels."""
    classes = logs.shape[1]
    sure = one_hot(labels.clamp(min=0), classes, logs.dtype)
    filled = torch.where(sure > 0, math.log1p(-_UNSURE), math.log(_UNSURE / (classes - 1)))
    return torch.where((labels >= 0).unsqueeze(1), filled, logs)


def _kind(inner: Solver, form: Constrained) -> type[Form]:
    """The form in which the other solver takes the rest of the prior."""
    for kind in inner.accepts:
        for offered in form.rest:
            if issubclass(offered, kind):
                return offered
    needed = " or ".join(kind.__name__ for kind in inner.accepts)
    raise MissingForm(
        f"Cannot use {name_of(inner)} for the rest of the prior, beside {form.names}: it offers "
        f"{form_names(form.rest)}, {name_of(inner)} needs {needed}. Give projected another inner solver."
    )


def _nothing(inner: Solver, entropy: float) -> Form:
    """R = 0, in a form that the other solver takes."""
    if entropy > 0 and any(issubclass(Saddle, kind) for kind in inner.accepts):
        return Saddle(())
    if any(issubclass(Concave, kind) for kind in inner.accepts):
        return Concave(_Zero())
    raise MissingForm(f"Where there is no other prior, {name_of(inner)} has nothing to solve. Use pdhg or dca.")
