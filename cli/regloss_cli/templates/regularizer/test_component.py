"""The inherited checks, and what is special to this regularizer."""

import math

import pytest
import torch

import regloss
from regloss.testing import RegularizerConformance
from regloss_cli.templates.regularizer.component import MyComponent


class TestMyComponent(RegularizerConformance):
    nonnegative = True

    def make(self) -> MyComponent:
        return MyComponent(weight=2.0, sigma=0.5)


def test_it_is_found_by_its_name() -> None:
    assert regloss.get("regularizer", "my-component") is MyComponent


def test_a_boundary_costs_less_on_an_edge_of_the_image() -> None:
    """Two rows of four pixels, whose right half is brighter by sigma."""
    image = torch.tensor([0.2, 0.2, 0.5, 0.5], dtype=torch.float64).expand(1, 1, 2, 4)
    term = MyComponent(weight=2.0, sigma=0.3).bind(image)
    for column, expected in ((1, 4.0), (2, 4.0 * math.exp(-0.5))):
        right = (torch.arange(4) >= column).double().expand(2, 4)
        probabilities = torch.stack([1 - right, right]).unsqueeze(0)
        assert float(term.energy(probabilities)) == pytest.approx(expected)
    soft = torch.stack([1 - 0.5 * right, 0.5 * right]).unsqueeze(0)
    assert float(term.energy(soft)) == pytest.approx(expected / 4)  # quadratic


def test_solvers_take_it() -> None:
    """One noisy pixel within a flat image is overruled by its neighbours."""
    unary = torch.zeros(1, 2, 5, 5)
    unary[:, 1] = 0.3
    unary[0, :, 2, 2] = torch.tensor([1.0, 0.0])
    solution = regloss.solve(MyComponent().bind(torch.full((1, 1, 5, 5), 0.5)), unary, "alpha-expansion")
    assert int(solution.labels.sum()) == 0


@pytest.mark.parametrize("sigma", [0.0, -0.1, math.inf, math.nan])
def test_an_invalid_sigma_is_refused(sigma: float) -> None:
    with pytest.raises(regloss.UsageError, match="sigma"):
        MyComponent(sigma=sigma)
