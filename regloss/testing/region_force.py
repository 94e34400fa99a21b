"""Checks for region forces."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from regloss import registry
from regloss.alternation import alternate
from regloss.errors import UsageError
from regloss.numerics import one_hot
from regloss.region_force import RegionForce
from regloss.solver import Solver, linear_energy
from regloss.testing.suite import (
    SIZES,
    Suite,
    Unchanged,
    assert_at_most,
    assert_close,
    box_region,
    no_make,
    normal_values,
    random_image,
    without_border,
)

__all__ = ["RegionForceConformance"]


class RegionForceConformance(Suite):
    """Checks of a `RegionForce`: statistics, costs, that what is called exact is, and alternation.

    >>> from regloss import ChanVese
    >>> class TestMyForce(RegionForceConformance):
    ...     def make(self):
    ...         return ChanVese()
    >>> TestMyForce().test_no_other_statistics_are_better(ndim=2)
    """

    # ---- what must be defined

    def make(self) -> RegionForce:
        """The region force, with settings that matter; the same for all classes."""
        raise no_make(self)

    # ---- what might be defined

    spatial: ClassVar[Sequence[int]] = (1, 2, 3)
    channel_counts: ClassVar[Sequence[int]] = (1, 3)
    classes: ClassVar[int] = 3
    nonnegative: ClassVar[bool] = False
    """Whether no cost is below 0."""
    tolerance: ClassVar[float] = 1e-9

    # ---- the checks

    dtypes: ClassVar[Sequence[torch.dtype]] = (torch.float32, torch.float64, torch.bfloat16)
    tables: ClassVar[Mapping[str, str]] = {"ndim": "spatial", "channels": "channel_counts", "dtype": "dtypes"}

    def _image(self, ndim: int, channels: int = 3) -> Tensor:
        return random_image(2, channels, SIZES[ndim], seed=51)

    def _probabilities(self, ndim: int, seed: int = 52) -> Tensor:
        return normal_values(2, self.classes, *SIZES[ndim], seed=seed).softmax(1)

    def _energy(self, image: Tensor, statistics: Any, probabilities: Tensor) -> Tensor:
        return linear_energy(self.make().unary(image, statistics), probabilities, None)

    def _same(self, first: Any, second: Any, what: str) -> None:
        for a, b in zip(first, second, strict=True):
            assert_close(a, b, self.tolerance, what)

    def test_statistics_are_tensors_by_image_and_class(self, ndim: int, channels: int) -> None:
        """A NamedTuple of tensors (B, K, ...), finite, from probabilities and from one-hot labels."""
        force, image = self.make(), self._image(ndim, channels)
        labels = torch.arange(math.prod(SIZES[ndim])).reshape(SIZES[ndim]).expand(2, *SIZES[ndim]) % self.classes
        for weights in (self._probabilities(ndim), one_hot(labels, self.classes, torch.float64)):
            statistics = force.fit(image, weights)
            assert hasattr(statistics, "_fields"), "statistics must be a NamedTuple"
            for name, values in zip(statistics._fields, statistics, strict=True):
                assert tuple(values.shape[:2]) == (2, self.classes), f"{name} must have the shape (B, K, ...)"
                assert bool(values.isfinite().all()), f"{name} must be finite"

    def test_costs_are_finite(self, ndim: int, channels: int) -> None:
        """(B, K, *S), also at colours that no class has."""
        force, image = self.make(), self._image(ndim, channels)
        statistics = force.fit(image / 2, self._probabilities(ndim))
        for at in (image, torch.ones_like(image), torch.zeros_like(image)):
            costs = force.unary(at, statistics)
            assert costs.shape == (2, self.classes, *SIZES[ndim])
            assert bool(costs.isfinite().all())
            assert not self.nonnegative or bool((costs >= 0).all())

    def test_an_image_of_one_colour_is_finite(self, ndim: int) -> None:
        """All classes cost the same there."""
        force, image = self.make(), torch.full_like(self._image(ndim), 0.4)
        costs = force.unary(image, force.fit(image, self._probabilities(ndim)))
        assert bool(costs.isfinite().all())
        assert_close(costs, costs[:, :1].expand_as(costs), max(1e-6, self.tolerance), "costs on a flat image")

    def test_no_other_statistics_are_better(self, ndim: int) -> None:
        """If ``exact``: at given probabilities F is lowest at the statistics fitted to them."""
        force, here = self.make(), self._probabilities(ndim)
        image = self._image(ndim) ** 3  # skewed, so that means are no medians
        if not force.exact:
            return
        lowest = self._energy(image, force.fit(image, here), here)
        others = [torch.lerp(here, self._probabilities(ndim, 61), share) for share in (0.01, 0.1, 1.0)]
        others += [here * (slope * image.mean(1, keepdim=True)).exp() for slope in (-1.0, -0.1, 0.1, 1.0)]
        for other in others:
            found = self._energy(image, force.fit(image, other), here)
            assert_at_most(lowest, found, self.tolerance, "other statistics have a lower F")

    def test_alternation_never_raises_the_energy(self, ndim: int) -> None:
        """Back and forth between statistics and labels, with a Potts model and minimum cuts."""
        solver: Solver = registry.create("solver", "alpha-expansion", workers=1)
        prior = registry.create("regularizer", "grid-crf", weight=0.02, connectivity={1: 2, 2: 4, 3: 6}[ndim])
        start = self._probabilities(ndim, seed=53).argmax(1)
        start.view(2, -1)[:, : self.classes] = torch.arange(self.classes)  # every class has a pixel
        found = alternate(self.make(), prior, solver, self._image(ndim), start, max_rounds=6)
        assert_at_most(found.energies[1:], found.energies[:-1], self.tolerance, "the energy rose")

    def test_pixels_without_weight_do_not_count(self, ndim: int) -> None:
        """Probabilities of 0 throughout, as where nothing is scribbled, and pixels outside the region of interest."""
        force, image, weights = self.make(), self._image(ndim), self._probabilities(ndim)
        region = box_region(2, SIZES[ndim])
        inner = force.fit(without_border(image, SIZES[ndim]), without_border(weights, SIZES[ndim]))
        self._same(force.fit(image, weights, region), inner, "statistics in a region of interest and of a crop")
        self._same(force.fit(image, weights * region.unsqueeze(1)), inner, "statistics where others weigh 0")

    def test_classes_may_be_renamed(self, ndim: int) -> None:
        """Statistics and costs follow a permutation of the classes."""
        force, image, weights = self.make(), self._image(ndim), self._probabilities(ndim)
        order = torch.arange(self.classes).roll(1)
        expected = force.unary(image, force.fit(image, weights))[:, order]
        assert_close(
            force.unary(image, force.fit(image, weights[:, order])), expected, self.tolerance, "renamed classes"
        )

    def test_batch_is_one_by_one(self, ndim: int) -> None:
        """Images of a batch do not see each other."""
        force, image, weights = self.make(), self._image(ndim), self._probabilities(ndim)
        together = force.unary(image, force.fit(image, weights))
        for i in range(2):
            alone = force.unary(image[[i]], force.fit(image[[i]], weights[[i]]))
            assert_close(together[[i]], alone, self.tolerance, "costs in a batch and alone")

    def test_a_class_without_pixels_keeps_its_statistics(self, ndim: int) -> None:
        """With earlier ones; without any it is refused by name."""
        force, image, weights = self.make(), self._image(ndim), self._probabilities(ndim)
        before = force.fit(image, weights)
        gone = weights.clone()
        gone[1, 2] = 0
        with pytest.raises(UsageError, match="Class 2 has no pixels at the start of image 1"):
            force.fit(image, gone)
        after = force.fit(image, gone, previous=before)
        for old, new, fresh in zip(before, after, force.fit(image, weights), strict=True):
            assert torch.equal(old[1, 2], new[1, 2]), "a class without pixels must keep its statistics"
            assert_close(new[0], fresh[0], self.tolerance, "statistics of the others")

    def test_arguments_are_not_modified(self, ndim: int) -> None:
        """Image, probabilities and region are read only."""
        force, image, weights = self.make(), self._image(ndim), self._probabilities(ndim)
        region = box_region(2, SIZES[ndim])
        with Unchanged(image=image, weights=weights, region=region):
            statistics = force.fit(image, weights, region)
            kept = copy.deepcopy(tuple(statistics))
            force.unary(image, statistics)
        for a, b in zip(statistics, kept, strict=True):
            assert torch.equal(a, b), "the statistics were modified"

    def test_images_of_any_precision(self, dtype: torch.dtype) -> None:
        """Costs in float32 at least, close to those of the same numbers in float64, under autocast too."""
        force, weights = self.make(), self._probabilities(2)
        image = self._image(2).to(dtype)
        costs = force.unary(image, force.fit(image, weights))
        assert costs.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        exact = force.unary(image.double(), force.fit(image.double(), weights))
        assert_close(costs, exact, max(1e-4, self.tolerance), f"costs of a {dtype} image")
        with torch.autocast("cpu", dtype=torch.bfloat16):
            cast = force.unary(image, force.fit(image, weights))
        assert_close(cast, costs, max(1e-6, self.tolerance), "costs under autocast")

    def test_bad_input_is_refused(self) -> None:
        """One class, NaN, bytes, shapes that disagree, negative probabilities."""
        force, image, weights = self.make(), self._image(2), self._probabilities(2)
        statistics = force.fit(image, weights)
        bad = image.clone()
        bad[0, 0, 1, 1] = float("nan")
        with pytest.raises(UsageError, match="class"):
            force.fit(image, weights[:, :1])
        with pytest.raises(UsageError, match="NaN"):
            force.fit(bad, weights)
        with pytest.raises(UsageError, match="NaN"):
            force.unary(bad, statistics)
        with pytest.raises(UsageError, match="floating-point"):
            force.fit((255 * image).to(torch.uint8), weights)
        with pytest.raises(UsageError, match="do not fit"):
            force.fit(image, weights[..., 1:])
        with pytest.raises(UsageError, match="negative"):
            force.fit(image, -weights)

    def test_survives_pickling(self) -> None:
        """Settings go through pickle."""
        image, weights = self._image(2), self._probabilities(2)
        again = pickle.loads(pickle.dumps(self.make()))
        self._same(again.fit(image, weights), self.make().fit(image, weights), "statistics after pickling")
