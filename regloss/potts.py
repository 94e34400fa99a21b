"""The Potts model on a grid as a term: what priors that only choose pair weights have in common.

    R(labels) = sum over pairs of w_pq [l_p != l_q],   w_pq >= 0

For probabilities S there are relaxations, each equal to R on one-hot input (per pair, before w):

    bilinear              1 - <S_p, S_q>        tight: its minimum over the simplex is the discrete one; not convex
    quadratic             |S_p - S_q|^2 / 2     convex, loose
    total-variation       |S_p - S_q|_1 / 2     convex, tight for two classes
    normalized-quadratic  1 - <S_p, S_q> / (|S_p| |S_q|)     0 for any two equal, however soft; not convex

The logarithms of three of them, -ln(1 - x), agree with them to first order for small x. They are 0 where labels are
equal, but grow without bound towards one-hot S_p and S_q that differ, where they are cut off at -ln(1e-6) = 13.8:

    collision-cross-entropy  -ln <S_p, S_q>
    collision-divergence     -ln(<S_p, S_q> / (|S_p| |S_q|))
    log-quadratic            -ln(1 - |S_p - S_q|^2 / 2)

Source: Marin, Tang, Ben Ayed, Boykov, "Beyond gradient descent for regularized segmentation losses", CVPR 2019, whose
relaxations are twice the Potts energy, these are not; Zhang, Boykov, "Soft self-labeling and Potts relaxations for
weakly-supervised segmentation", CVPR 2025, for the last four.
"""

from __future__ import annotations

from typing import Literal, get_args

from torch import Tensor

from regloss import grid
from regloss.forms import Graph, GridGraph
from regloss.regularizer import Regularizer, Term

Relaxation = Literal[
    "bilinear",
    "quadratic",
    "total-variation",
    "normalized-quadratic",
    "collision-cross-entropy",
    "collision-divergence",
    "log-quadratic",
]
RELAXATIONS: tuple[Relaxation, ...] = get_args(Relaxation)

_LEAST_COLLISION = 1e-6


def pair_cost(relaxation: Relaxation, p: Tensor, q: Tensor) -> Tensor:
    """Cost (B, ...) of pairs of probabilities ``p`` and ``q`` (B, K, ...), before their weights; differentiable.

    >>> import torch
    >>> one, other = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    >>> pair_cost("bilinear", one, other), pair_cost("collision-divergence", one, one)
    (tensor([1.]), tensor([-0.]))
    """
    if relaxation == "quadratic":
        return (p - q).square().sum(1) / 2
    if relaxation == "total-variation":
        return (p - q).abs().sum(1) / 2
    if relaxation == "log-quadratic":
        return -(1 - (p - q).square().sum(1) / 2).clamp(min=_LEAST_COLLISION).log()
    collision = (p * q).sum(1)
    if relaxation in ("normalized-quadratic", "collision-divergence"):
        # On the simplex no norm is below 1 / sqrt(K).
        collision = collision * (p.square().sum(1) * q.square().sum(1)).rsqrt()
    if relaxation in ("bilinear", "normalized-quadratic"):
        return 1 - collision
    return -collision.clamp(min=_LEAST_COLLISION).log()


class PottsTerm(Term):
    """A Potts model on the grid of the bound images; offers `GridGraph` and `Graph`.

    Args:
        regularizer: where it comes from; its ``forms`` should be {GridGraph: PottsTerm.grid_graph, Graph:
            PottsTerm.graph}.
        pairs: the pair weights, with the regularizer's weight in them; 0 for pairs that leave the region of interest.
        shape: (B, *S).
        roi: (B, *S) bool, or None.
        relaxation: the energy of probabilities.
    """

    def __init__(
        self,
        regularizer: Regularizer,
        pairs: GridGraph,
        shape: tuple[int, ...],
        roi: Tensor | None,
        relaxation: Relaxation = "bilinear",
    ) -> None:
        super().__init__(regularizer, shape, roi)
        self.pairs = pairs
        self.relaxation = relaxation

    def grid_graph(self) -> GridGraph:
        """The pairs."""
        return self.pairs

    def graph(self) -> Graph:
        """The pairs as a list of edges."""
        return self.pairs.graph()

    def energy(self, probabilities: Tensor) -> Tensor:
        """R (B,) at ``probabilities`` (B, K, *S), by the relaxation."""
        probabilities = self.check(probabilities)
        energy = probabilities.new_zeros(probabilities.shape[0])
        relaxation: Relaxation = self.relaxation
        if relaxation in ("normalized-quadratic", "collision-divergence"):
            # Each pixel is normalised once, rather than in every pair. On the simplex no norm is below 1 / sqrt(K).
            probabilities = probabilities * probabilities.square().sum(1, keepdim=True).rsqrt()
            relaxation = "bilinear" if relaxation == "normalized-quadratic" else "collision-cross-entropy"
        for first, second, weights in grid.pairs(self.pairs.offsets, self.pairs.weights):
            p, q = grid.pick(probabilities, first), grid.pick(probabilities, second)
            energy = energy + (weights * pair_cost(relaxation, p, q)).flatten(1).sum(1)
        return energy
