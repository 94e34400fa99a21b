"""The inherited checks, and what is special to this solver."""

import pytest
import torch

import regloss
from regloss.numerics import one_hot
from regloss.testing import SolverConformance
from regloss_cli.templates.solver.component import MyComponent


class TestMyComponent(SolverConformance):
    local = True  # which local minimum is found depends on the order of the colours

    def make(self) -> MyComponent:
        return MyComponent()


def test_it_is_found_by_its_name() -> None:
    assert regloss.get("solver", "my-component") is MyComponent


def test_no_change_of_one_pixel_improves_the_solution() -> None:
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, 1, 5, 6, generator=generator, dtype=torch.float64)
    unary = torch.randn(1, 3, 5, 6, generator=generator, dtype=torch.float64)
    term = regloss.GridCRF(weight=0.5).bind(image)
    solution = regloss.solve(term, unary, MyComponent())
    assert solution.status == (regloss.Status.CONVERGED,)
    for place in torch.cartesian_prod(torch.arange(5), torch.arange(6)):
        for label in range(3):
            changed = solution.labels.clone()
            changed[0, place[0], place[1]] = label
            probabilities = one_hot(changed, 3, torch.float64)
            energy = (unary * probabilities).sum() + term.energy(probabilities)
            assert float(energy) >= float(solution.energy) - 1e-9


def test_entropy_is_refused() -> None:
    term = regloss.GridCRF().bind(torch.rand(1, 1, 4, 4))
    with pytest.raises(regloss.UsageError, match="mean-field"):
        regloss.solve(term, torch.zeros(1, 2, 4, 4), MyComponent(), entropy=1.0)


def test_no_steps_are_refused() -> None:
    with pytest.raises(regloss.UsageError, match="max_steps"):
        MyComponent(max_steps=0)
