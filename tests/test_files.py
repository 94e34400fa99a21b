"""Reading, checking and reducing files, against arrays whose pixels are known."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from regloss.dataset import IGNORE
from regloss.errors import UsageError
from regloss.files import (
    SampleFiles,
    check_samples,
    class_colors,
    common_channels,
    find_file,
    index_folder,
    listed,
    load_sample,
    read_header,
    read_image,
    read_label_map,
    read_label_size,
    reduce_image,
    reduce_labels,
    reduce_scribbles,
)

CLASSES = ("background", "one", "two", "three")


def save(path: Path, values: np.ndarray, **options: object) -> Path:
    Image.fromarray(values).save(path, **options)
    return path


def write_png(path: Path, rows: list[bytes], width: int, bits: int, color_type: int, palette: bytes = b"") -> Path:
    """A PNG written by hand, for kinds of pixels that Pillow does not write."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", width, len(rows), bits, color_type, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row for row in rows))
    parts = [chunk(b"IHDR", head), chunk(b"IDAT", data), chunk(b"IEND", b"")]
    if palette:
        parts.insert(1, chunk(b"PLTE", palette))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    return path


# -- Images ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[0, 51], [102, 255]], np.uint8), [[[0, 0.2], [0.4, 1]]]),
        (np.array([[0, 13107], [26214, 65535]], np.uint16), [[[0, 0.2], [0.4, 1]]]),
        (np.array([[[0, 51, 255], [255, 102, 0]]], np.uint8), [[[0, 1]], [[0.2, 0.4]], [[1, 0]]]),
        (np.array([[[51, 255], [102, 255]]], np.uint8), [[[0.2, 0.4]]]),  # grey with an opaque alpha channel
        (np.array([[[0, 51, 255, 255]]], np.uint8), [[[0]], [[0.2]], [[1]]]),
        (np.array([[True, False]]), [[[1, 0]]]),
    ],
    ids=["grey8", "grey16", "rgb8", "grey-alpha", "rgba", "bilevel"],
)
def test_lossless_images_are_read_exactly(
    tmp_path: Path, suffix: str, values: np.ndarray, expected: list[list[list[float]]]
) -> None:
    path = save(tmp_path / f"a{suffix}", values)
    image = read_image(path)
    assert image.dtype == np.float32
    assert image.flags.c_contiguous
    np.testing.assert_allclose(image, np.array(expected), atol=1e-7)
    header = read_header(path)
    assert (header.channels, *header.size) == image.shape


def test_big_endian_16_bit_tiff(tmp_path: Path) -> None:
    path = save(tmp_path / "a.tif", np.array([[0, 13107, 65535]], ">u2"))
    np.testing.assert_allclose(read_image(path), [[[0, 0.2, 1]]], atol=1e-7)


def test_16_bit_colour_keeps_the_upper_byte(tmp_path: Path) -> None:
    pixel = np.array([0x12FF, 0x8000, 0xFFFF], ">u2").tobytes()
    path = write_png(tmp_path / "a.png", [pixel], 1, 16, 2)
    np.testing.assert_allclose(read_image(path).ravel() * 255, [0x12, 0x80, 0xFF], atol=1e-4)


def test_jpeg_is_read_within_its_loss(tmp_path: Path) -> None:
    path = save(tmp_path / "a.jpg", np.full((16, 8, 3), (200, 100, 50), np.uint8), quality=95)
    image = read_image(path)
    assert image.shape == (3, 16, 8)
    np.testing.assert_allclose(image.mean((1, 2)) * 255, [200, 100, 50], atol=2)


def test_a_palette_image_becomes_rgb(tmp_path: Path) -> None:
    picture = Image.fromarray(np.array([[0, 1]], np.uint8))
    picture.putpalette([10, 20, 30, 255, 0, 51])
    picture.save(tmp_path / "a.png")
    np.testing.assert_allclose(read_image(tmp_path / "a.png")[:, 0] * 255, [[10, 255], [20, 0], [30, 51]], atol=1e-4)
    assert read_header(tmp_path / "a.png").channels == 3


def test_a_float_tiff_keeps_its_values(tmp_path: Path) -> None:
    values = np.array([[0, 0.123456], [1, 0.5]], np.float32)
    np.testing.assert_array_equal(read_image(save(tmp_path / "a.tif", values)), values[None])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.array([[0.5, np.nan]], np.float32), "NaN"),
        (np.array([[0.5, 1.5]], np.float32), "from 0.5 to 1.5"),
        (np.array([[-0.5, 0.5]], np.float32), "from -0.5 to 0.5"),
        (np.array([[0.5, np.inf]], np.float32), "inf"),
        (np.array([[1, 2]], np.int32), "kind 'I'"),
        (np.array([[[1, 2, 3, 254]]], np.uint8), "transparent pixels"),
    ],
)
def test_images_that_cannot_be_meant_are_refused(tmp_path: Path, values: np.ndarray, message: str) -> None:
    path = save(tmp_path / "a.tif", values)
    with pytest.raises(UsageError, match=message) as caught:
        read_image(path)
    assert str(path) in str(caught.value)


def test_other_unusable_images_are_refused(tmp_path: Path) -> None:
    Image.new("CMYK", (4, 4)).save(tmp_path / "cmyk.jpg")
    pages = [Image.new("L", (4, 4), value) for value in (1, 2)]
    pages[0].save(tmp_path / "pages.tif", save_all=True, append_images=pages[1:])
    Image.new("RGB", (4, 4)).save(tmp_path / "key.png", transparency=(0, 0, 0))
    (tmp_path / "text.png").write_text("no image")
    whole = save(tmp_path / "whole.png", np.random.default_rng(0).integers(0, 255, (32, 32), np.uint8))
    (tmp_path / "cut.png").write_bytes(whole.read_bytes()[:500])
    messages = {"cmyk.jpg": "CMYK", "pages.tif": "several frames", "key.png": "transparent"}
    for name, message in (messages | dict.fromkeys(["text.png", "cut.png", "absent.png"], "cannot be read")).items():
        with pytest.raises(UsageError, match=message) as caught:
            read_image(tmp_path / name)
        assert name in str(caught.value)


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_honoured(tmp_path: Path, orientation: int, suffix: str) -> None:
    values = np.zeros((16, 24), np.uint8)
    values[:8, :8], values[:8, 16:], values[8:, :8] = 250, 170, 90
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(tmp_path / f"a{suffix}", values, exif=exif)
    method = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }
    picture = Image.fromarray(values)
    expected = np.asarray(picture.transpose(method[orientation]) if orientation > 1 else picture)
    assert read_header(path).size == expected.shape == ((24, 16) if orientation >= 5 else (16, 24))
    np.testing.assert_allclose(read_image(path)[0] * 255, expected, atol=3 if suffix == ".jpg" else 1e-4)


def test_an_orientation_after_the_pixels_is_refused(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = save(tmp_path / "a.png", np.zeros((16, 24), np.uint8), exif=exif)
    data = path.read_bytes()
    start = data.index(b"eXIf") - 4
    length = int.from_bytes(data[start : start + 4], "big") + 12
    path.write_bytes(data[:start] + data[start + length : -12] + data[start : start + length] + data[-12:])
    with pytest.raises(UsageError, match="orientation after its pixels"):
        read_image(path)


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw"])
def test_a_tiff_must_be_upright(tmp_path: Path, compression: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = save(tmp_path / "a.tif", np.zeros((16, 24), np.uint8), exif=exif, compression=compression)
    for read in (read_image, read_header):
        with pytest.raises(UsageError, match="orientation tag 6"):
            read(path)


def test_channels_are_converted(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]]], np.uint8))
    grey = read_image(path, 1)
    np.testing.assert_allclose(grey, [[[0.299, 0.587, 0.114, 1]]], atol=1e-6)
    assert grey.max() <= 1
    path = save(tmp_path / "b.png", np.array([[51, 102]], np.uint8))
    np.testing.assert_allclose(read_image(path, 3), np.broadcast_to([[[0.2, 0.4]]], (3, 1, 2)), atol=1e-6)


def test_grey_and_colour_do_not_mix(tmp_path: Path) -> None:
    grey = save(tmp_path / "grey.png", np.zeros((2, 2), np.uint8))
    color = save(tmp_path / "color.png", np.zeros((2, 2, 3), np.uint8))
    assert common_channels([grey, grey], tmp_path) == 1
    assert common_channels([color], tmp_path) == 3
    with pytest.raises(UsageError, match=r"1 grey images \(grey.png\) and 1 colour images \(color.png\)"):
        common_channels([grey, color], tmp_path)


# -- Label maps --------------------------------------------------------------------------------------------------------


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


# -- Folders -----------------------------------------------------------------------------------------------------------


def test_index_ignores_what_is_no_image(tmp_path: Path) -> None:
    for name in (".hidden.png", "b.PNG", "a.jpg", "notes.txt", "c.tar.png"):
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    assert {stem: path.name for stem, path in index_folder(tmp_path).items()} == {
        "a": "a.jpg",
        "b": "b.PNG",
        "c.tar": "c.tar.png",
    }
    (tmp_path / "a.png").touch()
    with pytest.raises(UsageError, match=r"share a name.*a\.jpg and a\.png"):
        index_folder(tmp_path)


def test_find_file_prefers_the_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, current = tmp_path / "root", tmp_path / "current"
    root.mkdir()
    current.mkdir()
    monkeypatch.chdir(current)
    (current / "a.toml").touch()
    assert find_file("a.toml", root, "split file") == current / "a.toml"
    (root / "a.toml").touch()
    assert find_file("a.toml", root, "split file") == root / "a.toml"
    with pytest.raises(UsageError, match=r"no split file 'b.toml'; looked for .*root.* and .*current"):
        find_file("b.toml", root, "split file")


def test_listed_counts_the_rest() -> None:
    assert listed(range(12)) == "0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 2 more"
    assert listed(range(10)).endswith("8, 9")


def test_class_colors_are_those_of_voc() -> None:
    colors = class_colors(256)
    # From the published colour table: bicycle, aeroplane, tv monitor, and the border of objects.
    assert (colors[2], colors[1], colors[20], colors[255]) == ((0, 128, 0), (128, 0, 0), (0, 64, 128), (224, 224, 192))
    assert len(set(colors)) == 256


# -- Reduction ---------------------------------------------------------------------------------------------------------


def blocks(values: np.ndarray, factor: int) -> list[list[np.ndarray]]:
    height, width = values.shape[-2:]
    return [
        [values[..., row : row + factor, column : column + factor] for column in range(0, width, factor)]
        for row in range(0, height, factor)
    ]


@pytest.mark.parametrize("factor", [2, 3, 5])
@pytest.mark.parametrize("size", [(12, 10), (7, 9), (1, 1), (4, 1)])
def test_reduction_against_loops(factor: int, size: tuple[int, int]) -> None:
    random = np.random.default_rng(factor)
    image = random.random((3, *size), dtype=np.float32)
    expected = np.array([[block.mean((1, 2)) for block in row] for row in blocks(image, factor)]).transpose(2, 0, 1)
    reduced = reduce_image(image, factor)
    assert reduced.dtype == np.float32
    np.testing.assert_allclose(reduced, expected, atol=1e-6)

    def majority(block: np.ndarray) -> int:
        counts = np.bincount(block[block != IGNORE], minlength=1)
        return int(counts.argmax()) if counts.max() else IGNORE

    for share in (0.2, 0.6, 0.95):
        labels = random.integers(0, 4, size, dtype=np.uint8)
        labels[random.random(size) < share] = IGNORE
        kept = labels.copy()
        scribbles = [[majority(block) for block in row] for row in blocks(labels, factor)]
        dense = [
            [IGNORE if 2 * (block == IGNORE).sum() > block.size else majority(block) for block in row]
            for row in blocks(labels, factor)
        ]
        np.testing.assert_array_equal(reduce_scribbles(labels, factor), scribbles)
        np.testing.assert_array_equal(reduce_labels(labels, factor), dense)
        np.testing.assert_array_equal(labels, kept)


def test_a_white_image_stays_within_one() -> None:
    assert reduce_image(np.ones((1, 7, 11), np.float32), 3).max() == 1


def test_thin_strokes_do_not_vanish() -> None:
    scribble = np.full((32, 32), IGNORE, np.uint8)
    np.fill_diagonal(scribble, 2)
    reduced = reduce_scribbles(scribble, 4)
    assert (np.diagonal(reduced) == 2).all()
    assert (reduced != IGNORE).sum() == 8


# -- Samples -----------------------------------------------------------------------------------------------------------


def sample_files(folder: Path, name: str, label: np.ndarray, scribble: np.ndarray | None) -> SampleFiles:
    image = save(folder / f"{name}.png", np.zeros((4, 6), np.uint8))
    return SampleFiles(
        name,
        image,
        save(folder / f"{name}_label.png", label),
        None if scribble is None else save(folder / f"{name}_scribble.png", scribble),
        name,
    )


def test_sizes_must_agree(tmp_path: Path) -> None:
    good = np.zeros((4, 6), np.uint8)
    files = sample_files(tmp_path, "a", good, good[:, :5])
    with pytest.raises(
        UsageError, match=r"a_scribble.png is 4 pixels high and 5 wide, but .*a.png is 4 high and 6 wide"
    ):
        load_sample(files, classes=CLASSES, channels=1)
    with pytest.raises(UsageError, match=r"1 of 1 samples have unusable files.*a_scribble.png"):
        check_samples([files], ("scribble",))
    files = sample_files(tmp_path, "b", good.T.copy(), good)
    with pytest.raises(UsageError, match=r"b_label.png is 6 pixels high and 4 wide"):
        load_sample(files, classes=CLASSES, channels=1)


def test_check_lists_everything_at_once(tmp_path: Path) -> None:
    good = np.zeros((4, 6), np.uint8)
    samples = [sample_files(tmp_path, f"a{index:02}", good, None) for index in range(13)]
    samples += [sample_files(tmp_path, "b", good[:2], good), sample_files(tmp_path, "c", good, good)]
    with pytest.raises(UsageError) as caught:
        check_samples(samples, ("scribble", "label"), complaints=["something else"])
    lines = str(caught.value).splitlines()
    assert lines[0] == "something else"
    assert lines[1].startswith("13 of 15 images have no scribble file: a00, a01,")
    assert lines[1].endswith("a09 and 3 more")
    assert lines[2].startswith("1 of 15 samples have unusable files")
    assert len(lines) == 3
    check_samples(samples[:13], ("label",))
    with pytest.raises(UsageError, match="'scribbles'"):
        check_samples(samples, ("scribbles",))


def test_check_of_contents(tmp_path: Path) -> None:
    good = np.zeros((4, 6), np.uint8)
    empty = np.full((4, 6), IGNORE, np.uint8)
    mixed = np.array([[0, 1, 255, 255, 255, 255]] * 4, np.uint8)
    samples = {
        files.id: files
        for files in (
            sample_files(tmp_path, "good", good, mixed),
            sample_files(tmp_path, "empty", good, empty),
            sample_files(tmp_path, "single", good, good),
            sample_files(tmp_path, "broken", good + 9, mixed),
        )
    }

    def check(*names: str) -> None:
        check_samples(
            [samples[name] for name in names],
            ("scribble",),
            load=lambda name: load_sample(samples[name], classes=CLASSES, channels=1),
        )

    check("good", "single")
    with pytest.raises(UsageError, match="1 of 2 scribble files label no pixel at all: empty"):
        check("good", "empty")
    with pytest.raises(UsageError, match="all scribbles are of class 0"):
        check("single")
    with pytest.raises(UsageError, match=r"1 of 2 samples cannot be used: .*broken_label.png holds the label value 9"):
        check("good", "broken")
