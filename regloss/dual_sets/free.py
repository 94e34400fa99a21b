"""Any numbers: equality constraints."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from regloss.dual_sets.dual_set import DualSet, Tangent
from regloss.dual_sets.orthant import indicator, select_tolerance


@dataclass(frozen=True)
class Free(DualSet):
    """All y: the constraint z = 0.

    Attributes:
        tolerance: (B,), or a number: largest |z_i| that still counts as met.
    """

    tolerance: float | Tensor
    is_cone: ClassVar[bool] = True

    def project(self, y: Tensor) -> Tensor:
        """Nothing to do."""
        return y

    def support(self, z: Tensor) -> Tensor:
        """0 or inf."""
        return indicator(z.abs().flatten(1).amax(1), self.tolerance)

    def tangent(self, z: Tensor, y: Tensor) -> Tangent:
        """All directions."""
        return Tangent(lambda values: values)

    def __getitem__(self, images: Tensor) -> Free:
        return Free(select_tolerance(self.tolerance, images))
