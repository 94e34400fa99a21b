"""The linear system of the implicit gradient of total variation, over merged pixels; one image at a time.

With s at the solution, log s its logarithm, and r the response of s to costs without a prior, find

    v = argmin of  epsilon (1/2 <v, v / s> - <r, v / s>) + 1/2 <nu, c nu>   over v whose classes sum to 0 at every pixel

with v_i = v_j along every edge ij that is free in v's class, and T v = c nu for what else is in K's tangent, which the
rims of balls have: rows T of a few entries. The first makes v constant on the components of the free edges of each
class, however large, so its unknowns are one number for each component; what couples them are the sums over classes,
and pixels in the same component of every class have the same one: they are one cell. With multipliers mu for cells

    v_c = l_c - h_c ((sum of mu over the cells in c) + (T^T nu)_c)    l, h: from sums of r / s and of epsilon / s over c
    sum over classes of v at each cell = 0,     T v = c nu

which conjugate gradients solve in few steps, each of which costs what there are cells and rims, not what pixels there
are. All sums over components are of q = (least s in c) / s <= 1, so that s may underflow. Arrays in, arrays out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regloss_plugins.kernels.compiling import helper, kernel

Array = NDArray[Any]

_LEAST = 1e-100  # of h: what is smaller moves nothing, and its reciprocal's square would overflow


@dataclass(frozen=True)
class Rows:
    """The rest of the tangent, T.

    Attributes:
        ends: (R, J) int32 components.
        entries: (R, J) of T at them.
        curvature: (R,) c >= 0.
    """

    ends: NDArray[np.int32]
    entries: Array
    curvature: Array

    @staticmethod
    def none(kind: Any) -> Rows:
        """No row, of numbers of the type ``kind``."""
        return Rows(np.zeros((0, 1), np.int32), np.zeros((0, 1), kind), np.zeros(0, kind))

    @staticmethod
    def of_rims(
        rims: Array, dual: Array, force: Array, weights: Array, labels: Array, strides: Array, radius: float
    ) -> tuple[Rows, Array]:
        """What y on the rims of balls leaves, y turning around n = y / |y|; axes - 1 rows for each y.

        Args:
            rims: (R,) int64 class * N + pixel.
            dual: (K, axes, N) y.
            force: (K, axes, N) K s.
            weights: (axes, N) of the differences, 0 where there is none.
            labels: (N, K) components.
            strides: (axes,) int64 from a pixel to the next.
            radius: > 0.

        Returns:
            The rows, and the directions (R * (axes - 1), axes) that they are of.
        """
        axes = len(weights)
        count, kind = len(rims) * (axes - 1), dual.dtype
        rows = Rows(np.empty((count, axes + 1), np.int32), np.empty((count, axes + 1), kind), np.empty(count, kind))
        turns = np.empty((count, axes), kind)
        filled = rows.ends, rows.entries, rows.curvature, turns, np.empty(axes)
        _fill(rims, dual, force, weights, labels, strides, radius, *filled)
        return rows, turns


@dataclass(frozen=True)
class Response:
    """What the system gave.

    Attributes:
        values: (K, N) v, in double precision; its classes sum to 0 as nearly as the system was solved.
        nu: (R,).
        steps: of conjugate gradients.
        residual: relative, in the preconditioner's norm.
    """

    values: NDArray[np.float64]
    nu: Array
    steps: int
    residual: float


class MergedPixels:
    """The components and cells of one image.

    Args:
        first: (E,) int32 ends of edges, in the order of ``free``; ``second`` likewise, and anything where none is free.
        second: the other ends.
        free: (K, E) bool: edges whose ends move together.
        log_probabilities: (K, N), may be -inf.
        epsilon: > 0.
    """

    def __init__(self, first: Array, second: Array, free: Array, log_probabilities: Array, epsilon: float) -> None:
        classes, pixels = log_probabilities.shape
        self.labels = np.empty((pixels, classes), np.int32)
        self.count = _merge(first, second, free, self.labels, np.empty(pixels, np.int32))
        self.cells, kept = _cells(self.labels)
        self.members = self.labels[kept]  # (M, K) components of each cell
        low, self.total = np.full(self.count, np.inf), np.zeros(self.count)
        self.shares = np.empty(log_probabilities.shape)  # epsilon q
        _weigh(self.labels, log_probabilities, epsilon, low, self.total, self.shares)
        inverse = np.exp(low) / self.total
        self.inverse = np.where(inverse < _LEAST, 0.0, inverse)

    def respond(self, start: Array, rows: Rows, max_steps: int, tolerance: float) -> Response:
        """Solve for ``start`` (K, N), the response without a prior."""
        load = np.bincount(self.labels.T.ravel(), (self.shares * start).ravel(), self.count) / self.total
        nu = np.zeros_like(rows.curvature)
        over_cells, over_rows = np.zeros((3, len(self.members))), np.zeros((3, len(nu)), nu.dtype)
        steps, residual = _conjugate_gradients(
            self.members,
            self.inverse,
            load,
            rows.ends,
            rows.entries,
            rows.curvature,
            nu,
            _reciprocals(self.inverse[self.members].sum(1)),
            np.empty_like(nu),
            np.empty_like(load),
            over_cells,
            over_rows,
            max_steps,
            tolerance,
        )
        return Response(load.take(self.labels.T), nu, steps, residual)


@helper()
def _root(parent: Any, x: int) -> int:
    while parent[x] != x:
        parent[x] = parent[parent[x]]
        x = parent[x]
    return x


@kernel()
def _merge(first: Any, second: Any, free: Any, labels: Any, parent: Any) -> int:
    """Number the components of each class in ``labels`` (N, K), through all classes; returns how many there are.

    ``parent`` (N,) is memory.
    """
    pixels, classes = labels.shape
    count = 0
    for k in range(classes):
        for x in range(pixels):
            parent[x] = x
        for e in range(len(first)):
            if free[k, e]:
                a, b = _root(parent, first[e]), _root(parent, second[e])
                # The first pixel of a component is its root, so that it has its number before the others.
                if a < b:
                    parent[b] = a
                else:
                    parent[a] = b
        for x in range(pixels):
            root = _root(parent, x)
            if root == x:
                labels[x, k] = count
                count += 1
            else:
                labels[x, k] = labels[root, k]
    return count


def _cells(labels: NDArray[np.int32]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """The cell (N,) of each pixel, and a pixel of each cell (M,)."""
    pixels = len(labels)
    table = np.full(max(2, 1 << (2 * pixels - 1).bit_length()), -1, np.int32)  # of cells, open addressing
    cells, kept = np.empty(pixels, np.int32), np.empty(pixels, np.int64)
    count = _number(labels, table, cells, kept)
    return cells, kept[:count].copy()


@kernel()
def _number(labels: Any, table: Any, cells: Any, kept: Any) -> int:
    (pixels, classes), size = labels.shape, len(table)
    count = 0
    for x in range(pixels):
        code = np.uint64(14695981039346656037)
        for k in range(classes):
            code = (code ^ np.uint64(labels[x, k])) * np.uint64(1099511628211)
        place = np.int64((code ^ (code >> np.uint64(32))) & np.uint64(size - 1))
        while True:
            cell = table[place]
            if cell < 0:
                table[place] = count
                cells[x] = count
                kept[count] = x
                count += 1
                break
            other, k = kept[cell], 0
            while k < classes and labels[x, k] == labels[other, k]:
                k += 1
            if k == classes:
                cells[x] = cell
                break
            place = (place + 1) & (size - 1)
    return count


@helper(forceinline=True)
def _finite(log_s: Any) -> float:
    value = np.float64(log_s)
    return value if value > -1e300 else -1e300


@kernel()
def _weigh(labels: Any, log_s: Any, epsilon: float, low: Any, total: Any, shares: Any) -> None:
    """Least log s of each component, finite; epsilon q (K, N), and its sum over each component."""
    pixels, classes = labels.shape
    for k in range(classes):
        for x in range(pixels):
            value = _finite(log_s[k, x])
            if value < low[labels[x, k]]:
                low[labels[x, k]] = value
        for x in range(pixels):
            c = labels[x, k]
            share = epsilon * math.exp(low[c] - _finite(log_s[k, x]))
            shares[k, x] = share
            total[c] += share


@kernel()
def _fill(
    rims: Any,
    dual: Any,
    force: Any,
    weights: Any,
    labels: Any,
    strides: Any,
    radius: float,
    ends: Any,
    entries: Any,
    curvature: Any,
    turns: Any,
    away: Any,
) -> None:
    """See `Rows.of_rims`; ``away`` (axes,) is memory."""
    (axes, pixels), row = weights.shape, 0
    for i in range(len(rims)):
        place = rims[i]
        k, x = place // pixels, place % pixels
        length, strength = 0.0, 0.0
        for axis in range(axes):
            away[axis] = dual[k, axis, x] if weights[axis, x] > 0 else 0.0
            length += away[axis] * away[axis]
            strength += np.float64(force[k, axis, x]) * np.float64(force[k, axis, x])
        # The reflection that takes the last axis to n, or to -n, takes the others to what is orthogonal to it.
        away[axes - 1] += math.copysign(math.sqrt(length), away[axes - 1])
        square = 0.0
        for axis in range(axes):
            square += away[axis] * away[axis]
        for other in range(axes - 1):
            total = 0.0
            for axis in range(axes):
                turn = (1.0 if axis == other else 0.0) - 2 * away[other] * away[axis] / square
                turns[row, axis] = turn
                entries[row, axis + 1] = turn * weights[axis, x]
                total += turn * weights[axis, x]
                # Where there is no next pixel the entry is 0, whatever its place.
                following = x + strides[axis]
                ends[row, axis + 1] = labels[following if following < pixels else pixels - 1, k]
            ends[row, 0] = labels[x, k]
            entries[row, 0] = -total
            curvature[row] = math.sqrt(strength) / radius
            row += 1


def _reciprocals(values: Array) -> Array:
    """1 / value, 0 where there is none."""
    kept = values > 0
    found: Array = np.where(kept, 1 / np.where(kept, values, 1), 0)
    return found


@kernel()
def _conjugate_gradients(
    members: Any,
    inverse: Any,
    load: Any,
    ends: Any,
    entries: Any,
    curvature: Any,
    nu: Any,
    of_mu: Any,
    of_nu: Any,
    moved: Any,
    over_cells: Any,
    over_rows: Any,
    max_steps: int,
    tolerance: float,
) -> tuple[int, float]:
    """``load`` becomes v, component by component; ``nu``, which is 0, becomes nu.

    Of mu itself nothing is kept: v follows along with each step. ``of_mu`` (M,) are reciprocals of the diagonal, and
    ``of_nu`` (R,) becomes them; ``moved``, like ``load``, ``over_cells`` (3, M) and ``over_rows`` (3, R), zeros, are
    memory.

    Returns:
        steps, and the relative residual.
    """
    cells, rows = len(members), len(ends)
    classes, width = members.shape[1], ends.shape[1]
    residual, image, direction = over_cells[0], over_cells[1], over_cells[2]
    residual_nu, image_nu, direction_nu = over_rows[0], over_rows[1], over_rows[2]
    power = 0.0
    for i in range(cells):
        total = 0.0
        for k in range(classes):
            total += load[members[i, k]]
        residual[i] = total
        power += of_mu[i] * total * total
    for i in range(rows):
        total, square = 0.0, np.float64(curvature[i])
        for j in range(width):
            entry = np.float64(entries[i, j])
            total += entry * load[ends[i, j]]
            square += entry * entry * inverse[ends[i, j]]
        of_nu[i] = 1 / square if square > _LEAST else 0.0
        residual_nu[i] = total
        power += of_nu[i] * total * total
    first, beta, steps = power, 0.0, 0
    while steps < max_steps and power > 0 and power > tolerance * tolerance * first:
        moved[:] = 0
        for i in range(cells):
            direction[i] = of_mu[i] * residual[i] + beta * direction[i]
            for k in range(classes):
                moved[members[i, k]] += direction[i]
        for i in range(rows):
            direction_nu[i] = of_nu[i] * residual_nu[i] + beta * direction_nu[i]
            for j in range(width):
                moved[ends[i, j]] += np.float64(entries[i, j]) * np.float64(direction_nu[i])
        for c in range(len(moved)):
            moved[c] *= inverse[c]
        curved = 0.0
        for i in range(cells):
            total = 0.0
            for k in range(classes):
                total += moved[members[i, k]]
            image[i] = total
            curved += total * direction[i]
        for i in range(rows):
            total = np.float64(curvature[i]) * np.float64(direction_nu[i])
            for j in range(width):
                total += np.float64(entries[i, j]) * moved[ends[i, j]]
            image_nu[i] = total
            curved += total * direction_nu[i]
        if not curved > 0:  # rounding can leave a direction that the matrix does not see
            break
        along, before, power = power / curved, power, 0.0
        for c in range(len(load)):
            load[c] -= along * moved[c]
        for i in range(cells):
            residual[i] -= along * image[i]
            power += of_mu[i] * residual[i] * residual[i]
        for i in range(rows):
            nu[i] += along * direction_nu[i]
            residual_nu[i] -= along * image_nu[i]
            power += of_nu[i] * (np.float64(residual_nu[i]) * np.float64(residual_nu[i]))
        beta = power / before
        steps += 1
    return steps, math.sqrt(power / first) if first > 0 and power > 0 else 0.0
