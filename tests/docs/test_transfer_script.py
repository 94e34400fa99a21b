"""The experiment on other data sets: its changes of light are images, and normalisation undoes the one that it can."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from experiment_scripts import script_module


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    with script_module("transfer") as module:
        yield module


def test_lights_make_images(script: ModuleType) -> None:
    image = np.random.default_rng(0).uniform(0.3, 0.7, (3, 8, 9)).astype(np.float32)
    for name, light in script.LIGHTS.items():
        changed = light(image)
        assert changed.dtype == np.float32
        assert 0 <= changed.min() <= changed.max() <= 1
        assert np.array_equal(changed, image) == (name == "as taken")
    ramp = script.ramp(0.5)(np.ones((1, 2, 5), np.float32))
    assert ramp[0, 1].tolist() == [0.5, 0.625, 0.75, 0.875, 1]
    mild = script.contrast(0.5)(image)
    normalised = [(values - values.mean()) / values.std() for values in (image, mild)]
    assert np.allclose(*normalised, atol=1e-5)


def test_methods_are_those_of_the_layers_experiment(script: ModuleType) -> None:
    for name, methods in script.TRAINED.items():
        assert set(methods) <= set(script.layers.EXPERIMENTS[name].trained(0))


def test_the_table_has_what_was_tested(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(script, "TABLE", tmp_path / "transfer.csv")
    assert script.rows() == []
    for tested, values in zip(script.CELLS, ((0.9123, 0.9323), (0.5,)), strict=True):
        for seed, value in enumerate(values):
            script.write("wbc1", tested, "tv", seed, {"mean-iou": value, "boundary-density": 2.5})
    capsys.readouterr()
    script.table()
    found = capsys.readouterr().out.splitlines()
    assert found[3] == "| wbc1 | tv | 92.23 ± 1.41 (2.50) | 50.00 (2.50) |"
    assert found[4] == "| wbc1 | std | - | - |"
