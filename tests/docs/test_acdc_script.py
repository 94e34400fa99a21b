"""The tables of the ACDC comparison: rows of runs that are not here stay, and say so; scores near boundaries."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from experiment_scripts import script_module


@pytest.fixture(scope="module")
def acdc() -> Iterator[ModuleType]:
    with script_module("acdc") as module:
        yield module


def row(method: str, seed: int, trained: str, dice: float, variant: str = "full") -> dict[str, Any]:
    return {"variant": variant, "method": method, "seed": seed, "trained": trained, "dice": dice}


def test_rows_are_replaced_by_new_runs_and_kept_without(acdc: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "acdc.csv"
    acdc.write(path, [row("gd", 0, "2026-11-20", 41.0), row("gd", 1, "2026-11-20", 40.0)])
    new = [
        row("adm", 0, "2026-11-30", 77.0),
        row("gd", 0, "2026-11-30", 49.0),
        row("gd", 0, "2026-11-30", 1.0, "short"),
    ]
    rows = acdc.update(path, new)
    assert rows == acdc.rows_of(path)
    assert rows == [new[1], row("gd", 1, "2026-11-20", 40.0), new[0], new[2]]


def test_older_numbers_are_marked_and_so_is_a_mean_with_one(acdc: ModuleType) -> None:
    rows = [row("gd", 0, "2026-11-30", 50.0), row("gd", 2, "2026-11-20", 40.0)]
    assert acdc.by_seed(rows, "dice", "2026-11-30") == "50.0 / - / 40.0† | 45.0†"
    assert acdc.by_seed(rows[:1], "dice", "2026-11-30") == "50.0 / - / - | 50.0"


def test_scores_near_boundaries_are_those_of_the_runs_that_are_here(
    acdc: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("adm-0", "gd-1"):
        (acdc.RUNS / name).mkdir(parents=True)
        (acdc.RUNS / name / "scores.json").write_text("{}")

    def compared(runs: list[Path], subset: str, changes: list[str]) -> dict[str, Any]:
        assert (subset, changes) == ("test", ["evaluation.trimap=[1, 2, 4, 8, 16, 32]"])
        band = {"accuracy": 0.5, "mean-iou": 0.25, "pixels": 4}
        return {run.name: {"test": {"accuracy": 0.9, "mean-iou": 0.8, "trimap": {"8": band}}} for run in runs}

    with script_module("trimap") as trimap:
        monkeypatch.setattr(trimap, "compare_runs", compared)
        rows = trimap.score([0, 1])
    assert [(row["method"], row["seed"], row["width"]) for row in rows] == [
        ("gd", 1, ""),
        ("gd", 1, 8),
        ("adm", 0, ""),
        ("adm", 0, 8),
    ]
    assert rows[1]["accuracy"] == 50.0
