"""Label maps: class indices in files, read and written.

`READERS` is the table of formats, as `regloss.io.images.READERS` is for images.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from regloss.dataset import IGNORE
from regloss.errors import UsageError, listed
from regloss.io import raster, stacks
from regloss.io.outputs import replace_file
from regloss.io.palettes import IGNORE_COLOR, Colors, color_value, parsed_color, written_value
from regloss.io.types import LabelMap, Size, StoredLabels
from regloss.io.volumes import is_volume, read_label_volume


@dataclass(frozen=True)
class LabelReader:
    """How one family of files with class indices is read.

    Attributes:
        suffixes: endings of its files, in lower case.
        size: file -> (H, W), without decoding it.
        indices: file -> (H, W), whatever values it holds.
    """

    suffixes: tuple[str, ...]
    size: Callable[[Path], Size]
    indices: Callable[[Path], StoredLabels]


READERS = (
    LabelReader((".png",), raster.read_label_size, raster.read_indices),
    LabelReader((*stacks.TIFF, *stacks.NPY), stacks.read_label_size, stacks.read_labels),
)
"""Readers by file type. Files of other endings go to the first, which refuses what is no PNG."""

LABEL_SUFFIXES = tuple(suffix for reader in READERS for suffix in reader.suffixes)
"""Endings of label maps, in lower case."""


LARGEST_VALUE = 65535
"""What values of label maps go up to, before they are told what they mean."""

ValueMap: TypeAlias = Mapping[int, int]
"""Value of a file -> class index, or 255 for no label; colours are values as of `regloss.io.palettes.color_value`."""


def _reader(path: Path) -> LabelReader:
    name = path.name.lower()
    return next((reader for reader in READERS if name.endswith(reader.suffixes)), READERS[0])


def read_label_size(path: Path) -> Size:
    """(H, W) of a label map, without decoding it.

    Raises:
        UsageError: the file is no label map; a PNG must have one channel of at most 8 bits.
    """
    return _reader(path).size(path)


def label_orientation(path: Path) -> int:
    """The orientation tag of a label map, 1..8; 1 where it has none. It is honoured in reading."""
    return raster.label_orientation(path) if path.name.lower().endswith(".png") else 1


def read_label_map(
    path: Path, classes: Sequence[str], values: ValueMap | None = None, *, setting: str = "label-values"
) -> LabelMap:
    """Class indices from a file: PNG (of a palette, the indices; its colours play no part), TIFF or NPY.

    Args:
        path: whole numbers, one a pixel; or a PNG of colours, which ``values`` then say the meaning of.
        classes: the K class names.
        values: what the file's values mean, where they are no class indices; see `value_map`. 255 stands for itself,
            unless it is among them.
        setting: what ``values`` is called where the user gives it, for the message.

    Returns:
        (H, W) uint8, each value below K or 255.

    Raises:
        UsageError: not such a file, or a value that is neither a class nor 255, or not among ``values``.
    """
    return class_labels(read_values(path), path, classes, values, setting=setting)


def class_labels(
    labels: StoredLabels, path: Path, classes: Sequence[str], values: ValueMap | None = None, *, setting: str
) -> LabelMap:
    """Class indices of what a file holds; see `read_label_map`.

    Raises:
        UsageError: a value that is neither a class nor 255, or not among ``values``.
    """
    present = values_of(labels)
    if values is None:
        outside = [value for value in present if value >= len(classes) and value != IGNORE]
        way_out = f"; where these values mean classes, say so: {setting} = {written_map(present, classes)}"
    else:
        outside = [value for value in present if value not in values and value != IGNORE]
        way_out = f"; {setting} = {written_map(values, classes, values)} says nothing of it"
    if outside:
        named = ", ".join(f"{index} = {name}" for index, name in enumerate(classes[:30]))
        held = f"value{'s' if len(outside) > 1 else ''} {listed(map(written_value, outside))}"
        raise UsageError(
            f"{path} holds the label {held}, but there are "
            f"{len(classes)} classes: {named}{', ...' if len(classes) > 30 else ''}; "
            f"{IGNORE} marks pixels without label{way_out}"
        )
    return mapped(labels, values or {})


def read_values(path: Path) -> StoredLabels:
    """(H, W), whatever values a label map holds; of a volume (see `regloss.io.volumes`) (D, H, W).

    Raises:
        UsageError: not such a file as `read_label_map` reads.
    """
    if is_volume(path):
        return read_label_volume(path)[0]
    return _reader(path).indices(path)


def values_of(labels: StoredLabels) -> list[int]:
    """The different values, ascending."""
    if labels.dtype == np.uint8:
        return [int(value) for value in np.flatnonzero(np.bincount(labels.ravel(), minlength=256))]
    return [int(value) for value in np.unique(labels)]


def mapped(labels: StoredLabels, values: ValueMap) -> LabelMap:
    """``labels`` with each value replaced by what ``values`` says; others, which are 0..255, stay.

    Raises:
        UsageError: a value above 255 that ``values`` says nothing of.

    >>> mapped(np.array([[0, 500, 7]], dtype=np.uint16), {0: 0, 500: 1, 7: 255})
    array([[  0,   1, 255]], dtype=uint8)
    """
    if labels.dtype == np.uint8:
        table = np.arange(256, dtype=np.uint8)
        for value, index in values.items():
            if value < 256:
                table[value] = index
        return table[labels]
    present, places = np.unique(labels, return_inverse=True)
    unknown = [value for value in present.tolist() if value not in values and not 0 <= value <= 255]
    if unknown:
        raise UsageError(f"Nothing says what the label values {listed(map(written_value, unknown))} mean.")
    meanings = np.array([values.get(value, value) for value in present.tolist()], dtype=np.uint8)
    return meanings[places].reshape(labels.shape)


def stored_value(given: Any, setting: str) -> int:
    """A value of label maps: a whole number of 0..65535, or a colour "#rrggbb"; both also as text.

    Raises:
        UsageError: it is something else.
    """
    color = parsed_color(given) if isinstance(given, str) else None
    if color is not None:
        return int(color_value(color))
    number = int(given) if isinstance(given, str) and given.isdecimal() else given
    if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number <= LARGEST_VALUE:
        raise UsageError(
            f'{setting}: the values of label maps are whole numbers of 0..{LARGEST_VALUE}, or colours "#rrggbb"; got '
            f"{given!r}"
        )
    return number


def value_map(given: Mapping[Any, Any], classes: Sequence[str], setting: str) -> dict[int, int]:
    """What values of label maps mean: value -> class index, or 255 for no label.

    Args:
        given: value, or colour "#rrggbb" -> name of a class, index of a class, or 255 (all also as text).
        classes: the K class names.
        setting: what it is called, for messages.

    Raises:
        UsageError: a value outside 0..65535, or a meaning that is no class.

    >>> value_map({"0": "background", "255": 1, "128": 255}, ["background", "object"], "label-values")
    {0: 0, 255: 1, 128: 255}
    """
    found: dict[int, int] = {}
    for value, meaning in given.items():
        number = stored_value(value, setting)
        if meaning in classes:
            found[number] = list(classes).index(meaning)
            continue
        index = int(meaning) if isinstance(meaning, str) and meaning.isdecimal() else meaning
        if isinstance(index, bool) or not isinstance(index, int) or not (0 <= index < len(classes) or index == IGNORE):
            raise UsageError(
                f"{setting}: {value} = {meaning!r} is neither the name of a class ({listed(map(repr, classes))}), nor "
                f"an index below {len(classes)}, nor {IGNORE} for pixels without label"
            )
        found[number] = index
    if not found:
        raise UsageError(f'{setting} is empty; it says what values mean, as in {{0 = "background", 255 = "object"}}')
    return found


def written_map(present: Iterable[int], classes: Sequence[str], values: ValueMap | None = None) -> str:
    """A value map as a configuration has it, for messages: as ``values`` says, or as far as it can be guessed.

    >>> written_map([0, 255], ["background", "object"])
    '{0 = "background", 255 = "object"}'
    >>> written_map([0, 7, 9, 255], ["background", "object"])
    '{0 = "background", 7 = "...", 9 = "...", 255 = 255}'
    """
    found = sorted(present)
    if values is None:
        labelled = found if len(found) == len(classes) else [value for value in found if value != IGNORE]
        in_order = len(labelled) == len(classes)
        values = {value: place for place, value in enumerate(labelled) if in_order or value < len(classes)}
        values = values if in_order else {value: value for value in values}
    entries = []
    for value in found[:20]:
        index = values.get(value, IGNORE if value == IGNORE else None)
        meaning = '"..."' if index is None else str(IGNORE) if index == IGNORE else f'"{classes[index]}"'
        written = written_value(value)
        entries.append(f"{written} = {meaning}" if written.isdecimal() else f'"{written}" = {meaning}')
    return "{" + ", ".join(entries + ["..."] * (len(found) > 20)) + "}"


def read_scribble_map(
    path: Path, classes: Sequence[str], size: Size, values: ValueMap | None = None, unlabelled: int | None = None
) -> LabelMap:
    """`read_label_map` for scribbles; ``size`` is checked where samples are loaded, as that of every label map.

    Args:
        path: see `read_label_map`.
        classes: see `read_label_map`.
        size: (H, W) of the image.
        values: see `read_label_map`.
        unlabelled: the value of pixels without label, which become 255; 255 itself goes on meaning that, unless
            ``values`` has another meaning for it.
    """
    return read_label_map(path, classes, scribble_meanings(classes, values, unlabelled), setting="scribble-values")


def scribble_meanings(classes: Sequence[str], values: ValueMap | None, unlabelled: int | None) -> ValueMap | None:
    """What values of scribbles mean, the one of pixels without label among them; see `read_scribble_map`."""
    if unlabelled is None:
        return values
    meanings = values if values is not None else {index: index for index in range(len(classes))}
    return {**meanings, unlabelled: IGNORE}


def label_values(paths: Iterable[Path]) -> list[int]:
    """All values in some label maps, 255 left out, ascending."""
    present: set[int] = set()
    for path in paths:
        present.update(values_of(read_values(path)))
    return sorted(present - {IGNORE})


def save_label_png(path: Path, labels: npt.NDArray[Any], colors: Colors, *, durable: bool = False) -> None:
    """Write a label map as a palette PNG: read as numbers it is the class indices, looked at it is their colours.

    The file appears complete or not at all; missing folders are made.

    Args:
        path: ends in .png; an existing file is replaced.
        labels: (H, W) integer class indices, or 255.
        colors: one RGB triple of 0..255 for each class.
        durable: wait until the disk has it; see `regloss.io.outputs.replace_file`.

    Raises:
        UsageError: the path does not end in .png, the labels are not (H, W), or a value is neither a class nor 255.
    """
    if path.suffix.lower() != ".png":
        raise UsageError(f"A label map is written as PNG, so its name must end in .png; got {path.name!r}.")
    if labels.ndim != 2 or labels.size == 0:
        raise UsageError(f"A label PNG holds one map (H, W); got {labels.shape}. Write a volume slice by slice.")
    indices = class_indices(labels, colors)
    palette = np.zeros((256, 3), dtype=np.uint8)
    palette[: len(colors)] = colors
    palette[IGNORE] = IGNORE_COLOR
    picture = Image.frombytes("P", (indices.shape[1], indices.shape[0]), indices.tobytes())
    picture.putpalette(palette.tobytes())
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, buffer.getvalue(), durable=durable)


def class_indices(labels: npt.NDArray[Any], colors: Colors) -> LabelMap:
    """Labels as uint8, once it is checked that each has a colour or is 255."""
    if labels.dtype.kind not in "iu":
        raise UsageError(f"A label map must hold integers; got {labels.dtype}. Of probabilities take the argmax.")
    wrong = (labels != IGNORE) & ((labels < 0) | (labels >= len(colors)))
    if wrong.any():
        values = np.unique(labels[wrong]).tolist()[:10]
        raise UsageError(f"Labels must be 0 to {len(colors) - 1} (one colour each), or 255; found also {values}.")
    return np.ascontiguousarray(labels, dtype=np.uint8)
