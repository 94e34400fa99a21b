"""DICOM by SimpleITK: a file as an image, a folder with one series as a volume.

Values are those that the file's rescaling gives, Hounsfield units in CT, so that images need a window.
"""

from __future__ import annotations

import locale
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from regloss.errors import UsageError, listed
from regloss.io.limits import check_regular
from regloss.io.stacks import library, plain_values
from regloss.io.types import Header, StoredPixels

SUFFIX = ".dcm"


@contextmanager
def locale_kept() -> Iterator[None]:
    """Undo that reading DICOM changes the locale of the process, and with it the encoding of text files."""
    before = locale.setlocale(locale.LC_ALL)
    try:
        yield
    finally:
        locale.setlocale(locale.LC_ALL, before)


@locale_kept()
def read_header(path: Path) -> Header:
    """Size and channels of an image, without decoding it.

    Raises:
        UsageError: the file cannot be read, or holds several frames.
        MissingDependency: SimpleITK is not installed.
    """
    reader = library("SimpleITK", "volumes", path).ImageFileReader()
    check_regular(path)
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise UsageError(f"{path} cannot be read as DICOM: {last_line(error)}") from error
    width, height, *frames = reader.GetSize()
    if any(count > 1 for count in frames):
        raise UsageError(f"{path} holds {frames[0]} frames; save the one that is meant as a file of its own")
    bits = 8 if reader.GetPixelIDValue() in (1, 13) else 32  # SimpleITK's numbers of 8 bits without sign
    return Header((height, width), reader.GetNumberOfComponents(), bits)


@locale_kept()
def read_pixels(path: Path) -> StoredPixels:
    """One image as stored, (C, H, W); 16 bits become float32, as they may be negative.

    Raises:
        UsageError: as `read_header`.
        MissingDependency: SimpleITK is not installed.
    """
    header = read_header(path)
    itk = library("SimpleITK", "volumes", path)
    try:
        image = itk.ReadImage(str(path))
    except RuntimeError as error:
        raise UsageError(f"{path} cannot be read as DICOM: {last_line(error)}") from error
    values = np.asarray(itk.GetArrayFromImage(image)).reshape(*header.size, header.channels)
    return np.ascontiguousarray(np.moveaxis(plain_values(values, path), -1, 0))


def has_series(folder: Path) -> bool:
    """Whether a folder holds files called .dcm."""
    return folder.is_dir() and any(path.name.lower().endswith(SUFFIX) for path in folder.iterdir())


@locale_kept()
def series_reader(folder: Path) -> Any:
    """SimpleITK's reader of the one series in a folder.

    Raises:
        UsageError: there is none, or several.
        MissingDependency: SimpleITK is not installed.
    """
    itk = library("SimpleITK", "volumes", folder)
    series = itk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder))
    if len(series) != 1:
        found = listed(series) if series else "none"
        raise UsageError(f"{folder} holds {len(series)} DICOM series ({found}); give a folder that holds one")
    reader = itk.ImageSeriesReader()
    reader.SetFileNames(itk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), series[0]))
    return reader


def last_line(error: Exception) -> str:
    """What SimpleITK says in the end."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]
