"""Dual ascent on the differences of a grid in Triton, whole batches at once: total variation, on CUDA devices."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from regloss.dispatch import fast
from regloss.dual_problem import DualProblem, dual_steps
from regloss.dual_sets import Balls, Box
from regloss.forms import Saddle, SaddlePart
from regloss.operators import Gradient
from regloss_plugins.bindings.triton_kernels import triton_is_there

if TYPE_CHECKING:
    from regloss_plugins.kernels.grid_ascent_triton import GridSteps


@fast("dual-steps", Gradient, Box, device="cuda")
@fast("dual-steps", Gradient, Balls, device="cuda")
def grid_steps(problem: DualProblem, most: float) -> _InShape | None:
    """The ascent of the batch; None in double precision, which GPUs are slow in, and which the reference has."""
    if problem.cost.dtype != torch.float32 or not triton_is_there():
        return None
    from regloss_plugins.kernels.grid_ascent_triton import GridSteps  # and triton with it, only where it is used

    gradient, dual_set = problem.operator, problem.dual_set
    assert isinstance(gradient, Gradient)
    assert isinstance(dual_set, Box | Balls)
    cost = problem.cost.flatten(2).contiguous()
    axes, (batch, classes, pixels) = gradient.axes, cost.shape
    weights = (problem.factor * gradient.weights(cost).detach()).to(cost)  # (B or 1, axes, *S)
    if isinstance(problem.steps, str):
        # One class stands for all.
        form = Saddle((SaddlePart(gradient, Box(1.0) if isinstance(dual_set, Box) else Balls(1.0)),))
        one = cost.new_zeros(len(weights), 1, *gradient.size)
        (bound,) = form.diagonal_bound(one, diagonal=problem.steps == "diagonal")
        bound = (problem.factor**2 * bound).to(cost).expand(len(weights), 1, *weights.shape[1:]).squeeze(1)
        steps = dual_steps(problem.step_scale, bound)
    else:
        steps = torch.full_like(weights, problem.steps)
    duals = cost.new_zeros(3, batch, classes, axes, pixels)
    if problem.start is not None:
        duals[[0, 2]] = problem.start.to(cost).reshape(duals.shape[1:])
    weights, moves, metric = (
        values.flatten(2).contiguous() for values in (weights, weights * steps, torch.where(steps > 0, 1 / steps, 0))
    )
    iteration = GridSteps(
        duals=duals,
        momenta=cost.new_ones(batch),
        extrapolations=cost.new_zeros(batch),
        cost=cost,
        weights=weights,
        moves=moves,
        metric=metric,
        strides=[math.prod(gradient.size[axis + 1 :]) for axis in range(axes)],
        radius=dual_set.radius,
        isotropic=isinstance(dual_set, Balls),
        smoothing_weight=problem.weight,
        entropy=problem.smoothing == "entropy",
        most=most,
    )
    return _InShape(iteration, gradient.size)


class _InShape:
    """`GridSteps` over pixels (*S).

    Args:
        iteration: over flat pixels.
        size: *S.
    """

    def __init__(self, iteration: GridSteps, size: tuple[int, ...]) -> None:
        self.iteration, self.size = iteration, size

    def advance(self, steps: int) -> list[Tensor]:
        """See `regloss.dual_problem.DualSteps`."""
        found = self.iteration.advance(steps)
        return [found.reshape(*found.shape[:-1], *self.size)]

    def keep(self, images: Tensor) -> None:
        """See `regloss.dual_problem.DualSteps`."""
        self.iteration.keep(images)
