"""Training as a TOML file says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from regloss.training.config import read
from regloss.training.trainer import train


def train_file(
    path: Path,
    changes: Sequence[str] = (),
    *,
    resume: bool = False,
    overwrite: bool = False,
    quiet: bool = True,
    callback: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Train as a file says; see `regloss.training.trainer.train`.

    Args:
        path: the TOML file.
        changes: ``section.key=value`` settings that replace the file's.
        resume: go on from the last checkpoint in the output folder, if it holds one.
        overwrite: replace an output folder that an earlier run left.
        quiet: no progress bars.
        callback: called with messages worth reading.

    Returns:
        Scores by subset.

    Raises:
        UsageError: the configuration is invalid, or the output folder is in use.
    """
    return train(read(path, changes), resume=resume, overwrite=overwrite, quiet=quiet, callback=callback)
