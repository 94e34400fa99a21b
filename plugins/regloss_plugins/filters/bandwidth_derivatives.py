"""Derivatives of a Gaussian filter by its bandwidths, made of filters.

    d/d sigma of sum over p, q of g_p w_pq v_q = sum of g_p w_pq |y_p - y_q|^2 v_q / sigma

with y the places (or colours) over their bandwidth sigma. As |y_p - y_q|^2 = |y_p|^2 + |y_q|^2 - 2 <y_p, y_q>, that is
the sum of <|y|^2 g, W v>, <W g, |y|^2 v> and, for each axis, -2 <y g, W (y v)>: any filter gives it, without a single
pair being looked at. With the exact filter the result is exact; with a lattice it is the lattice's answer for the
Gaussian's derivative, which is not quite the derivative of the lattice's answer. Sums are taken in float64 where the
device has it, since the three parts nearly cancel for narrow bandwidths.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from regloss.numerics import widest_float
from regloss_plugins.filters.gaussian import GaussianFilter


def filter_by_bandwidths(
    bound: GaussianFilter, values: Tensor, places: Tensor, colours: Tensor, sigma_xy: Tensor, sigma_rgb: Tensor
) -> Tensor:
    """W ``values`` (B, K, *S), once differentiable in the values and in both bandwidths.

    Args:
        bound: W, for the bandwidths' present values.
        values: (B, K, *S), 0 at pixels that do not count.
        places: (1 or B, D, *S) in the units of ``sigma_xy``.
        colours: (B, C, *S) in the units of ``sigma_rgb``.
        sigma_xy: () tensor, > 0.
        sigma_rgb: () tensor, > 0; inf = colours do not matter, and there is no derivative.
    """
    result: Tensor = _Filtering.apply(values, sigma_xy, sigma_rgb, bound, places, colours)  # type: ignore[no-untyped-call]
    return result


class _Filtering(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        values: Tensor,
        sigma_xy: Tensor,
        sigma_rgb: Tensor,
        bound: GaussianFilter,
        places: Tensor,
        colours: Tensor,
    ) -> Tensor:
        result = bound(values)
        ctx.save_for_backward(values, sigma_xy, sigma_rgb, places, colours, result)
        ctx.bound = bound
        return result

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        values, sigma_xy, sigma_rgb, places, colours, filtered = ctx.saved_tensors
        adjoint = ctx.bound(gradient)
        found: list[Tensor | None] = []
        for needed, sigma, features in zip(
            ctx.needs_input_grad[1:3], (sigma_xy, sigma_rgb), (places, colours), strict=True
        ):
            if not needed or bool(sigma.isinf()):
                found.append(None)
                continue
            found.append(_by_bandwidth(ctx.bound, values, gradient, filtered, adjoint, features, sigma))
        return adjoint, *found, None, None, None


def _by_bandwidth(
    bound: GaussianFilter,
    values: Tensor,
    gradient: Tensor,
    filtered: Tensor,
    adjoint: Tensor,
    features: Tensor,
    sigma: Tensor,
) -> Tensor:
    wide = widest_float(values.device)
    values, gradient, filtered, adjoint = (part.to(wide) for part in (values, gradient, filtered, adjoint))
    features = features.to(wide)
    axes = tuple(range(2, features.ndim))
    scaled = (features - features.mean(axes, keepdim=True)) / sigma.to(wide)  # the centre does not matter
    squares = scaled.square().sum(1, keepdim=True)
    total = (squares * (gradient * filtered + adjoint * values)).sum()
    for axis in range(scaled.shape[1]):
        along = scaled[:, axis : axis + 1]
        total = total - 2 * (along * gradient * bound(along * values)).sum()
    return (total / sigma).to(sigma)
