"""Partial Dice: one minus the soft Dice coefficient over the few pixels that are labelled.

    loss = 1 - mean over classes k of  (2 sum of S_k y_k + smooth) / (sum of S_k + sum of y_k + smooth)

for each image, with sums over its labelled pixels inside the region of interest, y their labels as one-hot vectors and
k the classes that one of these pixels has. With ``squared`` the denominator has S_k^2 in the place of S_k, as first
published. Unlike cross entropy it weighs a class the same whether many of its pixels are labelled or few.

It is a mean over images, which count 1 each; one without labelled pixels counts 0.

Source: Milletari, Navab, Ahmadi, "V-Net: fully convolutional neural networks for volumetric medical image
segmentation", 3DV 2016 (squared, dense labels); Sudre, Li, Vercauteren, Ourselin, Cardoso, "Generalised Dice overlap as
a deep learning loss function for highly unbalanced segmentations", DLMIA 2017 (the plain sums).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from regloss.batch import Batch
from regloss.checks import at_least_float32
from regloss.data_term import DataTerm
from regloss.errors import UsageError
from regloss.numerics import one_hot
from regloss_plugins.data_terms.cross_entropy import given_labels


@dataclass(frozen=True)
class PartialDice(DataTerm):
    """Mean over images of 1 - soft Dice of softmax(logits) over labelled pixels; 255 = unlabelled.

    Args:
        smooth: added to numerator and denominator, in pixels, finite and >= 0; 0 = Dice itself.
        squared: whether probabilities are squared in the denominator.

    Raises:
        UsageError: a setting outside its range, labels outside 0..K-1 and 255, no labels in the batch.

    Three labelled pixels, of which the network gives two the right class:

    >>> labels = torch.tensor([[[0, 1, 1, 255]]])
    >>> logits = torch.tensor([[50.0, 50, -50, 50], [-50, -50, 50, -50]]).reshape(1, 2, 1, 4)
    >>> PartialDice()(logits, Batch(torch.zeros(1, 1, 1, 4), labels))  # both classes have Dice 2/3
    (tensor([0.3333]), tensor([1.]))
    """

    smooth: float = 0.0
    squared: bool = False
    needs_image: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 0 <= self.smooth < float("inf"):
            raise UsageError(f"smooth of partial-dice must be finite and not negative; got {self.smooth}.")

    def __call__(self, logits: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Losses (B,), and 1 for each image with a labelled pixel (B,)."""
        labels, counts = given_labels(logits, batch)
        labelled = (counts > 0).unsqueeze(1)
        # Outside, whatever stands there must not reach the sums, not even as NaN.
        probabilities = torch.where(labelled, at_least_float32(logits).softmax(1), 0)
        targets = one_hot(labels, logits.shape[1], probabilities.dtype) * labelled
        sizes = targets.flatten(2).sum(2)
        given = (probabilities.square() if self.squared else probabilities).flatten(2).sum(2)
        both = (probabilities * targets).flatten(2).sum(2)
        present = sizes > 0
        # A class without labelled pixels would be 0 / 0 where the network gives it nothing.
        dice = (2 * both + self.smooth) / torch.where(present, given + sizes + self.smooth, 1)
        classes = present.sum(1).to(dice)
        mean = torch.where(present, dice, 0).sum(1) / classes.clamp(min=1)
        any_label = (classes > 0).to(dice)
        return any_label - mean, any_label
