"""Solver, Problem, Solution, Status, Progress, and `solve`.

A solver minimises <unary, s> + entropy * <s, log s> + R(s), over the simplex at every pixel or over labels, given one
form of R; some also <unary, s> + entropy * |s|^2 / 2 + R(s) over all s, which is denoising.
"""

from __future__ import annotations

import enum
import os
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from regloss import grid
from regloss.checks import at_least_float32, check_costs, check_entropy, check_labels, check_scores
from regloss.constraint import EXACT, Constraints, possible_labels
from regloss.dual_problem import Smoothing
from regloss.errors import MissingForm, ReglossError, UsageError, listed
from regloss.forms import Form
from regloss.numerics import one_hot
from regloss.registry import components, load, name_of, resolve
from regloss.regularizer import Regularizer, Sum, Term, form_names, offered_kind
from regloss.settings import CheckedSettings


class Status(enum.Enum):
    """How a solver ended on one image; the value is the message."""

    OPTIMAL = "solved to optimality"
    CONVERGED = "converged: no step improves further"
    MAX_STEPS = "stopped at the largest number of steps before converging"
    NOT_MET = "stopped before the iterate met its constraints; labels and energy are those of a point that does"
    INFEASIBLE = "no labels were found that meet all constraints; the violation is that of the labels"

    @property
    def is_done(self) -> bool:
        """Whether more steps would not have helped."""
        return self in (Status.OPTIMAL, Status.CONVERGED)


@dataclass(frozen=True)
class Progress:
    """What an iterative algorithm knows on its way, when it looks at its certificate.

    Attributes:
        steps: taken so far.
        images: (M,) int64 places in the batch of the images that are still worked on.
        energy: (M,) value at the current iterate; with constraints, at a point near it that meets them.
        bound: (M,) lower bound on the minimum, -inf where none is known.
        violation: (M,) how far the iterate is from meeting the constraints; None where there are none.
        stage: "step" of a solver; or what half a round of `regloss.alternate` has ended with: "start" (its labels, with
            the statistics fitted to them), "statistics" or "labels".
        round: of `regloss.alternate`, from 1; 0 for its start, and where there are no rounds.
    """

    steps: int
    images: Tensor
    energy: Tensor
    bound: Tensor
    violation: Tensor | None = None
    stage: Literal["step", "start", "statistics", "labels"] = "step"
    round: int = 0


Callback = Callable[[Progress], object]


@dataclass(frozen=True)
class Problem:
    """What a solver is given; checked already.

    Attributes:
        form: R, in one of the forms that the solver accepts.
        unary: (B, K, *S) cost of each class at each pixel; float32 or float64, finite.
        entropy: weight of <s, log s>, >= 0; with the other smoothing, of |s|^2 / 2, > 0.
        smoothing: "entropy", over the simplex at every pixel; or "square", over all s, with |s|^2 / 2 in the place of
            <s, log s>: for unary = -f and entropy = 1 that denoises f, and |f|^2 / 2 is part of the energy.
        fixed: (B, *S) int64 labels of pixels that are given, -1 where free; None = all free.
        allowed: (B, K) bool, labels that free pixels may take; None = all.
        roi: (B, *S) bool; outside nothing counts. None = everywhere.
        warm: labels (B, *S) int64, or the ``state`` of an earlier `Solution` of the same solver; None = cold start.
        callback: called with each `Progress` by solvers that iterate; what it returns is not used. None = nobody looks.
        constraints: those in the form, for solvers whose iterates need not meet them: energies that they report are
            those of points that do. None = there are none, or nobody asks.
    """

    form: Form
    unary: Tensor
    entropy: float = 0.0
    smoothing: Smoothing = "entropy"
    fixed: Tensor | None = None
    allowed: Tensor | None = None
    roi: Tensor | None = None
    warm: Any = None
    callback: Callback | None = None
    constraints: Constraints | None = None


@dataclass(frozen=True)
class Solution:
    """What a solver found, and what certifies it.

    Attributes:
        probabilities: (B, K, *S) minimiser; one-hot for discrete solvers. Of no meaning outside the region of interest.
            With constraints, what `solve` returns meets them: it is near the solver's iterate, which ``state`` keeps,
            or the labels if these are better.
        labels: (B, *S) int64; the minimiser, or its argmax. With constraints, labels that meet them exactly and are
            probable under the iterate.
        energy: (B,) value of the problem at ``probabilities``, inside the region of interest.
        bound: (B,) lower bound on the minimum, -inf where none is known.
        steps: (B,) int64 steps or cycles taken.
        status: one `Status` for each image.
        start_energy: (B,) value at the start, for iterative solvers; NaN where it was not computed.
        state: what `solve` takes as ``warm`` for the next, similar problem: labels, or an object of the solver's own
            that holds its variables (no bare tensor, which would be read as labels).
        violation: (B,) how far the solver's iterate was from meeting the constraints, in their own units, the largest
            over several; 0 without constraints. Where no labels were found that meet all (`Status.INFEASIBLE`), how far
            the labels are. Measured by those who call a solver, `solve` and layers, whatever it says; NaN before.
        log_probabilities: (B, K, *S), where a differentiable solver's `DifferentiableSolver.log_probabilities` has been
            asked for them already, so that its ``pullback`` need not compute them again; else None.
    """

    probabilities: Tensor
    labels: Tensor
    energy: Tensor
    bound: Tensor
    steps: Tensor
    status: tuple[Status, ...]
    start_energy: Tensor
    state: Any = None
    violation: Tensor = field(default=None)  # type: ignore[assignment]  # NaN if it is not given
    log_probabilities: Tensor | None = None

    def __post_init__(self) -> None:
        if self.violation is None:
            object.__setattr__(self, "violation", torch.full_like(self.energy, float("nan")))

    @property
    def gap(self) -> Tensor:
        """(B,) energy - bound; inf where no bound is known."""
        return self.energy - self.bound

    @property
    def image(self) -> Tensor:
        """(B, C, *S) minimiser of a denoising problem, whose channels are no probabilities."""
        return self.probabilities


class Solver(metaclass=CheckedSettings):
    """Minimises problems whose regularizer comes in one of the forms in ``accepts``, the first offered being used.

    A form that is accepted stands for its special cases: `regloss.forms.Composite` for `Saddle` and `Concave`.
    """

    accepts: ClassVar[tuple[type[Form], ...]]
    smoothings: ClassVar[tuple[Smoothing, ...]] = ("entropy",)
    """Kinds of problems that it can solve, see `Problem.smoothing`."""

    @abstractmethod
    def minimise(self, problem: Problem) -> Solution:
        """Solve ``problem``; never modify it."""

    def entropies(self, form: type[Form]) -> Literal["any", "zero", "positive"]:
        """Which entropy weights `minimise` takes for problems in ``form``; any, unless it says so.

        Outer loops ask when they are made, so that an entropy that will not do is refused before the training begins.
        """
        return "any"


@dataclass(frozen=True)
class Pullback:
    """Gradients of a loss with respect to what a solver was given.

    Attributes:
        unary: (B, K, *S).
        entropy: () tensor.
        parameters: one for each of the solver's ``parameters(form)``; None where the solution does not depend on it.
        residual: (B,) relative residual at which the linear system was stopped; None = it was solved directly.
    """

    unary: Tensor
    entropy: Tensor
    parameters: tuple[Tensor | None, ...]
    residual: Tensor | None = None


class DifferentiableSolver(Solver):
    """A solver that a layer can be built of: its solution can be differentiated.

    Subclasses are frozen dataclasses with the fields ``max_steps`` and ``tolerance``.
    """

    max_steps: int
    tolerance: float

    @abstractmethod
    def parameters(self, form: Form) -> tuple[Tensor, ...]:
        """Tensors within ``form`` that may need a gradient, each once."""

    @abstractmethod
    def log_probabilities(self, problem: Problem, solution: Solution) -> Tensor:
        """Log s (B, K, *S) at a solution of ``problem``, without the underflow that log(s) would have."""

    @abstractmethod
    def unroll(self, problem: Problem, entropy: Tensor) -> Tensor:
        """Log s (B, K, *S) after exactly ``max_steps`` steps, as operations that autograd can differentiate.

        Args:
            problem: its unary may need a gradient; its ``entropy`` is not looked at.
            entropy: () tensor, > 0.
        """

    @abstractmethod
    def pullback(
        self, problem: Problem, solution: Solution, cotangent: Tensor, *, max_steps: int, tolerance: float
    ) -> Pullback:
        """Gradients of a loss by implicit differentiation, from nothing but the solution.

        Args:
            problem: what was solved.
            solution: of ``problem``, with its state.
            cotangent: (B, K, *S) gradient of the loss with respect to log s.
            max_steps: largest number of steps for the linear system that this takes.
            tolerance: relative residual of that system at which to stop.
        """


def negotiate(regularizer: Regularizer, solver: Solver) -> type[Form]:
    """The form that ``solver`` will use of ``regularizer``.

    Raises:
        MissingForm: there is none; the message names both sides and the solvers that would do.
    """
    for kind in solver.accepts:
        offered = offered_kind(regularizer, kind)
        if offered is not None:
            return offered
    needed = " or ".join(form.__name__ for form in solver.accepts)
    fitting = ", ".join(_solvers_for(regularizer)) or "none that is installed"
    raise MissingForm(
        f"Cannot use {name_of(solver)} with {name_of(regularizer)}: it offers {form_names(regularizer.forms)}, "
        f"{name_of(solver)} needs {needed}. {_in_the_way(regularizer, solver)}Solvers that can: {fitting}."
    )


def _in_the_way(regularizer: Regularizer, solver: Solver) -> str:
    """Which parts of a sum the solver cannot use, as a sentence; nothing for other regularizers."""
    if not isinstance(regularizer, Sum):
        return ""
    parts = [part for part in regularizer.parts if all(offered_kind(part, kind) is None for kind in solver.accepts)]
    texts = [f"{name_of(part)}, which offers {form_names(part.forms)}" for part in parts]
    return f"In the way: {'; '.join(texts)}. " if texts else ""


def _solvers_for(regularizer: Regularizer) -> list[str]:
    fitting = []
    for component in components("solver"):
        try:
            cls = load(component)
        except ReglossError:
            continue  # a broken or incomplete plugin is no suggestion; using it by name still reports why
        if any(offered_kind(regularizer, form) is not None for form in getattr(cls, "accepts", ())):
            fitting.append(component.name)
    return fitting


def solve(
    term: Term,
    unary: Tensor,
    solver: Solver | str,
    *,
    entropy: float = 0.0,
    fixed: Tensor | None = None,
    allowed: Tensor | None = None,
    warm: Tensor | Solution | Any = None,
    callback: Callback | None = None,
) -> Solution:
    """Minimise <unary, s> + entropy * <s, log s> + R(s) for every image of a batch.

    Args:
        term: R, bound to the images; its region of interest applies to the whole problem. What it takes from a
            prediction (`Term.conditioned_on`) it takes from the minimiser without R.
        unary: (B, K, *S) costs, finite; in float32 at most 3e30.
        solver: a `Solver`, or its name.
        entropy: weight of the entropy term, 0 to 1e30.
        fixed: (B, *S) integer labels that are given, -1 where free. A mask, not a cost: no large number is involved.
        allowed: (B, K) bool, labels that pixels may take, at least one in each image and all that seeds have there.
        warm: where to start: labels (B, *S), an earlier `Solution`, or its ``state``.
        callback: called with each `Progress` of an iterative solver, when it looks at its certificate, for curves of
            energy and bound; pdhg looks at it anyway, dca and mean-field compute energies for it, the others look at
            nothing on their way.

    Returns:
        The minimiser with its certificates; energies in float32 at least. With constraints in R, labels and
        probabilities meet them, whatever the solver's iterate did.

    Raises:
        MissingForm: the solver cannot use any form that the term offers.
        UsageError: shapes disagree, NaN, labels outside 0..K-1, seeds that are not among the allowed labels, seeds or
            allowed labels that contradict a constraint.

    >>> from regloss import GridCRF
    >>> image = torch.tensor([[[[0.0, 0.0, 1.0, 1.0]]]])
    >>> unary = torch.zeros(1, 2, 1, 4); unary[0, 1, 0, 0] = 1; unary[0, 0, 0, 3] = 1
    >>> solve(GridCRF(sigma=0.1).bind(image), unary, "alpha-expansion").labels
    tensor([[[0, 0, 1, 1]]])
    """
    if not isinstance(term, Term):
        raise UsageError(f"solve takes a regularizer that is bound to images, R.bind(image); got {term!r}.")
    chosen: Solver = resolve("solver", solver)
    kind = negotiate(term.regularizer, chosen)
    check_scores(unary, "unary")
    if (unary.shape[0], *unary.shape[2:]) != term.shape:
        raise UsageError(f"unary {tuple(unary.shape)} does not fit the bound images, with (B, *S) = {term.shape}.")
    check_costs(unary)
    check_entropy(entropy)
    classes = unary.shape[1]
    if fixed is not None:
        check_labels(fixed, term.shape)
        inside = fixed if term.roi is None else fixed[term.roi]
        _check_range(inside, -1, classes, "fixed", "-1 where free")
    if allowed is not None:
        if allowed.dtype != torch.bool or tuple(allowed.shape) != tuple(unary.shape[:2]):
            raise UsageError(
                f"allowed must be bool of shape (B, K) = {tuple(unary.shape[:2])}; got {allowed.dtype} "
                f"of shape {tuple(allowed.shape)}."
            )
        if not bool(allowed.any(1).all()):
            raise UsageError("allowed admits no label at all in at least one image.")
        if fixed is not None:
            _refuse_forbidden_seeds(fixed, allowed, term.roi)
    if isinstance(warm, Solution):
        warm = warm.state if warm.state is not None else warm.labels
    if isinstance(warm, Tensor):
        check_labels(warm, term.shape)
        inside = warm if term.roi is None else warm[term.roi]
        _check_range(inside, 0, classes, "warm", "start labels, from an earlier solution, say")
    if term.regularizer.needs_prediction:
        term = term.conditioned_on(_without_prior(at_least_float32(unary.detach()), entropy, fixed, allowed))
        if term.constraints() and fixed is not None:
            term = term.reconciled(possible_labels(unary, term.roi, fixed, allowed))
    problem = Problem(
        form=term.form(kind),
        unary=at_least_float32(unary.detach()),
        entropy=float(entropy),
        fixed=None if fixed is None else fixed.to(torch.int64),
        allowed=allowed,
        roi=term.roi,
        warm=warm,
        callback=callback,
        constraints=Constraints.of([term], unary, fixed, allowed),
    )
    with torch.no_grad(), torch.autocast(unary.device.type, enabled=False):
        solution = meet_constraints(chosen, problem, chosen.minimise(problem), term.energy)
    return replace(solution, probabilities=solution.probabilities.to(unary.dtype))


def meet_constraints(
    solver: Solver, problem: Problem, solution: Solution, prior: Callable[[Tensor], Tensor]
) -> Solution:
    """A solver's ``solution`` of ``problem``, made to meet the problem's constraints, its violation measured.

    Args:
        solver: that found it.
        problem: if it has no constraints, the solution's violation is 0, and all else as it is.
        solution: whose probabilities are the solver's iterate.
        prior: R (B,) of probabilities (B, K, *S), constraints left out.
    """
    constraints = problem.constraints
    if constraints is None:
        return replace(solution, violation=torch.zeros_like(solution.energy))
    logs = _log_iterate(solver, problem, solution)
    raw = constraints.violation(solution.probabilities)
    rounded = constraints.round(logs)
    soft, _ = constraints.feasible(logs)

    def value(s: Tensor) -> Tensor:
        smooth = linear_energy(problem.unary.to(s), s, problem.roi) + problem.entropy * negative_entropy(s, problem.roi)
        return smooth + prior(s).to(smooth)

    hard = one_hot(rounded.labels, soft.shape[1], soft.dtype)
    energy, energy_of_labels = value(soft), value(hard)
    # Any point that meets the constraints will do, and the better one certifies more. (Labels need not be one: whole
    # volumes are not the volumes that were asked for.)
    take = (energy_of_labels < energy) & (constraints.violation(hard) <= EXACT)
    chosen = torch.where(grid.spread(take, soft), hard, soft)
    energy = torch.where(take, energy_of_labels, energy)
    missed = (rounded.violation > 0).tolist()
    met = constraints.is_met(solution.probabilities).tolist()
    status = tuple(
        Status.INFEASIBLE if bad else (old if fine else Status.NOT_MET)
        for old, bad, fine in zip(solution.status, missed, met, strict=True)
    )
    bound = solution.bound.to(energy)
    # A bound that exceeds the energy by what single precision leaves out of the sums is equal to it.
    rounding = 16 * torch.finfo(problem.unary.dtype).eps * _magnitude(problem, chosen)
    # Where no such point was found, labels may meet whole volumes instead of those that the bound is of.
    below = (bound <= energy + rounding) | (constraints.violation(chosen) > EXACT)
    bound = torch.where((bound > energy) & below, energy, bound)
    return replace(
        solution,
        probabilities=chosen.to(solution.probabilities.dtype),
        labels=rounded.labels,
        energy=energy,
        bound=bound,
        status=status,
        violation=torch.where(rounded.violation > 0, rounded.violation.to(raw), raw),
        log_probabilities=None,  # those of the iterate
    )


def _magnitude(problem: Problem, s: Tensor) -> Tensor:
    """(B,) size of what the energy at ``s`` is summed from."""
    entropy = -problem.entropy * negative_entropy(s, problem.roi)
    return linear_energy(problem.unary.to(s).abs(), s, problem.roi) + entropy


def _log_iterate(solver: Solver, problem: Problem, solution: Solution) -> Tensor:
    """Logarithms of a solver's iterate, or for solvers over labels what orders labels like them."""
    if solution.log_probabilities is not None:
        return solution.log_probabilities
    if problem.entropy > 0 and isinstance(solver, DifferentiableSolver):
        return solver.log_probabilities(problem, solution)
    cost = problem.unary - problem.unary.amin(1, keepdim=True)
    cost = cost / grid.spread(cost.flatten(1).amax(1).clamp(min=torch.finfo(cost.dtype).tiny), cost)
    return solution.probabilities.to(cost).clamp(min=1e-3).log() - cost


def _without_prior(unary: Tensor, entropy: float, fixed: Tensor | None, allowed: Tensor | None) -> Tensor:
    """Minimiser (B, K, *S) of the problem for R = 0."""
    cost = allowed_cost(unary, allowed)
    cost = cost - cost.amin(1, keepdim=True)
    # Without entropy it is one-hot; at the smallest one that can be divided by, nearly so.
    free = torch.softmax(-cost / max(entropy, float(torch.finfo(unary.dtype).tiny)), dim=1)
    if fixed is None:
        return free
    given = fixed.to(unary.device, torch.int64)
    return torch.where((given >= 0).unsqueeze(1), one_hot(given.clamp(min=0), unary.shape[1], unary.dtype), free)


def _check_range(values: Tensor, low: int, classes: int, name: str, meaning: str) -> None:
    if values.numel() and not (int(values.min()) >= low and int(values.max()) < classes):
        raise UsageError(
            f"{name} must hold labels from {low} to {classes - 1} ({meaning}); got values from {int(values.min())} to "
            f"{int(values.max())}."
        )


def _refuse_forbidden_seeds(fixed: Tensor, allowed: Tensor, roi: Tensor | None) -> None:
    seeds = fixed.to(allowed.device, torch.int64)
    if roi is not None:
        seeds = seeds.masked_fill(~roi.to(allowed.device), -1)
    admitted = allowed.gather(1, seeds.clamp(min=0).flatten(1)).reshape(seeds.shape)
    wrong = (seeds >= 0) & ~admitted
    if bool(wrong.any()):
        image = int(wrong.flatten(1).any(1).nonzero()[0])
        labels = sorted(set(seeds[image][wrong[image]].tolist()))
        raise UsageError(
            f"fixed gives {int(wrong[image].sum())} pixels of image {image} of the batch labels that allowed does not "
            f"admit there: {listed(labels)}. Allow these labels in that image, or take the seeds away."
        )


def allowed_cost(unary: Tensor, allowed: Tensor | None) -> Tensor:
    """``unary`` (B, K, *S) with inf at the labels that ``allowed`` (B, K) does not admit."""
    if allowed is None:
        return unary
    refused = ~allowed.to(unary.device).reshape(*unary.shape[:2], *[1] * (unary.ndim - 2))
    return unary.masked_fill(refused, float("inf"))


def seeds_inside(problem: Problem) -> Tensor:
    """(B, *S) int64 fixed labels, -1 where free and outside the region of interest, where seeds mean nothing."""
    shape, device = (problem.unary.shape[0], *problem.unary.shape[2:]), problem.unary.device
    if problem.fixed is None:
        return torch.full(shape, -1, device=device)
    return problem.fixed.to(device).masked_fill(~grid.full_roi(problem.roi, shape, device), -1)


def possible_cost(problem: Problem) -> Tensor:
    """The unary (B, K, *S) with inf at labels that a pixel may not take: others than its seed, or than are allowed.

    What is allowed counts where no seed is.
    """
    cost = allowed_cost(problem.unary, problem.allowed)
    if problem.fixed is None:
        return cost
    seeds = seeds_inside(problem).unsqueeze(1)
    order = torch.arange(cost.shape[1], device=cost.device).reshape(1, -1, *[1] * (cost.ndim - 2))
    return torch.where(seeds >= 0, problem.unary.masked_fill(order != seeds, float("inf")), cost)


def linear_energy(unary: Tensor, probabilities: Tensor, roi: Tensor | None) -> Tensor:
    """<unary, s> (B,) inside the region of interest."""
    product = (unary * probabilities).sum(1)
    return (product if roi is None else product * roi).flatten(1).sum(1)


def negative_entropy(probabilities: Tensor, roi: Tensor | None) -> Tensor:
    """<s, log s> (B,) inside the region of interest, with 0 log 0 = 0."""
    product: Tensor = torch.special.xlogy(probabilities, probabilities).sum(1)
    return (product if roi is None else product * roi).flatten(1).sum(1)


def statuses(done: Sequence[bool], yes: Status = Status.CONVERGED, no: Status = Status.MAX_STEPS) -> tuple[Status, ...]:
    """One `Status` for each image."""
    return tuple(yes if flag else no for flag in done)


def usable_cores() -> int:
    """Processor cores that this process may run on, which a job scheduler may have limited."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS or Windows
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
