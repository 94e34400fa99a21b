"""Conjugate gradients of the implicit gradient in Triton: a step of one part or of several.

A step is three launches a part (`adjoint_parts_triton`) and two more, which make alpha and beta of all parts' sums of
<d, a> and <r, z>. What has ended stays as it is, and nothing waits for the host.

The package triton is needed to import this module, which is done where CUDA tensors arrive, and in tests under Triton's
interpreter (TRITON_INTERPRET=1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import triton
import triton.language as tl
from torch import Tensor

from regloss_plugins.kernels.adjoint_parts_triton import ACTIVE, ALPHA, BETA, POWER, TARGET, AdjointPart, AdjointStep
from regloss_plugins.kernels.class_differences_adjoint_triton import OrderAdjoint
from regloss_plugins.kernels.class_sums_adjoint_triton import SumsAdjoint
from regloss_plugins.kernels.edge_adjoint_triton import EdgeAdjoint
from regloss_plugins.kernels.grid_adjoint_triton import BallsAdjoint, GridAdjoint
from regloss_plugins.kernels.points_triton import block_of, total_of


@triton.jit
def _alpha(
    numbers: tl.tensor,  # (5, B), overwritten
    sums: tl.tensor,  # (B, blocks) parts of <d, a>
    batch: tl.tensor,
    blocks: tl.tensor,
) -> None:
    number = tl.program_id(0)
    total = total_of(sums, number, blocks)
    power = tl.load(numbers + POWER * batch + number)
    # Rounding can leave a direction that the matrix does not see.
    active = (tl.load(numbers + ACTIVE * batch + number) > 0) & (total > 0)
    tl.store(numbers + ALPHA * batch + number, tl.where(active, power / tl.where(active, total, 1.0), 0.0))
    tl.store(numbers + ACTIVE * batch + number, tl.where(active, 1.0, 0.0))


@triton.jit
def _beta(
    numbers: tl.tensor,  # (5, B), overwritten
    sums: tl.tensor,  # (B, blocks) parts of <r, z>
    batch: tl.tensor,
    blocks: tl.tensor,
) -> None:
    number = tl.program_id(0)
    total = total_of(sums, number, blocks)
    power = tl.load(numbers + POWER * batch + number)
    active = tl.load(numbers + ACTIVE * batch + number) > 0
    tl.store(numbers + BETA * batch + number, tl.where(active, total / tl.where(active, power, 1.0), 0.0))
    tl.store(numbers + POWER * batch + number, total)
    active = active & (total > tl.load(numbers + TARGET * batch + number))
    tl.store(numbers + ACTIVE * batch + number, tl.where(active, 1.0, 0.0))


_KINDS: dict[str, type[AdjointPart]] = {
    kind.__name__: kind for kind in (GridAdjoint, BallsAdjoint, EdgeAdjoint, SumsAdjoint, OrderAdjoint)
}


@torch.library.custom_op("regloss::adjoint_steps", mutates_args=("moving", "adjoint", "numbers"))
def adjoint_steps(
    kinds: str,
    moving: Sequence[Tensor],
    adjoint: Tensor,
    numbers: Tensor,
    s: Tensor,
    fixed: Sequence[Tensor],
    columns: Sequence[int],
    size: Sequence[int],
    entropy: float,
    steps: int,
) -> None:
    """Take ``steps`` steps.

    Args:
        kinds: names of the parts' classes; the one that takes sums, if there is one, is the last.
        moving: what moves in each part, one part after the other: see `AdjointPart`.
        adjoint: (B, N, K) K^T d, 0 before the first step.
        numbers: (5, B) <r, z>, the value of it at which to stop, 1 where that is not reached, alpha, and beta, which
            is 0 before the first step.
        s: (B, N, K) probabilities.
        fixed: what does not move, as ``moving``.
        columns: see `AdjointPart`, one a part.
        size: of the grid, if the pixels form one.
        entropy: > 0.
        steps: how many.
    """
    parts: list[AdjointPart] = []
    for name, column in zip(kinds.split(), columns, strict=True):
        kind = _KINDS[name]
        tensors = {**dict(zip(kind.MOVING, moving, strict=False)), **dict(zip(kind.FIXED, fixed, strict=False))}
        moving, fixed = moving[len(kind.MOVING) :], fixed[len(kind.FIXED) :]
        parts.append(kind(**tensors, column=column))
    batch, pixels, classes = s.shape
    blocks = sum(part.blocks for part in parts)
    images = [torch.empty_like(part.solution) for part in parts]
    totals = s.new_empty(batch, -(-pixels // block_of(classes)[1]), classes)
    step = AdjointStep(torch.empty_like(s), totals, s.new_empty(batch, blocks), adjoint, numbers, s, entropy, size)
    begins = [sum(part.blocks for part in parts[:number]) for number in range(len(parts))]
    for _ in range(steps):
        for part in parts:
            part.gather(step, part is parts[0], part is parts[-1])
        for part, image, begin in zip(parts, images, begins, strict=True):
            part.apply(step, image, begin)
        _alpha[batch,](numbers, step.sums, batch, blocks)
        for part, image, begin in zip(parts, images, begins, strict=True):
            part.move(step, image, begin)
        _beta[batch,](numbers, step.sums, batch, blocks)


@dataclass
class AdjointSteps:
    """Conjugate gradients of a batch, from 0; see `adjoint_steps`."""

    parts: list[AdjointPart]
    s: Tensor
    size: Sequence[int]
    entropy: float
    tolerance: float
    adjoint: Tensor = field(init=False)
    numbers: Tensor = field(init=False)
    first: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.adjoint = torch.zeros_like(self.s)
        powers = [(part.residual * part.steepest).flatten(1).sum(1) for part in self.parts]
        self.first = torch.stack(powers).sum(0)
        self.numbers = self.s.new_zeros(5, len(self.s))
        self.numbers[POWER.value] = self.first
        self.numbers[TARGET.value] = self.tolerance**2 * self.first
        self.numbers[ACTIVE.value] = (self.first > self.numbers[TARGET.value]).to(self.numbers)

    @property
    def active(self) -> Tensor:
        """(B,) bool: images that have not ended."""
        return self.numbers[ACTIVE.value] > 0

    @property
    def relative_residual(self) -> Tensor:
        """(B,) in the preconditioner's norm."""
        ratio = self.numbers[POWER.value] / torch.where(self.first > 0, self.first, 1)
        return torch.where(self.first > 0, ratio, 0).clamp(min=0).sqrt()

    def advance(self, steps: int) -> None:
        """Take ``steps`` steps."""
        adjoint_steps(
            " ".join(type(part).__name__ for part in self.parts),
            [getattr(part, name) for part in self.parts for name in part.MOVING],
            self.adjoint,
            self.numbers,
            self.s,
            [getattr(part, name) for part in self.parts for name in part.FIXED],
            [part.column for part in self.parts],
            self.size,
            self.entropy,
            steps,
        )
