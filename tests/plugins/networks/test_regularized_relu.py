"""Activations with total variation inside: what they minimise, their derivatives, and networks with them."""

import pytest
import torch
from torch import nn

from regloss import TotalVariation, UsageError, denoise
from regloss_plugins.networks.regularized_relu import RegularizedReLU, Smoothing, smooth_relus
from regloss_plugins.networks.unet import UNet


def features(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("shape", [(2, 3, 9, 11), (1, 2, 5, 6, 7)])
def test_the_limit_is_that_of_denoising(shape):
    """And its part above 0, where features are to be positive."""
    given = features(*shape)
    guide = torch.zeros(shape[0], 1, *shape[2:], dtype=torch.float64)
    expected = denoise(given, TotalVariation(0.3), guide=guide, tolerance=1e-12, max_steps=20000).probabilities
    torch.testing.assert_close(Smoothing(0.3, 4000)(given), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(RegularizedReLU(0.3, 4000)(given), expected.clamp(min=0), rtol=0, atol=1e-5)


def test_few_steps_keep_the_mean_and_lower_the_energy():
    given, energies = features(1, 2, 12, 13), []
    for steps in (1, 3, 10, 100):
        found = Smoothing(0.3, steps)(given)
        torch.testing.assert_close(found.mean((2, 3)), given.mean((2, 3)))
        variation = sum(found.diff(dim=axis).abs().sum() for axis in (2, 3))
        energies.append(float(0.5 * (found - given).square().sum() + 0.3 * variation))
    assert energies == sorted(energies, reverse=True)
    assert bool((RegularizedReLU(0.3, 2)(given) >= 0).all())
    torch.testing.assert_close(RegularizedReLU(1e-9, 3)(given), given.relu())


@pytest.mark.parametrize("kind", [Smoothing, RegularizedReLU])
def test_derivatives_are_those_of_the_steps(kind):
    layer = kind(0.3, 4, learn=True).double()
    given = features(1, 2, 4, 5).requires_grad_()
    assert torch.autograd.gradcheck(layer, (given,))
    (layer(given) * features(1, 2, 4, 5, seed=1)).sum().backward()
    slope, step = layer.log_weight.grad.item(), 1e-6
    found = []
    for moved in (step, -2 * step):
        with torch.no_grad():
            layer.log_weight += moved
            found.append(float((layer(given) * features(1, 2, 4, 5, seed=1)).sum()))
    assert slope == pytest.approx((found[0] - found[1]) / (2 * step), rel=1e-5)


def test_a_network_is_smoothed_throughout():
    torch.manual_seed(0)
    plain = UNet(1, 2, levels=2, channels=4, norm="instance")
    smooth = UNet(1, 2, levels=2, channels=4, norm="instance", smoothing=0.3, smoothing_steps=5)
    smooth.load_state_dict(plain.state_dict())  # the same parameters: weights of smoothing are none
    relus = [module for module in smooth.modules() if isinstance(module, RegularizedReLU)]
    assert len(relus) == 6
    assert not any(isinstance(module, nn.ReLU) for module in smooth.modules())
    image = torch.rand(1, 1, 20, 24)
    with torch.no_grad():
        rough, soft = (float(network(image).diff(dim=3).abs().mean()) for network in (plain, smooth))
    assert soft < 0.8 * rough
    smooth(image).square().sum().backward()
    assert all(bool(parameter.grad.isfinite().all()) for parameter in smooth.parameters())
    assert smooth_relus(smooth, 0.1, 3) == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"weight": 0.0}, "must be positive; got 0.0"), ({"steps": 0}, "at least 1 step; got 0")],
)
def test_bad_settings(settings, message):
    with pytest.raises(UsageError, match=message):
        RegularizedReLU(**settings)
    with pytest.raises(UsageError, match="smoothing must be at least 0"):
        UNet(1, 2, smoothing=-1.0)
