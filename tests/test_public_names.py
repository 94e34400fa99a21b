"""`regloss.NAME`: found without importing the rest, and spelt out for type checkers in a stub that is current."""

import ast
import subprocess
import sys
from collections import Counter

import pytest
from public_stub import STUB, public_stub

import regloss
from regloss.errors import MissingDependency
from regloss.registry import KINDS, OWN_DISTRIBUTION, components, public_targets

EXTRAS = {"PyMaxflow", "GCO", "RandomWalker"}  # which may be missing here


def stub_names():
    """Names that the stub offers, with the modules that they are imported from."""
    found = {}
    for node in ast.parse(STUB.read_text()).body:
        if isinstance(node, ast.ImportFrom):
            found |= {alias.asname: node.module for alias in node.names}
    return found


def test_the_stub_is_current():
    assert STUB.read_text() == public_stub(), "the public names have changed: run `make stub`"


def test_every_name_of_the_stub_is_there():
    found = stub_names()
    assert len(found) > 60
    for name, module in found.items():
        try:
            value = getattr(regloss, name)
        except MissingDependency:
            assert name in EXTRAS
            continue
        assert value is getattr(sys.modules[module], name)


def test_a_star_import_brings_all_of_it_but_missing_extras():
    program = "from regloss import *\nprint(*globals())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    brought = set(done.stdout.split())
    assert set(stub_names()) - brought <= EXTRAS | set(regloss._MODULES)
    assert "__version__" in brought


def test_methods_and_functions_are_found_by_their_entry_points():
    targets = public_targets()
    assert targets["GridCRF"] == "regloss_plugins.regularizers.grid_crf:GridCRF"
    assert targets["guided_filter"].endswith(":guided_filter")
    assert regloss.guided_filter.__name__ == "guided_filter"


def test_no_two_public_things_share_a_name():
    own = [c.target.partition(":")[2] for kind in KINDS for c in components(kind) if c.distribution == OWN_DISTRIBUTION]
    core = [name for public in regloss._CORE.values() for name in public]
    functions = [name for name in public_targets() if name not in own]
    twice = [name for name, count in Counter([*own, *core, *functions, *regloss._MODULES]).items() if count > 1]
    assert not twice


def test_a_strangers_function_does_not_enter_the_package(installed):
    installed("their-tools", {"regloss.functions": {"sharpen": "their_tools:sharpen"}}, {"their_tools": "sharpen = 1"})
    with pytest.raises(AttributeError, match="sharpen"):
        regloss.sharpen  # noqa: B018 - the lookup is what is tested


def test_type_checkers_see_every_name(tmp_path):
    """mypy reads the stub alone here (what it imports is not followed), so this takes a second."""
    pytest.importorskip("mypy", reason="needs mypy")
    uses = [f"from regloss import {name}" for name in stub_names()] + ["regloss.GridCFR"]
    (tmp_path / "uses.py").write_text("import regloss\n" + "\n".join(uses) + "\n")
    options = ["--follow-imports=skip", "--config-file=", f"--cache-dir={tmp_path / 'cache'}"]
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *options, str(STUB), "uses.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    errors = [line for line in done.stdout.splitlines() if ": error:" in line]
    assert len(errors) == 1, done.stdout + done.stderr
    assert errors[0].startswith(f"uses.py:{len(uses) + 1}:")
    assert 'has no attribute "GridCFR"' in errors[0]
