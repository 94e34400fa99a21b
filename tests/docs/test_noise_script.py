"""The noise experiment: what it trains with is a valid configuration, and its levels are those of 1 to 25 of 255."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType

import pytest
from experiment_scripts import EXPERIMENTS, script_module

from regloss.apps.noise import Noise
from regloss.training.config import build_layer, read


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    with script_module("noise") as module:
        yield module


def test_what_it_trains_with_is_valid(script: ModuleType) -> None:
    for noise in script.TRAINED.values():
        for method in script.TRAINED_METHODS:
            config = read(EXPERIMENTS / "layers-wbc2.toml", script.settings(method, noise))
            assert (build_layer(config.layer, 3) is None) == (method not in script.LAYERS)
            assert isinstance(config.loss.data_term, list) == (method == "smoothness")
            assert config.data.augment.noise.salt == (0, 0.01 if "salt" in noise else 0)


def test_levels_are_grey_levels(script: ModuleType) -> None:
    assert [round(255 * Noise.parse(level).level) for level in script.LEVELS] == list(range(1, 26))
