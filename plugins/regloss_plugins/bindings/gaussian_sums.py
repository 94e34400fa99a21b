"""Gaussian sums over all pairs of points, as one pass in Triton: on CUDA devices."""

from __future__ import annotations

from torch import Tensor

from regloss.dispatch import fast
from regloss_plugins.bindings.triton_kernels import triton_is_there


@fast("gaussian-sums", device="cuda")
def gaussian_sums(features: Tensor, values: Tensor) -> Tensor | None:
    """out_p = sum over q of exp(-|f_p - f_q|^2 / 2) v_q; None = the reference is to do it.

    Args:
        features: (N, F) f, float32 or float64.
        values: (N, K) v. In float64 they are left to the reference: tensor cores hold no more than float32.
    """
    if values.dtype.itemsize > 4 or not triton_is_there():
        return None
    from regloss_plugins.kernels import gaussian_sums_triton  # and triton with it, only where it is used

    found: Tensor = gaussian_sums_triton.gaussian_sums(features.contiguous(), values.contiguous())
    return found
