"""Colours in CIE Lab, against scikit-image."""

import numpy as np
import pytest
import torch

from regloss.color import lab
from regloss.errors import UsageError


def test_lab_is_that_of_scikit_image():
    color = pytest.importorskip("skimage.color")
    axes = np.linspace(0, 1, 18)  # with values of the line near black
    rgb = np.stack(np.meshgrid(axes, axes, axes)).reshape(3, -1)
    expected = color.rgb2lab(rgb.T[None])[0].T / [[100], [220], [220]] + [[0], [0.5], [0.5]]
    found = lab(torch.from_numpy(rgb).unsqueeze(0))
    assert found.dtype == torch.float64
    np.testing.assert_allclose(found[0], expected, atol=2e-6)
    assert 0 <= float(found.min()) <= float(found.max()) <= 1
    single = lab(torch.from_numpy(rgb).float().reshape(1, 3, 18, 18, 18))
    np.testing.assert_allclose(single.flatten(2), found, atol=2e-6)


def test_grey_has_no_chroma():
    grey = torch.linspace(0, 1, 50).expand(1, 3, 50)
    found = lab(grey)
    torch.testing.assert_close(found[:, 1:], torch.full((1, 2, 50), 0.5), atol=1e-4, rtol=0)
    assert bool((found[0, 0].diff() > 0).all())


def test_what_is_no_colour():
    with pytest.raises(UsageError, match="image of 1 channels"):
        lab(torch.rand(1, 1, 4, 4))
    with pytest.raises(UsageError, match=r"\[0, 1\]"):
        lab(2 * torch.ones(1, 3, 4, 4))
