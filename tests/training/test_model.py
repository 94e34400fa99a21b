"""Models read back, what their networks see, and what is said when they do not fit."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from regloss.apps.evaluate import evaluate_run
from regloss.apps.predict import predict_files
from regloss.errors import UsageError
from regloss.training.config import parse
from regloss.training.model import SegmentationModel, build_model, load_model, predict
from regloss.training.trainer import train
from regloss_plugins.networks.encoders.mobilenetv2 import MobileNetV2


@pytest.fixture
def run(trained, tmp_path):
    """A copy of a training's output, which may be changed."""
    return shutil.copytree(trained, tmp_path / "copy")


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
        with pytest.raises(UsageError, match=r"model.json (is damaged|does not describe a model of regloss)"):
            load_model(run)


def test_weights_of_another_network_or_version_are_refused(run):
    card = json.loads((run / "model.json").read_text())
    more = {"classes": [*card["classes"], "another"], "colors": [*card["colors"], [1, 2, 3]]}
    (run / "model.json").write_text(json.dumps({**card, **more}))
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


def test_a_network_of_another_library(config, tmp_path, images):
    """Trained from its library's state dict; read back only where its code is asked for by name."""
    target = "torch.nn:Conv2d"
    arguments = "{in_channels = 1, out_channels = 3, kernel_size = 3, padding = 1}"
    network = f'network={{name = "module", target = "{target}", arguments = {arguments}}}'
    given = torch.nn.Conv2d(1, 3, 3, padding=1).state_dict()
    small = ("training.epochs=1", 'evaluation.energy=""', "training.optimizer.lr=1e-12")
    for name, content in (("plain.pth", given), ("lightning.pt", {"state_dict": given, "epoch": 3})):
        torch.save(content, tmp_path / name)
        start = f"training.start-from={tmp_path / name}"
        train(config(network, start, *small, loop="gradient-descent", output=name[:-4]))
        weights = load_file(tmp_path / name[:-4] / "model.safetensors")
        torch.testing.assert_close(weights, given, rtol=0, atol=1e-8)
    run = tmp_path / "plain"
    with pytest.raises(UsageError, match=rf"torch.nn:Conv2d makes, .*allow it with --set network.target={target}"):
        load_model(run)
    assert predict_files(run, images / "images" / "i0.png", tmp_path / "out", [f"network.target={target}"]) == 1
    torch.save([1, 2], tmp_path / "list.pth")
    (tmp_path / "text.pth").write_text("no weights")
    for name, message in (("list.pth", "holds no state dict"), ("text.pth", "cannot be read by torch.load")):
        with pytest.raises(UsageError, match=message):
            train(config(network, f"training.start-from={tmp_path / name}", *small, output="refused"))
    torch.save({"weight": given["weight"]}, tmp_path / "part.pth")
    with pytest.raises(UsageError, match=r"another network than the configured ModuleNetwork: bias is missing"):
        train(config(network, f"training.start-from={tmp_path / 'part.pth'}", *small, output="refused"))
    assert not (tmp_path / "refused").exists()


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
        build_model(parse(table), 3, 2)
    if normalize == "image":
        build_model(parse(table), 1, 2)


@pytest.mark.parametrize("normalize", ["none", "image", "imagenet"])
def test_what_the_network_sees(normalize):
    image = torch.rand(2, 3, 5, 6) * 0.5 + 0.2
    seen = SegmentationModel(torch.nn.Identity(), normalize)(image)
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
    seen = SegmentationModel(torch.nn.Identity(), "image")(image * roi, roi)
    alone = SegmentationModel(torch.nn.Identity(), "image")(image[..., 1:4, 2:5])
    torch.testing.assert_close(seen[..., 1:4, 2:5], alone)
    assert (seen.squeeze(1)[~roi] == 0).all()


def test_predicting_puts_the_mode_back():
    segmenter = SegmentationModel(torch.nn.Sequential(torch.nn.Conv2d(1, 2, 1), torch.nn.Dropout(0.9)), "none").train()
    image = torch.rand(1, 1, 4, 4)
    assert torch.equal(predict(segmenter, image), predict(segmenter, image))
    assert segmenter.training
    assert not predict(segmenter, image).requires_grad
