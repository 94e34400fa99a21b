"""Dual chains: a lower bound on a Potts energy, and labels rounded from it.

    min over labels of   sum over pixels of unary[l_p, p] + sum over edges of w_pq [l_p != l_q],     w >= 0

Rows, columns and diagonals of a grid are chains, on which the minimum is found by dynamic programming. The unaries are
divided among the chains through each pixel; the sum of the chains' minima is then a lower bound, whatever the division,
and sequential tree-reweighted message passing raises it step by step. It says how far any labelling, of any solver, can
be from the best. On a single row the bound is the minimum; on grids a small gap may remain for good, that between the
minimum and its linear relaxation.

The labels, chosen greedily from the messages in every step, are better than those of expansion moves where unaries are
strong, and worse where they are weak: there the bound needs many steps. To certify labels, start from them:

>>> import torch
>>> from regloss import GridCRF, solve
>>> image = torch.rand(1, 1, 12, 12, generator=torch.Generator().manual_seed(0))
>>> unary = torch.rand(1, 3, 12, 12, generator=torch.Generator().manual_seed(1))
>>> term = GridCRF(weight=0.3).bind(image)
>>> labels = solve(term, unary, "alpha-expansion").labels
>>> certified = solve(term, unary, DualChains(), warm=labels)
>>> bool(certified.gap < 0.01 * certified.energy)
True

Source: Kolmogorov, "Convergent tree-reweighted message passing for energy minimization", PAMI 2006.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from regloss.checks import check_at_least_one
from regloss.errors import UsageError
from regloss.forms import Form, GridGraph
from regloss.solver import Problem, Solution, Solver
from regloss_plugins.kernels.chains import bound_grid
from regloss_plugins.kernels.expansion import Expansion
from regloss_plugins.solvers.alpha_expansion import ImageProblem, refuse_entropy, solve_discrete


@dataclass(frozen=True)
class DualChains(Solver):
    """Tree-reweighted message passing on the chains of a grid; on the CPU, images of a batch in threads.

    A status OPTIMAL means that bound and energy agree up to rounding, CONVERGED that the bound stands still.

    Args:
        max_steps: largest number of passes over all messages, there and back, >= 1.
        tolerance: a step that raises the bound by no more than this part of the gap ends it, in [0, 1).
        workers: threads over the images of a batch; None = as many as the process may use cores.

    Raises:
        UsageError: a setting outside its range, an entropy weight other than 0.
    """

    max_steps: int = 100
    tolerance: float = 1e-3
    workers: int | None = None
    accepts: ClassVar[tuple[type[Form], ...]] = (GridGraph,)

    def __post_init__(self) -> None:
        check_at_least_one(max_steps=self.max_steps)
        if not (math.isfinite(self.tolerance) and 0 <= self.tolerance < 1):
            raise UsageError(f"tolerance must lie in [0, 1), a part of the gap; got {self.tolerance}.")
        if self.workers is not None and self.workers < 1:
            raise UsageError(f"workers must be at least 1, or None for one a core; got {self.workers}.")

    def entropies(self, form: type[Form]) -> Literal["zero"]:
        """0 alone: it minimises over labels."""
        return "zero"

    def minimise(self, problem: Problem) -> Solution:
        """Bound every image of the batch; labels never end above their start."""
        refuse_entropy(problem, "dual-chains")
        return solve_discrete(problem, self._solve_one, self.workers)

    def _solve_one(self, image: ImageProblem) -> Expansion:
        assert isinstance(image.form, GridGraph)
        found = bound_grid(
            image.unary,
            image.offsets,
            image.weights,
            image.labels,
            image.fixed,
            image.roi,
            image.allowed,
            self.max_steps,
            self.tolerance,
        )
        return Expansion(
            labels=found.labels,
            energy=found.energy,
            start_energy=found.start_energy,
            cycles=found.steps,
            converged=found.converged,
            bound=found.bound,
        )
