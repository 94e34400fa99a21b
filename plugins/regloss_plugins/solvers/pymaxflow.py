"""Alpha-expansion whose minimum cuts are computed by PyMaxflow: an independent reference for `AlphaExpansion`.

Problem, moves and guarantees are those of `regloss_plugins.solvers.alpha_expansion`; the cut of each move is built as
in `regloss_plugins.kernels.expansion`, by array operations. PyMaxflow, Boykov's and Kolmogorov's max-flow code for
Python, stands under the GPL, so it is an optional extra: ``pip install 'regloss[pymaxflow]'``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from regloss.checks import check_at_least_one
from regloss.errors import MissingDependency
from regloss.forms import Form, Graph, GridGraph
from regloss.solver import Problem, Solution, Solver
from regloss_plugins.kernels.expansion import Expansion
from regloss_plugins.kernels.potts import FreeProblem
from regloss_plugins.solvers.alpha_expansion import refuse_entropy, solve_free

try:
    import maxflow
except ImportError as cause:
    raise MissingDependency(
        "The solver 'pymaxflow' needs the package PyMaxflow (GPL), which is not installed. Install it with "
        "pip install 'regloss[pymaxflow]', or use 'alpha-expansion', which solves the same problems without it."
    ) from cause


@dataclass(frozen=True)
class PyMaxflow(Solver):
    """Expansion moves on PyMaxflow's graph; images one after the other, since PyMaxflow holds Python's lock.

    Args:
        max_cycles: largest number of passes over the labels, >= 1.

    Raises:
        UsageError: an entropy weight other than 0.
    """

    max_cycles: int = 5
    accepts: ClassVar[tuple[type[Form], ...]] = (GridGraph, Graph)

    def __post_init__(self) -> None:
        check_at_least_one(max_cycles=self.max_cycles)

    def entropies(self, form: type[Form]) -> Literal["zero"]:
        """0 alone: it minimises over labels."""
        return "zero"

    def minimise(self, problem: Problem) -> Solution:
        """Solve every image of the batch."""
        refuse_entropy(problem, "pymaxflow")
        return solve_free(problem, self._solve_one, workers=1)

    def _solve_one(self, problem: FreeProblem, number: int) -> Expansion:
        return expand(problem, self.max_cycles)


def expand(problem: FreeProblem, max_cycles: int) -> Expansion:
    """Expansion moves until a whole cycle changes nothing, or for ``max_cycles`` cycles."""
    labels = problem.start
    energy = start_energy = problem.energy(labels)
    if len(problem.choices) == 1 or len(problem.pixels) == 0:
        return Expansion(problem.everywhere(labels), energy, start_energy, 0, True, energy)
    if len(problem.choices) == 2:
        # From the constant labelling, one expansion of the second label reaches every labelling.
        exact = _best_move(problem, np.zeros_like(labels), 1)
        if problem.energy(exact) < energy:  # else the start is a minimum itself
            labels, energy = exact, problem.energy(exact)
        return Expansion(problem.everywhere(labels), energy, start_energy, 1, True, energy)
    cycles, converged = 0, False
    while cycles < max_cycles and not converged:
        cycles += 1
        converged = True
        for alpha in range(len(problem.choices)):
            trial = _best_move(problem, labels, alpha)
            trial_energy = problem.energy(trial)
            if trial_energy < energy:
                labels, energy, converged = trial, trial_energy, False
    return Expansion(problem.everywhere(labels), energy, start_energy, cycles, converged, -np.inf)


def _best_move(problem: FreeProblem, labels: NDArray[np.int64], alpha: int) -> NDArray[np.int64]:
    """The labels after the best expansion of ``alpha``; of several best ones, that which changes least."""
    movers = np.flatnonzero(labels != alpha)
    if len(movers) == 0:
        return labels
    node = np.full(len(labels), -1)
    node[movers] = np.arange(len(movers))
    first, second = problem.edges.T
    weights, differ = problem.weights, labels[first] != labels[second]
    both = (labels[first] != alpha) & (labels[second] != alpha)

    # Of a pair with different labels, one of them alpha, the other end pays w for keeping its label. If neither is
    # alpha, half of w is an edge between them and each pays the other half for keeping: w, w, w and 0 in all.
    share = weights * differ * np.where(both, 0.5, 1.0)
    keeping = problem.unary[labels, np.arange(len(labels))]
    keeping = keeping + np.bincount(first, share, len(labels)) + np.bincount(second, share, len(labels))
    gain = (keeping - problem.unary[alpha])[movers]
    capacity = np.where(differ, 0.5, 1.0)[both] * weights[both]

    graph = maxflow.GraphFloat(len(movers), len(capacity))
    nodes = graph.add_nodes(len(movers))
    graph.add_edges(node[first[both]], node[second[both]], capacity, capacity)
    # The sink's side takes alpha. Nodes that neither terminal reaches count to the source, so ties keep their label.
    graph.add_grid_tedges(nodes, np.maximum(-gain, 0), np.maximum(gain, 0))
    graph.maxflow()
    moved = labels.copy()
    moved[movers[graph.get_grid_segments(nodes)]] = alpha
    return moved
