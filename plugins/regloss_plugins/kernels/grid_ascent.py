"""Dual ascent for total variation on a grid, one image at a time: a step is one pass over memory.

    x = y + extrapolation * (y - the y before)
    s = softmax(-(cost + K^T x) / epsilon), or -(cost + K^T x) / epsilon
    y+ = P(x + tau K s),                                                        (K s)_pa = w_pa (s_{p + a} - s_p)

Rows are worked through in their order. The dual variables of a row need s in the next row (2D) and in the same row of
the next plane (3D), so they follow so many rows behind, while s is kept for just as long; what is fetched from memory
are y, the y before and the cost, each once, and y+ takes the place of the y before. Arrays in, arrays out.

A volume is a stack of rows: arrays are (K, axes, R, W) with R = rows in all, W = length of a row, and the axes in their
order; ``height`` tells how many rows make a plane. Inside, rows are filled up to P = a whole number of vectors, and at
least one more than W, so that there is a number to the right of the last and, in the row before, to the left of the
first; weights and steps are 0 there. Arrays lie flat, with one vector to spare in front and behind.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regloss_plugins.kernels.compiling import helper, kernel
from regloss_plugins.kernels.dual_steps import ascend, box_gap, extrapolated, smooth_value
from regloss_plugins.kernels.short_vectors import (
    VECTOR,
    add,
    aligned,
    divide,
    load,
    maximum,
    mul,
    root,
    splat,
    store,
    sub,
    total,
)
from regloss_plugins.kernels.softmax_rows import FAST, softmax_rows

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
        cost: (K, R, W).
        dual: (K, axes, R, W), within the bounds; None = 0.
        rows: K and the steps, in the cost's precision.
        radius: bound of the dual variables.
        isotropic: bound the length over the axes instead of each entry.
        smoothing_weight: epsilon, > 0.
        entropy: softmax instead of the identity.
        roi: (R, W) bool; None = everywhere.
    """

    def __init__(
        self,
        cost: Array,
        dual: Array | None,
        rows: Rows,
        radius: float,
        isotropic: bool,
        smoothing_weight: float,
        entropy: bool,
        roi: Array | None,
    ) -> None:
        classes, count, width = cost.shape
        axes = rows.weights.shape[1]
        self.lanes = VECTOR // cost.dtype.itemsize
        self.width = -(-(width + 1) // self.lanes) * self.lanes
        self.shape = (classes, axes, count, width)
        self.cost = self._flat(cost)
        self.values = self._flat(np.zeros((0, 0), cost.dtype) if dual is None else dual, classes * axes * count)
        self.before = aligned(len(self.values), cost.dtype)
        if dual is not None:
            self.before[:] = self.values
        # One more entry, of zeros, for the row before the first.
        self.weights = self._flat(rows.weights, (len(rows.weights) + 1) * axes)
        self.steps, self.metric = self._flat(rows.steps), self._flat(rows.metric)
        self.entry, self.height = rows.entry, rows.height
        self.entropy = entropy
        self.radius, self.smoothing_weight = cost.dtype.type(radius), cost.dtype.type(smoothing_weight)
        self.counted = np.zeros((count if roi is not None else 1, self.width))
        self.counted[:, :width] = 1 if roi is None else roi
        kept = 2 if axes < 3 else rows.height + 1
        self.ring = aligned(kept * classes * self.width + self.lanes, cost.dtype)
        self.kept = self.ring[: kept * classes * self.width].reshape(kept, classes, self.width)
        self.line = np.empty((3, self.width), cost.dtype)  # largest scores, sums of exponentials and their inverses
        # How variables are projected: each by itself, both of two axes together, or any number of axes, with memory for
        # it. One is not None, and code for the others is left out.
        self.alone = None if isotropic else True
        self.pairs = True if isotropic and axes == 2 else None
        self.moved = np.empty(2 * axes * self.lanes, cost.dtype) if isotropic and axes != 2 else None
        self.scores = np.empty(classes * self.width, cost.dtype)
        self.minimiser = np.empty((classes, count, width), cost.dtype)

    def _flat(self, values: Array, count: int | None = None) -> Array:
        """(..., W) as rows of P, a whole number of vectors, flat; ``count`` rows, of which those missing are 0."""
        width = values.shape[-1]
        given = values.size // width if width else 0
        flat = aligned(2 * self.lanes + (given if count is None else count) * self.width, values.dtype)
        inner = flat[self.lanes : self.lanes + given * self.width].reshape(given, self.width)
        inner[:, :width] = values.reshape(given, width)
        return flat

    def step(self, extrapolation: float) -> float:
        """One step; see `regloss.dual_problem.DualIteration`."""
        criterion: float = _step(
            self.cost,
            self.values,
            self.before,
            self.cost.dtype.type(extrapolation),
            self.weights,
            self.steps,
            self.metric,
            self.entry,
            self.shape[:3],
            self.height,
            self.width,
            self.radius,
            self.smoothing_weight,
            self.entropy,
            (0,) * self.lanes,
            self.ring,
            self.kept,
            self.line,
            self.alone,
            self.pairs,
            self.moved,
        )
        self.values, self.before = self.before, self.values
        return criterion

    def certify(self) -> tuple[float, float, float]:
        """Smooth part, support and Fenchel gap at the current dual variables; ``minimiser`` (K, R, W) is set."""
        found: tuple[float, float, float] = _certify(
            self.cost,
            self.values,
            self.weights,
            self.entry,
            self.shape[:3],
            self.height,
            self.width,
            self.radius,
            self.alone,
            None if self.alone else True,
            self.smoothing_weight,
            self.entropy,
            self.counted,
            (0,) * self.lanes,
            self.minimiser,
            self.scores,
            self.scores.reshape(self.shape[0], self.width),
            self.kept,
            self.line,
            np.empty((2, self.width)),
        )
        return found

    @property
    def dual(self) -> Array:
        """(K, axes, R, W); a view."""
        classes, axes, count, width = self.shape
        inner = self.values[self.lanes : len(self.values) - self.lanes]
        return inner.reshape(classes, axes, count, self.width)[..., :width]


@helper(fastmath=FAST)
def _scores(
    cost: Any,
    dual: Any,
    before: Any,
    extrapolation: Any,
    weights: Any,
    entry: Any,
    sizes: Any,
    height: int,
    width: int,
    row: int,
    inverse: Any,
    shape: Any,
    out: Any,
    place: int,
) -> None:
    """-(cost + K^T x) * inverse at the pixels of a row: (K, P) from ``place`` on in ``out``."""
    classes, axes, count = sizes
    lanes, last = len(shape), axes - 1
    extrapolations, factor = splat(extrapolation, shape), splat(inverse, shape)
    spare = (len(weights) - 2 * lanes) // (axes * width) - 1
    here = (entry[row] * axes + last) * width + lanes
    for k in range(classes):
        y = ((k * axes + last) * count + row) * width + lanes
        c = (k * count + row) * width + lanes
        o = place + k * width
        # The same in the axis before, and there in the row before, which if it is none has weights of 0.
        z, z_here = y - count * width, here - width
        q = z - width if row > 0 else z
        q_here = ((entry[row - 1] if row > 0 else spare) * axes + last - 1) * width + lanes
        for x in range(0, width, lanes):
            point = extrapolated(dual, before, y + x, extrapolations, shape)
            point_before = extrapolated(dual, before, y + x - 1, extrapolations, shape)
            scores = mul(load(weights, here + x, shape), point)
            scores = sub(scores, mul(load(weights, here + x - 1, shape), point_before))
            if axes > 1:
                point = extrapolated(dual, before, z + x, extrapolations, shape)
                point_before = extrapolated(dual, before, q + x, extrapolations, shape)
                scores = add(scores, mul(load(weights, z_here + x, shape), point))
                scores = sub(scores, mul(load(weights, q_here + x, shape), point_before))
            store(out, o + x, mul(factor, sub(scores, load(cost, c + x, shape))))
        for axis in range(last - 1):
            z = ((k * axes + axis) * count + row) * width + lanes
            q = z - height * width if row >= height else z
            z_here = (entry[row] * axes + axis) * width + lanes
            q_here = ((entry[row - height] if row >= height else spare) * axes + axis) * width + lanes
            for x in range(0, width, lanes):
                point = extrapolated(dual, before, z + x, extrapolations, shape)
                point_before = extrapolated(dual, before, q + x, extrapolations, shape)
                more = mul(load(weights, z_here + x, shape), point)
                more = sub(more, mul(load(weights, q_here + x, shape), point_before))
                store(out, o + x, add(load(out, o + x, shape), mul(factor, more)))


@helper(forceinline=True)
def _neighbor(row: int, axis: int, k: int, sizes: Any, height: int, width: int, slots: int) -> Any:
    """Place in the ring of class k at the next pixel in the row, or at the same in a later row.

    Where there is none, of something else: the step there is 0.
    """
    classes, axes, count = sizes
    ahead = row + (0 if axis == axes - 1 else 1 if axis == axes - 2 else height)
    slot = ahead if ahead < count else row
    return (slot % slots * classes + k) * width + (axis == axes - 1)


@helper(fastmath=FAST)
def _move(
    dual: Any,
    before: Any,
    extrapolation: Any,
    steps: Any,
    metric: Any,
    entry: Any,
    sizes: Any,
    height: int,
    width: int,
    row: int,
    radius: Any,
    ring: Any,
    shape: Any,
) -> float:
    """New dual variables of a row, each projected by itself.

    Returns:
        <x - y+, (y+ - y) / tau> over the row.
    """
    classes, axes, count = sizes
    lanes = len(shape)
    slots = (len(ring) - lanes) // (classes * width)
    extrapolations, most, least = splat(extrapolation, shape), splat(radius, shape), splat(-radius, shape)
    criterion = splat(dual.dtype.type(0), shape)
    for k in range(classes):
        here = (row % slots * classes + k) * width
        for axis in range(axes):
            neighbor = _neighbor(row, axis, k, sizes, height, width, slots)
            y = ((k * axes + axis) * count + row) * width + lanes
            known = (entry[row] * axes + axis) * width + lanes
            for x in range(0, width, lanes):
                difference = sub(load(ring, neighbor + x, shape), load(ring, here + x, shape))
                step = load(steps, known + x, shape)
                _, gain = ascend(dual, before, y + x, extrapolations, step, difference, least, most, shape)
                criterion = add(criterion, mul(load(metric, known + x, shape), gain))
    return np.float64(total(criterion))


@helper(fastmath=FAST)
def _move_pairs(
    dual: Any,
    before: Any,
    extrapolation: Any,
    steps: Any,
    metric: Any,
    entry: Any,
    sizes: Any,
    width: int,
    row: int,
    radius: Any,
    ring: Any,
    shape: Any,
) -> float:
    """The same in 2D, where both axes of a pixel are projected together."""
    classes, _, count = sizes
    lanes = len(shape)
    slots = (len(ring) - lanes) // (classes * width)
    extrapolations, radii = splat(extrapolation, shape), splat(radius, shape)
    criterion = splat(dual.dtype.type(0), shape)
    for k in range(classes):
        here = (row % slots * classes + k) * width
        neighbor = ((row + 1) % slots * classes + k) * width if row + 1 < count else here
        z = (2 * k * count + row) * width + lanes
        y = z + count * width
        z_known = 2 * entry[row] * width + lanes
        y_known = z_known + width
        for x in range(0, width, lanes):
            s = load(ring, here + x, shape)
            value, other = load(dual, y + x, shape), load(dual, z + x, shape)
            point = extrapolated(dual, before, y + x, extrapolations, shape)
            new = add(point, mul(load(steps, y_known + x, shape), sub(load(ring, here + x + 1, shape), s)))
            other_point = extrapolated(dual, before, z + x, extrapolations, shape)
            other_new = add(other_point, mul(load(steps, z_known + x, shape), sub(load(ring, neighbor + x, shape), s)))
            shrink = divide(radii, maximum(root(add(mul(new, new), mul(other_new, other_new))), radii))
            new, other_new = mul(new, shrink), mul(other_new, shrink)
            gain = mul(load(metric, y_known + x, shape), mul(sub(point, new), sub(new, value)))
            other_gain = mul(load(metric, z_known + x, shape), mul(sub(other_point, other_new), sub(other_new, other)))
            criterion = add(criterion, add(gain, other_gain))
            store(before, y + x, new)
            store(before, z + x, other_new)
    return np.float64(total(criterion))


@helper(fastmath=FAST)
def _move_jointly(
    dual: Any,
    before: Any,
    extrapolation: Any,
    steps: Any,
    metric: Any,
    entry: Any,
    sizes: Any,
    height: int,
    width: int,
    row: int,
    radius: Any,
    ring: Any,
    shape: Any,
    moved: Any,
) -> float:
    """The same for any number of axes; ``moved`` (2 * axes vectors,) is overwritten."""
    classes, axes, count = sizes
    lanes = len(shape)
    slots = (len(ring) - lanes) // (classes * width)
    extrapolations, radii, zero = splat(extrapolation, shape), splat(radius, shape), splat(dual.dtype.type(0), shape)
    criterion = zero
    for k in range(classes):
        here = (row % slots * classes + k) * width
        for x in range(0, width, lanes):
            length = zero
            for axis in range(axes):
                neighbor = _neighbor(row, axis, k, sizes, height, width, slots)
                y = ((k * axes + axis) * count + row) * width + lanes
                known = (entry[row] * axes + axis) * width + lanes
                point = extrapolated(dual, before, y + x, extrapolations, shape)
                difference = sub(load(ring, neighbor + x, shape), load(ring, here + x, shape))
                new = add(point, mul(load(steps, known + x, shape), difference))
                length = add(length, mul(new, new))
                store(moved, 2 * axis * lanes, point)
                store(moved, (2 * axis + 1) * lanes, new)
            shrink = divide(radii, maximum(root(length), radii))
            for axis in range(axes):
                y = ((k * axes + axis) * count + row) * width + lanes
                known = (entry[row] * axes + axis) * width + lanes
                point = load(moved, 2 * axis * lanes, shape)
                new = mul(load(moved, (2 * axis + 1) * lanes, shape), shrink)
                gain = mul(sub(point, new), sub(new, load(dual, y + x, shape)))
                criterion = add(criterion, mul(load(metric, known + x, shape), gain))
                store(before, y + x, new)
    return np.float64(total(criterion))


# Rewrites leave out what an argument that is None makes unreachable.
@kernel(fastmath=FAST, no_rewrites=False)
def _step(
    cost: Any,
    dual: Any,
    before: Any,
    extrapolation: Any,
    weights: Any,
    steps: Any,
    metric: Any,
    entry: Any,
    sizes: Any,
    height: int,
    width: int,
    radius: Any,
    smoothing_weight: Any,
    entropy: bool,
    shape: Any,
    ring: Any,
    kept: Any,
    line: Any,
    alone: Any,
    pairs: Any,
    moved: Any,
) -> float:
    """``before`` is overwritten with the new dual variables, ``ring``, and ``kept`` in it, with the s of the last rows.

    Of ``alone``, ``pairs`` and ``moved``, which is memory as ``line`` (3, P) is, one is not None.
    """
    classes, _, count = sizes
    lag = len(kept) - 1
    factor = dual.dtype.type(1) / smoothing_weight
    criterion = 0.0
    for row in range(count + lag):
        if row < count:
            slot = row % len(kept)
            place = slot * classes * width
            _scores(
                cost, dual, before, extrapolation, weights, entry, sizes, height, width, row, factor, shape, ring, place
            )
            if entropy:
                softmax_rows(kept[slot], line[0], line[1], line[2])
        late = row - lag
        if late < 0:
            continue
        if alone is not None:
            criterion += _move(
                dual, before, extrapolation, steps, metric, entry, sizes, height, width, late, radius, ring, shape
            )
        if pairs is not None:
            criterion += _move_pairs(
                dual, before, extrapolation, steps, metric, entry, sizes, width, late, radius, ring, shape
            )
        if moved is not None:
            criterion += _move_jointly(
                dual,
                before,
                extrapolation,
                steps,
                metric,
                entry,
                sizes,
                height,
                width,
                late,
                radius,
                ring,
                shape,
                moved,
            )
    return criterion


@helper(fastmath=FAST)
def _smooth_part(
    costs: Any, scores: Any, s: Any, offset: Any, smoothing_weight: Any, entropy: bool, counted: Any
) -> float:
    """The smooth part's value at the pixels of a row, one class; ``offset`` (P,) = log of the sum of exp(scores)."""
    value = 0.0
    for x in range(len(s)):
        value += counted[x] * smooth_value(s[x], costs[x], scores[x] - offset[x], smoothing_weight, entropy)
    return value


@kernel(fastmath=FAST, no_rewrites=False)
def _certify(
    cost: Any,
    dual: Any,
    weights: Any,
    entry: Any,
    sizes: Any,
    height: int,
    width: int,
    radius: Any,
    alone: Any,
    joint: Any,
    smoothing_weight: Any,
    entropy: bool,
    counted: Any,
    shape: Any,
    out: Any,
    flat: Any,
    scores: Any,
    kept: Any,
    line: Any,
    sums: Any,
) -> tuple[float, float, float]:
    """``flat`` (K P,) and in it ``scores`` (K, P), ``kept``, ``line`` (3, P) and ``sums`` (2, P) are overwritten."""
    classes, axes, count = sizes
    lanes, lag = len(shape), len(kept) - 1
    top, total, inverse = line[0], line[1], line[2]
    squares, along = sums[0], sums[1]
    factor, zero = dual.dtype.type(1) / smoothing_weight, dual.dtype.type(0)
    bound = np.float64(radius)
    smooth = support = fenchel_gap = 0.0
    if not entropy:
        top[:] = 0
    for row in range(count + lag):
        if row < count:
            _scores(cost, dual, dual, zero, weights, entry, sizes, height, width, row, factor, shape, flat, 0)
            s = kept[row % len(kept)]
            for k in range(classes):
                given, taken = scores[k], s[k]
                for x in range(width):
                    taken[x] = given[x]
            if entropy:
                softmax_rows(s, top, total, inverse)
                for x in range(width):
                    top[x] += math.log(total[x])
            for k in range(classes):
                begin = (k * count + row) * width + lanes
                costs, probabilities, filled = cost[begin : begin + width], s[k], out[k, row]
                smooth += _smooth_part(
                    costs, scores[k], probabilities, top, smoothing_weight, entropy, counted[row % len(counted)]
                )
                for x in range(len(filled)):
                    filled[x] = probabilities[x]
        late = row - lag
        if late < 0:
            continue
        for k in range(classes):
            squares[:] = 0
            along[:] = 0
            here = kept[late % len(kept), k]
            for axis in range(axes - 1, -1, -1):
                begin = ((k * axes + axis) * count + late) * width + lanes
                y = dual[begin : begin + width]
                begin = (entry[late] * axes + axis) * width + lanes
                w = weights[begin : begin + width]
                # Columns that have a neighbour: all but the last, or all if there is a next row.
                neighbor = here[1:]
                if axis < axes - 1:
                    ahead = late + (1 if axis == axes - 2 else height)
                    neighbor = kept[ahead % len(kept), k] if ahead < count else here[:0]
                if joint is not None:
                    for x in range(len(neighbor)):
                        z = np.float64(w[x] * (neighbor[x] - here[x]))
                        squares[x] += z * z
                        along[x] += z * y[x]
                if alone is not None:
                    length = short = 0.0
                    for x in range(len(neighbor)):
                        z = np.float64(w[x] * (neighbor[x] - here[x]))
                        length += abs(z)
                        short += box_gap(z, y[x], bound)
                    support += bound * length
                    fenchel_gap += short
            if joint is not None:
                for x in range(width):
                    length = bound * math.sqrt(squares[x])
                    support += length
                    fenchel_gap += length - along[x] if length > along[x] else 0.0
    return smooth, support, fenchel_gap
