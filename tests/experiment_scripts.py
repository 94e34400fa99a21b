"""The scripts of docs/experiments as modules, for their tests."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

EXPERIMENTS = Path(__file__).parents[1] / "docs" / "experiments"


@contextmanager
def script_module(name: str) -> Iterator[ModuleType]:
    """docs/experiments/``name``.py, run as a module that finds its neighbours; dataclasses look it up by its name."""
    spec = importlib.util.spec_from_file_location(f"{name}_experiment", EXPERIMENTS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    sys.path.insert(0, str(EXPERIMENTS))
    try:
        spec.loader.exec_module(module)
        yield module
    finally:
        sys.path.remove(str(EXPERIMENTS))
        del sys.modules[spec.name]
