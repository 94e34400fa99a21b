"""Entropy: conformance, its range, and its direction."""

import math

import pytest
import torch

from regloss import Batch, Entropy
from regloss.testing import DataTermConformance


class TestEntropy(DataTermConformance):
    uses_labels = False

    def make(self):
        return Entropy()


def test_from_none_to_log_k():
    logits = torch.tensor([[0.0, 0, 0], [1e4, 0, 0], [1.0, 0, 0]], dtype=torch.float64).T.reshape(1, 3, 1, 3)
    batch = Batch(torch.zeros(1, 1, 1, 3), torch.tensor([[[0, 255, 1]]]))
    s = torch.tensor([math.e, 1, 1], dtype=torch.float64)
    s /= s.sum()
    sums, counts = Entropy()(logits, batch)
    assert float(sums) == pytest.approx(math.log(3) - float((s * s.log()).sum()), rel=1e-12)
    assert counts.tolist() == [3]  # labelled or not


def test_descent_makes_the_likely_class_likelier():
    logits = torch.tensor([0.5, 0.0]).reshape(1, 2, 1, 1).requires_grad_()
    Entropy()(logits, Batch(torch.zeros(1, 1, 1, 1), None))[0].sum().backward()
    assert float(logits.grad[0, 0]) < 0 < float(logits.grad[0, 1])
