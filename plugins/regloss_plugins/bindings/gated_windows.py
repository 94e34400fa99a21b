"""Sums over gated windows as one pass in Triton: the bilinear gated CRF, on CUDA devices."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from regloss.dispatch import fast
from regloss_plugins.bindings.triton_kernels import triton_is_there


@fast("gated-windows", device="cuda")
def gated_windows(
    values: Tensor,
    image: Tensor,
    masks: tuple[Tensor | None, Tensor | None, Tensor | None],
    offsets: Sequence[tuple[int, ...]],
    steps: Sequence[float],
    sigma_xy: float,
    sigma_rgb: float,
) -> tuple[Tensor, Tensor] | None:
    """out_p = sum over q of w_pq g_pq v_q (B, K, *S), and the same of v = 1 (B, *S); None = the reference is to do it.

    Args:
        values: (B, K, *S) v, floating-point. Float64 is left to the reference.
        image: (B, C, *S).
        masks: (B, *S) bool each: region, source, destination; None = all pixels.
        offsets: one of each pair, q - p, along the axes of S; their opposites belong to the window too.
        steps: distances of neighbours along each axis.
        sigma_xy: bandwidth of places.
        sigma_rgb: bandwidth of the image.
    """
    if torch.promote_types(values.dtype, image.dtype) == torch.float64 or not triton_is_there():
        return None
    from regloss_plugins.kernels import gated_windows_triton as kernels  # and triton with it, only where it is used

    size = values.shape[2:]
    every = [*offsets, *(tuple(-step for step in offset) for offset in offsets)]
    squares = [sum((count * step) ** 2 for count, step in zip(offset, steps, strict=True)) for offset in every]
    power = math.log2(math.e) / 2  # exp(-d / 2) = exp2(-d * power)
    bits = None
    if any(mask is not None for mask in masks):
        bits = torch.zeros(len(values), *size, dtype=torch.uint8, device=values.device)
        for bit, mask in zip((kernels.INSIDE, kernels.SOURCE, kernels.DESTINATION), masks, strict=True):
            bits += bit if mask is None else bit * mask.to(bits)
        bits = bits.flatten(1)
    missing = 3 - len(size)
    sums, degrees = kernels.gated_windows(
        values.float().flatten(2).contiguous(),
        image.float().flatten(2).contiguous(),
        bits,
        torch.tensor([(0,) * missing + offset for offset in every], dtype=torch.int32, device=values.device),
        torch.tensor([square * power / sigma_xy**2 for square in squares], device=values.device),
        [1] * missing + list(size),
        power / sigma_rgb**2,
    )
    return sums.reshape(values.shape), degrees.reshape(len(values), *size)
