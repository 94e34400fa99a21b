"""A small data set to train on, and configurations for it."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import small_data

from regloss.hooks import manager
from regloss.training.config import Config, parse


@pytest.fixture(scope="session", autouse=True)
def _quick_processes() -> None:
    """Processes that tests start come out of a server that has imported what they need."""
    multiprocessing.set_forkserver_preload(["regloss.training.trainer", "regloss_plugins.solvers.alpha_expansion"])


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


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small data set; not to be changed."""
    root: Path = small_data.write_folder(tmp_path_factory.mktemp("data") / "tiny")
    return root


@pytest.fixture
def config(images: Path, tmp_path: Path) -> Callable[..., Config]:
    """``config("section.key=value", ..., loop=...)``, with the output in ``tmp_path / "run"``."""

    def make(*changes: str, output: str = "run", **options: Any) -> Config:
        return parse(small_data.settings(images, tmp_path / output, *changes, **options))

    return make


@pytest.fixture(scope="session")
def trained(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a training; not to be changed."""
    from regloss.training.trainer import train

    output = tmp_path_factory.mktemp("runs") / "trained"
    train(parse(small_data.settings(images, output, "training.epochs=2", "evaluation.examples=2")))
    return output
