"""Rows of numbers added to rows of numbers: the inner loops of the lattice filters, as vector instructions.

A table is a C-contiguous array (rows, width) whose width is a constant of the compiled code. A row is then one vector
to the compiler, which splits it into what the processor has; written as loops, rows of so few numbers stay scalar,
three to four times slower.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

WIDTHS = (8, 24)
"""Row widths that code is compiled for."""


def width_for(count: int) -> int:
    """The least compiled width that holds ``count`` numbers; the largest, if none does.

    >>> [width_for(count) for count in (1, 8, 21, 100)]
    [8, 8, 24, 24]
    """
    return next((width for width in WIDTHS if width >= count), WIDTHS[-1])


class _Row:
    """``width`` numbers of row ``index`` of a table, from column ``start``, as one vector in memory."""

    def __init__(
        self, context: Any, builder: Any, kind: Any, table: Any, index: Any, width: int, start: Any = None
    ) -> None:
        array = context.make_array(kind)(context, builder, table)
        lanes = builder.extract_value(array.shape, 1)
        self.builder = builder
        self.element = context.get_data_type(kind.dtype)
        # Rows need not be aligned to the size of a vector, only to that of a number.
        self.align = kind.dtype.bitwidth // 8
        place = builder.mul(index, lanes)
        first = builder.gep(array.data, [place if start is None else builder.add(place, start)])
        self.pointer = builder.bitcast(first, ir.VectorType(self.element, width).as_pointer())

    def load(self) -> Any:
        return self.builder.load(self.pointer, align=self.align)

    def store(self, value: Any) -> None:
        self.builder.store(value, self.pointer, align=self.align)


def _fused(builder: Any, total: Any, row: Any, weight: Any, width: int) -> Any:
    """The sum total + weight * row, where the processor may round once instead of twice."""
    undefined = ir.Constant(row.type, ir.Undefined)
    first = builder.insert_element(undefined, weight, ir.Constant(ir.IntType(32), 0))
    everywhere = ir.Constant(ir.VectorType(ir.IntType(32), width), [0] * width)
    weights = builder.shuffle_vector(first, undefined, everywhere)
    return builder.fadd(total, builder.fmul(row, weights, flags=["contract"]), flags=["contract"])


def _weight(context: Any, builder: Any, kind: Any, weights: Any, start: Any, step: int, factor: Any) -> Any:
    array = context.make_array(kind)(context, builder, weights)
    place = builder.add(start, ir.Constant(start.type, step))
    return builder.fmul(builder.load(builder.gep(array.data, [place])), factor)


def _gather(
    typing: Any,
    target: Any,
    place: Any,
    source: Any,
    first: Any,
    weights: Any,
    start: Any,
    factor: Any,
    rows: Any,
    width: Any,
    fresh: Any,
) -> Any:
    """Sum weighted rows into one.

    target[place] = (0 if fresh else target[place])
                    + factor * sum over c < rows of weights[start + c] * source[first + c]

    ``rows``, ``width`` and ``fresh`` must be constants, ``factor`` of the weights' type; nothing is checked.
    """
    signature = types.void(
        target, types.intp, source, types.intp, weights, types.intp, weights.dtype, rows, width, fresh
    )

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        kinds, lanes = signature.args, width.literal_value
        into = _Row(context, builder, kinds[0], given[0], given[1], lanes)
        total = ir.Constant(ir.VectorType(into.element, lanes), None) if fresh.literal_value else into.load()
        for step in range(rows.literal_value):
            index = builder.add(given[3], ir.Constant(given[3].type, step))
            row = _Row(context, builder, kinds[2], given[2], index, lanes).load()
            weight = _weight(context, builder, kinds[4], given[4], given[5], step, given[6])
            total = _fused(builder, total, row, weight, lanes)
        into.store(total)
        return context.get_dummy_value()

    return signature, generate


class _Runs:
    """Rows of a table and their weights: firsts[cell, r] + offset + c and factors[r] * weights[start + c]."""

    def __init__(self, context: Any, builder: Any, kinds: Any, given: Any, runs: int, rows: int, width: int) -> None:
        # given: table, offset, firsts, cell, weights, start, factors
        self.context, self.builder, self.kinds, self.given = context, builder, kinds, given
        self.runs, self.rows, self.width = runs, rows, width

    def __iter__(self) -> Iterator[tuple[_Row, Any]]:
        builder, (table, offset, firsts, cell, weights, start, factors) = self.builder, self.given
        places = self.context.make_array(self.kinds[2])(self.context, builder, firsts)
        begin = builder.mul(cell, builder.extract_value(places.shape, 1))
        scales = self.context.make_array(self.kinds[6])(self.context, builder, factors)
        for run in range(self.runs):
            number = ir.Constant(begin.type, run)
            first = builder.sext(builder.load(builder.gep(places.data, [builder.add(begin, number)])), begin.type)
            factor = builder.load(builder.gep(scales.data, [number]))
            for step in range(self.rows):
                index = builder.add(builder.add(first, offset), ir.Constant(begin.type, step))
                row = _Row(self.context, builder, self.kinds[0], table, index, self.width)
                yield row, _weight(self.context, builder, self.kinds[4], weights, start, step, factor)


def _gather_runs(
    typing: Any,
    target: Any,
    place: Any,
    source: Any,
    offset: Any,
    firsts: Any,
    cell: Any,
    weights: Any,
    start: Any,
    factors: Any,
    runs: Any,
    rows: Any,
    width: Any,
    fresh: Any,
) -> Any:
    """Sum several runs of weighted rows into one, without going through memory in between.

    target[place] = (0 if fresh else target[place])
                    + sum over r < runs of factors[r]
                    * sum over c < rows of weights[start + c] * source[firsts[cell, r] + offset + c]

    ``runs``, ``rows``, ``width`` and ``fresh`` must be constants; nothing is checked.
    """
    intp = types.intp
    signature = types.void(target, intp, source, intp, firsts, intp, weights, intp, factors, runs, rows, width, fresh)

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        kinds, lanes = signature.args, width.literal_value
        into = _Row(context, builder, kinds[0], given[0], given[1], lanes)
        total = ir.Constant(ir.VectorType(into.element, lanes), None) if fresh.literal_value else into.load()
        for row, weight in _Runs(
            context, builder, kinds[2:], given[2:9], runs.literal_value, rows.literal_value, lanes
        ):
            total = _fused(builder, total, row.load(), weight, lanes)
        into.store(total)
        return context.get_dummy_value()

    return signature, generate


def _scatter_runs(
    typing: Any,
    target: Any,
    offset: Any,
    firsts: Any,
    cell: Any,
    weights: Any,
    start: Any,
    factors: Any,
    source: Any,
    place: Any,
    runs: Any,
    rows: Any,
    width: Any,
) -> Any:
    """The transpose of `gather_runs`.

    target[firsts[cell, r] + offset + c] += factors[r] * weights[start + c] * source[place] for all r < runs, c < rows
    """
    intp = types.intp
    signature = types.void(target, intp, firsts, intp, weights, intp, factors, source, intp, runs, rows, width)

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        kinds, lanes = signature.args, width.literal_value
        value = _Row(context, builder, kinds[7], given[7], given[8], lanes).load()
        for row, weight in _Runs(context, builder, kinds, given[:7], runs.literal_value, rows.literal_value, lanes):
            row.store(_fused(builder, row.load(), value, weight, lanes))
        return context.get_dummy_value()

    return signature, generate


def _transpose(
    typing: Any, target: Any, row: Any, column: Any, source: Any, source_row: Any, source_column: Any, size: Any
) -> Any:
    """target[row + j, column + i] = source[source_row + i, source_column + j] for i, j < size, a constant power of two.

    Unlike `gather` it takes tables of any number of columns.
    """
    signature = types.void(target, types.intp, types.intp, source, types.intp, types.intp, size)

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        kinds, lanes = signature.args, size.literal_value
        mask = ir.VectorType(ir.IntType(32), lanes)

        def at(kind: Any, table: Any, first: Any, step: int, start: Any) -> _Row:
            return _Row(context, builder, kind, table, builder.add(first, ir.Constant(first.type, step)), lanes, start)

        rows = [at(kinds[3], given[3], given[4], i, given[5]).load() for i in range(lanes)]
        half = lanes // 2
        while half:  # swap the off-diagonal quarters of blocks of ever smaller size
            for i in (i for i in range(lanes) if not i & half):
                low, high = rows[i], rows[i | half]
                kept = [j if not j & half else lanes + (j ^ half) for j in range(lanes)]
                moved = [j | half if not j & half else lanes + j for j in range(lanes)]
                rows[i] = builder.shuffle_vector(low, high, ir.Constant(mask, kept))
                rows[i | half] = builder.shuffle_vector(low, high, ir.Constant(mask, moved))
            half //= 2
        for j in range(lanes):
            at(kinds[0], given[0], given[1], j, given[2]).store(rows[j])
        return context.get_dummy_value()

    return signature, generate


# Their first parameter is numba's own, which its type stubs do not know.
gather: Any = intrinsic(prefer_literal=True)(_gather)
gather_runs: Any = intrinsic(prefer_literal=True)(_gather_runs)
scatter_runs: Any = intrinsic(prefer_literal=True)(_scatter_runs)
transpose: Any = intrinsic(prefer_literal=True)(_transpose)
