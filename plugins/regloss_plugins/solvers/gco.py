"""Alpha-expansion by the GCO library of Veksler and Delong, for comparisons with other people's numbers.

Problem and moves are those of `regloss_plugins.solvers.alpha_expansion`. GCO computes with 32-bit integers: costs are
divided by a unit and rounded, the unit being the smallest for which neither its limit of 10^7 for one cost nor a sum of
costs at one pixel overflows. Usually that is 10^-7 of the largest cost. Energies are computed from the labels and the
costs as given, in double precision, so they are never GCO's own; the energy of a cut is the least possible only up to
one unit for every free pixel and edge. Should that rounding, or anything, leave GCO above the start, the start is
returned.

The package gco-wrapper changes numpy when it is imported, ends the process on errors and is not safe in threads, so
each image is solved in a process of its own, which costs some tenths of a second and is ended after ``timeout``.
The GCO library inside it may be used for research only (whatever the wrapper's own licence says), so it is an optional
extra: ``pip install 'regloss[gco]'``.

Source: Delong, Osokin, Isack, Boykov, "Fast approximate energy minimization with label costs", IJCV 2012, for the
library; Boykov, Veksler, Zabih, PAMI 2001, for the method.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from regloss.checks import check_at_least_one
from regloss.errors import MissingDependency, ReglossError, UsageError
from regloss.forms import Form, Graph, GridGraph
from regloss.solver import Problem, Solution, Solver
from regloss_plugins.kernels import gco_worker
from regloss_plugins.kernels.expansion import Expansion
from regloss_plugins.kernels.potts import FreeProblem
from regloss_plugins.solvers.alpha_expansion import refuse_entropy, solve_free

_PACKAGE = importlib.util.find_spec("gco")  # only looked for: importing it would change numpy
if _PACKAGE is None or _PACKAGE.origin is None:
    raise MissingDependency(
        "The solver 'gco' needs the package gco-wrapper (for research only), which is not installed. Install it with "
        "pip install 'regloss[gco]', or use 'alpha-expansion', which solves the same problems without it."
    )

_WORKER = Path(gco_worker.__file__)
_LARGEST_COST = 10_000_000  # GCO's own limit for a single cost
_LARGEST_SUM = 2**30  # what may flow through a pixel, with room below 2^31


@dataclass(frozen=True)
class GCO(Solver):
    """Expansion moves by the GCO library, every image in a process of its own, as many at once as there are cores.

    Args:
        max_cycles: largest number of passes over the labels, >= 1.
        timeout: seconds after which an image's process is ended, > 0.

    Raises:
        UsageError: an entropy weight other than 0.
        ReglossError: GCO's process failed or did not finish in time; the message names the image.
    """

    max_cycles: int = 5
    timeout: float = 60.0
    accepts: ClassVar[tuple[type[Form], ...]] = (GridGraph, Graph)

    def __post_init__(self) -> None:
        check_at_least_one(max_cycles=self.max_cycles)
        if not 0 < self.timeout < float("inf"):
            raise UsageError(f"timeout must be a positive number of seconds; got {self.timeout}.")

    def entropies(self, form: type[Form]) -> Literal["zero"]:
        """0 alone: it minimises over labels."""
        return "zero"

    def minimise(self, problem: Problem) -> Solution:
        """Solve every image of the batch."""
        refuse_entropy(problem, "gco")
        return solve_free(problem, self._solve_one, workers=None)

    def _solve_one(self, problem: FreeProblem, number: int) -> Expansion:
        labels = problem.start
        energy = start_energy = problem.energy(labels)
        if len(problem.choices) == 1 or len(problem.pixels) == 0:
            return Expansion(problem.everywhere(labels), energy, start_energy, 0, True, energy)
        if len(problem.edges) == 0:  # GCO wants at least one
            labels = problem.unary.argmin(0)
            energy = problem.energy(labels)
            return Expansion(problem.everywhere(labels), energy, start_energy, 0, True, energy)

        unit = _unit(problem)
        found, cycles, converged = self._run(problem, unit, number)
        if problem.energy(found) < energy:
            labels, energy = found, problem.energy(found)
        bound = -np.inf
        if len(problem.choices) == 2:
            # One cut is exact in units; every cost is off by up to half of one, at what is found and at the minimum.
            bound, converged = energy - unit * (len(problem.pixels) + len(problem.edges)), True
        return Expansion(problem.everywhere(labels), energy, start_energy, cycles, converged, bound)

    def _run(self, problem: FreeProblem, unit: float, number: int) -> tuple[NDArray[np.int64], int, bool]:
        """Labels, cycles and whether they sufficed, from GCO's process."""
        # With two labels, the expansion of the one from the constant labelling of the other is exact.
        start = np.zeros_like(problem.start) if len(problem.choices) == 2 else problem.start
        with tempfile.TemporaryDirectory(prefix="regloss-gco-") as folder:
            given, result = Path(folder, "problem.npz"), Path(folder, "result.npz")
            np.savez(
                given,
                unary=_integers(problem.unary - problem.unary.min(0), unit).T,
                edges=np.sort(problem.edges, axis=1).astype(np.int32),
                weights=_integers(problem.weights, unit),
                start=start.astype(np.int32),
                max_cycles=self.max_cycles,
            )
            assert _PACKAGE is not None
            assert _PACKAGE.origin is not None
            package = Path(_PACKAGE.origin).parents[1]
            command = [sys.executable, "-I", *map(str, (_WORKER, package, given, result))]
            way_out = "Use alpha-expansion, which solves the same problems in this process."
            try:
                done = subprocess.run(
                    command,
                    stdin=subprocess.DEVNULL,
                    capture_output=True,
                    text=True,
                    errors="replace",
                    timeout=self.timeout,
                )
            except subprocess.TimeoutExpired as cause:
                raise ReglossError(
                    f"gco did not finish image {number} of the batch within timeout = {self.timeout} s. Raise timeout. "
                    + way_out
                ) from cause
            if done.returncode != 0:
                last = (done.stderr.strip().splitlines() or ["nothing"])[-1]
                raise ReglossError(
                    f"gco failed on image {number} of the batch with exit code {done.returncode}; the last that it "
                    f"wrote: {last}\n{way_out}"
                )
            with np.load(result) as arrays:
                return arrays["labels"].astype(np.int64), int(arrays["cycles"]), bool(arrays["converged"])


def _unit(problem: FreeProblem) -> float:
    """The smallest unit in which no cost and no sum of costs at one pixel is too large for GCO."""
    spread = problem.unary.max(0) - problem.unary.min(0)
    # A cut may push the capacities of both directions of every edge through a pixel.
    total = spread.copy()
    for ends in problem.edges.T:
        total += 2 * np.bincount(ends, problem.weights, len(total))
    largest = max(spread.max(), problem.weights.max())
    return float(max(largest / _LARGEST_COST, total.max() / _LARGEST_SUM, np.finfo(np.float64).tiny))


def _integers(costs: NDArray[np.float64], unit: float) -> NDArray[np.int32]:
    return np.rint(costs / unit).astype(np.int32)
