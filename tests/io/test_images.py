"""Images from files, against arrays whose pixels are known."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from picture_files import save, write_png
from PIL import Image

from regloss.errors import MissingDependency, UsageError
from regloss.io import images
from regloss.io.folders import index_folder
from regloss.io.images import ImageReader, common_channels, read_header, read_image, read_stored
from regloss.io.types import Header


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


@pytest.mark.parametrize(("color_type", "channels"), [(2, 3), (6, 4)], ids=["rgb", "rgba"])
def test_16_bit_colour_keeps_both_bytes(tmp_path: Path, color_type: int, channels: int) -> None:
    """Several rows, so that PNG's filters matter; an opaque alpha channel is dropped."""
    values = np.random.default_rng(0).integers(0, 65536, (3, 5, channels))
    values[..., 3:] = 65535
    path = write_png(tmp_path / "a.png", [row.astype(">u2").tobytes() for row in values], 5, 16, color_type)
    np.testing.assert_array_equal(read_stored(path), np.moveaxis(values[..., :3], -1, 0))
    np.testing.assert_allclose(read_image(path), np.moveaxis(values[..., :3], -1, 0) / 65535, atol=1e-7)
    assert read_header(path) == Header((3, 5), 3, 16)


def test_16_bit_grey_with_alpha_is_refused_where_half_a_value_is_not_enough(tmp_path: Path) -> None:
    for top, enough in ((40000, True), (4095, False)):
        pixels = np.array([[0, 65535], [top, 65535]], ">u2").tobytes()
        path = write_png(tmp_path / "a.png", [pixels], 2, 16, 4)
        if enough:
            np.testing.assert_allclose(read_image(path) * 255, [[[0, top // 256]]] * 3, atol=1e-4)
        else:
            with pytest.raises(UsageError, match="only the upper 8 can be read"):
                read_image(path)


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
def test_invalid_images_are_refused(tmp_path: Path, values: np.ndarray, message: str) -> None:
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

    def common(*paths: Path) -> int:
        return common_channels({path: read_header(path) for path in paths}, tmp_path)

    assert common(grey) == 1
    assert common(color) == 3
    with pytest.raises(UsageError, match=r"1 grey images \(grey.png\) and 1 colour images \(color.png\)"):
        common(grey, color)


def test_a_format_is_one_entry_of_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are read by the reader of their ending, whatever its case; those of no known ending by the first."""
    ramp = np.linspace(0, 1, 6, dtype=np.float32).reshape(1, 2, 3)
    reader = ImageReader((".raw.gz",), lambda path: Header((2, 3), 1), lambda path: ramp)
    monkeypatch.setattr(images, "READERS", (*images.READERS, reader))
    path = tmp_path / "a.RAW.GZ"
    assert read_header(path) == Header((2, 3), 1)
    np.testing.assert_array_equal(read_image(path), ramp)
    np.testing.assert_array_equal(read_image(path, 3), np.repeat(ramp, 3, axis=0))
    assert index_folder(save(tmp_path / "b.png", np.zeros((2, 2), np.uint8)).parent, (".png", ".raw.gz")).keys() == {
        "b"
    }
    path.touch()
    assert list(index_folder(tmp_path, (".png", ".raw.gz"))) == ["a", "b"]
    nameless = save(tmp_path / "c.png", np.full((2, 2), 255, np.uint8)).rename(tmp_path / "c")
    np.testing.assert_array_equal(read_image(nameless), np.ones((1, 2, 2), np.float32))


@pytest.mark.parametrize("suffix", [".bmp", ".webp"])
@pytest.mark.parametrize("shape", [(3, 5), (3, 5, 3)], ids=["grey", "rgb"])
def test_other_lossless_formats(tmp_path: Path, suffix: str, shape: tuple[int, ...]) -> None:
    values = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    path = save(tmp_path / f"a{suffix}", values, **({"lossless": True} if suffix == ".webp" else {}))
    expected = np.moveaxis(values if values.ndim == 3 else values[..., None], -1, 0) / 255
    np.testing.assert_allclose(read_image(path, len(expected)), expected, atol=2e-7)
    assert read_header(path).size == (3, 5)


@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize(("channels", "colors"), [(2, "minisblack"), (4, "rgb"), (5, "rgb"), (7, "minisblack")])
def test_tiff_files_keep_all_their_channels(
    tmp_path: Path, channels: int, colors: str, kind: type, planar: str
) -> None:
    tifffile = pytest.importorskip("tifffile")
    rng = np.random.default_rng(0)
    values = rng.random((channels, 3, 4)).astype(kind) if kind is np.float32 else rng.integers(0, 250, (channels, 3, 4))
    values = values.astype(kind)
    extra = ["unspecified"] * (channels - (3 if colors == "rgb" else 1))
    stored = values if planar == "separate" else np.moveaxis(values, 0, -1)
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric=colors, planarconfig=planar, extrasamples=extra)
    np.testing.assert_array_equal(read_stored(tmp_path / "a.tif"), values)
    assert read_header(tmp_path / "a.tif") == Header((3, 4), channels, 8 * values.itemsize)
    with pytest.raises(UsageError, match=f"has {channels} channels, but 3 are needed"):
        read_image(tmp_path / "a.tif", 3)


def test_without_tifffile_the_samples_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tifffile = pytest.importorskip("tifffile")
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((4, 5, 2), np.uint8), photometric="minisblack", planarconfig="contig")
    monkeypatch.setitem(sys.modules, "tifffile", None)
    with pytest.raises(MissingDependency, match=r"a TIFF with 2 samples a pixel.*regloss\[tiff\]"):
        read_image(tmp_path / "a.tif")
    with pytest.raises(UsageError, match="mixes images with different numbers of channels"):
        common_channels({Path("a"): Header((1, 1), 2), Path("b"): Header((1, 1), 1)}, tmp_path)
    assert common_channels({Path("a"): Header((1, 1), 2), Path("b"): Header((1, 1), 2)}, tmp_path) == 2


def test_a_header_knows_bits_and_orientation(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = save(tmp_path / "a.jpg", np.zeros((16, 24), np.uint8), exif=exif)
    assert read_header(path) == Header((24, 16), 1, 8, 6)
    assert read_header(path).stored_size == (16, 24)
    for values, bits in ((np.zeros((2, 2), np.uint16), 16), (np.zeros((2, 2), np.float32), 32), (np.eye(2) > 0, 1)):
        assert read_header(save(tmp_path / "b.tif", values)).bits == bits
