"""Iterated conditional modes: each pixel takes its best label while its neighbours hold theirs.

    min over labels l of   sum over pixels p of unary_p(l_p) + sum over pairs pq of w_pq [l_p != l_q]

Pixels whose coordinates agree in parity, axis by axis, are never neighbours on the usual grids, so all of such a colour
are updated at once and exactly; a pass goes through all 2^D colours. The energy never rises, and what is reached is a
labelling that no change of a single pixel improves, in general not the minimum.

Source: Besag, "On the statistical analysis of dirty pictures", Journal of the Royal Statistical Society B, 1986.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from regloss import grid
from regloss.errors import UsageError
from regloss.forms import Form, GridGraph
from regloss.numerics import one_hot
from regloss.solver import Problem, Solution, Solver, linear_energy, possible_cost, statuses


@dataclass(frozen=True)
class MyComponent(Solver):
    """Iterated conditional modes on grids, for whole batches, on any device, in 1D to 3D.

    The solution's bound leaves the pairs out: it is valid, and loose unless the pairs are weak.

    Args:
        max_steps: largest number of passes over all pixels, >= 1.

    Raises:
        UsageError: a setting outside its range, an entropy other than 0, offsets that join pixels of one colour.
    """

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
        graph = problem.form
        assert isinstance(graph, GridGraph)
        _refuse_what_it_cannot_solve(problem, graph)
        unary = problem.unary.to(torch.promote_types(problem.unary.dtype, graph.weights.dtype))
        batch, classes = unary.shape[:2]
        inside = grid.full_roi(problem.roi, (batch, *unary.shape[2:]), unary.device)
        cost = possible_cost(problem).to(unary.dtype)
        labels = _start(problem, cost, inside)

        def energy() -> Tensor:
            return linear_energy(unary, one_hot(labels, classes, unary.dtype), problem.roi) + graph.cut(labels)

        start_energy = energy()
        colours = _colours(unary)
        steps = torch.zeros(batch, dtype=torch.int64, device=unary.device)
        moving = torch.ones(batch, dtype=torch.bool, device=unary.device)
        for _ in range(self.max_steps):
            before = labels
            for colour in colours:
                # sum of w [l_q != k] over the neighbours q is a constant minus that of those with label k.
                local = cost - graph.neighbor_sum(one_hot(labels, classes, cost.dtype))
                better = local.amin(1) < _at(local, labels)  # of equally good labels a pixel keeps its own
                labels = torch.where(better & colour & inside, local.argmin(1), labels)
            steps += moving
            moving &= (labels != before).flatten(1).any(1)
            if not bool(moving.any()):
                break

        final = energy()
        without_pairs = (cost.amin(1) * inside).flatten(1).sum(1)
        return Solution(
            probabilities=one_hot(labels, classes, problem.unary.dtype),
            labels=labels,
            energy=final,
            bound=torch.minimum(without_pairs, final),  # equal where no pair is cut, but for rounding
            steps=steps,
            status=statuses((~moving).tolist()),
            start_energy=start_energy,
            state=labels,
        )


def _refuse_what_it_cannot_solve(problem: Problem, graph: GridGraph) -> None:
    if problem.entropy > 0:
        raise UsageError(
            f"my-component finds labels, for entropy = 0; got entropy = {problem.entropy}. Leave it out, or use a "
            "solver over probabilities, mean-field for example."
        )
    for offset in graph.offsets:
        if all(step % 2 == 0 for step in offset):
            raise UsageError(
                f"my-component updates pixels of equal parity at once, but the offset {offset} joins such pixels. "
                "Use a smaller neighbourhood, or alpha-expansion."
            )


def _start(problem: Problem, cost: Tensor, inside: Tensor) -> Tensor:
    """Labels (B, *S): those given, where a pixel may take them, and the cheapest ones elsewhere."""
    cheapest = cost.argmin(1)
    if problem.warm is None:
        return cheapest
    if not isinstance(problem.warm, Tensor):
        raise UsageError(f"my-component starts from labels (B, *S); got warm of type {type(problem.warm).__name__}.")
    given = torch.where(inside, problem.warm.to(cost.device, torch.int64), 0)
    return torch.where(_at(cost, given).isfinite(), given, cheapest)


def _at(values: Tensor, labels: Tensor) -> Tensor:
    """(B, *S) entries of ``values`` (B, K, *S) at ``labels`` (B, *S)."""
    return values.gather(1, labels.unsqueeze(1)).squeeze(1)


def _colours(unary: Tensor) -> list[Tensor]:
    """2^D masks (*S): pixels whose coordinates agree in parity."""
    parity = torch.zeros(unary.shape[2:], dtype=torch.int64, device=unary.device)
    for axis, length in enumerate(unary.shape[2:]):
        odd = torch.arange(length, device=unary.device) % 2
        parity += 2**axis * odd.reshape(-1, *[1] * (parity.ndim - axis - 1))
    return [parity == colour for colour in range(2**parity.ndim)]
