"""A killed training goes on as if nothing had happened: the same bits, no step missing, none twice."""

import csv
import json
import multiprocessing
import random
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import small_data
from safetensors.torch import load_file

from regloss.errors import UsageError
from regloss.training.config import parse
from regloss.training.trainer import train

SCRIPT = Path(__file__).with_name("killed_training.py")
# Everything that could differ: dropout, running statistics, optimizer state, a schedule, checkpoints within an epoch.
HARD = (
    "network.norm=batch",
    "network.dropout=0.2",
    "data.val=test",
    'training.schedule={name = "cosine", warmup = 0.2}',
    "training.clip-gradient=1.0",
    "training.checkpoint-every=2",
    "training.threads=1",
)
# (moment, the how manieth such call in that process). Three steps an epoch; proposals in epochs 0 and 2.
KILLS = {
    "trust-region": [
        ("beginning", 2),  # after config.json, before model.json
        ("proposal", 4),  # stage A, six images
        ("last proposal", 1),
        ("step", 3),  # the epoch's last step; the checkpoint is one step behind
        ("half a checkpoint", 1),
        ("checkpoint", 2),
        ("proposal", 2),  # the second stage A, with the first one's proposals as the start
        ("stage A", 1),
        ("step", 2),
        ("evaluation", 2),
        ("model", 1),
    ],
    "adm": [("step", 5), ("half a checkpoint", 3), ("step", 1), ("evaluation", 1)],
    "gradient-descent": [("checkpoint", 1), ("step", 3), ("half a checkpoint", 2)],
}


def run(table, moment=None, countdown=0):
    """Train in a process of its own; gives its exit code."""
    job = {"job": {"table": table, "moment": moment, "countdown": countdown}}
    process = multiprocessing.get_context("forkserver").Process(target=runpy.run_path, args=(str(SCRIPT), job, "job"))
    process.start()
    process.join(120)
    return process.exitcode


def result(folder):
    """What must agree, in bytes where it can; seconds cannot."""
    with (folder / "log" / "epochs.csv").open(newline="") as file:
        epochs = [{k: v for k, v in row.items() if not k.endswith("seconds")} for row in csv.DictReader(file)]
    proposals = sorted((folder / "proposals").glob("*/*")) if (folder / "proposals").exists() else []
    return {
        "model": (folder / "model.safetensors").read_bytes(),
        "optimizer": next((folder / "checkpoints").glob("[0-9]*/optimizer.safetensors")).read_bytes(),
        "steps": (folder / "log" / "steps.csv").read_text(),
        "epochs": epochs,
        "proposals": {str(path.relative_to(folder)): path.read_bytes() for path in proposals},
        "scores": json.loads((folder / "scores.json").read_text()),
    }


@pytest.mark.parametrize("loop", KILLS)
def test_a_killed_training_ends_with_the_same_bits(loop, images, tmp_path):
    straight, killed = (
        small_data.settings(images, tmp_path / name, *HARD, loop=loop) for name in ("straight", "killed")
    )
    train(parse(straight))
    for moment, countdown in KILLS[loop]:
        assert run(killed, moment, countdown) == -signal.SIGKILL, moment
    assert run(killed) == 0
    expected, found = result(tmp_path / "straight"), result(tmp_path / "killed")
    assert [row.split(",")[0] for row in expected["steps"].splitlines()] == ["step", *map(str, range(1, 13))]
    for part in expected:
        assert found[part] == expected[part], part
    unfinished = [path for path in (tmp_path / "killed").rglob(".*") if "model.json" not in path.name]
    assert unfinished == []


@pytest.mark.parametrize(
    ("layer", "saved", "logged", "kills"),
    [
        (
            'regularizer = ["tv", "nltv"], steps = 10, learn = ["weight", "entropy"]',
            {"log_weight", "log_entropy"},
            "layer-weight-nltv",
            KILLS["gradient-descent"],
        ),
        (
            'kind = "dense-crf", sigma-xy = [8.0, 2.0], learn = ["weights", "sigma-xy", "compatibility"]',
            {"log_weights", "log_sigma_xy", "compatibility"},
            "layer-sigma-xy-1",
            [("step", 5)],  # the checkpoint is one step behind, and within an epoch
        ),
    ],
    ids=["softmax", "dense-crf"],
)
def test_a_killed_training_ends_with_the_same_bits_behind_a_layer(layer, saved, logged, kills, images, tmp_path):
    """What the layer learns is part of checkpoints, and so is what the optimizer keeps of it."""
    straight, killed = (
        small_data.settings(images, tmp_path / name, *HARD, f"layer={{{layer}}}", loop="gradient-descent")
        for name in ("straight", "killed")
    )
    train(parse(straight))
    for moment, countdown in kills:
        assert run(killed, moment, countdown) == -signal.SIGKILL, moment
    assert run(killed) == 0
    expected, found = result(tmp_path / "straight"), result(tmp_path / "killed")
    names = load_file(tmp_path / "killed" / "model.safetensors").keys()
    assert {name.removeprefix("layer:") for name in names if ":" in name} == saved
    assert logged in expected["steps"]
    for part in expected:
        assert found[part] == expected[part], part


def test_a_killed_stage_a_is_not_used(images, tmp_path):
    """Its proposals may be incomplete, and are made anew from the same network."""
    table = small_data.settings(images, tmp_path / "run", *HARD)
    assert run(table, "proposal", 4) == -signal.SIGKILL
    left = sorted(path.name for path in (tmp_path / "run" / "proposals" / "generation-0000").iterdir())
    assert len(left) == 4
    assert "complete.json" not in left


def test_a_finished_training_may_be_resumed(tmp_path, config):
    parsed = config("training.epochs=1")
    scores = train(parsed)
    before = result(tmp_path / "run")
    told = []
    assert train(parsed, resume=True, callback=told.append) == scores
    assert result(tmp_path / "run") == before
    assert told[0] == "Going on from step 3 of 3."


def test_resuming_what_has_not_begun_begins(config, tmp_path):
    train(config("training.epochs=1"), resume=True)
    assert (tmp_path / "run" / "scores.json").is_file()


def test_other_settings_are_refused_with_their_names(config, tmp_path):
    train(config("training.epochs=1"))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    with pytest.raises(UsageError) as caught:
        train(config("training.epochs=2", "seed=3", "network.norm=batch"), resume=True)
    message = str(caught.value)
    for part in ("seed (was 0, is 3)", "training.epochs (was 1, is 2)", "network.norm (was 'group', is 'batch')"):
        assert part in message
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")} == before


def test_settings_that_have_come_since_have_their_defaults(config, tmp_path):
    train(config("training.epochs=1"))
    path = tmp_path / "run" / "config.json"
    begun = json.loads(path.read_text())
    del begun["training"]["layer-lr"], begun["data"]["scribble-length"]
    path.write_text(json.dumps(begun))
    train(config("training.epochs=1"), resume=True)
    with pytest.raises(UsageError, match=r"training.layer-lr \(was 1.0, is 2.0\)"):
        train(config("training.epochs=1", "training.layer-lr=2.0"), resume=True)


def test_a_run_may_be_moved_and_read_by_more_processes(config, tmp_path):
    """Neither changes what comes out."""
    train(config("training.epochs=1", "training.checkpoint-every=2"))
    (tmp_path / "run").rename(tmp_path / "moved")
    train(config("training.epochs=1", "training.checkpoint-every=2", "data.cache=false", output="moved"), resume=True)


def test_a_damaged_checkpoint_is_refused_before_anything_changes(config, tmp_path):
    train(config("training.epochs=1"))
    (path,) = (tmp_path / "run" / "checkpoints").iterdir()
    (path / "network.safetensors").write_bytes(b"half")
    (tmp_path / "run" / "model.json").write_text("untouched")
    with pytest.raises(UsageError, match=r"checkpoint .* cannot be read"):
        train(config("training.epochs=1"), resume=True)
    assert (tmp_path / "run" / "model.json").read_text() == "untouched"


def test_start_weights_are_not_needed_again(config, tmp_path):
    train(config("training.epochs=1", output="first"))
    start = f"training.start-from={tmp_path / 'first'}"
    train(config("training.epochs=1", start, output="second"))
    (tmp_path / "first").rename(tmp_path / "gone")
    train(config("training.epochs=1", start, output="second"), resume=True)


# -- At random ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("loop", KILLS)
def test_a_command_killed_at_random_moments(loop, images, tmp_path):
    """`regloss train --resume` until it ends by itself, killed soon after it has gone on by some steps.

    By steps and not by seconds, in which a slow machine gets nowhere: each process goes on, and the last one ends.
    """
    choose = random.Random(loop)
    longer = (*HARD, "training.epochs=12")
    train(parse(small_data.settings(images, tmp_path / "straight", *longer, loop=loop)))
    config = tmp_path / "config.toml"
    config.write_text(small_data.toml(small_data.settings(images, tmp_path / "killed", *longer, loop=loop)))
    command = [sys.executable, "-m", "regloss_cli.main", "train", str(config), "--resume", "--quiet"]
    kills = 0
    for _ in range(60):
        reached = max((int(path.name) for path in (tmp_path / "killed" / "checkpoints").glob("[0-9]*")), default=0)
        process = subprocess.Popen(command, stderr=subprocess.PIPE)
        trains = _has_logged(process, tmp_path / "killed", reached + choose.randint(1, 8))
        try:
            process.wait(choose.uniform(0, 0.3) if trains else 120)
        except subprocess.TimeoutExpired:
            process.kill()
            kills += 1
        error = process.communicate()[1].decode()
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL, error
    assert process.returncode == 0
    assert kills >= 3
    expected, found = result(tmp_path / "straight"), result(tmp_path / "killed")
    for part in expected:
        assert found[part] == expected[part], part


def _has_logged(process, folder, steps):
    """Whether it logs so many steps before it ends; it begins by cutting off what no checkpoint has."""
    began, log = time.time(), folder / "log" / "steps.csv"
    while process.poll() is None and time.time() < began + 120:
        if log.exists() and log.stat().st_mtime > began and len(log.read_text().splitlines()) > steps:
            return True
        time.sleep(0.005)
    return False
