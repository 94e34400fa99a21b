r"""Lower bounds on Potts energies on grids: sequential tree-reweighted message passing over monotonic chains.

    E(x) = sum over p of unary[x_p, p] + sum over pairs pq of w_pq [x_p != x_q],      w >= 0

Pixels are numbered row by row, and the pairs in one direction (rows, columns, diagonals, ..) are chains along which the
numbers rise. If the unaries are divided among the n_p chains through each pixel, unary_p = sum over c of u_p^c, then

    min over x of E(x)  >=  D(u) = sum over chains of  min over x of E_c(x)

and D is what is raised. Going through the pixels in order, the chains through p are given equal min-marginals,

    h(k)           = unary[k, p] + sum of the messages that have come in at p,       h <- h - min h
    message to q   = min(m - min m, w_pq),       m = h / n_p - message from q,       for every q > p

and then backwards. The second line is the distance transform of the Potts model: K operations, not K^2. The minima that
are subtracted on the way add up to D, which no sweep lowers. On a single chain the first step
gives the minimum; in general D approaches the minimum of the usual linear relaxation, or ends a little below it.

Labels are rounded from the messages: in each forward sweep every pixel takes the label that is best given those already
chosen and the messages from the others; then each pixel in turn takes what is best for it. The best labelling is kept.

Messages travel along whole chains in a sweep, but into the next chain by one pixel only. So they start from those of a
coarser problem, where blocks of two pixels along each axis share a label: a pair's message is the one of its blocks,
in proportion to the weights. Any messages give a valid bound, so this costs nothing but time.

Source: Kolmogorov, "Convergent tree-reweighted message passing for energy minimization", PAMI 2006; the transform from
Felzenszwalb, Huttenlocher, "Efficient belief propagation for early vision", IJCV 2006.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from regloss_plugins.kernels.arguments import as_volume, dense, pair_slices
from regloss_plugins.kernels.compiling import helper, kernel
from regloss_plugins.kernels.expansion_start import FREE
from regloss_plugins.kernels.sums import add_compensated

__all__ = ["DualBound", "bound_grid"]

# The compiled functions hold no lock, so threads over images scale. Everything is float64: with messages rounded to
# float32 the bound could end above the minimum by more than rounding of the energy.
# Neither NaN nor the sign of zero matters to minima and sums of finite numbers, and without them loops are vectorised.
_RELAXED = {"nnan", "nsz"}
# Below so many pixels a coarser problem is not worth its setting up.
_SMALLEST = 256


@dataclass(frozen=True)
class DualBound:
    """A lower bound, a labelling, and what is known about them.

    Attributes:
        labels: (*S) int64; the best found, the start included.
        energy: of ``labels``.
        start_energy: of the start, after fixed pixels and labels that are not allowed were replaced.
        bound: at most the least energy of any labelling that is allowed.
        steps: sweeps there and back.
        converged: the last step raised the bound by no more than the tolerance allows, or the gap is closed.
        bounds: (steps,) what each step's messages prove; never falls, but for rounding.
    """

    labels: NDArray[np.int64]
    energy: float
    start_energy: float
    bound: float
    steps: int
    converged: bool
    bounds: NDArray[np.float64]


def _reduce(
    unary: NDArray[np.float64],
    strides: NDArray[np.int64],
    weights: NDArray[np.float64],
    fixed: NDArray[np.int64],
    roi: NDArray[np.bool_],
    choices: NDArray[np.int64],
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], float]:
    """Contract fixed pixels into their neighbours' unaries, and leave out what lies outside ``roi``.

    Args:
        unary: (K, N).
        strides: (n,), > 0.
        weights: (N, n), 0 where a pair leaves the grid.
        fixed: (N,).
        roi: (N,).
        choices: (k,) labels that free pixels may take.

    Returns:
        Unaries (N, k) of the free pixels, 0 elsewhere; weights (N, n) of pairs of free pixels, 0 elsewhere; the share
        (N,) of a chain in each pixel; the energy of what is fixed.
    """
    pixels = len(weights)
    reduced, inner = np.zeros((pixels, len(choices))), np.zeros(weights.shape)
    ahead, behind = np.zeros(pixels, np.int64), np.zeros(pixels, np.int64)
    constant = _contract(unary, strides, weights, fixed, roi, choices, reduced, inner, ahead, behind)
    return reduced, inner, 1.0 / np.maximum(1, np.maximum(ahead, behind)), constant


@kernel()
def _contract(
    unary: NDArray[np.float64],
    strides: NDArray[np.int64],
    weights: NDArray[np.float64],
    fixed: NDArray[np.int64],
    roi: NDArray[np.bool_],
    choices: NDArray[np.int64],
    reduced: NDArray[np.float64],
    inner: NDArray[np.float64],
    ahead: NDArray[np.int64],
    behind: NDArray[np.int64],
) -> float:
    """Fill the last four, given as zeros; the numbers of pairs that leave each pixel, and that come to it, are two."""
    pixels, neighbors = weights.shape
    constant, lost = 0.0, 0.0
    for p in range(pixels):
        if not roi[p]:
            continue
        part = 0.0
        if fixed[p] == FREE:
            for c in range(len(choices)):
                reduced[p, c] += unary[choices[c], p]
        else:
            part = unary[fixed[p], p]
        for i in range(neighbors):
            w = weights[p, i]
            if w == 0.0:
                continue
            q = p + strides[i]
            if not roi[q]:
                continue
            if fixed[p] == FREE and fixed[q] == FREE:
                inner[p, i] = w
                ahead[p] += 1
                behind[q] += 1
            elif fixed[p] == FREE:
                for c in range(len(choices)):
                    if choices[c] != fixed[q]:
                        reduced[p, c] += w
            elif fixed[q] == FREE:
                for c in range(len(choices)):
                    if choices[c] != fixed[p]:
                        reduced[q, c] += w
            elif fixed[p] != fixed[q]:
                part += w
        constant, lost = add_compensated(part, constant, lost)
    return constant + lost


@helper(forceinline=True, fastmath=_RELAXED)
def _send(h: NDArray[np.float64], message: NDArray[np.float64], share: float, weight: float, labels: int) -> float:
    """Replace the message that came in over an edge by the one that goes out; return what was subtracted from it."""
    least = np.inf
    for k in range(labels):
        value = share * h[k] - message[k]
        message[k] = value
        least = min(least, value)
    for k in range(labels):
        message[k] = min(message[k] - least, weight)
    return least


@helper(fastmath=_RELAXED)
def _collect(
    p: int,
    unary: NDArray[np.float64],
    strides: NDArray[np.int64],
    weights: NDArray[np.float64],
    messages: NDArray[np.float64],
    h: NDArray[np.float64],
) -> float:
    """Write the sum of unary and incoming messages at ``p`` to ``h``, less its minimum, which is returned."""
    labels = len(h)
    for k in range(labels):
        h[k] = unary[p, k]
    for i in range(len(strides)):
        if weights[p, i] > 0.0:
            for k in range(labels):
                h[k] += messages[p, i, k]
        q = p - strides[i]
        if q >= 0 and weights[q, i] > 0.0:
            for k in range(labels):
                h[k] += messages[q, i, k]
    least = np.inf
    for k in range(labels):
        least = min(least, h[k])
    for k in range(labels):
        h[k] -= least
    return least


@helper()
def _step(
    unary: NDArray[np.float64],
    strides: NDArray[np.int64],
    weights: NDArray[np.float64],
    share: NDArray[np.float64],
    messages: NDArray[np.float64],
    choice: NDArray[np.int64],
    h: NDArray[np.float64],
    cost: NDArray[np.float64],
) -> float:
    """One sweep there, choosing labels on the way, and one back; returns the bound of the second."""
    pixels, labels = unary.shape
    for p in range(pixels):
        _collect(p, unary, strides, weights, messages, h)
        # The label that is best given the pixels behind, which have chosen, and the messages of those ahead.
        for k in range(labels):
            cost[k] = unary[p, k]
        for i in range(len(strides)):
            if weights[p, i] > 0.0:
                for k in range(labels):
                    cost[k] += messages[p, i, k]
            q = p - strides[i]
            if q >= 0 and weights[q, i] > 0.0:
                cost[choice[q]] -= weights[q, i]
        best = 0
        for k in range(1, labels):
            if cost[k] < cost[best]:
                best = k
        choice[p] = best
        for i in range(len(strides)):
            if weights[p, i] > 0.0:
                _send(h, messages[p, i], share[p], weights[p, i], labels)
    bound, lost = 0.0, 0.0
    for p in range(pixels - 1, -1, -1):
        part = _collect(p, unary, strides, weights, messages, h)
        for i in range(len(strides)):
            q = p - strides[i]
            if q >= 0 and weights[q, i] > 0.0:
                part += _send(h, messages[q, i], share[p], weights[q, i], labels)
        bound, lost = add_compensated(part, bound, lost)
    return bound + lost


@kernel()
def _energy(
    unary: NDArray[np.float64], strides: NDArray[np.int64], weights: NDArray[np.float64], choice: NDArray[np.int64]
) -> float:
    """Energy of the free part."""
    total, lost = 0.0, 0.0
    for p in range(len(choice)):
        part = unary[p, choice[p]]
        for i in range(len(strides)):
            if weights[p, i] > 0.0 and choice[p] != choice[p + strides[i]]:
                part += weights[p, i]
        total, lost = add_compensated(part, total, lost)
    return total + lost


@helper()
def _settle(
    unary: NDArray[np.float64],
    strides: NDArray[np.int64],
    weights: NDArray[np.float64],
    choice: NDArray[np.int64],
    cost: NDArray[np.float64],
) -> None:
    """Let every pixel in turn take its best label given all others, there and back."""
    pixels, labels = unary.shape
    for index in range(2 * pixels):
        p = index if index < pixels else 2 * pixels - 1 - index
        for k in range(labels):
            cost[k] = unary[p, k]
        for i in range(len(strides)):
            if weights[p, i] > 0.0:
                cost[choice[p + strides[i]]] -= weights[p, i]
            q = p - strides[i]
            if q >= 0 and weights[q, i] > 0.0:
                cost[choice[q]] -= weights[q, i]
        best = choice[p]
        for k in range(labels):
            if cost[k] < cost[best]:
                best = k
        choice[p] = best


def _ascend(
    unary: NDArray[np.float64],
    strides: NDArray[np.int64],
    weights: NDArray[np.float64],
    share: NDArray[np.float64],
    messages: NDArray[np.float64],
    labels: NDArray[np.int64],
    max_steps: int,
    tolerance: float,
    slack: float,
) -> tuple[float, float, float, bool, NDArray[np.float64]]:
    """Steps until the bound stands still; ``messages`` and ``labels`` are replaced by the last and the best.

    Returns:
        Start energy, energy, bound, whether it converged, and what each step proves.
    """
    start_energy = _energy(unary, strides, weights, labels)
    memory, bounds = np.empty((2, unary.shape[1])), np.empty(max_steps)
    energy, bound, converged, steps = _sweep(
        unary, strides, weights, share, messages, labels, start_energy, tolerance, slack, labels.copy(), memory, bounds
    )
    return start_energy, energy, bound, converged, bounds[:steps]


@kernel()
def _sweep(
    unary: NDArray[np.float64],
    strides: NDArray[np.int64],
    weights: NDArray[np.float64],
    share: NDArray[np.float64],
    messages: NDArray[np.float64],
    labels: NDArray[np.int64],
    energy: float,
    tolerance: float,
    slack: float,
    choice: NDArray[np.int64],
    memory: NDArray[np.float64],
    bounds: NDArray[np.float64],
) -> tuple[float, float, bool, int]:
    """All steps; energy, bound, whether they converged, and their number, at most that of ``bounds``."""
    h, cost = memory[0], memory[1]
    bound = -np.inf
    converged = False
    steps = 0
    while steps < len(bounds) and not converged:
        raised = _step(unary, strides, weights, share, messages, choice, h, cost)
        _settle(unary, strides, weights, choice, cost)
        found = _energy(unary, strides, weights, choice)
        if found < energy:
            energy = found
            for p in range(len(choice)):
                labels[p] = choice[p]
        gain = raised - bound
        bound = max(bound, raised)  # a sweep can lower it by rounding
        bounds[steps] = raised
        steps += 1
        converged = bound >= energy - slack or gain <= tolerance * (energy - bound)
    return energy, bound, converged, steps


@helper()
def _coarse_pair(z: int, y: int, x: int, i: int, offsets: NDArray[np.int64]) -> tuple[int, bool]:
    """Which offset joins the blocks of a pixel and of its partner by offset ``i``; -1 if none does.

    And whether from the partner's to the pixel's.
    """
    dz, dy = (z + offsets[i, 0]) // 2 - z // 2, (y + offsets[i, 1]) // 2 - y // 2
    dx = (x + offsets[i, 2]) // 2 - x // 2
    for j in range(len(offsets)):
        if offsets[j, 0] == dz and offsets[j, 1] == dy and offsets[j, 2] == dx:
            return j, False
        if offsets[j, 0] == -dz and offsets[j, 1] == -dy and offsets[j, 2] == -dx:
            return j, True
    return -1, False


def _coarsen(
    unary: NDArray[np.float64], weights: NDArray[np.float64], offsets: NDArray[np.int64], shape: tuple[int, int, int]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Unaries, weights and shares of the problem whose pixels are blocks of two along each axis."""
    blocks = math.prod((size + 1) // 2 for size in shape)
    coarse, joined = np.zeros((blocks, unary.shape[1])), np.zeros((blocks, len(offsets)))
    behind = np.zeros(blocks, np.int64)
    _add_blocks(unary, weights, offsets, shape, coarse, joined, behind)
    return coarse, joined, 1.0 / np.maximum(1, np.maximum((joined > 0.0).sum(1), behind))


@kernel()
def _add_blocks(
    unary: NDArray[np.float64],
    weights: NDArray[np.float64],
    offsets: NDArray[np.int64],
    shape: tuple[int, int, int],
    coarse: NDArray[np.float64],
    joined: NDArray[np.float64],
    behind: NDArray[np.int64],
) -> None:
    """Fill unaries and weights of blocks, and the number of pairs that come to each, given as zeros."""
    depth, height, width = shape
    rows, columns = (height + 1) // 2, (width + 1) // 2
    for z in range(depth):
        for y in range(height):
            for x in range(width):
                p, block = (z * height + y) * width + x, (z // 2 * rows + y // 2) * columns + x // 2
                for k in range(unary.shape[1]):
                    coarse[block, k] += unary[p, k]
                for i in range(len(offsets)):
                    if weights[p, i] > 0.0:
                        j, backwards = _coarse_pair(z, y, x, i, offsets)
                        if j >= 0:
                            step = (offsets[j, 0] * rows + offsets[j, 1]) * columns + offsets[j, 2]
                            joined[block - step if backwards else block, j] += weights[p, i]
    for i in range(len(offsets)):
        step = (offsets[i, 0] * rows + offsets[i, 1]) * columns + offsets[i, 2]
        for p in range(len(joined)):
            if joined[p, i] > 0.0:
                behind[p + step] += 1


def _refine(
    messages: NDArray[np.float64],
    joined: NDArray[np.float64],
    found: NDArray[np.int64],
    weights: NDArray[np.float64],
    offsets: NDArray[np.int64],
    shape: tuple[int, int, int],
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Messages and labels of pixels from those of their blocks; pairs inside a block take those that leave it."""
    finer, choice = np.zeros((len(weights), *messages.shape[1:])), np.empty(len(weights), np.int64)
    _spread_blocks(messages, joined, found, weights, offsets, shape, finer, choice)
    return finer, choice


@kernel()
def _spread_blocks(
    messages: NDArray[np.float64],
    joined: NDArray[np.float64],
    found: NDArray[np.int64],
    weights: NDArray[np.float64],
    offsets: NDArray[np.int64],
    shape: tuple[int, int, int],
    finer: NDArray[np.float64],
    choice: NDArray[np.int64],
) -> None:
    """Fill messages, given as zeros, and labels of pixels."""
    depth, height, width = shape
    rows, columns = (height + 1) // 2, (width + 1) // 2
    for z in range(depth):
        for y in range(height):
            for x in range(width):
                p, block = (z * height + y) * width + x, (z // 2 * rows + y // 2) * columns + x // 2
                choice[p] = found[block]
                for i in range(len(offsets)):
                    if weights[p, i] > 0.0:
                        j, backwards = _coarse_pair(z, y, x, i, offsets)
                        if j < 0:
                            j = i
                        # A message that runs against its pair's direction does not exist: one orientation is stored.
                        if not backwards and joined[block, j] > 0.0:
                            scale = weights[p, i] / joined[block, j]
                            for k in range(messages.shape[2]):
                                finer[p, i, k] = scale * messages[block, j, k]


def _spread(unary: NDArray[np.float64]) -> float:
    """Sum over pixels of the largest absolute unary: what the rounding of an energy is relative to."""
    return float(np.abs(unary).max(1).sum())


def _coarse_start(
    unary: NDArray[np.float64],
    weights: NDArray[np.float64],
    offsets: NDArray[np.int64],
    shape: tuple[int, int, int],
    max_steps: int,
    tolerance: float,
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Messages and labels to start from: those of coarser problems, or none and the cheapest."""
    if len(unary) < _SMALLEST:
        return np.zeros((*weights.shape, unary.shape[1])), unary.argmin(1)
    coarse, joined, share = _coarsen(unary, weights, offsets, shape)
    smaller = ((shape[0] + 1) // 2, (shape[1] + 1) // 2, (shape[2] + 1) // 2)
    messages, labels = _coarse_start(coarse, joined, offsets, smaller, max_steps, tolerance)
    _ascend(coarse, _strides(offsets, smaller), joined, share, messages, labels, max_steps, tolerance, 0.0)
    return _refine(messages, joined, labels, weights, offsets, shape)


def _strides(offsets: NDArray[np.int64], shape: tuple[int, int, int]) -> NDArray[np.int64]:
    """How far the partners of each offset are; where it leaves a thin grid everywhere, a number that is in range."""
    strides: NDArray[np.int64] = np.maximum(1, offsets @ np.array([shape[1] * shape[2], shape[2], 1]))
    return strides


def bound_grid(
    unary: ArrayLike,
    offsets: ArrayLike,
    weights: ArrayLike,
    labels: ArrayLike,
    fixed: ArrayLike,
    roi: ArrayLike,
    allowed: ArrayLike,
    max_steps: int,
    tolerance: float = 1e-3,
) -> DualBound:
    """Lower bound on the Potts energy of a regular grid S of 1, 2 or 3 dimensions, and labels rounded from it.

    The arguments are those of `regloss_plugins.kernels.expansion.expand_grid`, so that its result can be certified.

    Args:
        unary: (K, *S) cost of each label at each pixel.
        offsets: (n, D) integers, from a pixel to its partner in each of n edges; each edge once, not both directions.
        weights: (n, *S), >= 0; ``weights[i, p]`` is that of the edge from p to ``p + offsets[i]``. Entries whose
            partner lies outside the array, or with an end outside ``roi``, are ignored.
        labels: (*S) integers, the start. Where a free pixel's label is not allowed, the cheapest allowed one is taken.
        fixed: (*S) integers, labels that must stay, -1 where a pixel is free. They need not be allowed.
        roi: (*S) bool; outside it nothing counts and nothing changes.
        allowed: (K,) bool, labels that a free pixel may take.
        max_steps: how many times at most all messages are renewed, there and back.
        tolerance: a step that raises the bound by no more than this part of the gap ends it.

    Returns:
        A :class:`DualBound`. Its labels are never above the start. Memory: about 8 (n + 2) N k bytes for N pixels
        and k allowed labels.

    Raises:
        ValueError: where a weight is negative, infinite or NaN, a unary that can count is infinite or NaN, a fixed
            label is not a label, no label is allowed, or shapes do not match.

    A row is one chain, whose bound is the minimum:

    >>> unary = [[0.0, 0.9, 2.0, 9.0], [1.5, 0.0, 1.0, 0.0], [2.0, 0.9, 0.0, 9.0]]
    >>> result = bound_grid(
    ...     unary, [[1]], [[1.0, 1.0, 1.0, 0.0]], [0] * 4, [-1] * 4, [True] * 4, [True] * 3, max_steps=5
    ... )
    >>> result.labels.tolist(), result.energy, result.bound
    ([0, 1, 1, 1], 2.0, 2.0)
    """
    shape, volume, steps = as_volume(unary, offsets, labels)
    classes, neighbors = np.shape(unary)[0], len(steps)
    costs = dense(unary, np.float64, "unary", (classes, *shape)).reshape(classes, -1)
    start = dense(labels, np.int64, "labels", shape).ravel()
    seeds = dense(fixed, np.int64, "fixed", shape).ravel()
    inside = dense(roi, np.bool_, "roi", shape).ravel()
    choices = np.flatnonzero(dense(allowed, np.bool_, "allowed", (classes,)))
    seeds = np.where(inside, seeds, FREE)
    free = inside & (seeds == FREE)
    if np.any((seeds < FREE) | (seeds >= classes)):
        raise ValueError(f"expected fixed labels 0 .. {classes - 1}, or -1 where free, got others inside roi")
    if not len(choices) and free.any():
        raise ValueError("expected at least one allowed label for the free pixels, got none")

    edges, steps = _forward_pairs(
        dense(weights, np.float64, "weights", (neighbors, *shape)).reshape(neighbors, *volume),
        steps,
        inside.reshape(volume),
    )
    if not (np.isfinite(edges).all() and (edges >= 0).all()):
        raise ValueError("expected finite weights >= 0, got negative, infinite or NaN ones")
    strides = _strides(steps, volume)
    reduced, inner, share, constant = _reduce(costs, strides, edges, seeds, inside, choices)
    if not (np.isfinite(reduced).all() and np.isfinite(constant)):
        raise ValueError("expected finite unaries of all labels that a pixel may take, got infinite or NaN ones")

    whole = np.where(inside & ~free, seeds, start)
    if not len(choices) or not free.any():
        return DualBound(whole.reshape(shape), constant, constant, constant, 0, True, np.empty(0))
    number = np.full(classes + 1, -1)  # the last entry is for labels that are none
    number[choices] = np.arange(len(choices))
    wanted = number[np.where((start >= 0) & (start < classes), start, classes)]
    wanted = np.where(free, np.where(wanted >= 0, wanted, reduced.argmin(1)), 0)
    slack = 1e-14 * (_spread(reduced) + abs(constant))
    messages, coarse = _coarse_start(reduced, inner, steps, volume, max_steps, tolerance)
    chosen = wanted.copy()
    start_energy, energy, bound, converged, bounds = _ascend(
        reduced, strides, inner, share, messages, chosen, max_steps, tolerance, slack
    )
    coarse_energy = _energy(reduced, strides, inner, coarse)
    if coarse_energy < energy:
        energy, chosen = coarse_energy, coarse
    if bound >= energy - slack:  # equal but for rounding, which may stand on either side
        bound, converged = energy, True
    whole[free] = choices[chosen[free]]
    return DualBound(
        labels=whole.reshape(shape),
        energy=energy + constant,
        start_energy=start_energy + constant,
        bound=bound + constant,
        steps=len(bounds),
        converged=converged,
        bounds=bounds + constant,
    )


def _forward_pairs(
    weights: NDArray[np.float64], offsets: NDArray[np.int64], roi: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Weights (N, n), 0 where a pair leaves ``roi`` (Z, Y, X), and offsets (n, 3) turned so that numbers rise."""
    turned = np.zeros((roi.size, len(offsets)))
    directions = np.empty_like(offsets)
    for i, offset in enumerate(offsets):
        first, second = pair_slices(offset, roi.shape)
        forward = tuple(offset) >= (0, 0, 0)
        directions[i] = offset if forward else -offset
        column = np.zeros(roi.shape)
        here = first if forward else second
        if offset.any():  # a pair of a pixel with itself is never cut
            column[here] = np.where(roi[first] & roi[second], weights[i][first], 0.0)
        turned[:, i] = column.ravel()
    return turned, directions
