"""The optional solver on PyMaxflow; the tables over all solvers over labels are in test_discrete.py."""

from __future__ import annotations

import sys
from importlib.util import find_spec

import numpy as np
import pytest
import torch

import regloss
from regloss import GridCRF, solve
from regloss.solver import Solver
from regloss.testing import SolverConformance
from regloss_plugins.kernels.expansion import expand_grid


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "maxflow", None)  # what makes an import fail
    monkeypatch.delitem(sys.modules, "regloss_plugins.solvers.pymaxflow", raising=False)
    assert "pymaxflow" in regloss.names("solver")
    with pytest.raises(regloss.MissingDependency, match=r"regloss\[pymaxflow\].*alpha-expansion"):
        regloss.get("solver", "pymaxflow")
    # Nobody else suffers: an error that lists the solvers that would do leaves it out.
    term = GridCRF().bind(torch.zeros(1, 1, 2, 2))
    with pytest.raises(regloss.MissingForm, match="alpha-expansion"):
        solve(term, torch.zeros(1, 2, 2, 2), NoForm())


class Unknown(regloss.Form):
    """What no regularizer offers."""


class NoForm(regloss.Solver):
    """Wants it."""

    accepts = (Unknown,)

    def minimise(self, problem: regloss.Problem) -> regloss.Solution:
        raise NotImplementedError


def test_single_moves_are_those_of_our_own_cut() -> None:
    """One cycle over three labels, label by label: our own expansion with two labels is an independent exact move."""
    pytest.importorskip("maxflow")
    from regloss_plugins.kernels.potts import free_problem
    from regloss_plugins.solvers.pymaxflow import expand

    random = np.random.default_rng(5)
    unary, weights = random.random((3, 7, 8)), random.random((2, 7, 8))
    start = random.integers(3, size=(7, 8))
    offsets = np.array([[0, 1], [1, 0]])
    graph = regloss.GridGraph(((0, 1), (1, 0)), torch.from_numpy(weights)[None]).graph()
    everywhere, free = np.ones((7, 8), bool), np.full((7, 8), -1)
    problem = free_problem(
        unary.reshape(3, -1),
        graph.edges.numpy(),
        graph.weights[0].numpy(),
        start.ravel(),
        free.ravel(),
        everywhere.ravel(),
        np.ones(3, bool),
    )
    ours = expand_grid(unary, offsets, weights, start, free, everywhere, [True] * 3, 1)
    theirs = expand(problem, 1)
    assert theirs.energy == pytest.approx(ours.energy, rel=1e-12)
    assert (theirs.labels == ours.labels.ravel()).all()
    assert theirs.energy < theirs.start_energy


@pytest.mark.skipif(find_spec("maxflow") is None, reason="PyMaxflow is not installed (extra regloss[pymaxflow])")
class TestPyMaxflow(SolverConformance):
    exact_for_two = True

    def make(self) -> Solver:
        solver: Solver = regloss.create("solver", "pymaxflow")
        return solver
