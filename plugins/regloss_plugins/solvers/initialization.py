"""Initial probabilities of iterative solvers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from regloss.errors import UsageError
from regloss.numerics import one_hot
from regloss.solver import Problem
from regloss_plugins.solvers.gibbs import gibbs


def start_probabilities(problem: Problem, cost: Tensor, state: type[Any], name: str) -> Tensor | None:
    """Probabilities (B, K, *S) to start from, 0 where the cost is inf; None for a cold start.

    Args:
        problem: its ``warm`` is None, labels, or a ``state``.
        cost: (B, K, *S), inf where a label cannot be taken.
        state: the solver's own, with the field ``probabilities``: mass where the cost is inf is taken away, the rest
            normalised; pixels without any get the minimiser of their costs.
        name: of the solver, for messages.

    Raises:
        UsageError: a start of another kind or shape, or with negative probabilities.
    """
    warm = problem.warm
    if warm is None:
        return None
    if isinstance(warm, state):
        given = warm.probabilities.detach().to(cost)
        if given.shape != cost.shape or not bool((given >= 0).all()):
            raise UsageError(
                f"A start of {name} must hold non-negative probabilities of shape {tuple(cost.shape)} (B, K, *S); got "
                f"shape {tuple(given.shape)}{', with negative values or NaN' if given.shape == cost.shape else ''}."
            )
    elif isinstance(warm, Tensor):
        inside = warm if problem.roi is None else warm.masked_fill(~problem.roi.to(warm.device), 0)
        given = one_hot(inside.to(cost.device, torch.int64), cost.shape[1], cost.dtype)
    else:
        raise UsageError(
            f"{name} starts from labels (B, *S), a {state.__name__}, or an earlier solution of its own; got warm of "
            f"type {type(warm).__name__}."
        )
    given = given.masked_fill(cost == float("inf"), 0)
    mass = given.sum(1, keepdim=True)
    return torch.where(mass > 0, given / mass, gibbs(cost, problem.entropy))
