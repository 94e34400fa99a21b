"""The documentation site builds without a warning, has every page, and fetches nothing."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType

import pytest

import regloss
from regloss import registry

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
SITE = ROOT / "docs" / "site"


def imported(name: str) -> Iterator[ModuleType]:
    """A module of docs/site, until the tests of this file end."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SITE)
        yield importlib.import_module(name)
        del sys.modules[name]


@pytest.fixture(scope="module")
def mathml() -> Iterator[ModuleType]:
    pytest.importorskip("latex2mathml")
    pytest.importorskip("markdown")
    yield from imported("mathml")


@pytest.fixture(scope="module")
def docstrings() -> Iterator[ModuleType]:
    pytest.importorskip("griffe")
    yield from imported("docstrings")


@pytest.mark.parametrize(
    ("text", "markdown"),
    [
        ("Shapes (B, *S) and (B, K, *S).", r"Shapes (B, \*S) and (B, K, \*S)."),
        ("Minimises <s, log s> - |s*|.", r"Minimises &lt;s, log s> - |s\*|."),
        ("Code `a * b`, ``*S``.", "Code `a * b`, ``*S``."),
        ("A formula\n\n    a * <b>\n", "A formula\n\n    a * <b>"),
        ("Args:\n    x: (B, *S)", "Args:\n    x: (B, \\*S)"),
        (">>> f(*a)\n2\n\nText", "```pycon\n>>> f(*a)\n2\n```\n\nText"),
        ("Example:\n    >>> f(*a)\n    2", "Example:\n    ```pycon\n    >>> f(*a)\n    2\n    ```"),
        ("Examples:\n    >>> f(*a)\n    2", "Examples:\n    >>> f(*a)\n    2"),
    ],
)
def test_docstrings_become_markdown(text: str, markdown: str, docstrings: ModuleType) -> None:
    assert docstrings.as_markdown(text) == markdown


def test_formulas_become_mathml(mathml: ModuleType) -> None:
    found = mathml.mathml(r"\frac{a}{b} \le \sum_p w_p", "block")
    assert "<mfrac>" in found
    assert "<munder>" in found


@pytest.mark.parametrize("latex", [r"\nosuchcommand x", r"a & b"])
def test_formulas_that_are_not_understood_are_refused(latex: str, mathml: ModuleType) -> None:
    with pytest.raises(ValueError, match="latex2mathml"):
        mathml.mathml(latex, "inline")


@pytest.mark.parametrize(
    ("text", "formulas"),
    [
        ("the weight $w_p$, and $a$.", 2),
        ("over two\nlines $a +\nb$", 1),
        ("`$code$`, a price of 5$ or 6$, \\$x$", 0),
        ("emphasis *a* $x*y*z$ b", 1),
    ],
)
def test_formulas_within_text(text: str, formulas: int, mathml: ModuleType) -> None:
    import markdown

    html = markdown.markdown(text, extensions=[mathml.MathExtension()])
    assert html.count("<math") == formulas
    assert "<em>y</em>" not in html


def navigation() -> list[str]:
    """Pages in the navigation, as the site names them."""

    def below(entries: list[object]) -> Iterator[str]:
        for entry in entries:
            if isinstance(entry, str):
                yield entry
            else:
                assert isinstance(entry, dict)
                for value in entry.values():
                    yield from below(value if isinstance(value, list) else [value])

    settings = tomllib.loads((SITE / "zensical.toml").read_text(encoding="utf-8"))
    return list(below(settings["project"]["nav"]))


def test_the_navigation_has_every_page_once_and_no_other() -> None:
    """But for those of the API, which are made with the site."""
    found = [page for page in navigation() if not page.startswith("api/")]
    docs = ROOT / "docs"
    pages = [path.relative_to(docs) for path in docs.rglob("*.md")]
    own = [page.as_posix() for page in pages if not {"build", "__pycache__"} & set(page.parts)]
    moved = [f"development/{name.lower()}.md" for name in ("ARCHITECTURE", "CHANGELOG", "CONTRIBUTING")]
    assert sorted(found) == sorted(own + moved)


class Parts(HTMLParser):
    """What a page fetches, its anchors' targets, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.ids: set[str] = set()
        self.formulas = 0
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if values.get("id"):
            self.ids.add(str(values["id"]))
        if tag == "math":
            self.formulas += 1
        if tag in ("img", "script", "iframe", "source") and values.get("src"):
            self.fetched.append(str(values["src"]))
        if tag == "link" and values.get("rel") not in ("canonical", "prev", "next", "alternate"):
            self.fetched.append(str(values["href"]))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as `make docs` does."""
    pytest.importorskip("zensical")
    pytest.importorskip("mkdocstrings_handlers.python")
    folder = tmp_path_factory.mktemp("docs")
    done = subprocess.run([sys.executable, str(SITE / "make.py"), str(folder)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "site"


@pytest.mark.slow
def test_every_page_is_there_and_in_the_navigation(site: Path) -> None:
    pages = {path.relative_to(site.parent / "site-pages").as_posix() for path in site.parent.rglob("*.md")}
    assert pages == set(navigation())
    for page in pages:
        name = page.replace("README.md", "index.md").replace(".md", ".html")
        assert (site / name).is_file(), name


@pytest.mark.slow
def test_nothing_is_fetched_from_elsewhere(site: Path) -> None:
    looked_at = 0
    for path in site.rglob("*.html"):
        for target in Parts(path.read_text(encoding="utf-8")).fetched:
            looked_at += 1
            assert not re.match(r"(https?:)?//", target), f"{path.relative_to(site)} fetches {target}"
    assert looked_at > 100
    for path in site.rglob("*.css"):
        assert not re.search(r"url\(['\"]?(https?:)?//", path.read_text(encoding="utf-8")), path


@pytest.mark.slow
def test_formulas_are_drawn(site: Path) -> None:
    for name in ("grid-crf", "trust-region", "adm"):
        html = (site / "methods" / f"{name}.html").read_text(encoding="utf-8")
        assert Parts(html).formulas > 5
        assert "\\frac" not in re.sub(r"<(script|pre|code).*?</\1>", "", html, flags=re.DOTALL)


@pytest.mark.slow
def test_the_search_finds_pages_without_a_server(site: Path) -> None:
    (index,) = site.rglob("search.js")  # a script, as files may not be fetched by pages that are files
    text = index.read_text(encoding="utf-8")
    for page in ("methods/trust-region.html", "start/five-minutes.html", "api/solving.html"):
        assert page in text


@pytest.mark.slow
def test_every_public_name_is_in_the_api(site: Path) -> None:
    ids: set[str] = set()
    for path in (site / "api").glob("*.html"):
        ids |= Parts(path.read_text(encoding="utf-8")).ids
    for name, target in regloss._targets().items():
        assert target.replace(":", ".") in ids, f"regloss.{name} is on no page of the API"
    assert {f"api/{kind}.md" for kind in registry.KINDS} <= set(navigation())
