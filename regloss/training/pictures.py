"""Labels as pictures: blended with an image, outlined on it, as scribbles, as indexed PNG files."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import ndimage

from regloss.dataset import IGNORE
from regloss.errors import UsageError

Color = tuple[int, int, int]
Colors = Sequence[Color]
Labels = npt.NDArray[np.uint8]
Picture = npt.NDArray[np.uint8]
IGNORE_COLOR: Color = (224, 224, 192)
"""What 255 looks like where it has to be shown: PASCAL VOC's colour for it."""


def overlay(
    image: npt.NDArray[np.floating[Any]], labels: npt.NDArray[Any], colors: Colors, alpha: float = 0.5
) -> Picture:
    """Paint ``labels`` over ``image``.

    Args:
        image: (C, H, W) in [0, 1]; three channels are RGB, of others the first is shown in grey.
        labels: (H, W) integer class indices; pixels with 255 show the image.
        colors: one RGB triple of 0..255 for each class.
        alpha: 0 shows the image alone, 1 hides it (for scribbles).

    Returns:
        (H, W, 3) RGB.

    Raises:
        UsageError: shapes differ, ``alpha`` is not in [0, 1], or a value is neither a class nor 255.

    >>> overlay(np.zeros((1, 1, 2)), np.array([[0, 255]]), [(200, 100, 0)]).tolist()
    [[[100, 50, 0], [0, 0, 0]]]
    """
    if image.ndim != 3 or labels.shape != image.shape[1:]:
        raise UsageError(
            f"An overlay needs an image (C, H, W) and labels (H, W) of its size; got {image.shape} and {labels.shape}. "
            "Of a volume, take one slice."
        )
    if not 0 <= alpha <= 1:
        raise UsageError(f"An overlay's alpha must lie in [0, 1]; got {alpha}.")
    indices = class_indices(labels, colors)
    picture = 255 * np.clip(image if image.shape[0] == 3 else image[:1], 0, 1).astype(np.float64)
    picture = np.broadcast_to(np.moveaxis(picture, 0, -1), (*labels.shape, 3)).copy()
    painted = indices != IGNORE
    paint = np.asarray(colors, dtype=np.float64)[indices[painted]]
    picture[painted] = (1 - alpha) * picture[painted] + alpha * paint
    rounded: Picture = np.rint(picture).astype(np.uint8)
    return rounded


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


def class_indices(labels: npt.NDArray[Any], colors: Colors) -> Labels:
    """Labels as uint8, once it is checked that each has a colour or is 255."""
    if labels.dtype.kind not in "iu":
        raise UsageError(f"A label map must hold integers; got {labels.dtype}. Of probabilities take the argmax.")
    wrong = (labels != IGNORE) & ((labels < 0) | (labels >= len(colors)))
    if wrong.any():
        values = np.unique(labels[wrong]).tolist()[:10]
        raise UsageError(f"Labels must be 0 to {len(colors) - 1} (one colour each), or 255; found also {values}.")
    return np.ascontiguousarray(labels, dtype=np.uint8)


def replace_file(path: Path, data: bytes) -> None:
    """Write a file so that it is either all there or as before."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def outlined(image: npt.NDArray[np.float32], labels: Labels, colors: Colors) -> Picture:
    """Dense labels (H, W) over an image (C, H, W): transparent fill with opaque outlines.

    A black background stays image, since black paint only darkens.
    """
    palette = [*colors, IGNORE_COLOR]
    fill = np.where(labels == IGNORE, np.uint8(len(colors)), labels)
    if tuple(colors[0]) == (0, 0, 0):
        fill[labels == 0] = IGNORE
    edge = np.zeros(labels.shape, dtype=bool)
    for axis in (0, 1):
        step = np.diff(labels.astype(np.int16), axis=axis) != 0
        edge |= np.pad(step, [(0, int(axis == 0)), (0, int(axis == 1))])
        edge |= np.pad(step, [(int(axis == 0), 0), (int(axis == 1), 0)])
    edge = ndimage.binary_dilation(edge, iterations=_thickness(labels)) if _thickness(labels) else edge
    outline = np.where(edge, fill, IGNORE)
    picture = overlay(image, fill, palette, alpha=0.45)
    return np.where(outline[..., None] != IGNORE, overlay(image, outline, palette, alpha=1.0), picture)


def shades(numbers: npt.NDArray[np.float32]) -> Picture:
    """A map (H, W) from dark to bright."""
    low, high = float(numbers.min()), float(numbers.max())
    shades = np.rint(255 * (numbers - low) / max(high - low, 1e-12)).astype(np.uint8)
    return np.repeat(shades[..., None], 3, axis=2)


def scribble_panel(image: npt.NDArray[np.float32], labels: Labels, colors: Colors) -> Picture:
    """Scribbles opaque, with a thin white rim: a black scribble on a dark image would not be seen."""
    drawn = labels != IGNORE
    rim = ndimage.binary_dilation(drawn, iterations=1 + _thickness(labels)) & ~drawn
    picture = overlay(image, labels, colors, alpha=1.0)
    picture[rim] = 255
    return picture


def _thickness(labels: Labels) -> int:
    """Pixels by which lines are thickened, so that they survive when a large image is shown small."""
    longest: int = max(labels.shape)
    return longest // 400
