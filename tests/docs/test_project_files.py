"""What stands in several files of the project says the same in each."""

from __future__ import annotations

import re
import sys
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


HOSTS = ("lightning", "monai", "nnunet", "onnx", "transformers", "mlflow", "wandb", "triton")
"""Extras for what others write, or which come with their own Python and torch: one version of each was tested."""


def promised(*, hosts: bool = False) -> dict[str, str]:
    """The lower bound of every requirement, by its lower-case name, but for what checks, packs or shows the code.

    Of those for hosts alone, or of all others.
    """
    extras = {name: items for name, items in PROJECT["optional-dependencies"].items() if name != "docs"}
    chosen = [item for name, items in extras.items() if (name in HOSTS) == hosts for item in items]
    found = {}
    for requirement in chosen if hosts else [*PROJECT["dependencies"], *chosen]:
        name, bound = re.match(r"([\w-]+)>=([\d.]+)", requirement).groups()
        if name not in ("ruff", "mypy", "build", "hatchling"):
            found[name.lower()] = bound
    return found


def pinned(name: str) -> dict[str, str]:
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {package.lower(): version for package, version in pairs}


def numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def test_the_oldest_versions_are_those_that_are_promised() -> None:
    """Up to the last number: of 1.11 the first release that has wheels for all systems may be 1.11.1."""
    pins = pinned("constraints-oldest.txt")
    assert set(pins) >= set(promised())
    for name, bound in promised().items():
        length = len(numbers(bound))
        assert numbers(pins[name])[:length] == numbers(bound), f"{name}: {bound} is promised, {pins[name]} was tested"


def test_the_tested_versions_keep_the_promise() -> None:
    pins = pinned("constraints.txt")
    for name, bound in promised().items():
        if name != "tomli":  # of Python 3.10 alone
            assert numbers(pins[name]) >= numbers(bound), name


def test_of_hosts_the_tested_versions_are_promised() -> None:
    pins = pinned("constraints.txt")
    for name, bound in promised(hosts=True).items():
        assert numbers(pins[name])[: len(numbers(bound))] == numbers(bound), f"{name}: {pins[name]} was tested"


def test_the_citation_is_of_this_version() -> None:
    text = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f'\nversion: "{PROJECT["version"]}"\n' in text
    assert f"\nlicense: {PROJECT['license']}\n" in text
    assert f'  - name: "{PROJECT["authors"][0]["name"]}"\n' in text


def test_every_extra_is_on_the_page_of_installing() -> None:
    text = (ROOT / "docs" / "start" / "install.md").read_text(encoding="utf-8")
    cells = [row.split("|")[1] for row in text.splitlines() if row.startswith("| `")]
    assert sorted(re.findall(r"`([\w-]+)`", "".join(cells))) == sorted(PROJECT["optional-dependencies"])


def test_paths_in_the_architecture_exist() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    paths = re.findall(r"(?<![\w./(])(?:regloss|plugins|cli|tests|docs)/[\w./-]*\w", text)
    assert len(paths) > 30
    missing = {path for path in paths if not (ROOT / path).exists()}
    assert not missing, f"ARCHITECTURE.md names what does not exist: {sorted(missing)}"
