"""Large images by parts: rectangles of a file, and label maps that are written as they come.

A TIFF is read by the tiles or strips that a rectangle meets, NPY and HDF5 by themselves. Other files are decoded as a
whole, once, and kept as they are stored, without a copy in floats.
"""

from __future__ import annotations

import itertools
import math
import struct
import zlib
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from regloss.io.images import read_stored
from regloss.io.palettes import IGNORE_COLOR, Colors
from regloss.io.stacks import HDF5, NPY, TIFF, Layout, channels_first, library, opened_stack, plain_values
from regloss.io.types import LabelMap, Size, StoredPixels

_SEPARATE = 2  # TIFF's planar configuration of a plane for each sample
_KEPT = 64 * 2**20  # bytes of decoded tiles and strips
LABEL_TILE = 512
"""Rows and columns of the tiles of a TIFF of labels."""


class ImageParts(ABC):
    """An image of which rectangles are read.

    Attributes:
        size: (H, W).
        channels: C.
    """

    size: Size
    channels: int

    @abstractmethod
    def read(self, rows: slice, columns: slice) -> StoredPixels:
        """(C, h, w), bool, uint8, uint16 or float32; a copy of nothing larger than tiles, strips, or what is kept."""


@contextmanager
def open_parts(path: Path) -> Iterator[ImageParts]:
    """An image to read rectangles of, while the context lasts.

    Raises:
        UsageError: the file cannot be read, or holds several slices.
        MissingDependency: the library that reads it is not installed.
    """
    name = path.name.lower()
    if not name.endswith((*NPY, *HDF5, *TIFF)):
        yield _Whole(read_stored(path))
        return
    with opened_stack(path, dims=2) as (layout, source):
        if not name.endswith(TIFF):
            yield _Sliced(path, layout, source)
        elif source.dataoffset is not None:  # one uncompressed array
            kind = layout.dtype.newbyteorder(source.parent.byteorder)
            yield _Sliced(path, layout, np.memmap(path, kind, "r", source.dataoffset, layout.shape))
        else:
            yield _Segments(path, layout, source)


class _Whole(ImageParts):
    """An image in memory."""

    def __init__(self, pixels: StoredPixels) -> None:
        self._pixels = pixels
        self.channels, self.size = pixels.shape[0], (pixels.shape[1], pixels.shape[2])

    def read(self, rows: slice, columns: slice) -> StoredPixels:
        """See `ImageParts.read`."""
        return self._pixels[:, rows, columns]


class _Sliced(ImageParts):
    """An array that gives parts of itself: mapped from a file, or of HDF5."""

    def __init__(self, path: Path, layout: Layout, array: Any) -> None:
        self._path, self._layout, self._array = path, layout, array
        self.channels, self.size = layout.channels, (layout.extent("Y"), layout.extent("X"))

    def read(self, rows: slice, columns: slice) -> StoredPixels:
        """See `ImageParts.read`."""
        chosen = {"Y": rows, "X": columns}
        values = np.asarray(self._array[tuple(chosen.get(axis, slice(None)) for axis in self._layout.axes)])
        return plain_values(channels_first(values, self._layout.axes), self._path)


class _Segments(ImageParts):
    """A TIFF whose tiles or strips are decoded as they are needed; those last used are kept."""

    def __init__(self, path: Path, layout: Layout, series: Any) -> None:
        self._path, self._layout, self._series = path, layout, series
        self.channels, self.size = layout.channels, (layout.extent("Y"), layout.extent("X"))
        self._kept: OrderedDict[tuple[int, int], npt.NDArray[Any]] = OrderedDict()
        self._bytes = 0

    def read(self, rows: slice, columns: slice) -> StoredPixels:
        """See `ImageParts.read`."""
        pages = [self._page(number, rows, columns) for number in range(self._layout.extent("C"))]
        return plain_values(np.concatenate(pages), self._path)

    def _page(self, number: int, rows: slice, columns: slice) -> npt.NDArray[Any]:
        """(S, h, w) of one page."""
        page = self._series.keyframe  # all pages are like it, and have but their own places in the file
        tall, wide = (page.tilelength, page.tilewidth) if page.is_tiled else (page.rowsperstrip, page.imagewidth)
        across, down = math.ceil(page.imagewidth / wide), math.ceil(page.imagelength / tall)
        planes = page.samplesperpixel if page.planarconfig == _SEPARATE else 1
        found = np.zeros((page.samplesperpixel, *_lengths(rows, columns)), dtype=page.dtype)
        for plane, y, x in itertools.product(
            range(planes),
            range(rows.start // tall, math.ceil(rows.stop / tall)),
            range(columns.start // wide, math.ceil(columns.stop / wide)),
        ):
            segment = np.moveaxis(self._segment(number, (plane * down + y) * across + x), -1, 0)
            (top, above), (left, before) = (
                _overlap(rows, y * tall, segment.shape[1]),
                _overlap(columns, x * wide, segment.shape[2]),
            )
            samples = slice(plane, plane + 1) if planes > 1 else slice(None)
            found[samples, above, before] = segment[:, top, left]
        return found

    def _segment(self, number: int, index: int) -> npt.NDArray[Any]:
        """One tile or strip, (h, w, S)."""
        key = (number, index)
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        page, own = self._series.keyframe, self._series.pages[number]
        file = page.parent.filehandle
        file.seek(own.dataoffsets[index])
        data = file.read(own.databytecounts[index])
        decoded, _, shape = page.decode(data, index, jpegtables=own.jpegtables, jpegheader=page.jpegheader)
        tall, wide = (page.tilelength, page.tilewidth) if page.is_tiled else (shape[1], page.imagewidth)
        segment = np.zeros((tall, wide, shape[3]), page.dtype) if decoded is None else decoded[0]
        self._kept[key] = segment
        self._bytes += segment.nbytes
        while self._bytes > _KEPT and len(self._kept) > 1:
            self._bytes -= self._kept.popitem(last=False)[1].nbytes
        return segment


def _lengths(*parts: slice) -> tuple[int, ...]:
    return tuple(part.stop - part.start for part in parts)


def _overlap(wanted: slice, start: int, length: int) -> tuple[slice, slice]:
    """Where a segment from ``start`` on meets what is wanted: counted within the segment, and within what is wanted."""
    low, high = max(wanted.start, start), min(wanted.stop, start + length)
    return slice(low - start, high - start), slice(low - wanted.start, high - wanted.start)


# -- Writing -----------------------------------------------------------------------------------------------------------


def write_label_rows(path: Path, size: Size, bands: Iterable[LabelMap], colors: Colors) -> None:
    """A palette PNG, as of `regloss.io.labels.save_label_png`, from bands of rows (h, W) as they come.

    Args:
        path: that is written; nothing of an earlier file is kept.
        size: (H, W) of the whole.
        bands: from top to bottom, H rows together.
        colors: one RGB triple of 0..255 for each class.
    """
    palette = np.zeros((256, 3), dtype=np.uint8)
    palette[: len(colors)] = colors
    palette[255] = IGNORE_COLOR
    with path.open("wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n")
        _chunk(file, b"IHDR", struct.pack(">IIBBBBB", size[1], size[0], 8, 3, 0, 0, 0))
        _chunk(file, b"PLTE", palette.tobytes())
        packer, rows = zlib.compressobj(6), 0
        for band in bands:
            lines = np.pad(band, ((0, 0), (1, 0)))  # each begins with its filter, 0 = none
            _chunk(file, b"IDAT", packer.compress(np.ascontiguousarray(lines).tobytes()))
            rows += len(band)
        _chunk(file, b"IDAT", packer.flush())
        _chunk(file, b"IEND", b"")
    assert rows == size[0]


def write_label_tiles(path: Path, size: Size, bands: Iterable[LabelMap], colors: Colors) -> None:
    """A palette TIFF of tiles, from bands of rows as they come; see `write_label_rows`.

    Bands other than the last have a multiple of `LABEL_TILE` rows.
    """
    tifffile = library("tifffile", "tiff", path)
    palette = np.zeros((3, 256), dtype=np.uint16)
    palette[:, : len(colors)] = 257 * np.asarray(colors, dtype=np.uint16).T
    palette[:, 255] = 257 * np.asarray(IGNORE_COLOR, dtype=np.uint16)

    def tiles() -> Iterator[LabelMap]:
        for band in bands:
            for top in range(0, len(band), LABEL_TILE):
                for left in range(0, size[1], LABEL_TILE):
                    tile = np.zeros((LABEL_TILE, LABEL_TILE), dtype=np.uint8)
                    part = band[top : top + LABEL_TILE, left : left + LABEL_TILE]
                    tile[: part.shape[0], : part.shape[1]] = part
                    yield tile

    tifffile.imwrite(
        path,
        tiles(),
        shape=size,
        dtype=np.uint8,
        tile=(LABEL_TILE, LABEL_TILE),
        photometric="palette",
        colormap=palette,
        compression="zlib",
        metadata=None,
        bigtiff=size[0] * size[1] > 2**31,
    )


def _chunk(file: BinaryIO, kind: bytes, data: bytes) -> None:
    if data or kind == b"IEND":
        file.write(struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)))
