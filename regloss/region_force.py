"""RegionForce: how the values of pixels speak for labels.

    F(s, theta; features) = sum over classes k and pixels p of s_kp f(features_p; theta_k)

s are probabilities (or one-hot labels), theta_k the statistics of class k: a mean colour, a normal distribution, a
histogram. For given statistics f is a unary cost that a `Solver` takes beside a regularizer; for given probabilities
`RegionForce.fit` finds statistics. `regloss.alternate` does both in turn.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from regloss import grid
from regloss.checks import at_least_float32, check_finite, check_roi, check_scores
from regloss.errors import UsageError
from regloss.registry import name_of

Statistics = TypeVar("Statistics", bound="tuple[Any, ...]")
"""A NamedTuple of tensors (B, K, ...), one row for each image and class."""

_EMPTY = 1e-6  # pixels; a class with less mass than that says nothing about its statistics


class RegionForce(ABC):
    """How the values of pixels speak for labels. Subclasses are frozen dataclasses.

    Statistics are a NamedTuple of tensors (B, K, ...), so that images and classes can be picked from any of them.
    """

    exact: ClassVar[bool] = True
    """Whether `fit` gives the statistics at which F is smallest, so that alternation never raises the energy."""

    # ---- what must be defined

    @abstractmethod
    def estimate(self, features: Tensor, weights: Tensor) -> tuple[Any, ...]:
        """Statistics of every class.

        Args:
            features: (B, C, N) float32 at least, finite.
            weights: (B, K, N) in the wide type of `wide_dtype`, >= 0, 0 outside the region of interest; every class has
                mass.
        """

    @abstractmethod
    def costs(self, features: Tensor, statistics: Any) -> Tensor:
        """The costs f (B, K, N) at ``features`` (B, C, N), finite, in their precision."""

    # ---- what might be defined

    def check_features(self, features: Tensor) -> None:
        """Refuse ``features`` (B, C, *S), finite floating-point numbers, that this force cannot use."""
        return None

    # ---- what should not be redefined

    def fit(
        self, features: Tensor, probabilities: Tensor, roi: Tensor | None = None, previous: Any | None = None
    ) -> Any:
        """The statistics of each class: of F at ``probabilities``, the minimiser if ``exact``.

        Args:
            features: (B, C, *S), finite: an image in [0, 1], or other numbers for forces that can use them.
            probabilities: (B, K, *S), >= 0, K >= 2; a pixel whose probabilities are all 0 does not count.
            roi: (B, *S) bool; outside nothing counts. None = everywhere.
            previous: earlier statistics, which a class that has no pixels any more keeps.

        Raises:
            UsageError: shapes disagree, NaN, or a class has no pixels and there are no ``previous`` statistics.
        """
        features = self._checked(features)
        shape = (features.shape[0], *features.shape[2:])
        check_roi(roi, shape)
        check_scores(probabilities, "probabilities")
        if (probabilities.shape[0], *probabilities.shape[2:]) != shape:
            raise UsageError(
                f"probabilities {tuple(probabilities.shape)} (B, K, *S) do not fit features {tuple(features.shape)} "
                "(B, C, *S)."
            )
        weights = probabilities.detach().flatten(2).to(wide_dtype(features.device))
        if not bool((weights >= 0).all()):  # false for NaN
            raise UsageError("probabilities of a region force must not be negative or NaN.")
        inside = grid.full_roi(roi, shape, features.device).flatten(1).unsqueeze(1)
        weights = weights * inside
        empty = weights.sum(2) <= _EMPTY
        if bool(empty.any()):
            if previous is None:
                image, label = (int(index) for index in empty.nonzero()[0])
                raise UsageError(
                    f"Class {label} has no pixels at the start of image {image} of the batch, so {name_of(self)} knows "
                    f"nothing of it. A start must hold each of the {weights.shape[1]} classes: scribble it, or ask for "
                    "fewer classes."
                )
            weights = torch.where(empty.unsqueeze(2), inside.to(weights), weights)  # any statistics; dropped below
        with torch.no_grad(), torch.autocast(features.device.type, enabled=False):
            found = self.estimate(features.flatten(2), weights)
        return found if previous is None else pick_statistics(~empty, found, previous)

    def unary(self, features: Tensor, statistics: Any) -> Tensor:
        """The costs f (B, K, *S) of every label at every pixel of ``features`` (B, C, *S), for a solver.

        Raises:
            UsageError: features with NaN, or such as the force cannot use.
        """
        features = self._checked(features)
        with torch.no_grad(), torch.autocast(features.device.type, enabled=False):
            costs = self.costs(features.flatten(2), statistics)
        return costs.reshape(*costs.shape[:2], *features.shape[2:])

    def _checked(self, features: Tensor) -> Tensor:
        features = checked_features(features)
        self.check_features(features)
        return features


def checked_features(features: Tensor) -> Tensor:
    """``features`` in float32 at least, after checking that they are (B, C, *S), floating point and finite."""
    if not isinstance(features, Tensor) or not features.is_floating_point():
        kind = features.dtype if isinstance(features, Tensor) else type(features).__name__
        raise UsageError(f"features must be a floating-point tensor; got {kind}. Divide bytes by 255.")
    if not 3 <= features.ndim <= 5 or features.numel() == 0:
        raise UsageError(
            f"features must have the shape (B, C, *S) with 1 to 3 spatial axes; got {tuple(features.shape)}."
        )
    check_finite(features, "features")
    return at_least_float32(features.detach())


def wide_dtype(device: torch.device) -> torch.dtype:
    """The type that statistics and energies are summed in: float64, but Apple's GPUs know none."""
    return torch.float32 if device.type == "mps" else torch.float64


def pick_statistics(choice: Tensor, yes: Statistics, no: Statistics) -> Statistics:
    """``yes`` where ``choice`` (B,) or (B, K) bool is true, ``no`` elsewhere, for every tensor of the statistics."""
    picked = [
        torch.where(choice.reshape(*choice.shape, *[1] * (a.ndim - choice.ndim)), a, b)
        for a, b in zip(yes, no, strict=True)
    ]
    return type(yes)(*picked)


_SAMPLE = 20_000
"""Pixels that k-means looks at; more hardly move the means of a few phases."""


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
    if phases < 2:
        raise UsageError(f"A segmentation has at least two phases (background counts as one); got {phases}.")
    if tries < 1 or max_steps < 1:
        raise UsageError(f"tries and max_steps must be at least 1; got {tries} and {max_steps}.")
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
        total = nearest.to(wide_dtype(nearest.device)).cumsum(0)
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
