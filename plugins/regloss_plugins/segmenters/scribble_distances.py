"""How far pixels lie from the scribbles of each class, along paths that avoid to cross from one class to another.

    d_k(p) = min over paths from the scribbles of class k to p of   integral of sqrt(|dx|^2 + (barrier |dP|)^2 / 2)

with places x in units of the image's diagonal, and the probabilities P = softmax(-costs) of all classes, which the
colours say. Where they say the same all the way, d is the length of the way; to pass from a region that looks like one
class into one that looks like another takes ``barrier`` more. Scribbles are local evidence, and this says how local: a
background behind an object of the same colour is far from the object's scribbles.

Source: Bai, Sapiro, "A geodesic framework for fast interactive image and video segmentation and matting", ICCV 2007,
for distances whose metric is the change of the colours' probabilities; Criminisi, Sharp, Blake, "GeoS: geodesic image
segmentation", ECCV 2008, for the length of the way in it; Price, Morse, Cohen, "Geodesic graph cut for interactive
image segmentation", CVPR 2010, for such distances beside the costs of colours in a graph cut.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch import Tensor

from regloss.checks import (
    check_at_least_one,
    check_finite,
    check_labels,
    check_not_negative,
    check_scores,
    check_spacing,
)
from regloss.grid import neighbor_offsets
from regloss.settings import checked

Array = np.ndarray[Any, Any]

_ALL_NEIGHBORS = {1: 2, 2: 8, 3: 26}  # connectivity by the number of axes


@checked
def scribble_distances(
    scribbles: Tensor,
    costs: Tensor,
    barrier: float = 0.08,
    spacing: Sequence[float] | None = None,
    *,
    most: int = 2**16,
) -> Tensor:
    """Geodesic distances from the scribbles of each class, in units of the image's diagonal; on the CPU.

    Paths are made of steps between neighbours (8 in 2D, 26 in 3D), and the shortest ones are found: among pixels, or in
    large images, and where pixels are longer than wide, among blocks of them with their mean costs. Between the centres
    of blocks distances are interpolated.

    Args:
        scribbles: (B, *S) integer labels below K, 255 = none.
        costs: (B, K, *S), finite, of the labels, less than 0 too; those of classes without scribbles do not count.
        barrier: length that passing from one class into another adds, >= 0; 0 = lengths alone.
        spacing: distance of neighbouring pixels along each axis; None = 1.
        most: pixels, or blocks of them, among which paths are looked for; >= 1.

    Returns:
        (B, K, *S) float32, >= 0; 0 throughout for classes without scribbles in their image.

    Raises:
        UsageError: shapes that disagree, labels out of range, costs that are NaN or infinite, a negative barrier.

    Five pixels in a row, of which the fourth looks like class 1:

    >>> scribbles = torch.tensor([[0, 255, 255, 255, 255]])
    >>> costs = torch.tensor([[[0.0, 0, 0, 50, 0], [50.0, 50, 50, 0, 50]]])
    >>> scribble_distances(scribbles, costs)[0, 0]
    tensor([0.0000, 0.2000, 0.4000, 0.6000, 0.8000])
    >>> scribbles[0, 4] = 1
    >>> scribble_distances(scribbles, costs)[0]
    tensor([[0.0000, 0.2000, 0.4000, 0.6154, 0.8308],
            [0.8308, 0.6308, 0.4308, 0.2154, 0.0000]])
    """
    check_scores(costs, "costs")
    check_finite(costs, "costs")
    check_labels(scribbles, (costs.shape[0], *costs.shape[2:]), costs.shape[1])
    check_not_negative(barrier=barrier)
    check_at_least_one(most=most)
    shape = costs.shape[2:]
    steps = check_spacing(spacing, len(shape)) or (1.0,) * len(shape)
    diagonal = image_diagonal(shape, steps)
    factors = _factors(shape, steps, most)
    costs, seeds = costs.detach().cpu().float(), _seeds(scribbles.cpu(), costs.shape[1])
    if max(factors) > 1:
        ndim = len(shape)
        mean = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[ndim - 1]
        any_of = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[ndim - 1]
        costs = mean(costs, factors, ceil_mode=True, count_include_pad=False)
        seeds = any_of(seeds.float(), factors, ceil_mode=True) > 0
    blocks = np.array(steps) * factors
    found = torch.stack([_distances(*image, barrier * diagonal, blocks) for image in zip(seeds, costs, strict=True)])
    if max(factors) > 1:
        mode = ("linear", "bilinear", "trilinear")[len(shape) - 1]
        found = F.interpolate(found, scale_factor=[float(f) for f in factors], mode=mode, align_corners=False)
        for axis, size in enumerate(shape, 2):
            found = found.narrow(axis, 0, size)
    return found / diagonal


def image_diagonal(shape: Sequence[int], spacing: Sequence[float] | None = None) -> float:
    """Length of the diagonal of an image with axes of ``shape`` pixels, in pixels, or in units of ``spacing``.

    >>> image_diagonal((30, 40))
    50.0
    """
    steps = [1.0] * len(shape) if spacing is None else spacing
    return math.hypot(*(size * step for size, step in zip(shape, steps, strict=True)))


def _factors(shape: Sequence[int], steps: Sequence[float], most: int) -> list[int]:
    """Whole numbers by which each axis is reduced to leave at most so many blocks, as cubic as can be.

    None is smaller than the largest step: between long pixels, whose diagonals lead the same way as their sides, paths
    would be up to 41 % longer than they should.
    """
    edge = max(steps)
    while True:
        factors = [min(max(1, round(edge / step)), size) for size, step in zip(shape, steps, strict=True)]
        if math.prod(-(-size // factor) for size, factor in zip(shape, factors, strict=True)) <= most:
            return factors
        edge += min(steps)


def _seeds(scribbles: Tensor, classes: int) -> Tensor:
    """(B, K, *S) bool."""
    order = torch.arange(classes).reshape(1, -1, *[1] * (scribbles.ndim - 1))
    return scribbles.unsqueeze(1) == order


def _distances(seeds: Tensor, costs: Tensor, barrier: float, steps: Array) -> Tensor:
    """Lengths (K, *S) of the shortest paths from ``seeds`` (K, *S) bool, 0 for classes without any.

    Args:
        seeds: of each class.
        costs: (K, *S) float32.
        barrier: in units of ``steps``.
        steps: of neighbouring pixels along each axis.
    """
    from regloss_plugins.kernels.geodesics import path_lengths, sweep_distances

    shape = costs.shape[1:]
    volume = (1,) * (3 - len(shape)) + tuple(shape)
    # Half of the neighbours, those that come before a pixel, the one beside it first.
    before = -np.array(neighbor_offsets(len(shape), _ALL_NEIGHBORS[len(shape)]))
    offsets = np.concatenate([np.zeros((len(before), 3 - len(shape)), np.int64), before], axis=1)
    present = seeds.flatten(1).any(1)
    beliefs = torch.softmax(-costs[present], dim=0) * (barrier / math.sqrt(2))
    lengths = np.empty((len(offsets), *volume), np.float32)
    squares = ((before * steps) ** 2).sum(1).astype(np.float32)
    path_lengths(beliefs.reshape(-1, *volume).numpy(), offsets, squares, lengths)
    found = torch.zeros(costs.shape)
    found[present] = torch.where(seeds[present], 0.0, float("inf"))
    for k in present.nonzero().squeeze(1).tolist():
        sweep_distances(lengths, offsets, found[k].reshape(volume).numpy())
    return found
