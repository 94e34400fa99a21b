"""The experiment on published networks: what it trains is valid, and how its table scores one class."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from experiment_scripts import script_module

from regloss.dataset import Sample
from regloss.training.config import read


def test_what_it_trains_and_its_score_of_one_class() -> None:
    with script_module("networks") as networks:
        for name, how in networks.NETWORKS.items():
            config = read(networks.CONFIG, networks.settings(name, 2))
            assert (config.network.name, config.training.epochs, config.seed) == (name, how.epochs, 2)
        label = np.array([[0, 1, 1, 1], [255, 1, 2, 2]], dtype=np.uint8)
        sample = Sample("a", np.zeros((3, 2, 4), dtype=np.float32), label, scribble=None, group="a")
        dataset = SimpleNamespace(classes=("a", "b", "c"), ids=lambda subset: ("a",), load=lambda sample_id: sample)
        found = networks.one_class(dataset)
        assert found["accuracy"] == pytest.approx(4 / 7)
        assert found["mean-iou"] == pytest.approx(4 / 7 / 3)
