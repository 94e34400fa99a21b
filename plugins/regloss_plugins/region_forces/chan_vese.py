"""Chan-Vese: every phase is a constant colour.

    F(s, c) = sum over phases k of scale_k * sum over pixels p of s_kp |I_p - c_k|^2

|.|^2 is summed over the channels; the c_k that minimise F are the means of I weighted by s_k. With total variation of
weight mu / 2, whose value on labels of two phases is 2 weight times the length of their boundary, F + R is the energy

    mu Length(C) + lambda_1 integral inside |I - c_1|^2 + lambda_2 integral outside |I - c_2|^2

of Chan and Vese without its area term; with more phases it is the piecewise-constant model of Mumford and Shah.

Source: Chan, Vese, "Active contours without edges", IEEE Transactions on Image Processing 2001; for vector-valued
images Chan, Sandberg, Vese, Journal of Visual Communication and Image Representation 2000, who divide by the number of
channels; that two phases are solved globally for given means: Chan, Esedoglu, Nikolova, SIAM J. Applied Mathematics
2006.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from regloss.errors import UsageError
from regloss.region_force import RegionForce


class Means(NamedTuple):
    """Statistics of `ChanVese`: the mean (B, K, C) of each phase."""

    mean: Tensor


@dataclass(frozen=True)
class ChanVese(RegionForce):
    """Squared distance to the phase's mean.

    Args:
        scale: factor of the squared distances, > 0: one number, or one for each phase (the lambdas).

    Raises:
        UsageError: a scale that is not positive, or not one for each phase.

    >>> image = torch.tensor([[[0.0, 0.2, 0.9, 1.0]]])
    >>> labels = torch.tensor([[[1.0, 1, 0, 0], [0, 0, 1, 1]]])
    >>> means = ChanVese().fit(image, labels)
    >>> means.mean.flatten()
    tensor([0.1000, 0.9500], dtype=torch.float64)
    >>> ChanVese().unary(image, means)[0, 0]
    tensor([0.0100, 0.0100, 0.6400, 0.8100])
    """

    scale: float | Sequence[float] = 1.0

    def __post_init__(self) -> None:
        numbers = self.scale if isinstance(self.scale, Sequence) and not isinstance(self.scale, str) else [self.scale]
        if not numbers or not all(isinstance(x, int | float) and 0 < x < float("inf") for x in numbers):
            raise UsageError(f"scale must be a positive number, or one for each phase; got {self.scale!r}.")
        if isinstance(self.scale, Sequence):
            object.__setattr__(self, "scale", tuple(self.scale))

    def estimate(self, features: Tensor, weights: Tensor) -> Means:
        """Weighted means."""
        sums = weights @ features.to(weights).transpose(1, 2)
        return Means(sums / weights.sum(2, keepdim=True))

    def costs(self, features: Tensor, statistics: Means) -> Tensor:
        """scale_k |I - c_k|^2."""
        means = statistics.mean.to(features)
        # One class after the other: all differences at once would be K times the image.
        costs = torch.stack([(features - means[:, k, :, None]).square().sum(1) for k in range(means.shape[1])], dim=1)
        return costs * self._scales(means.shape[1], costs)

    def _scales(self, phases: int, like: Tensor) -> Tensor:
        if not isinstance(self.scale, tuple):
            return like.new_tensor(self.scale)
        if len(self.scale) != phases:
            raise UsageError(f"scale has {len(self.scale)} numbers, but there are {phases} phases. Give one for each.")
        return like.new_tensor(self.scale).reshape(1, -1, 1)
