"""First-order ascent on the dual of an entropy-smoothed convex problem, for regularizers in saddle form.

    min over s in the simplex at every pixel of
        P(s) = <unary, s> + entropy <s, log s> + R(s),     R(s) = max over y in Y of <K s - b, y>,     entropy > 0

For a given y the minimiser is s(y) = softmax(-(unary + K^T y) / entropy), so that what remains is to maximise, over Y,

    D(y) = -entropy * sum over pixels of logsumexp(-(unary + K^T y) / entropy) - <b, y>,      grad D(y) = K s(y) - b

whose gradient is Lipschitz with the constant |K|^2 / (2 entropy). The iterations, with P the projection onto Y:

    accelerated          y+ = P(x + tau (K s(x) - b)),  x+ = y+ + (t - 1) / t+ (y+ - y),
                         t+ = (1 + sqrt(1 + 4 t^2)) / 2; where <x - y+, y+ - y> > 0 in the metric of the steps,
                         t+ = 1 and x+ = y+ (gradient restart); (t - 1) / t+ may be limited
    projected-gradient   y+ = P(y + tau (K s(y) - b)): the papers' forward iteration
    lazy                 a+ = a + tau (K s(y) - b),  y+ = P(a+): what the papers differentiate; it winds up at the rim

The steps tau are one for each entry of y, entropy * 2 / r with K K^T <= diag(r) ("diagonal"), which needs no norm and
converges fastest; one from the bound on the norm ("norm"); or a given number, which has to be below
4 * entropy / |K|^2 to converge at all.

Certificate: gap = P(s(y)) - D(y) = max over Y of <K s - b, .> - <K s - b, y> >= 0, summed without cancellation, and
|s(y) - s*| <= sqrt(gap / (2 entropy)) for the minimiser s*. An image is done when gap per pixel <= tolerance; with
constraints (Y a cone), when they hold, and the gap is as small at a point near s(y) that meets them exactly
(`regloss.constraint`).

Source: Jia, Tai, Liu, "Nonlocal regularized CNN for image segmentation", Eq. (26)-(28) and (43); Beck, Teboulle,
"A fast iterative shrinkage-thresholding algorithm", 2009; O'Donoghue, Candes, "Adaptive restart for accelerated
gradient schemes", 2015; Pock, Chambolle, "Diagonal preconditioning for first order primal-dual algorithms", ICCV 2011.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor

from regloss.checks import check_at_least_one, check_choice, check_not_negative
from regloss.dispatch import find
from regloss.dual_problem import Smoothing
from regloss.errors import UsageError
from regloss.forms import Form, Saddle
from regloss.implicit import (
    Adjoint,
    AdjointProblem,
    JointAdjointProblem,
    parameter_gradients,
    softmax_response,
    solve_adjoint,
)
from regloss.operators import unscaled
from regloss.solver import DifferentiableSolver, Problem, Pullback, Solution, statuses
from regloss_plugins.solvers.dual_ascent import (
    EntropySmooth,
    SquareSmooth,
    TensorRun,
    ascend,
    starting_duals,
)

METHODS = ("accelerated", "projected-gradient", "lazy")


@dataclass(frozen=True)
class PDHGState:
    """Where `PDHG` stopped: give it to ``warm`` to continue, with other unaries or weights.

    Attributes:
        duals: y, one tensor (B, ...) for each part of the saddle form. Any values may be given; they are projected.
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
        momentum: largest extrapolation (t - 1) / t+ of "accelerated", 0 < momentum <= 1. Below 1 convergence keeps its
            guarantee but loses its rate in the end: 0.97 reaches moderate accuracy in up to 30 % fewer steps, and high
            accuracy in more.
        compiled: where there is fast code for the operators and the dual sets (on CPUs for tv and nltv alone, on CUDA
            devices in single precision for these, star, volume, ordered and sums of them), have it take the steps,
            which is several times faster; not for "lazy" and not where autograd records. False = always by tensor
            operations; the results are the same but for rounding.

    Raises:
        UsageError: a setting outside its range, entropy = 0, a start that does not fit.

    A pixel without an opinion takes that of its neighbours:

    >>> import torch
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
    momentum: float = 1.0
    compiled: bool = True
    accepts: ClassVar[tuple[type[Form], ...]] = (Saddle,)
    smoothings: ClassVar[tuple[Smoothing, ...]] = ("entropy", "square")

    def __post_init__(self) -> None:
        check_at_least_one(max_steps=self.max_steps, check_every=self.check_every)
        check_not_negative(tolerance=self.tolerance)
        check_choice(METHODS, method=self.method)
        number = isinstance(self.steps, int | float) and 0 < self.steps < float("inf")
        if self.steps not in ("diagonal", "norm") and not number:
            raise UsageError(f'steps must be "diagonal", "norm" or a positive number; got {self.steps!r}.')
        if not 0 < self.momentum <= 1:
            raise UsageError(f"momentum must lie in (0, 1]; got {self.momentum}.")

    def entropies(self, form: type[Form]) -> Literal["positive"]:
        """Those above 0."""
        return "positive"

    def minimise(self, problem: Problem) -> Solution:
        """Solve all images of the batch side by side; those that are done leave it."""
        form, warm = problem.form, self._warm(problem.warm)
        assert isinstance(form, Saddle)
        if problem.smoothing == "square":
            # A cold start is far from the end, and nobody asks for its energy: a look at it would be a waste.
            cold = warm is None and problem.callback is None
            found = ascend(self, form, SquareSmooth.of(problem), warm, problem.callback, certify_start=not cold)
        else:
            found = ascend(
                self, form, EntropySmooth.of(problem), warm, problem.callback, constraints=problem.constraints
            )
        minimiser = found.minimiser.to(problem.unary.dtype)
        return Solution(
            probabilities=minimiser,
            labels=minimiser.argmax(1),
            energy=found.energy,
            bound=found.bound,
            steps=found.steps,
            status=statuses(found.done.tolist()),
            start_energy=found.start_energy,
            state=PDHGState(found.duals),
        )

    def parameters(self, form: Form) -> tuple[Tensor, ...]:
        """Those of the form."""
        assert isinstance(form, Saddle)
        return form.parameters

    def log_probabilities(self, problem: Problem, solution: Solution) -> Tensor:
        """Computed anew from the dual variables."""
        form, state = problem.form, solution.state
        assert isinstance(form, Saddle)
        assert isinstance(state, PDHGState)
        return EntropySmooth.of(problem).log_minimiser(form.adjoint(state.duals) if form.parts else 0.0)

    def unroll(self, problem: Problem, entropy: Tensor) -> Tensor:
        """Exactly ``max_steps`` steps of ``method``; restarts and momentum count as constants."""
        form = problem.form
        assert isinstance(form, Saddle)
        smooth = EntropySmooth.of(problem, entropy)
        run = TensorRun(self, form, smooth, starting_duals(form, smooth, self._warm(problem.warm)))
        run.advance(self.max_steps)
        return smooth.log_minimiser(form.adjoint(run.duals) if form.parts else 0.0)

    def pullback(
        self, problem: Problem, solution: Solution, cotangent: Tensor, *, max_steps: int, tolerance: float
    ) -> Pullback:
        """Conjugate gradients on the free part of the dual set; see `regloss.implicit`."""
        form, state = problem.form, solution.state
        assert isinstance(form, Saddle)
        assert isinstance(state, PDHGState)
        log_probabilities = solution.log_probabilities
        if log_probabilities is None:
            log_probabilities = self.log_probabilities(problem, solution)
        probabilities, cotangent = log_probabilities.exp(), cotangent.to(log_probabilities)
        # S' g for g = cotangent / s, which may overflow where this does not.
        start = (cotangent - probabilities * cotangent.sum(1, keepdim=True)) / problem.entropy
        adjoint = self._by_fast_code(form, state.duals, log_probabilities, problem.entropy, start, max_steps, tolerance)
        if adjoint is None:
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
        return Pullback(-adjoint.response, entropy, parameters, adjoint.residual)

    def _by_fast_code(
        self,
        form: Saddle,
        duals: Sequence[Tensor],
        log_probabilities: Tensor,
        entropy: float,
        start: Tensor,
        max_steps: int,
        tolerance: float,
    ) -> Adjoint | None:
        """By fast code for the form's only part, or for any number; None where there is none."""
        if not self.compiled or not form.parts:
            return None
        given = (log_probabilities, entropy, start, max_steps, tolerance)
        part = form.parts[0]
        found: Adjoint | None = None
        if len(form.parts) == 1 and not isinstance(part.shift, Tensor) and part.shift == 0:
            operator, _ = unscaled(part.operator)
            solve = find("adjoint", type(operator), type(part.dual_set), device=start.device)
            if solve is not None:
                found = solve(AdjointProblem(part, duals[0], *given))
        joint = find("joint-adjoint", device=start.device)
        if found is None and joint is not None:
            found = joint(JointAdjointProblem(form.parts, tuple(duals), *given))
        return found

    def _warm(self, warm: Any) -> tuple[Tensor, ...] | None:
        """Dual variables of an earlier run; None = start from 0."""
        if isinstance(warm, PDHGState):
            return warm.duals
        if warm is None or isinstance(warm, Tensor):
            # Labels do not determine dual variables, and the dual of a convex problem needs no good start.
            return None
        raise UsageError(
            f"pdhg starts from a PDHGState or an earlier solution of its own; got warm of type {type(warm).__name__}."
        )
