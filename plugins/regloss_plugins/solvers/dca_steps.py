"""The convex problem of one step of `DCA`, for each kind of convex part Q and each method.

    min over s in the simplex at every pixel of   <unary + slope, s> + entropy <s, log s> + Q(s)

    Q                      nested                                       single-loop
    0                      softmax                                      the same
    a volume constraint    Newton's method on one number per class      one scaling step on these numbers
    anything else          another solver for saddle forms, warm        one step of projected gradient ascent on the
                                                                        dual variables

A single-loop step moves the dual variables once, from where they are and at the s that the step starts from, and takes
the minimiser that belongs to them. It does not solve the problem; what it has not met is its ``done``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from regloss import grid
from regloss.dual_problem import dual_steps
from regloss.errors import UsageError
from regloss.forms import Saddle, SaddlePart
from regloss.numerics import double, double_sum, one_hot, widest_float
from regloss.operators import ClassSums
from regloss.registry import name_of
from regloss.solver import DifferentiableSolver, Problem, Pullback, Solution, Solver, statuses
from regloss_plugins.kernels.volumes import respond, scale_to_volumes, scaling_step, volume_softmax
from regloss_plugins.solvers.gibbs import divided, gibbs, log_gibbs
from regloss_plugins.solvers.pdhg import PDHG, PDHGState

# Conjugate-gradient steps for the derivative of another solver's solution, within unrolled steps.
_ADJOINT_STEPS = 1000


class Step(NamedTuple):
    """Where a step ended."""

    probabilities: Tensor  # (B, K, *S)
    state: Any
    done: Tensor  # (B,) bool, whether the step's problem was solved
    bound: Tensor  # (B,) on the step's problem; -inf where none is known
    steps: Tensor  # (B,)


class ConvexStep(ABC):
    """Solves the problem above, or takes a step towards its solution; and its derivatives."""

    @abstractmethod
    def first(self, state: Any) -> Any:
        """The state to begin with, given None or what a user gave."""

    @abstractmethod
    def __call__(self, slope: Tensor, entropy: float, state: Any, s: Tensor) -> Step:
        """The step at ``s`` (B, K, *S), from an earlier step's state."""

    @abstractmethod
    def log_probabilities(self, slope: Tensor, entropy: float | Tensor, state: Any) -> Tensor:
        """Log s at the state where it ended, differentiable where the step itself is."""

    @abstractmethod
    def unroll(self, slope: Tensor, entropy: Tensor, state: Any, log_s: Tensor) -> tuple[Tensor, Any]:
        """Log s and state, as operations that autograd can differentiate in unary, slope, entropy and parameters."""

    @abstractmethod
    def pullback(
        self,
        slope: Tensor,
        entropy: float,
        state: Any,
        log_probabilities: Tensor,
        cotangent: Tensor,
        *,
        max_steps: int,
        tolerance: float,
    ) -> Pullback:
        """Gradients of the problem's solution at the state where it ended, for the ``cotangent`` of log s."""


def convex_step(problem: Problem, cost: Tensor, saddle: Saddle, solver: Solver | None, tolerance: float) -> ConvexStep:
    """The step for a convex part.

    Args:
        problem: its ``fixed`` is given, and -1 outside the region of interest.
        cost: (B, K, *S), its unary with inf where a label cannot be taken.
        saddle: the convex part.
        solver: for convex parts that are no volume constraint; None = single-loop.
        tolerance: up to which a single-loop step calls its problem solved: gap per pixel, or error of the volumes as a
            fraction of the pixels.
    """
    if not saddle.parts:
        return _SoftmaxStep(cost)
    if len(saddle.parts) == 1 and type(saddle.parts[0].operator) is ClassSums:
        volume = saddle.parts[0]
        return _ScalingStep(problem, cost, volume, tolerance) if solver is None else _NewtonStep(problem, cost, volume)
    return _AscentStep(problem, cost, saddle, tolerance) if solver is None else _SolverStep(problem, saddle, solver)


def pick_state(state: Any, images: Tensor) -> Any:
    """The state of some images of the batch.

    Raises:
        TypeError: it is none of those that this module knows.
    """
    if state is None:
        return None
    if isinstance(state, Tensor):
        return state[images.to(state.device)]
    if isinstance(state, PDHGState):
        return PDHGState(tuple(dual[images] for dual in state.duals))
    raise TypeError(f"Images cannot be picked from a {type(state).__name__}.")


def is_picked(state: Any) -> bool:
    """Whether `pick_state` knows its kind."""
    return state is None or isinstance(state, Tensor | PDHGState)


def hold_state(active: Tensor, new: Any, old: Any) -> Any:
    """``new`` for the images that are ``active`` (B,), ``old`` for the others; new where there is no old one."""
    if isinstance(new, Tensor) and isinstance(old, Tensor):
        return torch.where(grid.spread(active.to(new.device), new), new, old)
    if isinstance(new, PDHGState) and isinstance(old, PDHGState):
        pairs = zip(new.duals, old.duals, strict=True)
        return PDHGState(tuple(hold_state(active, one, before) for one, before in pairs))
    return new


def put_state(whole: Any, images: Tensor, part: Any, batch: int) -> Any:
    """``whole``, the state of a batch, with ``part`` for some images; all of them at first, when whole is None."""
    if isinstance(part, Tensor):
        # Cloned, since a step may hand on what the user gave.
        new = part.new_empty((batch, *part.shape[1:])) if whole is None else whole.clone()
        new[images.to(new.device)] = part
        return new
    if isinstance(part, PDHGState):
        before = [None] * len(part.duals) if whole is None else whole.duals
        pairs = zip(before, part.duals, strict=True)
        return PDHGState(tuple(put_state(old, images, dual, batch) for old, dual in pairs))
    return part


class _GibbsStep(ConvexStep):
    """A step that ends at the softmax of -(cost + slope + K^T y) / entropy, y the dual variables in its state."""

    cost: Tensor

    @abstractmethod
    def total(self, slope: Tensor, state: Any) -> Tensor:
        """(B, K, *S) cost + slope + K^T y."""

    def log_probabilities(self, slope: Tensor, entropy: float | Tensor, state: Any) -> Tensor:
        return log_gibbs(self.total(slope, state), entropy)


# --------------------------------------------------------------------------------------------------------------------
# Q = 0


class _SoftmaxStep(_GibbsStep):
    """Without a convex part."""

    def __init__(self, cost: Tensor) -> None:
        self.cost = cost

    def total(self, slope: Tensor, state: Any) -> Tensor:
        return self.cost + slope

    def first(self, state: Any) -> None:
        return None

    def __call__(self, slope: Tensor, entropy: float, state: Any, s: Tensor) -> Step:
        return _step(gibbs(self.total(slope, None), entropy), None)

    def unroll(self, slope: Tensor, entropy: Tensor, state: Any, log_s: Tensor) -> tuple[Tensor, None]:
        return self.log_probabilities(slope, entropy, None), None

    def pullback(
        self,
        slope: Tensor,
        entropy: float,
        state: Any,
        log_probabilities: Tensor,
        cotangent: Tensor,
        *,
        max_steps: int,
        tolerance: float,
    ) -> Pullback:
        v = (cotangent - log_probabilities.exp() * cotangent.sum(1, keepdim=True)) / entropy
        return Pullback(-v, entropy_gradient(v, log_probabilities), ())


def _step(probabilities: Tensor, state: Any, done: Tensor | None = None) -> Step:
    batch, device = probabilities.shape[0], probabilities.device
    done = torch.ones(batch, dtype=torch.bool, device=device) if done is None else done
    bound = probabilities.new_full((batch,), -float("inf"))
    return Step(probabilities, state, done, bound, torch.ones_like(done, dtype=torch.int64))


def entropy_gradient(v: Tensor, log_probabilities: Tensor) -> Tensor:
    """- <v, log s>; where s = 0, so is v, and the product is 0."""
    return -(v * log_probabilities.masked_fill(log_probabilities == -float("inf"), 0)).sum()


# --------------------------------------------------------------------------------------------------------------------
# Volumes


class _VolumePart(_GibbsStep):
    """Q = volume constraint; the state is its dual variable q (B, K), float64, where `double` puts it.

    Classes that seeds fill already take no further pixels, and need no dual variable.
    """

    def __init__(self, problem: Problem, cost: Tensor, part: SaddlePart) -> None:
        batch, classes, *size = cost.shape
        self.part = part
        self.inside = grid.full_roi(problem.roi, (batch, *size), cost.device)
        assert problem.fixed is not None
        free = self.inside & (problem.fixed < 0)
        seeded = one_hot(problem.fixed.clamp(min=0), classes, torch.bool) & (self.inside & ~free).unsqueeze(1)
        counts = double(seeded.flatten(2).sum(2))
        lower, upper = (bound.expand_as(counts) for bound in _volumes(part, problem.unary))
        self.pixels = double(self.inside.flatten(1).sum(1, keepdim=True))
        slack = 1e-9 * self.pixels
        allowed = torch.ones_like(counts, dtype=torch.bool)
        if problem.allowed is not None:
            allowed = problem.allowed.to(counts.device)
        closed = ~allowed | (upper - counts <= slack)
        _refuse_impossible(lower - counts, upper - counts, closed, double(free.flatten(1).sum(1, keepdim=True)), slack)
        # A closed class keeps its seeds: that is its volume, to the last digit.
        self.lower, self.upper = torch.where(closed, counts, lower), torch.where(closed, counts, upper)
        forbidden = closed.to(free.device).reshape(batch, classes, *[1] * len(size)) & free.unsqueeze(1)
        self.cost = cost.masked_fill(forbidden, float("inf"))

    def total(self, slope: Tensor, state: Any) -> Tensor:
        return self.cost + slope - self.spread(state.to(slope))

    def pullback(
        self,
        slope: Tensor,
        entropy: float,
        state: Any,
        log_probabilities: Tensor,
        cotangent: Tensor,
        *,
        max_steps: int,
        tolerance: float,
    ) -> Pullback:
        s = log_probabilities.exp()
        start = (cotangent - s * cotangent.sum(1, keepdim=True)) / entropy
        u, start = (double(part.flatten(2)) for part in (s, start))
        weights = self.inside.flatten(1).to(u)
        v, by_volume = respond(u, state, self.lower, self.upper, weights, entropy, start)
        v = v.reshape(s.shape).to(s)
        parameters: tuple[Tensor, ...] = ()
        if self.part.parameters:  # the shift, which is volumes / sqrt(pixels)
            root = self.pixels.sqrt()
            sides = torch.stack([by_volume * (state < 0), -by_volume * (state > 0)], dim=1)
            (shift,) = self.part.parameters
            by_shift = (by_volume if shift.ndim == 2 else sides) * root.reshape(-1, *[1] * (shift.ndim - 1))
            parameters = (by_shift.sum_to_size(shift.shape).to(shift),)
        return Pullback(-v, entropy_gradient(v, log_probabilities), parameters)

    def spread(self, dual: Tensor) -> Tensor:
        """``dual`` (B, K) at every pixel that counts."""
        return dual.reshape(*dual.shape, *[1] * (self.cost.ndim - 2)) * self.inside.unsqueeze(1)

    def checked(self, state: Any) -> Tensor | None:
        """A dual variable (B, K) that was given, or None."""
        if state is None:
            return None
        expected = tuple(self.lower.shape)
        if not isinstance(state, Tensor) or tuple(state.shape) != expected:
            found = tuple(state.shape) if isinstance(state, Tensor) else type(state).__name__
            raise UsageError(
                f"A start of dca with a volume constraint must hold one number per class, (B, K) = {expected}; got "
                f"{found}. It comes from another problem: start from its probabilities alone."
            )
        return state.detach().to(self.lower)


def _volumes(part: SaddlePart, unary: Tensor) -> tuple[Tensor, Tensor]:
    """Least and largest volume of each class in pixels, (B, K) float64, from what the class sums are shifted by."""
    operator = part.operator
    assert isinstance(operator, ClassSums)
    operator.apply(unary)  # refuses volumes that are for another number of classes
    assert isinstance(part.shift, Tensor)
    numbers = double(part.shift) * operator.pixels.sqrt().reshape(-1, *[1] * (part.shift.ndim - 1))
    return (-numbers[:, 1], numbers[:, 0]) if operator.two_sided else (numbers, numbers)


def _refuse_impossible(lower: Tensor, upper: Tensor, closed: Tensor, free: Tensor, slack: Tensor) -> None:
    """``lower`` and ``upper`` (B, K) are what is left for the ``free`` (B, 1) pixels."""
    for wrong, why in (
        ((upper < -slack).any(1), "more pixels are fixed to a class than its volume"),
        ((closed & (lower > slack)).any(1), "a class with a volume is not allowed"),
        (lower.clamp(min=0).sum(1) > (free + slack).squeeze(1), "volumes exceed the pixels that are free"),
        (upper.masked_fill(closed, 0).sum(1) < (free - slack).squeeze(1), "allowed volumes do not fill the image"),
    ):
        if bool(wrong.any()):
            raise UsageError(
                f"The volume constraint cannot be met in image {int(wrong.nonzero()[0])} of the batch: {why}. Change "
                "volumes, seeds (fixed) or allowed labels so that they agree."
            )


class _NewtonStep(_VolumePart):
    """Volumes met exactly, by Newton's method; differentiated implicitly also where steps are unrolled."""

    def first(self, state: Any) -> Tensor | None:
        return self.checked(state)

    def __call__(self, slope: Tensor, entropy: float, state: Any, s: Tensor) -> Step:
        found = scale_to_volumes(
            self.cost + slope, entropy, self.lower.detach(), self.upper.detach(), self.inside, state
        )
        device = slope.device
        done, value = found.done.to(device), found.value.to(device, widest_float(device))
        return Step(found.probabilities, found.dual, done, value, torch.full_like(done, found.steps, dtype=torch.int64))

    def unroll(self, slope: Tensor, entropy: Tensor, state: Any, log_s: Tensor) -> tuple[Tensor, None]:
        # The problem depends on costs / entropy alone.
        scaled = divided(self.cost + slope, entropy)
        probabilities = volume_softmax(scaled, 1.0, self.lower, self.upper, self.inside)
        return probabilities.clamp(min=torch.finfo(probabilities.dtype).tiny).log(), None


class _ScalingStep(_VolumePart):
    """One scaling step of the dual variable at the s that is given."""

    def __init__(self, problem: Problem, cost: Tensor, part: SaddlePart, tolerance: float) -> None:
        super().__init__(problem, cost, part)
        self.tolerance = tolerance

    def first(self, state: Any) -> Tensor:
        given = self.checked(state)
        return torch.zeros_like(self.lower.detach()) if given is None else given

    def __call__(self, slope: Tensor, entropy: float, state: Any, s: Tensor) -> Step:
        dual = scaling_step(state, self._masses(s), entropy, self.lower.detach(), self.upper.detach())
        new = gibbs(self.total(slope, dual), entropy)
        masses = self._masses(new)
        between = torch.minimum(torch.maximum(masses, self.lower), self.upper)
        wanted = torch.where(dual > 0, self.lower, torch.where(dual < 0, self.upper, between))
        done = (wanted - masses).abs().amax(1) <= self.tolerance * self.pixels.squeeze(1)
        return _step(new, dual, done.to(new.device))

    def unroll(self, slope: Tensor, entropy: Tensor, state: Any, log_s: Tensor) -> tuple[Tensor, Tensor]:
        dual = scaling_step(state, self._masses(log_s.exp()), double(entropy), self.lower, self.upper)
        return self.log_probabilities(slope, entropy, dual), dual

    def _masses(self, s: Tensor) -> Tensor:
        return double_sum((s * self.inside.unsqueeze(1)).flatten(2))


# --------------------------------------------------------------------------------------------------------------------
# Other convex parts


class _SolverStep(ConvexStep):
    """Any Q, by another solver; differentiated implicitly also where steps are unrolled."""

    def __init__(self, problem: Problem, saddle: Saddle, solver: Solver) -> None:
        self.problem = replace(problem, form=saddle, callback=None)  # its steps are no steps of the whole
        self.solver = solver

    def first(self, state: Any) -> Any:
        return state

    def __call__(self, slope: Tensor, entropy: float, state: Any, s: Tensor) -> Step:
        found = self.solver.minimise(_given(self.problem, slope, entropy, state))
        done = torch.tensor([status.is_done for status in found.status], device=slope.device)
        return Step(found.probabilities.to(slope), found.state, done, found.bound, found.steps)

    def log_probabilities(self, slope: Tensor, entropy: float | Tensor, state: Any) -> Tensor:
        given = _given(self.problem, slope, float(entropy), state)
        return self._differentiable().log_probabilities(given, _ended(slope, state))

    def unroll(self, slope: Tensor, entropy: Tensor, state: Any, log_s: Tensor) -> tuple[Tensor, Any]:
        solver = self._differentiable()
        states: list[Any] = []
        apply: Any = _SolvedImplicitly.apply
        parameters = solver.parameters(self.problem.form)
        found: Tensor = apply(solver, self.problem, state, states, self.problem.unary + slope, entropy, *parameters)
        return found, states[0]

    def pullback(
        self,
        slope: Tensor,
        entropy: float,
        state: Any,
        log_probabilities: Tensor,
        cotangent: Tensor,
        *,
        max_steps: int,
        tolerance: float,
    ) -> Pullback:
        given = _given(self.problem, slope, entropy, state)
        solution = _ended(log_probabilities.exp(), state)
        return self._differentiable().pullback(given, solution, cotangent, max_steps=max_steps, tolerance=tolerance)

    def _differentiable(self) -> DifferentiableSolver:
        if not isinstance(self.solver, DifferentiableSolver):
            raise UsageError(f"{name_of(self.solver)} cannot be differentiated. Give dca another convex solver (pdhg).")
        return self.solver


class _SolvedImplicitly(torch.autograd.Function):
    """Log s of a solver, differentiated by its pullback."""

    @staticmethod
    def forward(
        ctx: Any,
        solver: DifferentiableSolver,
        problem: Problem,
        state: Any,
        states: list[Any],  # receives the state where the solver ended
        unary: Tensor,
        entropy: Tensor,
        *parameters: Tensor,
    ) -> Tensor:
        ctx.solver = solver
        ctx.problem = replace(problem, unary=unary.detach(), entropy=float(entropy.detach()), warm=state)
        ctx.solution = solver.minimise(ctx.problem)
        ctx.entropy_type = entropy.dtype
        states.append(ctx.solution.state)
        return solver.log_probabilities(ctx.problem, ctx.solution)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        tolerance = 1e-10 if cotangent.dtype == torch.float64 else 1e-6
        found = ctx.solver.pullback(ctx.problem, ctx.solution, cotangent, max_steps=_ADJOINT_STEPS, tolerance=tolerance)
        return (None, None, None, None, found.unary, found.entropy.to(ctx.entropy_type), *found.parameters)


class _AscentStep(_GibbsStep):
    """Any Q, by one step of projected gradient ascent on its dual variables, at the s that is given."""

    def __init__(self, problem: Problem, cost: Tensor, saddle: Saddle, tolerance: float) -> None:
        self.problem, self.cost, self.saddle, self.tolerance = replace(problem, form=saddle), cost, saddle, tolerance
        self.bounds = saddle.diagonal_bound(problem.unary)
        inside = grid.full_roi(problem.roi, (cost.shape[0], *cost.shape[2:]), cost.device)
        self.pixels = inside.flatten(1).sum(1)

    def total(self, slope: Tensor, state: Any) -> Tensor:
        return self.cost + slope + self.saddle.adjoint(state.duals)

    def first(self, state: Any) -> PDHGState:
        starts = self.saddle.zero_duals(self.problem.unary)
        if state is not None:
            expected = [tuple(start.shape) for start in starts]
            given = [tuple(dual.shape) for dual in state.duals] if isinstance(state, PDHGState) else type(state)
            if given != expected:
                raise UsageError(
                    f"A start of dca for this prior must hold dual variables of shapes {expected}; got {given}. It "
                    "comes from another problem: start from its probabilities alone."
                )
            starts = [dual.detach().to(start) for dual, start in zip(state.duals, starts, strict=True)]
        return PDHGState(tuple(part.dual_set.project(y) for part, y in zip(self.saddle.parts, starts, strict=True)))

    def __call__(self, slope: Tensor, entropy: float, state: Any, s: Tensor) -> Step:
        ascended = self._ascend(s, entropy, state.duals)
        new = gibbs(self.total(slope, ascended), entropy)
        wide = widest_float(s.device)
        gap = torch.zeros(len(s), dtype=wide, device=s.device)
        for part, dual in zip(self.saddle.parts, ascended.duals, strict=True):
            gap = gap + part.dual_set.fenchel_gap(part.residual(new).to(wide), dual.to(wide))
        return _step(new, ascended, gap.abs() <= self.tolerance * self.pixels)

    def unroll(self, slope: Tensor, entropy: Tensor, state: Any, log_s: Tensor) -> tuple[Tensor, PDHGState]:
        ascended = self._ascend(log_s.exp(), entropy, state.duals)
        return self.log_probabilities(slope, entropy, ascended), ascended

    def pullback(
        self,
        slope: Tensor,
        entropy: float,
        state: Any,
        log_probabilities: Tensor,
        cotangent: Tensor,
        *,
        max_steps: int,
        tolerance: float,
    ) -> Pullback:
        # Where it stands still it has solved the problem, whose solution can be differentiated by any solver.
        given = _given(self.problem, slope, entropy, state)
        solution = _ended(log_probabilities.exp(), state)
        return PDHG().pullback(given, solution, cotangent, max_steps=max_steps, tolerance=tolerance)

    def _ascend(self, s: Tensor, entropy: float | Tensor, duals: Sequence[Tensor]) -> PDHGState:
        moved = []
        for part, dual, bound in zip(self.saddle.parts, duals, self.bounds, strict=True):
            moved.append(part.dual_set.project(torch.addcmul(dual, dual_steps(2 * entropy, bound), part.residual(s))))
        return PDHGState(tuple(moved))


def _given(problem: Problem, slope: Tensor, entropy: float, state: Any) -> Problem:
    """The problem of a step, begun from a state."""
    return replace(problem, unary=problem.unary + slope, entropy=entropy, warm=state)


def _ended(probabilities: Tensor, state: Any) -> Solution:
    """A solution of which only probabilities and state are known."""
    unknown = probabilities.new_full((probabilities.shape[0],), float("nan"))
    return Solution(
        probabilities=probabilities,
        labels=probabilities.argmax(1),
        energy=unknown,
        bound=unknown,
        steps=unknown.new_zeros(unknown.shape, dtype=torch.int64),
        status=statuses([True] * len(unknown)),
        start_energy=unknown,
        state=state,
    )
