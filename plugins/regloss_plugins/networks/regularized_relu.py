"""Activations with a prior inside: total variation within a network's blocks, instead of behind them.

    smoothing           u = argmin          |u - o|^2 / 2 + weight TV(u)
    regularized ReLU    u = argmin, u >= 0, |u - o|^2 / 2 + weight TV(u)

for features o, channel by channel, with anisotropic total variation; without TV the second is max(o, 0). By the dual,

    y <- clamp(y + tau D u, -weight, weight),        u = (o - D^T y), cut off at 0 for the ReLU,        tau = 1 / |D|^2

from y = 0, for a few steps that are taken and differentiated as they are, as the published layers do. Each lowers the
dual's distance from its maximum; in the limit the second is the first, cut off at 0, since total variation is the sum
of the perimeters of level sets, which a bound on u leaves alone.

Source: the lecture "Mathematical Deep Neural Networks and Applications" (X.-C. Tai), which writes activations as
minimisers and adds priors to them.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from regloss.errors import UsageError
from regloss.operators import Gradient


class Smoothing(nn.Module):
    """Features (B, C, *S) with less total variation; see the module's text.

    Args:
        weight: of total variation, > 0, in units of the features.
        steps: of the dual ascent, at least 1.
        learn: whether the weight is trained; it is kept as a logarithm.

    Raises:
        UsageError: a setting outside its range.

    >>> Smoothing(weight=10.0, steps=200)(torch.tensor([[[[1.0, 2.0, 6.0]]]])).round(decimals=3)
    tensor([[[[3., 3., 3.]]]])
    """

    least = -math.inf  # of the features that come out

    def __init__(self, weight: float = 0.1, steps: int = 3, learn: bool = False) -> None:
        super().__init__()
        if not (isinstance(weight, int | float) and 0 < weight < math.inf):
            raise UsageError(f"The weight of total variation in an activation must be positive; got {weight!r}.")
        if not isinstance(steps, int) or steps < 1:
            raise UsageError(f"An activation with total variation takes at least 1 step; got {steps!r}.")
        self.steps = steps
        self._weight = weight
        self.log_weight = nn.Parameter(torch.tensor(math.log(weight))) if learn else None

    @property
    def weight(self) -> Tensor:
        """() weight of total variation."""
        return torch.tensor(self._weight) if self.log_weight is None else self.log_weight.exp()

    def forward(self, features: Tensor) -> Tensor:
        """Smooth features, of the type of ``features``."""
        gradient = Gradient(tuple(features.shape[2:]))
        weight = self.weight.to(features)
        u, y = features.clamp(min=self.least), torch.zeros_like(gradient.apply(features))
        for _ in range(self.steps):
            y = (y + gradient.apply(u) / gradient.norm**2).clamp(-weight, weight)
            u = (features - gradient.adjoint(y)).clamp(min=self.least)
        return u

    def extra_repr(self) -> str:
        """Settings for ``print(network)``."""
        return f"weight={float(self.weight.detach()):.3g}, steps={self.steps}"


class RegularizedReLU(Smoothing):
    """A ReLU with total variation inside; settings are those of `Smoothing`.

    >>> RegularizedReLU(weight=0.5, steps=200)(torch.tensor([[[[-4.0, 1.0, 3.0]]]])).round(decimals=3)
    tensor([[[[0.0000, 1.0000, 2.5000]]]])
    """

    least = 0.0


def smooth_relus(network: nn.Module, weight: float, steps: int) -> int:
    """Put a `RegularizedReLU` in the place of every ``nn.ReLU`` of a network; how many there were.

    >>> network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Sequential(nn.Conv2d(2, 2, 3), nn.ReLU()))
    >>> smooth_relus(network, weight=0.1, steps=3)
    2
    """
    count = 0
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.ReLU):
                setattr(module, name, RegularizedReLU(weight, steps))
                count += 1
    return count
