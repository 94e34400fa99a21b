"""DataTerm: what supervision there is."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from regloss.batch import Batch


class DataTerm(ABC):
    """A loss of network output against given labels, or against the image itself.

    It returns sums and counts instead of means, so that the mean is taken once, in the outer loop, over the whole batch
    and over all processes: weights then do not depend on how a batch is split over devices.
    """

    @abstractmethod
    def __call__(self, logits: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """The loss of each image.

        Args:
            logits: (B, K, *S).
            batch: the images and labels.

        Returns:
            sums (B,), differentiable, and counts (B,): what to divide by for a mean (labelled pixels, say).
        """
