"""TOML: small files beside data, and values on a command line."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from regloss.errors import UsageError
from regloss.io.limits import LARGEST_TEXT, check_regular

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["read_toml", "toml_value", "tomllib"]


def read_toml(path: Path) -> dict[str, Any]:
    """The contents of a TOML file.

    Raises:
        UsageError: it cannot be read, or is no TOML.
    """
    check_regular(path, LARGEST_TEXT)
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:  # of TOML, of UTF-8, of numbers with too many digits
        raise UsageError(f"{path} cannot be read as TOML: {error}") from error


def toml_value(text: str) -> Any:
    """A value as TOML has it; what is no TOML is text, which needs no quotes on a command line.

    >>> toml_value("[1, 2]"), toml_value("runs/a")
    ([1, 2], 'runs/a')
    """
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        return text.strip()
