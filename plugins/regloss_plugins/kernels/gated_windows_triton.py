"""Gated Gaussian weights within a window, times values, in Triton: one pass that stores no weight.

    out_p = sum over q in the window of p of w_pq g_pq v_q,      degree_p = the same of v = 1
    w_pq  = exp2(-scale |I_p - I_q|^2 - distance of q - p),      g_pq = (d_p s_q + d_q s_p) / 2 within a region

A program holds a block of pixels and some classes, and goes through the window's offsets; what neighbours share comes
from the cache. Sums are float32. Traffic: image, values and sums once; work: for each pixel, offset and block of
classes C differences, an exponential and as many products as there are classes.

The package triton is needed to import this module, which is done where CUDA tensors arrive, and in tests under Triton's
interpreter (TRITON_INTERPRET=1).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 64
_CLASSES = 32  # at most so many at a time

INSIDE, SOURCE, DESTINATION = 1, 2, 4  # bits of a pixel's mask


@triton.jit
def _windows(
    values: tl.tensor,  # (B, K, N) float32
    image: tl.tensor,  # (B, C, N) float32
    masks: tl.tensor,  # (B, N) uint8
    offsets: tl.tensor,  # (O, 3) int32
    distances: tl.tensor,  # (O,) float32
    out: tl.tensor,  # (B, K, N)
    degrees: tl.tensor,  # (B, N)
    count: tl.tensor,
    classes: tl.tensor,
    channels: tl.tensor,
    depth: tl.tensor,
    height: tl.tensor,
    width: tl.tensor,
    scale: tl.tensor,
    MASKED: tl.constexpr,
    CLASSES: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    number = tl.program_id(1).to(tl.int64)  # of the image
    pixels = depth * height * width
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    some = tl.program_id(2) * CLASSES + tl.arange(0, CLASSES)
    there = pixel < pixels
    x, y, z = pixel % width, pixel // width % height, pixel // (width * height)
    rows = (number * classes + some)[:, None] * pixels
    total = tl.zeros((CLASSES, BLOCK), dtype=tl.float32)
    degree = tl.zeros((BLOCK,), dtype=tl.float32)
    mask = tl.full((BLOCK,), 7, dtype=tl.int32)
    if MASKED:
        mask = tl.load(masks + number * pixels + pixel, mask=there, other=0).to(tl.int32)
    for o in range(count):
        dz, dy, dx = tl.load(offsets + 3 * o), tl.load(offsets + 3 * o + 1), tl.load(offsets + 3 * o + 2)
        known = there & (x + dx >= 0) & (x + dx < width) & (y + dy >= 0) & (y + dy < height)
        known = known & (z + dz >= 0) & (z + dz < depth)
        other = pixel + (dz * height + dy) * width + dx
        square = tl.zeros((BLOCK,), dtype=tl.float32)
        for c in range(channels):
            plane = (number * channels + c) * pixels
            first = tl.load(image + plane + pixel, mask=known, other=0.0)
            difference = first - tl.load(image + plane + other, mask=known, other=0.0)
            square += difference * difference
        weight = tl.where(known, tl.exp2(-scale * square - tl.load(distances + o)), 0.0)
        if MASKED:
            far = tl.load(masks + number * pixels + other, mask=known, other=0).to(tl.int32)
            gate = ((mask >> 2) & (far >> 1) & 1) + ((far >> 2) & (mask >> 1) & 1)
            weight = weight * (gate * (mask & far & 1)).to(tl.float32) * 0.5
        degree += weight
        value = tl.load(values + rows + other[None, :], mask=known[None, :] & (some < classes)[:, None], other=0.0)
        total += weight[None, :] * value
    tl.store(out + rows + pixel[None, :], total, mask=there[None, :] & (some < classes)[:, None])
    if tl.program_id(2) == 0:
        tl.store(degrees + number * pixels + pixel, degree, mask=there)


@torch.library.custom_op("regloss::gated_windows", mutates_args=())
def gated_windows(
    values: Tensor,
    image: Tensor,
    masks: Tensor | None,
    offsets: Tensor,
    distances: Tensor,
    size: Sequence[int],
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Sums (B, K, N) and degrees (B, N), float32.

    Args:
        values: (B, K, N) v, float32, contiguous.
        image: (B, C, N) I, float32, contiguous.
        masks: (B, N) uint8, of each pixel the bits `INSIDE` the region, `SOURCE` and `DESTINATION`; None = all are set.
        offsets: (O, 3) int32, of the window along each axis.
        distances: (O,) float32.
        size: of the three axes; N is their product.
        scale: > 0.
    """
    (batch, classes, pixels), (depth, height, width) = values.shape, size
    out, degrees = torch.empty_like(values), values.new_empty(batch, pixels)
    at_once = min(triton.next_power_of_2(classes), _CLASSES)
    grid = (triton.cdiv(pixels, _BLOCK), batch, triton.cdiv(classes, at_once))
    _windows[grid](
        values,
        image,
        values if masks is None else masks,
        offsets,
        distances,
        out,
        degrees,
        len(offsets),
        classes,
        image.shape[1],
        depth,
        height,
        width,
        scale,
        MASKED=masks is not None,
        CLASSES=at_once,
        BLOCK=_BLOCK,
    )
    return out, degrees


@gated_windows.register_fake
def _(
    values: Tensor,
    image: Tensor,
    masks: Tensor | None,
    offsets: Tensor,
    distances: Tensor,
    size: Sequence[int],
    scale: float,
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(values), values.new_empty(values.shape[0], values.shape[2])
