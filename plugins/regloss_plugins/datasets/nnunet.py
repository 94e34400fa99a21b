"""nnU-Net's raw layout: what is prepared for nnU-Net trains here as it is, dense labels or scribbles.

    Dataset007_Prostate/
      dataset.json                        channel_names, labels, file_ending, numTraining
      imagesTr/    CASE_0000.nii.gz  CASE_0001.nii.gz ...     one file a channel
      labelsTr/    CASE.nii.gz                                class indices, and the ignore label if there is one
      imagesTs/    CASE_0000.nii.gz ...                       (may be absent)
      labelsTs/    CASE.nii.gz                                (may be absent)

Source: Isensee et al., nnU-Net, Nature Methods 18, 2021; the format is documented in the project's
documentation/dataset_format.md and ignore_label.md. The older dataset.json, with "modality" and labels by value, is
understood too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from regloss.dataset import IGNORE
from regloss.errors import UsageError, listed
from regloss.io.cases import Intensities, cases_of, directions
from regloss.io.classes import MAX_CLASSES
from regloss.io.folders import find_root, index_folder
from regloss.io.limits import LARGEST_TEXT, check_regular
from regloss.io.palettes import class_colors
from regloss.io.toml import read_text
from regloss.io.types import PathLike
from regloss.io.volumes import VOLUME_SUFFIXES
from regloss.io.windows import Window
from regloss_plugins.datasets.cases import Case, CaseDataset, Cases, Meanings
from regloss_plugins.datasets.layout import choose_groups, choose_subsets


class NnUNetDataset(CaseDataset):
    r"""Samples from ``root``; see the top of this module for the layout.

    Cases of imagesTr are "train", those of imagesTs "test", if there are any. Where dataset.json has an ignore label,
    labels are scribbles, too: what is ignored is unlabelled.

    Args:
        root: the folder with dataset.json; a relative path may also be one below ``$REGLOSS_DATA``.
        dims: 3 = a sample is a volume, of which training takes patches; 2 = a slice of one, CASE-NUMBER, from 0.
        axis: along which slices follow each other; see the data set ``volumes``.
        split: which sample belongs to which subset, in place of the folders; see the data set ``volumes``.
        group: regular expression with one capturing group, searched in each case's name. By default each case is a
            group of its own.
        window: (low, high): which values of the files become 0 and 1, in all channels. By default ``percentiles`` of
            each volume's and channel's values.
        percentiles: (low, high), in percent.
        spacing: to which all volumes are resampled, in mm; see the data set ``volumes``.

    Raises:
        UsageError: a folder or file is missing; dataset.json is not valid, or disagrees with the files; a setting is
            not valid.
    """

    def __init__(
        self,
        root: PathLike,
        *,
        dims: int = 3,
        axis: int | None = None,
        split: PathLike | Mapping[str, Sequence[str]] | None = None,
        group: str | None = None,
        window: Sequence[float] | None = None,
        percentiles: Sequence[float] = (0.5, 99.5),
        spacing: Sequence[float] | str | None = None,
    ) -> None:
        self.root = find_root(root)
        card = _read_card(self.root / "dataset.json")
        self.channels = len(card.channels)
        self.classes = card.classes
        self.colors = class_colors(len(self.classes))
        chosen = Window.of(window)
        self.window = None if chosen is None else chosen.as_list()
        parts = {name: _cases(self.root, name, card) for name in ("Tr", "Ts")}
        double = sorted(set(parts["Tr"]) & set(parts["Ts"]))
        if double:
            raise UsageError(f"{self.root}: {len(double)} cases are both in imagesTr and in imagesTs: {listed(double)}")
        if card.training is not None and card.training != len(parts["Tr"]):
            raise UsageError(
                f"{card.path} says numTraining = {card.training}, but imagesTr holds {len(parts['Tr'])} cases. Correct "
                "it, or bring the files."
            )
        every = {**parts["Tr"], **parts["Ts"]}
        groups = choose_groups(every, group)
        self._ignore = card.ignore is not None
        values = {index: index for index in range(len(self.classes))} | {IGNORE: IGNORE}
        if card.ignore is not None:
            values[card.ignore] = IGNORE
        self._cases = Cases(
            [
                Case(name, images, label, label if self._ignore else None, groups[name])
                for name, (images, label) in every.items()
            ],
            dims=dims,
            axis=axis,
            intensities=Intensities(chosen, percentiles),
            meanings=Meanings(self.classes, values, values, source=f'"labels" of {card.path}'),
            spacing=spacing,
            channels=self.channels,
        )
        self.spacing = self._cases.spacing
        if split is None:
            subsets = {
                subset: tuple(key for key, place in self._cases.places.items() if place[0] in parts[part])
                for subset, part in (("train", "Tr"), ("test", "Ts"))
            }
            self.subsets = {name: ids for name, ids in subsets.items() if ids} | {"all": tuple(self._cases.places)}
        else:
            self.subsets = choose_subsets(self.root, split, self._cases.names)
        self.notes = tuple(filter(None, (directions(self._cases.geometries.items()),)))

    def files_of(self, sample_id: str) -> list[Path]:
        """Those of the case, and dataset.json, which says what labels mean."""
        return [*super().files_of(sample_id), self.root / "dataset.json"]

    def check(self, subset: str, need: Sequence[str] = ("scribble",)) -> None:
        """Verify a subset before it is used, and report everything that is wrong with it in one message.

        Args:
            subset: its name.
            need: the parts that each case must have: "scribble", "label", both or none.

        Raises:
            UsageError: cases lack a part that is needed; grids differ; slices on which nothing is drawn, where
                scribbles are needed.
        """
        problems = []
        if "scribble" in need and not self._ignore:
            problems.append(
                f'{self.root / "dataset.json"} has no "ignore" label, so its labels are dense: learn them by '
                'data.supervision = "labels"'
            )
        folders = dict.fromkeys(("label", "scribble"), f"{self.root / 'labelsTr'} or labelsTs")
        self._cases.check(self.ids(subset), need, folders, subset, problems)


class _Card:
    """What dataset.json says."""

    def __init__(self, path: Path, table: Mapping[str, Any]) -> None:
        self.path = path
        channels = table.get("channel_names", table.get("modality"))
        if not channels or not isinstance(channels, Mapping) or set(channels) != set(map(str, range(len(channels)))):
            raise UsageError(
                f'{path}: "channel_names" must name the channels "0", "1", ... as {{"0": "T2"}}; got {channels!r}'
            )
        self.channels = tuple(str(channels[str(number)]) for number in range(len(channels)))
        self.classes, self.ignore = _labels(path, table.get("labels"))
        self.ending = table.get("file_ending", ".nii.gz")
        if self.ending not in VOLUME_SUFFIXES:
            raise UsageError(
                f'{path}: "file_ending" is {self.ending!r}; volumes are read from {", ".join(VOLUME_SUFFIXES)}'
            )
        training = table.get("numTraining")
        if training is not None and not isinstance(training, int):
            raise UsageError(f'{path}: "numTraining" must be a number; got {training!r}')
        self.training = training


def _read_card(path: Path) -> _Card:
    if not path.is_file():
        raise UsageError(f"there is no {path}; a data set in nnU-Net's raw layout has one")
    check_regular(path, LARGEST_TEXT)
    try:
        table = json.loads(read_text(path))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(table, dict):
        raise UsageError(f"{path} must hold a JSON object, with channel_names and labels")
    return _Card(path, table)


def _labels(path: Path, labels: object) -> tuple[tuple[str, ...], int | None]:
    """Class names by index, and the value that is ignored."""
    if not isinstance(labels, Mapping) or not labels:
        raise UsageError(f'{path}: "labels" must name the classes, as {{"background": 0, "tumour": 1}}; got {labels!r}')
    values: dict[int, str] = {}
    for key, value in labels.items():
        # The older form has them the other way round.
        name, index = (str(value), key) if isinstance(value, str) else (key, value)
        if isinstance(index, list):
            raise UsageError(
                f"{path}: the label {name!r} is a region, several values at once; name each value by itself"
            )
        try:
            number = int(index)
        except (TypeError, ValueError) as error:
            raise UsageError(f"{path}: the label {name!r} must be a whole number; got {index!r}") from error
        if number in values:
            raise UsageError(f"{path}: the labels {values[number]!r} and {name!r} both have the value {number}")
        values[number] = name
    ignored = [number for number, name in values.items() if name == "ignore"]
    named = {number: name for number, name in values.items() if name != "ignore"}
    if sorted(named) != list(range(len(named))):
        raise UsageError(f"{path}: labels must have the values 0, 1, 2, ... without a gap; got {sorted(named)}")
    if ignored and ignored[0] < len(named):
        raise UsageError(f"{path}: the ignore label must be the highest, {len(named)}; got {ignored[0]}")
    if not 2 <= len(named) <= MAX_CLASSES:
        raise UsageError(f"{path} has {len(named)} classes; needed are 2 (background and one more) to {MAX_CLASSES}")
    if len(set(named.values())) < len(named):
        raise UsageError(f"{path}: two labels have one name")
    return tuple(named[number] for number in range(len(named))), ignored[0] if ignored else None


def _cases(root: Path, part: str, card: _Card) -> dict[str, tuple[tuple[Path, ...], Path | None]]:
    """Channel files and label of each case of imagesTr or imagesTs."""
    images, labels = root / f"images{part}", root / f"labels{part}"
    if not images.is_dir():
        if part == "Tr":
            raise UsageError(f"{root} has no folder imagesTr")
        return {}
    files = index_folder(images, (card.ending,))
    if not files:
        if part == "Tr":
            raise UsageError(f"{images} holds no file that ends in {card.ending}, as {card.path} says")
        return {}
    numbered = [stem for stem in files if stem[-5:-4] != "_" or not stem[-4:].isdigit()]
    if numbered:
        raise UsageError(
            f"{len(numbered)} files of {images} have no number of a channel at their end, as CASE_0000{card.ending}: "
            f"{listed(numbered)}"
        )
    cases = cases_of(files, len(card.channels))
    found = index_folder(labels, (card.ending,)) if labels.is_dir() else {}
    lonely = [stem for stem in found if stem not in cases]
    if lonely:
        raise UsageError(f"{len(lonely)} files of {labels} have no image in {images}: {listed(lonely)}")
    if part == "Tr":
        missing = [stem for stem in cases if stem not in found]
        if missing:
            raise UsageError(
                f"{len(missing)} of {len(cases)} cases of {images} have no label in {labels}: {listed(missing)}"
            )
    return {stem: (paths, found.get(stem)) for stem, paths in cases.items()}
