"""Mumford-Shah: conformance, the definition, and what it asks for beside scribbles."""

import pytest
import torch

import regloss
from regloss import Batch, MumfordShah
from regloss.testing import DataTermConformance


class TestMumfordShah(DataTermConformance):
    uses_labels = False

    def make(self):
        return MumfordShah()


def test_is_its_definition():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 4, 5, dtype=torch.float64, generator=generator)
    image = torch.rand(2, 2, 4, 5, dtype=torch.float64, generator=generator)
    roi = torch.rand(2, 4, 5, generator=generator) < 0.7
    sums, counts = MumfordShah()(logits, Batch(image, None, roi))
    s = logits.softmax(1)
    for b in range(2):
        expected = 0.0
        for k in range(3):
            weights, colours = s[b, k][roi[b]], image[b][:, roi[b]]
            mean = (weights * colours).sum(1) / weights.sum()
            expected += float((weights * (colours - mean[:, None]).square()).sum())
        assert float(sums[b]) == pytest.approx(expected, rel=1e-12)
    assert counts.tolist() == roi.flatten(1).sum(1).tolist()


def test_the_gradient_is_that_of_the_whole_expression():
    """The means depend on the probabilities, but are where the loss is least in them."""
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(1, 3, 3, 4, dtype=torch.float64, generator=generator, requires_grad=True)
    image = torch.rand(1, 2, 3, 4, dtype=torch.float64, generator=generator)
    assert torch.autograd.gradcheck(lambda at: MumfordShah()(at, Batch(image, None))[0], logits)


def test_a_click_in_each_half_is_enough():
    image = torch.full((1, 1, 6, 8), 0.3)
    image[..., 4:] = 0.6
    labels = torch.full((1, 6, 8), 255)
    labels[:, 2, 0], labels[:, 2, 7] = 0, 1
    terms = ["partial-cross-entropy", {"name": "mumford-shah", "weight": 20.0}]
    loop = regloss.GradientDescent("tv", data_term=terms)
    logits = torch.zeros(1, 2, 6, 8, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.1)
    for _ in range(60):
        optimizer.zero_grad()
        loop.objective(logits, Batch(image, labels)).backward()
        optimizer.step()
    assert torch.equal(logits.argmax(1), (image[:, 0] > 0.5).long())
