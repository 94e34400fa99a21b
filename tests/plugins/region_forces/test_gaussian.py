"""Normal distributions, against scipy's and against other covariances."""

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal

from regloss import GaussianForce, UsageError
from regloss.region_force import RegionForce
from regloss.testing import RegionForceConformance
from regloss_plugins.region_forces.gaussian import Gaussians


@pytest.mark.parametrize("channels", [1, 3])
def test_statistics_and_costs(channels):
    image = torch.rand(2, channels, 5, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    weights = torch.rand(2, 3, 5, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    force = GaussianForce()
    found = force.fit(image, weights)
    costs = force.unary(image, found)
    for b, k in np.ndindex(2, 3):
        values, share = image[b].flatten(1).numpy(), weights[b, k].flatten().numpy()
        mean = np.average(values, axis=1, weights=share)
        covariance = np.atleast_2d(np.cov(values, aweights=share, bias=True))
        np.testing.assert_allclose(found.mean[b, k], mean, rtol=1e-12)
        np.testing.assert_allclose(found.covariance[b, k], covariance, rtol=1e-10)
        expected = -multivariate_normal(mean, covariance).logpdf(values.T)
        np.testing.assert_allclose(costs[b, k].flatten(), expected, rtol=1e-9, atol=1e-9)


def test_the_floor_is_the_best_covariance_that_it_allows():
    """Values on a line, so that two eigenvalues are 0: no other covariance above the floor has a lower F."""
    t = torch.rand(40, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    image = (torch.tensor([0.3, 0.5, 0.8], dtype=torch.float64)[:, None] * t).unsqueeze(0)
    weights = torch.cat([torch.ones(1, 1, 40), torch.rand(1, 1, 40)], dim=1).double()
    force = GaussianForce(min_variance=1e-3)
    found = force.fit(image, weights)
    eigenvalues = torch.linalg.eigvalsh(found.covariance)
    torch.testing.assert_close(eigenvalues[..., :2], torch.full((1, 2, 2), 1e-3, dtype=torch.float64))
    lowest = (force.unary(image, found) * weights).sum()
    generator = torch.Generator().manual_seed(4)
    for size in (1e-4, 1e-3, 1e-2):
        for _ in range(5):
            noise = size * torch.randn(1, 2, 3, 3, generator=generator, dtype=torch.float64)
            values, axes = torch.linalg.eigh(found.covariance + noise + noise.transpose(2, 3))
            moved = (axes * values.clamp(min=1e-3).unsqueeze(2)) @ axes.transpose(2, 3)
            assert (force.unary(image, Gaussians(found.mean, moved)) * weights).sum() >= lowest


def test_a_phase_of_one_colour_is_finite():
    image = torch.full((1, 2, 4), 0.25)
    weights = torch.tensor([[[1.0, 0, 0, 0], [0, 1, 1, 1]]])
    force = GaussianForce(min_variance=0.01)
    costs = force.unary(image, force.fit(image, weights))
    expected = 0.5 * 2 * np.log(2 * np.pi * 0.01)
    torch.testing.assert_close(costs, torch.full((1, 2, 4), expected, dtype=torch.float32))


def test_phases_that_differ_in_spread_alone():
    """What means cannot tell apart."""
    generator = torch.Generator().manual_seed(5)
    spread = torch.cat([torch.full((20, 20), 0.02), torch.full((20, 20), 0.15)], dim=1)
    image = (0.5 + spread * torch.randn(20, 40, generator=generator)).clamp(0, 1)[None, None]
    start = torch.zeros(1, 2, 20, 40)
    start[0, 0, :, :12], start[0, 1, :, 28:] = 1, 1
    force = GaussianForce()
    labels = force.unary(image, force.fit(image, start)).argmin(1)[0]
    assert (labels[:, :20] == 0).float().mean() > 0.95
    assert (labels[:, 20:] == 1).float().mean() > 0.7


@pytest.mark.parametrize("floor", [0.0, -1.0, float("nan"), float("inf")])
def test_bad_floors(floor):
    with pytest.raises(UsageError, match="min_variance must be a positive number"):
        GaussianForce(min_variance=floor)


class TestGaussian(RegionForceConformance):
    def make(self) -> RegionForce:
        return GaussianForce(min_variance=1e-3)
