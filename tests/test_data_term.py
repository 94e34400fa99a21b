"""Several data terms as one: weights, names, networks of their own, invalid lists."""

import pytest
import torch
from torch import nn

from regloss import Batch, CrossEntropy, DataTerm, Entropy, GradientDescent, UsageError
from regloss.data_term import WeightedSum, combine_data_terms


class Trained(DataTerm):
    needs_labels = False

    def __init__(self):
        self.network = nn.Conv2d(1, 1, 1)

    def __call__(self, logits, batch):
        return logits.flatten(1).sum(1), torch.ones(len(logits))

    def modules(self):
        return {"encoder": self.network}


class Mapped(Trained):
    def maps(self, image):
        return {"brightness": image.mean(1)}


def test_one_without_a_weight_is_itself():
    term = CrossEntropy()
    assert combine_data_terms(term) is term
    assert combine_data_terms([term]) is term


def test_weights_names_and_order():
    found = combine_data_terms(
        [CrossEntropy(), (CrossEntropy(label_smoothing=0.1), 2), {"name": "entropy", "weight": 0}, Trained()]
    )
    assert isinstance(found, WeightedSum)
    assert list(found.terms) == ["cross-entropy-0", "cross-entropy-1", "entropy", "Trained"]
    assert found.weights == {"cross-entropy-0": 1.0, "cross-entropy-1": 2.0, "entropy": 0.0, "Trained": 1.0}
    assert found.terms["cross-entropy-1"].label_smoothing == 0.1
    assert combine_data_terms({"name": "entropy", "weight": 3.0}).weights == {"entropy": 3.0}


def test_networks_of_the_parts():
    alone = Trained()
    assert combine_data_terms([(alone, 2.0)]).modules() == {"encoder": alone.network}
    both = combine_data_terms([alone, "entropy"])
    assert both.modules() == {"Trained-encoder": alone.network}
    assert combine_data_terms(["cross-entropy", "entropy"]).modules() == {}


def test_labels_are_needed_if_one_part_needs_them():
    assert combine_data_terms(["cross-entropy", "entropy"]).needs_labels
    assert not combine_data_terms([Entropy(), Trained()]).needs_labels


def test_a_table_is_not_changed():
    table = {"name": "entropy", "weight": 0.5}
    combine_data_terms([table])
    assert table == {"name": "entropy", "weight": 0.5}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([], "empty"),
        ([("entropy", -1.0)], "weight of a data term"),
        ([("entropy", float("nan"))], "weight of a data term"),
        ([{"name": "entropy", "weight": "1"}], "weight of a data term"),
        ([{"weight": 1.0}], "needs a name"),
        ([3], "Expected a data-term"),
        (None, "Expected a data-term"),
    ],
)
def test_invalid_lists(given, words):
    with pytest.raises(UsageError, match=words):
        combine_data_terms(given)


def example(*labelled):
    """Logits and a batch with these numbers of labelled pixels, of 12, an image."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(len(labelled), 3, 3, 4, generator=generator, dtype=torch.float64)
    labels = torch.full((len(labelled), 12), 255)
    for image, count in enumerate(labelled):
        labels[image, :count] = torch.arange(count) % 3
    return logits, Batch(torch.zeros(len(labelled), 1, 3, 4), labels.reshape(-1, 3, 4))


def test_a_sum_of_data_terms_is_the_weighted_sum_of_their_means():
    """By the loop, term by term, and by its own sums and counts; each term is divided by its own count."""
    logits, batch = example(2, 5)
    both = combine_data_terms(["cross-entropy", {"name": "entropy", "weight": 0.3}])
    log_probabilities = logits.log_softmax(1)
    labelled = torch.nn.functional.cross_entropy(logits, batch.labels, ignore_index=255)
    entropy = -(log_probabilities.exp() * log_probabilities).sum(1).mean()
    loop = GradientDescent(data_term=both)
    objective = loop.objective(logits, batch)
    torch.testing.assert_close(objective, labelled + 0.3 * entropy)
    assert loop.parts == pytest.approx({"data-cross-entropy": float(labelled), "data-entropy": 0.3 * float(entropy)})
    sums, counts = both(logits, batch)
    assert counts.tolist() == [14, 17]
    torch.testing.assert_close(sums.sum() / counts.sum(), objective)


def test_a_sum_of_data_terms_where_nothing_is_labelled():
    logits, batch = example(0, 0)
    sums, counts = combine_data_terms(["cross-entropy", ("collision-cross-entropy", 2.0)])(
        logits.requires_grad_(), batch
    )
    assert (sums.tolist(), counts.tolist()) == ([0, 0], [0, 0])
    assert sums.requires_grad


def test_a_sum_goes_into_a_sum():
    """Weights multiply, and the means stay those of the whole sum."""
    logits, batch = example(2, 5)
    inner = combine_data_terms(["cross-entropy", ("entropy", 0.3)])
    outer = combine_data_terms([(inner, 0.5), "cross-entropy"])
    loop = GradientDescent(data_term=outer)
    alone = GradientDescent(data_term="cross-entropy").objective(logits, batch)
    expected = 0.5 * GradientDescent(data_term=inner).objective(logits, batch) + alone
    torch.testing.assert_close(loop.objective(logits, batch), expected)


def test_maps_of_the_terms_are_named_like_their_networks():
    image = torch.rand(1, 3, 2, 2)
    assert torch.equal(combine_data_terms([(Mapped(), 2.0)]).maps(image)["brightness"], image.mean(1))
    assert list(combine_data_terms([Mapped(), "entropy"]).maps(image)) == ["Mapped-brightness"]
