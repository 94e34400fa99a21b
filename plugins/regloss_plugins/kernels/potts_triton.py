"""Steps of the relaxed Potts model on a grid, in Triton: a whole batch at a time, two launches a step.

    s^ = projection of  s - tau (unary + D^T z)  onto the simplex,     z^ = clamp(z + (D (2 s^ - s)) / (2 c), -1, 1)
    s <- s + rho (s^ - s),     z <- z + rho (z^ - z),                  (D s)_pq = s_p - s_q, weighted in D^T

A program owns a block of pixels and all their labels. That of the first launch gathers D^T z and projects, by some
steps of Newton's method from the threshold of the step before; that of the second moves z and s. Nothing waits for the
host, and a step reads and writes 3 numbers a pair and label, and 6 a pixel and label.

The package triton is needed to import this module, which is done where CUDA tensors arrive, and in tests under Triton's
interpreter (TRITON_INTERPRET=1).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

_TILE = 1024  # numbers of a program: pixels times labels
_LARGEST = tl.constexpr(8.0)  # step along a cost, beyond which a label gets no probability in any case


@triton.jit
def _inside(
    x: tl.tensor, y: tl.tensor, z: tl.tensor, depth: tl.tensor, height: tl.tensor, width: tl.tensor
) -> tl.tensor:
    return (x >= 0) & (x < width) & (y >= 0) & (y < height) & (z >= 0) & (z < depth)


@triton.jit
def _primal(
    unary: tl.tensor,  # (B, K, N)
    half: tl.tensor,  # (B, O, N) w / 2, 0 where the pair leaves the grid
    duals: tl.tensor,  # (B, O, K, N)
    primal: tl.tensor,  # (B, K, N) s
    lengths: tl.tensor,  # (B, N) tau
    offsets: tl.tensor,  # (O, 3) int32
    channels: tl.tensor,  # (B, K, N) s^, written
    thresholds: tl.tensor,  # (B, N), read and written
    count: tl.tensor,
    classes: tl.tensor,
    depth: tl.tensor,
    height: tl.tensor,
    width: tl.tensor,
    SIMPLEX: tl.constexpr,
    NEWTON: tl.constexpr,
    CLASSES: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    number = tl.program_id(1).to(tl.int64)
    pixels = depth * height * width
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    label = tl.arange(0, CLASSES)
    there = pixel < pixels
    inside = (label < classes)[:, None] & there[None, :]
    x, y, z = pixel % width, pixel // width % height, pixel // (width * height)
    places = (number * classes + label)[:, None] * pixels + pixel[None, :]
    cost = tl.load(unary + places, mask=inside, other=0.0)
    for o in range(count):
        dz, dy, dx = tl.load(offsets + 3 * o), tl.load(offsets + 3 * o + 1), tl.load(offsets + 3 * o + 2)
        weights = half + (number * count + o) * pixels
        flows = ((number * count + o) * classes + label)[:, None] * pixels
        weight = tl.load(weights + pixel, mask=there, other=0.0)
        cost += weight[None, :] * tl.load(duals + flows + pixel[None, :], mask=inside, other=0.0)
        known = there & _inside(x - dx, y - dy, z - dz, depth, height, width)
        back = pixel - ((dz * height + dy) * width + dx)
        weight = tl.load(weights + back, mask=known, other=0.0)
        cost -= weight[None, :] * tl.load(duals + flows + back[None, :], mask=inside & known[None, :], other=0.0)
    length = tl.load(lengths + number * pixels + pixel, mask=there, other=0.0)[None, :]
    s = tl.load(primal + places, mask=inside, other=0.0)
    if SIMPLEX:
        cost = cost - tl.min(tl.where(inside, cost, float("inf")), axis=0)[None, :]
        target = tl.where(inside, s - tl.minimum(cost * length, _LARGEST), -float("inf"))
        largest = tl.max(tl.where(there[None, :], target, 0.0), axis=0)
        low, high = largest - 1, largest - 1 / classes
        threshold = tl.load(thresholds + number * pixels + pixel, mask=there, other=0.0)
        threshold = tl.minimum(tl.maximum(threshold, low), high)
        for _ in tl.static_range(NEWTON):
            above = tl.maximum(target - threshold[None, :], 0.0)
            positive = tl.sum((above > 0).to(tl.float32), axis=0)
            excess = (tl.sum(above, axis=0) - 1) / tl.maximum(positive, 1.0)
            threshold = tl.minimum(tl.maximum(threshold + excess, low), high)
        tl.store(thresholds + number * pixels + pixel, threshold, mask=there)
        tl.store(channels + places, tl.maximum(target - threshold[None, :], 0.0), mask=inside)
    else:
        target = s - cost * length
        tl.store(channels + places, tl.minimum(tl.maximum(target, 0.0), 1.0), mask=inside)


@triton.jit
def _dual(
    channels: tl.tensor,  # (B, K, N) s^
    primal: tl.tensor,  # (B, K, N) s
    moved: tl.tensor,  # (B, K, N) the next s, written
    duals: tl.tensor,  # (B, O, K, N), read and written
    offsets: tl.tensor,  # (O, 3) int32
    count: tl.tensor,
    classes: tl.tensor,
    depth: tl.tensor,
    height: tl.tensor,
    width: tl.tensor,
    factor: tl.tensor,  # 1 / (2 c)
    relaxation: tl.tensor,
    CLASSES: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    number = tl.program_id(1).to(tl.int64)
    pixels = depth * height * width
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    label = tl.arange(0, CLASSES)
    there = pixel < pixels
    inside = (label < classes)[:, None] & there[None, :]
    x, y, z = pixel % width, pixel // width % height, pixel // (width * height)
    rows = (number * classes + label)[:, None] * pixels
    new = tl.load(channels + rows + pixel[None, :], mask=inside, other=0.0)
    old = tl.load(primal + rows + pixel[None, :], mask=inside, other=0.0)
    tl.store(moved + rows + pixel[None, :], old + relaxation * (new - old), mask=inside)
    ahead = 2 * new - old
    for o in range(count):
        dz, dy, dx = tl.load(offsets + 3 * o), tl.load(offsets + 3 * o + 1), tl.load(offsets + 3 * o + 2)
        known = inside & _inside(x + dx, y + dy, z + dz, depth, height, width)[None, :]
        places = rows + (pixel + (dz * height + dy) * width + dx)[None, :]
        other = 2 * tl.load(channels + places, mask=known, other=0.0)
        other = other - tl.load(primal + places, mask=known, other=0.0)
        flow = duals + ((number * count + o) * classes + label)[:, None] * pixels + pixel[None, :]
        value = tl.load(flow, mask=known, other=0.0)
        change = tl.minimum(tl.maximum(value + factor * (ahead - other), -1.0), 1.0)
        tl.store(flow, value + relaxation * (change - value), mask=known)


@torch.library.custom_op("regloss::potts_steps", mutates_args=("primals", "channels", "duals", "thresholds"))
def potts_steps(
    primals: Tensor,
    channels: Tensor,
    duals: Tensor,
    thresholds: Tensor,
    unary: Tensor,
    half: Tensor,
    lengths: Tensor,
    offsets: Tensor,
    size: Sequence[int],
    steps: int,
    balance: float,
    relaxation: float,
    newton_steps: int,
    simplex: bool,
) -> None:
    """Take ``steps`` steps; s is primals[steps % 2] then. All tensors are contiguous, and float32 but the offsets.

    Args:
        primals: (2, B, K, N): s at 0, and room for the next.
        channels: (B, K, N) s^, which is written.
        duals: (B, O, K, N) z.
        thresholds: (B, N) of the projection; -inf = not known.
        unary: (B, K, N).
        half: (B, O, N) half the weights, 0 where the pair leaves the grid.
        lengths: (B, N) tau.
        offsets: (O, 3) int32 of a pair's second pixel.
        size: of the three axes; N is their product.
        steps: how many.
        balance: c, > 0.
        relaxation: rho.
        newton_steps: of the projection.
        simplex: project onto the simplex; otherwise K is 1, and s is clamped to [0, 1].
    """
    (_, batch, classes, pixels), count = primals.shape, len(offsets)
    width = triton.next_power_of_2(classes)
    block = max(_TILE // width, 16)
    grid = triton.cdiv(pixels, block), batch
    for step in range(steps):
        now, other = primals[step % 2], primals[(step + 1) % 2]
        _primal[grid](
            unary,
            half,
            duals,
            now,
            lengths,
            offsets,
            channels,
            thresholds,
            count,
            classes,
            *size,
            SIMPLEX=simplex,
            NEWTON=newton_steps,
            CLASSES=width,
            BLOCK=block,
        )
        _dual[grid](
            channels,
            now,
            other,
            duals,
            offsets,
            count,
            classes,
            *size,
            1 / (2 * balance),
            relaxation,
            CLASSES=width,
            BLOCK=block,
        )
