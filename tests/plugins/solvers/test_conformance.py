"""The conformance suite, inherited by every built-in solver."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

import regloss
from regloss.solver import Solver
from regloss.testing import SolverConformance
from regloss_plugins.solvers.dual_chains import DualChains
from regloss_plugins.solvers.parallel_potts import ParallelPotts


class TestAlphaExpansion(SolverConformance):
    exact_for_two = True

    def make(self) -> Solver:
        return regloss.AlphaExpansion(workers=1)


@pytest.mark.skipif(find_spec("maxflow") is None, reason="PyMaxflow is not installed (extra regloss[pymaxflow])")
class TestPyMaxflow(SolverConformance):
    exact_for_two = True

    def make(self) -> Solver:
        solver: Solver = regloss.create("solver", "pymaxflow")
        return solver


class TestDualChains(SolverConformance):
    def make(self) -> Solver:
        return DualChains(workers=1)


class TestParallelPotts(SolverConformance):
    local = True  # which pixels form the coarser grids' blocks depends on where they lie

    def make(self) -> Solver:
        return ParallelPotts(max_steps=60, coarse_steps=20, check_every=30)


class TestMeanField(SolverConformance):
    discrete = False
    local = True  # which local minimum it ends in depends on where the grid's parity classes lie
    entropy = 0.2

    def make(self) -> Solver:
        return regloss.MeanField()


class TestPDHG(SolverConformance):
    discrete = False
    monotone = False  # what it starts from are dual variables; labels do not determine any
    entropy = 0.2
    class_counts = (2, 3)

    def make(self) -> Solver:
        return regloss.PDHG(max_steps=3000, tolerance=1e-9)
