"""Compiled dual ascent: what a block of a saddle form may offer so that a solver's steps need not be put together.

A step of dual ascent, written as tensor operations, reads and writes every array a dozen times over. A block that knows
its own operator can do the whole of it in one pass: apply K^T, respond at each pixel, move, project. A solver asks the
block of a form for that (`regloss.regularizer.SaddleBlock.compiled`) and falls back on the block's functions where it
offers nothing. The momentum, the restarts and the stopping rule stay the solver's, which knows no operator; the
operator stays the block's, which knows no solver.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class Ascent:
    """What is ascended: the dual of min over s of <cost, s> + strength * h(s) + max over y in Y of <factor * K s, y>.

    Attributes:
        cost: (B, K, *S) on the CPU, float32 or float64; inf where "entropy" must leave a probability at 0.
        smoothing: "entropy": h(s) = <s, log s>, s in the simplex at every pixel; "square": h(s) = |s|^2 / 2, any s.
        strength: > 0.
        steps: r, by which a dual entry's step is 2 * strength / r ("entropy") or strength / r ("square"): "diagonal",
            "norm" (see `regloss.regularizer.Saddle.diagonal_bound`), or a number, which is the step itself.
        start: y in Y, of dual shape; None = 0, which must lie in Y.
        roi: (B, *S) bool; values of <cost, s> + strength * h(s) are summed inside. None = everywhere.
        factor: of K, > 0.
    """

    cost: Tensor
    smoothing: Literal["entropy", "square"]
    strength: float
    steps: Literal["diagonal", "norm"] | float
    start: Tensor | None = None
    roi: Tensor | None = None
    factor: float = 1.0

    @property
    def pace(self) -> float:
        """Steps times r: twice the strength for the entropy, since sums over classes stay 1; else the strength."""
        return 2 * self.strength if self.smoothing == "entropy" else self.strength


class Certified(NamedTuple):
    """One image at its current y; sums in double precision.

    Attributes:
        minimiser: s(y) (K, *S); may be overwritten by the next call.
        smooth: <cost, s> + strength * h(s); for "square" with |cost|^2 / (2 strength) added, which makes it a square.
        support: max over Y of <factor * K s, .>.
        slack: that, less <factor * K s, y>; >= 0.
    """

    minimiser: Tensor
    smooth: float
    support: float
    slack: float


class ImageAscent(Protocol):
    """The iteration on one image. It keeps y and the y before; at the start both are the same."""

    def step(self, push: float) -> float:
        """From x = y + push * (y - the one before) to y+ = P(x + tau * factor * K s(x)), tau being the steps.

        Returns:
            <x - y+, (y+ - y) / tau>, where tau is not 0.
        """

    def certify(self) -> Certified:
        """What s(y) is worth."""

    @property
    def dual(self) -> Tensor:
        """Y, of dual shape without the batch; may be overwritten by the next step."""


Images = Sequence[ImageAscent]


class Kernel(Protocol):
    """An `ImageAscent` over arrays, which need not have the tensors' shapes, only their order."""

    minimiser: NDArray[Any]

    def step(self, push: float) -> float:
        """As there."""

    def certify(self) -> tuple[float, float, float]:
        """Smooth part, support and slack; sets ``minimiser``."""

    @property
    def dual(self) -> NDArray[Any]:
        """As there."""


class ArrayAscent:
    """A `Kernel` in tensors.

    Args:
        kernel: what does the work.
        size: (K, *S).
        dual_size: of the dual variables.
    """

    def __init__(self, kernel: Kernel, size: Sequence[int], dual_size: Sequence[int]) -> None:
        self.kernel = kernel
        self.size = tuple(size)
        self.dual_size = tuple(dual_size)

    def step(self, push: float) -> float:
        """See `ImageAscent`."""
        return self.kernel.step(push)

    def certify(self) -> Certified:
        """See `ImageAscent`."""
        smooth, support, slack = self.kernel.certify()
        return Certified(torch.from_numpy(self.kernel.minimiser).reshape(self.size), smooth, support, slack)

    @property
    def dual(self) -> Tensor:
        """See `ImageAscent`."""
        return torch.from_numpy(self.kernel.dual).reshape(self.dual_size)
