"""The inherited checks, and what is special to this segmenter."""

import pytest
import torch

import regloss
from regloss.testing import SegmenterConformance
from regloss_cli.templates.segmenter.component import MyComponent


class TestMyComponent(SegmenterConformance):
    def make(self) -> MyComponent:
        return MyComponent(radius=1)


def test_it_is_found_by_its_name() -> None:
    assert regloss.get("segmenter", "my-component") is MyComponent


def test_labels_and_energy_by_hand() -> None:
    """Each pixel for itself: means of .1 and .8, from which .1 and .2 are off."""
    image = torch.tensor([[[0.0, 0.2, 0.6, 1.0]]])
    found = MyComponent(radius=0)(image, phases=2)
    assert found.labels.tolist() == [[0, 0, 1, 1]]
    assert found.energy == pytest.approx(2 * 0.1**2 + 2 * 0.2**2)
    assert found.status is regloss.Status.CONVERGED


def test_a_speck_goes_with_its_neighbours() -> None:
    image = torch.zeros(1, 1, 9, 9)
    image[..., 5:] = 1.0
    image[0, 0, 4, 1] = 1.0
    start = (image[:, 0] > 0.5).long()
    assert int(MyComponent(radius=0)(image, start=start).labels[0, 4, 1]) == 1
    assert int(MyComponent(radius=1)(image, start=start).labels[0, 4, 1]) == 0


@pytest.mark.parametrize("settings", [{"radius": -1}, {"max_rounds": 0}])
def test_settings_out_of_range_are_refused(settings: dict[str, int]) -> None:
    with pytest.raises(regloss.UsageError, match=next(iter(settings))):
        MyComponent(**settings)
