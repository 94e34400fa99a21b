"""A multiple of another operator."""

from __future__ import annotations

import torch
from torch import Tensor

from regloss.operators.linear_operator import LinearOperator


class Scaled(LinearOperator):
    """``factor`` * K.

    Args:
        operator: K.
        factor: > 0; as a tensor () it may be learnt.
    """

    def __init__(self, operator: LinearOperator, factor: float | Tensor) -> None:
        self.operator, self.factor = operator, factor

    @property
    def factor_value(self) -> float:
        """The factor as a number."""
        return float(self.factor.detach()) if isinstance(self.factor, Tensor) else self.factor

    @property
    def norm(self) -> float:
        """The multiple of K's."""
        return self.factor_value * self.operator.norm

    @property
    def parameters(self) -> tuple[Tensor, ...]:
        """Those of K, and the factor."""
        return (*self.operator.parameters, *([self.factor] if isinstance(self.factor, Tensor) else []))

    @property
    def classes_are_alike(self) -> bool:
        """As of K."""
        return self.operator.classes_are_alike

    @property
    def dtype(self) -> torch.dtype | None:
        """That of K."""
        return self.operator.dtype

    def apply(self, s: Tensor) -> Tensor:
        """The multiple of K s."""
        return self.factor * self.operator.apply(s)

    def adjoint(self, y: Tensor) -> Tensor:
        """K^T of the multiple of y."""
        return self.operator.adjoint(self.factor * y)

    def absolute(self) -> LinearOperator | None:
        """The multiple of |K|."""
        absolute = self.operator.absolute()
        return None if absolute is None else Scaled(absolute, self.factor)

    def squared(self) -> LinearOperator | None:
        """The multiple of K * K."""
        squared = self.operator.squared()
        return None if squared is None else Scaled(squared, self.factor**2)

    def __getitem__(self, images: Tensor) -> Scaled:
        return Scaled(self.operator[images], self.factor)


def unscaled(operator: LinearOperator) -> tuple[LinearOperator, float]:
    """``operator`` without the factors around it, and their product."""
    factor = 1.0
    while isinstance(operator, Scaled):
        factor *= operator.factor_value
        operator = operator.operator
    return operator, factor
