"""CSV logs that survive a killed run."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Mapping
from pathlib import Path


class CsvLog:
    """Rows of numbers in a CSV file; a new column may appear at any time.

    Args:
        path: the file; rows already in it are kept.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, float]] = []
        self.columns: list[str] = []
        if path.is_file():
            # A last line without its end was cut short by a kill: its numbers may be, too.
            lines = path.read_text(encoding="utf-8").rpartition("\n")[0].splitlines()
            for row in csv.DictReader(lines):
                self.rows.append({key: _number(value) for key, value in row.items() if value})
                self._add_columns(self.rows[-1])

    def add(self, row: Mapping[str, float]) -> None:
        """Append ``row``; missing columns stay empty."""
        self.rows.append(dict(row))
        if self._add_columns(row):
            self._rewrite()
            return
        with self.path.open("a", newline="", encoding="utf-8") as file:
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
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        with temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self.columns)
            writer.writeheader()
            writer.writerows(self.rows)
        temporary.replace(self.path)


def _number(text: str) -> float:
    """Counters stay whole numbers, so that a resumed log reads like one that was never interrupted."""
    return int(text) if text.isdigit() else float(text)
