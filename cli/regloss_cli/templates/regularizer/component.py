"""Quadratic smoothness: neighbours of similar colour should have similar probabilities.

    R(S) = weight * sum over pairs pq of nearest neighbours of w_pq |S_p - S_q|^2 / 2
    w_pq = exp(-|I_p - I_q|^2 / (2 sigma^2))

|S_p - S_q|^2 / 2 is 1 for two one-hot vectors that differ. So R of labels is a Potts model, which solvers on graphs
minimise, and R of probabilities its convex relaxation, for gradient descent.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from regloss import grid
from regloss.errors import UsageError
from regloss.forms import Graph, GridGraph
from regloss.regularizer import Forms, Regularizer, Term


@dataclass(frozen=True)
class MyComponent(Regularizer):
    """Quadratic smoothness of probabilities, less across edges of the image; in 1D to 3D.

    Args:
        weight: factor of the energy, >= 0.
        sigma: difference of colours at which a pair still counts 0.6, in image values, > 0.

    Raises:
        UsageError: a setting outside its range.
    """

    weight: float = 1.0
    sigma: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.sigma < math.inf:
            raise UsageError(f"sigma must be positive, in image values (which lie in [0, 1]); got {self.sigma}.")

    @property
    def forms(self) -> Forms:
        """What solvers can have: graphs, for alpha-expansion and mean-field among others."""
        return {GridGraph: SmoothnessTerm.grid_graph, Graph: SmoothnessTerm.graph}

    def build(self, image: Tensor, roi: Tensor | None, spacing: tuple[float, ...] | None) -> Term:
        """The weights of all pairs of ``image`` (B, C, *S), once for a batch; less for long ones where mm are known."""
        ndim, shape = image.ndim - 2, (len(image), *image.shape[2:])
        offsets = grid.neighbor_offsets(ndim, 2 * ndim)
        region = grid.full_roi(roi, shape, image.device)
        weights = image.new_zeros(shape[0], len(offsets), *shape[1:])
        for number, offset in enumerate(offsets):
            first, second = grid.pair_slices(offset)
            distance = (grid.pick(image, first) - grid.pick(image, second)).square().sum(1)
            contrast = torch.exp(-distance / (2 * self.sigma**2))
            grid.pick(weights[:, number], first).copy_(contrast / grid.boundary_lengths(offsets, spacing)[number])
            weights[:, number] *= grid.pairs_inside(region, offset)  # no pair may leave the region of interest
        return SmoothnessTerm(self, GridGraph(offsets, self.weight * weights), shape, roi)


class SmoothnessTerm(Term):
    """`MyComponent` bound to images: the pairs and their weights, the regularizer's weight included."""

    def __init__(self, regularizer: Regularizer, pairs: GridGraph, shape: tuple[int, ...], roi: Tensor | None) -> None:
        super().__init__(regularizer, shape, roi)
        self.pairs = pairs

    def energy(self, probabilities: Tensor) -> Tensor:
        """R (B,) at ``probabilities`` (B, K, *S), differentiable."""
        probabilities = self.check(probabilities)  # refuses what does not fit the images; float32 at least
        energy = probabilities.new_zeros(len(probabilities))
        for number, offset in enumerate(self.pairs.offsets):
            first, second = grid.pair_slices(offset)
            distance = (grid.pick(probabilities, first) - grid.pick(probabilities, second)).square().sum(1) / 2
            energy = energy + (grid.pick(self.pairs.weights[:, number], first) * distance).flatten(1).sum(1)
        return energy

    def grid_graph(self) -> GridGraph:
        """The pairs."""
        return self.pairs

    def graph(self) -> Graph:
        """The same as a list of edges."""
        return self.pairs.graph()
