"""The inherited checks, and what is special to this region force."""

import math

import pytest
import torch

import regloss
from regloss.testing import RegionForceConformance
from regloss_cli.templates.region_force.component import MyComponent


class TestMyComponent(RegionForceConformance):
    def make(self) -> MyComponent:
        return MyComponent(min_scale=0.02)


def test_it_is_found_by_its_name() -> None:
    assert regloss.get("region-force", "my-component") is MyComponent


def test_medians_and_mean_distances_by_hand() -> None:
    """A speck of white in the dark phase does not move its median."""
    image = torch.tensor([[[0.1, 0.1, 0.2, 1.0, 0.8, 0.8]]])
    labels = torch.tensor([[[1.0, 1, 1, 1, 0, 0], [0, 0, 0, 0, 1, 1]]])
    force = MyComponent(min_scale=0.05)
    found = force.fit(image, labels)
    assert found.median.flatten().tolist() == pytest.approx([0.1, 0.8])
    assert found.scale.flatten().tolist() == pytest.approx([(0.1 + 0.9) / 4, 0.05])
    cost = force.unary(image, found)[0, 1, 0]
    assert float(cost) == pytest.approx(0.7 / 0.05 + math.log(0.1), rel=1e-5)


@pytest.mark.parametrize("bound", [0.0, -1.0, math.inf, math.nan])
def test_an_invalid_bound_is_refused(bound: float) -> None:
    with pytest.raises(regloss.UsageError, match="min_scale"):
        MyComponent(min_scale=bound)
