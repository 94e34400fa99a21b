"""Gaussian filtering of one image by a lattice of splines: arrays in, arrays out.

    W_pq ~ exp(-|x_p - x_q|^2 / (2 sigma^2) - |f_p - f_q|^2 / 2),      W = D A^T G A D

for pixels at places x on a grid with features f (colours over their bandwidths). A spreads a pixel over the nodes of a
lattice of ``step`` bandwidths in every axis by B-splines, G blurs the nodes along every axis with 2 * reach + 1
numbers, A^T reads the pixels' values off, and the diagonal D makes W_pp = 1, as it is for the Gaussian. So W is
symmetric, its entries are not negative, and since G is, it is positive semidefinite.

D removes the larger part of the error: what splines do to a point depends on where it lies between the nodes, mostly by
a factor. The numbers in G are those for which W of points on a line is nearest to the Gaussian, with D in place.

The nodes are pairs of a place on a coarse spatial grid and a colour, those that some pixel touches. While the blur runs
over places, nodes within its reach are held too, so that W is what it would be with all places of every colour. Pixels
of a small block share the place of its centre, and those of them whose colours differ by a fraction of a bandwidth
share a colour too: they are one point. Only points pay for the (degree + 1)^channels nodes of the colour axes, and at
coarse accuracy a photograph has a third as many of them as pixels. Compared with the permutohedral lattice (Adams,
Baek, Davis, "Fast high-dimensional filtering using the permutohedral lattice", 2010), nothing is lost where the blur
crosses cells that no pixel touches, and colours and places are looked up instead of hashed; in return the cost grows
exponentially with the channels.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from functools import lru_cache, reduce
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from regloss_plugins.kernels.compiling import helper, kernel
from regloss_plugins.kernels.lattice_rows import WIDTHS, gather, gather_runs, scatter_runs, transpose, width_for
from regloss_plugins.kernels.lattice_splines import (
    MOST_NUMBERS,
    Splines,
    blur,
    check_cells,
    check_keys,
    check_nodes,
    spline_diagonal,
    spline_line,
    spline_weights,
)

Floats = NDArray[Any]


# A dense array over all colours is quicker than sorting, as long as it fits into memory easily.
_DENSE_COLOURS = 2**24
# Code for so many runs of nodes per pixel is written out; 16 are those of cubic splines of three channels.
_MOST_RUNS = 16


class _Colours(NamedTuple):
    """C colours as nodes of a lattice: U different cells, M nodes."""

    cell: NDArray[np.int64]  # (C,) which cell a colour lies in
    rows: NDArray[np.int32]  # (U, R) first of degree + 1 consecutive nodes, for each combination of the other axes
    offsets: NDArray[np.int64]  # (R, axes - 1) that combination
    weights: Floats  # (C, axes, degree + 1)
    pointers: NDArray[np.int64]  # (M + 1,) where each node's neighbours begin
    neighbors: NDArray[np.int32]
    blur: Floats  # one number for each neighbour


class _Places(NamedTuple):
    """Blocks of pixels as nodes of a spatial grid: T blocks, S nodes."""

    block: NDArray[np.int64]  # (N,) which block a pixel lies in
    across: int  # blocks side by side along the last axis, which form a strip
    rows: NDArray[np.int32]  # (T, R) first of consecutive nodes
    factors: Floats  # (T, R) weights along all axes but the last
    weights: Floats  # (T, number of consecutive nodes) along the last
    diagonal: Floats  # (T,) b^T G b
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
    first, weights = (
        part.numpy() for part in spline_weights(torch.from_numpy(features / splines.step), splines.degree)
    )
    first -= first.min(0) - reach  # a margin, so that neighbours of nodes have keys of their own
    size = first.max(0) + count + reach
    bound = math.prod(int(length) for length in size)
    strides = np.array([math.prod(int(length) for length in size[axis + 1 :]) for axis in range(axes)])
    check_keys(bound, axes)
    key = first @ strides
    cells = _unique(key, bound)
    check_cells(len(cells), axes, count)
    offsets = (
        np.array(list(itertools.product(range(count), repeat=axes - 1)), dtype=np.int64).reshape(-1, axes - 1)
        if axes > 1
        else np.zeros((1, 0), np.int64)
    )
    firsts = cells[:, None] + (offsets @ strides[:-1])[None, :]
    nodes = _unique((firsts[:, :, None] + np.arange(count)).ravel(), bound)
    place = _lookup(nodes, bound)
    # Keys that follow each other along the last axis are all nodes, hence numbered one after the other.
    rows = place(firsts.ravel()).reshape(firsts.shape).astype(np.int32)

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


def _places(places: NDArray[np.int64], sigma: Sequence[float], splines: Splines) -> _Places:
    """Blocks of pixels and their nodes along every axis; with infinite ``sigma`` there is but one node."""
    count, pixels = splines.degree + 1, len(places)
    if math.isinf(sigma[0]):
        return _Places(
            np.zeros(pixels, np.int64),
            1,
            np.zeros((1, 1), np.int32),
            np.ones((1, 1)),
            np.ones((1, 1)),
            np.ones(1),
            (1,),
        )
    low = [int(column.min()) for column in places.T]
    block, sizes, firsts, weights, diagonals = np.zeros(pixels, np.int64), [], [], [], []
    for axis in range(places.shape[1]):
        one = spline_line(int(places[:, axis].max() - low[axis]) + 1, sigma[axis], splines)
        block = block * len(one.first) + (places[:, axis] - low[axis]) // one.length
        sizes.append(one.nodes)
        firsts.append(one.first.numpy())
        weights.append(one.weights.numpy())
        diagonals.append(one.diagonal.numpy())
    # Everything below is a product over the axes, the last of them changing fastest.
    strides = [math.prod(sizes[axis + 1 :]) for axis in range(len(sizes))]
    start = reduce(np.add.outer, [first * stride for first, stride in zip(firsts, strides, strict=True)]).ravel()
    combinations = itertools.product(range(count), repeat=len(sizes) - 1)
    steps = np.array([sum(c * s for c, s in zip(given, strides[:-1], strict=True)) for given in combinations])
    factors = np.ones((1, 1))
    for weight in weights[:-1]:
        factors = np.einsum("as,bt->abst", factors, weight).reshape(len(factors) * len(weight), -1)
    return _Places(
        block=block,
        across=len(firsts[-1]),
        rows=(start[:, None] + steps[None, :]).astype(np.int32),
        factors=np.repeat(factors, len(weights[-1]), axis=0),
        weights=np.tile(weights[-1], (len(factors), 1)),
        diagonal=reduce(np.multiply.outer, diagonals).ravel(),
        sizes=tuple(sizes),
    )


def _pointers(numbers: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Where each of 0..count - 1 begins among the sorted ``numbers``: (count + 1,)."""
    return np.concatenate([[0], np.cumsum(np.bincount(numbers, minlength=count))]).astype(np.int64)


def _sorted_into(numbers: Any, count: int) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Where each of 0..count - 1 begins, (count + 1,), when ``numbers`` are sorted, and the order that sorts them."""
    pointers = _pointers(numbers, count)
    order = np.empty(len(numbers), np.int32)
    _put_in_order(numbers, pointers[:-1].copy(), order)
    return pointers, order


@kernel()
def _put_in_order(numbers: Any, free: Any, order: Any) -> None:
    for i in range(len(numbers)):
        number = numbers[i]
        order[free[number]] = i
        free[number] += 1


def _rounded(features: Floats, order: NDArray[np.int32], scale: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Features (N, F) times ``scale`` as integers from 0 on, (F, N) in the given order, and how many each axis has."""
    columns = np.ascontiguousarray(features.T)[:, order]
    result = np.rint(np.multiply(columns, scale, dtype=np.float64)).astype(np.int64)
    result -= result.min(1, keepdims=True)
    return result, result.max(1) + 1


def _points(
    pointers: NDArray[np.int64], members: NDArray[np.int32], keys: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int32]]:
    """Different keys among the members of each block: pointers (T + 1,), keys (P,), each pixel's point (N,)."""
    most = int(np.diff(pointers).max())
    # A hash table of its own for each block, small enough for the fastest memory; stamps save emptying it.
    size = max(4, 1 << (2 * most - 1).bit_length())
    stamp, slot = np.full(size, -1), np.empty(size, np.int64)
    begin, point, found = np.zeros(len(pointers), np.int64), np.empty(len(keys), np.int32), np.empty_like(keys)
    total = _find_points(pointers, members, keys, stamp, slot, begin, found, point)
    return begin, found[:total].copy(), point


@kernel()
def _find_points(
    pointers: Any, members: Any, keys: Any, stamp: Any, slot: Any, begin: Any, found: Any, point: Any
) -> int:
    total, last = 0, len(stamp) - 1
    for block in range(len(pointers) - 1):
        for index in range(pointers[block], pointers[block + 1]):
            pixel = members[index]
            key = keys[pixel]
            place = (key * 0x9E3779B1 >> 15) & last
            while stamp[place] == block and found[slot[place]] != key:
                place = (place + 1) & last
            if stamp[place] != block:
                stamp[place] = block
                slot[place] = total
                found[total] = key
                total += 1
            point[pixel] = slot[place]
        begin[block + 1] = total
    return total


def _touched(
    points: NDArray[np.int64], cells: NDArray[np.int32], rows: NDArray[np.int32], count: int, nodes: int
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Which colour nodes the points of each block touch: (T + 1,) pointers and the nodes."""
    blocks = len(points) - 1
    seen_cell, seen_node, begin = np.full(len(rows), -1), np.full(nodes, -1), np.zeros(blocks + 1, np.int64)
    # What is not written to costs no memory.
    found = np.empty(min(blocks * nodes, len(cells) * rows.shape[1] * count), np.int32)
    total = _find_touched(points, cells, rows, count, seen_cell, seen_node, begin, found)
    return begin, found[:total].copy()


@kernel()
def _find_touched(
    points: Any, cells: Any, rows: Any, count: int, seen_cell: Any, seen_node: Any, begin: Any, found: Any
) -> int:
    total = 0
    for block in range(len(points) - 1):
        for point in range(points[block], points[block + 1]):
            cell = cells[point]
            if seen_cell[cell] == block:
                continue
            seen_cell[cell] = block
            for r in range(rows.shape[1]):
                first = rows[cell, r]
                for node in range(first, first + count):
                    if seen_node[node] != block:
                        seen_node[node] = block
                        found[total] = node
                        total += 1
        begin[block + 1] = total
    return total


@kernel()
def _mark_places(touched: Any, nodes: Any, place_rows: Any, count: int, seen: Any) -> None:
    """Set ``seen`` (nodes, places) where the points touch a node."""
    for block in range(len(touched) - 1):
        for index in range(touched[block], touched[block + 1]):
            for r in range(place_rows.shape[1]):
                for place in range(place_rows[block, r], place_rows[block, r] + count):
                    seen[nodes[index], place] = True


def _spread(seen: NDArray[np.bool_], sizes: tuple[int, ...], reach: int) -> NDArray[np.bool_]:
    """``seen`` (M, places) and what lies within ``reach`` places along every axis."""
    spread = seen.reshape(-1, *sizes)
    for axis in range(1, spread.ndim):
        before = spread.swapaxes(1, axis)
        after = before.copy()
        for step in range(1, reach + 1):
            after[:, step:] |= before[:, :-step]
            after[:, :-step] |= before[:, step:]
        spread = after.swapaxes(1, axis)
    return spread.reshape(seen.shape)


def _numbered(mask: NDArray[np.bool_]) -> tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.int32]]:
    """Consecutive numbers where ``mask`` (M, places) holds, -1 elsewhere; pointers (M + 1,); and the places."""
    numbers, pointers = np.empty(mask.shape, np.int32), np.zeros(len(mask) + 1, np.int64)
    spots = np.empty(mask.size, np.int32)
    total = _number(mask, numbers, pointers, spots)
    return numbers, pointers, spots[:total].copy()


@kernel()
def _number(mask: Any, numbers: Any, pointers: Any, spots: Any) -> int:
    total = 0
    for i in range(len(mask)):
        for place in range(mask.shape[1]):
            numbers[i, place] = -1
            if mask[i, place]:
                numbers[i, place] = total
                spots[total] = place
                total += 1
        pointers[i + 1] = total
    return total


def _first_rows(
    numbers: NDArray[np.int32], touched: NDArray[np.int64], nodes: NDArray[np.int32], place_rows: NDArray[np.int32]
) -> NDArray[np.int32]:
    """The numbers of the first node of each run of places, for each node that a block touches: (touched, R)."""
    rows = np.empty((len(nodes), place_rows.shape[1]), np.int32)
    _find_rows(numbers, touched, nodes, place_rows, rows)
    return rows


@kernel()
def _find_rows(numbers: Any, touched: Any, nodes: Any, place_rows: Any, rows: Any) -> None:
    for block in range(len(touched) - 1):
        for index in range(touched[block], touched[block + 1]):
            for r in range(place_rows.shape[1]):
                rows[index, r] = numbers[nodes[index], place_rows[block, r]]


@helper(forceinline=True)
def _consecutive(pixels: Any, i: int, end: int) -> int:
    """How many pixels from ``i`` on stand one after the other, in steps that suit tiles: 64, 8 or 1."""
    if i + 64 <= end and pixels[i + 63] - pixels[i] == 63:
        return 64
    return 8 if i + 8 <= end and pixels[i + 7] - pixels[i] == 7 else 1


@helper()
def _load(values: Any, pixels: Any, begin: int, end: int, strip_rows: Any) -> None:
    """strip_rows[i - begin, k] = values[k, pixels[i]], by tiles where pixels follow each other."""
    channels = len(values)
    i = begin
    while i < end:
        run = _consecutive(pixels, i, end)
        if run == 1:
            for k in range(channels):
                strip_rows[i - begin, k] = values[k, pixels[i]]
            i += 1
            continue
        k = 0
        while k + 8 <= channels:
            for j in range(i, i + run, 8):
                transpose(strip_rows, j - begin, k, values, k, pixels[j], 8)
            k += 8
        if k + 4 <= channels:
            for j in range(i, i + run, 4):
                transpose(strip_rows, j - begin, k, values, k, pixels[j], 4)
            k += 4
        for rest in range(k, channels):
            for j in range(i, i + run):
                strip_rows[j - begin, rest] = values[rest, pixels[j]]
        i += run


@helper()
def _store(strip_rows: Any, pixels: Any, begin: int, end: int, values: Any) -> None:
    """values[k, pixels[i]] = strip_rows[i - begin, k]."""
    channels = len(values)
    i = begin
    while i < end:
        run = _consecutive(pixels, i, end)
        if run == 1:
            for k in range(channels):
                values[k, pixels[i]] = strip_rows[i - begin, k]
            i += 1
            continue
        k = 0
        while k + 8 <= channels:
            for j in range(i, i + run, 8):
                transpose(values, k, pixels[j], strip_rows, j - begin, k, 8)
            k += 8
        if k + 4 <= channels:
            for j in range(i, i + run, 4):
                transpose(values, k, pixels[j], strip_rows, j - begin, k, 4)
            k += 4
        for rest in range(k, channels):
            for j in range(i, i + run):
                values[rest, pixels[j]] = strip_rows[j - begin, rest]
        i += run


@helper()
def _factors(scale: Any, weights: Any, colour: Any, offsets: Any, factors: Any) -> Any:
    """``scale`` times a colour's weights on all axes but the last, run by run; returns where the last one's begin."""
    axes = weights.shape[1]
    for r in range(len(factors)):
        factors[r] = scale
        for axis in range(axes - 1):
            factors[r] *= weights[colour, axis, offsets[r, axis]]
    return (colour * axes + axes - 1) * weights.shape[2]


# Each pass is compiled once for the numbers that must be constants in it, and kept on disk.


@lru_cache
def _splat(width: int, count: int, runs: int, place_count: int, place_runs: int) -> Callable[..., None]:
    """A: from pixels to points, from these to the nodes of their colours within the block, and then to those of places.

    Args:
        width: channels in a row.
        count: nodes along a colour axis.
        runs: runs of consecutive colour nodes for each point; 0 = any number.
        place_count: nodes along the last spatial axis.
        place_runs: runs of consecutive places for each block.
    """
    alone = max(runs, 1)

    @kernel()
    def splat(
        values: Any, pixels: Any, strips: Any, strip_blocks: Any, blocks: Any, members: Any, point: Any, points: Any,
        scale: Any, colours: Any, cells: Any, firsts: Any, offsets: Any, weights: Any, flat: Any, touched: Any,
        nodes: Any, place_factors: Any, place_flat: Any, one: Any, factors: Any, local: Any, sums: Any,
        strip_rows: Any, place_rows: Any, table: Any,
    ) -> None:  # fmt: skip
        for strip in range(len(strips) - 1):
            begin = strips[strip]
            _load(values, pixels, begin, strips[strip + 1], strip_rows)
            for block in range(strip_blocks[strip], strip_blocks[strip + 1]):
                before = points[block]
                for member in range(blocks[block], blocks[block + 1]):
                    i = members[member]
                    gather(sums, point[i] - before, strip_rows, i - begin, one, 0, one[0], 1, width, 0)
                for p in range(before, points[block + 1]):
                    start = _factors(scale[p], weights, colours[p], offsets, factors)
                    first = cells[colours[p]] * (len(factors) // alone)
                    for r in range(0, len(factors), alone):
                        chosen = factors[r:]
                        scatter_runs(
                            local,
                            0,
                            firsts,
                            first + r // alone,
                            flat,
                            start,
                            chosen,
                            sums,
                            p - before,
                            alone,
                            count,
                            width,
                        )
                    for k in range(width):
                        sums[p - before, k] = 0
                for index in range(touched[block], touched[block + 1]):
                    node = nodes[index]
                    scatter_runs(
                        table, 0, place_rows, index, place_flat, block * place_count, place_factors[block], local, node,
                        place_runs, place_count, width,
                    )  # fmt: skip
                    for k in range(width):
                        local[node, k] = 0

    result: Callable[..., None] = splat
    return result


@lru_cache
def _blur_places(width: int, taps: int) -> Callable[..., None]:
    """G along one spatial axis, in place; ``held`` numbers the nodes in rows of ``table``."""
    reach = taps // 2

    @kernel()
    def blur_places(
        table: Any, held: Any, before: int, length: int, after: int, numbers: Any, line: Any
    ) -> None:  # fmt: skip
        one = numbers.dtype.type(1)
        for outer in range(before):
            for inner in range(after):
                # The line has ``reach`` rows of zeros at both ends, and between places that are not held.
                first, last = length, -1
                for i in range(length):
                    row = held[(outer * length + i) * after + inner]
                    if row >= 0:
                        first, last = min(first, i), i
                        for k in range(width):
                            line[reach + i, k] = table[row, k]
                for i in range(first, last + 1):
                    row = held[(outer * length + i) * after + inner]
                    if row >= 0:
                        gather(table, row, line, i, numbers, 0, one, taps, width, 1)
                for i in range(first, last + 1):
                    for k in range(width):
                        line[reach + i, k] = 0

    result: Callable[..., None] = blur_places
    return result


@lru_cache
def _blur_colours(width: int) -> Callable[..., None]:
    """G along all colour axes at once, for the nodes that are touched: ``spots`` are their places, colour by colour."""

    @kernel()
    def blur_colours(
        table: Any, held: Any, spots: Any, spot_pointers: Any, pointers: Any, neighbors: Any, numbers: Any, result: Any
    ) -> None:  # fmt: skip
        one = numbers.dtype.type(1)
        places = len(held) // (len(pointers) - 1)
        for node in range(len(pointers) - 1):
            for index in range(pointers[node], pointers[node + 1]):
                start = neighbors[index] * places
                for row in range(spot_pointers[node], spot_pointers[node + 1]):
                    other = held[start + spots[row]]
                    if other >= 0:
                        gather(result, row, table, other, numbers, index, one, 1, width, 0)

    compiled: Callable[..., None] = blur_colours
    return compiled


@lru_cache
def _slice(width: int, count: int, runs: int, place_count: int, place_runs: int) -> Callable[..., None]:
    """The transpose of A; arguments as for `_splat`."""
    alone = max(runs, 1)

    @kernel()
    def slice_(
        table: Any, pixels: Any, strips: Any, strip_blocks: Any, blocks: Any, members: Any, point: Any, points: Any,
        scale: Any, colours: Any, cells: Any, firsts: Any, offsets: Any, weights: Any, flat: Any, touched: Any,
        nodes: Any, place_factors: Any, place_flat: Any, one: Any, factors: Any, local: Any, sums: Any,
        strip_rows: Any, place_rows: Any, values: Any,
    ) -> None:  # fmt: skip
        for strip in range(len(strips) - 1):
            begin = strips[strip]
            for block in range(strip_blocks[strip], strip_blocks[strip + 1]):
                before = points[block]
                for index in range(touched[block], touched[block + 1]):
                    node = nodes[index]
                    gather_runs(
                        local, node, table, 0, place_rows, index, place_flat, block * place_count,
                        place_factors[block], place_runs, place_count, width, 1,
                    )  # fmt: skip
                for p in range(before, points[block + 1]):
                    start = _factors(scale[p], weights, colours[p], offsets, factors)
                    first = cells[colours[p]] * (len(factors) // alone)
                    gather_runs(sums, p - before, local, 0, firsts, first, flat, start, factors, alone, count, width, 1)
                    for r in range(alone, len(factors), alone):
                        chosen = factors[r:]
                        gather_runs(
                            sums, p - before, local, 0, firsts, first + r, flat, start, chosen, alone, count, width, 0
                        )
                for member in range(blocks[block], blocks[block + 1]):
                    i = members[member]
                    gather(strip_rows, i - begin, sums, point[i] - before, one, 0, one[0], 1, width, 1)
            _store(strip_rows, pixels, begin, strips[strip + 1], values)

    result: Callable[..., None] = slice_
    return result


class SplineLattice:
    """W of one image, ready to be applied to any number of channels.

    Args:
        features: (N, F) of the pixels that count, in bandwidths; float32 or float64, the precision of the lattice.
        places: (N, D) int64, where they lie on the grid.
        pixels: (N,) int64, where they stand in the arrays that are filtered.
        sigma: bandwidth of the places along each axis, in pixels; all inf = they do not matter.
        colours: how the features' axes are approximated.
        grid: how the spatial axes are.

    Raises:
        LatticeTooLarge: the table of nodes would not fit into memory.
    """

    def __init__(
        self,
        features: Floats,
        places: NDArray[np.int64],
        pixels: NDArray[np.int64],
        sigma: Sequence[float],
        colours: Splines,
        grid: Splines,
    ) -> None:
        if features.shape[1] == 0:
            features = np.zeros((len(features), 1), features.dtype)
        self.colours, self.grid = colours, grid
        space = _places(places, sigma, grid)
        blocks = len(space.rows)
        # Pixels are kept in strips, one row of blocks each, and within a strip as they stand in memory.
        self.strips, order = _sorted_into(space.block // space.across, blocks // space.across)
        block = space.block[order]
        self.pixels = pixels[order].astype(np.int64)
        self.strip_blocks = np.arange(0, blocks + 1, space.across)
        self.blocks, self.members = _sorted_into(block, blocks)
        shared, sizes = _rounded(np.ascontiguousarray(features), order, colours.shares / colours.step)
        bound = math.prod(int(size) for size in sizes)
        check_keys(bound, len(sizes))
        strides = np.array([math.prod(int(size) for size in sizes[axis + 1 :]) for axis in range(len(sizes))])
        self.points, keys, self.point = _points(self.blocks, self.members, strides @ shared)
        different = _unique(keys, bound)
        chosen = _lookup(different, bound)(keys)
        found = _colours(np.stack(np.unravel_index(different, sizes), 1) * (colours.step / colours.shares), colours)
        self.sizes = space.sizes
        self.places = math.prod(space.sizes)
        self.nodes = len(found.pointers) - 1
        check_nodes(self.nodes, self.places, WIDTHS[0])
        self.chosen, self.cells = chosen.astype(np.int32), found.cell.astype(np.int32)
        self.rows, self.offsets = found.rows, found.offsets
        self.touched, self.touched_nodes = _touched(
            self.points, self.cells[chosen], found.rows, colours.degree + 1, self.nodes
        )
        seen = np.zeros((self.nodes, self.places), np.bool_)
        _mark_places(self.touched, self.touched_nodes, space.rows, space.weights.shape[1], seen)
        held, _, spots = _numbered(_spread(seen, space.sizes, grid.reach) if self.places > 1 else seen)
        numbers, self.spot_pointers, self.spots = _numbered(seen)
        self.held, self.held_count = held.ravel(), len(spots)
        self.held_rows = _first_rows(held, self.touched, self.touched_nodes, space.rows)
        self.seen_rows = _first_rows(numbers, self.touched, self.touched_nodes, space.rows)
        self.neighbor_pointers, self.neighbors = found.pointers, found.neighbors
        peaks = spline_diagonal(torch.from_numpy(found.weights), colours).numpy().prod(1)
        diagonal = peaks[chosen] * np.repeat(space.diagonal, np.diff(self.points))
        tap = blur(grid)
        self.scale = (1 / np.sqrt(diagonal)).astype(features.dtype)
        self.weights = np.ascontiguousarray(found.weights, dtype=features.dtype)
        others = (space.factors, space.weights, found.blur, [*tap[:0:-1], *tap])
        rest = (np.ascontiguousarray(array, dtype=features.dtype) for array in others)
        self._floats = {features.dtype: (self.scale, self.weights, *rest)}
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
            while width > WIDTHS[0] and self.held_count * width > MOST_NUMBERS // 4:
                width = WIDTHS[WIDTHS.index(width) - 1]
            self._filter(values[done : done + width], width, result[done : done + width])
            done += width
        return result

    def _filter(self, values: Floats, width: int, result: Floats) -> None:
        scale, weights, place_factors, place_weights, neighbor_blur, numbers = self._floats[values.dtype]
        reach = self.grid.reach
        runs = self.rows.shape[1] if self.rows.shape[1] <= _MOST_RUNS else 0
        constants = (width, self.colours.degree + 1, runs, place_weights.shape[1], place_factors.shape[1])
        table = np.zeros((self.held_count, width), values.dtype)
        local = np.zeros((self.nodes, width), values.dtype)
        sums = np.zeros((int(np.diff(self.points).max()), width), values.dtype)
        strip_rows = np.zeros((int(np.diff(self.strips).max()), width), values.dtype)
        shared = (
            self.pixels, self.strips, self.strip_blocks, self.blocks, self.members, self.point, self.points, scale,
            self.chosen, self.cells, self.rows.reshape(-1, max(runs, 1)), self.offsets, weights, weights.reshape(-1),
            self.touched, self.touched_nodes, place_factors, place_weights.reshape(-1), np.ones(1, values.dtype),
            np.empty(self.rows.shape[1], values.dtype), local, sums, strip_rows,
        )  # fmt: skip
        _splat(*constants)(values, *shared, self.held_rows, table)
        before = self.nodes
        for axis, length in enumerate(self.sizes):
            if self.places > 1:
                line = np.zeros((length + 2 * reach, width), values.dtype)
                after = math.prod(self.sizes[axis + 1 :])
                _blur_places(width, len(numbers))(table, self.held, before, length, after, numbers, line)
                before *= length
        blurred = np.zeros((len(self.spots), width), values.dtype)
        _blur_colours(width)(
            table,
            self.held,
            self.spots,
            self.spot_pointers,
            self.neighbor_pointers,
            self.neighbors,
            neighbor_blur,
            blurred,
        )
        _slice(*constants)(blurred, *shared, self.seen_rows, result)
