"""Implicit derivatives of min over s of <unary, s> + entropy <s, log s> + max over y in Y of <K s - b, y>.

At the solution s = softmax(-(unary + K^T y) / entropy), and y maximises <z, y> over Y at z = K s - b. To first order

    ds = -S' (d unary + K^T dy)          S' x = s (x - <s, x>) / entropy, pixel by pixel
    Q (K ds + dz) = c dy,  dy = Q dy     Q, c: the tangent of Y at y (see `regloss.dual_sets.Tangent`), dz from K, b

S' and the system matrix are symmetric, so for the cotangent g = dLoss/ds

    solve  [Q (K S' K^T + c) Q] nu = Q K S' g     by conjugate gradients from 0
    v = S' (g - K^T nu)                           dLoss/d unary = -v,   dLoss/d entropy = -<v, log s>
    dLoss/d theta = d/d theta of  -<K v, y> - <K s - b, nu>     for what K and b are computed from, v, y, s, nu held

The system is singular where the dual solution is not unique, but consistent, and v does not depend on the choice.
v sums to 0 over classes and is at most |g| / (2 entropy) long, wherever the iteration is stopped. Nothing of the
forward iteration is needed but its result.

Where the solution has a kink (a dual variable on its rim without force), the result is a one-sided derivative.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from regloss.dual_sets import Tangent
from regloss.forms import Composite, SaddlePart
from regloss.grid import spread
from regloss.numerics import look_every


@dataclass(frozen=True)
class Adjoint:
    """What the linear system gave.

    Attributes:
        response: v (B, K, *S), minus the gradient with respect to the unary.
        duals: nu, one tensor a part; None where it meets K s = b alone or there is no parameter, so that none feels it.
        steps: of conjugate gradients.
        residual: (B,) relative residual in the preconditioner's norm.
    """

    response: Tensor
    duals: tuple[Tensor | None, ...]
    steps: int
    residual: Tensor


@dataclass(frozen=True)
class AdjointProblem:
    """The linear system above for a single part without b: what fast code for its types is given.

    It is the task "adjoint" of `regloss.dispatch`, a function from this to an `Adjoint`, or to None where the reference
    is to solve it.

    Attributes:
        part: K and Y.
        dual: y in Y.
        log_probabilities: log s (B, K, *S); -inf where a label is not allowed.
        entropy: > 0.
        start: S' g (B, K, *S).
        max_steps: largest number of steps.
        tolerance: relative residual at which to stop.
    """

    part: SaddlePart
    dual: Tensor
    log_probabilities: Tensor
    entropy: float
    start: Tensor
    max_steps: int
    tolerance: float


@dataclass(frozen=True)
class JointAdjointProblem:
    """Likewise for any number of parts, with b, which the matrix does not depend on but for the force K s - b.

    It is the task "joint-adjoint" of `regloss.dispatch`, which is asked where there is no "adjoint".

    Attributes:
        parts: K, Y and b of each.
        duals: y in Y, one tensor a part.
        log_probabilities: as of `AdjointProblem`, as are the others.
        entropy: likewise.
        start: likewise.
        max_steps: likewise.
        tolerance: likewise.
    """

    parts: tuple[SaddlePart, ...]
    duals: tuple[Tensor, ...]
    log_probabilities: Tensor
    entropy: float
    start: Tensor
    max_steps: int
    tolerance: float


def softmax_response(probabilities: Tensor, entropy: float) -> Callable[[Tensor], Tensor]:
    """S', the derivative of softmax(x / entropy) at ``probabilities`` (B, K, *S); symmetric, >= 0."""

    def respond(direction: Tensor) -> Tensor:
        weighted = probabilities * direction
        return (weighted - probabilities * weighted.sum(1, keepdim=True)) / entropy

    return respond


def solve_adjoint(
    form: Composite,
    duals: Sequence[Tensor],
    probabilities: Tensor,
    entropy: float,
    start: Tensor,
    respond: Callable[[Tensor], Tensor],
    *,
    max_steps: int,
    tolerance: float,
) -> Adjoint:
    """Solve the linear system above for all images at once, with Jacobi preconditioning.

    Args:
        form: K, b and Y; its concave function is not looked at.
        duals: y, one tensor a part, in Y.
        probabilities: s (B, K, *S).
        entropy: > 0.
        start: S' g (B, K, *S).
        respond: S', or what takes its place: a symmetric map that is >= 0.
        max_steps: largest number of steps.
        tolerance: relative residual at which to stop.

    Raises:
        MissingForm: a dual set defines no tangent.
    """
    if not form.parts:
        return Adjoint(start, (), 0, start.new_zeros(start.shape[0]))
    tangents: list[Tangent] = []
    inverses: list[Tensor] = []  # of the preconditioner's diagonal
    variance = probabilities * (1 - probabilities) / entropy
    for part, dual in zip(form.parts, duals, strict=True):
        tangent = part.dual_set.tangent(part.residual(probabilities), dual)
        tangents.append(tangent)
        inverses.append(inverse_diagonal(part, tangent, dual, variance))

    def system(values: Sequence[Tensor]) -> list[Tensor]:
        back = respond(form.adjoint(values))
        return [
            tangent.project(_bent(part.operator.apply(back), tangent.curvature, value))
            for part, tangent, value in zip(form.parts, tangents, values, strict=True)
        ]

    def precondition(values: Sequence[Tensor]) -> list[Tensor]:
        return [
            tangent.project(inverse * value) for tangent, inverse, value in zip(tangents, inverses, values, strict=True)
        ]

    residual = [
        _unshared(tangent.project(part.operator.apply(start)), start)
        for part, tangent in zip(form.parts, tangents, strict=True)
    ]
    solution = [torch.zeros_like(value) for value in residual]
    preconditioned = precondition(residual)
    direction = [value.clone() for value in preconditioned]
    power = _dot(residual, preconditioned)
    target = tolerance**2 * power
    first, steps = power, 0
    active = power > target
    looks = look_every(start.device)
    for number in range(max_steps):
        if number % looks == 0 and not bool(active.any()):
            break
        steps += 1
        image = system(direction)
        curvature = _dot(direction, image)
        active = active & (curvature > 0)  # rounding can leave a direction that the matrix does not see
        along = torch.where(active, power / torch.where(active, curvature, 1), 0)
        # In place: what limits large problems is memory, and the time of touching it.
        for value, step in zip(solution, direction, strict=True):
            value.addcmul_(spread(along, value), step)
        for value, step in zip(residual, image, strict=True):
            value.addcmul_(spread(along, value), step, value=-1)
        del image, preconditioned
        preconditioned = precondition(residual)
        before, power = power, _dot(residual, preconditioned)
        beta = torch.where(active, power / torch.where(active, before, 1), 0)
        for value, old in zip(preconditioned, direction, strict=True):
            old.mul_(spread(beta, old)).add_(value)
        active = active & (power > target)
    response = start - respond(form.adjoint(solution))
    relative = torch.where(first > 0, power / torch.where(first > 0, first, 1), 0).clamp(min=0).sqrt()
    return Adjoint(response, tuple(solution), steps, relative)


def parameter_gradients(
    form: Composite, duals: Sequence[Tensor], probabilities: Tensor, adjoint: Adjoint
) -> tuple[Tensor | None, ...]:
    """Gradients of the loss with respect to the parameters of the form's convex part."""
    parameters = form.saddle.parameters
    if not parameters:
        return ()
    with torch.enable_grad():
        total = probabilities.new_zeros(())
        for part, dual, nu in zip(form.parts, duals, adjoint.duals, strict=True):
            total = total - (part.operator.apply(adjoint.response) * dual).sum()
            if nu is not None:
                total = total - (part.residual(probabilities) * nu).sum()
        # What the forms were built from belongs to the caller's graph, and this may be asked for more than once.
        return torch.autograd.grad(total, parameters, allow_unused=True, retain_graph=True)


def inverse_diagonal(part: SaddlePart, tangent: Tangent, dual: Tensor, variance: Tensor) -> Tensor:
    """Of the system matrix, of dual shape; what it takes is given back before the iteration.

    Args:
        part: K and Y.
        tangent: of Y at y.
        dual: y.
        variance: s (1 - s) / entropy (B, K, *S).
    """
    squared = part.operator.squared()
    if squared is None:
        return torch.ones_like(dual)
    diagonal = squared.apply(variance) + tangent.curvature
    # What hardly couples beside the others, by weights below rounding, would overflow once it is divided by that.
    limits = torch.finfo(diagonal.dtype)
    least = spread(diagonal.flatten(1).amax(1) * limits.eps**2, diagonal).clamp(min=limits.tiny)
    # Entries without any coupling keep their residual of 0, whatever they are divided by.
    return torch.where(diagonal > least, diagonal, torch.where(diagonal > 0, least, 1)).reciprocal_()


def _dot(first: Sequence[Tensor], second: Sequence[Tensor]) -> Tensor:
    """(B,) inner products over all parts, image by image."""
    return torch.stack([(a * b).flatten(1).sum(1) for a, b in zip(first, second, strict=True)]).sum(0)


def _unshared(value: Tensor, given: Tensor) -> Tensor:
    """``value``, copied if an operator or a set handed back the memory that they were given; it is changed in place."""
    shared = value.untyped_storage().data_ptr() == given.untyped_storage().data_ptr()
    return value.clone() if shared else value


def _bent(image: Tensor, curvature: Tensor | float, value: Tensor) -> Tensor:
    """``image`` + curvature * value."""
    return image if isinstance(curvature, float) and curvature == 0 else image + curvature * value
