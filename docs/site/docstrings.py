"""Docstrings, which are plain text to be read in a terminal, as Markdown that looks like it.

Examples become blocks of code. What Markdown would take for emphasis, ``(B, *S)``, or for HTML, ``<s, log s>``, is
escaped, but for formulas that stand indented, which are blocks of code already.
"""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object

SECTION = re.compile(r"(Args|Arguments|Attributes|Examples?|Note|Raises|Returns|Shape|Yields|Warns?):$")


def escaped(line: str) -> str:
    """A line of text, its code spans as they are."""
    parts = re.split(r"(``.*?``|`[^`]*`)", line)
    parts[::2] = [re.sub(r"<(?=[\w/])", "&lt;", re.sub(r"(?<!\*)\*(?!\*)", r"\\*", part)) for part in parts[::2]]
    return "".join(parts)


def as_markdown(text: str) -> str:
    """A docstring, dedented, as Markdown.

    >>> print(as_markdown("Of (B, *S).\\n\\n    x * y\\n\\n>>> f(1)\\n2"))
    Of (B, \\*S).
    <BLANKLINE>
        x * y
    <BLANKLINE>
    ```pycon
    >>> f(1)
    2
    ```
    """
    found: list[str] = []
    section = ""
    indent: str | None = None  # of the example that we are in
    for line in text.splitlines():
        stripped = line.lstrip()
        if line and not line[0].isspace():
            heading = SECTION.match(line)
            section = heading[1] if heading else ""
        if indent is not None and not stripped:
            found.append(f"{indent}```")
            indent = None
        elif indent is None and stripped.startswith(">>>") and section != "Examples":  # which mkdocstrings knows itself
            indent = line.removesuffix(stripped)
            found.append(f"{indent}```pycon")
        formula = line.startswith("    ") and not section
        found.append(line if indent is not None or formula or section == "Examples" else escaped(line))
    return "\n".join(found if indent is None else [*found, f"{indent}```"])


class DocstringsAsMarkdown(Extension):
    """Changes every docstring, once, after a package was loaded."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """What griffe calls with each module, class, function and attribute."""
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value)
