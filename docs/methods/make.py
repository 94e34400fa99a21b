"""Run the Python blocks of pages, which make their pictures: ``python docs/methods/make.py star five-minutes``.

A page is named by its file; without names, all pages that have a picture of their own. Each runs in a folder of its
own, and the pictures that it shows are copied beside it. The photographs are those in scikit-image's wheel:
``pip install 'regloss[sample]'``.
"""

import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

import matplotlib

DOCS = Path(__file__).resolve().parents[1]
FOLDERS = ("methods", "start", "guide")
_BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_PICTURE = re.compile(r"^!\[[^\]]*\]\(pictures/([\w-]+\.png)\)", re.MULTILINE)


def pages() -> dict[str, Path]:
    """Pages with pictures of their own, by name."""
    found = [page for folder in FOLDERS for page in sorted((DOCS / folder).glob("*.md"))]
    return {page.stem: page for page in found if _PICTURE.search(page.read_text(encoding="utf-8"))}


def run(page: Path) -> None:
    """Run all blocks of ``page`` in order, and keep the pictures that it shows."""
    text = page.read_text(encoding="utf-8")
    target = page.parent / "pictures"
    target.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        exec(compile("\n".join(_BLOCK.findall(text)), str(page), "exec"), {"__name__": page.stem})
        os.chdir(DOCS)  # a folder that is in use cannot be removed on every system
        for picture in _PICTURE.findall(text):
            shutil.copyfile(Path(folder, picture), target / picture)


def main(names: list[str]) -> None:
    known = pages()
    unknown = [name for name in names if name not in known]
    if unknown:
        sys.exit(f"There is no page {', '.join(unknown)}. There are: {', '.join(known)}.")
    matplotlib.use("Agg")
    for name in names or known:
        print(f"-- {name}", flush=True)
        run(known[name])


if __name__ == "__main__":
    main(sys.argv[1:])
