"""Trainings with soft self-labeling, dense ADM and several data terms: what is logged, and that they can go on."""

import csv

import pytest
import torch
from safetensors.torch import load_file

from regloss.errors import UsageError
from regloss.training.trainer import train

DENSE = 'loss.regularizer=[{name = "dense-crf", sigma-xy = 4.0, sigma-rgb = 0.2, scale = 1.0, backend = "exact"}]'
SOFT = 'loss.outer-loop={name = "soft-self-labeling", coupling = 0.5, max-steps = 5}'
ADM = 'loss.outer-loop={name = "adm", solver = {name = "dca", max-steps = 5}, coupling = 0.5, entropy = "coupling"}'
TERMS = 'loss.data-term=["partial-cross-entropy", {name = "size-bounds", weight = 0.1, lower = [0.3, 0.0, 0.0]}]'


def epochs(folder):
    with (folder / "log" / "epochs.csv").open(newline="") as file:
        return [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)]


@pytest.mark.parametrize("changes", [[SOFT], [SOFT, DENSE], [ADM, DENSE]], ids=["soft", "soft dense", "adm dense"])
def test_proposals_in_every_step(changes, config, tmp_path):
    scores = train(config(*changes, TERMS, "training.epochs=2", "evaluation.hausdorff=true"))
    assert {"hd95", "mean-foreground-hd95", "unmatched"} <= set(scores["test"])
    assert not (tmp_path / "run" / "proposals").exists()
    for row in epochs(tmp_path / "run"):
        parts = {"data-partial-cross-entropy", "data-size-bounds", "proposal"}
        assert parts <= set(row)
        assert row["loss"] == pytest.approx(sum(row[part] for part in parts), rel=1e-5)
        assert row["proposal-energy-after"] <= row["proposal-energy-before"]


def test_a_training_with_soft_labels_can_be_resumed(config, tmp_path):
    straight = train(config(SOFT, "training.epochs=2", output="straight"))
    stopped = config(SOFT, "training.epochs=2", output="stopped")

    class Stop(Exception):
        pass

    from regloss.hooks import hookimpl, manager

    class AfterOneEpoch:
        @hookimpl
        def regloss_step(self, step):
            if step == 4:
                raise Stop

    plugin = AfterOneEpoch()
    manager().register(plugin)
    try:
        with pytest.raises(Stop):
            train(stopped)
    finally:
        manager().unregister(plugin)
    assert train(stopped, resume=True) == straight
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("straight", "stopped"))
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_soft_labels_cannot_be_kept_between_epochs(config):
    with pytest.raises(UsageError, match="no setting 'update-every'"):
        config(SOFT.replace("}", ", update-every = 2}"))
