"""Training without any label: what it leaves behind, that it resumes to the same bits, and what is refused."""

import csv
import shutil

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file

from regloss.apps.evaluate import evaluate_run
from regloss.apps.predict import predict_files
from regloss.errors import UsageError
from regloss.hooks import hookimpl, manager
from regloss.training.checkpoints import complete
from regloss.training.config import parse
from regloss.training.trainer import train
from regloss_cli.main import _print_scores

NETWORK = {"name": "unet", "levels": 2, "channels": 4, "norm": "instance"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Six photographs of a bright disc on dark ground; labels only of the last two, in a folder of their own."""
    root = tmp_path_factory.mktemp("discs")
    for name in ("images", "labels"):
        (root / name).mkdir()
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:20, :24]
    for number in range(6):
        inside = np.hypot(rows - 10 + number % 3, columns - 12) < 6
        values = 60 + 120 * inside[..., None] * [1.0, 0.7, 0.4] + rng.normal(0, 8, (20, 24, 3))
        Image.fromarray(values.clip(0, 255).astype(np.uint8)).save(root / "images" / f"i{number}.png")
        if number > 3:
            Image.fromarray(inside.astype(np.uint8)).save(root / "labels" / f"i{number}.png")
    return root


def settings(folder, output, **changes):
    table = {
        "output": str(output),
        "data": {
            "dataset": "folder",
            "root": str(folder),
            "split": {"train": ["i0", "i1", "i2", "i3"], "test": ["i4", "i5"]},
            "classes": 2,
            "supervision": "none",
        },
        "network": {**NETWORK, "dropout": 0.1},
        "loss": {
            "data-term": {"name": "elbo", "means": [[-3.0], [3.0]], "encoder": NETWORK, "decoder": NETWORK},
            "outer-loop": {"name": "deep-chan-vese", "start-fraction": 0.4},
        },
        "training": {
            "epochs": 4,
            "batch-size": 2,
            "optimizer": {"name": "adam", "lr": 5e-3},
            "schedule": {"name": "poly"},
            "accelerator": "cpu",
            "threads": 1,
        },
        "evaluation": {"examples": 2, "energy": ""},
    }
    for key, value in changes.items():
        section, _, name = key.partition("__")
        table[section][name.replace("_", "-")] = value
    return parse(table)


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory):
    """A run straight through, and its scores."""
    output = tmp_path_factory.mktemp("runs") / "straight"
    return output, train(settings(folder, output))


def rows(run, name):
    with (run / "log" / f"{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_what_a_run_leaves(trained):
    run, scores = trained
    assert {path.stem for path in (run / "modules").iterdir()} == {"encoder", "decoder", "discriminator"}
    steps = rows(run, "steps")
    assert [bool(row["start"]) for row in steps] == [True] * 4 + [False] * 4  # 0.4 of 8 steps, rounded up
    assert [bool(row["region"]) for row in steps] == [False] * 4 + [True] * 4
    for row in steps:
        numbers = {key: float(value) for key, value in row.items() if value}
        parts = {"start", "region", "regularizer", "invariance", "conservation"} & set(numbers)
        assert numbers["loss"] == pytest.approx(sum(numbers[part] for part in parts), rel=1e-5)
        assert {"reconstruction-loss", "encoder-loss", "discriminator-loss"} <= set(numbers)
    found = scores["test"]["unsupervised"]
    assert set(found) == {"best", "border", "last", "images"}
    assert set(found["images"]) == {"i4", "i5"}
    assert found["best"]["foreground-iou"] >= found["last"]["foreground-iou"]


def test_the_command_prints_every_rule(trained, capsys):
    _print_scores(trained[1])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    for rule, line in zip(("best", "border", "last"), lines[1:], strict=True):
        of = trained[1]["test"]["unsupervised"][rule]
        assert line == (
            f"test, foreground by rule {rule}: f-measure {of['f-measure']:.4f}  "
            f"foreground-iou {of['foreground-iou']:.4f}  accuracy {of['accuracy']:.4f}"
        )


def test_the_model_serves_as_any_other(trained, folder, tmp_path):
    run, scores = trained
    again = evaluate_run(run, "test")
    assert again["unsupervised"] == scores["test"]["unsupervised"]
    assert predict_files(run, folder / "images", tmp_path / "predictions") == 6


class _StopAfter:
    """A hook that ends the process's training once, after so many logged steps."""

    def __init__(self, steps):
        self.left = steps

    @hookimpl
    def regloss_step(self, step, epoch, values, folder):
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


@pytest.mark.parametrize("steps", [3, 6])
def test_resumed_to_the_same_bits(trained, folder, tmp_path, steps):
    """While starting and afterwards, in the middle of an epoch: all networks and optimizers go on as they were."""
    straight, _ = trained
    config = settings(folder, tmp_path / "run", training__checkpoint_every=1)
    stop = _StopAfter(steps)
    manager().register(stop)
    try:
        with pytest.raises(KeyboardInterrupt):
            train(config)
    finally:
        manager().unregister(stop)
    (last,) = complete(tmp_path / "run" / "checkpoints")
    assert {path.name for path in (last / "modules").iterdir()} == {
        f"{name}{kind}.safetensors" for name in ("encoder", "decoder", "discriminator") for kind in ("", "-optimizer")
    }
    train(config, resume=True)
    names = ["model.safetensors", *(f"modules/{name}.safetensors" for name in ("encoder", "decoder", "discriminator"))]
    for name in names:
        one, other = load_file(straight / name), load_file(tmp_path / "run" / name)
        assert all(one[key].equal(other[key]) for key in one), name
    assert rows(straight, "steps") == rows(tmp_path / "run", "steps")


def test_a_checkpoint_without_the_networks_is_refused(folder, tmp_path):
    config = settings(folder, tmp_path / "run", training__epochs=1)
    train(config)
    (last,) = complete(tmp_path / "run" / "checkpoints")
    shutil.rmtree(last / "modules")
    with pytest.raises(UsageError, match="cannot be read"):
        train(config, resume=True)


def test_a_data_term_without_labels_trains_with_any_loop(folder, tmp_path):
    """Encoder and decoder then learn in the network's own update."""
    config = settings(folder, tmp_path / "run", loss__outer_loop={"name": "gradient-descent"}, training__epochs=1)
    before = load_start(config)
    train(config)
    after = load_file(tmp_path / "run" / "modules" / "encoder.safetensors")
    assert any(not before[name].equal(after[name]) for name in after)
    assert "data" in rows(tmp_path / "run", "steps")[0]


def load_start(config):
    from regloss.training.run_parts import build

    return {name: value.clone() for name, value in build(config).loop.modules()["encoder"].state_dict().items()}


@pytest.mark.parametrize(
    "loss",
    [
        {"outer-loop": {"name": "gradient-descent"}},
        {"data-term": "cross-entropy", "outer-loop": {"name": "gradient-descent"}},
        {"regularizer": "grid-crf", "outer-loop": {"name": "trust-region"}},
    ],
)
def test_methods_that_need_labels_say_so(folder, tmp_path, loss):
    config = settings(folder, tmp_path / "run").model_copy(update={"loss": parse_loss(loss)})
    with pytest.raises(UsageError, match=r'supervision is "none".*deep-chan-vese'):
        train(config)


def parse_loss(table):
    from regloss.training.config import Loss

    return Loss.model_validate(table)


@pytest.mark.slow
def test_two_processes_train_what_one_trains(folder, tmp_path):
    """Without what is drawn at random, which every process draws for itself."""
    quiet = {"name": "deep-chan-vese", "conservation": 0.0, "jitter": 0.0, "flip": False, "start-fraction": 0.4}
    data_term = {"name": "elbo", "means": [[-3.0], [3.0]], "samples": 0, "encoder": NETWORK, "decoder": NETWORK}
    weights = []
    for devices in (1, 2):
        config = settings(
            folder,
            tmp_path / str(devices),
            loss__outer_loop=quiet,
            loss__data_term=data_term,
            network__dropout=0.0,
            training__optimizer={"name": "sgd", "lr": 0.01},
            training__devices=devices,
            training__batch_size=4 // devices,
        )
        train(config)
        weights.append(
            {
                name: load_file(tmp_path / str(devices) / name)
                for name in ("model.safetensors", "modules/encoder.safetensors")
            }
        )
    for name in weights[0]:
        for key, value in weights[0][name].items():
            assert float((value - weights[1][name][key]).abs().max()) < 1e-5, (name, key)
