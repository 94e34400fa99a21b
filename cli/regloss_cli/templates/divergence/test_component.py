"""The inherited checks, and what is special to this divergence."""

import pytest
import torch

import regloss
from regloss.testing import DivergenceConformance
from regloss_cli.templates.divergence.component import MyComponent


class TestMyComponent(DivergenceConformance):
    def make(self) -> MyComponent:
        return MyComponent()


def test_it_is_found_by_its_name() -> None:
    assert regloss.get("divergence", "my-component") is MyComponent


def test_it_is_half_the_squared_distance_of_the_roots() -> None:
    generator = torch.Generator().manual_seed(0)
    target, probabilities = torch.rand(2, 1, 3, 4, 5, generator=generator, dtype=torch.float64).softmax(2)
    expected = (target.sqrt() - probabilities.sqrt()).square().sum() / 2
    assert float(MyComponent()(target, probabilities.log())) == pytest.approx(float(expected))


def test_a_pixel_costs_at_most_one() -> None:
    sure_and_wrong = torch.tensor([[-200.0, 200.0]])
    assert float(MyComponent()(torch.tensor([0]), sure_and_wrong)) == 1
    assert float(MyComponent()(torch.tensor([1]), sure_and_wrong)) == 0
