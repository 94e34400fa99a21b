"""TensorBoard curves, written beside the CSV logs where tensorboard is installed."""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path
from typing import Any

from regloss.hooks import hookimpl


@cache
def _writer(folder: Path) -> Any:
    # Imported at the first step only: the command line loads this module at every start.
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder / "log" / "tensorboard"))


def _write(folder: Path, prefix: str, number: int, values: dict[str, float]) -> None:
    if importlib.util.find_spec("tensorboard") is None:
        return
    writer = _writer(folder)
    for name, value in values.items():
        writer.add_scalar(f"{prefix}/{name}", value, number)


@hookimpl
def regloss_step(step: int, values: dict[str, float], folder: Path) -> None:
    """Curves over optimizer steps."""
    _write(folder, "step", step, values)


@hookimpl
def regloss_epoch(epoch: int, values: dict[str, float], folder: Path) -> None:
    """Curves over epochs."""
    _write(folder, "epoch", epoch, values)
    if importlib.util.find_spec("tensorboard") is not None:
        _writer(folder).flush()
