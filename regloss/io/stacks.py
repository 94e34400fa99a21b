"""Images and volumes in files of arrays, whose axes have names: TIFF, NPY, HDF5.

    TIFF    tifffile    axes and spacing by OME or ImageJ, as "CZYX"; several pages without a name are refused
    NPY     numpy       (H, W); (C, H, W) or (H, W, C), channels being the shorter of first and last; (C, D, H, W);
                        where a volume is expected (D, H, W)
    HDF5    h5py        "image", or the only array: (H, W); (D, H, W); (C, D, H, W); or axes by axistags, as of ilastik

All become (C, H, W) or (C, D, H, W). Times are refused, where there are several.
"""

from __future__ import annotations

import json
import math
import struct
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from regloss.errors import MissingDependency, UsageError, listed
from regloss.io.limits import check_regular
from regloss.io.types import Header, Size, StoredLabels, StoredPixels

TIFF = (".tif", ".tiff")
NPY = (".npy",)
HDF5 = (".h5", ".hdf5")
STACK_SUFFIXES = (*TIFF, *NPY, *HDF5)
"""Endings of such files, in lower case."""

_MM = {"m": 1e3, "cm": 10.0, "mm": 1.0, "µm": 1e-3, "μm": 1e-3, "um": 1e-3, "micron": 1e-3, "nm": 1e-6, "inch": 25.4}
_SIDES, _LONG = (256, 257), 4  # TIFF's tags of width and length, and its number for 32 bits
_SAFE = 2**26  # pixels; Pillow warns of more than some 90 millions
_UNNAMED = "QIR"  # letters of tifffile for axes that no metadata name
SLICES = "Z" + _UNNAMED
"""Axes that are slices where a volume is expected."""


@dataclass(frozen=True)
class Layout:
    """What a file says before its pixels are decoded.

    Attributes:
        axes: a letter for each axis of the stored array: C or S channels, Z slices, Y, X.
        shape: of the stored array.
        dtype: of its values.
        spacing: along Z, Y and X in mm, as far as it is known; None = not at all.
    """

    axes: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    spacing: tuple[float, float, float] | None = None

    def extent(self, letters: str) -> int:
        """Product of the sizes of some axes."""
        return math.prod(size for axis, size in zip(self.axes, self.shape, strict=True) if axis in letters)

    @property
    def is_volume(self) -> bool:
        """Whether there are several slices; pages without a name may be anything."""
        return self.extent("Z") > 1

    @property
    def channels(self) -> int:
        """Their number."""
        return self.extent("CS")


def read_layout(path: Path, dims: int | None = None) -> Layout:
    """Axes, shape and type, from the headers.

    Args:
        path: the file.
        dims: 3 where a volume is expected, which says what three axes of NPY are.

    Raises:
        UsageError: the file is damaged, or its axes are none that an image or a volume has.
        MissingDependency: the library that reads it is not installed.
    """
    with _opened(path, dims) as (layout, _):
        return layout


@contextmanager
def opened_stack(path: Path, dims: int) -> Iterator[tuple[Layout, Any]]:
    """The layout of a file, and what its pixels are read from in the context: a series of tifffile, or an array.

    Raises:
        UsageError: as `read_layout`; or a volume where ``dims`` is 2.
        MissingDependency: see `read_layout`.
    """
    with _opened(path, dims) as (layout, source):
        if dims == 2:
            check_image(path, layout)
        yield layout, source


def check_image(path: Path, layout: Layout) -> None:
    """Refuse a volume where an image is expected.

    Raises:
        UsageError: there are several slices.
    """
    if layout.extent(SLICES) > 1:
        raise UsageError(
            f"{path} holds several frames (axes {layout.axes} of sizes {layout.shape}), slices or pages without a "
            "name; save the one that is meant as a file of its own, or name the axis of channels C, as OME and "
            "ImageJ do"
        )


def read_stack(path: Path, dims: int) -> StoredPixels:
    """An image (C, H, W), with ``dims = 2``, or a volume (C, D, H, W), with 3.

    Returns:
        bool, uint8, uint16, or float32, which other types become.

    Raises:
        UsageError: as `read_layout`; a volume where an image is expected; complex numbers.
        MissingDependency: see `read_layout`.
    """
    with opened_stack(path, dims) as (layout, source):
        values = source.asarray() if hasattr(source, "asarray") else source[()]
    return plain_values(channels_first(np.asarray(values), layout.axes, dims), path)


def may_be_volume(path: Path) -> bool:
    """Whether it is worth while to look at the axes of a file: TIFFs of one page are images."""
    return not path.name.lower().endswith(TIFF) or beyond_pillow(path)


def beyond_pillow(path: Path) -> bool:
    """Whether a file is a TIFF of several pages, one beyond 4 GB, or of more pixels than Pillow takes for safe."""
    try:
        with path.open("rb") as file:
            head = file.read(8)
            if head[:4] in (b"II+\0", b"MM\0+"):
                return True
            order = {b"II*\0": "<", b"MM\0*": ">"}.get(head[:4])
            if order is None:
                return False
            file.seek(struct.unpack(order + "I", head[4:])[0])
            (count,) = struct.unpack(order + "H", file.read(2))
            entries = [struct.unpack(order + "HHI4s", file.read(12)) for _ in range(count)]
            (following,) = struct.unpack(order + "I", file.read(4))
            sides = [
                struct.unpack(order + ("I" if kind == _LONG else "H2x"), value)[0]
                for tag, kind, _, value in entries
                if tag in _SIDES
            ]
    except (OSError, struct.error):
        return False  # damaged, which its reader says
    return bool(following) or bool(math.prod(sides) > _SAFE)


def image_header(path: Path) -> Header:
    """Size and channels of an image, without decoding it.

    Raises:
        UsageError: as `read_layout`; or a volume.
    """
    layout = read_layout(path)
    check_image(path, layout)
    bits = 32 if layout.dtype.kind == "f" or layout.dtype.itemsize > 2 else 8 * layout.dtype.itemsize
    return Header((layout.extent("Y"), layout.extent("X")), layout.channels, 1 if layout.dtype == np.bool_ else bits)


def read_image(path: Path) -> StoredPixels:
    """`read_stack` for images."""
    return read_stack(path, dims=2)


def read_label_size(path: Path) -> Size:
    """(H, W) of a label map.

    Raises:
        UsageError: as `read_layout`; a volume, or several channels.
    """
    layout = read_layout(path)
    _check_labels(path, layout)
    return layout.extent("Y"), layout.extent("X")


def read_labels(path: Path) -> StoredLabels:
    """(H, W) whole numbers, whatever values a label map holds.

    Raises:
        UsageError: as `read_label_size`; or floats, negative values.
    """
    with opened_stack(path, dims=2) as (layout, source):
        _check_labels(path, layout)
        stored = source.asarray() if hasattr(source, "asarray") else source[()]
    labels = channels_first(np.asarray(stored), layout.axes)[0]
    if labels.size and labels.min() < 0:
        raise UsageError(f"{path} holds {labels.min()}; labels are not negative")
    found: StoredLabels = labels.astype(np.uint8 if labels.dtype == np.bool_ else labels.dtype.newbyteorder("="))
    return found


def _check_labels(path: Path, layout: Layout) -> None:
    check_image(path, layout)
    if layout.channels != 1 or layout.dtype.kind not in "bui":
        raise UsageError(
            f"{path} holds {layout.channels} channels of {layout.dtype}; a label map has one, of whole numbers"
        )


def channels_first(values: npt.NDArray[Any], axes: str, dims: int = 2) -> npt.NDArray[Any]:
    """An array of some axes as (C, H, W), or (C, D, H, W).

    >>> channels_first(np.zeros((5, 6, 3)), "YXS").shape
    (3, 5, 6)
    """
    kept = [place for place, axis in enumerate(axes) if axis in "CSZYX" + _UNNAMED]  # others have one entry
    values = values.reshape([values.shape[place] for place in kept])
    axes = "".join(axes[place] for place in kept)
    groups = ("CS", SLICES, "Y", "X")
    order = [place for group in groups for place, axis in enumerate(axes) if axis in group]
    sizes = [math.prod(values.shape[place] for place, axis in enumerate(axes) if axis in group) for group in groups]
    found: npt.NDArray[Any] = values.transpose(order).reshape(sizes if dims == 3 else [sizes[0], *sizes[2:]])
    return found


def plain_values(values: npt.NDArray[Any], path: Path) -> StoredPixels:
    """Values of the types that images have: others than bool, uint8 and uint16 become float32.

    Raises:
        UsageError: they are no numbers, or complex.
    """
    if values.dtype.kind not in "biuf":
        raise UsageError(f"{path} holds {values.dtype}; images hold whole numbers or floats")
    native = values.astype(values.dtype.newbyteorder("="), copy=False)
    return native if native.dtype in (np.bool_, np.uint8, np.uint16) else native.astype(np.float32)


@contextmanager
def _opened(path: Path, dims: int | None) -> Iterator[tuple[Layout, Any]]:
    check_regular(path)
    name = path.name.lower()
    kind = _tiff if name.endswith(TIFF) else partial(_npy, dims=dims) if name.endswith(NPY) else _hdf5
    with kind(path) as (layout, array):
        wrong = [axis for axis in layout.axes if axis not in "CSZYX" + _UNNAMED and layout.extent(axis) > 1]
        if wrong or layout.axes.count("Y") != 1 or layout.axes.count("X") != 1 or math.prod(layout.shape) == 0:
            raise UsageError(
                f"{path} has the axes {layout.axes} of sizes {layout.shape}; an image has Y and X, channels C, and "
                "slices Z. Save one time or position of it as a file of its own"
            )
        yield layout, array


# -- TIFF --------------------------------------------------------------------------------------------------------------


@contextmanager
def _tiff(path: Path) -> Iterator[tuple[Layout, Any]]:
    tifffile = library("tifffile", "tiff", path)
    try:
        with tifffile.TiffFile(path) as file:
            series = [one for one in file.series if not one.keyframe.is_reduced]  # thumbnails are
            if len(series) != 1:
                raise UsageError(
                    f"{path} holds {len(series)} images of different sizes or kinds; save the one that is meant as a "
                    "file of its own"
                )
            (chosen,) = series
            if chosen.keyframe.tags.valueof("Orientation", 1) != 1:
                raise UsageError(f"{path} is a TIFF with an orientation tag; save it again, turned upright")
            yield Layout(chosen.axes, chosen.shape, chosen.dtype, _tiff_spacing(file)), chosen
    except UsageError:
        raise
    except (OSError, ValueError, KeyError, IndexError, TypeError, struct.error, tifffile.TiffFileError) as error:
        if "imagecodecs" in str(error):
            raise MissingDependency(
                f"{path} is compressed in a way that needs imagecodecs, which is not installed: pip install "
                "'regloss[microscopy]'."
            ) from error
        raise UsageError(f"{path} cannot be read as TIFF: {error or type(error).__name__}") from error


def _tiff_spacing(file: Any) -> tuple[float, float, float] | None:
    """Along Z, Y and X in mm, by OME or ImageJ; resolutions of other programs are mostly those of a printer."""
    if file.is_ome:
        elements = ElementTree.fromstring(file.ome_metadata).iter()
        sizes = next((element.attrib for element in elements if element.tag.endswith("}Pixels")), {})
        lengths = [
            float(sizes.get(f"PhysicalSize{axis}", "nan"))
            * _MM.get(sizes.get(f"PhysicalSize{axis}Unit", "µm"), math.nan)
            for axis in "ZYX"
        ]
        return _spacing(lengths)
    if file.is_imagej:
        about, tags = file.imagej_metadata, file.pages[0].tags
        unit = _MM.get(str(about.get("unit", "")).replace("\\u00B5", "µ"), math.nan)
        across = [
            unit * tags[name].value[1] / tags[name].value[0] if name in tags and tags[name].value[0] else math.nan
            for name in ("YResolution", "XResolution")
        ]
        return _spacing([unit * float(about.get("spacing", "nan")), *across])
    return None


def _spacing(lengths: Sequence[float]) -> tuple[float, float, float] | None:
    """Three lengths; of one slice, no distance between slices is known, and plays no part."""
    slices, down, right = lengths
    if not (down > 0 and right > 0 and math.isfinite(down * right)):
        return None
    return (slices if slices > 0 and math.isfinite(slices) else math.nan, down, right)


# -- NPY and HDF5 ------------------------------------------------------------------------------------------------------


@contextmanager
def _npy(path: Path, dims: int | None) -> Iterator[tuple[Layout, Any]]:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UsageError(f"{path} cannot be read as NPY: {error or type(error).__name__}") from error
    if not isinstance(array, np.ndarray):
        raise UsageError(f"{path} is an archive of several arrays; save the one that is meant by numpy.save")
    axes = {2: "YX", 3: "ZYX" if dims == 3 else None, 4: "CZYX"}.get(array.ndim)
    if array.ndim == 3 and dims != 3:
        axes = (
            "CYX" if array.shape[0] < min(array.shape[1:]) else "YXC" if array.shape[2] < min(array.shape[:2]) else None
        )
    if axes is None:
        raise UsageError(
            f"{path} has the shape {array.shape}; an image is (H, W), (C, H, W) or (H, W, C) with fewer channels than "
            "rows and columns, a volume (C, D, H, W), of one channel array[None]"
        )
    yield Layout(axes, array.shape, array.dtype), array


@contextmanager
def _hdf5(path: Path) -> Iterator[tuple[Layout, Any]]:
    h5py = library("h5py", "hdf5", path)
    try:
        with h5py.File(path, "r") as file:
            arrays = [name for name, one in file.items() if isinstance(one, h5py.Dataset)]
            name = "image" if "image" in arrays else arrays[0] if len(arrays) == 1 else None
            if name is None:
                raise UsageError(f"{path} holds {listed(arrays) or 'no array'}; the image is to be called 'image'")
            array = file[name]
            yield Layout(_hdf5_axes(path, array), array.shape, array.dtype), array
    except OSError as error:
        raise UsageError(f"{path} cannot be read as HDF5: {error}") from error


def _hdf5_axes(path: Path, array: Any) -> str:
    if "axistags" in array.attrs:
        try:
            return "".join(str(axis["key"]) for axis in json.loads(array.attrs["axistags"])["axes"]).upper()
        except (ValueError, KeyError, TypeError) as error:
            raise UsageError(f"{path}: its axistags cannot be read: {error}") from error
    axes = {2: "YX", 3: "ZYX", 4: "CZYX"}.get(array.ndim)
    if axes is None:
        raise UsageError(f"{path} has an image of {array.ndim} axes; needed are (H, W), (D, H, W) or (C, D, H, W)")
    return axes


def library(name: str, extra: str, path: Path) -> Any:
    """A module that an extra brings.

    Raises:
        MissingDependency: it is not installed.
    """
    from importlib import import_module

    try:
        return import_module(name)
    except ImportError as cause:
        raise MissingDependency(
            f"{path} needs {name}, which is not installed: pip install 'regloss[{extra}]'."
        ) from cause
