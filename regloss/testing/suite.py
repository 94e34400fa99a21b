"""What the conformance suites share: how their checks are parametrised, random data, comparisons."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from regloss import grid

SIZES: Mapping[int, tuple[int, ...]] = {1: (9,), 2: (6, 7), 3: (4, 5, 6)}
"""Grid by number of spatial axes: small, no two axes alike, and with an interior when the border is cut off."""

SPACINGS = (0.7, 1.3, 2.9)
"""Of the first, second and third spatial axis, in mm."""


class Suite:
    """Parametrises each check by those of its arguments that name a table of the class.

    It is no abstract base class, because pytest passes over abstract classes in silence: without `make`, all checks
    fail instead.
    """

    tables: ClassVar[Mapping[str, str]] = {}
    """Attribute that holds the values, by the argument that takes them."""

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Called by pytest for each check; a class attribute, unlike a decorator's table, can be overridden."""
        for argument, attribute in self.tables.items():
            if argument in metafunc.fixturenames:
                values = list(getattr(self, attribute))
                metafunc.parametrize(argument, values, ids=[f"{argument}={short(value)}" for value in values])


def no_make(suite: Suite) -> NotImplementedError:
    """What to raise where a subclass does not say how to make its component."""
    return NotImplementedError(f"{type(suite).__name__} must define make(self), which gives the component to check.")


def short(value: Any) -> str:
    """A value as part of a check's name."""
    return str(value).removeprefix("torch.").replace(" ", "")


def normal_values(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Standard normal numbers that do not depend on, nor change, torch's global generator."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def random_labels(*shape: int, classes: int, seed: int) -> Tensor:
    """Uniform int64 labels 0 .. classes - 1."""
    return torch.randint(classes, shape, generator=torch.Generator().manual_seed(seed))


def random_image(batch: int, channels: int, size: Sequence[int], seed: int = 0) -> Tensor:
    """(B, C, *S) float64 in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(batch, channels, *size, generator=generator, dtype=torch.float64)


def irregular_region(batch: int, size: Sequence[int]) -> Tensor:
    """(B, *S) bool with about two thirds of the pixels, ragged, different in each image."""
    return normal_values(batch, *size, seed=71) > -0.43


def without_border(values: Tensor, size: Sequence[int]) -> Tensor:
    """View of ``values`` (..., *S) without the border."""
    return grid.pick(values, tuple(slice(1, -1) for _ in size))


def box_region(batch: int, size: Sequence[int]) -> Tensor:
    """(B, *S) bool: everything but the border."""
    region = torch.zeros(batch, *size, dtype=torch.bool)
    without_border(region, size).fill_(True)
    return region


def inner_products(first: Tensor, second: Tensor) -> Tensor:
    """(B,) inner products of each image's entries."""
    return (first * second).flatten(1).sum(1)


def assert_close(actual: Tensor, expected: Tensor, tolerance: float, what: str) -> None:
    """Equal to ``tolerance``, relative for large numbers and absolute for small ones."""
    actual, expected = actual.detach().double().cpu(), expected.detach().double().cpu()
    torch.testing.assert_close(
        actual, expected, rtol=tolerance, atol=tolerance, msg=lambda text: f"{what}\n{text}", equal_nan=True
    )


def assert_at_most(smaller: Tensor, larger: Tensor, tolerance: float, what: str) -> None:
    """``smaller <= larger`` everywhere, to ``tolerance`` times 1 + |larger|."""
    slack = tolerance * (1 + larger.abs().nan_to_num(posinf=0.0, neginf=0.0))
    assert bool((smaller <= larger + slack).all()), f"{what}\n{smaller.tolist()} should be at most {larger.tolist()}"


def directional_derivative(
    function: Callable[[Tensor], Tensor], at: Tensor, direction: Tensor, step: float = 1e-6
) -> Tensor:
    """Central difference (B,) of ``function``, which gives (B,), along ``direction``."""
    with torch.no_grad():
        return (function(at + step * direction) - function(at - step * direction)) / (2 * step)


def gradient_of_sum(function: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    """Gradient of the sum of ``function``, which gives (B,)."""
    variable = at.detach().clone().requires_grad_()
    (gradient,) = torch.autograd.grad(function(variable).sum(), variable)
    return gradient


class Unchanged:
    """Context in which none of the given tensors, arrays or objects may be modified."""

    def __init__(self, **given: Any) -> None:
        self.given = {name: value for name, value in given.items() if value is not None}
        self.copies = copy.deepcopy(self.given)

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if kind is not None:
            return
        for name, value in self.given.items():
            assert torch.equal(value, self.copies[name]), f"the argument {name} was modified"


def available_devices() -> tuple[str, ...]:
    """The CPU, and the GPU where there is one."""
    return ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
