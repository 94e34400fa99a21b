"""The data set `sample`: what its files must hold for a demonstration to be honest, and what is said if they do not."""

from __future__ import annotations

import importlib.util
import itertools
import shutil
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

import regloss
from regloss.dataset import IGNORE
from regloss.errors import MissingDependency, UsageError
from regloss.io.toml import read_toml
from regloss.testing import DatasetConformance
from regloss_plugins.datasets import sample as module
from regloss_plugins.datasets.sample import SampleDataset

pytest.importorskip("skimage", reason="the images come with scikit-image (the extra regloss[sample])")

SUBSETS = ("train", "val", "test")
INDEX = read_toml(module._DATA / "index.toml")
IDS = [entry["id"] for entry in INDEX["sample"]]


@pytest.fixture(scope="module")
def dataset() -> SampleDataset:
    return SampleDataset()


@pytest.fixture
def copied_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the masks and scribbles that a test may spoil."""
    folder = tmp_path / "sample_data"
    shutil.copytree(module._DATA, folder)
    monkeypatch.setattr(module, "_DATA", folder)
    return folder


@pytest.fixture
def copied_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The images of a pretended scikit-image, which a test may spoil."""
    real = importlib.util.find_spec("skimage")
    assert real is not None
    assert real.submodule_search_locations
    folder = tmp_path / "skimage" / "data"
    folder.mkdir(parents=True)
    for image in INDEX["image"]:
        shutil.copy(Path(real.submodule_search_locations[0]) / "data" / image["file"], folder)
    spec = ModuleSpec("skimage", None, is_package=True)
    spec.submodule_search_locations = [str(folder.parent)]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    return folder


# -- What there is -----------------------------------------------------------------------------------------------------


def test_subsets(dataset: SampleDataset) -> None:
    assert {subset: len(dataset.ids(subset)) for subset in SUBSETS} == {"train": 11, "val": 3, "test": 5}
    everything = [sample_id for subset in SUBSETS for sample_id in dataset.ids(subset)]
    assert sorted(everything) == sorted(IDS)
    assert len(set(everything)) == len(everything)
    assert len(dataset.classes) == len(dataset.colors) == 2


def test_every_image_is_in_every_subset(dataset: SampleDataset) -> None:
    images = {entry["file"] for entry in INDEX["image"]}
    for subset in SUBSETS:
        assert {dataset.regions[sample_id].image.name for sample_id in dataset.ids(subset)} == images


@pytest.mark.parametrize("sample_id", IDS)
def test_sample(dataset: SampleDataset, sample_id: str) -> None:
    sample = dataset.load(sample_id)
    assert sample.id == sample.group == sample_id
    assert sample.image.dtype == np.float32
    assert sample.image.shape[0] == dataset.channels == 3
    assert 128 <= min(sample.image.shape[1:]) <= max(sample.image.shape[1:]) <= 192
    assert sample.image.min() >= 0
    assert sample.image.max() <= 1
    assert sample.image.std() > 0.05
    assert sample.label is not None
    assert sample.scribble is not None
    for labels in (sample.label, sample.scribble):
        assert labels.dtype == np.uint8
        assert labels.shape == sample.image.shape[1:]
        assert {0, 1} <= set(np.unique(labels).tolist()) <= {0, 1, IGNORE}
    assert (sample.label == IGNORE).mean() < 0.08

    drawn = sample.scribble != IGNORE
    assert 0.005 < drawn.mean() < 0.06
    np.testing.assert_array_equal(sample.scribble[drawn], sample.label[drawn])
    # A few strokes in each class, not confetti.
    for value in (0, 1):
        strokes, count = ndimage.label(sample.scribble == value, structure=np.ones((3, 3)))
        assert 1 <= count <= 4
        assert np.bincount(strokes.ravel())[1:].min() >= 30


def edge_profile(image: np.ndarray, label: np.ndarray) -> tuple[float, float]:
    """How much colour changes across the boundary of the object: on the boundary, and on parallels 6 px off it."""
    colors = ndimage.gaussian_filter(image, (0, 1.5, 1.5))
    gradient = np.stack(np.gradient(colors, axis=(1, 2)), axis=1)
    distance = ndimage.distance_transform_edt(label != 1) - ndimage.distance_transform_edt(label != 0)
    normal = np.stack(np.gradient(ndimage.gaussian_filter(distance, 2)))
    change = np.abs((gradient * normal).sum(axis=1)).sum(axis=0)
    off = np.abs(distance)
    return float(change[off <= 1].mean()), float(change[(off >= 5) & (off <= 7)].mean())


@pytest.mark.parametrize("sample_id", IDS)
def test_boundary_lies_on_an_edge(dataset: SampleDataset, sample_id: str) -> None:
    sample = dataset.load(sample_id)
    assert sample.label is not None
    on_boundary, beside = edge_profile(sample.image, sample.label)
    assert on_boundary > 1.4 * beside


def test_boundary_test_notices_a_shifted_mask(dataset: SampleDataset) -> None:
    sample = dataset.load("coins-bottom-left")
    assert sample.label is not None
    on_boundary, beside = edge_profile(sample.image[:, 5:, 5:], sample.label[:-5, :-5])
    assert on_boundary < 1.4 * beside


def test_regions_do_not_overlap(dataset: SampleDataset) -> None:
    for one, other in itertools.combinations(IDS, 2):
        first, second = dataset.regions[one], dataset.regions[other]
        if first.image == second.image:
            beside = first.box[2] <= second.box[0] or second.box[2] <= first.box[0]
            above = first.box[3] <= second.box[1] or second.box[3] <= first.box[1]
            assert beside or above, f"{one} and {other} share pixels"


def test_image_is_the_region_of_the_installed_image(dataset: SampleDataset) -> None:
    region = dataset.regions["coffee-bottom-left"]
    left, top, right, bottom = region.box
    with Image.open(region.image) as picture:
        expected = np.asarray(picture.convert("RGB").crop((left, top, right, bottom)))
    np.testing.assert_array_equal(
        np.rint(np.moveaxis(dataset.load("coffee-bottom-left").image, 0, 2) * 255).astype(np.uint8), expected
    )


def test_loading_twice_shares_nothing(dataset: SampleDataset) -> None:
    first = dataset.load("coins-top-left")
    kept = first.image.copy()
    first.image[:] = 0
    np.testing.assert_array_equal(dataset.load("coins-top-left").image, kept)


def test_files() -> None:
    files = sorted(path.name for path in module._DATA.glob("*.png"))
    assert files == sorted(f"{sample_id}.{part}.png" for sample_id in IDS for part in ("label", "scribble"))
    for name in files:
        with Image.open(module._DATA / name) as picture:
            assert picture.mode == "L"
    assert sum(path.stat().st_size for path in module._DATA.iterdir()) < 100_000
    for image in INDEX["image"]:
        assert image["source"]
        assert image["license"]


# -- What goes wrong ---------------------------------------------------------------------------------------------------


def test_unknown_subset(dataset: SampleDataset) -> None:
    with pytest.raises(UsageError, match=r"no subset 'validation'; there are 'train', .*'val'"):
        dataset.ids("validation")


def test_unknown_id(dataset: SampleDataset) -> None:
    with pytest.raises(UsageError, match="no image 'coins'; there are coins-top-left, "):
        dataset.load("coins")


def test_without_scikit_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "skimage", None)
    with pytest.raises(MissingDependency, match=r"scikit-image, which is not installed; install regloss\[sample\]"):
        SampleDataset()


def test_scikit_image_without_the_images(copied_images: Path) -> None:
    (copied_images / "ihc.png").unlink()
    with pytest.raises(MissingDependency, match=r"needs ihc\.png in .*; install regloss\[sample\]"):
        SampleDataset()


def test_another_image(copied_images: Path) -> None:
    with Image.open(copied_images / "coins.png") as picture:
        pixels = np.asarray(picture).copy()
    pixels[0, 0] ^= 1
    Image.fromarray(pixels).save(copied_images / "coins.png")
    dataset = SampleDataset()
    with pytest.raises(UsageError, match=r"coins\.png is not the image that the masks"):
        dataset.load("coins-bottom-right")
    assert dataset.load("coffee-top-left").image.shape == (3, 192, 192)


def test_an_image_that_was_compressed_anew_is_the_same(copied_images: Path, dataset: SampleDataset) -> None:
    before = (copied_images / "coins.png").read_bytes()
    with Image.open(copied_images / "coins.png") as picture:
        picture.convert("RGB").save(copied_images / "coins.png", compress_level=1)
    assert (copied_images / "coins.png").read_bytes() != before
    np.testing.assert_array_equal(SampleDataset().load("coins-top-left").image, dataset.load("coins-top-left").image)


def test_mask_of_another_size(copied_data: Path) -> None:
    Image.fromarray(np.zeros((144, 127), dtype=np.uint8)).save(copied_data / "coins-top-left.label.png")
    with pytest.raises(UsageError, match=r"coins-top-left\.label\.png is \(144, 127\)"):
        SampleDataset().load("coins-top-left")


def test_mask_with_an_unknown_class(copied_data: Path) -> None:
    Image.fromarray(np.full((144, 128), 2, dtype=np.uint8)).save(copied_data / "coins-top-left.scribble.png")
    with pytest.raises(UsageError, match=r"coins-top-left\.scribble\.png holds the label value 2"):
        SampleDataset().load("coins-top-left")


def test_missing_mask(copied_data: Path) -> None:
    (copied_data / "coins-top-left.label.png").unlink()
    with pytest.raises(UsageError, match=r"coins-top-left\.label\.png cannot be read"):
        SampleDataset().load("coins-top-left")


class TestSample(DatasetConformance):
    subsets = ("train", "val", "test")

    def make(self):
        pytest.importorskip("skimage", reason="the sample images come with scikit-image (extra regloss[sample])")
        return regloss.create("dataset", "sample")
