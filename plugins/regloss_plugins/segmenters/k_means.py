"""k-means on the values of the pixels: phases to start from.

    min over means m and labels l of   sum over pixels p of |I_p - m_(l_p)|^2

by Lloyd's steps, each of which lowers the sum, from seeds that are drawn far from each other.

Source: Lloyd, "Least squares quantization in PCM", 1982; Arthur, Vassilvitskii, "k-means++: the advantages of careful
seeding", SODA 2007.
"""

from __future__ import annotations

import torch
from torch import Tensor

from regloss import grid
from regloss.checks import check_roi, check_seed
from regloss.errors import UsageError
from regloss.numerics import widest_float
from regloss.region_force import checked_features
from regloss.settings import checked

_SAMPLE = 20_000
"""Pixels that k-means looks at; more hardly move the means of a few phases."""


@checked
def phases_by_color(
    features: Tensor, phases: int, roi: Tensor | None = None, *, seed: int = 0, tries: int = 3, max_steps: int = 30
) -> Tensor:
    """Labels to start from: k-means on the values of the pixels, with k-means++ seeding; the best of several tries.

    The means are those of 20,000 pixels drawn at random, if there are more.

    Args:
        features: (B, C, *S), finite.
        phases: K >= 2.
        roi: (B, *S) bool; pixels outside do not count, and get the label 0.
        seed: of the random choices; the same seed gives the same labels, whatever else is in the batch.
        tries: seedings to choose from, >= 1.
        max_steps: largest number of steps of each, >= 1.

    Returns:
        (B, *S) int64. Phases are numbered by the sum of their mean's channels: 0 is the darkest. Each has pixels.

    Raises:
        UsageError: fewer than two phases, NaN, or an image with fewer different colours than phases.

    >>> phases_by_color(torch.tensor([[[0.9, 0.1, 0.2, 0.8]]]), 2)
    tensor([[1, 0, 0, 1]])
    """
    if not isinstance(phases, int) or phases < 2:
        raise UsageError(f"A segmentation has at least two phases (background counts as one); got {phases!r}.")
    if tries < 1 or max_steps < 1:
        raise UsageError(f"tries and max_steps must be at least 1; got {tries} and {max_steps}.")
    check_seed(seed)
    features = checked_features(features)
    shape = (features.shape[0], *features.shape[2:])
    check_roi(roi, shape)
    inside = grid.full_roi(roi, shape, features.device).flatten(1)
    labels = torch.zeros(inside.shape, dtype=torch.int64, device=features.device)
    for image, (values, where) in enumerate(zip(features.flatten(2), inside, strict=True)):
        # The generator is the CPU's, so that every device draws the same numbers.
        generator = torch.Generator().manual_seed(seed)
        points = values.T[where]
        means = None
        if len(points) > _SAMPLE:
            drawn = torch.randint(len(points), (_SAMPLE,), generator=generator).to(points.device)
            means = _k_means(points[drawn], phases, generator, tries, max_steps)
        if means is None:  # few pixels, or a sample that has missed a rare colour
            means = _k_means(points, phases, generator, tries, max_steps)
        if means is None:
            different = len(torch.unique(points, dim=0))
            raise UsageError(
                f"Image {image} of the batch has {different} different colours, fewer than the {phases} phases asked "
                "for. Ask for fewer phases."
            )
        labels[image, where] = _nearest(points, means)
    return labels.reshape(shape)


def _k_means(points: Tensor, phases: int, generator: torch.Generator, tries: int, max_steps: int) -> Tensor | None:
    """Means (K, C) of the best of several runs on ``points`` (N, C), dark ones first; each is the nearest of a point.

    None if the points take fewer than ``phases`` values.
    """
    best, lowest = None, float("inf")
    for _ in range(tries):
        means = _seeds(points, phases, generator)
        if means is None:
            return None
        labels = _nearest(points, means)
        for _ in range(max_steps):
            counts = torch.bincount(labels, minlength=phases).to(points)
            moved_means = torch.zeros_like(means).index_add_(0, labels, points) / counts.unsqueeze(1)
            moved = _nearest(points, moved_means)
            # A step that would leave a phase without points is not taken: every phase has to exist.
            if torch.equal(moved, labels) or bool((torch.bincount(moved, minlength=phases) == 0).any()):
                break
            means, labels = moved_means, moved
        cost = float((points - means[labels]).square().sum())
        if cost < lowest:
            best, lowest = means, cost
    return None if best is None else best[best.sum(1).argsort(stable=True)]


def _seeds(points: Tensor, phases: int, generator: torch.Generator) -> Tensor | None:
    """``phases`` of the ``points``, each drawn with a chance that grows with its squared distance from those before."""
    chosen = [points[int(torch.randint(len(points), (), generator=generator))]]
    nearest = (points - chosen[0]).square().sum(1)
    while len(chosen) < phases:
        total = nearest.to(widest_float(nearest.device)).cumsum(0)
        if not float(total[-1]) > 0:
            return None
        drawn = float(torch.rand((), generator=generator, dtype=torch.float64)) * float(total[-1])
        # The last point that still adds something, where rounding would look behind it.
        last = int(nearest.nonzero()[-1])
        index = min(int(torch.searchsorted(total, total.new_tensor(drawn), right=True)), last)
        chosen.append(points[index])
        nearest = torch.minimum(nearest, (points - chosen[-1]).square().sum(1))
    return torch.stack(chosen)


def _nearest(points: Tensor, means: Tensor) -> Tensor:
    """(N,) the nearest of ``means`` (K, C); the first of equally near ones."""
    labels = torch.zeros(len(points), dtype=torch.int64, device=points.device)
    least = (points - means[0]).square().sum(1)
    for label, mean in enumerate(means[1:], 1):  # argmin over so few takes ten times as long
        distance = (points - mean).square().sum(1)
        labels.masked_fill_(distance < least, label)
        least = torch.minimum(least, distance)
    return labels
