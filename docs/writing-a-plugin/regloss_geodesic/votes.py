"""GeodesicVotes: a layer by mean field, in which neighbours vote for their labels, fewer across an edge of the image.

    A <- softmax(o + weight * sum over neighbours q of w_pq A_q)        from A = softmax(o)

with the pair weights of `GeodesicLength`; each step lowers the free energy -<o, A> + <A, log A> + weight * length(A) of
one pixel if the others stay. The weight is learnt.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from regloss.checks import at_least_float32, check_finite, check_scores
from regloss.errors import UsageError
from regloss.forms import GridGraph
from regloss.layer import RegularizedLayer
from regloss_geodesic.length import GeodesicLength


class GeodesicVotes(RegularizedLayer):
    """weight: of the votes, to begin with, > 0. contrast: see `GeodesicLength`. steps: of mean field, >= 1."""

    def __init__(self, weight: float = 1.0, contrast: float = 0.1, steps: int = 5) -> None:
        super().__init__()
        if not 0 < weight < math.inf or steps < 1:
            raise UsageError(f"weight must be finite and positive, steps at least 1; got {weight} and {steps}.")
        self.regularizer, self.steps = GeodesicLength(contrast=contrast), steps
        self.log_weight = nn.Parameter(torch.tensor(math.log(weight)))

    def log_probabilities(
        self,
        logits: Tensor,
        image: Tensor,
        roi: Tensor | None = None,
        warm: Any = None,
        spacing: Sequence[float] | None = None,
    ) -> Tensor:
        """Log-probabilities (B, K, H, W) from ``logits`` (B, K, H, W) and ``image`` (B, C, H, W)."""
        check_scores(logits, "logits")
        check_finite(logits, "logits")
        with torch.autocast(logits.device.type, enabled=False):
            scores, term = at_least_float32(logits), self.regularizer.bind(image, roi, spacing)
            if term.shape != (logits.shape[0], *logits.shape[2:]):
                raise UsageError(f"logits {tuple(logits.shape)} do not fit images with (B, *S) = {term.shape}.")
            graph = term.form(GridGraph)
            found = scores.log_softmax(1)
            for _ in range(self.steps):
                found = (scores + self.log_weight.exp() * graph.neighbor_sum(found.exp())).log_softmax(1)
            return found.to(logits.dtype)
