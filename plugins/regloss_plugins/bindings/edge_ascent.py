"""Dual ascent on the differences along the edges of graphs, compiled: nonlocal total variation, on CPUs."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from regloss.dispatch import fast
from regloss.dual_problem import ArrayIteration, DualProblem, dual_steps
from regloss.dual_sets import Box
from regloss.forms import Saddle, SaddlePart
from regloss.operators import EdgeDifferences
from regloss_plugins.bindings.edge_sums import array

if TYPE_CHECKING:
    from regloss_plugins.kernels.edge_ascent import EdgeList

# Each image's edges as the kernel wants them, which takes longer to find than some steps: kept as long as the operator.
_sorted: WeakKeyDictionary[EdgeDifferences, dict[int, EdgeList]] = WeakKeyDictionary()


@fast("dual-ascent", EdgeDifferences, Box, device="cpu")
def edge_ascent(problem: DualProblem) -> list[ArrayIteration]:
    """The ascent of each image."""
    from regloss_plugins.kernels.edge_ascent import EdgeAscent  # and numba with it, only where it is used

    operator, dual_set = problem.operator, problem.dual_set
    assert isinstance(operator, EdgeDifferences)
    assert isinstance(dual_set, Box)
    cost, weights = problem.cost, operator.weights.detach()
    steps, metric = step_sizes(operator, problem)
    images = []
    for number, scores in enumerate(cost):
        start, roi = problem.start, problem.roi
        kernel = EdgeAscent(
            array(scores.flatten(1)),
            None if start is None else array(start[number].to(cost)),
            _edge_list(operator, number),
            array(weights[number].to(cost)) * problem.factor,
            array(steps[number]),
            array(metric[number]),
            dual_set.radius,
            problem.weight,
            problem.smoothing == "entropy",
            None if roi is None else array(roi[number].flatten()),
        )
        images.append(ArrayIteration(kernel, scores.shape, (len(scores), weights.shape[1])))
    return images


def _edge_list(operator: EdgeDifferences, image: int) -> EdgeList:
    from regloss_plugins.kernels.edge_ascent import EdgeList

    lists = _sorted.setdefault(operator, {})
    if image not in lists:
        first, second = operator.ends[image]
        lists[image] = EdgeList.of(array(first), array(second), math.prod(operator.size))
    return lists[image]


def step_sizes(operator: EdgeDifferences, problem: DualProblem) -> tuple[Tensor, Tensor]:
    """Tau and 1 / tau, which is 0 where tau is, (B, E) each; all classes have the same."""
    batch, edges = operator.weights.shape
    if isinstance(problem.steps, str):
        # One class stands for all.
        one = problem.cost.new_zeros(batch, 1, *operator.size)
        form = Saddle((SaddlePart(operator, Box(1.0)),))
        with torch.no_grad():
            (bound,) = form.diagonal_bound(one, diagonal=problem.steps == "diagonal")
        bound = (bound * problem.factor**2).to(problem.cost).expand(batch, 1, edges).squeeze(1)
        steps = dual_steps(problem.step_scale, bound)
    else:
        steps = problem.cost.new_full((batch, edges), problem.steps)
    return steps, torch.where(steps > 0, 1 / steps, 0)
