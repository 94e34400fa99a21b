"""The inherited checks, and what is special to this layer."""

import pytest
import torch

import regloss
from regloss.testing import LayerConformance
from regloss_cli.templates.layer.component import MyComponent


class TestMyComponent(LayerConformance):
    spatial = (1, 2, 3)

    def make(self) -> MyComponent:
        return MyComponent(weight=1.5, sigma=0.5)


def test_it_is_found_by_its_name() -> None:
    assert regloss.get("layer", "my-component") is MyComponent


def test_many_steps_solve_the_linear_system() -> None:
    """On a row of three pixels of one colour: (1 + weight L) z = o with the Laplacian L of a path."""
    weight, logits = 2.0, torch.tensor([[[1.0, 0.0, 4.0], [0.0, 0.0, 0.0]]], dtype=torch.float64)
    laplacian = torch.tensor([[1.0, -1, 0], [-1, 2, -1], [0, -1, 1]], dtype=torch.float64)
    expected = torch.linalg.solve(torch.eye(3).double() + weight * laplacian, logits[0].T).T.log_softmax(0)
    layer = MyComponent(weight, max_steps=200).double()
    found = layer.log_probabilities(logits, torch.full((1, 1, 3), 0.5, dtype=torch.float64))
    torch.testing.assert_close(found[0], expected, rtol=0, atol=1e-9)


def test_nothing_flows_across_an_edge() -> None:
    logits = torch.tensor([[[3.0, 3.0, -3.0, -3.0], [0.0, 0.0, 0.0, 0.0]]])
    layer = MyComponent(weight=100.0, sigma=0.05, max_steps=50)
    found = layer.log_probabilities(logits, torch.tensor([[[0.0, 0.0, 1.0, 1.0]]]))
    torch.testing.assert_close(found, logits.log_softmax(1), rtol=0, atol=1e-4)


@pytest.mark.parametrize("settings", [{"weight": 0.0}, {"sigma": 25.0}, {"max_steps": 0}])
def test_settings_out_of_range_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(regloss.UsageError, match=next(iter(settings))):
        MyComponent(**settings)  # type: ignore[arg-type]
