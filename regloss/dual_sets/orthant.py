"""Entries that are not negative: inequality constraints."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from regloss.dual_sets.dual_set import DualSet, Tangent


@dataclass(frozen=True)
class Orthant(DualSet):
    """y_i >= 0: the constraint z_i <= 0.

    Attributes:
        tolerance: (B,), or a number: largest z_i that still counts as met.
    """

    tolerance: float | Tensor
    is_cone: ClassVar[bool] = True

    def project(self, y: Tensor) -> Tensor:
        """Entry by entry."""
        return y.clamp(min=0)

    def support(self, z: Tensor) -> Tensor:
        """0 or inf."""
        return indicator(z.flatten(1).amax(1), self.tolerance)

    def tangent(self, z: Tensor, y: Tensor) -> Tangent:
        """Entries that are 0 stay 0."""
        free = (y > 0).to(y.dtype)
        return Tangent(lambda values: values * free)

    def __getitem__(self, images: Tensor) -> Orthant:
        return Orthant(select_tolerance(self.tolerance, images))


def indicator(worst: Tensor, tolerance: float | Tensor) -> Tensor:
    """0 where ``worst`` (B,) is at most the tolerance, inf elsewhere."""
    limit = tolerance.to(worst) if isinstance(tolerance, Tensor) else tolerance
    return torch.zeros_like(worst).masked_fill(worst > limit, math.inf)


def select_tolerance(tolerance: float | Tensor, images: Tensor) -> float | Tensor:
    """That of the images (M,)."""
    if isinstance(tolerance, Tensor) and tolerance.ndim:
        return tolerance[images.to(tolerance.device)]
    return tolerance
