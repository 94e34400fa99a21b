"""Dual ascent for total variation on graphs, in Triton: a whole batch at a time, three launches a step.

    x = y + extrapolation * (y - the y before)
    s = softmax(-(cost + K^T x) / epsilon), or -(cost + K^T x) / epsilon
    y+ = P(x + tau K s),                                                        (K s)_e = w_e (s_j - s_i),  e = ij

A program of the first launch owns some pixels and all their classes, and gathers K^T y from the edges at each; as K^T
is linear, K^T x follows from that and the sums before. One of the second owns some edges, reads s at both ends, moves
and writes y+ over the y before. The third makes of the sums of <x - y+, (y+ - y) / tau> what the next step extrapolates
by. Nothing is added to memory that others add to, and nothing waits for the host. A step reads five numbers an edge and
class, and writes one.

The classes of an edge, and those of a pixel, lie side by side. The package triton is needed to import this module,
which is done where CUDA tensors arrive, and in tests under Triton's interpreter (TRITON_INTERPRET=1).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from regloss_plugins.kernels.momentum_triton import momentum

_TILE = 1024  # numbers of a program: pixels or edges times classes


@triton.jit
def _points(
    cost: tl.tensor,  # (B, N, K)
    dual: tl.tensor,  # (B, E, K)
    weights: tl.tensor,  # (B, E)
    start: tl.tensor,  # (B, N + 1) int32
    order: tl.tensor,  # (B, 2 E) int32
    before: tl.tensor,  # (B, N, K) K^T of the y before
    adjoint: tl.tensor,  # (B, N, K) K^T y, written
    s: tl.tensor,  # (B, N, K), written
    extrapolations: tl.tensor,  # (B,)
    classes: tl.tensor,
    pixels: tl.tensor,
    edges: tl.tensor,
    factor: tl.tensor,
    ENTROPY: tl.constexpr,
    CLASSES: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    number = tl.program_id(1).to(tl.int64)
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    label = tl.arange(0, CLASSES)
    there = pixel < pixels
    known = (label < classes)[None, :]
    begin = tl.load(start + number * (pixels + 1) + pixel, mask=there, other=0)
    count = tl.load(start + number * (pixels + 1) + pixel + 1, mask=there, other=0) - begin
    total = tl.zeros((BLOCK, CLASSES), dtype=tl.float32)
    for k in range(tl.max(count, axis=0)):
        here = k < count
        entry = tl.load(order + 2 * number * edges + begin + k, mask=here, other=0)
        edge = tl.where(entry < edges, entry, entry - edges)
        weight = tl.load(weights + number * edges + edge, mask=here, other=0.0)
        weight = tl.where(entry < edges, -weight, weight)
        places = (number * edges + edge)[:, None] * classes + label[None, :]
        total += weight[:, None] * tl.load(dual + places, mask=here[:, None] & known, other=0.0)
    places = (number * pixels + pixel)[:, None] * classes + label[None, :]
    inside = there[:, None] & known
    tl.store(adjoint + places, total, mask=inside)
    ahead = total - tl.load(before + places, mask=inside, other=0.0)
    ahead = total + tl.load(extrapolations + number) * ahead
    score = -(tl.load(cost + places, mask=inside, other=0.0) + ahead) * factor
    if ENTROPY:
        score = tl.where(known, score, -float("inf"))
        score = tl.exp2(score - tl.max(score, axis=1)[:, None])
        score = score / tl.sum(score, axis=1)[:, None]
    tl.store(s + places, score, mask=inside)


@triton.jit
def _move(
    ends: tl.tensor,  # (B, E, 2) int64
    s: tl.tensor,  # (B, N, K)
    dual: tl.tensor,  # (B, E, K)
    before: tl.tensor,  # (B, E, K), overwritten with y+
    moves: tl.tensor,  # (B, E) tau * w
    metric: tl.tensor,  # (B, E) 1 / tau
    extrapolations: tl.tensor,  # (B,)
    gains: tl.tensor,  # (B, blocks), written
    classes: tl.tensor,
    pixels: tl.tensor,
    edges: tl.tensor,
    radius: tl.tensor,
    CLASSES: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    number = tl.program_id(1).to(tl.int64)
    edge = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    label = tl.arange(0, CLASSES)
    there = edge < edges
    inside = there[:, None] & (label < classes)[None, :]
    first = tl.load(ends + 2 * (number * edges + edge), mask=there, other=0)
    second = tl.load(ends + 2 * (number * edges + edge) + 1, mask=there, other=0)
    rows = number * pixels
    here = tl.load(s + (rows + first)[:, None] * classes + label[None, :], mask=inside, other=0.0)
    difference = tl.load(s + (rows + second)[:, None] * classes + label[None, :], mask=inside, other=0.0) - here
    places = (number * edges + edge)[:, None] * classes + label[None, :]
    value = tl.load(dual + places, mask=inside, other=0.0)
    point = value - tl.load(before + places, mask=inside, other=0.0)
    point = value + tl.load(extrapolations + number) * point
    move = tl.load(moves + number * edges + edge, mask=there, other=0.0)
    moved = tl.minimum(tl.maximum(point + move[:, None] * difference, -radius), radius)
    tl.store(before + places, moved, mask=inside)
    inverse = tl.load(metric + number * edges + edge, mask=there, other=0.0)
    gain = tl.sum(inverse[:, None] * (point - moved) * (moved - value), axis=1)
    tl.store(gains + number * tl.num_programs(0) + tl.program_id(0), tl.sum(gain, axis=0))


@torch.library.custom_op(
    "regloss::edge_ascent", mutates_args=("duals", "adjoints", "momenta", "extrapolations", "points")
)
def edge_ascent(
    duals: Tensor,
    adjoints: Tensor,
    momenta: Tensor,
    extrapolations: Tensor,
    points: Tensor,
    cost: Tensor,
    ends: Tensor,
    start: Tensor,
    order: Tensor,
    weights: Tensor,
    moves: Tensor,
    metric: Tensor,
    current: int,
    steps: int,
    radius: float,
    smoothing_weight: float,
    entropy: bool,
    most: float,
) -> None:
    """Take ``steps`` steps; the variables y are duals[(current + steps) % 2] then. All tensors are contiguous.

    Args:
        duals: (2, B, E, K) float32: at ``current`` y, and the y before.
        adjoints: (2, B, N, K): before the first step both alike or the extrapolation 0; K^T of both else.
        momenta: (B,) t.
        extrapolations: (B,) of the next step.
        points: (B, N, K), for s.
        cost: (B, N, K).
        ends: (B, E, 2) int64 pixels i and j.
        start: (B, N + 1) int32, see `regloss.operators.edge_differences.Incidence`.
        order: (B, 2 E) int32, likewise.
        weights: (B, E) w.
        moves: (B, E) tau * w.
        metric: (B, E) 1 / tau, 0 where tau is 0.
        current: see above.
        steps: how many.
        radius: bound of the dual variables.
        smoothing_weight: epsilon, > 0.
        entropy: softmax instead of the identity.
        most: largest extrapolation; 0 = projected gradient steps.
    """
    (_, batch, edges, classes), pixels = duals.shape, cost.shape[1]
    width = triton.next_power_of_2(classes)
    block = max(_TILE // width, 1)
    blocks = triton.cdiv(edges, block)
    gains = duals.new_empty(batch, blocks)
    # Powers of two in the place of those of e, which the factor makes up for.
    factor = (math.log2(math.e) if entropy else 1.0) / smoothing_weight
    for step in range(current, current + steps):
        now, other = step % 2, (step + 1) % 2
        _points[triton.cdiv(pixels, block), batch](
            cost,
            duals[now],
            weights,
            start,
            order,
            adjoints[other],
            adjoints[now],
            points,
            extrapolations,
            classes,
            pixels,
            edges,
            factor,
            ENTROPY=entropy,
            CLASSES=width,
            BLOCK=block,
        )
        _move[blocks, batch](
            ends,
            points,
            duals[now],
            duals[other],
            moves,
            metric,
            extrapolations,
            gains,
            classes,
            pixels,
            edges,
            radius,
            CLASSES=width,
            BLOCK=block,
        )
        if most > 0:
            momentum[batch,](gains, momenta, extrapolations, blocks, most)


@dataclass
class EdgeSteps:
    """The iteration on a batch; see `edge_ascent` for shapes."""

    duals: Tensor
    adjoints: Tensor
    momenta: Tensor
    extrapolations: Tensor
    points: Tensor
    cost: Tensor
    ends: Tensor
    start: Tensor
    order: Tensor
    weights: Tensor
    moves: Tensor
    metric: Tensor
    radius: float
    smoothing_weight: float
    entropy: bool
    most: float
    current: int = 0

    def advance(self, steps: int) -> Tensor:
        """Take ``steps`` steps, and give y (B, K, E)."""
        edge_ascent(
            self.duals,
            self.adjoints,
            self.momenta,
            self.extrapolations,
            self.points,
            self.cost,
            self.ends,
            self.start,
            self.order,
            self.weights,
            self.moves,
            self.metric,
            self.current,
            steps,
            self.radius,
            self.smoothing_weight,
            self.entropy,
            self.most,
        )
        self.current = (self.current + steps) % 2
        return self.duals[self.current].transpose(1, 2).contiguous()

    def keep(self, images: Tensor) -> None:
        """Go on with the images (M,) alone."""
        self.duals, self.adjoints = self.duals[:, images], self.adjoints[:, images]
        names = ("momenta", "extrapolations", "points", "cost", "ends", "start", "order", "weights", "moves", "metric")
        for name in names:
            setattr(self, name, getattr(self, name)[images])
