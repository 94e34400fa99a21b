"""On a device that knows no float64 the same numbers as on the CPU, and nothing that asks it for doubles."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from without_doubles import PLACE, WithoutDoubles

import regloss
from regloss import registry
from regloss.testing.suite import assert_close, normal_values, random_image

SIZE = (8, 9)
IMAGE = random_image(2, 3, SIZE).float()
REGION = torch.ones(2, *SIZE, dtype=torch.bool)
REGION[1, :2, 5:] = False
UNARY = normal_values(2, 2, *SIZE, seed=1, dtype=torch.float32)
SETTINGS: dict[str, dict[str, Any]] = {"star": {"center": (4, 4)}, "nltv": {"neighbors": 4}}


def term(name: str, device: torch.device | str) -> Any:
    kind = registry.get("regularizer", name)
    settings = {**kind.example, **SETTINGS.get(name, {}), "weight": 0.3}
    return kind(**settings).bind(IMAGE.to(device), REGION.to(device))


def same(work: Any, tolerance: float = 1e-4) -> None:
    """``work`` of a device gives the same tensors on both."""
    expected = work("cpu")
    with WithoutDoubles():
        found = work(PLACE)
        assert all(each.device == PLACE for each in found)
        found = [each.cpu() for each in found]
    for number, (one, other) in enumerate(zip(found, expected, strict=True)):
        assert_close(one, other.to(one.dtype), tolerance, f"result {number}")


@pytest.mark.parametrize("name", registry.names("regularizer"))
def test_energies_and_gradients(name):
    def work(device) -> list[Tensor]:
        logits = UNARY.to(device).requires_grad_()
        energy = term(name, device).penalty(logits.softmax(1))
        (gradient,) = torch.autograd.grad(energy.sum(), logits)
        return [energy.detach(), gradient]

    same(work)


@pytest.mark.parametrize(
    ("solver", "prior", "options"),
    [
        ("mean-field", "dense-crf", {"max_steps": 5}),
        ("projected", "convex", {}),
        ("pdhg", "tv", {"max_steps": 30}),
        ("pdhg", "volume", {"max_steps": 30}),
        ("pdhg", "star", {"max_steps": 30}),
        ("dca", "threshold-dynamics", {"max_steps": 20}),
        ("dca", "volume", {"max_steps": 20}),
        ("dca", "volume", {"max_steps": 20, "method": "single-loop"}),
        ("dca", "tv", {"max_steps": 20, "method": "single-loop"}),
    ],
)
def test_solutions(solver, prior, options):
    def work(device) -> list[Tensor]:
        chosen = registry.create("solver", solver, **options)
        entropy = 1.0 if prior == "dense-crf" else 0.5
        found = regloss.solve(term(prior, device), UNARY.to(device), chosen, entropy=entropy)
        return [found.energy, found.probabilities]

    same(work, 1e-3)


@pytest.mark.parametrize("backward", ["implicit", "unrolled"])
@pytest.mark.parametrize("method", ["nested", "single-loop"])
def test_gradients_of_a_layer_of_volumes(backward, method):
    volumes = registry.create("regularizer", "volume", lower=[30.0, 10.0], upper=[55.0, 30.0])
    regularizers = [registry.create("regularizer", "threshold-dynamics", weight=0.3), volumes]

    def work(device) -> list[Tensor]:
        solver = registry.create("solver", "dca", method=method)
        layer = regloss.RegularizedSoftmax(regularizers, solver, 0.5, max_steps=10, tolerance=0.0, backward=backward)
        logits = UNARY.to(device).requires_grad_()
        found = layer(logits, IMAGE.to(device))
        (gradient,) = torch.autograd.grad(found.square().sum(), logits)
        return [found.detach(), gradient]

    same(work, 1e-3)
