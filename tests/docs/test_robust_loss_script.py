"""The picture of the robust loss: its curves are the formula, and its derivative is their slope."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType

import pytest
import torch
from experiment_scripts import script_module


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    with script_module("robust_loss") as module:
        yield module


@pytest.mark.parametrize("epsilon", [0.0, 0.1, 0.45])
def test_curves_are_the_formula(script: ModuleType, epsilon: float) -> None:
    x, loss, slope = script.curves(epsilon)
    torch.testing.assert_close(loss, -(epsilon + (1 - 2 * epsilon) * x.sigmoid()).log())
    middle = (loss[2:] - loss[:-2]) / (x[2:] - x[:-2])
    torch.testing.assert_close(slope[1:-1], middle, rtol=0, atol=1e-3)
