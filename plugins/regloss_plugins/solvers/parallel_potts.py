"""Parallel Potts: relaxation, rounding and moves, for whole batches at once on the device of the unaries.

    min over labels of   E(l) = sum over pixels of unary[l_p, p] + sum over pairs of w_pq [l_p != l_q],     w >= 0

Every operation covers all pixels of all images. The relaxation of E over probabilities, with dual variables z, is

    min over s in the simplex   max over |z| <= 1   <unary, s> + <z, D s>,    (D s)_pq^k = w_pq / 2 (s_p^k - s_q^k)

the usual linear relaxation. It is solved by the over-relaxed primal-dual iteration

    s^ = projection of  s - tau (unary + D^T z)  onto the simplex,     z^ = clamp(z + (Delta (2 s^ - s)) / (2 c), -1, 1)
    s <- s + rho (s^ - s),     z <- z + rho (z^ - z),         tau_p = c / (half the sum of the w at p),    rho = 1.9

with step sizes by pixel and pair (Delta s = s_p - s_q, so w cancels in z) that satisfy the condition for convergence.
Information moves by one pixel in a step, so the iteration begins on coarser grids, whose pixels are blocks of two along
each axis, and goes on from their s and z; pairs within a block get a z that levels unary + D^T z among its pixels.
After every ``check_every`` steps

    bound  = sum over p of min over k of (unary + D^T clamp(z, -1, 1))_p^k                    is at most every E, and
    labels = argmax of s^, and the best level sets of each s^k over that, then moves of connected regions and of pixels,

and the best labelling is kept, the start included. (See `regloss_plugins.solvers.region_moves` for the moves.)

With two labels the relaxation is tight, so that almost every level set is a minimum cut in the end; they have one
channel, as s^0 = 1 - s^1 and z^0 = -z^1, and the projection is a clamp.

Source: Lellmann, Schnoerr, "Continuous multiclass labeling approaches and algorithms", SIAM J. Imaging Sci. 2011 (the
relaxation); Pock, Chambolle, "Diagonal preconditioning for first order primal-dual algorithms", ICCV 2011 (steps);
Condat, "A primal-dual splitting method ..", JOTA 2013 (over-relaxation).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch import Tensor

from regloss import grid
from regloss.checks import check_not_negative
from regloss.dispatch import find
from regloss.divergence import gather_labels
from regloss.errors import UsageError
from regloss.forms import Form, GridGraph
from regloss.numerics import one_hot, widest_float
from regloss.solver import Problem, Solution, Solver, Status
from regloss_plugins.solvers.alpha_expansion import refuse_entropy
from regloss_plugins.solvers.region_moves import move_levels, move_pixels, move_regions

RELAXATION = 1.9  # of the iteration; below 2 it converges, and less is slower
# If nothing else is said: of all images with more than two labels; of those with two, or where the bound leaves open
# more than this part of the energy, which is counted from that of every pixel's cheapest label.
STEPS, MOST_STEPS, OPEN = 300, 1000, 0.05
NEWTON_STEPS = 2  # of the projection, which goes on from the last threshold
LEVELLING_ROUNDS = 2  # of z within blocks; more help no further
TINY = 1e-30  # below every weight that matters
SMALLEST = 8  # pixels along the longest axis of the coarsest grid, at most


@dataclass(frozen=True)
class ParallelPotts(Solver):
    """Relaxed Potts with moves of regions; batched, on any device, in float32, in 1D to 3D.

    A status OPTIMAL means that bound and energy agree to ``tolerance`` per pixel. MAX_STEPS is no alarm: where the
    relaxation is not tight, a gap remains whatever the number of steps.

    Args:
        max_steps: largest number of steps on the grid itself, >= 1. None: 1000, but 300 where these leave a gap of at
            most 5 percent of the energy above that of every pixel's cheapest label, and there are more than two.
        coarse_steps: number of steps on each coarser grid, >= 0; 0 = no coarser grids.
        check_every: steps between two looks at bound and labels, >= 1.
        balance: c above, > 0: large values move probabilities, small ones dual variables.
        tolerance: gap per pixel, in units of the unary, at which an image is done, >= 0.

    Raises:
        UsageError: a setting outside its range, an entropy weight other than 0.

    >>> from regloss import GridCRF, solve
    >>> image = torch.rand(2, 1, 12, 12, generator=torch.Generator().manual_seed(0))
    >>> unary = torch.rand(2, 3, 12, 12, generator=torch.Generator().manual_seed(1))
    >>> term = GridCRF(weight=0.3).bind(image)
    >>> found, expanded = (solve(term, unary, solver) for solver in (ParallelPotts(), "alpha-expansion"))
    >>> bool((found.energy < 1.005 * expanded.energy).all()), bool((found.bound <= expanded.energy).all())
    (True, True)
    """

    max_steps: int | None = None
    coarse_steps: int = 200
    check_every: int = 100
    balance: float = 1.0
    tolerance: float = 1e-6
    accepts: ClassVar[tuple[type[Form], ...]] = (GridGraph,)

    def __post_init__(self) -> None:
        if (self.max_steps is not None and self.max_steps < 1) or self.check_every < 1:
            raise UsageError(
                f"max_steps and check_every must be at least 1; got {self.max_steps} and {self.check_every}."
            )
        if self.coarse_steps < 0:
            raise UsageError(f"coarse_steps must not be negative, 0 being no coarser grids; got {self.coarse_steps}.")
        if not (math.isfinite(self.balance) and self.balance > 0):
            raise UsageError(f"balance must be finite and above 0; got {self.balance}.")
        check_not_negative(tolerance=self.tolerance)

    def entropies(self, form: type[Form]) -> Literal["zero"]:
        """0 alone: it minimises over labels."""
        return "zero"

    def minimise(self, problem: Problem) -> Solution:
        """Solve all images of the batch side by side."""
        refuse_entropy(problem, "parallel-potts")
        free = _FreeProblem(problem)
        batch, pixels = len(free.labels), free.labels[0].numel()
        labels = free.labels
        start_energy = energy = free.energy(labels)
        bound = torch.full_like(energy, -math.inf)
        steps = torch.zeros(batch, dtype=torch.int64, device=labels.device)
        active = torch.ones(batch, dtype=torch.bool, device=labels.device)

        two_labels = free.unary.shape[1] == 2
        max_steps = self.max_steps or MOST_STEPS
        unary, weights = _one_channel(free.unary, free.weights) if two_labels else (free.unary, free.weights)
        iteration = self._iteration(unary, free.offsets, weights, two_labels)
        while bool(active.any()) and iteration.steps < max_steps:
            stop = STEPS if self.max_steps is None and iteration.steps < STEPS else max_steps
            iteration.run(min(self.check_every, stop - iteration.steps))
            steps = torch.where(active, iteration.steps, steps)
            # An image that is done stays as it is, whatever else is in the batch.
            bound = torch.where(active, torch.maximum(bound, free.bound(iteration.dual_of_labels())), bound)
            probabilities = iteration.probabilities()
            rounded = _moved(free, free.rounded(probabilities))
            swept = _moved(free, free.swept(rounded, probabilities))
            # Regions in which the new labels and the best ones differ may change sides one by one.
            joint = move_regions(free.unary, free.offsets, free.weights, labels, parts=swept)
            for candidate in (rounded, swept, _moved(free, joint)):
                found = free.energy(candidate)
                better = active & (found < energy)
                energy = torch.where(better, found, energy)
                labels = torch.where(grid.spread(better, labels), candidate, labels)
            active &= energy - bound > self.tolerance * pixels
            if self.max_steps is None and not two_labels and iteration.steps >= STEPS:
                active &= energy - bound > OPEN * (energy - free.least)

        unproven = energy - bound > self.tolerance * pixels
        return Solution(
            probabilities=one_hot(labels, problem.unary.shape[1], problem.unary.dtype),
            labels=labels,
            energy=energy,
            bound=torch.minimum(bound, energy),  # equal but for rounding, where the relaxation is tight
            steps=steps,
            status=tuple(Status.MAX_STEPS if more else Status.OPTIMAL for more in unproven.tolist()),
            start_energy=start_energy,
            state=labels,
        )

    def _iteration(
        self, unary: Tensor, offsets: tuple[grid.Offset, ...], weights: Tensor, two_labels: bool
    ) -> _Iteration:
        """The iteration on a grid, begun where that on the coarser grid ended."""
        size = unary.shape[2:]
        if self.coarse_steps == 0 or max(size) <= SMALLEST:
            cheapest = (
                (unary < 0).to(unary.dtype) if two_labels else one_hot(unary.argmin(1), unary.shape[1], unary.dtype)
            )
            return _Iteration(unary, offsets, weights, self.balance, cheapest, None, two_labels)
        coarse = self._iteration(_pooled(unary), offsets, _joined(offsets, weights), two_labels)
        coarse.run(self.coarse_steps)
        dual = _refined_dual(coarse.dual, unary, offsets, weights)
        return _Iteration(unary, offsets, weights, self.balance, _refined(coarse.channels, size), dual, two_labels)


def _moved(free: _FreeProblem, labels: Tensor) -> Tensor:
    """Labels (B, *S) after moves of regions and of pixels, and both once more in images where a pixel moved."""
    settled = torch.zeros(len(labels), dtype=torch.bool, device=labels.device)
    for _ in range(2):
        regions = move_regions(free.unary, free.offsets, free.weights, labels)
        pixels = move_pixels(free.unary, free.offsets, free.weights, regions)
        labels = torch.where(grid.spread(settled, labels), labels, pixels)
        settled |= (pixels == regions).flatten(1).all(1)
        if bool(settled.all()):
            break
    return labels


class _FreeProblem:
    """What is free of a problem: seeds contracted into unaries, labels that are not allowed too dear to be taken.

    Attributes:
        unary: (B, K, *S) float32, 0 at pixels that are not free.
        weights: (B, n, *S) float32, 0 where an end is not free.
        labels: (B, *S) the start, with seeds and allowed labels only.
        constant: (B,) energy that does not depend on the free labels.
    """

    def __init__(self, problem: Problem) -> None:
        form, unary = problem.form, problem.unary
        assert isinstance(form, GridGraph)
        batch, classes = unary.shape[:2]
        shape, device = (batch, *unary.shape[2:]), unary.device
        if not bool(((form.weights >= 0) & form.weights.isfinite()).all()):
            raise ValueError("expected finite weights >= 0, got negative, infinite or NaN ones")
        self.problem, self.form, self.offsets = problem, form, form.offsets
        inside = grid.full_roi(problem.roi, shape, device)
        fixed = torch.full(shape, -1, device=device) if problem.fixed is None else problem.fixed.to(device)
        self.fixed = fixed.masked_fill(~inside, -1)
        self.inside, self.free = inside, inside & (self.fixed < 0)

        allowed = torch.ones(batch, classes, dtype=torch.bool, device=device)
        if problem.allowed is not None:
            allowed = problem.allowed.to(device)
        self.forbidden = ~allowed.reshape(batch, classes, *[1] * (len(shape) - 1)) & self.free.unsqueeze(1)
        # What all labels of a pixel have in common would cost single precision its digits.
        self.cheapest = unary.masked_fill(self.forbidden, math.inf).amin(1)
        cost = torch.zeros_like(unary, dtype=torch.float32)
        for label in range(classes):  # one by one, as all costs in double precision would need much memory
            cost[:, label] = self._above(unary[:, label]) * self.free
        weights, incident = torch.zeros_like(form.weights, dtype=torch.float32), torch.zeros(shape, device=device)
        for number, offset in enumerate(self.offsets):
            first, second = grid.pair_slices(offset)
            weight = grid.pick(form.weights[:, number], first).to(torch.float32)
            free_first, free_second = grid.pick(self.free, first), grid.pick(self.free, second)
            grid.pick(weights[:, number], first).copy_(weight * (free_first & free_second))
            for end, other in ((first, second), (second, first)):
                seed = grid.pick(self.fixed, other)
                drawn = weight * (grid.pick(self.free, end) & (seed >= 0))
                # The seed's own label is cheaper, which is the same as all others dearer, up to a constant.
                grid.pick(cost, end).scatter_add_(1, seed.clamp(min=0).unsqueeze(1), -drawn.unsqueeze(1))
                grid.pick(incident, end).add_(weight)
        # No minimiser takes a label that costs more than another one with all pairs cut.
        dear = cost.masked_fill(self.forbidden, -math.inf).amax(1, keepdim=True) + 2 * incident.unsqueeze(1) + 1
        self.unary = torch.where(self.forbidden, dear, cost)
        self.weights = weights
        self.labels = self._start()
        # What E holds besides the free part: seeds, and what was left out of their neighbours' unaries.
        self.constant = self.energy(self.labels) - self._free_energy(self.labels)
        # E of the cheapest labels that are allowed, without pairs.
        cheapest = torch.where(self.free, self.cheapest, gather_labels(unary, self.labels)).to(
            widest_float(unary.device)
        )
        self.least = (cheapest * self.inside).flatten(1).sum(1)

    def _above(self, unary: Tensor) -> Tensor:
        """By how much costs (B, *S) exceed the cheapest ones of their pixels, in double precision."""
        exact = widest_float(unary.device)
        return unary.to(exact) - self.cheapest.to(exact)

    def _lost(self, unary: Tensor) -> Tensor:
        """What single precision leaves out of that (B, *S), 0 where nothing is free."""
        above = self._above(unary)
        return (above - above.to(torch.float32)) * self.free

    def _start(self) -> Tensor:
        cheapest = self.unary.argmin(1)
        warm = self.problem.warm
        if warm is None:
            start = cheapest
        elif isinstance(warm, Tensor):
            start = warm.to(cheapest).masked_fill(~self.inside, 0)
            not_allowed = gather_labels(self.forbidden, start)
            start = torch.where(not_allowed, cheapest, start)
        else:
            raise UsageError(
                f"parallel-potts starts from labels (B, *S); got the state of another solver, {type(warm).__name__}. "
                "Pass its solution.labels as warm."
            )
        return torch.where(self.fixed >= 0, self.fixed, start)

    def rounded(self, probabilities: Tensor) -> Tensor:
        """Labels (B, *S) that are most probable and allowed, and the start's where nothing is free."""
        chosen = probabilities.masked_fill(self.forbidden, -math.inf).max(1).indices
        return torch.where(self.free, chosen, self.labels)

    def swept(self, labels: Tensor, probabilities: Tensor) -> Tensor:
        """Labels (B, *S) after moves along level sets of the probabilities."""
        allowed = probabilities.masked_fill(self.forbidden, -1.0)
        moved = move_levels(self.unary, self.offsets, self.weights, labels, allowed)
        return torch.where(self.free, moved, self.labels)

    def energy(self, labels: Tensor) -> Tensor:
        """E (B,) of the whole problem, in double precision."""
        unary = self.problem.unary
        exact = widest_float(unary.device)
        total = (gather_labels(unary, labels).to(exact) * self.inside).flatten(1).sum(1)
        return total + GridGraph(self.offsets, self.form.weights.to(exact)).cut(labels)

    def _free_energy(self, labels: Tensor) -> Tensor:
        total = gather_labels(self.unary, labels) * self.free + self._lost(gather_labels(self.problem.unary, labels))
        cut = GridGraph(self.offsets, self.weights.to(widest_float(self.weights.device))).cut(labels)
        return total.flatten(1).sum(1) + cut

    def bound(self, dual: Tensor) -> Tensor:
        """Lower bound (B,) on E from any z (B, n, K, *S): valid as |z| <= 1 is seen to here, in spite of rounding."""
        exact = widest_float(dual.device)
        half = self.weights.unsqueeze(2).to(exact) / 2
        least = torch.full_like(self.unary[:, :1], math.inf, dtype=exact)
        for label in range(dual.shape[2]):  # one by one, as all costs in double precision would need much memory
            part = slice(label, label + 1)
            feasible = dual[:, :, part].clamp(-1, 1)  # over-relaxation leads beyond, where bounds would exceed minima
            lost = self._lost(self.problem.unary[:, label]).masked_fill(self.forbidden[:, label], 0)
            costs = _reduced_costs(self.unary[:, part] + lost.unsqueeze(1), self.offsets, half, feasible)
            least = torch.minimum(least, costs)
        return (least.squeeze(1) * self.free).flatten(1).sum(1) + self.constant


def _reduced_costs(
    unary: Tensor, offsets: tuple[grid.Offset, ...], half: Tensor, dual: Tensor, out: Tensor | None = None
) -> Tensor:
    """Unary + D^T z (B, K, *S), written to ``out`` if given."""
    costs = unary.clone() if out is None else out.copy_(unary)
    for number, offset in enumerate(offsets):
        first, second = grid.pair_slices(offset)
        flow = grid.pick(dual[:, number], first), grid.pick(half[:, number], first)
        grid.pick(costs, first).addcmul_(*flow)
        grid.pick(costs, second).addcmul_(*flow, value=-1)
    return costs


class _Iteration:
    """The primal-dual iteration on one grid, with a channel for each label, or one for two labels: see `_one_channel`.

    Attributes:
        channels: (B, C, *S) the probabilities s^, nearly in the simplex, or in [0, 1] for two labels.
        dual: (B, n, C, *S) the z, which over-relaxation may take beyond [-1, 1].
        steps: number of steps taken.
    """

    def __init__(
        self,
        unary: Tensor,
        offsets: tuple[grid.Offset, ...],
        weights: Tensor,
        balance: float,
        channels: Tensor,
        dual: Tensor | None,
        two_labels: bool,
    ) -> None:
        self.unary, self.offsets, self.balance, self.two_labels = unary, offsets, balance, two_labels
        self.half = weights.unsqueeze(2) / 2  # (B, n, 1, *S)
        self.channels = channels.contiguous()  # as is what is written in place everywhere, whatever the unary's order
        self.primal = self.channels.clone()
        shape = (unary.shape[0], len(offsets), *unary.shape[1:])
        self.dual = unary.new_zeros(shape) if dual is None else dual
        incident = torch.zeros_like(unary[:, :1])
        for first, second, half in grid.pairs(offsets, self.half):
            for end in (first, second):
                grid.pick(incident, end).add_(half)
        # Without pairs a step to the cheapest label is none too long; with almost none it must not overflow.
        self.step = (balance / incident).clamp(max=1e30)
        self.threshold: Tensor | None = None
        self.steps = 0

    def run(self, steps: int) -> None:
        """Take ``steps`` steps."""
        self.steps += steps
        fast = find("potts-steps", device=self.unary.device)
        if fast is not None:
            found: tuple[Tensor, Tensor] | None = fast(
                self.primal,
                self.channels,
                self.dual,
                self.threshold,
                self.unary,
                self.half,
                self.step,
                self.offsets,
                steps=steps,
                balance=self.balance,
                relaxation=RELAXATION,
                newton_steps=NEWTON_STEPS,
                two_labels=self.two_labels,
            )
            if found is not None:
                self.primal, self.threshold = found
                return
        # Written again and again: on a CPU, new pages for each result would take longer than what they are for.
        buffer, moved = torch.empty_like(self.unary), torch.empty_like(self.unary)
        for _ in range(steps):
            costs = _reduced_costs(self.unary, self.offsets, self.half, self.dual, out=buffer)
            if self.two_labels:
                torch.addcmul(self.primal, costs, self.step, value=-1, out=self.channels).clamp_(0, 1)
            else:
                costs -= costs.amin(1, keepdim=True)
                # Labels whose cost exceeds the cheapest by so much get no probability in any case.
                target = torch.sub(self.primal, costs.mul_(self.step).clamp_(max=8.0), out=buffer)
                self.threshold = _simplex_projection(target, self.threshold, out=self.channels)
            ahead = torch.lerp(self.primal, self.channels, 2.0, out=buffer)
            for first, second, dual in grid.pairs(self.offsets, self.dual):
                change = torch.sub(grid.pick(ahead, first), grid.pick(ahead, second), out=grid.pick(moved, first))
                change.mul_(1 / (2 * self.balance)).add_(dual).clamp_(-1, 1)
                dual.lerp_(change, RELAXATION)
            self.primal.lerp_(self.channels, RELAXATION)

    def probabilities(self) -> Tensor:
        """s^ (B, K, *S)."""
        return torch.cat([1 - self.channels, self.channels], 1) if self.two_labels else self.channels

    def dual_of_labels(self) -> Tensor:
        """The z (B, n, K, *S) of all labels; |z| > 1 is possible."""
        return torch.cat([-self.dual, self.dual], 2) if self.two_labels else self.dual


def _one_channel(unary: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Unaries (B, 1, *S) and weights (B, n, *S) for the probability of the second of two labels alone.

    From z = 0 on, s^0 = 1 - s^1 and z^0 = -z^1 in all steps, so that one of each is enough: the cost of s^1 is
    unary^1 - unary^0, and both labels' pairs count for it. The steps are the same, for less than half the work.
    """
    return unary[:, 1:] - unary[:, :1], 2 * weights


def _simplex_projection(values: Tensor, threshold: Tensor | None, out: Tensor) -> Tensor:
    """``values`` (B, K, *S) projected onto the simplex over K, nearly, as ``out``; the threshold (B, 1, *S) found.

    The projection is max(values - t, 0) with t where this sums to 1. The sum is convex in t, so that Newton's method is
    monotone after its first step, and exact as soon as the set of positive entries is right.
    """
    classes = values.shape[1]
    largest = values.amax(1, keepdim=True)
    low, high = largest - 1, largest - 1 / classes
    threshold = low if threshold is None else torch.clamp(threshold, low, high)
    for _ in range(NEWTON_STEPS):
        above = torch.sub(values, threshold, out=out).clamp_(min=0)
        total = above.sum(1, keepdim=True)
        count = above.sign_().sum(1, keepdim=True)  # much faster than to count booleans
        threshold = torch.clamp(threshold + (total - 1) / count, low, high)
    torch.sub(values, threshold, out=out).clamp_(min=0)
    return threshold


def _halves(values: Tensor, ndim: int) -> dict[tuple[int, ...], Tensor]:
    """Views of the last axes by parity, after padding with zeros to even lengths; all of the coarse grid's size."""
    padding = [side for size in reversed(values.shape[-ndim:]) for side in (0, size % 2)]
    padded = F.pad(values, padding)
    return {
        parity: grid.pick(padded, tuple(slice(start, None, 2) for start in parity))
        for parity in itertools.product((0, 1), repeat=ndim)
    }


def _pooled(unary: Tensor) -> Tensor:
    """Unaries of blocks of two pixels along each axis that share a label."""
    return torch.stack(list(_halves(unary, unary.ndim - 2).values())).sum(0)


def _joined(offsets: tuple[grid.Offset, ...], weights: Tensor) -> Tensor:
    """Weights between such blocks; pairs within a block are never cut."""
    number = {offset: index for index, offset in enumerate(offsets)}
    parts = _halves(weights, weights.ndim - 2)
    joined = torch.zeros_like(next(iter(parts.values())))
    for parity, index, step in _blocks(offsets, weights.ndim - 2):
        part, back = parts[parity][:, index], tuple(-along for along in step)
        if step in number:
            joined[:, number[step]] += part
        elif back in number:  # the pair's second pixel lies in the block that comes first
            first, second = grid.pair_slices(back)
            grid.pick(joined[:, number[back]], first).add_(grid.pick(part, second))
    return joined


def _blocks(offsets: tuple[grid.Offset, ...], ndim: int) -> Iterator[tuple[grid.Offset, int, grid.Offset]]:
    """For each parity of a pair's first pixel and each offset's index, by how many blocks its ends are apart."""
    for parity in itertools.product((0, 1), repeat=ndim):
        for index, offset in enumerate(offsets):
            yield parity, index, tuple((start + along) // 2 for start, along in zip(parity, offset, strict=True))


def _refined_dual(coarse: Tensor, unary: Tensor, offsets: tuple[grid.Offset, ...], weights: Tensor) -> Tensor:
    """Dual variables (B, n, K, *S) with the same sum of unary + D^T z over each block as ``coarse`` has.

    Pairs between blocks take the blocks' z. Pairs within, which the coarser grid does not know, level unary + D^T z
    among the block's pixels, as far as |z| <= 1 lets them: at once where all pixels of a block are neighbours.
    """
    size = unary.shape[2:]
    dual = coarse.new_zeros(*coarse.shape[:3], *size)
    number = {offset: index for index, offset in enumerate(offsets)}
    within = torch.zeros(len(offsets), *size, dtype=torch.bool, device=dual.device)
    for parity, index, step in _blocks(offsets, weights.ndim - 2):
        pixels = tuple(slice(start, None, 2) for start in parity)
        target = grid.pick(dual[:, index], pixels)
        inside = tuple(slice(length) for length in target.shape[2:])  # odd sizes: the last blocks are not whole
        back = tuple(-along for along in step)
        if not any(step):
            grid.pick(within[index], pixels).fill_(True)
        elif step in number:
            target.copy_(grid.pick(coarse[:, number[step]], inside))
        elif back in number:  # the pair's second pixel lies in the block that comes first
            turned = torch.zeros_like(coarse[:, 0])
            first, second = grid.pair_slices(back)
            grid.pick(turned, second).copy_(-grid.pick(coarse[:, number[back]], first))
            target.copy_(grid.pick(turned, inside))
    mates = torch.zeros(size, device=dual.device)  # how many neighbours of a pixel lie in its block
    for index, offset in enumerate(offsets):
        first, second = grid.pair_slices(offset)
        for end in (first, second):
            grid.pick(mates, end).add_(grid.pick(within[index], first))
    share = 1 / (1 + mates.amax())
    half = weights.unsqueeze(2) / 2
    for _ in range(LEVELLING_ROUNDS):
        costs = _reduced_costs(unary, offsets, half, dual)
        for index, offset in enumerate(offsets):
            first, second = grid.pair_slices(offset)
            here = grid.pick(dual[:, index], first)
            flow = share * (grid.pick(costs, second) - grid.pick(costs, first))
            level = here + flow / grid.pick(half[:, index], first).clamp(min=TINY)
            here.copy_(torch.where(grid.pick(within[index], first), level.clamp_(-1, 1), here))
    return dual


def _refined(values: Tensor, size: tuple[int, ...]) -> Tensor:
    """Every block's value for its pixels, cropped to ``size``."""
    for axis, length in enumerate(size, start=values.ndim - len(size)):
        values = values.repeat_interleave(2, dim=axis).narrow(axis, 0, length)
    return values.contiguous()
