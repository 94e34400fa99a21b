"""The command line, run within the test's process, and a small data set."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import small_data
from quick_training import _no_tensorboard, _quick_report, real_report  # noqa: F401 - fixtures

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
