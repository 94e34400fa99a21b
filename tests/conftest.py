"""Fixtures that all tests share."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
import torch

import regloss
from regloss import registry

pytest.register_assert_rewrite("regloss.testing")  # before its first import, so that failures show the values

collect_ignore = ["benchmarks"]  # programs, some of which import their rivals or each other

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Tiny tensors gain nothing by threads, and tests may share the machine."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What trainings remember of samples is not the user's business."""
    os.environ["REGLOSS_CACHE"] = str(tmp_path_factory.mktemp("cache"))


def _folder(variable: str, default: str) -> Path:
    folder = Path(os.environ.get(variable, REPOSITORY.parent / "shared" / default))
    if not folder.is_dir():
        pytest.skip(f"needs the folder {default!r} of test data: set {variable} ({folder} is no folder)")
    return folder


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of real data sets, REGLOSS_DATA; skips where it is absent."""
    return _folder("REGLOSS_DATA", "data")


@pytest.fixture(scope="session")
def oracles() -> Path:
    """The folder of reference vectors, REGLOSS_ORACLES; skips where it is absent."""
    return _folder("REGLOSS_ORACLES", "oracles")


@pytest.fixture
def registered() -> Iterator[Callable[[str, str, type], None]]:
    """``registered(kind, name, cls)`` registers a throw-away component until the test ends."""
    added: list[tuple[str, str]] = []

    def add(kind: str, name: str, cls: type) -> None:
        regloss.register(kind, name)(cls)
        added.append((kind, name))

    try:
        yield add
    finally:
        for kind, name in added:
            regloss.unregister(kind, name)


Install = Callable[[str, Mapping[str, Mapping[str, str]], Mapping[str, str]], None]


@pytest.fixture
def installed(tmp_path: Path) -> Iterator[Install]:
    """``installed(distribution, entry_points, modules)`` installs a throw-away distribution until the test ends.

    ``entry_points`` holds targets by name by group, ``modules`` source text by module name.
    """
    before = set(sys.modules)
    with pytest.MonkeyPatch.context() as patch:

        def install(
            distribution: str, entry_points: Mapping[str, Mapping[str, str]], modules: Mapping[str, str]
        ) -> None:
            site = tmp_path / distribution
            metadata = site / f"{distribution.replace('-', '_')}-1.0.dist-info"
            metadata.mkdir(parents=True)
            (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
            lines = []
            for group, targets in entry_points.items():
                lines += [f"[{group}]", *(f"{name} = {target}" for name, target in targets.items())]
            (metadata / "entry_points.txt").write_text("\n".join(lines) + "\n")
            for name, text in modules.items():
                (site / f"{name}.py").write_text(text)
            patch.syspath_prepend(site)
            registry.refresh()

        yield install
        for name in set(sys.modules) - before:
            # Only what lies in the throw-away folders: other modules may have been imported here for the first time.
            file = getattr(sys.modules[name], "__file__", None)
            if file is not None and Path(file).is_relative_to(tmp_path):
                del sys.modules[name]
    importlib.invalidate_caches()
    registry.refresh()  # after sys.path is as it was
