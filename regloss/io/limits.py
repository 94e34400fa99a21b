"""Limits of what is read: regular files, and none so large or so deep that reading it is an attack."""

from __future__ import annotations

from pathlib import Path

from regloss.errors import UsageError

LARGEST_TEXT = 16 * 1024**2
"""Bytes of a configuration, or of another file of settings: a list of a million names."""


def check_regular(path: Path, largest: int | None = None) -> None:
    """Raise `UsageError` for what exists and is no regular file, a named pipe for one, whose reader waits for ever.

    Args:
        path: need not exist; who reads it says so.
        largest: bytes that it may have; None = any number.
    """
    if path.exists() and not path.is_file():
        kind = "a folder" if path.is_dir() else "no regular file"
        raise UsageError(f"{path} cannot be read: it is {kind}. Give a file, or save there what it would give.")
    if largest is not None and path.is_file() and path.stat().st_size > largest:
        raise UsageError(f"{path} has {path.stat().st_size} bytes; files of settings have at most {largest}.")
