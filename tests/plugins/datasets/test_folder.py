"""The folder data set: layout, splits, classes and groups on made-up folders, then on real data."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import regloss
from regloss.dataset import IGNORE
from regloss.errors import UsageError
from regloss.testing import DatasetConformance
from regloss_plugins.datasets.folder import FolderDataset

NAMES = ["background", "thing"]
STEMS = ["p1_a", "p1_b", "p2_a", "p3_a"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Four grey images of 5 x 6 pixels; all have labels, p3_a has no scribble."""
    root = tmp_path / "data"
    for folder in ("images", "labels", "scribbles"):
        (root / folder).mkdir(parents=True)
    for index, stem in enumerate(STEMS):
        values = np.full((5, 6), 51 * index, np.uint8)
        Image.fromarray(values).save(root / "images" / f"{stem}.png")
        label = np.zeros((5, 6), np.uint8)
        label[:, 3:] = 1
        Image.fromarray(label).save(root / "labels" / f"{stem}.png")
        label[:, 1:5] = IGNORE
        if stem != "p3_a":
            Image.fromarray(label).save(root / "scribbles" / f"{stem}.png")
    return root


def test_samples_are_read(root: Path) -> None:
    data = FolderDataset(root, classes=NAMES)
    assert data.ids("train") == data.ids("all") == tuple(STEMS)
    assert (data.channels, data.classes, data.colors) == (1, ("background", "thing"), ((0, 0, 0), (128, 0, 0)))
    sample = data.load("p2_a")
    assert (sample.id, sample.group) == ("p2_a", "p2_a")
    np.testing.assert_allclose(sample.image, np.full((1, 5, 6), 0.4), atol=1e-6)
    np.testing.assert_array_equal(sample.label, [[0, 0, 0, 1, 1, 1]] * 5)
    np.testing.assert_array_equal(sample.scribble, [[0, 255, 255, 255, 255, 1]] * 5)
    assert data.load("p3_a").scribble is None
    with pytest.raises(UsageError, match="no image 'p2_b'; did you mean 'p2_a'"):
        data.load("p2_b")
    with pytest.raises(UsageError, match="no subset 'test'; there are 'train', 'all'"):
        data.ids("test")


def test_central_part(root: Path) -> None:
    sample = FolderDataset(root, classes=2, center=3).load("p1_b")
    assert sample.image.shape == (1, 3, 3)
    np.testing.assert_array_equal(sample.label, [[0, 0, 1]] * 3)  # columns 1 to 3 of 6
    np.testing.assert_array_equal(sample.scribble, [[255, 255, 255]] * 3)
    assert FolderDataset(root, classes=2, center=100).load("p1_b").image.shape == (1, 5, 6)
    for wrong in (0, 2.5, True):
        with pytest.raises(UsageError, match="center"):
            FolderDataset(root, classes=2, center=wrong)


def test_reduced_samples(root: Path) -> None:
    sample = FolderDataset(root, classes=2, reduce=2).load("p1_b")
    assert sample.image.shape == (1, 3, 3)
    np.testing.assert_allclose(sample.image, 0.2, atol=1e-6)
    np.testing.assert_array_equal(sample.label, [[0, 0, 1]] * 3)  # the middle blocks tie: the lower class
    np.testing.assert_array_equal(sample.scribble, [[0, 255, 1]] * 3)
    for wrong in (0, -1, 1.5, True, "2"):
        with pytest.raises(UsageError, match="reduce"):
            FolderDataset(root, classes=2, reduce=wrong)  # type: ignore[arg-type]


def test_it_survives_pickling(root: Path) -> None:
    data = pickle.loads(pickle.dumps(FolderDataset(root, classes=NAMES)))
    assert data.load("p1_a").scribble is not None


# -- Folders -----------------------------------------------------------------------------------------------------------


def test_missing_and_empty_folders(root: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no folder .*absent"):
        FolderDataset(tmp_path / "absent")
    with pytest.raises(UsageError, match="no folder 'pictures'"):
        FolderDataset(root, images="pictures")
    with pytest.raises(UsageError, match=r"no folder .*strokes"):
        FolderDataset(root, classes=2, scribbles="strokes")
    (root / "empty").mkdir()
    with pytest.raises(UsageError, match=r"holds no image .*but nothing"):
        FolderDataset(root, images="empty")
    (root / "empty" / "a.nii").touch()
    with pytest.raises(UsageError, match=r"holds no image .*but only \.nii"):
        FolderDataset(root, images="empty")


def test_labels_and_scribbles_may_be_absent(root: Path) -> None:
    (root / "labels").rename(root / "other")
    sample = FolderDataset(root, classes=2).load("p1_a")
    assert sample.label is None
    assert sample.scribble is not None
    assert FolderDataset(root, classes=2, labels="other", scribbles=None).load("p1_a").scribble is None


def test_scribbles_simulated_from_labels(root: Path) -> None:
    """For all images, whatever scribbles there are; without a label there is none, and `check` says so."""
    data = FolderDataset(root, classes=NAMES, simulate_scribbles=True)
    data.check("all", need=("scribble",))
    for stem in STEMS:
        sample = data.load(stem)
        assert sample.scribble is not None
        assert sample.label is not None
        drawn = sample.scribble != IGNORE
        assert 2 <= drawn.sum() < 20
        assert np.array_equal(sample.scribble[drawn], sample.label[drawn])
    assert not np.array_equal(data.load("p1_a").scribble, FolderDataset(root, classes=NAMES).load("p1_a").scribble)
    (root / "labels" / "p2_a.png").unlink()
    data = FolderDataset(root, classes=NAMES, simulate_scribbles=True)
    assert data.load("p2_a").scribble is None
    with pytest.raises(UsageError, match="p2_a"):
        data.check("all", need=("scribble",))


def test_lossy_labels_are_refused(root: Path) -> None:
    Image.new("L", (6, 5)).save(root / "labels" / "p9.jpg")
    with pytest.raises(UsageError, match=r"label maps are PNG.*p9\.jpg"):
        FolderDataset(root, classes=2)


def test_duplicate_stems_and_clutter(root: Path) -> None:
    (root / "images" / ".DS_Store").touch()
    (root / "images" / "readme.txt").touch()
    assert len(FolderDataset(root, classes=2).ids("all")) == 4
    Image.new("L", (6, 5)).save(root / "images" / "p1_a.jpg")
    with pytest.raises(UsageError, match=r"p1_a\.jpg and p1_a\.png"):
        FolderDataset(root, classes=2)


def test_grey_and_colour(root: Path) -> None:
    Image.new("RGB", (6, 5), (255, 0, 0)).save(root / "images" / "p4_a.png")
    with pytest.raises(UsageError, match=r"4 grey images .* and 1 colour images"):
        FolderDataset(root, classes=2)
    for grey, channels in ((True, 1), (False, 3)):
        data = FolderDataset(root, classes=2, grey=grey)
        assert data.channels == channels
        assert {data.load(sample_id).image.shape for sample_id in data.ids("all")} == {(channels, 5, 6)}


def test_check_reports_missing_mates(root: Path) -> None:
    data = FolderDataset(root, classes=2, split={"train": ["p1_*"], "test": ["p3_a"]})
    data.check("train", ("scribble", "label"), contents=True)
    data.check("test", ("label",))
    with pytest.raises(UsageError, match=r"1 of 1 images have no scribble file in .*scribbles: p3_a"):
        data.check("test")
    (root / "images" / "p1_a.png").unlink()
    with pytest.raises(UsageError, match=r"1 files of scribbles have no image of that name in .*: p1_a\.png"):
        FolderDataset(root, classes=2, split={"train": ["p1_*"]}).check("train")


def test_check_compares_sizes_without_decoding(root: Path) -> None:
    Image.new("L", (7, 5)).save(root / "labels" / "p1_a.png")
    data = FolderDataset(root, classes=2)
    with pytest.raises(UsageError, match=r"p1_a\.png is 5 pixels high and 7 wide"):
        data.check("train", ())
    with pytest.raises(UsageError, match=r"p1_a\.png is 5 pixels high and 7 wide"):
        data.load("p1_a")


def test_label_values_outside_the_classes(root: Path) -> None:
    Image.new("L", (6, 5), 2).save(root / "labels" / "p1_a.png")
    data = FolderDataset(root, classes=NAMES)
    with pytest.raises(UsageError, match=r"p1_a\.png holds the label value 2, but there are 2 classes: .*1 = thing"):
        data.load("p1_a")


def test_label_values_that_are_no_indices(root: Path) -> None:
    for part in ("labels", "scribbles"):
        for path in (root / part).iterdir():
            with Image.open(path) as picture:
                values = np.asarray(picture)
            Image.fromarray(np.where(values == 1, np.uint8(200), values)).save(path)
    with pytest.raises(UsageError, match=r"label-values = \{0 = \"background\", 200 = \"thing\"\}$"):
        FolderDataset(root, classes=NAMES, scribbles=None).load("p1_a")
    meant = {"0": "background", "200": "thing"}
    for given in ({"label_values": meant}, {"labels": meant}):
        sample = FolderDataset(root, classes=NAMES, scribble_values={0: 0, 200: 1}, **given).load("p2_a")
        np.testing.assert_array_equal(sample.label, [[0, 0, 0, 1, 1, 1]] * 5)
        np.testing.assert_array_equal(sample.scribble, [[0, 255, 255, 255, 255, 1]] * 5)
    sample = FolderDataset(root, classes=NAMES, labels=meant, scribble_values={200: 0}, unlabelled=0).load("p2_a")
    np.testing.assert_array_equal(sample.scribble, [[255, 255, 255, 255, 255, 0]] * 5)
    for wrong in (-1, 65536, True, "none"):
        with pytest.raises(UsageError, match="unlabelled"):
            FolderDataset(root, classes=NAMES, unlabelled=wrong)
    with pytest.raises(UsageError, match="leave one of them out"):
        FolderDataset(root, classes=NAMES, labels=meant, label_values=meant)


def test_one_range_for_a_set(root: Path) -> None:
    """Of the images of 16 bits, whatever their number; those of 8 bits are left as they are."""
    assert FolderDataset(root, classes=2).window is None
    for stem, top in (("p1_a", 3000), ("p1_b", 819)):
        Image.fromarray(np.full((5, 6), top, np.uint16)).save(root / "images" / f"{stem}.png")
    data = FolderDataset(root, classes=2)
    assert data.window == [0, 4095, 16]
    assert len(data.notes) == 1
    assert "values from 819 to 3000 of 65535: 0 to 4095 stretched to 0..1; window = [LOW, HIGH]" in data.notes[0]
    np.testing.assert_allclose(data.load("p1_b").image, 0.2, atol=1e-6)
    np.testing.assert_allclose(data.load("p2_a").image, 0.4, atol=1e-6)
    data = FolderDataset(root, classes=2, window=[0, 1638])
    assert (data.window, data.notes) == ([0, 1638], ())
    np.testing.assert_allclose(data.load("p1_b").image, 0.5, atol=1e-6)
    np.testing.assert_allclose(data.load("p1_a").image, 1)


def test_what_is_left_out_is_said(root: Path) -> None:
    (root / "images" / "more").mkdir()
    for name in ("a.gif", "b.gif", "notes.txt", ".hidden"):
        (root / "images" / name).touch()
    (note,) = FolderDataset(root, classes=2).notes
    assert "3 files that are not of the kinds .png" in note
    assert "2 .gif, 1 .txt; 1 subfolders, which are not searched: more." in note


def test_the_split_is_named_where_scribbles_are_missing(root: Path) -> None:
    with pytest.raises(UsageError, match=r'split = \{train = \["p1_a", "p1_b", "p2_a"\]\}'):
        FolderDataset(root, classes=2).check("train")
    with pytest.raises(UsageError) as caught:
        FolderDataset(root, classes=2, split={"train": ["p*"]}).check("train")
    assert "the setting split" not in str(caught.value)


# -- Splits ------------------------------------------------------------------------------------------------------------


def test_split_by_ids_patterns_and_groups(root: Path) -> None:
    (root / "split.toml").write_text('train = ["p1_*"]\nval = ["p2"]\ntest = ["p3_a"]\nfew = ["p?_a", "p1_a"]\n')
    data = FolderDataset(root, classes=2, split="split.toml", group=r"^(p\d)")
    assert data.ids("train") == ("p1_a", "p1_b")
    assert data.ids("val") == ("p2_a",)
    assert data.ids("test") == ("p3_a",)
    assert data.ids("few") == ("p1_a", "p2_a", "p3_a")
    assert data.ids("all") == tuple(STEMS)
    assert data.load("p1_b").group == "p1"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            'train = ["p1_*", "p7_*", "q"]\nval = ["zz"]',
            r"match no image of .*'p7_\*' \(train\), 'q' \(train\), 'zz' \(val\)",
        ),
        ('train = ["p1_*"]\ntest = ["p1_b", "p2*"]', "1 images are both in 'train' and in 'test': p1_b"),
        ('val = ["p1_*"]\ntest = ["p1_*"]', "2 images are both in 'val' and in 'test': p1_a, p1_b"),
        ('all = ["p1_*"]', "'all' is always every image"),
        ('train = "p1_*"', "'train' must be a list"),
        ("[train]\nids = []", "'train' must be a list"),
        ("train = [", "cannot be read as TOML"),
    ],
)
def test_wrong_splits(root: Path, text: str, message: str) -> None:
    (root / "split.toml").write_text(text)
    with pytest.raises(UsageError, match=message):
        FolderDataset(root, classes=2, split="split.toml")


def test_an_empty_subset(root: Path) -> None:
    data = FolderDataset(root, classes=2, split={"train": ["p1_*"], "val": []})
    with pytest.raises(UsageError, match=r"subset 'val' of .* is empty"):
        data.ids("val")


@pytest.mark.parametrize(
    ("group", "message"),
    [
        (r"^p\d", "0 capturing groups"),
        (r"^(p)(\d)", "2 capturing groups"),
        ("^(p", "no regular expression"),
        (r"^(p[12])", "does not match 1 ids: p3_a"),
        (r"^p(q?)", "does not match 4 ids"),
    ],
)
def test_wrong_groups(root: Path, group: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        FolderDataset(root, classes=2, group=group)


# -- Classes -----------------------------------------------------------------------------------------------------------


def test_classes_from_a_file(root: Path) -> None:
    text = '[[class]]\nname = "ground"\ncolor = [1, 2, 3]\n[[class]]\nname = "tree"\n'
    (root / "classes.toml").write_text(text)
    (root / "others.toml").write_text(text.replace("tree", "bush"))
    assert FolderDataset(root).classes == ("ground", "tree")
    assert FolderDataset(root).colors == ((1, 2, 3), (128, 0, 0))
    assert FolderDataset(root, classes="others.toml").classes == ("ground", "bush")
    assert FolderDataset(root, classes=root / "others.toml").classes == ("ground", "bush")
    assert FolderDataset(root, classes=3).classes == ("background", "class 1", "class 2")


def test_without_classes_the_message_shows_the_file_and_the_values(root: Path) -> None:
    with pytest.raises(UsageError) as caught:
        FolderDataset(root)
    message = str(caught.value)
    assert '    [[class]]\n    name = "background"\n    color = [0, 0, 0]\n' in message
    assert "The first 4 label files hold the values 0, 1." in message
    assert str(root / "classes.toml") in message


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (1, "there are 1 classes"),
        (0, "there are 0 classes"),
        (-3, "there are 0 classes"),
        (256, "there are 256 classes"),
        (True, "expected a TOML file"),
        (["background"], "there are 1 classes"),
        (["a", "b", "a"], "'a'"),
        (["a", ""], "not be empty"),
        ([1, 2], "expected a TOML file"),
        ("absent.toml", "no class file 'absent.toml'"),
    ],
)
def test_wrong_classes(root: Path, classes: object, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        FolderDataset(root, classes=classes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('names = ["a", "b"]', "its keys are names"),
        ('[class]\nname = "a"', "must hold entries"),
        ('[[class]]\nname = "a"\n[[class]]\ncolor = [0, 0, 0]', "class 1: expected name"),
        ('[[class]]\nname = "a"\n[[class]]\nname = "b"\ncolour = [0, 0, 0]', "class 1: expected name"),
        ('[[class]]\nname = "a"\ncolor = [0, 0, 256]', r"class 0 \(a\): color = \[0, 0, 256\]"),
        ('[[class]]\nname = "a"\ncolor = [0.5, 0, 0]', r"class 0 \(a\): color"),
        ('[[class]]\nname = "a"', "there are 1 classes"),
    ],
)
def test_wrong_class_files(root: Path, text: str, message: str) -> None:
    (root / "classes.toml").write_text(text)
    with pytest.raises(UsageError, match=message):
        FolderDataset(root)


# -- Real data ---------------------------------------------------------------------------------------------------------


def test_acdc_halved(data_root: Path) -> None:
    names = ["background", "right ventricle", "myocardium", "left ventricle"]
    data = FolderDataset(data_root / "acdc", classes=names, group=r"^(patient\d+)", reduce=2)
    ids = data.ids("all")
    assert (len(ids), data.channels) == (466, 1)
    assert len({data.samples[sample_id].group for sample_id in ids}) == 25
    data.check("train", ("scribble", "label"))
    full = FolderDataset(data_root / "acdc", classes=names)
    for sample_id in ids[::50]:
        whole, halved = full.load(sample_id), data.load(sample_id)
        height, width = whole.image.shape[1:]
        assert halved.image.shape == (1, -(-height // 2), -(-width // 2))
        assert halved.group == sample_id[:10]
        assert whole.scribble is not None
        assert halved.scribble is not None
        # Every scribbled pixel has its block scribbled, and no other block is.
        rows, columns = np.nonzero(whole.scribble != IGNORE)
        touched = np.zeros(halved.scribble.shape, bool)
        touched[rows // 2, columns // 2] = True
        np.testing.assert_array_equal(halved.scribble != IGNORE, touched)


def test_iseg_has_scribbles_for_some(data_root: Path) -> None:
    data = FolderDataset(data_root / "iseg", classes=["background", "object"], scribbles="scribbles1")
    assert (len(data.ids("all")), data.channels) == (106, 3)
    with pytest.raises(UsageError, match=r"72 of 106 images have no scribble file in .*scribbles1: .* and 62 more"):
        data.check("all")
    scribbled = [stem for stem, files in data.samples.items() if files.scribble is not None]
    few = FolderDataset(
        data_root / "iseg", classes=2, scribbles="scribbles1", split={"train": scribbled[:5], "test": scribbled[5:8]}
    )
    few.check("train", ("scribble", "label"), contents=True)


def test_camvid_has_no_scribbles(data_root: Path) -> None:
    data = FolderDataset(data_root / "camvid_half" / "train", classes=11)
    assert (len(data.ids("train")), data.channels) == (367, 3)
    data.check("train", ("label",))
    sample = data.load(data.ids("train")[0])
    assert sample.image.shape == (3, 180, 240)
    assert sample.scribble is None
    with pytest.raises(UsageError, match="367 of 367 images have no scribble file"):
        data.check("train")


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


def test_colours_by_a_labelmap(root: Path) -> None:
    """As CVAT names them; also the classes."""
    (root / "labelmap.txt").write_text("background:0,0,0::\nthing:250,50,83::\n")
    for path in (root / "labels").iterdir():
        with Image.open(path) as picture:
            values = np.asarray(picture)
        Image.fromarray(np.array([(0, 0, 0), (250, 50, 83)], np.uint8)[values % 2]).save(path)
    with pytest.raises(UsageError, match=r"label values #000000, #fa3253, but.*label-values = "):
        FolderDataset(root, classes=NAMES, scribbles=None).load("p2_a")
    dataset = FolderDataset(root, classes="labelmap.txt", label_values="labelmap.txt", scribbles=None)
    assert dataset.classes == ("background", "thing")
    assert dataset.colors[1] == (250, 50, 83)
    np.testing.assert_array_equal(dataset.load("p2_a").label, [[0, 0, 0, 1, 1, 1]] * 5)
    with pytest.raises(UsageError, match=r"there is no table of colours 'absent\.txt'"):
        FolderDataset(root, classes=NAMES, label_values="absent.txt")
