"""Files of probabilities: what is read back is what was written."""

import numpy as np
import pytest
from PIL import Image, ImageSequence

from regloss.errors import UsageError
from regloss.io.probabilities import save_probabilities

PROBABILITIES = np.random.default_rng(0).dirichlet(np.ones(3), (5, 7)).transpose(2, 0, 1).astype(np.float32)


def test_npy(tmp_path):
    path = save_probabilities(tmp_path, "one.two", PROBABILITIES, "npy")
    assert path.name == "one.two.npy"
    found = np.load(path)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, PROBABILITIES)


def test_tiff_has_a_page_for_each_class(tmp_path):
    path = save_probabilities(tmp_path, "one.two", PROBABILITIES, "tiff")
    assert path.name == "one.two.tif"
    with Image.open(path) as picture:
        pages = [np.asarray(page) for page in ImageSequence.Iterator(picture)]
    np.testing.assert_array_equal(pages, PROBABILITIES)
    assert pages[0].dtype == np.float32


def test_other_formats_are_refused(tmp_path):
    with pytest.raises(UsageError, match="npy or tiff; got 'png'"):
        save_probabilities(tmp_path, "one", PROBABILITIES, "png")
    assert not list(tmp_path.iterdir())
