"""Collision cross entropy: conformance, cross entropy as its special case, bounds, and extreme logits."""

import math

import pytest
import torch

from regloss import Batch, CollisionCrossEntropy, CrossEntropy, UsageError
from regloss.testing import DataTermConformance
from regloss_plugins.data_terms.collision_cross_entropy import collision_cross_entropy


class TestCollisionCrossEntropy(DataTermConformance):
    def make(self):
        return CollisionCrossEntropy()


class TestSmoothed(DataTermConformance):
    def make(self):
        return CollisionCrossEntropy(class_weights=[0.2, 1.0, 3.0], label_smoothing=0.3)


def example():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 5, 5, generator=generator, dtype=torch.float64)
    labels = torch.randint(3, (2, 5, 5), generator=generator)
    labels[:, 2:] = 255
    return logits, Batch(torch.rand(2, 1, 5, 5), labels)


@pytest.mark.parametrize("weights", [None, [0.5, 2.0, 1.0]])
def test_without_smoothing_it_is_cross_entropy(weights):
    logits, batch = example()
    for value, expected in zip(
        CollisionCrossEntropy(weights)(logits, batch), CrossEntropy(weights)(logits, batch), strict=True
    ):
        torch.testing.assert_close(value, expected, rtol=1e-12, atol=0)


def test_smoothed_labels_by_the_formula():
    logits, batch = example()
    sums, counts = CollisionCrossEntropy(label_smoothing=0.3)(logits, batch)
    for image in range(2):
        total = 0.0
        for row, column in (batch.labels[image] != 255).nonzero().tolist():
            s = logits[image, :, row, column].softmax(0)
            total -= math.log(0.7 * float(s[batch.labels[image, row, column]]) + 0.1)
        assert float(sums[image]) == pytest.approx(total, rel=1e-12)
    assert counts.tolist() == [10, 10]


def test_uniform_labels_cost_the_same_whatever_the_prediction_is():
    logits, _ = example()
    values = collision_cross_entropy(torch.full_like(logits, 1 / 3), logits.log_softmax(1))
    torch.testing.assert_close(values, torch.full_like(values, math.log(3)), rtol=1e-12, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_logits_stay_finite(dtype):
    """The prediction of a sure network: one-hot labels elsewhere cost what log-softmax says, up to the cut."""
    logits = torch.tensor([[[[60.0, 1e4]], [[-20.0, -1e4]]]], dtype=dtype, requires_grad=True)
    soft = torch.tensor([[[[0.0, 0.0]], [[1.0, 1.0]]]], dtype=dtype)
    values = collision_cross_entropy(soft, logits.log_softmax(1))
    assert float(values.detach()[0, 0, 0]) == pytest.approx(80, rel=1e-6)
    assert 80 < float(values.detach()[0, 0, 1]) == pytest.approx(-math.log(torch.finfo(dtype).tiny), rel=1e-6)
    values.sum().backward()
    assert bool(logits.grad.isfinite().all())
    assert logits.grad[0, :, 0, 0].tolist() == pytest.approx([1, -1])


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"class_weights": [1.0, 0.0]}, "positive"), ({"label_smoothing": 1.0}, "label_smoothing")],
)
def test_invalid_settings_are_refused(settings, words):
    with pytest.raises(UsageError, match=words):
        CollisionCrossEntropy(**settings)
