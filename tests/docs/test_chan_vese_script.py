"""The Chan-Vese experiments: methods find a disc, the table is written row by row, configurations are valid."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from experiment_scripts import EXPERIMENTS, script_module
from PIL import Image

from regloss.training.config import build_loop, read

pytest.importorskip("skimage.graph", reason="scikit-image is not installed")

QUICK = ("start", "chan-vese", "statistical", "skimage chan_vese", "skimage morphological", "skimage normalized cut")


@pytest.fixture
def script() -> Iterator[ModuleType]:
    with script_module("chan_vese") as module:
        yield module


@pytest.fixture
def discs(tmp_path: Path) -> Path:
    """A data set of three bright discs on dark ground."""
    rng = np.random.default_rng(0)
    for name in ("images", "labels"):
        (tmp_path / "iseg" / name).mkdir(parents=True)
    rows, columns = np.mgrid[:60, :80]
    for number in range(3):
        inside = np.hypot(rows - 30, columns - 35 - 5 * number) < 14
        values = 60 + 120 * inside[..., None] * [1.0, 0.8, 0.5] + rng.normal(0, 6, (60, 80, 3))
        Image.fromarray(values.clip(0, 255).astype(np.uint8)).save(tmp_path / "iseg" / "images" / f"d{number}.png")
        Image.fromarray(inside.astype(np.uint8)).save(tmp_path / "iseg" / "labels" / f"d{number}.png")
    return tmp_path


def test_methods_find_a_disc_and_what_is_done_is_skipped(
    script: ModuleType, discs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("REGLOSS_DATA", str(discs))
    monkeypatch.setattr(script, "TABLE", discs / "table.csv")
    script.run(["iseg"], QUICK, 2, discs / "masks")
    rows = script.rows()
    assert [(row["image"], row["method"]) for row in rows] == [(f"d{n}", name) for name in QUICK for n in (0, 2)]
    for row in rows:
        if row["method"] != "skimage normalized cut":
            assert float(row["best-foreground-iou"]) > 0.9, row["method"]
            assert row["border-foreground-iou"] == row["last-foreground-iou"], row["method"]
    script.run(["iseg"], QUICK, 2, discs / "masks")
    assert script.rows() == rows
    capsys.readouterr()
    script.table()
    assert capsys.readouterr().out.count("\n| ") == len(QUICK) + 1
    script.picture(["iseg"], discs / "masks", each=1)
    assert (discs / "table.png").is_file()


@pytest.mark.parametrize("variant", ["", "-no-invariance", "-no-conservation", "-neither", "-start", "-turns"])
def test_configurations_of_the_flowers_are_valid(variant: str) -> None:
    config = read(EXPERIMENTS / f"flowers17{variant}.toml")
    loop = build_loop(config.loss, config.data.supervision)
    assert (loop.invariance == 0) == (variant in ("-no-invariance", "-neither"))
    assert ("discriminator" in loop.modules()) == (variant not in ("-no-conservation", "-neither"))
    others = read(EXPERIMENTS / "flowers17.toml").dump()
    mine = config.dump()
    assert {key for key in others if others[key] != mine[key]} <= {"output", "loss"}
