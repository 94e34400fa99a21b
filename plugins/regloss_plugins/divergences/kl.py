"""Kullback-Leibler divergence KL(X || S) of a proposal X from the softmax S.

    D(X, logits) = sum over pixels of <X_p, log X_p> - <X_p, log S_p>;   one-hot X: -log S_p at the proposal's label

Never the other direction: KL(S || X) is infinite wherever X is one-hot and S is not.
Source: Marin et al., "Beyond gradient descent for regularized segmentation losses", CVPR 2019.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from regloss.divergence import Divergence, gather_labels, log_softmax


@dataclass(frozen=True)
class KL(Divergence):
    """KL(target || softmax(logits)); cross entropy for one-hot targets.

    >>> KL()(torch.tensor([0]), torch.zeros(1, 4))  # log 4
    tensor([1.3863])
    """

    def of_labels(self, labels: Tensor, log_probabilities: Tensor, seeds: Tensor | None) -> Tensor:
        """-log S at the label; seeds are not treated apart, as there are no outliers."""
        return -gather_labels(log_probabilities, labels)

    def of_probabilities(self, target: Tensor, log_probabilities: Tensor, seeds: Tensor | None) -> Tensor:
        """<X, log X> - <X, log S>."""
        values: Tensor = torch.special.xlogy(target, target) - target * log_probabilities
        return values.sum(1)

    def unary(self, logits: Tensor) -> Tensor:
        """-log softmax."""
        return -log_softmax(logits)
