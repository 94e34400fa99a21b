"""RegionForce: how the values of pixels speak for labels.

    F(s, theta; features) = sum over classes k and pixels p of s_kp f(features_p; theta_k)

s are probabilities (or one-hot labels), theta_k the statistics of class k: a mean colour, a normal distribution, a
histogram. For given statistics f is a unary cost that a `Solver` takes beside a regularizer; for given probabilities
`RegionForce.fit` finds statistics. `regloss.alternate` does both in turn.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from regloss import grid
from regloss.checks import at_least_float32, check_finite, check_roi, check_scores
from regloss.errors import UsageError
from regloss.numerics import widest_float
from regloss.registry import name_of
from regloss.settings import CheckedSettings

Statistics = TypeVar("Statistics", bound="tuple[Any, ...]")
"""A NamedTuple of tensors (B, K, ...), one row for each image and class."""

_EMPTY = 1e-6  # pixels; a class with less mass than that says nothing about its statistics


class RegionForce(metaclass=CheckedSettings):
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
            weights: (B, K, N) of the type `regloss.numerics.widest_float`, >= 0, 0 outside the region of interest;
                every class has mass.
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
        weights = probabilities.detach().flatten(2).to(widest_float(features.device))
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


def pick_statistics(choice: Tensor, yes: Statistics, no: Statistics) -> Statistics:
    """``yes`` where ``choice`` (B,) or (B, K) bool is true, ``no`` elsewhere, for every tensor of the statistics."""
    picked = [
        torch.where(choice.reshape(*choice.shape, *[1] * (a.ndim - choice.ndim)), a, b)
        for a, b in zip(yes, no, strict=True)
    ]
    return type(yes)(*picked)
