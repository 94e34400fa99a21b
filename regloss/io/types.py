"""What the readers and writers of this folder give and take: arrays, sizes, colours, paths."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

FloatImage: TypeAlias = npt.NDArray[np.float32]
"""An image, (C, *S) with values in [0, 1]."""

LabelMap: TypeAlias = npt.NDArray[np.uint8]
"""A label map, (*S) of class indices, 255 = no label."""

Size: TypeAlias = tuple[int, int]
"""(H, W) in pixels."""

PathLike: TypeAlias = str | os.PathLike[str]


@dataclass(frozen=True)
class Header:
    """What a file says before its pixels are decoded: (H, W) as `read_image` returns it, and the channels, 1 or 3."""

    size: Size
    channels: int
