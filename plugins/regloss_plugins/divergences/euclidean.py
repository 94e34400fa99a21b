"""Euclidean divergence: half the squared distance of a proposal from the softmax.

    D(X, logits) = sum over pixels of |X_p - softmax(logits)_p|^2 / 2

Bounded by 1 a pixel: like the robust divergence it forgives confident disagreement.
Source: the quadratic splitting of Marin et al., CVPR 2019 (section on ADM), also known as the Brier score.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from regloss.divergence import Divergence, gather_labels, log_softmax


@dataclass(frozen=True)
class Euclidean(Divergence):
    """Half the squared Euclidean distance between target and softmax(logits).

    >>> import torch
    >>> Euclidean()(torch.tensor([0]), torch.zeros(1, 2))
    tensor([0.2500])
    """

    def of_labels(self, labels: Tensor, log_probabilities: Tensor, seeds: Tensor | None) -> Tensor:
        """(1 - 2 S_y + |S|^2) / 2."""
        return gather_labels(self._distances(log_probabilities.exp()), labels)

    def of_probabilities(self, target: Tensor, log_probabilities: Tensor, seeds: Tensor | None) -> Tensor:
        """|X - S|^2 / 2."""
        return (target - log_probabilities.exp()).square().sum(1) / 2

    def unary(self, logits: Tensor) -> Tensor:
        """|e_k - S|^2 / 2 for each k."""
        return self._distances(log_softmax(logits).exp())

    @staticmethod
    def _distances(probabilities: Tensor) -> Tensor:
        return (1 + probabilities.square().sum(1, keepdim=True)) / 2 - probabilities
