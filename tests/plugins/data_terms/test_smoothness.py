"""Smoothness loss: conformance, its definition pixel by pixel, and which boundaries it takes away."""

import numpy as np
import pytest
import torch

from regloss import Batch, Smoothness
from regloss.numerics import one_hot
from regloss.testing import DataTermConformance


class TestSmoothness(DataTermConformance):
    def make(self):
        return Smoothness()


@pytest.mark.parametrize("spacing", [None, (2.0, 0.5)])
def test_is_its_definition(spacing):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 4, 5, dtype=torch.float64, generator=generator)
    labels = torch.randint(3, (2, 4, 5), generator=generator)
    labels[torch.rand(2, 4, 5, generator=generator) < 0.2] = 255
    roi = torch.rand(2, 4, 5, generator=generator) < 0.9
    sums, counts = Smoothness()(logits, Batch(torch.zeros(2, 1, 4, 5), labels, roi, spacing=spacing))
    steps = spacing or (1.0, 1.0)
    s = logits.softmax(1).numpy()
    at_boundary = 0
    for b in range(2):
        known = ((labels[b] != 255) & roi[b]).numpy()
        expected = 0.0
        for place in map(tuple, np.argwhere(known)):
            nexts = [(axis, tuple(np.add(place, np.eye(2, dtype=int)[axis]))) for axis in range(2)]
            nexts = [(axis, q) for axis, q in nexts if max(np.subtract(q, (3, 4))) <= 0 and known[q]]
            if any(labels[b][q] != labels[b][place] for _, q in nexts):
                at_boundary += 1
                continue
            for k in range(3):
                expected += np.sqrt(sum(((s[(b, k, *q)] - s[(b, k, *place)]) / steps[axis]) ** 2 for axis, q in nexts))
        assert float(sums[b]) == pytest.approx(expected, rel=1e-12)
    assert at_boundary > 3
    assert counts.tolist() == ((labels != 255) & roi).flatten(1).sum(1).tolist()


def test_labels_cost_nothing_and_holes_do():
    truth = torch.zeros(1, 8, 9, dtype=torch.int64)
    truth[0, 2:6, 2:6] = 1
    hole = truth.clone()
    hole[0, 3, 3] = 0
    batch = Batch(torch.zeros(1, 1, 8, 9), truth)
    values = [float(Smoothness()(60 * one_hot(labels, 2, torch.float64), batch)[0]) for labels in (truth, hole)]
    # Both classes jump: above the hole, left of it, and in both directions at the hole itself.
    assert values == pytest.approx([0.0, 2 * (1 + 1 + 2**0.5)], abs=1e-9)
