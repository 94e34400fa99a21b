"""The experiment on flowers: its table keeps what is not at hand, and has means over the seeds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from experiment_scripts import script_module

from regloss.dataset import Sample

pytest.importorskip("skimage.segmentation", reason="scikit-image is not installed")


@pytest.fixture
def script() -> Iterator[ModuleType]:
    with script_module("flowers17") as module:
        yield module


def test_table(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    truth = np.zeros((4, 4), dtype=np.uint8)
    truth[1:3, 1:3] = 1
    sample = Sample("a", np.zeros((3, 4, 4), dtype=np.float32), truth, scribble=None, group="a")
    # By seed: the flower, and half of it. Seed 2 has not been trained.
    found = {0: truth.astype(np.int64), 1: np.where(np.arange(4) < 2, truth, 0).astype(np.int64)}
    for seed in found:
        log = script.folder(tmp_path, "full", seed) / "log"
        log.mkdir(parents=True)
        (log.parent / "model.safetensors").touch()
        (log / "epochs.csv").write_text(f"train-seconds,val-foreground-iou-last\n1,.1\n2,.{5 + 2 * seed}\n")
    monkeypatch.setattr(script, "TABLE", tmp_path / "flowers17.csv")
    monkeypatch.setattr(script, "test_samples", lambda: [sample])
    monkeypatch.setattr(script, "by_network", lambda run, samples: ([found[int(run.name[-1])]], 0.5))
    monkeypatch.setattr(script, "by_method", lambda name, samples: ([1 - found[0]], 0.25))
    script.table(tmp_path)
    printed = capsys.readouterr().out
    assert (
        "| deep, full | 0 1 | 0.938 ± 0.088 | 0.750 ± 0.354 | 0.833 ± 0.236 | 0.600 ± 0.141 | 0.500 ± 0.000 |"
        in printed
    )
    assert "| saliency mask |  | 0.000 | 0.000 | 0.000 |  | 0.250 |" in printed

    rows = script.rows()
    assert rows["deep, full", "1"]["last-foreground-iou"] == "0.5000"
    assert rows["deep, full", "1"]["training-seconds"] == "3.0000"
    (script.folder(tmp_path, "full", 1) / "model.safetensors").unlink()
    script.table(tmp_path)
    assert script.rows() == rows
