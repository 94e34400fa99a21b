"""Smoothness loss with an edge map: probabilities shall not change but where labels do.

    loss = (1 / N) sum over labelled pixels p and classes k of  (1 - c_p) |(D S_k)_p|

with the softmax S, forward differences D, divided by the spacing where it is known, 0 across the far border, and the
Euclidean norm over the axes. c_p = 1 at boundaries: where the label of p differs from that of the next pixel along any
axis. A difference from a pixel that is not labelled is 0. For one-hot S the loss counts boundaries that the labels do
not have; the labels themselves cost nothing, and neither does any constant: it stands beside cross entropy.

Unlike `tv` it reads labels, so that it is for training alone, and shortens no true boundary.

Source: Zhao, Balakrishnan, Durand, Guttag, Dalca, "Data augmentation using learned transformations for one-shot medical
image segmentation", CVPR 2019, whose c comes from an atlas; in the lecture "Mathematical Deep Neural Networks and
Applications" (X.-C. Tai) it is what layers are compared with, Eq. (1).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from regloss import grid
from regloss.batch import Batch
from regloss.checks import at_least_float32
from regloss.data_term import DataTerm
from regloss.dual_sets import Balls
from regloss.operators import Gradient
from regloss_plugins.data_terms.cross_entropy import given_labels


@dataclass(frozen=True)
class Smoothness(DataTerm):
    """Mean over labelled pixels of the length of the probabilities' gradient, off the labels' boundaries.

    Raises:
        UsageError: no labels in the batch, or labels outside 0..K-1 and 255.

    Of the two jumps of the prediction the labels have the second:

    >>> labels = torch.tensor([[[0, 0, 1, 1]]])
    >>> guess = torch.tensor([[-50.0, 50, -50, -50], [50, -50, 50, 50]]).reshape(1, 2, 1, 4)
    >>> Smoothness()(guess, Batch(torch.zeros(1, 1, 1, 4), labels))
    (tensor([2.]), tensor([4.]))
    """

    needs_image: ClassVar[bool] = False

    def __call__(self, logits: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Sums (B,) and numbers of labelled pixels (B,)."""
        labels, counts = given_labels(logits, batch)
        probabilities = at_least_float32(logits).softmax(1)
        offsets = grid.axis_offsets(labels.ndim - 1)
        known = torch.stack([grid.pairs_inside(counts > 0, offset) for offset in offsets], 1)  # (B, axes, *S)
        jumps = grid.forward_differences(labels, labels.ndim - 1) != 0
        edge_map = (known & jumps).any(1, keepdim=True)
        factors = (known & ~edge_map).to(probabilities)
        differences = Gradient(tuple(labels.shape[1:]), factors, spacing=batch.spacing).apply(probabilities)
        return Balls(1.0).support(differences), counts.flatten(1).sum(1)
