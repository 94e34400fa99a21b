"""The output folder of a run: whether it may be written, made, or gone on with."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from regloss.dataset import Dataset
from regloss.errors import UsageError
from regloss.io.outputs import finished_name
from regloss.training import checkpoints
from regloss.training.config import Config, parse
from regloss.training.model import model_card
from regloss.training.output_lock import LOCK, OutputLock
from regloss.training.saved import read_json

# What a training leaves in its folder. Only a folder with nothing else in it is ever replaced.
_OUTPUT_FILES = ("config.json", "model.safetensors", "model.json", "scores.json", "report.html")
_OUTPUT_FOLDERS = ("log", "checkpoints", "proposals", "modules", "report")
# Settings that may differ when a run goes on.
_FREE = ("output", "data.workers", "data.cache")


def check_output(folder: Path, config: Config, *, resume: bool, overwrite: bool) -> None:
    """Raise `UsageError` unless the output folder may be written; nothing is changed."""
    if resume and overwrite:
        raise UsageError("Choose one of resume and overwrite.")
    present = _entries(folder)
    used = bool(present) or folder.is_file()
    if used and not resume and not overwrite:
        raise UsageError(
            f"The output {folder} exists already. Go on with --resume, replace it with --overwrite, or choose another."
        )
    before = _begun_with(folder) if used else {}
    foreign = [name for name in present if name not in _OUTPUT_FILES + _OUTPUT_FOLDERS]
    if overwrite and foreign:
        raise UsageError(
            f"{folder} also holds {', '.join(foreign[:5])}, which no training has put there, so it is left alone. "
            "Choose another output."
        )
    if used and resume:
        # Read anew, settings that a later version has added have their defaults.
        begun = parse(before, str(folder / "config.json")).dump()
        differing = [
            f"{key} (was {was!r}, is {now!r})"
            for key, was, now in _differences(begun, config.dump())
            if key not in _FREE
        ]
        if differing:
            raise UsageError(
                f"{folder} was begun with other settings and cannot be resumed with these: {', '.join(differing[:8])}. "
                "Use the same configuration, or another output folder."
            )
    parent = folder
    while not parent.exists():
        parent = parent.parent
    if not os.access(parent, os.W_OK) or not parent.is_dir():
        raise UsageError(f"The output {folder} cannot be made: {parent} is not a folder that can be written to.")


def prepare_output(folder: Path, config: Config, dataset: Dataset, lock: OutputLock, *, overwrite: bool) -> None:
    """Make the output folder, locked, with what is known at the start and without what killed runs left unfinished.

    Raises:
        UsageError: it cannot be made; another training has begun there meanwhile.
    """
    try:
        new = not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
        if new and _entries(folder):
            raise UsageError(f"Another training has begun in {folder} meanwhile. Choose another output.")
        _sweep(folder)
        if overwrite:
            # All but config.json, which is replaced: without it, a run that is killed here could not begin again.
            for name in _OUTPUT_FILES[1:]:
                (folder / name).unlink(missing_ok=True)
            for path in [folder / name for name in _OUTPUT_FOLDERS if (folder / name).exists()]:
                shutil.rmtree(path)
        checkpoints.write_json(folder / "config.json", config.dump())
        checkpoints.write_json(folder / "model.json", model_card(config, dataset))
    except OSError as cause:
        raise UsageError(f"The output {folder} cannot be written: {cause}") from cause


def _entries(folder: Path) -> list[str]:
    """What lies in ``folder``, but for the lock, and files that a killed run was about to move into place."""
    if not folder.is_dir():
        return []
    return [
        path.name for path in sorted(folder.iterdir()) if path.name != LOCK and finished_name(path) not in _OUTPUT_FILES
    ]


def _sweep(folder: Path) -> None:
    """Remove what killed runs have left of files and checkpoints that they were writing."""
    checkpoints.sweep(folder / "checkpoints")
    left = [path for path in folder.iterdir() if finished_name(path) in _OUTPUT_FILES]
    for name in _OUTPUT_FOLDERS:
        left += [path for path in (folder / name).rglob(".*") if finished_name(path) is not None and path.is_file()]
    for path in left:
        path.unlink()


def _begun_with(folder: Path) -> dict[str, Any]:
    """The configuration of the training that made ``folder``.

    Raises:
        UsageError: none has.
    """
    try:
        found = read_json(folder / "config.json")
    except (OSError, ValueError) as cause:
        raise UsageError(
            f"{folder} was not made by a training (it holds no config.json that can be read), so it is left alone."
        ) from cause
    if not (isinstance(found, dict) and {"output", "data", "network", "training"} <= set(found)):
        raise UsageError(f"{folder} was not made by a training (its config.json is another's), so it is left alone.")
    return found


def _differences(before: Any, after: Any, where: str = "") -> list[tuple[str, Any, Any]]:
    """Keys of two configurations whose values differ, with both values."""
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        keys = sorted(set(before) | set(after))
        return [d for key in keys for d in _differences(before.get(key), after.get(key), f"{where}.{key}".strip("."))]
    return [] if before == after else [(where, before, after)]
