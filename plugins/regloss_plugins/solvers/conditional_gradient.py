"""Steps towards the best point of a tangent: what mean field on a concave relaxation and Frank-Wolfe have in common.

    min over s in the simplex at every pixel of
        E(s) = <unary, s> + entropy <s, log s> + R(s),        entropy >= 0, R in its concave form

With p a supergradient of R at s, a step goes some way towards the point where the tangent's problem is least:

    t = argmin <unary + p, t> + entropy <t, log t> = softmax(-(unary + p) / entropy), the cheapest labels if entropy = 0
    s+ = s + length (t - s)

E falls along t - s, at first by entropy (KL(s | t) + KL(t | s)) a unit of length, and without entropy by the gap
<unary + p, s - t> >= 0. At length 1 this is a step of the difference-of-convex algorithm and parallel mean field alike,
which lowers E as long as R is concave (or curves up by no more than the entropy), and may cycle where it is not.

    entropy > 0    the length is given at first; where a step would raise E, it is not taken, and the image's length is
                   halved from then on. So E never rises, and no image cycles. It is not looked at where it cannot rise
                   anyway: at length 1, if R curves up by no more than the entropy.
    entropy = 0    the length is the best one in [0, 1]: exactly so for a quadratic R, else for its upper bound by the
                   form's ``curvature``. E never rises either.

Source: Frank, Wolfe, "An algorithm for quadratic programming", 1956; Krähenbühl, Koltun, "Parameter learning and
convergent inference for dense random fields", ICML 2013, for the linearised steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from regloss import grid
from regloss.forms import ConcaveFunction
from regloss.grid import spread
from regloss.numerics import widest_float
from regloss.solver import Problem, Progress, linear_energy, negative_entropy
from regloss_plugins.solvers.gibbs import gibbs

# An image whose steps must be shorter than this to lower its energy stands still, to within rounding.
_SHORTEST = 2.0**-20


class Descent(NamedTuple):
    """Where it ended."""

    probabilities: Tensor  # (B, K, *S)
    steps: Tensor  # (B,) int64, those that were not taken among them
    done: Tensor  # (B,) bool


def concave_energy(problem: Problem, concave: ConcaveFunction | None, s: Tensor) -> Tensor:
    """E (B,) at probabilities (B, K, *S), by the definition."""
    energy = linear_energy(problem.unary, s, problem.roi) + problem.entropy * negative_entropy(s, problem.roi)
    return energy if concave is None else energy + concave.value(s)


def descend(
    problem: Problem,
    concave: ConcaveFunction,
    cost: Tensor,
    start: Tensor,
    *,
    length: float,
    max_steps: int,
    tolerance: float,
) -> Descent:
    """Take steps for all images side by side; those that are done leave the batch.

    Args:
        problem: its form is not looked at.
        concave: R.
        cost: (B, K, *S), the unary with inf where a label cannot be taken.
        start: (B, K, *S) probabilities, 0 where the cost is inf.
        length: of the first steps, in (0, 1]; without entropy it is not looked at.
        max_steps: >= 1.
        tolerance: an image is done when a step of length 1 would change no probability by more than this; without
            entropy, when the gap per pixel is at most this.
    """
    batch, device = start.shape[0], start.device
    sure = problem.entropy > 0 and length == 1 and concave.curvature <= problem.entropy and problem.callback is None
    origin = concave.supergradient(torch.zeros_like(cost)) if concave.is_quadratic and not sure else None
    part = _Part(problem, concave, cost, origin)
    end, s = start.clone(), start
    rows = torch.arange(batch, device=device)  # images still in the batch
    active = torch.ones(batch, dtype=torch.bool, device=device)
    steps = torch.zeros(batch, dtype=torch.int64, device=device)
    lengths = torch.full((batch,), length, dtype=part.wide, device=device)
    at = _Evaluation(lengths, part.concave.supergradient(s)) if sure else part.evaluate(s)
    for number in range(max_steps):
        if sure and number > 0:
            at = _Evaluation(lengths, part.concave.supergradient(s))
        direction = (gibbs(part.cost + at.slope, problem.entropy) - s) * part.inside
        if problem.entropy > 0:
            undone = direction.abs().flatten(1).amax(1) > tolerance
            new = torch.addcmul(s, spread(lengths, s).to(s), direction)
            trial = at if sure else part.evaluate(new)
            better = trial.energy <= at.energy + part.rounding(at)
            lengths = torch.where(better, lengths, lengths / 2)
            undone = undone & (lengths >= _SHORTEST)
        else:
            gap = -part.dot(part.problem.unary + at.slope, direction)
            undone, better = gap > tolerance * part.pixels, gap > 0
            new, trial = part.best_length(s, at, direction, gap)
        moved = spread(active & better, s)
        s = torch.where(moved, new, s)
        at = _Evaluation(
            torch.where(active & better, trial.energy, at.energy), torch.where(moved, trial.slope, at.slope)
        )
        steps[rows] += active
        if problem.callback is not None:
            energy = at.energy[active].to(s.dtype)
            problem.callback(Progress(int(steps.max()), rows[active], energy, torch.full_like(energy, -math.inf)))
        active = active & undone
        if not bool(active.any()):
            break
        kept = active.nonzero().squeeze(1)
        if len(kept) < len(rows):
            end[rows] = s
            part, s, at = part.select(kept), s[kept], _Evaluation(at.energy[kept], at.slope[kept])
            rows, active, lengths = rows[kept], active[kept], lengths[kept]
    end[rows] = s
    done = torch.ones(batch, dtype=torch.bool, device=device)
    done[rows] = ~active
    return Descent(end, steps, done)


class _Evaluation(NamedTuple):
    """What is known at probabilities s."""

    energy: Tensor  # (B,), in the wide type; any equal numbers where it is not looked at
    slope: Tensor  # (B, K, *S) supergradient of R


@dataclass(frozen=True)
class _Part:
    """A problem, or what is left of it."""

    problem: Problem
    concave: ConcaveFunction
    cost: Tensor
    origin: Tensor | None  # supergradient at 0, if R is quadratic and energies are looked at

    @property
    def wide(self) -> torch.dtype:
        return widest_float(self.cost.device)

    @property
    def inside(self) -> Tensor:
        """(B, 1, *S), 1 in the region of interest."""
        return self._region.unsqueeze(1).to(self.cost)

    @property
    def pixels(self) -> Tensor:
        """(B,) how many count."""
        return self._region.flatten(1).sum(1)

    @property
    def _region(self) -> Tensor:
        shape = (self.cost.shape[0], *self.cost.shape[2:])
        return grid.full_roi(self.problem.roi, shape, self.cost.device)

    def dot(self, first: Tensor, second: Tensor) -> Tensor:
        """<first, second> (B,), summed in the wide type, since differences of such sums are looked at."""
        return (first * second).flatten(1).sum(1, dtype=self.wide)

    def evaluate(self, s: Tensor) -> _Evaluation:
        """Energy and slope at s, by one evaluation if R is quadratic."""
        slope = self.concave.supergradient(s)
        counted = s * self.inside
        energy = self.dot(self.problem.unary, counted)
        if self.problem.entropy > 0:
            energy = energy + self.problem.entropy * self.dot(torch.special.xlogy(s, s), self.inside)
        if self.origin is None:
            return _Evaluation(energy + self.concave.value(s), slope)
        return _Evaluation(energy + self.dot(self.origin + slope, s) / 2, slope)

    def rounding(self, at: _Evaluation) -> Tensor:
        """(B,) by how much energies of equal points may differ."""
        return 8 * torch.finfo(self.cost.dtype).eps * at.energy.abs()

    def best_length(self, s: Tensor, at: _Evaluation, direction: Tensor, gap: Tensor) -> tuple[Tensor, _Evaluation]:
        """Where E, or its upper bound, is least between s and s + ``direction``, without entropy."""
        if self.origin is None:
            curvature = self.concave.curvature * self.dot(direction, direction)
            new = s + spread(_minimiser(gap, curvature), s).to(s) * direction
            return new, self.evaluate(new)
        slope_change = self.concave.supergradient(s + direction) - at.slope
        curvature = self.dot(slope_change, direction)
        length = _minimiser(gap, curvature)
        along = spread(length, s).to(s)
        energy = at.energy - length * gap + length.square() * curvature / 2
        return s + along * direction, _Evaluation(energy, at.slope + along * slope_change)

    def select(self, images: Tensor) -> _Part:
        """Some of the images alone."""

        def pick(values: Tensor | None) -> Tensor | None:
            return None if values is None else values[images]

        some = replace(self.problem, unary=self.problem.unary[images], roi=pick(self.problem.roi))
        return _Part(some, self.concave[images], self.cost[images], pick(self.origin))


def _minimiser(gap: Tensor, curvature: Tensor) -> Tensor:
    """The x in [0, 1] at which -gap x + curvature x^2 / 2 is least, for a gap >= 0."""
    inner = curvature > gap
    return torch.where(inner, gap / torch.where(inner, curvature, 1), 1)
