"""The comparison with rivals on ACDC: its configurations, and the rows that it keeps."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from experiment_scripts import EXPERIMENTS, script_module

from regloss.training.config import build_loop, build_proposals, read


@pytest.fixture(scope="module")
def rivals() -> Iterator[ModuleType]:
    with script_module("rivals") as module:
        yield module


def test_every_method_is_a_valid_configuration(rivals: ModuleType) -> None:
    start = read(EXPERIMENTS / "acdc-start.toml")
    for method in rivals.METHODS:
        config = read(EXPERIMENTS / f"acdc-{method}.toml")
        assert build_loop(config.loss, config.data.supervision) is not None
        assert (build_proposals(config.data.proposals) is None) == (method != "random-walker")
        # The same data, network (but for a second decoder), and steps as all others.
        changed = {"supervision", "proposals"}
        assert config.data.model_dump(exclude=changed) == start.data.model_dump(exclude=changed)
        own = {**config.network.component_settings()}
        own.pop("auxiliary_decoder", None)
        assert own == start.network.component_settings()
        assert (config.training.epochs, config.training.batch_size) == (12, start.training.batch_size)


def test_rows_are_kept_where_there_is_no_run(
    rivals: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    rivals.table(tmp_path / "rivals.csv")
    with (tmp_path / "rivals.csv").open(newline="") as file:
        rows = {(row["method"], row["seed"]): float(row["dice"]) for row in csv.DictReader(file)}
    with (EXPERIMENTS / "dense-methods.csv").open(newline="") as file:
        dense = {row["seed"]: float(row["dice"]) for row in csv.DictReader(file) if row["method"] == "dense-gd"}
    assert {seed: rows["dense-gd", seed] for seed in "012"} == dense
    kept = ("pce", "gd", "adm", "trust-region", "full", "gated-crf")
    assert {(method, seed) for method in kept for seed in "012"} <= rows.keys()
    means = {method: sum(rows[method, seed] for seed in "012") / 3 for method in ("dense-gd", "gated-crf")}
    lines = {line.split(" | ")[0].strip("| "): line for line in capsys.readouterr().out.splitlines() if "|" in line}
    for method, mean in means.items():
        assert f" | {mean:.1f}" in lines[method]
