"""`regloss compile`: what is said and kept, and that a later process finds it."""

import os
import subprocess
import sys

import pytest

import regloss
from regloss.apps.compile_kernels import FAMILIES, compile_kernels


def run(folder, *command):
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(folder)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_a_family_is_compiled_ahead(tmp_path):
    command = (sys.executable, "-m", "regloss_cli.main", "compile", "graphs")
    done = run(tmp_path, *command)
    assert done.returncode == 0, done.stderr
    family, total = (line.split() for line in done.stdout.splitlines())
    assert (family[0], total[0]) == ("graphs", "all")
    assert float(family[1]) == float(total[1]) > 0
    assert f"Compiling expansion_graph, once: it is kept in {tmp_path}" in done.stderr
    assert "`regloss compile`" not in done.stderr
    kept = sorted(tmp_path.rglob("*.nbc"))
    assert kept
    again = run(tmp_path, *command)
    assert (again.returncode, again.stderr) == (0, "")
    assert sorted(tmp_path.rglob("*.nbc")) == kept


def test_an_unknown_family(tmp_path):
    done = run(tmp_path, sys.executable, "-m", "regloss_cli.main", "compile", "tv", "trees")
    assert done.returncode == 2
    assert "family must be one of two-labels, labels" in done.stderr
    assert "'trees'" in done.stderr
    assert not list(tmp_path.iterdir())


def test_python_hears_of_an_unknown_family_at_once():
    with pytest.raises(regloss.UsageError, match="trees"):
        compile_kernels(["trees"])


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_has_a_problem(name):
    """Compiled code of this machine is used, if there is some."""
    ((found, seconds),) = compile_kernels([name])
    assert found == name
    assert seconds > 0
