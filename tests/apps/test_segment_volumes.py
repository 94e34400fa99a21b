"""`segment` on volumes: spacing, the result's geometry, a picture of slices, and files that do not fit."""

import numpy as np
import pytest
import torch
from PIL import Image

from regloss.apps.segment import segment_file
from regloss.errors import UsageError
from regloss.io.palettes import class_colors
from regloss.report.montage import montage

nibabel = pytest.importorskip("nibabel", reason="pip install 'regloss[volumes]'")

SPACING = (4.0, 1.0, 1.0)


@pytest.fixture
def files(tmp_path):
    """A bright ball of radius 9 mm in noise, scribbled in one slice; 0 = nothing drawn."""
    axes = [(np.arange(n) - n // 2) * step for n, step in zip((8, 26, 28), SPACING, strict=True)]
    squares = sum(axis**2 for axis in np.meshgrid(*axes, indexing="ij"))
    truth = (squares <= 81).astype(np.uint8)
    image = (300.0 + 200.0 * truth + np.random.default_rng(0).normal(0, 60, truth.shape)).astype(np.int16)
    scribbles = np.zeros_like(truth)
    scribbles[4, 11:15, 12:16] = 1
    scribbles[4, 2, 2:26] = scribbles[1, 2:24, 3] = scribbles[7, 2:24, 3] = 2
    affine = np.diag([*SPACING[::-1], 1.0])
    affine[:3, 3] = (5, 6, 7)
    for name, values in (("image", image), ("scribbles", scribbles)):
        nibabel.save(nibabel.Nifti1Image(values.T, affine), tmp_path / f"{name}.nii.gz")
    return tmp_path, truth, affine


def run(folder, scribbles="scribbles.nii.gz", **settings):
    given = {"values": {1: 1, 2: 0}, "unlabelled": 0, "regularizers": ["grid-crf:weight=3,sigma=0.3"], **settings}
    return segment_file(folder / "image.nii.gz", folder / "out", scribbles=folder / scribbles, **given)


def test_a_ball(files):
    folder, truth, affine = files
    found = run(folder)
    image = nibabel.load(folder / "out" / "labels.nii.gz")
    np.testing.assert_allclose(image.affine, affine)
    labels = np.asarray(image.dataobj).T
    np.testing.assert_array_equal(labels, found.labels)
    dice = 2 * (labels & truth).sum() / (labels.sum() + truth.sum())
    assert dice > 0.9
    assert "spacing 4 x 1 x 1 mm, slices first" in found.notes
    assert any("the percentiles .5 and 99.5, become 0 to 1" in note for note in found.notes)
    with Image.open(folder / "out" / "overlay.png") as picture:
        assert picture.mode == "RGB"
        assert picture.width > 1.3 * picture.height


def test_channels(files):
    """Of modalities that were stacked: what the first does not show the second does; a time axis is none of them."""
    folder, truth, affine = files
    image = nibabel.load(folder / "image.nii.gz")
    values = np.asarray(image.dataobj)
    noise = np.random.default_rng(1).normal(1000, 60, values.shape).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(np.stack([noise, values], -1), affine), folder / "image.nii.gz")
    with pytest.raises(UsageError, match=r"has 4 axes, of sizes \(28, 26, 8, 2\); .* --channels 2 of regloss segment"):
        run(folder)
    assert not (folder / "out").exists()
    found = run(folder, channels=2)
    assert 2 * (found.labels & truth).sum() / (found.labels.sum() + truth.sum()) > 0.9
    assert any("2 channels, of which pictures show the first, in grey" in note for note in found.notes)
    (ranges,) = [note for note in found.notes if "percentiles" in note]
    assert ranges.count(" to ") == 3  # one for each channel, and 0 to 1


def test_the_spacing_matters(files):
    """With pixels for mm, the axes would be alike, and the energy another one."""
    folder, _, _ = files
    expected = run(folder).segmentation.energy
    for name in ("image", "scribbles"):
        image = nibabel.load(folder / f"{name}.nii.gz")
        nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj), np.eye(4)), folder / f"{name}.nii.gz")
    assert run(folder, overwrite=True).segmentation.energy > 1.03 * expected


def test_phases_without_scribbles(files):
    folder, _, _ = files
    found = segment_file(folder / "image.nii.gz", folder / "out", phases=2, regularizers=["grid-crf:weight=0.5"])
    names = sorted(path.name for path in (folder / "out" / "masks").iterdir())
    assert names == ["phase-0.nii.gz", "phase-1.nii.gz"]
    mask = nibabel.load(folder / "out" / "masks" / "phase-1.nii.gz")
    np.testing.assert_array_equal(np.asarray(mask.dataobj).T, 255 * found.labels)


def test_scribbles_that_do_not_lie_on_the_image(files):
    folder, _, affine = files
    scribbles = nibabel.load(folder / "scribbles.nii.gz")
    values = np.asarray(scribbles.dataobj)
    nibabel.save(nibabel.Nifti1Image(values, np.diag([-1, -1, 1, 1]) @ affine), folder / "turned.nii.gz")
    nibabel.save(nibabel.Nifti1Image(values[:-1], affine), folder / "small.nii.gz")
    Image.fromarray(values[:, :, 0]).save(folder / "flat.png")
    for name, message in (
        ("turned.nii.gz", "another place or orientation than"),
        ("small.nii.gz", "has the size"),
        ("flat.png", "has the size"),
    ):
        with pytest.raises(UsageError, match=message):
            run(folder, name)
    assert not (folder / "out").exists()


def test_slices_have_physical_proportions_and_show_what_is_labelled():
    labels = np.zeros((6, 20, 40), np.uint8)
    labels[2:4, 5:15, 10:30] = 1
    image = torch.rand(1, 6, 20, 40).numpy()
    picture = montage(image, labels, class_colors(2), (5.0, 1.0, 1.0), columns=2)
    # Rows of 20, 30 and 30 mm, columns of 40 mm; two slices of 40 mm make the width.
    assert picture.shape[1] == pytest.approx(1600, rel=0.02)
    assert picture.shape[0] == pytest.approx(1600 * 80 / 80, rel=0.03)
    green = (picture.astype(int).max(-1) - picture.astype(int).min(-1)) > 30
    thirds = np.array_split(green, [400, 1000])
    assert all(third.any() for third in thirds), "each row shows the labelled box"
