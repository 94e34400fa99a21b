"""Label maps: class indices in files, read and written.

`READERS` is the table of formats, as `regloss.io.images.READERS` is for images.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from regloss.dataset import IGNORE
from regloss.errors import UsageError, listed
from regloss.io import raster
from regloss.io.outputs import replace_file
from regloss.io.palettes import IGNORE_COLOR, Colors
from regloss.io.types import LabelMap, Size


@dataclass(frozen=True)
class LabelReader:
    """How one family of files with class indices is read.

    Attributes:
        suffixes: endings of its files, in lower case.
        size: file -> (H, W), without decoding it.
        indices: file -> (H, W) uint8, whatever values it holds.
    """

    suffixes: tuple[str, ...]
    size: Callable[[Path], Size]
    indices: Callable[[Path], LabelMap]


READERS = (LabelReader((".png",), raster.read_label_size, raster.read_indices),)
"""Readers by file type. Files of other endings go to the first, which refuses what is no PNG."""

LABEL_SUFFIXES = tuple(suffix for reader in READERS for suffix in reader.suffixes)
"""Endings of label maps, in lower case."""


def _reader(path: Path) -> LabelReader:
    name = path.name.lower()
    return next((reader for reader in READERS if name.endswith(reader.suffixes)), READERS[0])


def read_label_size(path: Path) -> Size:
    """(H, W) of a label map, without decoding it.

    Raises:
        UsageError: the file is no label map; a PNG must have one channel of at most 8 bits.
    """
    return _reader(path).size(path)


def read_label_map(path: Path, classes: Sequence[str]) -> LabelMap:
    """Class indices from a file: a grey or palette PNG (of a palette, the indices; its colours play no part).

    Args:
        path: a PNG file of 1, 2, 4 or 8 bits a pixel.
        classes: the K class names.

    Returns:
        (H, W) uint8, each value below K or 255.

    Raises:
        UsageError: not such a file, or a value that is neither a class nor 255.
    """
    labels = _reader(path).indices(path)
    values = np.flatnonzero(np.bincount(labels.ravel(), minlength=256))
    outside = [int(value) for value in values if value >= len(classes) and value != IGNORE]
    if outside:
        named = ", ".join(f"{index} = {name}" for index, name in enumerate(classes[:30]))
        raise UsageError(
            f"{path} holds the label value{'s' if len(outside) > 1 else ''} {listed(outside)}, but there are "
            f"{len(classes)} classes: {named}{', ...' if len(classes) > 30 else ''}; "
            f"{IGNORE} marks pixels without label"
        )
    return labels


def read_scribble_map(path: Path, classes: Sequence[str], size: Size) -> LabelMap:
    """`read_label_map` for scribbles; ``size`` is checked where samples are loaded, as that of every label map."""
    return read_label_map(path, classes)


def label_values(paths: Iterable[Path]) -> list[int]:
    """All values in some label maps, 255 left out, ascending."""
    present = np.zeros(256, dtype=bool)
    for path in paths:
        present |= np.bincount(_reader(path).indices(path).ravel(), minlength=256) > 0
    present[IGNORE] = False
    return [int(value) for value in np.flatnonzero(present)]


def save_label_png(path: Path, labels: npt.NDArray[Any], colors: Colors) -> None:
    """Write a label map as a palette PNG: read as numbers it is the class indices, looked at it is their colours.

    The file appears complete or not at all; missing folders are made.

    Args:
        path: ends in .png; an existing file is replaced.
        labels: (H, W) integer class indices, or 255.
        colors: one RGB triple of 0..255 for each class.

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
    replace_file(path, buffer.getvalue())


def class_indices(labels: npt.NDArray[Any], colors: Colors) -> LabelMap:
    """Labels as uint8, once it is checked that each has a colour or is 255."""
    if labels.dtype.kind not in "iu":
        raise UsageError(f"A label map must hold integers; got {labels.dtype}. Of probabilities take the argmax.")
    wrong = (labels != IGNORE) & ((labels < 0) | (labels >= len(colors)))
    if wrong.any():
        values = np.unique(labels[wrong]).tolist()[:10]
        raise UsageError(f"Labels must be 0 to {len(colors) - 1} (one colour each), or 255; found also {values}.")
    return np.ascontiguousarray(labels, dtype=np.uint8)
