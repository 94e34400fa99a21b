"""PNG, JPEG and TIFF files: their pixels as images, and PNG files of class indices."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image

from regloss.errors import UsageError
from regloss.io.limits import check_regular
from regloss.io.types import FloatImage, Header, LabelMap, Size

_GREY_MODES = frozenset({"1", "L", "LA", "La", "I;16", "I;16B", "I;16L", "I;16N", "I", "F"})
_COLOR_MODES = frozenset({"P", "PA", "RGB", "RGBA", "RGBX", "YCbCr"})
_COLOR_TYPES = {0: "grey", 2: "RGB", 3: "palette", 4: "grey with alpha", 6: "RGB with alpha"}


def read_header(path: Path) -> Header:
    """Size and channels of an image, without decoding it.

    Raises:
        UsageError: the file cannot be read, or has pixels of an unknown kind.
    """
    with _opened(path) as picture:
        channels = _channels(picture, path)
        width, height = picture.size
        return Header((width, height) if _orientation(picture, path) >= 5 else (height, width), channels)


def read_pixels(path: Path) -> FloatImage:
    """One image with values in [0, 1], in the channels that it has.

    8-bit values are divided by 255 and 16-bit values by 65535; float TIFFs must hold [0, 1] already. (Of 16-bit
    *colour* files Pillow keeps the upper byte.) Palettes are resolved to RGB. The orientation tag of cameras is
    honoured in JPEG and PNG files. An alpha channel is dropped where it is opaque throughout, and refused otherwise,
    because the colour behind a transparent pixel means nothing.

    Args:
        path: a PNG, JPEG or TIFF file.

    Returns:
        (C, H, W) float32, C = 1 or 3.

    Raises:
        UsageError: the file cannot be read or is invalid: several frames, transparent pixels, CMYK, 32-bit
            integers, NaN, floats outside [0, 1], a TIFF that is not stored upright.
    """
    with _opened(path) as picture:
        _channels(picture, path)  # refuses other kinds of pixels
        if picture.format in ("PNG", "TIFF") and getattr(picture, "n_frames", 1) > 1:
            raise UsageError(f"{path} holds several frames; save the one that is meant as a file of its own")
        orientation = _orientation(picture, path)
        picture.load()
        if _orientation(picture, path) != orientation:
            raise UsageError(f"{path} states its orientation after its pixels; save it again, turned upright")
        if picture.mode in ("P", "PA"):
            values = np.asarray(picture.convert("RGBA"))
        elif picture.mode in ("YCbCr", "RGBX"):
            values = np.asarray(picture.convert("RGB"))
        else:
            values = np.asarray(picture)
        if picture.mode not in ("P", "PA") and "transparency" in picture.info:
            raise UsageError(f"{path} declares one colour as transparent; save it without transparency")

    image = _scaled(values, path)
    if image.ndim == 2:
        image = image[..., None]
    if image.shape[-1] in (2, 4):
        if not (image[..., -1] == 1).all():
            raise UsageError(f"{path} has transparent pixels; flatten it onto a background, or drop the alpha channel")
        image = image[..., :-1]
    return np.moveaxis(_upright(image, orientation), -1, 0)


def _scaled(values: npt.NDArray[Any], path: Path) -> FloatImage:
    """Pixel values as float32 in [0, 1]."""
    if values.dtype == np.bool_:
        return values.astype(np.float32)
    if values.dtype.kind == "f":
        image = values.astype(np.float32)
        if np.isnan(image).any():
            raise UsageError(f"{path} holds NaN; replace these pixels")
        low, high = float(image.min()), float(image.max())
        if low < 0 or high > 1:
            raise UsageError(f"{path} holds floats from {low:g} to {high:g}; float images must lie within [0, 1]")
        return image
    # 16-bit grey comes as uint16, or in older versions of Pillow as int32.
    top = 255 if values.dtype == np.uint8 else 65535
    return values.astype(np.float32) / np.float32(top)


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """The file, opened by Pillow; what goes wrong in opening or decoding becomes a UsageError that names it."""
    check_regular(path)
    try:
        with Image.open(path, formats=("PNG", "JPEG", "TIFF")) as picture:
            yield picture
    except UsageError:
        raise
    except (OSError, EOFError, SyntaxError, ValueError, struct.error, Image.DecompressionBombError) as error:
        raise UsageError(f"{path} cannot be read as a PNG, JPEG or TIFF image: {error}") from error


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


def _upright(image: FloatImage, orientation: int) -> FloatImage:
    """(H, W, C) as stored -> as meant, by the EXIF orientation."""
    if orientation in (5, 6, 7, 8):
        image = image.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    return image


# -- Class indices -----------------------------------------------------------------------------------------------------


def read_label_size(path: Path) -> Size:
    """(H, W) of a label map, without decoding it.

    Raises:
        UsageError: the file is no PNG with one channel of at most 8 bits.
    """
    height, width, _ = _label_header(path)
    return height, width


def read_indices(path: Path) -> LabelMap:
    """(H, W) uint8 from a grey or palette PNG of at most 8 bits, whatever values it holds; of a palette, the indices.

    Raises:
        UsageError: the file cannot be read, or is no such PNG.
    """
    _, _, bits = _label_header(path)
    with _opened(path) as picture:
        indices = np.asarray(picture).astype(np.uint8)
        if picture.mode == "L" and bits < 8:
            # Pillow stretches grey of 2 or 4 bits to 0..255, which is right for brightness and wrong for indices.
            indices //= 255 // (2**bits - 1)
    return indices


def _label_header(path: Path) -> tuple[int, int, int]:
    """Height, width and bits of a label map, from the 33 bytes that every PNG begins with."""
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
    if color_type not in (0, 3) or bits > 8:
        kind = _COLOR_TYPES.get(color_type, f"colour type {color_type}")
        raise UsageError(
            f"{path} is a PNG of {bits} bits, {kind}; a label map holds class indices, so it has one channel of 8 bits "
            "(grey, or palette). Colours do not say which class is meant: write the index of each class instead"
        )
    return height, width, bits
