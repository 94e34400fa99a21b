"""Volumes as samples: whole ones, or their slices. What the data sets of volumes share, whatever their layout.

A case is one patient's scan: one file a channel, and labels and scribbles on the same grid. Nothing is turned, and
nothing is resampled unless a spacing is asked for, so that a slice of a file is a slice of the sample.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from regloss.dataset import IGNORE, Dataset, Sample, Slice
from regloss.errors import UsageError, listed
from regloss.io.cases import Intensities, read_case, rounded_spacing, slices_across
from regloss.io.labels import ValueMap, class_labels, scribble_meanings
from regloss.io.resampling import resampled_size, resize_image, resize_labels, resize_scribbles
from regloss.io.samples import find_sample, subset_ids
from regloss.io.types import LabelMap
from regloss.io.volumes import Geometry, read_geometry, read_header, read_label_volume

ENDINGS = {"scribble": "-scribbled", "label": "-labelled"}
"""Subsets of a subset, by the part that their samples have pixels of."""


@dataclass(frozen=True)
class Case:
    """The files of one volume.

    Attributes:
        id: its name.
        images: one file with all channels, or one for each.
        label: of dense labels, or None.
        scribble: of scribbles, or None.
        group: the unit that scores are averaged over.
    """

    id: str
    images: tuple[Path, ...]
    label: Path | None
    scribble: Path | None
    group: str

    def paths(self) -> list[Path]:
        """The files that there are; of a DICOM series all of the folder's."""
        given = [path for path in (*self.images, self.label, self.scribble) if path is not None]
        return [file for path in given for file in (sorted(path.iterdir()) if path.is_dir() else [path])]


@dataclass(frozen=True)
class Meanings:
    """What values of label volumes mean; see `regloss.io.labels.value_map`.

    Attributes:
        classes: the K class names.
        labels: value to class index or 255, of dense labels; None = values are class indices.
        scribbles: likewise, of scribbles.
        unlabelled: the value of scribbles where nothing was drawn, beside 255.
        source: what says so, where it is no setting, for messages.
    """

    classes: tuple[str, ...]
    labels: ValueMap | None = None
    scribbles: ValueMap | None = None
    unlabelled: int | None = None
    source: str | None = None

    def read(self, path: Path, part: str) -> LabelMap:
        """Class indices, or 255, of a file of labels or of scribbles ("label", "scribble").

        Raises:
            UsageError: it cannot be read, or holds a value without a meaning.
        """
        values = self.labels
        if part == "scribble":
            values = scribble_meanings(self.classes, self.scribbles, self.unlabelled)
        stored, _ = read_label_volume(path)
        return class_labels(stored, path, self.classes, values, setting=self.source or f"{part}-values")


class Cases:
    """Volumes cut into samples.

    Args:
        cases: the volumes.
        dims: 3 = a sample is a volume, 2 = a slice, whose id is CASE-NUMBER, counted from 0.
        axis: along which slices follow each other, 0 the slowest of the file; None = that of the largest spacing, of
            equal ones the slowest.
        intensities: what becomes of values.
        meanings: what labels mean.
        spacing: to which all samples are resampled, in mm for each of their axes; "median" = the median over the cases,
            axis by axis; None = they stay as they are.
        file_spacing: of files that do not state theirs, in mm, slices first; None = 1.
        channels: of every volume; None = as many as the first has.

    Attributes:
        places: for each sample its case, and of a slice the axis and number.
        geometries: of each case's image, whose header can be read.
        channels: of every volume.
        unreadable: what is wrong with those of the others.
        spacing: to which samples are resampled, in numbers, or None.

    Raises:
        UsageError: a setting that is none of the above, or a header that cannot be read: of slices any, of volumes all
            (`check` and `load` say it of one).
    """

    def __init__(
        self,
        cases: Sequence[Case],
        *,
        dims: int,
        axis: int | None,
        intensities: Intensities,
        meanings: Meanings,
        spacing: Sequence[float] | str | None = None,
        file_spacing: Sequence[float] | None = None,
        channels: int | None = None,
    ) -> None:
        if dims not in (2, 3):
            raise UsageError(f"dims = {dims!r} must be 3, to learn from volumes, or 2, from their slices.")
        if axis is not None and (dims == 3 or axis not in (0, 1, 2)):
            raise UsageError(
                f"axis = {axis!r} says along which of the axes 0, 1, 2 slices are cut, 0 the slowest of the file; with "
                "dims = 3 nothing is cut, so leave it out."
            )
        self.cases = {case.id: case for case in cases}
        if file_spacing is not None and not _is_spacing(file_spacing, 3):
            raise UsageError(
                f"file-spacing = {file_spacing!r} must be 3 positive numbers, the mm between neighbouring slices, rows "
                "and columns of files that do not say."
            )
        self.intensities, self.meanings, self.file_spacing = intensities, meanings, file_spacing
        self.geometries: dict[str, Geometry] = {}
        self.unreadable: dict[str, str] = {}
        for case in cases:
            try:
                wanted = channels if len(case.images) == 1 else 1
                found, self.geometries[case.id] = read_header(case.images[0], file_spacing, wanted)
            except UsageError as error:
                self.unreadable[case.id] = str(error)
            else:
                channels = channels or found * len(case.images)
        self.channels = channels or 1
        if self.unreadable and (dims == 2 or not self.geometries):  # nobody knows how many slices there are
            raise UsageError("\n".join(self.unreadable.values()))
        self.places: dict[str, tuple[str, int, int] | tuple[str]] = {}
        self._across: dict[str, int] = {}
        if dims == 3:
            self.places.update({key: (key,) for key in self.cases})
        for key, geometry in self.geometries.items() if dims == 2 else ():
            across = self._across[key] = slices_across(geometry) if axis is None else axis
            for number in range(geometry.size[across]):
                self.places[f"{key}-{number:03d}"] = (key, across, number)
        self.spacing = self._common_spacing(spacing, dims)
        self._held: tuple[str, Sample] | None = None

    def __getstate__(self) -> dict[str, Any]:
        # Other processes read what they need.
        return {**self.__dict__, "_held": None}

    def _common_spacing(self, given: Sequence[float] | str | None, dims: int) -> tuple[float, ...] | None:
        """What is asked for, in numbers."""
        if given is None:
            return None
        if given == "median":
            found = np.array([self._own_spacing(key) for key in self.geometries])
            return tuple(float(f"{step:.4g}") for step in np.median(found, axis=0))
        if isinstance(given, str) or not _is_spacing(given, dims):
            axes = "slices, rows and columns" if dims == 3 else "rows and columns of slices"
            raise UsageError(
                f'spacing = {given!r} must be "median", or {dims} positive numbers, the mm between neighbouring {axes}.'
            )
        return tuple(map(float, given))

    def _own_spacing(self, key: str) -> tuple[float, ...]:
        """Of a case's samples, as they are stored."""
        steps = rounded_spacing(self.geometries[key])
        return tuple(step for axis, step in enumerate(steps) if axis != self._across.get(key))

    @property
    def names(self) -> dict[str, tuple[str, ...]]:
        """For each sample the names that may stand for it: its case and its group."""
        return {key: (place[0], self.cases[place[0]].group) for key, place in self.places.items()}

    def load(self, sample_id: str) -> Sample:
        """One sample, in arrays of its own.

        Raises:
            UsageError: a file that cannot be read, or does not lie on the image; values without a meaning.
        """
        case, *cut = self.places[sample_id]
        # The slices of a volume are asked for one after the other: the last volume is kept.
        if self._held is None or self._held[0] != case:
            self._held = (case, self._read(self.cases[case]))
        whole = self._held[1]
        if not cut:
            self._held = None
            return whole
        axis, number = cut
        assert whole.spacing is not None
        steps = whole.spacing

        def slice_of(labels: LabelMap | None) -> LabelMap | None:
            return None if labels is None else np.ascontiguousarray(labels.take(number, axis))

        scribble = slice_of(whole.scribble)
        return Sample(
            sample_id,
            np.ascontiguousarray(whole.image.take(number, axis + 1)),
            slice_of(whole.label),
            None if scribble is None or scribble.min() == IGNORE else scribble,  # nothing is drawn on this slice
            whole.group,
            tuple(step for other, step in enumerate(steps) if other != axis),
            Slice(case, axis, number, steps[axis]),
        )

    def _read(self, case: Case) -> Sample:
        if case.id in self.unreadable:
            raise UsageError(self.unreadable[case.id])
        geometry = self.geometries[case.id]
        image, _ = read_case(case.images, self.intensities, self.file_spacing, self.channels)
        for path in (case.label, case.scribble):
            if path is not None:
                geometry.check_same(read_geometry(path), case.images[0], path)
        label, scribble = (
            None if path is None else self.meanings.read(path, part)
            for part, path in (("label", case.label), ("scribble", case.scribble))
        )
        steps = rounded_spacing(geometry)
        if self.spacing is None or self._own_spacing(case.id) == self.spacing:
            return Sample(case.id, image, label, scribble, case.group, steps)
        target = list(self.spacing)
        if case.id in self._across:  # slices stay as far apart as they are
            target.insert(self._across[case.id], steps[self._across[case.id]])
        size = resampled_size(geometry.size, steps, target)
        return Sample(
            case.id,
            resize_image(image, size),
            None if label is None else resize_labels(label, size),
            None if scribble is None else resize_scribbles(scribble, size),
            case.group,
            tuple(target),
        )

    def with_labels(self, sample_ids: Iterable[str], part: str) -> tuple[str, ...]:
        """Those samples that have a labelled pixel in their scribbles ("scribble") or labels ("label")."""
        found: list[str] = []
        read: tuple[str, LabelMap | None] = ("", None)
        for sample_id in sample_ids:
            key, *cut = self.places[sample_id]
            if read[0] != key:
                path = getattr(self.cases[key], part)
                read = (key, None if path is None else self.meanings.read(path, part))
            labels = read[1]
            if labels is None:
                continue
            if (labels if not cut else labels.take(cut[1], cut[0])).min() < IGNORE:
                found.append(sample_id)
        return tuple(found)

    def check(
        self,
        sample_ids: Sequence[str],
        need: Sequence[str],
        folders: Mapping[str, str],
        subset: str,
        complaints: Sequence[str] = (),
    ) -> None:
        """Find out from headers, and of slices from what is drawn, whether samples can be used; see `Dataset.check`.

        Args:
            sample_ids: the samples.
            need: "scribble", "label", both or none.
            folders: where each part is expected, for messages.
            subset: its name.
            complaints: what the caller found by itself, to be reported along.

        Raises:
            UsageError: with all that is wrong.
        """
        unknown = set(need) - set(ENDINGS)
        if unknown:
            raise UsageError(f"need holds {listed(map(repr, unknown))}; it may hold 'label' and 'scribble'")
        used = {self.places[sample_id][0]: None for sample_id in sample_ids}
        cases = [self.cases[key] for key in used]
        problems = list(complaints)
        for part in need:
            missing = [case.id for case in cases if getattr(case, part) is None]
            if missing:
                problems.append(
                    f"{len(missing)} of {len(cases)} volumes have no {part} file in {folders[part]}: {listed(missing)}"
                )
        problems += [self.unreadable[case.id] for case in cases if case.id in self.unreadable]
        for case in cases:
            if case.id in self.unreadable:
                continue
            for path in (*case.images[1:], case.label, case.scribble):
                if path is not None:
                    try:
                        self.geometries[case.id].check_same(read_geometry(path), case.images[0], path)
                    except UsageError as error:
                        problems.append(str(error))
        if "scribble" in need and not problems and any(len(self.places[sample_id]) > 1 for sample_id in sample_ids):
            drawn = set(self.with_labels(sample_ids, "scribble"))
            empty = [sample_id for sample_id in sample_ids if sample_id not in drawn]
            if empty:
                problems.append(
                    f"on {len(empty)} of {len(sample_ids)} slices of {subset!r} nothing is drawn: {listed(empty)}"
                    + (f'; train = "{subset}{ENDINGS["scribble"]}" learns from the others' if drawn else "")
                )
        if problems:
            raise UsageError("\n".join(problems))


def _is_spacing(given: Sequence[float], axes: int) -> bool:
    return (
        isinstance(given, Sequence)
        and len(given) == axes
        and all(isinstance(step, int | float) and 0 < step < math.inf for step in given)
    )


class CaseDataset(Dataset):
    """A data set of cases; subclasses find them, and add what is to be checked in their layout.

    Attributes:
        root: its folder.
        subsets: ids by the name of the subset.
    """

    root: Path
    subsets: Mapping[str, Sequence[str]]
    _cases: Cases

    def ids(self, subset: str) -> tuple[str, ...]:
        """Ids of a subset, sorted.

        Raises:
            UsageError: there is no such subset, or it is empty; of "-scribbled" and "-labelled" ones, files that
                cannot be read.
        """
        subsets = self.subsets
        for part, ending in ENDINGS.items():
            whole = subset.removesuffix(ending)
            if subset not in subsets and whole != subset and whole in subsets:
                subsets = {**subsets, subset: self._cases.with_labels(subsets[whole], part)}
        return subset_ids(subsets, subset, str(self.root))

    def load(self, sample_id: str) -> Sample:
        """Read one sample.

        Raises:
            UsageError: there is no such id; or its files cannot be read, do not lie on each other, or hold invalid
                values (labels outside the classes, NaN).
        """
        find_sample(self._cases.places, sample_id, str(self.root))
        return self._cases.load(sample_id)

    def files_of(self, sample_id: str) -> list[Path]:
        """Those of the case that a sample is, or was cut from."""
        return self._cases.cases[self.volume_of(sample_id)].paths()

    def volume_of(self, sample_id: str) -> str:
        """The case that a slice was cut from."""
        return self._cases.places[sample_id][0]

    def group_of(self, sample_id: str) -> str:
        """The group of a sample, without reading it."""
        return self._cases.cases[self.volume_of(sample_id)].group
