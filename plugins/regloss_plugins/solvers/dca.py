"""Difference-of-convex algorithm: a concave prior, alone or with a convex one, by linearising the concave part.

    min over s in the simplex at every pixel of
        E(s) = <unary, s> + entropy <s, log s> + R(s) + Q(s),        entropy >= 0, R concave, Q convex

With p a supergradient of R at s, a step is s+ = argmin <unary + p, s> + entropy <s, log s> + Q(s): without Q,

    s+ = softmax(-(unary + p) / entropy)

and E falls by at least entropy KL(s | s+), because R lies below its tangent. Where the form says that R is only below
its tangents plus c/2 |s - t|^2, steps are damped by gamma KL(s+ | s), gamma = (c - entropy)_+ / 2,

    s+ = softmax((gamma log s - unary - p) / (entropy + gamma))

and E falls by at least max(c, entropy) / 2 |s - s+|^2 (Pinsker). A stationary point is reached, which depends on the
start; there is only one if R curves by less than the entropy everywhere. Without entropy, which takes a Q of 0, steps
are those of Frank-Wolfe (`regloss_plugins.solvers.conditional_gradient`). With Q = max over y in Y of <K s - b, y>:

    nested        solves each step's problem: a volume constraint alone by Newton's method on one number per class, all
                  else by another solver for saddle forms, up to whose gap E falls
    single-loop   y+ = P(y + tau (K s - b)), or one scaling step for a volume constraint alone, and the softmax of
                  unary + p + K^T y+: where it stands still is a stationary point of E, but E may rise on the way

An image is done when an undamped step would change no probability of it by more than ``tolerance`` (without entropy,
when <unary + p, s - s+> <= ``tolerance`` per pixel; in a single loop, if y is a maximiser too). Energies are those of
points near the iterates that meet the constraints (`regloss.constraint`).

Source: Liu, Wang, Tai, arXiv:2002.03989 (this step for threshold dynamics; volumes and star shapes in a single loop);
Tao, An, "Convex analysis approach to d.c. programming", 1997.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from regloss.checks import check_at_least_one, check_choice, check_not_negative
from regloss.errors import UsageError
from regloss.forms import Composite, Concave, ConcaveFunction, Form, Saddle
from regloss.grid import spread
from regloss.numerics import look_every
from regloss.registry import name_of, resolve
from regloss.solver import (
    DifferentiableSolver,
    Problem,
    Progress,
    Pullback,
    Solution,
    Solver,
    Status,
    possible_cost,
    seeds_inside,
    statuses,
)
from regloss_plugins.solvers.conditional_gradient import concave_energy, descend
from regloss_plugins.solvers.dca_steps import (
    ConvexStep,
    Step,
    convex_step,
    hold_state,
    is_picked,
    pick_state,
    put_state,
)
from regloss_plugins.solvers.dual_ascent import in_precision_of
from regloss_plugins.solvers.gibbs import gibbs, log_gibbs
from regloss_plugins.solvers.initialization import start_probabilities

METHODS = ("nested", "single-loop")


@dataclass(frozen=True)
class DCAState:
    """Where `DCA` starts or stopped; give one to ``warm`` to start from a network's softmax.

    Attributes:
        probabilities: (B, K, *S), non-negative; mass on labels that are not allowed is taken away, the rest normalised.
        convex: where the solver of the convex part starts; None = cold. For a volume constraint alone q = -y (B, K).
    """

    probabilities: Tensor
    convex: Any = None


@dataclass(frozen=True)
class DCA(DifferentiableSolver):
    """Difference-of-convex steps; batched, on any device, in the finer precision of the unary and the form.

    With ``method="nested"`` the energy never rises from step to step. The solution's bound is -inf as soon as there is
    a concave part, and always for single-loop.

    Unrolled, a nested step is differentiated implicitly in its convex problem, and only the sequence of steps is kept;
    a single-loop step through all that it computes; with ``checkpoint`` what lies between two steps is not kept either,
    and each is taken again in the backward pass. The implicit gradient is that of the stationary point, and the same
    for both.

    Args:
        max_steps: largest number of steps, >= 1.
        tolerance: a step that changes no probability by more than this ends it, >= 0. With single-loop the convex
            part's gap per pixel must not exceed it either (which is complementarity, where constraints hold), nor the
            error of volumes as a fraction of the pixels.
        damped: damp steps where the form says that R is not quite concave; False = as published, without guarantee.
        convex: nested: solver of the convex part, where there is one that is not a volume constraint: an object, a name
            or a table; it must accept saddle forms.
        method: "nested" or "single-loop".
        checkpoint: unrolled, keep log s after each step only.

    Raises:
        UsageError: a setting outside its range, entropy = 0 with a convex part, volumes that seeds or allowed labels
            make impossible.

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
    method: Literal["nested", "single-loop"] = "nested"
    checkpoint: bool = False
    accepts: ClassVar[tuple[type[Form], ...]] = (Concave, Composite)

    def __post_init__(self) -> None:
        check_at_least_one(max_steps=self.max_steps)
        check_not_negative(tolerance=self.tolerance)
        check_choice(METHODS, method=self.method)

    def entropies(self, form: type[Form]) -> Literal["any", "positive"]:
        """Any for concave priors alone, else those above 0."""
        return "any" if form is Concave else "positive"

    def minimise(self, problem: Problem) -> Solution:
        """Solve all images of the batch side by side; those that are done leave it."""
        assert isinstance(problem.form, Composite)
        labels_only = problem.entropy == 0 and problem.form.concave is not None and not problem.form.parts
        # An entropy that is 0 in the unary's precision would divide by 0 all the same.
        if not labels_only and not problem.entropy >= torch.finfo(problem.unary.dtype).tiny:
            raise UsageError(
                f"dca needs an entropy weight > 0, but for concave priors alone; got entropy = {problem.entropy}. Give "
                "one, or use a solver over labels (alpha-expansion)."
            )
        run = self._run(problem)
        if labels_only:
            return self._without_entropy(run)
        nested, (s, convex) = self.method == "nested", self._start(run)
        start_energy = run.energy(s)
        if run.concave is None and nested:
            found = run.step(torch.zeros_like(s), problem.entropy, convex, s)
            return _solution(run, found, start_energy, Status.OPTIMAL)

        batch, device = problem.unary.shape[0], problem.unary.device
        whole, end, end_convex = run, s.clone(), None
        rows = torch.arange(batch, device=device)  # images still in the batch
        active = torch.ones(batch, dtype=torch.bool, device=device)
        solved, steps = active.clone(), torch.zeros(batch, dtype=torch.int64, device=device)
        gamma = self._damping(run.concave, problem.entropy)
        looks = look_every(device)
        for number in range(1, self.max_steps + 1):
            slope = run.slope(s)
            found = run.step(slope, problem.entropy, convex, s)
            change = (found.probabilities - s).abs().flatten(1).amax(1)
            if gamma > 0:
                # Probabilities of 0 would stay there for ever.
                slope = slope - gamma * s.clamp(min=torch.finfo(s.dtype).eps).log()
                if nested:
                    found = run.step(slope, problem.entropy + gamma, found.state, s)
                else:  # the dual variables have had their step
                    damped = run.step.log_probabilities(slope, problem.entropy + gamma, found.state).exp()
                    found = found._replace(probabilities=damped)
            s = torch.where(spread(active, s), found.probabilities, s)
            # Images that are done stay as they are until they are let go.
            convex = found.state if looks == 1 else hold_state(active, found.state, convex)
            solved[rows] = torch.where(active, found.done, solved[rows])
            steps[rows] += active
            if problem.callback is not None:
                energy = run.energy(s)[active]
                constraints = run.problem.constraints
                violation = None if constraints is None else constraints.violation(s)[active]
                unknown = torch.full_like(energy, -math.inf)
                problem.callback(Progress(int(steps.max()), rows[active], energy, unknown, violation))
            active = active & ((change > self.tolerance) if nested else (change > self.tolerance) | ~found.done)
            if number % looks != 0:
                continue
            if not bool(active.any()):
                break
            kept = active.nonzero().squeeze(1)
            if len(kept) < len(rows) and is_picked(convex):
                end[rows], end_convex = s, put_state(end_convex, rows, convex, batch)
                run, s, convex = self._picked(run, kept), s[kept], pick_state(convex, kept)
                rows, active = rows[kept], active[kept]
        end[rows], end_convex = s, put_state(end_convex, rows, convex, batch)
        done = solved.clone()
        done[rows] &= ~active
        bound = end.new_full((batch,), -float("inf"))
        return _solution(whole, Step(end, end_convex, done, bound, steps), start_energy, Status.CONVERGED)

    def _without_entropy(self, run: _Run) -> Solution:
        assert run.concave is not None
        given, _ = self._given(run)
        start = gibbs(run.cost, 0) if given is None else given
        start_energy = run.energy(start)
        found = descend(
            run.problem,
            run.concave,
            run.cost,
            start,
            length=1.0,
            max_steps=self.max_steps,
            tolerance=self.tolerance,
        )
        bound = torch.full_like(start_energy, -math.inf)
        step = Step(found.probabilities, None, found.done, bound, found.steps)
        return _solution(run, step, start_energy, Status.CONVERGED)

    def _damping(self, concave: ConcaveFunction | None, entropy: float) -> float:
        return max(0.0, concave.curvature - entropy) / 2 if self.damped and concave is not None else 0.0

    def parameters(self, form: Form) -> tuple[Tensor, ...]:
        """Those of the form."""
        assert isinstance(form, Composite)
        return form.parameters

    def log_probabilities(self, problem: Problem, solution: Solution) -> Tensor:
        """Of one more step, which changes the probabilities by no more than the last one did."""
        run, slope, state = self._end(problem, solution)
        return run.step.log_probabilities(slope, problem.entropy, state)

    def unroll(self, problem: Problem, entropy: Tensor) -> Tensor:
        """Exactly ``max_steps`` steps from softmax(-unary / entropy), or from the start that is given."""
        run = self._run(replace(problem, entropy=float(entropy.detach())))
        concave, step, nothing = run.concave, run.step, torch.zeros_like(run.cost)
        given, convex = self._given(run)
        if self.method == "nested" and (concave is None or given is None):
            log_s, convex = step.unroll(nothing, entropy, convex, nothing)
            if concave is None:
                return log_s
        else:
            log_s = log_gibbs(run.cost, entropy)
        log_s = log_s if given is None else given.log()
        gamma = torch.zeros_like(entropy)
        if self.damped and concave is not None:  # it depends on the entropy too
            gamma = ((concave.curvature - entropy) / 2).clamp(min=0)
        is_damped = float(gamma.detach()) > 0

        def one(before: Tensor, convex: Any) -> tuple[Tensor, Any]:
            slope, log_s = run.slope(before.exp()), before
            if not is_damped or self.method == "single-loop":
                log_s, convex = step.unroll(slope, entropy, convex, before)
            if is_damped:
                slope = slope - gamma * before.exp().clamp(min=torch.finfo(before.dtype).eps).log()
                if self.method == "nested":
                    log_s, convex = step.unroll(slope, entropy + gamma, convex, before)
                else:
                    log_s = step.log_probabilities(slope, entropy + gamma, convex)
            return log_s, convex

        for _ in range(self.max_steps):
            if self.checkpoint and torch.is_grad_enabled():
                log_s, convex = checkpoint(one, log_s, convex, use_reentrant=False)
            else:
                log_s, convex = one(log_s, convex)
        return log_s

    def pullback(
        self, problem: Problem, solution: Solution, cotangent: Tensor, *, max_steps: int, tolerance: float
    ) -> Pullback:
        """Implicit differentiation of the fixed point, by conjugate gradients.

        With J the derivative of a step's solution by its costs (minus it), H the Hessian of R and g the cotangent,
        v = J (g - H v). J is symmetric and >= 0, and I + J H has positive eigenvalues at a strict minimum. Where the
        iteration was stopped short of one it need not: conjugate gradients then end at the first direction along which
        the energy bends down, with a finite v.
        """
        run, slope, state = self._end(problem, solution)
        concave, step = run.concave, run.step
        log_s = solution.log_probabilities
        if log_s is None:
            log_s = step.log_probabilities(slope, problem.entropy, state)
        s, cotangent = log_s.exp(), cotangent.to(log_s)

        def through_step(given: Tensor) -> Pullback:
            return step.pullback(slope, problem.entropy, state, log_s, given, max_steps=max_steps, tolerance=tolerance)

        found = through_step(cotangent)
        if concave is None:
            return found

        linear: Tensor | None = None
        if concave.is_quadratic:
            with torch.no_grad():
                linear = concave.supergradient(torch.zeros_like(s))

        def hessian(v: Tensor) -> Tensor:
            if linear is None:
                return _hessian_product(concave, s, v)
            with torch.no_grad():  # what the supergradient is computed from may ask for a gradient, but not here
                return concave.supergradient(v) - linear

        def step_derivative(g: Tensor) -> Tensor:
            return -through_step(s * g).unary

        # The cotangent may be infinite in g's units, so that v = J g + (a correction with a finite right-hand side).
        first = -found.unary
        residual = -hessian(first)
        image = step_derivative(residual)
        direction, moved = residual, image
        correction = torch.zeros_like(first)
        power = (residual * image).flatten(1).sum(1)
        target = tolerance**2 * power
        active = power > 0
        looks = look_every(s.device)
        for number in range(max_steps):
            if number % looks == 0 and not bool(active.any()):
                break
            product = direction + hessian(moved)
            curvature = (moved * product).flatten(1).sum(1)
            active = active & (curvature > 0)
            along = torch.where(active, power / torch.where(active, curvature, 1), 0)
            correction = correction + spread(along, moved) * moved
            residual = residual - spread(along, product) * product
            image = step_derivative(residual)
            before, power = power, (residual * image).flatten(1).sum(1)
            active = active & (power > target)
            beta = torch.where(active, power / torch.where(active, before, 1), 0)
            direction, moved = residual + spread(beta, direction) * direction, image + spread(beta, moved) * moved
        found = through_step(cotangent - s * hessian(first + correction))
        v = -found.unary
        learnt = Concave(concave).parameters
        gradients: tuple[Tensor | None, ...] = ()
        if learnt:
            with torch.enable_grad():
                adjoint = -(concave.supergradient(s.detach()) * v).sum()
                gradients = torch.autograd.grad(adjoint, learnt, allow_unused=True)
        return Pullback(-v, found.entropy, (*gradients, *found.parameters))

    def _end(self, problem: Problem, solution: Solution) -> tuple[_Run, Tensor, Any]:
        """The run at its end, the slope there, and where its convex part ended."""
        state = solution.state
        assert isinstance(state, DCAState)
        run = self._run(problem)
        return run, run.slope(state.probabilities.to(run.cost)).detach(), state.convex

    def _run(self, problem: Problem) -> _Run:
        form = problem.form
        assert isinstance(form, Composite)
        unary = in_precision_of(form, problem.unary)
        problem = replace(problem, unary=unary, fixed=seeds_inside(problem))
        assert problem.fixed is not None
        cost = possible_cost(problem)
        # Between two steps the constraints may be off by their tolerance; a convex problem's only step is held to more.
        given = problem if form.concave is None else replace(problem, constraints=None)
        return _Run(problem, cost, self._convex_step(given, cost))

    def _picked(self, run: _Run, images: Tensor) -> _Run:
        """The run with some of its images alone."""
        problem = run.problem

        def pick(values: Tensor | None) -> Tensor | None:
            return None if values is None else values[images]

        some = replace(
            problem,
            form=run.form[images],
            unary=problem.unary[images],
            fixed=pick(problem.fixed),
            allowed=pick(problem.allowed),
            roi=pick(problem.roi),
            warm=None,
            constraints=None if problem.constraints is None else problem.constraints[images],
        )
        cost = run.cost[images]
        return _Run(some, cost, self._convex_step(replace(some, constraints=None), cost))

    def _given(self, run: _Run) -> tuple[Tensor | None, Any]:
        """Probabilities to start from, None if none were given, and where the convex part starts."""
        given = start_probabilities(run.problem, run.cost, DCAState, "dca")
        warm = run.problem.warm
        return given, run.step.first(warm.convex if isinstance(warm, DCAState) else None)

    def _start(self, run: _Run) -> tuple[Tensor, Any]:
        given, convex = self._given(run)
        if given is not None:
            return given, convex
        if self.method == "single-loop":
            return gibbs(run.cost, run.problem.entropy), convex
        blank = torch.zeros_like(run.cost)
        found = run.step(blank, run.problem.entropy, convex, blank)
        return found.probabilities, found.state

    def _convex_step(self, problem: Problem, cost: Tensor) -> ConvexStep:
        """What minimises <unary + slope, s> + entropy <s, log s> + Q(s), or takes a step towards it."""
        assert isinstance(problem.form, Composite)
        saddle = problem.form.saddle
        if self.method == "single-loop":
            return convex_step(problem, cost, saddle, None, self.tolerance)
        solver: Solver = resolve("solver", self.convex)
        if Saddle not in solver.accepts or isinstance(solver, DCA):
            raise UsageError(
                f"dca solves the convex part of a prior with {name_of(solver)}, which does not accept saddle forms by "
                'itself. Give another solver, for example DCA(convex="pdhg").'
            )
        return convex_step(problem, cost, saddle, solver, self.tolerance)


@dataclass(frozen=True)
class _Run:
    """A problem, prepared."""

    problem: Problem  # whose ``fixed`` is given, and -1 outside the region of interest
    cost: Tensor  # (B, K, *S), inf where a label cannot be taken
    step: ConvexStep

    @property
    def form(self) -> Composite:
        """R + Q."""
        assert isinstance(self.problem.form, Composite)
        return self.problem.form

    @property
    def concave(self) -> ConcaveFunction | None:
        """R."""
        return self.form.concave

    def slope(self, s: Tensor) -> Tensor:
        """Supergradient of the concave part."""
        return torch.zeros_like(s) if self.concave is None else self.concave.supergradient(s)

    def energy(self, s: Tensor) -> Tensor:
        """E (B,) at probabilities (B, K, *S), or at such near them that meet the constraints."""
        if self.problem.constraints is not None:
            met = self.problem.constraints.feasible(s.log())[0]
            return concave_energy(self.problem, self.concave, met) + self.form.saddle.value(met, constraints=False)
        energy = concave_energy(self.problem, self.concave, s)
        return energy + self.form.saddle.value(s) if self.form.parts else energy


def _solution(run: _Run, last: Step, start_energy: Tensor, reached: Status) -> Solution:
    energy = run.energy(last.probabilities)
    return Solution(
        probabilities=last.probabilities,
        labels=last.probabilities.argmax(1),
        energy=energy,
        bound=torch.minimum(last.bound.to(energy), energy),
        steps=last.steps,
        status=statuses(last.done.tolist(), reached),
        start_energy=start_energy,
        state=DCAState(last.probabilities, last.state),
    )


def _hessian_product(concave: ConcaveFunction, s: Tensor, v: Tensor) -> Tensor:
    """H v; the Hessian is symmetric, so the product from the left will do."""
    with torch.enable_grad():
        at = s.detach().requires_grad_()
        slope = concave.supergradient(at)
        if not slope.requires_grad:  # R is linear
            return torch.zeros_like(v)
        (product,) = torch.autograd.grad(slope, at, v)
    return product
