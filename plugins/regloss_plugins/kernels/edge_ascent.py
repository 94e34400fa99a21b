"""Dual ascent for total variation on a graph, one image at a time.

    x = y + extrapolation * (y - the y before)
    s = softmax(-(cost + K^T x) / epsilon), or -(cost + K^T x) / epsilon
    y+ = P(x + tau K s),                                                        (K s)_e = w_e (s_j - s_i),  e = ij

A step is one pass over the edges and one over the pixels. Both ends of an edge must know s before it moves, so the pass
over the edges also gathers K^T y+ for the next step; and since K^T is linear, K^T x of that step follows at each pixel
from K^T y+ and K^T y, whatever the extrapolation turns out to be. An edge's variables are fetched once, and y+ takes
the place of the y before.

Arrays in, arrays out. Edges are sorted by their first ends, so that what belongs to one is at hand for all its edges;
the classes of an edge, and those of a pixel, lie side by side, filled up with zeros to a whole number of lanes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regloss_plugins.kernels.compiling import kernel
from regloss_plugins.kernels.dual_steps import ascend, box_gap, smooth_value
from regloss_plugins.kernels.short_vectors import add, aligned, load, mul, prefetch, splat, store, sub, total
from regloss_plugins.kernels.softmax_rows import FAST, softmax_rows

Array = NDArray[Any]

_BLOCK = 256  # pixels whose scores are computed at a time
_AHEAD = 32  # edges between asking for a far end and needing it


@dataclass(frozen=True)
class EdgeList:
    """Edges in the order of their first ends.

    Attributes:
        start: (N + 1,) int64: edges start[i] to start[i + 1] begin at pixel i.
        second: (E,) int32 other ends.
        order: (E,) int64 numbers of these edges in the list that they come from.
    """

    start: NDArray[np.int64]
    second: NDArray[np.int32]
    order: NDArray[np.int64]

    @staticmethod
    def of(first: Array, second: Array, pixels: int) -> EdgeList:
        """Sort a list of edges, whose ends are (E,) each."""
        order = np.argsort(first, kind="stable")
        start = np.searchsorted(first[order], np.arange(pixels + 1)).astype(np.int64)
        return EdgeList(start, second[order].astype(np.int32), order)


class EdgeAscent:
    """The iteration on one image.

    Args:
        cost: (K, N), contiguous.
        dual: (K, E) variables within the bounds, in the order of the list that the edges come from; None = 0.
        edges: sorted.
        weights: (E,) w >= 0, in the list's order and the cost's precision.
        steps: (E,) tau.
        metric: (E,) 1 / tau, 0 where tau is 0.
        radius: bound of the dual variables.
        smoothing_weight: epsilon, > 0.
        entropy: softmax instead of the identity.
        roi: (N,) bool; None = everywhere.
    """

    def __init__(
        self,
        cost: Array,
        dual: Array | None,
        edges: EdgeList,
        weights: Array,
        steps: Array,
        metric: Array,
        radius: float,
        smoothing_weight: float,
        entropy: bool,
        roi: Array | None,
    ) -> None:
        classes, pixels = cost.shape
        self.lanes = next((count for count in (1, 2, 4) if classes <= count), 8)
        self.width = -(-classes // self.lanes) * self.lanes
        self.cost, self.edges, self.entropy = cost, edges, entropy
        self.weights, self.steps, self.metric = (values[edges.order] for values in (weights, steps * weights, metric))
        self.radius, self.smoothing_weight = cost.dtype.type(radius), cost.dtype.type(smoothing_weight)
        self.roi = np.ones(0, dtype=np.bool_) if roi is None else roi
        self.values = aligned(len(edges.second) * self.width, cost.dtype)
        self.before = aligned(len(self.values), cost.dtype)
        self.adjoint = aligned(pixels * self.width, cost.dtype)  # K^T y
        self.adjoint_before = aligned(len(self.adjoint), cost.dtype)
        if dual is not None:
            _spread(dual, edges.order, self.width, self.values)
            _gather(edges.start, edges.second, self.weights, self.values, self.width, self.adjoint)
            self.before[:], self.adjoint_before[:] = self.values, self.adjoint
        self.primal = aligned(len(self.adjoint), cost.dtype)
        self.block = np.zeros((2, classes, _BLOCK), cost.dtype)  # scores, and their softmax
        self.line = np.ones((3, _BLOCK), cost.dtype)  # largest scores, sums of exponentials and their inverses
        self.flow = np.zeros(self.width, cost.dtype)
        self.minimiser = np.empty_like(cost)

    def step(self, extrapolation: float) -> float:
        """One step; see `regloss.dual_problem.DualIteration`."""
        kind = self.cost.dtype.type
        _primal_point(
            self.cost,
            self.adjoint,
            self.adjoint_before,
            kind(extrapolation),
            self.smoothing_weight,
            self.entropy,
            self.width,
            self.block[0],
            self.line,
            self.primal,
        )
        self.adjoint, self.adjoint_before = self.adjoint_before, self.adjoint
        few = self.width == self.lanes
        criterion: float = (_move_few if few else _move_many)(
            self.edges.start,
            self.edges.second,
            self.weights,
            self.steps,
            self.metric,
            self.values,
            self.before,
            kind(extrapolation),
            self.primal,
            self.adjoint,
            self.radius,
            (0,) * self.lanes,
            self.width,
            *(() if few else (self.flow,)),
        )
        self.values, self.before = self.before, self.values
        return criterion

    def certify(self) -> tuple[float, float, float]:
        """Smooth part, support and Fenchel gap at the current dual variables; ``minimiser`` (K, N) is set."""
        smooth: float = _smooth_part(
            self.cost,
            self.adjoint,
            self.smoothing_weight,
            self.entropy,
            self.width,
            self.roi,
            self.block,
            self.line,
            self.primal,
            self.minimiser,
        )
        support, fenchel_gap = _compare(
            self.edges.start,
            self.edges.second,
            self.weights,
            self.values,
            self.primal,
            self.radius,
            self.width,
        )
        return smooth, support, fenchel_gap

    @property
    def dual(self) -> Array:
        """(K, E) variables in the list's order; a new array."""
        found = np.empty((len(self.cost), len(self.edges.order)), self.cost.dtype)
        _collect(self.values, self.edges.order, self.width, found)
        return found


@kernel()
def _spread(dual: Any, order: Any, width: int, values: Any) -> None:
    """(K, E) to (E, width), sorted."""
    # A cache line of values serves several classes, if the edges come in portions that fit the cache.
    for begin in range(0, len(order), 1024):
        for k in range(len(dual)):
            for e in range(begin, begin + 1024 if begin + 1024 < len(order) else len(order)):
                values[e * width + k] = dual[k, order[e]]


@kernel()
def _collect(values: Any, order: Any, width: int, dual: Any) -> None:
    """The other way."""
    for begin in range(0, len(order), 1024):
        for k in range(len(dual)):
            for e in range(begin, begin + 1024 if begin + 1024 < len(order) else len(order)):
                dual[k, order[e]] = values[e * width + k]


@kernel(fastmath=FAST)
def _gather(start: Any, second: Any, weights: Any, values: Any, width: int, adjoint: Any) -> None:
    """Add K^T y to ``adjoint``."""
    for i in range(len(start) - 1):
        for e in range(start[i], start[i + 1]):
            j = np.int64(second[e])
            for k in range(width):
                flow = weights[e] * values[e * width + k]
                adjoint[j * width + k] += flow
                adjoint[i * width + k] -= flow


@kernel(fastmath=FAST)
def _primal_point(
    cost: Any,
    adjoint: Any,
    adjoint_before: Any,
    extrapolation: Any,
    smoothing_weight: Any,
    entropy: bool,
    width: int,
    scores: Any,
    line: Any,
    primal: Any,
) -> None:
    """S at x; ``adjoint_before`` is emptied for what comes next, ``scores`` (K, _BLOCK) and ``line`` overwritten."""
    classes, pixels = cost.shape
    factor = cost.dtype.type(-1) / smoothing_weight
    for begin in range(0, pixels, _BLOCK):
        count = _BLOCK if begin + _BLOCK < pixels else pixels - begin
        for k in range(classes):
            row, costs = scores[k], cost[k]
            for i in range(count):
                place = (begin + i) * width + k
                ahead = adjoint[place] + extrapolation * (adjoint[place] - adjoint_before[place])
                row[i] = (costs[begin + i] + ahead) * factor
        if entropy:
            softmax_rows(scores, line[0], line[1], line[2])  # in the last block some of it is left from the one before
        for k in range(classes):
            row = scores[k]
            for i in range(count):
                primal[(begin + i) * width + k] = row[i]
        adjoint_before[begin * width : (begin + count) * width] = 0


@kernel(fastmath=FAST)
def _move_few(
    start: Any,
    second: Any,
    weights: Any,
    steps: Any,
    metric: Any,
    values: Any,
    before: Any,
    extrapolation: Any,
    primal: Any,
    adjoint: Any,
    radius: Any,
    shape: Any,
    width: int,
) -> float:
    """``before`` is overwritten with the new dual variables, K^T y+ added to ``adjoint``; ``width`` = len(shape)."""
    zero = splat(values.dtype.type(0), shape)
    extrapolations, most, least = splat(extrapolation, shape), splat(radius, shape), splat(-radius, shape)
    criterion = 0.0
    for i in range(len(start) - 1):
        here, at_first, products = load(primal, i * width, shape), zero, zero
        for e in range(start[i], start[i + 1]):
            j = np.int64(second[e])
            difference = sub(load(primal, j * width, shape), here)
            tau = splat(steps[e], shape)
            new, gain = ascend(values, before, e * width, extrapolations, tau, difference, least, most, shape)
            products = add(products, mul(splat(metric[e], shape), gain))
            flow = mul(splat(weights[e], shape), new)
            store(adjoint, j * width, add(load(adjoint, j * width, shape), flow))
            at_first = sub(at_first, flow)
        store(adjoint, i * width, add(load(adjoint, i * width, shape), at_first))
        criterion += total(products)
    return criterion


@kernel(fastmath=FAST)
def _move_many(
    start: Any,
    second: Any,
    weights: Any,
    steps: Any,
    metric: Any,
    values: Any,
    before: Any,
    extrapolation: Any,
    primal: Any,
    adjoint: Any,
    radius: Any,
    shape: Any,
    width: int,
    at_first: Any,
) -> float:
    """The same for any ``width``, a multiple of len(shape); ``at_first`` (width,) is overwritten."""
    last, count = len(second) - 1, len(shape)
    zero = splat(values.dtype.type(0), shape)
    extrapolations, most, least = splat(extrapolation, shape), splat(radius, shape), splat(-radius, shape)
    criterion = 0.0
    for i in range(len(start) - 1):
        at_first[:] = 0
        products = zero
        for e in range(start[i], start[i + 1]):
            coming = np.int64(second[e + _AHEAD if e + _AHEAD < last else last]) * width
            for k in range(0, width, count):
                prefetch(primal, coming + k)
                prefetch(adjoint, coming + k)
            j = np.int64(second[e])
            w, tau, inverse = splat(weights[e], shape), splat(steps[e], shape), splat(metric[e], shape)
            for k in range(0, width, count):
                difference = sub(load(primal, j * width + k, shape), load(primal, i * width + k, shape))
                new, gain = ascend(values, before, e * width + k, extrapolations, tau, difference, least, most, shape)
                products = add(products, mul(inverse, gain))
                flow = mul(w, new)
                store(adjoint, j * width + k, add(load(adjoint, j * width + k, shape), flow))
                store(at_first, k, sub(load(at_first, k, shape), flow))
        for k in range(0, width, count):
            store(adjoint, i * width + k, add(load(adjoint, i * width + k, shape), load(at_first, k, shape)))
        criterion += total(products)
    return criterion


@kernel(fastmath=FAST)
def _smooth_part(
    cost: Any,
    adjoint: Any,
    smoothing_weight: Any,
    entropy: bool,
    width: int,
    roi: Any,
    block: Any,
    line: Any,
    primal: Any,
    minimiser: Any,
) -> float:
    """The smooth part at s(y), which is written to ``primal`` and ``minimiser``; ``block`` and ``line`` are memory."""
    classes, pixels = cost.shape
    scores, s = block[0], block[1]
    top, total = line[0], line[1]
    if not entropy:
        top[:] = 0
    factor = cost.dtype.type(-1) / smoothing_weight
    value = 0.0
    for begin in range(0, pixels, _BLOCK):
        count = _BLOCK if begin + _BLOCK < pixels else pixels - begin
        for k in range(classes):
            for i in range(count):
                scores[k, i] = (cost[k, begin + i] + adjoint[(begin + i) * width + k]) * factor
                s[k, i] = scores[k, i]
        if entropy:
            softmax_rows(s, top, total, line[2])
            for i in range(count):
                top[i] += math.log(total[i])
        for k in range(classes):
            for i in range(count):
                place = begin + i
                primal[place * width + k] = minimiser[k, place] = s[k, i]
                if len(roi) == 0 or roi[place]:
                    value += smooth_value(s[k, i], cost[k, place], scores[k, i] - top[i], smoothing_weight, entropy)
    return value


@kernel(fastmath=FAST)
def _compare(
    start: Any, second: Any, weights: Any, values: Any, primal: Any, radius: Any, width: int
) -> tuple[float, float]:
    """Support and Fenchel gap."""
    bound, last = np.float64(radius), len(second) - 1
    support = fenchel_gap = 0.0
    for i in range(len(start) - 1):
        near = primal[i * width : (i + 1) * width]
        for e in range(start[i], start[i + 1]):
            if width > 4:
                coming = np.int64(second[e + _AHEAD if e + _AHEAD < last else last]) * width
                for k in range(0, width, 8):
                    prefetch(primal, coming + k)
            j = np.int64(second[e])
            far, dual = primal[j * width : (j + 1) * width], values[e * width : (e + 1) * width]
            length = short = 0.0
            for k in range(width):
                z = np.float64(weights[e] * (far[k] - near[k]))
                length += abs(z)
                short += box_gap(z, np.float64(dual[k]), bound)
            support += bound * length
            fenchel_gap += short
    return support, fenchel_gap
