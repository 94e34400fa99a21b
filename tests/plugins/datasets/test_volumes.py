"""Volumes as a data set: whole or in slices, where they lie, what they mean, and folders that do not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from volume_files import AFFINE, SIZE, SPACING, save, write_volumes

from regloss.dataset import IGNORE, Slice
from regloss.errors import UsageError
from regloss.testing import DatasetConformance
from regloss_plugins.datasets.volumes import VolumesDataset

pytest.importorskip("nibabel", reason="pip install 'regloss[volumes]'")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three volumes with labels; only slices 1 and 4 of the first two are scribbled. Not to be changed."""
    return write_volumes(tmp_path_factory.mktemp("data") / "balls")


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """Such a folder, to be spoilt."""
    return write_volumes(tmp_path / "mine")


def read(root: Path, **settings: Any) -> VolumesDataset:
    return VolumesDataset(root, **{"classes": ["background", "ball"], **settings})


class TestWholeVolumes(DatasetConformance):
    subsets = ("train", "test")

    @pytest.fixture(autouse=True)
    def _root(self, root: Path) -> None:
        type(self).root = root

    def make(self) -> VolumesDataset:
        split = {"train": ["case0", "case1"], "test": ["case2"]}
        return VolumesDataset(self.root, classes=["background", "ball"], split=split)


class TestSlices(TestWholeVolumes):
    subsets = ("train-scribbled", "test")

    def make(self) -> VolumesDataset:
        split = {"train": ["case0", "case1-*"], "test": ["case2"]}
        return VolumesDataset(self.root, dims=2, classes=["background", "ball"], split=split)


def test_a_volume(root: Path) -> None:
    data = read(root)
    assert data.ids("all") == data.ids("train") == ("case0", "case1", "case2")
    sample = data.load("case1")
    assert sample.image.shape == (1, *SIZE)
    assert (sample.group, sample.spacing, sample.slice) == ("case1", SPACING, None)
    assert sample.scribble is not None
    assert set(np.flatnonzero((sample.scribble < IGNORE).any((1, 2)))) == {1, 4}
    # The percentiles of its own values.
    assert (sample.image.min(), sample.image.max()) == (0, 1)
    assert 0 < (sample.image == 0).mean() < 0.01
    assert data.load("case2").scribble is None


def test_slices_of_it(root: Path) -> None:
    data, whole = read(root, dims=2), read(root).load("case1")
    assert data.ids("all")[: SIZE[0] + 1] == (*(f"case0-{n:03d}" for n in range(SIZE[0])), "case1-000")
    sample = data.load("case1-004")
    np.testing.assert_array_equal(sample.image, whole.image[:, 4])
    np.testing.assert_array_equal(sample.label, whole.label[4])
    np.testing.assert_array_equal(sample.scribble, whole.scribble[4])
    assert (sample.group, sample.spacing) == ("case1", SPACING[1:])
    assert sample.slice == Slice("case1", 0, 4, SPACING[0])
    assert data.ids("all-scribbled") == ("case0-001", "case0-004", "case1-001", "case1-004")
    assert len(data.ids("all-labelled")) == 3 * SIZE[0]
    across = read(root, dims=2, axis=2)
    assert len(across.ids("all")) == 3 * SIZE[2]
    np.testing.assert_array_equal(across.load("case1-007").label, whole.label[:, :, 7])
    assert across.load("case1-007").slice == Slice("case1", 2, 7, SPACING[2])


def test_slices_are_cut_across_the_largest_spacing(mine: Path) -> None:
    for part in ("images", "labels", "scribbles"):
        for path in (mine / part).glob("*.nii.gz"):
            save(path, np.moveaxis(_values(path), 0, 2), AFFINE[:, [2, 0, 1, 3]])
    turned = read(mine, dims=2).load("case1-004")
    assert turned.spacing == (SPACING[1], SPACING[2])
    assert turned.slice == Slice("case1", 2, 4, SPACING[0])


def _values(path: Path) -> np.ndarray:
    import nibabel

    return np.asarray(nibabel.load(path).dataobj).T


def test_values_and_windows(root: Path) -> None:
    stored = _values(root / "images" / "case0.nii.gz")
    found = read(root, window=[100, 500]).load("case0").image[0]
    np.testing.assert_allclose(found, ((stored - 100) / 400).clip(0, 1), atol=1e-6)
    assert read(root, window=[100, 500]).window == [100, 500]
    low, high = np.percentile(stored, [10, 80])
    found = read(root, percentiles=[10, 80]).load("case0").image[0]
    np.testing.assert_allclose(found, ((stored - low) / (high - low)).clip(0, 1), atol=1e-5)


def test_what_labels_mean(mine: Path) -> None:
    expected = read(mine).load("case0")
    labels, scribbles = mine / "labels" / "case0.nii.gz", mine / "scribbles" / "case0.nii.gz"
    save(labels, np.where(_values(labels) == 1, 200, 7).astype(np.int16))
    drawn = _values(scribbles)
    save(scribbles, np.select([drawn == 0, drawn == 1], [2, 1], 0).astype(np.uint8))
    found = read(
        mine,
        split={"train": ["case0"]},
        labels={7: "background", "200": "ball"},
        scribble_values={1: "ball", 2: 0},
        unlabelled=0,
    ).load("case0")
    np.testing.assert_array_equal(found.label, expected.label)
    np.testing.assert_array_equal(found.scribble, expected.scribble)
    with pytest.raises(UsageError, match=r"labels.case0.nii.gz holds the label values 7, 200, .*label-values = \{7 = "):
        read(mine).load("case0")
    with pytest.raises(UsageError, match="leave one of them out"):
        read(mine, labels={0: 0}, label_values={0: 0})


def test_other_formats_and_groups(mine: Path) -> None:
    itk = pytest.importorskip("SimpleITK", reason="pip install 'regloss[volumes]'")
    path = mine / "images" / "case1.nii.gz"
    itk.WriteImage(itk.ReadImage(str(path)), str(path.with_name("case1.nrrd")))
    path.unlink()
    data = read(mine, group=r"(case)\d", dims=2)
    assert {data.load(key).group for key in ("case0-000", "case1-000")} == {"case"}
    data.check("all-scribbled")


def test_a_folder_that_does_not_fit(mine: Path) -> None:
    read(mine).check("train", need=("label",))
    with pytest.raises(UsageError, match=r"1 of 3 volumes have no scribble file in .*scribbles: case2"):
        read(mine).check("train")
    sliced = read(mine, dims=2, split={"train": ["case0", "case1"]})
    with pytest.raises(UsageError, match=r'on 8 of 12 slices .* nothing is drawn: .*train = "train-scribbled" learns'):
        sliced.check("train")
    sliced.check("train-scribbled")
    scribbles, label = mine / "scribbles" / "case0.nii.gz", mine / "labels" / "case1.nii.gz"
    save(scribbles, _values(scribbles), np.diag([-1, -1, 1, 1]) @ AFFINE)
    save(label, _values(label)[:, :-1])
    save(mine / "labels" / "case7.nii.gz", _values(label))
    with pytest.raises(UsageError) as caught:
        read(mine, split={"train": ["case0", "case1"]}).check("train", need=("scribble", "label"))
    assert "case0.nii.gz has another place or orientation" in str(caught.value)
    assert "case1.nii.gz has the size" in str(caught.value)
    assert "1 label files have no image of that name in" in str(caught.value)
    for key, message in (("case0", "place or orientation"), ("case1", "has the size")):
        with pytest.raises(UsageError, match=message):
            read(mine).load(key)


def test_volumes_that_lie_differently_are_told(mine: Path) -> None:
    assert read(mine).notes == ()
    path = mine / "images" / "case1.nii.gz"
    save(path, _values(path), np.diag([-1, 1, 1, 1]) @ AFFINE)
    (mine / "images" / "notes.txt").write_text("")
    left, turned = read(mine).notes
    assert "1 files that are not of the kinds .nii" in left
    assert turned.startswith("Volumes lie in different directions, fastest axis first: RAS 2 (case0, say), LAS 1 (cas")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dims": 4}, "dims = 4 must be 3"),
        ({"dims": 2, "axis": 3}, "axis = 3 says along which of the axes 0, 1, 2"),
        ({"axis": 0}, "with dims = 3 nothing is cut"),
        ({"percentiles": [50, 50]}, r"percentiles = \[50, 50\] must be two numbers"),
        ({"window": [5, 5]}, "A window is two finite numbers"),
        ({"split": {"train": ["case9"]}}, "match no image"),
        ({"labels": "truth"}, "there is no folder .*truth"),
        ({"images": "pictures"}, "has no folder 'pictures'; volumes are expected there"),
        ({"classes": None}, "the classes of .* are not known.*label files hold the values 0, 1"),
    ],
)
def test_settings_that_do_not_fit(root: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=f"(?s){message}"):
        read(root, **settings)


def test_folders_without_volumes(tmp_path: Path, mine: Path) -> None:
    (tmp_path / "images").mkdir()
    with pytest.raises(UsageError, match=r"holds no volume .* but nothing"):
        read(tmp_path)
    (tmp_path / "images" / "a.png").write_text("")
    with pytest.raises(UsageError, match=r"only .png; pictures are read by the data set folder"):
        read(tmp_path)
    (mine / "images" / "case0.nrrd").write_text("")
    with pytest.raises(UsageError, match="share a name"):
        read(mine)
    (mine / "images" / "case0.nrrd").unlink()
    (mine / "images" / "case0.nii.gz").write_bytes(b"something")
    with pytest.raises(UsageError, match="cannot be read as NIfTI"):
        read(mine)
