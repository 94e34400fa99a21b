"""Weighted differences along the edges of a graph, and their adjoint; arrays in, arrays out, no autograd."""

from __future__ import annotations

from typing import Any

from regloss_plugins.kernels.compiling import kernel


@kernel()
def differences(first: Any, second: Any, weights: Any, values: Any, sign: int, out: Any) -> None:
    """out[k, e] = weights[e] * (values[k, second[e]] + sign * values[k, first[e]]).

    Args:
        first: (E,) int64 pixels; ``second`` likewise.
        second: the other ends.
        weights: (E,).
        values: (K, N).
        sign: -1 for differences, 1 for sums.
        out: (K, E), overwritten.
    """
    for k in range(values.shape[0]):
        row, result = values[k], out[k]
        for e in range(len(weights)):
            result[e] = weights[e] * (row[second[e]] + sign * row[first[e]])


@kernel()
def scatter(first: Any, second: Any, weights: Any, flows: Any, sign: int, out: Any) -> None:
    """Add weights[e] * flows[k, e] to out[k, second[e]], and ``sign`` times it to out[k, first[e]].

    Args:
        first: (E,) int64 pixels; ``second`` likewise.
        second: the other ends.
        weights: (E,).
        flows: (K, E).
        sign: -1 for the adjoint of differences, 1 for that of sums.
        out: (K, N), added to.
    """
    for k in range(flows.shape[0]):
        row, result = flows[k], out[k]
        for e in range(len(weights)):
            flow = weights[e] * row[e]
            result[second[e]] += flow
            result[first[e]] += sign * flow
