"""The inherited checks, and what is special to this data term."""

import math

import pytest
import torch
from torch.nn.functional import cross_entropy

import regloss
from regloss.testing import DataTermConformance
from regloss_cli.templates.data_term.component import MyComponent


class TestMyComponent(DataTermConformance):
    def make(self) -> MyComponent:
        return MyComponent(gamma=1.5)


def test_it_is_found_by_its_name() -> None:
    assert regloss.get("data-term", "my-component") is MyComponent


def test_without_focus_it_is_cross_entropy() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 3, 4, 5, generator=generator)
    labels = torch.randint(3, (1, 4, 5), generator=generator)
    labels[0, 0] = 255
    sums, counts = MyComponent(gamma=0.0)(logits, regloss.Batch(torch.zeros(1, 1, 4, 5), labels))
    expected = cross_entropy(logits, labels, ignore_index=255)
    torch.testing.assert_close(sums / counts, expected.reshape(1))


def test_a_pixel_that_is_right_hardly_counts() -> None:
    """S_y = 0.9: a hundredth of its cross entropy."""
    logits = torch.tensor([0.9, 0.1]).log().reshape(1, 2, 1, 1)
    batch = regloss.Batch(torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 1, dtype=torch.int64))
    assert float(MyComponent(gamma=2.0)(logits, batch)[0]) == pytest.approx(-0.01 * math.log(0.9), rel=1e-4)


@pytest.mark.parametrize("gamma", [-1.0, 0.5, math.inf, math.nan])
def test_an_invalid_gamma_is_refused(gamma: float) -> None:
    with pytest.raises(regloss.UsageError, match="gamma"):
        MyComponent(gamma=gamma)
