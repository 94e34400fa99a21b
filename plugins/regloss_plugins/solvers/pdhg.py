"""First-order ascent on the dual of an entropy-smoothed convex problem, for regularizers in saddle form.

    min over s in the simplex at every pixel of
        P(s) = <unary, s> + entropy <s, log s> + R(s),     R(s) = max over y in Y of <K s - b, y>,     entropy > 0

For a given y the minimiser is s(y) = softmax(-(unary + K^T y) / entropy), so that what remains is to maximise, over Y,

    D(y) = -entropy * sum over pixels of logsumexp(-(unary + K^T y) / entropy) - <b, y>,      grad D(y) = K s(y) - b

whose gradient is Lipschitz with the constant |K|^2 / (2 entropy). The iterations, with P the projection onto Y:

    accelerated          y+ = P(x + tau (K s(x) - b)),  x+ = y+ + (t - 1) / t+ (y+ - y),
                         t+ = (1 + sqrt(1 + 4 t^2)) / 2; where <x - y+, y+ - y> > 0 in the metric of the steps,
                         t+ = 1 and x+ = y+ (gradient restart)
    projected-gradient   y+ = P(y + tau (K s(y) - b)): the papers' forward iteration
    lazy                 a+ = a + tau (K s(y) - b),  y+ = P(a+): what the papers differentiate; it winds up at the rim

The steps tau are one for each entry of y, entropy * 2 / r with K K^T <= diag(r) ("diagonal"), which needs no norm and
converges fastest; one from the bound on the norm ("norm"); or a given number, which has to be below
4 * entropy / |K|^2 to converge at all.

Certificate: gap = P(s(y)) - D(y) = max over Y of <K s - b, .> - <K s - b, y> >= 0, summed without cancellation, and
|s(y) - s*| <= sqrt(gap / (2 entropy)) for the minimiser s*. An image is done when gap per pixel <= tolerance (units of
the unary). Unlike a gap relative to the energy, this does not change when a constant is added to a pixel's unaries.
With constraints (Y a cone) the gap is inf until they hold within their tolerance; then its magnitude counts.

In float32 the gap of a converged run has a floor of about 1e-6 of the energy.

Source: Jia, Tai, Liu, "Nonlocal regularized CNN for image segmentation", Eq. (26)-(28) and (43); Beck, Teboulle,
"A fast iterative shrinkage-thresholding algorithm", 2009; O'Donoghue, Candes, "Adaptive restart for accelerated
gradient schemes", 2015; Pock, Chambolle, "Diagonal preconditioning for first order primal-dual algorithms", ICCV 2011.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from regloss import grid
from regloss.errors import UsageError
from regloss.implicit import (
    parameter_gradients,
    saddle_parameters,
    softmax_response,
    solve_adjoint,
    sum_adjoint,
)
from regloss.regularizer import Form, Saddle
from regloss.solver import (
    DifferentiableSolver,
    Problem,
    Pullback,
    Solution,
    linear_energy,
    negative_entropy,
    one_hot,
    statuses,
)

METHODS = ("accelerated", "projected-gradient", "lazy")


@dataclass(frozen=True)
class PDHGState:
    """Where `PDHG` stopped: give it to ``warm`` to continue, with other unaries or weights.

    Attributes:
        duals: y, one tensor (B, ...) for each block of the saddle form. Any values may be given; they are projected.
    """

    duals: tuple[Tensor, ...]


@dataclass(frozen=True)
class PDHG(DifferentiableSolver):
    """Accelerated dual ascent; batched, on any device, in the precision of the unary or the form, whichever is finer.

    Energies and bounds are summed in float64, so that their difference, the gap, keeps its digits.

    Args:
        max_steps: largest number of steps, >= 1.
        tolerance: gap per pixel at which an image is done, >= 0, in units of the unary. The sum of squared errors of
            the probabilities is then at most tolerance / (2 entropy) per pixel.
        method: "accelerated"; "projected-gradient" and "lazy" are there to reproduce the papers.
        steps: "diagonal", "norm", or a positive number.
        check_every: steps between two looks at the gap, >= 1; a look costs about as much as a step.

    Raises:
        UsageError: a setting outside its range, entropy = 0, a start that does not fit.

    A pixel without an opinion takes that of its neighbours:

    >>> from regloss import TotalVariation, solve
    >>> unary = torch.tensor([[[[2.0, 0.0, 2.0]], [[0.0, 0.0, 0.0]]]])
    >>> term = TotalVariation(weight=0.5).bind(torch.zeros(1, 1, 1, 3))
    >>> solution = solve(term, unary, PDHG(), entropy=0.5)
    >>> solution.probabilities[0, 1]
    tensor([[0.9350, 0.9350, 0.9350]])
    >>> bool(solution.gap <= 3e-5), solution.status[0].value
    (True, 'converged: no step improves further')
    """

    max_steps: int = 300
    tolerance: float = 1e-5
    method: Literal["accelerated", "projected-gradient", "lazy"] = "accelerated"
    steps: Literal["diagonal", "norm"] | float = "diagonal"
    check_every: int = 10
    accepts: ClassVar[tuple[type[Form], ...]] = (Saddle,)

    def __post_init__(self) -> None:
        for name in ("max_steps", "check_every"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} must be at least 1; got {getattr(self, name)}.")
        if not 0 <= self.tolerance < float("inf"):
            raise UsageError(f"tolerance must be finite and not negative; got {self.tolerance}.")
        if self.method not in METHODS:
            raise UsageError(f"method must be one of {', '.join(METHODS)}; got {self.method!r}.")
        number = isinstance(self.steps, int | float) and 0 < self.steps < float("inf")
        if self.steps not in ("diagonal", "norm") and not number:
            raise UsageError(f'steps must be "diagonal", "norm" or a positive number; got {self.steps!r}.')

    def minimise(self, problem: Problem) -> Solution:
        """Solve all images of the batch side by side; those that are done leave it."""
        form = problem.form
        assert isinstance(form, Saddle)
        pixels = _Pixels.of(problem)
        batch, device = pixels.cost.shape[0], pixels.cost.device
        run = _Run(self, form, pixels, self._start(problem, form, pixels.cost), problem.entropy)

        probabilities = torch.empty_like(pixels.cost)
        energy = torch.empty(batch, dtype=_wide(device), device=device)
        bound, start_energy = torch.empty_like(energy), torch.empty_like(energy)
        steps = torch.zeros(batch, dtype=torch.int64, device=device)
        done = torch.zeros(batch, dtype=torch.bool, device=device)
        duals = [torch.empty_like(dual) for dual in run.duals]
        rows = torch.arange(batch, device=device)  # images still in the batch
        taken = 0
        while True:
            found = run.certify()
            if taken == 0:
                start_energy.copy_(found.energy)
            small = found.gap.abs() <= self.tolerance * run.pixels.counts
            last = taken == self.max_steps
            ends = (small | last) & ~done[rows]
            if bool(ends.any()):
                where = rows[ends]
                probabilities[where] = found.probabilities[ends]
                energy[where], bound[where] = found.energy[ends], found.bound[ends]
                steps[where] = taken
                for kept, dual in zip(duals, run.duals, strict=True):
                    kept[where] = dual[ends]
                done[where] = small[ends]
            if last or bool(done[rows].all()):
                break
            if bool(done[rows].any()):
                rows = run.keep(rows, ~done[rows])
            for _ in range(min(self.check_every, self.max_steps - taken)):
                run.step()
                taken += 1
        probabilities = probabilities.to(problem.unary.dtype)
        return Solution(
            probabilities=probabilities,
            labels=probabilities.argmax(1),
            energy=energy,
            bound=bound,
            steps=steps,
            status=statuses(done.tolist()),
            start_energy=start_energy,
            state=PDHGState(tuple(duals)),
        )

    def parameters(self, form: Form) -> tuple[Tensor, ...]:
        """What the blocks of the saddle form say."""
        assert isinstance(form, Saddle)
        return saddle_parameters(form)

    def log_probabilities(self, problem: Problem, solution: Solution) -> Tensor:
        """Computed anew from the dual variables."""
        form, state = problem.form, solution.state
        assert isinstance(form, Saddle)
        assert isinstance(state, PDHGState)
        pixels = _Pixels.of(problem)
        pull = sum_adjoint(form, state.duals) if form.blocks else 0.0
        return pixels.log_minimiser(pull, problem.entropy)

    def unroll(self, problem: Problem, entropy: Tensor) -> Tensor:
        """Exactly ``max_steps`` steps of ``method``; restarts and momentum count as constants."""
        form = problem.form
        assert isinstance(form, Saddle)
        pixels = _Pixels.of(problem, float(entropy.detach()))
        run = _Run(self, form, pixels, self._start(problem, form, pixels.cost), entropy)
        for _ in range(self.max_steps):
            run.step()
        pull = sum_adjoint(form, run.duals) if form.blocks else 0.0
        return pixels.log_minimiser(pull, entropy)

    def pullback(
        self, problem: Problem, solution: Solution, cotangent: Tensor, *, max_steps: int, tolerance: float
    ) -> Pullback:
        """Conjugate gradients on the free part of the dual set; see `regloss.implicit`."""
        form, state = problem.form, solution.state
        assert isinstance(form, Saddle)
        assert isinstance(state, PDHGState)
        log_probabilities = self.log_probabilities(problem, solution)
        probabilities, cotangent = log_probabilities.exp(), cotangent.to(log_probabilities)
        # S' g for g = cotangent / s, which may overflow where this does not.
        start = (cotangent - probabilities * cotangent.sum(1, keepdim=True)) / problem.entropy
        adjoint = solve_adjoint(
            form,
            state.duals,
            probabilities,
            problem.entropy,
            start,
            softmax_response(probabilities, problem.entropy),
            max_steps=max_steps,
            tolerance=tolerance,
        )
        entropy = -(adjoint.response * log_probabilities).sum()
        parameters = parameter_gradients(form, state.duals, probabilities, adjoint)
        return Pullback(-adjoint.response, entropy, parameters)

    def _start(self, problem: Problem, form: Saddle, cost: Tensor) -> list[Tensor]:
        """Dual variables in Y: those of an earlier run, else of the labels that are given, else 0."""
        warm = problem.warm
        if isinstance(warm, PDHGState):
            blank = torch.zeros_like(cost)
            expected = [tuple(block.apply(blank).shape) for block in form.blocks]
            if expected != [tuple(dual.shape) for dual in warm.duals]:
                raise UsageError(
                    f"A start of pdhg must hold dual variables of shapes {expected}, one for each block; got "
                    f"{[tuple(dual.shape) for dual in warm.duals]}. It comes from a problem of another kind or size."
                )
            return [block.project(y.detach().to(cost)) for block, y in zip(form.blocks, warm.duals, strict=True)]
        if warm is None or isinstance(warm, Tensor):
            # Labels do not determine dual variables, and the dual of a convex problem needs no good start.
            return [block.project(torch.zeros_like(block.apply(torch.zeros_like(cost)))) for block in form.blocks]
        raise UsageError(
            f"pdhg starts from a PDHGState or an earlier solution of its own; got warm of type {type(warm).__name__}."
        )


def _wide(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64  # Apple's GPUs know no float64


@dataclass(frozen=True)
class _Pixels:
    """The part of the problem that separates over pixels."""

    cost: Tensor  # (B, K, *S), with inf where a label is not allowed
    unary: Tensor  # (B, K, *S), as given, 0 outside the region of interest
    seeds: Tensor | None  # (B, K, *S) one-hot where a label is given, 0 elsewhere
    given: Tensor | None  # (B, 1, *S) bool: where
    roi: Tensor | None
    counts: Tensor  # (B,) pixels in the region of interest

    @staticmethod
    def of(problem: Problem, entropy: float | None = None) -> _Pixels:
        unary, form = problem.unary, problem.form
        assert isinstance(form, Saddle)
        for block in form.blocks:
            unary = unary.to(torch.promote_types(unary.dtype, block.apply(torch.zeros_like(unary)).dtype))
        entropy = problem.entropy if entropy is None else entropy
        limits = torch.finfo(unary.dtype)
        # An entropy that is 0 in the unary's precision would divide by 0 all the same.
        if not entropy >= limits.tiny or float(unary.detach().abs().max()) / entropy > limits.max / 4:
            raise UsageError(
                f"pdhg needs an entropy weight > 0 that unaries of {unary.dtype} can be divided by; got entropy = "
                f"{entropy}. Give one (0.5, say), or for labels use a graph solver such as alpha-expansion."
            )
        shape = (unary.shape[0], *unary.shape[2:])
        inside = grid.full_roi(problem.roi, shape, unary.device)
        cost, seeds, given = unary, None, None
        if problem.allowed is not None:
            barred = ~problem.allowed.to(unary.device).reshape(*unary.shape[:2], *[1] * (unary.ndim - 2))
            cost = unary.masked_fill(barred, float("inf"))
        if problem.fixed is not None:
            fixed = problem.fixed.to(unary.device).masked_fill(~inside, -1)
            given = (fixed >= 0).unsqueeze(1)
            seeds = one_hot(fixed.clamp(min=0), unary.shape[1], unary.dtype) * given
        kept = unary if problem.roi is None else unary * inside.unsqueeze(1)
        return _Pixels(cost, kept, seeds, given, problem.roi, inside.flatten(1).sum(1))

    def minimiser(self, pull: Tensor | float, entropy: float | Tensor) -> Tensor:
        """S (B, K, *S) for K^T y = ``pull``."""
        free = torch.softmax((self.cost + pull) * (-1 / entropy), dim=1)
        return free if self.seeds is None or self.given is None else torch.where(self.given, self.seeds, free)

    def log_minimiser(self, pull: Tensor | float, entropy: float | Tensor) -> Tensor:
        """Log s; -inf at labels that are not allowed, or not the given one."""
        free = torch.log_softmax((self.cost + pull) * (-1 / entropy), dim=1)
        return free if self.seeds is None or self.given is None else torch.where(self.given, self.seeds.log(), free)

    def select(self, images: Tensor) -> _Pixels:
        def pick(values: Tensor | None) -> Tensor | None:
            return None if values is None else values[images]

        return _Pixels(
            self.cost[images],
            self.unary[images],
            pick(self.seeds),
            pick(self.given),
            pick(self.roi),
            self.counts[images],
        )


@dataclass(frozen=True)
class _Certificate:
    probabilities: Tensor
    energy: Tensor  # (B,) in float64
    bound: Tensor  # (B,) in float64
    gap: Tensor  # (B,) in float64


class _Run:
    """The iteration's variables and one step of it; every operation makes new tensors, so that autograd can follow."""

    def __init__(
        self, solver: PDHG, form: Saddle, pixels: _Pixels, duals: Sequence[Tensor], entropy: float | Tensor
    ) -> None:
        self.solver, self.form, self.pixels, self.entropy = solver, form, pixels, entropy
        self.duals = list(duals)
        self.ahead = list(duals)  # extrapolated (accelerated), unprojected sums (lazy)
        self.momentum = pixels.cost.new_ones(pixels.cost.shape[0])
        self._set_steps()

    def _set_steps(self) -> None:
        chosen = self.solver.steps
        if isinstance(chosen, str):
            self.bounds = self.form.diagonal_bound(self.pixels.unary, diagonal=chosen == "diagonal")
            # Where the bound is 0, K does not reach that dual variable.
            self.steps = [
                torch.where(bound > 0, 2 * self.entropy / torch.where(bound > 0, bound, 1), 0) for bound in self.bounds
            ]
        else:
            self.bounds = tuple(self.pixels.unary.new_ones(1) for _ in self.form.blocks)
            self.steps = [self.pixels.unary.new_full((1,), chosen) for _ in self.form.blocks]

    def step(self) -> None:
        """One step of the method."""
        form, lazy = self.form, self.solver.method == "lazy"
        if not form.blocks:
            return
        at = self.duals if lazy else self.ahead
        probabilities = self.pixels.minimiser(sum_adjoint(form, at), self.entropy)
        moved = [
            torch.addcmul(ahead, tau, block.residual(probabilities))
            for block, ahead, tau in zip(form.blocks, self.ahead, self.steps, strict=True)
        ]
        new = [block.project(value) for block, value in zip(form.blocks, moved, strict=True)]
        if self.solver.method == "accelerated":
            self._extrapolate(new)
        else:
            self.ahead = moved if lazy else new
        self.duals = new

    def _extrapolate(self, new: list[Tensor]) -> None:
        change = [value - old for value, old in zip(new, self.duals, strict=True)]
        with torch.no_grad():
            uphill = torch.zeros_like(self.momentum)
            for ahead, value, difference, bound in zip(self.ahead, new, change, self.bounds, strict=True):
                # In place: on large graphs the time of a step is that of touching memory.
                product = (ahead - value).mul_(difference).mul_(bound)
                uphill = uphill + product.flatten(1).sum(1)
            following = (1 + (1 + 4 * self.momentum.square()).sqrt()) / 2
            restart = uphill > 0
            push = torch.where(restart, 0, (self.momentum - 1) / following)
            self.momentum = torch.where(restart, 1, following)
        self.ahead = [
            torch.addcmul(value, push.reshape(-1, *[1] * (value.ndim - 1)), difference)
            for value, difference in zip(new, change, strict=True)
        ]

    def certify(self) -> _Certificate:
        """Energy and gap at the projected dual variables."""
        form, pixels, entropy = self.form, self.pixels, float(self.entropy)
        pull: Tensor | float = sum_adjoint(form, self.duals) if form.blocks else 0.0
        probabilities = pixels.minimiser(pull, entropy)
        wide = probabilities.to(_wide(probabilities.device))
        energy = linear_energy(pixels.unary.to(wide), wide, pixels.roi) + entropy * negative_entropy(wide, pixels.roi)
        bound, gap = energy, torch.zeros_like(energy)
        for block, dual in zip(form.blocks, self.duals, strict=True):
            z, y = block.residual(probabilities).to(wide), dual.to(wide)
            support, slack = block.support(z), block.gap(z, y)
            # Where a constraint is violated both are inf, but the dual value is finite.
            inner = torch.where(support.isfinite(), support - slack, (z * y).flatten(1).sum(1))
            energy, bound, gap = energy + support, bound + inner, gap + slack
        return _Certificate(probabilities, energy, bound, gap)

    def keep(self, rows: Tensor, alive: Tensor) -> Tensor:
        """Drop images that are done, where the form can do without them; gives the rows that remain."""
        images = alive.nonzero().squeeze(1)
        form = self.form.select(images)
        if form is None:
            return rows
        self.form, self.pixels = form, self.pixels.select(images)
        self.duals = [dual[images] for dual in self.duals]
        self.ahead = [dual[images] for dual in self.ahead]
        self.momentum = self.momentum[images]
        self._set_steps()
        return rows[images]
