"""Divergence: how far a network's output is from a proposal."""

from __future__ import annotations

from abc import abstractmethod

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch import Tensor

from regloss.checks import at_least_float32, check_labels, check_scores
from regloss.dataset import IGNORE
from regloss.errors import UsageError
from regloss.settings import CheckedSettings


class Divergence(metaclass=CheckedSettings):
    """D(target, network output), summed over pixels.

    Calling one takes:
        target: labels (B, *S) integers with 255 = ignored, or probabilities (B, K, *S).
        logits: (B, K, *S), or (B, K) for plain classification.
        weight: (B, *S) weight of each pixel; None = 1.
        seeds: (B, *S) bool, pixels whose target is known to be right; only divergences that model outliers differ.
    and gives (B,), differentiable in the logits.
    """

    # ---- what must be defined

    @abstractmethod
    def of_labels(self, labels: Tensor, log_probabilities: Tensor, seeds: Tensor | None) -> Tensor:
        """(B, *S) divergence of one-hot targets; ``labels`` (B, *S) in 0..K-1, ``log_probabilities`` (B, K, *S)."""

    @abstractmethod
    def of_probabilities(self, target: Tensor, log_probabilities: Tensor, seeds: Tensor | None) -> Tensor:
        """(B, *S) divergence of soft targets (B, K, *S)."""

    @abstractmethod
    def unary(self, logits: Tensor) -> Tensor:
        """(B, K, *S) cost of each one-hot choice: D(e_k, logits) at every pixel."""

    # ---- what should not be redefined

    def __call__(
        self, target: Tensor, logits: Tensor, weight: Tensor | None = None, seeds: Tensor | None = None
    ) -> Tensor:
        """D, summed over pixels: (B,).

        Raises:
            UsageError: shapes disagree, labels outside 0..K-1 and 255, K = 1, seeds that are not bool.
        """
        log_probabilities = log_softmax(logits)
        shape = (logits.shape[0], *logits.shape[2:])
        for name, given in (("weight", weight), ("seeds", seeds)):
            if given is not None and tuple(given.shape) != shape:
                raise UsageError(f"{name} must have the shape (B, *S) = {shape}; got {tuple(given.shape)}.")
        if seeds is not None and seeds.dtype != torch.bool:
            raise UsageError(f"seeds must be bool, True where the target is known to be right; got {seeds.dtype}.")
        if target.is_floating_point():
            if target.shape != logits.shape:
                raise UsageError(
                    f"A soft target must have the logits' shape {tuple(logits.shape)}; got {tuple(target.shape)}. "
                    "Labels must be integers."
                )
            values = self.of_probabilities(target.to(log_probabilities.dtype), log_probabilities, seeds)
        else:
            check_labels(target, shape, logits.shape[1])
            ignored = target == IGNORE
            values = self.of_labels(target.masked_fill(ignored, 0).to(torch.int64), log_probabilities, seeds)
            values = values.masked_fill(ignored, 0)
        if weight is not None:
            values = values * weight
        return values.reshape(values.shape[0], -1).sum(1)


def log_softmax(logits: Tensor) -> Tensor:
    """Log softmax over the classes, in float32 at least, after checking ``logits`` (B, K, *S) or (B, K)."""
    check_scores(logits, "logits", spatial=False)
    return F.log_softmax(at_least_float32(logits), dim=1)


def gather_labels(values: Tensor, labels: Tensor) -> Tensor:
    """(B, *S) entries of ``values`` (B, K, *S) at ``labels`` (B, *S)."""
    return values.gather(1, labels.unsqueeze(1)).squeeze(1)
