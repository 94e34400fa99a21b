"""Trainings with a mean teacher: they resume to the same bits, and images without labels take part."""

import csv

import pytest
import small_data
import torch
from safetensors.torch import load_file

from regloss.errors import UsageError
from regloss.hooks import hookimpl, manager
from regloss.training.config import parse
from regloss.training.trainer import train


class Stopped(Exception):
    """Instead of a kill."""


HARD = ("network.norm=batch", "network.dropout=0.2", "training.threads=1", "training.checkpoint-every=2")


def test_a_training_resumes_to_the_same_bits(images, tmp_path):
    def table(name, *changes):
        return small_data.settings(images, tmp_path / name, *HARD, *changes, loop="mean-teacher")

    train(parse(table("straight")))

    class StopOnce:
        @hookimpl
        def regloss_step(self, step):
            if step == 6:
                manager().unregister(self)
                raise Stopped

    manager().register(StopOnce())
    with pytest.raises(Stopped):
        train(parse(table("stopped")))
    train(parse(table("stopped")), resume=True)
    for file in ("model.safetensors", "modules/teacher.safetensors", "log/steps.csv"):
        assert (tmp_path / "stopped" / file).read_bytes() == (tmp_path / "straight" / file).read_bytes(), file
    teacher, network = (
        load_file(tmp_path / "straight" / f"{name}.safetensors") for name in ("modules/teacher", "model")
    )
    assert int(teacher["steps"]) == 12
    assert not torch.equal(teacher["network.network.classifier.weight"], network["classifier.weight"])


def test_images_without_labels_take_part(images, tmp_path):
    """They change what is learnt, and their labels do not."""
    split = {"train": list(small_data.TRAIN[:2]), "rest": list(small_data.TRAIN[2:]), "test": list(small_data.TEST)}

    def weights(name, *changes, root=images):
        table = small_data.settings(root, tmp_path / name, "training.epochs=1", *changes, loop="mean-teacher")
        table["data"]["split"] = split
        train(parse(table))
        with (tmp_path / name / "log" / "steps.csv").open(newline="") as file:
            steps = len(list(csv.DictReader(file)))
        return steps, load_file(tmp_path / name / "model.safetensors")["classifier.weight"]

    few, alone = weights("alone")
    more, beside = weights("beside", "data.train-unlabelled=rest")
    assert (few, more) == (1, len(small_data.TRAIN) // 2)
    assert not torch.equal(alone, beside)
    bare = small_data.write_folder(tmp_path / "bare")
    for name in small_data.TRAIN[2:]:
        for folder in ("scribbles", "labels"):
            (bare / folder / f"{name}.png").unlink()
    assert torch.equal(weights("bare-run", "data.train-unlabelled=rest", root=bare)[1], beside)


def test_what_cannot_be_is_refused(images, tmp_path):
    table = small_data.settings(images, tmp_path / "run", "data.train-unlabelled=train", loop="mean-teacher")
    with pytest.raises(UsageError, match=r"6 images of data\.train-unlabelled = 'train' are in data\.train = "):
        train(parse(table))
    with pytest.raises(UsageError, match='supervision is "none"'):
        parse(
            small_data.settings(
                images, tmp_path / "run", "data.train-unlabelled=test", "data.supervision=none", loop="mean-teacher"
            )
        )
    assert not (tmp_path / "run").exists()
