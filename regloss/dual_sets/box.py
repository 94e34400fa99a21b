"""Bounded entries: the l1 norm."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from regloss.dual_sets.dual_set import DualSet, Tangent, below_rim


@dataclass(frozen=True)
class Box(DualSet):
    """|y_i| <= radius; the support is radius * sum of |z_i|."""

    radius: float

    def project(self, y: Tensor) -> Tensor:
        """Entry by entry."""
        return y.clamp(-self.radius, self.radius)

    def support(self, z: Tensor) -> Tensor:
        """Weighted l1 norm."""
        return self.radius * z.abs().flatten(1).sum(1)

    def fenchel_gap(self, z: Tensor, y: Tensor) -> Tensor:
        """Without cancellation: r |z| - z y = |z| (r - sign(z) y) is a product of two numbers that are not negative."""
        return (z.abs() * (self.radius - z.sign() * y)).flatten(1).sum(1)

    def tangent(self, z: Tensor, y: Tensor) -> Tangent:
        """Entries on the rim stay where they are."""
        free = (y.abs() < below_rim(self.radius, y.dtype)).to(y.dtype)
        return Tangent(lambda values: values * free)
