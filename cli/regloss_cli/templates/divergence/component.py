"""Squared Hellinger distance of a proposal from the softmax.

    D(X, logits) = sum over pixels p of |sqrt(X_p) - sqrt(S_p)|^2 / 2
                 = sum over pixels p of (1 - sum over classes k of sqrt(X_pk S_pk))            S = softmax(logits)

A pixel costs at most 1, and its gradient fades where the network is sure that the proposal is wrong: unlike
Kullback-Leibler's divergence, this one forgives outliers.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from regloss.divergence import Divergence, gather_labels, log_softmax


@dataclass(frozen=True)
class MyComponent(Divergence):
    """Squared Hellinger distance between target and softmax(logits); settings would be fields of this class."""

    def of_labels(self, labels: Tensor, log_probabilities: Tensor, seeds: Tensor | None) -> Tensor:
        """1 - sqrt(S_y), (B, *S)."""
        return gather_labels(_of_each_label(log_probabilities), labels)

    def of_probabilities(self, target: Tensor, log_probabilities: Tensor, seeds: Tensor | None) -> Tensor:
        """1 - <sqrt(X), sqrt(S)>, (B, *S)."""
        return 1 - (target.sqrt() * (log_probabilities / 2).exp()).sum(1)

    def unary(self, logits: Tensor) -> Tensor:
        """1 - sqrt(S_k) for each k, (B, K, *S): what the solver pays for each label."""
        return _of_each_label(log_softmax(logits))


def _of_each_label(log_probabilities: Tensor) -> Tensor:
    # expm1 keeps its digits where S is close to 1; half of the logarithm is the root, with a gradient at S = 0 too.
    return -(log_probabilities / 2).expm1()
