"""Arrays as images: the type says what the values mean, and what does not fit is refused with a way out."""

import numpy as np
import pytest
import torch
from PIL import Image

from regloss.errors import UsageError
from regloss.io.arrays import image_from_array
from regloss.io.images import read_image


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 3)])
def test_an_array_is_what_its_file_is(tmp_path, shape, channels):
    pixels = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    expected = read_image(tmp_path / "a.png", channels)
    for given in (pixels, torch.from_numpy(pixels), pixels / 255):
        found = image_from_array(given, channels)
        assert found.dtype == np.float32
        assert found.flags.c_contiguous
        np.testing.assert_allclose(found, expected, atol=1e-7)
    np.testing.assert_array_equal(image_from_array(pixels, channels), expected)


def test_types_say_what_white_is():
    assert image_from_array(np.array([[0, 13107, 65535]], dtype=np.uint16), 1).ravel().tolist() == [
        0.0,
        pytest.approx(0.2),
        1.0,
    ]
    assert image_from_array(np.zeros((1, 2), dtype=np.uint16), 1).ravel().tolist() == [0.0, 0.0]
    assert image_from_array(np.array([[False, True]]), 1).ravel().tolist() == [0.0, 1.0]
    assert image_from_array(torch.tensor([[[0.25]]], dtype=torch.float16), 3).ravel().tolist() == [0.25] * 3
    floats = torch.rand(4, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
    np.testing.assert_array_equal(image_from_array(floats, 1)[0], floats.detach())


def test_other_channels():
    image = np.random.default_rng(0).random((5, 7, 4))
    np.testing.assert_allclose(image_from_array(image, 4), np.moveaxis(image, -1, 0), rtol=1e-6)
    for array, message in (
        (image[..., :3], r"An image is \(H, W, 4\); got the shape \(5, 7, 3\)\.$"),
        (np.moveaxis(image, -1, 0), "Move the channels behind"),
    ):
        with pytest.raises(UsageError, match=message):
            image_from_array(array, 4)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.array([[0.0, 200.0]]), r"values from 0 to 200. Divide it by the value of white"),
        (np.array([[-0.1, 0.5]]), r"values from -0.1 to 0.5"),
        (np.array([[0.5, np.nan]]), "got NaN"),
        (np.array([[0, 4095]], dtype=np.uint16), r"go up to 4095, so 65535 is hardly white. Divide by what is"),
        (np.array([[0, 1]]), r"got int64, which does not say what is white"),
        (np.array([["a"]], dtype=object), "got object"),
        (np.zeros((4, 3, 5, 3)), "one image at a time"),
        (np.zeros((3, 5, 7)), r"\(3, 5, 7\). Move the channels behind"),
        (np.zeros((5, 7, 4)), r"Leave the last of its 4 channels out"),
        (np.zeros((5, 7, 5)), r"1 or 3 channels; got the shape \(5, 7, 5\)"),
        (np.zeros((0, 7)), r"got the shape \(0, 7\)"),
        (np.zeros(7), r"got the shape \(7,\)"),
        (np.ma.masked_array(np.zeros((2, 2)), [[0, 0], [0, 1]]), "masked out"),
    ],
)
def test_what_is_no_image_is_refused(array, message):
    with pytest.raises(UsageError, match=message):
        image_from_array(array, 3)
