"""Docstrings, which are plain text to be read in a terminal, as Markdown that looks like it.

Examples become blocks of code. What Markdown would take for emphasis, ``(B, *S)``, or for HTML, ``<s, log s>``, is
escaped, but for formulas that stand indented, which are blocks of code already.
"""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object

SECTIONS = re.compile(r"(Args|Arguments|Attributes|Examples?|Note|Raises|Returns|Shape|Yields|Warns?):$")


def escaped(line: str) -> str:
    """A line of text, its code spans as they are."""
    parts = re.split(r"(``.*?``|`[^`]*`)", line)
    parts[::2] = [re.sub(r"<(?=[\w/])", "&lt;", re.sub(r"(?<!\*)\*(?=\w)", r"\\*", part)) for part in parts[::2]]
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
    example = in_section = False
    for line in text.splitlines():
        if example and not line.strip():
            found.append("```")
            example = False
        if line.startswith(">>>") and not example:
            found.append("```pycon")
            example = True
        if line and not line[0].isspace():
            in_section = SECTIONS.match(line) is not None
        code = example or line.lstrip().startswith((">>>", "...")) or (line.startswith("    ") and not in_section)
        found.append(line if code else escaped(line))
    return "\n".join([*found, "```"] if example else found)


class DocstringsAsMarkdown(Extension):
    """Changes every docstring, once, after a package was loaded."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """What griffe calls with each module, class, function and attribute."""
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value)
