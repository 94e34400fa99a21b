"""Laplace regions: the values of each phase scatter around its median, some of them far away.

    F(s, theta) = sum over phases k and pixels p of s_kp sum over channels c of (|I_pc - m_kc| / b_kc + log(2 b_kc))

in nats: -log of Laplace's density with location m_k and scale b_k, channel by channel. Among all b >= min_scale, F is
smallest at the weighted medians and at the weighted mean distances from them, raised to min_scale: log b + e / b falls
until b = e and rises behind it. A few pixels of another colour move a median less than they move a mean.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from regloss.errors import UsageError
from regloss.region_force import RegionForce


class Laplaces(NamedTuple):
    """Statistics of `MyComponent`: median and scale of each channel of each phase, both (B, K, C)."""

    median: Tensor
    scale: Tensor


@dataclass(frozen=True)
class MyComponent(RegionForce):
    """-log of the phase's Laplace density, each channel for itself.

    Args:
        min_scale: lower bound of the scales, in image values, > 0; without it a phase of one colour would cost -inf.

    Raises:
        UsageError: a bound that is not positive.
    """

    min_scale: float = 0.01

    def __post_init__(self) -> None:
        if not 0 < self.min_scale < math.inf:
            raise UsageError(f"min_scale must be positive, in image values; got {self.min_scale}.")

    def estimate(self, features: Tensor, weights: Tensor) -> Laplaces:
        """Statistics of ``features`` (B, C, N), weighted by ``weights`` (B, K, N)."""
        values, order = features.to(weights).sort(dim=2)
        medians, scales = [], []
        for k in range(weights.shape[1]):
            sorted_weights = weights[:, k, None].expand_as(values).gather(2, order)
            reached = sorted_weights.cumsum(2)
            middle = torch.searchsorted(reached, reached[..., -1:] / 2)  # where half of the weight is reached
            median = values.gather(2, middle)
            distance = (sorted_weights * (values - median).abs()).sum(2) / reached[..., -1]
            medians.append(median.squeeze(2))
            scales.append(distance.clamp(min=self.min_scale))
        return Laplaces(torch.stack(medians, dim=1), torch.stack(scales, dim=1))

    def costs(self, features: Tensor, statistics: Laplaces) -> Tensor:
        """-log of the densities (B, K, N) at ``features`` (B, C, N)."""
        costs = []
        for k in range(statistics.median.shape[1]):
            median, scale = (values[:, k, :, None].to(features) for values in statistics)
            costs.append(((features - median).abs() / scale + (2 * scale).log()).sum(1))
        return torch.stack(costs, dim=1)
