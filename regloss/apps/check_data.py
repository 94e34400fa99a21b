"""What is wrong with a data set of the layout `folder`: all of it at once, and a picture of what was understood."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from PIL import Image

from regloss.dataset import IGNORE, Dataset
from regloss.errors import UsageError, listed
from regloss.io.annotations import foreign_annotations
from regloss.io.classes import read_classes
from regloss.io.folders import find_root, left_out
from regloss.io.images import IMAGE_SUFFIXES, common_channels, read_header, read_image
from regloss.io.labels import LABEL_SUFFIXES, ValueMap, read_label_map, read_scribble_map, read_values
from regloss.io.outputs import replacing
from regloss.io.palettes import Colors, class_colors
from regloss.io.samples import MAX_SCRIBBLED, SampleFiles, grouped_list, turned_note
from regloss.io.types import FloatImage, Header, LabelMap, Size
from regloss.io.windows import Window
from regloss.registry import create
from regloss.report.contact_sheet import Row, contact_sheet

T = TypeVar("T")

_PARTS = {"scribble": "scribbles", "label": "labels"}
_GUIDE = "docs/guide/data.md shows the layout"


@dataclass(frozen=True, eq=False)
class Understood:
    """One sample as it was read.

    Attributes:
        id: its name.
        image: (C, H, W) in [0, 1], or None where it cannot be read.
        scribble: (H, W) class indices and 255, or None where there is none, or none that can be read.
        label: likewise.
        wrong: what is wrong with it, in short.
    """

    id: str
    image: FloatImage | None
    scribble: LabelMap | None
    label: LabelMap | None
    wrong: str


@dataclass
class Findings:
    """What there is to say of a data set.

    Attributes:
        root: its folder.
        facts: what it holds.
        problems: what would stop a training, or spoil it, by where it is wrong: "folders", "classes", "images",
            "labels", "scribbles", "settings", "files", "layout".
        notes: what is worth a look.
        classes: names of the classes; numbers where they are not known.
        colors: theirs.
        samples: ids of all samples.
    """

    root: Path
    facts: list[str] = field(default_factory=list)
    problems: dict[str, list[str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    classes: tuple[str, ...] = ()
    colors: Colors = ()
    samples: tuple[str, ...] = ()

    def add(self, where: str, problem: str) -> None:
        """Take in a problem."""
        if problem not in self.problems.setdefault(where, []):
            self.problems[where].append(problem)

    def lines(self) -> list[str]:
        """All of it, for people."""
        said = list(self.facts)
        for where, problems in self.problems.items():
            said += ["", f"Wrong with the {where}:"]
            said += [f"  {number}. {problem}" for number, problem in enumerate(problems, 1)]
        if self.notes:
            said += ["", "Worth a look:", *(f"  - {note}" for note in self.notes)]
        said += ["", "Nothing is wrong." if not self.problems else f"{self.count()} problems."]
        return said

    def count(self) -> int:
        """How many problems there are."""
        return sum(map(len, self.problems.values()))


class LabelCounts:
    """How many pixels of each class some files hold, and in how many.

    Args:
        part: "scribble" or "label".

    Attributes:
        files: that were counted.
    """

    def __init__(self, part: str) -> None:
        self.part = part
        self.files = 0
        self._total = 0
        self._pixels, self._within = Counter[int](), Counter[int]()
        self._empty: list[str] = []
        self._full: list[str] = []

    def add(self, sample_id: str, labels: LabelMap) -> None:
        """Count (*S) class indices and 255."""
        found = np.bincount(labels.ravel(), minlength=256)
        self.files += 1
        self._total += labels.size
        self._pixels.update({index: int(found[index]) for index in np.flatnonzero(found).tolist()})
        self._within.update(np.flatnonzero(found).tolist())
        if found[IGNORE] == labels.size:
            self._empty.append(sample_id)
        elif found[IGNORE] < (1 - MAX_SCRIBBLED) * labels.size:
            self._full.append(sample_id)

    def tell(self, findings: Findings, samples: int, *, known: bool) -> None:
        """Say what there is of ``samples``, and what of it is wrong; ``known``: whether the classes have names."""
        if not self.files:
            return
        names, pixels = findings.classes, self._pixels
        drawn = [
            f"{name} {pixels[index] / self._total:.2%} in {self._within[index]}"
            for index, name in enumerate(names)
            if pixels[index]
        ]
        nothing = f"; no label {pixels[IGNORE] / self._total:.2%}" if pixels[IGNORE] else ""
        findings.facts.append(f"{_PARTS[self.part]}: {self.files} of {samples} images: {listed(drawn, 30)}{nothing}")
        never = [name for index, name in enumerate(names) if not pixels[index]]
        if never and known:
            findings.notes.append(f"classes that occur in no {self.part}: {listed(never)}")
        if self.part != "scribble":
            return
        if len([index for index in pixels if index != IGNORE]) == 1:
            findings.add(
                "scribbles",
                f"all are of class {next(name for i, name in enumerate(names) if pixels[i])}; draw in two or more",
            )
        if self._empty:
            findings.add("scribbles", f"{len(self._empty)} files label no pixel: {listed(self._empty)}")
        if self._full:
            findings.add(
                "scribbles",
                f"{len(self._full)} files label more than {MAX_SCRIBBLED:.0%} of their image, which is much for "
                f"scribbles: {listed(self._full)}; where nothing was drawn, the value is 255, or unlabelled = VALUE "
                "says which (max-scribbled = 1 if they are meant)",
            )


class FolderCheck:
    """A look at all files of a data set; nothing is written.

    Args:
        root: its folder.
        settings: those of the data set `folder` that a configuration has: ``unlabelled``, ``label_values``, ``split``.

    Attributes:
        findings: what was found.
        faulty: ids of samples with files that cannot be used.

    Raises:
        UsageError: there is no such folder.
    """

    def __init__(self, root: Path, settings: Mapping[str, Any] | None = None) -> None:
        self.settings = dict(settings or {})
        self.findings = Findings(find_root(root))
        self.root = self.findings.root
        folders = {part: self.settings.get(name) or name for part, name in _PARTS.items()}
        if isinstance(folders["label"], Mapping):  # a map of values, for the folder of the usual name
            folders["label"] = "labels"
        self.folders = {"image": self.root / self.settings.get("images", "images")} | {
            part: self.root / name for part, name in folders.items()
        }
        files = {part: self._index(part, folder) for part, folder in self.folders.items()}
        self.samples = {
            stem: SampleFiles(stem, path, files["label"].get(stem), files["scribble"].get(stem), stem)
            for stem, path in files["image"].items()
        }
        self.findings.samples = tuple(self.samples)
        self._orphans(files)
        self._classes()
        self.dataset = self._dataset()
        self.window = Window.of(self.dataset.window) if self.dataset is not None else None
        self._contents()
        self.findings.notes += [note for note in getattr(self.dataset, "notes", ()) if note not in self.findings.notes]

    def understood(self, sample_id: str) -> Understood:
        """One sample, as far as it can be read."""
        files, wrong = self.samples[sample_id], []

        def attempt(path: Path | None, read: Callable[[Path], T]) -> T | None:
            try:
                return None if path is None else read(path)
            except UsageError as error:
                wrong.append(str(error).removeprefix(f"{path} "))
                return None

        image = attempt(files.image, self._read_image)
        size = image.shape[1:] if image is not None else None
        maps = {}
        for part, path in (("scribble", files.scribble), ("label", files.label)):
            found = attempt(path, self._reader(part))
            if found is not None and size is not None and found.shape != size:
                wrong.append(f"the {part} has another size")
                found = None
            maps[part] = found
        return Understood(sample_id, image, maps["scribble"], maps["label"], "; ".join(wrong))

    # -- Folders and settings ------------------------------------------------------------------------------------------

    def _index(self, part: str, folder: Path) -> dict[str, Path]:
        """Files by stem; of those that share one, the first."""
        suffixes = IMAGE_SUFFIXES if part == "image" else LABEL_SUFFIXES
        if not folder.is_dir():
            if part == "image":
                self.findings.add("folders", f"there is no folder {folder} with the images; {_GUIDE}")
            elif folder.name != _PARTS[part]:
                self.findings.add("folders", f"there is no folder {folder}, which a setting names")
            return {}
        found: dict[str, list[Path]] = {}
        for path in sorted(folder.iterdir()):
            if path.name.lower().endswith(IMAGE_SUFFIXES) and not path.name.startswith(".") and path.is_file():
                found.setdefault(path.stem, []).append(path)
        double = [" and ".join(path.name for path in paths) for paths in found.values() if len(paths) > 1]
        if double:
            self.findings.add("folders", f"files of {folder} share a name, and are one sample: {listed(double)}")
        others = [path.name for paths in found.values() for path in paths if not path.name.lower().endswith(suffixes)]
        if others:
            self.findings.add(
                f"{part}s",
                f"{len(others)} files of {folder} are pictures, but none of {', '.join(LABEL_SUFFIXES)}: "
                f"{listed(others)}; write class indices as PNG from their source, as JPEG changes them",
            )
        skipped = left_out(folder)
        if skipped:
            self.findings.notes.append(skipped)
        if part == "image" and not found:
            self.findings.add("images", f"{folder} holds none ({', '.join(IMAGE_SUFFIXES)})")
        return {stem: paths[0] for stem, paths in sorted(found.items()) if paths[0].name not in others}

    def _orphans(self, files: Mapping[str, Mapping[str, Path]]) -> None:
        for part in _PARTS:
            lost = [stem for stem in files[part] if stem not in self.samples]
            if lost:
                near = {stem: difflib.get_close_matches(stem, self.samples, n=1) for stem in lost[:10]}
                named = [f"{stem} (is it {near[stem][0]}?)" if near.get(stem) else stem for stem in lost]
                self.findings.add(
                    f"{part}s",
                    f"{len(lost)} files have no image of their name in {self.folders['image']}: {listed(named)}",
                )
        without = [stem for stem, one in self.samples.items() if one.label is None and one.scribble is None]
        if without:
            foreign = foreign_annotations([*self.folders.values(), self.root], without)
            hint = f"; {foreign}" if foreign else ""
            if len(without) == len(self.samples):
                self.findings.add("scribbles", f"no image has scribbles or a label{hint or f'; {_GUIDE}'}")
            else:
                self.findings.notes.append(
                    f"{len(without)} of {len(self.samples)} images have neither scribbles nor a label, and are not "
                    f"trained on: {listed(without)}{hint}"
                )

    def _classes(self) -> None:
        given = self.settings.get("classes")
        path = self.root / "classes.toml"
        names: tuple[str, ...] = ()
        colors: Colors = ()
        if given is None and path.is_file():
            try:
                names, colors = read_classes(path)
            except UsageError as error:
                self.findings.add("classes", str(error))
        elif isinstance(given, list | tuple):
            names = tuple(map(str, given))
        elif isinstance(given, int):
            names = tuple(f"class {index}" for index in range(given))
        elif given is None:
            values = sorted(self._values())
            self.findings.add(
                "classes",
                f"there is no {path}, which names the classes in the order of their indices with entries [[class]] and "
                f'name = "..."; files hold the values {listed(values, 30) or "none"}',
            )
        self.known = bool(names)
        if not names:
            names = tuple(f"value {value}" for value in range(max([*self._values(), 1]) + 1))[:IGNORE]
        self.findings.classes, self.findings.colors = names, colors or class_colors(len(names))

    def _values(self) -> set[int]:
        """Values of all label maps and scribbles that can be read, but 255."""
        found: set[int] = set()
        for sample in self.samples.values():
            for path in (sample.label, sample.scribble):
                if path is not None:
                    try:
                        found.update(np.unique(read_values(path)).tolist())
                    except UsageError:  # said where contents are looked at
                        continue
        return found - {IGNORE}

    def _dataset(self) -> Dataset | None:
        """The data set, if it can be made; what its constructor says of settings is a problem of theirs."""
        settings = dict(self.settings)
        if not self.known:
            settings["classes"] = max(len(self.findings.classes), 2)
        try:
            dataset: Dataset = create("dataset", "folder", root=self.root, **settings)
        except UsageError as error:
            if not self.findings.problems:
                self.findings.add("settings", str(error))
            return None
        if self.known:
            self.findings.classes, self.findings.colors = tuple(dataset.classes), dataset.colors
        return dataset

    # -- Contents ------------------------------------------------------------------------------------------------------

    def _read_image(self, path: Path) -> FloatImage:
        return read_image(path, None, self.window)

    def _reader(self, part: str) -> Callable[[Path], LabelMap]:
        classes = self.findings.classes
        values: ValueMap | None = getattr(self.dataset, f"{part}_values", None)
        if part == "label":
            return lambda path: read_label_map(path, classes, values)
        return lambda path: read_scribble_map(path, classes, (0, 0), values, self.settings.get("unlabelled"))

    def _contents(self) -> None:
        headers: dict[Path, Header] = {}
        sizes: Counter[Size] = Counter()
        broken: dict[str, list[tuple[SampleFiles, str]]] = {part: [] for part in ("images", "labels", "scribbles")}
        counts = {part: LabelCounts(part) for part in _PARTS}
        flat = []
        for files in self.samples.values():
            try:
                headers[files.image] = read_header(files.image)
                image = self._read_image(files.image)
            except UsageError as error:
                broken["images"].append((files, str(error)))
                image = None
            if image is not None:
                sizes[image.shape[1], image.shape[2]] += 1
                if image.min() == image.max():
                    flat.append(files.id)
            for part, path in (("scribble", files.scribble), ("label", files.label)):
                if path is None:
                    continue
                try:
                    labels = self._reader(part)(path)
                except UsageError as error:
                    broken[_PARTS[part]].append((files, str(error)))
                    continue
                if image is not None and labels.shape != image.shape[1:]:
                    broken[_PARTS[part]].append(
                        (files, f"{path} has {_by(labels.shape)} pixels, but its image {_by(image.shape[1:])}")
                    )
                counts[part].add(files.id, labels)
        self.faulty = list(dict.fromkeys(files.id for messages in broken.values() for files, _ in messages))
        for part, messages in broken.items():
            for message in grouped_list(messages):
                self.findings.add(part, message)
        self._say_images(headers, sizes, flat)
        for found in counts.values():
            found.tell(self.findings, len(self.samples), known=self.known)

    def _say_images(self, headers: Mapping[Path, Header], sizes: Mapping[Size, int], flat: list[str]) -> None:
        kinds = Counter((header.channels, header.bits) for header in headers.values())
        names = {1: "grey", 3: "RGB"}
        described = [
            f"{count} {names.get(channels, f'with {channels} channels')} of {bits} bits"
            for (channels, bits), count in kinds.most_common()
        ]
        common = sorted(sizes.items(), key=lambda pair: -pair[1])
        extents = listed((f"{count} of {_by(size)}" for size, count in common), 5)
        self.findings.facts.append(
            f"images: {len(self.samples)}: {listed(described)}; height x width {extents}"
            if self.samples
            else "images: none"
        )
        if self.settings.get("grey") is None:
            try:
                common_channels(headers, self.folders["image"])
            except UsageError as error:
                self.findings.add("images", str(error))
        if flat:
            self.findings.add(
                "images", f"{len(flat)} images have one value everywhere: {listed(flat)}; is it a window?"
            )
        turned = turned_note([one for one in self.samples.values() if one.image in headers], headers)
        if turned:
            self.findings.notes.append(turned)


def _by(size: tuple[int, ...]) -> str:
    return " x ".join(map(str, size))


class Check(Protocol):
    """A look at all files of a data set, whatever its layout."""

    root: Path
    findings: Findings
    faulty: list[str]

    def understood(self, sample_id: str) -> Understood:
        """One sample, as far as it can be read."""


def draw_samples(check: Check, path: Path, rows: int = 12) -> str:
    """Write a picture of what was understood: image, scribbles and labels of samples, those with faults first.

    Args:
        check: the data set.
        path: of a new PNG file.
        rows: how many samples at most; of others than those with faults, evenly through all.

    Returns:
        A sentence on what it shows.

    Raises:
        UsageError: there is no sample.
    """
    ids = check.findings.samples
    if not ids:
        raise UsageError(f"{check.root} has no images, of which a picture could be drawn")
    faulty = check.faulty[:rows]
    others = [one for one in ids if one not in faulty]
    places = np.linspace(0, len(others) - 1, min(rows - len(faulty), len(others))).round().astype(int)
    shown = [check.understood(one) for one in [*faulty, *(others[place] for place in places)]]
    sheet = contact_sheet(
        [Row(f"{one.id}   {one.wrong}".strip(), one.image, (one.scribble, one.label)) for one in shown],
        check.findings.classes,
        check.findings.colors,
    )
    with replacing(path) as temporary:
        Image.fromarray(sheet).save(temporary, format="PNG")
    channels = {one.image.shape[0] for one in shown if one.image is not None} - {1, 3}
    of = f"; of {max(channels)} channels the first is shown" if channels else ""
    return f"{path}: {len(shown)} of {len(ids)} samples: image, scribbles, labels{of}"
