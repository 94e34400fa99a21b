"""`regloss.load`: what it says of an array is what the command says of the file."""

import numpy as np
import pytest
import torch
from PIL import Image

import regloss
from regloss.apps.predict import predict_files
from regloss.training.trainer import train


def test_an_array_is_segmented_as_its_file_is(trained, images, tmp_path):
    path = images / "images" / "i0.png"
    predict_files(trained, path, tmp_path / "out", probabilities="npy")
    model = regloss.load(str(trained))
    assert (model.classes, model.channels, len(model.colors)) == (("background", "class 1", "class 2"), 1, 3)
    assert model.config.network.name == "unet"
    pixels = np.asarray(Image.open(path))
    labels, probabilities = model.predict(pixels), model.predict_probabilities(pixels)
    assert (labels.dtype, probabilities.dtype) == (np.uint8, np.float32)
    np.testing.assert_array_equal(labels, np.asarray(Image.open(tmp_path / "out" / "labels" / "i0.png")))
    np.testing.assert_array_equal(probabilities, np.load(tmp_path / "out" / "probabilities" / "i0.npy"))
    np.testing.assert_array_equal(probabilities.argmax(0), labels)
    np.testing.assert_allclose(probabilities.sum(0), 1, atol=1e-6)
    np.testing.assert_array_equal(model.predict(torch.from_numpy(pixels / np.float32(255))), labels)


def test_reduced_images_come_back_at_their_own_size(config, images, tmp_path):
    train(config("data.reduce=2", "data.crop=12", "training.epochs=1"))
    predict_files(tmp_path / "run", images / "images" / "i0.png", tmp_path / "out")
    labels = regloss.load(tmp_path / "run", device="cpu").predict(np.asarray(Image.open(images / "images" / "i0.png")))
    np.testing.assert_array_equal(labels, np.asarray(Image.open(tmp_path / "out" / "labels" / "i0.png")))


def test_a_layer_can_be_put_behind_it(trained):
    image = np.random.default_rng(0).random((24, 28))
    with_layer = regloss.load(trained, ["layer.regularizer=tv"]).predict_probabilities(image)
    plain = regloss.load(trained).predict_probabilities(image)
    assert np.abs(np.diff(with_layer, axis=1)).sum() < np.abs(np.diff(plain, axis=1)).sum()


def test_no_run_and_no_image(trained, tmp_path):
    with pytest.raises(regloss.UsageError, match=r"holds no model\.json"):
        regloss.load(tmp_path)
    with pytest.raises(regloss.UsageError, match="values from 0 to 255"):
        regloss.load(trained).predict(np.array([[0.0, 255.0]]))
    for nothing in (None, [], [[0.0, 1.0]]):
        with pytest.raises(regloss.UsageError, match="An image is an array, a tensor or a file"):
            regloss.load(trained).predict(nothing)
