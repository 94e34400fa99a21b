"""Short vectors: sums of Euclidean norms."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from regloss.dual_sets.dual_set import DualSet, Tangent, below_rim
from regloss.numerics import vector_lengths

_TINY = 1e-30


@dataclass(frozen=True)
class Balls(DualSet):
    """|y| <= radius for the vectors along the axis 2; the support is radius * sum of their Euclidean norms.

    Attributes:
        radius: >= 0.
        inside: (B or 1, vector, *S) bool: entries that there are, of dual variables (B, K, vector, *S). What stands
            elsewhere must not shorten the others, and is taken to 0. None = all.
    """

    radius: float
    inside: Tensor | None = None

    def project(self, y: Tensor) -> Tensor:
        """Vector by vector."""
        y = self._kept(y)
        # Clamped before the root is taken, whose derivative at 0 is infinite. Norms along an inner axis are slow.
        square = y.square().sum(2, keepdim=True)
        return y * (self.radius / square.clamp(min=max(self.radius**2, torch.finfo(y.dtype).tiny)).sqrt())

    def support(self, z: Tensor) -> Tensor:
        """Weighted sum of norms."""
        return self.radius * vector_lengths(z, 2).flatten(1).sum(1)

    def fenchel_gap(self, z: Tensor, y: Tensor) -> Tensor:
        """Vector by vector, none below 0."""
        short = self.radius * vector_lengths(z, 2) - (z * y).sum(2)
        return short.clamp(min=0).flatten(1).sum(1)

    def tangent(self, z: Tensor, y: Tensor) -> Tangent:
        """On the rim y = radius * z / |z| turns with z; y's own direction serves as that of z, which may be 0 there."""
        normal, free = self.normals(y)
        force = vector_lengths(z, 2).unsqueeze(2)
        curvature = torch.where(free, 0, force / max(self.radius, _TINY))
        return Tangent(lambda v: self._kept(v) - normal * (normal * v).sum(2, keepdim=True), curvature)

    def normals(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Unit vectors along ``y`` where it lies on the rim, 0 elsewhere; and where that is (B, K, 1, *S)."""
        y = self._kept(y)
        length = vector_lengths(y, 2).unsqueeze(2)
        free = length < below_rim(self.radius, y.dtype)
        return torch.where(free, 0, y / length.clamp(min=_TINY)), free

    def joint_bound(self, bound: Tensor) -> Tensor:
        """The largest of each vector."""
        return bound.amax(2, keepdim=True).expand_as(bound)

    def __getitem__(self, images: Tensor) -> Balls:
        return self if self.inside is None or len(self.inside) == 1 else Balls(self.radius, self.inside[images])

    def _kept(self, y: Tensor) -> Tensor:
        return y if self.inside is None else y * self.inside.unsqueeze(1)
