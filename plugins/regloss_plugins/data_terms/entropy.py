"""Entropy: the network's doubt, -sum over k of S_k ln S_k, whose minimum are one-hot probabilities.

Beside a term that sees labels it pushes boundaries between classes into regions where the network can tell them apart.
Alone it has nothing to hold on to: any constant labelling minimises it.

Source: Grandvalet, Bengio, "Semi-supervised learning by entropy minimization", NeurIPS 2004.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from regloss.batch import Batch
from regloss.data_term import DataTerm
from regloss.divergence import log_softmax
from regloss.outer_loop import check_logits


@dataclass(frozen=True)
class Entropy(DataTerm):
    """Mean over the region of interest, labelled or not, of the entropy of softmax(logits), in nats: 0 to ln K.

    >>> import torch
    >>> Entropy()(torch.zeros(1, 2, 1, 3), Batch(torch.zeros(1, 1, 1, 3), None))
    (tensor([2.0794]), tensor([3.]))
    """

    needs_labels: ClassVar[bool] = False
    needs_image: ClassVar[bool] = False

    def __call__(self, logits: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Sums (B,) and numbers of pixels (B,)."""
        check_logits(logits, batch)
        log_probabilities = log_softmax(logits)
        entropies = -(log_probabilities.exp() * log_probabilities).sum(1)
        if batch.roi is not None:
            entropies = entropies * batch.roi
        return entropies.flatten(1).sum(1), batch.pixels.to(entropies)
