"""Cross-validation: a training for each fold, and one table of all."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from regloss.errors import UsageError, listed
from regloss.io.outputs import replace_file
from regloss.training.config import Config, read
from regloss.training.output_folder import check_output
from regloss.training.saved import read_json
from regloss.training.trainer import train

TABLE = "folds.json"

_SCORES = (
    "mean-foreground-dice",
    "mean-iou",
    "mean-foreground-hd95",
    "mean-foreground-surface-distance",
    "mean-foreground-surface-dice",
)


def train_folds(
    path: Path,
    fold: str,
    changes: Sequence[str] = (),
    *,
    resume: bool = False,
    overwrite: bool = False,
    quiet: bool = True,
    callback: Callable[[str], None] = print,
) -> Path:
    """Train one fold, or all after another, each in OUTPUT/fold-NUMBER, and write OUTPUT/folds.json.

    Args:
        path: the TOML file, which sets ``data.folds``.
        fold: its number, from 0, or "all".
        changes: ``section.key=value`` settings that replace the file's.
        resume: go on with folds that were begun; those that are complete are scored again.
        overwrite: replace what earlier trainings left.
        quiet: no progress bars.
        callback: called with messages worth reading.

    Returns:
        The folder OUTPUT; see `read_table`.

    Raises:
        UsageError: the configuration has no folds, or not this one; and see `regloss.training.trainer.train`.
    """
    whole = read(path, changes)
    count = whole.data.folds
    if count is None:
        raise UsageError(f"--fold {fold}: {path} has no folds. Set data.folds, the number of them: --set data.folds=5.")
    if fold != "all" and not (fold.isdecimal() and int(fold) < count):
        raise UsageError(f"--fold takes 0 to {count - 1}, as data.folds = {count}, or all; got {fold!r}.")
    numbers = range(count) if fold == "all" else [int(fold)]
    configs = {number: _of_fold(path, changes, whole, number) for number in numbers}
    for config in configs.values():  # before the first begins
        check_output(Path(config.output), config, resume=resume, overwrite=overwrite)
    for number, config in configs.items():
        callback(f"Fold {number} of 0 to {count - 1}: {config.output}")
        train(config, resume=resume, overwrite=overwrite, quiet=quiet, callback=callback)
        table = table_of(Path(whole.output), count, whole.data.test or "test")
        replace_file(Path(whole.output) / TABLE, json.dumps(table, indent=1).encode())
    return Path(whole.output)


def _of_fold(path: Path, changes: Sequence[str], whole: Config, number: int) -> Config:
    output = json.dumps(str(Path(whole.output) / f"fold-{number}"))
    return read(path, [*changes, f"data.fold={number}", f"output={output}"])


def table_of(output: Path, count: int, subset: str) -> dict[str, Any]:
    """What the folds below ``output`` that are complete have scored: by fold, means, and standard deviations over them.

    Args:
        output: the folder of the folds.
        count: how many folds there are.
        subset: by whose name they are scored.
    """
    rows = {}
    for number in range(count):
        path = output / f"fold-{number}" / "scores.json"
        if path.is_file():
            rows[f"fold-{number}"] = _row(read_json(path)[subset])
    names = list(dict.fromkeys(name for row in rows.values() for name in row))
    columns = {name: [value for row in rows.values() if (value := row.get(name)) is not None] for name in names}
    return {
        "subset": subset,
        "folds": rows,
        "mean": {name: float(np.mean(values)) for name, values in columns.items() if values},
        "deviation": {name: float(np.std(values, ddof=1)) for name, values in columns.items() if len(values) > 1},
        "missing": [number for number in range(count) if f"fold-{number}" not in rows],
    }


def _row(scores: Mapping[str, Any]) -> dict[str, float | None]:
    row = {name: scores[name] for name in _SCORES if name in scores}
    return {**row, **{f"dice {name}": value for name, value in scores["dice-per-group"].items()}}


def read_table(output: Path) -> str:
    """The table in OUTPUT/folds.json as text: a line for each fold that is complete, mean and standard deviation."""
    table = read_json(output / TABLE)
    rows = {**table["folds"], "mean": table["mean"], "deviation": table["deviation"]}
    names = list(dict.fromkeys(name for row in rows.values() for name in row))
    heads = [name.removeprefix("mean-foreground-") for name in names]
    lines = [["", *heads]]
    for key, row in rows.items():
        lines.append([key, *("-" if row.get(name) is None else f"{row[name]:.4f}" for name in names)])
    widths = [max(len(line[place]) for line in lines) for place in range(len(heads) + 1)]
    text = "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)
    missing = f"\nNot trained yet: folds {listed(table['missing'])}." if table["missing"] else ""
    return text + missing
