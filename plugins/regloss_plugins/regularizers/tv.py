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
from regloss.regularizer import Face, Form, Graph, GridGraph, Regularizer, Saddle, SaddleBlock, Term, check_weight

_TINY = 1e-30


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
        probabilities = self.check(probabilities)
        differences = grid.forward_differences(probabilities, len(self.offsets)) * self.inside.unsqueeze(1)
        return _lengths(differences, self.weight, self.isotropic)

    def builders(self) -> Mapping[type[Form], Callable[[], Form]]:
        builders: dict[type[Form], Callable[[], Form]] = {
            Saddle: lambda: Saddle((_block(self.inside, self.weight, self.isotropic),))
        }
        if not self.isotropic:
            builders[GridGraph] = self._grid_graph
            builders[Graph] = lambda: self._grid_graph().graph()
        return builders

    def _grid_graph(self) -> GridGraph:
        return GridGraph(self.offsets, 2 * self.weight * self.inside)


def _lengths(differences: Tensor, weight: float, isotropic: bool) -> Tensor:
    """Sum of the lengths of ``differences`` (B, K, axes, *S), weighted: (B,)."""
    # vector_norm has the subgradient 0 at 0, where the root of a sum of squares would give NaN.
    norms: Tensor = torch.linalg.vector_norm(differences, ord=2 if isotropic else 1, dim=2)
    return weight * norms.flatten(1).sum(1)


def _block(inside: Tensor, weight: float, isotropic: bool) -> SaddleBlock:
    """The saddle form; dual variables are (B, K, axes, *S), those of an axis and pixel with |y| <= weight."""
    axes = inside.shape[1]
    mask = inside.unsqueeze(1)

    def apply(values: Tensor) -> Tensor:
        return grid.forward_differences(values, axes) * mask

    def adjoint(dual: Tensor) -> Tensor:
        return grid.forward_differences_adjoint(dual * mask, axes)

    def project(dual: Tensor) -> Tensor:
        if not isotropic:
            return dual.clamp(-weight, weight)
        dual = dual * mask  # what stands where no difference is must not shorten the others
        length: Tensor = torch.linalg.vector_norm(dual, dim=2, keepdim=True)
        return dual * (weight / length.clamp(min=max(weight, torch.finfo(dual.dtype).tiny)))

    def support(differences: Tensor) -> Tensor:
        return _lengths(differences, weight, isotropic)

    def slack(differences: Tensor, dual: Tensor) -> Tensor:
        if not isotropic:
            # w |z| - z y = |z| (w - sign(z) y): a product of two numbers that are not negative.
            return (differences.abs() * (weight - differences.sign() * dual)).flatten(1).sum(1)
        along = (differences * dual).sum(2)
        short: Tensor = weight * torch.linalg.vector_norm(differences, dim=2) - along
        return short.clamp(min=0).flatten(1).sum(1)

    def absolute(values: Tensor) -> Tensor:
        # |D| sums the two ends of a difference.
        sums = (2 * values.unsqueeze(2) + grid.forward_differences(values, axes)) * mask
        # The axes of a pixel are projected jointly if isotropic, so they share the largest value.
        return sums.amax(2, keepdim=True).expand_as(sums) if isotropic else sums

    def absolute_adjoint(dual: Tensor) -> Tensor:
        # |D^T| y is the adjoint of 2 * identity + D, axis by axis.
        kept = dual * mask
        return 2 * kept.sum(2) + grid.forward_differences_adjoint(kept, axes)

    def squared(values: Tensor) -> Tensor:
        return (2 * values.unsqueeze(2) + grid.forward_differences(values, axes)) * mask

    def face(differences: Tensor, dual: Tensor) -> Face:
        # As near to the rim as rounding can tell, a dual variable counts as lying on it.
        edge = weight * (1 - max(1e-9, 8 * torch.finfo(dual.dtype).eps))
        if not isotropic:
            free = (dual.abs() < edge) * mask
            return Face(lambda values: values * free)
        dual = dual * mask
        radius = torch.linalg.vector_norm(dual, dim=2, keepdim=True)
        free = radius < edge
        # On the rim y = weight * z / |z| turns with z. Its own direction serves as that of z, which may be 0 there.
        normal = torch.where(free, 0, dual / radius.clamp(min=_TINY))
        length = torch.linalg.vector_norm(differences, dim=2, keepdim=True)
        curvature = torch.where(free, 0, length / max(weight, _TINY))
        return Face(lambda values: values * mask - normal * (normal * values).sum(2, keepdim=True), curvature)

    return SaddleBlock(
        apply=apply,
        adjoint=adjoint,
        project=project,
        support=support,
        norm=(4.0 * axes) ** 0.5,
        slack=slack,
        absolute=absolute,
        absolute_adjoint=absolute_adjoint,
        squared=squared,
        face=face,
        select=lambda images: _block(inside[images], weight, isotropic),
    )
