"""Mean field: the bilinear relaxation of a Potts model, smoothed by entropy, pixel by pixel.

    min over s in the simplex at every pixel of
        E(s) = <unary, s> + entropy * <s, log s> + sum over pairs of w_pq (1 - <s_p, s_q>),      entropy > 0

E is the free energy: with entropy = 1 and unaries -log softmax(logits), what the fully factorised distribution nearest
to the model's minimises. With its neighbours held still, a pixel's minimiser is

    s_p = softmax(-(unary_p - sum over q of w_pq s_q) / entropy)

On a grid, coordinate descent. Pixels whose coordinates agree in parity, axis by axis, are never neighbours there, so
all of such a colour class are updated at once and exactly; a step goes through all 2^D classes. E never rises, also
with damping, s_p <- (1 - damping) * minimiser + damping * old: while the other classes hold still E is convex in this
one, so between the old s and the minimiser it nowhere exceeds its value at the old s. What is reached is a point where
no class alone can improve, in general not the minimum.

On all pairs, parallel updates: with R in its concave form (`Concave`: dense CRFs, threshold dynamics) and its slope p,
all pixels go to softmax(-(unary + p) / entropy) at once, with damping as above. That may cycle where R is not concave,
so the free energy is watched: a step that would raise it is not taken, and the part of the old probabilities that the
image keeps grows by half of what is left (`regloss_plugins.solvers.conditional_gradient`).

An image is done when a step changes no probability of it by more than ``tolerance``, or, on all pairs, would change
none without damping.

Source: Wainwright, Jordan, "Graphical models, exponential families, and variational inference", 2008, section 5.3
(the updates); Krähenbühl, Koltun, "Efficient inference in fully connected CRFs with Gaussian edge potentials", NeurIPS
2011 (in parallel); Marin, Tang, Ben Ayed, Boykov, CVPR 2019 (the relaxation).
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch import Tensor

from regloss import grid
from regloss.checks import check_at_least_one, check_not_negative
from regloss.errors import UsageError
from regloss.forms import Concave, ConcaveFunction, Form, GridGraph
from regloss.numerics import one_hot
from regloss.solver import (
    Problem,
    Progress,
    Solution,
    Solver,
    allowed_cost,
    linear_energy,
    negative_entropy,
    possible_cost,
    seeds_inside,
    statuses,
)
from regloss_plugins.solvers.conditional_gradient import concave_energy, descend
from regloss_plugins.solvers.gibbs import gibbs
from regloss_plugins.solvers.initialization import start_probabilities


@dataclass(frozen=True)
class MeanFieldState:
    """Where `MeanField` starts or stopped; give one to ``warm`` to start from a network's softmax.

    Attributes:
        probabilities: (B, K, *S), non-negative; mass on labels that are not allowed is taken away, the rest normalised.
    """

    probabilities: Tensor


@dataclass(frozen=True)
class MeanField(Solver):
    """Descent by colour classes of a grid, or in parallel; batched, on any device, in the unary's precision, 1D to 3D.

    Whatever relaxation a graph's regularizer is set to, the bilinear one is minimised. The energy never rises. The
    solution's bound on grids leaves the pairs out (they cost at least 0): it is valid, and loose unless the pairs are
    weak; for concave forms it is -inf.

    Args:
        max_steps: largest number of passes over all pixels, >= 1; those that were not taken count.
        damping: part of the old probabilities that is kept, in [0, 1); in parallel at first.
        tolerance: a step that changes no probability by more than this ends it, >= 0.

    Raises:
        UsageError: a setting outside its range, entropy = 0, offsets that join pixels of one colour class.

    Where the unaries say nothing, the middle pixel follows its neighbours, but not all the way:

    >>> from regloss import GridCRF, solve
    >>> unary = torch.tensor([[[[2.0, 0.0, 2.0]], [[0.0, 0.0, 0.0]]]])
    >>> term = GridCRF().bind(torch.zeros(1, 1, 1, 3))
    >>> solve(term, unary, MeanField(), entropy=0.5).probabilities[0, 1]
    tensor([[0.9973, 0.9816, 0.9973]])
    """

    max_steps: int = 50
    damping: float = 0.0
    tolerance: float = 1e-6
    accepts: ClassVar[tuple[type[Form], ...]] = (GridGraph, Concave)

    def __post_init__(self) -> None:
        check_at_least_one(max_steps=self.max_steps)
        if not 0 <= self.damping < 1:
            raise UsageError(f"damping must lie in [0, 1), 0 being none; got {self.damping}.")
        check_not_negative(tolerance=self.tolerance)

    def entropies(self, form: type[Form]) -> Literal["positive"]:
        """Those above 0."""
        return "positive"

    def minimise(self, problem: Problem) -> Solution:
        """Solve all images of the batch side by side."""
        form = problem.form
        unary = problem.unary
        if isinstance(form, GridGraph):
            unary = unary.to(torch.promote_types(unary.dtype, form.weights.dtype))
        # An entropy that is 0 in the unary's precision would divide by 0 all the same.
        if not problem.entropy >= torch.finfo(unary.dtype).tiny:
            others = "dca without one" if isinstance(form, Concave) else "a solver over labels (alpha-expansion)"
            raise UsageError(
                f"mean-field needs an entropy weight > 0; got entropy = {problem.entropy}. Give one, or use {others}."
            )
        if isinstance(form, Concave):
            return self._in_parallel(problem, form.concave)
        assert isinstance(form, GridGraph)
        _refuse_pairs_within_a_colour(form)
        ndim, (batch, classes) = unary.ndim - 2, unary.shape[:2]
        shape, device = (batch, *unary.shape[2:]), unary.device

        inside = grid.full_roi(problem.roi, shape, device)
        fixed = seeds_inside(problem)
        free = inside & (fixed < 0)
        cost = allowed_cost(unary, problem.allowed)
        start = start_probabilities(problem, cost, MeanFieldState, "mean-field")
        start = gibbs(cost, problem.entropy) if start is None else start
        start = torch.where((fixed < 0).unsqueeze(1), start, one_hot(fixed.clamp(min=0), classes, start.dtype))

        pixels = _Pixels(form, start)
        start_energy = _energy(unary, problem, form, pixels.probabilities)
        active = torch.ones(batch, dtype=torch.bool, device=device)
        steps = torch.zeros(batch, dtype=torch.int64, device=device)
        for _ in range(self.max_steps):
            change = unary.new_zeros(batch)
            moving = free & active.reshape(batch, *[1] * ndim)
            for colour in pixels.colours:
                old = grid.pick(pixels.probabilities, colour)
                new = gibbs(grid.pick(cost, colour) - pixels.field(colour), problem.entropy)
                new = torch.lerp(new, old, self.damping)
                new = torch.where(grid.pick(moving, colour).unsqueeze(1), new, old)
                change = torch.maximum(change, (new - old).abs().flatten(1).amax(1))
                old.copy_(new)
            steps += active
            if problem.callback is not None:
                energy = _energy(unary, problem, form, pixels.probabilities)[active]
                rows, unknown = active.nonzero().squeeze(1), torch.full_like(energy, -float("inf"))
                problem.callback(Progress(int(steps.max()), rows, energy, unknown))
            active &= change > self.tolerance
            if not bool(active.any()):
                break

        probabilities = pixels.probabilities.contiguous()
        energy = _energy(unary, problem, form, probabilities)
        bound = torch.minimum(_bound(unary, cost, fixed, problem), energy)  # equal without pairs, but for rounding
        probabilities = probabilities.to(problem.unary.dtype)
        return Solution(
            probabilities=probabilities,
            labels=probabilities.argmax(1),
            energy=energy,
            bound=bound,
            steps=steps,
            status=statuses((~active).tolist()),
            start_energy=start_energy,
            state=MeanFieldState(probabilities),
        )

    def _in_parallel(self, problem: Problem, concave: ConcaveFunction) -> Solution:
        cost = possible_cost(problem)
        start = start_probabilities(problem, cost, MeanFieldState, "mean-field")
        start = gibbs(cost, problem.entropy) if start is None else start
        start_energy = concave_energy(problem, concave, start)
        found = descend(
            problem,
            concave,
            cost,
            start,
            length=1 - self.damping,
            max_steps=self.max_steps,
            tolerance=self.tolerance,
        )
        return Solution(
            probabilities=found.probabilities,
            labels=found.probabilities.argmax(1),
            energy=concave_energy(problem, concave, found.probabilities),
            bound=torch.full_like(start_energy, -float("inf")),
            steps=found.steps,
            status=statuses(found.done.tolist()),
            start_energy=start_energy,
            state=MeanFieldState(found.probabilities),
        )


Colour = tuple[slice, ...]  # picks the pixels of one parity from the last axes


class _Pixels:
    """Probabilities inside a border of zeros, so that a shifted colour class is a strided view."""

    def __init__(self, form: GridGraph, start: Tensor) -> None:
        self.offsets = form.offsets
        self.margin = max((abs(step) for offset in form.offsets for step in offset), default=0)
        self.size = tuple(start.shape[2:])
        border = [self.margin] * (2 * len(self.size))
        self.padded = F.pad(start, border)
        self.weights = F.pad(form.weights.to(start.dtype), border)
        inner = tuple(slice(self.margin, self.margin + size) for size in self.size)
        self.probabilities = grid.pick(self.padded, inner)  # a view
        # An axis of length 1 has no pixels of odd parity.
        parities = itertools.product(*(range(min(2, size)) for size in self.size))
        self.colours: list[Colour] = [tuple(slice(start, None, 2) for start in parity) for parity in parities]

    def field(self, colour: Colour) -> Tensor:
        """Sum over the neighbours q of w_pq s_q, (B, K, ...) at the pixels p of a colour."""
        here = self._shifted(colour, (0,) * len(self.size))
        total = torch.zeros_like(grid.pick(self.padded, here))
        for number, offset in enumerate(self.offsets):
            behind = self._shifted(colour, tuple(-step for step in offset))
            weights = self.weights[:, number : number + 1]  # (B, 1, ...): the same for all classes
            total.addcmul_(grid.pick(weights, here), grid.pick(self.padded, self._shifted(colour, offset)))
            total.addcmul_(grid.pick(weights, behind), grid.pick(self.padded, behind))
        return total

    def _shifted(self, colour: Colour, offset: grid.Offset) -> Colour:
        """Where the pixels of ``colour``, moved by ``offset``, lie in the padded arrays."""
        moved = zip(colour, offset, self.size, strict=True)
        return tuple(slice(self.margin + axis.start + step, self.margin + size + step, 2) for axis, step, size in moved)


def _refuse_pairs_within_a_colour(form: GridGraph) -> None:
    for offset in form.offsets:
        if all(step % 2 == 0 for step in offset):
            raise UsageError(
                f"mean-field updates pixels of equal parity at once, but the offset {offset} joins such pixels; every "
                "offset needs an odd component. Nearest neighbours have one; for this graph use alpha-expansion."
            )


def _energy(unary: Tensor, problem: Problem, form: GridGraph, probabilities: Tensor) -> Tensor:
    energy = linear_energy(unary, probabilities, problem.roi)
    energy = energy + problem.entropy * negative_entropy(probabilities, problem.roi)
    for first, second, weights in grid.pairs(form.offsets, form.weights):
        apart = 1 - (grid.pick(probabilities, first) * grid.pick(probabilities, second)).sum(1)
        energy = energy + (weights * apart).flatten(1).sum(1)
    return energy


def _bound(unary: Tensor, cost: Tensor, fixed: Tensor, problem: Problem) -> Tensor:
    """Minimum (B,) without pairs: -entropy * logsumexp(-cost / entropy) where free, the seed's unary where fixed."""
    lowest = cost.amin(1)
    spread = torch.logsumexp((lowest.unsqueeze(1) - cost) / problem.entropy, dim=1)
    seeded = unary.gather(1, fixed.clamp(min=0).unsqueeze(1)).squeeze(1)
    least = torch.where(fixed < 0, lowest - problem.entropy * spread, seeded)
    return (least if problem.roi is None else least * problem.roi).flatten(1).sum(1)
