"""What the readers and writers of this folder give and take: arrays, sizes, colours, paths."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

FloatImage: TypeAlias = npt.NDArray[np.float32]
"""An image, (C, *S) with values in [0, 1]."""

StoredPixels: TypeAlias = npt.NDArray[Any]
"""An image as its file has it, (C, *S) bool, uint8, uint16 or float32."""

LabelMap: TypeAlias = npt.NDArray[np.uint8]
"""A label map, (*S) of class indices, 255 = no label."""

StoredLabels: TypeAlias = npt.NDArray[Any]
"""A label map as its file has it, (*S) of whole numbers, or of colours as `regloss.io.palettes.color_value`."""

Size: TypeAlias = tuple[int, int]
"""(H, W) in pixels."""

PathLike: TypeAlias = str | os.PathLike[str]


@dataclass(frozen=True)
class Header:
    """What a file says before its pixels are decoded.

    Attributes:
        size: (H, W) as `read_image` returns it.
        channels: 1 grey, 3 RGB, others what they are.
        bits: of a value: 1, 8 or 16; 32 for floats.
        orientation: the tag that cameras write, 1..8; 1 = upright. It is honoured in ``size`` already.
    """

    size: Size
    channels: int
    bits: int = 8
    orientation: int = 1

    @property
    def stored_size(self) -> Size:
        """(H, W) before the image is turned as its orientation tag says."""
        return (self.size[1], self.size[0]) if self.orientation >= 5 else self.size
