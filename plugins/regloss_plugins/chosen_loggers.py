"""What loggers beside TensorBoard share: whether they are asked for, and what a run's folder holds for them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from regloss.errors import MissingDependency, UsageError

VARIABLE = "REGLOSS_LOGGERS"
"""Environment variable that names the loggers to use, with commas between them."""

KNOWN = ("wandb", "mlflow")


def is_chosen(name: str) -> bool:
    """Whether the user asks for the logger ``name``.

    Raises:
        UsageError: a logger is asked for that there is not.
    """
    words = [word.strip() for word in os.environ.get(VARIABLE, "").split(",") if word.strip()]
    unknown = [word for word in words if word not in KNOWN]
    if unknown:
        raise UsageError(f"{VARIABLE} names {', '.join(map(repr, unknown))}; the loggers are {' and '.join(KNOWN)}.")
    return name in words


def check_installed(name: str) -> None:
    """Refuse loggers that there are not, and the logger ``name`` if it is asked for and not installed.

    Raises:
        UsageError: a logger is asked for that there is not.
        MissingDependency: it cannot be imported.
    """
    if is_chosen(name):
        try:
            import_module(name)
        except ImportError as cause:
            raise MissingDependency(f"The logger {name} needs: pip install 'regloss[{name}]' ({cause}).") from cause


def configuration(folder: Path) -> dict[str, Any]:
    """The run's settings by "section.key"."""
    return dict(_flat(json.loads((folder / "config.json").read_text(encoding="utf-8")), ""))


def scores(folder: Path) -> dict[str, float]:
    """The run's scores by "subset/score", those that are one number; none before it has ended."""
    path = folder / "scores.json"
    if not path.is_file():
        return {}
    content = json.loads(path.read_text(encoding="utf-8"))
    found = {key.replace(".", "/"): value for key, value in _flat(content, "")}
    return {key: value for key, value in found.items() if isinstance(value, float)}


def pictures(folder: Path) -> list[Path]:
    """The report's example images."""
    return sorted((folder / "report").glob("*.png"))


def _flat(table: dict[str, Any], before: str) -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{before}{key}.")
        else:
            yield f"{before}{key}", value
