"""Gaussian filtering of one image by a lattice of splines: arrays in, arrays out.

    W_pq ~ exp(-|x_p - x_q|^2 / (2 sigma^2) - |f_p - f_q|^2 / 2),      W = D A^T G A D

for pixels at places x on a grid with features f (colours over their bandwidths). A spreads a pixel over the nodes of a
lattice of ``step`` bandwidths in every axis by B-splines, G blurs the nodes along every axis with 2 * reach + 1
numbers, A^T reads the pixels' values off, and the diagonal D makes W_pp = 1, as it is for the Gaussian. So W is
symmetric, its entries are not negative, and since G is, it is positive semidefinite.

D removes the larger part of the error: what splines do to a point depends on where it lies between the nodes, mostly by
a factor. The numbers in G are those for which W of points on a line is nearest to the Gaussian, with D in place.

The nodes are all places of a coarse spatial grid times those colours that some pixel touches. Pixels of a small block
(1/12 of a bandwidth long) share the place of its centre, so that only the colour axes cost (degree + 1)^channels per
pixel. Compared with the permutohedral lattice (Adams, Baek, Davis, "Fast high-dimensional filtering using the
permutohedral lattice", 2010), nothing is lost where the blur crosses cells that no pixel touches, and colours and
places are looked up instead of hashed; in return its cost grows exponentially with the channels.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, reduce
from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray
from scipy.optimize import nnls

from regloss.errors import UsageError
from regloss_plugins.kernels.lattice_rows import WIDTHS, gather, gather_runs, scatter, transpose, width_for

Floats = NDArray[Any]


@dataclass(frozen=True)
class Splines:
    """How a lattice approximates.

    Attributes:
        degree: of the B-splines, 1 to 3; degree + 1 nodes along each axis.
        step: distance of two nodes, in bandwidths.
        reach: how many nodes away G looks along each axis.
    """

    degree: int
    step: float
    reach: int


# Blocks of pixels that share a place are at most so many bandwidths long: 6 pixels of 80.
_BLOCK = 1 / 12
# A dense array over all colours is quicker than sorting, as long as it fits into memory easily.
_DENSE_COLOURS = 2**24
# Code for so many runs of nodes per pixel is written out; 16 are those of cubic splines of three channels.
_MOST_RUNS = 16
# More numbers than this (16 GiB in float64) are certainly a mistake in the settings.
_MOST_NUMBERS = 2**31


def spline_weights(places: Floats, degree: int) -> tuple[NDArray[np.int64], Floats]:
    """B-splines of ``degree`` at ``places`` (...): first node (...) and weights (..., degree + 1), which sum to 1."""
    if degree == 2:
        middle = np.rint(places)
        t = places - middle
        weights = [(0.5 - t) ** 2 / 2, 0.75 - t**2, (0.5 + t) ** 2 / 2]
        return middle.astype(np.int64) - 1, np.stack(weights, -1)
    low = np.floor(places)
    t = places - low
    if degree == 1:
        return low.astype(np.int64), np.stack([1 - t, t], -1)
    cubic = [(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3]
    return low.astype(np.int64) - 1, np.stack(cubic, -1) / 6


@lru_cache
def blur(splines: Splines) -> tuple[float, ...]:
    """The numbers of G along an axis, from the node itself to ``reach`` nodes away.

    They minimise the squared error of W for points on a line, over all positions between nodes. As D depends on them,
    they are found by repeating a linear problem, which settles within a few rounds.
    """
    samples = 12
    count, reach = splines.degree + 1, splines.reach
    # One cell between knots, which for even degrees lies around a node.
    inner = (np.arange(samples) + 0.5) / samples - (0.5 if splines.degree == 2 else 0.0)
    _, weights = spline_weights(inner, splines.degree)
    pairs = [(i, j) for i in range(count) for j in range(count)]
    cells = range(math.ceil(4.5 / splines.step) + 3)
    products: list[Floats] = []
    targets: list[Floats] = []
    for cell in cells:
        product = np.zeros((samples, samples, reach + 1))
        for i, j in pairs:
            if abs(cell + j - i) <= reach:
                product[:, :, abs(cell + j - i)] += weights[:, None, i] * weights[None, :, j]
        # Of the pairs within one cell, both orders are among the samples.
        share = math.sqrt(0.5) if cell == 0 else 1.0
        products.append(share * product)
        targets.append(share * np.exp(-(((cell + inner[None, :] - inner[:, None]) * splines.step) ** 2) / 2))
    design: Floats = np.concatenate(products).reshape(-1, reach + 1)
    target = np.concatenate(targets).ravel()
    own = np.zeros((samples, reach + 1))
    for i, j in pairs:
        if abs(i - j) <= reach:
            own[:, abs(i - j)] += weights[:, i] * weights[:, j]
    found = np.exp(-((np.arange(reach + 1) * splines.step) ** 2))
    for _ in range(10):
        peak = np.sqrt(own @ found)
        scale = np.tile(np.outer(peak, peak).ravel(), len(cells))
        found, _ = nnls(design / scale[:, None], target)
    return tuple(float(value) for value in found)


def _own_weight(weights: Floats, splines: Splines) -> Floats:
    """b^T G b (...) of the weights b (..., degree + 1) along an axis."""
    numbers = blur(splines)
    count = splines.degree + 1
    matrix = np.array(
        [[numbers[abs(i - j)] if abs(i - j) < len(numbers) else 0 for j in range(count)] for i in range(count)]
    )
    result: Floats = np.einsum("...i,ij,...j->...", weights, matrix, weights)
    return result


class _Colours(NamedTuple):
    """Colours of the pixels as nodes of a lattice: U different cells, M nodes."""

    cell: NDArray[np.int64]  # (N,) which cell a pixel lies in
    rows: NDArray[np.int32]  # (U, R) first of degree + 1 consecutive nodes, for each combination of the other axes
    offsets: NDArray[np.int64]  # (R, axes - 1) that combination
    weights: Floats  # (N, axes, degree + 1)
    pointers: NDArray[np.int64]  # (M + 1,) where each node's neighbours begin
    neighbors: NDArray[np.int32]
    blur: Floats  # one number for each neighbour


class _Places(NamedTuple):
    """Blocks of pixels as nodes of a spatial grid: T blocks, S nodes."""

    block: NDArray[np.int64]  # (N,) which block a pixel lies in
    across: int  # blocks side by side along the last axis, which form a strip
    rows: NDArray[np.int32]  # (T, R) first of consecutive nodes
    weights: Floats  # (T, R * number of consecutive nodes)
    own: Floats  # (T,) b^T G b
    sizes: tuple[int, ...]  # nodes along each axis


def _lookup(keys: NDArray[np.int64], bound: int) -> Callable[[NDArray[np.int64]], NDArray[np.int64]]:
    """A function from keys to their places in the sorted ``keys``, -1 for others; all lie in 0..bound - 1."""
    if bound <= _DENSE_COLOURS:
        place = np.full(bound, -1, dtype=np.int64)
        place[keys] = np.arange(len(keys))
        return lambda asked: place[asked]

    def search(asked: NDArray[np.int64]) -> NDArray[np.int64]:
        found = np.minimum(np.searchsorted(keys, asked), len(keys) - 1)
        result: NDArray[np.int64] = np.where(keys[found] == asked, found, -1)
        return result

    return search


def _unique(keys: NDArray[np.int64], bound: int) -> NDArray[np.int64]:
    if bound > _DENSE_COLOURS:
        return np.unique(keys)
    seen = np.zeros(bound, dtype=np.bool_)
    seen[keys] = True
    return np.flatnonzero(seen)


def _colours(features: Floats, splines: Splines) -> _Colours:
    count, reach = splines.degree + 1, splines.reach
    axes = features.shape[1]
    first, weights = spline_weights(features / splines.step, splines.degree)
    first -= first.min(0) - reach  # a margin, so that neighbours of nodes have keys of their own
    size = first.max(0) + count + reach
    bound = math.prod(int(length) for length in size)
    strides = np.array([math.prod(int(length) for length in size[axis + 1 :]) for axis in range(axes)])
    if bound >= 2**62:
        raise UsageError(f"The lattice cannot number the nodes of {axes} feature axes. Use the backend 'exact'.")
    key = first @ strides
    cells = _unique(key, bound)
    if len(cells) * count**axes > _MOST_NUMBERS // 8:
        raise UsageError(
            f"{len(cells)} different colours of {axes} channels touch {count}^{axes} nodes of the lattice each, too "
            "many. Use the backend 'exact', a coarser accuracy, or larger bandwidths."
        )
    offsets = (
        np.array(list(itertools.product(range(count), repeat=axes - 1)), dtype=np.int64).reshape(-1, axes - 1)
        if axes > 1
        else np.zeros((1, 0), np.int64)
    )
    starts = cells[:, None] + (offsets @ strides[:-1])[None, :]
    nodes = _unique((starts[:, :, None] + np.arange(count)).ravel(), bound)
    place = _lookup(nodes, bound)
    # Keys that follow each other along the last axis are all nodes, hence numbered one after the other.
    rows = place(starts.ravel()).reshape(starts.shape).astype(np.int32)

    numbers = blur(splines)
    sources, targets, values = [], [], []
    for step in itertools.product(range(-reach, reach + 1), repeat=axes):
        other = place(nodes + int(np.dot(step, strides)))
        near = np.flatnonzero(other >= 0)
        sources.append(near)
        targets.append(other[near])
        values.append(np.full(len(near), math.prod(numbers[abs(s)] for s in step)))
    source = np.concatenate(sources)
    order = np.argsort(source, kind="stable")
    return _Colours(
        cell=_lookup(cells, bound)(key),
        rows=rows,
        offsets=offsets,
        weights=weights,
        pointers=_pointers(source, len(nodes)),
        neighbors=np.concatenate(targets)[order].astype(np.int32),
        blur=np.concatenate(values)[order],
    )


def _places(places: NDArray[np.int64], sigma: float, splines: Splines) -> _Places:
    """Blocks of pixels and their nodes along every axis; with an infinite ``sigma`` there is but one node."""
    count, pixels = splines.degree + 1, len(places)
    if math.isinf(sigma):
        return _Places(np.zeros(pixels, np.int64), 1, np.zeros((1, 1), np.int32), np.ones((1, 1)), np.ones(1), (1,))
    length = max(1, math.floor(sigma * _BLOCK))
    low = places.min(0)
    block, sizes, firsts, weights, own = np.zeros(pixels, np.int64), [], [], [], []
    for axis in range(places.shape[1]):
        extent = int(places[:, axis].max() - low[axis]) + 1
        begin = np.arange(0, extent, length)
        centers = (begin + np.minimum(begin + length, extent) - 1) / 2
        first, weight = spline_weights(centers / (sigma * splines.step), splines.degree)
        first -= first.min()
        block = block * len(begin) + (places[:, axis] - low[axis]) // length
        sizes.append(int(first.max()) + count)
        firsts.append(first)
        weights.append(weight)
        own.append(_own_weight(weight, splines))
    # Everything below is a product over the axes, the last of them changing fastest.
    strides = [math.prod(sizes[axis + 1 :]) for axis in range(len(sizes))]
    start = reduce(np.add.outer, [first * stride for first, stride in zip(firsts, strides, strict=True)]).ravel()
    combinations = itertools.product(range(count), repeat=len(sizes) - 1)
    steps = np.array([sum(c * s for c, s in zip(given, strides[:-1], strict=True)) for given in combinations])
    weight = weights[0]
    for other in weights[1:]:
        weight = np.einsum("as,bt->abst", weight, other).reshape(len(weight) * len(other), -1)
    return _Places(
        block=block,
        across=len(firsts[-1]),
        rows=(start[:, None] + steps[None, :]).astype(np.int32),
        weights=weight,
        own=reduce(np.multiply.outer, own).ravel(),
        sizes=tuple(sizes),
    )


def _pointers(numbers: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Where each of 0..count - 1 begins among the sorted ``numbers``: (count + 1,)."""
    return np.concatenate([[0], np.cumsum(np.bincount(numbers, minlength=count))]).astype(np.int64)


@njit(nogil=True, cache=True)
def _touched(pointers: Any, members: Any, cells: Any, rows: Any, count: int, nodes: int) -> Any:
    """Which colour nodes the pixels of each block touch: (T + 1,) pointers and the nodes."""
    seen_cell = np.full(len(rows), -1, np.int64)
    seen_node = np.full(nodes, -1, np.int64)
    blocks = len(pointers) - 1
    begin = np.zeros(blocks + 1, np.int64)
    found = np.empty(1024, np.int32)
    total = 0
    for block in range(blocks):
        for pixel in range(pointers[block], pointers[block + 1]):
            cell = cells[members[pixel]]
            if seen_cell[cell] == block:
                continue
            seen_cell[cell] = block
            for first in rows[cell]:
                for node in range(first, first + count):
                    if seen_node[node] != block:
                        seen_node[node] = block
                        if total == len(found):
                            longer = np.empty(2 * total, np.int32)
                            longer[:total] = found
                            found = longer
                        found[total] = node
                        total += 1
        begin[block + 1] = total
    return begin, found[:total].copy()


@njit(nogil=True, cache=True, error_model="numpy")
def _load(values: Any, pixels: Any, begin: int, end: int, lane: Any) -> None:
    """lane[i - begin, k] = values[k, pixels[i]], by tiles where pixels follow each other."""
    channels = len(values)
    i = begin
    while i < end:
        run = 64 if i + 64 <= end and pixels[i + 63] - pixels[i] == 63 else 8
        if i + run > end or pixels[i + run - 1] - pixels[i] != run - 1:
            for k in range(channels):
                lane[i - begin, k] = values[k, pixels[i]]
            i += 1
            continue
        k = 0
        while k + 8 <= channels:
            for j in range(i, i + run, 8):
                transpose(lane, j - begin, k, values, k, pixels[j], 8)
            k += 8
        if k + 4 <= channels:
            for j in range(i, i + run, 4):
                transpose(lane, j - begin, k, values, k, pixels[j], 4)
            k += 4
        for rest in range(k, channels):
            for j in range(i, i + run):
                lane[j - begin, rest] = values[rest, pixels[j]]
        i += run


@njit(nogil=True, cache=True, error_model="numpy")
def _store(lane: Any, pixels: Any, begin: int, end: int, values: Any) -> None:
    """values[k, pixels[i]] = lane[i - begin, k]."""
    channels = len(values)
    i = begin
    while i < end:
        run = 64 if i + 64 <= end and pixels[i + 63] - pixels[i] == 63 else 8
        if i + run > end or pixels[i + run - 1] - pixels[i] != run - 1:
            for k in range(channels):
                values[k, pixels[i]] = lane[i - begin, k]
            i += 1
            continue
        k = 0
        while k + 8 <= channels:
            for j in range(i, i + run, 8):
                transpose(values, k, pixels[j], lane, j - begin, k, 8)
            k += 8
        if k + 4 <= channels:
            for j in range(i, i + run, 4):
                transpose(values, k, pixels[j], lane, j - begin, k, 4)
            k += 4
        for rest in range(k, channels):
            for j in range(i, i + run):
                values[rest, pixels[j]] = lane[j - begin, rest]
        i += run


# Each pass is compiled once for the numbers that must be constants in it, and kept on disk.


@lru_cache
def _splat(width: int, count: int, place_count: int) -> Callable[..., None]:
    """A: from pixels to nodes, by way of the nodes' colours in each block.

    Args:
        width: channels in a row.
        count: nodes along a colour axis.
        place_count: nodes along the last spatial axis.
    """

    @njit(nogil=True, cache=True, error_model="numpy")
    def splat(
        values: Any, pixels: Any, strips: Any, strip_blocks: Any, blocks: Any, members: Any, cells: Any, rows: Any,
        offsets: Any, weights: Any, touched: Any, nodes: Any, place_rows: Any, place_weights: Any, places: int,
        local: Any, lane: Any, table: Any,
    ) -> None:  # fmt: skip
        axes, last = weights.shape[1], weights.shape[1] - 1
        flat, place_flat = weights.reshape(-1), place_weights.reshape(-1)
        one = weights.dtype.type(1)
        for strip in range(len(strips) - 1):
            begin = strips[strip]
            _load(values, pixels, begin, strips[strip + 1], lane)
            for block in range(strip_blocks[strip], strip_blocks[strip + 1]):
                for member in range(blocks[block], blocks[block + 1]):
                    i = members[member]
                    for r in range(rows.shape[1]):
                        factor = one
                        for axis in range(last):
                            factor *= weights[i, axis, offsets[r, axis]]
                        start = (i * axes + last) * count
                        scatter(local, rows[cells[i], r], lane, i - begin, flat, start, factor, count, width)
                for index in range(touched[block], touched[block + 1]):
                    node = nodes[index]
                    for r in range(place_rows.shape[1]):
                        start = (block * place_rows.shape[1] + r) * place_count
                        row = node * places + place_rows[block, r]
                        scatter(table, row, local, node, place_flat, start, one, place_count, width)
                    for k in range(width):
                        local[node, k] = 0

    result: Callable[..., None] = splat
    return result


@lru_cache
def _blur_places(width: int, taps: int) -> Callable[..., None]:
    """G along one spatial axis, in place."""
    reach = taps // 2

    @njit(nogil=True, cache=True, error_model="numpy")
    def blur_places(table: Any, before: int, length: int, after: int, numbers: Any, line: Any) -> None:
        one = numbers.dtype.type(1)
        for outer in range(before):
            for inner in range(after):
                # The line has ``reach`` rows of zeros at both ends.
                for i in range(length):
                    row = (outer * length + i) * after + inner
                    for k in range(width):
                        line[reach + i, k] = table[row, k]
                for i in range(length):
                    gather(table, (outer * length + i) * after + inner, line, i, numbers, 0, one, taps, width, 1)

    result: Callable[..., None] = blur_places
    return result


@lru_cache
def _blur_colours(width: int) -> Callable[..., None]:
    """G along all colour axes at once."""

    @njit(nogil=True, cache=True, error_model="numpy")
    def blur_colours(table: Any, places: int, pointers: Any, neighbors: Any, numbers: Any, result: Any) -> None:
        one = numbers.dtype.type(1)
        for node in range(len(pointers) - 1):
            for place in range(places):
                for k in range(width):
                    result[node * places + place, k] = 0
            for index in range(pointers[node], pointers[node + 1]):
                other = neighbors[index]
                for place in range(places):
                    row = other * places + place
                    gather(result, node * places + place, table, row, numbers, index, one, 1, width, 0)

    compiled: Callable[..., None] = blur_colours
    return compiled


@lru_cache
def _slice(width: int, count: int, place_count: int, runs: int) -> Callable[..., None]:
    """The transpose of A: from nodes to pixels; ``runs`` of consecutive colour nodes for each pixel, 0 = any number."""

    @njit(nogil=True, cache=True, error_model="numpy")
    def slice_(
        table: Any, pixels: Any, strips: Any, strip_blocks: Any, blocks: Any, members: Any, cells: Any, rows: Any,
        offsets: Any, weights: Any, touched: Any, nodes: Any, place_rows: Any, place_weights: Any, places: int,
        local: Any, lane: Any, values: Any,
    ) -> None:  # fmt: skip
        axes, last = weights.shape[1], weights.shape[1] - 1
        flat, place_flat = weights.reshape(-1), place_weights.reshape(-1)
        one = weights.dtype.type(1)
        factors = np.empty(rows.shape[1], weights.dtype)
        for strip in range(len(strips) - 1):
            begin = strips[strip]
            for block in range(strip_blocks[strip], strip_blocks[strip + 1]):
                for index in range(touched[block], touched[block + 1]):
                    node = nodes[index]
                    for k in range(width):
                        local[node, k] = 0
                    for r in range(place_rows.shape[1]):
                        start = (block * place_rows.shape[1] + r) * place_count
                        row = node * places + place_rows[block, r]
                        gather(local, node, table, row, place_flat, start, one, place_count, width, 0)
                for member in range(blocks[block], blocks[block + 1]):
                    i = members[member]
                    for r in range(rows.shape[1]):
                        factors[r] = one
                        for axis in range(last):
                            factors[r] *= weights[i, axis, offsets[r, axis]]
                    start = (i * axes + last) * count
                    if runs > 0:
                        gather_runs(lane, i - begin, local, rows, cells[i], flat, start, factors, runs, count, width)
                    else:
                        for k in range(width):
                            lane[i - begin, k] = 0
                        for r in range(rows.shape[1]):
                            first = rows[cells[i], r]
                            gather(lane, i - begin, local, first, flat, start, factors[r], count, width, 0)
            _store(lane, pixels, begin, strips[strip + 1], values)

    result: Callable[..., None] = slice_
    return result


class SplineLattice:
    """W of one image, ready to be applied to any number of channels.

    Args:
        features: (N, F) of the pixels that count, in bandwidths; float32 or float64, the precision of the lattice.
        places: (N, D) int64, where they lie on the grid.
        pixels: (N,) int64, where they stand in the arrays that are filtered.
        sigma: bandwidth of the places, in pixels; inf = they do not matter.
        colours: how the features' axes are approximated.
        grid: how the spatial axes are.

    Raises:
        UsageError: the table of nodes would not fit into memory.
    """

    def __init__(
        self,
        features: Floats,
        places: NDArray[np.int64],
        pixels: NDArray[np.int64],
        sigma: float,
        colours: Splines,
        grid: Splines,
    ) -> None:
        if features.shape[1] == 0:
            features = np.zeros((len(features), 1), features.dtype)
        self.colours, self.grid = colours, grid
        space = _places(places, sigma, grid)
        blocks = len(space.rows)
        # Pixels are kept in strips, one row of blocks each, and within a strip as they stand in memory.
        strip = space.block // space.across
        order = np.argsort(strip, kind="stable")
        found = _colours(features[order], colours)
        block = space.block[order]
        self.sizes = space.sizes
        self.places = math.prod(space.sizes)
        self.nodes = len(found.pointers) - 1
        if self.places * self.nodes > _MOST_NUMBERS // WIDTHS[0]:
            raise UsageError(
                f"The lattice has {self.nodes} colours at {self.places} places, more than fits into memory. Use larger "
                "bandwidths, a smaller image, or the backend 'exact'."
            )
        self.pixels = pixels[order].astype(np.int64)
        self.strips = _pointers(strip, blocks // space.across)
        self.strip_blocks = np.arange(0, blocks + 1, space.across)
        self.blocks = _pointers(block, blocks)
        self.members = np.argsort(block, kind="stable")
        self.cells = found.cell.astype(np.int32)
        self.rows, self.offsets = found.rows, found.offsets
        self.touched, self.touched_nodes = _touched(
            self.blocks, self.members, self.cells, found.rows, colours.degree + 1, self.nodes
        )
        self.place_rows = space.rows
        self.neighbor_pointers, self.neighbors = found.pointers, found.neighbors
        own = _own_weight(found.weights, colours).prod(1) * space.own[block]
        weights = found.weights.astype(np.float64)
        weights[:, 0] /= np.sqrt(own)[:, None]
        numbers = blur(grid)
        self._floats = {
            features.dtype: tuple(
                np.ascontiguousarray(array, dtype=features.dtype)
                for array in (weights, space.weights, found.blur, [*numbers[:0:-1], *numbers])
            )
        }
        self._exact = features.dtype

    def __call__(self, values: Floats) -> Floats:
        """W ``values`` (K, pixels of the whole grid), float32 or float64; 0 at pixels that do not count."""
        kind = np.promote_types(values.dtype, self._exact)
        if kind not in self._floats:
            self._floats[kind] = tuple(array.astype(kind) for array in self._floats[self._exact])
        values = np.ascontiguousarray(values, dtype=kind)
        # Fresh zeros cost as much as a pass over the pixels, so they are only asked for where they stay.
        result = np.empty_like(values) if len(self.pixels) == values.shape[1] else np.zeros_like(values)
        done = 0
        while done < len(values):
            width = width_for(len(values) - done)
            while width > WIDTHS[0] and self.places * self.nodes * width > _MOST_NUMBERS // 4:
                width = WIDTHS[WIDTHS.index(width) - 1]
            self._filter(values[done : done + width], width, result[done : done + width])
            done += width
        return result

    def _filter(self, values: Floats, width: int, result: Floats) -> None:
        weights, place_weights, neighbor_blur, numbers = self._floats[values.dtype]
        reach = self.grid.reach
        place_count = place_weights.shape[1] // self.place_rows.shape[1]  # 1 if there is but one place
        runs = self.rows.shape[1]
        constants = (width, self.colours.degree + 1, place_count)
        table = np.zeros((self.nodes * self.places, width), values.dtype)
        local = np.zeros((self.nodes, width), values.dtype)
        lane = np.zeros((int(np.diff(self.strips).max()), width), values.dtype)
        shared = (
            self.pixels, self.strips, self.strip_blocks, self.blocks, self.members, self.cells, self.rows, self.offsets,
            weights, self.touched, self.touched_nodes, self.place_rows, place_weights, self.places, local, lane,
        )  # fmt: skip
        _splat(*constants)(values, *shared, table)
        before = self.nodes
        for axis, length in enumerate(self.sizes):
            if self.places > 1:
                line = np.zeros((length + 2 * reach, width), values.dtype)
                after = math.prod(self.sizes[axis + 1 :])
                _blur_places(width, len(numbers))(table, before, length, after, numbers, line)
                before *= length
        blurred = np.empty_like(table)
        _blur_colours(width)(table, self.places, self.neighbor_pointers, self.neighbors, neighbor_blur, blurred)
        _slice(*constants, runs if runs <= _MOST_RUNS else 0)(blurred, *shared, result)
