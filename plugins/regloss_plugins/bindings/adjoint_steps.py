"""The implicit gradient's linear system by conjugate gradients in Triton, whole batches at once, on CUDA devices."""

from __future__ import annotations

import torch
from torch import Tensor

from regloss.dispatch import fast
from regloss.dual_sets import Balls, Box
from regloss.implicit import Adjoint, AdjointProblem, inverse_diagonal, softmax_response
from regloss.numerics import look_every
from regloss.operators import EdgeDifferences, Gradient, unscaled
from regloss_plugins.bindings.triton_kernels import triton_is_there


@fast("adjoint", Gradient, Box, device="cuda")
@fast("adjoint", Gradient, Balls, device="cuda")
@fast("adjoint", EdgeDifferences, Box, device="cuda")
def adjoint_steps(problem: AdjointProblem) -> Adjoint | None:
    """By as many steps as the reference takes; None in double precision, and where there is no edge."""
    if problem.start.dtype != torch.float32 or not problem.dual.numel() or not triton_is_there():
        return None
    with torch.no_grad():
        return _solved(problem)


def _solved(problem: AdjointProblem) -> Adjoint:
    from regloss_plugins.kernels.adjoint_triton import AdjointSteps  # and triton with it, only where it is used

    part, start, entropy = problem.part, problem.start, problem.entropy
    operator, factor = unscaled(part.operator)
    probabilities, dual = problem.log_probabilities.exp(), problem.dual.to(start)
    batch = len(start)
    tangent = part.dual_set.tangent(part.residual(probabilities), dual)
    inverse = inverse_diagonal(part, tangent, dual, probabilities * (1 - probabilities) / entropy).to(start)
    bends: list[Tensor] = []
    if isinstance(part.dual_set, Balls):
        normals, _ = part.dual_set.normals(dual)
        assert isinstance(tangent.curvature, Tensor)
        bends = [_flat(normals), tangent.curvature.to(start).flatten(2).transpose(1, 2).contiguous()]
    else:
        inverse = tangent.project(inverse)
    residual = tangent.project(part.operator.apply(start)).to(start)
    steepest = tangent.project(inverse * residual)
    graph: list[Tensor] = []
    if isinstance(operator, EdgeDifferences):
        weights, size = operator.weights.unsqueeze(1), torch.Size()
        graph = [operator.edges.contiguous(), *operator.incidence]
    else:
        assert isinstance(operator, Gradient)
        weights, size = operator.weights(start).flatten(2), torch.Size(operator.size)
    iteration = AdjointSteps(
        residual=_flat(residual),
        steepest=_flat(steepest),
        s=probabilities.flatten(2).transpose(1, 2).contiguous(),
        weights=(factor * weights.detach().to(start)).expand(batch, -1, -1).contiguous(),
        inverse=_flat(inverse),
        bends=bends,
        graph=graph,
        size=size,
        entropy=entropy,
        tolerance=problem.tolerance,
    )
    taken, looks = 0, look_every(start.device)
    while taken < problem.max_steps and bool(iteration.active.any()):
        count = min(looks, problem.max_steps - taken)
        iteration.advance(count)
        taken += count
    solution = iteration.solution.movedim(3, 1).reshape(dual.shape)
    response = start - softmax_response(probabilities, entropy)(part.operator.adjoint(solution))
    return Adjoint(response, (solution,), taken, iteration.relative_residual)


def _flat(values: Tensor) -> Tensor:
    """Dual variables (B, K, axes, *S), or (B, K, E) of a graph, as (B, axes, N, K), or (B, 1, E, K)."""
    values = values.unsqueeze(2) if values.ndim == 3 else values.flatten(3)
    return values.movedim(1, 3).contiguous()
