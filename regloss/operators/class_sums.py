"""How much of a region each class covers: volumes."""

from __future__ import annotations

import torch
from torch import Tensor

from regloss.errors import UsageError
from regloss.numerics import double
from regloss.operators.linear_operator import LinearOperator


class ClassSums(LinearOperator):
    """(K s)_k = sum over the region's pixels of s_k / sqrt(pixels); dual shape (B, K), and the norm is 1.

    Two-sided, it is (K s, -K s), of dual shape (B, 2, K), for bounds from above and below.

    Args:
        inside: (B, *S) bool, the region.
        classes: K, for which there is a number each.
        two_sided: see above.
        power: of the entries 1 / sqrt(pixels); 2 gives their squares.
    """

    def __init__(self, inside: Tensor, classes: int, *, two_sided: bool = False, power: int = 1) -> None:
        self.inside, self.classes = inside, classes
        self.two_sided, self.power = two_sided, power
        self.pixels = double(inside.flatten(1).sum(1, keepdim=True))  # (B, 1)
        self.scale = self.pixels.rsqrt() if power == 1 else 1 / self.pixels

    @property
    def norm(self) -> float:
        """1, or sqrt(2) if two-sided."""
        return 2**0.5 if self.two_sided else 1.0

    def apply(self, s: Tensor) -> Tensor:
        """The scaled sums."""
        if s.shape[1] != self.classes:
            raise UsageError(
                f"There are volumes for {self.classes} classes, but the segmentation has K = {s.shape[1]}. Give one "
                "volume for each class."
            )
        sums = (s * self.inside.unsqueeze(1)).flatten(2).sum(2) * self.scale.to(s)
        if not self.two_sided:
            return sums
        return torch.stack([sums, -sums if self.power == 1 else sums], dim=1)

    def adjoint(self, y: Tensor) -> Tensor:
        """The numbers at every pixel of the region."""
        if self.two_sided:
            y = y[:, 0] - y[:, 1] if self.power == 1 else y[:, 0] + y[:, 1]
        numbers = y * self.scale.to(y)
        return numbers.reshape(*numbers.shape, *[1] * (self.inside.ndim - 1)) * self.inside.unsqueeze(1)

    def squared(self) -> ClassSums:
        """The same, with entries of 1 / pixels."""
        return ClassSums(self.inside, self.classes, two_sided=self.two_sided, power=2)

    def __getitem__(self, images: Tensor) -> ClassSums:
        return ClassSums(self.inside[images], self.classes, two_sided=self.two_sided, power=self.power)
