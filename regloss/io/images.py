"""Images of any readable file format, as float32 in [0, 1].

`READERS` is the table of formats: one entry a family of files, chosen by the end of the file's name. A new format is a
module beside `regloss.io.raster`, with the two functions that `ImageReader` asks for, and one entry here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from regloss.errors import UsageError, listed
from regloss.io import raster
from regloss.io.types import FloatImage, Header

_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R BT.601


@dataclass(frozen=True)
class ImageReader:
    """How one family of files is read.

    Attributes:
        suffixes: endings of its files, in lower case.
        header: file -> size and channels, without decoding it.
        pixels: file -> (C, *S) float32 in [0, 1], C = 1 or 3 as the header says.
    """

    suffixes: tuple[str, ...]
    header: Callable[[Path], Header]
    pixels: Callable[[Path], FloatImage]


READERS = (ImageReader((".png", ".jpg", ".jpeg", ".tif", ".tiff"), raster.read_header, raster.read_pixels),)
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


def common_channels(paths: Sequence[Path], where: Path) -> int:
    """The channels of some images, which must agree.

    Raises:
        UsageError: grey and colour images are mixed.
    """
    channels = [read_header(path).channels for path in paths]
    grey = [path.name for path, count in zip(paths, channels, strict=True) if count == 1]
    color = [path.name for path, count in zip(paths, channels, strict=True) if count == 3]
    if grey and color:
        raise UsageError(
            f"{where} mixes {len(grey)} grey images ({listed(grey, 3)}) and {len(color)} colour images "
            f"({listed(color, 3)}); grey = true turns all into grey, grey = false all into RGB"
        )
    return 1 if grey else 3


def read_image(path: Path, channels: int | None = None) -> FloatImage:
    """One image with values in [0, 1].

    Args:
        path: a file of any of the types in `READERS`: PNG, JPEG and TIFF (see `regloss.io.raster.read_pixels`).
        channels: 1 turns colours into grey (luma of ITU-R BT.601), 3 repeats grey; None keeps what the file has.

    Returns:
        (C, H, W) float32.

    Raises:
        UsageError: the file cannot be read, or its pixels are none that an image may have.
    """
    return np.ascontiguousarray(with_channels(_reader(path).pixels(path), channels))


def with_channels(image: FloatImage, channels: int | None) -> FloatImage:
    """An image (C, *S) in ``channels``: 1 turns RGB into grey (luma of ITU-R BT.601), 3 repeats grey, None keeps C."""
    if channels == 1 and image.shape[0] == 3:
        # The weights add up to 1 only within rounding, and 1 is the largest value that an image may have.
        grey: FloatImage = np.minimum(np.moveaxis(image, 0, -1) @ _LUMA, np.float32(1))[None]
        return grey
    if channels == 3 and image.shape[0] == 1:
        return np.repeat(image, 3, axis=0)
    return image
