"""Cross-validation: the training subset's groups in folds, of which each is left out once and scored.

Groups (patients) are dealt to folds in a shuffled order that is always the same, so that runs with other seeds, or of
other methods, leave out the same ones. No group is in two folds.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from regloss.dataset import Dataset, Sample
from regloss.errors import UsageError, listed
from regloss.registry import create
from regloss.training.config import Data


def deal(groups: Sequence[str], folds: int, stratify: str | None = None) -> dict[str, int]:
    """The fold of each group, 0 to ``folds`` - 1; numbers of groups differ by one at most.

    Args:
        groups: their names; each once.
        folds: how many, at least 2.
        stratify: regular expression with one capturing group, searched in each name: what it captures is spread evenly
            over the folds. None = nothing.

    Raises:
        UsageError: fewer groups than folds, or an expression that does not fit.

    >>> sorted(deal([f"patient{n}" for n in range(6)], 3).values())
    [0, 0, 1, 1, 2, 2]
    """
    if len(groups) < folds:
        raise UsageError(
            f"folds = {folds} needs as many groups in the training subset; there are {len(groups)}: {listed(groups)}. "
            "Take fewer folds, or say by the data set's setting group what belongs together."
        )
    strata: dict[str, list[str]] = {}
    for group in sorted(groups):
        strata.setdefault(_stratum(group, stratify), []).append(group)
    shuffled = [np.random.default_rng(0).permutation(members).tolist() for _, members in sorted(strata.items())]
    order = [group for members in shuffled for group in members]
    return {group: place % folds for place, group in enumerate(order)}


def _stratum(group: str, stratify: str | None) -> str:
    if stratify is None:
        return ""
    try:
        pattern = re.compile(stratify)
    except re.error as error:
        raise UsageError(f"stratify = {stratify!r} is no regular expression: {error}") from error
    if pattern.groups != 1:
        raise UsageError(f"stratify = {stratify!r} has {pattern.groups} capturing groups; it needs one.")
    found = pattern.search(group)
    if found is None:
        raise UsageError(f"stratify = {stratify!r} does not match the group {group!r}.")
    return found.group(1) or ""


class FoldedDataset(Dataset):
    """A data set whose training subset lacks one fold, which takes the place of the test subset.

    Args:
        dataset: the whole one.
        train: its subset to train on, which is divided.
        test: the name by which the fold that is left out is asked for: all samples of its groups, whether or not they
            can be trained on.
        folds: how many.
        fold: the one that is left out, from 0.
        stratify: see `deal`.

    Raises:
        UsageError: see `deal`; there is no such fold.
    """

    def __init__(
        self, dataset: Dataset, train: str, test: str, folds: int, fold: int, stratify: str | None = None
    ) -> None:
        if not 0 <= fold < folds:
            raise UsageError(f"There is no fold {fold}: folds = {folds}, so they are 0 to {folds - 1}.")
        self._whole, self._train, self._test = dataset, train, test
        self.classes, self.colors, self.channels = dataset.classes, dataset.colors, dataset.channels
        self.window, self.spacing = dataset.window, dataset.spacing
        ids = dataset.ids(train)
        of = {sample_id: dataset.group_of(sample_id) for sample_id in ids}
        left_out = {group for group, place in deal(sorted(set(of.values())), folds, stratify).items() if place == fold}
        # Of a group that is left out all is scored: slices that nothing is drawn on, too.
        every = dataset.ids("all") if "all" in getattr(dataset, "subsets", ()) else ids
        self._parts: Mapping[str, tuple[str, ...]] = {
            train: tuple(sample_id for sample_id in ids if of[sample_id] not in left_out),
            test: tuple(sample_id for sample_id in every if dataset.group_of(sample_id) in left_out),
        }
        self.notes = (
            *dataset.notes,
            f"Fold {fold} of 0 to {folds - 1} is left out of {train!r} and scored as {test!r}: "
            f"{len(left_out)} groups, {listed(sorted(left_out))}.",
        )

    def ids(self, subset: str) -> Sequence[str]:
        """Ids of a subset; see `Dataset.ids`."""
        return self._parts[subset] if subset in self._parts else self._whole.ids(subset)

    def load(self, sample_id: str) -> Sample:
        """Read one sample; see `Dataset.load`."""
        return self._whole.load(sample_id)

    def files_of(self, sample_id: str) -> Sequence[Path]:
        """See `Dataset.files_of`."""
        return self._whole.files_of(sample_id)

    def volume_of(self, sample_id: str) -> str:
        """See `Dataset.volume_of`."""
        return self._whole.volume_of(sample_id)

    def group_of(self, sample_id: str) -> str:
        """See `Dataset.group_of`."""
        return self._whole.group_of(sample_id)

    def check(self, subset: str, need: Sequence[str] = ("scribble",)) -> None:
        """Verify a subset, the whole one for its parts; see `Dataset.check`."""
        self._whole.check(self._train if subset in self._parts else subset, need)


def open_dataset(data: Data, settings: Mapping[str, object] | None = None) -> Dataset:
    """The data set of a configuration, without the fold that is left out, if there is one.

    Args:
        data: the section.
        settings: the data set's own, instead of those in ``data``.

    Raises:
        UsageError: whatever the data set refuses; folds without a word on which is left out, or the reverse.
    """
    dataset: Dataset = create("dataset", data.dataset, **(data.component_settings() if settings is None else settings))
    if data.folds is None:
        if data.fold is not None or data.stratify is not None:
            raise UsageError("data.fold and data.stratify belong to data.folds, the number of folds; give it too.")
        return dataset
    if data.fold is None:
        raise UsageError(
            f"data.folds = {data.folds}: say which is left out, --fold 0 to {data.folds - 1}, or train all: --fold all."
        )
    if data.test is None:
        raise UsageError('The fold that is left out is scored as data.test, which is "". Leave it as it is by default.')
    return FoldedDataset(dataset, data.train, data.test, data.folds, data.fold, data.stratify)
