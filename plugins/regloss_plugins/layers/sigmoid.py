"""RegularizedSigmoid: sigmoids with a prior inside, for one set or for sets that lie one inside the next.

    u(y) = argmin over 0 <= u <= 1 of   -<y, u> + entropy * (<u, log u> + <1 - u, log(1 - u)>) + R(u ; image)

for scores y of L sets, the smallest first, each with a probability u_g of its own; without R this is
sigmoid(y / entropy). What R consists of is dealt with in this order:

    priors that a solver can use   each set by itself as a segmentation into outside (0) and inside (1), u = s_1
    the order of the sets          u_1 <= u_2 <= ... <= u_L ("ordered"): isotonic regression of the scores, exact with
                                   nothing else; after a solver, of the scores entropy * log(u / (1 - u)) it ended with
    projections                    each set by itself: "convex" fills the dents of {u_g > 1/2}, which keeps inclusions;
                                   a pixel that is added to a set is added to all larger ones

Only the first two are minimisations; for their sum, and with the projection, no energy is known to fall.

L nested sets are K = L + 1 classes: class 0 lies outside of all sets, class k in the k largest. Of logits o (B, K, *S)
of classes the sets' scores are the log-odds that the class is k or a higher one, in order whatever the network says,

    y = log sum of exp(o_k ... o_L)  -  log sum of exp(o_0 ... o_(k - 1))          k = L, ..., 1

and the probability of class k is the difference of neighbouring sets' probabilities. The label is the number of sets
with u > 1/2, the median class; in evaluation mode its probability is raised to the largest.

Gradients: through the solver as `RegularizedSoftmax` has it; of the ordering exactly, by averaging over what was
pooled; of the filling the identity at pixels that were not added, and 0 at those that were.

Source: Liu, Wang, Tai, arXiv:2002.03989, and Tai's lectures on it (convex shape, nested sublevel sets).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch import Tensor, nn

from regloss.checks import at_least_float32, check_finite, check_scores
from regloss.errors import UsageError
from regloss.forms import Projection
from regloss.registry import name_of, resolve
from regloss.regularizer import Regularizer, Sum, Term, combine, offered_kind
from regloss.solver import Solution, Status
from regloss_plugins.layers.entropic import EntropicLayer
from regloss_plugins.layers.softmax import RegularizedSoftmax

_FAR = 1e4  # log-odds beyond which all is certain, of classes that a volume of 0 closes; finite in half precision
_CERTAIN = 1e-7  # from 0 and 1, of what a projection says for sure, so that its log-odds are finite
_TIE = 1e-6  # difference of log-odds below which two sets are the same


class RegularizedSigmoid(EntropicLayer):
    """Logits and image to probabilities of nested sets, or to those of the classes that they divide the image into.

    Its call gives the sets' probabilities (B, L, *S), the smallest set first; `log_probabilities` gives those of the
    K = L + 1 classes, which serve as logits in losses (in training mode) and in argmax (in evaluation mode), and is
    what `attach` uses.

    Computes in float32 at least, whatever autocast says. After each call the attribute ``solution`` holds what the
    solver reported, summed over the sets (None after an unrolled pass, and where there is nothing to solve).

    Args:
        regularizer: a `Regularizer`, a name, a table with a name and settings, or several of them, which add up; None =
            plain sigmoids. Those with a ``label`` see 0 outside and 1 inside of every set.
        solver: as of `RegularizedSoftmax`, for what is neither ordered nor a projection.
        entropy: weight of the entropy, > 0, in units of the logits: the temperature of the sigmoids.
        max_steps: of the solver; None = as it is set.
        tolerance: of the solver; None = as it is set.
        backward: "implicit", "unrolled" or "one-step".
        learn: settings that become parameters, of "weight" (one for each regularizer that is solved for), "entropy",
            and what can be learnt of these regularizers, as of `RegularizedSoftmax`.
        backward_steps: largest number of conjugate-gradient steps of the implicit gradient; None = 60, and 300 with
            ``polish`` or a tolerance of one's own.
        backward_tolerance: their relative residual at which to stop; None = a third of the error that the gap allows
            the probabilities, within 1e-6 and 1e-2.
        polish: as of `RegularizedSoftmax`.
        polish_steps: likewise.
        logits: what the network gives: "classes" (B, K, *S), class 0 outside, K - 1 innermost; or "sets" (B, L, *S)
            scores, the smallest set first.

    Raises:
        UsageError: a setting outside its range; a solver that cannot be differentiated; a weight to be learnt where
            there is nothing to solve.
        MissingForm: the solver cannot use a regularizer.

    >>> layer = RegularizedSigmoid("ordered", entropy=1.0, logits="sets")
    >>> cup_and_disc = torch.tensor([2.0, 1.0]).reshape(1, 2, 1, 1)
    >>> layer(cup_and_disc, torch.zeros(1, 1, 1, 1)).flatten()
    tensor([0.8176, 0.8176])
    """

    def __init__(
        self,
        regularizer: Any = None,
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
        logits: Literal["classes", "sets"] = "classes",
    ) -> None:
        super().__init__(entropy, backward, learn, backward_steps, backward_tolerance, polish)
        if logits not in ("classes", "sets"):
            raise UsageError(f'logits must be "classes" or "sets"; got {logits!r}.')
        self.logits = logits
        self.regularizer: Regularizer | None = combine(regularizer)
        self.solver = resolve("solver", solver)
        parts = _flat(self.regularizer)
        self.orders = [part for part in parts if part.channels == "sets"]
        solved = [part for part in parts if self._is_solved(part)]
        self.projections = [part for part in parts if part.channels != "sets" and not self._is_solved(part)]
        self.check_learnable(learn, solved)
        for part in self.orders:
            if Projection not in part.forms:
                raise UsageError(f"A regularized sigmoid can only project onto sets, and {name_of(part)} does not.")
        self.softmax: RegularizedSoftmax | None = None
        self.temperature: nn.Parameter | None = None
        if solved:
            self.softmax = RegularizedSoftmax(
                solved,
                self.solver,
                entropy,
                max_steps=max_steps,
                tolerance=tolerance,
                backward=backward,
                learn=learn,
                backward_steps=backward_steps,
                backward_tolerance=backward_tolerance,
                polish=polish,
                polish_steps=polish_steps,
            )
        elif [name for name in learn if name != "entropy"]:
            raise UsageError(
                f"learn = {list(learn)}: of {', '.join(map(name_of, parts)) or 'no regularizer'} there is no weight to "
                'be learnt, only "entropy".'
            )
        elif learn:
            self.temperature = nn.Parameter(torch.tensor(math.log(entropy)))

    def _is_solved(self, part: Regularizer) -> bool:
        """Whether the solver deals with it; one that nothing can deal with goes there too, to be refused."""
        solvable = any(offered_kind(part, kind) is not None for kind in self.solver.accepts)
        return part.channels != "sets" and (solvable or Projection not in part.forms)

    @property
    def log_entropy(self) -> nn.Parameter | None:
        """The logarithm of the entropy's weight, if it is learnt."""
        return self.temperature if self.softmax is None else self.softmax.log_entropy

    @property
    def log_weight(self) -> nn.Parameter | None:
        """The logarithms of the weights of the regularizers that are solved for, if they are learnt."""
        return None if self.softmax is None else self.softmax.log_weight

    @property
    def weight(self) -> Tensor:
        """(regularizers,) weights, in the order in which the regularizers were given."""
        solved = torch.zeros(0) if self.softmax is None else self.softmax.weight
        parts, learnt = _flat(self.regularizer), iter(solved)
        if not parts:
            return solved
        return torch.stack(
            [next(learnt) if self._is_solved(part) else solved.new_tensor(part.weight) for part in parts]
        )

    def logarithms(self) -> dict[str, nn.Parameter | None]:
        """As of `EntropicLayer`."""
        if self.softmax is not None:
            return self.softmax.logarithms()
        return {"weight": None, "entropy": self.temperature}

    def weighted(self) -> list[Regularizer]:
        """All of them, also those that are not solved for, whose weights are not learnt."""
        return _flat(self.regularizer)

    def extra_repr(self) -> str:
        """Settings for ``print(layer)``."""
        return f"{self.regularizer}, {self.solver}, logits={self.logits!r}"

    def forward(
        self,
        logits: Tensor,
        image: Tensor,
        roi: Tensor | None = None,
        warm: Any = None,
        spacing: Sequence[float] | None = None,
    ) -> Tensor:
        """Probabilities (B, L, *S) of the sets, the smallest first.

        Args:
            logits: (B, K, *S) of classes or (B, L, *S) of sets, as the setting ``logits`` says; finite.
            image: (B, C, *S) in [0, 1].
            roi: (B, *S) bool, outside of which nothing is regularised; None = everywhere.
            warm: an earlier solution for the same images, or its state, to start from.
            spacing: distance of neighbouring pixels along each axis of S in mm; None = not known, distances are in
                pixels.

        Raises:
            UsageError: shapes disagree; logits that are not finite.
        """
        with torch.autocast(logits.device.type, enabled=False):
            log_odds = self._ordered(logits, image, roi, warm, spacing)
            return self._projected(log_odds, image, roi, spacing)[1].to(logits.dtype)

    def log_probabilities(
        self,
        logits: Tensor,
        image: Tensor,
        roi: Tensor | None = None,
        warm: Any = None,
        spacing: Sequence[float] | None = None,
    ) -> Tensor:
        """Log-probabilities (B, K, *S) of the classes; arguments as of the call.

        They are logits as well, since softmax(log p) = p. In evaluation mode their argmax is the number of sets with a
        probability above 1/2, after projections; in training mode there are none.

        Raises:
            UsageError: as of the call; several sets that are not ordered, which divide an image into more classes.
        """
        with torch.autocast(logits.device.type, enabled=False):
            log_odds = self._ordered(logits, image, roi, warm, spacing)
            if log_odds.shape[1] > 1 and not self.orders:
                raise UsageError(
                    f'Only nested sets divide an image into classes. Add "ordered" to the regularizers of the '
                    f"{log_odds.shape[1]} sets, or take the sets' own probabilities, which the layer's call gives."
                )
            if self.training:
                return log_classes(log_odds).to(logits.dtype)
            log_odds, sets = self._projected(log_odds, image, roi, spacing)
            return _raise_level(log_classes(log_odds), sets, logits.dtype).to(logits.dtype)

    def _ordered(
        self, logits: Tensor, image: Tensor, roi: Tensor | None, warm: Any, spacing: Sequence[float] | None
    ) -> Tensor:
        """Log-odds (B, L, *S) of the sets before projections."""
        scores = self._scores(logits, image)
        log_odds = self._solved(scores, image, roi, warm, spacing)
        for part in self.orders:
            order = _projection(part.bind(image, roi, spacing)).project_scores
            if order is None:
                raise UsageError(f"{name_of(part)} does not say how scores are projected, only how probabilities are.")
            log_odds = order(log_odds)
        return log_odds

    def _projected(
        self, log_odds: Tensor, image: Tensor, roi: Tensor | None, spacing: Sequence[float] | None
    ) -> tuple[Tensor, Tensor]:
        """Log-odds and probabilities (B, L, *S) of the sets; equal but for what a projection made certain."""
        sets = torch.sigmoid(log_odds)
        for part in self.projections:
            project = _projection(part.bind(image, roi, spacing)).project
            pairs = (torch.stack([1 - u, u], dim=1) for u in sets.unbind(1))
            projected = torch.stack([project(pair)[:, 1] for pair in pairs], dim=1)
            certain = torch.logit(projected, eps=_CERTAIN)
            log_odds = torch.where(projected == sets, log_odds, certain)
            sets = projected
            if self.orders:  # what was added to a set lies in all larger ones
                log_odds, sets = log_odds.cummax(1).values, sets.cummax(1).values
        return log_odds, sets

    def _scores(self, logits: Tensor, image: Tensor) -> Tensor:
        """Checked scores (B, L, *S), float32 at least."""
        if isinstance(image, Term):
            raise UsageError(
                "A regularized sigmoid binds its regularizers to the images of each call by itself: give the images."
            )
        if self.logits == "classes":
            check_scores(logits, "logits")
        elif not isinstance(logits, Tensor) or not logits.is_floating_point() or logits.ndim < 3 or not logits.numel():
            found = (logits.dtype, tuple(logits.shape)) if isinstance(logits, Tensor) else type(logits).__name__
            raise UsageError(f"logits must be floating-point scores (B, L, *S) of L >= 1 sets; got {found}.")
        check_finite(logits, "logits", "A network that gives them has diverged.")
        scores = at_least_float32(logits)
        return nested_logits(scores) if self.logits == "classes" else scores

    def _solved(
        self, scores: Tensor, image: Tensor, roi: Tensor | None, warm: Any, spacing: Sequence[float] | None
    ) -> Tensor:
        """Log-odds (B, L, *S) after the solver."""
        self.solution = None
        if self.softmax is None:
            _check_size(scores, image)
            return scores / self.entropy_for(scores)
        if isinstance(warm, Solution):
            warm = warm.state
        count = scores.shape[1]
        if warm is not None and not (isinstance(warm, tuple) and len(warm) == count):
            raise UsageError(f"warm must be an earlier solution of this layer, or its state, for {count} sets.")
        bound = self.softmax.bind(image, roi, spacing)
        bound.check(scores)
        log_odds, solutions = [], []
        for number, score in enumerate(scores.unbind(1)):
            pair = torch.stack([torch.zeros_like(score), score], dim=1)
            outside, inside = self.softmax.solve(bound, pair, None if warm is None else warm[number]).unbind(1)
            log_odds.append((inside - outside).clamp(-_FAR, _FAR))
            solutions.append(self.softmax.solution)
        self.solution = _summed([found for found in solutions if found is not None])
        return torch.stack(log_odds, dim=1)


def nested_logits(logits: Tensor) -> Tensor:
    """Log-odds (B, K - 1, *S) of nested sets, the smallest first, from logits (B, K, *S) of classes.

    The sets are {class >= K - 1}, ..., {class >= 1}, and the log-odds those of softmax(logits).

    >>> probabilities = torch.tensor([0.5, 0.3, 0.2]).reshape(1, 3, 1, 1)
    >>> nested_logits(probabilities.log()).sigmoid().flatten()
    tensor([0.2000, 0.5000])
    """
    above = torch.logcumsumexp(logits.flip(1), dim=1)[:, :-1]
    below = torch.logcumsumexp(logits, dim=1)[:, :-1].flip(1)
    return above - below


def log_classes(log_odds: Tensor) -> Tensor:
    """Log-probabilities (B, L + 1, *S) of classes from log-odds (B, L, *S) of nested sets, the smallest first.

    Differences of the sets' probabilities, without cancellation. Where two sets' log-odds agree to a millionth, the
    class between them is taken to be as improbable as that, and no gradient tells the sets apart.

    >>> log_classes(torch.tensor([0.2, 0.5]).logit().reshape(1, 2, 1, 1)).exp().flatten()
    tensor([0.5000, 0.3000, 0.2000])
    """
    inside, outside = F.logsigmoid(log_odds), F.logsigmoid(-log_odds)
    # sigmoid(a) - sigmoid(b) = sigmoid(a) sigmoid(-b) (1 - exp(b - a))
    distance = torch.diff(log_odds, dim=1).clamp(min=_TIE)
    between = inside[:, 1:] + outside[:, :-1] + torch.log(-torch.expm1(-distance))
    found = torch.cat([outside[:, -1:], between.flip(1), inside[:, :1]], dim=1)
    return found if log_odds.shape[1] == 1 else torch.log_softmax(found, dim=1)


def _raise_level(found: Tensor, sets: Tensor, dtype: torch.dtype) -> Tensor:
    """``found`` (B, K, *S) with the class of the level sets on top, by as much as ``dtype`` can still tell."""
    level = (sets > 0.5).sum(1, keepdim=True)
    mine = torch.zeros_like(found, dtype=torch.bool).scatter(1, level, True)
    best = found.masked_fill(mine, -math.inf).amax(1, keepdim=True)
    least = best + 8 * torch.finfo(dtype).eps * (1 + best.abs())
    return torch.log_softmax(torch.where(mine & (found < least), least, found), dim=1)


def _projection(term: Term) -> Projection:
    return term.form(Projection)


def _flat(regularizer: Regularizer | None, factor: float = 1.0) -> list[Regularizer]:
    """The parts of sums, and of sums in them, with the sums' weights in their own."""
    if regularizer is None:
        return []
    if isinstance(regularizer, Sum):
        return [one for part in regularizer.parts for one in _flat(part, factor * regularizer.weight)]
    if factor == 1:
        return [regularizer]
    return [dataclasses.replace(regularizer, weight=factor * regularizer.weight)]  # type: ignore[type-var]


def _check_size(scores: Tensor, image: Tensor) -> None:
    if (scores.shape[0], *scores.shape[2:]) != (image.shape[0], *image.shape[2:]):
        raise UsageError(f"logits {tuple(scores.shape)} do not fit the images {tuple(image.shape)}.")


def _summed(solutions: Sequence[Solution]) -> Solution | None:
    """What was reported of the sets, as of one problem: sums, the slowest set's steps, the worst status."""
    if not solutions:
        return None
    order = list(Status)  # from the best to the worst
    inside = [solution.probabilities[:, 1:] for solution in solutions]
    return Solution(
        probabilities=torch.cat(inside, dim=1),
        labels=torch.stack([solution.labels for solution in solutions]).sum(0),
        energy=torch.stack([solution.energy for solution in solutions]).sum(0),
        bound=torch.stack([solution.bound for solution in solutions]).sum(0),
        steps=torch.stack([solution.steps for solution in solutions]).amax(0),
        status=tuple(max(group, key=order.index) for group in zip(*(s.status for s in solutions), strict=True)),
        start_energy=torch.stack([solution.start_energy for solution in solutions]).sum(0),
        state=tuple(solution.state for solution in solutions),
        violation=torch.stack([solution.violation for solution in solutions]).amax(0),
    )
