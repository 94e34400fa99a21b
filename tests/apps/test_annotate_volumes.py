"""`regloss annotate` on a folder of volumes, slice by slice."""

import numpy as np
import pytest
from annotation import TAB, files_of, served
from volume_files import AFFINE, SIZE, save, write_volumes

pytest.importorskip("starlette", reason="needs regloss[annotate]")
nibabel = pytest.importorskip("nibabel", reason="needs regloss[volumes]")

from regloss.apps.annotate.image_set import ImageSet  # noqa: E402 - needs what is looked for above
from regloss.apps.annotate.scribbles import Scribbles, Stroke  # noqa: E402
from regloss.errors import UsageError  # noqa: E402
from regloss.io.volumes import read_geometry, read_label_volume  # noqa: E402

SLICES, HEIGHT, WIDTH = SIZE
DRAWN = [1, 4, 7, 10]  # of all slices, in the order of the volumes


@pytest.fixture
def root(tmp_path):
    return write_volumes(tmp_path / "set")


def test_slices_are_images(root):
    images = ImageSet(root)
    assert len(images.ids) == 3 * SLICES
    assert images.ids[SLICES + 2] == "case1-002"
    assert set(images.sizes) == {(HEIGHT, WIDTH)}
    assert images.classes.names == ("background", "object")
    np.testing.assert_array_equal(images.image(8), images.dataset.load("case1-002").image)
    scribbles = Scribbles(images)
    assert [index for index in range(len(images.ids)) if scribbles.is_drawn(index)] == DRAWN
    expected = read_label_volume(root / "scribbles/case1.nii.gz")[0][4]
    np.testing.assert_array_equal(scribbles.read(10)[0], expected)


def test_a_stroke_lies_in_its_volume(root):
    """On its slice, with the image's geometry; what was there is kept, and other slices go on as they were."""
    images = ImageSet(root)
    scribbles = Scribbles(images)
    before, kept = read_label_volume(root / "scribbles/case0.nii.gz")[0], files_of(root)
    other = scribbles.read(1)[1]
    scribbles.draw(2, Stroke(TAB, 0, scribbles.read(2)[1], [5 * WIDTH + 3, 4, 1]))
    found, geometry = read_label_volume(root / "scribbles/case0.nii.gz")
    assert (found[2, 5, 3:7] == 1).all()
    found[2, 5, 3:7] = 255
    np.testing.assert_array_equal(found, before)
    geometry.check_same(read_geometry(root / "images/case0.nii.gz"), root, root)
    assert (root / "scribbles/case0.nii.gz.bak").read_bytes() == kept["scribbles/case0.nii.gz"]
    assert scribbles.read(1)[1] == other
    assert scribbles.is_drawn(2)

    scribbles.draw(14, Stroke(TAB, 1, scribbles.read(14)[1], [0, 4, 0]))
    assert (read_label_volume(root / "scribbles/case2.nii.gz")[0] != 255).sum() == 4
    scribbles.draw(14, Stroke(TAB, 2, scribbles.read(14)[1], [0, 4, 255]))
    assert not (root / "scribbles/case2.nii.gz").exists()


def test_scribbles_on_another_grid(root):
    moved = AFFINE.copy()
    moved[0, 3] += 2
    save(root / "scribbles/case1.nii.gz", np.full(SIZE, 255, np.uint8), moved)
    with pytest.raises(UsageError, match="another place or orientation"):
        Scribbles(ImageSet(root))


def test_from_slices_to_masks(root):
    """Answers, a training on the slices that are drawn on, and its masks of all, as volumes."""
    with served(root) as (_, client):
        client.ask("/api/images/1/answer", {"tab": TAB, "settings": {}})
        about, labels = client.answer(1)
        assert about["state"] == "optimal"
        truth = read_label_volume(root / "labels/case0.nii.gz")[0]
        assert (labels == truth[1]).mean() > 0.9

        assert 'dataset = "volumes"' in client.ask("/api/training/plan", {"epochs": 2}).json["configuration"]
        assert client.ask("/api/training", {"epochs": 2}).json["images"] == len(DRAWN)
        while (state := client.ask("/api/training").json)["state"] == "running":
            pass
        assert state["state"] == "done", state["said"]

        for settings, slices in (({}, {1, 4}), ({"costs": "network"}, set(range(SLICES)))):
            client.ask("/api/masks", {"tab": TAB, "settings": settings})
            while (state := client.ask("/api/masks").json)["running"]:
                pass
            assert state["problems"] == []
            masks, geometry = read_label_volume(root / state["folder"] / "case0.nii.gz")
            geometry.check_same(read_geometry(root / "images/case0.nii.gz"), root, root)
            assert {number for number in range(SLICES) if (masks[number] != 255).all()} == slices
            assert {number for number in range(SLICES) if (masks[number] != 255).any()} == slices
            if not settings:
                np.testing.assert_array_equal(masks[1], labels)
