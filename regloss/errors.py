"""What regloss raises. Every message names what was given, what was expected, and the way out."""

from __future__ import annotations

from collections.abc import Iterable


class ReglossError(Exception):
    """Base of every error that regloss raises on purpose."""


class UsageError(ReglossError, ValueError):
    """Something given by the user cannot be used: a value, a file, a combination. The command line exits with 2."""


class FailedWrite(ReglossError, OSError):
    """A file cannot be written: the disk is full, say; the message names the file and the cause."""


class UnknownComponent(UsageError, LookupError):
    """No component of that kind has that name."""


class AmbiguousName(UsageError):
    """Two distributions offer one name; only the qualified form ``distribution:name`` says which is meant."""


class BrokenPlugin(ReglossError):
    """A plugin was found but cannot be imported; the message names it, its distribution and the cause."""


class MissingDependency(UsageError, ImportError):
    """A component needs an optional package that is not installed; the message names the extra."""


class MissingForm(UsageError, TypeError):
    """A term does not offer a form that a solver can use; the message names both sides."""


def listed(names: Iterable[object], limit: int = 10) -> str:
    """The first ``limit`` names, and how many more there are.

    >>> listed(["a", "b", "c"], limit=2)
    'a, b and 1 more'
    """
    items = [str(name) for name in names]
    shown = ", ".join(items[:limit])
    return shown if len(items) <= limit else f"{shown} and {len(items) - limit} more"
