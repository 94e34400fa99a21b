"""Whole images by parts: sliding windows with Gaussian weights, mirror images, and largest components.

A network that has learnt from crops sees windows of the same size, which overlap; what it says near the border of one
is said with more context in the next, so windows are weighted by a Gaussian about their centre:

    logits(p) = sum over windows w of G(p - centre(w)) logits_w(p) / sum over w of G(p - centre(w))

with a standard deviation of an eighth of the window, as in Isensee et al., nnU-Net, Nature Methods 18, 2021. MONAI has
the same for a much larger dependency.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from regloss.errors import UsageError
from regloss.io.types import LabelMap

_SPREAD = 1 / 8  # standard deviation of the weights, of a window's length


def window_starts(length: int, window: int, overlap: float) -> list[int]:
    """Where windows begin along an axis: as few as cover it and overlap by at least ``overlap`` of their length.

    >>> window_starts(10, 4, 0.5), window_starts(3, 4, 0.5)
    ([0, 2, 4, 6], [0])
    """
    if length <= window:
        return [0]
    count = math.ceil((length - window) / max(1, math.floor(window * (1 - overlap)))) + 1
    return [round(place) for place in np.linspace(0, length - window, count).tolist()]


def gaussian_weights(size: Sequence[int]) -> Tensor:
    """(*size) float32, 1 in the middle; e^-8 at the ends of an axis, so that products of three do not underflow."""
    weights = torch.ones(())
    for length in size:
        places = (torch.arange(length) - (length - 1) / 2) / max(length * _SPREAD, 1e-6)
        weights = weights.unsqueeze(-1) * torch.exp(-(places**2) / 2)
    return weights / weights.max()


def by_windows(
    network: Callable[[Tensor], Tensor],
    image: Tensor,
    window: int | Sequence[int],
    overlap: float = 0.5,
    batch_size: int = 1,
) -> Tensor:
    """Logits (B, K, *S) of a network that sees windows of an image (B, C, *S); see the top of this module.

    Windows stay inside the image; along an axis on which it is shorter, they are as long as it is. Besides the result
    memory is that of ``batch_size`` windows.

    Args:
        network: (B, C, *W) to logits (B, K, *W).
        image: of any size.
        window: its size W, a number or one an axis.
        overlap: least fraction of a window's length that it shares with the next, in [0, 1).
        batch_size: windows that the network gets together, for each image of the batch.

    Raises:
        UsageError: another number of axes than the image has, or the network's logits are of another size.

    >>> image = torch.rand(1, 1, 9, 12)
    >>> torch.allclose(by_windows(lambda part: 2 * part, image, 4), 2 * image)
    True
    """
    size = image.shape[2:]
    wanted = (window,) * len(size) if isinstance(window, int) else tuple(window)
    if len(wanted) != len(size):
        raise UsageError(
            f"inference.window must be one number, or one for each of the image's {len(size)} axes; got {list(wanted)}."
        )
    lengths = [min(length, whole) for length, whole in zip(wanted, size, strict=True)]
    weights = gaussian_weights(lengths).to(image.device)
    total: Tensor | None = None
    weight = torch.zeros(size, device=image.device)
    steps = [window_starts(whole, length, overlap) for whole, length in zip(size, lengths, strict=True)]
    places = [
        tuple(slice(start, start + length) for start, length in zip(starts, lengths, strict=True))
        for starts in itertools.product(*steps)
    ]
    for first in range(0, len(places), batch_size):
        some = places[first : first + batch_size]
        logits = network(torch.cat([image[(slice(None), slice(None), *place)] for place in some]))
        if list(logits.shape[2:]) != lengths:
            raise UsageError(f"The network makes logits {tuple(logits.shape)} of windows {lengths}; sizes must agree.")
        if total is None:
            # Half precision has no room for the weights.
            kind = torch.promote_types(logits.dtype, torch.float32)
            total = torch.zeros(len(image), logits.shape[1], *size, dtype=kind, device=image.device)
        for place, part in zip(some, torch.split(logits, len(image)), strict=True):
            total[(slice(None), slice(None), *place)] += weights * part
            weight[place] += weights
    assert total is not None
    return total.div_(weight)


def with_flips(network: Callable[[Tensor], Tensor], image: Tensor, axes: Sequence[int]) -> Tensor:
    """The mean of a network's logits (B, K, *S) over all mirror images along ``axes``, from -1 on, mirrored back."""
    total: Tensor | None = None
    choices = [chosen for count in range(len(axes) + 1) for chosen in itertools.combinations(axes, count)]
    for chosen in choices:
        logits = network(image.flip(chosen)).flip(chosen) if chosen else network(image)
        total = logits if total is None else total + logits
    assert total is not None
    return total / len(choices)


def largest_components(labels: LabelMap, classes: int) -> LabelMap:
    """Labels (*S) of which every class from 1 on keeps its largest component; the others become 0.

    Neighbours along an axis are connected. Of equal components the first in the order of memory stays.

    >>> largest_components(np.array([[1, 0, 1, 1], [0, 2, 0, 0]], dtype=np.uint8), 3).tolist()
    [[0, 0, 1, 1], [0, 2, 0, 0]]
    """
    from scipy import ndimage  # here: whoever predicts without it does without scipy

    kept = labels.copy()
    for index in range(1, classes):
        components, count = ndimage.label(labels == index)
        if count > 1:
            sizes = np.bincount(components.ravel())
            sizes[0] = 0
            kept[(components > 0) & (components != sizes.argmax())] = 0
    return kept
