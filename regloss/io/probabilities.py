"""Probabilities of classes in files: NumPy arrays, or TIFFs with a page for each class."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from regloss.errors import UsageError
from regloss.io.outputs import replace_file
from regloss.io.types import FloatImage


def _npy(probabilities: FloatImage, buffer: io.BytesIO) -> None:
    np.save(buffer, probabilities)


def _tiff(probabilities: FloatImage, buffer: io.BytesIO) -> None:
    first, *others = (Image.fromarray(page) for page in probabilities)
    first.save(buffer, format="TIFF", save_all=True, append_images=others, compression="tiff_adobe_deflate")


WRITERS: Mapping[str, tuple[str, Callable[[FloatImage, io.BytesIO], None]]] = {
    "npy": (".npy", _npy),
    "tiff": (".tif", _tiff),
}
"""Formats by name: the end of a file's name, and what writes it."""


def check_format(name: str) -> str:
    """``name`` itself, if there is such a format.

    Raises:
        UsageError: there is none.
    """
    if name not in WRITERS:
        raise UsageError(f"Probabilities are written as {' or '.join(WRITERS)}; got {name!r}.")
    return name


def save_probabilities(folder: Path, stem: str, probabilities: FloatImage, format: str) -> Path:
    """Write probabilities; the file appears complete or not at all.

    Args:
        folder: that exists.
        stem: the file's name without its end.
        probabilities: (K, H, W) float32.
        format: "npy", one array (K, H, W), which `numpy.load` reads; "tiff", K pages of 32-bit floats.

    Returns:
        The file.

    Raises:
        UsageError: there is no such format.
    """
    suffix, write = WRITERS[check_format(format)]
    buffer = io.BytesIO()
    write(np.ascontiguousarray(probabilities, dtype=np.float32), buffer)
    path = folder / f"{stem}{suffix}"
    replace_file(path, buffer.getvalue())
    return path
