"""One image, no network: a segmenter, from file to files.

Which segmenters there are, the registry says; `regloss.segmenter` is what they have in common.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from regloss.apps.components import parse_component, split_name
from regloss.dataset import IGNORE
from regloss.errors import BrokenPlugin, ReglossError, UsageError, listed
from regloss.io.cases import Intensities
from regloss.io.classes import read_classes
from regloss.io.images import as_image, read_header, read_stored
from regloss.io.labels import (
    ValueMap,
    mapped,
    read_scribble_map,
    read_values,
    save_label_png,
    stored_value,
    value_map,
    values_of,
)
from regloss.io.outputs import check_new_folder, make_new_folder, writing
from regloss.io.palettes import Color, Colors, class_colors, written_value
from regloss.io.samples import MAX_SCRIBBLED, SampleFiles, turned_note
from regloss.io.types import FloatImage, LabelMap, StoredPixels
from regloss.io.volumes import (
    Geometry,
    is_volume,
    read_geometry,
    read_volume,
    write_label_volume,
)
from regloss.io.windows import Window, clipped_note, find_window, windowed
from regloss.region_force import RegionForce
from regloss.registry import (
    OWN_DISTRIBUTION,
    Component,
    components,
    get,
    load,
    name_of,
    settings,
)
from regloss.report.convergence import has_curve, write_chart, write_table
from regloss.report.montage import montage
from regloss.report.overlays import outlined
from regloss.segmenter import EnergyRecord, Segmentation, Segmenter

_LEAST_SPREAD = 1 / 16  # of an image's values, below which all its colours are alike
_FILES = ("labels.png", "labels.nii.gz", "overlay.png", "masks", "convergence.csv", "convergence.png")


@dataclass(frozen=True)
class SegmentedFile:
    """Result of `segment_file`.

    Attributes:
        labels: (*S) uint8.
        segmentation: what the segmenter found, with its certificate.
        files: what was written.
        classes: names by class, "" for those without; of the classes that are scribbled, or of all phases.
        notes: sentences on the files, and warnings.
    """

    labels: LabelMap
    segmentation: Segmentation
    files: tuple[Path, ...]
    classes: Mapping[int, str]
    notes: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """The result in words."""
        counts = np.bincount(self.labels.ravel(), minlength=max(self.classes) + 1)
        return [
            self.segmentation.summary(),
            "pixels per class: "
            + ", ".join(f"{k}{f' ({name})' * bool(name)}: {counts[k]}" for k, name in self.classes.items()),
            *self.segmentation.notes,
            *self.notes,
            *(f"wrote {path}" for path in self.files),
        ]


def segment_file(
    path: Path,
    output: Path,
    *,
    scribbles: Path | None = None,
    phases: int | None = None,
    start: Path | str | None = None,
    method: str | None = None,
    region_force: str | None = None,
    regularizers: Sequence[str] | None = None,
    solver: str | None = None,
    unary: str = "color",
    entropy: float | None = None,
    max_rounds: int | None = None,
    coupling: str | None = None,
    post_processing: str | None = None,
    snapshots: Sequence[int] | None = None,
    seed: int = 0,
    window: Window | None = None,
    channels: int | None = None,
    unlabelled: int | None = None,
    values: Mapping[Any, Any] | None = None,
    max_scribbled: float = MAX_SCRIBBLED,
    overwrite: bool = False,
    callback: Callable[[str], object] | None = None,
) -> SegmentedFile:
    """Segment one image from scribbles, or into phases.

    Names and colours of classes are those of the file classes.toml beside the scribbles, or in the folder above, where
    there is one.

    Args:
        path: the image, or a volume (NIfTI, NRRD, MetaImage; see `regloss.io.volumes`), whose spacing is heeded.
        output: folder for labels.png and overlay.png (of a volume labels.nii.gz, and slices through its three axes);
            without scribbles also masks/, a mask for each phase; where an
            energy was followed also convergence.csv and convergence.png; and the pictures that the segmenter draws.
        scribbles: PNG of class indices, 255 = unlabelled, of the image's size; for a volume, one on the same grid.
        phases: how many, at least 2, where there are no scribbles; None = 2, or as many as ``start`` has.
        start: PNG of phase indices to start from, 255 = no opinion; or the name of a start that the segmenter knows.
        method: ``NAME`` or ``NAME:setting=value,...`` of a segmenter; None = the one with the given region force, else
            the one that is the default with scribbles, or without.
        region_force: ``NAME`` or ``NAME:setting=value,...``, a setting of the segmenter like all that follow.
        regularizers: likewise; they add up.
        solver: likewise.
        unary: "color", or "uniform" for seeds alone, with no region force.
        entropy: weight of the entropy, for solvers over probabilities.
        max_rounds: how often labels are solved for.
        coupling: of the boundaries' length, for segmenters that fit networks.
        post_processing: what is done with the probabilities at the end.
        snapshots: steps after which labels are drawn, for segmenters that fit networks.
        seed: of all that is random.
        window: which values of the image become 0 and 1; None = 0 and the largest that its type can hold, or of 16 bits
            what suits the values found (see `regloss.io.windows`), or of volumes the percentiles .5 and 99.5 of each
            channel.
        channels: how many the fourth axis of a volume's file holds, which else would be time.
        unlabelled: the value of the scribbles, or of the start, where nothing was drawn, beside 255.
        values: what the values of the scribbles, or of the start, mean: value -> class, or 255.
        max_scribbled: largest fraction of the pixels that scribbles may label.
        overwrite: replace the files of an earlier call.
        callback: called with a sentence now and then.

    Raises:
        UsageError: files missing or of different sizes, gaps between the classes that they hold, scribbles of more than
            ``max_scribbled`` of the pixels, neither scribbles nor phases, one class seeded only, fewer
            colours than phases, a setting that the segmenter does not have, or a solver that cannot serve the
            regularizers.
    """
    read = (path, scribbles, _start_file(start))
    for file in read:
        if file is not None and not file.exists():
            raise UsageError(f"There is no file {file}.")
    if unary not in ("color", "uniform"):
        raise UsageError(f'unary must be "color" or "uniform"; got {unary!r}.')
    free = phases is not None or start is not None or method is not None or region_force is not None
    if scribbles is None and not free:
        raise UsageError(
            "Give scribbles: a PNG of the image's size with class indices, 255 = unlabelled (--scribbles). Or let "
            "colours decide: say how many phases there are (--phases 2)."
        )
    if scribbles is not None and (phases is not None or start is not None):
        raise UsageError("With scribbles these are the start, and say how many classes there are. Leave --phases out.")
    if unary == "uniform" and (scribbles is None or region_force is not None or method is not None):
        raise UsageError('unary "uniform" means seeds alone: give scribbles, and neither method nor region force.')
    given = {
        "region_force": None if region_force is None else parse_component("region-force", region_force),
        "regularizer": [parse_component("regularizer", text) for text in regularizers or ()] or None,
        "solver": None if solver is None else parse_component("solver", solver),
        "entropy": entropy,
        "max_rounds": max_rounds,
        "coupling": coupling,
        "post_processing": post_processing,
        "snapshots": None if snapshots is None else tuple(snapshots),
    }
    chosen = {name: value for name, value in given.items() if value is not None}
    if unary == "uniform":
        chosen["region_force"] = None
    segmenter = _segmenter(method, chosen, "phases" if scribbles is None else "scribbles")
    files = (*_FILES, *(f"{name}.png" for name in segmenter.figures))
    check_new_folder(output, files, overwrite=overwrite, read=read)
    stored, geometry = _read(path, channels)
    notes: list[str] = []
    if geometry is not None:
        windows = [Intensities(window).of(channel, path) for channel in stored]
        if window is None:
            found_ranges = [f"{each.low:g} to {each.high:g}" for each in windows]
            notes.append(
                f"{path.name}: values from {listed(found_ranges)}, the percentiles .5 and 99.5, become 0 to 1; "
                "--window LOW HIGH chooses others."
            )
        image = np.stack([windowed(channel, each, path) for channel, each in zip(stored, windows, strict=True)])
    else:
        if window is None:
            window, found_range = find_window([stored])
            notes += [f"{path.name}: {found_range}; --window LOW HIGH chooses another range."] if found_range else []
        image = as_image(stored, path, window=window)
        notes += _range_notes(stored, image, window, path)
    if len(image) not in (1, 3):
        notes.append(f"{path.name} has {len(image)} channels, of which pictures show the first, in grey.")
    if geometry is not None:
        notes.append("spacing " + " x ".join(f"{step:g}" for step in geometry.spacing) + " mm, slices first")
        for other in (scribbles, None if start is None else Path(start)):
            if other is not None and is_volume(other):
                geometry.check_same(read_geometry(other), path, other)
    meaning = _Meaning.of(scribbles or start, unlabelled, values)
    notes += meaning.notes
    seeds = None if scribbles is None else _read_labels(scribbles, path, image, meaning, "scribbles")
    if seeds is not None and scribbles is not None:
        _check_scribbled(seeds, scribbles, max_scribbled)
        notes += [] if geometry is not None else _turned_notes(path, scribbles)
    found = segmenter(
        torch.from_numpy(image).unsqueeze(0),
        scribbles=seeds,
        phases=phases,
        start=_start(start, path, image, meaning),
        seed=seed,
        callback=callback,
        spacing=None if geometry is None else geometry.spacing,
    )
    labels = found.labels[0].cpu().numpy().astype(np.uint8)
    count = found.probabilities.shape[1]
    used = np.unique(labels).tolist()
    if len(used) < 2:
        notes.append(
            f"Warning: all pixels are of class {used[0]}. Is the contrast low, or the regularizer's weight too large "
            "for it? A smaller weight, a window of values (--window LOW HIGH) or another method may help."
        )
    shown = range(count) if seeds is None else sorted({*torch.unique(seeds[seeds != IGNORE]).tolist(), *used})
    colors = meaning.colors or class_colors(count)
    with writing(output):
        written = _write(output, files, image, labels, found, colors, geometry, masks=scribbles is None)
    names = {label: meaning.names[label] if label < len(meaning.names) else "" for label in shown}
    return SegmentedFile(labels, found, written, names, tuple(notes))


@dataclass(frozen=True)
class _Meaning:
    """What the values of a file of scribbles, or of a start, mean.

    Attributes:
        names: of the classes, where a file classes.toml names them.
        colors: likewise.
        values: value -> class, or 255; None = the values are the classes.
        unlabelled: the value where nothing was drawn, beside 255.
        notes: what to say of it.
    """

    names: tuple[str, ...] = ()
    colors: tuple[Color, ...] = ()
    values: ValueMap | None = None
    unlabelled: int | None = None
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, path: Path | str | None, unlabelled: int | None, values: Mapping[Any, Any] | None) -> _Meaning:
        """Of the file ``path``, or of a name of a start, which has no values."""
        if path is None or not Path(path).is_file():
            if values is not None or unlabelled is not None:
                raise UsageError("values and unlabelled are about a file of scribbles, or of a start. Give one.")
            return cls()
        if unlabelled is not None:
            stored_value(unlabelled, "unlabelled")
        folder = Path(path).resolve().parent
        file = next(
            (place / "classes.toml" for place in (folder, folder.parent) if (place / "classes.toml").is_file()), None
        )
        names, colors = ((), ()) if file is None else read_classes(file)
        known = None if values is None else value_map(values, names or list(map(str, range(IGNORE))), "--values")
        return cls(names, colors, known, unlabelled, () if file is None else (f"Classes are those of {file}.",))


def parse_values(text: str) -> dict[str, str]:
    """A value map as a command line gives it.

    >>> parse_values("0=background,255=1")
    {'0': 'background', '255': '1'}
    """
    pairs = [part.partition("=") for part in text.split(",") if part.strip()]
    if not pairs or not all(equals for _, equals, _ in pairs):
        raise UsageError(f"Values are given as VALUE=CLASS,VALUE=CLASS, for example 0=0,255=1; got {text!r}.")
    found = {value.strip(): meaning.strip() for value, _, meaning in pairs}
    if len(found) < len(pairs):
        raise UsageError(f"Each value has one class; got {text!r}.")
    return found


def parse_steps(text: str) -> list[int]:
    """Numbers of steps as a command line gives them.

    >>> parse_steps("0, 10,20")
    [0, 10, 20]
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise UsageError(f"Steps are whole numbers with commas between, for example 0,60,80,100; got {text!r}.")
    return [int(part) for part in parts]


def _read(path: Path, channels: int | None) -> tuple[StoredPixels, Geometry | None]:
    """The values of a picture or a volume, (C, *S), and where those of a volume lie."""
    if not is_volume(path):
        if channels is not None:
            raise UsageError(f"channels are about a volume's fourth axis, and {path} is a picture; leave them out.")
        return read_stored(path), None
    volume = read_volume(path, channels=channels)
    return volume.values, volume.geometry


def _range_notes(stored: StoredPixels, image: FloatImage, window: Window | None, path: Path) -> list[str]:
    """Sentences on an image that is cut off by its window, or that hardly uses it."""
    cut = clipped_note(stored, window, path)
    if cut:
        return [cut]
    low, high = float(image.min()), float(image.max())
    if low < high and high - low < _LEAST_SPREAD:
        return [
            f"{path.name}: values from {stored.min():g} to {stored.max():g} become {low:.3f} to {high:.3f}, so that "
            f"all colours are alike to priors and region forces; --window {stored.min():g} {stored.max():g} stretches "
            "them."
        ]
    return []


def _turned_notes(image: Path, scribbles: Path) -> list[str]:
    """A sentence on an image that was turned upright, where nothing tells whether its scribbles are."""
    note = turned_note([SampleFiles(image.stem, image, None, scribbles, image.stem)], {image: read_header(image)})
    return [note] if note else []


def _check_scribbled(seeds: Tensor, path: Path, largest: float) -> None:
    """Refuse scribbles that label most of the image."""
    drawn = seeds[seeds != IGNORE]
    fraction = drawn.numel() / seeds.numel()
    if fraction > largest:
        often, times = torch.unique(drawn, return_counts=True)
        most = int(often[times.argmax()])
        raise UsageError(
            f"{path} labels {100 * fraction:.0f} % of the pixels, most of them as {most}, and labels are kept. If "
            f"{most} means that nothing was drawn, give --unlabelled {most}; if it is meant, give --max-scribbled 1."
        )


def _segmenter(method: str | None, chosen: Mapping[str, Any], task: Literal["scribbles", "phases"]) -> Segmenter:
    """The segmenter to use, with the ``chosen`` settings."""
    if method is None:
        method = _default(chosen.get("region_force"), task)
    name, _ = split_name("segmenter", method)
    known = settings(get("segmenter", name))
    unknown = [setting.replace("_", " ") for setting in chosen if setting not in known]
    if unknown:
        others = [component.name for component, cls in _loaded() if chosen.keys() <= settings(cls).keys()]
        raise UsageError(
            f"{name} knows no {' or '.join(unknown)}; methods that do: {', '.join(others) or 'none'}. Its own settings "
            f"are written behind its name, {name}:setting=value,...: "
            f"{', '.join(setting.replace('_', '-') for setting in known)}."
        )
    segmenter: Segmenter = parse_component("segmenter", method, **chosen)
    return segmenter


def _default(region_force: RegionForce | None, task: Literal["scribbles", "phases"]) -> str:
    """The segmenter where none is named: of regloss's own the one with the region force, else the one for the task."""
    built_in = {component.name: cls for component, cls in _loaded() if component.distribution == OWN_DISTRIBUTION}
    if region_force is not None:
        task = "scribbles"  # where no segmenter has it, the one whose regularizer suits costs in nats
        for name, cls in built_in.items():
            parameter = settings(cls).get("region_force")
            if parameter is not None and parameter.default == name_of(region_force):
                return name
    suited = [name for name, cls in built_in.items() if task in cls.default_for]
    if not suited:  # entry points of another version than the code
        raise BrokenPlugin(f"No segmenter for {task} can be loaded. Install regloss again, or name a method.")
    return suited[0]


def default_segmenter(task: Literal["scribbles", "phases"]) -> Segmenter:
    """The segmenter that is used for ``task`` where none is named, with its own settings."""
    return _segmenter(None, {}, task)


def _loaded() -> list[tuple[Component, type[Segmenter]]]:
    """The segmenters that can be imported."""
    found = []
    for component in components("segmenter"):
        try:
            found.append((component, load(component)))
        except ReglossError:
            continue  # a broken plugin is no suggestion; using it by name still reports why
    return found


def _read_labels(path: Path, of: Path, image: FloatImage, meaning: _Meaning, what: str) -> Tensor:
    """(1, *S) int64 class indices of a PNG."""
    labels = read_values(path)
    if meaning.values is not None:
        unknown = [v for v in values_of(labels) if v not in (*meaning.values, meaning.unlabelled, IGNORE)]
        if unknown:
            raise UsageError(f"{path} holds {listed(map(written_value, unknown))}, of which --values says nothing.")
        labels = mapped(labels, {**meaning.values, **_nothing(meaning)})
    elif meaning.names:
        labels = read_scribble_map(path, meaning.names, image.shape[1:], unlabelled=meaning.unlabelled)
    else:
        before = values_of(labels)
        _check_gaps(path, [value for value in before if value != meaning.unlabelled], before)
        labels = mapped(labels, _nothing(meaning))
    if labels.shape != image.shape[1:]:
        raise UsageError(
            f"{path} has the size {labels.shape}, {of} {image.shape[1:]} "
            f"({'slices, ' if labels.ndim > 2 else ''}height, width). They must agree."
            + _turned_words(of, labels.shape)
        )
    present = [value for value in values_of(labels) if value != IGNORE]
    if len(present) == 1 and meaning.values is None:
        raise UsageError(
            f"In the {what} only class {present[0]} is labelled; give labels of at least two classes (background "
            f"counts as one). {IGNORE} in {path} means no label; where it is a class, say so: --values {present[0]}="
            f"{present[0]},{IGNORE}={1 - min(present[0], 1)}."
        )
    return torch.from_numpy(labels.astype(np.int64)).unsqueeze(0)


def _nothing(meaning: _Meaning) -> dict[int, int]:
    """The value where nothing was drawn, as a map."""
    return {} if meaning.unlabelled is None else {meaning.unlabelled: IGNORE}


def _check_gaps(path: Path, labels: list[int], before: list[int]) -> None:
    """Refuse labels between which classes are missing: their values are no indices, or more classes were meant."""
    present = [value for value in labels if value != IGNORE]
    if not present or (present == list(range(present[0], present[-1] + 1)) and present[0] <= 1):
        return
    missing = sorted(set(range(min(present[-1], IGNORE))) - set(present))
    to_indices = ",".join(f"{written_value(value)}={index}" for index, value in enumerate(present[:30]))
    as_they_are = ",".join(f"{value}={value}" for value in present[:30])
    keeping = f", --values {as_they_are} keeps them" if present[-1] < IGNORE else ""
    raise UsageError(
        f"{path} holds the labels {listed(map(written_value, before), 30)}, and no pixel of the classes between "
        f"({listed(missing, 3)}). Say what the values mean: --values {to_indices} counts them{keeping}; or name all "
        f"classes in {path.parent / 'classes.toml'}."
    )


def _turned_words(image: Path, size: tuple[int, ...]) -> str:
    if is_volume(image):
        return ""
    header = read_header(image)
    if header.orientation > 1 and header.stored_size == size:
        return (
            f" The image has the orientation tag {header.orientation} and is turned upright, while the other lies as "
            "the sensor has it: save the image upright, without the tag."
        )
    return ""


def _start_file(start: Path | str | None) -> Path | None:
    """The file that a start is meant to be; None for a name."""
    path = None if start is None else Path(start)
    return path if path is not None and (path.is_file() or path.suffix) else None


def _start(start: Path | str | None, of: Path, image: FloatImage, meaning: _Meaning) -> Tensor | str | None:
    """What to start from: the labels of a file, or a name."""
    path = _start_file(start)
    if path is None:
        return None if start is None else str(start)
    return _read_labels(path, of, image, meaning, "start")


def _write(
    output: Path,
    names: Sequence[str],
    image: FloatImage,
    labels: LabelMap,
    found: Segmentation,
    colors: Colors,
    geometry: Geometry | None,
    *,
    masks: bool,
) -> tuple[Path, ...]:
    make_new_folder(output, names)
    classes = found.probabilities.shape[1]
    ending = ".png" if geometry is None else ".nii.gz"
    files = [output / f"labels{ending}", output / "overlay.png"]
    if geometry is None:
        save_label_png(files[0], labels, colors)
        shown = outlined(image, labels, colors)
    else:
        write_label_volume(files[0], labels, geometry)
        shown = montage(image, labels, colors, geometry.spacing)
    Image.fromarray(shown).save(files[1])
    if masks:
        (output / "masks").mkdir()
        for phase in range(classes):
            files.append(output / "masks" / f"phase-{phase}{ending}")
            mask = np.where(labels == phase, np.uint8(255), np.uint8(0))
            if geometry is None:
                Image.fromarray(mask).save(files[-1])
            else:
                write_label_volume(files[-1], mask, geometry)
    figures = found.figures(torch.from_numpy(image).unsqueeze(0))
    for name, figure in figures.items():
        files.append(output / f"{name}.png")
        figure.savefig(files[-1], dpi=130, facecolor="white")
    if has_curve(found.history):
        files.append(output / "convergence.csv")
        write_table(found.history, files[-1])
        if "convergence" not in figures and isinstance(found.history[0], EnergyRecord):
            files.append(output / "convergence.png")
            write_chart(found.history, files[-1])
    return tuple(files)
