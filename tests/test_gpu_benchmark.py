"""The benchmark for GPUs runs, on images so small that CPUs do it."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "benchmarks" / "gpu.py"


def test_it_prints_and_writes_every_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = importlib.util.spec_from_file_location("gpu_benchmark", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    file = tmp_path / "rows.json"
    module.main(["--device", "cpu", "--tiny", "--seconds", "0", "--json", str(file)])
    record, printed = json.loads(file.read_text()), capsys.readouterr().out
    assert (record["device"], record["tiny"], len(record["rows"])) == ("cpu", True, 29)
    for label, row in record["rows"].items():
        assert row["ms"] > 0
        assert label in printed
