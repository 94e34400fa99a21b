"""The benchmark for GPUs runs, on images so small that CPUs do it."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parent / "benchmarks" / "gpu.py"


@pytest.fixture
def module() -> Any:
    """The script."""
    spec = importlib.util.spec_from_file_location("gpu_benchmark", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_it_prints_and_writes_every_row(module: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "rows.json"
    module.main(["--device", "cpu", "--tiny", "--seconds", "0", "--json", str(file)])
    record, printed = json.loads(file.read_text()), capsys.readouterr().out
    assert (record["device"], record["tiny"], len(record["rows"])) == ("cpu", True, 38)
    for label, row in record["rows"].items():
        assert row["ms"] > 0
        assert label in printed


def test_a_row_that_fails_is_told_and_late_ones_are_left_out(
    module: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def rows(device: object, tiny: bool) -> Any:
        yield "good", lambda: None
        yield "bad", lambda: 1 / 0
        module.time.sleep(0.2)
        yield "late", lambda: None

    for section in ("training_steps", "priors", "layers"):
        monkeypatch.setattr(module, section, rows if section == "priors" else lambda device, tiny: ())
    file = tmp_path / "rows.json"
    with pytest.raises(SystemExit, match="1"):
        module.main(["--device", "cpu", "--seconds", "0", "--limit", "0.15", "--json", str(file)])
    record, printed = json.loads(file.read_text()), capsys.readouterr().out
    assert list(record["rows"]) == ["good"]
    assert record["failed"] == {"bad": "ZeroDivisionError: division by zero"}
    assert record["left-out"] == ["late"]
    assert "failed: ZeroDivisionError" in printed
    assert "Left out, as 0 seconds were over: late" in printed
