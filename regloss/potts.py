"""The Potts model on a grid as a term: what priors that only choose pair weights have in common.

    R(labels) = sum over pairs of w_pq [l_p != l_q],   w_pq >= 0

For probabilities S there are relaxations, each equal to R on one-hot input (per pair, before w):

    bilinear         1 - <S_p, S_q>        tight: its minimum over the simplex is the discrete minimum; not convex
    quadratic        |S_p - S_q|^2 / 2     convex, loose
    total-variation  |S_p - S_q|_1 / 2     convex, tight for two classes

Source: Marin, Tang, Ben Ayed, Boykov, "Beyond gradient descent for regularized segmentation losses", CVPR 2019; the
paper's relaxations are twice the Potts energy, these are not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

from torch import Tensor

from regloss import grid
from regloss.regularizer import Form, Graph, GridGraph, Regularizer, Term

Relaxation = Literal["bilinear", "quadratic", "total-variation"]
RELAXATIONS: tuple[Relaxation, ...] = ("bilinear", "quadratic", "total-variation")


class PottsTerm(Term):
    """A Potts model on the grid of the bound images; offers `GridGraph` and `Graph`.

    Args:
        regularizer: where it comes from; its ``forms`` must be ``(GridGraph, Graph)``.
        graph: the pair weights, with the regularizer's weight in them; 0 for pairs that leave the region of interest.
        shape: (B, *S).
        roi: (B, *S) bool, or None.
        relaxation: the energy of probabilities.
    """

    def __init__(
        self,
        regularizer: Regularizer,
        graph: GridGraph,
        shape: tuple[int, ...],
        roi: Tensor | None,
        relaxation: Relaxation = "bilinear",
    ) -> None:
        super().__init__(regularizer, shape, roi)
        self.graph = graph
        self.relaxation = relaxation

    def builders(self) -> Mapping[type[Form], Callable[[], Form]]:
        """The same graph, implicit or as a list of edges."""
        return {GridGraph: lambda: self.graph, Graph: self.graph.graph}

    def energy(self, probabilities: Tensor) -> Tensor:
        """R (B,) at ``probabilities`` (B, K, *S), by the relaxation."""
        probabilities = self.check(probabilities)
        energy = probabilities.new_zeros(probabilities.shape[0])
        for number, offset in enumerate(self.graph.offsets):
            first, second = grid.pair_slices(offset)
            p, q = grid.pick(probabilities, first), grid.pick(probabilities, second)
            if self.relaxation == "bilinear":
                cost = 1 - (p * q).sum(1)
            elif self.relaxation == "quadratic":
                cost = (p - q).square().sum(1) / 2
            else:
                cost = (p - q).abs().sum(1) / 2
            energy = energy + (grid.pick(self.graph.weights[:, number], first) * cost).flatten(1).sum(1)
        return energy
