"""Arrays whose axes have names: TIFF as OME, ImageJ and others write it, NPY, HDF5, DICOM; read back, and compared."""

from __future__ import annotations

import json
import locale
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from volume_files import save_series

from regloss.errors import MissingDependency, UsageError
from regloss.io.images import read_header, read_image, read_stored
from regloss.io.stacks import read_layout
from regloss.io.tiles import open_parts
from regloss.io.types import Header
from regloss.io.volumes import is_volume, read_geometry, read_label_volume, read_volume
from regloss.io.windows import Window

tifffile = pytest.importorskip("tifffile")
RNG = np.random.default_rng(0)
IMAGE = RNG.integers(0, 4000, (3, 6, 7)).astype(np.uint16)  # channels first
VOLUME = RNG.integers(0, 4000, (5, 6, 7)).astype(np.uint16)


def tiff(path: Path, values: np.ndarray, axes: str, **options: Any) -> Path:
    tifffile.imwrite(
        path, values, photometric="minisblack", metadata={"axes": axes, **options.pop("metadata", {})}, **options
    )
    return path


@pytest.mark.parametrize("kind", ["ome", "imagej"])
def test_channels_as_pages(tmp_path: Path, kind: str) -> None:
    path = tiff(tmp_path / f"a.{'ome.' if kind == 'ome' else ''}tif", IMAGE, "CYX", **{kind: True})
    assert read_header(path) == Header((6, 7), 3, 16)
    np.testing.assert_array_equal(read_stored(path), IMAGE)
    assert not is_volume(path)


@pytest.mark.parametrize("compression", [None, "zlib", "lzw", "zstd", "jpeg2000"])
@pytest.mark.parametrize("tile", [None, (16, 16)])
def test_compressed_and_tiled(tmp_path: Path, compression: str | None, tile: tuple[int, int] | None) -> None:
    values = RNG.integers(0, 4000, (2, 40, 50)).astype(np.uint16)
    options = {"lossless": True} if compression == "jpeg2000" else {}
    path = tiff(
        tmp_path / "a.ome.tif", values, "CYX", ome=True, compression=compression, tile=tile,
        **({"compressionargs": {"reversible": True}} if options else {}),
    )  # fmt: skip
    np.testing.assert_array_equal(read_stored(path), values)


def test_a_z_stack_is_a_volume_with_its_spacing(tmp_path: Path) -> None:
    sizes = {f"PhysicalSize{axis}": size for axis, size in (("X", 0.5), ("Y", 0.25), ("Z", 2.0))}
    ome = tiff(tmp_path / "a.ome.tif", VOLUME, "ZYX", ome=True, metadata=sizes)
    imagej = tiff(
        tmp_path / "b.tif", VOLUME, "ZYX", imagej=True, resolution=(2.0, 4.0), metadata={"spacing": 2.0, "unit": "um"}
    )
    for path in (ome, imagej):
        assert is_volume(path)
        volume = read_volume(path)
        np.testing.assert_array_equal(volume.values[0], VOLUME)
        np.testing.assert_allclose(volume.geometry.spacing, [0.002, 0.00025, 0.0005], rtol=1e-6)
        assert read_geometry(path).size == (5, 6, 7)
        with pytest.raises(UsageError, match=r"holds several frames \(axes ZYX of sizes \(5, 6, 7\)\)"):
            read_header(path)
    plain = tmp_path / "c.tif"
    tifffile.imwrite(plain, VOLUME, photometric="minisblack")
    assert not is_volume(plain)
    with pytest.raises(UsageError, match=r"holds several frames .* slices or pages without a name"):
        read_header(plain)
    unknown = tiff(tmp_path / "e.ome.tif", VOLUME, "ZYX", ome=True)
    labels, geometry = read_label_volume(unknown)
    assert geometry.spacing == (1, 1, 1)
    assert labels.dtype == np.uint16
    np.testing.assert_array_equal(labels, VOLUME)
    two = tiff(tmp_path / "d.ome.tif", np.stack([VOLUME, VOLUME]), "CZYX", ome=True)
    np.testing.assert_array_equal(read_volume(two).values, [VOLUME, VOLUME])
    with pytest.raises(UsageError, match="has 2 channels, but 1 is needed"):
        read_label_volume(two)


def test_what_a_tiff_may_not_be(tmp_path: Path) -> None:
    films = tiff(tmp_path / "a.ome.tif", VOLUME, "TYX", ome=True)
    with pytest.raises(UsageError, match=r"axes TYX of sizes \(5, 6, 7\).*Save one time or position"):
        read_header(films)
    with tifffile.TiffWriter(tmp_path / "b.tif") as writer:
        writer.write(VOLUME[0], photometric="minisblack")
        writer.write(VOLUME[0, :3], photometric="minisblack")
    with pytest.raises(UsageError, match="holds 2 images of different sizes or kinds"):
        read_header(tmp_path / "b.tif")
    with tifffile.TiffWriter(tmp_path / "c.tif") as writer:  # with a thumbnail
        writer.write(IMAGE[0], photometric="minisblack")
        writer.write(IMAGE[0, :3, :3], photometric="minisblack", subfiletype=1)
    np.testing.assert_array_equal(read_stored(tmp_path / "c.tif"), IMAGE[:1])
    data = (tmp_path / "c.tif").read_bytes()
    (tmp_path / "d.tif").write_bytes(data[: len(data) // 2])
    with pytest.raises(UsageError, match="cannot be read"):
        read_stored(tmp_path / "d.tif")


def test_what_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tiff(tmp_path / "a.ome.tif", IMAGE, "CYX", ome=True)
    for name, file, extra in (
        ("tifffile", path, "tiff"),
        ("h5py", tmp_path / "a.h5", "hdf5"),
        ("SimpleITK", tmp_path / "a.dcm", "volumes"),
    ):
        file.touch()
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(
            MissingDependency, match=rf"needs {name}, which is not installed: pip install 'regloss\[{extra}\]'"
        ):
            read_header(file)


def test_arrays_of_numpy(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    for stored, expected in ((IMAGE[0], IMAGE[:1]), (IMAGE, IMAGE), (np.moveaxis(IMAGE, 0, -1), IMAGE)):
        np.save(path, stored)
        assert read_header(path) == Header((6, 7), len(expected), 16)
        np.testing.assert_array_equal(read_stored(path), expected)
        assert not is_volume(path)
    np.save(path, VOLUME[None])
    assert is_volume(path)
    np.testing.assert_array_equal(read_volume(path).values[0], VOLUME)
    with pytest.raises(UsageError, match="holds several frames"):
        read_header(path)
    np.save(path, IMAGE.astype(np.float64) / 4000)
    np.testing.assert_allclose(read_image(path), IMAGE / 4000, atol=1e-7)
    np.save(path, IMAGE.astype(np.int16) - 1000)
    np.testing.assert_allclose(read_image(path, window=Window(-1000, 3000)), IMAGE / 4000, atol=1e-6)
    np.save(path, np.zeros((6, 6, 6)))
    with pytest.raises(UsageError, match=r"has the shape \(6, 6, 6\); an image is \(H, W\), \(C, H, W\)"):
        read_header(path)
    np.save(path, np.zeros((3, 4), complex))
    with pytest.raises(UsageError, match="holds complex128"):
        read_stored(path)
    np.save(path, np.array([{}]), allow_pickle=True)
    with pytest.raises(UsageError, match="cannot be read as NPY"):
        read_header(path)
    path.write_bytes(b"")
    with pytest.raises(UsageError, match="cannot be read as NPY"):
        read_header(path)


def test_hdf5(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    path = tmp_path / "a.h5"

    def written(**arrays: np.ndarray) -> Path:
        with h5py.File(path, "w") as file:
            for name, values in arrays.items():
                file[name] = values
        return path

    np.testing.assert_array_equal(read_stored(written(image=IMAGE[0], scribble=IMAGE[0])), IMAGE[:1])
    written(data=VOLUME)
    assert is_volume(path)
    np.testing.assert_array_equal(read_volume(path).values[0], VOLUME)
    with h5py.File(written(exported_data=np.moveaxis(IMAGE, 0, -1)), "a") as file:  # as ilastik writes it
        file["exported_data"].attrs["axistags"] = json.dumps({"axes": [{"key": key} for key in "yxc"]})
    np.testing.assert_array_equal(read_stored(path), IMAGE)
    with pytest.raises(UsageError, match="holds a, b; the image is to be called 'image'"):
        read_header(written(a=IMAGE, b=IMAGE))
    with pytest.raises(UsageError, match="an image of 1 axes"):
        read_header(written(image=IMAGE[0, 0]))
    path.write_bytes(b"no")
    with pytest.raises(UsageError, match="cannot be read as HDF5"):
        read_header(path)


def test_dicom(tmp_path: Path) -> None:
    """A series written slice by slice, out of order; Hounsfield units by its rescaling."""
    pytest.importorskip("SimpleITK")
    units = VOLUME.astype(np.int16) - 1024
    folder = save_series(tmp_path / "series", units, (2.0, 0.25, 0.5))
    before = locale.setlocale(locale.LC_ALL)
    assert is_volume(folder)
    volume = read_volume(folder)
    np.testing.assert_array_equal(volume.values[0], units)
    np.testing.assert_allclose(volume.geometry.spacing, (2, 0.25, 0.5))
    assert read_geometry(folder).size == (5, 6, 7)
    single = folder / "4.dcm"
    assert read_header(single) == Header((6, 7), 1, 32)
    np.testing.assert_array_equal(read_stored(single)[0], units[0])
    with pytest.raises(UsageError, match="a window says which"):
        read_image(single)
    assert read_image(single, window=Window(-1024, 3000)).max() <= 1
    assert locale.setlocale(locale.LC_ALL) == before  # SimpleITK changes it
    (folder / "0.dcm").write_bytes(b"no")
    with pytest.raises(UsageError, match="cannot be read as DICOM"):
        read_header(folder / "0.dcm")
    assert not is_volume(tmp_path)
    assert read_layout(tiff(tmp_path / "a.tif", IMAGE[0], "YX")).axes == "YX"


def test_more_pixels_than_pillow_takes(tmp_path: Path) -> None:
    """20,000 x 20,000, of which one corner is read."""
    path = tmp_path / "a.tif"
    tiles = (np.full((2000, 2000), 7, np.uint8) for _ in range(100))
    options = {"dtype": np.uint8, "tile": (2000, 2000), "compression": "zlib", "compressionargs": {"level": 1}}
    tifffile.imwrite(path, tiles, shape=(20000, 20000), **options)
    assert read_header(path) == Header((20000, 20000), 1, 8)
    with open_parts(path) as parts:
        assert (parts.read(slice(19990, 20000), slice(0, 9)) == 7).all()
