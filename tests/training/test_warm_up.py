"""The first epochs on the data term alone, before regularizer and proposals come in."""

import csv

import pytest
import small_data
from safetensors.torch import load_file

from regloss.errors import UsageError
from regloss.training.config import parse
from regloss.training.trainer import train


def trained(images, folder, *changes, loop="trust-region", **others):
    table = small_data.settings(images, folder, "training.threads=1", *changes, loop=loop)
    train(parse(table), quiet=True, callback=lambda text: None, **others)
    with (folder / "log" / "epochs.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("loop", ["trust-region", "adm", "gradient-descent"])
def test_it_is_a_training_without_regularizer_until_then(loop, images, tmp_path):
    """Trust region: proposals where epoch 3 begins, and again in epoch 4, which its update-every of 2 divides."""
    found = trained(images, tmp_path / "run", "training.epochs=5", "training.warm-up=3", loop=loop)
    plain = trained(images, tmp_path / "plain", "training.epochs=3", 'loss={outer-loop={name="gradient-descent"}}')
    assert [row["loss"] for row in found[:3]] == [row["loss"] for row in plain]
    name = "regularizer" if loop == "gradient-descent" else "proposal"
    assert [bool(row[name]) for row in found] == [False] * 3 + [True] * 2
    if loop == "trust-region":
        assert [bool(row["proposal-energy-after"]) for row in found] == [False] * 3 + [True] * 2


def test_it_goes_on_where_it_was_interrupted(images, tmp_path, monkeypatch):
    """In the last epoch of the warm-up, and right after it."""
    changes = ("training.epochs=4", "training.warm-up=2", "training.checkpoint-every=1")
    whole = trained(images, tmp_path / "whole", *changes)
    from regloss.training import checkpoints

    saved = checkpoints.save

    def save(folder, step, *others):
        saved(folder, step, *others)
        if step == stop:
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoints, "save", save)
    for stop in (5, 6, 7):
        with pytest.raises(KeyboardInterrupt):
            trained(images, tmp_path / "run", *changes, resume=stop > 5)
    stop = None
    found = trained(images, tmp_path / "run", *changes, resume=True)
    assert [row["loss"] for row in found] == [row["loss"] for row in whole]
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "run"))
    assert all(first[name].equal(second[name]) for name in first)


def test_it_leaves_epochs_for_the_whole_loss(images, tmp_path):
    with pytest.raises(UsageError, match=r"training\.warm-up.*4 of 4 epochs leave none for the whole loss"):
        trained(images, tmp_path / "run", "training.warm-up=4")
    assert not (tmp_path / "run").exists()
