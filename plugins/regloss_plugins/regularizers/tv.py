"""Total variation: the sum over classes of the length of each class's gradient.

    R(s) = weight * sum over classes k and pixels of e_p |(D s_k)_p|

with forward differences D, divided by the spacing where it is known, 0 across the far border; |.| is the l1 norm over
the axes (anisotropic) or the Euclidean norm (isotropic, per pixel and class). A difference with an end outside the
region of interest is 0.
e = 1 / (1 + edge_scale |grad I|^2) makes boundaries cheap on edges of the image I; edge_scale is 0 by default.

On one-hot labels the anisotropic value is *twice* the number of cut 4-neighbour pairs (6-neighbour pairs in 3D), since
both classes jump; its graph form carries that factor, so that solver and loss share one energy.

As a saddle form, R(s) = max <e D s, y> over |y| <= weight, with ||D||^2 < 4 per axis of unit spacing.
Source: Jia, Tai, Liu, "Nonlocal regularized CNN for image segmentation", and Liu, Wang, Tai, arXiv:2002.03989.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from regloss import grid
from regloss.checks import check_not_negative
from regloss.dual_sets import Balls, Box
from regloss.forms import Graph, GridGraph, Saddle, SaddlePart
from regloss.operators import Gradient
from regloss.regularizer import Forms, Regularizer, Term
from regloss_plugins.regularizers.threshold_dynamics import edge_weights


@dataclass(frozen=True)
class TotalVariation(Regularizer):
    """Total variation of every class's probability, summed over classes; looks at the image only for its edges.

    Args:
        weight: factor of the whole energy, >= 0.
        isotropic: Euclidean norm of the gradient instead of the l1 norm.
        edge_scale: contrast factor of e, in 1 / image value^2 (mm^2 / image value^2 where the spacing is known), >= 0;
            0 = the image does not matter.

    Raises:
        UsageError: a setting outside its range.

    >>> labels = torch.tensor([[[0, 1], [0, 1]]])
    >>> probabilities = torch.stack([labels == 0, labels == 1], dim=1).float()
    >>> TotalVariation().bind(torch.zeros(1, 1, 2, 2)).energy(probabilities)
    tensor([4.])
    """

    weight: float = 1.0
    isotropic: bool = False
    edge_scale: float = 0.0

    def __post_init__(self) -> None:
        check_not_negative(edge_scale=self.edge_scale)

    @property
    def forms(self) -> Forms:
        """A saddle form; a graph too if anisotropic, since then it is a cut on one-hot labels."""
        saddle: Forms = {Saddle: _TotalVariationTerm.saddle}
        if self.isotropic:
            return saddle
        return {**saddle, GridGraph: _TotalVariationTerm.grid_graph, Graph: _TotalVariationTerm.graph}

    @property
    def needs_image(self) -> bool:
        """For edges alone."""
        return self.edge_scale > 0

    def build(self, image: Tensor, roi: Tensor | None, spacing: tuple[float, ...] | None) -> Term:
        """Note which differences lie inside the region of interest, and what they count."""
        size = tuple(image.shape[2:])
        factors = None
        if roi is not None or self.edge_scale > 0:
            inside = grid.full_roi(roi, (image.shape[0], *size), image.device)
            pairs = [grid.pairs_inside(inside, offset) for offset in grid.axis_offsets(len(size))]
            factors = torch.stack(pairs, dim=1).to(image.dtype)
            if self.edge_scale > 0:
                factors = factors * edge_weights(image, roi, self.edge_scale, spacing)
        gradient = Gradient(size, factors, spacing=spacing, dtype=image.dtype)
        return _TotalVariationTerm(self, gradient, image.new_empty(0), (image.shape[0], *size), roi)


class _TotalVariationTerm(Term):
    def __init__(
        self,
        regularizer: TotalVariation,
        gradient: Gradient,
        like: Tensor,  # of the image's type, on its device
        shape: tuple[int, ...],
        roi: Tensor | None,
    ) -> None:
        super().__init__(regularizer, shape, roi)
        self.gradient = gradient
        self.like = like
        self.weight = regularizer.weight
        self.isotropic = regularizer.isotropic

    def energy(self, probabilities: Tensor) -> Tensor:
        differences = self.gradient.apply(self.check(probabilities))
        return (Balls(self.weight) if self.isotropic else Box(self.weight)).support(differences)

    def saddle(self) -> Saddle:
        """Dual variables are (B, K, axes, *S); those of a pixel have |y| <= weight, together or one by one."""
        if not self.isotropic:
            return Saddle((SaddlePart(self.gradient, Box(self.weight)),))
        return Saddle((SaddlePart(self.gradient, Balls(self.weight, self.gradient.inside(self.like.device))),))

    def grid_graph(self) -> GridGraph:
        """Both classes of a cut pair jump."""
        weights = self.gradient.weights(self.like)
        weights = 2 * self.weight * weights.expand(self.shape[0], *weights.shape[1:])
        return GridGraph(grid.axis_offsets(len(self.shape) - 1), weights)

    def graph(self) -> Graph:
        """The same as a list of edges."""
        return self.grid_graph().graph()
