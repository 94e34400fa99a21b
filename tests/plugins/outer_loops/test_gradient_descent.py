"""Gradient descent on the regularized loss: conformance, and its formula."""

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it

from regloss import Batch, CrossEntropy, GradientDescent, GridCRF, Schedule, TotalVariation, UsageError
from regloss.testing import OuterLoopConformance


class TestGridCRF(OuterLoopConformance):
    def make(self):
        return GradientDescent(GridCRF(weight=0.4))


class TestSeveral(OuterLoopConformance):
    def make(self):
        return GradientDescent(
            [{"name": "grid-crf", "weight": 0.4, "relaxation": "quadratic"}, "tv"], strength={"start": 0.1, "end": 1.0}
        )


class TestDataTermAlone(OuterLoopConformance):
    def make(self):
        return GradientDescent(data_term={"name": "cross-entropy", "class-weights": [1.0, 2.0, 0.5]})


class TestVolumes(OuterLoopConformance):
    size = (4, 5, 6)

    def make(self):
        return GradientDescent(GridCRF(connectivity=6, relaxation="total-variation"))


def example(classes=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, classes, 6, 7, generator=generator, dtype=torch.float64)
    labels = torch.randint(classes, (2, 6, 7), generator=generator)
    labels[torch.rand(2, 6, 7, generator=generator) < 0.7] = 255
    return logits, Batch(torch.rand(2, 3, 6, 7, generator=generator, dtype=torch.float64), labels)


def test_objective_is_mean_cross_entropy_plus_energy_per_pixel():
    logits, batch = example()
    crf = GridCRF(weight=0.7)
    loss = GradientDescent([crf, TotalVariation(0.2)], strength=0.5).objective(logits, batch)
    energy = sum(part.bind(batch.image).energy(logits.softmax(1)).sum() for part in (crf, TotalVariation(0.2)))
    expected = F.cross_entropy(logits, batch.labels, ignore_index=255) + 0.5 * energy / (2 * 6 * 7)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)


def test_strength_follows_its_schedule():
    logits, batch = example()
    loop = GradientDescent(GridCRF(), strength=Schedule(0.0, 2.0))
    loop.objective(logits, batch)
    assert "regularizer" not in loop.parts
    found = []
    for progress in (0.5, 1.0):
        loop.set_progress(progress)
        loop.objective(logits, batch)
        found.append(loop.parts["regularizer"])
    assert found[1] == pytest.approx(2 * found[0], rel=1e-6)


def test_dense_labels_and_no_regularizer_are_plain_training():
    logits, batch = example()
    loop = GradientDescent(data_term=CrossEntropy())
    torch.testing.assert_close(loop.objective(logits, batch), F.cross_entropy(logits, batch.labels, ignore_index=255))
    assert list(loop.parts) == ["data"]


def test_negative_strength_is_refused():
    with pytest.raises(UsageError, match="strength"):
        GradientDescent(GridCRF(), strength={"start": 1.0, "end": -1.0})
