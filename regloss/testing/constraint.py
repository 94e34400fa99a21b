"""Checks for hard constraints."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from regloss.constraint import EXACT, Constraints, ConstraintTerm, HardConstraint
from regloss.numerics import one_hot
from regloss.testing.regularizer import RegularizerConformance
from regloss.testing.suite import SIZES, assert_at_most, assert_close, normal_values

__all__ = ["ConstraintConformance"]


class ConstraintConformance(RegularizerConformance):
    """Checks of a `HardConstraint`: those of a regularizer, and what `solve` makes solutions obey it by.

    >>> from regloss import Volume
    >>> class TestMyConstraint(ConstraintConformance):
    ...     def make(self):
    ...         return Volume(upper=(0.4, 0.9, 0.9), unit="fraction")
    >>> TestMyConstraint().test_rounded_labels_obey(ndim=2)
    """

    # ---- what might be defined

    def discrete_violation(self, image: Tensor, labels: Tensor) -> Tensor:
        """Violation (B,) of ``labels`` (B, *S), from the definition in plain loops; asked for where ``discrete``."""
        raise NotImplementedError("Override discrete_violation, or say discrete = False.")

    def discrete_energy(self, image: Tensor, labels: Tensor) -> Tensor:
        """A constraint has none."""
        return torch.zeros(len(labels), dtype=torch.float64)

    # ---- the checks

    def _bound(self, ndim: int) -> Iterator[tuple[ConstraintTerm, Constraints, str]]:
        """Terms that know their prediction, if they need one, with their constraints."""
        for term, where in self._terms(ndim):
            ready = term.conditioned_on(self.probabilities(ndim))
            found = Constraints.of([ready], self.probabilities(ndim))
            if found is None:
                assert ready.regularizer.weight == 0, "a constraint with a weight must be among its own constraints()"
                pytest.skip("weight = 0: it is switched off")
            assert isinstance(ready, ConstraintTerm)
            yield ready, found, where

    def _with_seeds(self, ndim: int) -> Iterator[tuple[ConstraintTerm, Constraints, str]]:
        """The same, each without and with seeds."""
        for term, constraints, where in self._bound(ndim):
            labels = constraints.round(self._scores(ndim, 50)).labels
            seeds = torch.where(normal_values(*labels.shape, seed=51) > 0.8, labels, -1)
            seeded = Constraints.of([term], self.probabilities(ndim), fixed=seeds)
            assert seeded is not None
            yield term, constraints, where
            yield term, seeded, f"{where}, with seeds"

    def _scores(self, ndim: int, seed: int) -> Tensor:
        return normal_values(2, self.classes, *SIZES[ndim], seed=seed).mul(2)

    def test_is_a_hard_constraint(self) -> None:
        """Its class and its terms' say so."""
        ndim = self.spatial[0]
        assert isinstance(self.make(), HardConstraint)
        assert isinstance(self.make().bind(self.image(ndim)), ConstraintTerm)

    def test_it_has_no_energy(self, ndim: int) -> None:
        """0 whether it holds or not; the penalty is not negative, and 0 for labels without a violation."""
        for term, where in self._terms(ndim):
            hard = one_hot(self.labels(ndim), self.classes, torch.float64)
            for s in (*(self._scores(ndim, 40 + seed).softmax(1) for seed in range(3)), hard):
                assert term.energy(s).tolist() == [0, 0], f"the energy is not 0 {where}"
                penalty, violation = term.penalty(s), term.violation(s)
                assert bool((penalty >= 0).all())
                assert bool((violation >= 0).all())
                assert bool(violation.isfinite().all())
            assert not bool((penalty[violation == 0] > 0).any()), f"a penalty of labels without a violation {where}"

    def test_violation_of_labels_follows_the_definition(self, ndim: int) -> None:
        """Against plain loops."""
        if not self.discrete:
            pytest.skip("discrete = False")
        if self.make().weight == 0:
            pytest.skip("weight = 0: it is switched off")
        image, labels = self.image(ndim), self.labels(ndim)
        violation = self.make().bind(image).violation(one_hot(labels, self.classes, torch.float64))
        assert_close(violation, self.discrete_violation(image, labels), self.tolerance, "violation of labels")

    def test_rounded_labels_obey(self, ndim: int) -> None:
        """Free and with seeds: labels in the set, that pixels may take; rounding them again changes nothing."""
        for _, given, where in self._with_seeds(ndim):
            found = given.round(self._scores(ndim, 52))
            assert found.violation.tolist() == [0, 0], f"labels violate it {where}: {found.violation.tolist()}"
            assert found.labels.dtype == torch.int64
            assert bool(given.possible.gather(1, found.labels.unsqueeze(1)).all()), f"seeds are not kept {where}"
            again = given.round(one_hot(found.labels, self.classes, torch.float64).mul(9))
            assert torch.equal(again.labels, found.labels), f"rounding twice is not rounding once {where}"

    def test_feasible_probabilities_obey(self, ndim: int) -> None:
        """They lie in the set and in the simplex, are 0 where they must be, and stay where they obey already."""
        for term, given, where in self._with_seeds(ndim):
            s, violation = given.feasible(self._scores(ndim, 53))
            assert_at_most(violation, torch.zeros(2), EXACT, f"probabilities violate it {where}")
            assert_at_most(term.violation(s), torch.zeros(2), EXACT, f"probabilities violate it {where}")
            assert_close(s.sum(1), torch.ones(2, *SIZES[ndim]), 1e-9, f"sum of probabilities {where}")
            assert bool((s >= 0).all())
            assert not bool((s[~given.possible] > 0).any()), f"seeds are not kept {where}"
            again, _ = given.feasible(s.clamp(min=1e-300).log())
            assert_close(again, s, 1e-7, f"what obeys is moved {where}")

    def test_images_of_a_constraint_stand_alone(self, ndim: int) -> None:
        """``term[images]`` is the constraint on those images."""
        for term, _, where in self._bound(ndim):
            s = self._scores(ndim, 54).softmax(1)
            part = term[torch.tensor([1])]
            assert part.shape == (1, *SIZES[ndim])
            assert_close(part.violation(s[1:]), term.violation(s)[1:], 1e-12, f"violation of one image {where}")
