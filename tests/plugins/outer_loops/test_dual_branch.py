"""Dual branch: conformance, the mixture of two decoders, and their losses."""

import pytest
import torch

from regloss import Batch, DualBranch, UsageError
from regloss.dataset import IGNORE
from regloss.outer_loop import Proposal
from regloss.testing import OuterLoopConformance


class TestDualBranch(OuterLoopConformance):
    def make(self):
        return DualBranch()


class TestWithRegularizer(OuterLoopConformance):
    size = (4, 5, 6)

    def make(self):
        return DualBranch(
            "tv", weight={"start": 0.1, "end": 2.0}, pseudo_label_term={"name": "cross-entropy", "label_smoothing": 0.1}
        )


def example(seed=0, classes=3, size=(6, 7)):
    """Logits of two decoders, and a batch with a few labels and a region of interest."""
    generator = torch.Generator().manual_seed(seed)
    branches = [3 * torch.randn(2, classes, *size, generator=generator, dtype=torch.float64) for _ in range(2)]
    labels = torch.randint(classes, (2, *size), generator=generator)
    labels[torch.rand(2, *size, generator=generator) > 0.2] = IGNORE
    roi = torch.rand(2, *size, generator=generator) > 0.2
    return branches, Batch(torch.rand(2, 1, *size, generator=generator), labels, roi)


def test_pseudo_labels_are_the_argmax_of_a_mixture():
    branches, batch = example()
    first, second = (logits.softmax(1) for logits in branches)
    free = batch.roi & ~batch.labelled
    shares = []
    for seed in range(40):
        torch.manual_seed(seed)
        labels = DualBranch().propose_from(branches, batch).labels
        assert torch.equal(labels[batch.labelled], batch.labels[batch.labelled])
        assert bool((labels[~batch.roi] == IGNORE).all())
        fits = [
            share
            for share in torch.linspace(0, 1, 1001).tolist()
            if torch.equal((share * first + (1 - share) * second).argmax(1)[free], labels[free])
        ]
        shares += [sum(fits) / len(fits)] if fits else []  # of neighbouring mixtures all have the same labels
    assert len(shares) >= 38  # a mixture between two of the grid may be missed
    assert min(shares) < 0.15
    assert max(shares) > 0.85
    assert abs(sum(shares) / len(shares) - 0.5) < 0.15


def test_where_decoders_agree_nothing_is_drawn():
    branches, batch = example()
    torch.manual_seed(0)
    one = DualBranch().propose(branches[0], batch).labels
    both = DualBranch().propose_from([branches[0], branches[0]], batch).labels
    assert torch.equal(one, both)


def test_the_objective_is_cross_entropy_and_dice():
    """By hand, for two pixels with scribbles of four."""
    logits = torch.tensor([[[[2.0, 0.0, -1.0, 1.0]], [[0.0, 1.0, 3.0, 1.5]]]], dtype=torch.float64)
    batch = Batch(torch.zeros(1, 1, 1, 4), torch.tensor([[[0, 255, 1, 255]]]))
    s = logits.softmax(1)[0, :, 0]
    pseudo = torch.tensor([0, 1, 1, 0])
    dice = 0.0
    for label in range(2):
        y = (pseudo == label).double()
        dice += 2 * (s[label] * y).sum() / (s[label].square().sum() + y.sum()) / 2
    expected = -(s[0, 0].log() + s[1, 2].log()) / 2 + 0.5 * (1 - dice)
    loop = DualBranch()
    found = loop.objective(logits, batch, Proposal(pseudo.reshape(1, 1, 4)))
    torch.testing.assert_close(found, expected)
    assert set(loop.parts) == {"data", "pseudo-labels"}


def test_a_negative_weight_is_refused():
    with pytest.raises(UsageError, match="weight must not be negative"):
        DualBranch(weight=-1)
