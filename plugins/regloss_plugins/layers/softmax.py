"""RegularizedSoftmax: a softmax with a prior inside, as the last layer of a network.

    A(o) = argmin over A in the simplex at every pixel of   -<o, A> + entropy <A, log A> + R(A ; image)

for logits o; without R this is softmax(o / entropy). Forward it is a `Solver` at work, backward there are three ways:

    implicit    differentiates the minimiser itself, by one linear system at the solution: no iterate is kept, so the
                memory does not grow with the steps, and the gradient is as good as the solution. Which dual variables
                are free decides it, and that takes a smaller gap than the probabilities do: on 64x64 pixels its
                relative error was up to 20 % at a gap of 1e-4 per pixel (docs/methods/softmax-layer.md has a table).
                The linear system is solved as far as that makes sense. ``polish`` = 1e-8 has the solver go on to
                that gap before it differentiates, for two to six times the steps, and then the error was about 1e-4
                or less for anisotropic and nonlocal total variation, and .1 to .4 % for isotropic.
    unrolled    differentiates the ``max_steps`` steps taken from the start, which are then all taken and all kept: the
                exact gradient of a truncated layer, and a poor one of the minimiser.
    one-step    differentiates one more step of the solver, taken from its result: cheap, biased, for when the layer's
                own settings hardly need a gradient.

With hard constraints in R the solver's iterate meets them in the limit only, and so do the probabilities; that is what
is differentiated. In evaluation mode the most probable labels meet them exactly, always: where they would not, the
labels of ``solution`` are raised to the largest probability of their pixel.

Source: Jia, Tai, Liu, "Nonlocal regularized CNN for image segmentation"; Liu, Wang, Tai, arXiv:2002.03989; for the
one-step gradient Bolte, Pauwels, Vaiter, "One-step differentiation of iterative algorithms", NeurIPS 2023.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from regloss.checks import at_least_float32, check_finite, check_scores
from regloss.constraint import Constraints, HardConstraint, raise_labels
from regloss.errors import UsageError
from regloss.forms import Form
from regloss.registry import name_of, resolve
from regloss.regularizer import Regularizer, Sum, Term, add_forms, combine, part_kind
from regloss.solver import DifferentiableSolver, Problem, Solution, meet_constraints, negotiate
from regloss_plugins.layers.entropic import LEARNABLE, EntropicLayer, following_gap


class RegularizedSoftmax(EntropicLayer):
    """Logits and image to probabilities that minimise an energy with a regularizer.

    Computes in float32 at least, whatever autocast says; probabilities have the logits' type. After each call the
    attribute ``solution`` holds what the solver reported (gap, steps, status; None after an unrolled pass), and after
    each implicit backward pass ``backward_residual`` (B,) the relative residual at which its linear system was stopped
    (None where it was solved directly).

    Args:
        regularizer: a `Regularizer`, a name, a table with a name and settings, or several of them, which add up.
        solver: a differentiable solver, or its name.
        entropy: weight of the entropy, > 0, in units of the logits: the temperature of the softmax.
        max_steps: of the solver; None = as the solver is set.
        tolerance: of the solver; None = as the solver is set.
        backward: "implicit", "unrolled" or "one-step".
        learn: settings that become parameters, of "weight" (one for each regularizer of a sum), "entropy", and the
            regularizers' own that can be learnt: "sigma" of threshold-dynamics, "sigma_xy" and "sigma_rgb" of nltv and
            dense-crf. They are kept as logarithms, ``log_weight``, ``log_entropy``, ``log_sigma`` ..., and so stay
            positive.
        backward_steps: largest number of conjugate-gradient steps of the implicit gradient; None = 60, and 300 with
            ``polish`` or a tolerance of one's own.
        backward_tolerance: their relative residual at which to stop; None = a third of the error that the gap allows
            the probabilities, within 1e-6 and 1e-2.
        polish: tolerance to which the solver goes on from its solution before the implicit gradient is taken; None =
            the gradient is taken where the forward pass stopped.
        polish_steps: largest number of steps for that.

    Raises:
        UsageError: a setting outside its range; a solver that cannot be differentiated.
        MissingForm: the solver cannot use the regularizer.

    >>> layer = RegularizedSoftmax("tv", entropy=0.5)
    >>> logits = torch.tensor([[[[2.0, -1.0, 2.0]], [[0.0, 0.0, 0.0]]]])
    >>> layer(logits, torch.zeros(1, 1, 1, 3)).argmax(1)
    tensor([[[0, 0, 0]]])
    """

    backward_residual: Tensor | None = None

    def __init__(
        self,
        regularizer: Any,
        solver: Any = "pdhg",
        entropy: float = 0.5,
        *,
        max_steps: int | None = None,
        tolerance: float | None = None,
        backward: Literal["implicit", "unrolled", "one-step"] = "implicit",
        learn: Sequence[str] = (),
        backward_steps: int | None = None,
        backward_tolerance: float | None = None,
        polish: float | None = None,
        polish_steps: int = 2000,
    ) -> None:
        super().__init__(entropy, backward, learn, backward_steps, backward_tolerance, polish)
        chosen = combine(regularizer)
        if chosen is None:
            raise UsageError("A regularized softmax needs a regularizer; without one use torch.softmax.")
        self.regularizer: Regularizer = chosen
        self.check_learnable(learn, self._parts(chosen))
        self.solver = _with_settings(resolve("solver", solver), max_steps, tolerance)
        self.form = negotiate(chosen, self.solver)
        # A tolerance or a number of steps that is invalid is refused by the solver itself, now.
        self.polisher = None if polish is None else _with_settings(self.solver, polish_steps, polish)

        self.log_entropy: nn.Parameter | None = None
        if "entropy" in learn:
            self.log_entropy = nn.Parameter(torch.tensor(math.log(entropy)))
        self.log_weight: nn.Parameter | None = None
        if "weight" in learn:
            weights = [part.weight for part in self._parts(chosen)]
            if min(weights) <= 0:
                raise UsageError(f"A weight that is learnt must start above 0; got {weights}.")
            self.log_weight = nn.Parameter(torch.tensor(weights).log())
        # Settings of the regularizers' own, in the order of their names.
        self.learnt_settings = sorted({*learn} - {*LEARNABLE})
        for name in self.learnt_settings:
            values = [float(getattr(part, name)) for part in self._owners(name)]
            if not all(0 < value < math.inf for value in values):
                raise UsageError(f"{name} must start finite and above 0 to be learnt; got {values}.")
            self.register_parameter(f"log_{name}", nn.Parameter(torch.tensor(values).log()))

    @property
    def weight(self) -> Tensor:
        """(regularizers,) weights."""
        if self.log_weight is not None:
            return self.log_weight.exp()
        return torch.tensor([part.weight for part in self._parts(self.regularizer)])

    def logarithms(self) -> dict[str, nn.Parameter | None]:
        """As of `EntropicLayer`."""
        own = {name: self.get_parameter(f"log_{name}") for name in self.learnt_settings}
        return {"weight": self.log_weight, "entropy": self.log_entropy, **own}

    def weighted(self) -> list[Regularizer]:
        """The regularizer, or the parts of a sum."""
        return self._parts(self.regularizer)

    def extra_repr(self) -> str:
        """Settings for ``print(layer)``."""
        return f"{self.regularizer}, {self.solver}, backward={self.backward!r}"

    def forward(
        self,
        logits: Tensor,
        image: Tensor | Term,
        roi: Tensor | None = None,
        warm: Any = None,
        spacing: Sequence[float] | None = None,
    ) -> Tensor:
        """Probabilities (B, K, *S).

        Args:
            logits: (B, K, *S), finite.
            image: (B, C, *S) in [0, 1]; or a `Term` that was bound before, which saves binding again, and whose own
                tensors (weights of edges, volumes) get gradients if they ask for them.
            roi: (B, *S) bool, outside of which nothing is regularised; None = everywhere. Part of the term if one is
                given.
            warm: an earlier solution for the same images, or its state, to start from.
            spacing: distance of neighbouring pixels along each axis of S in mm; None = not known, distances are in
                pixels. Part of the term if one is given.

        Raises:
            UsageError: shapes disagree; logits that are not finite.
        """
        return self._solved(logits, image, roi, warm, spacing, logarithms=False)

    def log_probabilities(
        self,
        logits: Tensor,
        image: Tensor | Term,
        roi: Tensor | None = None,
        warm: Any = None,
        spacing: Sequence[float] | None = None,
    ) -> Tensor:
        """Logarithms of what the call gives, which do not underflow; arguments as there.

        They are logits as well, since softmax(log p) = p.
        """
        return self._solved(logits, image, roi, warm, spacing, logarithms=True)

    def _solved(
        self,
        logits: Tensor,
        image: Tensor | Term,
        roi: Tensor | None,
        warm: Any,
        spacing: Sequence[float] | None,
        *,
        logarithms: bool,
    ) -> Tensor:
        check_scores(logits, "logits")
        check_finite(logits, "logits", "A network that gives them has diverged.")
        with torch.autocast(logits.device.type, enabled=False):
            bound = self.bind(image, roi, spacing)
            bound.check(logits)
            scores = at_least_float32(logits)
            return self.solve(bound, scores, warm, logarithms=logarithms, dtype=logits.dtype).to(logits.dtype)

    def solve(
        self,
        bound: BoundRegularizers,
        scores: Tensor,
        warm: Any = None,
        *,
        logarithms: bool = True,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """What a call computes once it has bound the images and checked the logits: log-probabilities (B, K, *S).

        Args:
            bound: of `bind`.
            scores: (B, K, *S) logits, float32 at least.
            warm: an earlier solution, or its state.
            logarithms: False = probabilities.
            dtype: in which an argmax will be taken of them; None = the scores' own.
        """
        dtype = scores.dtype if dtype is None else dtype
        entropy = self.entropy_for(scores)
        temperature = float(entropy.detach())
        terms = self._conditioned(bound, scores.detach() / temperature)
        form = self._form(bound, terms)
        if isinstance(warm, Solution):
            warm = warm.state
        constraints = Constraints.of(terms, scores)
        problem = Problem(
            form=form, unary=-scores, entropy=temperature, roi=bound.roi, warm=warm, constraints=constraints
        )
        found = self._logarithms(problem, scores, entropy, logarithms or constraints is not None)
        if self.solution is not None:

            def prior(s: Tensor) -> Tensor:
                pairs = zip(self._factors(bound), terms, strict=True)
                return torch.stack([factor * term.energy(s) for factor, term in pairs]).sum(0)

            if constraints is not None and self.backward == "implicit":  # else there was one more step
                self.solution = dataclasses.replace(self.solution, log_probabilities=found.detach())
            with torch.no_grad():
                self.solution = meet_constraints(self.solver, _detached(problem), self.solution, prior)
        if constraints is None:
            return found
        if not self.training:
            with torch.no_grad():
                labels = constraints.round(found).labels if self.solution is None else self.solution.labels
            found = raise_labels(found, labels, dtype)
        return found if logarithms else found.exp()

    def _logarithms(self, problem: Problem, scores: Tensor, entropy: Tensor, logarithms: bool) -> Tensor:
        """The solver's log-probabilities (B, K, *S), or probabilities."""
        form = problem.form
        if self.backward == "implicit":
            parameters = self.solver.parameters(form)
            found: Tensor = _Implicit.apply(  # type: ignore[no-untyped-call]
                self, problem, logarithms, scores, entropy, *parameters
            )
            return found
        found = self._by_steps(problem, scores, entropy)
        return found if logarithms else found.exp()

    def _by_steps(self, problem: Problem, scores: Tensor, entropy: Tensor) -> Tensor:
        if self.backward == "unrolled":
            self.solution = None
            return self.solver.unroll(problem, entropy)
        parameters = self.solver.parameters(problem.form)
        with torch.no_grad():
            self.solution = self.solver.minimise(_detached(problem))
        needed = torch.is_grad_enabled() and any(value.requires_grad for value in (scores, entropy, *parameters))
        if not needed:
            return self.solver.log_probabilities(problem, self.solution)
        last: DifferentiableSolver = dataclasses.replace(self.solver, max_steps=1)  # type: ignore[type-var]
        return last.unroll(dataclasses.replace(problem, warm=self.solution.state), entropy)

    def unrolled(self, max_steps: int | None = None) -> RegularizedSoftmax:
        """As of `RegularizedLayer`; of priors that are computed by tensor operations alone."""
        regularizer = self._current(detached=True)
        if self.log_weight is not None:
            pairs = zip(self._parts(regularizer), self.weight.tolist(), strict=True)
            parts = [dataclasses.replace(part, weight=weight) for part, weight in pairs]  # type: ignore[type-var]
            joined = isinstance(regularizer, Sum)
            regularizer = dataclasses.replace(regularizer, parts=parts) if joined else parts[0]  # type: ignore[type-var]
        for part in self._parts(regularizer):
            if isinstance(part, HardConstraint):
                raise UsageError(f"{name_of(part)} holds by a search over labels, which cannot be exported.")
            if part.opaque:
                raise UsageError(
                    f"{name_of(part)} computes weights or a graph from the image by compiled code, which cannot be "
                    "exported. Those that can: tv, threshold-dynamics, and the layer dense-crf. Export the network "
                    "alone (--set 'layer=\"\"'), and put the layer behind its logits in Python: "
                    "regloss.load(run).model.segmenter.layer.log_probabilities(logits, image)."
                )
        made = RegularizedSoftmax(
            regularizer,
            _with_settings(self.solver, max_steps, None),
            float(self.entropy.detach()),
            backward="unrolled",
        )
        return made.train(self.training)

    def _parts(self, regularizer: Regularizer) -> list[Regularizer]:
        return list(regularizer.parts) if isinstance(regularizer, Sum) else [regularizer]

    def _owners(self, name: str) -> list[Regularizer]:
        """Those of the parts that have the setting ``name`` to be learnt."""
        return [part for part in self._parts(self.regularizer) if name in part.learnable]

    def _current(self, *, detached: bool = False) -> Regularizer:
        """The regularizer with its learnt settings as they stand now: tensors, or numbers if ``detached``."""
        if not self.learnt_settings:
            return self.regularizer
        parts = self._parts(self.regularizer)
        for name in self.learnt_settings:
            logarithms = self.get_parameter(f"log_{name}")
            learnt: Iterator[Any] = iter(logarithms.detach().exp().tolist() if detached else logarithms.exp())
            parts = [
                dataclasses.replace(part, **{name: next(learnt)}) if name in part.learnable else part  # type: ignore[type-var]
                for part in parts
            ]
        joined = isinstance(self.regularizer, Sum)
        return dataclasses.replace(self.regularizer, parts=parts) if joined else parts[0]  # type: ignore[type-var]

    def bind(
        self, image: Tensor | Term, roi: Tensor | None = None, spacing: Sequence[float] | None = None
    ) -> BoundRegularizers:
        """Compute what depends on the images alone; arguments as of a call.

        Raises:
            UsageError: bad images or region; a term with a region besides its own, or whose weights are to be learnt.
            MissingForm: the solver cannot use the term.
        """
        if isinstance(image, Term):
            if roi is not None or spacing is not None:
                raise UsageError(
                    "A bound term has its region of interest and its spacing already: give roi and spacing to bind()."
                )
            if self.learnt_settings:
                raise UsageError(
                    f"To learn {' and '.join(self.learnt_settings)}, give the image: a bound term has the settings "
                    "that it was bound with."
                )
            if self.log_weight is not None and (len(self.log_weight) > 1 or image.regularizer.weight <= 0):
                raise UsageError("To learn the weights of a sum, give the image: each part is bound by itself then.")
            # The weight that the term was bound with gives way to the learnt one.
            return BoundRegularizers(
                (image,), 1 / (image.regularizer.weight or 1.0), negotiate(image.regularizer, self.solver)
            )
        regularizer = self._current()
        if self.log_weight is None:
            return BoundRegularizers((regularizer.bind(image, roi, spacing),), 1.0, self.form)
        total = self.regularizer.weight if isinstance(self.regularizer, Sum) else 1.0
        parts = [dataclasses.replace(part, weight=1.0) for part in self._parts(regularizer)]  # type: ignore[type-var]
        return BoundRegularizers(tuple(part.bind(image, roi, spacing) for part in parts), total, self.form)

    def _conditioned(self, bound: BoundRegularizers, scores: Tensor) -> list[Term]:
        """The bound terms, conditioned on what softmax makes of ``scores``."""
        return [
            term.conditioned_on(torch.softmax(scores, dim=1)) if term.regularizer.needs_prediction else term
            for term in bound.terms
        ]

    def _factors(self, bound: BoundRegularizers) -> list[float]:
        """What the energies of the bound terms are multiplied by: weights that are learnt."""
        if self.log_weight is None:
            return [1.0] * len(bound.terms)
        return (self.log_weight.detach().exp() * bound.factor).tolist()

    def _form(self, bound: BoundRegularizers, terms: Sequence[Term]) -> Form:
        """The form to solve, with learnt weights in it."""
        if self.log_weight is None:
            return terms[0].form(bound.form)
        if len(terms) == 1:
            return terms[0].form(bound.form).scaled(self.log_weight.exp()[0] * bound.factor)
        forms = [
            term.form(part_kind(term.regularizer, bound.form)).scaled(weight * bound.factor)
            for term, weight in zip(terms, self.log_weight.exp(), strict=True)
        ]
        return add_forms(forms)


@dataclasses.dataclass(frozen=True)
class BoundRegularizers:
    """A layer's regularizers, bound to a batch of images.

    Attributes:
        terms: the regularizer's, or those of its parts where weights are learnt.
        factor: of the learnt weights.
        form: the one that will be solved.
    """

    terms: tuple[Term, ...]
    factor: float
    form: type[Form]

    @property
    def roi(self) -> Tensor | None:
        """(B, *S) bool; None = everywhere."""
        return self.terms[0].roi

    def check(self, logits: Tensor) -> None:
        """Raise `UsageError` unless ``logits`` (B, K, *S) are of the images' size."""
        shape = self.terms[0].shape
        if (logits.shape[0], *logits.shape[2:]) != shape:
            raise UsageError(f"logits {tuple(logits.shape)} do not fit the images, with (B, *S) = {shape}.")


class _Implicit(torch.autograd.Function):
    """Probabilities at the solver's solution, or their logarithms, and their derivative by the solver's pullback."""

    @staticmethod
    def forward(
        ctx: Any,
        layer: RegularizedSoftmax,
        problem: Problem,
        logarithms: bool,
        scores: Tensor,
        entropy: Tensor,
        *parameters: Tensor,
    ) -> Tensor:
        layer.solution = layer.solver.minimise(_detached(problem))
        ctx.layer, ctx.problem, ctx.solution = layer, _detached(problem), layer.solution
        ctx.logarithms, ctx.dtypes = logarithms, (scores.dtype, entropy.dtype)
        found = layer.solver.log_probabilities(ctx.problem, layer.solution)
        if layer.polisher is None:  # else another solution is differentiated
            ctx.save_for_backward(found)
        return found if logarithms else found.exp()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        layer: RegularizedSoftmax = ctx.layer
        with torch.autocast(cotangent.device.type, enabled=False):
            solution = ctx.solution
            if layer.polisher is None:
                (log_probabilities,) = ctx.saved_tensors
            else:
                solution = layer.polisher.minimise(dataclasses.replace(ctx.problem, warm=solution.state))
                log_probabilities = layer.solver.log_probabilities(ctx.problem, solution)
            solution = dataclasses.replace(solution, log_probabilities=log_probabilities)
            tolerance = layer.backward_tolerance
            if tolerance is None:
                tolerance = following_gap(solution, ctx.problem.entropy)
            if not ctx.logarithms:
                cotangent = cotangent * log_probabilities.exp()
            found = layer.solver.pullback(
                ctx.problem,
                solution,
                cotangent,
                max_steps=layer.backward_steps,
                tolerance=tolerance,
            )
            layer.backward_residual = found.residual
        scores, entropy = -found.unary.to(ctx.dtypes[0]), found.entropy.to(ctx.dtypes[1])
        return (None, None, None, scores, entropy, *found.parameters)


def _detached(problem: Problem) -> Problem:
    return dataclasses.replace(problem, unary=problem.unary.detach())


def _with_settings(solver: Any, max_steps: int | None, tolerance: float | None) -> DifferentiableSolver:
    if not isinstance(solver, DifferentiableSolver):
        raise UsageError(
            f"A layer needs a solver that can be differentiated, such as pdhg; got {name_of(solver)}. "
            "Solvers over labels belong into an outer loop."
        )
    given = {"max_steps": max_steps, "tolerance": tolerance}
    chosen = {name: value for name, value in given.items() if value is not None}
    changed: DifferentiableSolver = dataclasses.replace(solver, **chosen)  # type: ignore[type-var]
    return changed
