"""Training: what it leaves, what it refuses before it writes anything, and when it stops."""

import csv
import json
import math
import os
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import small_data
import torch
from safetensors.torch import load_file
from torch import nn
from torch._dynamo.exc import TorchDynamoException

from regloss import TrustRegion
from regloss.apps.evaluate import evaluate_run
from regloss.checks import values_are_checked, without_value_checks
from regloss.dataset import Dataset, Sample
from regloss.errors import BrokenPlugin, MissingForm, ReglossError, UnknownComponent, UsageError
from regloss.hooks import hookimpl, manager
from regloss.solver import Solver
from regloss.training.config import parse
from regloss.training.optimization import build_optimizer, learning_rate_factor
from regloss.training.optimizer_step import _value_checks
from regloss.training.proposals import ProposalStore
from regloss.training.run_parts import build
from regloss.training.trainer import train

STEPS_AN_EPOCH = 3  # six images, two a batch


def rows(folder, name):
    with (folder / "log" / f"{name}.csv").open(newline="") as file:
        return [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)]


@pytest.mark.parametrize("loop", ["trust-region", "adm", "gradient-descent"])
def test_what_a_training_leaves(loop, config, tmp_path, real_report):
    told = []
    parsed = config("data.val=all", "training.epochs=3", loop=loop)
    scores = train(parsed, callback=told.append)
    folder = tmp_path / "run"
    expected = {"config.json", "log", "checkpoints", "model.safetensors", "model.json", "scores.json", "report.html"}
    kept = {"proposals"} if loop == "trust-region" else set()
    assert {path.name for path in folder.iterdir()} == expected | kept | {"report"}
    assert json.loads((folder / "scores.json").read_text()) == scores
    assert (set(scores), scores["all"]["images"], scores["test"]["images"]) == ({"all", "test"}, 8, 2)
    assert 0 <= scores["test"]["mean-iou"] <= 1
    assert scores["test"]["energy"] > 0
    assert parse(json.loads((folder / "config.json").read_text())) == parsed
    assert told[0] == f"Report: {folder / 'report.html'}"
    assert all(message.startswith("What to try:\n- ") for message in told[1:])

    steps, epochs = rows(folder, "steps"), rows(folder, "epochs")
    assert [row["step"] for row in steps] == list(range(1, 10))
    assert [row["epoch"] for row in steps] == [0] * 3 + [1] * 3 + [2] * 3
    parts = {
        "trust-region": {"data", "proposal"},
        "adm": {"data", "proposal"},
        "gradient-descent": {"data", "regularizer"},
    }
    for row in steps:
        assert set(row) == {"step", "epoch", "learning-rate", "loss"} | parts[loop]
        assert row["loss"] == pytest.approx(sum(row[part] for part in parts[loop]), rel=1e-5)
    for epoch, row in enumerate(epochs):
        assert row["loss"] == pytest.approx(np.mean([step["loss"] for step in steps if step["epoch"] == epoch]))
        assert 0 < row["train-seconds"] <= row["seconds"]
        assert 0 <= row["val-mean-iou"] <= 1
        renewed = {"trust-region": epoch in (0, 2), "adm": True, "gradient-descent": False}[loop]
        assert ("proposal-energy-after" in row) == ("solver-seconds" in row) == renewed
        if renewed:
            assert row["proposal-energy-after"] <= row["proposal-energy-before"]


def test_the_energy_of_predictions_is_logged_by_epoch(config, tmp_path):
    scores = train(config("data.val=test", "training.epochs=2", "evaluation.energy-images=100"))
    last = rows(tmp_path / "run", "epochs")[-1]
    of_training = evaluate_run(tmp_path / "run", "train")["energy"]  # of all of it, with the weights at the end
    assert (last["val-energy"], last["train-energy"]) == (scores["test"]["energy"], pytest.approx(of_training))
    assert last["train-energy"] > 0
    train(config("training.epochs=1", "evaluation.energy-images=1", output="one"))
    (only,) = rows(tmp_path / "one", "epochs")
    assert "val-energy" not in only
    assert only["train-energy"] > 0


def test_it_learns(config, tmp_path):
    changes = ("training.epochs=25", "training.optimizer.lr=1e-2", "data.augment={flip = true}", "network.levels=3")
    scores = train(config(*changes))
    assert scores["test"]["mean-iou"] > 0.8
    losses = [row["data"] for row in rows(tmp_path / "run", "epochs")]
    assert losses[-1] < 0.3 * losses[0]


def test_the_same_seed_gives_the_same_weights(config, tmp_path):
    for output, seed in (("a", 0), ("b", 0), ("c", 1)):
        train(config("training.epochs=1", f"seed={seed}", output=output))
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in "abc"]
    assert weights[0] == weights[1] != weights[2]


def test_proposals_are_solved_once_if_told_so(config, tmp_path):
    train(config("loss.outer-loop.update-every=0", "training.epochs=3"))
    assert [path.name for path in (tmp_path / "run" / "proposals").iterdir()] == ["generation-0000"]
    assert ["proposal-energy-after" in row for row in rows(tmp_path / "run", "epochs")] == [True, False, False]


def test_proposals_keep_the_seeds_and_the_seeded_classes(config, images, tmp_path):
    train(config("training.epochs=1"))
    parts = build(config())
    store = ProposalStore(tmp_path / "run" / "proposals")
    for name in parts.ids:
        scribble = parts.reader.load(name).scribble
        proposal = store.read(0, name)
        assert (proposal == scribble)[scribble != 255].all()
        assert set(np.unique(proposal)) <= {0, 1, 2}


def test_the_second_stage_a_starts_at_the_first_ones_proposals(config, tmp_path):
    """The energy it starts from is the last proposals', so it cannot be as high as background's."""
    train(config("training.epochs=3", "training.optimizer.lr=1e-6"))
    first, _, second = rows(tmp_path / "run", "epochs")
    assert second["proposal-energy-before"] == pytest.approx(first["proposal-energy-after"], rel=1e-3)
    assert second["proposal-energy-before"] < first["proposal-energy-before"]


class Recording(TrustRegion):
    """Notes what its schedules say at every step."""

    seen: ClassVar[list[tuple[float, float, float]]] = []

    def objective(self, logits, batch, proposal=None):
        self.seen.append((self.progress, self.divergence.epsilon, self.coupling.at(self.progress)))
        return super().objective(logits, batch, proposal)


def test_schedules_reach_the_loop(config, registered):
    registered("outer-loop", "recording", Recording)
    loop = "{name = 'recording', epsilon = {start = 0.0, end = 0.4}, coupling = {start = 0.2, end = 0.1}}"
    Recording.seen.clear()
    train(config(f"loss.outer-loop={loop}", "training.batch-size=6"))
    steps = Recording.seen[-4:]  # before them, the check that the settings fit each other
    assert np.allclose(steps, [(t, 0.4 * t, 0.2 - 0.1 * t) for t in (0.0, 0.25, 0.5, 0.75)])


def test_logging_less_often(config, tmp_path):
    train(config("training.epochs=3", "training.log-every=4"))
    assert [row["step"] for row in rows(tmp_path / "run", "steps")] == [4, 8, 9]


def test_logging_as_often_as_the_device_allows(config, tmp_path, monkeypatch):
    """Where a row waits for the device there is at least one an epoch; on a CPU, one a step."""
    train(config("training.epochs=2"))
    assert len(rows(tmp_path / "run", "steps")) == 2 * STEPS_AN_EPOCH
    assert isinstance(_value_checks(torch.device("cpu"), waits=False), nullcontext)
    assert isinstance(_value_checks(torch.device("cuda"), waits=True), nullcontext)
    with _value_checks(torch.device("cuda"), waits=False):
        assert not values_are_checked()


@pytest.mark.parametrize("loop", ["trust-region", "adm", "gradient-descent"])
def test_values_that_are_not_looked_at_change_nothing(loop, config, tmp_path, monkeypatch):
    train(config("training.epochs=2", loop=loop))
    expected = load_file(tmp_path / "run/model.safetensors")
    monkeypatch.setattr("regloss.training.optimizer_step._value_checks", lambda device, waits: without_value_checks())
    train(config("training.epochs=2", loop=loop), overwrite=True)
    found = load_file(tmp_path / "run/model.safetensors")
    assert all(torch.equal(found[name], weights) for name, weights in expected.items())


@pytest.mark.parametrize("loop", ["trust-region", "adm", "gradient-descent"])
def test_channels_last_gives_the_same_network(loop, config, tmp_path):
    """But for rounding, of which several steps make more."""
    changes = ("training.epochs=1", "training.batch-size=6", "training.precision='64-true'")
    train(config(*changes, loop=loop))
    expected = load_file(tmp_path / "run/model.safetensors")
    train(config(*changes, "training.channels-last=true", loop=loop), overwrite=True)
    found = load_file(tmp_path / "run/model.safetensors")
    for name, weights in expected.items():
        assert torch.allclose(found[name], weights, rtol=1e-6, atol=1e-9), name


def test_the_network_is_channels_last_if_asked(config):
    for asked in (False, True):
        parts = build(config(f"training.channels-last={str(asked).lower()}"))
        kernels = [each.weight for each in parts.segmenter.modules() if isinstance(each, nn.Conv2d)]
        large = [each for each in kernels if min(each.shape[1], max(each.shape[2:])) > 1]
        assert large
        assert all(each.is_contiguous(memory_format=torch.channels_last) == asked for each in large)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")  # torch's own, of its compiler
def test_a_compiled_network_learns_the_same(config, tmp_path):
    """And its files are those of any other."""
    changes = ("training.epochs=1", "training.batch-size=6", "training.precision='64-true'")
    train(config(*changes))
    expected = load_file(tmp_path / "run/model.safetensors")
    train(config(*changes, "training.compile=true"), overwrite=True)
    found = load_file(tmp_path / "run/model.safetensors")
    assert set(found) == set(expected)
    for name, weights in expected.items():
        assert torch.allclose(found[name], weights, rtol=1e-6, atol=1e-9), name


def test_a_network_is_compiled_once_for_its_training_before_anything_is_written(config, tmp_path, monkeypatch):
    """And nothing is learnt from the batch that it is compiled with, by batch normalisation either."""
    compiled = []

    def backend(graph, inputs):
        compiled.append((torch.is_grad_enabled(), (tmp_path / "compiled").exists()))
        return graph.forward

    real = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda self: real(self, backend=backend))
    changes = ("training.epochs=1", "network.norm=batch", 'data.test=""')
    for name, asked in (("plain", "false"), ("compiled", "true")):
        train(config(*changes, f"training.compile={asked}", loop="gradient-descent", output=name))
    assert [written for learns, written in compiled if learns] == [False]
    expected, found = (load_file(tmp_path / name / "model.safetensors") for name in ("plain", "compiled"))
    assert all(torch.equal(found[name], weights) for name, weights in expected.items())


def test_a_network_that_cannot_be_compiled_is_said_before_anything_is_written(config, tmp_path, monkeypatch):
    def fail(self, *args, **kwargs):
        raise TorchDynamoException("InvalidCxxCompiler: No working C++ compiler found.")

    monkeypatch.setattr(nn.Module, "compile", lambda self: setattr(self, "_compiled_call_impl", partial(fail, self)))
    with pytest.raises(UsageError, match=r"^training.compile: .* No working C\+\+ .*compile = false\.$"):
        train(config("training.compile=true"))
    assert not (tmp_path / "run").exists()


def test_evaluating_less_often_and_not_at_all(config, tmp_path):
    scores = train(config("training.epochs=3", "training.evaluate-every=2", "data.val=all", 'data.test=""'))
    assert ["val-mean-iou" in row for row in rows(tmp_path / "run", "epochs")] == [False, True, False]
    assert set(scores) == {"all"}


def test_without_evaluation_there_is_still_a_report(config, tmp_path, real_report):
    assert train(config("training.epochs=1", 'data.test=""', "evaluation.examples=2")) == {}
    assert "i5" in (tmp_path / "run" / "report.html").read_text()


def test_dense_supervision(config):
    scores = train(
        config("data.supervision=labels", "training.epochs=1", 'evaluation.energy=""', loop="gradient-descent")
    )
    assert "energy" not in scores["test"]


def test_a_start_model(config, tmp_path):
    """Weights of the first run, optimizer anew; at a learning rate of almost nothing they stay."""
    train(config("training.epochs=1", output="first"))
    start = f"training.start-from={tmp_path / 'first'}"
    train(config("training.epochs=1", "training.optimizer.lr=1e-12", start, output="second"))
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("first", "second"))
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=0, atol=1e-8)


@pytest.mark.parametrize("precision", ["bf16-true", "64-true"])
def test_true_precisions(config, precision):
    """The parameters are of another type than the images, in stage A and in evaluation too."""
    scores = train(config("training.epochs=1", f"training.precision={precision}"))
    assert 0 <= scores["test"]["mean-iou"] <= 1


def test_plugins_see_the_numbers(config, tmp_path, real_report):
    class Recorder:
        def __init__(self):
            self.steps, self.epochs = [], []

        @hookimpl
        def regloss_step(self, step, epoch, values, folder):
            self.steps.append((step, epoch, sorted(values), folder))

        @hookimpl
        def regloss_epoch(self, epoch, values, folder):
            self.epochs.append((epoch, values["loss"]))

        @hookimpl
        def regloss_report(self, folder, scores):
            return [("A stranger's section", f"<b>{sorted(scores)}</b>")]

    recorder = Recorder()
    manager().register(recorder, name="recorder")
    try:
        train(config("training.epochs=2"))
    finally:
        manager().unregister(name="recorder")
    assert [step[:2] for step in recorder.steps] == [(1, 0), (2, 0), (3, 0), (4, 1), (5, 1), (6, 1)]
    assert recorder.steps[0][2:] == (["data", "learning-rate", "loss", "proposal"], tmp_path / "run")
    assert [epoch for epoch, _ in recorder.epochs] == [0, 1]
    report = (tmp_path / "run" / "report.html").read_text()
    assert "A stranger&#x27;s section" in report or "A stranger's section" in report
    assert "<b>['test']</b>" in report


class Volumes(Dataset):
    """Three bright balls in noise."""

    classes = ("background", "ball")
    colors = ((0, 0, 0), (255, 0, 0))
    channels = 2

    def ids(self, subset):
        return ("a", "b", "c") if subset == "train" else ("d",)

    def load(self, sample_id):
        rng = np.random.default_rng(ord(sample_id))
        depth, row, column = np.indices((6, 10, 12))
        label = ((depth - 3) ** 2 + (row - 5) ** 2 + (column - 6) ** 2 < 8).astype(np.uint8)
        scribble = np.full_like(label, 255)
        scribble[3, 5, 5:8], scribble[0, 0, :] = 1, 0
        image = np.clip(0.3 + 0.4 * label + rng.normal(0, 0.05, (2, *label.shape)), 0, 1).astype(np.float32)
        return Sample(sample_id, image, label, scribble, sample_id)


def volumes(output, **changes):
    return parse(
        {
            "output": str(output),
            "data": {"dataset": "volumes", "crop": [6, 8, 12], "augment": {"flip": True, "rotate": 10.0}},
            "network": {"name": "unet", "levels": 2, "channels": 4, "norm": "group", "dims": 3},
            "loss": {
                "regularizer": [{"name": "grid-crf", "connectivity": 26}],
                "outer-loop": {"name": "trust-region", "update-every": 1},
            },
            "training": {"epochs": 2, "batch-size": 2, "accelerator": "cpu"},
            "evaluation": {"examples": 0, "energy": {"name": "grid-crf", "connectivity": 6}},
            **changes,
        }
    )


def test_volumes(registered, tmp_path):
    registered("dataset", "volumes", Volumes)
    scores = train(volumes(tmp_path / "run"))
    assert 0 <= scores["test"]["mean-iou"] <= 1
    assert [path.name for path in (tmp_path / "run" / "proposals").glob("*/a.*")] == ["a.npy"]


# -- Divergence --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loop", ["trust-region", "adm", "gradient-descent"])
def test_a_diverged_training_stops_and_names_step_and_images(loop, config, tmp_path):
    with pytest.raises(ReglossError) as caught:
        train(config("training.optimizer.lr=1e30", 'training.optimizer.name="sgd"', loop=loop))
    assert not isinstance(caught.value, UsageError)
    message = str(caught.value)
    assert "NaN" in message or "nan" in message or "inf" in message
    assert "at step" in message
    assert "Lower the learning rate" in message
    named = message.rsplit(": ", 1)[1].split(", ")
    assert len(named) == 2
    assert set(named) <= {f"i{n}" for n in range(6)}


def test_what_has_diverged_is_never_saved(config, tmp_path):
    """Also where losses are looked at rarely."""
    changes = ("training.log-every=100", "training.checkpoint-every=1", 'training.optimizer.name="sgd"')
    with pytest.raises(ReglossError, match="at step 2"):
        train(config("training.optimizer.lr=1e30", *changes, loop="gradient-descent"))
    (kept,) = (tmp_path / "run" / "checkpoints").iterdir()
    assert kept.name == "00000001"


def test_a_network_that_diverged_before_stage_a_is_named(config):
    """One step an epoch, so that the weights are bad when the second stage A looks at them."""
    changes = ("training.batch-size=6", "loss.outer-loop.update-every=1", 'training.optimizer.name="sgd"')
    with pytest.raises(ReglossError, match=r"network's output became NaN or infinite at step 1\b.*i\d"):
        train(config("training.optimizer.lr=1e30", *changes))


# -- The output folder -------------------------------------------------------------------------------------------------


def snapshot(folder):
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_used_folder_is_refused(config, tmp_path):
    train(config("training.epochs=1"))
    before = snapshot(tmp_path / "run")
    with pytest.raises(UsageError, match=r"run exists already. Go on with --resume, replace it with --overwrite"):
        train(config("training.epochs=1"))
    with pytest.raises(UsageError, match="Choose one of resume and overwrite"):
        train(config("training.epochs=1"), resume=True, overwrite=True)
    assert snapshot(tmp_path / "run") == before


def test_an_empty_folder_is_used(config, tmp_path):
    (tmp_path / "run").mkdir()
    train(config("training.epochs=1"))


def test_overwriting_begins_anew(config, tmp_path):
    train(config("training.epochs=2", "training.checkpoint-every=1"))
    weights = (tmp_path / "run" / "model.safetensors").read_bytes()
    train(config("training.epochs=1", "seed=1"), overwrite=True)
    assert len(rows(tmp_path / "run", "steps")) == STEPS_AN_EPOCH
    assert (tmp_path / "run" / "model.safetensors").read_bytes() != weights
    train(config("training.epochs=1", output="new"), overwrite=True)  # where there is nothing, neither


@pytest.mark.parametrize("options", [{"overwrite": True}, {"resume": True}, {}])
@pytest.mark.parametrize(
    "files",
    [
        {"notes.txt": "mine"},
        {"config.json": '{"model_type": "bert"}', "model.safetensors": "weights"},
        {"config.json": "[1, 2]"},
        {"config.json": "no JSON"},
    ],
)
def test_a_foreign_folder_is_left_alone(config, tmp_path, files, options):
    (tmp_path / "run").mkdir()
    for name, text in files.items():
        (tmp_path / "run" / name).write_text(text)
    with pytest.raises(UsageError, match="left alone" if options else "exists already"):
        train(config("training.epochs=1"), **options)
    assert {path.name: path.read_text() for path in (tmp_path / "run").iterdir()} == files


def test_what_others_put_into_a_run_is_left_alone(config, tmp_path):
    train(config("training.epochs=1"))
    (tmp_path / "run" / "notes.txt").write_text("mine")
    before = snapshot(tmp_path / "run")
    with pytest.raises(UsageError, match=r"also holds notes.txt, which no training has put there"):
        train(config("training.epochs=1"), overwrite=True)
    assert snapshot(tmp_path / "run") == before


def test_a_refused_configuration_overwrites_nothing(config, tmp_path):
    train(config("training.epochs=1"))
    before = snapshot(tmp_path / "run")
    with pytest.raises(UsageError, match="crop"):
        train(config("data.crop=[3, 4, 5]"), overwrite=True)
    assert snapshot(tmp_path / "run") == before


def test_a_file_in_the_way(config, tmp_path):
    (tmp_path / "run").write_text("a file")
    for options in ({}, {"overwrite": True}, {"resume": True}):
        with pytest.raises(UsageError, match="run"):
            train(config(), **options)
    with pytest.raises(UsageError, match=r"run is not a folder that can be written to"):
        train(config(output="run/below"))
    assert (tmp_path / "run").read_text() == "a file"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written(config, tmp_path):
    (tmp_path / "closed").mkdir(mode=0o555)
    with pytest.raises(UsageError, match=r"closed is not a folder that can be written to"):
        train(config(output="closed/run"))


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a file system that refuses new folders")
def test_a_file_system_that_refuses(images):
    with pytest.raises(UsageError, match=r"The output /proc/self/run cannot be (made|written)"):
        train(parse(small_data.settings(images, Path("/proc/self/run"))))


# -- Refused before anything is written --------------------------------------------------------------------------------


class Shrinking(nn.Module):
    """Logits of half the size."""

    def __init__(self, in_channels, classes):
        super().__init__()
        self.convolution = nn.Conv2d(in_channels, classes, 3, stride=2)

    def forward(self, image):
        return self.convolution(image)


class Stubborn(nn.Conv2d):
    """Always nine classes."""

    def __init__(self, in_channels, classes):
        super().__init__(in_channels, 9, 1)


class Picky(Solver):
    """Accepts no form at all."""

    accepts = ()

    def minimise(self, problem):
        raise AssertionError("never reached")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (["data.crop=[4, 5, 6]"], "crop must be one positive number, or one for each of the image's 2 axes"),
        (["data.crop=0"], "crop must be one positive number"),
        (["data.train=trian"], "no subset 'trian'"),
        (["data.test=tset"], r'(?s)no subset \'tset\'.*To train without this subset, set data.test = ""'),
        (["data.normalize=imagenet"], "for RGB images; these have 1 channels"),
        (["network.dims=3"], "3 spatial dimensions"),
        (["network={name = 'shrinking'}"], r"Shrinking makes \(1, 3, 11, 13\) of images \(1, 1, 24, 28\)"),
        (["network={name = 'stubborn'}"], "Stubborn makes logits of 9 classes; the data set has 3"),
        (["loss.outer-loop.divergence.epsilon=0.7"], r"epsilon = 0.7 is too large for K = 3 classes"),
        (["loss.outer-loop.epsilon={start = 0.1, end = 0.9}"], r"epsilon = 0.9 is too large for K = 3"),
        (["loss.outer-loop.divergence=kl", "loss.outer-loop.epsilon=0.3"], "KL has none"),
        (["loss.outer-loop.update-every=never"], "needs a proposal"),
        (["loss.outer-loop.update-every=-1"], "update-every must be"),
        (["loss.outer-loop.solver=picky"], "Cannot use|cannot"),
        (
            ["loss.outer-loop.solver=alpha-expansoin"],
            "no solver called 'alpha-expansoin'. Did you mean 'alpha-expansion'",
        ),
        (["loss.data-term=cross-entrpy"], "no data-term called 'cross-entrpy'"),
        (["loss.outer-loop.divergence=kll"], "no divergence called 'kll'"),
        (["loss={outer-loop = {name = 'adm'}}"], "need a regularizer"),
        (["evaluation.energy=grid-cfr"], "no regularizer called 'grid-cfr'. Did you mean 'grid-crf'"),
        (["evaluation.trimap=[0]"], "Trimap widths must be"),
        (['training.optimizer={name = "adam", lr = 0.1, momentum = 0.9}'], "training.optimizer: .*momentum"),
        (['training.optimizer={name = "sgd", lr = 0.1, momentum = -1}'], "training.optimizer: .*momentum"),
        (["training.precision=17"], "precision"),
        (["training.accelerator=gpuu"], "training.accelerator"),
        (["training.devices=0"], "training.accelerator, devices"),
        (["training.strategy=ddpp"], "training.accelerator, devices, nodes, strategy"),
        (["training.start-from=absent"], "no weights file absent"),
        (["data.classes=1"], "there are 1 classes"),
        (["data.root=absent"], "no folder .*absent"),
    ],
)
def test_bad_settings_are_refused_before_anything_is_written(changes, expected, config, tmp_path, registered):
    registered("network", "shrinking", Shrinking)
    registered("network", "stubborn", Stubborn)
    registered("solver", "picky", Picky)
    with pytest.raises(UsageError, match=expected):
        train(config(*changes))
    assert not (tmp_path / "run").exists()


def test_errors_keep_their_class(config, registered):
    registered("solver", "picky", Picky)
    with pytest.raises(MissingForm):
        build(config("loss.outer-loop.solver=picky"))
    with pytest.raises(UnknownComponent):
        build(config("loss.outer-loop.solver=nothing"))


def test_a_broken_plugin_is_named(config, installed, tmp_path):
    installed(
        "strange-crf", {"regloss.regularizers": {"strange": "strange_crf:CRF"}}, {"strange_crf": "import nowhere"}
    )
    with pytest.raises(BrokenPlugin, match=r"'strange' of distribution 'strange-crf'.*No module named 'nowhere'"):
        config("loss.regularizer.0.name=strange")


class Few(Volumes):
    """A data set whose subsets may be empty, or of one class."""

    count = 0
    classes = ("background", "ball")

    def ids(self, subset):
        return ("a",) * self.count if subset == "train" else ("d",)


class OneClass(Volumes):
    classes = ("ball",)
    colors = ((255, 0, 0),)


@pytest.mark.parametrize(
    ("dataset", "expected"), [(Few, "'train' of the data set is empty"), (OneClass, "at least two")]
)
def test_data_sets_with_nothing_to_learn(dataset, expected, registered, tmp_path):
    registered("dataset", "volumes", dataset)
    with pytest.raises(UsageError, match=expected):
        train(volumes(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("other", ["network.channels=5", "network.levels=3", "network.norm=batch", "data.classes=4"])
def test_weights_of_another_network_are_refused(config, trained, tmp_path, other):
    with pytest.raises(UsageError, match="are of another network than the configured UNet"):
        train(config(f"training.start-from={trained}", other))
    assert not (tmp_path / "run").exists()


# -- Optimizer ---------------------------------------------------------------------------------------------------------


def test_learning_rates_follow_their_schedule():
    def factors(**schedule):
        return [learning_rate_factor(schedule, progress) for progress in (0.0, 0.25, 0.5, 0.75, 1.0)]

    assert factors(name="constant") == [1] * 5
    assert factors(name="poly", power=2.0) == pytest.approx([1, 0.5625, 0.25, 0.0625, 0])
    assert factors(name="poly")[2] == pytest.approx(0.5**0.9)
    assert factors(name="cosine") == pytest.approx([1, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2, 0])
    assert factors(name="constant", warmup=0.5) == pytest.approx([0, 0.5, 1, 1, 1])
    assert factors(name="cosine", warmup=0.5) == pytest.approx([0, 0.5, 1, 0.5, 0])


def test_the_schedule_reaches_the_optimizer(config, tmp_path):
    train(config("training.epochs=2", 'training.schedule={name = "poly", power = 1.0}'))
    rates = [row["learning-rate"] for row in rows(tmp_path / "run", "steps")]
    assert rates == pytest.approx([1e-3 * (1 - step / 6) for step in range(6)])


def test_the_head_has_a_rate_of_its_own(config):
    changes = ("network={name = 'deeplabv3plus', encoder = 'mobilenetv2'}", "training.head-lr=10")
    parsed = config(*changes, 'training.optimizer={name = "sgd", lr = 0.1, momentum = 0.9, weight-decay = 1e-4}')
    segmenter = build(parsed).segmenter
    optimizer = build_optimizer(parsed, segmenter)
    rates = sorted(group["lr"] for group in optimizer.param_groups)
    assert rates == [0.1, 1.0]
    assert {group["weight_decay"] for group in optimizer.param_groups} == {1e-4}
    counted = sum(p.numel() for group in optimizer.param_groups for p in group["params"])
    assert counted == sum(p.numel() for p in segmenter.parameters())
