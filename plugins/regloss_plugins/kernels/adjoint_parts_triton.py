"""How the parts of a dual problem share a step of conjugate gradients in Triton, for the implicit gradient.

For A = Q (K S' K^T + c) Q and its diagonal M, with the residual r and z = Q M^-1 r (see `regloss.implicit`),

    d = z + beta d,  a = A d        beta, alpha: numbers of each image, 0 where it has ended
    nu += alpha d,   r -= alpha a

A part takes three launches. One of pixels gathers K^T z; the last part's adds up what K^T d is, and takes S' of it over
the classes while it has it in its registers. One of differences makes d and a, and sums of <d, a> over its programs.
One of differences moves nu and r, makes z, and sums of <r, z>. The classes of a pixel, and those of a difference, lie
side by side.

The package triton is needed to import this module, which is done where CUDA tensors arrive, and in tests under Triton's
interpreter (TRITON_INTERPRET=1).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from regloss_plugins.kernels.points_triton import block_of

# Rows of the numbers of each image.
POWER = tl.constexpr(0)  # <r, z>
TARGET = tl.constexpr(1)  # power at which to stop
ACTIVE = tl.constexpr(2)  # 1, or 0 = ended
ALPHA = tl.constexpr(3)
BETA = tl.constexpr(4)


@triton.jit
def gathered(
    total: tl.tensor,  # (BLOCK, CLASSES) K^T z of a part
    pixel: tl.tensor,  # (BLOCK,)
    adjoint: tl.tensor,  # (B, N, K) K^T of the last d, overwritten with that of this one
    s: tl.tensor,  # (B, N, K)
    points: tl.tensor,  # (B, N, K), written: K^T z so far, then S' K^T d
    numbers: tl.tensor,  # (5, B)
    batch: tl.tensor,
    classes: tl.tensor,
    pixels: tl.tensor,
    inverse_entropy: tl.tensor,
    FIRST: tl.constexpr,
    LAST: tl.constexpr,
    CLASSES: tl.constexpr,
) -> tl.tensor:
    """What was written: of the last part, S' K^T d."""
    number = tl.program_id(1).to(tl.int64)
    label = tl.arange(0, CLASSES)
    inside = (pixel < pixels)[:, None] & (label < classes)[None, :]
    places = (number * pixels + pixel)[:, None] * classes + label[None, :]
    if not FIRST:
        total += tl.load(points + places, mask=inside, other=0.0)
    if LAST:
        total += tl.load(numbers + BETA * batch + number) * tl.load(adjoint + places, mask=inside, other=0.0)
        tl.store(adjoint + places, total, mask=inside)
        weighted = tl.load(s + places, mask=inside, other=0.0)
        mean = tl.sum(weighted * total, axis=1)
        total = weighted * (total - mean[:, None]) * inverse_entropy
    tl.store(points + places, total, mask=inside)
    return total


@triton.jit
def conjugate(
    steepest: tl.tensor, direction: tl.tensor, places: tl.tensor, inside: tl.tensor, beta: tl.tensor
) -> tl.tensor:
    """The direction d."""
    ahead = tl.load(steepest + places, mask=inside, other=0.0)
    return ahead + beta * tl.load(direction + places, mask=inside, other=0.0)


@triton.jit
def _move(
    solution: tl.tensor,  # (B, AXES, E, width) nu, overwritten, as is the next
    residual: tl.tensor,  # r
    steepest: tl.tensor,  # z, written
    direction: tl.tensor,  # d
    image: tl.tensor,  # a
    inverse: tl.tensor,
    normals: tl.tensor,  # where JOINT
    numbers: tl.tensor,  # (5, B)
    sums: tl.tensor,  # (B, row), written
    row: tl.tensor,
    batch: tl.tensor,
    width: tl.tensor,
    edges: tl.tensor,
    AXES: tl.constexpr,
    JOINT: tl.constexpr,
    CLASSES: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    number = tl.program_id(1).to(tl.int64)
    edge = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    label = tl.arange(0, CLASSES)
    inside = (edge < edges)[:, None] & (label < width)[None, :]
    alpha = tl.load(numbers + ALPHA * batch + number)
    outward = tl.zeros((BLOCK, CLASSES), dtype=tl.float32)
    total = tl.zeros((BLOCK, CLASSES), dtype=tl.float32)
    # Where the axes are bounded together, once for what sticks out of the tangent and once for the rest.
    for turn in tl.static_range(2 if JOINT else 1):
        for axis in tl.static_range(AXES):
            places = ((number * AXES + axis) * edges + edge)[:, None] * width + label[None, :]
            left = tl.load(residual + places, mask=inside, other=0.0)
            left -= alpha * tl.load(image + places, mask=inside, other=0.0)
            scaled = tl.load(inverse + places, mask=inside, other=0.0) * left
            if JOINT:
                normal = tl.load(normals + places, mask=inside, other=0.0)
            if JOINT and turn == 0:
                outward += normal * scaled
            else:
                if JOINT:
                    scaled -= normal * outward
                value = tl.load(solution + places, mask=inside, other=0.0)
                value += alpha * tl.load(direction + places, mask=inside, other=0.0)
                tl.store(solution + places, value, mask=inside)
                tl.store(residual + places, left, mask=inside)
                tl.store(steepest + places, scaled, mask=inside)
                total += left * scaled
    total = tl.sum(tl.sum(total, axis=1), axis=0)
    tl.store(sums + number * row + tl.program_id(0), total)


class AdjointStep(NamedTuple):
    """What the parts of a step share.

    Attributes:
        points: (B, N, K) scratch.
        totals: (B, blocks, K) scratch for sums over the pixels of a program.
        sums: (B, blocks) scratch for sums over the differences of a program.
        adjoint: (B, N, K) K^T d.
        numbers: (5, B), see `regloss_plugins.kernels.adjoint_triton.adjoint_steps`.
        s: (B, N, K) probabilities.
        entropy: > 0.
        size: of the grid, if the pixels form one.
    """

    points: Tensor
    totals: Tensor
    sums: Tensor
    adjoint: Tensor
    numbers: Tensor
    s: Tensor
    entropy: float
    size: Sequence[int]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Images, classes, pixels."""
        batch, pixels, classes = self.s.shape
        return batch, classes, pixels

    @property
    def grid(self) -> tuple[int, int]:
        """Programs of a launch over pixels."""
        batch, classes, pixels = self.shape
        return triton.cdiv(pixels, block_of(classes)[1]), batch

    @property
    def of_gather(self) -> tuple[Tensor | int | float, ...]:
        """What all launches over pixels take, beside the `tile`."""
        return self.adjoint, self.s, self.points, self.numbers, *self.shape, 1 / self.entropy

    @property
    def tile(self) -> dict[str, int]:
        """Classes and pixels of a program over pixels."""
        return _tile(self.s.shape[2])


@dataclass
class AdjointPart(ABC):
    """One part: its variables and matrix. All tensors are contiguous, and float32 but for indices.

    Args:
        solution: nu (B, axes, E, classes that it has), 0 before the first step; E may be 1, N or the edges.
        residual: r, likewise.
        steepest: z, likewise.
        direction: the last d, likewise, 0 before the first step.
        weights: of K.
        inverse: of the diagonal, as ``residual``; but for balls 0 where a variable is not free.
        column: the first class that it has.
    """

    solution: Tensor
    residual: Tensor
    steepest: Tensor
    direction: Tensor
    weights: Tensor
    inverse: Tensor
    column: int

    MOVING: ClassVar[tuple[str, ...]] = ("solution", "residual", "steepest", "direction")
    FIXED: ClassVar[tuple[str, ...]] = ("weights", "inverse")
    takes_sums: ClassVar[bool] = False
    """Whether it looks at ``totals`` of the step, and so has to be the last one."""

    @property
    def blocks(self) -> int:
        """Programs an image that sum up."""
        return int(triton.cdiv(self.solution.shape[2], self.tile["BLOCK"]))

    @property
    def tile(self) -> dict[str, int]:
        """Classes and differences of a program over differences."""
        return _tile(self.solution.shape[3])

    @property
    def bends(self) -> tuple[Tensor, ...]:
        """Normals as ``residual`` and the curvature c (B, E, classes); () where variables are bounded one by one."""
        return ()

    @abstractmethod
    def gather(self, step: AdjointStep, first: bool, last: bool) -> None:
        """Add K^T z to the step's points; the last part makes S' K^T d of them."""

    @abstractmethod
    def apply(self, step: AdjointStep, image: Tensor, begin: int) -> None:
        """Make d and a, and sums of <d, a> from column ``begin`` on."""

    def of_apply(self, step: AdjointStep, image: Tensor, begin: int) -> tuple[Tensor | int, ...]:
        """What all launches that make d and a take, beside the `tile`."""
        tensors = self.steepest, self.direction, image, self.weights, self.inverse, step.numbers
        return *tensors, step.sums[:, begin:], step.sums.shape[1], *step.shape

    def move(self, step: AdjointStep, image: Tensor, begin: int) -> None:
        """Move nu and r, make z, and sums of <r, z> from column ``begin`` on."""
        batch, axes, edges, width = self.solution.shape
        _move[self.blocks, batch](
            self.solution,
            self.residual,
            self.steepest,
            self.direction,
            image,
            self.inverse,
            self.bends[0] if self.bends else self.inverse,
            step.numbers,
            step.sums[:, begin:],
            step.sums.shape[1],
            batch,
            width,
            edges,
            AXES=axes,
            JOINT=bool(self.bends),
            **self.tile,
        )


def _tile(classes: int) -> dict[str, int]:
    width, block = block_of(classes)
    return {"CLASSES": width, "BLOCK": block}
