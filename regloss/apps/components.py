"""Components as a command line gives them: ``NAME:setting=value,setting=value``."""

from __future__ import annotations

from typing import Any

from regloss.errors import UsageError
from regloss.io.toml import toml_value
from regloss.registry import check_settings, names, resolve


def parse_component(kind: str, text: str, /, **more: Any) -> Any:
    """A component from ``NAME`` or ``NAME:setting=value,...``, as a command line gives it.

    Args:
        kind: of the component.
        text: its name and settings.
        **more: settings that replace those in ``text``.

    >>> parse_component("regularizer", "grid-crf:weight=2,connectivity=4")
    GridCRF(weight=2, connectivity=4, sigma='auto', diagonal='distance', relaxation='bilinear')
    >>> parse_component("region-force", "chan-vese:scale=[1, 2]")
    ChanVese(scale=(1, 2))
    """
    name, tail = split_name(kind, text)
    chosen: dict[str, Any] = {}
    for part in filter(None, _settings(tail)):
        key, equals, value = part.partition("=")
        if not equals:
            raise UsageError(f"{kind} {text!r}: settings are written NAME:setting=value,setting=value.")
        setting = key.strip().replace("-", "_")
        if setting in chosen:
            raise UsageError(f"{kind} {text!r}: {key.strip()} is given twice.")
        chosen[setting] = toml_value(value)
    check_settings(kind, name, chosen)
    return resolve(kind, {"name": name, **chosen, **more})


def split_name(kind: str, text: str) -> tuple[str, str]:
    """The name, which may be qualified, and the text of the settings behind it."""
    # A qualified name (distribution:name) has a colon too, but no "=" behind it.
    name, colon, tail = text.partition(":")
    if colon and "=" not in tail.partition(":")[0] and name not in names(kind):
        second, _, rest = tail.partition(":")
        return f"{name}:{second}", rest
    return name, tail


def _settings(text: str) -> list[str]:
    """``text`` split at the commas that stand in no bracket."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "[{") - (letter in "]}")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return parts
