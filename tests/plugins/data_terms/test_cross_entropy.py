"""Cross entropy and partial cross entropy: conformance, and agreement with torch's own mean."""

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it

from regloss import Batch, CrossEntropy, PartialCrossEntropy, UsageError
from regloss.testing import DataTermConformance


class TestCrossEntropy(DataTermConformance):
    def make(self):
        return CrossEntropy()


class TestPartialCrossEntropy(DataTermConformance):
    def make(self):
        return PartialCrossEntropy()


class TestWeighted(DataTermConformance):
    def make(self):
        return CrossEntropy(class_weights=[0.2, 1.0, 3.0])


class TestSmoothed(DataTermConformance):
    def make(self):
        return PartialCrossEntropy(class_weights=[0.2, 1.0, 3.0], label_smoothing=0.1)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weights", [None, [0.5, 2.0, 1.0]])
@pytest.mark.parametrize("term", [CrossEntropy, PartialCrossEntropy])
def test_sum_over_count_is_the_mean_of_torch(term, weights, smoothing):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 5, 5, generator=generator, dtype=torch.float64)
    labels = torch.randint(3, (2, 5, 5), generator=generator)
    labels[:, 2:] = 255
    sums, counts = term(class_weights=weights, label_smoothing=smoothing)(logits, Batch(torch.rand(2, 1, 5, 5), labels))
    weight = None if weights is None else torch.tensor(weights, dtype=torch.float64)
    expected = F.cross_entropy(logits, labels, weight=weight, ignore_index=255, label_smoothing=smoothing)
    torch.testing.assert_close(sums.sum() / counts.sum(), expected, rtol=1e-12, atol=0)


def test_bytes_are_labels_too():
    """Label maps are stored as uint8."""
    labels = torch.full((1, 2, 2), 255, dtype=torch.uint8)
    labels[0, 0, 0] = 1
    sums, counts = PartialCrossEntropy()(torch.zeros(1, 4, 2, 2), Batch(torch.zeros(1, 1, 2, 2), labels))
    assert sums.exp().tolist() == pytest.approx([4])
    assert counts.tolist() == [1]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"class_weights": [1.0, 0.0]}, "positive"),
        ({"class_weights": [1.0, float("inf")]}, "positive"),
        ({"label_smoothing": 1.0}, "label_smoothing"),
        ({"label_smoothing": -0.1}, "label_smoothing"),
    ],
)
def test_invalid_settings_are_refused(settings, words):
    with pytest.raises(UsageError, match=words):
        CrossEntropy(**settings)


def test_weights_must_fit_the_classes():
    batch = Batch(torch.zeros(1, 1, 2, 2), torch.zeros(1, 2, 2, dtype=torch.int64))
    with pytest.raises(UsageError, match=r"2 class weights .* K = 3"):
        CrossEntropy(class_weights=[1.0, 2.0])(torch.zeros(1, 3, 2, 2), batch)
