"""Formulas of the pages as MathML, which browsers draw by themselves: no script, nothing to fetch.

``$...$`` within a paragraph and blocks fenced by ```` ```math ```` hold LaTeX, as on the common forges.
"""

from __future__ import annotations

import re
from typing import Any
from xml.etree import ElementTree

from latex2mathml.converter import convert
from markdown import Markdown
from markdown.extensions import Extension
from markdown.inlinepatterns import InlineProcessor

INLINE = r"(?<![\\$\w])\$(?=\S)([^$]*?[^$\s\\])\$(?![\w$])"
"""As on the forges: no blank inside of the dollars, no letter or digit outside. A paragraph has no blank lines."""


def mathml(latex: str, display: str) -> str:
    """A formula as ``<math>``, "inline" or "block".

    Raises:
        ValueError: the converter has left something as it was.
    """
    found = convert(" ".join(latex.split()), display=display)
    try:
        text = "".join(ElementTree.fromstring(found).itertext())
    except ElementTree.ParseError as error:
        raise ValueError(f"latex2mathml makes no MathML of {latex!r} ({error}): write it otherwise.") from error
    left = re.search(r"\\\w+", text)
    if left is not None:
        raise ValueError(f"latex2mathml does not know {left[0]} in {latex!r}: write it otherwise.")
    return found


class _Inline(InlineProcessor):
    def handleMatch(  # type: ignore[override]  # noqa: N802  (markdown's name)
        self, m: re.Match[str], data: str
    ) -> tuple[str | ElementTree.Element, int, int]:
        return self.md.htmlStash.store(mathml(m[1], "inline")), m.start(0), m.end(0)


def fence(source: str, language: str, class_name: str, options: dict[str, Any], md: Markdown, **_: Any) -> str:
    """What superfences call for a block fenced by ```` ```math ````."""
    return f'<div class="formula">{mathml(source, "block")}</div>'


class MathExtension(Extension):
    """Formulas within paragraphs; for blocks see `fence`."""

    def extendMarkdown(self, md: Markdown) -> None:  # noqa: N802  (markdown's name)
        md.inlinePatterns.register(_Inline(INLINE, md), "formula", 185)  # after code (190), before escapes (180)


def makeExtension(**settings: Any) -> MathExtension:  # noqa: N802  (markdown's name)
    """What Markdown looks for in a module that is named as an extension."""
    return MathExtension(**settings)
