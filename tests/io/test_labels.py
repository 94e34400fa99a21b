"""Label maps from files: indices, not brightness or colours."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from picture_files import CLASSES, save, write_png
from PIL import Image

from regloss.errors import UsageError
from regloss.io.labels import (
    read_label_map,
    read_label_size,
    read_scribble_map,
    read_values,
    save_label_png,
    stored_value,
    value_map,
    written_map,
)
from regloss.io.palettes import IGNORE_COLOR


def test_label_maps_hold_indices_in_every_depth(tmp_path: Path) -> None:
    expected = np.array([[0, 1, 1, 0]])
    paths = [
        save(tmp_path / "grey8.png", expected.astype(np.uint8)),
        write_png(tmp_path / "grey1.png", [bytes([0b01100000])], 4, 1, 0),
        write_png(tmp_path / "grey2.png", [bytes([0b00010100])], 4, 2, 0),
        write_png(tmp_path / "grey4.png", [bytes([0x01, 0x10])], 4, 4, 0),
        write_png(tmp_path / "palette1.png", [bytes([0b01100000])], 4, 1, 3, palette=bytes([9, 9, 9, 7, 7, 7])),
        write_png(tmp_path / "palette8.png", [bytes([0, 1, 1, 0])], 4, 8, 3, palette=bytes([9, 9, 9, 7, 7, 7])),
    ]
    for path in paths:
        labels = read_label_map(path, CLASSES)
        assert labels.dtype == np.uint8
        np.testing.assert_array_equal(labels, expected, err_msg=path.name)
        assert read_label_size(path) == (1, 4)


def test_wrong_label_values_are_named(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", np.array([[0, 3, 4, 17, 255]], np.uint8))
    with pytest.raises(UsageError, match=r"values 4, 17, but there are 4 classes: 0 = background, 1 = one.*255"):
        read_label_map(path, CLASSES)
    path = save(tmp_path / "b.png", np.array([[0, 3, 255]], np.uint8))
    np.testing.assert_array_equal(read_label_map(path, CLASSES), [[0, 3, 255]])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros((2, 2, 2), np.uint8), "8 bits, grey with alpha; a label map has one channel"),
    ],
)
def test_label_maps_of_other_kinds_are_refused(tmp_path: Path, values: np.ndarray, message: str) -> None:
    path = save(tmp_path / "a.png", values)
    with pytest.raises(UsageError, match=message):
        read_label_map(path, CLASSES)
    with pytest.raises(UsageError, match=message):
        read_label_size(path)


def test_a_jpeg_named_png_is_no_label_map(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", np.zeros((8, 8), np.uint8), format="JPEG")
    with pytest.raises(UsageError, match="no PNG file"):
        read_label_map(path, CLASSES)


# -- What values mean ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "written"),
    [
        ([0, 127, 254, 255], '{0 = "background", 127 = "one", 254 = "two", 255 = "three"}'),
        ([0, 50, 100, 150, 255], '{0 = "background", 50 = "one", 100 = "two", 150 = "three", 255 = 255}'),
        ([1, 3, 7], '{1 = "one", 3 = "three", 7 = "..."}'),
    ],
)
def test_the_map_to_write_is_in_the_message(tmp_path: Path, values: list[int], written: str) -> None:
    path = save(tmp_path / "a.png", np.array([values], np.uint8))
    with pytest.raises(UsageError) as caught:
        read_label_map(path, CLASSES)
    assert str(caught.value).endswith(f"say so: label-values = {written}")
    assert written_map(values, CLASSES) == written
    with pytest.raises(UsageError, match="scribble-values = "):
        read_scribble_map(path, CLASSES, (1, len(values)), unlabelled=0)


def test_values_that_are_no_indices(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", np.array([[0, 128, 200, 255]], np.uint8))
    values = value_map({"0": "background", "128": "two", "200": 255}, CLASSES, "label-values")
    np.testing.assert_array_equal(read_label_map(path, CLASSES, values), [[0, 2, 255, 255]])
    values = value_map({0: 0, 128: "1", 200: 255, 255: "three"}, CLASSES, "label-values")
    np.testing.assert_array_equal(read_label_map(path, CLASSES, values), [[0, 1, 255, 3]])
    with pytest.raises(UsageError, match=r"value 128,.*label-values = \{0 = .background., 200 = .one.\} says nothing"):
        read_label_map(path, CLASSES, {0: 0, 200: 1})


def test_values_of_16_bits(tmp_path: Path) -> None:
    """Gaps and all: PNG, TIFF and NPY."""
    stored = np.array([[0, 500, 600, 255], [65535, 0, 500, 3]], np.uint16)
    np.save(tmp_path / "a.npy", stored)
    paths = [save(tmp_path / "a.png", stored), save(tmp_path / "a.tif", stored), tmp_path / "a.npy"]
    values = value_map({"0": 0, "500": "one", "600": "two", "65535": "three", "3": 255}, CLASSES, "label-values")
    for path in paths:
        assert read_label_size(path) == (2, 4)
        np.testing.assert_array_equal(read_values(path), stored)
        labels = read_label_map(path, CLASSES, values)
        assert labels.dtype == np.uint8
        np.testing.assert_array_equal(labels, [[0, 1, 2, 255], [3, 0, 1, 255]])
        with pytest.raises(UsageError, match=r"values 500, 600, 65535, but.*label-values = \{0 = .background., 3 = "):
            read_label_map(path, CLASSES)
        with pytest.raises(UsageError, match=r"value 3,.*says nothing of it"):
            read_label_map(path, CLASSES, {key: value for key, value in values.items() if key != 3})
    meanings = {500: 1, 600: 2, 3: 0, 65535: 3}
    read = read_scribble_map(paths[0], CLASSES, (2, 4), meanings, unlabelled=0)
    np.testing.assert_array_equal(read, [[255, 1, 2, 255], [3, 255, 1, 0]])


def test_colours_with_a_table(tmp_path: Path) -> None:
    colors = np.array([[[0, 0, 0], [250, 50, 83]], [[0, 0, 255], [250, 50, 83]]], np.uint8)
    values = value_map({"#000000": 0, "#FA3253": "one", "#0000ff": 255}, CLASSES, "label-values")
    opaque = np.concatenate([colors, np.full((2, 2, 1), 255, np.uint8)], axis=-1)
    for path in (save(tmp_path / "a.png", colors), save(tmp_path / "b.png", opaque)):
        np.testing.assert_array_equal(read_label_map(path, CLASSES, values), [[0, 1], [255, 1]])
        with pytest.raises(UsageError, match=r"values #000000, #0000ff, #fa3253, but.*\{\"#000000\" = \"\.\.\.\""):
            read_label_map(path, CLASSES)
    object_, ground, nothing = (stored_value(color, "") for color in ("#fa3253", "#0000ff", "#000000"))
    read = read_scribble_map(tmp_path / "a.png", CLASSES, (2, 2), {object_: 1, ground: 0}, unlabelled=nothing)
    np.testing.assert_array_equal(read, [[255, 1], [0, 1]])
    opaque[0, 0, 3] = 0
    with pytest.raises(UsageError, match="transparent pixels"):
        read_label_map(save(tmp_path / "c.png", opaque), CLASSES, values)
    with pytest.raises(UsageError, match="a PNG of 16 bits, RGB; a label map has"):
        read_label_map(write_png(tmp_path / "d.png", [bytes(12)], 2, 16, 2), CLASSES)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros((3, 4), np.float32), "1 channels of float32; a label map has one, of whole numbers"),
        (np.zeros((2, 3, 4), np.uint8), "2 channels of uint8"),
        (np.full((3, 4), -1, np.int16), "holds -1; labels are not negative"),
    ],
)
def test_arrays_that_are_no_label_maps(tmp_path: Path, values: np.ndarray, message: str) -> None:
    np.save(tmp_path / "a.npy", values)
    with pytest.raises(UsageError, match=message):
        read_label_map(tmp_path / "a.npy", CLASSES)


def test_other_values_where_nothing_was_drawn(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", np.array([[0, 1, 2, 4, 255]], np.uint8))
    read = read_scribble_map(path, CLASSES, (1, 5), unlabelled=4)
    np.testing.assert_array_equal(read, [[0, 1, 2, 255, 255]])
    read = read_scribble_map(path, CLASSES, (1, 5), {1: 0, 2: 3, 4: 1}, unlabelled=0)
    np.testing.assert_array_equal(read, [[255, 0, 3, 1, 255]])


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"a": 0},
        {65536: 0},
        {"#ff00": 0},
        {-1: 0},
        {0: "four"},
        {0: 4},
        {0: -1},
        {0: True},
        {True: 0},
        {0: 1.5},
        {0: None},
    ],
)
def test_wrong_maps(given: dict[object, object]) -> None:
    with pytest.raises(UsageError, match="label-values"):
        value_map(given, CLASSES, "label-values")


def test_the_orientation_of_a_label_map_is_honoured(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = save(tmp_path / "a.png", np.array([[0, 1, 2], [3, 0, 255]], np.uint8), exif=exif)
    assert read_label_size(path) == (3, 2)
    np.testing.assert_array_equal(read_label_map(path, CLASSES), [[3, 0], [0, 1], [255, 2]])


# -- Writing -----------------------------------------------------------------------------------------------------------

COLORS = ((0, 0, 0), (230, 40, 40), (40, 90, 250))


def squares(shift=0):
    labels = np.zeros((40, 60), dtype=np.uint8)
    labels[5 + shift : 25 + shift, 5:25] = 1
    labels[10:30, 30 + shift : 50 + shift] = 2
    return labels


def test_label_files_hold_indices_and_look_like_colors(tmp_path):
    labels = squares()
    labels[0] = 255
    path = tmp_path / "new" / "labels.png"
    save_label_png(path, labels.astype(np.int64), COLORS)
    with Image.open(path) as picture:
        assert picture.mode == "P"
        np.testing.assert_array_equal(np.asarray(picture), labels)
        colored = np.asarray(picture.convert("RGB"))
    expected = np.array([*COLORS, IGNORE_COLOR])[np.where(labels == 255, 3, labels)]
    np.testing.assert_array_equal(colored, expected)
    save_label_png(path, np.ones((2, 3), dtype=np.uint8), COLORS)  # replaces
    with Image.open(path) as picture:
        assert np.asarray(picture).tolist() == [[1, 1, 1]] * 2
    assert [file.name for file in path.parent.iterdir()] == ["labels.png"]


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "labels.png"
    save_label_png(path, squares(), COLORS)
    before = path.read_bytes()

    def fail(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        save_label_png(path, squares(3), COLORS)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("name", "labels", "message"),
    [
        ("labels.jpg", np.zeros((3, 4), int), "must end in .png; got 'labels.jpg'"),
        ("labels.png", np.zeros((2, 3, 4), int), "slice by slice"),
        ("labels.png", np.full((3, 4), 3), r"\[3\]"),
    ],
)
def test_bad_label_files(tmp_path, name, labels, message):
    with pytest.raises(UsageError, match=message):
        save_label_png(tmp_path / name, labels, COLORS)
    assert list(tmp_path.iterdir()) == []
