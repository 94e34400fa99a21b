"""The implicit gradient's linear system by conjugate gradients in Triton, whole batches at once, on CUDA devices."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from regloss.dispatch import fast, find
from regloss.dual_sets import Balls, Box, Free, Orthant
from regloss.forms import SaddlePart
from regloss.implicit import Adjoint, JointAdjointProblem, inverse_diagonal, softmax_response
from regloss.numerics import look_every
from regloss.operators import (
    ClassDifferences,
    ClassSums,
    EdgeDifferences,
    Gradient,
    LinearOperator,
    TreeDifferences,
    unscaled,
)
from regloss_plugins.bindings.joint_steps import edge_tensors, grid_weights, sums_last
from regloss_plugins.bindings.triton_kernels import triton_is_there

if TYPE_CHECKING:
    from regloss_plugins.kernels.adjoint_parts_triton import AdjointPart


class Given(NamedTuple):
    """What a part is made from; all but the operator of dual shape.

    Attributes:
        operator: K without its factors.
        factor: of K.
        residual: r = Q K S' g.
        steepest: z = Q M^-1 r.
        inverse: M^-1; but for balls 0 where a variable is not free.
        bends: of balls, the normals and the curvature (B, K, 1, *S).
        classes: K of them.
    """

    operator: LinearOperator
    factor: float
    residual: Tensor
    steepest: Tensor
    inverse: Tensor
    bends: tuple[Tensor, Tensor] | None
    classes: int


Shaped = tuple["AdjointPart", Callable[[Tensor], Tensor]]


@fast("joint-adjoint", device="cuda")
def joint_adjoint(problem: JointAdjointProblem) -> Adjoint | None:
    """As many steps as the reference takes; None in double precision, and for parts without code."""
    if problem.start.dtype != torch.float32 or not triton_is_there():
        return None
    with torch.no_grad():
        return _solved(problem)


def _solved(problem: JointAdjointProblem) -> Adjoint | None:
    from regloss_plugins.kernels.adjoint_triton import AdjointSteps  # and triton with it, only where it is used

    start, entropy, s = problem.start, problem.entropy, problem.log_probabilities.exp()
    variance = s * (1 - s) / entropy
    found: list[Shaped] = []
    for part, dual in zip(problem.parts, problem.duals, strict=True):
        operator, _ = unscaled(part.operator)
        made = find("adjoint-part", type(operator), type(part.dual_set), device=start.device)
        if made is None or not dual.numel():
            return None
        found.append(made(_given(part, dual.to(start), s, variance, start)))
    order = sums_last([part for part, _ in found])
    if order is None:
        return None
    parts = [found[number][0] for number in order]
    iteration = AdjointSteps(parts, _flat(s), s.shape[2:], entropy, problem.tolerance)
    taken, looks = 0, look_every(start.device)
    while taken < problem.max_steps and bool(iteration.active.any()):
        count = min(looks, problem.max_steps - taken)
        iteration.advance(count)
        taken += count
    solution = [shape(part.solution) for part, shape in found]
    back = [part.operator.adjoint(nu) for part, nu in zip(problem.parts, solution, strict=True)]
    response = start - softmax_response(s, entropy)(torch.stack(back).sum(0))
    return Adjoint(response, tuple(solution), taken, iteration.relative_residual)


def _given(part: SaddlePart, dual: Tensor, s: Tensor, variance: Tensor, start: Tensor) -> Given:
    operator, factor = unscaled(part.operator)
    tangent = part.dual_set.tangent(part.residual(s), dual)
    inverse = inverse_diagonal(part, tangent, dual, variance).to(start).expand_as(dual)
    bends = None
    if isinstance(part.dual_set, Balls):
        assert isinstance(tangent.curvature, Tensor)
        bends = part.dual_set.normals(dual)[0], tangent.curvature.to(start)
    else:
        inverse = tangent.project(inverse)
    residual = tangent.project(part.operator.apply(start)).to(start)
    return Given(operator, factor, residual, tangent.project(inverse * residual), inverse, bends, s.shape[1])


def _flat(values: Tensor) -> Tensor:
    """(B, K, *S) as (B, N, K)."""
    return values.flatten(2).transpose(1, 2).contiguous()


def _moving(given: Given, laid: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    """The tensors that every part has, brought from the dual shape to (B, axes, E, classes) by ``laid``."""
    residual, steepest, inverse = (laid(one).contiguous() for one in (given.residual, given.steepest, given.inverse))
    return {
        "solution": torch.zeros_like(residual),
        "residual": residual,
        "steepest": steepest,
        "direction": torch.zeros_like(residual),
        "inverse": inverse,
    }


@fast("adjoint-part", Gradient, Box, device="cuda")
@fast("adjoint-part", Gradient, Balls, device="cuda")
def grid_part(given: Given) -> Shaped:
    """Total variation."""
    from regloss_plugins.kernels.grid_adjoint_triton import BallsAdjoint, GridAdjoint

    operator, like = given.operator, given.residual
    assert isinstance(operator, Gradient)
    tensors = {"weights": grid_weights(operator, given.factor, like), **_moving(given, _axes_first)}
    if given.bends is None:
        return GridAdjoint(**tensors, column=0), lambda nu: nu.movedim(3, 1).reshape(like.shape)
    normals, curvature = given.bends
    part = BallsAdjoint(**tensors, column=0, normals=_axes_first(normals).contiguous(), curvature=_flat(curvature))
    return part, lambda nu: nu.movedim(3, 1).reshape(like.shape)


def _axes_first(values: Tensor) -> Tensor:
    """(B, K, axes, *S) as (B, axes, N, K)."""
    return values.flatten(3).movedim(1, 3)


@fast("adjoint-part", EdgeDifferences, Box, device="cuda")
def edge_part(given: Given) -> Shaped:
    """Nonlocal total variation."""
    assert isinstance(given.operator, EdgeDifferences)
    part = _along_edges(given, given.operator, 0, lambda values: values.transpose(1, 2).unsqueeze(1))
    return part, lambda nu: nu.squeeze(1).transpose(1, 2)


@fast("adjoint-part", TreeDifferences, Orthant, device="cuda")
def tree_part(given: Given) -> Shaped:
    """Star shapes, in one class."""
    operator, like = given.operator, given.residual
    assert isinstance(operator, TreeDifferences)
    label = operator.label

    def shape(nu: Tensor) -> Tensor:
        full = torch.zeros_like(like)
        full[:, label] = nu.reshape(full[:, label].shape)
        return full

    part = _along_edges(given, operator.edges, label, lambda values: values[:, label].flatten(1)[:, None, :, None])
    return part, shape


def _along_edges(given: Given, operator: EdgeDifferences, column: int, laid: Callable[[Tensor], Tensor]) -> AdjointPart:
    from regloss_plugins.kernels.edge_adjoint_triton import EdgeAdjoint

    tensors = edge_tensors(operator, given.factor, given.residual)
    return EdgeAdjoint(column=column, **tensors, **_moving(given, laid))


@fast("adjoint-part", ClassSums, Free, device="cuda")
@fast("adjoint-part", ClassSums, Orthant, device="cuda")
def sums_part(given: Given) -> Shaped:
    """Volumes."""
    from regloss_plugins.kernels.class_sums_adjoint_triton import SumsAdjoint

    operator, like = given.operator, given.residual
    assert isinstance(operator, ClassSums)
    part = SumsAdjoint(
        weights=(given.factor * operator.scale.squeeze(1)).to(like),
        column=0,
        region=operator.inside.flatten(1).to(like),
        **_moving(given, lambda values: values.reshape(len(values), -1, 1, given.classes)),
    )
    return part, lambda nu: nu.reshape(like.shape)


@fast("adjoint-part", ClassDifferences, Orthant, device="cuda")
def order_part(given: Given) -> Shaped:
    """Ordered sets."""
    from regloss_plugins.kernels.class_differences_adjoint_triton import OrderAdjoint

    operator, like = given.operator, given.residual
    assert isinstance(operator, ClassDifferences)

    def laid(values: Tensor) -> Tensor:
        return _flat(torch.cat([values, torch.zeros_like(values[:, :1])], 1)).unsqueeze(1)

    part = OrderAdjoint(weights=(given.factor * operator.inside.flatten(1)).to(like), column=0, **_moving(given, laid))
    return part, lambda nu: nu[:, 0, :, :-1].transpose(1, 2).reshape(like.shape)
