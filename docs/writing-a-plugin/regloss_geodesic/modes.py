"""IteratedModes: labels by coordinate descent, each pixel in turn taking the label that is cheapest given the others.

    l_p <- argmin over k of  unary_pk + sum over neighbours q of w_pq [l_q != k]

Pixels of equal parity along every axis, which are no neighbours of each other, are relabelled together. The energy
never rises; where it ends no change of one pixel would lower it, a far weaker promise than that of alpha-expansion.

Source: Besag, "On the statistical analysis of dirty pictures", 1986.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from regloss import Form, GridGraph, Problem, Solution, Solver, UsageError, grid
from regloss.numerics import one_hot
from regloss.solver import linear_energy, possible_cost, statuses


@dataclass(frozen=True)
class IteratedModes(Solver):
    """max_steps: largest number of passes over all pixels, >= 1."""

    max_steps: int = 50
    accepts: ClassVar[tuple[type[Form], ...]] = (GridGraph,)

    def __post_init__(self) -> None:
        if self.max_steps < 1:
            raise UsageError(f"max_steps must be at least 1; got {self.max_steps}.")

    def entropies(self, form: type[Form]) -> Literal["zero"]:
        """0 alone: it minimises over labels."""
        return "zero"

    def minimise(self, problem: Problem) -> Solution:
        """Solve every image of the batch."""
        graph, cost = problem.form, possible_cost(problem)
        assert isinstance(graph, GridGraph)
        if problem.entropy > 0 or any(all(step % 2 == 0 for step in offset) for offset in graph.offsets):
            raise UsageError("iterated-modes finds labels, for entropy 0, and for pairs of nearest neighbours alone.")
        (batch, classes), size = cost.shape[:2], cost.shape[2:]
        inside = grid.full_roi(problem.roi, (batch, *size), cost.device)
        labels = cost.argmin(1)
        if isinstance(problem.warm, Tensor):
            given = torch.where(inside, problem.warm.to(labels), 0)
            labels = torch.where(cost.gather(1, given.unsqueeze(1)).squeeze(1).isfinite(), given, labels)

        def energy() -> Tensor:
            return linear_energy(problem.unary, one_hot(labels, classes, cost.dtype), problem.roi) + graph.cut(labels)

        start_energy, steps = energy(), torch.zeros(batch, dtype=torch.int64, device=cost.device)
        moving = torch.ones_like(steps, dtype=torch.bool)
        for _ in range(self.max_steps):
            before = labels
            for parity in itertools.product((0, 1), repeat=len(size)):
                local = cost - graph.neighbor_sum(one_hot(labels, classes, cost.dtype))
                turn = torch.zeros_like(inside)
                turn[(..., *(slice(first, None, 2) for first in parity))] = True
                better = local.amin(1) < local.gather(1, labels.unsqueeze(1)).squeeze(1)
                labels = torch.where(turn & better & inside, local.argmin(1), labels)
            steps += moving
            moving &= (labels != before).flatten(1).any(1)
            if not bool(moving.any()):
                break
        final = energy()
        return Solution(
            probabilities=one_hot(labels, classes, problem.unary.dtype),
            labels=labels,
            energy=final,
            bound=torch.full_like(final, -torch.inf),
            steps=steps,
            status=statuses((~moving).tolist()),
            start_energy=start_energy,
            state=labels,
        )
