"""`DualSet`: a closed convex set Y of dual variables, whose support function is a prior."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from regloss.errors import MissingForm


@dataclass(frozen=True)
class Tangent:
    """How y can move along with z while it stays the point of Y that maximises <z, y>.

    To first order, Q dz = c dy with dy = Q dy, where Q is the projection onto the directions in which Y is flat or
    smooth at y, and c >= 0 says how much Y curves there. Box: Q takes entries on the rim to 0, c = 0. Ball of radius r:
    on the rim Q = I - n n^T with n = y / r, and c = |z| / r. Cone q >= 0: Q takes entries that are 0 to 0, c = 0.

    Attributes:
        project: Q.
        curvature: c, broadcastable to y; 0 inside Y and wherever Y is flat.
    """

    project: Callable[[Tensor], Tensor]
    curvature: Tensor | float = 0.0


class DualSet(ABC):
    """Y, a product over images; dual variables y are (B, ...).

    ``Y[images]`` with int64 indices (M,) is the set of these images alone. Sets are never modified.
    """

    is_cone: ClassVar[bool] = False
    """Whether Y is a cone: its support is 0 or infinite, R a hard constraint, which no positive factor changes."""

    # ---- what must be defined

    @abstractmethod
    def project(self, y: Tensor) -> Tensor:
        """Euclidean projection onto Y."""

    @abstractmethod
    def support(self, z: Tensor) -> Tensor:
        """(B,) max over y in Y of <z, y>.

        Of a cone: 0 where the constraint on ``z`` holds within its tolerance, inf elsewhere.
        """

    # ---- what might be defined

    def fenchel_gap(self, z: Tensor, y: Tensor) -> Tensor:
        """(B,) support(z) - <z, y> for y in Y, how much better than y the best one is; >= 0 but for tolerances.

        Sets that can sum it up from numbers that are not negative do so: the rounding error of the difference grows
        with the support.
        """
        return self.support(z) - (z * y).flatten(1).sum(1)

    def tangent(self, z: Tensor, y: Tensor) -> Tangent:
        """At a pair of z and its maximiser y; what implicit derivatives need.

        Raises:
            MissingForm: the set does not define it.
        """
        raise MissingForm(
            f"Cannot differentiate implicitly: the dual set {type(self).__name__} defines no tangent. "
            'Use backward = "unrolled" or "one-step".'
        )

    def joint_bound(self, bound: Tensor) -> Tensor:
        """``bound`` of dual shape, with one value for entries that are projected jointly and so share a step."""
        return bound

    def __getitem__(self, images: Tensor) -> DualSet:
        return self


def below_rim(radius: float, dtype: torch.dtype) -> float:
    """As near to the rim as rounding can tell, a dual variable counts as lying on it."""
    return radius * (1 - max(1e-9, 8 * torch.finfo(dtype).eps))
