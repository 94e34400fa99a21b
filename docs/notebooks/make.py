"""Writes the notebooks of the first pages, docs/notebooks/*.ipynb: ``python docs/notebooks/make.py``.

A notebook is its page: text, Python blocks as cells, shell blocks as cells that call the commands, and a TOML block
whose first line is a comment with a file's name as a cell that writes the file. So there is one text to keep; a test
compares the notebooks with it, and runs them.
"""

import json
import re
from pathlib import Path

HERE = Path(__file__).resolve().parent
PAGES = ("five-minutes", "first-training", "your-loop")
_FENCE = re.compile(r"^```(\w+)\n(.*?)^```\n", re.MULTILINE | re.DOTALL)
_PICTURE = re.compile(r"^!\[[^\]]*\]\(pictures/[^)]*\)\n+(\(`python [^`]*`[^)]*\)\n+)?", re.MULTILINE)
_LINK = re.compile(r"\]\((?!https?:|#|\.\./)([\w.-]+\.md)")


def cell(kind: str, text: str, number: int) -> dict[str, object]:
    """A cell in the notebook's format."""
    lines = text.strip("\n").splitlines(keepends=True)
    common = {"cell_type": kind, "id": f"cell-{number}", "metadata": {}, "source": lines}
    return common if kind == "markdown" else common | {"execution_count": None, "outputs": []}


def code_of(language: str, block: str) -> str | None:
    """The cell that a block becomes; None = it is to be read, not run."""
    if language == "python":
        return block
    file = re.match(r"# ([\w-]+\.toml)\n", block)
    if language == "toml" and file:
        return f"%%writefile {file[1]}\n{block}"
    if language == "sh" and all(line.startswith("regloss ") for line in block.splitlines()):
        return f"%%sh\n{block}"  # unlike !, it fails where the command does
    return None


def notebook(page: Path) -> str:
    """The text of a page's notebook."""
    text = _PICTURE.sub("", page.read_text(encoding="utf-8"))  # cells draw the pictures
    cells, prose, end = [], "", 0
    for match in _FENCE.finditer(text):
        code = code_of(match[1], match[2])
        prose += text[end : match.start()] + (match[0] if code is None else "")
        end = match.end()
        if code is not None:
            if prose.strip():
                cells.append(("markdown", _LINK.sub(r"](../start/\1", prose)))
            cells.append(("code", code))
            prose = ""
    cells.append(("markdown", _LINK.sub(r"](../start/\1", prose + text[end:])))
    content = {
        "cells": [cell(kind, source, number) for number, (kind, source) in enumerate(cells) if source.strip()],
        "metadata": {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        },
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def main() -> None:
    """Write them all."""
    for name in PAGES:
        text = notebook(HERE.parent / "start" / f"{name}.md")
        (HERE / f"{name}.ipynb").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
