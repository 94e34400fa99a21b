"""Dual ascent on the differences of a grid, compiled: total variation, on CPUs."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch

from regloss.dispatch import fast
from regloss.dual_problem import ArrayIteration, DualProblem, dual_steps
from regloss.dual_sets import Balls, Box
from regloss.forms import Saddle, SaddlePart
from regloss.operators import Gradient

if TYPE_CHECKING:
    from regloss_plugins.kernels.grid_ascent import Rows


@fast("dual-ascent", Gradient, Box, device="cpu")
@fast("dual-ascent", Gradient, Balls, device="cpu")
def grid_ascent(problem: DualProblem) -> list[ArrayIteration]:
    """The ascent of each image."""
    from regloss_plugins.kernels.grid_ascent import GridAscent  # and numba with it, only where it is used

    gradient, dual_set = problem.operator, problem.dual_set
    assert isinstance(gradient, Gradient)
    assert isinstance(dual_set, Box | Balls)
    size, isotropic = gradient.size, isinstance(dual_set, Balls)
    axes, width = len(size), size[-1]
    count = math.prod(size[:-1])
    images = []
    rows: Rows | None = None
    for number, scores in enumerate(problem.cost):
        if rows is None or gradient.factors is not None:  # else they are those of the image before
            rows = _rows(gradient[torch.tensor([number])], isotropic, problem)
        classes = len(scores)
        start = None
        if problem.start is not None:
            start = problem.start[number].to(scores).reshape(classes, axes, count, width).numpy()
        kernel = GridAscent(
            scores.reshape(classes, count, width).numpy(),
            start,
            rows,
            dual_set.radius,
            isotropic,
            problem.weight,
            problem.smoothing == "entropy",
            None if problem.roi is None else problem.roi[number].reshape(count, width).numpy(),
        )
        images.append(ArrayIteration(kernel, scores.shape, (classes, axes, *size)))
    return images


def _rows(gradient: Gradient, isotropic: bool, problem: DualProblem) -> Rows:
    """What the kernel needs to know of each row of a grid; ``gradient`` is that of one image."""
    from regloss_plugins.kernels.grid_ascent import Rows

    axes, lengths, width = gradient.axes, gradient.size[:-1], gradient.size[-1]
    entry = np.arange(math.prod(lengths))
    if gradient.factors is None:
        # Rows away from the border are alike, and a grid of at most five rows along each axis has all kinds.
        short = [min(length, 5) for length in lengths]
        kinds = [_kinds(length) for length in lengths]
        entry = np.arange(math.prod(short)).reshape(short)[np.ix_(*kinds)].ravel()
        gradient = Gradient((*short, width), spacing=gradient.spacing, dtype=gradient.dtype)
    factors = gradient.weights(torch.empty(0, dtype=gradient.dtype))
    weights = (problem.factor * factors[0]).to(problem.cost)
    if isinstance(problem.steps, str):
        # One class stands for all.
        form = Saddle((SaddlePart(gradient, Balls(1.0) if isotropic else Box(1.0)),))
        one = factors.new_zeros(1, 1, *gradient.size)
        (bound,) = form.diagonal_bound(one, diagonal=problem.steps == "diagonal")
        bound = (problem.factor**2 * bound).to(problem.cost).expand(1, 1, *weights.shape)[0, 0]
        steps = dual_steps(problem.step_scale, bound)
    else:
        steps = torch.full_like(weights, problem.steps)
    w, moves, metric = (
        values.reshape(axes, -1, width).transpose(0, 1).contiguous().numpy()
        for values in (weights, weights * steps, torch.where(steps > 0, 1 / steps, 0))
    )
    return Rows(w, moves, metric, entry, lengths[-1] if lengths else 1)


def _kinds(length: int) -> list[int]:
    """The place on an axis of at most five that each place on an axis is like, as to the distances to both ends."""
    if length <= 5:
        return list(range(length))
    return [0, *[2] * (length - 3), 3, 4]
