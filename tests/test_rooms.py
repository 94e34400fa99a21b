"""Imports go one way: cli -> apps -> training -> report -> io, metrics -> core <- plugins."""

import ast
from pathlib import Path

import pytest

import regloss

REPOSITORY = Path(regloss.__file__).resolve().parents[1]
MAY_IMPORT = {
    "core": {"core"},
    "io": {"core", "io"},
    "metrics": {"core", "metrics"},
    "report": {"core", "io", "metrics", "report"},
    "training": {"core", "io", "metrics", "report", "training"},
    "apps": {"core", "io", "metrics", "report", "training", "apps"},
    "testing": {"core", "testing"},
    "plugins": {"core", "io", "plugins"},  # data sets read files
    "cli": {"core", "io", "apps", "cli"},
}
FOLDERS = {"plugins": REPOSITORY / "plugins" / "regloss_plugins", "cli": REPOSITORY / "cli" / "regloss_cli"}


def room_of(module):
    if module.startswith(("regloss_plugins", "regloss_cli")):
        return "plugins" if module.startswith("regloss_plugins") else "cli"
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in MAY_IMPORT else "core"


def files_of(room):
    if room in FOLDERS:
        return [path for path in sorted(FOLDERS[room].rglob("*.py")) if "templates" not in path.parts]
    if room == "core":
        return sorted((REPOSITORY / "regloss").glob("*.py"))
    return sorted((REPOSITORY / "regloss" / room).rglob("*.py"))


def imports_of(path):
    """Modules of this project that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0].startswith("regloss"))
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0].startswith("regloss"):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_imports_go_one_way(room):
    files = files_of(room)
    assert files
    wrong = [
        f"{path.relative_to(REPOSITORY)} imports {module}"
        for path in files
        for module in imports_of(path)
        if room_of(module) not in MAY_IMPORT[room]
    ]
    assert not wrong, "\n".join(wrong)


def test_kernels_know_arrays_alone():
    """What binds them to the types of regloss stands in `bindings`."""
    files = sorted((FOLDERS["plugins"] / "kernels").glob("*.py"))
    assert files
    wrong = [
        f"{path.name} imports {module}"
        for path in files
        for module in imports_of(path)
        if not module.startswith("regloss_plugins.kernels.")
    ]
    assert not wrong, "\n".join(wrong)
