"""Checks for segmenters."""

from __future__ import annotations

import dataclasses
import math
import pickle
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from regloss.dataset import IGNORE
from regloss.errors import UsageError
from regloss.segmenter import Segmentation, Segmenter
from regloss.solver import Status
from regloss.testing.suite import Suite, Unchanged, assert_at_most, assert_close, no_make, normal_values

__all__ = ["SegmenterConformance"]


class SegmenterConformance(Suite):
    """Checks of a `Segmenter`: labels in range, seeds kept, finite energies, the same for the same seed.

    >>> from regloss import GraphCut
    >>> class TestMySegmenter(SegmenterConformance):
    ...     def make(self):
    ...         return GraphCut()
    >>> TestMySegmenter().test_seeds_are_kept(channels=3)
    """

    # ---- what must be defined

    def make(self) -> Segmenter:
        """The segmenter, with settings that suit an image of 20 x 24 pixels."""
        raise no_make(self)

    # ---- what might be defined

    size: ClassVar[tuple[int, ...]] = (20, 24)
    channel_counts: ClassVar[Sequence[int]] = (1, 3)
    phase_counts: ClassVar[Sequence[int]] = (2, 3)
    takes_start: ClassVar[bool] = True
    """Whether it can begin with given phases."""
    accuracy: ClassVar[float] = 0.95
    """Fraction of the pixels that are right, of bright stripes on dark ground that hardly any noise hides."""

    # ---- the checks

    tables: ClassVar[Mapping[str, str]] = {"channels": "channel_counts", "phases": "phase_counts"}

    def _truth(self, phases: int) -> Tensor:
        """(1, *S) int64: stripes along the last axis."""
        place = torch.arange(self.size[-1]) * phases // self.size[-1]
        return place.expand(1, *self.size).clone()

    def _image(self, phases: int = 2, channels: int = 3) -> Tensor:
        """(1, C, *S): the darkest phase first, in noise."""
        values = 0.2 + 0.6 * self._truth(phases).unsqueeze(1) / (phases - 1)
        noise = normal_values(1, channels, *self.size, seed=91, dtype=torch.float32)
        return (values + 0.03 * noise).clamp(0, 1)

    def _scribbles(self, phases: int) -> Tensor:
        """(1, *S) int64: the truth at every fifth pixel, but for one that is wrong; 255 elsewhere."""
        truth = self._truth(phases)
        given = torch.full_like(truth, IGNORE)
        given.view(-1)[::5] = truth.view(-1)[::5]
        given.view(-1)[0] = phases - 1
        return given

    def _any(self, **options: Any) -> Segmentation:
        """A segmentation into two classes, from scribbles or from phases, whichever it takes."""
        segmenter = self.make()
        given = {"phases": 2} if segmenter.takes_phases else {"scribbles": self._scribbles(2)}
        return segmenter(self._image(), **given, **options)

    def _check(self, found: Segmentation, phases: int) -> None:
        assert (found.labels.shape, found.labels.dtype) == ((1, *self.size), torch.int64), (
            "labels must be (1, *S) int64"
        )
        assert 0 <= int(found.labels.min()) <= int(found.labels.max()) < phases, "labels must be 0 to K - 1"
        assert found.probabilities.shape == (1, phases, *self.size)
        sums = found.probabilities.sum(1)
        assert_close(sums, torch.ones_like(sums), 1e-4, "sums of the probabilities")
        assert math.isfinite(found.energy), "the energy must be finite"
        assert not math.isnan(found.bound)
        assert_at_most(torch.tensor(found.bound), torch.tensor(found.energy), 1e-6, "the bound is above the energy")
        assert isinstance(found.status, Status)
        assert found.steps >= 0

    def test_phases_are_found(self, phases: int, channels: int) -> None:
        """If it takes phases: most pixels of each are in one class of its own, whatever its number."""
        if not self.make().takes_phases:
            return
        found, truth = self.make()(self._image(phases, channels), phases=phases), self._truth(phases)
        self._check(found, phases)
        counts = torch.bincount((phases * truth + found.labels).flatten(), minlength=phases**2).reshape(phases, phases)
        right = counts.amax(1).sum() if len(set(counts.argmax(1).tolist())) == phases else counts.diagonal().sum()
        assert float(right) >= self.accuracy * truth.numel(), f"too few pixels are right: {counts.tolist()}"

    def test_seeds_are_kept(self, channels: int) -> None:
        """If it takes scribbles: their labels stay, wrong ones too, and the rest is found."""
        if not self.make().takes_scribbles:
            return
        scribbles, truth = self._scribbles(3), self._truth(3)
        found = self.make()(self._image(3, channels), scribbles=scribbles)
        self._check(found, 3)
        given = scribbles != IGNORE
        assert torch.equal(found.labels[given], scribbles[given]), "a seed was overruled"
        assert float((found.labels == truth).float().mean()) >= self.accuracy, "too few pixels are right"

    def test_classes_without_seeds_are_not_used(self) -> None:
        """Scribbles of the classes 0 and 4 give a segmentation into these."""
        if not self.make().takes_scribbles:
            return
        scribbles = self._scribbles(2)
        found = self.make()(self._image(), scribbles=scribbles.masked_fill(scribbles == 1, 4))
        self._check(found, 5)
        assert set(torch.unique(found.labels).tolist()) == {0, 4}

    def test_a_start_is_taken(self) -> None:
        """If ``takes_start``: phases the other way round stay so, and their number need not be said."""
        if not (self.make().takes_phases and self.takes_start):
            return
        start = 1 - self._truth(2)
        start[..., :4, :] = IGNORE
        found = self.make()(self._image(), start=start)
        self._check(found, 2)
        assert float((found.labels == 1 - self._truth(2)).float().mean()) >= self.accuracy

    def test_the_same_seed_gives_the_same(self) -> None:
        """And the global random generator is left alone."""
        before = torch.random.get_rng_state()
        first, second = self._any(seed=3), self._any(seed=3)
        assert torch.equal(first.labels, second.labels), "the same seed gave other labels"
        assert first.energy == second.energy, "the same seed gave another energy"
        assert torch.equal(before, torch.random.get_rng_state()), "the global random generator was used"

    def test_what_it_tells(self) -> None:
        """A summary in one line, records of one type, the pictures that it announces, sentences for the callback."""
        told: list[str] = []
        found = self._any(callback=told.append)
        assert found.summary()
        assert "\n" not in found.summary()
        assert all(isinstance(line, str) for line in told)
        assert len({type(record) for record in found.history}) <= 1, "the history must have records of one type"
        for record in found.history:
            assert dataclasses.is_dataclass(record), "the history must have dataclasses as records"
            assert isinstance(getattr(record, "energy", None), float), "a record of the history must have an energy"
        assert set(found.figures(self._image())) == set(self.make().figures)

    def test_arguments_are_not_modified(self) -> None:
        """Image, scribbles and start are read only."""
        segmenter, image, scribbles, start = self.make(), self._image(), self._scribbles(2), self._truth(2)
        with Unchanged(image=image, scribbles=scribbles, start=start):
            if segmenter.takes_scribbles:
                segmenter(image, scribbles=scribbles)
            if segmenter.takes_phases and self.takes_start:
                segmenter(image, start=start)

    def test_bad_input_is_refused(self) -> None:
        """Batches, NaN, bytes, one class, another size, and what it does not take."""
        segmenter, image, scribbles = self.make(), self._image(), self._scribbles(2)
        bad = image.clone()
        bad.view(-1)[5] = float("nan")
        free: dict[str, Any] = {"phases": 2} if segmenter.takes_phases else {"scribbles": scribbles}
        wrong: list[tuple[Tensor, dict[str, Any], str]] = [
            (image.expand(2, *image.shape[1:]), free, "one image"),
            (bad, free, "not finite"),
            ((255 * image).to(torch.uint8), free, "floating-point"),
        ]
        if segmenter.takes_scribbles:
            wrong += [
                (image, {"scribbles": scribbles.masked_fill(scribbles == 1, IGNORE)}, "at least two classes"),
                (image, {"scribbles": scribbles[..., 1:]}, "shape"),
                (image, {"scribbles": scribbles, "phases": 2}, "Leave phases and start out"),
            ]
        else:
            wrong.append((image, {"scribbles": scribbles}, "takes no scribbles"))
        if segmenter.takes_phases:
            wrong += [
                (image, {"phases": 1}, "at least two phases"),
                (image, {"start": scribbles.numpy()}, "from_numpy"),
                (image, {"start": torch.zeros_like(scribbles)}, "at least two classes"),
                (image, {"phases": 2, "start": "no-such-start"}, "no-such-start"),
            ]
        else:
            wrong.append((image, {"phases": 2}, "needs scribbles"))
        for given, options, message in wrong:
            with pytest.raises(UsageError, match=message):
                segmenter(given, **options)

    def test_survives_pickling(self) -> None:
        """Settings go through pickle."""
        assert pickle.loads(pickle.dumps(self.make())) == self.make()
