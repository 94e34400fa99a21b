"""Rectangles of images, whatever holds them; label maps written as they come."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from regloss.io.labels import read_label_map, save_label_png
from regloss.io.tiles import open_parts, write_label_rows, write_label_tiles

tifffile = pytest.importorskip("tifffile")
VALUES = np.random.default_rng(0).integers(0, 4000, (3, 70, 90)).astype(np.uint16)
PARTS = [
    (slice(0, 70), slice(0, 90)),
    (slice(0, 1), slice(89, 90)),
    (slice(15, 49), slice(31, 33)),
    (slice(60, 70), slice(5, 80)),
]
KINDS: dict[str, dict[str, Any]] = {
    "one array": {},
    "strips": {"rowsperstrip": 8, "compression": "zlib"},
    "one strip": {"rowsperstrip": 70, "compression": "lzw"},
    "tiles": {"tile": (16, 32), "compression": "zlib"},
    "tiles as they are": {"tile": (32, 16)},
    "big endian": {"byteorder": ">", "tile": (16, 16), "compression": "zlib"},
}


@pytest.mark.parametrize("layout", ["samples", "planes", "pages", "grey"])
@pytest.mark.parametrize("kind", KINDS)
def test_rectangles_of_a_tiff(tmp_path: Path, kind: str, layout: str) -> None:
    options = dict(KINDS[kind])
    byteorder = options.pop("byteorder", None)
    values = VALUES[:1] if layout == "grey" else VALUES
    if layout == "pages":
        options |= {"photometric": "minisblack", "metadata": {"axes": "CYX"}}
    elif layout != "grey":
        options |= {"photometric": "rgb", "planarconfig": "separate" if layout == "planes" else "contig"}
    stored = values[0] if layout == "grey" else np.moveaxis(values, 0, -1) if layout == "samples" else values
    path = tmp_path / ("a.ome.tif" if layout == "pages" else "a.tif")
    with tifffile.TiffWriter(path, ome=layout == "pages", byteorder=byteorder) as writer:
        writer.write(stored, **options)
    with open_parts(path) as parts:
        assert (parts.size, parts.channels) == ((70, 90), len(values))
        for rows, columns in PARTS:
            found = parts.read(rows, columns)
            assert found.dtype == np.uint16
            np.testing.assert_array_equal(found, values[:, rows, columns])


def test_rectangles_of_other_files(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    np.save(tmp_path / "a.npy", np.moveaxis(VALUES, 0, -1))
    Image.fromarray(VALUES[0]).save(tmp_path / "a.png")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("image", data=VALUES[0], chunks=(16, 16))
    for name, values in (("a.npy", VALUES), ("a.png", VALUES[:1]), ("a.h5", VALUES[:1])):
        with open_parts(tmp_path / name) as parts:
            assert (parts.size, parts.channels) == ((70, 90), len(values))
            for rows, columns in PARTS:
                np.testing.assert_array_equal(parts.read(rows, columns), values[:, rows, columns])


@pytest.mark.parametrize("height", [3, 512, 1100])
def test_labels_in_bands(tmp_path: Path, height: int) -> None:
    labels = np.random.default_rng(0).choice([0, 1, 2, 255], (height, 700)).astype(np.uint8)
    colors = ((0, 0, 0), (250, 50, 83), (0, 128, 255))
    bands = [labels[top : top + 512] for top in range(0, height, 512)]
    write_label_rows(tmp_path / "a.png", labels.shape, iter(bands), colors)
    write_label_tiles(tmp_path / "a.tif", labels.shape, iter(bands), colors)
    save_label_png(tmp_path / "b.png", labels, colors)
    for name in ("a.png", "a.tif"):
        np.testing.assert_array_equal(read_label_map(tmp_path / name, ["a", "b", "c"]), labels)
        with Image.open(tmp_path / name) as picture, Image.open(tmp_path / "b.png") as expected:
            np.testing.assert_array_equal(np.asarray(picture.convert("RGB")), np.asarray(expected.convert("RGB")))
