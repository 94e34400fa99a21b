"""Normalised cut and kernel cut: conformance, their definition in plain loops, classes that are absent."""

import math

import pytest
import torch

from regloss import DenseCRF, KernelCut, NormalizedCut, UsageError
from regloss.testing import RegularizerConformance


def weights_of(crf, image):
    """(N, N) by the definition, for scale = 1; zero diagonal."""
    places = torch.cartesian_prod(*(torch.arange(n, dtype=torch.float64) for n in image.shape[1:]))
    places = places.reshape(image[0].numel(), -1)
    features = torch.cat([image.flatten(1).T / crf.sigma_rgb, places / crf.sigma_xy], 1)
    return torch.exp(-(features[:, None] - features[None]).square().sum(-1) / 2).fill_diagonal_(0)


def normalized_cut_of_labels(crf, image, labels):
    """One class at a time, one image."""
    weights, flat = weights_of(crf, image), labels.flatten()
    total = 0.0
    for k in flat.unique():
        inside = flat == k
        total += float(weights[inside][:, ~inside].sum() / weights[inside].sum())
    return flat.numel() * total


class NormalizedConformance(RegularizerConformance):
    nonnegative = True

    def discrete_energy(self, image, labels):
        crf = self.make()
        return torch.tensor(
            [crf.weight * normalized_cut_of_labels(crf, *pair) for pair in zip(image, labels, strict=True)],
            dtype=torch.float64,
        )


class TestFullResolution(NormalizedConformance):
    def make(self):
        return NormalizedCut(weight=1.3, sigma_xy=3.0, sigma_rgb=0.5, scale=1.0)


class TestHalfResolution(RegularizerConformance):
    nonnegative = True
    discrete = False  # its weights are those of blocks, which the tests of dense-crf look at

    def make(self):
        return NormalizedCut(sigma_xy=3.0, sigma_rgb=0.5)


class TestLattice(RegularizerConformance):
    spatial = (2,)
    nonnegative = True
    discrete = False
    tolerance = 1e-7

    def make(self):
        return NormalizedCut(sigma_xy=3.0, sigma_rgb=0.3, backend="lattice")


class TestKernelCut(RegularizerConformance):
    nonnegative = True

    def make(self):
        return KernelCut(weight=1.3, crf_weight=2.0, sigma_xy=3.0, sigma_rgb=0.5, scale=1.0)

    def discrete_energy(self, image, labels):
        crf, energies = self.make(), []
        for one, given in zip(image, labels, strict=True):
            mass = (math.sqrt(2 * math.pi) * crf.sigma_xy) ** (one.ndim - 1)
            flat = given.flatten()
            potts = float(weights_of(crf, one)[flat[:, None] != flat[None]].sum()) / (2 * mass)
            energies.append(crf.weight * (normalized_cut_of_labels(crf, one, given) + crf.crf_weight * potts))
        return torch.tensor(energies, dtype=torch.float64)


class TestKernelCutOnTheLattice(RegularizerConformance):
    spatial = (2,)
    nonnegative = True
    discrete = False
    tolerance = 1e-7

    def make(self):
        return KernelCut(crf_weight=0.5, sigma_xy=3.0, sigma_rgb=0.3, backend="lattice")


@pytest.mark.parametrize("kind", [NormalizedCut, KernelCut])
def test_gradient_by_finite_differences(kind):
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, 3, 4, 5, generator=generator, dtype=torch.float64)
    logits = torch.randn(1, 3, 4, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    for backend in ("exact", "lattice"):
        term = kind(sigma_xy=2.0, sigma_rgb=0.3, backend=backend).bind(image)
        assert torch.autograd.gradcheck(lambda z, term=term: term.energy(z.softmax(1)), logits, rtol=1e-5, atol=1e-8)


def test_kernel_cut_is_the_sum_of_its_parts():
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(2, 3, 9, 8, generator=generator, dtype=torch.float64)
    s = torch.randn(2, 3, 9, 8, generator=generator, dtype=torch.float64).softmax(1)
    settings = {"sigma_xy": 4.0, "sigma_rgb": 0.3}
    parts = NormalizedCut(**settings).bind(image).energy(s) + DenseCRF(weight=0.7, **settings).bind(image).energy(s)
    torch.testing.assert_close(KernelCut(crf_weight=0.7, **settings).bind(image).energy(s), parts)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_absent_classes_cost_nothing(dtype):
    """A class without pixels, all pixels in one class, and pixels that are joined to nothing."""
    image = torch.rand(1, 3, 6, 6, generator=torch.Generator().manual_seed(0), dtype=dtype)
    term = NormalizedCut(sigma_xy=3.0, sigma_rgb=0.3).bind(image)
    constant = torch.zeros(1, 3, 6, 6, dtype=dtype)
    constant[:, 1] = 1
    constant.requires_grad_()
    energy = term.energy(constant)
    assert energy.tolist() == [0]
    energy.sum().backward()
    assert bool(constant.grad.isfinite().all())
    lonely = NormalizedCut(sigma_xy=0.01, sigma_rgb=0.3, scale=1.0).bind(image)
    assert lonely.energy(torch.full((1, 3, 6, 6), 1 / 3, dtype=dtype)).tolist() == [0]


@pytest.mark.parametrize("backend", ["exact", "lattice"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_pixels_that_differ_from_all_others_cost_nothing(dtype, backend):
    """Rounding alone would make quotients of any size of them. Two pixels alike are the only pair."""
    image = torch.linspace(0, 1, 36, dtype=dtype).reshape(1, 1, 6, 6).clone()
    image[0, 0, 5, 5] = image[0, 0, 0, 0]
    s = torch.randn(1, 3, 6, 6, generator=torch.Generator().manual_seed(0), dtype=dtype).softmax(1).requires_grad_()
    energy = NormalizedCut(sigma_xy=4.0, sigma_rgb=0.002, scale=1.0, backend=backend).bind(image).energy(s)
    (gradient,) = torch.autograd.grad(energy.sum(), s)
    p, q = s[0, :, 0, 0], s[0, :, 5, 5]
    expected = 36 * ((p * (1 - q) + q * (1 - p)) / (p + q)).sum()
    torch.testing.assert_close(energy, expected.reshape(1), rtol=1e-4 if dtype == torch.float32 else 1e-9, atol=0)
    alone = torch.ones(6, 6, dtype=torch.bool)
    alone[0, 0] = alone[5, 5] = False
    assert bool((gradient[0, :, alone] == 0).all())


@pytest.mark.parametrize("kind", [NormalizedCut, KernelCut])
@pytest.mark.parametrize(
    ("settings", "words"),
    [({"sigma_rgb": 15.0}, "divided by 255"), ({"sigma_xy": 0.0}, "sigma_xy"), ({"scale": 1.5}, "scale")],
)
def test_invalid_settings_are_refused(kind, settings, words):
    with pytest.raises(UsageError, match=words):
        kind(**settings)


def test_crf_weight_is_checked():
    with pytest.raises(UsageError, match="crf_weight"):
        KernelCut(crf_weight=-1.0)
