"""Label maps from files: indices, not brightness or colours."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from picture_files import CLASSES, save, write_png

from regloss.errors import UsageError
from regloss.io.labels import read_label_map, read_label_size


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
        (np.zeros((2, 2, 3), np.uint8), "8 bits, RGB;.*index of each class"),
        (np.zeros((2, 2, 4), np.uint8), "RGB with alpha"),
        (np.zeros((2, 2, 2), np.uint8), "grey with alpha"),
        (np.zeros((2, 2), np.uint16), "16 bits, grey"),
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
