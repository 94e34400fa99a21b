"""Precision of sums, labels as numbers, and when the host looks at what a device has done."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def widest_float(device: torch.device) -> torch.dtype:
    """Float64, in which sums are taken whose differences are looked at; float32 where the device knows no float64."""
    return torch.float32 if device.type == "mps" else torch.float64  # Apple's GPUs


def double(values: Any) -> Tensor:
    """Numbers or a tensor in float64; on the CPU where its device knows none, which is for few of them or few times."""
    if not isinstance(values, Tensor):
        return torch.as_tensor(values, dtype=torch.float64)
    knows = widest_float(values.device) == torch.float64
    return values.to(values.device if knows else "cpu", torch.float64)


def double_sum(values: Tensor) -> Tensor:
    """Sums over the last axis in float64; see `double` for where."""
    if widest_float(values.device) == torch.float64:
        return values.sum(-1, dtype=torch.float64)  # without a copy
    return double(values).sum(-1)


def vector_lengths(values: Tensor, dim: int) -> Tensor:
    """Euclidean norms of the few numbers along an axis, without it; at 0 with the derivative 0.

    As far from under- and overflow as torch's ``vector_norm``, which takes some twenty times as long along an axis that
    is not the last.
    """
    first, *others = values.unbind(dim)
    length = first.abs()
    recorded = torch.is_grad_enabled() and values.requires_grad
    for other in others:
        if recorded:  # the derivative of hypot at 0 is no number
            zero = (length == 0) & (other == 0)
            length = torch.where(zero, 0, torch.hypot(torch.where(zero, 1, length), other))
        else:
            length = torch.hypot(length, other)
    return length


def look_every(device: torch.device) -> int:
    """After how many steps of an iteration the host looks whether it has ended.

    Looking waits for the device, which a CPU does in any case. On others steps that change nothing any more take less
    time than a look at each one would.
    """
    return 1 if device.type == "cpu" else 10


def one_hot(labels: Tensor, classes: int, dtype: torch.dtype | None = None) -> Tensor:
    """``labels`` (B, *S) in 0..K-1 as probabilities (B, K, *S); None = in the `widest_float`."""
    # torch's own one_hot waits for the device to see whether the labels are in range.
    order = torch.arange(classes, device=labels.device).reshape(1, -1, *[1] * (labels.ndim - 1))
    return (labels.unsqueeze(1) == order).to(dtype or widest_float(labels.device))
