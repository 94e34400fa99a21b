"""Seconds of the processor that imports take, each in fresh processes, and the modules behind most of them.

    python tests/benchmarks/import_time.py [--rounds 5] [--output import-time.csv]

User time, the least of all rounds: other programs on the machine play no part in it. The shares are wall-clock time of
one more run under -X importtime: of each package, what its modules took beyond what they imported in turn.
"""

from __future__ import annotations

import argparse
import csv
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

PROGRAMS = {
    "import regloss": "import regloss",
    "regloss --help": "import sys; from regloss_cli.main import main; sys.argv[1:] = ['--help']; main()",
    "a regularizer": "import regloss; regloss.GridCRF",
    "a solver": "import regloss; regloss.AlphaExpansion",
    "a layer": "import regloss; regloss.RegularizedSoftmax",
    "a training": "import regloss.training.trainer",
}

MEASURE = """
import resource, sys
try:
    exec({program!r})
except SystemExit as exit:
    assert not exit.code, exit.code
print(resource.getrusage(resource.RUSAGE_SELF).ru_utime, file=sys.stderr)
"""


def seconds(program: str) -> float:
    """User time of one process that runs ``program``."""
    code = MEASURE.format(program=program)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(done.stderr.split()[-1])


def shares(program: str) -> list[tuple[str, float]]:
    """Seconds of each top-level package's own modules, the largest first."""
    command = [sys.executable, "-X", "importtime", "-c", program]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    found: dict[str, float] = defaultdict(float)
    for own, module in re.findall(r"^import time:\s+(\d+) \|\s+\d+ \|\s+([\w.]+)", printed, flags=re.MULTILINE):
        found[module.partition(".")[0]] += int(own) / 1e6
    return sorted(found.items(), key=lambda item: -item[1])


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--output", type=Path, help="a csv file, to compare with that of another day")
    chosen = arguments.parse_args()
    rows = []
    for name, program in PROGRAMS.items():
        seconds(program)  # the first one may compile bytecode
        least = min(seconds(program) for _ in range(chosen.rounds))
        largest = ", ".join(f"{package} {share:.2f}" for package, share in shares(program)[:4])
        rows.append((name, f"{least:.2f}", largest))
        print(f"{name:16} {least:6.2f} s   {largest}", flush=True)
    if chosen.output is not None:
        with chosen.output.open("w", newline="") as file:
            csv.writer(file).writerows([("what", "seconds", "largest shares"), *rows])


if __name__ == "__main__":
    main()
