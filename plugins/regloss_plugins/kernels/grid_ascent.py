"""Dual ascent for total variation on a grid, one image at a time: a step is one pass over memory.

    s = softmax(-(cost + K^T x) / strength), or -(cost + K^T x) / strength,    x = y + push * (y - the y before)
    y+ = P(x + tau K s),                                                        (K s)_pa = w_pa (s_{p + a} - s_p)

Rows are worked through in their order. The dual variables of a row need s in the next row (2D) and in the same row of
the next plane (3D), so they follow so many rows behind, while s is kept for just as long; what is fetched from memory
are y, the y before and the cost, each once, and y+ takes the place of the y before. Arrays in, arrays out.

A volume is a stack of rows: arrays are (K, axes, R, W) with R = rows in all, W = length of a row, and the axes in their
order; ``height`` tells how many rows make a plane.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from regloss_plugins.kernels.responses import FAST, softmax_rows

Array = NDArray[Any]


@dataclass(frozen=True)
class Rows:
    """What K and the steps are, row by row; rows that are alike may share one entry of the table.

    Attributes:
        weights: (T, axes, W) w >= 0; 0 where the difference leaves the grid.
        steps: (T, axes, W) tau * w.
        metric: (T, axes, W) 1 / tau, 0 where tau is 0.
        entry: (R,) int64 entry of each row.
        height: rows in a plane; R in 2D.
    """

    weights: Array
    steps: Array
    metric: Array
    entry: NDArray[np.int64]
    height: int


class GridAscent:
    """The iteration on one image.

    Args:
        cost: (K, R, W), contiguous.
        dual: (K, axes, R, W), contiguous, within the bounds; it is written to.
        rows: K and the steps, in the cost's precision.
        radius: bound of the dual variables.
        isotropic: bound the length over the axes instead of each entry.
        strength: of the smoothing, > 0.
        entropy: softmax instead of the identity.
        roi: (R, W) bool; None = everywhere.
    """

    def __init__(
        self,
        cost: Array,
        dual: Array,
        rows: Rows,
        radius: float,
        isotropic: bool,
        strength: float,
        entropy: bool,
        roi: Array | None,
    ) -> None:
        self.dual, self.before = dual, dual.copy()
        self.cost, self.rows, self.isotropic, self.entropy = cost, rows, isotropic, entropy
        self.radius, self.strength = cost.dtype.type(radius), cost.dtype.type(strength)
        self.roi = np.ones((0, 0), dtype=np.bool_) if roi is None else roi
        self.minimiser = np.empty_like(cost)

    def step(self, push: float) -> float:
        """One step; see `regloss.ascent.ImageAscent`."""
        rows, kind = self.rows, self.cost.dtype.type
        uphill: float = _step(
            self.cost,
            self.dual,
            self.before,
            kind(push),
            rows.weights,
            rows.steps,
            rows.metric,
            rows.entry,
            rows.height,
            self.radius,
            self.isotropic,
            self.strength,
            self.entropy,
        )
        self.dual, self.before = self.before, self.dual
        return uphill

    def certify(self) -> tuple[float, float, float]:
        """Smooth part, support and slack at the current dual variables; ``minimiser`` (K, R, W) is set."""
        rows = self.rows
        found: tuple[float, float, float] = _certify(
            self.cost,
            self.dual,
            rows.weights,
            rows.entry,
            rows.height,
            self.radius,
            self.isotropic,
            self.strength,
            self.entropy,
            self.roi,
            self.minimiser,
        )
        return found


@njit(nogil=True, fastmath=FAST, error_model="numpy", cache=True)
def _scores(
    cost: Any,
    dual: Any,
    before: Any,
    push: Any,
    weights: Any,
    entry: Any,
    height: int,
    row: int,
    inverse: Any,
    nothing: Any,
    out: Any,
) -> None:
    """-(cost + K^T x) * inverse at the pixels of a row, (K, W); ``nothing`` (W,) is 0."""
    classes, axes, _, width = dual.shape
    last = axes - 1
    w = weights[entry[row], last]
    for k in range(classes):
        scores, costs = out[k], cost[k, row]
        y, old = dual[k, last, row], before[k, last, row]
        if axes == 1:
            scores[0] = inverse * (w[0] * (y[0] + push * (y[0] - old[0])) - costs[0])
            for x in range(1, width):
                to = w[x] * (y[x] + push * (y[x] - old[x]))
                here = w[x - 1] * (y[x - 1] + push * (y[x - 1] - old[x - 1]))
                scores[x] = inverse * (to - here - costs[x])
            continue
        # All in one go, since it is the number of times that memory is touched that counts. Where there is no row
        # before, or it belongs to another plane, its weights are 0.
        previous = max(row - 1, 0)
        v, v_before = weights[entry[row], last - 1], weights[entry[previous], last - 1] if row > 0 else nothing
        z, z_old = dual[k, last - 1, row], before[k, last - 1, row]
        q, q_old = dual[k, last - 1, previous], before[k, last - 1, previous]
        across = v[0] * (z[0] + push * (z[0] - z_old[0])) - v_before[0] * (q[0] + push * (q[0] - q_old[0]))
        scores[0] = inverse * (w[0] * (y[0] + push * (y[0] - old[0])) + across - costs[0])
        for x in range(1, width):
            to = w[x] * (y[x] + push * (y[x] - old[x]))
            here = w[x - 1] * (y[x - 1] + push * (y[x - 1] - old[x - 1]))
            across = v[x] * (z[x] + push * (z[x] - z_old[x])) - v_before[x] * (q[x] + push * (q[x] - q_old[x]))
            scores[x] = inverse * (to - here + across - costs[x])
        for axis in range(last - 1):
            z, z_old, v = dual[k, axis, row], before[k, axis, row], weights[entry[row], axis]
            for x in range(width):
                scores[x] += inverse * v[x] * (z[x] + push * (z[x] - z_old[x]))
            if row >= height:
                previous = row - height
                q, q_old, v = dual[k, axis, previous], before[k, axis, previous], weights[entry[previous], axis]
                for x in range(width):
                    scores[x] -= inverse * v[x] * (q[x] + push * (q[x] - q_old[x]))


@njit(nogil=True, fastmath=FAST, error_model="numpy", cache=True)
def _move(
    dual: Any,
    before: Any,
    push: Any,
    steps: Any,
    metric: Any,
    entry: Any,
    height: int,
    row: int,
    radius: Any,
    ring: Any,
) -> float:
    """New dual variables of a row, each projected by itself.

    Returns:
        <x - y+, (y+ - y) / tau> over the row.
    """
    classes, axes, count, width = dual.shape
    number = entry[row]
    uphill = 0.0
    for k in range(classes):
        here = ring[row % len(ring), k]
        total = dual.dtype.type(0)
        for axis in range(axes - 1, -1, -1):
            y, old, tau, inverse = dual[k, axis, row], before[k, axis, row], steps[number, axis], metric[number, axis]
            if axis == axes - 1:
                for x in range(width - 1):
                    point = y[x] + push * (y[x] - old[x])
                    new = min(max(point + tau[x] * (here[x + 1] - here[x]), -radius), radius)
                    total += inverse[x] * (point - new) * (new - y[x])
                    old[x] = new
                continue
            ahead = row + (1 if axis == axes - 2 else height)
            if ahead < count:
                there = ring[ahead % len(ring), k]
                for x in range(width):
                    point = y[x] + push * (y[x] - old[x])
                    new = min(max(point + tau[x] * (there[x] - here[x]), -radius), radius)
                    total += inverse[x] * (point - new) * (new - y[x])
                    old[x] = new
        uphill += total
    return uphill


@njit(nogil=True, fastmath=FAST, error_model="numpy", cache=True)
def _move_jointly(
    dual: Any,
    before: Any,
    push: Any,
    steps: Any,
    metric: Any,
    entry: Any,
    height: int,
    row: int,
    radius: Any,
    ring: Any,
    moved: Any,
    length: Any,
) -> float:
    """The same, where the axes of a pixel are projected together; ``moved`` (axes, W), ``length`` (W,): overwritten."""
    classes, axes, count, width = dual.shape
    number = entry[row]
    uphill = 0.0
    for k in range(classes):
        here = ring[row % len(ring), k]
        length[:] = 0
        moved[:] = 0
        for axis in range(axes - 1, -1, -1):
            y, old, point, tau = dual[k, axis, row], before[k, axis, row], moved[axis], steps[number, axis]
            there = here[1:]
            if axis < axes - 1:
                ahead = row + (1 if axis == axes - 2 else height)
                there = ring[ahead % len(ring), k] if ahead < count else here[:0]
            for x in range(len(there)):
                value = y[x] + push * (y[x] - old[x]) + tau[x] * (there[x] - here[x])
                point[x] = value
                length[x] += value * value
        for x in range(width):
            length[x] = radius / max(math.sqrt(length[x]), radius)
        total = dual.dtype.type(0)
        for axis in range(axes):
            y, old, point, inverse = dual[k, axis, row], before[k, axis, row], moved[axis], metric[number, axis]
            for x in range(width):
                new = point[x] * length[x]
                total += inverse[x] * (y[x] + push * (y[x] - old[x]) - new) * (new - y[x])
                old[x] = new
        uphill += total
    return uphill


@njit(nogil=True, fastmath=FAST, error_model="numpy", cache=True)
def _step(
    cost: Any,
    dual: Any,
    before: Any,
    push: Any,
    weights: Any,
    steps: Any,
    metric: Any,
    entry: Any,
    height: int,
    radius: Any,
    isotropic: bool,
    strength: Any,
    entropy: bool,
) -> float:
    """``before`` is overwritten with the new dual variables."""
    classes, axes, count, width = dual.shape
    kind = dual.dtype
    lag = 1 if axes < 3 else height
    ring = np.empty((lag + 1, classes, width), kind)
    top, total, inverse = np.empty(width, kind), np.empty(width, kind), np.empty(width, kind)
    nothing, moved = np.zeros(width, kind), np.empty((axes, width), kind)
    factor = kind.type(1) / strength
    uphill = 0.0
    for row in range(count + lag):
        if row < count:
            scores = ring[row % (lag + 1)]
            _scores(cost, dual, before, push, weights, entry, height, row, factor, nothing, scores)
            if entropy:
                softmax_rows(scores, top, total, inverse)
        late = row - lag
        if late < 0:
            continue
        if isotropic:
            uphill += _move_jointly(dual, before, push, steps, metric, entry, height, late, radius, ring, moved, top)
        else:
            uphill += _move(dual, before, push, steps, metric, entry, height, late, radius, ring)
    return uphill


@njit(nogil=True, fastmath=FAST, error_model="numpy", cache=True)
def _worth(costs: Any, scores: Any, s: Any, offset: Any, strength: Any, entropy: bool, counted: Any) -> float:
    """The smooth part's value at the pixels of a row, one class; ``offset`` (W,) = log of the sum of exp(scores)."""
    value = 0.0
    for x in range(len(s)):
        if entropy:
            # A probability of 0 adds nothing, though its cost may be inf.
            some = s[x] > 0
            price = np.float64(costs[x]) if some else 0.0
            log = np.float64(scores[x] - offset[x]) if some else 0.0
            value += counted[x] * s[x] * (price + strength * log)
        else:
            off = np.float64(s[x] + costs[x] / strength)
            value += counted[x] * strength * off * off / 2
    return value


@njit(nogil=True, fastmath=FAST, error_model="numpy", cache=True)
def _certify(
    cost: Any,
    dual: Any,
    weights: Any,
    entry: Any,
    height: int,
    radius: Any,
    isotropic: bool,
    strength: Any,
    entropy: bool,
    roi: Any,
    out: Any,
) -> tuple[float, float, float]:
    classes, axes, count, width = dual.shape
    kind = dual.dtype
    lag = 1 if axes < 3 else height
    scores, s = np.empty((classes, width), kind), np.empty((classes, width), kind)
    top, total, inverse = np.zeros(width, kind), np.ones(width, kind), np.empty(width, kind)
    nothing, counted = np.zeros(width, kind), np.ones(width)
    squares, along = np.empty(width), np.empty(width)
    factor, zero = kind.type(1) / strength, kind.type(0)
    bound = np.float64(radius)
    smooth = support = slack = 0.0
    for row in range(count + lag):
        if row < count:
            _scores(cost, dual, dual, zero, weights, entry, height, row, factor, nothing, scores)
            s[:] = scores
            if entropy:
                softmax_rows(s, top, total, inverse)
                for x in range(width):
                    top[x] += math.log(total[x])
            if len(roi) > 0:
                counted[:] = roi[row]
            for k in range(classes):
                smooth += _worth(cost[k, row], scores[k], s[k], top, strength, entropy, counted)
            out[:, row] = s
        late = row - lag
        if late < 0:
            continue
        for k in range(classes):
            squares[:] = 0
            along[:] = 0
            here = out[k, late]
            for axis in range(axes - 1, -1, -1):
                y, w = dual[k, axis, late], weights[entry[late], axis]
                # Columns that have a neighbour: all but the last, or all if there is a next row.
                there = here[1:]
                if axis < axes - 1:
                    ahead = late + (1 if axis == axes - 2 else height)
                    there = out[k, ahead] if ahead < count else here[:0]
                if isotropic:
                    for x in range(len(there)):
                        z = np.float64(w[x] * (there[x] - here[x]))
                        squares[x] += z * z
                        along[x] += z * y[x]
                    continue
                length = short = 0.0
                for x in range(len(there)):
                    z = np.float64(w[x] * (there[x] - here[x]))
                    length += abs(z)
                    # |z| (radius - sign(z) y): a product of two numbers that are not negative.
                    short += abs(z) * (bound - (y[x] if z > 0 else -y[x]))
                support += bound * length
                slack += short
            if isotropic:
                for x in range(width):
                    length = bound * math.sqrt(squares[x])
                    support += length
                    slack += max(length - along[x], 0.0)
    return smooth, support, slack
