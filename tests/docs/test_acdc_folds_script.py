"""The folds of ACDC: the script trains, in little, what it trains at length on a GPU."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from experiment_scripts import EXPERIMENTS, script_module
from PIL import Image

PATIENTS = (1, 20, 21, 30, 41)


@pytest.fixture(scope="module")
def folds() -> Iterator[ModuleType]:
    with script_module("acdc_folds") as module:
        yield module


@pytest.fixture
def roots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Two folders of slices with a bright square: classes 1 and 2 side by side, and 3 below."""
    monkeypatch.chdir(tmp_path)  # runs are written below the current folder
    rng = np.random.default_rng(0)
    for patient in PATIENTS:
        root = tmp_path / ("one" if patient < 30 else "two")
        for number in range(2):
            label = np.zeros((20, 24), np.uint8)
            label[5:12, 5:12], label[5:12, 12:19], label[12:16, 5:19] = 1, 2, 3
            scribble = np.full_like(label, 255)
            scribble[::4, ::3] = label[::4, ::3]
            image = (60 * label + rng.integers(0, 20, label.shape)).astype(np.uint8)
            for part, values in (("images", image), ("labels", label), ("scribbles", scribble)):
                (root / part).mkdir(parents=True, exist_ok=True)
                Image.fromarray(values).save(root / part / f"patient{patient:03}_frame01_slice_{number}.png")
    return [tmp_path / "one", tmp_path / "two"]


def test_folds_leave_twenty_patients_out(folds: ModuleType) -> None:
    ids = [f"patient{patient:03}_frame01_slice_1" for patient in range(1, 101)]
    tested = [folds.splits(ids, fold)["test"] for fold in folds.FOLDS]
    assert sorted(name for names in tested for name in names) == ids
    assert [len(names) for names in tested] == [20] * 5
    assert not set(folds.splits(ids, 3)["train"]) & set(tested[2])
    with pytest.raises(SystemExit, match="Fold 5 has no patients to test on among 80 slices"):
        folds.splits(ids[:80], 5)
    with pytest.raises(SystemExit, match=r"^heart1: a file must be named like"):
        folds.splits(["heart1"], 1)


def test_every_method_is_a_valid_configuration(folds: ModuleType, roots: list[Path]) -> None:
    joined = folds.join(roots)
    assert folds.join(roots) == joined
    for method in folds.METHODS:
        config = folds.parse(folds.settings(method, 1, 0, joined, 60_000))
        assert config.training.epochs == 60_000  # an epoch of one batch
        assert config.data.augment.quarter_turns


def test_a_fold_in_little(
    folds: ModuleType, roots: list[Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--methods", "trust-region", "--folds", "1", "--steps", "2"]
    changes = ["network.channels=4", "network.levels=2", "data.crop=24", "inference.window=24"]
    tiny = ["train", *map(str, roots), *given, "--set", *changes, "evaluation.examples=1"]
    monkeypatch.setattr(folds, "HERE", Path("written"))
    Path("written").mkdir()
    shutil.copy(EXPERIMENTS / "acdc-folds.toml", "written")
    folds.main(tiny)
    before = {path: path.stat().st_mtime_ns for path in folds.RUNS.rglob("scores.json")}
    assert {path.parent.name for path in before} == {"pce-1-0", "trust-region-1-0"}
    folds.main(tiny)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    capsys.readouterr()
    folds.main(["table"])
    told = capsys.readouterr().out
    assert "| trust-region | " in told
    with (Path("written") / "acdc-folds.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["method"], row["fold"]) for row in rows] == [("pce", "1"), ("trust-region", "1")]
    assert all(0 <= float(row["dice"]) <= 100 for row in rows)
