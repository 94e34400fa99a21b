"""CSV logs that survive a killed run."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from regloss.errors import UsageError
from regloss.io.outputs import replacing, writing


class CsvLog:
    """Rows of numbers in a CSV file; a new column may appear at any time.

    Args:
        path: the file; rows already in it are kept.
        key: a column in which each of these rows must have a number.

    Raises:
        UsageError: the file holds something else than rows of numbers.
    """

    def __init__(self, path: Path, key: str | None = None) -> None:
        self.path = path
        self.rows: list[dict[str, float]] = []
        self.columns: list[str] = []
        if path.is_file():
            # A last line without its end was cut short by a kill: its numbers may be, too.
            try:
                lines = path.read_text(encoding="utf-8").rpartition("\n")[0].splitlines()
                for number, row in enumerate(csv.DictReader(lines), 2):
                    self.rows.append(_numbers(row, key, number))
                    self._add_columns(self.rows[-1])
            except (ValueError, csv.Error) as cause:
                raise UsageError(f"The log {path} is damaged: {cause}. Repair it, or remove what is wrong.") from cause

    def add(self, row: Mapping[str, float]) -> None:
        """Append ``row``; missing columns stay empty."""
        self.rows.append(dict(row))
        if self._add_columns(row):
            self._rewrite()
            return
        with writing(self.path), self.path.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self.columns).writerow(row)

    def keep(self, wanted: Callable[[Mapping[str, float]], bool]) -> None:
        """Drop the rows for which ``wanted`` is False."""
        self.rows = [row for row in self.rows if wanted(row)]
        self._rewrite()

    def _add_columns(self, row: Mapping[str, float]) -> bool:
        new = [key for key in row if key not in self.columns]
        self.columns += new
        return bool(new)

    def _rewrite(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(self.path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self.columns)
            writer.writeheader()
            writer.writerows(self.rows)


def _numbers(row: Mapping[str | None, Any], key: str | None, number: int) -> dict[str, float]:
    """A row as read, of line ``number``; ValueError where it holds something else."""
    if None in row:
        raise ValueError(f"line {number} has more values than there are columns")
    try:
        found = {str(name): _number(value) for name, value in row.items() if value}
    except ValueError as cause:
        raise ValueError(f"line {number}: {cause}") from cause
    if key is not None and key not in found:
        raise ValueError(f"line {number} has no {key}")
    return found


def _number(text: str) -> float:
    """Counters stay whole numbers, so that a resumed log reads like one that was never interrupted."""
    return int(text) if text.isdecimal() else float(text)
