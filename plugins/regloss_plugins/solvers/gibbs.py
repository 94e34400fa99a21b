"""Gibbs distributions: what minimises costs plus an entropy at every pixel by itself."""

from __future__ import annotations

import torch
from torch import Tensor

from regloss.numerics import one_hot


def gibbs(cost: Tensor, entropy: float) -> Tensor:
    """Minimiser of <cost, s> + entropy <s, log s>, with s = 0 where the cost is inf; without entropy it is one-hot."""
    if entropy == 0:
        return one_hot(cost.argmin(1), cost.shape[1], cost.dtype)
    # The smallest cost is subtracted first: softmax does so too, but only after the quotient may have overflowed.
    return torch.softmax((cost.amin(1, keepdim=True) - cost) / entropy, dim=1)


def log_gibbs(cost: Tensor, entropy: float | Tensor) -> Tensor:
    """Logarithm of `gibbs`, differentiable."""
    return torch.log_softmax(-divided(cost - cost.detach().amin(1, keepdim=True), entropy), dim=1)


def divided(cost: Tensor, entropy: float | Tensor) -> Tensor:
    """Cost / entropy; the derivative by the entropy of a cost of inf is 0 instead of NaN."""
    possible = cost < float("inf")
    return torch.where(possible, torch.where(possible, cost, 0) / entropy, float("inf"))
