"""Checks for data sets."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np
import pytest

from regloss.dataset import IGNORE, Dataset
from regloss.errors import UsageError
from regloss.testing.suite import Suite, no_make

__all__ = ["DatasetConformance"]


class DatasetConformance(Suite):
    """Checks of a `Dataset`: ids, ranges, types, and that loading is repeatable.

    >>> class TestMyDataset(DatasetConformance):
    ...     subsets = ("train", "val")
    ...
    ...     def make(self):
    ...         return MyDataset(root="data/mine")
    """

    # ---- what must be defined

    def make(self) -> Dataset:
        """The data set."""
        raise no_make(self)

    # ---- what might be defined

    subsets: ClassVar[Sequence[str]] = ("train",)
    """Subsets that it has."""
    disjoint: ClassVar[bool] = True
    """Whether no id stands in two of them."""
    samples: ClassVar[int] = 3
    """How many samples of each subset are loaded."""

    # ---- the checks

    tables: ClassVar[Mapping[str, str]] = {"subset": "subsets"}

    def test_classes_and_colors(self) -> None:
        """At least two classes with different names, one RGB triple of bytes for each, and one channel or more."""
        dataset = self.make()
        assert len(dataset.classes) >= 2
        assert len(set(dataset.classes)) == len(dataset.classes)
        assert len(dataset.colors) == len(dataset.classes)
        for color in dataset.colors:
            assert len(color) == 3
            assert all(0 <= value <= 255 for value in color)
        assert len(set(map(tuple, dataset.colors))) == len(dataset.colors), "two classes have one colour"
        assert dataset.channels >= 1

    def test_ids_are_unique_and_stable(self, subset: str) -> None:
        """Strings that can serve as file names, in the same order every time."""
        ids = list(self.make().ids(subset))
        assert ids, f"the subset {subset} is empty"
        assert len(set(ids)) == len(ids)
        assert ids == list(self.make().ids(subset))
        for sample_id in ids:
            assert isinstance(sample_id, str)
            assert sample_id
            assert not set(sample_id) & set('/\\:*?"<>|\0'), f"{sample_id!r} cannot be a file name"

    def test_subsets_are_disjoint(self) -> None:
        """Nothing that is trained on is tested on."""
        if not self.disjoint:
            pytest.skip("disjoint = False")
        every = [sample_id for subset in self.subsets for sample_id in self.make().ids(subset)]
        assert len(set(every)) == len(every), "an id stands in two subsets"

    def test_samples_keep_their_contract(self, subset: str) -> None:
        """Image (C, *S) float32 in [0, 1]; labels and scribbles (*S) uint8, classes or 255."""
        dataset = self.make()
        for sample_id in list(dataset.ids(subset))[: self.samples]:
            sample = dataset.load(sample_id)
            assert sample.id == sample_id
            assert isinstance(sample.group, str)
            assert sample.group
            image = sample.image
            assert image.dtype == np.float32
            assert image.ndim in (3, 4)
            assert image.shape[0] == dataset.channels
            assert np.isfinite(image).all()
            assert image.min() >= 0
            assert image.max() <= 1
            for name in ("label", "scribble"):
                labels = getattr(sample, name)
                if labels is None:
                    continue
                assert labels.dtype == np.uint8
                assert labels.shape == image.shape[1:], f"{name} and image of {sample_id} have different sizes"
                wrong = set(np.unique(labels).tolist()) - {*range(len(dataset.classes)), IGNORE}
                assert not wrong, f"{name} of {sample_id} holds {sorted(wrong)}"

    def test_loading_twice_gives_the_same(self, subset: str) -> None:
        """And a caller who writes into what was loaded spoils nothing."""
        dataset = self.make()
        sample_id = dataset.ids(subset)[0]
        first = dataset.load(sample_id)
        kept = copy.deepcopy(first)
        for array in (first.image, first.label, first.scribble):
            if array is not None and array.flags.writeable:
                array[...] = 0
        second = dataset.load(sample_id)
        assert np.array_equal(second.image, kept.image)
        for name in ("label", "scribble"):
            before, after = getattr(kept, name), getattr(second, name)
            assert (before is None) == (after is None)
            assert before is None or np.array_equal(before, after)

    def test_check_finds_what_is_missing(self, subset: str) -> None:
        """`Dataset.check` refuses a subset exactly if a sample lacks what is needed, and says what that is."""
        dataset = self.make()
        ids = list(dataset.ids(subset))
        for what in ("label", "scribble"):
            message = ""
            try:
                dataset.check(subset, need=(what,))
            except UsageError as error:
                message = str(error)
            looked_at = ids if message else ids[: self.samples]  # one of all must lack it; those few must have it
            lacking = any(getattr(dataset.load(sample_id), what) is None for sample_id in looked_at)
            assert lacking == bool(message), f"check() for {what} in {subset}: {message or 'nothing is missing'}"
            assert not message or what in message

    def test_unknown_names_are_refused(self) -> None:
        """A subset and an id that do not exist."""
        with pytest.raises(UsageError):
            self.make().ids("no such subset")
        with pytest.raises(UsageError):
            self.make().load("no such id")

    def test_survives_pickling(self) -> None:
        """Worker processes get data sets by pickle."""
        dataset = self.make()
        again = pickle.loads(pickle.dumps(dataset))
        assert list(again.ids(self.subsets[0])) == list(dataset.ids(self.subsets[0]))
