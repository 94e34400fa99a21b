"""Images of any readable file format, as float32 in [0, 1].

`READERS` is the table of formats: one entry a family of files, chosen by the end of the file's name. A new format is a
module beside `regloss.io.raster`, with the two functions that `ImageReader` asks for, and one entry here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from regloss.errors import UsageError, listed
from regloss.io import dicom, raster, stacks
from regloss.io.types import FloatImage, Header, StoredPixels
from regloss.io.windows import Window, windowed

_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R BT.601


@dataclass(frozen=True)
class ImageReader:
    """How one family of files is read.

    Attributes:
        suffixes: endings of its files, in lower case.
        header: file -> size and channels, without decoding it.
        pixels: file -> (C, *S) as stored, bool, uint8, uint16 or float32, with C as the header says.
    """

    suffixes: tuple[str, ...]
    header: Callable[[Path], Header]
    pixels: Callable[[Path], StoredPixels]


READERS = (
    ImageReader((".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp"), raster.read_header, raster.read_pixels),
    ImageReader((*stacks.NPY, *stacks.HDF5), stacks.image_header, stacks.read_image),
    ImageReader((dicom.SUFFIX,), dicom.read_header, dicom.read_pixels),
)
"""Readers by file type. Files of other endings go to the first, which looks at their contents."""

IMAGE_SUFFIXES = tuple(suffix for reader in READERS for suffix in reader.suffixes)
"""Endings of image files, in lower case."""


def _reader(path: Path) -> ImageReader:
    name = path.name.lower()
    return next((reader for reader in READERS if name.endswith(reader.suffixes)), READERS[0])


def read_header(path: Path) -> Header:
    """Size and channels of an image, without decoding it.

    Raises:
        UsageError: the file cannot be read, or has pixels of an unknown kind.
    """
    return _reader(path).header(path)


def common_channels(headers: Mapping[Path, Header], where: Path) -> int:
    """The channels of some images in the folder ``where``, which must agree.

    Raises:
        UsageError: grey and colour images are mixed, or images with other numbers of channels.
    """
    by_count: dict[int, list[str]] = {}
    for path, header in headers.items():
        by_count.setdefault(header.channels, []).append(path.name)
    others = [count for count in by_count if count not in (1, 3)]
    if others and len(by_count) > 1:
        found = "; ".join(f"{count}: {listed(names, 3)}" for count, names in sorted(by_count.items()))
        raise UsageError(f"{where} mixes images with different numbers of channels ({found}); give each kind a folder")
    if others:
        return others[0]
    grey, color = by_count.get(1, []), by_count.get(3, [])
    if grey and color:
        raise UsageError(
            f"{where} mixes {len(grey)} grey images ({listed(grey, 3)}) and {len(color)} colour images "
            f"({listed(color, 3)}); grey = true turns all into grey, grey = false all into RGB"
        )
    return 1 if grey else 3


def read_stored(path: Path) -> StoredPixels:
    """One image as stored, (C, H, W) bool, uint8, uint16 or float32.

    Raises:
        UsageError: the file cannot be read, or its pixels are of another kind.
    """
    return _reader(path).pixels(path)


def read_image(path: Path, channels: int | None = None, window: Window | None = None) -> FloatImage:
    """One image with values in [0, 1].

    Args:
        path: a file of any of the types in `READERS` (see `regloss.io.raster.read_pixels`).
        channels: 1 turns colours into grey (luma of ITU-R BT.601), 3 repeats grey; None keeps what the file has.
        window: which values become 0 and 1; None = 0 and the largest that the type can hold. See
            `regloss.io.windows`.

    Returns:
        (C, H, W) float32.

    Raises:
        UsageError: the file cannot be read, its pixels are none that an image may have, or neither grey nor RGB and
            ``channels`` is another number.
    """
    return as_image(read_stored(path), path, channels, window)


def as_image(stored: StoredPixels, path: Path, channels: int | None = None, window: Window | None = None) -> FloatImage:
    """What `read_stored` has read from ``path``, as `read_image` gives it."""
    image = windowed(stored, window, path)
    if channels is not None and channels != image.shape[0] and not {channels, image.shape[0]} <= {1, 3}:
        raise UsageError(
            f"{path} has {image.shape[0]} channel{'s' if image.shape[0] > 1 else ''}, but {channels} "
            f"{'are' if channels > 1 else 'is'} needed; only grey and RGB are turned into each other"
        )
    return np.ascontiguousarray(with_channels(image, channels))


def with_channels(image: FloatImage, channels: int | None) -> FloatImage:
    """An image (C, *S) in ``channels``: 1 turns RGB into grey (luma of ITU-R BT.601), 3 repeats grey, None keeps C."""
    if channels == 1 and image.shape[0] == 3:
        # The weights add up to 1 only within rounding, and 1 is the largest value that an image may have.
        grey: FloatImage = np.minimum(np.moveaxis(image, 0, -1) @ _LUMA, np.float32(1))[None]
        return grey
    if channels == 3 and image.shape[0] == 1:
        return np.repeat(image, 3, axis=0)
    return image
