"""The experiment with deep Chan-Vese's settings: rows, what is skipped, pictures."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from experiment_scripts import script_module
from PIL import Image

import regloss

pytest.importorskip("skimage.graph", reason="scikit-image is not installed")


@pytest.fixture
def script() -> Iterator[ModuleType]:
    with script_module("deep_chan_vese") as module:
        yield module


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """Three bright discs on dark ground, as the experiment's data set."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:24, :32]
    for folder in ("images", "labels"):
        (tmp_path / "weizmann_horse" / folder).mkdir(parents=True)
    for number in range(3):
        inside = np.hypot(rows - 12, columns - 13 - 3 * number) < 7
        values = 60 + 120 * inside[..., None] * [1.0, 0.8, 0.5] + rng.normal(0, 6, (24, 32, 3))
        image = Image.fromarray(values.clip(0, 255).astype(np.uint8))
        image.save(tmp_path / "weizmann_horse" / "images" / f"d{number}.png")
        Image.fromarray(inside.astype(np.uint8)).save(tmp_path / "weizmann_horse" / "labels" / f"d{number}.png")
    return tmp_path


def test_rows_are_written_once_and_drawn(
    script: ModuleType, photographs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("REGLOSS_DATA", str(photographs))
    quick = {"max_steps": 30, "warm_up": 20, "level_rate": 1.0}
    monkeypatch.setattr(script, "HERE", photographs)
    monkeypatch.setattr(script, "TABLE", photographs / "rows.csv")
    monkeypatch.setattr(script.chan_vese, "LONGEST", 32)
    monkeypatch.setattr(script, "DEFAULTS", {"networks": "plain", "noises": "1", "sizes": "32"})
    monkeypatch.setattr(script, "SIZES", (32,))
    monkeypatch.setattr(
        script, "SETTINGS", {"networks": {"plain": quick}, "noises": {"1": quick}, "sizes": {"32": quick}}
    )
    monkeypatch.setattr(script, "IMAGES", {"networks": 3, "noises": 3, "sizes": 2})
    script.run(list(script.SETTINGS), photographs / "masks")
    rows = script.rows()
    assert [(row["what"], row["image"]) for row in rows] == [
        *((what, f"d{number}") for what in ("networks", "noises") for number in range(3)),
        *(("sizes", f"d{number}") for number in range(2)),
    ]
    assert min(float(row["iou"]) for row in rows) > 0.7
    assert rows[3] == {**rows[0], "what": "noises", "value": "1"}  # the same run, not another
    script.run(list(script.SETTINGS), photographs / "masks")
    assert script.rows() == rows
    capsys.readouterr()
    script.table()
    assert capsys.readouterr().out.count("\n| ") == 2 * 3
    script.networks_picture(photographs / "masks")
    script.curves_picture()
    assert (photographs / "deep-chan-vese-networks.png").is_file()
    assert (photographs / "deep-chan-vese-curves.png").is_file()


def test_the_networks_exist(script: ModuleType) -> None:
    for settings in script.SETTINGS["networks"].values():
        for table in settings.values():
            chosen = {key: value for key, value in table.items() if key != "name"}
            regloss.create("network", table["name"], in_channels=3, classes=2, **chosen)
