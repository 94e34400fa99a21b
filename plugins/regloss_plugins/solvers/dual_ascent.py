"""The iteration behind `PDHG`: dual ascent for any smoothing of the pixels' choices, as tensors or in compiled code.

    min over s of <cost, s> + weight * h(s) + max over y in Y of <K s - b, y>

with h(s) = <s, log s> on the simplex (what layers and solvers need) or h(s) = |s|^2 / 2 everywhere (denoising). The
formulas of the steps stand in `regloss_plugins.solvers.pdhg`.

`TensorRun` is the reference: it takes any saddle form on any device, and autograd can follow it. `CompiledRun` leaves
the steps to fast code for the operator and the dual set of the form's only part (`regloss.dispatch`), image by image,
and `DeviceRun` to code for one part or several that takes the whole batch through many steps without waiting for its
device; all give the same but for rounding.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar

import torch
from torch import Tensor

from regloss.checks import values_are_checked
from regloss.constraint import Constraints
from regloss.dispatch import find
from regloss.dual_problem import DualIteration, DualProblem, DualResult, DualSteps, JointProblem, Smoothing, dual_steps
from regloss.errors import UsageError
from regloss.forms import Composite
from regloss.grid import spread
from regloss.numerics import one_hot, widest_float
from regloss.operators import unscaled
from regloss.solver import Callback, Problem, Progress, allowed_cost, linear_energy, negative_entropy

Result = TypeVar("Result")

if TYPE_CHECKING:
    from regloss_plugins.solvers.pdhg import PDHG

# --------------------------------------------------------------------------------------------------------------------
# The part of the problem that separates over pixels


class Smooth(ABC):
    """<cost, s> + weight * h(s).

    Attributes:
        cost: (B, K, *S), with inf where a label is not allowed.
        roi: (B, *S) bool; values are summed inside. None = everywhere.
        counts: (B,) pixels in it.
        weight: of h, > 0; a tensor () if autograd is to follow.
    """

    smoothing: ClassVar[Smoothing]
    cost: Tensor
    roi: Tensor | None
    counts: Tensor
    weight: float | Tensor

    @property
    def step_scale(self) -> float | Tensor:
        """Steps times r, see `regloss.dual_problem.DualProblem`."""
        return 2 * self.weight if self.smoothing == "entropy" else self.weight

    @abstractmethod
    def minimiser(self, adjoint: Tensor | float) -> Tensor:
        """S (B, K, *S) for K^T y = ``adjoint``."""

    @abstractmethod
    def value(self, s: Tensor) -> Tensor:
        """(B,), in the precision of ``s``."""

    @abstractmethod
    def select(self, images: Tensor) -> Smooth:
        """The images with the indices ``images`` (M,)."""

    def binding_cost(self) -> Tensor:
        """``cost``, with inf wherever s is 0 whatever y is."""
        return self.cost


@dataclass(frozen=True)
class EntropySmooth(Smooth):
    """H(s) = <s, log s>, s in the simplex: a softmax."""

    smoothing: ClassVar[Smoothing] = "entropy"
    cost: Tensor
    unary: Tensor  # (B, K, *S), as given, 0 outside the region of interest
    seeds: Tensor | None  # (B, K, *S) one-hot where a label is given, 0 elsewhere
    given: Tensor | None  # (B, 1, *S) bool: where
    roi: Tensor | None
    counts: Tensor
    weight: float | Tensor

    @staticmethod
    def of(problem: Problem, entropy: float | Tensor | None = None) -> EntropySmooth:
        """Of ``problem``, with its own entropy or another."""
        unary, form = problem.unary, problem.form
        assert isinstance(form, Composite)
        unary = in_precision_of(form, unary)
        weight = problem.entropy if entropy is None else entropy
        number = float(weight.detach()) if isinstance(weight, Tensor) else weight
        limits = torch.finfo(unary.dtype)
        largest = float(unary.detach().abs().max()) if values_are_checked() else 0.0
        # An entropy that is 0 in the unary's precision would divide by 0 all the same.
        if not number >= limits.tiny or largest / number > limits.max / 4:
            raise UsageError(
                f"pdhg needs an entropy weight > 0 that unaries of {unary.dtype} can be divided by; got entropy = "
                f"{number}. Give one (0.5, say), or for labels use a graph solver such as alpha-expansion."
            )
        cost, seeds, given = allowed_cost(unary, problem.allowed), None, None
        if problem.fixed is not None:
            fixed = problem.fixed.to(unary.device)
            fixed = fixed if problem.roi is None else fixed.masked_fill(~problem.roi, -1)
            given = (fixed >= 0).unsqueeze(1)
            seeds = one_hot(fixed.clamp(min=0), unary.shape[1], unary.dtype) * given
        kept = unary if problem.roi is None else unary * problem.roi.unsqueeze(1)
        return EntropySmooth(cost, kept, seeds, given, problem.roi, pixel_counts(unary, problem.roi), weight)

    def minimiser(self, adjoint: Tensor | float) -> Tensor:
        """The softmax, or the label that is given."""
        free = torch.softmax((self.cost + adjoint) * (-1 / self.weight), dim=1)
        return free if self.seeds is None or self.given is None else torch.where(self.given, self.seeds, free)

    def log_minimiser(self, adjoint: Tensor | float) -> Tensor:
        """Log s; -inf at labels that are not allowed, or not the given one."""
        free = torch.log_softmax((self.cost + adjoint) * (-1 / self.weight), dim=1)
        return free if self.seeds is None or self.given is None else torch.where(self.given, self.seeds.log(), free)

    def value(self, s: Tensor) -> Tensor:
        """With the unaries in the place of infinite costs, whose probabilities are 0."""
        return linear_energy(self.unary.to(s), s, self.roi) + float(self.weight) * negative_entropy(s, self.roi)

    def select(self, images: Tensor) -> EntropySmooth:
        """Those images."""
        given = {name: getattr(self, name) for name in ("cost", "unary", "seeds", "given", "roi", "counts")}
        return replace(self, **{name: value[images] for name, value in given.items() if value is not None})

    def binding_cost(self) -> Tensor:
        """A given label is one whose rivals cost inf; it need not be among those allowed."""
        if self.seeds is None or self.given is None:
            return self.cost
        return torch.where(self.given, self.unary.masked_fill(self.seeds == 0, float("inf")), self.cost)


@dataclass(frozen=True)
class SquareSmooth(Smooth):
    """H(s) = |s|^2 / 2, cost = -weight * f: values of |s - f|^2 * weight / 2, a constant aside."""

    smoothing: ClassVar[Smoothing] = "square"
    cost: Tensor
    roi: Tensor | None
    counts: Tensor
    weight: float | Tensor = 1.0

    @staticmethod
    def of(problem: Problem) -> SquareSmooth:
        """Of ``problem``."""
        assert isinstance(problem.form, Composite)
        cost = in_precision_of(problem.form, problem.unary)
        return SquareSmooth(cost, problem.roi, pixel_counts(cost, problem.roi), problem.entropy)

    def minimiser(self, adjoint: Tensor | float) -> Tensor:
        """F - K^T y / weight."""
        return (self.cost + adjoint) * (-1 / self.weight)

    def value(self, s: Tensor) -> Tensor:
        """As a square, which loses no digits."""
        square = (s + self.cost.to(s) / self.weight).square().sum(1) * (self.weight / 2)
        return (square if self.roi is None else square * self.roi).flatten(1).sum(1)

    def select(self, images: Tensor) -> SquareSmooth:
        """Those images."""
        roi = None if self.roi is None else self.roi[images]
        return SquareSmooth(self.cost[images], roi, self.counts[images], self.weight)


def pixel_counts(values: Tensor, roi: Tensor | None) -> Tensor:
    """(B,) pixels of ``values`` (B, K, *S) inside."""
    if roi is None:
        return values.new_full((len(values),), values[0, 0].numel(), dtype=torch.int64)
    return roi.flatten(1).sum(1)


def in_precision_of(form: Composite, values: Tensor) -> Tensor:
    """``values`` (B, K, *S) in their own precision or the form's, whichever is finer."""
    for part in form.parts:
        known = part.operator.dtype
        dtype = part.operator.apply(torch.zeros_like(values)).dtype if known is None else known
        values = values.to(torch.promote_types(values.dtype, dtype))
    return values


# --------------------------------------------------------------------------------------------------------------------
# The iteration


@dataclass(frozen=True)
class Certificate:
    """What is known of the images still worked on; values in double precision where there is any."""

    energy: Tensor
    bound: Tensor
    gap: Tensor


class Run(Protocol):
    """The iteration's variables."""

    def advance(self, steps: int) -> None:
        """Take so many steps."""

    def certify(self) -> Certificate:
        """Energy and gap at the projected dual variables."""

    def results(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Minimisers and dual variables of the images (M,), where `certify` found them."""

    def keep(self, alive: Tensor) -> None:
        """Go on with the images (M,) alone."""


@dataclass(frozen=True)
class AscentResult:
    """Where the iteration ended, for each image; values in double precision where there is any."""

    minimiser: Tensor
    duals: tuple[Tensor, ...]
    energy: Tensor
    bound: Tensor
    steps: Tensor
    done: Tensor
    start_energy: Tensor


def ascend(
    solver: PDHG,
    form: Composite,
    smooth: Smooth,
    warm: Sequence[Tensor] | None = None,
    callback: Callback | None = None,
    *,
    certify_start: bool = True,
    constraints: Constraints | None = None,
) -> AscentResult:
    """Work on all images of the batch side by side; those whose gap is small enough leave it.

    Args:
        solver: the settings.
        form: K, b and Y.
        smooth: the rest of the problem.
        warm: dual variables to start from, which are projected; None = 0.
        callback: called with what is known, whenever that is looked at.
        certify_start: look at the start too; else at least one step is taken, and its energy is NaN.
        constraints: that the cones of the form stand for. An image is done only if the gap of a point that meets them
            is small, and energies are those of such points; None = a constraint counts as met within its tolerance.
    """
    batch, device = smooth.cost.shape[0], smooth.cost.device
    start = None if warm is None else starting_duals(form, smooth, warm)
    run: Run | None = None
    if constraints is None:
        run = CompiledRun.of(solver, form, smooth, start)
    if run is None:
        tensors = TensorRun(solver, form, smooth, starting_duals(form, smooth, None) if start is None else start)
        run = DeviceRun.of(tensors) or tensors
    energy = torch.empty(batch, dtype=widest_float(device), device=device)
    bound, start_energy = torch.empty_like(energy), torch.full_like(energy, math.nan)
    steps = torch.zeros(batch, dtype=torch.int64, device=device)
    done = torch.zeros(batch, dtype=torch.bool, device=device)
    found: list[tuple[Tensor, Tensor, list[Tensor]]] = []
    rows = torch.arange(batch, device=device)  # images still in the batch
    taken = 0
    if not certify_start:
        taken = min(solver.check_every, solver.max_steps)
        run.advance(taken)
    while True:
        known = run.certify()
        last = taken == solver.max_steps
        small = known.gap.abs() <= solver.tolerance * smooth.counts[rows]
        violation = None
        if constraints is not None:
            assert isinstance(run, TensorRun | DeviceRun)  # compiled code was not asked
            now = constraints if len(rows) == batch else constraints[rows]
            violation = now.violation(run.results(torch.arange(len(rows), device=device))[0])
            # Finding a point that meets the constraints costs as much as a few steps: it is left out where nobody asks.
            if last or taken == 0 or callback is not None or bool((small & ~done[rows]).any()):
                known = run.certify_feasible(known, now)
                small = small & (known.gap.abs() <= solver.tolerance * smooth.counts[rows])
        if taken == 0:
            start_energy.copy_(known.energy)
        if callback is not None:
            callback(Progress(taken, rows, known.energy, known.bound, violation))
        ends = (small | last) & ~done[rows]
        if bool(ends.any()):
            where = rows[ends]
            found.append((where, *run.results(ends.nonzero().squeeze(1))))
            energy[where], bound[where] = known.energy[ends], known.bound[ends]
            steps[where] = taken
            done[where] = small[ends]
        if last or bool(done[rows].all()):
            break
        alive = ~done[rows]
        if not bool(alive.all()):
            run.keep(alive.nonzero().squeeze(1))
            rows = rows[alive]
        count = min(solver.check_every, solver.max_steps - taken)
        run.advance(count)
        taken += count
    minimiser = _assembled([(where, part) for where, part, _ in found])
    duals = tuple(
        _assembled([(where, parts[number]) for where, _, parts in found]) for number in range(len(form.parts))
    )
    return AscentResult(minimiser, duals, energy, bound, steps, done, start_energy)


def _assembled(parts: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Values of all images, in the batch's order, from (which images, their values)."""
    if len(parts) == 1:
        return parts[0][1]
    values = torch.cat([part for _, part in parts])
    return values[torch.cat([where for where, _ in parts]).argsort()]


def starting_duals(form: Composite, smooth: Smooth, warm: Sequence[Tensor] | None) -> list[Tensor]:
    """``warm`` in Y, and in the precision of ``smooth``; None = 0, in Y.

    Raises:
        UsageError: other shapes than those of the form's dual variables.
    """
    zeros = form.zero_duals(smooth.cost)
    if warm is None:
        return zeros
    expected, given = [tuple(zero.shape) for zero in zeros], [tuple(dual.shape) for dual in warm]
    if expected != given:
        raise UsageError(
            f"A start of pdhg must hold dual variables of shapes {expected}, one for each part of the form; got "
            f"{given}. It comes from a problem of another kind or size."
        )
    return [part.dual_set.project(y.detach().to(smooth.cost)) for part, y in zip(form.parts, warm, strict=True)]


class TensorRun:
    """In tensor operations, each of which makes new tensors, so that autograd can follow."""

    def __init__(self, solver: PDHG, form: Composite, smooth: Smooth, duals: Sequence[Tensor]) -> None:
        self.solver, self.form, self.smooth = solver, form, smooth
        self.duals = list(duals)
        self.ahead = list(duals)  # extrapolated (accelerated), unprojected sums (lazy)
        self.momentum = smooth.cost.new_ones(smooth.cost.shape[0])
        self._minimiser: Tensor | None = None
        self._set_steps()

    def _set_steps(self) -> None:
        chosen, scale = self.solver.steps, self.smooth.step_scale
        if isinstance(chosen, str):
            self.bounds = self.form.diagonal_bound(self.smooth.cost, diagonal=chosen == "diagonal")
            self.steps = [dual_steps(scale, bound) for bound in self.bounds]
        else:
            self.bounds = tuple(self.smooth.cost.new_ones(1) for _ in self.form.parts)
            self.steps = [self.smooth.cost.new_full((1,), chosen) for _ in self.form.parts]

    def advance(self, steps: int) -> None:
        """See `Run`."""
        for _ in range(steps):
            self.step()

    def step(self) -> None:
        """One step of the method."""
        form, lazy = self.form, self.solver.method == "lazy"
        if not form.parts:
            return
        at = self.duals if lazy else self.ahead
        probabilities = self.smooth.minimiser(form.adjoint(at))
        moved = [
            torch.addcmul(ahead, tau, part.residual(probabilities))
            for part, ahead, tau in zip(form.parts, self.ahead, self.steps, strict=True)
        ]
        new = [part.dual_set.project(value) for part, value in zip(form.parts, moved, strict=True)]
        if self.solver.method == "accelerated":
            self._extrapolate(new)
        else:
            self.ahead = moved if lazy else new
        self.duals = new

    def _extrapolate(self, new: list[Tensor]) -> None:
        change = [value - old for value, old in zip(new, self.duals, strict=True)]
        with torch.no_grad():
            criterion = torch.zeros_like(self.momentum)
            for ahead, value, difference, bound in zip(self.ahead, new, change, self.bounds, strict=True):
                # In place: on large graphs the time of a step is that of touching memory.
                product = (ahead - value).mul_(difference).mul_(bound)
                criterion = criterion + product.flatten(1).sum(1)
            following = (1 + (1 + 4 * self.momentum.square()).sqrt()) / 2
            restart = criterion > 0
            extrapolation = torch.where(restart, 0, ((self.momentum - 1) / following).clamp(max=self.solver.momentum))
            self.momentum = torch.where(restart, 1, following)
        self.ahead = [
            torch.addcmul(value, spread(extrapolation, value), difference)
            for value, difference in zip(new, change, strict=True)
        ]

    def certify(self) -> Certificate:
        """See `Run`."""
        form, smooth = self.form, self.smooth
        adjoint: Tensor | float = form.adjoint(self.duals) if form.parts else 0.0
        self._minimiser = smooth.minimiser(adjoint)
        energy = smooth.value(self._minimiser.to(widest_float(self._minimiser.device)))
        bound, gap = energy, torch.zeros_like(energy)
        for part, dual in zip(form.parts, self.duals, strict=True):
            z, y = part.residual(self._minimiser).to(energy.dtype), dual.to(energy.dtype)
            support, short = part.dual_set.support(z), part.dual_set.fenchel_gap(z, y)
            # Where a constraint is violated both are inf, but the dual value is finite.
            inner = torch.where(support.isfinite(), support - short, (z * y).flatten(1).sum(1))
            energy, bound, gap = energy + support, bound + inner, gap + short
        return Certificate(energy, bound, gap)

    def certify_feasible(self, known: Certificate, constraints: Constraints) -> Certificate:
        """``known``, of the last `certify`, with the energy of points that meet the constraints."""
        form, smooth = self.form, self.smooth
        assert isinstance(smooth, EntropySmooth)
        s, _ = constraints.feasible(smooth.log_minimiser(form.adjoint(self.duals) if form.parts else 0.0))
        energy = smooth.value(s) + form.saddle.value(s, constraints=False)
        return Certificate(energy, known.bound, energy - known.bound)

    def results(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """See `Run`."""
        assert self._minimiser is not None
        return self._minimiser[images], [dual[images] for dual in self.duals]

    def keep(self, alive: Tensor) -> None:
        """See `Run`."""
        self.form, self.smooth = self.form[alive], self.smooth.select(alive)
        self.duals = [dual[alive] for dual in self.duals]
        self.ahead = [dual[alive] for dual in self.ahead]
        self.momentum = self.momentum[alive]
        self._set_steps()


@dataclass
class _Moving:
    """An image on its way."""

    iteration: DualIteration
    accelerated: bool
    most: float  # extrapolation
    momentum: float = 1.0
    extrapolation: float = 0.0
    certified: DualResult | None = None

    def advance(self, steps: int) -> None:
        for _ in range(steps):
            criterion = self.iteration.step(self.extrapolation)
            if not self.accelerated:
                continue
            following = (1 + math.sqrt(1 + 4 * self.momentum**2)) / 2
            restart = criterion > 0
            self.extrapolation = 0.0 if restart else min((self.momentum - 1) / following, self.most)
            self.momentum = 1.0 if restart else following

    def certify(self) -> DualResult:
        self.certified = self.iteration.certify()
        return self.certified


def _may_be_fast(solver: PDHG, form: Composite, smooth: Smooth) -> bool:
    """Whether the settings allow fast code, and autograd is not to follow."""
    parameters = (smooth.cost, *(value for part in form.parts for value in part.parameters))
    recorded = torch.is_grad_enabled() and any(value.requires_grad for value in parameters)
    return solver.compiled and solver.method != "lazy" and bool(form.parts) and not recorded


def _fast_code(
    task: str, solver: PDHG, form: Composite, smooth: Smooth, start: Sequence[Tensor] | None
) -> tuple[Any, DualProblem] | None:
    """The code for a task on the form's only part, and what it is given; None where there is none or it may not run."""
    part = form.parts[0] if len(form.parts) == 1 else None
    if part is None or not _may_be_fast(solver, form, smooth) or isinstance(part.shift, Tensor) or part.shift != 0:
        return None
    operator, factor = unscaled(part.operator)
    code = find(task, type(operator), type(part.dual_set), device=smooth.cost.device)
    if code is None:
        return None
    problem = DualProblem(
        operator=operator,
        dual_set=part.dual_set,
        cost=smooth.binding_cost(),
        smoothing=smooth.smoothing,
        weight=float(smooth.weight),
        steps=solver.steps,
        start=None if start is None else start[0],
        roi=smooth.roi,
        factor=factor,
    )
    return code, problem


class DeviceRun:
    """By code for a device, the whole batch at once; the rest is `TensorRun`'s."""

    def __init__(self, tensors: TensorRun, steps: DualSteps) -> None:
        self.tensors, self.steps = tensors, steps

    @staticmethod
    def of(tensors: TensorRun) -> DeviceRun | None:
        """None as for `CompiledRun`, and where the code leaves the problem to the reference."""
        solver, form, smooth = tensors.solver, tensors.form, tensors.smooth
        most = solver.momentum if solver.method == "accelerated" else 0.0
        found, steps = _fast_code("dual-steps", solver, form, smooth, tensors.duals), None
        if found is not None:
            code, problem = found
            steps = code(problem, most)
        joint = find("joint-steps", device=smooth.cost.device)
        if steps is None and joint is not None and _may_be_fast(solver, form, smooth):
            given = JointProblem(
                parts=form.parts,
                cost=smooth.binding_cost(),
                smoothing=smooth.smoothing,
                weight=float(smooth.weight),
                steps=tuple(tensors.steps),
                starts=tuple(tensors.duals),
            )
            steps = joint(given, most)
        return None if steps is None else DeviceRun(tensors, steps)

    def advance(self, steps: int) -> None:
        """See `Run`."""
        self.tensors.duals = self.steps.advance(steps)

    def certify(self) -> Certificate:
        """See `Run`."""
        return self.tensors.certify()

    def certify_feasible(self, known: Certificate, constraints: Constraints) -> Certificate:
        """As of `TensorRun`."""
        return self.tensors.certify_feasible(known, constraints)

    def results(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """See `Run`."""
        return self.tensors.results(images)

    def keep(self, alive: Tensor) -> None:
        """See `Run`."""
        self.tensors.keep(alive)
        self.steps.keep(alive)


class CompiledRun:
    """By compiled code, in as many threads as torch uses, each image in one of them."""

    def __init__(self, images: Sequence[DualIteration], solver: PDHG) -> None:
        self.images = [_Moving(image, solver.method == "accelerated", solver.momentum) for image in images]

    @staticmethod
    def of(solver: PDHG, form: Composite, smooth: Smooth, start: Sequence[Tensor] | None) -> CompiledRun | None:
        """None where the settings do not allow it, there is no fast code for the form, or autograd is to follow."""
        found = _fast_code("dual-ascent", solver, form, smooth, start)
        if found is None:
            return None
        ascent, problem = found
        return CompiledRun(ascent(problem), solver)

    def advance(self, steps: int) -> None:
        """See `Run`."""
        self._each(lambda image: image.advance(steps))

    def certify(self) -> Certificate:
        """See `Run`."""
        found = self._each(_Moving.certify)
        energy = torch.tensor([one.smooth + one.support for one in found], dtype=torch.float64)
        gap = torch.tensor([one.fenchel_gap for one in found], dtype=torch.float64)
        return Certificate(energy, energy - gap, gap)

    def results(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """See `Run`."""
        chosen = [self.images[number] for number in images.tolist()]
        minimisers = [image.certified.minimiser for image in chosen if image.certified is not None]
        return _stacked(minimisers), [_stacked([image.iteration.dual for image in chosen])]

    def keep(self, alive: Tensor) -> None:
        """See `Run`."""
        self.images = [self.images[number] for number in alive.tolist()]

    def _each(self, do: Callable[[_Moving], Result]) -> list[Result]:
        threads = min(torch.get_num_threads(), len(self.images))
        if threads == 1:
            return [do(image) for image in self.images]
        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(do, self.images))


def _stacked(tensors: Sequence[Tensor]) -> Tensor:
    """Along a new first axis; what one image leaves behind is not copied, as nobody will write to it any more."""
    return tensors[0].unsqueeze(0) if len(tensors) == 1 else torch.stack(list(tensors))
