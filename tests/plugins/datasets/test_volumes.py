"""Volumes as a data set: whole or in slices, where they lie, what they mean, and folders that do not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from volume_files import AFFINE, SIZE, SPACING, save, save_series, write_volumes

from regloss.dataset import IGNORE, Slice
from regloss.errors import UsageError
from regloss.io.volumes import read_volume
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


@pytest.mark.parametrize("kind", ["files", "stacked", "vectors", "stacks"])
def test_several_channels(mine: Path, kind: str) -> None:
    """A file each, or one file, of whichever kind: the same samples, each channel by percentiles of its own."""
    tifffile = pytest.importorskip("tifffile", reason="pip install 'regloss[tiff]'")
    single = read(mine, dims=2).load("case1-002")
    for path in (mine / "images").iterdir():
        values, case = read_volume(path).values[0], path.name.split(".")[0]
        both = np.stack([values[::-1], 3 * values])
        path.unlink()
        if kind == "files":
            for number, channel in enumerate(both):
                save(path.with_name(f"{case}_{number:04d}.nii.gz"), channel)
        elif kind == "stacks":
            metadata = {f"PhysicalSize{axis}": step for axis, step in zip("ZYX", SPACING, strict=True)}
            metadata |= {f"PhysicalSize{axis}Unit": "mm" for axis in "ZYX"} | {"axes": "CZYX"}
            tifffile.imwrite(path.with_name(f"{case}.ome.tif"), both, ome=True, metadata=metadata)
        else:
            save(path, both if kind == "stacked" else both[:, None])
    told = {"channels": 2} if kind in ("files", "stacked") else {}
    for dims in (2, 3):
        data = read(mine, dims=dims, **told)
        assert data.channels == 2
        data.check("train", need=())
    whole, cut = data.load("case1"), read(mine, dims=2, **told).load("case1-002")
    assert (whole.image.shape, whole.spacing) == ((2, *SIZE), SPACING)
    np.testing.assert_array_equal(cut.image, whole.image[:, 2])
    np.testing.assert_allclose(cut.image[1:], single.image, atol=1e-6)
    np.testing.assert_allclose(whole.image[0], whole.image[1, ::-1], atol=1e-6)
    assert whole.scribble is not None
    with pytest.raises(UsageError, match="channels"):
        read(mine, channels=3).check("train", need=())


def test_channels_that_do_not_agree(mine: Path) -> None:
    one = mine / "images" / "case1.nii.gz"
    save(one, np.stack([read_volume(one).values] * 2))  # (C, 1, *S): NIfTI's fifth axis
    with pytest.raises(UsageError, match=r"case1\.nii\.gz has 2 channels, but 1 is needed"):
        read(mine).check("train", need=())
    with pytest.raises(UsageError, match=r"channels = 0 must be a whole number from 1"):
        read(mine, channels=0)


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


def write_as(kind: str, folder: Path, values: np.ndarray) -> None:
    """case1 of another format, in place of the NIfTI."""
    (folder / "case1.nii.gz").unlink()
    if kind == "ome":
        sizes = {f"PhysicalSize{axis}": size for axis, size in zip("ZYX", SPACING, strict=True)}
        units = {f"PhysicalSize{axis}Unit": "mm" for axis in "ZYX"}
        tifffile = pytest.importorskip("tifffile")
        options = {"ome": True, "metadata": {"axes": "ZYX", **sizes, **units}}
        tifffile.imwrite(folder / "case1.ome.tif", values, photometric="minisblack", **options)
    elif kind == "pages":
        pytest.importorskip("tifffile").imwrite(folder / "case1.tif", values, photometric="minisblack")
    elif kind == "npy":
        np.save(folder / "case1.npy", values)
    elif kind == "hdf5":
        with pytest.importorskip("h5py").File(folder / "case1.h5", "w") as file:
            file["image"] = values
    else:
        pytest.importorskip("SimpleITK")
        save_series(folder / "case1", values)


STATED = ("ome", "series")


@pytest.mark.parametrize("kind", [*STATED, "pages", "npy", "hdf5"])
def test_formats(mine: Path, kind: str) -> None:
    """The same volume in each; labels and scribbles as NIfTI, and in those formats that hold them."""
    expected = read(mine).load("case1")
    write_as(kind, mine / "images", _values(mine / "images" / "case1.nii.gz"))
    steps = None if kind in STATED else list(SPACING)
    data = read(mine, file_spacing=steps)
    assert data.ids("all") == ("case0", "case1", "case2")
    assert not any("do not state" in note or "Left out" in note for note in data.notes)
    # Where a file says where it lies, labels must lie there.
    places = {"series": np.diag([-1.0, -1, 1, 1]) @ np.diag([*SPACING[::-1], 1])}
    for part in ("labels", "scribbles"):
        save(mine / part / "case1.nii.gz", _values(mine / part / "case1.nii.gz"), places.get(kind, AFFINE))
    for part in ((), ("labels", "scribbles"))[kind != "series"]:
        write_as(kind, mine / part, _values(mine / part / "case1.nii.gz"))
    found = read(mine, file_spacing=steps).load("case1")
    np.testing.assert_allclose(found.image, expected.image, atol=1e-6)
    np.testing.assert_array_equal(found.label, expected.label)
    np.testing.assert_array_equal(found.scribble, expected.scribble)
    assert found.spacing == SPACING
    sliced = read(mine, dims=2, file_spacing=steps)
    np.testing.assert_array_equal(sliced.load("case1-004").image, found.image[:, 4])
    if kind not in STATED:
        (note,) = [note for note in read(mine).notes if "do not state" in note]
        assert note.startswith("1 volumes do not state their spacing, which counts as 1 mm: case1; file-spacing = [S")
        assert read(mine).load("case1").spacing == (1, 1, 1)


def test_pictures_are_no_volumes(mine: Path) -> None:
    tifffile = pytest.importorskip("tifffile")
    tifffile.imwrite(mine / "images" / "flat.tif", np.zeros((20, 24), np.uint8), photometric="minisblack")
    with pytest.raises(UsageError, match=r"flat.tif is a picture of 20 x 24 pixels, not a volume"):
        read(mine).check("all", need=())
    (mine / "images" / "flat.tif").unlink()
    np.save(mine / "images" / "two.npy", np.zeros((2, *SIZE), np.uint8))
    with pytest.raises(UsageError, match=r"two.npy has 2 channels, but 1 is needed"):
        read(mine).check("all", need=())


@pytest.fixture
def mixed(mine: Path) -> Path:
    """The same, case1 with pixels of half the width, case2 with slices of half the distance."""
    for key, axes in (("case1", (1, 2)), ("case2", (0,))):
        scale = np.array([0.5 if axis in axes else 1.0 for axis in range(3)])
        affine = AFFINE @ np.diag([*scale[::-1], 1.0])
        affine[:3, 3] += (np.diag(AFFINE)[:3] * (scale[::-1] - 1)) / 2  # the first voxel's centre moves
        for part in ("images", "labels", "scribbles"):
            path = mine / part / f"{key}.nii.gz"
            if path.exists():
                values = _values(path)
                for axis in axes:
                    values = values.repeat(2, axis)
                save(path, values, affine)
    return mine


@pytest.mark.parametrize("spacing", [list(SPACING), "median"])
def test_one_spacing(mixed: Path, spacing: Any) -> None:
    apart, data = read(mixed), read(mixed, spacing=spacing)
    assert [apart.load(key).spacing for key in ("case1", "case2")] == [(3.0, 0.5, 0.5), (1.5, 1.0, 1.0)]
    assert apart.spacing is None
    assert data.spacing == SPACING
    for key in ("case0", "case1", "case2"):
        sample, stored = data.load(key), apart.load(key)
        assert sample.image.shape == (1, *SIZE)
        assert sample.spacing == SPACING
        assert 0 <= sample.image.min() <= sample.image.max() <= 1
        assert sample.label is not None
        assert stored.label is not None
        # Each voxel was only repeated.
        np.testing.assert_array_equal(
            sample.label,
            stored.label[tuple(slice(None, None, b // a) for a, b in zip(SIZE, stored.label.shape, strict=True))],
        )
        assert abs(float(sample.image.mean() - stored.image.mean())) < 1e-3
        assert (sample.scribble is None) == (stored.scribble is None)
    assert data.load("case1").scribble is not None
    np.testing.assert_array_equal(data.load("case1").scribble, apart.load("case1").scribble[:, ::2, ::2])
    np.testing.assert_array_equal(data.load("case0").image, apart.load("case0").image)
    data.check("train", need=("label",))


def test_slices_of_one_spacing_stay_as_far_apart(mixed: Path) -> None:
    data, whole = read(mixed, dims=2, spacing=[1.0, 1.0]), read(mixed, spacing=[3.0, 1.0, 1.0])
    assert data.spacing == (1.0, 1.0)
    assert read(mixed, dims=2, spacing="median").spacing == (1.0, 1.0)
    sample = data.load("case1-004")
    assert sample.spacing == (1.0, 1.0)
    assert sample.slice == Slice("case1", 0, 4, 3.0)
    np.testing.assert_array_equal(sample.image, whole.load("case1").image[:, 4])
    np.testing.assert_array_equal(sample.scribble, whole.load("case1").scribble[4])
    assert len([key for key in data.ids("all") if key.startswith("case2")]) == 2 * SIZE[0]
    assert data.load("case2-003").slice == Slice("case2", 0, 3, 1.5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"spacing": [1, 1]},
            r"spacing = \[1, 1\] must be \"median\", or 3 positive numbers, the mm between .* slices,",
        ),
        ({"spacing": [3, 0, 1]}, r"spacing = \[3, 0, 1\] must be"),
        ({"spacing": "mean"}, "spacing = 'mean' must be"),
        (
            {"spacing": [3, 1, 1], "dims": 2},
            "or 2 positive numbers, the mm between neighbouring rows and columns of slices",
        ),
        ({"file_spacing": [3, 1]}, r"file-spacing = \[3, 1\] must be 3 positive numbers"),
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
    data = read(mine)  # the others can be read
    for use in (lambda: data.load("case0"), lambda: data.check("all", need=())):
        with pytest.raises(UsageError, match="cannot be read as NIfTI"):
            use()
    data.load("case1")
    with pytest.raises(UsageError, match="cannot be read as NIfTI"):
        read(mine, dims=2)
