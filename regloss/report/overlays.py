"""Labels over images: blended, outlined, as scribbles; and maps of numbers as shades of grey."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from regloss.dataset import IGNORE
from regloss.errors import UsageError
from regloss.io.labels import class_indices
from regloss.io.palettes import IGNORE_COLOR, Colors
from regloss.io.types import LabelMap

Picture: TypeAlias = npt.NDArray[np.uint8]
"""(H, W, 3) RGB, 0..255."""

_BAND = 32  # rows


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
    # What is added to a pixel by its label, and what is kept of it; 255 shows the image.
    paint, kept = np.zeros((256, 3)), np.ones((256, 1))
    paint[: len(colors)], kept[: len(colors)] = alpha * np.asarray(colors, dtype=np.float64), 1 - alpha
    shown = np.moveaxis(image if image.shape[0] == 3 else image[:1], 0, -1)
    picture: Picture = np.empty((*labels.shape, 3), dtype=np.uint8)
    # By bands of rows, which stay in the cache: a large photograph takes many times its size in double precision.
    for start in range(0, labels.shape[0], _BAND):
        rows = slice(start, start + _BAND)
        band = 255 * np.clip(shown[rows], 0, 1).astype(np.float64)
        picture[rows] = np.rint(kept[indices[rows]] * band + paint[indices[rows]])
    return picture


def outlined(image: npt.NDArray[np.float32], labels: LabelMap, colors: Colors) -> Picture:
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
    edge = _thickened(edge, _thickness(labels))
    picture = overlay(image, fill, palette, alpha=0.45)
    edge &= fill != IGNORE
    picture[edge] = np.asarray(palette, dtype=np.uint8)[fill[edge]]
    return picture


def shades(numbers: npt.NDArray[np.float32]) -> Picture:
    """A map (H, W) from dark to bright."""
    low, high = float(numbers.min()), float(numbers.max())
    shades = np.rint(255 * (numbers - low) / max(high - low, 1e-12)).astype(np.uint8)
    return np.repeat(shades[..., None], 3, axis=2)


def scribble_panel(image: npt.NDArray[np.float32], labels: LabelMap, colors: Colors) -> Picture:
    """Scribbles opaque, with a thin white rim: a black scribble on a dark image would not be seen."""
    drawn = labels != IGNORE
    rim = _thickened(drawn, 1 + _thickness(labels)) & ~drawn
    picture = overlay(image, labels, colors, alpha=1.0)
    picture[rim] = 255
    return picture


def _thickness(labels: LabelMap) -> int:
    """Pixels by which lines are thickened, so that they survive when a large image is shown small."""
    longest: int = max(labels.shape)
    return longest // 400


def _thickened(mask: npt.NDArray[np.bool_], pixels: int) -> npt.NDArray[np.bool_]:
    """The pixels at most so many steps along the axes from a mask (H, W)."""
    for _ in range(pixels):
        wider = mask.copy()
        wider[1:] |= mask[:-1]
        wider[:-1] |= mask[1:]
        wider[:, 1:] |= mask[:, :-1]
        wider[:, :-1] |= mask[:, 1:]
        mask = wider
    return mask
