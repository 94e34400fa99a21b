"""The iteration behind `PDHG`: dual ascent for any smoothing of the pixels' choices, as tensors or in compiled code.

    min over s of <cost, s> + strength * h(s) + max over y in Y of <K s - b, y>

with h(s) = <s, log s> on the simplex (what layers and solvers need) or h(s) = |s|^2 / 2 everywhere (denoising). The
formulas of the steps stand in `regloss_plugins.solvers.pdhg`.

`TensorRun` is the reference: it takes any saddle form on any device, and autograd can follow it. `CompiledRun` leaves
the steps to the code that the form's only block offers (`regloss.ascent`), image by image; both give the same but for
rounding.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol, TypeVar

import torch
from torch import Tensor

from regloss.ascent import Ascent, Certified, ImageAscent
from regloss.constraint import Constraints
from regloss.errors import UsageError
from regloss.grid import spread
from regloss.implicit import sum_adjoint
from regloss.regularizer import Saddle
from regloss.solver import Look, Problem, linear_energy, negative_entropy, one_hot

Result = TypeVar("Result")

if TYPE_CHECKING:
    from regloss_plugins.solvers.pdhg import PDHG

# --------------------------------------------------------------------------------------------------------------------
# The part of the problem that separates over pixels


class Pixels(ABC):
    """<cost, s> + strength * h(s).

    Attributes:
        cost: (B, K, *S), with inf where a label is not allowed.
        roi: (B, *S) bool; values are summed inside. None = everywhere.
        counts: (B,) pixels in it.
        strength: > 0; a tensor () if autograd is to follow.
    """

    smoothing: ClassVar[Literal["entropy", "square"]]
    cost: Tensor
    roi: Tensor | None
    counts: Tensor
    strength: float | Tensor

    @property
    def pace(self) -> float | Tensor:
        """Steps times r, see `regloss.ascent.Ascent`."""
        return 2 * self.strength if self.smoothing == "entropy" else self.strength

    @abstractmethod
    def minimiser(self, pull: Tensor | float) -> Tensor:
        """S (B, K, *S) for K^T y = ``pull``."""

    @abstractmethod
    def value(self, s: Tensor) -> Tensor:
        """(B,), in the precision of ``s``."""

    @abstractmethod
    def select(self, images: Tensor) -> Pixels:
        """The images with the indices ``images`` (M,)."""

    def binding_cost(self) -> Tensor:
        """``cost``, with inf wherever s is 0 whatever y is."""
        return self.cost


@dataclass(frozen=True)
class EntropyPixels(Pixels):
    """H(s) = <s, log s>, s in the simplex: a softmax."""

    smoothing: ClassVar[Literal["entropy", "square"]] = "entropy"
    cost: Tensor
    unary: Tensor  # (B, K, *S), as given, 0 outside the region of interest
    seeds: Tensor | None  # (B, K, *S) one-hot where a label is given, 0 elsewhere
    given: Tensor | None  # (B, 1, *S) bool: where
    roi: Tensor | None
    counts: Tensor
    strength: float | Tensor

    @staticmethod
    def of(problem: Problem, entropy: float | Tensor | None = None) -> EntropyPixels:
        """Of ``problem``, with its own entropy or another."""
        unary, form = problem.unary, problem.form
        assert isinstance(form, Saddle)
        unary = in_precision_of(form, unary)
        strength = problem.entropy if entropy is None else entropy
        plain = float(strength.detach()) if isinstance(strength, Tensor) else strength
        limits = torch.finfo(unary.dtype)
        # An entropy that is 0 in the unary's precision would divide by 0 all the same.
        if not plain >= limits.tiny or float(unary.detach().abs().max()) / plain > limits.max / 4:
            raise UsageError(
                f"pdhg needs an entropy weight > 0 that unaries of {unary.dtype} can be divided by; got entropy = "
                f"{plain}. Give one (0.5, say), or for labels use a graph solver such as alpha-expansion."
            )
        cost, seeds, given = unary, None, None
        if problem.allowed is not None:
            barred = ~problem.allowed.to(unary.device).reshape(*unary.shape[:2], *[1] * (unary.ndim - 2))
            cost = unary.masked_fill(barred, float("inf"))
        if problem.fixed is not None:
            fixed = problem.fixed.to(unary.device)
            fixed = fixed if problem.roi is None else fixed.masked_fill(~problem.roi, -1)
            given = (fixed >= 0).unsqueeze(1)
            seeds = one_hot(fixed.clamp(min=0), unary.shape[1], unary.dtype) * given
        kept = unary if problem.roi is None else unary * problem.roi.unsqueeze(1)
        return EntropyPixels(cost, kept, seeds, given, problem.roi, pixel_counts(unary, problem.roi), strength)

    def minimiser(self, pull: Tensor | float) -> Tensor:
        """The softmax, or the label that is given."""
        free = torch.softmax((self.cost + pull) * (-1 / self.strength), dim=1)
        return free if self.seeds is None or self.given is None else torch.where(self.given, self.seeds, free)

    def log_minimiser(self, pull: Tensor | float) -> Tensor:
        """Log s; -inf at labels that are not allowed, or not the given one."""
        free = torch.log_softmax((self.cost + pull) * (-1 / self.strength), dim=1)
        return free if self.seeds is None or self.given is None else torch.where(self.given, self.seeds.log(), free)

    def value(self, s: Tensor) -> Tensor:
        """With the unaries in the place of infinite costs, whose probabilities are 0."""
        return linear_energy(self.unary.to(s), s, self.roi) + float(self.strength) * negative_entropy(s, self.roi)

    def select(self, images: Tensor) -> EntropyPixels:
        """Those images."""
        given = {name: getattr(self, name) for name in ("cost", "unary", "seeds", "given", "roi", "counts")}
        return replace(self, **{name: value[images] for name, value in given.items() if value is not None})

    def binding_cost(self) -> Tensor:
        """A given label is one whose rivals cost inf; it need not be among those allowed."""
        if self.seeds is None or self.given is None:
            return self.cost
        return torch.where(self.given, self.unary.masked_fill(self.seeds == 0, float("inf")), self.cost)


@dataclass(frozen=True)
class SquarePixels(Pixels):
    """H(s) = |s|^2 / 2, cost = -strength * f: values of |s - f|^2 * strength / 2, a constant aside."""

    smoothing: ClassVar[Literal["entropy", "square"]] = "square"
    cost: Tensor
    roi: Tensor | None
    counts: Tensor
    strength: float | Tensor = 1.0

    def minimiser(self, pull: Tensor | float) -> Tensor:
        """F - K^T y / strength."""
        return (self.cost + pull) * (-1 / self.strength)

    def value(self, s: Tensor) -> Tensor:
        """As a square, which loses no digits."""
        square = (s + self.cost.to(s) / self.strength).square().sum(1) * (self.strength / 2)
        return (square if self.roi is None else square * self.roi).flatten(1).sum(1)

    def select(self, images: Tensor) -> SquarePixels:
        """Those images."""
        roi = None if self.roi is None else self.roi[images]
        return SquarePixels(self.cost[images], roi, self.counts[images], self.strength)


def pixel_counts(values: Tensor, roi: Tensor | None) -> Tensor:
    """(B,) pixels of ``values`` (B, K, *S) inside."""
    if roi is None:
        return values.new_full((len(values),), values[0, 0].numel(), dtype=torch.int64)
    return roi.flatten(1).sum(1)


def in_precision_of(form: Saddle, values: Tensor) -> Tensor:
    """``values`` (B, K, *S) in their own precision or the form's, whichever is finer."""
    for block in form.blocks:
        dtype = block.apply(torch.zeros_like(values)).dtype if block.dtype is None else block.dtype
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

    def certify_feasible(self, known: Certificate, constraints: Constraints) -> Certificate:
        """``known``, of the last `certify`, with the energy of points that meet the constraints."""

    def results(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Minimisers and dual variables of the images (M,), where `certify` found them."""

    def keep(self, alive: Tensor) -> bool:
        """Go on with the images (M,) alone; whether it can."""


@dataclass(frozen=True)
class Ascended:
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
    form: Saddle,
    pixels: Pixels,
    warm: Sequence[Tensor] | None = None,
    observe: Callable[[Look], object] | None = None,
    *,
    look_first: bool = True,
    constraints: Constraints | None = None,
) -> Ascended:
    """Work on all images of the batch side by side; those whose gap is small enough leave it.

    Args:
        solver: the settings.
        form: K, b and Y.
        pixels: the rest of the problem.
        warm: dual variables to start from, which are projected; None = 0.
        observe: called with what is known, whenever that is looked at.
        look_first: look at the start too; else at least one step is taken, and its energy is NaN.
        constraints: that the cones of the form stand for. An image is done only if the gap of a point that meets them
            is small, and energies are those of such points; None = a constraint counts as met within its tolerance.
    """
    batch, device = pixels.cost.shape[0], pixels.cost.device
    start = None if warm is None else starting_duals(form, pixels, warm)
    run: Run | None = None if constraints is not None else CompiledRun.of(solver, form, pixels, start)
    if run is None:
        run = TensorRun(solver, form, pixels, starting_duals(form, pixels, None) if start is None else start)
    energy = torch.empty(batch, dtype=_wide(device), device=device)
    bound, start_energy = torch.empty_like(energy), torch.full_like(energy, math.nan)
    steps = torch.zeros(batch, dtype=torch.int64, device=device)
    done = torch.zeros(batch, dtype=torch.bool, device=device)
    found: list[tuple[Tensor, Tensor, list[Tensor]]] = []
    rows = torch.arange(batch, device=device)  # images still in the batch
    taken = 0
    if not look_first:
        taken = min(solver.check_every, solver.max_steps)
        run.advance(taken)
    while True:
        known = run.certify()
        last = taken == solver.max_steps
        small = known.gap.abs() <= solver.tolerance * pixels.counts[rows]
        violation = None
        if constraints is not None:
            now = constraints if len(rows) == batch else constraints[rows]
            violation = now.violation(run.results(torch.arange(len(rows), device=device))[0])
            # Finding a point that meets the constraints costs as much as a few steps: it is left out where nobody asks.
            if last or taken == 0 or observe is not None or bool((small & ~done[rows]).any()):
                known = run.certify_feasible(known, now)
                small = small & (known.gap.abs() <= solver.tolerance * pixels.counts[rows])
        if taken == 0:
            start_energy.copy_(known.energy)
        if observe is not None:
            observe(Look(taken, rows, known.energy, known.bound, violation))
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
        if not bool(alive.all()) and run.keep(alive.nonzero().squeeze(1)):
            rows = rows[alive]
        count = min(solver.check_every, solver.max_steps - taken)
        run.advance(count)
        taken += count
    minimiser = _assembled([(where, part) for where, part, _ in found])
    duals = tuple(
        _assembled([(where, parts[number]) for where, _, parts in found]) for number in range(len(form.blocks))
    )
    return Ascended(minimiser, duals, energy, bound, steps, done, start_energy)


def _assembled(parts: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Values of all images, in the batch's order, from (which images, their values)."""
    if len(parts) == 1:
        return parts[0][1]
    values = torch.cat([part for _, part in parts])
    return values[torch.cat([where for where, _ in parts]).argsort()]


def _wide(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64  # Apple's GPUs know no float64


def starting_duals(form: Saddle, pixels: Pixels, warm: Sequence[Tensor] | None) -> list[Tensor]:
    """``warm`` in Y, and in the precision of ``pixels``; None = 0, in Y.

    Raises:
        UsageError: other shapes than those of the form's dual variables.
    """
    blanks = [block.apply(torch.zeros_like(pixels.cost)) for block in form.blocks]
    if warm is None:
        return [block.project(torch.zeros_like(blank)) for block, blank in zip(form.blocks, blanks, strict=True)]
    expected, given = [tuple(blank.shape) for blank in blanks], [tuple(dual.shape) for dual in warm]
    if expected != given:
        raise UsageError(
            f"A start of pdhg must hold dual variables of shapes {expected}, one for each block; got {given}. It comes "
            "from a problem of another kind or size."
        )
    return [block.project(y.detach().to(pixels.cost)) for block, y in zip(form.blocks, warm, strict=True)]


class TensorRun:
    """By the block's functions; every operation makes new tensors, so that autograd can follow."""

    def __init__(self, solver: PDHG, form: Saddle, pixels: Pixels, duals: Sequence[Tensor]) -> None:
        self.solver, self.form, self.pixels = solver, form, pixels
        self.duals = list(duals)
        self.ahead = list(duals)  # extrapolated (accelerated), unprojected sums (lazy)
        self.momentum = pixels.cost.new_ones(pixels.cost.shape[0])
        self._minimiser: Tensor | None = None
        self._set_steps()

    def _set_steps(self) -> None:
        chosen, pace = self.solver.steps, self.pixels.pace
        if isinstance(chosen, str):
            self.bounds = self.form.diagonal_bound(self.pixels.cost, diagonal=chosen == "diagonal")
            # Where the bound is 0, K does not reach that dual variable.
            self.steps = [torch.where(bound > 0, pace / torch.where(bound > 0, bound, 1), 0) for bound in self.bounds]
        else:
            self.bounds = tuple(self.pixels.cost.new_ones(1) for _ in self.form.blocks)
            self.steps = [self.pixels.cost.new_full((1,), chosen) for _ in self.form.blocks]

    def advance(self, steps: int) -> None:
        """See `Run`."""
        for _ in range(steps):
            self.step()

    def step(self) -> None:
        """One step of the method."""
        form, lazy = self.form, self.solver.method == "lazy"
        if not form.blocks:
            return
        at = self.duals if lazy else self.ahead
        probabilities = self.pixels.minimiser(sum_adjoint(form, at))
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
            push = torch.where(restart, 0, ((self.momentum - 1) / following).clamp(max=self.solver.momentum))
            self.momentum = torch.where(restart, 1, following)
        self.ahead = [
            torch.addcmul(value, spread(push, value), difference) for value, difference in zip(new, change, strict=True)
        ]

    def certify(self) -> Certificate:
        """See `Run`."""
        form, pixels = self.form, self.pixels
        pull: Tensor | float = sum_adjoint(form, self.duals) if form.blocks else 0.0
        self._minimiser = pixels.minimiser(pull)
        energy = pixels.value(self._minimiser.to(_wide(self._minimiser.device)))
        bound, gap = energy, torch.zeros_like(energy)
        for block, dual in zip(form.blocks, self.duals, strict=True):
            z, y = block.residual(self._minimiser).to(energy.dtype), dual.to(energy.dtype)
            support, slack = block.support(z), block.gap(z, y)
            # Where a constraint is violated both are inf, but the dual value is finite.
            inner = torch.where(support.isfinite(), support - slack, (z * y).flatten(1).sum(1))
            energy, bound, gap = energy + support, bound + inner, gap + slack
        return Certificate(energy, bound, gap)

    def certify_feasible(self, known: Certificate, constraints: Constraints) -> Certificate:
        """See `Run`."""
        form, pixels = self.form, self.pixels
        assert isinstance(pixels, EntropyPixels)
        pull: Tensor | float = sum_adjoint(form, self.duals) if form.blocks else 0.0
        s, _ = constraints.feasible(pixels.log_minimiser(pull))
        energy = pixels.value(s)
        for block in form.blocks:
            if not block.cone:
                energy = energy + block.support(block.residual(s))
        return Certificate(energy, known.bound, energy - known.bound)

    def results(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """See `Run`."""
        assert self._minimiser is not None
        return self._minimiser[images], [dual[images] for dual in self.duals]

    def keep(self, alive: Tensor) -> bool:
        """See `Run`; only where the form can do without the others."""
        form = self.form.select(alive)
        if form is None:
            return False
        self.form, self.pixels = form, self.pixels.select(alive)
        self.duals = [dual[alive] for dual in self.duals]
        self.ahead = [dual[alive] for dual in self.ahead]
        self.momentum = self.momentum[alive]
        self._set_steps()
        return True


@dataclass
class _Moving:
    """An image on its way."""

    ascent: ImageAscent
    accelerated: bool
    most: float  # extrapolation
    momentum: float = 1.0
    push: float = 0.0
    certified: Certified | None = None

    def advance(self, steps: int) -> None:
        for _ in range(steps):
            uphill = self.ascent.step(self.push)
            if not self.accelerated:
                continue
            following = (1 + math.sqrt(1 + 4 * self.momentum**2)) / 2
            restart = uphill > 0
            self.push = 0.0 if restart else min((self.momentum - 1) / following, self.most)
            self.momentum = 1.0 if restart else following

    def certify(self) -> Certified:
        self.certified = self.ascent.certify()
        return self.certified


class CompiledRun:
    """By compiled code, in as many threads as torch uses, each image in one of them."""

    def __init__(self, images: Sequence[ImageAscent], solver: PDHG) -> None:
        self.images = [_Moving(image, solver.method == "accelerated", solver.momentum) for image in images]

    @staticmethod
    def of(solver: PDHG, form: Saddle, pixels: Pixels, start: Sequence[Tensor] | None) -> CompiledRun | None:
        """None where the settings, the form or the device do not allow it, or autograd is to follow."""
        cost, block = pixels.cost, form.blocks[0] if len(form.blocks) == 1 else None
        if not solver.compiled or solver.method == "lazy" or block is None or block.compiled is None:
            return None
        if cost.device.type != "cpu":
            return None
        if torch.is_grad_enabled() and any(value.requires_grad for value in (cost, *block.parameters)):
            return None
        ascent = Ascent(
            cost=pixels.binding_cost(),
            smoothing=pixels.smoothing,
            strength=float(pixels.strength),
            steps=solver.steps,
            start=None if start is None else start[0],
            roi=pixels.roi,
        )
        images = block.compiled(ascent)
        return None if images is None else CompiledRun(images, solver)

    def advance(self, steps: int) -> None:
        """See `Run`."""
        self._each(lambda image: image.advance(steps))

    def certify(self) -> Certificate:
        """See `Run`."""
        found = self._each(_Moving.certify)
        energy = torch.tensor([one.smooth + one.support for one in found], dtype=torch.float64)
        gap = torch.tensor([one.slack for one in found], dtype=torch.float64)
        return Certificate(energy, energy - gap, gap)

    def certify_feasible(self, known: Certificate, constraints: Constraints) -> Certificate:
        """See `Run`; with constraints the steps are not taken here."""
        raise NotImplementedError

    def results(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """See `Run`."""
        chosen = [self.images[number] for number in images.tolist()]
        minimisers = [image.certified.minimiser for image in chosen if image.certified is not None]
        return _stacked(minimisers), [_stacked([image.ascent.dual for image in chosen])]

    def keep(self, alive: Tensor) -> bool:
        """See `Run`."""
        self.images = [self.images[number] for number in alive.tolist()]
        return True

    def _each(self, do: Callable[[_Moving], Result]) -> list[Result]:
        threads = min(torch.get_num_threads(), len(self.images))
        if threads == 1:
            return [do(image) for image in self.images]
        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(do, self.images))


def _stacked(tensors: Sequence[Tensor]) -> Tensor:
    """Along a new first axis; what one image leaves behind is not copied, as nobody will write to it any more."""
    return tensors[0].unsqueeze(0) if len(tensors) == 1 else torch.stack(list(tensors))
