"""Gaussian filters: brute force, reference vectors, symmetry, error of every accuracy, regions, bad input."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from regloss import UsageError
from regloss_plugins.filters.gaussian import ACCURACIES, gaussian_filter
from regloss_plugins.kernels.lattice_splines import Splines, blur

EVERY = [("exact", "fine"), *(("lattice", accuracy) for accuracy in ACCURACIES)]
every_backend = pytest.mark.parametrize(("backend", "accuracy"), EVERY)


def random_image(*shape, seed=0, dtype=torch.float64):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def weights(image, sigma_xy, sigma_rgb):
    """(N, N) of one image (C, *S), pair by pair."""
    features = [image.flatten(1).T / sigma_rgb]
    places = torch.cartesian_prod(*(torch.arange(n, dtype=image.dtype) for n in image.shape[1:]))
    features.append(places.reshape(image[0].numel(), -1) / sigma_xy)
    matrix = torch.cat(features, 1)
    return torch.exp(-(matrix[:, None] - matrix[None]).square().sum(-1) / 2)


def matrix_of(bound):
    """(N, N) of the first image."""
    size = bound.shape[1:]
    eye = torch.eye(math.prod(size), dtype=torch.float64).reshape(1, -1, *size)
    return bound(eye.expand(bound.shape[0], *eye.shape[1:]))[0].flatten(1)


@pytest.mark.parametrize(
    ("shape", "sigma_xy", "sigma_rgb"),
    [
        ((3, 12, 12), 5.0, 0.15),
        ((1, 13, 17), 2.0, 0.3),
        ((5, 24, 21), 30.0, 0.5),
        ((2, 4, 6, 5), 2.0, 0.2),
        ((3, 40), 9.0, 0.1),
    ],
)
def test_exact_is_the_sum(shape, sigma_xy, sigma_rgb):
    image, values = random_image(2, *shape), random_image(2, 4, *shape[1:], seed=1)
    found = gaussian_filter(image, sigma_xy, sigma_rgb, backend="exact")(values)
    for one, given, result in zip(image, values, found, strict=True):
        expected = weights(one, sigma_xy, sigma_rgb) @ given.flatten(1).T
        torch.testing.assert_close(result.flatten(1).T, expected, rtol=1e-12, atol=0)


def test_exact_on_the_reference_vectors(oracles: Path):
    dense = np.load(oracles / "densecrf.npz")
    image = torch.from_numpy(dense["img"]).movedim(-1, 0).unsqueeze(0)
    s = torch.from_numpy(dense["S"]).T.reshape(1, 3, 12, 12)
    bound = gaussian_filter(image, float(dense["sigma_xy"]), float(dense["sigma_rgb"]), backend="exact")
    found = (bound(s) - s)[0].flatten(1).T  # the vectors' weights are 0 on the diagonal
    np.testing.assert_allclose(found.numpy(), dense["WS"], rtol=1e-9, atol=1e-9)
    ones = bound(torch.ones(1, 1, 12, 12, dtype=torch.float64)) - 1
    np.testing.assert_allclose(ones.flatten().numpy(), dense["degree"], rtol=1e-9)


def test_exact_over_many_tiles(monkeypatch):
    """Tiles that do not divide the pixels, every pair of them visited once."""
    image, values = random_image(1, 3, 9, 11), random_image(1, 2, 9, 11, seed=1)
    bound = gaussian_filter(image, 4.0, 0.3, backend="exact")
    expected = bound(values)
    monkeypatch.setattr(bound, "_tile", 10)
    torch.testing.assert_close(bound(values), expected, rtol=1e-12, atol=0)


def test_exact_in_float32_with_narrow_bandwidths():
    """Products of long feature vectors would cancel in float32."""
    image, values = random_image(1, 1, 8, 8, dtype=torch.float32) / 50, torch.ones(1, 1, 8, 8)
    found = gaussian_filter(image, 3.0, 1e-4, backend="exact")(values)
    expected = gaussian_filter(image.double(), 3.0, 1e-4, backend="exact")(values.double())
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=0)


@every_backend
@pytest.mark.parametrize("shape", [(3, 9, 8), (1, 11, 7), (2, 4, 5, 6), (1, 30)])
def test_symmetric_positive_semidefinite_with_unit_diagonal(backend, accuracy, shape):
    region = random_image(1, *shape[1:], seed=3) > 0.2
    matrix = matrix_of(gaussian_filter(random_image(1, *shape), 3.0, 0.2, region, backend=backend, accuracy=accuracy))
    torch.testing.assert_close(matrix, matrix.T, rtol=0, atol=1e-14)
    torch.testing.assert_close(matrix.diagonal(), region.flatten().double(), rtol=0, atol=1e-13)
    assert float(matrix.min()) >= 0
    assert float(torch.linalg.eigvalsh(matrix).min()) >= -1e-13


@every_backend
def test_adjoint_of_itself(backend, accuracy):
    """<W x, y> = <x, W y> to the last digits, in both precisions, with more channels than one pass takes."""
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
        image = random_image(2, 3, 31, 23, dtype=dtype)
        bound = gaussian_filter(image, 9.0, 0.3, backend=backend, accuracy=accuracy)
        x, y = random_image(2, 37, 31, 23, seed=1, dtype=dtype), random_image(2, 37, 31, 23, seed=2, dtype=dtype)
        assert float((bound(x) * y).sum()) == pytest.approx(float((x * bound(y)).sum()), rel=tolerance)
        assert bound(x).dtype == dtype


@every_backend
def test_each_channel_for_itself(backend, accuracy):
    """Whatever the number of channels, and so the width of the compiled rows."""
    bound = gaussian_filter(random_image(1, 3, 12, 19), 4.0, 0.2, backend=backend, accuracy=accuracy)
    values = random_image(1, 70, 12, 19, seed=1)
    one_by_one = torch.cat([bound(values[:, k : k + 1]) for k in range(70)], 1)
    for count in (2, 5, 8, 9, 21, 24, 25, 70):
        torch.testing.assert_close(bound(values[:, :count]), one_by_one[:, :count], rtol=1e-12, atol=0)


@every_backend
def test_gradient_is_the_filter(backend, accuracy):
    bound = gaussian_filter(random_image(1, 3, 5, 4), 2.0, 0.2, backend=backend, accuracy=accuracy)
    values = random_image(1, 2, 5, 4, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(bound, values)
    assert torch.autograd.gradgradcheck(bound, values)


@every_backend
@pytest.mark.parametrize("shape", [(3, 14, 17), (1, 5, 6, 7)])
def test_region_of_interest_is_a_crop(backend, accuracy, shape):
    image, values = random_image(2, *shape), random_image(2, 3, *shape[1:], seed=1)
    box = (slice(None), slice(None), *(slice(2, -1) for _ in shape[1:]))
    region = torch.zeros(2, *shape[1:], dtype=torch.bool)
    region[box[1:]] = True
    found = gaussian_filter(image, 4.0, 0.3, region, backend=backend, accuracy=accuracy)(values)
    expected = gaussian_filter(image[box], 4.0, 0.3, backend=backend, accuracy=accuracy)(values[box])
    torch.testing.assert_close(found[box], expected, rtol=1e-10, atol=0)
    assert float(found.masked_fill(region.unsqueeze(1), 0).abs().max()) == 0
    assert torch.equal(found, gaussian_filter(image, 4.0, 0.3, region, backend=backend, accuracy=accuracy)(values))


@every_backend
def test_widths_that_do_not_matter(backend, accuracy):
    """Infinite: colours alone, places alone, and neither, where every pixel gets the sum."""
    image, values = random_image(1, 3, 10, 12), random_image(1, 2, 10, 12, seed=1)
    error = {"exact": 1e-12, "fast": 0.15, "fine": 0.03, "finest": 0.01}["exact" if backend == "exact" else accuracy]
    for sigma_xy, sigma_rgb in ((math.inf, 0.3), (3.0, math.inf), (math.inf, math.inf)):
        found = gaussian_filter(image, sigma_xy, sigma_rgb, backend=backend, accuracy=accuracy)(values)
        expected = (weights(image[0], sigma_xy, sigma_rgb) @ values[0].flatten(1).T).T.reshape(found.shape)
        assert float((found - expected).norm() / expected.norm()) < error


def photograph(height, width):
    """A smooth picture with edges, textures and noise, made up: (1, 3, H, W) in float32, multiples of 1 / 255."""
    y, x = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    disc = ((y - 0.4) ** 2 + (x - 0.6) ** 2 < 0.06).float()
    stripes = ((x + 0.5 * y) * 9).sin() * 0.15 * (y > 0.6)
    planes = [
        0.3 + 0.4 * x + 0.2 * disc + stripes,
        0.6 - 0.3 * y - 0.3 * disc + stripes,
        0.2 + 0.5 * y * x + 0.4 * disc,
    ]
    image = torch.stack(planes) + 0.03 * torch.randn(3, height, width, generator=torch.Generator().manual_seed(0))
    return (image.clamp(0, 1) * 255).round().div(255).unsqueeze(0)


# Measured on this picture, and rounded up.
ERRORS = {
    "fast": {(80, 13): 0.13, (100, 15): 0.13, (20, 13): 0.13, (10, 30): 0.12},
    "fine": {(80, 13): 0.025, (100, 15): 0.025, (20, 13): 0.025, (10, 30): 0.02},
    "finest": {(80, 13): 0.012, (100, 15): 0.014, (20, 13): 0.010, (10, 30): 0.010},
}


@pytest.mark.parametrize(("sigma_xy", "levels"), [(80, 13), (100, 15), (20, 13), (10, 30)])
def test_error_of_the_lattice(sigma_xy, levels):
    """Relative L2 error of filtered class probabilities, against the exact filter."""
    image = photograph(72, 96)
    centres = image[0].flatten(1)[:, ::1400]
    distances = (image[0].unsqueeze(1) - centres[:, :, None, None]).square().sum(0)
    probabilities = (-60 * distances).softmax(0).unsqueeze(0)
    exact = gaussian_filter(image, sigma_xy, levels / 255, backend="exact")(probabilities)
    for accuracy, bounds in ERRORS.items():
        found = gaussian_filter(image, sigma_xy, levels / 255, backend="lattice", accuracy=accuracy)(probabilities)
        error = float((found - exact).norm() / exact.norm())
        assert 0 < error < bounds[sigma_xy, levels], (accuracy, error)


def test_auto_takes_the_backend_that_it_says():
    from regloss_plugins.filters.gaussian import ExactFilter, LatticeFilter

    assert isinstance(gaussian_filter(random_image(1, 3, 20, 20), 5.0, 0.1), ExactFilter)
    assert isinstance(gaussian_filter(random_image(1, 3, 70, 70), 5.0, 0.1), LatticeFilter)
    assert isinstance(gaussian_filter(random_image(1, 5, 70, 70), 5.0, 0.1), ExactFilter)


def test_arguments_are_not_modified():
    image, values = random_image(1, 3, 9, 9), random_image(1, 2, 9, 9, seed=1)
    region = random_image(1, 9, 9, seed=2) > 0.3
    copies = image.clone(), values.clone(), region.clone()
    for backend in ("exact", "lattice"):
        gaussian_filter(image, 3.0, 0.2, region, backend=backend)(values)
    assert all(torch.equal(a, b) for a, b in zip((image, values, region), copies, strict=True))


@every_backend
def test_float16_is_computed_in_float32(backend, accuracy):
    image, values = random_image(1, 3, 9, 9).half(), random_image(1, 2, 9, 9, seed=1).half()
    found = gaussian_filter(image, 3.0, 0.2, backend=backend, accuracy=accuracy)(values)
    expected = gaussian_filter(image.float(), 3.0, 0.2, backend=backend, accuracy=accuracy)(values.float())
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)


@every_backend
def test_autocast_changes_nothing(backend, accuracy):
    image, values = random_image(1, 3, 9, 9, dtype=torch.float32), random_image(1, 2, 9, 9, dtype=torch.float32)
    expected = gaussian_filter(image, 3.0, 0.2, backend=backend, accuracy=accuracy)(values)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(gaussian_filter(image, 3.0, 0.2, backend=backend, accuracy=accuracy)(values), expected)


@pytest.mark.parametrize("backend", ["exact", "lattice"])
@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"sigma_xy": 0.0}, "sigma_xy must be positive"),
        ({"sigma_xy": -1.0}, "sigma_xy must be positive"),
        ({"sigma_rgb": math.nan}, "sigma_rgb must be positive"),
        ({"image": torch.full((1, 3, 4, 4), math.nan)}, "NaN"),
        ({"image": torch.zeros(1, 3, 4, 4, dtype=torch.uint8)}, "uint8"),
        ({"image": torch.zeros(4, 4)}, r"\(B, C, \*S\)"),
        ({"roi": torch.zeros(1, 4, 4, dtype=torch.bool)}, "empty"),
        ({"roi": torch.ones(1, 4, 5, dtype=torch.bool)}, "shape"),
        ({"accuracy": "best"}, "fast, fine, finest"),
    ],
)
def test_bad_input_is_named(backend, given, words):
    settings = {"image": torch.zeros(1, 3, 4, 4), "sigma_xy": 3.0, "sigma_rgb": 0.1, "backend": backend, **given}
    with pytest.raises(UsageError, match=words):
        gaussian_filter(**settings)


def test_unknown_backends_and_values_that_do_not_fit_are_named():
    with pytest.raises(UsageError, match="auto, exact, lattice"):
        gaussian_filter(torch.zeros(1, 3, 4, 4), 3.0, 0.1, backend="permutohedral")
    bound = gaussian_filter(torch.zeros(1, 3, 4, 4), 3.0, 0.1)
    for wrong in (torch.zeros(1, 2, 4, 5), torch.zeros(2, 2, 4, 4), torch.zeros(1, 2, 4, 4, dtype=torch.int64)):
        with pytest.raises(UsageError, match="takes floating-point values"):
            bound(wrong)


def test_a_lattice_beyond_memory_is_refused():
    """A bandwidth of a fraction of a pixel on a colourful image has a node for every colour at every pixel."""
    with pytest.raises(UsageError, match="backend 'exact'"):
        gaussian_filter(random_image(1, 3, 200, 200), 0.2, 0.02, backend="lattice")


@pytest.mark.parametrize(
    "splines",
    [
        Splines(1, 1.2, 1, 3),
        Splines(1, 1.2, 1, 6),
        Splines(2, 1.0, 1, 12),
        Splines(2, 0.8, 2, 12),
        Splines(3, 0.8, 2, 12),
    ],
)
def test_blur_is_positive_semidefinite_and_not_negative(splines):
    """Both are what makes every energy built on the filter sound."""
    numbers = np.array(blur(splines))
    assert len(numbers) == splines.reach + 1
    assert numbers.min() >= 0
    angles = np.linspace(0, np.pi, 1000)
    spectrum = numbers[0] + 2 * sum(n * np.cos(step * angles) for step, n in enumerate(numbers[1:], 1))
    assert spectrum.min() > 0
