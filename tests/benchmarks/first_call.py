"""CPU seconds of the first call of each family of solvers, with nothing compiled: each in new processes.

    python tests/benchmarks/first_call.py [--only tv dense-crf] [--repeats 3] [--output first-call.csv]

"first" is the call that compiles, the least of the repeats; "again" is the same call in a new process, which finds
compiled code on disk, and "call" the second one there. Imports are not counted in these: "torch" and "regloss" are what
they take, the latter with all that a family needs, of numba and scipy. "wanted" is the limit, where there is one.

One thread, and seconds of the process; what else runs on the machine still makes them longer, by some tenths.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

SHAPE, CUBE = "(1, {}, 24, 24)", "(1, {}, 12, 12, 12)"
SOLVE = """
image = torch.rand(*{image}, generator=torch.Generator().manual_seed(0))
unary = torch.rand(*{unary}, generator=torch.Generator().manual_seed(1))
term, solver = regloss.GridCRF().bind(image), regloss.create("solver", "{solver}")
work = lambda: regloss.solve(term, unary, solver)
"""
GRAPH = """
image = torch.rand(1, 3, 24, 24, generator=torch.Generator().manual_seed(0))
unary = torch.rand(1, 3, 24, 24, generator=torch.Generator().manual_seed(1))
term, solver = regloss.NonlocalTV(neighbors=5).bind(image), regloss.create("solver", "alpha-expansion")
work = lambda: regloss.solve(term, unary, solver)
"""
DENSE = """
import scipy.optimize
import regloss_plugins.kernels.lattice
image = torch.rand(1, 3, 24, 24, generator=torch.Generator().manual_seed(0))
probabilities = torch.rand(1, 3, 24, 24, generator=torch.Generator().manual_seed(1)).softmax(1)
work = lambda: regloss.DenseCRF(backend="lattice").bind(image).energy(probabilities)
"""
LAYER = """
import scipy.spatial
import regloss_plugins.kernels.{kernels}
image = torch.rand(1, 3, 24, 24, generator=torch.Generator().manual_seed(0))
logits = torch.rand(1, 3, 24, 24, generator=torch.Generator().manual_seed(1)).requires_grad_()
layer = regloss.RegularizedSoftmax(regloss.{regularizer})
work = lambda: layer(logits, image).sum().backward()
"""
NEIGHBORS = """
import scipy.spatial
image = torch.rand(1, 3, 24, 24, generator=torch.Generator().manual_seed(0))
regularizer = regloss.NonlocalTV(neighbors=5, window=5)
work = lambda: regularizer.bind(image)
"""
TREE = """
image = torch.rand(1, 3, 24, 24, generator=torch.Generator().manual_seed(0))
probabilities = torch.rand(1, 3, 24, 24, generator=torch.Generator().manual_seed(1)).softmax(1)
regularizer = regloss.TreeEnergy()
work = lambda: regularizer.bind(image).energy(probabilities)
"""
SCRIBBLES = """
image = torch.rand(1, 3, 24, 24, generator=torch.Generator().manual_seed(0))
scribbles = torch.full((1, 24, 24), 255)
scribbles[:, 4:8, 4:20], scribbles[:, 16:20, 4:20] = 0, 1
segmenter = regloss.create("segmenter", "scribble-cut")
work = lambda: segmenter(image, scribbles=scribbles)
"""


def _solve(solver: str, classes: int, shape: str) -> str:
    return SOLVE.format(image=shape.format(1), unary=shape.format(classes), solver=solver)


FAMILIES = {
    "two-labels": (_solve("alpha-expansion", 2, SHAPE), 3),
    "labels": (_solve("alpha-expansion", 3, SHAPE), 6),
    "volume of two labels": (_solve("alpha-expansion", 2, CUBE), 8),
    "volume": (_solve("alpha-expansion", 3, CUBE), 8),
    "dual-chains": (_solve("dual-chains", 3, SHAPE), None),
    "graph": (GRAPH, None),
    "dense-crf": (DENSE, 4),
    "tv": (LAYER.format(kernels="grid_ascent", regularizer="TotalVariation()"), 4),
    "isotropic tv": (LAYER.format(kernels="grid_ascent", regularizer="TotalVariation(isotropic=True)"), 4),
    "nltv": (LAYER.format(kernels="edge_ascent", regularizer="NonlocalTV(neighbors=5)"), None),
    "neighbour graph": (NEIGHBORS, 4),
    "tree-energy": (TREE, None),
    "scribble-cut": (SCRIBBLES, None),
}
PROGRAM = """
import json, time
began = time.process_time()
import torch
torch.set_num_threads(1)
torch_seconds = time.process_time() - began
began = time.process_time()
import regloss
{ready}
from numba.core.registry import cpu_target  # as long as nothing is compiled, numba has not imported half of itself
cpu_target.typing_context.refresh()
cpu_target.target_context.refresh()
package_seconds = time.process_time() - began
seconds = []
for _ in range(2):
    began = time.process_time()
    work()
    seconds.append(time.process_time() - began)
print(json.dumps([torch_seconds, package_seconds, *seconds]))
"""


def measure(ready: str, folder: Path) -> list[float]:
    """Seconds to import torch and the rest, of the first call and of the second, in a new process."""
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(folder), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", PROGRAM.format(ready=ready)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    found: list[float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--only", nargs="+", choices=list(FAMILIES), default=list(FAMILIES), metavar="FAMILY")
    arguments.add_argument("--repeats", type=int, default=1)
    arguments.add_argument("--output", type=Path, help="a csv file, to compare with that of another day")
    chosen = arguments.parse_args()
    rows = []
    print(f"{'family':22} {'wanted':>6} {'first':>7} {'again':>7} {'call':>7} {'torch':>7} {'regloss':>7}")
    for name in chosen.only:
        ready, wanted = FAMILIES[name]
        first, again = [], []
        for _ in range(chosen.repeats):
            with tempfile.TemporaryDirectory() as folder:
                first.append(measure(ready, Path(folder)))
                again.append(measure(ready, Path(folder)))
        imports = [min(times[i] for times in first + again) for i in (0, 1)]
        calls = [min(times[2] for times in first), min(times[2] for times in again), min(times[3] for times in again)]
        rows.append((name, wanted, *calls, *imports))
        numbers = " ".join(f"{value:7.2f}" for value in (*calls, *imports))
        print(f"{name:22} {'' if wanted is None else wanted:>6} {numbers}", flush=True)
    if chosen.output is not None:
        with chosen.output.open("w", newline="") as file:
            csv.writer(file).writerows([("family", "wanted", "first", "again", "call", "torch", "regloss"), *rows])


if __name__ == "__main__":
    main()
