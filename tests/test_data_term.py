"""Several data terms as one: weights, names, networks of their own, and lists that cannot be meant."""

import pytest
import torch
from torch import nn

from regloss import CrossEntropy, DataTerm, Entropy, UsageError
from regloss.data_term import DataTerms, combine_data_terms


class Trained(DataTerm):
    needs_labels = False

    def __init__(self):
        self.network = nn.Conv2d(1, 1, 1)

    def __call__(self, logits, batch):
        return logits.flatten(1).sum(1), torch.ones(len(logits))

    def modules(self):
        return {"encoder": self.network}


def test_one_without_a_weight_is_itself():
    term = CrossEntropy()
    assert combine_data_terms(term) is term
    assert combine_data_terms([term]) is term


def test_weights_names_and_order():
    found = combine_data_terms(
        [CrossEntropy(), (CrossEntropy(label_smoothing=0.1), 2), {"name": "entropy", "weight": 0}, Trained()]
    )
    assert isinstance(found, DataTerms)
    assert [part.name for part in found.parts] == ["cross-entropy-0", "cross-entropy-1", "entropy", "Trained"]
    assert [part.weight for part in found.parts] == [1.0, 2.0, 0.0, 1.0]
    assert found.parts[1].term.label_smoothing == 0.1
    assert [part.weight for part in combine_data_terms({"name": "entropy", "weight": 3.0}).parts] == [3.0]


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
def test_what_cannot_be_meant(given, words):
    with pytest.raises(UsageError, match=words):
        combine_data_terms(given)
