"""Fixtures for tests that train: without what takes most of a small training's time. A conftest imports them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from regloss.hooks import manager


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
        monkeypatch.setattr("regloss.report.page.write_report", write_report)
