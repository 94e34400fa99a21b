"""Windows: which values of a file become 0 and which 1.

    image = clip((value - low) / (high - low), 0, 1)

Without one, a value is divided by the largest that its type can hold: 1, 255, 65535. That is right for 8 bits and wrong
for much of what is stored in 16: cameras and scanners fill 10 or 12 of them, and the image would be black. So the range
of 16-bit files is looked up, of one image or of a whole set, and said. In that order:

    values up to 2^n - 1 with n < 16      0 to 2^n - 1: the bits that are in use, the same for most images of one device
    of these, less than 1/8 is in use     from the smallest to the largest value, as for CT with an offset
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from regloss.errors import UsageError
from regloss.io.types import FloatImage, StoredPixels

DEEP = 16
"""Bits of the files whose range is looked up."""

_LARGEST = 2**DEEP - 1
_LEAST_USE = 1 / 8  # fraction of a window that values must span


@dataclass(frozen=True)
class Window:
    """A range of stored values.

    Attributes:
        low: becomes 0, and so does what is smaller.
        high: becomes 1, and so does what is larger.
        bits: of the files it is for, 16; None = of all, floats too.

    Raises:
        UsageError: not finite, or ``low`` is not below ``high``.

    >>> Window(0, 4095)
    Window(low=0, high=4095, bits=None)
    """

    low: float
    high: float
    bits: int | None = None

    def __post_init__(self) -> None:
        numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in (self.low, self.high))
        if not (numbers and math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise UsageError(
                f"A window is two finite numbers, the value that becomes 0 and the larger one that becomes 1, such as "
                f"0 and 4095; got {self.low!r} and {self.high!r}."
            )
        if self.bits not in (None, DEEP):
            raise UsageError(f"A window is for files of {DEEP} bits, or for all; got {self.bits!r}.")

    @classmethod
    def of(cls, value: Any) -> Window | None:
        """From ``[low, high]`` or ``[low, high, bits]``; None of None.

        Raises:
            UsageError: it is something else.
        """
        if value is None or isinstance(value, Window):
            return value
        if not isinstance(value, Sequence) or isinstance(value, str) or len(value) not in (2, 3):
            raise UsageError(f"window = {value!r} must be two numbers, [LOW, HIGH]: the values that become 0 and 1.")
        return cls(*value)

    def as_list(self) -> list[float]:
        """What `of` reads."""
        return [self.low, self.high] if self.bits is None else [self.low, self.high, self.bits]


def windowed(values: StoredPixels, window: Window | None, path: Path) -> FloatImage:
    """Stored values as float32 in [0, 1].

    Args:
        values: bool, uint8, uint16, or floats.
        window: None = the whole range of the type; floats must then lie in [0, 1].
        path: for messages.

    Raises:
        UsageError: NaN, infinite floats, or floats outside [0, 1] without a window for them.
    """
    floats = values.dtype.kind == "f"
    if window is not None and window.bits is not None and values.dtype != np.uint16:
        window = None
    image = values.astype(np.float32)
    if floats:
        if np.isnan(image).any():
            raise UsageError(f"{path} holds NaN; replace these pixels")
        low, high = float(image.min()), float(image.max())
        if not math.isfinite(high - low) or (window is None and (low < 0 or high > 1)):
            raise UsageError(
                f"{path} holds floats from {low:g} to {high:g}; float images must lie within [0, 1], or a window says "
                "which values become 0 and 1 (--window LOW HIGH, or window = [LOW, HIGH] in a configuration)"
            )
    if window is None:
        return image if floats or values.dtype == np.bool_ else image / np.float32(np.iinfo(values.dtype).max)
    if window.low != 0:
        image = image - np.float32(window.low)
    scaled: FloatImage = (image / np.float32(window.high - window.low)).clip(0, 1)
    return scaled


def suitable(low: int, high: int) -> Window:
    """The window for 16-bit values from ``low`` to ``high``; see the top of this module.

    >>> suitable(7, 2866), suitable(31744, 36000), suitable(0, 50000)
    (Window(low=0, high=4095, bits=16), Window(low=31744, high=36000, bits=16), Window(low=0, high=65535, bits=16))
    """
    top = max(2 ** int(high).bit_length() - 1, 1)
    if low < high and high - low < _LEAST_USE * top:
        return Window(low, high, DEEP)
    return Window(0, top, DEEP)


def find_window(pixels: Iterable[StoredPixels]) -> tuple[Window | None, str]:
    """The window that suits all 16-bit images among ``pixels``, and a sentence on it.

    Returns:
        The window, None without such images; and what is to be said, "" where the whole range is in use.
    """
    count, low, high = 0, _LARGEST, 0
    for values in pixels:
        if values.dtype == np.uint16:
            count += 1
            low, high = min(low, int(values.min())), max(high, int(values.max()))
    if not count:
        return None, ""
    window = suitable(low, high)
    if (window.low, window.high) == (0, _LARGEST):
        return window, ""
    return window, (
        f"{'the image of' if count == 1 else f'{count} images of'} {DEEP} bits: values from {low} to {high} of "
        f"{_LARGEST}: {window.low:g} to {window.high:g} stretched to 0..1"
    )


def clipped_note(values: StoredPixels, window: Window | None, path: Path) -> str:
    """A sentence on an image with values outside of ``window``, where those are more than one in a hundred; else ""."""
    if window is None or (window.bits is not None and values.dtype != np.uint16):
        return ""
    outside = float(((values < window.low) | (values > window.high)).mean())
    if outside <= 0.01:
        return ""
    low, high = float(values.min()), float(values.max())
    return (
        f"{path.name}: {100 * outside:.0f} % of its values, which go from {low:g} to {high:g}, lie "
        f"outside of the window {window.low:g} to {window.high:g} and are cut off"
    )
