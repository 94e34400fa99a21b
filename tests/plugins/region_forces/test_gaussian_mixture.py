"""Mixtures of normal distributions, against scipy's densities and a plain expectation maximisation."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal

from regloss import GaussianForce, GaussianMixture, UsageError
from regloss.region_force import RegionForce
from regloss.testing import RegionForceConformance

RANDOM = torch.Generator().manual_seed(0)


def spots(*colours, pixels=60, spread=0.03):
    """(1, C, N) of as many pixels of each colour, with noise."""
    rows = [torch.tensor(colour).reshape(-1, 1) + spread * torch.randn(len(colour), pixels) for colour in colours]
    return torch.cat(rows, dim=1).unsqueeze(0).clamp(0, 1)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(5)


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_costs_are_those_of_the_density(channels):
    image = torch.rand(2, channels, 8, 9, generator=RANDOM, dtype=torch.float64)
    weights = torch.rand(2, 3, 8, 9, generator=RANDOM, dtype=torch.float64)
    force = GaussianMixture(components=3, outliers=0.1, spread=0.2, min_variance=1e-3)
    found = force.fit(image, weights)
    costs = force.unary(image, found)
    single = force.unary(image.float(), found)
    for b, k in np.ndindex(2, 3):
        values = image[b].flatten(1).numpy().T
        density = sum(
            float(share) * multivariate_normal(mean, covariance).pdf(values)
            for share, mean, covariance in zip(found.share[b, k], found.mean[b, k], found.covariance[b, k], strict=True)
        )
        share, mean, covariance = found.share[b, k].numpy(), found.mean[b, k].numpy(), found.covariance[b, k].numpy()
        centre = share @ mean
        whole = np.einsum("m,mij->ij", share, covariance + np.einsum("mi,mj->mij", mean - centre, mean - centre))
        wide = multivariate_normal(centre, whole + 0.04 * np.eye(channels)).pdf(values)
        expected = -np.log(0.9 * density + 0.1 * wide)
        np.testing.assert_allclose(costs[b, k].flatten(), expected, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(single[b, k].flatten(), expected, rtol=1e-4, atol=1e-4)


def test_one_component_is_a_normal_distribution():
    image = torch.rand(1, 3, 8, 9, generator=RANDOM)
    weights = torch.rand(1, 2, 8, 9, generator=RANDOM)
    mixture, normal = GaussianMixture(components=1).fit(image, weights), GaussianForce().fit(image, weights)
    torch.testing.assert_close(mixture.mean[:, :, 0], normal.mean)
    torch.testing.assert_close(mixture.covariance[:, :, 0], normal.covariance)
    assert mixture.share.tolist() == [[[1.0], [1.0]]]


def test_steps_never_lower_the_likelihood():
    """Of the mixture without outliers, whose share of 1e-9 is as good as none."""
    image = spots([0.2, 0.3, 0.4], [0.3, 0.3, 0.5], [0.8, 0.7, 0.1], spread=0.1)
    weights = torch.rand(1, 2, image.shape[2], generator=RANDOM)
    energies = []
    for steps in range(12):
        force = GaussianMixture(components=4, outliers=1e-9, max_steps=steps)
        energies.append(float((force.unary(image, force.fit(image, weights)) * weights).sum()))
    assert all(after <= before + 1e-4 for before, after in pairwise(energies))
    assert energies[-1] < energies[0] - 1


def test_colours_of_a_class_are_found():
    """Three spots of one class, and one of the other in their middle, which a single normal would claim."""
    first = [[0.1, 0.1, 0.1], [0.9, 0.1, 0.5], [0.5, 0.9, 0.9]]
    image = spots(*first, [0.5, 0.37, 0.5])
    labels = torch.zeros(1, 2, 240)
    labels[0, 0, :180], labels[0, 1, 180:] = 1, 1
    force = GaussianMixture(components=3)
    found = force.fit(image, labels)
    distance = torch.cdist(torch.tensor(first).double(), found.mean[0, 0])
    assert distance.amin(1).max() < 0.02
    assert bool((force.unary(image, found).argmin(1)[0] == labels[0].argmax(0)).all())


def test_few_pixels_make_few_components():
    """One pixel is a normal of the least variance; nineteen are one component, twenty of two colours are two."""
    image = spots([0.2], [0.8], pixels=20)
    for pixels, expected in ((1, 1), (9, 1), (10, 2)):
        labels = torch.zeros(1, 2, 40)
        labels[0, 0, :pixels] = labels[0, 0, 20 : 20 + pixels - (pixels == 1)] = 1
        labels[0, 1, 39] = 1
        found = GaussianMixture().fit(image, labels)
        assert int((found.share[0, 0] > 0.01).sum()) == expected
        assert int((found.share[0, 1] > 0).sum()) == 1
        assert float(found.covariance[0, 1, 0]) == pytest.approx(1e-4)
        assert bool(GaussianMixture().unary(image, found).isfinite().all())


def test_many_pixels_are_thinned_out():
    """The same shares and means, up to the noise of 4096 pixels, as of all."""
    image = spots([0.2, 0.3], [0.7, 0.9], pixels=20_000)
    labels = torch.zeros(1, 2, 40_000)
    labels[0, 0], labels[0, 1, ::7] = 1, 1
    found = GaussianMixture(components=2).fit(image, labels)
    for k in range(2):
        torch.testing.assert_close(found.share[0, k], torch.full((2,), 0.5, dtype=torch.float64), atol=0.02, rtol=0)
        means = found.mean[0, k].sort(0).values
        torch.testing.assert_close(means, torch.tensor([[0.2, 0.3], [0.7, 0.9]]).double(), atol=0.005, rtol=0)


def test_an_unknown_colour_goes_to_the_class_of_nearer_colours():
    """By as much as wide normals say, whatever the spread of the colours that are known; in between it is open."""
    image = spots([0.2, 0.2, 0.2], [0.4, 0.4, 0.4], pixels=100, spread=0.002)
    labels = torch.zeros(1, 2, 200)
    labels[0, 0, :100], labels[0, 1, 100:] = 1, 1
    force = GaussianMixture(outliers=0.1, spread=0.25)
    colors = torch.tensor([0.0, 0.3, 1.0]).expand(1, 3, 3)
    costs = force.unary(colors, force.fit(image, labels))
    difference = 3 * ((colors[0, 0] - 0.4) ** 2 - (colors[0, 0] - 0.2) ** 2) / (2 * 0.25**2)
    torch.testing.assert_close((costs[0, 1] - costs[0, 0]), difference, atol=0.1, rtol=0.05)


@pytest.mark.parametrize(
    "setting",
    [
        {"components": 0},
        {"outliers": 0.0},
        {"outliers": 1.0},
        {"spread": 0.0},
        {"min_variance": 0.0},
        {"min_variance": float("nan")},
        {"max_steps": -1},
    ],
)
def test_bad_settings(setting):
    with pytest.raises(UsageError, match=next(iter(setting))):
        GaussianMixture(**setting)


class TestGaussianMixture(RegionForceConformance):
    def make(self) -> RegionForce:
        return GaussianMixture(components=2, min_variance=1e-3)
