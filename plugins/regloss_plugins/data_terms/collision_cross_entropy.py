"""Collision cross entropy: -ln of the probability that two draws, one from the label and one from the softmax, agree.

    H(y, S) = -ln sum over k of y_k S_k

With one-hot labels it is cross entropy. Labels smoothed by s, y = (1 - s) one-hot + s / K, give

    -ln((1 - s) S_label + s / K) <= ln(K / s)

so that a label which the network is sure to be wrong has a bounded loss, and a gradient that fades: cross entropy with
smoothed labels asks the network for doubt instead. Where either of the two is uniform, H is ln K whatever the other is.

Source: Zhang, Boykov, "Soft self-labeling and Potts relaxations for weakly-supervised segmentation", CVPR 2025, and
"Collision cross-entropy for soft class labels and deep clustering", 2023.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from regloss.batch import Batch
from regloss.divergence import log_softmax
from regloss.numerics import one_hot
from regloss_plugins.data_terms.cross_entropy import WeightedLabels, given_labels


def collision_cross_entropy(soft: Tensor, log_probabilities: Tensor) -> Tensor:
    """-ln <y, S> (B, *S) at every pixel, differentiable in both.

    Args:
        soft: y (B, K, *S), probabilities.
        log_probabilities: ln S (B, K, *S).

    >>> soft = torch.tensor([[0.5, 0.5]])
    >>> collision_cross_entropy(soft, torch.tensor([[0.9, 0.1]]).log())
    tensor([0.6931])
    """
    # Taken relative to the largest S, <y, S> underflows only where y has next to nothing at it: there the loss is cut
    # off, at 87 above -ln of the largest S in single precision, instead of being infinite.
    largest = log_probabilities.detach().amax(1, keepdim=True)
    collision = (soft.to(log_probabilities) * (log_probabilities - largest).exp()).sum(1)
    tiny = torch.finfo(log_probabilities.dtype).tiny
    return -(collision.clamp(min=tiny).log() + largest.squeeze(1))


@dataclass(frozen=True)
class CollisionCrossEntropy(WeightedLabels):
    """Mean over labelled pixels of -ln <y, softmax(logits)>, y the smoothed label; 255 = unlabelled.

    Args:
        class_weights: one positive number a class, or None for 1 each.
        label_smoothing: fraction of each label that is spread evenly over the classes, 0 <= value < 1. With 0 it is
            cross entropy.

    Raises:
        UsageError: labels outside 0..K-1 and 255, no labels in the batch, weights that do not fit K.

    >>> labels = torch.zeros(1, 1, 1, dtype=torch.int64)
    >>> batch = Batch(torch.zeros(1, 1, 1, 1), labels)
    >>> sure_and_wrong = torch.tensor([-50.0, 50.0]).reshape(1, 2, 1, 1)
    >>> CollisionCrossEntropy(label_smoothing=0.2)(sure_and_wrong, batch)[0]  # -ln .1
    tensor([2.3026])
    """

    def __call__(self, logits: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Sums (B,) of the weighted loss and of the weights."""
        labels, counts = given_labels(logits, batch, self.class_weights)
        log_probabilities = log_softmax(logits)
        classes = logits.shape[1]
        if self.label_smoothing == 0:
            losses = -log_probabilities.gather(1, labels.unsqueeze(1)).squeeze(1)
        else:
            soft = (1 - self.label_smoothing) * one_hot(labels, classes, log_probabilities.dtype)
            losses = collision_cross_entropy(soft + self.label_smoothing / classes, log_probabilities)
        sums = torch.where(counts > 0, losses * counts, 0)
        return sums.flatten(1).sum(1), counts.flatten(1).sum(1)
