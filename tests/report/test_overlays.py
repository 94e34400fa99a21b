"""Labels over images, pixel by pixel."""

import numpy as np
import pytest
from scipy import ndimage

from regloss.errors import UsageError
from regloss.report.overlays import _thickened, overlay

COLORS = ((0, 0, 0), (230, 40, 40), (40, 90, 250))


@pytest.mark.parametrize("alpha", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("channels", [1, 2, 3])
def test_overlay_blends(alpha, channels):
    image = np.random.default_rng(1).random((channels, 6, 7), dtype=np.float32)
    labels = np.random.default_rng(2).choice(np.array([0, 1, 2, 255]), (6, 7))
    result = overlay(image, labels, COLORS, alpha)
    assert result.shape == (6, 7, 3)
    assert result.dtype == np.uint8
    for y, x in np.ndindex(6, 7):
        grey_or_color = 255 * (image[:, y, x] if channels == 3 else np.repeat(image[0, y, x], 3)).astype(float)
        share = alpha if labels[y, x] != 255 else 0
        color = np.array(COLORS[labels[y, x]] if labels[y, x] != 255 else (0, 0, 0))
        np.testing.assert_allclose(result[y, x], (1 - share) * grey_or_color + share * color, atol=0.51)


def test_overlay_clips_the_image():
    image = np.array([[[-0.5, 1.5]]])
    assert overlay(image, np.array([[255, 255]]), COLORS)[0, :, 0].tolist() == [0, 255]


@pytest.mark.parametrize(
    ("image", "labels", "alpha", "message"),
    [
        (np.zeros((1, 3, 4)), np.zeros((4, 3), int), 0.5, "of its size"),
        (np.zeros((1, 2, 3, 4)), np.zeros((2, 3, 4), int), 0.5, "take one slice"),
        (np.zeros((1, 3, 4)), np.zeros((3, 4)), 0.5, "integers"),
        (np.zeros((1, 3, 4)), np.full((3, 4), 3), 0.5, r"0 to 2 .*\[3\]"),
        (np.zeros((1, 3, 4)), np.full((3, 4), -1), 0.5, r"\[-1\]"),
        (np.zeros((1, 3, 4)), np.zeros((3, 4), int), 1.5, "alpha"),
    ],
)
def test_bad_overlays(image, labels, alpha, message):
    with pytest.raises(UsageError, match=message):
        overlay(image, labels, COLORS, alpha)


@pytest.mark.parametrize("pixels", [0, 1, 3])
def test_thickening_is_scipys_dilation(pixels):
    mask = np.random.default_rng(pixels).random((9, 14)) < 0.1
    expected = ndimage.binary_dilation(mask, iterations=pixels) if pixels else mask
    np.testing.assert_array_equal(_thickened(mask, pixels), expected)
