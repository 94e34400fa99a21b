"""A small data set to train on, configurations for it, and a training: fixtures for whoever imports them."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import small_data

from regloss.training.config import Config, parse


@pytest.fixture(scope="session", autouse=True)
def quick_processes() -> None:
    """Processes that tests start come out of a server that has imported what they need."""
    multiprocessing.set_forkserver_preload(["regloss.training.trainer", "regloss_plugins.solvers.alpha_expansion"])


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
