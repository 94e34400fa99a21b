"""Volumes of medical formats: voxels, spacing and place survive, and what is wrong is named."""

import gzip
import sys

import numpy as np
import pytest

from regloss.errors import MissingDependency, UsageError
from regloss.io.labels import read_values
from regloss.io.volumes import (
    Geometry,
    is_volume,
    percentile_window,
    read_geometry,
    read_header,
    read_label_volume,
    read_volume,
    write_label_volume,
)
from regloss.io.windows import Window

nibabel = pytest.importorskip("nibabel", reason="pip install 'regloss[volumes]'")

SIZE = (4, 5, 6)  # slices, rows, columns
SPACING = (3.0, 0.5, 0.75)


def affine(turned=0.0):
    """Right, anterior, superior; in mm; turned about the last axis."""
    rotation = np.array([[np.cos(turned), -np.sin(turned), 0], [np.sin(turned), np.cos(turned), 0], [0, 0, 1]])
    made = np.eye(4)
    made[:3, :3] = rotation * SPACING[::-1]
    made[:3, 3] = (-12.5, 7.0, 100.0)
    return made


def voxels(dtype=np.int16):
    """(*S), all different; -60 to 59."""
    return (np.arange(np.prod(SIZE)).reshape(SIZE) - 60).astype(dtype)


def save(path, values, where=None, **header):
    image = nibabel.Nifti1Image(values.transpose(*range(values.ndim)[::-1]), affine() if where is None else where)
    for name, value in header.items():
        image.header[name] = value
    nibabel.save(image, path)
    return path


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "A.NII.GZ"])
@pytest.mark.parametrize("dtype", [np.int16, np.float32, np.float64, np.int32])
def test_voxels_and_spacing(tmp_path, name, dtype):
    found = read_volume(save(tmp_path / name, voxels(dtype)))
    assert found.values.shape == (1, *SIZE)
    np.testing.assert_array_equal(found.values[0], voxels(dtype))
    assert found.geometry.size == SIZE
    assert found.geometry.spacing == pytest.approx(SPACING)
    np.testing.assert_allclose(found.geometry.affine, affine(), rtol=1e-6)


def test_spacing_is_that_of_turned_axes(tmp_path):
    assert read_geometry(save(tmp_path / "a.nii", voxels(), affine(0.3))).spacing == pytest.approx(SPACING)


def test_scaled_values_are_what_the_header_says(tmp_path):
    image = nibabel.Nifti1Image(voxels().T, affine())
    image.header.set_slope_inter(0.5, 10)
    nibabel.save(image, tmp_path / "a.nii.gz")
    found = read_volume(tmp_path / "a.nii.gz").values[0]
    expected = np.asarray(nibabel.load(tmp_path / "a.nii.gz").dataobj).T
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_a_last_axis_of_one_is_dropped(tmp_path):
    assert read_volume(save(tmp_path / "a.nii", voxels()[None])).values.shape == (1, *SIZE)


@pytest.mark.parametrize("name", ["time.nii.gz", "vectors.nii.gz", "a.nrrd", "a.mha", "stacked.mha"])
def test_channels(tmp_path, name):
    """Where a file says that its voxels have several values; and a fourth axis, where the caller says what it is."""
    itk = pytest.importorskip("SimpleITK", reason="pip install 'regloss[volumes]'")
    both = np.stack([voxels(), 2 * voxels()])
    path = tmp_path / name
    if name == "time.nii.gz":
        save(path, both)
    elif name == "vectors.nii.gz":
        save(path, both[:, None])
    else:
        images = [itk.GetImageFromArray(part) for part in both]
        image = itk.JoinSeries(images) if name == "stacked.mha" else itk.Compose(images)
        image.SetSpacing([*SPACING[::-1], 1.0][: image.GetDimension()])
        itk.WriteImage(image, str(path))
    told = name not in ("time.nii.gz", "stacked.mha")
    for channels in (None, 2) if told else (2,):
        found = read_volume(path, channels=channels)
        np.testing.assert_array_equal(found.values, both)
        header = read_header(path, channels=channels)
        assert header[0] == 2
        assert (header[1].size, header[1].spacing) == (SIZE, found.geometry.spacing) == (SIZE, SPACING)
        np.testing.assert_array_equal(header[1].affine, found.geometry.affine)
    for read in (read_volume, read_header):
        with pytest.raises(UsageError, match="has 2 channels, but 3 are needed" if told else "has 4 axes"):
            read(path, channels=3)
        if not told:
            with pytest.raises(UsageError, match=r"if the last axis holds channels, say how many: channels = 2 of the"):
                read(path)
    with pytest.raises(UsageError, match="has 2 channels, but 1 is needed" if told else "has 4 axes"):
        read_label_volume(path)


@pytest.mark.parametrize("ending", [".nrrd", ".mha", ".mhd"])
def test_other_formats_lie_where_the_same_nifti_does(tmp_path, ending):
    itk = pytest.importorskip("SimpleITK", reason="pip install 'regloss[volumes]'")
    save(tmp_path / "a.nii.gz", voxels(), affine(0.3))
    itk.WriteImage(itk.ReadImage(str(tmp_path / "a.nii.gz")), str(tmp_path / f"a{ending}"))
    one, other = (read_volume(tmp_path / f"a{kind}") for kind in (".nii.gz", ending))
    np.testing.assert_array_equal(one.values, other.values)
    np.testing.assert_allclose(one.geometry.affine, other.geometry.affine, atol=1e-5)
    one.geometry.check_same(other.geometry, tmp_path / "a.nii.gz", tmp_path / f"a{ending}")
    header = read_geometry(tmp_path / f"a{ending}")
    assert (header.size, header.spacing) == (other.geometry.size, other.geometry.spacing)
    np.testing.assert_array_equal(header.affine, other.geometry.affine)


@pytest.mark.parametrize("name", ["out.nii", "out.nii.gz"])
def test_labels_are_written_where_the_image_lies(tmp_path, name):
    geometry = read_geometry(save(tmp_path / "a.nii.gz", voxels(), affine(0.3)))
    labels = (voxels() > 0).astype(np.uint8)
    write_label_volume(tmp_path / name, labels, geometry)
    image = nibabel.load(tmp_path / name)
    np.testing.assert_allclose(image.affine, affine(0.3), rtol=1e-6)
    assert image.get_data_dtype() == np.uint8
    found, where = read_label_volume(tmp_path / name)
    np.testing.assert_array_equal(found, labels)
    np.testing.assert_array_equal(read_values(tmp_path / name), labels)
    geometry.check_same(where, tmp_path / "a.nii.gz", tmp_path / name)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["a.nii.gz", name])  # nothing unfinished is left
    with pytest.raises(UsageError, match=r"must end in \.nii or \.nii\.gz; got 'labels\.mha'"):
        write_label_volume(tmp_path / "labels.mha", labels, geometry)


def broken(tmp_path, kind):
    path = tmp_path / "a.nii.gz"
    if kind == "truncated":
        save(path, voxels())
        path.write_bytes(path.read_bytes()[:-40])
    elif kind == "no nifti":
        path.write_bytes(gzip.compress(b"something else" * 100))
    elif kind == "not packed":
        path.write_bytes(b"something else" * 100)
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "four axes":
        save(path, np.stack([voxels(), voxels()]))
    elif kind == "two axes":
        save(path, voxels()[0])
    elif kind == "nan":
        values = voxels(np.float32)
        values[1, 2, 3] = np.nan
        save(path, values)
    elif kind == "steps":
        raw = bytearray(gzip.decompress(save(path, voxels()).read_bytes()))
        raw[80:92] = bytes(12)
        raw[252:256] = bytes(4)  # the codes that say which of the two affines counts
        path.write_bytes(gzip.compress(bytes(raw)))
    elif kind == "spacing":
        save(path, voxels())
        raw = bytearray(gzip.decompress(path.read_bytes()))
        for row in range(3):  # of the affine, whose second column becomes 0
            raw[284 + 16 * row : 288 + 16 * row] = bytes(4)
        path.write_bytes(gzip.compress(bytes(raw)))
    elif kind == "colours":
        save(path, np.zeros(SIZE, dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")]))
    elif kind == "complex":
        save(path, voxels().astype(np.complex64))
    return path


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("truncated", "cannot be read as NIfTI"),
        ("no nifti", "cannot be read as NIfTI"),
        ("not packed", "cannot be read as NIfTI"),
        ("empty", "cannot be read as NIfTI"),
        ("absent", "cannot be read as NIfTI"),
        ("four axes", r"^[^ ]*a.nii.gz has 4 axes, of sizes \(6, 5, 4, 2\); a volume has three"),
        ("two axes", "has 2 axes"),
        ("nan", "holds 1 voxels that are NaN or infinite"),
        ("steps", r"a.nii.gz has the spacing \(0\.0, 0\.0, 0\.0\) mm; each must be positive"),
        ("spacing", r"the spacing \(0\.75, 0\.0, 3\.0\) mm; each must be positive"),
        ("colours", "voxels; integers or floats are needed"),
        ("complex", "holds complex64 voxels; integers or floats are needed"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, kind, message, capfd):
    path = broken(tmp_path, kind)
    capfd.readouterr()
    with pytest.raises(UsageError, match=message) as caught:
        read_volume(path)
    assert str(path) in str(caught.value)
    if kind not in ("truncated", "nan", "colours", "complex"):
        with pytest.raises(UsageError, match=message):
            read_geometry(path)
    assert capfd.readouterr() == ("", "")  # the library says nothing beside


def test_damaged_files_of_the_other_library(tmp_path):
    pytest.importorskip("SimpleITK", reason="pip install 'regloss[volumes]'")
    (tmp_path / "a.mha").write_bytes(b"ObjectType = Image\nNDims = 3\n")
    with pytest.raises(UsageError, match=r"a\.mha cannot be read"):
        read_volume(tmp_path / "a.mha")


@pytest.mark.parametrize(("value", "found"), [(0.5, "0.5"), (-1, "-1"), (65536, "65536")])
def test_labels_are_whole_numbers(tmp_path, value, found):
    values = np.zeros(SIZE, np.float32)
    values[0, 0, 0] = value
    with pytest.raises(UsageError, match=rf"holds {found}; labels are whole numbers of 0 to 65535. Is it the image\?"):
        read_label_volume(save(tmp_path / "a.nii", values))


def test_geometries_that_differ(tmp_path):
    names = [tmp_path / "image.nii", tmp_path / "labels.nii"]

    def geometry(size=SIZE, spacing=SPACING, where=None):
        return Geometry(size, spacing, affine() if where is None else where)

    geometry().check_same(geometry(where=affine() + 1e-5), *names)
    shifted, wide = affine(), affine()
    shifted[0, 3] += 2
    wide[0, 0] *= 1.1
    for other, message in (
        (geometry(size=(4, 6, 5)), r"labels\.nii has the size \(4, 6, 5\), .*image\.nii \(4, 5, 6\)"),
        (geometry(spacing=(3.0, 0.5, 0.825), where=wide), r"has the spacing \(3\.0, 0\.5, 0\.825\) mm"),
        (geometry(where=shifted), "another place or orientation than"),
        (geometry(where=np.diag([-1, 1, 1, 1]) @ affine()), "another place or orientation than"),
    ):
        with pytest.raises(UsageError, match=message):
            geometry().check_same(other, *names)


def test_what_a_file_does_not_state_cannot_differ(tmp_path):
    """Stacks state no place, and many no spacing: labels of other programs lie on them by their size alone."""
    names = [tmp_path / "image.nii", tmp_path / "labels.npy"]
    image = Geometry(SIZE, SPACING, affine(0.3))
    array = Geometry(SIZE, (1.0, 1.0, 1.0), np.eye(4), measured=False, placed=False)
    image.check_same(array, *names)
    array.check_same(image, *names)
    image.check_same(Geometry(SIZE, SPACING, affine(), placed=False), *names)
    with pytest.raises(UsageError, match="has the spacing"):
        image.check_same(Geometry(SIZE, (3.0, 0.5, 1.0), affine(), placed=False), *names)
    with pytest.raises(UsageError, match="has the size"):
        image.check_same(Geometry((4, 5, 7), SPACING, affine(), measured=False), *names)


def test_windows_by_percentiles():
    values = np.r_[np.zeros(990), np.full(10, 500.0)]
    assert percentile_window(np.arange(2001)) == Window(10.0, 1990.0)
    assert percentile_window(values, 0.5, 95) == Window(0.0, 500.0)  # of hardly any contrast, all
    with pytest.raises(UsageError, match="All voxels have the value 7"):
        percentile_window(np.full((2, 2), 7))


def test_an_absent_library_is_named(tmp_path, monkeypatch):
    path = save(tmp_path / "a.nii", voxels())
    for module, name in (("nibabel", "a.nii"), ("SimpleITK", "a.nrrd")):
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(MissingDependency, match=rf"needs {module}, which is not installed: pip install 'regloss\["):
            read_volume(path.with_name(name))


def test_names_of_volumes(tmp_path):
    assert all(is_volume(tmp_path / name) for name in ("a.nii", "B.NII.GZ", "c.nrrd", "d.mhd"))
    assert not any(is_volume(tmp_path / name) for name in ("a.png", "b.gz", "nii"))
