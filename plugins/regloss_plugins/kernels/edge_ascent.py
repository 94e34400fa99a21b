"""Dual ascent for total variation on a graph, one image at a time.

    x = y + extrapolation * (y - the y before)
    s = softmax(-(cost + K^T x) / strength), or -(cost + K^T x) / strength
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
from numba import njit
from numpy.typing import NDArray

from regloss_plugins.kernels.lanes import add, aligned, clip, load, mul, prefetch, splat, store, sub, total
from regloss_plugins.kernels.responses import FAST, softmax_rows

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
        strength: of the smoothing, > 0.
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
        strength: float,
        entropy: bool,
        roi: Array | None,
    ) -> None:
        classes, pixels = cost.shape
        self.lanes = next((count for count in (1, 2, 4) if classes <= count), 8)
        self.width = -(-classes // self.lanes) * self.lanes
        self.cost, self.edges, self.entropy = cost, edges, entropy
        self.weights, self.steps, self.metric = (values[edges.order] for values in (weights, steps * weights, metric))
        self.radius, self.strength = cost.dtype.type(radius), cost.dtype.type(strength)
        self.roi = np.ones(0, dtype=np.bool_) if roi is None else roi
        self.values = aligned(len(edges.second) * self.width, cost.dtype)
        self.before = aligned(len(self.values), cost.dtype)
        self.pull = aligned(pixels * self.width, cost.dtype)  # K^T y
        self.pull_before = aligned(len(self.pull), cost.dtype)
        if dual is not None:
            _spread(dual, edges.order, self.width, self.values)
            _gather(edges.start, edges.second, self.weights, self.values, self.width, self.pull)
            self.before[:], self.pull_before[:] = self.values, self.pull
        self.response = aligned(len(self.pull), cost.dtype)
        self.minimiser = np.empty_like(cost)

    def step(self, extrapolation: float) -> float:
        """One step; see `regloss.dual_problem.DualIteration`."""
        kind = self.cost.dtype.type
        _respond(
            self.cost,
            self.pull,
            self.pull_before,
            kind(extrapolation),
            self.strength,
            self.entropy,
            self.width,
            self.response,
        )
        self.pull, self.pull_before = self.pull_before, self.pull
        move = _move_few if self.width == self.lanes else _move_many
        uphill: float = move(
            self.edges.start,
            self.edges.second,
            self.weights,
            self.steps,
            self.metric,
            self.values,
            self.before,
            kind(extrapolation),
            self.response,
            self.pull,
            self.radius,
            (0,) * self.lanes,
            self.width,
        )
        self.values, self.before = self.before, self.values
        return uphill

    def certify(self) -> tuple[float, float, float]:
        """Smooth part, support and Fenchel gap at the current dual variables; ``minimiser`` (K, N) is set."""
        smooth: float = _worth(
            self.cost, self.pull, self.strength, self.entropy, self.width, self.roi, self.response, self.minimiser
        )
        support, fenchel_gap = _compare(
            self.edges.start,
            self.edges.second,
            self.weights,
            self.values,
            self.response,
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


@njit(nogil=True, cache=True)
def _spread(dual: Any, order: Any, width: int, values: Any) -> None:
    """(K, E) to (E, width), sorted."""
    # A cache line of values serves several classes, if the edges come in portions that fit the cache.
    for begin in range(0, len(order), 1024):
        for k in range(len(dual)):
            for e in range(begin, min(begin + 1024, len(order))):
                values[e * width + k] = dual[k, order[e]]


@njit(nogil=True, cache=True)
def _collect(values: Any, order: Any, width: int, dual: Any) -> None:
    """The other way."""
    for begin in range(0, len(order), 1024):
        for k in range(len(dual)):
            for e in range(begin, min(begin + 1024, len(order))):
                dual[k, order[e]] = values[e * width + k]


@njit(nogil=True, fastmath=FAST, error_model="numpy", cache=True)
def _gather(start: Any, second: Any, weights: Any, values: Any, width: int, pull: Any) -> None:
    """Add K^T y to ``pull``."""
    for i in range(len(start) - 1):
        for e in range(start[i], start[i + 1]):
            j = np.int64(second[e])
            for k in range(width):
                flow = weights[e] * values[e * width + k]
                pull[j * width + k] += flow
                pull[i * width + k] -= flow


@njit(nogil=True, fastmath=FAST, error_model="numpy", cache=True)
def _respond(
    cost: Any, pull: Any, pull_before: Any, extrapolation: Any, strength: Any, entropy: bool, width: int, response: Any
) -> None:
    """S at x; ``pull_before`` is emptied for what comes next."""
    classes, pixels = cost.shape
    kind = cost.dtype
    scores = np.zeros((classes, _BLOCK), kind)
    top, total, inverse = np.empty(_BLOCK, kind), np.empty(_BLOCK, kind), np.empty(_BLOCK, kind)
    factor = kind.type(-1) / strength
    for begin in range(0, pixels, _BLOCK):
        count = min(_BLOCK, pixels - begin)
        for k in range(classes):
            row, costs = scores[k], cost[k]
            for i in range(count):
                place = (begin + i) * width + k
                ahead = pull[place] + extrapolation * (pull[place] - pull_before[place])
                row[i] = (costs[begin + i] + ahead) * factor
        if entropy:
            softmax_rows(scores, top, total, inverse)  # in the last block some of it is left from the one before
        for k in range(classes):
            row = scores[k]
            for i in range(count):
                response[(begin + i) * width + k] = row[i]
        pull_before[begin * width : (begin + count) * width] = 0


@njit(nogil=True, fastmath=FAST, error_model="numpy", cache=True)
def _move_few(
    start: Any,
    second: Any,
    weights: Any,
    steps: Any,
    metric: Any,
    values: Any,
    before: Any,
    extrapolation: Any,
    response: Any,
    pull: Any,
    radius: Any,
    shape: Any,
    width: int,
) -> float:
    """``before`` is overwritten with the new dual variables, and K^T y+ added to ``pull``; ``width`` = len(shape)."""
    zero = splat(values.dtype.type(0), shape)
    extrapolations, most, least = splat(extrapolation, shape), splat(radius, shape), splat(-radius, shape)
    uphill = 0.0
    for i in range(len(start) - 1):
        here, own, outweighs = load(response, i * width, shape), zero, zero
        for e in range(start[i], start[i + 1]):
            j = np.int64(second[e])
            y, old = load(values, e * width, shape), load(before, e * width, shape)
            point = add(y, mul(extrapolations, sub(y, old)))
            difference = sub(load(response, j * width, shape), here)
            new = clip(add(point, mul(splat(steps[e], shape), difference)), least, most)
            outweighs = add(outweighs, mul(splat(metric[e], shape), mul(sub(point, new), sub(new, y))))
            store(before, e * width, new)
            flow = mul(splat(weights[e], shape), new)
            store(pull, j * width, add(load(pull, j * width, shape), flow))
            own = sub(own, flow)
        store(pull, i * width, add(load(pull, i * width, shape), own))
        uphill += total(outweighs)
    return uphill


@njit(nogil=True, fastmath=FAST, error_model="numpy", cache=True)
def _move_many(
    start: Any,
    second: Any,
    weights: Any,
    steps: Any,
    metric: Any,
    values: Any,
    before: Any,
    extrapolation: Any,
    response: Any,
    pull: Any,
    radius: Any,
    shape: Any,
    width: int,
) -> float:
    """The same for any ``width``, a multiple of len(shape)."""
    last, count = len(second) - 1, len(shape)
    zero = splat(values.dtype.type(0), shape)
    extrapolations, most, least = splat(extrapolation, shape), splat(radius, shape), splat(-radius, shape)
    own = np.zeros(width, values.dtype)
    uphill = 0.0
    for i in range(len(start) - 1):
        own[:] = 0
        outweighs = zero
        for e in range(start[i], start[i + 1]):
            coming = np.int64(second[min(e + _AHEAD, last)]) * width
            for k in range(0, width, count):
                prefetch(response, coming + k)
                prefetch(pull, coming + k)
            j = np.int64(second[e])
            w, tau, inverse = splat(weights[e], shape), splat(steps[e], shape), splat(metric[e], shape)
            for k in range(0, width, count):
                y, old = load(values, e * width + k, shape), load(before, e * width + k, shape)
                point = add(y, mul(extrapolations, sub(y, old)))
                difference = sub(load(response, j * width + k, shape), load(response, i * width + k, shape))
                new = clip(add(point, mul(tau, difference)), least, most)
                outweighs = add(outweighs, mul(inverse, mul(sub(point, new), sub(new, y))))
                store(before, e * width + k, new)
                flow = mul(w, new)
                store(pull, j * width + k, add(load(pull, j * width + k, shape), flow))
                store(own, k, sub(load(own, k, shape), flow))
        for k in range(0, width, count):
            store(pull, i * width + k, add(load(pull, i * width + k, shape), load(own, k, shape)))
        uphill += total(outweighs)
    return uphill


@njit(nogil=True, fastmath=FAST, error_model="numpy", cache=True)
def _worth(
    cost: Any, pull: Any, strength: Any, entropy: bool, width: int, roi: Any, response: Any, minimiser: Any
) -> float:
    """The smooth part at s(y), which is written to ``response`` and ``minimiser``."""
    classes, pixels = cost.shape
    kind = cost.dtype
    scores, s = np.zeros((classes, _BLOCK), kind), np.zeros((classes, _BLOCK), kind)
    top, total, inverse = np.zeros(_BLOCK, kind), np.ones(_BLOCK, kind), np.empty(_BLOCK, kind)
    factor = kind.type(-1) / strength
    value = 0.0
    for begin in range(0, pixels, _BLOCK):
        count = min(_BLOCK, pixels - begin)
        for k in range(classes):
            for i in range(count):
                scores[k, i] = (cost[k, begin + i] + pull[(begin + i) * width + k]) * factor
                s[k, i] = scores[k, i]
        if entropy:
            softmax_rows(s, top, total, inverse)
            for i in range(count):
                top[i] += math.log(total[i])
        for k in range(classes):
            for i in range(count):
                place = begin + i
                response[place * width + k] = minimiser[k, place] = s[k, i]
                if len(roi) > 0 and not roi[place]:
                    continue
                if not entropy:
                    value += strength * np.float64(s[k, i] + cost[k, place] / strength) ** 2 / 2
                elif s[k, i] > 0:  # a probability of 0 adds nothing, though its cost may be inf
                    value += s[k, i] * (np.float64(cost[k, place]) + strength * (scores[k, i] - top[i]))
    return value


@njit(nogil=True, fastmath=FAST, error_model="numpy", cache=True)
def _compare(
    start: Any, second: Any, weights: Any, values: Any, response: Any, radius: Any, width: int
) -> tuple[float, float]:
    """Support and Fenchel gap."""
    bound, last = np.float64(radius), len(second) - 1
    support = fenchel_gap = 0.0
    for i in range(len(start) - 1):
        here = response[i * width : (i + 1) * width]
        for e in range(start[i], start[i + 1]):
            if width > 4:
                coming = np.int64(second[min(e + _AHEAD, last)]) * width
                for k in range(0, width, 8):
                    prefetch(response, coming + k)
            j = np.int64(second[e])
            there, dual = response[j * width : (j + 1) * width], values[e * width : (e + 1) * width]
            length = short = 0.0
            for k in range(width):
                z = np.float64(weights[e] * (there[k] - here[k]))
                y = np.float64(dual[k])
                length += abs(z)
                # |z| (radius - sign(z) y): a product of two numbers that are not negative.
                short += abs(z) * (bound - (y if z > 0 else -y))
            support += bound * length
            fenchel_gap += short
    return support, fenchel_gap
