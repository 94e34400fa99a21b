"""Label maps and overlays of a trained model, and what is said when it cannot make them."""

import errno
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from regloss.apps.predict import predict_files
from regloss.errors import FailedWrite, UsageError
from regloss.io.images import read_image
from regloss.io.reduction import reduce_image
from regloss.training.model import load_model, predict
from regloss.training.trainer import train


@pytest.fixture
def run(trained, tmp_path):
    """A copy of a training's output, which may be changed."""
    return shutil.copytree(trained, tmp_path / "copy")


def test_a_folder_is_segmented(trained, images, tmp_path):
    assert predict_files(trained, images / "images", tmp_path / "out") == 8
    model = load_model(trained)
    for name in (f"i{n}" for n in range(8)):
        logits = predict(model.segmenter, torch.from_numpy(read_image(images / "images" / f"{name}.png")).unsqueeze(0))
        with Image.open(tmp_path / "out" / "labels" / f"{name}.png") as picture:
            assert picture.mode == "P"
            np.testing.assert_array_equal(np.asarray(picture), logits.argmax(1)[0])
            assert tuple(picture.getpalette()[3:6]) == model.colors[1]
        with Image.open(tmp_path / "out" / "overlays" / f"{name}.png") as picture:
            assert (picture.mode, picture.size) == ("RGB", (28, 24))


def test_probabilities_are_written_where_they_are_wanted(trained, images, tmp_path):
    predict_files(trained, images / "images", tmp_path / "out", probabilities="tiff")
    assert sorted(path.name for path in (tmp_path / "out" / "probabilities").iterdir()) == [
        f"i{n}.tif" for n in range(8)
    ]
    with Image.open(tmp_path / "out" / "probabilities" / "i3.tif") as picture:
        assert (picture.n_frames, picture.size, picture.mode) == (3, (28, 24), "F")
    predict_files(trained, images / "images", tmp_path / "out", overwrite=True)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["labels", "overlays", "prediction.json"]
    with pytest.raises(UsageError, match="npy or tiff; got 'jpg'"):
        predict_files(trained, images / "images", tmp_path / "new", probabilities="jpg")
    assert not (tmp_path / "new").exists()


def test_one_image_of_any_size_and_kind(trained, tmp_path):
    """Colours turn into grey for a model of grey images; the network takes any size."""
    pixels = np.random.default_rng(0).integers(0, 256, (33, 41, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.jpg")
    assert predict_files(trained, tmp_path / "photo.jpg", tmp_path / "out") == 1
    with Image.open(tmp_path / "out" / "labels" / "photo.png") as picture:
        assert picture.size == (41, 33)


def test_images_are_reduced_as_they_were_in_training(config, images, tmp_path):
    train(config("data.reduce=2", "data.crop=12", "training.epochs=1"))
    predict_files(tmp_path / "run", images / "images" / "i0.png", tmp_path / "out")
    model = load_model(tmp_path / "run")
    image = read_image(images / "images" / "i0.png")
    logits = predict(model.segmenter, torch.from_numpy(reduce_image(image, 2)).unsqueeze(0))
    expected = functional.interpolate(logits, size=(24, 28), mode="bilinear").argmax(1)[0]
    with Image.open(tmp_path / "out" / "labels" / "i0.png") as picture:
        np.testing.assert_array_equal(np.asarray(picture), expected)


def test_a_full_disk_leaves_what_is_done(trained, images, tmp_path, monkeypatch):
    """Files of earlier images are whole, and a message says how many there are and how to get the others."""
    save, out = Image.Image.save, tmp_path / "out"

    def full(picture, path, *args, **kwargs):
        if "i1.png" in str(path):
            raise OSError(errno.ENOSPC, "No space left on device")
        save(picture, path, *args, **kwargs)

    monkeypatch.setattr(Image.Image, "save", full)
    words = r"^1 of 8 are done, in .*labels\. Mend this, and go on with --resume: .*i1\.png.*No space left on device"
    with pytest.raises(FailedWrite, match=words):
        predict_files(trained, images / "images", out)
    assert [path.name for path in (out / "labels").iterdir()] == ["i0.png"]
    with Image.open(out / "labels" / "i0.png") as picture:
        assert picture.size == (28, 24)
    monkeypatch.setattr(Image.Image, "save", save)
    assert predict_files(trained, images / "images", out, resume=True) == 8
    assert len(list((out / "labels").iterdir())) == 8


def test_nothing_to_segment(trained, tmp_path):
    (tmp_path / "empty").mkdir()
    for images in (tmp_path / "empty", tmp_path / "absent"):
        with pytest.raises(UsageError, match="neither an image nor a folder with images"):
            predict_files(trained, images, tmp_path / "out")
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(UsageError, match=r"text.png cannot be read"):
        predict_files(trained, tmp_path / "text.png", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_existing_output_is_refused(trained, images, tmp_path):
    out, image = tmp_path / "out", images / "images" / "i0.png"
    predict_files(trained, images / "images", out)
    with pytest.raises(UsageError, match=r"out exists already. Replace it with --overwrite"):
        predict_files(trained, image, out)
    assert len(list((out / "labels").iterdir())) == 8
    predict_files(trained, image, out, overwrite=True)
    assert [path.name for path in (out / "labels").iterdir()] == ["i0.png"]
    (out / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"also holds notes.txt"):
        predict_files(trained, image, out, overwrite=True)
    assert (out / "notes.txt").read_text() == "mine"
