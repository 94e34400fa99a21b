"""A folder of images with label maps and scribbles beside them.

    root/
      images/      a.png  b.jpg  c.tif       grey, RGB or other channels, 8 or 16 bits, or float TIFF in [0, 1]
      labels/      a.png  b.png              class indices, 255 = left out of the scores       (may be absent)
      scribbles/   a.png         c.png       class indices, 255 = unlabelled                   (may be absent)
      classes.toml                           names and colours

Files belong together by their stem, which is the sample's id.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from regloss.dataset import Dataset, Sample
from regloss.errors import UsageError, listed
from regloss.io.folders import find_file, find_root, index_folder, index_label_folder, left_out
from regloss.io.foreign.cvat import read_labelmap
from regloss.io.images import IMAGE_SUFFIXES, common_channels, read_header, read_stored
from regloss.io.labels import read_scribble_map, stored_value, value_map
from regloss.io.palettes import color_value, written_value
from regloss.io.reduction import check_reduce
from regloss.io.samples import SampleFiles, check_samples, find_sample, load_sample, subset_ids, turned_note
from regloss.io.scribbles import simulate
from regloss.io.types import PathLike
from regloss.io.windows import DEEP, Window, find_window
from regloss_plugins.datasets.layout import choose_classes, choose_groups, choose_subsets


class FolderDataset(Dataset):
    r"""Samples from ``root``; see the top of this module for the layout.

    The constructor reads the folders, the small TOML files, the headers of the images and, unless ``window`` is given,
    those images that have 16 bits. `check` verifies that files fit together, `load` what is in them.

    Args:
        root: the folder that holds the others; a relative path may also be one below ``$REGLOSS_DATA``.
        split: which image belongs to which subset, a TOML file (looked up in ``root``, then in the current folder) or
            its contents as a mapping: ``train = ["patient021*", "patient03?_frame01*"]``, ``val = [...]``,
            ``test = [...]``, and any other names. An entry is an id, a pattern (``*``, ``?``, ``[...]``) of ids, or
            the name of a group. "all" is every image and exists always. Without a split, "train" is every image too.
        classes: a TOML file with an entry ``[[class]]`` holding ``name`` and, if wanted, ``color = [r, g, b]`` for
            each class in the order of the indices; or a labelmap.txt; or the names; or their number. By default
            ``root/classes.toml``.
            Colours default to the PASCAL VOC colour map.
        images: the folder of the images, relative to ``root``.
        labels: the folder of the dense labels; None reads none. A folder of the default name may be absent. A mapping
            is ``label_values``, for the folder of the default name.
        scribbles: the folder of the scribbles, likewise.
        group: regular expression with one capturing group, searched in each id: what it captures is the sample's
            group, as in ``"^(patient\d+)"``. By default each image is a group of its own.
        grey: True turns all images into grey, False into RGB; by default all must be of one kind, which is kept.
        reduce: integer factor by which samples are reduced; 2 halves height and width (rounded up). Images by box
            mean; dense labels by majority, 255 only where it is more than half of the block; scribbles by the majority
            of the block's labelled pixels, so that thin strokes do not vanish (of classes that tie, the lowest).
        simulate_scribbles: draw scribbles from the dense labels, one stroke a region of a class (see
            `regloss.io.scribbles.simulate`), instead of reading them: for data sets without any.
        label_values: what the values of the dense labels mean, where they are no class indices, as a mapping to names
            or indices of classes, or 255 for pixels without label: ``{0: "background", 255: "object"}``. 255 goes on
            meaning that there is no label, unless it is in it. PNG files of colours have colours,
            ``{"#ff0000": "object"}``, or the file that names them, ``"labelmap.txt"``, in ``root`` or the current
            folder.
        scribble_values: likewise, of the scribbles.
        unlabelled: the value, or colour "#rrggbb", of scribbles where nothing was drawn, beside 255.
        window: (low, high): which values of the files become 0 and 1, others are cut off. By default 0 and the largest
            that their type can hold; for images of 16 bits that suits the values found in all of them (see
            `regloss.io.windows`).
        center: cut samples, after reduction, to this many pixels about the centre along each axis that is longer.

    Raises:
        UsageError: a folder or file is missing, there are no images, two images share a stem, grey and colour images
            are mixed, classes are not given, the split or ``group`` does not fit the ids, or a value map names other
            classes.
    """

    def __init__(
        self,
        root: PathLike,
        *,
        split: PathLike | Mapping[str, Sequence[str]] | None = None,
        classes: PathLike | Sequence[str] | int | None = None,
        images: str = "images",
        labels: str | Mapping[Any, Any] | None = "labels",
        scribbles: str | None = "scribbles",
        group: str | None = None,
        grey: bool | None = None,
        reduce: int = 1,
        simulate_scribbles: bool = False,
        label_values: Mapping[Any, Any] | PathLike | None = None,
        scribble_values: Mapping[Any, Any] | PathLike | None = None,
        unlabelled: int | str | None = None,
        window: Sequence[float] | None = None,
        center: int | None = None,
    ) -> None:
        folder: str | None
        if isinstance(labels, Mapping):
            if label_values is not None:
                raise UsageError("labels and label-values both say what values mean; leave one of them out")
            folder, label_values = "labels", labels
        else:
            folder = labels
        self.root = find_root(root)
        self.reduce = check_reduce(reduce)
        if center is not None and (isinstance(center, bool) or not isinstance(center, int) or center < 1):
            raise UsageError(f"center is a number of pixels, at least 1, or absent; got {center!r}")
        self.center = center
        self.simulate_scribbles = simulate_scribbles
        image_files = _image_files(self.root, images)
        label_files = _mates(self.root, folder, default="labels")
        scribble_files = {} if simulate_scribbles else _mates(self.root, scribbles, default="scribbles")
        groups = choose_groups(image_files, group)
        self.samples = {
            stem: SampleFiles(stem, path, label_files.get(stem), scribble_files.get(stem), groups[stem])
            for stem, path in image_files.items()
        }
        self._folders = {
            "label": f"{self.root / (folder or 'labels')}",
            "scribble": f"{self.root / (scribbles or 'scribbles')}",
        }
        self._orphans = {
            part: [path.name for stem, path in files.items() if stem not in image_files]
            for part, files in (("label", label_files), ("scribble", scribble_files))
        }
        self.classes, self.colors = choose_classes(self.root, classes, list((label_files or scribble_files).values()))
        self.label_values, self.scribble_values = (
            None if given is None else value_map(_table(given, self.root), self.classes, setting)
            for given, setting in ((label_values, "label-values"), (scribble_values, "scribble-values"))
        )
        self._tables = [
            find_file(given, self.root, "table of colours")
            for given in (label_values, scribble_values)
            if given is not None and not isinstance(given, Mapping)
        ]
        self.unlabelled = None if unlabelled is None else stored_value(unlabelled, "unlabelled")
        self.subsets = choose_subsets(self.root, split, {stem: (name,) for stem, name in groups.items()})
        self._splits = split is None
        headers = {path: read_header(path) for path in image_files.values()}
        self.channels = common_channels(headers, self.root / images) if grey is None else 1 if grey else 3
        range_note = ""
        chosen = Window.of(window)
        if chosen is None:
            deep = [path for path, header in headers.items() if header.bits == DEEP]
            chosen, range_note = find_window(map(read_stored, deep))
        self._window = chosen
        self.window = None if chosen is None else chosen.as_list()
        turned = turned_note(self.samples.values(), headers)
        ranged = (
            f"{self.root / images}: {range_note}; window = [LOW, HIGH] chooses another range." if range_note else ""
        )
        self.notes = tuple(note for note in (left_out(self.root / images), ranged, turned) if note)

    def ids(self, subset: str) -> tuple[str, ...]:
        """Ids of a subset, sorted.

        Raises:
            UsageError: there is no such subset, or it is empty.
        """
        return subset_ids(self.subsets, subset, str(self.root))

    def load(self, sample_id: str) -> Sample:
        """Read one sample.

        Raises:
            UsageError: there is no such id; or its files cannot be read, differ in size, or hold invalid values
                (labels outside the classes, NaN, floats outside [0, 1]).
        """
        files = find_sample(self.samples, sample_id, str(self.root))
        sample = load_sample(
            files,
            classes=self.classes,
            channels=self.channels,
            reduce=self.reduce,
            read_scribble=partial(read_scribble_map, values=self.scribble_values, unlabelled=self.unlabelled),
            label_values=self.label_values,
            window=self._window,
        )
        if self.simulate_scribbles and sample.label is not None:
            sample = replace(sample, scribble=simulate(sample.label))
        return sample if self.center is None else _central(sample, self.center)

    def files_of(self, sample_id: str) -> list[Path]:
        """Image, labels and scribbles, and the tables of colours."""
        return [*find_sample(self.samples, sample_id, str(self.root)).paths(), *self._tables]

    def group_of(self, sample_id: str) -> str:
        """The group of a sample, without reading it."""
        return find_sample(self.samples, sample_id, str(self.root)).group

    def check(self, subset: str, need: Sequence[str] = ("scribble",), *, contents: bool = False) -> None:
        """Verify a subset before it is used, and report everything that is wrong with it in one message.

        Args:
            subset: its name.
            need: the parts that each image must have: "scribble", "label", both or none.
            contents: also decode every file, rather than the headers only.

        Raises:
            UsageError: images lack a part that is needed; label maps or scribbles have no image; sizes differ; or what
                `load` would refuse, if ``contents``; then also scribbles that label nothing, or one class only.
        """
        if self.simulate_scribbles:
            need = tuple("label" if part == "scribble" else part for part in need)
        orphans = [
            f"{len(names)} files of {part}s have no image of that name in {self.root}: {listed(names)}"
            for part, names in self._orphans.items()
            if part in need and names
        ]
        samples = [self.samples[sample_id] for sample_id in self.ids(subset)]
        load = self.load if contents else None
        check_samples(
            samples,
            need,
            load=load,
            folders=self._folders,
            complaints=orphans,
            splits=self._splits and subset == "train",
        )


def _table(given: Mapping[Any, Any] | PathLike, root: Path) -> Mapping[Any, Any]:
    """A value map as it is, or the colours of a labelmap.txt."""
    if isinstance(given, Mapping):
        return given
    colors = read_labelmap(find_file(given, root, "table of colours"))
    return {written_value(color_value(color)): name for color, name in colors.items()}


def _central(sample: Sample, length: int) -> Sample:
    """The middle of a sample; where an odd number of pixels goes, one more goes at the far end."""
    starts = [max(size - length, 0) // 2 for size in sample.image.shape[1:]]
    window = tuple(slice(start, start + length) for start in starts)
    return replace(
        sample,
        image=np.ascontiguousarray(sample.image[(slice(None), *window)]),
        label=None if sample.label is None else np.ascontiguousarray(sample.label[window]),
        scribble=None if sample.scribble is None else np.ascontiguousarray(sample.scribble[window]),
    )


def _image_files(root: Path, images: str) -> dict[str, Path]:
    folder = root / images
    if not folder.is_dir():
        raise UsageError(
            f"{root} has no folder {images!r}; images are expected there, or name their folder by 'images'"
        )
    files = index_folder(folder)
    if not files:
        others = sorted({path.suffix or path.name for path in folder.iterdir() if not path.name.startswith(".")})
        found = f"only {listed(others)}" if others else "nothing"
        raise UsageError(f"{folder} holds no image ({', '.join(IMAGE_SUFFIXES)}), but {found}")
    return files


def _mates(root: Path, folder: str | None, *, default: str) -> dict[str, Path]:
    """Label maps by stem. A folder may be absent only if nobody asked for it by a name of its own."""
    if folder is None or (folder == default and not (root / folder).exists()):
        return {}
    return index_label_folder(root / folder)
