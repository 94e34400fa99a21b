"""Masks as run lengths, in the three ways in which programs write them.

COCO and CVAT write how many pixels of 0, then of 1, then of 0, ... follow each other, COCO down the columns and, if
compressed, as text; CVAT along the rows of a box. Label Studio packs runs of bytes into bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from regloss.errors import UsageError
from regloss.io.drawing import Bitmap, Mask, Region, Shape
from regloss.io.types import Size


@dataclass(frozen=True)
class RunLengths(Shape):
    """A mask by its runs of 0 and 1 in turn, 0 first.

    Attributes:
        counts: lengths of the runs, which add up to the mask's pixels; or COCO's text of them.
        shape: (h, w) of the mask.
        order: "columns" or "rows", along which pixels follow each other.
        where: what it is, for messages.
        top: row of the image where its first row lies.
        left: column where its first column lies.
    """

    counts: Sequence[int] | str
    shape: Size
    order: Literal["columns", "rows"]
    where: str
    top: int = 0
    left: int = 0
    area = True

    def region(self, size: Size) -> Region:
        """The pixels of 1.

        Raises:
            UsageError: the runs do not add up to the mask's size.
        """
        counts = coco_counts(self.counts, self.where) if isinstance(self.counts, str) else self.counts
        return Bitmap(mask_of_runs(counts, self.shape, self.order, self.where), self.top, self.left).region(size)


def mask_of_runs(counts: Sequence[int], size: Size, order: Literal["columns", "rows"], where: str) -> Mask:
    """A mask (H, W) by its runs; see `RunLengths`.

    >>> mask_of_runs([1, 2, 3], (2, 3), "columns", "a mask").astype(int)
    array([[0, 1, 0],
           [1, 0, 0]])
    """
    lengths = np.asarray(counts, dtype=np.int64)
    if (lengths < 0).any() or lengths.sum() != size[0] * size[1]:
        raise UsageError(
            f"{where}: run lengths of {int(lengths.sum())} pixels do not fit a mask of {size[0]} x {size[1]} (height x "
            "width); the file is damaged, or was made for an image of another size"
        )
    values = np.repeat(np.arange(len(lengths)) % 2 == 1, lengths)
    return values.reshape(size) if order == "rows" else values.reshape(size[::-1]).T


def coco_counts(text: str, where: str) -> list[int]:
    """Run lengths from COCO's text.

    A character holds 5 bits of a number, lowest first, plus 48; the 6th says that more follow, and the last character's
    5th is the sign. From the fourth on, numbers are differences to the last but one.

    Raises:
        UsageError: another character, or the text ends within a number.

    >>> coco_counts("231", "a mask")
    [2, 3, 1]
    >>> coco_counts("044N", "a mask")  # the fourth is 2 less than the second
    [0, 4, 4, 2]
    """
    counts: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64:
            raise UsageError(f"{where}: {character!r} is no character of COCO's compressed run lengths")
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        counts.append(value + counts[-2] if len(counts) > 2 else value)
        value = shift = 0
    if shift:
        raise UsageError(f"{where}: its compressed run lengths end within a number; the file is damaged")
    return counts


@dataclass(frozen=True)
class LabelStudioBrush(Shape):
    """What a brush of Label Studio has painted.

    Attributes:
        packed: the bytes of "rle".
        size: (H, W) of the image.
        where: what it is, for messages.
    """

    packed: bytes
    size: Size
    where: str
    area = False

    def region(self, size: Size) -> Region:
        """Pixels whose opacity is not 0.

        Raises:
            UsageError: the bytes are damaged, or hold an image of another size.
        """
        values = unpacked(self.packed, 4 * self.size[0] * self.size[1], self.where)
        return Bitmap(values.reshape(*self.size, 4)[..., 3] > 0, area=False).region(size)


def unpacked(packed: bytes, expected: int, where: str) -> npt.NDArray[np.uint8]:
    """Bytes from what the packer of Label Studio makes of them (RLE of thi.ng/rle-pack).

    32 bits: how many values; 5: bits of a value, less 1; four times 4: bits of four kinds of lengths, less 1. Then
    chunks: 1 bit, whether one value repeats; 2: the kind of the length; the length less 1; and one value, or as many.

    Args:
        packed: the bytes.
        expected: how many values they must hold.
        where: what they are, for messages.

    Raises:
        UsageError: the bytes end too early, values do not have 8 bits, or there are others than ``expected`` of them.
    """
    bits = np.unpackbits(np.frombuffer(packed, dtype=np.uint8))
    text = (bits + ord("0")).tobytes().decode("ascii")
    position = 0

    def skip(length: int) -> int:
        nonlocal position
        position += length
        if position > len(text):
            raise UsageError(f"{where}: its run lengths end too early; the file is damaged")
        return position - length

    def take(length: int) -> int:
        start = skip(length)
        return int(text[start : start + length], 2)

    count, width = take(32), take(5) + 1
    if count != expected or width != 8:
        raise UsageError(
            f"{where}: {count} values of {width} bits, where {expected} of 8 are expected, four for each pixel; the "
            "file is damaged, or was made for an image of another size"
        )
    lengths = [take(4) + 1 for _ in range(4)]
    values = np.empty(count, dtype=np.uint8)
    done = 0
    while done < count:
        repeats = take(1)
        end = done + take(lengths[take(2)]) + 1
        if end > count:
            raise UsageError(f"{where}: its run lengths hold more than {count} values; the file is damaged")
        if repeats:
            values[done:end] = take(8)
        else:
            start = skip(8 * (end - done))
            values[done:end] = np.packbits(bits[start:position])
        done = end
    return values
