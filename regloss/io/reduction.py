"""Reduction by a whole factor: images by box mean, labels and scribbles by majority."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from regloss.dataset import IGNORE
from regloss.errors import UsageError
from regloss.io.types import FloatImage, LabelMap, Size


def check_reduce(reduce: object) -> int:
    """``reduce`` itself, if it is a whole number of at least 1.

    Raises:
        UsageError: it is not.
    """
    if isinstance(reduce, bool) or not isinstance(reduce, int) or reduce < 1:
        raise UsageError(f"reduce = {reduce!r} must be a whole number: 1 keeps the size, 2 halves it")
    if reduce > 2**16:
        raise UsageError(f"reduce = {reduce} must be at most {2**16}, which leaves one pixel of the largest images")
    return reduce


def reduce_image(image: FloatImage, factor: int) -> FloatImage:
    """Box mean: each pixel is the mean of a factor x factor block, (C, H, W) -> (C, ceil(H/f), ceil(W/f)).

    Blocks start at the upper left corner; those that the lower or right border cuts average the pixels they have.
    """
    height, width = image.shape[-2:]
    pixels = _block_pixels((height, width), factor).astype(np.float32)
    mean: FloatImage = np.divide(_block_sums(image, factor), pixels, dtype=np.float32)
    return mean


def reduce_labels(labels: LabelMap, factor: int) -> LabelMap:
    """Majority of each factor x factor block, for dense labels: (H, W) -> (ceil(H/f), ceil(W/f)).

    255 where more than half of the block is 255; otherwise the most frequent class, the lowest of those that tie.

    >>> reduce_labels(np.array([[1, 1, 255, 255], [0, 2, 3, 255]], dtype=np.uint8), 2)
    array([[  1, 255]], dtype=uint8)
    """
    reduced = reduce_scribbles(labels, factor)
    height, width = labels.shape
    ignored = _block_sums((labels == IGNORE).astype(np.int32), factor)
    reduced[2 * ignored > _block_pixels((height, width), factor)] = IGNORE
    return reduced


def reduce_scribbles(scribbles: LabelMap, factor: int) -> LabelMap:
    """Majority of the *labelled* pixels of each factor x factor block: (H, W) -> (ceil(H/f), ceil(W/f)).

    255 only where the block has no label at all, so a thin stroke stays whole; of classes that tie, the lowest.

    >>> reduce_scribbles(np.array([[1, 255, 255, 255], [255, 255, 255, 255]], dtype=np.uint8), 2)
    array([[  1, 255]], dtype=uint8)
    """
    height, width = scribbles.shape
    reduced = np.full((-(-height // factor), -(-width // factor)), IGNORE, dtype=np.uint8)
    most = np.zeros(reduced.shape, dtype=np.int32)
    for value in np.flatnonzero(np.bincount(scribbles.ravel(), minlength=256)[:IGNORE]):
        count = _block_sums((scribbles == value).astype(np.int32), factor)
        reduced[count > most] = value
        np.maximum(most, count, out=most)
    return reduced


def _block_sums(values: npt.NDArray[Any], factor: int) -> npt.NDArray[Any]:
    """Sums over factor x factor blocks of the last two axes; blocks at the lower and right border may be smaller."""
    height, width = values.shape[-2:]
    below, right = -height % factor, -width % factor
    padded = np.pad(values, [(0, 0)] * (values.ndim - 2) + [(0, below), (0, right)]) if below or right else values
    # Adding strided slices is ten times faster than np.add.reduceat for small factors.
    rows = padded[..., ::factor, :].copy()
    for offset in range(1, factor):
        rows += padded[..., offset::factor, :]
    sums = rows[..., ::factor].copy()
    for offset in range(1, factor):
        sums += rows[..., offset::factor]
    return sums


def _block_pixels(size: Size, factor: int) -> npt.NDArray[Any]:
    """How many pixels each block has."""
    height, width = (np.minimum(factor, length - np.arange(0, length, factor)) for length in size)
    return np.outer(height, width)
