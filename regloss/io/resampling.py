"""Images, labels and scribbles on a grid of another spacing, which covers the same extent.

Images by cubic convolution, and logits linearly, whose kernels are widened where pixels become larger, so that nothing
is skipped (torch's interpolation with ``antialias``). Dense labels class by class, linearly, the largest
share winning: where pixels become larger that is the majority, where they become smaller corners are less stepped than
those of nearest neighbours. Scribbles by votes, which keeps thin strokes: no labelled pixel counts for nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch import Tensor

from regloss.dataset import IGNORE
from regloss.io.types import FloatImage, LabelMap

Interpolation = Literal["linear", "cubic"]


def resampled_size(size: Sequence[int], spacing: Sequence[float], target: Sequence[float]) -> tuple[int, ...]:
    """How many pixels of the spacing ``target`` cover ``size`` pixels of ``spacing``, along each axis; 1 at least.

    >>> resampled_size((19, 384, 384), (3.0, 0.5, 0.5), (3.0, 1.0, 0.75))
    (19, 192, 256)
    """
    return tuple(
        max(1, round(count * step / wanted)) for count, step, wanted in zip(size, spacing, target, strict=True)
    )


def resize(values: Tensor, size: Sequence[int], interpolation: Interpolation) -> Tensor:
    """Floats (B, C, *S) of two or three axes on a grid of ``size`` pixels over the same extent: (B, C, *size).

    Cubic interpolation may leave the range of the values.

    >>> resize(torch.tensor([[[[0.0, 1.0, 0.0, 1.0]]]]), (1, 2), "linear")
    tensor([[[[0.4286, 0.5714]]]])
    """
    mode = {"linear": "bilinear", "cubic": "bicubic"}[interpolation]
    # torch has this for images alone: after the last two axes, the first of a volume becomes the rows of one.
    outer, plane = values.shape[:-2], tuple(size[-2:])
    if values.shape[-2:] != plane:
        images = values.reshape(1, -1, *values.shape[-2:])
        values = F.interpolate(images, plane, mode=mode, align_corners=False, antialias=True).reshape(*outer, *plane)
    if len(size) == 3 and values.shape[2] != size[0]:
        images = values.flatten(3)
        images = F.interpolate(images, (size[0], images.shape[3]), mode=mode, align_corners=False, antialias=True)
        values = images.reshape(*values.shape[:2], *size)
    return values


def resize_image(image: FloatImage, size: Sequence[int]) -> FloatImage:
    """An image (C, *S) in [0, 1], (C, *size), by cubic convolution, cut off at 0 and 1."""
    found: FloatImage = resize(torch.from_numpy(image).unsqueeze(0), size, "cubic")[0].clamp(0, 1).numpy()
    return found


def resize_labels(labels: LabelMap, size: Sequence[int]) -> LabelMap:
    """Dense labels (*S) of 255 classes at most, 255 counting as one more: (*size) of the largest share.

    Of classes that tie, the lowest.

    >>> resize_labels(np.array([[0, 0, 1, 1, 1, 255]], dtype=np.uint8), (1, 3))
    array([[0, 1, 1]], dtype=uint8)
    """
    found = np.zeros(size, dtype=np.uint8)
    most = torch.full(tuple(size), -1.0)
    for value in np.flatnonzero(np.bincount(labels.ravel(), minlength=IGNORE + 1)).tolist():
        # One class at a time: all at once would be K volumes.
        share = resize(torch.from_numpy(labels == value).float()[None, None], size, "linear")[0, 0]
        better = share > most
        found[better.numpy()] = value
        most = torch.where(better, share, most)
    return found


def resize_scribbles(scribbles: LabelMap, size: Sequence[int]) -> LabelMap:
    """Scribbles (*S), 255 = unlabelled: (*size).

    Where pixels become smaller, each is what the one that holds its centre was. Where they become larger, each is what
    most of the labelled ones with their centres in it were, the lowest class of those that tie.

    >>> resize_scribbles(np.array([[255, 1, 255, 0, 0, 255]], dtype=np.uint8), (1, 2))
    array([[1, 0]], dtype=uint8)
    """
    for axis, (old, new) in enumerate(zip(scribbles.shape, size, strict=True)):
        if new > old:
            scribbles = scribbles.take(((np.arange(new) + 0.5) * old / new).astype(np.int64), axis)
    drawn = np.nonzero(scribbles != IGNORE)
    places = tuple(
        ((at + 0.5) * new / old).astype(np.int64) for at, old, new in zip(drawn, scribbles.shape, size, strict=True)
    )
    found = np.full(size, IGNORE, dtype=np.uint8)
    most = np.zeros(found.size, dtype=np.int64)
    flat, classes = np.ravel_multi_index(places, tuple(size)), scribbles[drawn]
    for value in np.unique(classes):
        votes = np.bincount(flat[classes == value], minlength=found.size)
        better = votes > most
        found.reshape(-1)[better] = value
        most[better] = votes[better]
    return found
