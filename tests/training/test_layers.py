"""Training with a layer behind the network."""

import csv
import functools
import inspect
import json
import math
import re

import numpy as np
import pytest
import small_data
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

import regloss
from regloss import DenseCRFLayer, RegularizedSoftmax
from regloss.apps.evaluate import evaluate_run
from regloss.apps.predict import predict_files
from regloss.errors import MissingForm, ReglossError, UsageError
from regloss.io.images import read_image
from regloss.training import checkpoints, run_parts
from regloss.training.color_pseudo_labels import ColorPseudoLabels
from regloss.training.config import build_layer, parse
from regloss.training.model import SegmentationModel, describe_layer, layer_report, load_model, predict
from regloss.training.optimization import build_optimizer
from regloss.training.trainer import train

VOLUME = '{name = "volume", volumes = [0.7, 0.1, 0.2], unit = "fraction"}'
LAYERS = {
    "tv": '{regularizer = {name = "tv", weight = 0.2}, steps = 10, learn = ["weight", "entropy"]}',
    "nltv": '{regularizer = {name = "nltv", neighbors = 4, weight = 0.1}, steps = 10, learn = ["weight"]}',
    "threshold-dynamics": '{regularizer = "threshold-dynamics", solver = "dca", learn = ["weight", "sigma"]}',
    "volume": f'{{regularizer = {VOLUME}, solver = {{name = "dca"}}}}',
    "volume by pdhg": f"{{regularizer = {VOLUME}, steps = 30}}",
    "tv and volume": f'{{regularizer = ["tv", {VOLUME}], steps = 30, learn = ["entropy"]}}',
    "both kinds": f'{{regularizer = ["threshold-dynamics", {VOLUME}], solver = "dca", steps = 5}}',
    "unrolled": '{regularizer = "tv", steps = 3, backward = "unrolled"}',
    "one-step": '{regularizer = "tv", steps = 3, backward = "one-step", learn = ["entropy"]}',
}
SHORT = ("training.epochs=2", "training.optimizer.lr=1e-2", 'evaluation.energy=""', "loss.regularizer=[]")


@pytest.fixture
def layered(config):
    """``layered(layer, *changes)``: a short training by gradient descent with that layer."""

    def make(layer, *changes, **options):
        return config(f"layer={layer}", *SHORT, *changes, loop="gradient-descent", **options)

    return make


def rows(folder, name="steps"):
    with (folder / "log" / f"{name}.csv").open(newline="") as file:
        return [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)]


def learnt(folder):
    return {name: value for name, value in load_file(folder / "model.safetensors").items() if ":" in name}


# -- Training ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_is_trained_saved_and_applied(name, layered, images, tmp_path):
    parsed = layered(LAYERS[name])
    told = []
    scores = train(parsed, callback=told.append)
    run = tmp_path / "run"
    expected = [f"layer:log_{setting}" for setting in sorted(parsed.layer.component_settings()["learn"])]
    assert sorted(learnt(run)) == expected
    start = build_layer(parsed.layer, 3).state_dict()
    for key, value in learnt(run).items():
        assert float((value - start[key.removeprefix("layer:")]).abs().max()) > 1e-3, key
    assert bool(expected) == any(message.startswith("Layer after training: ") for message in told)
    assert rows(run)[-1]["loss"] < rows(run)[0]["loss"]
    assert evaluate_run(run, "test") == scores["test"]

    # The whole is the network's softmax with the prior in it, by hand.
    model = load_model(run)
    for key in ("i6", "i7"):
        image = torch.from_numpy(read_image(images / "images" / f"{key}.png")).unsqueeze(0)
        own = parsed.layer.component_settings()
        layer = RegularizedSoftmax(
            own["regularizer"], own["solver"], max_steps=own["max_steps"], backward=own["backward"]
        )
        values = {key.removeprefix("layer:"): value for key, value in learnt(run).items()}
        if "log_entropy" in values:
            layer._entropy = float(values["log_entropy"].exp())
        if "log_weight" in values:
            weights = values["log_weight"].exp().tolist()
            tables = [{**table, "weight": w} for table, w in zip(own["regularizer"], weights, strict=True)]
            if "log_sigma" in values:
                tables[0]["sigma"] = float(values["log_sigma"].exp())
            layer.regularizer = regloss.regularizer.combine(tables)
        with torch.no_grad():
            by_hand = layer.eval()(model.segmenter.network(image), image)
        torch.testing.assert_close(predict(model.segmenter, image).exp(), by_hand, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("backward", ["implicit", "unrolled"])
def test_masks_of_a_trained_layer_obey_its_bounds(backward, layered, images, tmp_path):
    """Soft mass alone meets the least volume of a class that the network sees nowhere."""
    bounds = '{name = "volume", lower = [0, 0, 0.3], unit = "fraction"}'
    train(layered(f'{{regularizer = {bounds}, steps = 5, entropy = 5.0, backward = "{backward}"}}'))
    model = regloss.load(tmp_path / "run")
    for name in ("i0", "i6"):
        with Image.open(images / f"images/{name}.png") as picture:
            assert (model.predict(np.array(picture)) == 2).mean() >= 0.3


@pytest.mark.parametrize(
    ("regularizer", "own"),
    [
        ('["convex", "ordered"]', {"temperature"}),  # nothing for the solver to do
        ('["tv", "ordered"]', {"softmax.log_weight", "softmax.log_entropy"}),
    ],
)
def test_nested_classes(regularizer, own, layered, images, tmp_path):
    learn = '["entropy"]' if own == {"temperature"} else '["weight", "entropy"]'
    scores = train(layered(f'{{kind = "sigmoid", regularizer = {regularizer}, steps = 10, learn = {learn}}}'))
    run = tmp_path / "run"
    assert {name.removeprefix("layer:") for name in learnt(run)} == own
    assert evaluate_run(run, "test") == scores["test"]
    assert scores["test"]["layer"]["layer-weight-ordered"] == 1
    model = load_model(run)
    assert isinstance(model.segmenter.layer, regloss.RegularizedSigmoid)
    image = torch.from_numpy(read_image(images / "images" / "i6.png")).unsqueeze(0)
    with torch.no_grad():
        sets = model.segmenter.layer(model.segmenter.network(image), image)
    assert bool((sets[:, 0] <= sets[:, 1] + 1e-6).all())
    assert torch.equal(predict(model.segmenter, image).argmax(1), (sets > 0.5).sum(1))
    assert evaluate_run(run, "test", ['layer.kind="sigmoid"', "layer.steps=20"])["images"] == 2


@pytest.fixture(scope="module")
def dense(images, tmp_path_factory):
    """The output folder of a training with a dense CRF that learns everything, and what was told; not to be changed."""
    output, told = tmp_path_factory.mktemp("runs") / "dense", []
    learn = '["weights", "sigma-xy", "sigma-rgb", "compatibility", "entropy"]'
    layer = f'layer={{kind = "dense-crf", sigma-xy = [8.0, 2.0], steps = 3, learn = {learn}}}'
    train(parse(small_data.settings(images, output, layer, *SHORT, loop="gradient-descent")), callback=told.append)
    return output, told


def test_a_dense_crf_is_trained_saved_and_applied(dense, images, tmp_path):
    run, told = dense
    names = {"log_weights", "log_sigma_xy", "log_sigma_rgb", "compatibility", "softmax.log_entropy"}
    values = {name.removeprefix("layer:"): value for name, value in learnt(run).items()}
    assert values.keys() == names
    config = load_model(run).config
    start = build_layer(config.layer, 3).state_dict()
    for name, value in values.items():
        assert float((value - start[name]).abs().max()) > 1e-3, name
    assert rows(run)[-1]["loss"] < rows(run)[0]["loss"]
    assert evaluate_run(run, "test") == json.loads((run / "scores.json").read_text())["test"]

    # What is learnt is in the log of steps and of epochs, in the scores, and is told.
    shown = {"weight-0", "weight-1", "sigma-xy-0", "sigma-xy-1", "sigma-rgb-0", "cost-least", "cost-most", "entropy"}
    columns = {f"layer-{name}" for name in shown}
    last = rows(run)[-1]
    assert {key for key in last if key.startswith("layer-")} == columns <= rows(run, "epochs")[-1].keys()
    scores = json.loads((run / "scores.json").read_text())["test"]["layer"]
    assert scores == pytest.approx({key: last[key] for key in columns}, rel=1e-6)
    assert scores["layer-sigma-xy-1"] == pytest.approx(float(values["log_sigma_xy"][1].exp()), rel=1e-6)
    (message,) = (text for text in told if text.startswith("Layer after training: "))
    assert f"sigma-xy-1 {scores['layer-sigma-xy-1']:.4g}" in message

    # The whole is the network with the layer behind it, by hand; labels come out as files.
    segmenter = load_model(run).segmenter
    by_hand = DenseCRFLayer(
        3,
        weights=values["log_weights"].exp().tolist(),
        sigma_xy=values["log_sigma_xy"].exp().tolist(),
        sigma_rgb=[float(values["log_sigma_rgb"].exp()), math.inf],
        compatibility=values["compatibility"],
        entropy=float(values["softmax.log_entropy"].exp()),
        max_steps=3,
    )
    predict_files(run, images / "images" / "i6.png", tmp_path / "out")
    image = torch.from_numpy(read_image(images / "images" / "i6.png")).unsqueeze(0)
    with torch.no_grad():
        expected = by_hand(segmenter.network(image), image)
    torch.testing.assert_close(predict(segmenter, image).exp(), expected, rtol=1e-4, atol=1e-6)
    labels = torch.from_numpy(np.array(Image.open(tmp_path / "out" / "labels" / "i6.png")))
    assert float((labels == expected[0].argmax(0)).float().mean()) > 0.99


def test_other_settings_of_a_trained_dense_crf(dense, trained):
    """What was learnt cannot be given anew; what was not learnt follows the configuration, as it was not saved."""
    run, _ = dense
    for change, name in (
        ("layer.sigma-xy=[9.0, 2.0]", "sigma-xy"),
        ("layer.weights=[9.0, 3.0]", "weights"),
        ("layer.compatibility=[[0, 2, 1], [2, 0, 1], [1, 1, 0]]", "compatibility"),
        ("layer.entropy=2.0", "entropy"),
    ):
        with pytest.raises(UsageError, match=rf"The layer's {name} was learnt.*Give layer.learn=\[\] too"):
            load_model(run, [change])
    given = load_model(run, ["layer.learn=[]", "layer.sigma-xy=[9.0, 4.0]", "layer.steps=7"]).segmenter.layer
    assert given.sigma_xy.tolist() == pytest.approx([9.0, 4.0])
    assert given.weights.tolist() == pytest.approx([10.0, 3.0])
    assert given.softmax.solver.max_steps == 7
    behind_a_plain_run = ["layer.kind=dense-crf", "layer.learn=[]", "layer.sigma-xy=[8.0, 2.0]"]
    smoothed = evaluate_run(trained, "test", behind_a_plain_run)
    assert smoothed["boundary-density"] < evaluate_run(trained, "test")["boundary-density"]
    with pytest.raises(UsageError, match=r"learns log_weights, 2 in number, but .* holds no such numbers"):
        load_model(trained, ["layer.kind=dense-crf"])


@pytest.fixture
def section(images, tmp_path):
    """``section(layer)``: the table [layer] of a configuration, completed."""
    return lambda layer: parse(small_data.settings(images, tmp_path / "run", f"layer={' '.join(layer.split())}")).layer


def test_a_dense_crf_in_the_configuration_is_that_of_python(section):
    """Every setting is there, with the same default."""
    defaults = section('{kind = "dense-crf"}').component_settings()
    defaults["learn"] = tuple(name.replace("-", "_") for name in defaults["learn"])
    own = inspect.signature(DenseCRFLayer).parameters
    assert defaults == {name: parameter.default for name, parameter in own.items() if name != "classes"}
    given = """{kind = "dense-crf", weights = [1.0], sigma-xy = [4.0], sigma-rgb = [0.2], entropy = 2.0, scale = 0.5,
        compatibility = [[0.0, 2.0], [2.0, 0.0]], backend = "exact", accuracy = "fast", max-steps = 7, tolerance = 1e-3,
        damped = false, backward = "implicit", checkpoint = false, learn = ["sigma-rgb"], backward-steps = 8,
        backward-tolerance = 1e-2}"""
    layer = build_layer(section(given), 2)
    softmax, solver = layer.softmax, layer.softmax.solver
    assert (layer.weights.tolist(), layer.compatibility.tolist()) == ([1.0], [[0.0, 2.0], [2.0, 0.0]])
    assert (layer.sigma_xy.item(), layer.sigma_rgb.item()) == pytest.approx((4.0, 0.2))
    part = softmax.regularizer
    assert (part.scale, part.backend, part.accuracy) == (0.5, "exact", "fast")
    assert (solver.max_steps, solver.tolerance, solver.damped, solver.checkpoint) == (7, 1e-3, False, False)
    assert (softmax.backward, softmax.backward_steps, softmax.backward_tolerance) == ("implicit", 8, 1e-2)
    assert (list(layer.learnable_parameters()), float(layer.entropy)) == (["sigma_rgb"], 2.0)


@pytest.mark.parametrize(
    ("former", "current"),
    [
        (
            '{kind = "softmax", regularizer = "tv", steps = 7, refine = 1e-7, refine-steps = 9}',
            '{name = "softmax", regularizer = ["tv"], max-steps = 7, polish = 1e-7, polish-steps = 9}',
        ),
        ('{kind = "sigmoid", regularizer = "tv", steps = 7}', '{kind = "sigmoid", regularizer = "tv", max-steps = 7}'),
        ('{kind = "dense-crf", steps = 7}', '{kind = "dense-crf", max-steps = 7}'),
    ],
)
def test_former_names_of_settings_go_on_working(former, current, section):
    assert section(former) == section(current)
    assert section(former).component_settings()["max_steps"] == 7


def test_a_setting_by_two_names_is_refused(section):
    with pytest.raises(UsageError, match=r"\[layer\]: 'max-steps' is given twice"):
        section('{regularizer = "tv", steps = 7, max-steps = 8}')


def test_a_width_that_learning_drives_out_of_its_range_ends_the_training(layered):
    """Adam's first step moves its logarithm by 1000, up or down."""
    parsed = layered('{kind = "dense-crf", sigma-xy = [8.0, 2.0], learn = ["sigma-xy"]}', "training.layer-lr=1e5")
    with pytest.raises(UsageError, match=r"sigma_xy of dense-crf .*Learning has driven it there: lower the learning"):
        train(parsed)


def test_a_width_that_the_last_step_drives_out_of_its_range_is_not_saved(layered, tmp_path):
    learnt = '{kind = "dense-crf", sigma-xy = [8.0, 2.0], learn = ["sigma-xy"]}'
    parsed = layered(learnt, "training.layer-lr=1e5", "training.batch-size=6", "training.epochs=1")
    with pytest.raises(UsageError, match="Learning has driven it there"):
        train(parsed)
    assert not list((tmp_path / "run").rglob("*.safetensors"))
    assert (tmp_path / "run").is_dir()


def test_label_costs_of_another_number_of_classes(layered, tmp_path):
    """Seen as soon as K is known, before anything is written."""
    parsed = layered('{kind = "dense-crf", compatibility = [[0, 1], [1, 0]]}')
    with pytest.raises(UsageError, match=r"\[layer\]: compatibility must be \(K, K\) = \(3, 3\); got shape \(2, 2\)"):
        train(parsed)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("name", "columns"), [
    ("tv", {"layer-gap", "layer-steps", "layer-weight-tv", "layer-entropy"}),
    # dca has no bound, so no gap
    ("threshold-dynamics", {"layer-steps", "layer-weight-threshold-dynamics", "layer-sigma-threshold-dynamics"}),
    ("volume by pdhg", {"layer-gap", "layer-steps", "layer-violation"}),
    ("unrolled", set()),
])  # fmt: skip
def test_what_the_solver_reports_is_logged(name, columns, layered, tmp_path):
    scores = train(layered(LAYERS[name]))
    for row in rows(tmp_path / "run"):
        assert {key for key in row if key.startswith("layer-")} == columns
    of_epochs = rows(tmp_path / "run", "epochs")
    of_steps = rows(tmp_path / "run")
    for key in columns:
        assert of_epochs[1][key] == pytest.approx(sum(row[key] for row in of_steps[3:]) / 3)
    assert {"layer-gap", "layer-steps"} & set(scores["test"]["layer"]) == {"layer-gap", "layer-steps"} & columns


def test_the_report_counts_pixels_inside():
    layer = RegularizedSoftmax("tv", max_steps=20, tolerance=1e-12)
    roi = torch.zeros(2, 6, 8, dtype=torch.bool)
    roi[0, :3], roi[1] = True, True
    layer(torch.randn(2, 2, 6, 8, generator=torch.Generator().manual_seed(0)), torch.rand(2, 1, 6, 8), roi)
    gaps = layer.solution.gap / torch.tensor([24, 48])
    found = layer_report(layer, torch.tensor([24, 48]))
    assert found == {"layer-gap": pytest.approx(float(gaps.mean())), "layer-steps": 20}
    assert layer_report(None, torch.tensor([24])) == {}


def test_several_of_one_kind_are_told_apart():
    layer = RegularizedSoftmax([{"name": "tv", "weight": 2.0}, "nltv", {"name": "tv", "isotropic": True}], entropy=0.25)
    assert describe_layer(layer) == {
        "layer-weight-tv-0": 2,
        "layer-weight-nltv": 1,
        "layer-weight-tv-2": 1,
        "layer-entropy": 0.25,
    }


def test_weights_of_the_layer_do_not_decay_and_have_a_learning_rate(layered, images, tmp_path):
    rates = ("training.head-lr=3", "training.layer-lr=10")
    parsed = layered(LAYERS["tv"], "training.optimizer.weight-decay=0.5", *rates)
    segmenter = SegmentationModel(nn.Conv2d(1, 3, 1), "none", None, build_layer(parsed.layer, 3))
    network, layer = build_optimizer(parsed, segmenter).param_groups
    assert (network["weight_decay"], layer["weight_decay"], network["lr"], layer["lr"]) == (0.5, 0.0, 0.01, 0.1)
    assert layer["params"] == [segmenter.layer.log_entropy, segmenter.layer.log_weight]


def test_the_layer_sees_the_image_itself_and_only_its_own_pixels():
    """What is padded for the network, or normalised, is nothing to the regularizer."""
    torch.manual_seed(0)
    layer = RegularizedSoftmax({"name": "nltv", "neighbors": 4}, max_steps=20)
    network = nn.Conv2d(1, 3, 5, padding=2)
    image, roi = torch.rand(2, 1, 10, 14), torch.rand(2, 10, 14) > 0.2
    segmenter = SegmentationModel(network, "image", (16, 16), layer)
    plain = SegmentationModel(network, "image", (16, 16))
    for region in (None, roi):
        logits = plain(image, region)
        assert logits.shape == (2, 3, 10, 14)
        torch.testing.assert_close(segmenter(image, region), layer.log_probabilities(logits, image, region))
    assert torch.equal(segmenter(image, roi).exp().sum(1).round(decimals=5), torch.ones(2, 10, 14))


def test_a_network_that_diverges_is_reported_with_its_images(layered):
    parsed = layered(LAYERS["tv"], 'training.optimizer={name = "sgd", lr = 1e30}')
    with pytest.raises(ReglossError, match=r"at step \d.*Lower the learning rate.*: i\d, i\d") as caught:
        train(parsed)
    assert not isinstance(caught.value, UsageError)


@pytest.mark.parametrize("loop", ["trust-region", "adm"])
def test_every_outer_loop_trains_a_layer(loop, config, tmp_path):
    train(config(f"layer={LAYERS['tv']}", "training.epochs=1", "training.optimizer.lr=1e-2", loop=loop))
    assert {"layer-gap", "layer-weight-tv"} <= set(rows(tmp_path / "run")[-1])
    assert float(learnt(tmp_path / "run")["layer:log_weight"] - math.log(0.2)) != 0


def test_double_precision(layered, tmp_path):
    train(layered(LAYERS["tv"], "training.precision=64-true"))
    values = learnt(tmp_path / "run")
    assert {value.dtype for value in values.values()} == {torch.float64}


# -- Starting from another run -----------------------------------------------------------------------------------------


def test_a_layer_starts_from_a_plain_run(trained, layered, tmp_path):
    start = (f"training.start-from={trained}", "training.optimizer.lr=1e-12")
    train(layered(LAYERS["tv"], *start, "training.epochs=1"))
    before, after = load_file(trained / "model.safetensors"), load_file(tmp_path / "run" / "model.safetensors")
    for name, value in before.items():
        torch.testing.assert_close(after[name], value, rtol=0, atol=1e-6)
    assert float(after["layer:log_entropy"]) == pytest.approx(math.log(0.5), abs=1e-6)
    assert after.keys() - before.keys() == {"layer:log_entropy", "layer:log_weight"}


def test_a_layer_goes_on_from_another_runs_layer(layered, config, tmp_path):
    train(layered(LAYERS["tv"], output="first"))
    still = (f"training.start-from={tmp_path / 'first'}", "training.optimizer.lr=1e-12", "training.epochs=1")
    before = learnt(tmp_path / "first")
    train(layered(LAYERS["tv"].replace("steps = 10", "steps = 20"), *still, output="second"))
    for name, value in learnt(tmp_path / "second").items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=1e-6)
    # A plain run takes the network alone, a layer that learns nothing its own numbers.
    train(config(*SHORT, *still, loop="gradient-descent", output="plain"))
    assert learnt(tmp_path / "plain") == {}
    with pytest.raises(UsageError, match=r"learns log_weight, 2 in number, but .*first holds 1\."):
        train(layered('{regularizer = ["tv", "nltv"], learn = ["weight"]}', *still, output="third"))
    assert not (tmp_path / "third").exists()


# -- Evaluation and prediction with other settings ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(images, tmp_path_factory):
    """The output folder of a training with a layer of few steps; not to be changed."""
    output = tmp_path_factory.mktemp("runs") / "layered"
    changes = (f"layer={LAYERS['tv']}", *SHORT, "training.epochs=1")
    train(parse(small_data.settings(images, output, *changes, loop="gradient-descent")))
    return output


def test_more_steps_at_evaluation(run):
    few, many = evaluate_run(run, "test")["layer"], evaluate_run(run, "test", ["layer.steps=300"])["layer"]
    assert few["layer-steps"] == 10
    assert many["layer-steps"] > 10
    assert many["layer-gap"] < 0.1 * few["layer-gap"]
    assert many["layer-converged"] == 1 > few["layer-converged"]
    assert many["layer-weight-tv"] == few["layer-weight-tv"] != pytest.approx(0.2, rel=1e-3)


def test_more_steps_for_a_label_map(run, images, tmp_path):
    changes = ["layer.steps=300", "layer.tolerance=1e-7"]
    predict_files(run, images / "images" / "i6.png", tmp_path / "out", changes)
    assert load_model(run, changes).segmenter.layer.solver.max_steps == 300
    assert (tmp_path / "out" / "labels" / "i6.png").is_file()


def test_without_the_layer(run, images):
    image = torch.from_numpy(read_image(images / "images" / "i6.png")).unsqueeze(0)
    plain = load_model(run, ['layer=""']).segmenter
    assert plain.layer is None
    with torch.no_grad():
        expected = load_model(run).segmenter.network(image)
    assert torch.equal(predict(plain, image), expected)
    assert "layer" not in evaluate_run(run, "test", ['layer=""'])


def test_a_layer_behind_a_plain_run(trained, images):
    changes = ["layer.regularizer=tv", "layer.solver=pdhg", "layer.entropy=1.0"]
    found = evaluate_run(trained, "test", changes)
    assert found["boundary-density"] < evaluate_run(trained, "test")["boundary-density"]
    model, image = load_model(trained, changes), torch.rand(1, 1, 24, 28)
    with torch.no_grad():
        by_hand = RegularizedSoftmax("tv", "pdhg", 1.0)(model.segmenter.network(image), image)
    torch.testing.assert_close(predict(model.segmenter, image).exp(), by_hand)


def test_learnt_numbers_are_not_replaced_silently(run):
    for change, name in (("layer.entropy=2.0", "entropy"), ("layer.regularizer.0.weight=7.0", "weight")):
        with pytest.raises(UsageError, match=rf"The layer's {name} was learnt.*Give layer.learn=\[\] too"):
            evaluate_run(run, "test", [change])
    given = load_model(run, ["layer.learn=[]", "layer.entropy=2.0", "layer.regularizer.0.weight=7.0"]).segmenter.layer
    assert describe_layer(given) == {"layer-weight-tv": 7, "layer-entropy": 2}


def test_learnt_numbers_must_be_there(trained):
    changes = ["layer.regularizer=tv", 'layer.learn=["weight"]']
    with pytest.raises(UsageError, match=r"The layer learns log_weight, 1 in number, but .* holds no such numbers"):
        load_model(trained, changes)


def test_changes_of_the_network_are_refused(run):
    with pytest.raises(UsageError, match="of another network than the configured UNet"):
        evaluate_run(run, "test", ["network.channels=6"])


# -- Invalid settings --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        ('{regularizer = "tv", step = 3}', r"unknown key 'layer.step'. Did you mean 'max-steps'\? Allowed here: kind"),
        ("{steps = 3}", r"the key 'layer.regularizer' is missing"),
        ('{regularizer = "tv", entropy = "much"}', r"layer.entropy: .*number.*got 'much'"),
        ('{regularizer = "tv", learn = "weight"}', r"layer.learn: .*tuple.*got 'weight'"),
        ('{regularizer = "tv", backward = "exact"}', r"layer.backward: .*'implicit', 'unrolled' or 'one-step'"),
        ('{kind = "crf"}', r"\[layer\]: There is no layer called 'crf'. Did you mean 'dense-crf'\? Known: dense"),
        ('{kind = "dense-crf", step = 3}', r"unknown key 'layer.step'. Did you mean 'max-steps'\? Allowed here: kind"),
        ('{kind = "dense-crf", regularizer = "tv"}', r"unknown key 'layer.regularizer'. Allowed here: kind, weights"),
        ('{kind = "sigmoid", sigma-xy = [3.0]}', r"unknown key 'layer.sigma-xy'. Allowed here: kind, regularizer"),
        ('{kind = "dense-crf", weights = 3.0}', r"layer.weights: .*tuple; got 3.0"),
        ('{kind = "dense-crf", weights = ["much", 1.0]}', r"layer.weights.0: .*number.*got 'much'"),
        ('{kind = "dense-crf", backend = "fast"}', r"layer.backend: .*'auto', 'exact' or 'lattice'; got 'fast'"),
        ('{kind = "dense-crf", backward = "exact"}', r"layer.backward: .*'unrolled', 'implicit' or 'one-step'"),
    ],
)  # fmt: skip
def test_keys_and_types_are_checked_as_a_configuration_is_read(layer, expected, images, tmp_path):
    with pytest.raises(UsageError, match=r"here\.toml: .*" + expected):
        parse(small_data.settings(images, tmp_path / "run", f"layer={layer}"), "here.toml")


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        ('{regularizer = "tv", learn = ["weights"]}', r"With tv learn may hold weight, entropy; got 'weights'"),
        ('{regularizer = "tvv"}', r"no regularizer called 'tvv'. Did you mean 'tv'"),
        ('{regularizer = {name = "tv", wieght = 1}}', r"'tv' has no setting 'wieght'. Did you mean 'weight'\?"),
        ('{regularizer = {name = "tv", weight = -1}}', r"weight of .* not negative; got -1"),
        ('{regularizer = {weight = 1}}', r"needs a name"),
        ("{regularizer = []}", r"needs a regularizer"),
        ("{regularizer = 3}", r"Expected a regularizer: .*; got int"),
        ('{regularizer = "tv", solver = "pdgh"}', r"no solver called 'pdgh'. Did you mean 'pdhg'\?"),
        ('{regularizer = "tv", solver = {name = "pdhg", step = 3}}', r"'pdhg' has no setting 'step'"),
        ('{regularizer = "grid-crf", solver = "alpha-expansion"}', r"a solver that can be differentiated.*alpha-expan"),
        ('{regularizer = "grid-crf"}', r"Cannot use pdhg with grid-crf: it offers .*, pdhg needs Saddle"),
        ('{regularizer = "threshold-dynamics"}', r"Cannot use pdhg with threshold-dynamics.* Solvers that can: dca"),
        ('{regularizer = "tv", entropy = 0}', r"entropy must be finite and positive; got 0"),
        ('{regularizer = "tv", entropy = -1.0}', r"entropy must be finite and positive; got -1"),
        ('{regularizer = "tv", entropy = inf}', r"entropy must be finite and positive; got inf"),
        ('{regularizer = {name = "tv", weight = 0.0}, learn = ["weight"]}', r"must start above 0"),
        ('{regularizer = "tv", steps = 0}', r"max-steps must be at least 1; got 0"),
        ('{regularizer = "tv", tolerance = -1.0}', r"tolerance must be .*; got -1"),
        ('{regularizer = "tv", backward-steps = 0}', r"backward-steps must be at least 1"),
        ('{regularizer = "tv", backward-tolerance = 1.0}', r"backward-tolerance in \[0, 1\)"),
        ('{regularizer = "tv", backward = "unrolled", refine = 1e-6}', r"polish belongs to backward = \"implicit\""),
        ('{kind = "dense-crf", weights = [3.0]}', r"Each kernel needs a .*got 1 weights, 2 sigma-xy"),
        ('{kind = "dense-crf", weights = [3.0, -1.0]}', r"weights of a dense CRF layer must be finite and positive"),
        ('{kind = "dense-crf", sigma-xy = [0.0, 1.0]}', r"sigma-xy of dense-crf must be .*got 0"),
        ('{kind = "dense-crf", sigma-rgb = [13.0, inf]}', r"sigma-rgb of dense-crf .*got 13"),
        ('{kind = "dense-crf", compatibility = [[0, 1], [1]]}', r"compatibility needs .*rows of 2, 1"),
        ('{kind = "dense-crf", compatibility = [[0, inf, 1], [1, 0, 1], [1, 1, 0]]}', r"dense-crf .*finite"),
        ('{kind = "dense-crf", learn = ["sigma_xz"]}', r"learn may hold .*sigma-rgb, .*got 'sigma_xz'"),
        ('{kind = "dense-crf", steps = 0}', r"max-steps must be at least 1; got 0"),
        ('{kind = "dense-crf", entropy = 0}', r"entropy must be finite and positive; got 0"),
        ('{kind = "dense-crf", scale = 2.0}', r"scale of dense-crf"),
        ('{kind = "dense-crf", tolerance = -1.0}', r"tolerance must be .*; got -1"),
        ('{kind = "dense-crf", backward-steps = 0}', r"backward-steps must be at least 1"),
    ],
)  # fmt: skip
def test_values_are_checked_before_anything_is_written(layer, expected, section):
    with pytest.raises(UsageError, match=r"^\[layer\]: .*" + expected) as found:
        build_layer(section(layer), 3)
    assert not re.search(r"\w_\w", str(found.value).replace("sigma_xz", ""))  # settings are named as they are written


def test_a_missing_form_keeps_its_class(section):
    with pytest.raises(MissingForm, match=r"\[layer\]: Cannot use pdhg with grid-crf"):
        build_layer(section('{regularizer = "grid-crf"}'), 3)


def test_a_training_makes_each_part_once_and_writes_nothing_where_one_is_refused(config, monkeypatch, tmp_path):
    made = []

    def counted(cls):
        init = cls.__init__

        @functools.wraps(init)
        def counting(self, *args, **settings):
            made.append(cls)
            init(self, *args, **settings)

        monkeypatch.setattr(cls, "__init__", counting)

    for cls in (RegularizedSoftmax, ColorPseudoLabels, torch.optim.Adam):
        counted(cls)
    parsed = config("layer.regularizer=tv", "data.proposals.rounds=1", loop="gradient-descent")
    assert made == []
    run_parts.build(parsed)
    assert sorted(made, key=str) == sorted((RegularizedSoftmax, ColorPseudoLabels, torch.optim.Adam), key=str)
    for change, where in (
        ("layer.entropy=0", r"\[layer\]: entropy must be finite and positive"),
        ("data.proposals.solver=pdhg", r"\[data.proposals\]: Cannot use pdhg with grid-crf"),
        ("training.optimizer.momentums=1", r"training.optimizer: .*momentums"),
    ):
        # Before the samples are looked at, too: there is no subset of that name.
        with pytest.raises(UsageError, match=where):
            train(config("layer.regularizer=tv", "data.train=none", change, loop="gradient-descent"))
        assert not (tmp_path / "run").exists()


def test_a_layer_that_is_refused_behind_a_run_names_the_run(trained):
    changes = ["layer.regularizer=tv", "layer.entropy=0"]
    with pytest.raises(UsageError, match=rf"^{trained} with the given changes: \[layer\]: entropy must be finite"):
        load_model(trained, changes)


@pytest.mark.parametrize(
    ("volumes", "expected"),
    [
        ('volumes = [300, 200, 172]', r"on a training crop: volumes must sum to the pixels.* there are \d+ pixels"),
        ('volumes = [300, 200, 100]', r"volumes must sum to the pixels .*they sum to 600, and there are 672 pixels"),
        ('volumes = [0.5, 0.5], unit = "fraction"', r"settings for 2 classes, but the segmentation has K = 3"),
        ('lower = [0.5, 0.6, 0], unit = "fraction"', r"No segmentation of \d+ pixels has volumes"),
    ],
)  # fmt: skip
def test_volumes_that_do_not_fit_are_refused_before_anything_is_written(volumes, expected, layered, tmp_path):
    """672 = 24 * 28 pixels are those of a whole image, and crops are smaller."""
    with pytest.raises(UsageError, match=expected):
        train(layered(f'{{regularizer = {{name = "volume", {volumes}}}}}'))
    assert not (tmp_path / "run").exists()


def test_a_run_without_a_layer_says_so(trained):
    """Configurations are complete, and those of before layers existed are read, too."""
    dumped = json.loads((trained / "config.json").read_text())
    assert dumped.pop("layer") is None
    assert parse(dumped).layer is None
    with pytest.raises(UsageError, match=r"the key 'layer.regularizer' is missing"):
        evaluate_run(trained, "test", ["layer.steps=3"])
    weights = checkpoints.read_weights(trained)
    assert not any(name.startswith("layer") for name in weights)
