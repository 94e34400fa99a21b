"""CSV logs that survive a killed run."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

from regloss.errors import UsageError
from regloss.io.outputs import replacing, writing


class CsvLog:
    """Rows of numbers in a CSV file; a new column may appear at any time. The file alone holds them, not memory.

    Args:
        path: the file; rows already in it are kept.
        key: a column in which each of these rows must have a number.

    Raises:
        UsageError: the file holds something else than rows of numbers.
    """

    def __init__(self, path: Path, key: str | None = None) -> None:
        self.path = path
        self.key = key
        self.columns: list[str] = []
        for row in self._read():
            self._add_columns(row)

    @property
    def rows(self) -> list[dict[str, float]]:
        """All rows, read from the file."""
        return list(self._read())

    def add(self, row: Mapping[str, float]) -> None:
        """Append ``row``; missing columns stay empty."""
        if self._add_columns(row):
            self._rewrite(chain(self._read(), [row]))
            return
        with writing(self.path), self.path.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self.columns).writerow(row)

    def keep(self, wanted: Callable[[Mapping[str, float]], bool]) -> None:
        """Drop the rows for which ``wanted`` is False."""
        self._rewrite(filter(wanted, self._read()))

    def _add_columns(self, row: Mapping[str, float]) -> bool:
        new = [key for key in row if key not in self.columns]
        self.columns += new
        return bool(new)

    def _read(self) -> Iterator[dict[str, float]]:
        if not self.path.is_file():
            return
        try:
            with self.path.open(newline="", encoding="utf-8") as file:
                for number, row in enumerate(csv.DictReader(_complete(file)), 2):
                    yield _numbers(row, self.key, number)
        except (ValueError, csv.Error) as cause:
            raise UsageError(f"The log {self.path} is damaged: {cause}. Repair it, or remove what is wrong.") from cause

    def _rewrite(self, rows: Iterable[Mapping[str, float]]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(self.path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self.columns)
            writer.writeheader()
            writer.writerows(rows)


def _complete(lines: Iterable[str]) -> Iterator[str]:
    """A last line without its end was cut short by a kill: its numbers may be, too."""
    return (line for line in lines if line.endswith("\n"))


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
