"""All that is wrong with a folder is said at once, and nothing where nothing is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import small_data
from PIL import Image

from regloss.apps.check_data import FolderCheck, draw_samples
from regloss.errors import UsageError
from regloss.io.classes import write_classes
from regloss.io.images import IMAGE_SUFFIXES


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder: Path = small_data.write_folder(tmp_path / "set")
    write_classes(folder / "classes.toml", ("background", "disk", "box"), [(0, 0, 0), (255, 0, 0), (0, 128, 0)])
    return folder


def save(path: Path, values: object) -> None:
    Image.fromarray(np.asarray(values, dtype=np.uint8)).save(path)


def test_a_good_folder(root: Path, tmp_path: Path) -> None:
    check = FolderCheck(root)
    found = check.findings
    assert not found.problems
    assert not found.notes
    assert found.lines()[-1] == "Nothing is wrong."
    assert found.facts[0] == "images: 8: 8 grey of 8 bits; height x width 8 of 24 x 28"
    assert found.facts[1].startswith(
        "scribbles: 8 of 8 images: background 2.68% in 8, disk 0.74% in 8, box 0.60% in 8; no"
    )
    said = draw_samples(check, tmp_path / "sheet.png", rows=3)
    assert said == f"{tmp_path / 'sheet.png'}: 3 of 8 samples: image, scribbles, labels"
    sheet = np.asarray(Image.open(tmp_path / "sheet.png")).reshape(-1, 3)
    assert {(255, 0, 0), (0, 128, 0)} <= set(map(tuple, np.unique(sheet, axis=0).tolist()))


def test_everything_that_is_wrong_at_once(root: Path, tmp_path: Path) -> None:
    (root / "images" / "i0.png").write_bytes(b"junk")
    save(root / "labels" / "i1.png", np.zeros((5, 6)))
    for name in ("i2", "i3"):
        save(root / "labels" / f"{name}.png", np.full(small_data.SIZE, 7))
    save(root / "images" / "i4.png", np.zeros((*small_data.SIZE, 3)))
    (root / "scribbles" / "i5.png").rename(root / "scribbles" / "i55.png")
    save(root / "scribbles" / "i6.png", np.full(small_data.SIZE, 255))
    save(root / "scribbles" / "i7.png", np.zeros(small_data.SIZE))
    Image.new("L", (28, 24)).save(root / "labels" / "i7.jpg")
    (root / "images" / "notes.docx").write_text("")
    check = FolderCheck(root)
    said = "\n".join(check.findings.lines())
    for part in (
        f"{root / 'images' / 'i0.png'} cannot be read as a PNG",
        f"{root / 'labels' / 'i1.png'} has 5 x 6 pixels, but its image 24 x 28",
        "each of 2 files holds the label value 7, but there are 3 classes",
        "i2.png, i3.png in",
        "mixes 6 grey images",
        "1 images have one value everywhere: i4",
        "1 files have no image of their name in",
        "i55 (is it i5?)",
        "1 files label no pixel: i6",
        "1 files label more than 33% of their image",
        f"files of {root / 'labels'} share a name, and are one sample: i7.jpg and i7.png",
        "1 files of",
        "i7.jpg; write class indices as PNG",
        "1 files that are not of the kinds",
    ):
        assert part in said, part
    assert said.endswith(f"{check.findings.count()} problems.")
    assert check.findings.count() == 10
    draw_samples(check, tmp_path / "sheet.png", rows=4)
    assert check.faulty == ["i0", "i1", "i2", "i3"]
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size[0] == 3 * 248


def test_classes_that_are_not_known_and_settings(root: Path) -> None:
    (root / "classes.toml").unlink()
    found = FolderCheck(root).findings
    assert list(found.problems) == ["classes"]
    assert "files hold the values 0, 1, 2" in found.problems["classes"][0]
    assert "value 1 0.74% in 8" in found.facts[1]
    assert not FolderCheck(root, {"classes": ["a", "b", "c"]}).findings.problems
    assert FolderCheck(root, {"classes": 4}).findings.notes == [
        "classes that occur in no scribble: class 3", "classes that occur in no label: class 3"
    ]  # fmt: skip
    found = FolderCheck(root, {"classes": 3, "split": {"train": ["x*"]}}).findings
    assert "match no image" in found.problems["settings"][0]
    found = FolderCheck(root, {"classes": 3, "group": "("}).findings
    assert "is no regular expression" in found.problems["settings"][0]
    with pytest.raises(UsageError, match="there is no folder"):
        FolderCheck(root / "absent")


def test_values_that_are_no_indices(root: Path) -> None:
    for path in (root / "scribbles").iterdir():
        values = np.asarray(Image.open(path))
        save(path, np.where(values == 255, 0, values + 1))
    said = FolderCheck(root).findings.problems["scribbles"]
    assert len(said) == 1
    assert "8 files holds the label value 3" in said[0]
    assert "scribble-values" in said[0]
    settings = {"unlabelled": 0, "scribble_values": {1: "background", 2: "disk", 3: "box"}}
    assert not FolderCheck(root, settings).findings.problems


def test_an_empty_folder_and_one_without_labels(tmp_path: Path) -> None:
    found = FolderCheck(tmp_path).findings
    assert f"there is no folder {tmp_path / 'images'}" in found.problems["folders"][0]
    with pytest.raises(UsageError, match="no images, of which a picture"):
        draw_samples(FolderCheck(tmp_path), tmp_path / "sheet.png")
    (tmp_path / "images").mkdir()
    assert FolderCheck(tmp_path).findings.problems["images"] == [
        f"{tmp_path / 'images'} holds none ({', '.join(IMAGE_SUFFIXES)})"
    ]
    save(tmp_path / "images" / "a.png", np.eye(9) * 255)
    (tmp_path / "images" / "a.json").write_text('{"shapes": []}')
    found = FolderCheck(tmp_path, {"classes": 2}).findings
    assert "no image has scribbles or a label; there are 1 LabelMe file" in found.problems["scribbles"][0]
    assert "`regloss data import`" in found.problems["scribbles"][0]
