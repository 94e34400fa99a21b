"""Saliency: what it finds on simple pictures, its symmetries, Otsu's threshold against a search, and bad input."""

import numpy as np
import pytest
import torch

from regloss.errors import UsageError
from regloss_plugins.segmenters.saliency import (
    SALIENCIES,
    border_contrast,
    otsu_threshold,
    phases_by_saliency,
    spectral_residual,
)


def disc(size=(24, 30), channels=3, noise=0.03, seed=0):
    """A disc of another colour on a noisy ground (1, C, H, W), and where it is (1, H, W)."""
    rows, columns = torch.meshgrid(*(torch.arange(length) for length in size), indexing="ij")
    inside = (rows - 11) ** 2 + (columns - 14) ** 2 <= 36
    image = torch.where(inside, 0.7, 0.3).expand(1, channels, *size)
    generator = torch.Generator().manual_seed(seed)
    return (image + noise * torch.randn(image.shape, generator=generator)).clamp(0, 1), inside.unsqueeze(0)


@pytest.mark.parametrize("channels", [1, 3])
def test_border_contrast_finds_a_disc(channels):
    image, inside = disc(channels=channels)
    found = phases_by_saliency(image)
    agreed = (found[0] == inside[0].long()).float().mean()
    assert float(agreed) > 0.97


def test_spectral_residual_finds_a_small_object():
    generator = torch.Generator().manual_seed(0)
    image = 0.4 + 0.02 * torch.randn(1, 1, 64, 64, generator=generator)
    image[..., 20:25, 40:45] += 0.4
    row, column = divmod(int(spectral_residual(image).argmax()), 64)
    assert 18 <= row <= 26
    assert 38 <= column <= 46


@pytest.mark.parametrize("name", list(SALIENCIES))
def test_range_and_mirrors(name):
    image, _ = disc()
    maps = SALIENCIES[name](image)
    assert maps.shape == (1, 24, 30)
    assert maps.dtype == image.dtype
    assert float(maps.min()) == 0.0
    assert float(maps.max()) == 1.0
    for axes in ((2,), (3,), (2, 3)):
        mirrored = SALIENCIES[name](image.flip(axes))
        torch.testing.assert_close(mirrored, maps.flip([axis - 1 for axis in axes]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", list(SALIENCIES))
def test_images_of_a_batch_do_not_mix(name):
    first, second = disc(seed=1)[0], disc(noise=0.1, seed=2)[0]
    together = SALIENCIES[name](torch.cat([first, second]))
    torch.testing.assert_close(together, torch.cat([SALIENCIES[name](first), SALIENCIES[name](second)]))


@pytest.mark.parametrize("name", list(SALIENCIES))
def test_volumes_and_rows(name):
    volume = torch.rand(2, 1, 5, 6, 7, generator=torch.Generator().manual_seed(0))
    assert SALIENCIES[name](volume).shape == (2, 5, 6, 7)
    assert SALIENCIES[name](volume[:, :, 0, 0]).shape == (2, 7)


@pytest.mark.parametrize("name", list(SALIENCIES))
def test_nothing_stands_out(name):
    flat = torch.full((1, 3, 12, 9), 0.4)
    assert torch.equal(SALIENCIES[name](flat), torch.zeros(1, 12, 9))
    with pytest.raises(UsageError, match="nothing stands out"):
        phases_by_saliency(flat, name)


def test_a_border_that_the_object_touches_is_left_out():
    image, _ = disc(noise=0.0)
    image[..., 12:, 10:20] = 0.7  # the object goes on to the lower border
    salient = border_contrast(image)[0]
    assert float(salient[14, 14]) > 0.5
    assert float(salient[:, :6].max()) < 0.1


def test_otsu_against_a_search():
    generator = np.random.default_rng(0)
    values = np.concatenate([generator.normal(0.3, 0.05, 300), generator.normal(0.7, 0.1, 200)])
    edges = values.min() + (values.max() - values.min()) * np.arange(1, 256) / 256

    def between(threshold):
        low, high = values[values <= threshold], values[values > threshold]
        return len(low) * len(high) * (high.mean() - low.mean()) ** 2 if len(low) and len(high) else 0.0

    found = float(otsu_threshold(torch.from_numpy(values)[None])[0])
    assert between(found) == pytest.approx(max(map(between, edges)), rel=1e-6)


def test_bad_input():
    with pytest.raises(UsageError, match="no saliency called 'nothing'"):
        phases_by_saliency(disc()[0], "nothing")
    with pytest.raises(UsageError, match="not finite"):
        border_contrast(torch.full((1, 3, 8, 8), float("nan")))
