"""Total variation: the sum over classes of the length of each class's gradient.

    R(s) = weight * sum over classes k and pixels of |(D s_k)_p|

with forward differences D, unit spacing, 0 across the far border; |.| is the l1 norm over the axes (anisotropic) or the
Euclidean norm (isotropic, per pixel and class). A difference with an end outside the region of interest is 0.

On one-hot labels the anisotropic value is *twice* the number of cut 4-neighbour pairs (6-neighbour pairs in 3D), since
both classes jump; its graph form carries that factor, so that solver and loss share one energy.

As a saddle form, R(s) = max <D s, y> over |y| <= weight, with ||D||^2 < 4 per axis.
Source: Jia, Tai, Liu, "Nonlocal regularized CNN for image segmentation", and Liu, Wang, Tai, arXiv:2002.03989.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from regloss import grid
from regloss.regularizer import Form, Graph, GridGraph, Regularizer, Saddle, SaddleBlock, Term, check_weight


@dataclass(frozen=True)
class TotalVariation(Regularizer):
    """Total variation of every class's probability, summed over classes. It does not look at the image.

    Args:
        weight: factor of the whole energy, >= 0.
        isotropic: Euclidean norm of the gradient instead of the l1 norm.

    >>> labels = torch.tensor([[[0, 1], [0, 1]]])
    >>> probabilities = torch.stack([labels == 0, labels == 1], dim=1).float()
    >>> TotalVariation().bind(torch.zeros(1, 1, 2, 2)).energy(probabilities)
    tensor([4.])
    """

    weight: float = 1.0
    isotropic: bool = False

    def __post_init__(self) -> None:
        check_weight(self.weight, "tv")

    @property
    def forms(self) -> tuple[type[Form], ...]:
        """A saddle form; a graph too if anisotropic, since then it is a cut on one-hot labels."""
        return (Saddle,) if self.isotropic else (Saddle, GridGraph, Graph)

    def build(self, image: Tensor, roi: Tensor | None) -> Term:
        """Note which differences lie inside the region of interest."""
        shape = (image.shape[0], *image.shape[2:])
        offsets = tuple(tuple(int(i == axis) for i in range(image.ndim - 2)) for axis in range(image.ndim - 2))
        everywhere = grid.full_roi(roi, shape, image.device)
        inside = torch.stack([grid.pairs_inside(everywhere, offset) for offset in offsets], dim=1)
        return _TotalVariationTerm(self, offsets, inside.to(image.dtype), shape, roi)


class _TotalVariationTerm(Term):
    def __init__(
        self,
        regularizer: TotalVariation,
        offsets: tuple[grid.Offset, ...],
        inside: Tensor,  # (B, axes, *S), 1 where both ends of the difference count
        shape: tuple[int, ...],
        roi: Tensor | None,
    ) -> None:
        super().__init__(regularizer, shape, roi)
        self.offsets = offsets
        self.inside = inside
        self.weight = regularizer.weight
        self.isotropic = regularizer.isotropic

    def energy(self, probabilities: Tensor) -> Tensor:
        return self._support(self._differences(self.check(probabilities)))

    def builders(self) -> Mapping[type[Form], Callable[[], Form]]:
        builders: dict[type[Form], Callable[[], Form]] = {Saddle: self._saddle}
        if not self.isotropic:
            builders[GridGraph] = self._grid_graph
            builders[Graph] = lambda: self._grid_graph().graph()
        return builders

    def _differences(self, values: Tensor) -> Tensor:
        """(B, K, axes, *S)."""
        return grid.forward_differences(values, len(self.offsets)) * self.inside.unsqueeze(1)

    def _support(self, differences: Tensor) -> Tensor:
        # vector_norm has the subgradient 0 at 0, where the root of a sum of squares would give NaN.
        norms: Tensor = torch.linalg.vector_norm(differences, ord=2 if self.isotropic else 1, dim=2)
        return self.weight * norms.flatten(1).sum(1)

    def _saddle(self) -> Saddle:
        axes = len(self.offsets)

        def adjoint(dual: Tensor) -> Tensor:
            return grid.forward_differences_adjoint(dual * self.inside.unsqueeze(1), axes)

        def project(dual: Tensor) -> Tensor:
            if not self.isotropic:
                return dual.clamp(-self.weight, self.weight)
            length: Tensor = torch.linalg.vector_norm(dual, dim=2, keepdim=True)
            tiny = torch.finfo(dual.dtype).tiny
            return dual * (self.weight / length.clamp(min=max(self.weight, tiny)))

        return Saddle((SaddleBlock(self._differences, adjoint, project, self._support, norm=(4.0 * axes) ** 0.5),))

    def _grid_graph(self) -> GridGraph:
        return GridGraph(self.offsets, 2 * self.weight * self.inside)
