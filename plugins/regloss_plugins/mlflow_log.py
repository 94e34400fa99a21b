"""Curves, settings, scores and pictures for MLflow, if REGLOSS_LOGGERS asks for it.

They go where MLFLOW_TRACKING_URI says; without it, into files in log/mlflow of the output folder.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from regloss.hooks import hookimpl
from regloss_plugins.chosen_loggers import check_installed, configuration, is_chosen, pictures, scores

_runs: dict[Path, tuple[Any, str]] = {}  # client and id of the trainings under way, by their folders


def _run(folder: Path) -> tuple[Any, str]:
    if folder not in _runs:
        place = os.environ.get("MLFLOW_TRACKING_URI")
        if place is None:
            place = (folder / "log" / "mlflow").resolve().as_uri()
            # MLflow asks for a database by default; one folder that can be moved and zipped suits a run better.
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        from mlflow import MlflowClient

        client = MlflowClient(tracking_uri=place)
        experiment = client.get_experiment_by_name("regloss")
        number = client.create_experiment("regloss") if experiment is None else experiment.experiment_id
        identity = client.create_run(number, run_name=folder.name).info.run_id
        for name, value in configuration(folder).items():
            client.log_param(identity, name, value)
        _runs[folder] = client, identity
    return _runs[folder]


def _write(folder: Path, prefix: str, number: int, values: dict[str, float]) -> None:
    client, identity = _run(folder)
    for name, value in values.items():
        client.log_metric(identity, f"{prefix}/{name}", value, step=number)


@hookimpl
def regloss_start() -> None:
    """Refuse loggers that there are not, and one that is not installed."""
    check_installed("mlflow")


@hookimpl
def regloss_step(step: int, values: dict[str, float], folder: Path) -> None:
    """Curves over optimizer steps."""
    if is_chosen("mlflow"):
        _write(folder, "step", step, values)


@hookimpl
def regloss_epoch(epoch: int, values: dict[str, float], folder: Path) -> None:
    """Curves over epochs."""
    if is_chosen("mlflow"):
        _write(folder, "epoch", epoch, values)


@hookimpl
def regloss_end(folder: Path) -> None:
    """Scores and the report's pictures; then the run is closed."""
    if folder in _runs:
        client, identity = _runs.pop(folder)
        for name, value in scores(folder).items():
            client.log_metric(identity, name, value)
        for path in pictures(folder):
            client.log_artifact(identity, str(path), "examples")
        client.set_terminated(identity)
