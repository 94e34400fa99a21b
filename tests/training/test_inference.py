"""What a trained model does: scores, label maps, overlays; and what is said when it cannot."""

import json
import shutil

import numpy as np
import pytest
import small_data
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.nn import functional

from regloss.errors import UsageError
from regloss.io.images import read_image
from regloss.io.outputs import check_new_folder, make_new_folder, write_new
from regloss.io.reduction import reduce_image
from regloss.training.config import parse
from regloss.training.inference import evaluate_run, predict_files
from regloss.training.model import Segmenter, build_segmenter, load_model, predict
from regloss.training.trainer import train
from regloss_plugins.networks.encoders.mobilenetv2 import MobileNetV2


@pytest.fixture
def run(trained, tmp_path):
    """A copy of a training's output, which may be changed."""
    return shutil.copytree(trained, tmp_path / "copy")


# -- Models ------------------------------------------------------------------------------------------------------------


def test_a_model_is_read_back(trained):
    model = load_model(trained)
    weights = load_file(trained / "model.safetensors")
    assert all(torch.equal(value, weights[name]) for name, value in model.segmenter.network.state_dict().items())
    assert not model.segmenter.training
    assert (len(model.classes), len(model.colors), model.channels) == (3, 3, 1)


def test_a_run_under_way_is_read_from_its_checkpoint(run):
    expected = load_file(run / "model.safetensors")
    (run / "model.safetensors").unlink()
    found = load_model(run).segmenter.network.state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_what_is_no_run_is_refused(run, tmp_path):
    with pytest.raises(UsageError, match=r"is not the output folder of a training: it holds no model.json"):
        load_model(tmp_path)
    for text in ("nonsense", "[]", '{"config": {}}', '{"config": {}, "classes": 3}'):
        (run / "model.json").write_text(text)
        with pytest.raises(UsageError, match=r"model.json does not describe a model"):
            load_model(run)


def test_weights_of_another_network_or_version_are_refused(run):
    card = json.loads((run / "model.json").read_text())
    (run / "model.json").write_text(json.dumps({**card, "classes": [*card["classes"], "another"]}))
    with pytest.raises(UsageError, match=r"of another network than the configured UNet: classifier.* is \(3, "):
        load_model(run)
    (run / "model.json").write_text(json.dumps(card))
    save_file(load_file(run / "model.safetensors"), run / "model.safetensors", metadata={"regloss-format": "99"})
    with pytest.raises(UsageError, match="format version 99"):
        load_model(run)


def test_initial_weights_are_not_needed_again(config, tmp_path, images):
    """A file with the encoder's weights, say of ImageNet, is read at the start of a training and never again."""
    encoder = MobileNetV2(1, 16)
    file = tmp_path / "encoder.safetensors"
    save_file(encoder.state_dict(), file)
    network = f'network={{name = "deeplabv3plus", encoder = "mobilenetv2", weights = "{file}"}}'
    parsed = config(
        network, "training.epochs=1", 'evaluation.energy=""', "training.optimizer.lr=1e-12", loop="gradient-descent"
    )
    train(parsed)
    trained = load_model(tmp_path / "run").segmenter.network
    name = MobileNetV2.first_convolution
    torch.testing.assert_close(trained.encoder.state_dict()[name], encoder.state_dict()[name], rtol=0, atol=1e-8)
    file.unlink()
    assert predict_files(tmp_path / "run", images / "images" / "i0.png", tmp_path / "predicted") == 1
    evaluate_run(tmp_path / "run", "test")
    train(parsed, resume=True)
    start = f"training.start-from={tmp_path / 'run'}"
    train(config(network, start, "training.epochs=1", output="second", loop="gradient-descent"))
    with pytest.raises(UsageError, match=r"encoder.safetensors does not exist"):
        train(config(network, "training.epochs=1", output="third"))


@pytest.mark.parametrize("normalize", ["image", "imagenet"])
def test_input_is_not_normalised_twice(normalize):
    """Only grey images reach deeplabv3plus as they are."""
    table = {
        "output": "run",
        "data": {"dataset": "sample", "normalize": normalize},
        "network": {"name": "deeplabv3plus"},
        "training": {"epochs": 1},
    }
    with pytest.raises(UsageError, match="normalises its input itself"):
        build_segmenter(parse(table), 3, 2)
    if normalize == "image":
        build_segmenter(parse(table), 1, 2)


@pytest.mark.parametrize("normalize", ["none", "image", "imagenet"])
def test_what_the_network_sees(normalize):
    image = torch.rand(2, 3, 5, 6) * 0.5 + 0.2
    seen = Segmenter(torch.nn.Identity(), normalize)(image)
    if normalize == "none":
        assert torch.equal(seen, image)
    elif normalize == "image":
        torch.testing.assert_close(seen.flatten(1).mean(1), torch.zeros(2), rtol=0, atol=1e-5)
        torch.testing.assert_close(seen.flatten(1).std(1, correction=0), torch.ones(2), rtol=0, atol=1e-4)
    else:
        torch.testing.assert_close(seen[:, 0], (image[:, 0] - 0.485) / 0.229)
        torch.testing.assert_close(seen[:, 2], (image[:, 2] - 0.406) / 0.225)


def test_padding_is_seen_as_nothing():
    """Normalisation is over the region of interest, and what lies outside is 0."""
    image, roi = torch.rand(1, 1, 5, 6), torch.zeros(1, 5, 6, dtype=torch.bool)
    roi[:, 1:4, 2:5] = True
    seen = Segmenter(torch.nn.Identity(), "image")(image * roi, roi)
    alone = Segmenter(torch.nn.Identity(), "image")(image[..., 1:4, 2:5])
    torch.testing.assert_close(seen[..., 1:4, 2:5], alone)
    assert (seen.squeeze(1)[~roi] == 0).all()


def test_predicting_puts_the_mode_back():
    segmenter = Segmenter(torch.nn.Sequential(torch.nn.Conv2d(1, 2, 1), torch.nn.Dropout(0.9)), "none").train()
    image = torch.rand(1, 1, 4, 4)
    assert torch.equal(predict(segmenter, image), predict(segmenter, image))
    assert segmenter.training
    assert not predict(segmenter, image).requires_grad


# -- Scores ------------------------------------------------------------------------------------------------------------


def test_evaluating_gives_the_trainings_scores(trained):
    expected = json.loads((trained / "scores.json").read_text())["test"]
    assert evaluate_run(trained, "test") == expected
    assert evaluate_run(trained, "train")["images"] == 6
    changed = evaluate_run(trained, "test", ["evaluation.trimap=[2]", 'evaluation.energy=""'])
    assert changed["trimap"].keys() == {"2"}
    assert "energy" not in changed


def test_evaluating_on_other_data(trained, tmp_path):
    other = small_data.write_folder(tmp_path / "other", size=(30, 20))
    scores = evaluate_run(trained, "all", [f"data.root={other}"])
    assert scores["images"] == 8
    assert sum(map(sum, scores["confusion"])) == 8 * 30 * 20


def test_what_cannot_be_evaluated(trained, tmp_path, images):
    with pytest.raises(UsageError, match="no subset 'tset'"):
        evaluate_run(trained, "tset")
    with pytest.raises(UsageError, match=r"The data set has the classes .*'class 3'\], the model \['background'"):
        evaluate_run(trained, "test", ["data.classes=4"])
    other = small_data.write_folder(tmp_path / "other")
    (other / "labels" / "i6.png").unlink()
    with pytest.raises(UsageError, match=r"1 of 2 images have no label file in .*: i6"):
        evaluate_run(trained, "test", [f"data.root={other}"])
    with pytest.raises(UsageError, match="given changes: unknown key"):
        evaluate_run(trained, "test", ["data.rot=3"])


# -- Label maps --------------------------------------------------------------------------------------------------------


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


# -- Output ------------------------------------------------------------------------------------------------------------


def test_new_folders(tmp_path):
    check_new_folder(tmp_path / "a" / "b", (), overwrite=False)
    assert not (tmp_path / "a").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="file is a file; a folder is needed"):
        check_new_folder(tmp_path / "file", (), overwrite=True)
    with pytest.raises(UsageError, match=r"cannot be made: .*file is not a folder"):
        check_new_folder(tmp_path / "file" / "below", (), overwrite=False)
    with pytest.raises(UsageError, match="cannot be written"):
        make_new_folder(tmp_path / "file" / "below", ())


def test_new_files(tmp_path):
    write_new(tmp_path / "scores.json", "{}")
    with pytest.raises(UsageError, match=r"scores.json exists already"):
        write_new(tmp_path / "scores.json", "[]")
    assert (tmp_path / "scores.json").read_text() == "{}"
    with pytest.raises(UsageError, match="cannot be written"):
        write_new(tmp_path / "absent" / "scores.json", "{}")
