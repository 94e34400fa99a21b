"""Softmax with prescribed volumes: one number per class, found by Newton's method and scaling.

    min over u in the simplex at every pixel of  <cost, u> + entropy <u, log u>   subject to  lower <= m(u) <= upper

where m_k(u) = sum over pixels of u_k; volumes given exactly are lower = upper. The minimiser is

    u = softmax((q - cost) / entropy),       q maximising the concave dual
    G(q) = sum over k of (lower_k max(q_k, 0) - upper_k max(-q_k, 0)) - entropy sum over pixels of logsumexp(...)

At its maximum q_k > 0 needs m_k = lower_k, q_k < 0 needs m_k = upper_k. Newton's step solves with the Hessian
(diag(m) - U^T U) / entropy on the classes whose volume must change, does not let a q_k cross 0, and is halved until G
rises; where that fails, a scaling step is taken instead, which converges by itself, linearly (and where steps stay
short for long, G is maximised over one q_k):

    q_k <- median of 0, q_k + entropy log(lower_k / m_k), q_k + entropy log(upper_k / m_k)

Source: Liu, Wang, Tai, arXiv:2002.03989 (the scaling, for equality); Newton's method replaces its hundreds of steps at
a small entropy by three to eight.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .precision import knows_doubles

_HALVINGS = 8
_PATIENCE = 30  # steps before a search for one class takes the place of very short ones
_CREEPING = 1 / 8
_BISECTIONS = 60
_STEPS_BETWEEN = 50  # at each of the entropies that lead to the given one, where three to eight are usual
_LEAST = 1e-300  # volume above 0


class Volumes(NamedTuple):
    """A solution.

    Attributes:
        probabilities: (B, K, *S).
        dual: (B, K) float64.
        value: (B,) float64, G at the dual variable: a lower bound on the problem's minimum.
        done: (B,) bool, whether the volumes are met.
        steps: taken by the slowest image.
    """

    probabilities: Tensor
    dual: Tensor
    value: Tensor
    done: Tensor
    steps: int


class _Point(NamedTuple):
    dual: Tensor  # (B, K)
    probabilities: Tensor  # (B, K, N)
    masses: Tensor  # (B, K)
    value: Tensor  # (B,)
    residual: Tensor  # (B, K), by how much each class's volume must change


def scale_to_volumes(
    cost: Tensor,
    entropy: float,
    lower: Tensor,
    upper: Tensor,
    inside: Tensor | None = None,
    dual: Tensor | None = None,
    max_steps: int = 200,
    tolerance: float = 1e-10,
) -> Volumes:
    """Solve the problem above for every image of a batch.

    Args:
        cost: (B, K, *S); +inf forbids a class at a pixel, at least one class must be left.
        entropy: > 0.
        lower: (B, K) least volumes in pixels.
        upper: (B, K) largest volumes, >= lower; there must be a feasible u, with all classes above 0 that are allowed
            anywhere.
        inside: (B, *S) bool, pixels that count; None = all.
        dual: (B, K) where to start; where 30 steps from there do not do, and with None, from 0.
        max_steps: largest number of Newton or scaling steps at the given entropy, and at most 50 at each of those that
            lead there. Where the costs' last digit is larger than the entropy no volume can be met, and it ends sooner.
        tolerance: largest volume error, as a fraction of the pixels.

    Returns:
        Probabilities of the costs' type, dual variable, and which images met the tolerance. All is computed in float64,
        on the CPU where the costs' device knows none; only the probabilities come back from there.
    """
    flat = _double(cost.flatten(2))
    weights = torch.ones_like(flat[:, 0]) if inside is None else inside.flatten(1).to(flat)
    lower, upper = (bound.to(flat) for bound in (lower, upper))
    finite = flat.isfinite()
    spread = flat.masked_fill(~finite, -float("inf")).amax((1, 2)) - flat.masked_fill(~finite, float("inf")).amin(
        (1, 2)
    )
    reach = float(spread.max())  # no dual variable need differ from another by much more than the costs do
    pixels = weights.sum(1)

    def met(point: _Point) -> Tensor:
        return point.residual.abs().amax(1) <= tolerance * pixels

    steps, warm = 0, None
    if dual is not None:
        warm, steps = _ascend(
            flat, weights, entropy, lower, upper, dual.to(flat), reach, min(max_steps, _PATIENCE), tolerance
        )
    if warm is not None and bool(met(warm).all()):
        at = warm
    else:
        # Where costs are large against the entropy, hardly any pixel reacts to q, and Newton's steps are wild. Larger
        # entropies lead there; a start that belongs to quite other costs does not.
        q = torch.zeros_like(lower.expand(flat.shape[:2]))
        # Below the costs' last digit there is nothing that another entropy could tell.
        softer, last = reach / 10, max(2 * entropy, reach * torch.finfo(flat.dtype).eps)
        while softer > last:
            near, taken = _ascend(flat, weights, softer, lower, upper, q, reach, min(max_steps, _STEPS_BETWEEN), 1e-2)
            q, steps, softer = near.dual, steps + taken, softer / 4
        at, taken = _ascend(flat, weights, entropy, lower, upper, q, reach, max_steps, tolerance)
        steps += taken
        if warm is not None:
            at = _where(met(warm), warm, at)
    return Volumes(at.probabilities.reshape(cost.shape).to(cost), at.dual, at.value, met(at), steps)


def _ascend(
    cost: Tensor,
    weights: Tensor,
    entropy: float,
    lower: Tensor,
    upper: Tensor,
    start: Tensor,
    reach: float,
    max_steps: int,
    tolerance: float,
) -> tuple[_Point, int]:
    """Maximise G at one entropy; the point where it ended and the steps that it took."""
    pixels = weights.sum(1)
    at = _evaluate(cost, weights, entropy, lower, upper, start)
    for taken in range(max_steps):
        error = at.residual.abs().amax(1)
        open_ = error > tolerance * pixels
        if not bool(open_.any()):
            return at, taken
        direction = _newton_direction(at, weights, entropy, reach)
        step = torch.ones_like(pixels)
        chosen = at
        for _ in range(_HALVINGS):
            moved = _stay_on_side(at.dual, at.dual + step.unsqueeze(1) * direction)
            candidate = _evaluate(cost, weights, entropy, lower, upper, moved)
            rise = (at.residual * (moved - at.dual)).sum(1)
            better = (candidate.value >= at.value + 1e-4 * rise) & (rise > 0)
            # Near the maximum rounding hides the rise, not the volumes' errors.
            better |= candidate.residual.abs().amax(1) < 0.5 * error
            chosen = _where(open_ & better, candidate, chosen)
            open_ = open_ & ~better
            if not bool(open_.any()):
                break
            step = step / 2
        if taken >= _PATIENCE:
            # Pixels that are all but decided make Newton's steps wild: then the worst class is dealt with by itself.
            crept = (error > tolerance * pixels) & (step <= _CREEPING)
            if bool(crept.any()):
                chosen = _where(crept, _one_class(cost, weights, entropy, lower, upper, at, reach), chosen)
                open_ = open_ & ~crept
        if bool(open_.any()):
            scaled = _evaluate(
                cost, weights, entropy, lower, upper, scaling_step(at.dual, at.masses, entropy, lower, upper)
            )
            chosen = _where(open_, scaled, chosen)
        # So it would stay: no digit is left that could change.
        if taken >= _PATIENCE and bool((chosen.dual == at.dual).all()):
            return at, taken + 1
        at = chosen
    return at, max_steps


def _evaluate(cost: Tensor, weights: Tensor, entropy: float, lower: Tensor, upper: Tensor, dual: Tensor) -> _Point:
    # The largest score is taken away before dividing, which could overflow otherwise.
    scores = dual.unsqueeze(2) - cost
    top = scores.amax(1, keepdim=True)
    scaled = (scores - top) / entropy
    spread = torch.logsumexp(scaled, dim=1, keepdim=True)
    probabilities = (scaled - spread).exp()
    masses = (probabilities * weights.unsqueeze(1)).sum(2)
    partition = ((top + entropy * spread).squeeze(1) * weights).sum(1)
    value = (lower * dual.clamp(min=0) + upper * dual.clamp(max=0)).sum(1) - partition
    free = torch.minimum(torch.maximum(masses, lower), upper)
    wanted = torch.where(dual > 0, lower, torch.where(dual < 0, upper, free))
    return _Point(dual, probabilities, masses, value, wanted - masses)


def _one_class(
    cost: Tensor, weights: Tensor, entropy: float, lower: Tensor, upper: Tensor, at: _Point, reach: float
) -> _Point:
    """G maximised over the dual variable of the class whose volume is off most, by bisection of its monotone error."""
    worst = at.residual.abs().argmax(1, keepdim=True)
    sign = at.residual.gather(1, worst).sign()
    near = at.dual.gather(1, worst)
    far = near + sign * 2 * (reach + 10 * entropy)

    def evaluated(number: Tensor) -> _Point:
        return _evaluate(cost, weights, entropy, lower, upper, at.dual.scatter(1, worst, number))

    # 0 is a point of its own: any volume between the bounds will do there.
    between = (near * far < 0) | (near == 0)
    zero = evaluated(torch.where(between, 0.0, near))
    error = zero.residual.gather(1, worst)
    ends = between & (error == 0)
    near, far = (
        torch.where(between & (error * sign > 0), 0.0, near),
        torch.where(between & (error * sign < 0), 0.0, far),
    )
    for _ in range(_BISECTIONS):
        middle = (near + far) / 2
        ahead = evaluated(middle).residual.gather(1, worst) * sign > 0
        near, far = torch.where(ahead, middle, near), torch.where(ahead, far, middle)
    return evaluated(torch.where(ends, 0.0, near))


def _double(values: Tensor) -> Tensor:
    return values.to(values.device if knows_doubles(values.device) else "cpu", torch.float64)


def _where(condition: Tensor, first: _Point, second: _Point) -> _Point:
    return _Point(
        *(torch.where(condition.reshape(-1, *[1] * (a.ndim - 1)), a, b) for a, b in zip(first, second, strict=True))
    )


def hessian(probabilities: Tensor, weights: Tensor, entropy: float) -> Tensor:
    """(B, K, K) derivative of the masses by the dual variable; singular along (1, ..., 1).

    Args:
        probabilities: (B, K, N).
        weights: (B, N), 1 where pixels count and 0 elsewhere.
        entropy: > 0.
    """
    weighted = probabilities * weights.unsqueeze(1)
    gram: Tensor = (torch.diag_embed(weighted.sum(2)) - weighted @ probabilities.transpose(1, 2)) / entropy
    return gram


def _newton_direction(at: _Point, weights: Tensor, entropy: float, reach: float) -> Tensor:
    moving = (at.dual != 0) | (at.residual != 0)
    both = moving.unsqueeze(1) & moving.unsqueeze(2)
    matrix = hessian(at.probabilities, weights, entropy) * both
    # The ridge makes the direction (1, ..., 1) solvable, along which G is linear. With exact volumes the residual has
    # no part in it.
    diagonal = matrix.diagonal(dim1=1, dim2=2)
    ridge = 1e-12 * diagonal.amax(1, keepdim=True).clamp(min=1e-100) + torch.where(moving, 0.0, 1.0)
    matrix = matrix + torch.diag_embed(ridge.expand_as(diagonal))
    direction: Tensor = torch.linalg.solve(matrix, (at.residual * moving).unsqueeze(2)).squeeze(2)
    common = torch.where(moving.all(1, keepdim=True), direction.mean(1, keepdim=True), 0.0)
    most = reach + 10 * entropy
    # Along (1, ..., 1) it pays to go until a dual variable meets 0, no farther.
    rest = direction - common
    rest = rest * (most / rest.abs().amax(1, keepdim=True).clamp(min=most))
    farthest = at.dual.abs().amax(1, keepdim=True)
    # Where G is level there, but for rounding, q would grow from solution to solution until its digits are lost.
    level = at.residual.sum(1, keepdim=True).abs() <= 1e-12 * weights.sum(1, keepdim=True)
    common = torch.minimum(torch.maximum(common, -farthest), farthest).masked_fill(level, 0.0)
    direction = rest + common
    # A class at q = 0 may only go where its volume has to.
    against = (at.dual == 0) & (direction * at.residual <= 0)
    return direction.masked_fill(against, 0.0)


def _stay_on_side(old: Tensor, new: Tensor) -> Tensor:
    return torch.where(old * new < 0, 0.0, new)


def scaling_step(dual: Tensor, masses: Tensor, entropy: float | Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """One scaling step, the median above; differentiable in all its arguments.

    Args:
        dual: (B, K) float64, q.
        masses: (B, K) float64, m(u).
        entropy: > 0.
        lower: (B, K) least volumes.
        upper: (B, K) largest volumes.
    """
    # A lower bound of 0 never binds: its logarithm is so small that 0 is the median. An upper bound of 0 would need an
    # infinite step; where nothing is left in its class either, q stays.
    logs = masses.clamp(min=_LEAST).log()
    least = dual + entropy * (lower.clamp(min=_LEAST).log() - logs)
    most = dual + entropy * (upper.clamp(min=_LEAST).log() - logs)
    return torch.minimum(torch.maximum(torch.zeros_like(least), least), most)


class _VolumeSoftmax(torch.autograd.Function):
    """The solution as a function of cost and bounds, differentiated implicitly."""

    @staticmethod
    def forward(ctx: Any, cost: Tensor, entropy: float, lower: Tensor, upper: Tensor, inside: Tensor | None) -> Tensor:
        found = scale_to_volumes(cost, entropy, lower, upper, inside)
        ctx.save_for_backward(found.probabilities, found.dual, lower, upper, inside)
        ctx.entropy = entropy
        return found.probabilities

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        probabilities, dual, lower, upper, inside = ctx.saved_tensors
        u, g = _double(probabilities.flatten(2)), _double(gradients[0].flatten(2))
        weights = torch.ones_like(u[:, 0]) if inside is None else inside.flatten(1).to(u)
        start = (u * g - u * (u * g).sum(1, keepdim=True)) / ctx.entropy
        moved, by_volume = respond(u, dual, lower, upper, weights, ctx.entropy, start)
        exact = (lower == upper).to(dual.device)
        # A volume given exactly stands in both arguments; its derivative goes to the first only.
        by_lower = torch.where(exact | (dual > 0), by_volume, 0.0).to(lower)
        by_upper = torch.where(~exact & (dual < 0), by_volume, 0.0).to(upper)
        return -moved.reshape(probabilities.shape).to(probabilities), None, by_lower, by_upper, None


def respond(
    probabilities: Tensor, dual: Tensor, lower: Tensor, upper: Tensor, weights: Tensor, entropy: float, start: Tensor
) -> tuple[Tensor, Tensor]:
    """Adjoint derivative of the solution; with S' the softmax's own derivative and g a cotangent, v = S' (g + nu).

    Args:
        probabilities: (B, K, N) solution, float64.
        dual: (B, K).
        lower: (B, K) or (1, K).
        upper: the same.
        weights: (B, N), 1 where pixels count and 0 elsewhere.
        entropy: > 0.
        start: S' g (B, K, N).

    Returns:
        v (B, K, N), minus the gradient with respect to the costs; and the gradient (B, K) with respect to the volumes
        that bind.
    """
    bound = (dual != 0) | (lower == upper).to(dual.device)
    matrix = hessian(probabilities, weights, entropy) * (bound.unsqueeze(1) & bound.unsqueeze(2))
    masses = (start * weights.unsqueeze(1)).sum(2) * bound
    shift = -(torch.linalg.pinv(matrix, hermitian=True, rtol=1e-12) @ masses.unsqueeze(2))
    shifted = probabilities * (shift - (probabilities * shift).sum(1, keepdim=True)) / entropy
    return start + shifted * weights.unsqueeze(1), -shift.squeeze(2) * bound


def volume_softmax(cost: Tensor, entropy: float, lower: Tensor, upper: Tensor, inside: Tensor | None = None) -> Tensor:
    """`scale_to_volumes`' probabilities (B, K, *S), differentiable in ``cost``, ``lower`` and ``upper``.

    Derivatives by volumes are those along directions that keep their sum. Where lower = upper they arrive at ``lower``.

    >>> cost = torch.tensor([[[0.0, 0.0, 1.0, 2.0], [0.0, 0.0, 0.0, 0.0]]])
    >>> half = torch.tensor([[2.0, 2.0]])
    >>> volume_softmax(cost, 1.0, half, half).sum(2)
    tensor([[2., 2.]])
    """
    apply: Any = _VolumeSoftmax.apply  # torch leaves it without types
    probabilities: Tensor = apply(cost, entropy, lower, upper, inside)
    return probabilities
