"""What all divergences share: shapes, ignored pixels, refusals."""

import pytest
import torch

from regloss import Divergence, UsageError
from regloss.divergence import gather_labels, log_softmax


class Counting(Divergence):
    """1 a pixel for labels, the number of classes for probabilities; notes what it was given."""

    def of_labels(self, labels, log_probabilities, seeds):
        self.given = labels, log_probabilities, seeds
        return torch.ones(labels.shape, dtype=log_probabilities.dtype)

    def of_probabilities(self, target, log_probabilities, seeds):
        self.given = target, log_probabilities, seeds
        return torch.full_like(target[:, 0], target.shape[1])

    def unary(self, logits):
        return torch.ones_like(logits)


def test_pixels_are_summed_without_the_ignored():
    labels = torch.tensor([[[0, 1], [255, 2]], [[255, 255], [255, 255]]])
    value = Counting()(labels, torch.zeros(2, 3, 2, 2))
    assert value.tolist() == [3, 0]


def test_weights_may_be_any():
    labels = torch.zeros(1, 2, 2, dtype=torch.int64)
    weight = torch.tensor([[[0.5, 2.0], [0.0, 0.25]]])
    assert Counting()(labels, torch.zeros(1, 3, 2, 2), weight=weight).tolist() == [2.75]


def test_labels_arrive_as_indices_that_can_be_gathered():
    """255 never reaches a plugin, and bytes arrive as int64."""
    divergence = Counting()
    divergence(torch.tensor([[[0, 255]]], dtype=torch.uint8), torch.zeros(1, 3, 1, 2))
    labels, _, _ = divergence.given
    assert labels.dtype == torch.int64
    assert labels.tolist() == [[[0, 0]]]


def test_soft_targets_take_the_precision_of_the_logits():
    divergence = Counting()
    divergence(torch.full((1, 3, 1, 2), 1 / 3), torch.zeros(1, 3, 1, 2, dtype=torch.float64))
    assert divergence.given[0].dtype == torch.float64
    divergence(torch.full((1, 3, 1, 2), 1 / 3), torch.zeros(1, 3, 1, 2, dtype=torch.bfloat16))
    assert divergence.given[1].dtype == torch.float32


def test_classification_needs_no_spatial_axes():
    assert Counting()(torch.tensor([0, 255, 2]), torch.zeros(3, 4)).tolist() == [1, 0, 1]


@pytest.mark.parametrize(
    ("target", "logits", "more", "words"),
    [
        (torch.tensor([0]), torch.zeros(1, 1), {}, "K = 1 class"),
        (torch.tensor([0]), torch.zeros(1), {}, r"\(B, K\) or \(B, K, \*S\)"),
        (torch.tensor([0]), torch.zeros(1, 3, dtype=torch.int64), {}, "floating-point"),
        (torch.tensor([3]), torch.zeros(1, 3), {}, r"0 to 2 \(K = 3\), or 255.*\[3\]"),
        (torch.tensor([-1]), torch.zeros(1, 3), {}, r"\[-1\]"),
        (torch.tensor([[0]]), torch.zeros(1, 3), {}, r"\(1,\).*\(1, 1\)"),
        (torch.tensor([True]), torch.zeros(1, 3), {}, "integers"),
        (torch.tensor([0.0]), torch.zeros(1, 3), {}, "Labels must be integers"),
        (torch.tensor([0], dtype=torch.uint16), torch.zeros(1, 3), {}, "got torch.uint16"),
        (torch.tensor([0]), torch.zeros(1, 3), {"weight": torch.ones(2)}, r"weight.*\(1,\)"),
        (torch.tensor([0]), torch.zeros(1, 3), {"seeds": torch.ones(1, 3, dtype=torch.bool)}, r"seeds.*\(1,\)"),
        (torch.tensor([0]), torch.zeros(1, 3), {"seeds": torch.ones(1)}, "seeds must be bool"),
    ],
)
def test_bad_input_is_refused(target, logits, more, words):
    with pytest.raises(UsageError, match=words):
        Counting()(target, logits, **more)


def test_log_softmax_is_computed_in_float32_at_least():
    logits = torch.tensor([[100.0, 0.0, -100.0]], dtype=torch.bfloat16)
    assert log_softmax(logits).dtype == torch.float32
    assert log_softmax(logits).tolist() == [[0, -100, -200]]
    assert log_softmax(logits.double()).dtype == torch.float64


def test_gather_labels():
    values = torch.arange(12.0).reshape(1, 3, 2, 2)
    labels = torch.tensor([[[0, 1], [2, 0]]])
    assert gather_labels(values, labels).tolist() == [[[0, 5], [10, 3]]]
