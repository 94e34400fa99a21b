"""A new plugin: a small installable distribution with a component that works, its tests, and an example that uses it.

What is written are the files in ``templates``, with the new component's name put in.
"""

from __future__ import annotations

import importlib.util
import io
import json
import keyword
import os
import re
import shutil
import tokenize
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from regloss.errors import UsageError
from regloss.registry import KINDS, components

_KEBAB_CASE = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_AUTHOR = re.compile(r"(?P<name>[^<>]*[^<>\s])(\s*<(?P<email>[^<>\s@]+@[^<>\s@]+)>)?")


@dataclass(frozen=True)
class Plugin:
    """What a new plugin is called.

    Attributes:
        kind: a key of `regloss.registry.KINDS`.
        name: the component's name in configurations, in kebab-case.
    """

    kind: str
    name: str

    @property
    def distribution(self) -> str:
        """The name that pip knows."""
        return f"regloss-{self.name}"

    @property
    def module(self) -> str:
        """The module in the package."""
        return self.name.replace("-", "_")

    @property
    def package(self) -> str:
        """The package, which is what Python imports."""
        return f"regloss_{self.module}"

    @property
    def cls(self) -> str:
        """The component's class."""
        return "".join(part.capitalize() for part in self.name.split("-"))


def write_plugin(kind: str, name: str, output: Path | None = None, authors: Sequence[str] = ()) -> tuple[Plugin, Path]:
    """Write a new plugin.

    Args:
        kind: of the component, a key of `regloss.registry.KINDS`.
        name: of the component, in kebab-case.
        output: the folder to make; None = one named like the distribution, in the current folder.
        authors: for the metadata, each "NAME" or "NAME <EMAIL>".

    Returns:
        What it is called, and its folder.

    Raises:
        UsageError: before anything is written: an unknown kind, a name that cannot be used or is in use, a folder that
            exists or cannot be made, an author that cannot be read. Nothing stays behind if writing itself fails.
    """
    plugin = Plugin(kind, name)
    _check_name(plugin)
    files = _files(plugin, [_author(given) for given in authors])
    folder = Path(plugin.distribution) if output is None else output
    _check_folder(folder)
    _write(folder, files)
    return plugin, folder


# -- The name ----------------------------------------------------------------------------------------------------------


def _check_name(plugin: Plugin) -> None:
    name, way_out = plugin.name, f"Choose another, my-{plugin.name} say."
    components(plugin.kind)  # refuses an unknown kind, and names the kinds
    if not _KEBAB_CASE.fullmatch(name):
        raise UsageError(
            "A component's name is in kebab-case: words of lower-case letters and digits, joined by hyphens, a letter "
            f"first; got {name!r}. {_in_kebab_case(name)!r} would do."
        )
    for word in (plugin.module, plugin.cls):
        if keyword.iskeyword(word):
            raise UsageError(f"{name!r} cannot be used: {word} is a keyword of Python. {way_out}")
    if name.startswith("test"):
        raise UsageError(f"{name!r} cannot be used: pytest would take the class {plugin.cls} for a test. {way_out}")
    for other in (component for kind in KINDS for component in components(kind) if component.name == name):
        origin = f"of distribution {other.distribution} {other.version}" if other.distribution else "registered by hand"
        raise UsageError(
            f"There is a {other.kind} called {name!r} already, {origin} ({other.target}). Choose another name; regloss "
            "plugins list prints those in use."
        )
    if plugin.cls in _needed_names(plugin.kind):
        raise UsageError(f"{name!r} cannot be used: its code needs something else called {plugin.cls}. {way_out}")
    if importlib.util.find_spec(plugin.package) is not None:
        raise UsageError(f"{name!r} cannot be used: there is a Python package {plugin.package} already. {way_out}")


def _in_kebab_case(name: str) -> str:
    """A name like ``name`` that can be used, or an example of one."""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", name).lower()
    guess = re.sub(r"[^a-z0-9]+", "-", words).strip("-").lstrip("-0123456789")
    return guess if _KEBAB_CASE.fullmatch(guess) else "my-prior"


def _needed_names(kind: str) -> set[str]:
    """Identifiers in the templates of ``kind``, but for the class itself."""
    code = "\n".join(_template(_folder_of(kind), file) for file in ("component.py", "test_component.py"))
    tokens = tokenize.generate_tokens(io.StringIO(code).readline)
    return {token.string for token in tokens if token.type == tokenize.NAME} - {"MyComponent"}


def _author(given: str) -> str:
    """An author as a table in TOML."""
    found = _AUTHOR.fullmatch(given.strip())
    if found is None or not given.isprintable():
        raise UsageError(f'An author is given as "NAME" or "NAME <EMAIL>"; got {given!r}.')
    # A string in JSON is one in TOML too, as long as all of it can be printed.
    fields = {key: json.dumps(value, ensure_ascii=False) for key, value in found.groupdict().items() if value}
    return "{ " + ", ".join(f"{key} = {value}" for key, value in fields.items()) + " }"


# -- The files ---------------------------------------------------------------------------------------------------------


def _template(*path: str) -> str:
    return resources.files("regloss_cli").joinpath("templates", *path).read_text(encoding="utf-8")


def _folder_of(kind: str) -> str:
    return kind.replace("-", "_")


EXAMPLES = {
    "segmenter": {
        "example.toml": "example.py",
        "a short training that uses it by name": "a photograph, segmented by its name",
        "regloss train example.toml": "python example.py",
    }
}
"""What the README says of the example, where this is no configuration of a training, by kind."""


def _files(plugin: Plugin, authors: Sequence[str]) -> dict[str, str]:
    """Texts by path in the new folder."""
    kind = _folder_of(plugin.kind)
    instead = EXAMPLES.get(plugin.kind, {})
    example = instead.get("example.toml", "example.toml")
    texts = {
        "pyproject.toml": _template("project.toml"),
        "README.md": _template("README.md"),
        example: _template(kind, example),
        f"{plugin.package}/__init__.py": _template(kind, "__init__.py"),
        f"{plugin.package}/{plugin.module}.py": _template(kind, "component.py"),
        f"{plugin.package}/py.typed": "",
        "tests/conftest.py": _template("conftest.py"),
        f"tests/test_{plugin.module}.py": _template(kind, "test_component.py"),
    }
    words = {
        **dict(sorted(instead.items(), key=lambda entry: -len(entry[0]))),  # the whole command before a part of it
        f"regloss_cli.templates.{kind}.component": f"{plugin.package}.{plugin.module}",
        "my-component": plugin.name,
        "my_component": plugin.module,
        "MyComponent": plugin.cls,
        "KIND": plugin.kind,
        "GROUP": KINDS[plugin.kind].group,
        "authors = []": f"authors = [{', '.join(authors)}]",
    }
    # All at once, so that nothing is looked for in what has been put in.
    anywhere = re.compile("|".join(map(re.escape, words)))
    return {path: anywhere.sub(lambda found: words[found[0]], text) for path, text in texts.items()}


def _check_folder(folder: Path) -> None:
    if os.path.lexists(folder):
        raise UsageError(f"{folder} exists already, and is left as it is. Name another folder with --output.")
    parent = folder.absolute().parent
    while not os.path.lexists(parent):
        parent = parent.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise UsageError(
            f"{folder} cannot be made: {parent} is not a folder that can be written to. Name another with --output."
        )


def _write(folder: Path, files: Mapping[str, str]) -> None:
    try:
        folder.mkdir(parents=True)
    except OSError as cause:
        raise UsageError(f"{folder} cannot be made: {cause}. Name another folder with --output.") from cause
    try:
        for path, text in files.items():
            (folder / path).parent.mkdir(exist_ok=True)
            (folder / path).write_text(text, encoding="utf-8", newline="\n")
    except OSError as cause:
        shutil.rmtree(folder, ignore_errors=True)  # it is ours: a moment ago it was not there
        raise UsageError(f"{folder} cannot be written: {cause}. Name another folder with --output.") from cause
