"""Colours of classes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, TypeAlias

Color: TypeAlias = tuple[int, int, int]
"""Red, green and blue, 0..255."""

Colors: TypeAlias = Sequence[Color]
"""One colour for each class, in the order of the indices."""

IGNORE_COLOR: Color = (224, 224, 192)
"""What 255 looks like where it has to be shown: PASCAL VOC's colour for it."""


_COLOR = 1 << 24
_WRITTEN = re.compile("#[0-9a-fA-F]{6}")


def color_value(color: Sequence[Any]) -> Any:
    """A colour, or an array for each of its three parts, as one number that no index is.

    >>> color_value((255, 0, 0)) == color_value(parsed_color("#ff0000"))
    True
    """
    red, green, blue = color
    return red << 16 | green << 8 | blue | _COLOR


def parsed_color(text: str) -> Color | None:
    """Red, green and blue of "#rrggbb"; None of other texts."""
    if not _WRITTEN.fullmatch(text):
        return None
    return int(text[1:3], 16), int(text[3:5], 16), int(text[5:], 16)


def written_value(value: int) -> str:
    """A value of a label map as people write it: a number, or the "#rrggbb" of `color_value`.

    >>> written_value(7), written_value(color_value((255, 128, 0)))
    ('7', '#ff8000')
    """
    return f"#{value & (_COLOR - 1):06x}" if value >= _COLOR else str(value)


def class_colors(count: int) -> tuple[Color, ...]:
    """The colour map of PASCAL VOC: the bits of the class index, dealt to red, green and blue from the top bit down.

    Args:
        count: number of classes K, at most 256.

    Returns:
        K triples of 0..255.

    >>> class_colors(4)
    ((0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0))
    """
    colors: list[Color] = []
    for index in range(count):
        red = green = blue = 0
        for place in range(3):
            red |= ((index >> (3 * place)) & 1) << (7 - place)
            green |= ((index >> (3 * place + 1)) & 1) << (7 - place)
            blue |= ((index >> (3 * place + 2)) & 1) << (7 - place)
        colors.append((red, green, blue))
    return tuple(colors)
