"""The conformance suite, inherited by the built-in data sets."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

import regloss
from regloss.testing import DatasetConformance


class TestSample(DatasetConformance):
    subsets = ("train", "val", "test")

    def make(self):
        pytest.importorskip("skimage", reason="the sample images come with scikit-image (extra regloss[sample])")
        return regloss.create("dataset", "sample")


class TestFolder(DatasetConformance):
    subsets = ("train", "test")

    @pytest.fixture(autouse=True)
    def _files(self, tmp_path):
        rng = np.random.default_rng(0)
        for folder in ("images", "labels", "scribbles"):
            (tmp_path / folder).mkdir()
        for number in range(5):
            Image.fromarray(rng.integers(0, 256, (9, 11, 3), dtype=np.uint8)).save(tmp_path / f"images/{number}.png")
            labels = rng.integers(0, 3, (9, 11), dtype=np.uint8)
            Image.fromarray(labels).save(tmp_path / f"labels/{number}.png")
            labels[rng.random((9, 11)) < 0.8] = 255
            Image.fromarray(labels).save(tmp_path / f"scribbles/{number}.png")
        self.root = tmp_path

    def make(self):
        split = {"train": ["0", "1", "2"], "test": ["3", "4"]}
        return regloss.create("dataset", "folder", root=self.root, split=split, classes=3)
