"""Checks for divergences."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from regloss.dataset import IGNORE
from regloss.divergence import Divergence
from regloss.errors import UsageError
from regloss.numerics import one_hot
from regloss.testing.suite import (
    Suite,
    Unchanged,
    assert_at_most,
    assert_close,
    directional_derivative,
    gradient_of_sum,
    inner_products,
    no_make,
    normal_values,
    random_labels,
)

__all__ = ["DivergenceConformance"]


class DivergenceConformance(Suite):
    """Checks of a `Divergence`: value, gradient, unaries, ignored pixels, weights.

    >>> from regloss import KL
    >>> class TestMyDivergence(DivergenceConformance):
    ...     def make(self):
    ...         return KL()
    >>> TestMyDivergence().test_unary_is_the_cost_of_each_label(spatial=(5, 6))
    """

    # ---- what must be defined

    def make(self) -> Divergence:
        """The divergence, with settings that matter."""
        raise no_make(self)

    # ---- what might be defined

    classes: ClassVar[int] = 4
    nonnegative: ClassVar[bool] = True
    """Whether it is never below 0."""
    tolerance: ClassVar[float] = 1e-10

    # ---- the checks

    shapes: ClassVar[Sequence[tuple[int, ...]]] = ((), (5, 6), (3, 4, 5))
    dtypes: ClassVar[Sequence[torch.dtype]] = (torch.float32, torch.float64, torch.bfloat16)
    tables: ClassVar[Mapping[str, str]] = {"spatial": "shapes", "dtype": "dtypes"}

    def _logits(self, spatial: Sequence[int], seed: int = 1) -> Tensor:
        return 2 * normal_values(3, self.classes, *spatial, seed=seed)

    def _labels(self, spatial: Sequence[int]) -> Tensor:
        return random_labels(3, *spatial, classes=self.classes, seed=2)

    def _targets(self, spatial: Sequence[int]) -> Iterator[tuple[str, Tensor]]:
        yield "labels", self._labels(spatial)
        yield "probabilities", self._logits(spatial, seed=3).softmax(1)

    def test_value_is_one_number_per_image(self, spatial: tuple[int, ...]) -> None:
        """(B,), finite, a sum over pixels."""
        divergence, logits = self.make(), self._logits(spatial)
        for name, target in self._targets(spatial):
            value = divergence(target, logits)
            assert value.shape == (3,), f"the divergence from {name} must have the shape (B,)"
            assert bool(value.isfinite().all())
            if self.nonnegative:
                assert_at_most(torch.zeros(3), value, self.tolerance, f"divergence from {name} is negative")
            if spatial:
                doubled = divergence(torch.cat([target, target], -1), torch.cat([logits, logits], -1))
                assert_close(doubled, 2 * value, self.tolerance, f"divergence from {name} over twice the pixels")

    def test_one_hot_probabilities_are_labels(self, spatial: tuple[int, ...]) -> None:
        """A label and its one-hot vector cost the same."""
        divergence, logits, labels = self.make(), self._logits(spatial), self._labels(spatial)
        soft = divergence(one_hot(labels, self.classes, torch.float64), logits)
        assert_close(
            soft, divergence(labels, logits), self.tolerance, "divergence from one-hot probabilities and labels"
        )

    def test_unary_is_the_cost_of_each_label(self, spatial: tuple[int, ...]) -> None:
        """Entry k of the unaries is the divergence from label k, summed over pixels by the call."""
        divergence, logits = self.make(), self._logits(spatial)
        unary = divergence.unary(logits)
        assert unary.shape == logits.shape
        for k in range(self.classes):
            expected = divergence(torch.full((3, *spatial), k), logits)
            assert_close(unary[:, k].reshape(3, -1).sum(1), expected, self.tolerance, f"unaries of label {k}")

    def test_gradient_matches_finite_differences(self, spatial: tuple[int, ...]) -> None:
        """In the logits, from labels and from probabilities, with seeds."""
        logits = self._logits(spatial)
        seeds = normal_values(3, *spatial, seed=4) > 0
        for name, target in self._targets(spatial):

            def value(at: Tensor, target: Tensor = target) -> Tensor:
                return self.make()(target, at, seeds=seeds)

            gradient = gradient_of_sum(value, logits)
            for seed in range(3):
                direction = normal_values(*logits.shape, seed=10 + seed)
                expected = directional_derivative(value, logits, direction)
                assert_close(
                    inner_products(gradient, direction), expected, max(1e-7, self.tolerance), f"derivative from {name}"
                )

    def test_adding_a_constant_to_the_logits_changes_nothing(self, spatial: tuple[int, ...]) -> None:
        """Logits count up to a constant at each pixel."""
        logits = self._logits(spatial)
        shifted = logits + 5 * normal_values(3, 1, *spatial, seed=5)
        for name, target in self._targets(spatial):
            expected = self.make()(target, logits)
            assert_close(self.make()(target, shifted), expected, max(1e-9, self.tolerance), f"divergence from {name}")

    def test_extreme_logits_stay_finite(self) -> None:
        """Value, gradient and unaries in float32, where the network is certain and wrong, or certain and right."""
        logits = torch.zeros(1, self.classes, self.classes)
        logits[0, 0], logits[0, 1] = 80.0, -80.0
        labels = torch.arange(self.classes).unsqueeze(0)
        assert bool(self.make()(labels, logits).isfinite().all())
        assert bool(self.make().unary(logits).isfinite().all())
        assert bool(gradient_of_sum(lambda at: self.make()(labels, at), logits).isfinite().all())

    def test_ignored_pixels_do_not_count(self) -> None:
        """255 has no value and no gradient."""
        spatial = (5, 6)
        logits, labels = self._logits(spatial), self._labels(spatial)
        ignored = normal_values(3, *spatial, seed=6) > 0
        target = labels.masked_fill(ignored, IGNORE)
        expected = self.make()(labels, logits, weight=(~ignored).double())
        assert_close(self.make()(target, logits), expected, self.tolerance, "divergence with ignored pixels")
        gradient = gradient_of_sum(lambda at: self.make()(target, at), logits)
        assert float(gradient.abs().amax(1)[ignored].max()) == 0, "an ignored pixel has a gradient"

    def test_weights_multiply_pixels(self) -> None:
        """The divergence is linear in ``weight``; at 1 it is unweighted."""
        spatial = (5, 6)
        logits = self._logits(spatial)
        weight = normal_values(3, *spatial, seed=7).abs()
        for name, target in self._targets(spatial):
            plain = self.make()(target, logits)
            assert_close(self.make()(target, logits, weight=torch.ones(3, *spatial)), plain, self.tolerance, name)
            first = self.make()(target, logits, weight=weight)
            second = self.make()(target, logits, weight=1 - weight)
            assert_close(first + second, plain, max(1e-9, self.tolerance), f"weighted divergence from {name}")

    def test_batch_is_one_by_one(self, spatial: tuple[int, ...]) -> None:
        """Images of a batch do not see each other."""
        logits, divergence = self._logits(spatial), self.make()
        seeds = normal_values(3, *spatial, seed=4) > 0
        for name, target in self._targets(spatial):
            together = divergence(target, logits, seeds=seeds)
            alone = [divergence(target[[i]], logits[[i]], seeds=seeds[[i]]) for i in range(3)]
            assert_close(together, torch.cat(alone), self.tolerance, f"divergence of a batch from {name}")

    def test_arguments_are_not_modified(self) -> None:
        """Target, logits, weight and seeds are read only."""
        spatial = (5, 6)
        logits, weight = self._logits(spatial), torch.ones(3, *spatial)
        seeds = normal_values(3, *spatial, seed=4) > 0
        for _, target in self._targets(spatial):
            with Unchanged(target=target, logits=logits, weight=weight, seeds=seeds):
                self.make()(target, logits, weight=weight, seeds=seeds)
                self.make().unary(logits)

    def test_logits_of_any_precision(self, dtype: torch.dtype) -> None:
        """Half-precision logits give the float32 value of the same numbers, under autocast too."""
        spatial = (5, 6)
        logits = self._logits(spatial).to(dtype)
        expected = torch.float64 if dtype == torch.float64 else torch.float32
        for name, target in self._targets(spatial):
            value = self.make()(target, logits)
            assert value.dtype == expected, f"{dtype} logits must give {expected}; got {value.dtype}"
            assert_close(
                value, self.make()(target, logits.double()), max(1e-4, self.tolerance), f"divergence from {name}"
            )
            with torch.autocast("cpu", dtype=torch.bfloat16):
                cast = self.make()(target, logits)
            assert_close(cast, value, max(1e-5, self.tolerance), f"divergence from {name} under autocast")

    def test_bad_input_is_refused(self) -> None:
        """One class, labels outside 0..K-1, labels as floats, shapes that disagree."""
        spatial = (5, 6)
        logits, labels, divergence = self._logits(spatial), self._labels(spatial), self.make()
        with pytest.raises(UsageError, match="class"):
            divergence(torch.zeros_like(labels), logits[:, :1])
        with pytest.raises(UsageError, match="255"):
            divergence(labels + self.classes, logits)
        with pytest.raises(UsageError, match="integers"):
            divergence(labels.double(), logits)
        with pytest.raises(UsageError, match="shape"):
            divergence(labels[:, 1:], logits)
        with pytest.raises(UsageError, match="weight"):
            divergence(labels, logits, weight=torch.ones(3, 1, 1))

    def test_survives_pickling(self) -> None:
        """Settings go through pickle."""
        logits, labels = self._logits((5, 6)), self._labels((5, 6))
        again = pickle.loads(pickle.dumps(self.make()))
        assert_close(again(labels, logits), self.make()(labels, logits), 1e-12, "divergence after pickling")
