"""The classes of a data set: names and colours, and the file classes.toml that holds them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from regloss.dataset import IGNORE
from regloss.errors import UsageError, listed
from regloss.io.outputs import replace_file
from regloss.io.palettes import Color, Colors, class_colors
from regloss.io.toml import read_toml

MAX_CLASSES = IGNORE
"""Class indices are 0..254, because 255 says that there is no label."""


def read_classes(path: Path) -> tuple[tuple[str, ...], tuple[Color, ...]]:
    """Names and colours of the K classes, from a TOML file with an entry for each in the order of the indices.

        [[class]]
        name = "background"
        color = [0, 0, 0]     # may be left out: then `regloss.io.palettes.class_colors`

    Raises:
        UsageError: it cannot be read, or holds something else.
    """
    content = read_toml(path)
    entries = content.get("class")
    if set(content) != {"class"} or not isinstance(entries, list) or not all(isinstance(e, dict) for e in entries):
        raise UsageError(f"{path} must hold entries [[class]] and nothing else, but its keys are {listed(content)}")
    defaults = class_colors(len(entries))
    names: list[str] = []
    colors: list[Color] = []
    for index, entry in enumerate(entries):
        name, color = entry.get("name"), entry.get("color", list(defaults[index]))
        if not isinstance(name, str) or not set(entry) <= {"name", "color"}:
            raise UsageError(f'{path}, class {index}: expected name = "..." and color = [r, g, b], got {entry}')
        names.append(name)
        colors.append(_color(color, f"{path}, class {index} ({name})"))
    return tuple(names), tuple(colors)


def write_classes(path: Path, names: Sequence[str], colors: Colors) -> None:
    """Write what `read_classes` reads; an existing file is replaced, and is all there or as before.

    Args:
        path: of the file.
        names: of the K classes, printable and without line breaks.
        colors: one RGB triple of 0..255 for each.
    """
    entries = [
        f"[[class]]\nname = {json.dumps(name, ensure_ascii=False)}\ncolor = {list(color)}\n"
        for name, color in zip(names, colors, strict=True)
    ]
    replace_file(path, "\n".join(entries).encode("utf-8"), durable=True)


def _color(value: Any, where: str) -> Color:
    if isinstance(value, list) and len(value) == 3 and all(type(part) is int and 0 <= part <= 255 for part in value):
        red, green, blue = value
        return red, green, blue
    raise UsageError(f"{where}: color = {value!r} must be three whole numbers of 0..255")
