"""Weighted differences along the edges of graphs, and their adjoint, in Triton: whole batches at once.

    differences  out_e = w_e (v_j + sign * v_i),  e = ij
    sums         out_p = sum over the edges at p of w_e y_e, times the sign where p is the first end

Both gather: each number that is written is summed by one program, always in the same order, so that nothing is added to
memory that others add to. What is summed is as precise as what is written. The traffic is that of the edges.

The package triton is needed to import this module, which is done where CUDA tensors arrive, and in tests under Triton's
interpreter (TRITON_INTERPRET=1).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 128


@triton.jit
def _differences(
    ends: tl.tensor,  # (B, E, 2) int64
    weights: tl.tensor,  # (B, E)
    values: tl.tensor,  # (B, K, N)
    out: tl.tensor,  # (B, K, E)
    classes: tl.tensor,
    pixels: tl.tensor,
    edges: tl.tensor,
    sign: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
    number = tl.program_id(1).to(tl.int64)
    row = number * classes + tl.program_id(2)
    edge = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    there = edge < edges
    kind: tl.constexpr = out.dtype.element_ty
    first = tl.load(ends + 2 * (number * edges + edge), mask=there, other=0)
    second = tl.load(ends + 2 * (number * edges + edge) + 1, mask=there, other=0)
    weight = tl.load(weights + number * edges + edge, mask=there, other=0.0).to(kind)
    at_second = tl.load(values + row * pixels + second, mask=there, other=0.0).to(kind)
    at_first = tl.load(values + row * pixels + first, mask=there, other=0.0).to(kind)
    tl.store(out + row * edges + edge, weight * (at_second + sign * at_first), mask=there)


@triton.jit
def _sums(
    start: tl.tensor,  # (B, N + 1) int32
    order: tl.tensor,  # (B, 2 E) int32
    weights: tl.tensor,  # (B, E)
    flows: tl.tensor,  # (B, K, E)
    out: tl.tensor,  # (B, K, N)
    classes: tl.tensor,
    pixels: tl.tensor,
    edges: tl.tensor,
    sign: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
    number = tl.program_id(1).to(tl.int64)
    row = number * classes + tl.program_id(2)
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    there = pixel < pixels
    kind: tl.constexpr = out.dtype.element_ty
    begin = tl.load(start + number * (pixels + 1) + pixel, mask=there, other=0)
    count = tl.load(start + number * (pixels + 1) + pixel + 1, mask=there, other=0) - begin
    total = tl.zeros((BLOCK,), dtype=kind)
    for k in range(tl.max(count, axis=0)):
        here = k < count
        entry = tl.load(order + 2 * number * edges + begin + k, mask=here, other=0)
        edge = tl.where(entry < edges, entry, entry - edges)
        weight = tl.load(weights + number * edges + edge, mask=here, other=0.0).to(kind)
        flow = weight * tl.load(flows + row * edges + edge, mask=here, other=0.0).to(kind)
        total += tl.where(entry < edges, sign * flow, flow)
    tl.store(out + row * pixels + pixel, total, mask=there)


@torch.library.custom_op("regloss::edge_differences", mutates_args=())
def edge_differences(ends: Tensor, weights: Tensor, values: Tensor, sign: int) -> Tensor:
    """The differences (B, K, E), in the greater precision of weights and values; all tensors are contiguous.

    Args:
        ends: (B, E, 2) int64 pixels i and j.
        weights: (B, E) w.
        values: (B, K, N) v, float32 or float64.
        sign: -1 for differences, 1 for sums of both ends.
    """
    (batch, classes, pixels), edges = values.shape, weights.shape[1]
    dtype = torch.promote_types(weights.dtype, values.dtype)
    out = values.new_empty(batch, classes, edges, dtype=dtype)
    if out.numel():
        grid = (triton.cdiv(edges, _BLOCK), batch, classes)
        _differences[grid](ends, weights, values, out, classes, pixels, edges, sign, BLOCK=_BLOCK)
    return out


@edge_differences.register_fake
def _(ends: Tensor, weights: Tensor, values: Tensor, sign: int) -> Tensor:
    dtype = torch.promote_types(weights.dtype, values.dtype)
    return values.new_empty(*values.shape[:2], weights.shape[1], dtype=dtype)


@torch.library.custom_op("regloss::edge_sums", mutates_args=())
def edge_sums(start: Tensor, order: Tensor, weights: Tensor, flows: Tensor, sign: int) -> Tensor:
    """The sums (B, K, N), in the greater precision of weights and flows; all tensors are contiguous.

    Args:
        start: (B, N + 1) int32, see `regloss.operators.edge_differences.Incidence`.
        order: (B, 2 E) int32, likewise.
        weights: (B, E) w.
        flows: (B, K, E) y, float32 or float64.
        sign: -1 for the adjoint of differences, 1 for that of sums.
    """
    (batch, classes, edges), pixels = flows.shape, start.shape[1] - 1
    dtype = torch.promote_types(weights.dtype, flows.dtype)
    out = flows.new_empty(batch, classes, pixels, dtype=dtype)
    grid = (triton.cdiv(pixels, _BLOCK), batch, classes)
    _sums[grid](start, order, weights, flows, out, classes, pixels, edges, sign, BLOCK=_BLOCK)
    return out


@edge_sums.register_fake
def _(start: Tensor, order: Tensor, weights: Tensor, flows: Tensor, sign: int) -> Tensor:
    dtype = torch.promote_types(weights.dtype, flows.dtype)
    return flows.new_empty(*flows.shape[:2], start.shape[1] - 1, dtype=dtype)
