"""The command line, run within the test's process, and a small data set."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import small_data

from regloss.hooks import manager
from regloss.training.config import parse
from regloss_cli.main import main


@dataclass(frozen=True)
class Result:
    """Exit code and what was printed."""

    code: int
    out: str
    err: str


@pytest.fixture
def regloss(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """``regloss("train", path, ...)`` does what the command of that name does."""

    def run(*arguments: Any) -> Result:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["regloss", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            main()
        printed = capsys.readouterr()
        code = caught.value.code
        return Result(code if isinstance(code, int) else 0 if code is None else 1, printed.out, printed.err)

    return run


@pytest.fixture(autouse=True)
def _no_tensorboard() -> Iterator[None]:
    """TensorBoard's writer threads outlive a test."""
    plugin = manager().unregister(name="regloss:tensorboard")
    yield
    if plugin is not None:
        manager().register(plugin, name="regloss:tensorboard")


@pytest.fixture
def real_report() -> None:
    """For tests that look at a report; see `_quick_report`."""


@pytest.fixture(autouse=True)
def _quick_report(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nine tenths of a small training would go into its report's pictures, which test_report.py is about."""

    def write_report(folder: Path, **contents: Any) -> Path:
        (folder / "report.html").write_text("")
        return folder / "report.html"

    if "real_report" not in request.fixturenames:
        monkeypatch.setattr("regloss.training.report.write_report", write_report)


@pytest.fixture
def write_folder() -> Callable[..., Path]:
    """``write_folder(root, ...)`` makes the small data set, which may be changed."""
    made: Callable[..., Path] = small_data.write_folder
    return made


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small data set; not to be changed."""
    root: Path = small_data.write_folder(tmp_path_factory.mktemp("data") / "tiny")
    return root


@pytest.fixture
def config_file(images: Path, tmp_path: Path) -> Callable[..., Path]:
    """``config_file("section.key=value", ..., loop=..., root=...)`` writes config.toml; the output is "run"."""

    def write(*changes: str, root: Path = images, **options: Any) -> Path:
        table = small_data.settings(root, tmp_path / "run", *changes, **options)
        path = tmp_path / "config.toml"
        path.write_text(small_data.toml(table))
        return path

    return write


@pytest.fixture(scope="session")
def trained(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a training; not to be changed."""
    from regloss.training.trainer import train

    output = tmp_path_factory.mktemp("runs") / "trained"
    train(parse(small_data.settings(images, output, "training.epochs=1")))
    return output
