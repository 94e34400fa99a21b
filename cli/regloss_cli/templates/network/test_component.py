"""The inherited checks, and what is special to this network."""

import pytest
import torch

import regloss
from regloss.testing import NetworkConformance
from regloss_cli.templates.network.component import MyComponent


class TestMyComponent(NetworkConformance):
    def make(self) -> MyComponent:
        return MyComponent(self.in_channels, self.classes, channels=8, layers=3)


def test_it_is_found_by_its_name() -> None:
    assert regloss.get("network", "my-component") is MyComponent


def test_a_pixel_sees_as_far_as_promised() -> None:
    """7 pixels to each side with 3 layers; without normalisation, which looks at the whole image."""
    network = MyComponent(1, 2, channels=4, layers=3)
    convolutions = torch.nn.Sequential(*[layer for layer in network.body if isinstance(layer, torch.nn.Conv2d)])
    image = torch.zeros(1, 1, 25, 25, requires_grad=True)
    (gradient,) = torch.autograd.grad(convolutions(image)[0, :, 12, 12].sum(), image)
    rows = gradient[0, 0].abs().sum(1).nonzero().flatten()
    assert (int(rows[0]), int(rows[-1])) == (12 - 7, 12 + 7)


def test_groups_hold_every_parameter_once() -> None:
    network = MyComponent(3, 2)
    grouped = [id(parameter) for group in network.parameter_groups().values() for parameter in group]
    assert sorted(grouped) == sorted(map(id, network.parameters()))


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(regloss.UsageError, match="channels"):
        MyComponent(3, 2, channels=6)
    with pytest.raises(regloss.UsageError, match="layers"):
        MyComponent(3, 2, layers=0)
    with pytest.raises(regloss.UsageError, match=r"\(B, 3, H, W\)"):
        MyComponent(3, 2)(torch.zeros(1, 1, 8, 8))
