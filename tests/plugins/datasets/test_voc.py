"""PASCAL VOC on a made-up tree, and scribbles drawn from XML against brute force."""

from __future__ import annotations

import itertools
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from regloss.dataset import IGNORE
from regloss.errors import UsageError
from regloss.io.drawing import draw_stroke
from regloss.io.palettes import class_colors
from regloss.testing import DatasetConformance
from regloss_plugins.datasets.voc import VOC_CLASSES, VOCDataset, read_scribble_xml

SIZE = (12, 16)


def stroke_xml(strokes: list[tuple[str, list[tuple[float, float]]]], size: tuple[int, int] | None = SIZE) -> str:
    """ScribbleSup's format; points are (X, Y)."""
    parts = ["<annotation>"]
    if size is not None:
        parts.append(f"<size><width>{size[1]}</width><height>{size[0]}</height><depth>3</depth></size>")
    for tag, points in strokes:
        parts.append(f"<polygon><tag>{tag}</tag>")
        parts += [f"<point><X>{x}</X><Y>{y}</Y></point>" for x, y in points]
        parts.append("</polygon>")
    return "".join([*parts, "</annotation>"])


def save_palette(path: Path, labels: np.ndarray) -> None:
    picture = Image.fromarray(labels.astype(np.uint8))
    picture.putpalette([part for color in class_colors(256) for part in color])
    picture.save(path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Four images: 1 and 2 in train, 3 in val, 4 in trainaug only."""
    root = tmp_path / "VOC2012"
    for folder in ("JPEGImages", "SegmentationClass", "SegmentationClassAug", "ImageSets/Segmentation", "scribbles"):
        (root / folder).mkdir(parents=True)
    for index in range(1, 5):
        Image.new("RGB", SIZE[::-1], (40 * index, 80, 120)).save(root / "JPEGImages" / f"2007_{index}.jpg")
        labels = np.zeros(SIZE)
        labels[4:8, 4:8], labels[8] = 15, IGNORE
        if index < 4:
            save_palette(root / "SegmentationClass" / f"2007_{index}.png", labels)
        save_palette(root / "SegmentationClassAug" / f"2007_{index}.png", np.where(labels == IGNORE, 20, labels))
    sets = {"train": "2007_2\n2007_1\n", "val": "2007_3\n", "trainaug": "2007_1\n2007_2\n2007_4\n"}
    for name, text in sets.items():
        (root / "ImageSets/Segmentation" / f"{name}.txt").write_text(text)
    scribble = np.full(SIZE, IGNORE, np.uint8)
    scribble[0, :5], scribble[5, 4:8] = 0, 15
    Image.fromarray(scribble).save(root / "scribbles" / "2007_1.png")
    text = stroke_xml([("background", [(1, 1), (10, 1)]), ("person", [(5, 6)])])
    (root / "scribbles" / "2007_2.xml").write_text(text)
    return root


def test_samples_are_read(root: Path) -> None:
    data = VOCDataset(root)
    assert data.ids("train") == ("2007_2", "2007_1")
    assert data.ids("val") == ("2007_3",)
    assert (data.channels, len(data.classes), data.classes[20], data.colors[20]) == (3, 21, "tvmonitor", (0, 64, 128))
    sample = data.load("2007_1")
    assert sample.image.shape == (3, *SIZE)
    np.testing.assert_allclose(sample.image[:, 0, 0] * 255, (40, 80, 120), atol=3)
    assert sample.label is not None
    assert sample.scribble is not None
    assert np.unique(sample.label).tolist() == [0, 15, 255]
    assert sample.group == "2007_1"
    np.testing.assert_array_equal(np.flatnonzero(sample.scribble[5] == 15), [4, 5, 6, 7])
    drawn = data.load("2007_2").scribble
    assert drawn is not None
    np.testing.assert_array_equal(drawn[:3, 1:11], 0)  # three pixels wide, with round ends
    assert (drawn[5:8, 4:7] == 15).sum() == 9
    assert data.load("2007_3").scribble is None


def test_label_folders(root: Path) -> None:
    by_default = VOCDataset(root)
    asked = VOCDataset(root, labels="SegmentationClassAug")
    for data, sample_id, border in ((by_default, "2007_1", 255), (asked, "2007_1", 20), (by_default, "2007_4", 20)):
        label = data.load(sample_id).label
        assert label is not None
        assert (label[8] == border).all()
    official = VOCDataset(root, labels="SegmentationClass")
    official.check("train", ("label",))
    with pytest.raises(UsageError, match=r"1 of 3 images have no label file in .*SegmentationClass: 2007_4"):
        official.check("trainaug", ("label",))


def test_check(root: Path) -> None:
    data = VOCDataset(root, reduce=2)
    data.check("train", ("scribble", "label"), contents=True)
    assert data.load("2007_2").image.shape == (3, 6, 8)
    with pytest.raises(UsageError, match=r"1 of 3 images have no scribble file in .*scribbles: 2007_4"):
        data.check("trainaug")
    (root / "scribbles" / "2007_2.xml").write_text(stroke_xml([("person", [(5, 6)])], size=(99, 16)))
    with pytest.raises(UsageError, match=r"2007_2\.xml belongs to an image of 99 x 16"):
        data.check("train", contents=True)


def test_scribbles_in_xml_folder(root: Path) -> None:
    (root / "scribbles").rename(root / "scribbles_xml")
    assert VOCDataset(root).load("2007_2").scribble is not None
    assert VOCDataset(root, scribbles=None).load("2007_2").scribble is None
    with pytest.raises(UsageError, match=r"no folder .*strokes"):
        VOCDataset(root, scribbles="strokes")
    (root / "scribbles_xml" / "2007_1.xml").write_text(stroke_xml([]))
    with pytest.raises(UsageError, match=r"2007_1\.png and 2007_1\.xml"):
        VOCDataset(root)


def test_lists_with_paths(root: Path) -> None:
    text = "/JPEGImages/2007_4.jpg /SegmentationClassAug/2007_4.png\n\n/JPEGImages/2007_1.jpg /x/2007_1.png\n"
    (root / "ImageSets/Segmentation/trainaug.txt").write_text(text)
    assert VOCDataset(root).ids("trainaug") == ("2007_4", "2007_1")


def test_missing_pieces(root: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"JPEGImages; give .*VOC2012 as the root"):
        VOCDataset(tmp_path)
    with pytest.raises(UsageError, match=r"no folder .*absent"):
        VOCDataset(tmp_path / "absent")
    with pytest.raises(UsageError, match=r"no folder .*Lists; the lists train.txt"):
        VOCDataset(root, image_sets="Lists")
    with pytest.raises(UsageError, match=r"no folder .*Labels"):
        VOCDataset(root, labels="Labels")
    with pytest.raises(UsageError, match="scribble_width"):
        VOCDataset(root, scribble_width=0)
    lists = root / "ImageSets/Segmentation"
    (lists / "test.txt").write_text("2008_1\n2008_2\n")
    with pytest.raises(UsageError, match=r"2 of 2 images of 'test' are not in .*JPEGImages: 2008_1, 2008_2"):
        VOCDataset(root).ids("test")
    with pytest.raises(UsageError, match="no subset 'minival'"):
        VOCDataset(root).ids("minival")
    (lists / "trainaug.txt").write_text("2007_1\n2007_3\n")
    with pytest.raises(UsageError, match="1 images are both in 'trainaug' and in 'val': 2007_3"):
        VOCDataset(root)
    (lists / "trainaug.txt").write_text("2007_1\n2007_1\n")
    with pytest.raises(UsageError, match="more than once: 2007_1"):
        VOCDataset(root)
    (root / "Empty").mkdir()
    with pytest.raises(UsageError, match="holds no list"):
        VOCDataset(root, image_sets="Empty")


def test_it_survives_pickling(root: Path) -> None:
    assert pickle.loads(pickle.dumps(VOCDataset(root))).load("2007_2").scribble is not None


# -- Scribbles ---------------------------------------------------------------------------------------------------------


def distance_to_polyline(row: int, column: int, points: np.ndarray) -> float:
    """By a fine sampling of each segment."""
    steps = np.linspace(0, 1, 2001)[:, None]
    pairs = list(itertools.pairwise(points)) or [(points[0], points[0])]
    return min(float(np.hypot(*((1 - steps) * a + steps * b - (row, column)).T).min()) for a, b in pairs)


@pytest.mark.parametrize("width", [1.0, 3.0, 4.5])
@pytest.mark.parametrize(
    "points",
    [
        [(5, 5)],
        [(2, 3), (2, 9)],
        [(1, 1), (9, 13), (10, 2), (3, 3)],
        [(-4, -3), (6, 7)],
        [(5, 5), (5, 5), (8, 30)],
        [(-20, -20), (-30, 4)],
        [(2.25, 3.5), (7.75, 3.5)],
    ],
)
def test_strokes_against_brute_force(points: list[tuple[float, float]], width: float) -> None:
    corners = np.array(points, dtype=float)
    labels = np.full(SIZE, IGNORE, np.uint8)
    draw_stroke(labels, corners, 7, width)
    assert set(np.unique(labels)) <= {7, IGNORE}
    for row, column in np.ndindex(*SIZE):
        distance = distance_to_polyline(row, column, corners)
        if abs(distance - width / 2) > 1e-3:  # on the rim, the sampling cannot decide
            assert (labels[row, column] == 7) == (distance < width / 2), (row, column)


def test_xml_tags_and_order(tmp_path: Path) -> None:
    path = tmp_path / "a.xml"
    strokes = [("plane", [(0, 2), (15, 2)]), ("tvmonitor", [(3, 0), (3, 11)]), ("monitor", [(12, 6)])]
    path.write_text(stroke_xml(strokes, size=None))
    scribble = read_scribble_xml(path, VOC_CLASSES, SIZE, width=1)
    expected = np.full(SIZE, IGNORE)
    expected[2], expected[:, 3], expected[6, 12] = 1, 20, 20
    np.testing.assert_array_equal(scribble, expected)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (stroke_xml([("unicorn", [(1, 1)])]), "class 'unicorn'; there are background, aeroplane"),
        (stroke_xml([("cat", [])]), "class 'cat' without points"),
        (stroke_xml([("cat", [(1, float("nan"))])]), r"<Y> 'nan', where a number"),
        (stroke_xml([("cat", [(1, 1)])]).replace("<X>1</X>", ""), "<X> None, where a number"),
        (stroke_xml([], size=(16, 12)), "16 x 12 pixels"),
        ("<annotation>", "cannot be read as XML"),
    ],
)
def test_wrong_xml(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "a.xml"
    path.write_text(text)
    with pytest.raises(UsageError, match=message) as caught:
        read_scribble_xml(path, VOC_CLASSES, SIZE)
    assert str(path) in str(caught.value)


class TestVOC(DatasetConformance):
    subsets = ("train", "val")

    @pytest.fixture(autouse=True)
    def _files(self, root: Path) -> None:
        self.root = root

    def make(self) -> VOCDataset:
        return VOCDataset(self.root)
