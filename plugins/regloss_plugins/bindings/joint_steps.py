"""Dual ascent on sums of parts in Triton, whole batches at once, on CUDA devices: constraints, graphs, grids.

A part is what its module in `regloss_plugins.kernels` calls a part, whose arrays have the classes of a pixel, of an
edge, ... side by side, and a function that brings its y into the operator's shape.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from regloss.dispatch import fast, find
from regloss.dual_problem import JointProblem
from regloss.dual_sets import Balls, Box, DualSet, Free, Orthant
from regloss.operators import (
    ClassDifferences,
    ClassSums,
    EdgeDifferences,
    Gradient,
    LinearOperator,
    TreeDifferences,
    unscaled,
)
from regloss_plugins.bindings.triton_kernels import triton_is_there

if TYPE_CHECKING:
    from regloss_plugins.kernels.adjoint_parts_triton import AdjointPart
    from regloss_plugins.kernels.joint_ascent_triton import JointSteps
    from regloss_plugins.kernels.points_triton import Part


class Given(NamedTuple):
    """What a part is made from.

    Attributes:
        operator: K without its factors.
        dual_set: Y.
        factor: of K.
        shift: b of dual shape; None = 0.
        steps: tau of dual shape, or with one class, where it is the same for all.
        start: y, of dual shape.
        cost: (B, K, *S).
    """

    operator: LinearOperator
    dual_set: DualSet
    factor: float
    shift: Tensor | None
    steps: Tensor
    start: Tensor
    cost: Tensor

    @property
    def bounds(self) -> tuple[float, float]:
        """Of each entry of y, or of the lengths of vectors."""
        if isinstance(self.dual_set, Box | Balls):
            return -self.dual_set.radius, self.dual_set.radius
        return (0.0 if isinstance(self.dual_set, Orthant) else -math.inf), math.inf


Shaped = tuple["Part", Callable[[Tensor], Tensor]]


@fast("joint-steps", device="cuda")
def joint_steps(problem: JointProblem, most: float) -> _InShape | None:
    """The ascent of the batch; None in double precision, which GPUs are slow in, and for parts without code."""
    cost = problem.cost
    if cost.dtype != torch.float32 or not triton_is_there():
        return None
    from regloss_plugins.kernels.joint_ascent_triton import JointSteps  # and triton with it, only where it is used

    found: list[Shaped] = []
    for part, steps, start in zip(problem.parts, problem.steps, problem.starts, strict=True):
        operator, factor = unscaled(part.operator)
        made = find("joint-part", type(operator), type(part.dual_set), device=cost.device)
        absent = not isinstance(part.shift, Tensor) and part.shift == 0
        shift = None if absent else torch.as_tensor(part.shift, device=cost.device).detach().expand(start.shape)
        if made is None or not start.numel():
            return None
        if steps.ndim < start.ndim:  # one for all
            steps = steps.reshape([1] * start.ndim)
        steps = steps.detach().to(cost).expand(len(start), -1, *start.shape[2:])
        shaped = made(Given(operator, part.dual_set, factor, shift, steps, start, cost))
        if shaped is None:
            return None
        found.append(shaped)
    order = sums_last([part for part, _ in found])
    if order is None:
        return None
    parts = [found[number][0] for number in order]
    flat = cost.flatten(2).transpose(1, 2).contiguous()  # (B, N, K)
    iteration = JointSteps(
        parts=parts,
        momenta=flat.new_ones(len(flat)),
        extrapolations=flat.new_zeros(len(flat)),
        points=torch.empty_like(flat),
        cost=flat,
        size=cost.shape[2:],
        smoothing_weight=problem.weight,
        entropy=problem.smoothing == "entropy",
        most=most,
    )
    return _InShape(iteration, [order.index(number) for number in range(len(order))], [shape for _, shape in found])


def sums_last(parts: Sequence[Part | AdjointPart]) -> list[int] | None:
    """The places of ``parts`` in an order in which what looks at sums over pixels goes last; None where several do."""
    order = sorted(range(len(parts)), key=lambda number: parts[number].takes_sums)
    return None if any(parts[number].takes_sums for number in order[:-1]) else order


class _InShape:
    """`JointSteps` with the parts in their order and shapes.

    Args:
        iteration: over flat arrays.
        places: of the parts in it.
        shapes: what brings each part's y into the operator's shape.
    """

    def __init__(self, iteration: JointSteps, places: list[int], shapes: list[Callable[[Tensor], Tensor]]) -> None:
        self.iteration, self.places, self.shapes = iteration, places, shapes

    def advance(self, steps: int) -> list[Tensor]:
        """See `regloss.dual_problem.DualSteps`."""
        found = self.iteration.advance(steps)
        return [shape(found[place]) for place, shape in zip(self.places, self.shapes, strict=True)]

    def keep(self, images: Tensor) -> None:
        """See `regloss.dual_problem.DualSteps`."""
        self.iteration.keep(images)


def _twice(start: Tensor, cost: Tensor) -> Tensor:
    """Y and the y before, which are the same at the start."""
    return start.to(cost).expand(2, *start.shape).contiguous()


@fast("joint-part", EdgeDifferences, Box, device="cuda")
def edge_part(given: Given) -> Shaped | None:
    """Nonlocal total variation."""
    operator = given.operator
    assert isinstance(operator, EdgeDifferences)
    if given.shift is not None:
        return None
    return _along_edges(given, operator, 0, given.steps, given.start), _classes_first


@fast("joint-part", TreeDifferences, Orthant, device="cuda")
def tree_part(given: Given) -> Shaped | None:
    """Star shapes: the edges from each pixel's parent to it, in one class."""
    operator, (_, classes, *size) = given.operator, given.cost.shape
    assert isinstance(operator, TreeDifferences)
    if given.shift is not None:
        return None
    label = operator.label
    steps = given.steps if given.steps.shape[1] == 1 else given.steps[:, label : label + 1]
    start = given.start[:, label : label + 1]
    part = _along_edges(given, operator.edges, label, steps.flatten(2), start.flatten(2))

    def shape(dual: Tensor) -> Tensor:
        full = dual.new_zeros(len(dual), classes, *size)
        full[:, label] = dual.reshape(full[:, label].shape)
        return full

    return part, shape


def _along_edges(given: Given, operator: EdgeDifferences, first: int, steps: Tensor, start: Tensor) -> Part:
    """``steps`` (B, 1 or classes, E), and ``start`` (B, classes, E) of the classes from ``first`` on."""
    from regloss_plugins.kernels.edge_ascent_triton import EdgePart

    cost = given.cost
    low, high = given.bounds
    return EdgePart(
        duals=_twice(start.transpose(1, 2), cost),
        steps=steps.transpose(1, 2).contiguous(),
        first=first,
        low=low,
        high=high,
        adjoints=cost.new_zeros(2, len(cost), math.prod(cost.shape[2:]), start.shape[1]),
        **edge_tensors(operator, given.factor, cost),
    )


def edge_tensors(operator: EdgeDifferences, factor: float, like: Tensor) -> dict[str, Tensor]:
    """What kernels on edges take of the operator: weights (B, E) of the type of ``like``, ends, and the incidence."""
    begin, order = operator.incidence
    weights = (factor * operator.weights.detach().to(like)).contiguous()
    return {"weights": weights, "ends": operator.edges.contiguous(), "start": begin, "order": order}


def _classes_first(dual: Tensor) -> Tensor:
    """(B, E, K) to (B, K, E)."""
    return dual.transpose(1, 2).contiguous()


@fast("joint-part", Gradient, Box, device="cuda")
@fast("joint-part", Gradient, Balls, device="cuda")
def grid_part(given: Given) -> Shaped | None:
    """Total variation."""
    from regloss_plugins.kernels.grid_differences_triton import BallsPart, GridPart

    operator, cost = given.operator, given.cost
    assert isinstance(operator, Gradient)
    if given.shift is not None:
        return None
    low, high = given.bounds
    part = (BallsPart if isinstance(given.dual_set, Balls) else GridPart)(
        duals=_twice(_classes_last(given.start.flatten(3)), cost),
        weights=grid_weights(operator, given.factor, cost),
        steps=_classes_last(given.steps.flatten(3)).contiguous(),
        first=0,
        low=low,
        high=high,
    )
    return part, lambda dual: dual.permute(0, 3, 1, 2).reshape(given.start[: len(dual)].shape)


def grid_weights(operator: Gradient, factor: float, like: Tensor) -> Tensor:
    """(B, axes, N), of the type and for the images of ``like``."""
    weights = factor * operator.weights(like).detach().to(like)
    return weights.flatten(2).expand(len(like), -1, -1).contiguous()


@fast("joint-part", ClassSums, Free, device="cuda")
@fast("joint-part", ClassSums, Orthant, device="cuda")
def sums_part(given: Given) -> Shaped | None:
    """Volumes."""
    from regloss_plugins.kernels.class_sums_triton import SumsPart

    operator, cost = given.operator, given.cost
    assert isinstance(operator, ClassSums)
    sides = (len(cost), 2 if operator.two_sided else 1, cost.shape[1])
    shift = torch.zeros_like(given.start) if given.shift is None else given.shift
    low, high = given.bounds
    part = SumsPart(
        duals=_twice(given.start.reshape(sides), cost),
        weights=given.factor * operator.scale.squeeze(1),
        steps=given.steps.expand_as(given.start).reshape(sides).contiguous(),
        first=0,
        low=low,
        high=high,
        region=operator.inside.flatten(1).to(cost),
        shift=shift.to(torch.float64).reshape(sides).contiguous(),
    )
    return part, lambda dual: dual.reshape(len(dual), *given.start.shape[1:])


@fast("joint-part", ClassDifferences, Orthant, device="cuda")
def order_part(given: Given) -> Shaped | None:
    """Ordered sets."""
    from regloss_plugins.kernels.class_differences_triton import OrderPart

    operator, cost = given.operator, given.cost
    assert isinstance(operator, ClassDifferences)
    if given.shift is not None:
        return None
    one_more = torch.zeros_like(cost[:, :1])
    steps = given.steps.expand_as(given.start)
    low, high = given.bounds
    part = OrderPart(
        duals=_twice(_classes_last(torch.cat([given.start.to(cost), one_more], 1).flatten(2)), cost),
        weights=(given.factor * operator.inside.flatten(1)).to(cost),
        steps=_classes_last(torch.cat([steps, one_more], 1).flatten(2)).contiguous(),
        first=0,
        low=low,
        high=high,
    )
    return part, lambda dual: dual[..., :-1].transpose(1, 2).reshape(len(dual), *given.start.shape[1:])


def _classes_last(values: Tensor) -> Tensor:
    """(B, K, ...) to (B, ..., K)."""
    return values.movedim(1, -1)
