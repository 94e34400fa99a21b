"""Dual ascent in Triton on the sum of several parts, or of one: graphs, trees, volumes, orders, and grids beside them.

A step is two launches a part (`points_triton`) and one that makes of all parts' <x - y+, (y+ - y) / tau> what the next
step extrapolates by. Nothing waits for the host.

The package triton is needed to import this module, which is done where CUDA tensors arrive, and in tests under Triton's
interpreter (TRITON_INTERPRET=1).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from regloss_plugins.kernels.class_differences_triton import OrderPart
from regloss_plugins.kernels.class_sums_triton import SumsPart
from regloss_plugins.kernels.edge_ascent_triton import EdgePart
from regloss_plugins.kernels.grid_differences_triton import BallsPart, GridPart
from regloss_plugins.kernels.momentum_triton import momentum
from regloss_plugins.kernels.points_triton import Part, Step, block_of

_KINDS: dict[str, type[Part]] = {kind.__name__: kind for kind in (EdgePart, GridPart, BallsPart, SumsPart, OrderPart)}


@torch.library.custom_op("regloss::joint_ascent", mutates_args=("momenta", "extrapolations", "points", "moving"))
def joint_ascent(
    kinds: str,
    momenta: Tensor,
    extrapolations: Tensor,
    points: Tensor,
    moving: Sequence[Tensor],
    cost: Tensor,
    fixed: Sequence[Tensor],
    firsts: Sequence[int],
    lows: Sequence[float],
    highs: Sequence[float],
    size: Sequence[int],
    current: int,
    steps: int,
    smoothing_weight: float,
    entropy: bool,
    most: float,
) -> None:
    """Take ``steps`` steps; the variables y lie at (current + steps) % 2 then. All tensors are contiguous.

    Args:
        kinds: names of the parts' classes; the one that takes sums, if there is one, is the last.
        momenta: (B,) t.
        extrapolations: (B,) of the next step.
        points: (B, N, K), for s.
        moving: what moves in each part, one part after the other: see `Part`.
        cost: (B, N, K) float32.
        fixed: what does not, likewise.
        firsts: see `Part`, one a part, as are the next two.
        lows: likewise.
        highs: likewise.
        size: of the grid, if the pixels form one.
        current: see above.
        steps: how many.
        smoothing_weight: epsilon, > 0.
        entropy: softmax instead of the identity.
        most: largest extrapolation; 0 = projected gradient steps.
    """
    parts: list[Part] = []
    for name, first, low, high in zip(kinds.split(), firsts, lows, highs, strict=True):
        kind = _KINDS[name]
        tensors: dict[str, Any] = dict(zip(kind.MOVING, moving, strict=False))
        tensors |= zip(kind.FIXED, fixed, strict=False)
        moving, fixed = moving[len(kind.MOVING) :], fixed[len(kind.FIXED) :]
        parts.append(kind(**tensors, first=first, low=low, high=high))
    batch, pixels, classes = cost.shape
    blocks = sum(part.blocks for part in parts)
    gains = cost.new_empty(batch, blocks)
    sums = cost.new_empty(batch, -(-pixels // block_of(classes)[1]), classes)
    # Powers of two in the place of those of e, which the factor makes up for.
    factor = (math.log2(math.e) if entropy else 1.0) / smoothing_weight
    for number in range(current, current + steps):
        step = Step(points, sums, extrapolations, gains, size, number % 2, factor, entropy)
        scores = cost
        for part in parts:
            part.add(step, scores, part is parts[-1])
            scores = points
        begin = 0
        for part in parts:
            part.move(step, begin)
            begin += part.blocks
        if most > 0:
            momentum[batch,](gains, momenta, extrapolations, blocks, most)


@dataclass
class JointSteps:
    """The iteration on a batch; see `joint_ascent`."""

    parts: list[Part]
    momenta: Tensor
    extrapolations: Tensor
    points: Tensor
    cost: Tensor
    size: Sequence[int]
    smoothing_weight: float
    entropy: bool
    most: float
    current: int = 0

    def advance(self, steps: int) -> list[Tensor]:
        """Take ``steps`` steps, and give each part's y, which later steps overwrite."""
        joint_ascent(
            " ".join(type(part).__name__ for part in self.parts),
            self.momenta,
            self.extrapolations,
            self.points,
            [getattr(part, name) for part in self.parts for name in part.MOVING],
            self.cost,
            [getattr(part, name) for part in self.parts for name in part.FIXED],
            [part.first for part in self.parts],
            [part.low for part in self.parts],
            [part.high for part in self.parts],
            self.size,
            self.current,
            steps,
            self.smoothing_weight,
            self.entropy,
            self.most,
        )
        self.current = (self.current + steps) % 2
        return [part.duals[self.current] for part in self.parts]

    def keep(self, images: Tensor) -> None:
        """Go on with the images (M,) alone."""
        for part in self.parts:
            part.keep(images)
        for name in ("momenta", "extrapolations", "points", "cost"):
            setattr(self, name, getattr(self, name)[images])
