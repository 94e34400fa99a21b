"""Gaussian regions: the values of each phase are normally distributed.

    F(s, theta) = sum over phases k and pixels p of s_kp (-log N(I_p; m_k, S_k))
    -log N(x; m, S) = ((x - m)^T S^-1 (x - m) + log det S + C log 2 pi) / 2

in nats, with a mean m_k and a full covariance S_k for each phase. Unlike a mean alone it tells phases apart by their
spread, and a dark phase with little noise is not overrun by a bright one with much. Among all S whose eigenvalues are
at least ``min_variance``, F is smallest at the weighted mean and at the weighted covariance with its eigenvalues raised
to that floor: for each eigenvalue v of S and e of the covariance, log v + e / v falls until v = e and rises behind it.
Without the floor a phase of one colour would have the energy -inf.

Source: Zhu, Yuille, "Region competition", PAMI 1996; Rousson, Deriche, "A variational framework for active and adaptive
segmentation of vector valued images", 2002.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from regloss.errors import UsageError
from regloss.region_force import RegionForce


class Gaussians(NamedTuple):
    """Statistics of `GaussianForce`: the mean (B, K, C) and the covariance (B, K, C, C) of each phase."""

    mean: Tensor
    covariance: Tensor


@dataclass(frozen=True)
class GaussianForce(RegionForce):
    """-log of the phase's normal density.

    Args:
        min_variance: lower bound of a covariance's eigenvalues, > 0, in squared units of the image; the default is a
            standard deviation of 0.01, or 2.5 of 255.

    Raises:
        UsageError: a floor that is not positive.

    >>> image = torch.tensor([[[0.0, 0.2, 0.9, 0.9]]])
    >>> labels = torch.tensor([[[1.0, 1, 0, 0], [0, 0, 1, 1]]])
    >>> GaussianForce().fit(image, labels).covariance.flatten()
    tensor([0.0100, 0.0001], dtype=torch.float64)
    """

    min_variance: float = 1e-4

    def __post_init__(self) -> None:
        if not 0 < self.min_variance < float("inf"):
            raise UsageError(f"min_variance must be a positive number; got {self.min_variance!r}.")

    def estimate(self, features: Tensor, weights: Tensor) -> Gaussians:
        """Weighted means and covariances, with their eigenvalues raised to the floor."""
        values = features.to(weights)
        mass = weights.sum(2, keepdim=True)
        mean = weights @ values.transpose(1, 2) / mass
        covariances = []
        for k in range(weights.shape[1]):
            centred = values - mean[:, k, :, None]
            moments = (weights[:, k, None] * centred) @ centred.transpose(1, 2) / mass[:, k, None]
            eigenvalues, axes = torch.linalg.eigh(moments)
            raised = eigenvalues.clamp(min=self.min_variance)
            covariances.append((axes * raised.unsqueeze(1)) @ axes.transpose(1, 2))
        return Gaussians(mean, torch.stack(covariances, dim=1))

    def costs(self, features: Tensor, statistics: Gaussians) -> Tensor:
        """-log N(I; m_k, S_k)."""
        eigenvalues, axes = torch.linalg.eigh(statistics.covariance)  # (B, K, C), (B, K, C, C)
        whiten = (axes / eigenvalues.sqrt().unsqueeze(2)).transpose(2, 3).to(features)
        constant = (eigenvalues.log().sum(2) + features.shape[1] * math.log(2 * math.pi)).to(features)
        means = statistics.mean.to(features)
        costs = [
            ((whiten[:, k] @ (features - means[:, k, :, None])).square().sum(1) + constant[:, k, None]) / 2
            for k in range(means.shape[1])
        ]
        return torch.stack(costs, dim=1)
