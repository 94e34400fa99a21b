"""Colour histograms."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from regloss import HistogramForce, UsageError
from regloss.region_force import RegionForce
from regloss.testing import RegionForceConformance

BINS = HistogramForce().bins


def one_hot(seeds, classes):
    """(1, K, *S), all 0 where there is no seed."""
    return torch.stack([seeds == label for label in range(classes)]).float().unsqueeze(0)


def costs(image, seeds, classes, force=None):
    force = force or HistogramForce()
    return force.unary(image[None], force.fit(image[None], one_hot(seeds, classes)))[0]


def test_the_colour_model_is_a_smoothed_histogram():
    """Likely colours are cheap, colours of the other class cost more, and nothing costs infinitely much."""
    image = torch.full((3, 4, 8), 0.2)
    image[:, :, 4:] = 0.8
    image[:, 0, 0] = torch.tensor([0.5, 0.0, 1.0])  # a colour of neither
    seeds = torch.full((4, 8), -1)
    seeds[2, 1], seeds[2, 6] = 0, 1
    unary = costs(image, seeds, 2)
    assert unary.shape == (2, 4, 8)
    assert torch.isfinite(unary).all()
    assert (unary[0] < unary[1])[1:, :4].all()
    assert (unary[1] < unary[0])[1:, 4:].all()
    assert float(unary[0, 0, 0]) == pytest.approx(float(unary[1, 0, 0]), rel=1e-4)
    probability = torch.exp(-unary[0, 2, 1])
    assert 1 / BINS**3 < float(probability) < 1


def test_the_colour_model_sums_to_one():
    """Over all colours of a grey image."""
    image = (torch.arange(BINS) + 0.5).reshape(1, 1, -1) / BINS
    seeds = torch.full((1, BINS), -1)
    seeds[0, 3], seeds[0, 9] = 0, 1
    total = torch.exp(-costs(image, seeds, 2)).sum((1, 2))
    torch.testing.assert_close(total, torch.ones(2), rtol=1e-5, atol=0)


def test_counts_are_weighted():
    """Written out in numpy, from probabilities."""
    image = torch.rand(2, 1, 6, 7, generator=torch.Generator().manual_seed(0))
    weights = torch.rand(2, 2, 6, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = HistogramForce(bins=5, spread=0.1, uniform=0.2).fit(image, weights).probability
    for b, k in np.ndindex(2, 2):
        counts, _ = np.histogram(image[b].numpy(), bins=5, range=(0, 1), weights=weights[b, k].numpy()[None])
        smooth = ndimage.gaussian_filter(counts, 0.5, mode="constant")
        np.testing.assert_allclose(found[b, k], 0.8 * smooth / smooth.sum() + 0.2 / 5, rtol=1e-6)


def test_what_a_colour_model_cannot_do():
    seeds = torch.zeros(4, 4, dtype=torch.int64)
    with pytest.raises(UsageError, match="Class 1 has no pixels"):
        costs(torch.rand(3, 4, 4), seeds, 2)
    with pytest.raises(UsageError, match="1 to 3 channels; got 4"):
        costs(torch.rand(4, 4, 4), seeds, 2)
    with pytest.raises(UsageError, match=r"\[0, 1\]"):
        costs(5 * torch.ones(1, 4, 4), seeds, 2)


@pytest.mark.parametrize("setting", [{"bins": 1}, {"bins": 2.5}, {"spread": -0.1}, {"uniform": 0.0}, {"uniform": 1.0}])
def test_bad_settings(setting):
    with pytest.raises(UsageError, match=next(iter(setting))):
        HistogramForce(**setting)


class TestHistogram(RegionForceConformance):
    nonnegative = True

    def make(self) -> RegionForce:
        return HistogramForce(bins=8)
