"""Annotations of other programs as a data set of the layout `folder`."""

from __future__ import annotations

import io
import os
import re
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from regloss.dataset import IGNORE
from regloss.errors import UsageError, listed
from regloss.io.classes import MAX_CLASSES, write_classes
from regloss.io.drawing import paint
from regloss.io.foreign import find_format
from regloss.io.foreign.source import Annotations, Drawn, Options, SourceImage
from regloss.io.images import IMAGE_SUFFIXES, read_header
from regloss.io.labels import save_label_png
from regloss.io.outputs import check_new_folder, make_new_folder, writing
from regloss.io.palettes import Color, class_colors
from regloss.io.types import Size, StoredPixels

BACKGROUND = "background"
_NOTHING = -1  # where nothing was drawn, while drawing
PARTS = ("scribbles", "labels")
_EXPECTED = ("images", *PARTS, "classes.toml")
_BACKGROUNDS = frozenset({"background", "bg", "backgrnd"})
_IGNORED = frozenset({"__ignore__", "ignore"})  # LabelMe's name for pixels without label
_SETTINGS = {"stroke_width": "--stroke-width", "unlabelled": "--unlabelled", "colors": "--colors", "to": "--as"}


@dataclass
class Imported:
    """What has become of a source.

    Attributes:
        program: that it is from.
        root: the new data set.
        images: their number.
        classes: names, in the order of the indices.
        files: how many images have scribbles, and labels.
        shapes: how many were drawn, by part and class.
        pixels: of each part and class, that are left after all was drawn.
        covered: pixels that a later shape of another class has covered.
        outside: shapes without a pixel in their image.
        empty: images on which nothing was drawn.
        skipped: what could not be used, and why, with how often.
        uncovered: pixels of labels without a shape, which are background.
        group: a regular expression that finds in ids of slices the volume that they are from.
    """

    program: str
    root: Path
    images: int = 0
    classes: tuple[str, ...] = ()
    files: Counter[str] = field(default_factory=Counter)
    shapes: Counter[tuple[str, str]] = field(default_factory=Counter)
    pixels: Counter[tuple[str, str]] = field(default_factory=Counter)
    covered: int = 0
    outside: int = 0
    empty: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    uncovered: int = 0
    group: str | None = None

    def lines(self) -> list[str]:
        """What there is to say of it."""
        names = ", ".join(f"{index} {name}" for index, name in enumerate(self.classes))
        said = [f"{self.program}: {self.images} images, {len(self.classes)} classes: {names}"]
        for part in PARTS:
            if self.files[part]:
                counts = [
                    f"{name} {self.shapes[part, name]} shapes, {self.pixels[part, name]} pixels"
                    for name in self.classes
                    if self.shapes[part, name]
                ]
                said.append(f"{part}: {self.files[part]} images: {'; '.join(counts)}")
        if self.uncovered:
            said.append(
                f"{self.uncovered} pixels of labels are covered by no shape: {BACKGROUND}. With --as scribbles they "
                "are unlabelled."
            )
        if self.covered:
            said.append(f"{self.covered} pixels belong to several shapes of different classes: the last one has them.")
        if self.outside:
            said.append(f"{self.outside} shapes have no pixel in their image.")
        if self.empty:
            said.append(f"{self.empty} images have nothing drawn on them, and get neither scribbles nor labels.")
        said += [f"Skipped: {count} x {reason}" for reason, count in sorted(self.skipped.items()) if count]
        return said

    def configuration(self) -> str:
        """The lines of a configuration that train on it."""
        group = f"\ngroup = '{self.group}'" if self.group else ""
        supervision = "" if self.files["scribbles"] else '\nsupervision = "labels"'
        return f'[data]\ndataset = "folder"\nroot = "{self.root.as_posix()}"{group}{supervision}'


def import_annotations(
    source: Path,
    output: Path,
    *,
    format: str | None = None,
    options: Options | None = None,
    to: str | None = None,
    overwrite: bool = False,
) -> Imported:
    """Write annotations of another program as a folder that `regloss train` reads.

    Strokes (lines, points, brushes, label layers) become scribbles/, with 255 where nothing was drawn; areas (polygons,
    boxes, masks) become labels/, with the background where nothing was drawn. What is drawn later covers what was drawn
    before. The folder is complete, or not there.

    Args:
        source: a file or folder.
        output: the new folder.
        format: name of the format; None = it is recognised.
        options: how the source is read.
        to: "scribbles" or "labels" puts all shapes there; None = as above.
        overwrite: replace what an earlier call left there.

    Returns:
        What was found.

    Raises:
        UsageError: the source cannot be read or says nothing, an option does not belong to its format, or the output
            exists.
    """
    given = options or Options()
    kind = find_format(source, format)
    defaults = Options()
    changed = [name for name in _SETTINGS if name != "to" and getattr(given, name) != getattr(defaults, name)]
    foreign = [_SETTINGS[name] for name in [*changed, *(["to"] if to else [])] if name not in kind.heeds]
    if foreign:
        raise UsageError(f"{kind.program} makes no use of {' and '.join(foreign)}; leave it out")
    if to is not None and to not in PARTS:
        raise UsageError(f"--as is {' or '.join(PARTS)}; got {to!r}")
    check_new_folder(output, _EXPECTED, overwrite=overwrite, read=(source, given.images))
    annotations = kind(source, given)
    if not annotations.ids():
        reasons = "; ".join(f"{count} x {reason}" for reason, count in annotations.skipped.items() if count)
        raise UsageError(f"{source} has no annotated image that can be used" + (f": {reasons}" if reasons else ""))
    whole = output.resolve()  # "." has no name
    made = whole.with_name(f".{whole.name}.{os.getpid()}")
    try:
        with writing(output):
            made.mkdir(parents=True)
            result = _Import(annotations, made, given, to).run()
        make_new_folder(output, _EXPECTED)
        for path in made.iterdir():
            path.replace(output / path.name)
    finally:
        shutil.rmtree(made, ignore_errors=True)
    result.root = output
    return result


class _Import:
    """One import, on its way."""

    def __init__(self, annotations: Annotations, root: Path, options: Options, to: str | None) -> None:
        self.annotations, self.root, self.to = annotations, root, to
        self.result = Imported(annotations.program, root)
        self.result.skipped, self.result.group = annotations.skipped, annotations.group
        self.classes, self.colors = self._named(options.classes)
        self.result.classes = self.classes

    def run(self) -> Imported:
        (self.root / "images").mkdir()
        for image_id in self.annotations.ids():
            size = self._write_image(image_id)
            self._draw(image_id, size)
        write_classes(self.root / "classes.toml", self.classes, self.colors)
        return self.result

    def _named(self, wanted: Sequence[str] | None) -> tuple[tuple[str, ...], tuple[Color, ...]]:
        """Names and colours of the classes; the background is the first."""
        used = self.annotations.used()
        dense = self.to == "labels" or (self.to is None and any(is_dense for _, is_dense in used))
        names = list(self.annotations.classes)
        names += sorted({label for label, _ in used} - set(names), key=_natural)
        if wanted is not None:
            absent = [name for name in wanted if name not in names and _plain(name) not in _BACKGROUNDS]
            if absent:
                raise UsageError(f"--classes names {listed(absent)}, which is not drawn; there are {listed(names, 30)}")
            names = list(wanted)
        names = [name for name in names if name.casefold() not in _IGNORED]
        backgrounds = [name for name in names if _plain(name) in _BACKGROUNDS]
        others = [name for name in names if name not in backgrounds]
        if backgrounds or len(others) < 2 or dense:
            others.insert(0, BACKGROUND)
        if len(others) < 2:
            raise UsageError(f"nothing is drawn but {listed(names)}; needed are two classes at least")
        if len(others) > MAX_CLASSES:
            raise UsageError(
                f"there are {len(others)} classes; at most {MAX_CLASSES} are possible: choose by --classes"
            )
        defaults = class_colors(len(others))
        colors = [self.annotations.colors.get(name, default) for name, default in zip(others, defaults, strict=True)]
        if len(set(colors)) < len(colors):  # some declared, and some not
            colors = list(defaults)
        return tuple(others), tuple(colors)

    def _part(self, one: Drawn) -> str:
        return self.to or ("labels" if one.is_dense else "scribbles")

    def _index(self, label: str) -> int | None:
        """The index of a class; 255 for no label; None = it is not among the classes."""
        if label.casefold() in _IGNORED:
            return IGNORE
        name = BACKGROUND if _plain(label) in _BACKGROUNDS else label
        return self.classes.index(name) if name in self.classes else None

    def _write_image(self, image_id: str) -> Size:
        path = _write_image(self.annotations.image(image_id), self.root / "images", image_id)
        header = read_header(path)
        stated = self.annotations.size(image_id)
        if stated is not None and stated != header.size:
            turned = " (the image's orientation tag turns it)" if stated == header.stored_size else ""
            raise UsageError(
                f"{self.annotations.file(image_id)}: {image_id} was drawn on an image of {stated[0]} x {stated[1]} "
                f"pixels (height x width), but the image has {header.size[0]} x {header.size[1]}{turned}; give the "
                "image that it was drawn on, by --images"
            )
        self.result.images += 1
        return header.size

    def _draw(self, image_id: str, size: Size) -> None:
        maps: dict[str, npt.NDArray[np.int16]] = {}
        for one in self.annotations.drawn(image_id):
            part, index = self._part(one), self._index(one.label)
            if index is None:
                self.result.skipped[f"shape of {one.label!r}, which --classes does not name"] += 1
                continue
            if part == "scribbles" and one.label == self.annotations.ground:
                continue
            if part not in maps:
                maps[part] = np.full(size, _NOTHING, dtype=np.int16)
            inside, covered = paint(maps[part], one.shape, index, _NOTHING)
            self.result.covered += covered
            self.result.outside += inside == 0
            if index != IGNORE:
                self.result.shapes[part, self.classes[index]] += 1
        for part, labels in maps.items():
            nothing = labels == _NOTHING
            if part == "labels":
                self.result.uncovered += int(nothing.sum())
            labels[nothing] = 0 if part == "labels" else IGNORE
            save_label_png(self.root / part / f"{image_id}.png", labels, self.colors)
            self.result.files[part] += 1
            for index, count in enumerate(np.bincount(labels.ravel(), minlength=256)[: len(self.classes)]):
                self.result.pixels[part, self.classes[index]] += int(count)
        self.result.empty += not maps


def _write_image(image: SourceImage, folder: Path, image_id: str) -> Path:
    """An image, as it is where it is a file that is read; its new path."""
    if isinstance(image, Path):
        path = folder / f"{image_id}{image.suffix.lower()}"
        if not path.name.endswith(IMAGE_SUFFIXES):
            raise UsageError(
                f"{image} is none of {', '.join(IMAGE_SUFFIXES)}; convert it to PNG, and name it by --images"
            )
        read_header(image)
        shutil.copyfile(image, path)
    elif isinstance(image, bytes):
        try:
            with Image.open(io.BytesIO(image)) as picture:
                path = folder / f"{image_id}.{(picture.format or 'png').lower()}"
        except OSError as error:
            raise UsageError(f"the image {image_id} within the annotations cannot be read: {error}") from error
        path.write_bytes(image)
    else:
        path = _save_array(image, folder, image_id)
    return path


def _save_array(pixels: StoredPixels, folder: Path, image_id: str) -> Path:
    """(1, H, W) or (3, H, W) as PNG where it has 8 or 16 bits, as float TIFF else."""
    values = pixels[0] if len(pixels) == 1 else np.moveaxis(pixels, 0, -1)
    if values.dtype not in (np.uint8, np.uint16):
        values = values.astype(np.float32)
    path = folder / f"{image_id}.{'tif' if values.dtype == np.float32 else 'png'}"
    Image.fromarray(values).save(path)
    return path


def _plain(name: str) -> str:
    return name.casefold().strip("_ ")


def _natural(name: str) -> list[tuple[int, str]]:
    """A key by which "label 10" comes after "label 9"."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]
