"""Bending: soft boundaries that change slowly, as a convex prior with a linear operator of its own.

    R(s) = weight * sum over classes k and pixels of |(D^T D s_k)_p| = max of <D^T D s, y> over |y| <= weight

with the forward differences D, which are 0 across the border of the image and of a region of interest: the l1 norm of
the Laplacian. Unlike total variation it leaves linear ramps alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from regloss import LinearOperator, Regularizer, Saddle, SaddlePart, Term, grid
from regloss.dual_sets import Box
from regloss.operators import Gradient
from regloss.regularizer import Forms


@dataclass(frozen=True)
class Laplacian(LinearOperator):
    """K s = D^T D s (B, K, *S), its own adjoint; ``gradient`` is D."""

    gradient: Gradient

    def apply(self, s: Tensor) -> Tensor:
        return self.gradient.adjoint(self.gradient.apply(s))

    def adjoint(self, y: Tensor) -> Tensor:
        return self.apply(y)

    @property
    def norm(self) -> float:
        return self.gradient.norm**2

    def __getitem__(self, images: Tensor) -> Laplacian:
        return replace(self, gradient=self.gradient[images])


@dataclass(frozen=True)
class Bending(Regularizer):
    """weight: factor of the whole energy, >= 0."""

    weight: float = 1.0

    @property
    def forms(self) -> Forms:
        """What solvers can have: here what pdhg and dca take."""
        return {Saddle: BendingTerm.saddle}

    def build(self, image: Tensor, roi: Tensor | None, spacing: tuple[float, ...] | None) -> Term:
        """Note which differences lie inside ``roi`` (B, *S)."""
        size, offsets = tuple(image.shape[2:]), grid.axis_offsets(image.ndim - 2)
        pairs = None if roi is None else torch.stack([grid.pairs_inside(roi, o) for o in offsets], 1).to(image.dtype)
        part = SaddlePart(Laplacian(Gradient(size, pairs, spacing=spacing, dtype=image.dtype)), Box(self.weight))
        return BendingTerm(self, part, (len(image), *size), roi)


class BendingTerm(Term):
    """`Bending` bound to images."""

    def __init__(self, regularizer: Bending, part: SaddlePart, shape: tuple[int, ...], roi: Tensor | None) -> None:
        super().__init__(regularizer, shape, roi)
        self.part = part

    def energy(self, probabilities: Tensor) -> Tensor:
        """R (B,) at ``probabilities`` (B, K, *S)."""
        return self.part.value(self.check(probabilities))

    def saddle(self) -> Saddle:
        return Saddle((self.part,))
