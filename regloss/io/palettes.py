"""Colours of classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

Color: TypeAlias = tuple[int, int, int]
"""Red, green and blue, 0..255."""

Colors: TypeAlias = Sequence[Color]
"""One colour for each class, in the order of the indices."""

IGNORE_COLOR: Color = (224, 224, 192)
"""What 255 looks like where it has to be shown: PASCAL VOC's colour for it."""


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
