"""PNG, JPEG, TIFF, BMP and WebP files: their pixels as images, and PNG files of class indices."""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image

from regloss.errors import MissingDependency, UsageError
from regloss.io import stacks
from regloss.io.limits import check_regular
from regloss.io.palettes import color_value
from regloss.io.types import Header, Size, StoredLabels, StoredPixels

_GREY_MODES = frozenset({"1", "L", "LA", "La", "I;16", "I;16B", "I;16L", "I;16N", "I", "F"})
_COLOR_MODES = frozenset({"P", "PA", "RGB", "RGBA", "RGBX", "YCbCr"})
_FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "WEBP")
# How Pillow asks for the upper bytes of 16-bit colours, and what it has to be asked for to get the lower ones.
_LOWER_BYTES = {
    "RGB;16B": "RGB;16L",
    "RGB;16L": "RGB;16B",
    "RGB;16N": "RGB;16B" if sys.byteorder == "little" else "RGB;16L",
    "RGBA;16B": "RGBA;16L",
    "RGBA;16L": "RGBA;16B",
    "RGBA;16N": "RGBA;16B" if sys.byteorder == "little" else "RGBA;16L",
}
_UNSPECIFIED = 0  # what a TIFF says of a sample beyond grey or RGB that is no alpha channel
_COLORED = (2, 6)
_COLOR_TYPES = {0: "grey", 2: "RGB", 3: "palette", 4: "grey with alpha", 6: "RGB with alpha"}


def read_header(path: Path) -> Header:
    """Size and channels of an image, without decoding it.

    Raises:
        UsageError: the file cannot be read, or has pixels of an unknown kind.
    """
    tiff = _tiff_with_channels(path)
    if tiff is not None:
        return Header(tiff.size, tiff.samples, tiff.bits)
    if stacks.beyond_pillow(path):
        return stacks.image_header(path)
    with _opened(path) as picture:
        channels = _channels(picture, path)
        width, height = picture.size
        orientation = _orientation(picture, path)
        size = (width, height) if orientation >= 5 else (height, width)
        return Header(size, channels, _bits(picture), orientation)


def read_pixels(path: Path) -> StoredPixels:
    """One image as stored, in the channels that it has.

    Palettes are resolved to RGB. The orientation tag of cameras is honoured in all but TIFF files. An alpha channel is
    dropped where it is opaque throughout, and refused otherwise, because the colour behind a transparent pixel means
    nothing. TIFF files may have any number of channels, also as pages where OME or ImageJ say so, for which tifffile
    has to be installed.

    Args:
        path: a PNG, JPEG, TIFF, BMP or WebP file.

    Returns:
        (C, H, W) bool, uint8, uint16 or float32; C = 1, 3, or what a TIFF has.

    Raises:
        UsageError: the file cannot be read or is invalid: several frames, transparent pixels, CMYK, 32-bit
            integers, a TIFF that is not stored upright.
        MissingDependency: a TIFF with other channels than grey or RGB, and tifffile is not installed.
    """
    tiff = _tiff_with_channels(path)
    if tiff is not None:
        return _read_channels(path, tiff)
    if stacks.beyond_pillow(path):
        return stacks.read_stack(path, dims=2)
    with _opened(path) as picture:
        _channels(picture, path)  # refuses other kinds of pixels
        if picture.format in ("PNG", "TIFF", "WEBP") and getattr(picture, "n_frames", 1) > 1:
            raise UsageError(f"{path} holds several frames; save the one that is meant as a file of its own")
        orientation = _orientation(picture, path)
        lower = _lower_tiles(picture)
        half = any("LA;16" in str(tile[3]) for tile in _tiles(picture))
        picture.load()
        if _orientation(picture, path) != orientation:
            raise UsageError(f"{path} states its orientation after its pixels; save it again, turned upright")
        if picture.mode in ("P", "PA"):
            values = np.asarray(picture.convert("RGBA"))
        elif picture.mode in ("YCbCr", "RGBX"):
            values = np.asarray(picture.convert("RGB"))
        else:
            values = np.asarray(picture)
        if values.dtype not in (np.bool_, np.uint8, np.float32):
            values = values.astype(np.uint16)  # 16-bit grey, which older versions of Pillow hold as int32
        if half and values[..., 0].max() < 128:
            raise UsageError(
                f"{path} is grey with alpha in 16 bits, of which only the upper 8 can be read, and its values hardly "
                "use these; save it without the alpha channel"
            )
        if picture.mode not in ("P", "PA") and "transparency" in picture.info:
            raise UsageError(f"{path} declares one colour as transparent; save it without transparency")

    if lower is not None:
        with _opened(path) as picture:
            vars(picture)["tile"] = lower  # of Pillow's files alone, which is what opening gives
            values = values.astype(np.uint16) << 8 | np.asarray(picture)
    image = values[..., None] if values.ndim == 2 else values
    if image.shape[-1] in (2, 4):
        image = _without_alpha(image, path)
    return np.moveaxis(_upright(image, orientation), -1, 0)


def read_rgba(path: Path) -> npt.NDArray[np.uint8]:
    """The colours of a picture of 8 bits, (H, W, 4): red, green, blue, and opacity.

    Raises:
        UsageError: the file cannot be read, or has 16 bits or floats.
    """
    with _opened(path) as picture:
        if _bits(picture) > 8 or picture.mode not in _GREY_MODES | _COLOR_MODES:
            raise UsageError(f"{path} has pixels of kind {picture.mode!r}; where colours are names, they have 8 bits")
        orientation = _orientation(picture, path)
        return np.ascontiguousarray(_upright(np.asarray(picture.convert("RGBA")), orientation))


def _without_alpha(image: StoredPixels, path: Path) -> StoredPixels:
    """(H, W, C) without its last channel, which must be opaque."""
    opaque = 1 if image.dtype.kind == "f" else np.iinfo(image.dtype).max
    if not (image[..., -1] == opaque).all():
        raise UsageError(f"{path} has transparent pixels; flatten it onto a background, or drop the alpha channel")
    return image[..., :-1]


def _tiles(picture: Image.Image) -> Sequence[tuple[Any, ...]]:
    """What Pillow is going to decode: codec, extents, offset and arguments of each part."""
    tiles: Sequence[tuple[Any, ...]] = vars(picture).get("tile", ())
    return tiles


def _lower_tiles(picture: Image.Image) -> list[Any] | None:
    """What makes Pillow decode the lower bytes of 16-bit colours, of which it keeps the upper ones; None elsewhere."""
    tiles = []
    for codec, extents, offset, args in _tiles(picture):
        several = isinstance(args, tuple)
        mode = args[0] if several and args else args
        if mode not in _LOWER_BYTES:
            return None
        tiles.append((codec, extents, offset, (_LOWER_BYTES[mode], *args[1:]) if several else _LOWER_BYTES[mode]))
    return tiles or None


def _bits(picture: Image.Image) -> int:
    """Bits of a value as `read_pixels` gives it: 1, 8, 16, or 32 for floats."""
    if picture.mode.startswith("I") or _lower_tiles(picture) is not None:
        return 16
    return {"1": 1, "F": 32}.get(picture.mode, 8)


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """The file, opened by Pillow; what goes wrong in opening or decoding becomes a UsageError that names it."""
    check_regular(path)
    try:
        with Image.open(path, formats=_FORMATS) as picture:
            yield picture
    except UsageError:
        raise
    except Image.DecompressionBombError as error:
        raise UsageError(
            f"{path} is too large to be decoded as a whole: save it as TIFF, NPY or HDF5. {error}"
        ) from error
    except (OSError, EOFError, SyntaxError, ValueError, struct.error) as error:
        raise UsageError(f"{path} cannot be read as a PNG, JPEG, TIFF, BMP or WebP image: {error}") from error


def _channels(picture: Image.Image, path: Path) -> int:
    # Mode "I" is how older versions of Pillow open 16-bit PNGs; in a TIFF it means 32-bit integers, whose range is no
    # statement about the values.
    if picture.mode in _GREY_MODES and (picture.mode != "I" or picture.format == "PNG"):
        return 1
    if picture.mode in _COLOR_MODES:
        return 3
    raise UsageError(
        f"{path} has pixels of kind {picture.mode!r}; images are grey or RGB with 8 or 16 bits, or floats in [0, 1]"
    )


def _orientation(picture: Image.Image, path: Path) -> int:
    """The orientation tag, 1..8; 1 is upright."""
    # Pillow searches a PNG for the tag by decoding it, unless it stands in front of the pixels.
    if picture.format == "PNG" and not {"exif", "Raw profile type exif", "XML:com.adobe.xmp"} & picture.info.keys():
        return 1
    value = picture.getexif().get(ExifTags.Base.Orientation, 1)
    if value not in range(2, 9):
        return 1
    if picture.format == "TIFF":
        # Versions of Pillow differ in who turns a TIFF upright, and 13.0 garbles uncompressed ones on the way.
        raise UsageError(f"{path} is a TIFF with the orientation tag {value}; save it again, turned upright")
    return int(value)


def _upright(image: npt.NDArray[Any], orientation: int) -> npt.NDArray[Any]:
    """(H, W, ...) as stored -> as meant, by the EXIF orientation."""
    if orientation in (5, 6, 7, 8):
        image = image.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    return image


# -- TIFF files with other channels than grey or RGB -------------------------------------------------------------------


@dataclass(frozen=True)
class _Tiff:
    """What the first directory of a TIFF says.

    Attributes:
        size: (H, W).
        samples: values of a pixel.
        extra: what those beyond grey or RGB are: 0 unspecified, 1 or 2 alpha.
        bits: of a value.
        orientation: 1..8.
    """

    size: Size
    samples: int
    extra: tuple[int, ...]
    bits: int
    orientation: int


_TIFF_TYPES = {1: "B", 3: "H", 4: "I"}
_TIFF_TAGS = {256: "width", 257: "height", 258: "bits", 262: "colors", 274: "orientation", 277: "samples", 338: "extra"}
_TIFF_SAMPLES = {2: 3, 5: 4, 6: 3, 8: 3}  # by photometric interpretation: RGB, CMYK, YCbCr, CIELAB; others have 1


def _tiff_with_channels(path: Path) -> _Tiff | None:
    """What a TIFF says, if it has channels that are neither grey nor RGB nor alpha; Pillow drops these, or fails."""
    check_regular(path)
    try:
        with path.open("rb") as file:
            head = file.read(8)
            order = {b"II*\0": "<", b"MM\0*": ">"}.get(head[:4])
            if order is None:
                return None
            file.seek(struct.unpack(order + "I", head[4:])[0])
            (count,) = struct.unpack(order + "H", file.read(2))
            entries = [struct.unpack(order + "HHI4s", file.read(12)) for _ in range(count)]
            tags: dict[str, tuple[int, ...]] = {}
            for tag, kind, number, value in entries:
                if tag not in _TIFF_TAGS or kind not in _TIFF_TYPES or not 0 < number < 1000:
                    continue
                wanted = struct.calcsize(f"{order}{number}{_TIFF_TYPES[kind]}")
                if wanted > 4:
                    file.seek(struct.unpack(order + "I", value)[0])
                    value = file.read(wanted)
                tags[_TIFF_TAGS[tag]] = struct.unpack(f"{order}{number}{_TIFF_TYPES[kind]}", value[:wanted])
    except (OSError, struct.error):
        return None  # not to be read as a TIFF at all, which Pillow says
    if not {"width", "height"} <= tags.keys():
        return None
    samples = tags.get("samples", (1,))[0]
    extra = tags.get("extra", ())
    beyond = samples - _TIFF_SAMPLES.get(tags.get("colors", (1,))[0], 1)
    extra = (*extra, *(_UNSPECIFIED,) * (beyond - len(extra)))[: max(beyond, 0)]
    if _UNSPECIFIED not in extra:
        return None
    bits = max(tags.get("bits", (1,)))
    return _Tiff((tags["height"][0], tags["width"][0]), samples, extra, bits, tags.get("orientation", (1,))[0])


def _read_channels(path: Path, tiff: _Tiff) -> StoredPixels:
    """(C, H, W) of a TIFF with any number of channels."""
    if tiff.orientation in range(2, 9):
        raise UsageError(f"{path} is a TIFF with the orientation tag {tiff.orientation}; save it again, turned upright")
    if any(kind != _UNSPECIFIED for kind in tiff.extra):
        raise UsageError(
            f"{path} is a TIFF with {tiff.samples} samples a pixel, of which some are transparency; save it without"
        )
    try:
        import tifffile
    except ImportError as cause:
        raise MissingDependency(
            f"{path} is a TIFF with {tiff.samples} samples a pixel, which only tifffile reads; install regloss[tiff], "
            "or save it as grey or RGB"
        ) from cause
    try:
        with tifffile.TiffFile(path) as file:
            if len(file.pages) > 1:
                raise UsageError(f"{path} holds several frames; save the one that is meant as a file of its own")
            page = file.pages[0]
            values, axes = page.asarray(), page.axes
    except (OSError, ValueError, KeyError, IndexError, struct.error, ImportError, tifffile.TiffFileError) as error:
        raise UsageError(
            f"{path}, a TIFF with {tiff.samples} samples a pixel, cannot be read: {error}; save it without compression"
        ) from error
    if axes not in ("YXS", "SYX") or values.dtype not in (np.uint8, np.uint16, np.float32):
        raise UsageError(
            f"{path} is a TIFF with {tiff.samples} samples a pixel, as {values.dtype}; such images hold 8 or 16 bits, "
            "or 32-bit floats"
        )
    return np.moveaxis(values, -1, 0) if axes == "YXS" else values


# -- Class indices -----------------------------------------------------------------------------------------------------


def read_label_size(path: Path) -> Size:
    """(H, W) of a label map, without decoding it.

    Raises:
        UsageError: the file is no PNG with one channel of at most 16 bits, or colours of 8.
    """
    height, width, *_ = _label_header(path)
    return (width, height) if label_orientation(path) >= 5 else (height, width)


def read_indices(path: Path) -> StoredLabels:
    """(H, W) of whatever values a PNG holds: uint8 or uint16; of a palette the indices; of colours their `color_value`.

    An orientation tag, which some tools copy from the image, is honoured as in images.

    Raises:
        UsageError: the file cannot be read, is no such PNG, or has transparent pixels.
    """
    _, _, bits, color_type = _label_header(path)
    with _opened(path) as picture:
        indices = np.asarray(picture.convert("RGBA") if color_type in _COLORED else picture)
        mode = picture.mode
    if color_type in _COLORED:
        red, green, blue = (part.astype(np.uint32) for part in np.moveaxis(_without_alpha(indices, path), -1, 0))
        indices = color_value((red, green, blue))
    else:
        indices = indices.astype(np.uint16 if bits == 16 else np.uint8)
        if mode == "L" and bits < 8:
            # Pillow stretches grey of 2 or 4 bits to 0..255, which is right for brightness and wrong for indices.
            indices //= 255 // (2**bits - 1)
    return np.ascontiguousarray(_upright(indices, label_orientation(path)))


def label_orientation(path: Path) -> int:
    """The orientation tag of a PNG, 1..8, where it stands in front of the pixels; 1 is upright."""
    with path.open("rb") as file:
        file.seek(8)
        while len(head := file.read(8)) == 8:
            length, name = struct.unpack(">I4s", head)
            if name == b"eXIf":
                exif = Image.Exif()
                exif.load(file.read(length))
                value = exif.get(ExifTags.Base.Orientation, 1)
                return int(value) if value in range(2, 9) else 1
            if name == b"IDAT":
                break
            file.seek(length + 4, 1)
    return 1


def _label_header(path: Path) -> tuple[int, int, int, int]:
    """Height, width, bits and type of colours of a label map, from the 33 bytes that every PNG begins with."""
    check_regular(path)
    try:
        with path.open("rb") as file:
            head = file.read(33)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error}") from error
    if len(head) < 33 or head[:8] != b"\x89PNG\r\n\x1a\n" or head[12:16] != b"IHDR":
        raise UsageError(
            f"{path} is no PNG file; label maps are, because lossy formats such as JPEG change the class indices"
        )
    width, height, bits, color_type = struct.unpack(">IIBB", head[16:26])
    if color_type not in (0, 3, *_COLORED) or bits > (8 if color_type in _COLORED else 16):
        kind = _COLOR_TYPES.get(color_type, f"colour type {color_type}")
        raise UsageError(
            f"{path} is a PNG of {bits} bits, {kind}; a label map has one channel of at most 16 bits (grey, or "
            "palette), or colours of 8 that are told what they mean"
        )
    return height, width, bits, color_type
