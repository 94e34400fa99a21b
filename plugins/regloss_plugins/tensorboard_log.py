"""TensorBoard curves, written beside the CSV logs where tensorboard is installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from regloss.errors import FailedWrite
from regloss.hooks import hookimpl

_writers: dict[Path, Any] = {}  # of the trainings under way, by their folders


@contextmanager
def _writer(folder: Path) -> Iterator[Any]:
    """The writer of a run; what its thread could not write, it raises at a later call, without the name of the file."""
    place = folder / "log" / "tensorboard"
    try:
        if folder not in _writers:
            # Imported at the first step only: the command line loads this module at every start.
            from torch.utils.tensorboard import SummaryWriter

            _writers[folder] = SummaryWriter(str(place))
        yield _writers[folder]
    except OSError as cause:
        raise FailedWrite(f"The curves in {place} cannot be written: {cause}") from cause


def _write(folder: Path, prefix: str, number: int, values: dict[str, float]) -> None:
    with _writer(folder) as writer:
        for name, value in values.items():
            writer.add_scalar(f"{prefix}/{name}", value, number)


def _is_installed() -> bool:
    return importlib.util.find_spec("tensorboard") is not None


@hookimpl
def regloss_step(step: int, values: dict[str, float], folder: Path) -> None:
    """Curves over optimizer steps."""
    if _is_installed():
        _write(folder, "step", step, values)


@hookimpl
def regloss_epoch(epoch: int, values: dict[str, float], folder: Path) -> None:
    """Curves over epochs."""
    if _is_installed():
        _write(folder, "epoch", epoch, values)
        with _writer(folder) as writer:
            writer.flush()


@hookimpl
def regloss_end(folder: Path) -> None:
    """Close the writer, with its thread: a later training may use the folder again."""
    if folder in _writers:
        with _writer(folder) as writer:
            del _writers[folder]
            writer.close()
