"""Builds the documentation site: ``make docs``, or ``python docs/site/make.py``.

Pages stay where a reader of the repository finds them: most in docs/, some at the top. Here they are laid into one
tree, build/site-pages, with their links changed to what lies there; pages of the API are added; then zensical builds
build/site, in which a warning is an error. Nothing is fetched, neither now nor by a reader's browser.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

from api import api_pages

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]

FONT = Path(str(files("ziamath"))) / "fonts" / "STIXTwoMath-Regular.ttf"
"""A font for formulas, under the Open Font License, from a package that carries it."""

MOVED = {
    "ARCHITECTURE.md": "development/architecture.md",
    "CHANGELOG.md": "development/changelog.md",
    "CONTRIBUTING.md": "development/contributing.md",
}
"""Pages outside of docs/, and where they are in the site."""

FENCE = re.compile(r"^(```.*?^```[^\n]*$)", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(\]\()([^)\s]+)(\))")


def pages() -> dict[str, str]:
    """Path in the site of every page, by its path in the repository."""
    own = {path.relative_to(ROOT).as_posix(): path.relative_to(ROOT / "docs").as_posix() for path in docs("*.md")}
    return own | MOVED


def docs(pattern: str) -> list[Path]:
    """Files below docs/ that belong to the project, build and cache folders aside."""
    hidden = {"__pycache__", "build"}
    return sorted(path for path in (ROOT / "docs").rglob(pattern) if not hidden & set(path.parts))


class Tree:
    """The tree of pages that zensical reads.

    Attributes:
        missing: sentences on links to what the repository does not have.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.places = pages()
        self.missing: list[str] = []

    def write(self, place: str, text: str) -> None:
        """A page."""
        path = self.folder / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")

    def place_of(self, file: Path) -> str | None:
        """Where in the site a file of the repository is, which is copied if it is no page; None = there is none."""
        source = file.relative_to(ROOT).as_posix()
        if source in self.places:
            return self.places[source]
        if not file.is_file():
            return None
        place = source.removeprefix("docs/") if source.startswith("docs/") else f"files/{source}"
        target = self.folder / place
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)
        return place

    def page(self, source: str) -> None:
        """Lay a page of the repository into the tree, its links changed to the site's."""
        place = self.places[source]

        def changed(match: re.Match[str]) -> str:
            path, mark, fragment = match[2].partition("#")
            if not path or "://" in path or path.startswith("mailto:"):
                return match[0]
            target = self.place_of(Path(os.path.normpath((ROOT / source).parent / path)))
            if target is None:
                self.missing.append(f"{source} links to {path}, which is no file of the repository.")
                return match[0]
            return f"{match[1]}{os.path.relpath(target, Path(place).parent)}{mark}{fragment}{match[3]}"

        parts = FENCE.split((ROOT / source).read_text(encoding="utf-8"))
        parts[::2] = [LINK.sub(changed, part) for part in parts[::2]]
        self.write(place, "".join(parts))


def lay(folder: Path) -> None:
    """Write the whole tree of pages anew, its settings beside it."""
    shutil.rmtree(folder / "site-pages", ignore_errors=True)
    tree = Tree(folder / "site-pages")
    for source in tree.places:
        tree.page(source)
    for name, text in api_pages().items():
        tree.write(f"api/{name}.md", text)
    if tree.missing:
        sys.exit("\n".join(tree.missing))
    for name in ("style.css", "iframe-worker.js"):
        shutil.copyfile(HERE / name, tree.folder / name)
    shutil.copyfile(FONT, tree.folder / FONT.name)
    settings = (HERE / "zensical.toml").read_text(encoding="utf-8").replace("ROOT", ROOT.as_posix())
    (folder / "zensical.toml").write_text(settings, encoding="utf-8")


def build(folder: Path) -> Path:
    """Lay the pages below ``folder``, and build the site of them; returns its front page."""
    lay(folder)
    shutil.rmtree(folder / "site", ignore_errors=True)
    environment = {**os.environ, "PYTHONPATH": str(HERE)}  # where zensical finds the extension mathml
    command = [sys.executable, "-m", "zensical", "build", "--clean", "--strict"]
    subprocess.run([*command, "--config-file", str(folder / "zensical.toml")], cwd=folder, env=environment, check=True)
    return folder / "site" / "index.html"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Build the documentation site.")
    parser.add_argument("folder", type=Path, nargs="?", default=ROOT / "build", help="for site/, build/ by default")
    given = parser.parse_args().folder.resolve()
    given.mkdir(parents=True, exist_ok=True)
    try:
        print(f"Open {build(given)}")
    except subprocess.CalledProcessError as failed:  # zensical has said why
        sys.exit(failed.returncode)
