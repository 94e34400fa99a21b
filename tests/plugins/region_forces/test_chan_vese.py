"""Means: against numpy, and against the energy of Chan and Vese written out."""

import numpy as np
import pytest
import torch

from regloss import ChanVese, TotalVariation, UsageError
from regloss.region_force import RegionForce
from regloss.testing import RegionForceConformance


def test_means_and_costs():
    image = torch.rand(2, 3, 5, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    weights = torch.rand(2, 4, 5, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    force = ChanVese(scale=0.7)
    means = force.fit(image, weights).mean
    costs = force.unary(image, force.fit(image, weights))
    for b, k in np.ndindex(2, 4):
        expected = np.average(image[b].flatten(1).numpy(), axis=1, weights=weights[b, k].flatten().numpy())
        np.testing.assert_allclose(means[b, k], expected, rtol=1e-12)
        distance = ((image[b].numpy() - expected[:, None, None]) ** 2).sum(0)
        np.testing.assert_allclose(costs[b, k], 0.7 * distance, rtol=1e-12)


def test_with_total_variation_it_is_the_functional_of_chan_and_vese():
    """mu * length + lambda_1 * inside + lambda_2 * outside, with weight = mu / 2; the length is l1."""
    image = torch.rand(1, 1, 7, 9, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    inside = torch.zeros(7, 9, dtype=torch.bool)
    inside[2:5, 3:8] = True
    mask = torch.stack([~inside, inside]).unsqueeze(0).double()
    force = ChanVese(scale=[1.5, 0.5])
    ours = (force.unary(image, force.fit(image, mask)) * mask).sum() + TotalVariation(0.25 / 2).bind(image).energy(mask)
    values, flags = image[0, 0].numpy(), inside.numpy()
    length = np.abs(np.diff(flags.astype(float), axis=0)).sum() + np.abs(np.diff(flags.astype(float), axis=1)).sum()
    data = 0.5 * ((values - values[flags].mean()) ** 2)[flags].sum()
    data += 1.5 * ((values - values[~flags].mean()) ** 2)[~flags].sum()
    assert float(ours) == pytest.approx(0.25 * length + data, rel=1e-12)
    assert length == 16


def test_a_scale_for_each_phase():
    image = torch.rand(1, 1, 4, 4)
    weights = torch.rand(1, 2, 4, 4)
    plain, scaled = ChanVese(), ChanVese(scale=(1, 3))
    means = plain.fit(image, weights)
    torch.testing.assert_close(scaled.fit(image, weights).mean, means.mean)
    factor = torch.tensor([1.0, 3.0]).reshape(1, 2, 1, 1)
    torch.testing.assert_close(scaled.unary(image, means), factor * plain.unary(image, means))
    with pytest.raises(UsageError, match="scale has 2 numbers, but there are 3 phases"):
        scaled.unary(image, plain.fit(image, torch.rand(1, 3, 4, 4)))


@pytest.mark.parametrize("scale", [0, -1.0, float("nan"), float("inf"), (), (1, 0), "2"])
def test_bad_scales(scale):
    with pytest.raises(UsageError, match="scale must be a positive number"):
        ChanVese(scale=scale)


class TestChanVese(RegionForceConformance):
    nonnegative = True

    def make(self) -> RegionForce:
        return ChanVese(scale=2.0)
