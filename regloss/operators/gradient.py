"""Forward differences of every class along every axis of a grid: total variation and its weighted variants."""

from __future__ import annotations

import torch
from torch import Tensor

from regloss import grid
from regloss.operators.linear_operator import LinearOperator


class Gradient(LinearOperator):
    """K s = e D s, with forward differences D, 0 across the far border; dual shape (B, K, axes, *S).

    Differences along an axis of spacing h are divided by h, so that ||D||^2 < 4 / h^2 per axis; e lies in [0, 1].

    Args:
        size: *S.
        factors: e (B, axes, *S), what each difference counts; 0 where an end lies outside a region of interest, or the
            difference leaves the grid. None = 1 wherever both ends are on the grid.
        spacing: h of each axis; None = 1.
        dtype: see `LinearOperator.dtype`.
        sign: -1 for differences; 1 for the sums of both ends that |D| takes.
    """

    def __init__(
        self,
        size: tuple[int, ...],
        factors: Tensor | None = None,
        *,
        spacing: tuple[float, ...] | None = None,
        dtype: torch.dtype | None = None,
        sign: int = -1,
    ) -> None:
        self.size = size
        self.factors = factors
        self.spacing = None if spacing is None or set(spacing) == {1.0} else spacing
        self.sign = sign
        self._dtype = dtype if factors is None else factors.dtype

    @property
    def axes(self) -> int:
        """How many spatial axes there are."""
        return len(self.size)

    @property
    def norm(self) -> float:
        """Root of 4 / h^2 per axis."""
        if self.spacing is None:
            return float((4.0 * self.axes) ** 0.5)
        return float(sum(4.0 / step**2 for step in self.spacing) ** 0.5)

    @property
    def dtype(self) -> torch.dtype | None:
        """That of the factors."""
        return self._dtype

    @property
    def classes_are_alike(self) -> bool:
        """They are."""
        return True

    def apply(self, s: Tensor) -> Tensor:
        """Differences, weighted."""
        differences = grid.forward_differences(s, self.axes)
        if self.sign > 0:
            return (2 * s.unsqueeze(2) + differences) * self.weights(s).unsqueeze(1)
        return differences if self._plain else differences * self.weights(s).unsqueeze(1)

    def adjoint(self, y: Tensor) -> Tensor:
        """Minus a divergence."""
        if self.sign > 0:
            kept = y * self.weights(y).unsqueeze(1)
            # |D^T| y is the adjoint of 2 * identity + D, axis by axis.
            return 2 * kept.sum(2) + grid.forward_differences_adjoint(kept, self.axes)
        return grid.forward_differences_adjoint(y if self._plain else y * self.weights(y).unsqueeze(1), self.axes)

    @property
    def _plain(self) -> bool:
        return self.factors is None and self.spacing is None

    def weights(self, like: Tensor) -> Tensor:
        """E / h, (B, axes, *S), or (1, axes, *S) of the type of ``like`` where it is the same for all images."""
        if self.factors is not None:
            factors = self.factors
        else:
            factors = _on_grid(self.size, like.device).to(like.dtype).unsqueeze(0)
        if self.spacing is None:
            return factors
        return factors / factors.new_tensor(self.spacing).reshape(-1, *[1] * self.axes)

    def inside(self, device: torch.device) -> Tensor:
        """(B or 1, axes, *S) bool: which differences there are."""
        return _on_grid(self.size, device).unsqueeze(0) if self.factors is None else self.factors > 0

    def absolute(self) -> Gradient:
        """The sums of both ends, weighted."""
        return Gradient(self.size, self.factors, spacing=self.spacing, dtype=self._dtype, sign=1)

    def squared(self) -> Gradient:
        """The same with squared weights."""
        factors = None if self.factors is None else self.factors.square()
        spacing = None if self.spacing is None else tuple(step**2 for step in self.spacing)
        return Gradient(self.size, factors, spacing=spacing, dtype=self._dtype, sign=1)

    def __getitem__(self, images: Tensor) -> Gradient:
        factors = None if self.factors is None else self.factors[images]
        return Gradient(self.size, factors, spacing=self.spacing, dtype=self._dtype, sign=self.sign)


def _on_grid(size: tuple[int, ...], device: torch.device) -> Tensor:
    """(axes, *S) bool: differences that stay on the grid."""
    everywhere = torch.ones(1, *size, dtype=torch.bool, device=device)
    return torch.stack([grid.pairs_inside(everywhere, offset)[0] for offset in grid.axis_offsets(len(size))])
