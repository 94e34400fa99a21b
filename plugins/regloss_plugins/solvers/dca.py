"""Difference-of-convex algorithm: a concave prior, alone or with a convex one, by linearising the concave part.

    min over s in the simplex at every pixel of
        E(s) = <unary, s> + entropy <s, log s> + R(s) + Q(s),        entropy > 0, R concave, Q convex

With p a supergradient of R at s, a step is s+ = argmin <unary + p, s> + entropy <s, log s> + Q(s): without Q,

    s+ = softmax(-(unary + p) / entropy)

and E falls by at least entropy KL(s | s+), however long the step, because R lies below its tangent. Where the form says
that R is only below its tangents plus c/2 |s - t|^2, steps are damped by gamma KL(s+ | s), gamma = (c - entropy)_+ / 2,

    s+ = softmax((gamma log s - unary - p) / (entropy + gamma))

and E falls by at least max(c, entropy) / 2 |s - s+|^2. (Pinsker: KL(a | b) >= |a - b|^2 for probabilities.) What is
reached is a stationary point, which depends on the start: R is not convex. If R curves by less than the entropy
everywhere (weight < entropy for threshold dynamics) there is only one.

With Q, each step is a convex problem. If Q is a volume constraint alone, it is solved exactly by Newton's method on one
number per class; otherwise by another solver for saddle forms, which starts from where it ended a step before.

An image is done when an undamped step would change no probability of it by more than ``tolerance``; from then on it
does not change.

Source: Liu, Wang, Tai, arXiv:2002.03989 (threshold dynamics, which it solves by this step); Tao, An, "Convex analysis
approach to d.c. programming", 1997.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from regloss import grid
from regloss.errors import UsageError
from regloss.implicit import saddle_parameters
from regloss.registry import name_of, resolve
from regloss.regularizer import Concave, Form, Mixed, Saddle
from regloss.solver import (
    DifferentiableSolver,
    Problem,
    Pullback,
    Solution,
    Solver,
    Status,
    linear_energy,
    negative_entropy,
    one_hot,
    statuses,
)
from regloss_plugins.kernels.volumes import respond, scale_to_volumes, volume_softmax
from regloss_plugins.regularizers.volume import VolumeBlock


@dataclass(frozen=True)
class DCAState:
    """Where `DCA` starts or stopped; give one to ``warm`` to start from a network's softmax.

    Attributes:
        probabilities: (B, K, *S), non-negative; mass on labels that are not allowed is taken away, the rest normalised.
        convex: where the solver of the convex part starts; None = cold.
    """

    probabilities: Tensor
    convex: Any = None


@dataclass(frozen=True)
class DCA(DifferentiableSolver):
    """Difference-of-convex steps; batched, on any device, in the unary's precision.

    The energy never rises from step to step. The solution's bound is -inf as soon as there is a concave part.

    Args:
        max_steps: largest number of steps, >= 1.
        tolerance: a step that changes no probability by more than this ends it, >= 0.
        damped: damp steps where the form says that R is not quite concave; False = as published, without guarantee.
        convex: solver of the convex part, where there is one that is not a volume constraint: an object, a name or a
            table; it must accept saddle forms. E then falls only up to this solver's own gap.

    Raises:
        UsageError: a setting outside its range, entropy = 0, volumes that seeds or allowed labels make impossible.

    Two pixels that would rather be different than half and half:

    >>> from regloss import ThresholdDynamics, solve
    >>> unary = torch.tensor([[[[0.0, 0.0, 0.6, 0.0]], [[0.0, 0.0, 0.0, 0.0]]]])
    >>> term = ThresholdDynamics(weight=2.0, sigma=0.5).bind(torch.zeros(1, 1, 1, 4))
    >>> solve(term, unary, DCA(), entropy=0.5).labels
    tensor([[[1, 1, 1, 1]]])
    """

    max_steps: int = 200
    tolerance: float = 1e-6
    damped: bool = True
    convex: Any = "pdhg"
    accepts: ClassVar[tuple[type[Form], ...]] = (Concave, Mixed, Saddle)

    def __post_init__(self) -> None:
        if self.max_steps < 1:
            raise UsageError(f"max_steps must be at least 1; got {self.max_steps}.")
        if not 0 <= self.tolerance < float("inf"):
            raise UsageError(f"tolerance must be finite and not negative; got {self.tolerance}.")

    def minimise(self, problem: Problem) -> Solution:
        """Solve all images of the batch side by side."""
        unary = problem.unary
        # An entropy that is 0 in the unary's precision would divide by 0 all the same.
        if not problem.entropy >= torch.finfo(unary.dtype).tiny:
            raise UsageError(
                f"dca needs an entropy weight > 0; got entropy = {problem.entropy}. Give one, or use a solver over "
                "labels (alpha-expansion)."
            )
        concave, saddle = _parts(problem.form)
        problem = replace(problem, fixed=_seeds(problem))
        cost = _constrained(problem)
        step = self._convex_step(problem, cost, saddle)
        state = _checked_state(problem)
        if state is None:
            first = step(torch.zeros_like(unary), problem.entropy, None)
            s, convex = first.probabilities, first.state
        else:
            s, convex = _start(cost, state, problem.entropy), state.convex

        start_energy = _energy(problem, concave, saddle, s)
        if concave is None:
            found = step(torch.zeros_like(unary), problem.entropy, convex)
            return self._solution(problem, concave, saddle, found.probabilities, found, start_energy)

        gamma = self._damping(concave, problem.entropy)
        batch, spatial = unary.shape[0], [1] * (unary.ndim - 1)
        active = torch.ones(batch, dtype=torch.bool, device=unary.device)
        steps = torch.zeros(batch, dtype=torch.int64, device=unary.device)
        solved = torch.ones_like(active)
        for _ in range(self.max_steps):
            slope = concave.supergradient(s)
            found = step(slope, problem.entropy, convex)
            change = (found.probabilities - s).abs().flatten(1).amax(1)
            if gamma > 0:
                # Probabilities of 0 would stay there for ever.
                pull = -gamma * s.clamp(min=torch.finfo(s.dtype).eps).log()
                found = step(slope + pull, problem.entropy + gamma, found.state)
            s = torch.where(active.reshape(batch, *spatial), found.probabilities, s)
            solved = torch.where(active, found.done, solved)
            convex = found.state
            steps += active
            active &= change > self.tolerance
            if not bool(active.any()):
                break
        last = _Step(s, convex, solved & ~active, unary.new_full((batch,), -float("inf")), steps)
        return self._solution(problem, concave, saddle, s, last, start_energy)

    def _damping(self, concave: Concave, entropy: float) -> float:
        return max(0.0, concave.curvature - entropy) / 2 if self.damped else 0.0

    def parameters(self, form: Form) -> tuple[Tensor, ...]:
        """Those of the concave part, then those of the saddle form's blocks."""
        concave, saddle = _parts(form)
        return (*_concave_parameters(concave), *saddle_parameters(saddle))

    def log_probabilities(self, problem: Problem, solution: Solution) -> Tensor:
        """Of one more step, which changes the probabilities by no more than the last one did."""
        step, slope, state = self._last_step(problem, solution)
        return step.log_probabilities(slope, problem.entropy, state)

    def unroll(self, problem: Problem, entropy: Tensor) -> Tensor:
        """Exactly ``max_steps`` steps from softmax(-unary / entropy), or from the start that is given."""
        concave, saddle = _parts(problem.form)
        problem = replace(problem, fixed=_seeds(problem), entropy=float(entropy.detach()))
        cost = _constrained(problem)
        step = self._convex_step(problem, cost, saddle)
        state = _checked_state(problem)
        convex = None if state is None else state.convex
        nothing = torch.zeros_like(cost)
        if concave is None:
            return step.unroll(nothing, entropy, convex)
        first = None if state is None else _start(cost, state, problem.entropy).log()
        log_s = step.unroll(nothing, entropy, convex) if first is None else first
        # Damping depends on the entropy too.
        gamma = ((concave.curvature - entropy) / 2).clamp(min=0) if self.damped else torch.zeros_like(entropy)
        for _ in range(self.max_steps):
            slope = concave.supergradient(log_s.exp())
            if float(gamma.detach()) > 0:
                slope = slope - gamma * log_s.exp().clamp(min=torch.finfo(log_s.dtype).eps).log()
            log_s = step.unroll(slope, entropy + gamma, convex)
        return log_s

    def pullback(
        self, problem: Problem, solution: Solution, cotangent: Tensor, *, max_steps: int, tolerance: float
    ) -> Pullback:
        """Implicit differentiation of the fixed point, by an iteration that converges as fast as the steps do.

        With J the derivative of a step's solution by its costs (minus it), H the Hessian of R and g the cotangent,
        v = J (g - H v); it converges where the steps do, if not at a bifurcation.
        """
        concave, _ = _parts(problem.form)
        step, slope, state = self._last_step(problem, solution)
        log_s = step.log_probabilities(slope, problem.entropy, state)
        s, cotangent = log_s.exp(), cotangent.to(log_s)

        def through_step(given: Tensor) -> Pullback:
            return step.pullback(slope, problem.entropy, state, log_s, given, max_steps=max_steps, tolerance=tolerance)

        found = through_step(cotangent)
        if concave is None:
            return found
        gamma = self._damping(concave, problem.entropy)
        keep = gamma / (problem.entropy + gamma)  # a damped step's derivative damps the adjoint's too
        v = -found.unary
        for _ in range(max_steps):
            found = through_step(cotangent - s * _hessian_product(concave, s, v))
            new = torch.lerp(-found.unary, v, keep)
            change, size = (new - v).abs().flatten(1).amax(1), new.abs().flatten(1).amax(1)
            v = new
            if bool((change <= tolerance * size * (1 - keep)).all()):
                break
        learnt = _concave_parameters(concave)
        gradients: tuple[Tensor | None, ...] = ()
        if learnt:
            with torch.enable_grad():
                pulled = -(concave.supergradient(s.detach()) * v).sum()
                gradients = torch.autograd.grad(pulled, learnt, allow_unused=True)
        return Pullback(-v, found.entropy, (*gradients, *found.parameters))

    def _last_step(self, problem: Problem, solution: Solution) -> tuple[_ConvexStep, Tensor, Any]:
        """The step at the solution, the slope there, and where its convex part ended."""
        concave, saddle = _parts(problem.form)
        problem = replace(problem, fixed=_seeds(problem))
        state = solution.state
        assert isinstance(state, DCAState)
        step = self._convex_step(problem, _constrained(problem), saddle)
        s = state.probabilities.to(problem.unary)
        slope = torch.zeros_like(s) if concave is None else concave.supergradient(s).detach()
        return step, slope, state.convex

    def _convex_step(self, problem: Problem, cost: Tensor, saddle: Saddle) -> _ConvexStep:
        """What minimises <unary + slope, s> + entropy <s, log s> + Q(s)."""
        if not saddle.blocks:
            return _SoftmaxStep(cost)
        if len(saddle.blocks) == 1 and isinstance(saddle.blocks[0], VolumeBlock):
            return _VolumeStep(problem, cost, saddle.blocks[0])
        solver: Solver = resolve("solver", self.convex)
        if Saddle not in solver.accepts or isinstance(solver, DCA):
            raise UsageError(
                f"dca solves the convex part of a prior with {name_of(solver)}, which does not accept saddle forms by "
                'itself. Give another solver, for example DCA(convex="pdhg").'
            )
        return _SolverStep(problem, saddle, solver)

    def _solution(
        self, problem: Problem, concave: Concave | None, saddle: Saddle, s: Tensor, last: _Step, start_energy: Tensor
    ) -> Solution:
        energy = _energy(problem, concave, saddle, s)
        return Solution(
            probabilities=s,
            labels=s.argmax(1),
            energy=energy,
            bound=torch.minimum(last.bound.to(energy), energy),
            steps=last.steps,
            status=statuses(last.done.tolist(), Status.CONVERGED if concave is not None else Status.OPTIMAL),
            start_energy=start_energy,
            state=DCAState(s, last.state),
        )


def _parts(form: Form) -> tuple[Concave | None, Saddle]:
    if isinstance(form, Concave):
        return form, Saddle(())
    if isinstance(form, Mixed):
        return form.concave, form.saddle
    assert isinstance(form, Saddle)
    return None, form


# --------------------------------------------------------------------------------------------------------------------
# The convex problem of one step


class _Step(NamedTuple):
    probabilities: Tensor  # (B, K, *S)
    state: Any
    done: Tensor  # (B,) bool, whether the step's problem was solved
    bound: Tensor  # (B,) on the step's problem
    steps: Tensor  # (B,)


class _ConvexStep(ABC):
    """argmin <unary + slope, s> + entropy <s, log s> + Q(s), and its derivatives."""

    @abstractmethod
    def __call__(self, slope: Tensor, entropy: float, state: Any) -> _Step:
        """Solve it, from an earlier step's state."""

    @abstractmethod
    def log_probabilities(self, slope: Tensor, entropy: float, state: Any) -> Tensor:
        """Log s at the state where it ended."""

    @abstractmethod
    def unroll(self, slope: Tensor, entropy: Tensor, state: Any) -> Tensor:
        """Log s as operations that autograd can differentiate in unary, slope and entropy."""

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
        """Gradients at the state where it ended, for the ``cotangent`` of log s."""


class _SoftmaxStep(_ConvexStep):
    """Q = 0."""

    def __init__(self, cost: Tensor) -> None:
        self.cost = cost

    def __call__(self, slope: Tensor, entropy: float, state: Any) -> _Step:
        batch, cost = self.cost.shape[0], self.cost
        done = torch.ones(batch, dtype=torch.bool, device=cost.device)
        bound = cost.new_full((batch,), -float("inf"))
        return _Step(_gibbs(cost + slope, entropy), None, done, bound, done.long())

    def log_probabilities(self, slope: Tensor, entropy: float, state: Any) -> Tensor:
        return _log_gibbs(self.cost + slope, entropy)

    def unroll(self, slope: Tensor, entropy: Tensor, state: Any) -> Tensor:
        return _log_gibbs(self.cost + slope, entropy)

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
        return Pullback(-v, _entropy_gradient(v, log_probabilities), ())


class _VolumeStep(_ConvexStep):
    """Q = volume constraint. Classes that seeds fill already take no further pixels, and need no dual variable."""

    def __init__(self, problem: Problem, cost: Tensor, block: VolumeBlock) -> None:
        batch, classes, *size = cost.shape
        self.block = block
        self.inside = grid.full_roi(problem.roi, (batch, *size), cost.device)
        assert problem.fixed is not None
        free = self.inside & (problem.fixed < 0)
        seeded = one_hot(problem.fixed.clamp(min=0), classes, torch.float64) * (self.inside & ~free).unsqueeze(1)
        counts = seeded.flatten(2).sum(2)
        block.apply(problem.unary)  # refuses volumes that are for another number of classes
        lower, upper = block.lower.expand_as(counts), block.upper.expand_as(counts)
        slack = 1e-9 * self.inside.flatten(1).sum(1, keepdim=True)
        allowed = torch.ones_like(counts, dtype=torch.bool)
        if problem.allowed is not None:
            allowed = problem.allowed.to(cost.device)
        closed = ~allowed | (upper - counts <= slack)
        _refuse_impossible(lower - counts, upper - counts, closed, free.flatten(1).sum(1, keepdim=True), slack)
        # A closed class keeps its seeds: that is its volume, to the last digit.
        self.lower, self.upper = torch.where(closed, counts, lower), torch.where(closed, counts, upper)
        forbidden = closed.reshape(batch, classes, *[1] * len(size)) & free.unsqueeze(1)
        self.cost = cost.masked_fill(forbidden, float("inf"))

    def __call__(self, slope: Tensor, entropy: float, state: Any) -> _Step:
        found = scale_to_volumes(
            self.cost + slope, entropy, self.lower.detach(), self.upper.detach(), self.inside, self._dual(state)
        )
        steps = torch.full_like(found.done, found.steps, dtype=torch.int64)
        return _Step(found.probabilities, found.dual, found.done, found.value, steps)

    def log_probabilities(self, slope: Tensor, entropy: float, state: Any) -> Tensor:
        shifted = self.cost + slope - self._spread(self._dual(state)).to(slope)
        return _log_gibbs(shifted, entropy)

    def unroll(self, slope: Tensor, entropy: Tensor, state: Any) -> Tensor:
        # The problem depends on costs / entropy alone.
        scaled = _divided(self.cost + slope, entropy)
        probabilities = volume_softmax(scaled, 1.0, self.lower, self.upper, self.inside)
        return probabilities.clamp(min=torch.finfo(probabilities.dtype).tiny).log()

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
        weights = self.inside.flatten(1).double()
        dual = self._dual(state)
        assert dual is not None
        flat = (part.flatten(2).double() for part in (s, start))
        v, by_volume = respond(next(flat), dual, self.lower, self.upper, weights, entropy, next(flat))
        v = v.reshape(s.shape).to(s.dtype)
        parameters: tuple[Tensor, ...] = ()
        if self.block.parameters:  # the block's shift, which is volumes / sqrt(pixels)
            root = weights.sum(1, keepdim=True).sqrt()
            sides = torch.stack([by_volume * (dual < 0), -by_volume * (dual > 0)], dim=1)
            (shift,) = self.block.parameters
            by_shift = (by_volume if shift.ndim == 2 else sides) * root.reshape(-1, *[1] * (shift.ndim - 1))
            parameters = (by_shift.sum_to_size(shift.shape).to(shift),)
        return Pullback(-v, _entropy_gradient(v, log_probabilities), parameters)

    def _dual(self, state: Any) -> Tensor | None:
        return state if isinstance(state, Tensor) else None

    def _spread(self, dual: Tensor | None) -> Tensor:
        assert dual is not None
        return dual.reshape(*dual.shape, *[1] * (self.cost.ndim - 2)) * self.inside.unsqueeze(1)


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


class _SolverStep(_ConvexStep):
    """Any other Q, by another solver."""

    def __init__(self, problem: Problem, saddle: Saddle, solver: Solver) -> None:
        self.problem = replace(problem, form=saddle)
        self.solver = solver

    def __call__(self, slope: Tensor, entropy: float, state: Any) -> _Step:
        found = self.solver.minimise(self._given(slope, entropy, state))
        done = torch.tensor([status is not Status.MAX_STEPS for status in found.status], device=slope.device)
        return _Step(found.probabilities.to(slope), found.state, done, found.bound, found.steps)

    def log_probabilities(self, slope: Tensor, entropy: float, state: Any) -> Tensor:
        return self._differentiable().log_probabilities(self._given(slope, entropy, state), _ended(slope, state))

    def unroll(self, slope: Tensor, entropy: Tensor, state: Any) -> Tensor:
        return self._differentiable().unroll(self._given(slope, float(entropy.detach()), state), entropy)

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
        given = self._given(slope, entropy, state)
        solution = _ended(log_probabilities.exp(), state)
        return self._differentiable().pullback(given, solution, cotangent, max_steps=max_steps, tolerance=tolerance)

    def _given(self, slope: Tensor, entropy: float, state: Any) -> Problem:
        return replace(self.problem, unary=self.problem.unary + slope, entropy=entropy, warm=state)

    def _differentiable(self) -> DifferentiableSolver:
        if not isinstance(self.solver, DifferentiableSolver):
            raise UsageError(f"{name_of(self.solver)} cannot be differentiated. Give dca another convex solver (pdhg).")
        return self.solver


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


def _entropy_gradient(v: Tensor, log_probabilities: Tensor) -> Tensor:
    """Where s = 0, so is v, and the product is 0."""
    return -(v * log_probabilities.masked_fill(log_probabilities == -float("inf"), 0)).sum()


def _concave_parameters(concave: Concave | None) -> tuple[Tensor, ...]:
    if concave is None:
        return ()
    return tuple({id(parameter): parameter for parameter in concave.parameters if parameter.requires_grad}.values())


def _hessian_product(concave: Concave, s: Tensor, v: Tensor) -> Tensor:
    """H v; the Hessian is symmetric, so the product from the left will do."""
    with torch.enable_grad():
        at = s.detach().requires_grad_()
        slope = concave.supergradient(at)
        if not slope.requires_grad:  # R is linear
            return torch.zeros_like(v)
        (product,) = torch.autograd.grad(slope, at, v)
    return product


# --------------------------------------------------------------------------------------------------------------------
# Seeds, starts, energy


def _seeds(problem: Problem) -> Tensor:
    """(B, *S) fixed labels, -1 where free and outside the region of interest, where seeds mean nothing."""
    shape, device = (problem.unary.shape[0], *problem.unary.shape[2:]), problem.unary.device
    if problem.fixed is None:
        return torch.full(shape, -1, device=device)
    return problem.fixed.to(device).masked_fill(~grid.full_roi(problem.roi, shape, device), -1)


def _constrained(problem: Problem) -> Tensor:
    """Costs (B, K, *S) that are inf where a pixel may not take a label."""
    cost, fixed = problem.unary, problem.fixed
    assert fixed is not None
    classes, ndim = cost.shape[1], cost.ndim - 2
    forbidden = torch.zeros(cost.shape, dtype=torch.bool, device=cost.device)
    if problem.allowed is not None:
        forbidden |= ~problem.allowed.to(cost.device).reshape(*cost.shape[:2], *[1] * ndim)
    order = torch.arange(classes, device=cost.device).reshape(1, classes, *[1] * ndim)
    seed = fixed.unsqueeze(1)
    return cost.masked_fill(torch.where(seed >= 0, order != seed, forbidden), float("inf"))


def _gibbs(cost: Tensor, entropy: float) -> Tensor:
    """Minimiser of <cost, s> + entropy <s, log s>, with s = 0 where the cost is inf."""
    # The smallest cost is subtracted first: softmax does so too, but only after the quotient may have overflowed.
    return torch.softmax((cost.amin(1, keepdim=True) - cost) / entropy, dim=1)


def _log_gibbs(cost: Tensor, entropy: float | Tensor) -> Tensor:
    """Logarithm of `_gibbs`, differentiable."""
    return torch.log_softmax(-_divided(cost - cost.detach().amin(1, keepdim=True), entropy), dim=1)


def _divided(cost: Tensor, entropy: float | Tensor) -> Tensor:
    """Cost / entropy; the derivative by the entropy of a cost of inf is 0 instead of NaN."""
    possible = cost < float("inf")
    return torch.where(possible, torch.where(possible, cost, 0) / entropy, float("inf"))


def _checked_state(problem: Problem) -> DCAState | None:
    warm, unary = problem.warm, problem.unary
    if warm is None:
        return None
    if isinstance(warm, DCAState):
        given = warm.probabilities.detach()
        if given.shape != unary.shape or not bool((given >= 0).all()):
            raise UsageError(
                f"A start of dca must hold non-negative probabilities of shape {tuple(unary.shape)} (B, K, *S); got "
                f"shape {tuple(given.shape)}{', with negative values or NaN' if given.shape == unary.shape else ''}."
            )
        return DCAState(given.to(unary), warm.convex)
    if isinstance(warm, Tensor):
        inside = warm if problem.roi is None else warm.masked_fill(~problem.roi.to(warm.device), 0)
        return DCAState(one_hot(inside.to(unary.device, torch.int64), unary.shape[1], unary.dtype))
    raise UsageError(
        "dca starts from labels (B, *S), a DCAState, or an earlier solution of its own; got warm of type "
        f"{type(warm).__name__}."
    )


def _start(cost: Tensor, state: DCAState, entropy: float) -> Tensor:
    """Probabilities (B, K, *S) that are 0 where the cost is inf."""
    given = state.probabilities.masked_fill(cost == float("inf"), 0)
    mass = given.sum(1, keepdim=True)
    return torch.where(mass > 0, given / mass, _gibbs(cost, entropy))


def _energy(problem: Problem, concave: Concave | None, saddle: Saddle, s: Tensor) -> Tensor:
    energy = linear_energy(problem.unary, s, problem.roi) + problem.entropy * negative_entropy(s, problem.roi)
    if concave is not None:
        energy = energy + concave.value(s)
    return energy + saddle.value(s) if saddle.blocks else energy
