"""Trainings with two decoders: both learn, the second begins as the first, and one is refused."""

import csv
import math

import pytest
import small_data
import torch
from safetensors.torch import load_file

from regloss.errors import UsageError
from regloss.training.checkpoints import load_network
from regloss.training.config import parse
from regloss.training.model import build_model
from regloss.training.trainer import train


def test_a_training_moves_both_decoders(images, tmp_path):
    changes = ("network.auxiliary-decoder=true", "training.epochs=2")
    table = small_data.settings(images, tmp_path / "run", *changes, loop="dual-branch")
    train(parse(table))
    weights = load_file(tmp_path / "run" / "model.safetensors")
    first = load_file(_untrained(table, tmp_path))
    for part in ("encoder", "decoder", "classifier", "auxiliary_decoder", "auxiliary_classifier"):
        moved = [name for name in weights if name.startswith(part) and not torch.equal(weights[name], first[name])]
        assert moved, part
    with (tmp_path / "run" / "log" / "steps.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    parts = ("data", "pseudo-labels", "regularizer")
    for row in rows:  # those of the first decoder
        assert math.isclose(float(row["loss"]), sum(float(row[part]) for part in parts), rel_tol=1e-5)


def _untrained(table, tmp_path):
    table = {**table, "output": str(tmp_path / "before"), "training": {**table["training"], "epochs": 1}}
    table["training"]["optimizer"] = {"name": "sgd", "lr": 1e-30}
    train(parse(table))
    return tmp_path / "before" / "model.safetensors"


def test_a_second_decoder_begins_as_the_first(images, tmp_path):
    """Where the weights to start from know of none; a model without one is none to be read back with two."""
    train(parse(small_data.settings(images, tmp_path / "plain", "training.epochs=1", loop="gradient-descent")))
    plain = load_file(tmp_path / "plain" / "model.safetensors")
    changes = ("network.auxiliary-decoder=true", f"training.start-from={tmp_path / 'plain'}", "training.epochs=1")
    table = small_data.settings(images, tmp_path / "run", *changes, loop="dual-branch")
    found = load_file(_untrained(table, tmp_path))
    for name, value in found.items():
        assert torch.equal(value, plain[name.removeprefix("auxiliary_")]), name
    with pytest.raises(UsageError, match="auxiliary_decoder"):
        load_network(build_model(parse(table), 1, 3).network, plain, "plain")


def test_one_decoder_is_refused_before_anything_is_written(images, tmp_path):
    table = small_data.settings(images, tmp_path / "run", loop="dual-branch")
    with pytest.raises(UsageError, match=r"'dual-branch' learns with 2 decoders, and UNet has 1.*auxiliary-decoder"):
        train(parse(table))
    assert not (tmp_path / "run").exists()
