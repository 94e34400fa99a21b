"""Partial cross entropy: cross entropy over the few pixels that are labelled.

The same sum as `cross-entropy`; what differs is the supervision it stands for (scribbles, clicks), so that a
configuration says which labels it trains on and a training loop feeds it those.
Source: Tang et al., "Normalized cut loss for weakly-supervised CNN segmentation", CVPR 2018.
"""

from __future__ import annotations

from dataclasses import dataclass

from regloss_plugins.data_terms.cross_entropy import CrossEntropy


@dataclass(frozen=True)
class PartialCrossEntropy(CrossEntropy):
    """Mean over labelled pixels of -log softmax(logits) at their label; 255 = unlabelled.

    Args:
        class_weights: one positive number a class, or None for 1 each.
        label_smoothing: fraction of each label that is spread evenly over the classes, 0 <= value < 1.

    >>> import torch
    >>> from regloss import Batch
    >>> labels = torch.full((1, 2, 2), 255); labels[0, 0, 0] = 1
    >>> PartialCrossEntropy()(torch.zeros(1, 2, 2, 2), Batch(torch.zeros(1, 1, 2, 2), labels))
    (tensor([0.6931]), tensor([1.]))
    """
