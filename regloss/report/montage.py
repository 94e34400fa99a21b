"""Slices of a volume through its three axes, in one picture with physical proportions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from regloss.io.palettes import Colors
from regloss.io.types import FloatImage, LabelMap
from regloss.report.overlays import Picture, outlined

_GAP = 4  # pixels between slices
_SIDE = 1600  # pixels, of the longer side of the picture, about


def montage(
    image: FloatImage, labels: LabelMap, colors: Colors, spacing: Sequence[float] | None = None, columns: int = 5
) -> Picture:
    """Labels over a volume: a row of slices for each axis, evenly spaced through what is labelled other than 0.

    Args:
        image: (C, D, H, W) in [0, 1]; see `overlay` for its channels.
        labels: (D, H, W) class indices, 255 = no label.
        colors: one RGB triple of 0..255 for each class.
        spacing: of the three axes; None = 1. A pixel of the picture has the same length in both directions.
        columns: slices in a row.

    Returns:
        (H', W', 3) RGB, on black.
    """
    steps = (1.0, 1.0, 1.0) if spacing is None else tuple(spacing)
    extents = [size * step for size, step in zip(labels.shape, steps, strict=True)]
    widths = [max(extent for other, extent in enumerate(extents[1:], 1) if other != axis) for axis in range(3)]
    scale = _SIDE / (columns * max(widths))  # pixels per mm
    rows = []
    for axis in range(3):
        tall, wide = (extents[other] for other in range(3) if other != axis)
        size = max(1, round(wide * scale)), max(1, round(tall * scale))
        row = []
        for place in _places(labels, axis, columns):
            shown = outlined(np.take(image, place, axis=axis + 1), np.take(labels, place, axis=axis), colors)
            row.append(np.asarray(Image.fromarray(shown).resize(size, Image.Resampling.BILINEAR)))
        rows.append(np.concatenate([np.pad(one, ((0, _GAP), (0, _GAP), (0, 0))) for one in row], axis=1))
    width = max(row.shape[1] for row in rows)
    picture: Picture = np.concatenate([np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0))) for row in rows])
    return picture


def _places(labels: LabelMap, axis: int, count: int) -> list[int]:
    """Slices that show the most: evenly through those with another label than 0 and 255, or through all."""
    others = tuple(other for other in range(3) if other != axis)
    found = np.flatnonzero(((labels > 0) & (labels < 255)).any(axis=others))
    low, high = (found[0], found[-1]) if len(found) else (0, labels.shape[axis] - 1)
    # Ends show a last pixel or none; the middles of equal parts show bodies.
    middles = low + (np.arange(count) + 0.5) * (high - low + 1) / count - 0.5
    return [int(place) for place in np.unique(np.rint(middles).astype(int))]
