"""Two processes on the CPU train what one trains with the doubled batch."""

import csv
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import small_data
from safetensors.torch import load_file

from regloss.errors import ReglossError
from regloss.training.proposals import ProposalStore
from regloss.training.trainer import train

TOGETHER = (
    "training.threads=1",
    "training.epochs=3",
    "training.checkpoint-every=1",
    "data.val=test",
    "evaluation.energy-images=5",
)

# Its gradient depends continuously on rounding; that of an unconverged implicit one jumps with the free dual variables.
LAYER = '{regularizer = "tv", steps = 20, tolerance = 1e-12, backward = "one-step", learn = ["weight", "entropy"]}'


def rows(folder, name):
    with (folder / "log" / f"{name}.csv").open(newline="") as file:
        return [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)]


def agree(one, two, names):
    assert len(one) == len(two)
    for first, second in zip(one, two, strict=True):
        assert set(first) == set(second)
        for name in first:
            if name in names:
                assert second[name] == pytest.approx(first[name], rel=1e-5, abs=1e-6), name


@pytest.mark.parametrize(
    ("loop", "norm", "layer"),
    [
        ("trust-region", "group", ""),
        pytest.param("adm", "group", "", marks=pytest.mark.slow),
        pytest.param("gradient-descent", "instance", "", marks=pytest.mark.slow),
        pytest.param("gradient-descent", "group", LAYER, marks=pytest.mark.slow),
    ],
)
def test_two_processes_are_one_with_the_doubled_batch(loop, norm, layer, config, tmp_path):
    """Six images: in batches of four the second one is filled up, so the processes share an image."""
    own = (f"network.norm={norm}", 'training.optimizer={name = "sgd", lr = 0.05, momentum = 0.9}', f"layer={layer}")
    expected = train(config("training.batch-size=4", *TOGETHER, *own, loop=loop, output="one"))
    found = train(config("training.batch-size=2", "training.devices=2", *TOGETHER, *own, loop=loop, output="two"))
    one, two = tmp_path / "one", tmp_path / "two"

    weights, others = load_file(one / "model.safetensors"), load_file(two / "model.safetensors")
    assert max(float((weights[name] - others[name]).abs().max()) for name in weights) < 1e-5
    assert ("layer:log_weight" in weights) == bool(layer)
    parts = {"loss", "data", "proposal", "regularizer", "layer-gap", "layer-steps", "layer-weight-tv", "layer-entropy"}
    agree(rows(one, "steps"), rows(two, "steps"), parts | {"step", "epoch", "learning-rate"})
    energies = {"proposal-energy-before", "proposal-energy-after", "train-energy", "val-energy"}
    scores = {"val-mean-iou", "val-mean-foreground-dice"}
    agree(rows(one, "epochs"), rows(two, "epochs"), parts | energies | scores | {"epoch"})

    assert found["test"]["confusion"] == expected["test"]["confusion"]
    assert found["test"]["groups"] == expected["test"]["groups"]
    assert found["test"]["energy"] == pytest.approx(expected["test"]["energy"], rel=1e-5)
    assert found["test"]["images"] == 2
    assert found["test"].get("layer", {}) == pytest.approx(expected["test"].get("layer", {}), rel=1e-4)
    if loop == "trust-region":
        stores = [ProposalStore(folder / "proposals") for folder in (one, two)]
        for name in (f"i{n}" for n in range(6)):
            assert np.array_equal(*(store.read(1, name) for store in stores)), name


@pytest.mark.slow
def test_a_process_that_fails_ends_the_training_with_its_reason(config):
    with pytest.raises(ReglossError, match=r"(?s)A training process failed.*at step \d+.*Lower the learning rate"):
        train(config("training.devices=2", 'training.optimizer={name = "sgd", lr = 1e30}', *TOGETHER))


@pytest.mark.slow
def test_two_killed_processes_resume(config, images, tmp_path):
    """State on disk, store and logs are the first process's business; what comes out does not show the break."""
    settings = ("training.batch-size=1", "training.devices=2", *TOGETHER, "training.epochs=8")
    train(config(*settings, output="straight"))
    run = tmp_path / "run"
    (tmp_path / "config.toml").write_text(small_data.toml(small_data.settings(images, run, *settings)))
    command = [sys.executable, "-m", "regloss_cli.main", "train", str(tmp_path / "config.toml"), "--quiet"]
    process = subprocess.Popen(command, start_new_session=True)
    while process.poll() is None and not any(int(path.name) > 3 for path in (run / "checkpoints").glob("[0-9]*")):
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert len(rows(run, "steps")) < 24
    train(config(*settings), resume=True)
    for part in ("model.safetensors", "log/steps.csv"):
        assert (run / part).read_bytes() == (tmp_path / "straight" / part).read_bytes()
