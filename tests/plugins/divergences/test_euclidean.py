"""Euclidean divergence: conformance, and its definition."""

import torch

from regloss import Euclidean
from regloss.numerics import one_hot
from regloss.testing import DivergenceConformance


class TestEuclidean(DivergenceConformance):
    def make(self):
        return Euclidean()


def test_it_is_half_the_squared_distance():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 4, 4, generator=generator, dtype=torch.float64)
    labels = torch.randint(3, (2, 4, 4), generator=generator)
    target = one_hot(labels, 3, torch.float64)
    expected = 0.5 * (target - logits.softmax(1)).square().sum((1, 2, 3))
    torch.testing.assert_close(Euclidean()(labels, logits), expected, rtol=1e-12, atol=0)


def test_it_is_bounded_by_one_a_pixel():
    logits = torch.tensor([[1000.0, 0.0, 0.0]])
    assert Euclidean()(torch.tensor([1]), logits).tolist() == [1.0]
    assert Euclidean()(torch.tensor([0]), logits).tolist() == [0.0]
