"""Gradient descent on the regularized loss: conformance, and its formula."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it

from regloss import Batch, CrossEntropy, GradientDescent, GridCRF, Schedule, TotalVariation, UsageError, create
from regloss.testing import OuterLoopConformance


class TestGridCRF(OuterLoopConformance):
    def make(self):
        return GradientDescent(GridCRF(weight=0.4))


class TestSeveral(OuterLoopConformance):
    def make(self):
        return GradientDescent(
            [{"name": "grid-crf", "weight": 0.4, "relaxation": "quadratic"}, "tv"],
            weight_schedule={"start": 0.1, "end": 1.0},
        )


class TestDataTermAlone(OuterLoopConformance):
    def make(self):
        return GradientDescent(data_term={"name": "cross-entropy", "class-weights": [1.0, 2.0, 0.5]})


class TestSeveralDataTerms(OuterLoopConformance):
    def make(self):
        terms = [
            "partial-cross-entropy",
            {"name": "size-bounds", "weight": 0.5, "lower": [0.4, 0, 0]},
            ("entropy", 0.1),
        ]
        return GradientDescent(GridCRF(weight=0.4), data_term=terms)


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
    loss = GradientDescent([crf, TotalVariation(0.2)], weight_schedule=0.5).objective(logits, batch)
    energy = sum(part.bind(batch.image).energy(logits.softmax(1)).sum() for part in (crf, TotalVariation(0.2)))
    expected = F.cross_entropy(logits, batch.labels, ignore_index=255) + 0.5 * energy / (2 * 6 * 7)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)


def test_the_weight_follows_its_schedule():
    logits, batch = example()
    loop = GradientDescent(GridCRF(), weight_schedule=Schedule(0.0, 2.0))
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


def test_a_negative_weight_is_refused():
    with pytest.raises(UsageError, match="weight_schedule"):
        GradientDescent(GridCRF(), weight_schedule={"start": 1.0, "end": -1.0})


def test_dense_crf_preset_is_the_published_loss():
    """weight 2e-9 * -sum over classes of S^T A S on blocks of 2x2 pixels, self-pairs in it, in crops of 513x513.

    On labels that are constant on blocks the self-pairs are a constant, so differences between two labellings compare.
    """
    generator = torch.Generator().manual_seed(0)
    blocks = torch.rand(1, 3, 9, 11, generator=generator, dtype=torch.float64) * 0.3
    regularizer = GradientDescent.preset("dense-crf-scribbles").regularizer

    def pixels(of):
        return of.repeat_interleave(2, -2).repeat_interleave(2, -1)

    def published(soft):
        """At half resolution: bandwidths 50 blocks and 15 bytes."""
        places = torch.cartesian_prod(torch.arange(9.0), torch.arange(11.0)).double()
        colours = 255 * blocks[0].flatten(1).T
        affinity = torch.exp(-(torch.cdist(places, places) ** 2) / (2 * 50**2))
        affinity = affinity * torch.exp(-(torch.cdist(colours, colours) ** 2) / (2 * 15**2))
        flat = soft[0].flatten(1)
        return -2e-9 * float(torch.einsum("kp,pq,kq->", flat, affinity, flat))

    def ours(soft):
        """Per pixel, with the weight for as many pixels as there are here."""
        count = 4 * 9 * 11
        scaled = dataclasses.replace(regularizer, weight=regularizer.weight * count / 513**2, backend="exact")
        return float(scaled.bind(pixels(blocks)).energy(pixels(soft))) / count

    labels = torch.randint(3, (2, 1, 9, 11), generator=generator)
    soft = [F.one_hot(of, 3).movedim(-1, 1).double() for of in labels]
    soft[1][:, :, :5] = torch.tensor([1.0, 0, 0]).reshape(1, 3, 1, 1)  # half of it constant, so that they differ much
    assert ours(soft[0]) - ours(soft[1]) == pytest.approx(published(soft[0]) - published(soft[1]), rel=1e-3)


def test_several_data_terms_are_weighted_means():
    logits, batch = example()
    loop = GradientDescent(data_term=[CrossEntropy(), ("entropy", 0.25)])
    total = loop.objective(logits, batch)
    assert list(loop.parts) == ["data-cross-entropy", "data-entropy"]
    entropy = -(logits.softmax(1) * logits.log_softmax(1)).sum(1).mean()
    assert loop.parts["data-entropy"] == pytest.approx(0.25 * float(entropy))
    torch.testing.assert_close(total, F.cross_entropy(logits, batch.labels, ignore_index=255) + 0.25 * entropy)


def test_its_weight_is_still_read_under_its_former_name():
    """In configurations and tables of earlier versions."""
    schedule = {"start": 0.0, "end": 2.0}
    loop = create("outer-loop", "gradient-descent", regularizer="grid-crf", strength=schedule)
    assert (loop.weight_schedule.start, loop.weight_schedule.end) == (0.0, 2.0)
