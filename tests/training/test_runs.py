"""Whole training runs on tiny data: what they leave, resuming after a kill, two processes, refusals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tiny import LOOPS, configuration, to_toml, write_folder

from regloss.apps.evaluate import evaluate_run
from regloss.apps.predict import predict_files
from regloss.errors import ReglossError, UsageError
from regloss.training.config import parse
from regloss.training.logs import CsvLog
from regloss.training.model import load_model
from regloss.training.proposals import ProposalStore
from regloss.training.trainer import train


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("tiny") / "data")


def weights(run: Path):
    return load_file(run / "model.safetensors")


def assert_same_weights(first: Path, second: Path, tolerance: float = 0.0) -> None:
    a, b = weights(first), weights(second)
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=0, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}")


@pytest.fixture(scope="module")
def run(root, tmp_path_factory):
    """A finished trust-region run."""
    output = tmp_path_factory.mktemp("runs") / "trust-region"
    train(parse(configuration(root, output)))
    return output


def test_a_run_leaves_everything(run):
    for name in ("config.json", "model.safetensors", "model.json", "scores.json", "report.html", "log/steps.csv"):
        assert (run / name).is_file(), name
    steps, epochs = CsvLog(run / "log/steps.csv").rows, CsvLog(run / "log/epochs.csv").rows
    assert [row["step"] for row in steps] == list(range(1, 13))  # 6 images, batches of 2, 4 epochs
    for row in steps:
        assert row["loss"] == pytest.approx(row["data"] + row["proposal"], rel=1e-5)
    assert [row["epoch"] for row in epochs if "proposal-energy-after" in row] == [0, 2]
    assert all(
        row["proposal-energy-after"] <= row["proposal-energy-before"] for row in epochs if "solver-seconds" in row
    )
    scores = json.loads((run / "scores.json").read_text())["test"]
    assert scores["images"] == 2
    assert list(scores["groups"]) == ["p3"]
    assert scores["energy"] > 0


def test_proposals_keep_the_seeds(run, root):
    store = ProposalStore(run / "proposals")
    for number in range(6):
        name = f"p{number // 2}_{number}"
        proposal = store.read(1, name)
        scribble = np.array(Image.open(root / "scribbles" / f"{name}.png"))
        seeded = scribble != 255
        assert (proposal[seeded] == scribble[seeded]).all()
        assert set(np.unique(proposal)) <= {0, 1}


def test_the_model_can_be_used(run, root, tmp_path):
    scores = evaluate_run(run, "test")
    assert scores["mean-iou"] == json.loads((run / "scores.json").read_text())["test"]["mean-iou"]
    assert predict_files(run, root / "images", tmp_path / "out") == 8
    labels = np.array(Image.open(tmp_path / "out/labels/p3_6.png"))
    assert labels.shape == (20, 24)
    with pytest.raises(UsageError, match="exists already"):
        predict_files(run, root / "images", tmp_path / "out")
    assert len(load_model(run).classes) == 2


@pytest.mark.parametrize("loop", list(LOOPS))
def test_the_same_run_twice_is_the_same(root, tmp_path, loop):
    for name in ("a", "b"):
        train(parse(configuration(root, tmp_path / name, loop, epochs=2)))
    assert_same_weights(tmp_path / "a", tmp_path / "b")


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # on a machine with one core
def test_loader_processes_change_nothing(root, tmp_path):
    train(parse(configuration(root, tmp_path / "none", epochs=2)))
    table = configuration(root, tmp_path / "two", epochs=2)
    table["data"]["workers"] = 2
    train(parse(table))
    assert_same_weights(tmp_path / "none", tmp_path / "two")


def start(config: Path, *options: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "regloss_cli.main", "train", str(config), "--quiet", *options]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=dict(os.environ))


def rows_in(log: Path) -> int:
    return max(len(log.read_text().splitlines()) - 1, 0) if log.is_file() else 0


def kill_at(config: Path, run: Path, step: int, *options: str) -> None:
    """Start a run, and kill it once ``step`` steps are logged."""
    process = start(config, *options)
    limit = time.monotonic() + 120
    while rows_in(run / "log/steps.csv") < step and process.poll() is None and time.monotonic() < limit:
        time.sleep(0.002)
    assert process.poll() is None, "the run ended before it could be killed"
    process.send_signal(signal.SIGKILL)
    process.wait()


def resumed_is_straight(root: Path, tmp_path: Path, loop: str, kills: list[int], **training: object) -> None:
    straight = tmp_path / "straight"
    train(parse(configuration(root, straight, loop, **training)))
    killed = tmp_path / "killed"
    config = tmp_path / "config.toml"
    config.write_text(to_toml(configuration(root, killed, loop, **training)))
    for number, step in enumerate(kills):
        kill_at(config, killed, step, *(["--resume"] if number else []))
        assert not (killed / "scores.json").exists()
    assert start(config, "--resume").wait() == 0
    assert_same_weights(straight, killed)
    for name in ("steps", "epochs"):
        first, second = (CsvLog(folder / f"log/{name}.csv").rows for folder in (straight, killed))
        skip = "seconds"
        assert [{k: v for k, v in row.items() if skip not in k} for row in first] == [
            {k: v for k, v in row.items() if skip not in k} for row in second
        ]


def test_a_killed_run_resumes_bit_exactly(root, tmp_path):
    resumed_is_straight(root, tmp_path, "trust-region", [8], epochs=8, **{"checkpoint-every": 2})


@pytest.mark.slow
@pytest.mark.parametrize("loop", list(LOOPS))
def test_runs_killed_at_random_resume_bit_exactly(root, tmp_path, loop):
    rng = np.random.default_rng()
    kills = sorted(int(step) for step in rng.integers(1, 55, 4))
    print("killed at", kills)  # pytest shows it if the test fails
    resumed_is_straight(root, tmp_path, loop, kills, epochs=20, **{"checkpoint-every": 2})


def test_two_processes_are_one_with_the_doubled_batch(root, tmp_path):
    one = configuration(root, tmp_path / "one", epochs=2, **{"batch-size": 4})
    two = configuration(root, tmp_path / "two", epochs=2, **{"batch-size": 2, "devices": 2})
    for table in (one, two):
        table["network"]["dropout"] = 0.0  # each process draws its own
    first, second = train(parse(one)), train(parse(two))
    assert_same_weights(tmp_path / "one", tmp_path / "two", 1e-5)
    assert first["test"]["mean-iou"] == pytest.approx(second["test"]["mean-iou"], abs=1e-5)
    logs = [CsvLog(tmp_path / name / "log/steps.csv").rows for name in ("one", "two")]
    for a, b in zip(*logs, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-5)


def test_used_and_foreign_folders(root, run, tmp_path):
    config = parse(configuration(root, run))
    with pytest.raises(UsageError, match=r"exists already.*--resume.*--overwrite"):
        train(config)
    other = parse({**configuration(root, run), "seed": 4})
    with pytest.raises(UsageError, match=r"other settings.*seed \(was 3, is 4\)"):
        train(other, resume=True)
    foreign = tmp_path / "mine"
    foreign.mkdir()
    (foreign / "thesis.tex").write_text("precious")
    with pytest.raises(UsageError, match="left alone"):
        train(parse(configuration(root, foreign)), overwrite=True)
    assert (foreign / "thesis.tex").read_text() == "precious"


def test_a_diverging_run_stops(root, tmp_path):
    config = configuration(root, tmp_path / "run", "gradient-descent", optimizer={"name": "sgd", "lr": 1e30})
    with pytest.raises(ReglossError, match=r"step \d+"):
        train(parse(config))


def test_start_from_another_network_is_refused(root, run, tmp_path):
    table = configuration(root, tmp_path / "new", **{"start-from": str(run)})
    table["network"]["channels"] = 8
    with pytest.raises(UsageError, match=r"another network.*encoder"):
        train(parse(table))
    assert not (tmp_path / "new").exists()
