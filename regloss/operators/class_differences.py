"""Differences between neighbouring classes at each pixel: ordered sets."""

from __future__ import annotations

import torch
from torch import Tensor

from regloss.operators.linear_operator import LinearOperator


class ClassDifferences(LinearOperator):
    """(K s)_k = s_k - s_(k + 1) inside a region, 0 outside; dual shape (B, K - 1, *S), ||K||^2 <= 4.

    Args:
        inside: (B, 1, *S) bool, the region.
        sign: -1 for differences; 1 for the sums that |K| takes.
    """

    def __init__(self, inside: Tensor, *, sign: int = -1) -> None:
        self.inside, self.sign = inside, sign

    @property
    def norm(self) -> float:
        """2."""
        return 2.0

    def apply(self, s: Tensor) -> Tensor:
        """How much more probable than the next each class is."""
        return (s[:, :-1] + self.sign * s[:, 1:]) * self.inside

    def adjoint(self, y: Tensor) -> Tensor:
        """Each number at its own class and, with the sign, at the next."""
        kept = y * self.inside
        zero = torch.zeros_like(kept[:, :1])
        return torch.cat([kept, zero], dim=1) + self.sign * torch.cat([zero, kept], dim=1)

    def absolute(self) -> ClassDifferences:
        """The sums of both classes."""
        return ClassDifferences(self.inside, sign=1)

    def squared(self) -> ClassDifferences:
        """The same, since all entries are 0, 1 or -1."""
        return self.absolute()

    def __getitem__(self, images: Tensor) -> ClassDifferences:
        return ClassDifferences(self.inside[images], sign=self.sign)
