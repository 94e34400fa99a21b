"""Curves, settings, scores and pictures for Weights & Biases, if REGLOSS_LOGGERS asks for it.

Nothing is sent: runs are written into log/wandb of the output folder, for ``wandb sync``, unless WANDB_MODE says
otherwise.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from regloss.hooks import hookimpl
from regloss_plugins.chosen_loggers import check_installed, configuration, is_chosen, pictures, scores

_runs: dict[Path, Any] = {}  # of the trainings under way, by their folders


def _run(folder: Path) -> Any:
    if folder not in _runs:
        import wandb

        place = folder / "log"
        place.mkdir(parents=True, exist_ok=True)
        _runs[folder] = wandb.init(
            project="regloss",
            name=folder.name,
            dir=str(place),
            config=configuration(folder),
            mode=os.environ.get("WANDB_MODE", "offline"),
        )
    return _runs[folder]


@hookimpl
def regloss_start() -> None:
    """Refuse loggers that there are not, and one that is not installed."""
    check_installed("wandb")


@hookimpl
def regloss_step(step: int, values: dict[str, float], folder: Path) -> None:
    """Curves over optimizer steps."""
    if is_chosen("wandb"):
        _run(folder).log({f"step/{name}": value for name, value in values.items()} | {"optimizer-step": step})


@hookimpl
def regloss_epoch(epoch: int, values: dict[str, float], folder: Path) -> None:
    """Curves over epochs."""
    if is_chosen("wandb"):
        _run(folder).log({f"epoch/{name}": value for name, value in values.items()} | {"epoch": epoch})


@hookimpl
def regloss_end(folder: Path) -> None:
    """Scores and the report's pictures; then the run is closed."""
    if folder in _runs:
        import wandb

        run = _runs.pop(folder)
        run.summary.update(scores(folder))
        images = [wandb.Image(str(path), caption=path.stem) for path in pictures(folder)]
        if images:
            run.log({"examples": images})
        run.finish()
