"""Volumes in the formats of medical imaging, with the spacing of their voxels, and label volumes of the same geometry.

    NIfTI              .nii, .nii.gz               nibabel
    NRRD, MetaImage    .nrrd, .nhdr, .mha, .mhd    SimpleITK
    DICOM              a folder with one series    SimpleITK
    TIFF, NPY, HDF5    .tif, .npy, .h5 ...         see `regloss.io.stacks`; a spacing that they do not state is given,
                                                   or counts as 1

Arrays are (C, *S) with the axes of S from the slowest to the fastest of the file, (slice, row, column) as scanners
store them; ``spacing`` and everything that is drawn follow that order. Channels are NIfTI's fifth axis, the components
of NRRD and MetaImage, and the axis C of the others. A fourth axis of NIfTI is time, of which a volume has none, unless
the caller says that it is channels, as of modalities that were stacked. Voxels are never resampled or flipped: what is
written has the geometry of what was read, so that it lies on the image in any viewer.

Both libraries come with ``pip install 'regloss[volumes]'``.
"""

from __future__ import annotations

import gzip
import itertools
import math
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from regloss.errors import MissingDependency, UsageError
from regloss.io import dicom, stacks
from regloss.io.limits import check_regular
from regloss.io.outputs import replace_file
from regloss.io.types import LabelMap, StoredLabels
from regloss.io.windows import Window

NIFTI = (".nii", ".nii.gz")
ITK = (".nrrd", ".nhdr", ".mha", ".mhd")
VOLUME_SUFFIXES = (*NIFTI, *ITK)
"""Endings of files that are volumes, whatever is in them, in lower case."""

STORED_SUFFIXES = (*VOLUME_SUFFIXES, ".ome.tif", ".ome.tiff", *stacks.STACK_SUFFIXES)
"""Endings of all files that may be, where volumes are expected."""

_LARGEST_LABEL = 65535
_CLOSE = 0.1  # of the smallest spacing: voxels so near to each other are the same


@dataclass(frozen=True)
class Geometry:
    """Where voxels lie.

    Attributes:
        size: (*S), slowest axis of the file first.
        spacing: distance between neighbouring voxels along each of these axes, in mm.
        affine: (4, 4) float64, from indices (fastest axis first, as NIfTI has it) to mm in the axes right, anterior,
            superior.
        measured: whether the file says its spacing, so that it can be wrong.
        placed: whether it says place and orientation.
    """

    size: tuple[int, ...]
    spacing: tuple[float, ...]
    affine: npt.NDArray[np.float64]
    measured: bool = True
    placed: bool = True

    def check_same(self, other: Geometry, mine: Path, others: Path) -> None:
        """Refuse two files whose voxels do not lie on each other.

        Raises:
            UsageError: sizes, spacings, or places and orientations differ; the message names both files and what.
        """
        if self.size != other.size:
            raise UsageError(f"{others} has the size {other.size}, {mine} {self.size} (slices first). They must agree.")
        if not (self.measured and other.measured):
            return
        same_spacing = np.allclose(self.spacing, other.spacing, rtol=_CLOSE / max(self.size))
        if same_spacing and not (self.placed and other.placed):
            return
        # Headers round to single precision, so what counts is how far voxels are apart: a corner is farthest.
        corners = np.array(list(itertools.product(*((0, count - 1) for count in self.size[::-1]))))
        moved = corners @ (self.affine - other.affine)[:3, :3].T + (self.affine - other.affine)[:3, 3]
        apart = float(np.linalg.norm(moved, axis=1).max())
        if apart > _CLOSE * min(self.spacing):
            if not same_spacing:
                found = f"the spacing {_rounded(other.spacing)} mm, {mine} {_rounded(self.spacing)} mm"
            else:
                found = f"another place or orientation than {mine} (voxels are up to {apart:.3g} mm apart)"
            raise UsageError(f"{others} has {found}. Resample it onto the image's grid with the program that made it.")


@dataclass(frozen=True)
class StoredVolume:
    """A volume as its file has it.

    Attributes:
        values: (C, *S), integers as stored, or float32 where the file scales its values.
        geometry: where they lie.
    """

    values: npt.NDArray[Any]
    geometry: Geometry


def is_volume(path: Path) -> bool:
    """Whether it is a file that ends as volumes do, a stack of several slices, or a folder with DICOM files."""
    name = path.name.lower()
    if name.endswith(VOLUME_SUFFIXES):
        return True
    if name.endswith(stacks.STACK_SUFFIXES) and path.is_file() and stacks.may_be_volume(path):
        return stacks.read_layout(path).is_volume
    return dicom.has_series(path)


def read_volume(path: Path, spacing: Sequence[float] | None = None, channels: int | None = None) -> StoredVolume:
    """One volume of three axes, as stored.

    Args:
        path: a file of those at the top of this module, or a folder with a DICOM series.
        spacing: of files that do not state theirs; None = 1.
        channels: how many are expected; a last, fourth axis of this length holds them. None = as many as there are.

    Raises:
        UsageError: the file is damaged or of another kind, has a time axis or none that are spatial, another number of
            channels, voxels that are colours or complex numbers, NaN, or a spacing that is not positive.
        MissingDependency: the library that reads this format is not installed.
    """
    name = path.name.lower()
    measured = placed = True
    if path.is_dir():
        values, affine = _read_series(path)
    elif name.endswith(stacks.STACK_SUFFIXES):
        _, _, affine, measured = _stack_header(path, spacing)
        values, placed = stacks.read_stack(path, dims=3), False
    else:
        check_regular(path)
        values, affine = (_read_nifti if name.endswith(NIFTI) else _read_itk)(path, channels)
    _check_channels(path, len(values), channels)
    if values.dtype.kind not in "biuf":
        raise UsageError(f"{path} holds {values.dtype} voxels; integers or floats are needed. Save one channel of it.")
    if values.dtype.kind == "f":
        if not np.isfinite(values).all():
            count = int((~np.isfinite(values)).sum())
            raise UsageError(f"{path} holds {count} voxels that are NaN or infinite; replace them.")
        values = values.astype(np.float32)
    geometry = _geometry(path, values.shape[:0:-1], affine, measured=measured, placed=placed)
    return StoredVolume(np.ascontiguousarray(values), geometry)


def read_header(
    path: Path, spacing: Sequence[float] | None = None, channels: int | None = None
) -> tuple[int, Geometry]:
    """Channels of a file, and where its voxels lie, from its header alone, but for DICOM.

    Args:
        path: see `read_volume`.
        spacing: see `read_volume`.
        channels: see `read_volume`.

    Raises:
        UsageError: as `read_volume`, as far as headers tell.
    """
    if path.is_dir():
        volume = read_volume(path, channels=channels)
        return len(volume.values), volume.geometry
    measured, placed = True, True
    if path.name.lower().endswith(stacks.STACK_SUFFIXES):
        (found, shape, affine, measured), placed = _stack_header(path, spacing), False
    else:
        check_regular(path)
        found, shape, affine = (_nifti_header if path.name.lower().endswith(NIFTI) else _itk_header)(path, channels)
    _check_channels(path, found, channels)
    return found, _geometry(path, shape, affine, measured=measured, placed=placed)


def read_geometry(path: Path, spacing: Sequence[float] | None = None) -> Geometry:
    """Where the voxels of a file lie; see `read_header`."""
    return read_header(path, spacing)[1]


def percentile_window(values: npt.NDArray[Any], low: float = 0.5, high: float = 99.5) -> Window:
    """From one percentile of the values to another, a little of what scanners leave at both ends being cut off.

    Raises:
        UsageError: all values between them are alike.

    >>> percentile_window(np.arange(1001), 1, 99)
    Window(low=10.0, high=990.0, bits=None)
    """
    least, most = (float(end) for end in np.percentile(values, [low, high]))
    if least == most:
        least, most = float(values.min()), float(values.max())
    if least == most:
        raise UsageError(f"All voxels have the value {least:g}, so there is nothing to tell classes apart by.")
    return Window(least, most)


def read_label_volume(path: Path) -> tuple[StoredLabels, Geometry]:
    """A volume of labels or scribbles: (*S) uint8 or uint16, whatever values it holds, and where they lie.

    Raises:
        UsageError: as `read_volume`; values that are no whole numbers of 0 to 65535.
    """
    stored = read_volume(path, channels=1)
    values = stored.values[0]
    whole = values if values.dtype.kind in "bui" else np.round(values)
    wrong = (whole != values) | (whole < 0) | (whole > _LARGEST_LABEL)
    if wrong.any():
        raise UsageError(
            f"{path} holds {values[wrong][0]:g}; labels are whole numbers of 0 to {_LARGEST_LABEL}. Is it the image?"
        )
    return whole.astype(np.uint8 if whole.max() <= 255 else np.uint16), stored.geometry


def write_label_volume(path: Path, labels: LabelMap, geometry: Geometry, *, durable: bool = False) -> None:
    """Write labels (*S) as NIfTI of uint8 with the geometry of the image that they belong to.

    Args:
        path: ends in .nii or .nii.gz; an existing file is replaced.
        labels: (*S).
        geometry: where they lie.
        durable: wait until the disk has it; see `regloss.io.outputs.replace_file`.

    Raises:
        UsageError: the name does not end in .nii or .nii.gz.
        FailedWrite: the disk is full, say.
        MissingDependency: nibabel is not installed.
    """
    if not path.name.lower().endswith(NIFTI):
        raise UsageError(
            f"A label volume is written as NIfTI: its name must end in .nii or .nii.gz; got {path.name!r}."
        )
    nibabel = _library("nibabel", path)
    image = nibabel.Nifti1Image(np.ascontiguousarray(labels.transpose(2, 1, 0)), geometry.affine)
    image.header.set_xyzt_units("mm")
    data = image.to_bytes()
    if path.name.lower().endswith(".gz"):
        data = gzip.compress(data, 1, mtime=0)  # as the library does: labels shrink to little at any level
    replace_file(path, data, durable=durable)


def _geometry(
    path: Path, shape: Sequence[int], affine: npt.NDArray[np.float64], *, measured: bool = True, placed: bool = True
) -> Geometry:
    """Of a file's shape, fastest axis first."""
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    if not (np.isfinite(affine).all() and (lengths > 0).all()):
        raise UsageError(f"{path} has the spacing {_rounded(lengths)} mm; each must be positive. Repair its header.")
    return Geometry(tuple(shape[::-1]), tuple(float(length) for length in lengths[::-1]), affine, measured, placed)


def _check_channels(path: Path, found: int, wanted: int | None) -> None:
    if wanted is not None and found != wanted:
        raise UsageError(
            f"{path} has {found} channel{'s' * (found > 1)}, but {wanted} {'are' if wanted > 1 else 'is'} needed."
        )


def _nifti_header(path: Path, channels: int | None) -> tuple[int, tuple[int, ...], npt.NDArray[np.float64]]:
    """Channels, shape with the fastest axis first, and the affine."""
    with _nifti(path) as image:
        *shape, found = _nifti_shape(path, image, channels)
        return found, tuple(shape), np.asarray(image.affine, dtype=np.float64)


def _read_nifti(path: Path, channels: int | None) -> tuple[npt.NDArray[Any], npt.NDArray[np.float64]]:
    """Voxels (C, *S), and the affine."""
    with _nifti(path) as image:
        shape = _nifti_shape(path, image, channels)
        scaled = image.dataobj.slope not in (1, None) or image.dataobj.inter not in (0, None)
        kind = image.get_data_dtype()
        if kind.kind not in "biuf":
            return np.empty(shape[::-1], kind), np.eye(4)  # refused by its type
        values = np.asarray(image.dataobj, dtype=np.float64 if scaled else None).reshape(shape)
        return values.T, np.asarray(image.affine, dtype=np.float64)


@contextmanager
def _nifti(path: Path) -> Iterator[Any]:
    """An image of nibabel, whose errors become sentences within."""
    nibabel = _library("nibabel", path)
    try:
        with nibabel.imageglobals.LoggingOutputSuppressor():  # of what a header has that is repaired, or refused here
            image = nibabel.load(path)
        _check_steps(path, type(image.header), nibabel.openers.ImageOpener)
        yield image
    except UsageError:
        raise
    except (EOFError, OSError, ValueError, zlib.error, nibabel.filebasedimages.ImageFileError) as cause:
        raise UsageError(f"{path} cannot be read as NIfTI: {cause or type(cause).__name__}.") from cause
    except nibabel.spatialimages.HeaderDataError as cause:
        raise UsageError(f"{path} has a header that is invalid: {cause}.") from cause


def _check_steps(path: Path, kind: Any, opener: Any) -> None:
    """Refuse steps of 0, in a file that says by these alone where its voxels lie: nibabel turns them into 1."""
    with opener(str(path)) as file:
        header = kind.from_fileobj(file, check=False)
    steps = np.abs(header["pixdim"][1:4])
    if header["sform_code"] == 0 and not steps.all():
        raise UsageError(f"{path} has the spacing {_rounded(steps)} mm; each must be positive. Repair its header.")


def _nifti_shape(path: Path, image: Any, channels: int | None) -> tuple[int, ...]:
    """Sizes of the three axes, fastest first, and the number of channels."""
    shape = tuple(image.shape)
    if len(shape) == 5 and shape[3] == 1:  # x, y, z, no time, components
        shape = (*shape[:3], shape[4])
    kept = tuple(size for axis, size in enumerate(shape) if axis < 3 or size != 1)
    told = len(image.shape) == 5 and len(kept) == 4
    _check_axes(path, kept[:3] if told else kept, channels)
    return (*kept, 1) if len(kept) == 3 else kept


@dicom.locale_kept()
def _read_series(folder: Path) -> tuple[npt.NDArray[Any], npt.NDArray[np.float64]]:
    """The DICOM series in a folder, in the values that its rescaling gives."""
    reader = dicom.series_reader(folder)
    with _itk_errors(folder):
        image = reader.Execute()
    return _itk_values(image), _itk_affine(folder, image, None)


def _stack_header(
    path: Path, spacing: Sequence[float] | None
) -> tuple[int, tuple[int, ...], npt.NDArray[np.float64], bool]:
    """Channels, shape with the fastest axis first, and affine of a stack, and whether its spacing is its own."""
    layout = stacks.read_layout(path, dims=3)
    slices, rows, columns = (layout.extent(axes) for axes in (stacks.SLICES, "Y", "X"))
    if slices < 2:
        raise UsageError(
            f"{path} is a picture of {rows} x {columns} pixels, not a volume, which has several slices. The data set "
            "folder reads pictures."
        )
    known = layout.spacing is not None and bool(np.isfinite(layout.spacing).all())
    steps = layout.spacing if layout.spacing is not None and known else spacing or (1.0, 1.0, 1.0)
    return layout.channels, (columns, rows, slices), np.diag([*steps[::-1], 1.0]), known


def _read_itk(path: Path, channels: int | None) -> tuple[npt.NDArray[Any], npt.NDArray[np.float64]]:
    """Voxels (C, *S), and the affine."""
    with _itk_errors(path):
        image = _library("SimpleITK", path).ReadImage(str(path))
    affine = _itk_affine(path, image, channels)
    return _itk_values(image), affine


def _itk_values(image: Any) -> npt.NDArray[Any]:
    """(C, *S): components of voxels are its last axis, images beside each other its first."""
    import SimpleITK

    values: npt.NDArray[Any] = SimpleITK.GetArrayFromImage(image)
    if image.GetNumberOfComponentsPerPixel() > 1:
        return np.moveaxis(values, -1, 0)
    return values if values.ndim == 4 else values[None]


def _itk_header(path: Path, channels: int | None) -> tuple[int, tuple[int, ...], npt.NDArray[np.float64]]:
    """Channels, shape with the fastest axis first, and the affine."""
    reader = _library("SimpleITK", path).ImageFileReader()
    with _itk_errors(path):
        reader.SetFileName(str(path))
        reader.ReadImageInformation()
    affine = _itk_affine(path, reader, channels)
    size = tuple(reader.GetSize())
    return reader.GetNumberOfComponents() if len(size) == 3 else size[3], size[:3], affine


@contextmanager
def _itk_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except RuntimeError as cause:
        said = str(cause).strip().splitlines()
        raise UsageError(f"{path} cannot be read: {said[-1] if said else cause}.") from cause


def _itk_affine(path: Path, image: Any, channels: int | None) -> npt.NDArray[np.float64]:
    """Of an image, or of a reader that has read a header."""
    size = image.GetSize()
    _check_axes(path, size, channels)
    axes = len(size)
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(axes, axes)[:3, :3] * np.array(image.GetSpacing())[:3]
    affine[:3, 3] = image.GetOrigin()[:3]
    affine[:2] *= -1  # its axes are left and posterior, those of an affine right and anterior
    return affine


def _check_axes(path: Path, shape: Sequence[int], channels: int | None) -> None:
    """Refuse a file whose axes are not three, or three and one of so many channels."""
    if len(shape) != 3 and not (len(shape) == 4 and shape[3] == channels):
        way_out = "Save one time or channel of it as a file of its own."
        if len(shape) == 4:
            way_out = (
                "Save one time of it as a file of its own; or, if the last axis holds channels, say how many: "
                f"channels = {shape[3]} of the data set volumes, --channels {shape[3]} of regloss segment."
            )
        raise UsageError(f"{path} has {len(shape)} axes, of sizes {tuple(shape)}; a volume has three. {way_out}")
    if math.prod(shape) == 0:
        raise UsageError(f"{path} has no voxels: its sizes are {tuple(shape)}.")


def _library(name: str, path: Path) -> ModuleType:
    from importlib import import_module

    try:
        return import_module(name)
    except ImportError as cause:
        raise MissingDependency(
            f"{path} needs {name}, which is not installed: pip install 'regloss[volumes]'."
        ) from cause


def _rounded(numbers: Sequence[float] | npt.NDArray[np.float64]) -> tuple[float, ...]:
    return tuple(float(f"{number:.4g}") for number in numbers)
