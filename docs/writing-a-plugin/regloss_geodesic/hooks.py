"""A section in the report of every run. This module is imported at every start, so nothing heavy stands at its top."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

from regloss.hooks import hookimpl


@hookimpl
def regloss_report(folder: Path, scores: dict[str, Any]) -> list[tuple[str, str]]:
    """How long the predicted boundaries are."""
    lines = [
        f"<li>{escape(subset)}: {values['boundary-density']:.2f} pixels of boundary for every 100 pixels of image</li>"
        for subset, values in scores.items()
    ]
    return [("Boundary length", f"<ul>{''.join(lines)}</ul>")]
