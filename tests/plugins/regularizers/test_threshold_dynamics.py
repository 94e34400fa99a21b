"""Threshold dynamics: conformance of every kernel, its definition in plain loops, concavity, perimeters."""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from regloss import Concave, UsageError
from regloss.numerics import one_hot
from regloss.testing import RegularizerConformance
from regloss_plugins.regularizers import threshold_dynamics
from regloss_plugins.regularizers.threshold_dynamics import ThresholdDynamics


def kernel_by_loops(settings, ndim):
    """Weight by offset."""
    reach = int(settings.reach)
    offsets = list(itertools.product(range(-reach, reach + 1), repeat=ndim))
    if settings.kernel == "disk":
        weights = {z: float(sum(step**2 for step in z) <= settings.reach**2) for z in offsets}
    elif settings.kernel == "truncated-gaussian":
        weights = {z: math.exp(-sum(step**2 for step in z) / (2 * settings.sigma**2)) for z in offsets}
    else:
        half = (reach + 1) // 2
        small = list(itertools.product(range(-half, half + 1), repeat=ndim))
        root = {z: math.exp(-sum(step**2 for step in z) / settings.sigma**2) for z in small}
        weights = {}
        for (y, a), (z, b) in itertools.product(root.items(), root.items()):
            offset = tuple(first + second for first, second in zip(y, z, strict=True))
            weights[offset] = weights.get(offset, 0.0) + a * b
    total = sum(weights.values())
    return {z: weight / total for z, weight in weights.items()}


def matrix_by_loops(settings, size):
    """K as a dense matrix, zeros outside the grid."""
    kernel = kernel_by_loops(settings, len(size))
    pixels = list(itertools.product(*map(range, size)))
    rows = [[kernel.get(tuple(a - b for a, b in zip(p, q, strict=True)), 0.0) for q in pixels] for p in pixels]
    return torch.tensor(rows, dtype=torch.float64)


def edges_by_loops(image, scale):
    """e of one image (C, *S), flat."""
    size = image.shape[1:]
    edges = []
    for p in itertools.product(*map(range, size)):
        square = 0.0
        for axis in range(len(size)):
            if p[axis] + 1 < size[axis]:
                q = tuple(step + (axis == other) for other, step in enumerate(p))
                square += float((image[(..., *q)] - image[(..., *p)]).square().sum())
        edges.append(1 / (1 + scale * square))
    return torch.tensor(edges, dtype=torch.float64)


def energy_by_loops(settings, image, probabilities):
    energies = []
    matrix = matrix_by_loops(settings, image.shape[2:])
    for one, s in zip(image, probabilities.flatten(2), strict=True):
        e = edges_by_loops(one, settings.edge_scale) if settings.edge else torch.ones(s.shape[1], dtype=torch.float64)
        if settings.edge == "plain":
            energies.append(settings.weight * sum((e * u) @ matrix @ (1 - u) for u in s))
        else:
            energies.append(settings.weight * sum((e.sqrt() * u) @ matrix @ (e.sqrt() * (1 - u)) for u in s))
    return torch.stack(energies)


class Suite(RegularizerConformance):
    spatial = (1, 2, 3)
    nonnegative = True

    def discrete_energy(self, image, labels):
        return energy_by_loops(self.make(), image, one_hot(labels, self.classes, torch.float64))


class TestGaussian(Suite):
    def make(self):
        return ThresholdDynamics(weight=1.3, sigma=0.9)


class TestGaussianWithEdges(Suite):
    spatial = (2, 3)

    def make(self):
        return ThresholdDynamics(weight=0.7, sigma=1.0, radius=3, edge="sqrt", edge_scale=4.0)


class TestTruncatedGaussianWithPlainEdges(Suite):
    spatial = (2, 3)

    def make(self):
        return ThresholdDynamics(weight=2.0, sigma=2.0, radius=2, kernel="truncated-gaussian", edge="plain")


class TestDisk(Suite):
    def make(self):
        return ThresholdDynamics(weight=1.1, kernel="disk", radius=1.5)


class TestWithoutWeight(Suite):
    spatial = (2,)

    def make(self):
        return ThresholdDynamics(weight=0.0, kernel="disk", radius=2)


ALL = [
    ThresholdDynamics(weight=1.3, sigma=1.2),
    ThresholdDynamics(weight=1.3, sigma=2.0, radius=3),
    ThresholdDynamics(sigma=1.0, edge="sqrt"),
    ThresholdDynamics(sigma=1.0, edge="plain"),
    ThresholdDynamics(sigma=5.0, radius=3, kernel="truncated-gaussian"),
    ThresholdDynamics(sigma=1.0, radius=3, kernel="truncated-gaussian", edge="plain", edge_scale=100.0),
    ThresholdDynamics(kernel="disk", radius=2.5),
    ThresholdDynamics(kernel="disk", radius=1.5, edge="sqrt"),
]


def case(size, seed=0):
    generator = torch.Generator().manual_seed(seed)
    image = torch.rand(2, 3, *size, generator=generator, dtype=torch.float64)
    return image, torch.randn(2, 3, *size, generator=generator, dtype=torch.float64).softmax(1)


@pytest.mark.parametrize("settings", ALL)
@pytest.mark.parametrize("size", [(5, 6), (3, 2, 4)])
def test_energy_follows_the_definition(settings, size):
    image, probabilities = case(size)
    expected = energy_by_loops(settings, image, probabilities)
    torch.testing.assert_close(settings.bind(image).energy(probabilities), expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("settings", ALL)
def test_supergradient_matches_finite_differences(settings):
    image, probabilities = case((6, 7))
    form = settings.bind(image).form(Concave)
    slope = form.supergradient(probabilities)
    for seed in range(3):
        direction = torch.randn(slope.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        ends = [form.value(probabilities + sign * 1e-5 * direction) for sign in (1, -1)]
        expected = (ends[0] - ends[1]) / 2e-5
        # R is quadratic, and its derivative is p along all directions, not only those that keep the sum over classes.
        torch.testing.assert_close((slope * direction).flatten(1).sum(1), expected, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("settings", ALL)
@pytest.mark.parametrize("size", [(7, 6), (3, 4, 3)])
def test_curvature_bounds_the_least_eigenvalue(settings, size):
    """And is 0 where K is positive semidefinite by construction."""
    image, _ = case(size)
    term = settings.bind(image)
    matrix = matrix_by_loops(settings, size)
    curvature = term.form(Concave).curvature
    for one in image:
        e = edges_by_loops(one, settings.edge_scale) if settings.edge else torch.ones(len(matrix), dtype=torch.float64)
        if settings.edge == "plain":
            product = e.unsqueeze(1) * matrix
            coupling = (product + product.T) / 2
        else:
            coupling = e.sqrt().unsqueeze(1) * matrix * e.sqrt()
        least = float(torch.linalg.eigvalsh(coupling)[0])
        assert 2 * settings.weight * max(0.0, -least) <= curvature + 1e-12
    if settings.kernel == "gaussian" and settings.edge != "plain":
        assert curvature == 0


@pytest.mark.parametrize(
    ("settings", "least"),
    [
        (ThresholdDynamics(sigma=5.0, radius=3, kernel="truncated-gaussian"), -0.194),
        (ThresholdDynamics(sigma=2.0, radius=2, kernel="truncated-gaussian"), -0.134),
        (ThresholdDynamics(kernel="disk", radius=1.5), -1 / 3),
        (ThresholdDynamics(kernel="disk", radius=2), -0.256),
        (ThresholdDynamics(kernel="disk", radius=3), -0.134),
    ],
)
def test_curvature_of_known_kernels(settings, least):
    """Least values of the kernels' Fourier transforms, known from a dense sampling of it."""
    curvature = settings.bind(torch.zeros(1, 1, 60, 62, dtype=torch.float64)).form(Concave).curvature
    assert curvature / -2 == pytest.approx(least, abs=2e-3)


def test_a_published_gaussian_is_almost_concave():
    term = ThresholdDynamics(sigma=3.0, kernel="truncated-gaussian").bind(torch.zeros(1, 1, 50, 50))
    assert 0 < term.form(Concave).curvature < 2 * 3e-5


@pytest.mark.parametrize("form", ["e", "s"])
def test_oracle(form: str, oracles: Path, monkeypatch):
    case = np.load(oracles / "std.npz")
    size = int(case["H"]), int(case["W"])
    edge = torch.from_numpy(case["edge"])[None, None]
    monkeypatch.setattr(threshold_dynamics, "edge_weights", lambda image, roi, scale, spacing: edge)
    settings = ThresholdDynamics(
        weight=float(case["lam"]),
        sigma=1.0,
        kernel="truncated-gaussian",
        edge="plain" if form == "e" else "sqrt",
    )
    term = settings.bind(torch.zeros(1, 1, *size, dtype=torch.float64))

    def field(name):
        return torch.from_numpy(case[name]).T.reshape(1, 3, *size)

    if form == "e":
        probabilities = field("u_test")
        slope = term.form(Concave).supergradient(probabilities)
        torch.testing.assert_close(slope, field("p_e_test"), rtol=0, atol=1e-13)
        assert float(term.energy(probabilities)) == pytest.approx(float(case["R_e_test"]), rel=1e-13)
    scores, entropy = field("o"), float(case["eps"])
    for steps, name in ((0, None), (1, "1"), (2, "2"), (5, "5"), (200, "200")):
        u = (scores / entropy).softmax(1) if name is None else field(f"u_{form}_{name}")
        energy = float(term.energy(u) - (scores * u).sum() + entropy * torch.special.xlogy(u, u).sum())
        assert energy == pytest.approx(float(case[f"energies_{form}"][steps]), rel=1e-12)


@pytest.mark.parametrize("settings", [{"sigma": 2.0}, {"sigma": 4.0}, {"kernel": "disk", "radius": 5}])
def test_perimeter_of_a_disc(settings):
    """Twice (for its two classes) the circle's length; the kernel's scale costs a few parts in a hundred."""
    radius, size = 60, 160
    y, x = torch.meshgrid(*[torch.arange(size) - size / 2 + 0.5] * 2, indexing="ij")
    labels = ((x**2 + y**2).sqrt() < radius).long().unsqueeze(0)
    term = ThresholdDynamics(perimeter=True, **settings).bind(torch.zeros(1, 1, size, size))
    length = float(term.energy(one_hot(labels, 2, torch.float32))) / 2
    assert length == pytest.approx(2 * math.pi * radius, rel=0.03)


@pytest.mark.parametrize(
    "settings",
    [{"sigma": 1.5}, {"sigma": 10.0, "radius": 3, "kernel": "truncated-gaussian"}, {"kernel": "disk", "sigma": 1.2}],
)
def test_perimeter_of_a_straight_boundary_is_exact(settings):
    """Along the axes, for any kernel: forty more rows, all of them away from the border, add twice 40."""
    energies = []
    for height in (40, 80):
        labels = torch.zeros(1, height, 40, dtype=torch.int64)
        labels[:, :, 20:] = 1
        term = ThresholdDynamics(perimeter=True, **settings).bind(torch.zeros(1, 1, height, 40, dtype=torch.float64))
        energies.append(float(term.energy(one_hot(labels, 2, torch.float64))))
    assert energies[1] - energies[0] == pytest.approx(80, rel=1e-12)


def test_perimeter_factor_is_near_that_of_the_continuum():
    _, probabilities = case((9, 10))
    image = torch.zeros(2, 1, 9, 10, dtype=torch.float64)
    for settings, factor in (
        ({"sigma": 3.0}, math.sqrt(2 * math.pi) / 3),
        ({"kernel": "disk", "radius": 6}, 3 * math.pi / 12),
    ):
        scaled = ThresholdDynamics(perimeter=True, **settings).bind(image).energy(probabilities)
        plain = ThresholdDynamics(**settings).bind(image).energy(probabilities)
        torch.testing.assert_close(scaled / plain, torch.full_like(plain, factor), rtol=0.03, atol=0)


def test_sigma_can_be_learnt():
    """Value and supergradient are differentiable in sigma."""
    image, probabilities = case((6, 7))
    sigma = torch.tensor(1.3, dtype=torch.float64, requires_grad=True)
    form = ThresholdDynamics(sigma=sigma, radius=5).bind(image).form(Concave)
    assert form.parameters == (sigma,)

    def value(number):
        return ThresholdDynamics(sigma=number, radius=5).bind(image).energy(probabilities).sum()

    (gradient,) = torch.autograd.grad(form.value(probabilities).sum(), sigma)
    expected = (value(1.3 + 1e-6) - value(1.3 - 1e-6)) / 2e-6
    assert float(gradient) == pytest.approx(float(expected), rel=1e-6)


def test_edges_make_boundaries_cheap():
    """A boundary on an edge of the image costs less than one beside it."""
    image = torch.zeros(1, 1, 20, 20)
    image[..., 10:] = 1
    term = ThresholdDynamics(sigma=1.0, edge="sqrt", edge_scale=100.0).bind(image)
    energies = []
    for cut in (10, 4):
        labels = torch.zeros(1, 20, 20, dtype=torch.int64)
        labels[:, :, cut:] = 1
        energies.append(float(term.energy(one_hot(labels, 2, torch.float32))))
    assert energies[0] < 0.6 * energies[1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sigma": 0}, "sigma"),
        ({"sigma": math.nan}, "sigma"),
        ({"kernel": "box"}, "kernel"),
        ({"radius": 0}, "no neighbours"),
        ({"kernel": "disk", "sigma": 0.3}, "no neighbours"),
        ({"radius": 2.5}, "whole number"),
        ({"radius": math.inf}, "radius"),
        ({"edge": "root"}, "edge"),
        ({"edge_scale": -1.0}, "edge_scale"),
        ({"weight": math.nan}, "weight"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(UsageError, match=message):
        ThresholdDynamics(**settings)


def test_a_kernel_larger_than_the_image():
    """Nothing but the part that fits is felt."""
    image, probabilities = case((3, 4))
    for settings in (ThresholdDynamics(sigma=6.0), ThresholdDynamics(kernel="disk", radius=9)):
        expected = energy_by_loops(settings, image, probabilities)
        torch.testing.assert_close(settings.bind(image).energy(probabilities), expected, rtol=1e-12, atol=1e-13)
