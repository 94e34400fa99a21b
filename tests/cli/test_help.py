"""The command line answers at once: what it does not need, torch above all, is not imported."""

import subprocess
import sys

import pytest

HEAVY = ("torch", "numpy", "scipy", "numba", "lightning_fabric", "matplotlib", "torchmetrics", "safetensors", "PIL")
PROGRAM = """
import resource, sys
sys.argv = ["regloss", *{arguments!r}]
from regloss_cli.main import main
try:
    main()
except SystemExit as exit:
    assert not exit.code, exit.code
used = resource.getrusage(resource.RUSAGE_SELF)
print(used.ru_utime, *sorted(sys.modules), file=sys.stderr)
"""


def run(*arguments):
    """Seconds of the processor, and the modules that were imported."""
    program = PROGRAM.format(arguments=arguments)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    seconds, *modules = done.stderr.split()
    return float(seconds), set(modules), done.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ("--help",),
        ("--version",),
        ("train", "--help"),
        ("plugins", "--help"),
        ("plugins", "list"),
        ("plugins", "new", "network", "my-net"),
    ],
    ids=" ".join,
)
def test_nothing_heavy_is_imported(arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, modules, out = run(*arguments)
    assert out
    assert modules.isdisjoint(HEAVY), sorted(modules & set(HEAVY))


def test_help_answers_within_three_tenths_of_a_second():
    """User time, the best of five: other programs on the machine play no part in it."""
    assert min(run("--help")[0] for _ in range(5)) < 0.3
