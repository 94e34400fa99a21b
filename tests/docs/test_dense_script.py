"""The comparison of dense priors: what it trains with on each length of scribbles, and its tables over lengths."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from experiment_scripts import EXPERIMENTS, script_module

from regloss.training.config import Config, build_loop, read


@pytest.fixture(scope="module")
def dense() -> Iterator[ModuleType]:
    with script_module("dense") as module:
        yield module


def test_published_weights_are_those_of_the_presets(dense: ModuleType) -> None:
    for variant, name in {"full": "voc-scribbles", "short": "voc-scribbles-30", "click": "voc-clicks"}.items():
        config = read(EXPERIMENTS / "acdc-published.toml", dense.published(variant))
        loop: Any = build_loop(config.loss, config.data.supervision)
        preset = type(loop).preset(name)
        assert loop.epsilon.end / (3 / 4) == pytest.approx(preset.divergence.epsilon / (20 / 21), abs=1e-5)
        assert (loop.coupling.end, loop.regularizer.weight) == (preset.coupling.end, preset.regularizer.weight)


def test_camvid_is_trained_on_shortened_strokes_from_a_start_of_its_own(
    dense: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: dict[str, Config] = {}

    def run(command: list[str], check: bool) -> None:
        changes = [text for text, option in zip(command[1:], command, strict=False) if option == "--set"]
        config = read(Path(command[4]), changes)
        found[str(config.output)] = config

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(dense.subprocess, "run", run)
    for method in ("start", *dense.OF_LENGTH_CAMVID):
        assert str(dense.train_camvid(dense.CAMVID_LENGTHS, "short", method, 1)) in found
    start, adm = (found[f"runs/dense-camvid-lengths/short-{method}-1"] for method in ("start", "adm"))
    assert {(config.data.scribble_length, config.training.precision) for config in found.values()} == {
        (0.3, "bf16-mixed")
    }
    assert (start.training.epochs, start.training.start_from) == (10, None)
    assert (adm.training.epochs, str(adm.training.start_from)) == (4, str(start.output))
    assert adm.loss.outer_loop is not None


def test_lengths_are_compared_over_the_seeds_that_all_have(dense: ModuleType) -> None:
    rows = [
        {"method": "adm", "length": length, "seed": seed, "trained": day, "dice": dice}
        for length, seed, day, dice in (
            (0.0, 0, "2026-11-20", 50.0),
            (1.0, 0, "2026-11-30", 70.0),
            (1.0, 1, "2026-11-30", 90.0),
        )
    ]
    assert dense.by_length(rows, "adm")[1.0] == [rows[1]]
    assert dense.lengths_table(rows, ["adm"], "dice").splitlines()[-1] == "| adm | 0 | 50.0† | - | - | - | 70.0 |"
    rows.append({**rows[0], "seed": 1, "trained": "2026-11-30", "dice": 54.0})
    line = "| adm | 0 1 | 52.0 ± 2.8† | - | - | - | 80.0 ± 14.1 |"
    assert dense.lengths_table(rows, ["adm"], "dice").splitlines()[-1] == line
