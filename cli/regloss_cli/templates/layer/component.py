"""Diffusion: logits that flow between neighbours of like colour, and their softmax.

    A = softmax(z),   z = argmin over z of   1/2 |z - o|^2  +  weight / 2 * sum over pairs pq of w_pq |z_p - z_q|^2
    w_pq = exp(-|I_p - I_q|^2 / (2 sigma^2))     for neighbours along the axes

by Jacobi's iteration, z_p <- (o_p + weight * sum_q w_pq z_q) / (1 + weight * sum_q w_pq): the error shrinks in every
step, as the weights of the neighbours sum to less than 1. Backward, autograd goes through the steps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from regloss import grid
from regloss.checks import at_least_float32, check_finite, check_image, check_scores
from regloss.errors import UsageError
from regloss.layer import RegularizedLayer


class MyComponent(RegularizedLayer):
    """Softmax of diffused logits; its weight is learnt, as a logarithm.

    Args:
        weight: strength of the diffusion to begin with, > 0.
        sigma: difference of image values across which hardly anything flows, in (0, 1].
        max_steps: of Jacobi's iteration, >= 1.

    Raises:
        UsageError: a setting outside its range.
    """

    def __init__(self, weight: float = 1.0, sigma: float = 0.1, max_steps: int = 10) -> None:
        super().__init__()
        if not 0 < weight < math.inf:
            raise UsageError(f"weight must be finite and positive; got {weight}.")
        if not 0 < sigma <= 1:
            raise UsageError(f"sigma must lie in (0, 1], in image values; got {sigma}.")
        if max_steps < 1:
            raise UsageError(f"max_steps must be at least 1; got {max_steps}.")
        self.sigma, self.max_steps = sigma, max_steps
        self.log_weight = nn.Parameter(torch.tensor(math.log(weight)))

    def log_probabilities(
        self,
        logits: Tensor,
        image: Tensor,
        roi: Tensor | None = None,
        warm: Any = None,
        spacing: Sequence[float] | None = None,
    ) -> Tensor:
        """Log-probabilities (B, K, *S) from ``logits`` (B, K, *S), where it starts, and ``image`` (B, C, *S)."""
        check_scores(logits, "logits")
        check_finite(logits, "logits")
        check_image(image)
        shape = (image.shape[0], *image.shape[2:])
        if (logits.shape[0], *logits.shape[2:]) != shape:
            raise UsageError(f"logits {tuple(logits.shape)} do not fit the image {tuple(image.shape)}.")
        with torch.autocast(logits.device.type, enabled=False):
            start, region = at_least_float32(logits), grid.full_roi(roi, shape, image.device)
            offsets = grid.neighbor_offsets(image.ndim - 2, 2 * (image.ndim - 2))
            pairs = [self._weights(at_least_float32(image), region, offset) for offset in offsets]
            found = start
            for _ in range(self.max_steps):
                total, flow = torch.ones_like(start[:, :1]), start
                for offset, weights in zip(offsets, pairs, strict=True):
                    first, second = grid.pair_slices(offset)
                    for end, other in ((first, second), (second, first)):
                        total = _add(total, end, weights)
                        flow = _add(flow, end, weights * grid.pick(found, other))
                found = flow / total
            return torch.log_softmax(found, dim=1).to(logits.dtype)

    def _weights(self, image: Tensor, region: Tensor, offset: grid.Offset) -> Tensor:
        """Weight * w (B, 1, *pairs) of the pairs along ``offset``, 0 where one of them is outside the region."""
        first, second = grid.pair_slices(offset)
        square = (grid.pick(image, first) - grid.pick(image, second)).square().sum(1, keepdim=True)
        inside = grid.pick(region, first) & grid.pick(region, second)
        return self.log_weight.exp() * torch.exp(-square / (2 * self.sigma**2)) * inside.unsqueeze(1)


def _add(values: Tensor, where: tuple[slice, ...], term: Tensor) -> Tensor:
    """``values`` with ``term`` on top at the pixels ``where``."""
    result = values.clone()
    grid.pick(result, where).add_(term)
    return result
