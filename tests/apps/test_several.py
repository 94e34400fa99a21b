"""Images spread over processes and machines: each once, and together what one process makes of them."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from regloss.apps.evaluate import evaluate_noisy
from regloss.apps.predict import predict_files


def on_two_machines(*arguments: object) -> list[subprocess.CompletedProcess[str]]:
    """A command on each of two machines, both of which are this one."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "regloss_cli.main", *map(str, arguments), "--nodes", "2"]
    common = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen(
            command, env={**common, "NODE_RANK": rank}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for rank in "10"
    ]
    done = [process.communicate(timeout=300) for process in started]
    return [
        subprocess.CompletedProcess(command, process.returncode, *said)
        for process, said in zip(started, done, strict=True)
    ][::-1]


def test_scores_by_two_processes(trained: Path) -> None:
    expected = evaluate_noisy(trained, "all", ["gaussian:0.1"])
    found = evaluate_noisy(trained, "all", ["gaussian:0.1"], devices=2)
    assert found.keys() == expected.keys()
    for name, scores in expected.items():
        assert found[name]["images"] == scores["images"] == 8
        assert found[name]["mean-foreground-dice"] == pytest.approx(scores["mean-foreground-dice"], abs=1e-12)
        assert found[name]["energy"] == pytest.approx(scores["energy"], rel=1e-6)  # sums of float32, by batches
        assert found[name]["groups"].keys() == scores["groups"].keys()


@pytest.mark.slow
def test_a_prediction_by_two_machines(trained: Path, images: Path, tmp_path: Path) -> None:
    predict_files(trained, images / "images", tmp_path / "one")
    two = tmp_path / "two"
    first, second = on_two_machines("predict", trained, images / "images", "--output", two)
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    for part in ("labels", "overlays"):
        written = {path.name: path.read_bytes() for path in (two / part).iterdir()}
        assert written == {path.name: path.read_bytes() for path in (tmp_path / "one" / part).iterdir()}
        assert len(written) == 8
    for path in list((two / "labels").iterdir())[::3]:
        path.unlink()
    kept = {path.name: path.stat().st_mtime_ns for path in (two / "labels").iterdir()}
    first, second = on_two_machines("predict", trained, images / "images", "--output", two, "--resume")
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    found = {path.name: path.stat().st_mtime_ns for path in (two / "labels").iterdir()}
    assert len(found) == 8
    assert kept.items() <= found.items()


@pytest.mark.slow
def test_scores_by_two_machines(trained: Path, tmp_path: Path) -> None:
    expected = evaluate_noisy(trained, "all", [])["all"]
    output = tmp_path / "scores.json"
    first, second = on_two_machines("evaluate", trained, "--subset", "all", "--output", output)
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    assert second.stdout == ""
    found = json.loads(output.read_text())["all"]
    assert found["mean-foreground-dice"] == pytest.approx(expected["mean-foreground-dice"], abs=1e-12)
    assert found["images"] == 8
