"""Geodesic distances on grids, against Dijkstra's algorithm."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.sparse import coo_array
from scipy.sparse.csgraph import dijkstra

from regloss_plugins.kernels.geodesics import path_lengths, sweep_distances

PLANE = np.array([(0, 0, -1), (0, -1, -1), (0, -1, 0), (0, -1, 1)])
SPACE = np.array([*PLANE.tolist(), *((-1, y, x) for y in (-1, 0, 1) for x in (-1, 0, 1))])
CASES = [((1, 15, 17), PLANE), ((5, 7, 6), SPACE), ((1, 1, 9), PLANE), ((4, 1, 1), SPACE), ((1, 9, 1), PLANE)]


def lengths_by_hand(values: Any, offsets: Any, squares: Any) -> Any:
    shape = values.shape[1:]
    found = np.full((len(offsets), *shape), np.inf)
    for n, offset in enumerate(offsets):
        for place in np.ndindex(shape):
            other = tuple(np.add(place, offset))
            if all(0 <= at < size for at, size in zip(other, shape, strict=True)):
                difference = values[(slice(None), *place)] - values[(slice(None), *other)]
                found[(n, *place)] = np.sqrt(squares[n] + (difference**2).sum())
    return found


def shortest(lengths: Any, offsets: Any, starts: Any) -> Any:
    shape = starts.shape
    index = np.arange(starts.size).reshape(shape)
    edges = [
        (index[place], index[tuple(np.add(place, offset))], lengths[(n, *place)])
        for n, offset in enumerate(offsets)
        for place in np.ndindex(shape)
        if np.isfinite(lengths[(n, *place)])
    ]
    first, second, weight = zip(*edges, strict=True)
    graph = coo_array((weight, (first, second)), shape=(starts.size, starts.size)).tocsr()
    return dijkstra(graph, directed=False, indices=np.flatnonzero(starts), min_only=True).reshape(shape)


@pytest.mark.parametrize(("shape", "offsets"), CASES)
@pytest.mark.parametrize("contrast", [0.0, 1.0, 30.0])
def test_shortest_paths(shape: tuple[int, ...], offsets: Any, contrast: float) -> None:
    """On noise, whose shortest paths wind the more the higher it is."""
    rng = np.random.default_rng(0)
    values = (contrast * rng.random((2, *shape))).astype(np.float32)
    squares = (offsets.astype(np.float32) ** 2).sum(1)
    lengths = np.empty((len(offsets), *shape), np.float32)
    path_lengths(values, offsets, squares, lengths)
    expected = lengths_by_hand(values, offsets, squares)
    np.testing.assert_allclose(lengths, expected, rtol=1e-6)
    starts = np.zeros(shape, bool)
    starts.ravel()[[1, -1]] = True
    distance = np.where(starts, 0, np.inf).astype(np.float32)
    sweep_distances(lengths, offsets, distance)
    np.testing.assert_allclose(distance, shortest(expected, offsets, starts), rtol=1e-5)


def test_a_spiral_needs_many_sweeps() -> None:
    """Walls between the turns, which cost more than the way around."""
    wall = np.zeros((1, 1, 21, 21), np.float32)
    wall[0, 0, 1::4, :-1] = wall[0, 0, 3::4, 1:] = 1e4
    lengths = np.empty((4, 1, 21, 21), np.float32)
    path_lengths(wall, PLANE, (PLANE.astype(np.float32) ** 2).sum(1), lengths)
    starts = np.zeros((1, 21, 21), bool)
    starts[0, 0, 0] = True
    distance = np.where(starts, 0, np.inf).astype(np.float32)
    sweep_distances(lengths, PLANE, distance)
    np.testing.assert_allclose(distance, shortest(lengths, PLANE, starts), rtol=1e-5)
    assert distance[0, 20, 20] > 150


def test_without_a_start_nothing_is_reached() -> None:
    lengths = np.ones((4, 1, 5, 5), np.float32)
    distance = np.full((1, 5, 5), np.inf, np.float32)
    sweep_distances(lengths, PLANE, distance)
    assert np.isinf(distance).all()
