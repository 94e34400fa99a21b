"""The ELBO: conformance, closed forms against quadrature and sampling, and what it reduces to."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from regloss import ELBO, Batch, UsageError
from regloss.testing import DataTermConformance
from regloss_plugins.data_terms.elbo import Phases


class Identity(nn.Module):
    def forward(self, image):
        return image


class Constant(nn.Module):
    """The same output everywhere: (d,) spread over the image."""

    def __init__(self, values):
        super().__init__()
        self.values = nn.Parameter(torch.as_tensor(values, dtype=torch.float64))

    def forward(self, image):
        return self.values.reshape(1, -1, 1, 1).expand(image.shape[0], -1, *image.shape[2:])


def pointwise(inputs, outputs, dims, seed):
    """A 1x1 convolution: what a crop sees is what the image sees there."""
    generator = torch.Generator().manual_seed(seed)
    layer = (nn.Conv2d if dims == 2 else nn.Conv3d)(inputs, outputs, 1).double()
    for parameter in layer.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return layer


class TestELBO(DataTermConformance):
    uses_labels = False
    spatial = (2,)
    variance: object = 0.7
    entropy = 0.0

    def make(self):
        outputs = 4 if self.variance == "learned" else 2
        return ELBO(
            pointwise(3, outputs, 2, 1),
            pointwise(2, 3, 2, 2),
            means=[[1.0, 0.0], [0.0, 2.0], [-1.0, -1.0]],
            covariances=[[[1.0, 0.2], [0.2, 0.8]], [[0.5, 0.0], [0.0, 1.5]], [[2.0, -0.6], [-0.6, 1.0]]],
            variance=self.variance,
            samples=0,
            fidelity=3.0,
            entropy=self.entropy,
        )


class TestLearnedVariance(TestELBO):
    variance = "learned"
    entropy = 1.0


class TestPhasesOfEachImage(TestELBO):
    """Gradients are compared with differences of the value, phases found anew."""

    def make(self):
        elbo = super().make()
        elbo.prior_pixels = 3.0
        return elbo


class TestVolumes(DataTermConformance):
    uses_labels = False
    spatial = (3,)

    def make(self):
        return ELBO(pointwise(3, 1, 3, 1), pointwise(1, 3, 3, 2), means=[[1.0], [0.0], [-1.0]], samples=0)


def one_pixel(mean, variance, mu, covariance):
    """KL to each phase at one pixel where encoder and phases are given."""
    elbo = ELBO(Constant(mean), Identity(), means=mu, covariances=covariance, variance=variance, channels=1)
    return elbo.divergences(torch.zeros(1, 1, 1, 1, dtype=torch.float64))[0, :, 0, 0].detach()


def test_divergences_are_those_of_the_oracle(oracles):
    """Quadrature of the definition, one dimension."""
    data = np.load(oracles / "deepcv.npz")
    for (m, log_s2, mu, log_cov), expected in zip(data["kl_params"], data["kl_quad"], strict=True):
        found = one_pixel([m], [math.exp(log_s2)], [[mu], [0.0]], [[[math.exp(log_cov)]], [[1.0]]])
        assert float(found[0]) == pytest.approx(float(expected), abs=1e-10)


def test_divergence_is_the_mean_log_ratio_of_samples():
    """In two dimensions, with full covariances, within 4 standard errors."""
    mean, variance = torch.tensor([0.4, -0.3], dtype=torch.float64), torch.tensor([0.6, 1.7], dtype=torch.float64)
    mu, covariance = [[1.0, 0.5], [-0.5, 0.0]], [[[1.2, 0.4], [0.4, 0.9]], [[0.7, -0.2], [-0.2, 2.0]]]
    found = one_pixel(mean, variance.tolist(), mu, covariance).detach()
    q = torch.distributions.MultivariateNormal(mean, torch.diag(variance))
    torch.manual_seed(0)
    drawn = q.sample((200_000,))
    for phase in range(2):
        p = torch.distributions.MultivariateNormal(
            torch.tensor(mu[phase], dtype=torch.float64), torch.tensor(covariance[phase], dtype=torch.float64)
        )
        ratios = q.log_prob(drawn) - p.log_prob(drawn)
        error = float(ratios.std()) / len(drawn) ** 0.5
        assert abs(float(ratios.mean() - found[phase])) < 4 * error
        assert float(found[phase]) == pytest.approx(float(torch.distributions.kl_divergence(q, p)), abs=1e-12)


class Linear(nn.Module):
    def __init__(self, weight, bias):
        super().__init__()
        self.weight, self.bias = torch.from_numpy(weight), torch.from_numpy(bias)

    def forward(self, latent):
        return torch.einsum("cd,bd...->bc...", self.weight, latent) + self.bias.reshape(1, -1, 1, 1)


@pytest.mark.parametrize("variance", [1.0, [0.25, 4.0, 0.5]], ids=["identity", "diagonal"])
def test_sampled_error_of_a_linear_decoder_is_its_expectation(oracles, variance):
    """E|W(g + sqrt(V) eta) + b - I|^2 = |W g + b - I|^2 + sum_j V_j |W_j|^2, within 4 standard errors."""
    data = np.load(oracles / "deepcv.npz")
    spread = np.broadcast_to(variance, 3)
    # The values of the file lie outside [0, 1], so not the whole term is called; one image for each repetition.
    repetitions = 4000
    elbo = ELBO(Identity(), Linear(data["W"], data["b"]), means=[[0.0] * 3, [1.0] * 3], variance=variance, channels=5)
    for mean, expected in zip(data["Gmu"], data["expected_sqerr"], strict=True):
        exact = float(((data["W"] @ mean + data["b"] - data["I"]) ** 2).sum() + (data["W"] ** 2 @ spread).sum())
        if variance == 1.0:
            assert exact == pytest.approx(float(expected), rel=1e-12)
        means = torch.from_numpy(mean).reshape(1, 3, 1, 1).expand(repetitions, 3, 1, 1)
        given = elbo.latent(means)
        image = torch.from_numpy(data["I"]).reshape(1, 5, 1, 1).expand(repetitions, 5, 1, 1)
        torch.manual_seed(0)
        errors = elbo.reconstruction_error(given, image)
        assert bool(errors.isfinite().all())
        assert abs(float(errors.mean()) - exact) < 4 * float(errors.std()) / repetitions**0.5


def test_value_is_the_formula_summed_up():
    """fidelity / 2 |F(G) - I|^2 + sum u KL + entropy sum u log u, over the region of interest."""
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(2, 3, 5, 6, generator=generator, dtype=torch.float64)
    logits = torch.randn(2, 3, 5, 6, generator=generator, dtype=torch.float64)
    roi = torch.rand(2, 5, 6, generator=generator) < 0.7
    elbo = TestELBO().make()
    elbo.entropy = 0.5
    sums, counts = elbo(logits, Batch(image, None, roi))
    u = logits.softmax(1)
    inside = image * roi.unsqueeze(1)
    per_pixel = 1.5 * (elbo.reconstruction(image, roi) - image).square().sum(1)
    per_pixel = per_pixel + (u * elbo.divergences(inside)).sum(1) + 0.5 * (u * u.log()).sum(1)
    torch.testing.assert_close(sums, (per_pixel * roi).flatten(1).sum(1), rtol=1e-12, atol=0)
    torch.testing.assert_close(counts, roi.flatten(1).sum(1).double())


def test_without_regularizer_the_best_probabilities_are_softmax_of_minus_kl():
    """With the entropy of a drawn label: stationary there, and no worse anywhere near."""
    elbo = TestELBO().make()
    elbo.entropy = 1.0
    image = torch.rand(1, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    best = (-elbo.divergences(image)).detach().requires_grad_()
    value = elbo(best, Batch(image, None))[0].sum()
    (gradient,) = torch.autograd.grad(value, best)
    assert float(gradient.abs().max()) < 1e-12
    for seed in range(5):
        noise = torch.randn(best.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        assert float(elbo(best.detach() + 0.3 * noise, Batch(image, None))[0].sum().detach()) > float(value.detach())


def test_identity_encoder_is_chan_vese():
    """Up to the constant 1/2 (V - ln V - 1): half the squared distance to the mean."""
    image = torch.rand(1, 1, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    elbo = ELBO(Identity(), Identity(), means=[[0.2], [0.9]], variance=0.3, channels=1)
    constant = 0.5 * (0.3 - math.log(0.3) - 1)
    expected = torch.cat([(image - mean).square() / 2 for mean in (0.2, 0.9)], dim=1) + constant
    torch.testing.assert_close(elbo.divergences(image), expected, rtol=1e-12, atol=1e-14)


def test_given_noise_is_the_same_always_and_for_every_image():
    image = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0)).expand(2, -1, -1, -1)
    torch.manual_seed(0)
    fixed = ELBO("plain-cnn", "plain-cnn", noise_seed=3)
    free = ELBO(fixed.encoder, fixed.decoder)
    logits, batch = torch.zeros(2, 2, 8, 8), Batch(image, None)
    with torch.no_grad():
        assert torch.equal(fixed(logits, batch)[0], fixed(logits, batch)[0])
        assert float(fixed(logits, batch)[0].diff().abs()) < 1e-3
        assert not torch.equal(free(logits, batch)[0], free(logits, batch)[0])


def test_balance_changes_the_gradient_of_the_networks_alone():
    """There each phase counts as if it had the same share of the pixels."""
    image = torch.rand(1, 3, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    roi = torch.ones(1, 6, 6, dtype=torch.bool)
    roi[:, :2] = False
    logits = torch.randn(1, 3, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    logits[:, 0] += 2  # the larger phase
    logits.requires_grad_()
    plain, balanced = TestELBO().make(), TestELBO().make()
    plain.fidelity = balanced.fidelity = 1e-300  # the divergences alone
    balanced.balance = True
    values, gradients = [], []
    for elbo in (plain, balanced):
        value = elbo(logits, Batch(image, None, roi))[0].sum()
        values.append(value.detach())
        gradients.append(torch.autograd.grad(value, [logits, *elbo.encoder.parameters()], allow_unused=True))
    torch.testing.assert_close(values[0], values[1], rtol=1e-13, atol=0)
    torch.testing.assert_close(gradients[0][0], gradients[1][0], rtol=1e-12, atol=1e-14)
    u = (logits.softmax(1) * roi).detach()
    weights = u / u.sum((2, 3), keepdim=True) * 24 / 3
    torch.testing.assert_close(weights.sum((2, 3)), torch.full((1, 3), 8.0, dtype=torch.float64))
    by_hand = (weights * balanced.divergences(image, roi)).sum()
    expected = torch.autograd.grad(by_hand, list(balanced.encoder.parameters()))
    for found, wanted, of_plain in zip(gradients[1][1:], expected, gradients[0][1:], strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)
        assert not torch.allclose(found, of_plain, rtol=1e-3)


def adaptive(prior_pixels, variance=0.3):
    """Two phases in two dimensions, which are each image's own; the latent image is that given."""
    covariances = [[[1.0, 0.2], [0.2, 0.8]], [[0.5, 0.0], [0.0, 1.5]]]
    settings = {"means": [[1.0, 0.0], [0.0, 2.0]], "covariances": covariances, "variance": variance, "channels": 2}
    elbo = ELBO(Identity(), Identity(), prior_pixels=1.0, **settings)
    elbo.prior_pixels = prior_pixels  # the limits of the setting are those of single precision
    return elbo


def latent_image(seed=0):
    """Two images with probabilities of two phases, and a region of interest."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.rand(2, 2, 5, 6, generator=generator, dtype=torch.float64)
    u = torch.randn(2, 2, 5, 6, generator=generator, dtype=torch.float64).softmax(1)
    return image, u, torch.rand(2, 5, 6, generator=generator) < 0.7


def test_own_phases_are_weighted_statistics():
    """With hardly any prior those of numpy, the variance of the encoder added."""
    image, u, roi = latent_image()
    elbo = adaptive(1e-12)
    phases = elbo.phases_of(elbo.latent(image, roi), u, roi)
    for number in range(2):
        inside = roi[number]
        values, weights = image[number][:, inside].numpy(), u[number][:, inside].numpy()
        for phase in range(2):
            mean = np.average(values, axis=1, weights=weights[phase])
            covariance = np.cov(values, aweights=weights[phase], ddof=0) + 0.3 * np.eye(2)
            np.testing.assert_allclose(phases.means[number, phase], mean, rtol=1e-7)
            np.testing.assert_allclose(phases.covariances[number, phase], covariance, rtol=1e-7, atol=1e-12)
        np.testing.assert_allclose(phases.shares[number], weights.sum(1) / weights.sum(), rtol=1e-7)


def test_own_phases_are_the_best():
    """The value is stationary in means, covariances and shares, and higher for any others."""
    image, u, roi = latent_image()
    elbo = adaptive(2.5)
    latent = elbo.latent(image, roi)

    def value(phases):
        costs = (u * elbo.divergences_of(latent, phases)).sum(1) * roi
        return (costs.flatten(1).sum(1) + elbo.prior_cost(phases)).sum()

    best = elbo.phases_of(latent, u, roi)
    means, covariances, shares = (part.clone().requires_grad_() for part in best)
    gradients = torch.autograd.grad(value(Phases(means, covariances, shares)), [means, covariances, shares])
    assert float(gradients[0].abs().max()) < 1e-11
    assert float(gradients[1].abs().max()) < 1e-11
    # Shares sum to 1, so their gradient is constant over the phases.
    assert float(gradients[2].diff(dim=1).abs().max()) < 1e-10
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        root = torch.linalg.cholesky(best.covariances)
        root = root + 0.1 * torch.randn(root.shape, generator=generator, dtype=torch.float64).tril()
        shares = (best.shares.log() + 0.2 * torch.randn(2, 2, generator=generator, dtype=torch.float64)).softmax(1)
        means = best.means + 0.1 * torch.randn(2, 2, 2, generator=generator, dtype=torch.float64)
        assert float(value(Phases(means, root @ root.mT, shares))) > float(value(best))


def test_a_firm_prior_is_the_published_bound():
    image, u, _ = latent_image()
    fixed, firm = adaptive(math.inf), adaptive(1e12)
    expected = fixed.divergences(image)
    torch.testing.assert_close(firm.divergences(image, None, u), expected, rtol=1e-8, atol=1e-8)
    assert torch.equal(fixed.divergences(image, None, u), expected)
    assert torch.equal(fixed.prior_cost(fixed.phases_of(fixed.latent(image), u)), torch.zeros(1, dtype=torch.float64))


def test_own_phases_keep_their_digits_under_autocast():
    """A latent image far from 0, as a mean of 10 is."""
    image, u, roi = latent_image()
    elbo = adaptive(1.0)
    latent = elbo.latent(image.float() + 100, roi)
    expected = elbo.phases_of(latent, u.float(), roi)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        phases = elbo.phases_of(latent, u.float(), roi)
        costs, prior = elbo.divergences_of(latent, phases), elbo.prior_cost(phases)
    for found, wanted in zip(phases, expected, strict=True):
        torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(costs, elbo.divergences_of(latent, expected))
    torch.testing.assert_close(prior, elbo.prior_cost(expected))


def test_an_empty_phase_is_the_given_one():
    image, _, _ = latent_image()
    none = torch.zeros(2, 2, 5, 6, dtype=torch.float64)
    elbo = adaptive(1.0)
    phases = elbo.phases_of(elbo.latent(image), none)
    torch.testing.assert_close(phases.means, elbo.means.expand(2, -1, -1))
    torch.testing.assert_close(phases.covariances, elbo.covariances.expand(2, -1, -1, -1))
    torch.testing.assert_close(phases.shares, torch.full((2, 2), 0.5, dtype=torch.float64))


def test_own_phases_need_probabilities():
    image, _, _ = latent_image()
    with pytest.raises(UsageError, match="each image's own"):
        adaptive(1.0).divergences(image)


def test_gradients_reach_both_networks():
    for variance in (1.0, "learned"):
        torch.manual_seed(0)
        elbo = ELBO({"name": "unet", "norm": "instance", "levels": 2, "channels": 4}, "plain-cnn", variance=variance)
        sums, counts = elbo(torch.randn(1, 2, 16, 16), Batch(torch.rand(1, 3, 16, 16), None))
        (sums / counts).sum().backward()
        assert list(elbo.modules()) == ["encoder", "decoder"]
        for module in elbo.modules().values():
            assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in module.parameters())
            assert any(float(p.grad.abs().max()) > 0 for p in module.parameters())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"means": [[1.0]]}, "at least two phases"),
        ({"means": [1.0, 2.0]}, "at least two phases"),
        ({"means": [[1.0], [math.nan]]}, "finite"),
        ({"covariances": [[[1.0]]]}, "covariances"),
        ({"covariances": -1.0}, "positive definite"),
        ({"means": [[0.0, 1.0], [1.0, 0.0]], "covariances": [[[1.0, 2.0], [2.0, 1.0]]] * 2}, "positive definite"),
        ({"means": [[0.0, 1.0], [1.0, 0.0]], "covariances": [[[1.0, 0.2], [0.0, 1.0]]] * 2}, "symmetric"),
        ({"variance": 0.0}, "variance"),
        ({"variance": [1.0, 2.0]}, "variance"),
        ({"variance": "learnt"}, "learned"),
        ({"samples": -1}, "samples"),
        ({"fidelity": 0.0}, "fidelity"),
        ({"entropy": -1.0}, "entropy"),
        ({"prior_pixels": 0.0}, "prior_pixels"),
        ({"prior_pixels": math.nan}, "prior_pixels"),
        ({"prior_pixels": 1e7}, "prior_pixels"),
        ({"encoder": {"layers": 2}}, "needs a name"),
        ({"encoder": {"name": "plain-cnn", "layer": 2}}, "layers"),
    ],
)
def test_invalid_settings_are_refused(settings, message):
    with pytest.raises(UsageError, match=message):
        ELBO(**{"encoder": "plain-cnn", "decoder": "plain-cnn", **settings})


def test_networks_that_do_not_fit_are_named():
    image = torch.rand(1, 3, 8, 8)
    with pytest.raises(UsageError, match="encoder makes"):
        ELBO(Identity(), Identity()).latent(image)
    with pytest.raises(UsageError, match="decoder makes"):
        ELBO("plain-cnn", Identity())(torch.zeros(1, 2, 8, 8), Batch(image, None))
    with pytest.raises(UsageError, match="as many means"):
        ELBO("plain-cnn", "plain-cnn")(torch.zeros(1, 3, 8, 8), Batch(image, None))
