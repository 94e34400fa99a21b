"""Mean teacher: conformance, the average, and where it counts."""

import math

import pytest
import torch
from torch import nn

from regloss import Batch, MeanTeacher, UsageError
from regloss.dataset import IGNORE
from regloss.testing import OuterLoopConformance
from regloss_plugins.outer_loops.mean_teacher import Teacher


class TestMeanTeacher(OuterLoopConformance):
    def make(self):
        return MeanTeacher()


class TestWithRegularizer(OuterLoopConformance):
    size = (4, 5, 6)

    def make(self):
        return MeanTeacher(["grid-crf", {"name": "tv", "weight": 0.1}], weight=0.3)


class OfPixels(nn.Module):
    """Sees a pixel at a time, so that its predictions turn with the image."""

    def __init__(self, classes=3, dropout=0.0):
        super().__init__()
        self.convolution = nn.Conv2d(1, classes, 1)
        self.dropout = nn.Dropout(dropout)

    def forward(self, image, roi=None):
        return self.dropout(self.convolution(image))


def attached(**settings):
    torch.manual_seed(1)
    network = OfPixels(dropout=settings.pop("dropout", 0.0)).double()
    loop = MeanTeacher(**settings)
    loop.attach(network)
    return loop, network


def batch(roi=None, size=(6, 7)):
    generator = torch.Generator().manual_seed(2)
    labels = torch.randint(3, (2, *size), generator=generator)
    labels[torch.rand(2, *size, generator=generator) > 0.3] = IGNORE
    return Batch(torch.rand(2, 1, *size, generator=generator, dtype=torch.float64), labels, roi)


def test_a_copy_of_the_network_agrees_with_it_however_the_image_is_turned():
    loop, network = attached(noise=0.0, threshold=1.1)
    for _ in range(8):
        disagreement, certain = loop.disagreement(network(batch().image), batch())
        assert float(disagreement.detach()) < 1e-20
        assert float(certain) == 1
    loop, network = attached(noise=0.1, threshold=1.1)
    assert float(loop.disagreement(network(batch().image), batch())[0].detach()) > 1e-6


def test_disagreement_by_hand():
    """Without noise and turns: half the mean of |S - Q|^2 over pixels in the region where the entropy is small."""
    generator = torch.Generator().manual_seed(3)
    some = batch(torch.rand(2, 6, 7, generator=generator) > 0.3)
    loop, network = attached(noise=0.0, turn=False, threshold=0.75)
    with torch.no_grad():
        network.convolution.weight *= 4
        q = network(some.image).softmax(1)
    loop.attach(network)
    logits = torch.randn(2, 3, 6, 7, generator=generator, dtype=torch.float64)
    total, count = 0.0, 0
    for image in range(2):
        for row in range(6):
            for column in range(7):
                p = q[image, :, row, column]
                if some.roi[image, row, column] and float(-(p * p.log()).sum()) < 0.75 * math.log(3):
                    total += float((logits.softmax(1)[image, :, row, column] - p).square().sum()) / 2
                    count += 1
    assert 0 < count < int(some.roi.sum())
    disagreement, certain = loop.disagreement(logits, some)
    assert float(disagreement) == pytest.approx(total / count)
    assert float(certain) == pytest.approx(count / int(some.roi.sum()))


def test_where_nothing_is_certain_nothing_is_asked():
    loop, network = attached(threshold=1e-9)
    logits = network(batch().image)
    disagreement, certain = loop.disagreement(logits, batch())
    disagreement.backward()
    assert float(disagreement.detach()) == float(certain) == 0
    assert float(network.convolution.weight.grad.abs().max()) == 0


def test_dropout_and_noise_make_it_doubt():
    """The mean of differing predictions has more entropy than each of them."""
    entropies = {}
    for dropout in (0.0, 0.5):
        loop, network = attached(noise=0.0, turn=False, samples=32, dropout=dropout)
        with torch.no_grad():
            network.convolution.weight *= 20
        loop.attach(network)
        torch.manual_seed(0)
        loop.threshold = type(loop.threshold)(0.5, 0.5)
        entropies[dropout] = float(loop.disagreement(network.eval()(batch().image), batch())[1])
        network.train()
    assert entropies[0.5] < 0.5 * entropies[0.0]


def test_the_teacher_is_a_moving_average():
    network = nn.Conv2d(1, 1, 1, bias=False)
    teacher = Teacher(network)
    values = [0.5, -1.0, 2.0, 4.0, 3.0]
    expected, own = 0.0, 0.0
    for step, value in enumerate(values):
        nn.init.constant_(network.weight, value)
        teacher.follow(network, 0.6)
        decay = min(1 - 1 / (step + 1), 0.6)  # the plain mean of the first ones
        own = decay * own + (1 - decay) * value
        assert float(teacher.network.weight) == pytest.approx(own, rel=1e-6)
        expected = sum(values[: step + 1]) / (step + 1)
        if step < 2:
            assert own == pytest.approx(expected)
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert network.weight.requires_grad


def test_it_follows_after_the_update():
    loop, network = attached(samples=1, decay=0.0)
    before = loop.teacher.network.convolution.bias.clone()
    updates = loop.updates(network(batch().image), batch(), None, network)
    update = next(updates)
    assert update.networks == ("network",)
    assert set(loop.parts) == {"data", "teacher"}
    with torch.no_grad():
        network.convolution.bias += 1
    assert torch.equal(loop.teacher.network.convolution.bias, before)
    assert next(updates, None) is None
    assert torch.equal(loop.teacher.network.convolution.bias, before + 1)


def test_bad_settings_are_refused():
    for settings, words in (
        ({"weight": -1.0}, "weight must not be negative"),
        ({"threshold": 0.0}, "threshold must be positive"),
        ({"decay": 1.0}, "decay must lie in"),
        ({"samples": 0}, "samples"),
        ({"noise": -0.1}, "noise"),
    ):
        with pytest.raises(UsageError, match=words):
            MeanTeacher(**settings)
    logits = torch.zeros(2, 3, 6, 7)
    with pytest.raises(UsageError, match=r"call loop\.attach"):
        next(MeanTeacher().updates(logits, batch(), None, OfPixels()))
