"""Tree energy: its tree against scipy's, its filter against all paths, conformance, derivatives."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import minimum_spanning_tree

from regloss import TreeEnergy, UsageError
from regloss.testing import RegularizerConformance


def affinity(image, sigma):
    """(N, N) weights of one image (C, *S): the path between every two pixels of the tree that scipy finds."""
    size = image.shape[1:]
    places = list(itertools.product(*map(range, size)))
    number = {place: index for index, place in enumerate(places)}
    rows, columns, costs = [], [], []
    for place in places:
        for axis in range(len(size)):
            other = tuple(x + (a == axis) for a, x in enumerate(place))
            if other in number:
                rows.append(number[place])
                columns.append(number[other])
                costs.append(float((image[(..., *place)] - image[(..., *other)]).square().sum()) / (2 * sigma**2))
    tree = minimum_spanning_tree(coo_array((costs, (rows, columns)), shape=(len(places),) * 2)).tocoo()
    neighbours = {index: [] for index in range(len(places))}
    for a, b, cost in zip(*tree.coords, tree.data, strict=True):
        neighbours[a].append((b, cost))
        neighbours[b].append((a, cost))
    weights = torch.zeros(len(places), len(places), dtype=torch.float64)
    for start in neighbours:
        stack = [(start, -1, 0.0)]
        while stack:
            pixel, before, cost = stack.pop()
            weights[start, pixel] = math.exp(-cost)
            stack += [(other, pixel, cost + step) for other, step in neighbours[pixel] if other != before]
    return weights


class TreeConformance(RegularizerConformance):
    nonnegative = True
    spatial = (1, 2, 3)

    def discrete_energy(self, image, labels):
        prior, energies = self.make(), []
        for one, given in zip(image, labels.flatten(1), strict=True):
            weights = affinity(one, prior.sigma_rgb)
            weights = weights / weights.sum(1, keepdim=True)
            energies.append(prior.weight * weights[given[:, None] != given[None, :]].sum())
        return torch.stack(energies)


class TestPublished(TreeConformance):
    def make(self):
        return TreeEnergy(weight=1.7, sigma_rgb=0.2)


class TestBilinear(TreeConformance):
    channels = 1
    spatial = (2,)

    def make(self):
        return TreeEnergy(weight=0.6, sigma_rgb=0.1, relaxation="bilinear")


@pytest.mark.parametrize("relaxation", ["total-variation", "bilinear"])
@pytest.mark.parametrize("size", [(12, 12), (17, 13), (3, 5, 4)])
def test_energy_and_gradient_by_all_paths(relaxation, size):
    generator = torch.Generator().manual_seed(len(size))
    image = torch.rand(1, 3, *size, generator=generator, dtype=torch.float64)
    logits = torch.randn(1, 4, *size, generator=generator, dtype=torch.float64, requires_grad=True)
    weights = affinity(image[0], 0.3)
    s = logits.softmax(1)
    flat = s[0].flatten(1)
    around = flat @ weights / weights.sum(1)
    expected = (
        (flat - around).abs().sum() / 2 if relaxation == "total-variation" else (1 - (flat * around).sum(0)).sum()
    )
    found = TreeEnergy(sigma_rgb=0.3, relaxation=relaxation).bind(image).energy(s)
    assert found.item() == pytest.approx(expected.item(), rel=1e-10)
    ours, theirs = (torch.autograd.grad(value.sum(), logits, retain_graph=True)[0] for value in (found, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-12)


def test_pieces_of_a_region_do_not_see_each_other():
    """One colour everywhere: a wall that does not count separates two rooms, of one label each."""
    image = torch.full((1, 3, 6, 7), 0.5)
    roi = torch.ones(1, 6, 7, dtype=torch.bool)
    roi[:, :, 3] = False
    left = torch.zeros(1, 2, 6, 7)
    left[:, 0, :, :3] = left[:, 1, :, 3:] = 1
    left[:, :, 2, 3] = torch.nan  # what stands in the wall does not matter
    assert TreeEnergy().bind(image, roi).energy(left).tolist() == [0]
    together = TreeEnergy().bind(image).energy(left.nan_to_num(nan=0.5))
    assert float(together) > 15  # half of the others of each pixel differ


def test_labels_follow_long_ways_within_a_colour():
    """A dark spiral on white, its ends labelled apart: the filter carries the label along, not across."""
    path = torch.zeros(9, 9)
    path[0, :], path[:, 8], path[8, 2:], path[2:, 2], path[2, 2:7] = 1, 1, 1, 1, 1
    image = path.reshape(1, 1, 9, 9)
    term = TreeEnergy(sigma_rgb=0.1).bind(image)
    same = torch.stack([path, 1 - path]).unsqueeze(0)
    assert float(term.energy(same)) == pytest.approx(0, abs=1e-4)
    cut = same.clone()
    cut[0, :, 2, 2:7] = cut[0, :, 2, 2:7].flip(0)
    assert float(term.energy(cut)) > 5


def test_many_pixels_in_float32():
    """Long chains of equal pixels: sums of a hundred thousand weights of 1 are exact enough."""
    image = torch.zeros(1, 3, 300, 400)
    image[..., 200:] = 1
    labels = torch.zeros(1, 2, 300, 400)
    labels[:, 0, :, :200] = labels[:, 1, :, 200:] = 1
    term = TreeEnergy().bind(image)
    assert float(term.energy(labels)) == pytest.approx(0, abs=0.1)
    assert float(term.energy(labels.roll(1, 3))) == pytest.approx(2 * 300 * 2 * (1 - 1 / 200), rel=1e-3)
    assert np.isfinite(float(term.energy(torch.full_like(labels, 0.5))))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"weight": -1.0}, "weight"),
        ({"sigma_rgb": 0.0}, "sigma_rgb"),
        ({"sigma_rgb": math.nan}, "sigma_rgb"),
        ({"sigma_rgb": 8.0}, "divided by 255"),
        ({"relaxation": "quadratic"}, "total-variation, bilinear"),
    ],
)
def test_invalid_settings_are_refused(settings, words):
    with pytest.raises(UsageError, match=words):
        TreeEnergy(**settings)
