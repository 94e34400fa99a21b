"""Dual ascent in fast code: what it is given, and what it gives back.

A step of dual ascent, written as tensor operations, reads and writes every array a dozen times over. Code that knows
the operator and the dual set can do the whole of it in one pass: apply K^T, take the minimiser at each pixel, move,
project. Such code registers itself for a pair of types and a device (`regloss.dispatch`, task "dual-ascent") and takes
a `DualProblem`; the momentum, the restarts and the stopping rule stay the solver's, which knows no operator.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

import torch
from numpy.typing import NDArray
from torch import Tensor

from regloss.dual_sets import DualSet
from regloss.forms import SaddlePart
from regloss.operators import LinearOperator

Smoothing = Literal["entropy", "square"]


@dataclass(frozen=True)
class DualProblem:
    """The dual of min over s of <cost, s> + weight * h(s) + max over y in Y of <factor * K s, y>, to be ascended.

    Attributes:
        operator: K.
        dual_set: Y.
        cost: (B, K, *S), float32 or float64, on the device; inf where "entropy" must leave a probability at 0.
        smoothing: "entropy": h(s) = <s, log s>, s in the simplex at every pixel; "square": h(s) = |s|^2 / 2, any s.
        weight: of h, > 0.
        steps: r, by which a dual entry's step is `step_scale` / r: "diagonal", "norm" (see
            `regloss.forms.Composite.diagonal_bound`), or a number, which is the step itself.
        start: y in Y, of dual shape; None = 0, which must lie in Y.
        roi: (B, *S) bool; values of <cost, s> + weight * h(s) are summed inside. None = everywhere.
        factor: of K, > 0.
    """

    operator: LinearOperator
    dual_set: DualSet
    cost: Tensor
    smoothing: Smoothing
    weight: float
    steps: Literal["diagonal", "norm"] | float
    start: Tensor | None = None
    roi: Tensor | None = None
    factor: float = 1.0

    @property
    def step_scale(self) -> float:
        """Steps times r: twice the weight for the entropy, since sums over classes stay 1; else the weight."""
        return 2 * self.weight if self.smoothing == "entropy" else self.weight


@dataclass(frozen=True)
class JointProblem:
    """The dual of min over s of <cost, s> + weight * h(s) + sum over parts of max over y in Y of <K s - b, y>.

    Attributes:
        parts: K, Y and b of each.
        cost: as of `DualProblem`, as are the next two.
        smoothing: likewise.
        weight: likewise.
        steps: tau, one tensor a part, broadcastable to its dual shape.
        starts: y in Y, one tensor a part, of dual shape.
    """

    parts: tuple[SaddlePart, ...]
    cost: Tensor
    smoothing: Smoothing
    weight: float
    steps: tuple[Tensor, ...]
    starts: tuple[Tensor, ...]


def dual_steps(scale: float | Tensor, bound: Tensor) -> Tensor:
    """Steps of dual variables, ``scale`` / ``bound``, of the bound's shape and type.

    They are 0 where the bound is 0, since K does not reach these variables. Where K hardly does they stay below the
    root of the largest number, so that a step times what it is taken along, which may be 0, is a number.
    """
    steps = torch.where(bound > 0, scale / torch.where(bound > 0, bound, 1), 0)
    return steps.clamp(max=math.sqrt(torch.finfo(bound.dtype).max))


class DualResult(NamedTuple):
    """One image at its current y; sums in double precision.

    Attributes:
        minimiser: s(y) (K, *S); may be overwritten by the next call.
        smooth: <cost, s> + weight * h(s); for "square" with |cost|^2 / (2 weight) added, which makes it a square.
        support: max over Y of <factor * K s, .>.
        fenchel_gap: that, less <factor * K s, y>; >= 0.
    """

    minimiser: Tensor
    smooth: float
    support: float
    fenchel_gap: float


class DualIteration(Protocol):
    """The iteration on one image. It keeps y and the y before; at the start both are the same."""

    def step(self, extrapolation: float) -> float:
        """From x = y + extrapolation * (y - the one before) to y+ = P(x + tau * factor * K s(x)), tau being the steps.

        Returns:
            <x - y+, (y+ - y) / tau>, where tau is not 0.
        """

    def certify(self) -> DualResult:
        """What s(y) is worth."""

    @property
    def dual(self) -> Tensor:
        """Y, of dual shape without the batch; may be overwritten by the next step."""


DualIterations = Sequence[DualIteration]
DualAscent = Callable[[DualProblem], DualIterations]


class DualSteps(Protocol):
    """The iteration on a whole batch, momentum and restarts included, on a device that it never waits for.

    It is the task "dual-steps": a function from a `DualProblem` and the largest extrapolation (0 = projected gradient
    steps) to this, or to None; and the task "joint-steps", which is asked then: likewise from a `JointProblem`, or to
    None where the reference is to take the steps.
    """

    def advance(self, steps: int) -> list[Tensor]:
        """Take so many steps, as `DualIteration.step` does; gives y, of dual shape, of each part.

        Later calls may overwrite it.
        """

    def keep(self, images: Tensor) -> None:
        """Go on with the images (M,) alone."""


class ArrayKernel(Protocol):
    """A `DualIteration` over arrays, which need not have the tensors' shapes, only their order."""

    minimiser: NDArray[Any]

    def step(self, extrapolation: float) -> float:
        """As there."""

    def certify(self) -> tuple[float, float, float]:
        """Smooth part, support and Fenchel gap; sets ``minimiser``."""

    @property
    def dual(self) -> NDArray[Any]:
        """As there."""


class ArrayIteration:
    """An `ArrayKernel` in tensors.

    Args:
        kernel: what does the work.
        size: (K, *S).
        dual_size: of the dual variables.
    """

    def __init__(self, kernel: ArrayKernel, size: Sequence[int], dual_size: Sequence[int]) -> None:
        self.kernel = kernel
        self.size = tuple(size)
        self.dual_size = tuple(dual_size)

    def step(self, extrapolation: float) -> float:
        """See `DualIteration`."""
        return self.kernel.step(extrapolation)

    def certify(self) -> DualResult:
        """See `DualIteration`."""
        smooth, support, fenchel_gap = self.kernel.certify()
        return DualResult(torch.from_numpy(self.kernel.minimiser).reshape(self.size), smooth, support, fenchel_gap)

    @property
    def dual(self) -> Tensor:
        """See `DualIteration`."""
        return torch.from_numpy(self.kernel.dual).reshape(self.dual_size)
