"""Adds built-in components that are missing to the table "What is inside" of the concepts. Run by `make stub`."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from regloss import registry

PAGE = Path(__file__).resolve().parents[1] / "docs" / "guide" / "concepts.md"

ITEM = r"`[\w-]+`(?: \([^)]*\))?"


def heading(kind: str) -> str:
    """What the table calls a kind: the name of its entry-point group, in words."""
    words = registry.KINDS[kind].group.partition(".")[2].replace("_", " ")
    return {"datasets": "data sets"}.get(words, words)


def completed(text: str, kind: str, names: Iterable[str]) -> str:
    """``text`` with those of ``names`` that the row of ``kind`` lacks at the end of its first list; remarks stay."""
    row = re.search(rf"^\| {heading(kind)} \| ({ITEM}(?:, {ITEM})*)(.*)$", text, flags=re.MULTILINE)
    if row is None:
        raise ValueError(f"{PAGE.name} has no row that begins with '| {heading(kind)} | `': write one for {kind}.")
    missing = [name for name in names if f"`{name}`" not in row[0]]
    return text[: row.end(1)] + "".join(f", `{name}`" for name in missing) + text[row.end(1) :]


if __name__ == "__main__":
    content = PAGE.read_text(encoding="utf-8")
    for kind in registry.KINDS:
        own = [component.name for component in registry.components(kind) if component.distribution == "regloss"]
        content = completed(content, kind, own)
    PAGE.write_text(content, encoding="utf-8")
