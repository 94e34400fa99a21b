"""Boundary loss: conformance, distances by search over all pairs, and what the loss means for labels."""

import math

import pytest
import torch

from regloss import Batch, Boundary, UsageError
from regloss.numerics import one_hot
from regloss.testing import DataTermConformance
from regloss_plugins.data_terms.boundary import signed_distances


class TestBoundary(DataTermConformance):
    def make(self):
        return Boundary()


class TestSomeClasses(DataTermConformance):
    def make(self):
        return Boundary(classes=[0, 2], unit="diagonal")


def example(seed=0, size=(9, 11), classes=3):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (2, *size), generator=generator)
    labels[torch.rand(2, *size, generator=generator) < 0.2] = 255
    return labels


@pytest.mark.parametrize("size", [(9, 11), (4, 5, 6)])
def test_distances_are_those_of_a_search(size):
    labels = example(size=size)
    known = labels != 255
    found = signed_distances(labels, known, [0, 1, 2])
    places = torch.stack(torch.meshgrid(*map(torch.arange, size), indexing="ij"), -1).reshape(-1, len(size)).double()
    apart = torch.cdist(places, places)
    for image in range(2):
        for k in range(3):
            inside, given = (labels[image] == k).flatten(), known[image].flatten()
            expected = torch.zeros(len(places), dtype=torch.float64)
            for p in given.nonzero().flatten().tolist():
                others = given & (inside != inside[p])
                expected[p] = (float(apart[p][others].min()) - 0.5) * (-1 if inside[p] else 1)
            torch.testing.assert_close(found[image, k].flatten(), expected)


def test_excess_over_the_labels_is_the_distance_of_wrong_pixels():
    truth = torch.zeros(1, 8, 9, dtype=torch.int64)
    truth[0, 2:6, 2:6] = 1
    batch = Batch(torch.zeros(1, 1, 8, 9), truth)
    guess = truth.clone()
    guess[0, 3, 6:8], guess[0, 2, 2] = 1, 0  # .5 and 1.5 pixels outside, .5 inside
    values = [float(Boundary()(60 * one_hot(labels, 2, torch.float64), batch)[0]) for labels in (guess, truth)]
    assert values[0] - values[1] == pytest.approx(0.5 + 1.5 + 0.5, abs=1e-9)


def test_diagonal_scales_distances():
    labels, logits = example(), torch.randn(2, 3, 9, 11, generator=torch.Generator().manual_seed(1))
    batch = Batch(torch.zeros(2, 1, 9, 11), labels)
    pixels, diagonal = (Boundary(unit=unit)(logits, batch)[0] for unit in ("pixels", "diagonal"))
    torch.testing.assert_close(diagonal * math.hypot(9, 11), pixels)


def test_a_class_that_is_absent_or_everything_has_no_boundary():
    labels = torch.ones(1, 4, 4, dtype=torch.int64)
    sums, counts = Boundary()(torch.randn(1, 3, 4, 4), Batch(torch.zeros(1, 1, 4, 4), labels))
    assert sums.tolist() == [0]
    assert counts.tolist() == [16]


@pytest.mark.parametrize(("settings", "words"), [({"unit": "mm"}, "unit"), ({"classes": []}, "at least one")])
def test_invalid_settings_are_refused(settings, words):
    with pytest.raises(UsageError, match=words):
        Boundary(**settings)


def test_classes_must_exist():
    batch = Batch(torch.zeros(1, 1, 4, 4), torch.ones(1, 4, 4, dtype=torch.int64))
    with pytest.raises(UsageError, match=r"0\.\.2"):
        Boundary(classes=[3])(torch.zeros(1, 3, 4, 4), batch)
