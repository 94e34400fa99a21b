"""TOML: small files beside data, and values on a command line."""

from __future__ import annotations

import codecs
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from regloss.errors import UsageError
from regloss.io.limits import LARGEST_TEXT, check_regular

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

# A letter, a colon and what is no path: the escapes \b, \t, \n, \f and \r of a path written in double quotes.
_SWALLOWED = re.compile("^[A-Za-z]:[\b\t\n\f\r]")
_WINDOWS = re.compile(r'"(?:[A-Za-z]:)?[^"\n]*\\[^"\n]*"')
_QUOTES = (
    "in double quotes a backslash begins an escape, so write Windows paths in single quotes, 'C:\\data\\cells', or "
    'with forward slashes, "C:/data/cells"'
)


def read_toml(path: Path) -> dict[str, Any]:
    """The contents of a TOML file.

    Raises:
        UsageError: it cannot be read, or is no TOML.
    """
    check_regular(path, LARGEST_TEXT)
    try:
        text = read_text(path)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read as TOML: {error}") from error
    return parse_toml(text, str(path))


def read_text(path: Path) -> str:
    """A text file in UTF-8, with or without the byte order mark that some editors put in front; or in UTF-16 with one.

    Raises:
        OSError: it cannot be read.
        UnicodeDecodeError: it is in another encoding.
    """
    data = path.read_bytes()
    utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return data.decode("utf-16" if utf16 else "utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")


def parse_toml(text: str, where: str, complaint: str = "cannot be read as TOML") -> dict[str, Any]:
    """TOML from text.

    Args:
        text: what is parsed.
        where: where it stands, for messages.
        complaint: what to say of that, where it is no TOML.

    Raises:
        UsageError: it is no TOML, or a backslash of a Windows path has become a control character.
    """
    try:
        table = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # of TOML, of numbers with too many digits, of tables too deep
        line = re.search(r"line (\d+)", str(error))
        lines = text.splitlines()
        at = lines[int(line[1]) - 1] if line and 0 < int(line[1]) <= len(lines) else ""
        hint = f"; {_QUOTES}" if _WINDOWS.search(at) else ""
        raise UsageError(f"{where} {complaint}: {error}{hint}") from error
    wrong = _swallowed(table)
    if wrong is not None:
        raise UsageError(f"{where}: {wrong!r} is no path; {_QUOTES}")
    return table


def _swallowed(value: Any) -> str | None:
    """The first text in ``value`` that was a Windows path before its backslashes were taken for escapes."""
    if isinstance(value, str):
        return value if _SWALLOWED.match(value) else None
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    return next((found for found in map(_swallowed, inner) if found is not None), None)


def toml_value(text: str) -> Any:
    """A value as TOML has it; what is no TOML is text, which needs no quotes on a command line.

    Raises:
        UsageError: it begins with a quote, and is no TOML.

    >>> toml_value("[1, 2]"), toml_value("runs/a")
    ([1, 2], 'runs/a')
    """
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError) as error:
        bare = text.strip()
        if bare.startswith(('"', "'")):
            hint = f"; {_QUOTES}, or without quotes" if "\\" in bare else ""
            raise UsageError(f"{bare} begins with a quote, but is no text as TOML has it: {error}{hint}") from error
        return bare
