"""Length of the boundaries between classes, in pixels, where an edge of the image costs less.

    R(labels) = weight * sum over 8-neighbour pairs pq of w_pq [l_p != l_q]
    w_pq      = pi / (8 d) / (1 + (|I_p - I_q| / (d contrast))^2),        d = distance of p and q

pi / (8 d) is Cauchy's and Crofton's formula: on a flat image R is the Euclidean length. Source: Boykov, Kolmogorov,
"Computing geodesics and minimal surfaces via graph cuts", ICCV 2003.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from regloss import grid
from regloss.errors import UsageError
from regloss.forms import Graph, GridGraph
from regloss.potts import PottsTerm
from regloss.regularizer import Forms, Regularizer, Term


@dataclass(frozen=True)
class GeodesicLength(Regularizer):
    """weight: factor of the length, >= 0. contrast: slope that halves the cost, in image values a pixel, > 0."""

    weight: float = 1.0
    contrast: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.contrast < math.inf:
            raise UsageError(f"contrast must be positive, in image values a pixel; got {self.contrast}.")

    @property
    def forms(self) -> Forms:
        """What solvers can have: here what alpha-expansion and mean-field take."""
        return {GridGraph: PottsTerm.grid_graph, Graph: PottsTerm.graph}

    def build(self, image: Tensor, roi: Tensor | None, spacing: tuple[float, ...] | None) -> Term:
        """Weights of all pairs of ``image`` (B, C, H, W)."""
        if image.ndim != 4:
            raise UsageError(f"geodesic-length is for images (B, C, H, W); got {tuple(image.shape)}.")
        offsets = grid.neighbor_offsets(2, 8)
        lengths = grid.boundary_lengths(offsets, spacing)  # distances, balanced where axes differ
        shape = (len(image), *image.shape[2:])
        region = grid.full_roi(roi, shape, image.device)
        weights = image.new_zeros(shape[0], len(offsets), *shape[1:])
        for number, offset in enumerate(offsets):
            first, second = grid.pair_slices(offset)
            distance = lengths[number]
            slope = torch.linalg.vector_norm(grid.pick(image, first) - grid.pick(image, second), dim=1) / distance
            grid.pick(weights[:, number], first).copy_(math.pi / 8 / distance / (1 + (slope / self.contrast) ** 2))
            weights[:, number] *= grid.pairs_inside(region, offset)  # no pair may leave the region of interest
        return PottsTerm(self, GridGraph(offsets, self.weight * weights), shape, roi)
