"""How the parts of a dual problem share a step of ascent in Triton.

    x_p = y_p + extrapolation * (y_p - the y_p before)     for each part p
    s = softmax(-(cost + sum of K_p^T x_p) / epsilon), or -(cost + sum of K_p^T x_p) / epsilon
    y_p+ = P_p(x_p + tau_p (K_p s - b_p))

A part takes two launches: in one it adds K_p^T x_p to the scores of each pixel, in the other it moves y_p. The last to
add turns the scores into s while it has them in its registers. The classes of a pixel, and those of a dual variable,
lie side by side, and a program owns some pixels and all their classes.

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

_TILE = 1024  # numbers of a program
_BLOCK = tl.constexpr(128)


def block_of(classes: int) -> tuple[int, int]:
    """A power of two of classes, and how many pixels, edges or differences a program has beside them."""
    width = triton.next_power_of_2(classes)
    return width, max(_TILE // width, 1)


@triton.jit
def ahead(
    dual: tl.tensor, before: tl.tensor, places: tl.tensor, there: tl.tensor, extrapolation: tl.tensor
) -> tl.tensor:
    """The point x."""
    value = tl.load(dual + places, mask=there, other=0.0)
    return value + extrapolation * (value - tl.load(before + places, mask=there, other=0.0))


@triton.jit
def finished(
    scores: tl.tensor,  # (pixels, classes)
    known: tl.tensor,  # (classes,) bool
    factor: tl.tensor,
    LAST: tl.constexpr,
    ENTROPY: tl.constexpr,
) -> tl.tensor:
    """``scores``; if all parts have added to them, s, the softmax in powers of two, for which ``factor`` makes up."""
    if LAST:
        scores = -scores * factor
        if ENTROPY:
            scores = tl.where(known[None, :], scores, -float("inf"))
            scores = tl.exp2(scores - tl.max(scores, axis=1)[:, None])
            scores = scores / tl.sum(scores, axis=1)[:, None]
    return scores


@triton.jit
def total_of(
    sums: tl.tensor,  # (B, blocks)
    image: tl.tensor,
    blocks: tl.tensor,
) -> tl.tensor:
    """What the programs of a launch have summed up of ``image``, always in the same order."""
    total = tl.zeros((_BLOCK,), dtype=tl.float32)
    for begin in range(0, blocks, _BLOCK):
        one = begin + tl.arange(0, _BLOCK)
        total += tl.load(sums + image * blocks + one, mask=one < blocks, other=0.0)
    return tl.sum(total, axis=0)


class Step(NamedTuple):
    """What the parts of a step share.

    Attributes:
        points: (B, N, K) the scores, then s.
        sums: (B, blocks, K) sums of s over the pixels of a program, for `regloss_plugins.kernels.class_sums_triton`.
        extrapolations: (B,).
        gains: (B, blocks) parts of <x - y+, (y+ - y) / tau>.
        size: of the grid, if the pixels form one.
        now: where y lies; the y before, which y+ is written over, lies at 1 - ``now``.
        factor: 1 / epsilon, in powers of two for the entropy.
        entropy: softmax instead of the identity.
    """

    points: Tensor
    sums: Tensor
    extrapolations: Tensor
    gains: Tensor
    size: Sequence[int]
    now: int
    factor: float
    entropy: bool


@dataclass
class Part(ABC):
    """One part: its variables and what they move by. All tensors are contiguous, and float32 but for indices.

    Args:
        duals: (2, B, ..., classes that it has).
        weights: of K.
        steps: tau, as ``duals[0]``, or with 1 in the place of the classes where it is the same for all.
        first: the first class that it has.
        low: bound of the variables, or -inf.
        high: likewise, or inf.
    """

    duals: Tensor
    weights: Tensor
    steps: Tensor
    first: int
    low: float
    high: float

    MOVING: ClassVar[tuple[str, ...]] = ("duals",)
    FIXED: ClassVar[tuple[str, ...]] = ("weights", "steps")
    takes_sums: ClassVar[bool] = False
    """Whether it looks at ``sums`` of the step, and so has to be the last one to add to the scores."""

    @property
    @abstractmethod
    def blocks(self) -> int:
        """Programs an image that move, each of which writes a gain."""

    @abstractmethod
    def add(self, step: Step, scores: Tensor, last: bool) -> None:
        """Write ``scores`` (B, N, K) + K^T x, or s if this is the last part, into the step's points."""

    @abstractmethod
    def move(self, step: Step, begin: int) -> None:
        """Write y+ over the y before, and the gains from column ``begin`` on."""

    def keep(self, images: Tensor) -> None:
        """Go on with the images (M,) alone."""
        for name in self.MOVING:
            setattr(self, name, getattr(self, name)[:, images])
        for name in self.FIXED:
            setattr(self, name, getattr(self, name)[images])
