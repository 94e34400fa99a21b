"""Run the Python blocks of pages of this folder, which make their pictures: ``python docs/methods/make.py star tv``.

Without names, all pages. The photographs are those in scikit-image's wheel: ``pip install 'regloss[sample]'``.
"""

import os
import re
import sys
from pathlib import Path

import matplotlib

FOLDER = Path(__file__).resolve().parent
_BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def run(page: Path) -> None:
    """Run all blocks of ``page`` in order, in this folder's ``pictures``."""
    pictures = page.parent / "pictures"
    pictures.mkdir(exist_ok=True)
    code = "\n".join(_BLOCK.findall(page.read_text(encoding="utf-8")))
    os.chdir(pictures)
    exec(compile(code, str(page), "exec"), {"__name__": page.stem})


def main(names: list[str]) -> None:
    pages = {page.stem: page for page in sorted(FOLDER.glob("*.md")) if page.stem != "index"}
    unknown = [name for name in names if name not in pages]
    if unknown:
        sys.exit(f"There is no page {', '.join(unknown)}. There are: {', '.join(pages)}.")
    matplotlib.use("Agg")
    for name in names or list(pages):
        print(f"-- {name}")
        run(pages[name])


if __name__ == "__main__":
    main(sys.argv[1:])
