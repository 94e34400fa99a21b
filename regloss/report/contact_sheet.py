"""A sheet of samples: image, scribbles and labels side by side, a row a sample, under the classes and their colours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from regloss.dataset import IGNORE
from regloss.io.palettes import Colors
from regloss.io.types import FloatImage, LabelMap
from regloss.report.overlays import Picture, outlined, overlay, scribble_panel

_PANEL = 240  # pixels, of each side of the square that a panel is fitted into
_LINE = 16  # pixels, of a line of text
_GROUND = (255, 255, 255)


@dataclass(frozen=True, eq=False)
class Row:
    """A sample to show.

    Attributes:
        title: above it.
        image: (C, H, W) in [0, 1]; None = it is not to be seen.
        maps: its scribbles, and its labels, (H, W) class indices and 255; None = there are none.
    """

    title: str
    image: FloatImage | None
    maps: Sequence[LabelMap | None]


def contact_sheet(rows: Sequence[Row], classes: Sequence[str], colors: Colors) -> Picture:
    """The sheet.

    Args:
        rows: samples, all with as many maps: strokes first, dense labels second.
        classes: the K class names.
        colors: one RGB triple of 0..255 for each.

    Returns:
        (H, W, 3) RGB.
    """
    width = 3 * (_PANEL + 8)
    legend = _legend(classes, colors, width)
    height = legend.height + sum(_PANEL + _LINE + 12 for _ in rows)
    sheet = Image.new("RGB", (width, height), _GROUND)
    sheet.paste(legend, (0, 0))
    draw, font, top = ImageDraw.Draw(sheet), ImageFont.load_default(), legend.height
    for row in rows:
        draw.text((4, top), _ascii(row.title)[: width // 6], fill=(0, 0, 0), font=font)
        for column, panel in enumerate(_panels(row, colors)):
            sheet.paste(panel, (column * (_PANEL + 8), top + _LINE))
        top += _PANEL + _LINE + 12
    return np.asarray(sheet)


def _panels(row: Row, colors: Colors) -> list[Image.Image]:
    image = row.image
    if image is None:
        return [_empty("cannot be read")]
    nothing = np.full(image.shape[1:], IGNORE, dtype=np.uint8)
    panels = [_fitted(overlay(image, nothing, colors))]
    for labels, draw, name in zip(row.maps, (scribble_panel, outlined), ("scribbles", "labels"), strict=True):
        panels.append(_empty(f"no {name} to show") if labels is None else _fitted(draw(image, labels, colors)))
    return panels


def _fitted(picture: Picture) -> Image.Image:
    """Within the square, with its proportions; small images are enlarged to see their pixels."""
    found = Image.fromarray(picture)
    scale = _PANEL / max(found.size)
    size = max(1, round(found.width * scale)), max(1, round(found.height * scale))
    return found.resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BOX)


def _empty(text: str) -> Image.Image:
    panel = Image.new("RGB", (_PANEL, _PANEL), (236, 236, 236))
    ImageDraw.Draw(panel).text((8, _PANEL // 2), text, fill=(110, 110, 110), font=ImageFont.load_default())
    return panel


def _legend(classes: Sequence[str], colors: Colors, width: int) -> Image.Image:
    font, entries, left, top = ImageFont.load_default(), [], 4, 4
    for index, name in enumerate(classes):
        text = _ascii(f"{index} {name}")[:40]
        extent = int(font.getlength(text)) + _LINE + 16
        if left + extent > width:
            left, top = 4, top + _LINE + 4
        entries.append((text, colors[index], left, top))
        left += extent
    legend = Image.new("RGB", (width, top + _LINE + 8), _GROUND)
    draw = ImageDraw.Draw(legend)
    for text, color, x, y in entries:
        draw.rectangle((x, y, x + 12, y + 12), fill=color, outline=(0, 0, 0))
        draw.text((x + _LINE, y), text, fill=(0, 0, 0), font=font)
    return legend


def _ascii(text: str) -> str:
    """What every font of Pillow has."""
    return text.encode("ascii", "replace").decode("ascii")
