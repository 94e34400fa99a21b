"""HardConstraint: a set C that a segmentation must lie in, and what makes a solution obey it.

A solver's iterate meets a constraint in the limit only. What a user gets has to meet it always, so each constraint
says, beside how far probabilities are from it:

    round       labels in C, of least cost or near it, given what each label costs at each pixel
    feasible    probabilities in C near given ones

`Constraints` collects those of a problem, with its seeds and allowed labels, and `regloss.solve` applies them to
whatever a solver found: `Solution.labels` lie in C, and `Solution.energy` is that of a point in C. A constraint has no
energy of its own: its `Term.energy` is 0 whether or not it holds, and `Term.violation` says how far it is from holding.

Several constraints are dealt with one after the other, each leaving to the next what it does not settle itself (a star
settles which pixels are of its class); where that fails they take turns. No method finds joint labels always: where
none were found, the solution's violation is that of its labels, and its status says so.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from regloss import grid
from regloss.checks import at_least_float32
from regloss.errors import UsageError
from regloss.numerics import one_hot, widest_float
from regloss.registry import name_of
from regloss.regularizer import Regularizer, Sum, Term

EXACT = 1e-8
"""Violation of probabilities below which they lie in C but for rounding."""
_ROUNDS = 8


class HardConstraint(Regularizer):
    """A regularizer that is a constraint; its terms derive from `ConstraintTerm`. Weight 0 switches it off.

    Its weight is that of the `Term.penalty` that gradient descent minimises; no solver looks at it.
    """


class ConstraintTerm(Term, ABC):
    """A constraint bound to a batch of images.

    ``possible`` (B, K, *S) bool, in several methods, holds the labels that each pixel may take: one at a seed, the
    allowed ones elsewhere.
    """

    # ---- what must be defined

    @abstractmethod
    def violation(self, probabilities: Tensor) -> Tensor:
        """How far ``probabilities`` (B, K, *S) are from C, (B,), >= 0, finite; 0 exactly in C."""

    @abstractmethod
    def penalty(self, probabilities: Tensor) -> Tensor:
        """A smooth stand-in for gradient descent, (B,), >= 0, differentiable, weight included; 0 for labels in C."""

    @abstractmethod
    def check_classes(self, probabilities: Tensor) -> None:
        """Raise `UsageError` if the constraint does not fit the number of classes of ``probabilities`` (B, K, *S)."""

    @abstractmethod
    def refuse(self, possible: Tensor) -> None:
        """Raise `UsageError`, naming image and class, where no labels in C are ``possible``."""

    @abstractmethod
    def round(self, cost: Tensor, possible: Tensor, counts: Tensor | None = None) -> Tensor:
        """Labels (B, *S) in C of least total cost, or near it.

        Args:
            cost: (B, K, *S) float64 of each label at each pixel; inf where it is not ``possible``.
            possible: some label at every pixel.
            counts: (B, K, 2) int64, the least and the largest number of pixels of each class that another constraint
                asks for; to be kept if the constraint can, None = any.

        Returns:
            int64 labels that are ``possible``. Where C has none, which `refuse` reports for the seeds alone, any.
        """

    @abstractmethod
    def feasible(self, log_probabilities: Tensor, possible: Tensor) -> Tensor:
        """Probabilities in C near given ones.

        Args:
            log_probabilities: (B, K, *S) float64, -inf where the label is not ``possible``.
            possible: see above.

        Returns:
            (B, K, *S) float64, 0 where a label is not ``possible``. Where this fails their `violation` tells.
        """

    @abstractmethod
    def __getitem__(self, images: Tensor) -> ConstraintTerm:
        """The constraint on the images with the indices ``images`` (M,) alone."""

    # ---- what might be defined

    def violation_of_labels(self, labels: Tensor, classes: int) -> Tensor:
        """How far ``labels`` (B, *S) are from C, (B,); 0 exactly in C."""
        return self.violation(one_hot(labels, classes))

    def counts(self, possible: Tensor) -> Tensor | None:
        """(B, K, 2) int64 least and largest number of pixels of each class in C; None where any number will do."""
        return None

    def settled(self, labels: Tensor, possible: Tensor) -> Tensor:
        """What of ``possible`` is left to other constraints once ``labels`` in C are found: by default the labels."""
        return one_hot(labels, possible.shape[1], torch.bool)

    # ---- what should not be redefined

    def energy(self, probabilities: Tensor) -> Tensor:
        """0: a constraint has no energy. What it has is a `violation`."""
        s = self.check(probabilities)
        self.check_classes(s)
        return s.new_zeros(s.shape[0])

    def constraints(self) -> tuple[Term, ...]:
        """Itself, unless its weight of 0 switches it off."""
        return (self,) if self.regularizer.weight > 0 else ()

    @property
    def tolerance(self) -> float:
        """Violation up to which an iterate counts as meeting it."""
        return float(getattr(self.regularizer, "tolerance", 0.0))

    def inside(self, device: torch.device) -> Tensor:
        """(B, *S) bool region of interest."""
        return grid.full_roi(self.roi, self.shape, device)


def has_constraints(regularizer: Regularizer) -> bool:
    """Whether it is a hard constraint that is not switched off, or a sum with one."""
    if isinstance(regularizer, Sum):
        return regularizer.weight > 0 and any(map(has_constraints, regularizer.parts))
    return isinstance(regularizer, HardConstraint) and regularizer.weight > 0


def contradiction(term: Term, image: int, why: str) -> UsageError:
    """The error for a constraint that seeds or allowed labels make impossible."""
    name = name_of(term.regularizer)
    return UsageError(
        f"The {name} constraint cannot be met in image {image} of the batch: {why}. Change the settings of {name}, the "
        "seeds (fixed) or the allowed labels so that they agree."
    )


@dataclass(frozen=True)
class Rounded:
    """Labels that were found.

    Attributes:
        labels: (B, *S) int64.
        violation: (B,) largest violation of them over the constraints; 0 where they lie in all.
        changed: (B,) bool, whether they are other labels than those that were most probable.
    """

    labels: Tensor
    violation: Tensor
    changed: Tensor


def possible_labels(
    like: Tensor, roi: Tensor | None, fixed: Tensor | None = None, allowed: Tensor | None = None
) -> Tensor:
    """(B, K, *S) bool, the labels that each pixel may take: its seed inside ``roi``, else those that are allowed.

    Args:
        like: (B, K, *S), for shape and device.
        roi: (B, *S) bool, or None.
        fixed: (B, *S) labels that are given, -1 where free.
        allowed: (B, K) bool.
    """
    possible = torch.ones(like.shape, dtype=torch.bool, device=like.device)
    if allowed is not None:
        possible &= allowed.to(like.device).reshape(*allowed.shape, *[1] * (like.ndim - 2))
    if fixed is not None:
        seeds = fixed.to(like.device, torch.int64)
        seeds = seeds if roi is None else seeds.masked_fill(~roi, -1)
        given = one_hot(seeds.clamp(min=0), like.shape[1], torch.bool)
        possible = torch.where((seeds >= 0).unsqueeze(1), given, possible)
    return possible


@dataclass(frozen=True)
class Constraints:
    """All constraints of a problem, with the labels that its seeds and its allowed labels leave to each pixel.

    Attributes:
        terms: at least one.
        possible: (B, K, *S) bool.
    """

    terms: tuple[ConstraintTerm, ...]
    possible: Tensor

    @staticmethod
    def of(
        terms: Sequence[Term], like: Tensor, fixed: Tensor | None = None, allowed: Tensor | None = None
    ) -> Constraints | None:
        """Those of ``terms``; None if there are none.

        Args:
            terms: bound to the same images.
            like: (B, K, *S), for shape and device.
            fixed: (B, *S) labels that are given, -1 where free.
            allowed: (B, K) bool.

        Raises:
            UsageError: seeds or allowed labels contradict a constraint.
        """
        found = [one for term in terms for one in term.constraints() if isinstance(one, ConstraintTerm)]
        if not found:
            return None
        possible = possible_labels(like, found[0].roi, fixed, allowed)
        constraints = Constraints(tuple(found), possible)
        for term in found:
            term.check_classes(like)
            term.refuse(possible)
        return constraints

    def __getitem__(self, images: Tensor) -> Constraints:
        """Those of the images with the indices ``images`` (M,) alone."""
        return Constraints(tuple(term[images] for term in self.terms), self.possible[images])

    def violation(self, probabilities: Tensor) -> Tensor:
        """(B,) largest violation over the constraints."""
        return torch.stack([term.violation(probabilities) for term in self.terms]).amax(0)

    def violation_of_labels(self, labels: Tensor) -> Tensor:
        """(B,) largest violation of ``labels`` (B, *S) over the constraints; 0 where they lie in all."""
        classes = self.possible.shape[1]
        return torch.stack([term.violation_of_labels(labels, classes) for term in self.terms]).amax(0)

    def is_met(self, probabilities: Tensor) -> Tensor:
        """(B,) bool: whether each constraint holds within its own tolerance."""
        return torch.stack([term.violation(probabilities) <= max(term.tolerance, EXACT) for term in self.terms]).all(0)

    def costs(self, log_probabilities: Tensor) -> Tensor:
        """-log s (B, K, *S) in float64, inf where a label is not possible and finite elsewhere."""
        wide = widest_float(log_probabilities.device)
        return -log_probabilities.to(wide).clamp(min=-1e6).masked_fill(~self.possible, -torch.inf)

    def round(self, log_probabilities: Tensor) -> Rounded:
        """Labels in C that are as probable as can be: the most probable ones of each pixel wherever these lie in C.

        Args:
            log_probabilities: (B, K, *S); they need not sum to 1.
        """
        cost = self.costs(log_probabilities)
        labels = cost.argmin(1)
        violation = self.violation_of_labels(labels)
        off = violation > 0
        if not bool(off.any()):
            return Rounded(labels, violation, off)
        images = off.nonzero().squeeze(1)
        part = self[images]
        found, left = part._rounded(cost[images], labels[images])
        labels, violation = labels.clone(), violation.clone()
        labels[images], violation[images] = found, left.to(violation)
        return Rounded(labels, violation, off)

    def _rounded(self, cost: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
        """Labels and their violation, for images whose most probable labels ``start`` do not lie in C."""
        best, least = start, torch.full((len(start),), torch.inf, device=start.device)

        def keep(labels: Tensor) -> None:
            nonlocal best, least
            violation = self.violation_of_labels(labels).to(least)
            better = violation < least
            best = torch.where(grid.spread(better, labels), labels, best)
            least = torch.where(better, violation, least)

        counts = self._counts()
        # Those that settle all pixels come last.
        ordered = sorted(self.terms, key=lambda term: term.counts(self.possible) is not None)
        for order in itertools.islice(itertools.permutations(ordered), 6):
            possible, labels = self.possible, start
            for term in order:
                labels = term.round(cost.masked_fill(~possible, torch.inf), possible, counts)
                possible = term.settled(labels, possible)
            keep(labels)
            if not bool((least > 0).any()):
                return best, least
        # Alternating projections: what the last one chose becomes cheaper from round to round.
        labels, finite = best, cost.masked_fill(cost.isinf(), 0)
        step = finite.flatten(1).amax(1) / _ROUNDS
        for number in range(_ROUNDS):
            for term in self.terms:
                dearer = 1 - one_hot(labels, cost.shape[1])
                labels = term.round(cost + grid.spread(number * step, cost) * dearer, self.possible, counts)
            keep(labels)
            if not bool((least > 0).any()):
                return best, least
        # One class everywhere meets more than one would think.
        for label in range(cost.shape[1]):
            keep(torch.where(self.possible[:, label], label, start))
        return best, least

    def _counts(self) -> Tensor | None:
        found = [counts for term in self.terms if (counts := term.counts(self.possible)) is not None]
        if not found:
            return None
        least = reduce(torch.maximum, (counts[..., 0] for counts in found))
        most = reduce(torch.minimum, (counts[..., 1] for counts in found))
        return torch.stack([least, torch.maximum(least, most)], dim=-1)

    def feasible(self, log_probabilities: Tensor) -> tuple[Tensor, Tensor]:
        """Probabilities in C near given ones.

        Args:
            log_probabilities: (B, K, *S).

        Returns:
            (B, K, *S) float64; labels that are in C where none near were found. And (B,) their violation, which is
            above `EXACT` only where no labels in C were found either.
        """
        logs = torch.log_softmax(-self.costs(log_probabilities), dim=1)
        s = logs.exp()
        violation = self.violation(s)
        for _ in range(_ROUNDS if len(self.terms) > 1 else 1):
            if not bool((violation > EXACT).any()):
                return s, violation
            for term in self.terms:
                s = torch.where(grid.spread(violation > EXACT, s), term.feasible(logs, self.possible), s)
                # What was so improbable that its logarithm is lost stays possible.
                logs = torch.where(self.possible, s.clamp(min=torch.finfo(s.dtype).tiny).log(), -torch.inf)
            violation = self.violation(s)
        off = violation > EXACT
        if bool(off.any()):
            images = off.nonzero().squeeze(1)
            rounded = self[images].round(log_probabilities[images])
            s, violation = s.clone(), violation.clone()
            s[images] = one_hot(rounded.labels, s.shape[1])
            violation[images] = rounded.violation.to(violation)
        return s, violation


def raise_labels(log_probabilities: Tensor, labels: Tensor, dtype: torch.dtype) -> Tensor:
    """Log-probabilities whose argmax is ``labels``: where it is not, the label is raised until it is.

    Args:
        log_probabilities: (B, K, *S).
        labels: (B, *S).
        dtype: in which the argmax will be taken.
    """
    found = at_least_float32(log_probabilities)
    mine = one_hot(labels, found.shape[1], torch.bool)
    best = found.masked_fill(mine, -torch.inf).amax(1, keepdim=True)
    best = best.clamp(min=torch.finfo(dtype).min / 4)
    least = best + 8 * torch.finfo(dtype).eps * (1 + best.abs())
    low = mine & (found < least)
    raised = torch.log_softmax(torch.where(low, least, found), dim=1)
    return torch.where(low.any(1, keepdim=True), raised, found)
