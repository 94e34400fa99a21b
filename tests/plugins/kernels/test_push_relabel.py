"""Minimum cuts of grids by waves of push-relabel, against enumeration, PyMaxflow and the cuts of general graphs."""

import itertools
from typing import Any

import numpy as np
import pytest
from numba import njit
from numpy.typing import NDArray

from regloss_plugins.kernels.maxflow import solve_min_cut
from regloss_plugins.kernels.push_relabel import (
    REACHED,
    arc_steps,
    mask_type,
    new_network,
    new_scratch,
    push_all,
    solve_grid_cut,
    start_among,
)

FOUR = [[0, 1], [1, 0]]
EIGHT = [[0, 1], [1, -1], [1, 0], [1, 1]]
TWENTY_SIX = [list(o) for o in itertools.product([-1, 0, 1], repeat=3) if o > (0, 0, 0)]


def edge_list(offsets: Any, capacities: NDArray[np.float64]) -> list[tuple[int, int, float]]:
    """Edges between flat indices with their capacities, by plain loops."""
    shape = capacities.shape[1:]
    edges = []
    for n, offset in enumerate(offsets):
        for index in np.ndindex(shape):
            partner = tuple(np.add(index, offset))
            if all(0 <= i < size for i, size in zip(partner, shape, strict=True)):
                ends = np.ravel_multi_index(index, shape), np.ravel_multi_index(partner, shape)
                edges.append((int(ends[0]), int(ends[1]), float(capacities[(n, *index)])))
    return edges


def cut_of(side: Any, terminal: Any, edges: list[tuple[int, int, float]]) -> Any:
    """Capacity of cuts (..., N) from the definition."""
    total = np.where(side, np.maximum(-terminal, 0), np.maximum(terminal, 0)).sum(-1)
    for u, v, capacity in edges:
        total = total + capacity * (side[..., u] != side[..., v])
    return total


@pytest.mark.parametrize(
    ("shape", "offsets"),
    [((10,), [[1], [3]]), ((3, 4), EIGHT), ((2, 5), FOUR), ((2, 2, 3), TWENTY_SIX), ((1, 9), EIGHT), ((1, 1), EIGHT)],
)
def test_against_enumeration(shape: tuple[int, ...], offsets: Any) -> None:
    random = np.random.default_rng(0)
    nodes = int(np.prod(shape))
    sides = np.array(list(itertools.product([False, True], repeat=nodes)))
    for trial in range(30):
        # Small integers have many ties, so that the smallest source side differs from others.
        whole = trial % 2 == 0
        terminal = random.integers(-3, 4, shape) if whole else random.normal(size=shape)
        capacities = random.integers(0, 3, (len(offsets), *shape)) if whole else random.random((len(offsets), *shape))
        flow, source_side = solve_grid_cut(terminal, offsets, capacities)
        cuts = cut_of(sides, terminal.ravel(), edge_list(offsets, capacities))
        assert flow == pytest.approx(cuts.min(), abs=1e-12)
        minimal = sides[cuts <= cuts.min() + 1e-12]
        np.testing.assert_array_equal(source_side.ravel(), minimal.all(0))  # what all minimum cuts have in common


def hard_case(shape: tuple[int, int]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Strong edges between regions of an image, faint noisy terminals, a few strong ones: long ways for much flow."""
    random = np.random.default_rng(1)
    y, x = np.mgrid[: shape[0], : shape[1]]
    image = ((x // 17 + y // 13) % 3) / 3 + 0.05 * random.normal(size=shape)
    capacities = np.empty((4, *shape))
    for n, (dy, dx) in enumerate(EIGHT):
        difference = image - np.roll(image, (-dy, -dx), (0, 1))
        capacities[n] = 25 * np.exp(-(difference**2) / (2 * 0.1**2)) / np.hypot(dy, dx)
    terminal = 0.05 * random.normal(size=shape)
    terminal[3:6, 3:6], terminal[-6:-3, -6:-3] = 50.0, -50.0
    return terminal, capacities


def test_against_other_solvers_where_flow_goes_far() -> None:
    terminal, capacities = hard_case((60, 80))
    flow, source_side = solve_grid_cut(terminal, EIGHT, capacities)
    edges = edge_list(EIGHT, capacities)
    assert cut_of(source_side.ravel(), terminal.ravel(), edges) == pytest.approx(flow, rel=1e-10)
    assert source_side.any()
    assert not source_side.all()

    # The same graph in compressed rows, for our solver for general graphs
    arcs = sorted(
        [(u, v, c, e) for e, (u, v, c) in enumerate(edges)] + [(v, u, c, e) for e, (u, v, c) in enumerate(edges)]
    )
    first = np.searchsorted([u for u, *_ in arcs], np.arange(terminal.size + 1))
    of_edge: dict[int, list[int]] = {}
    for a, (*_, e) in enumerate(arcs):
        of_edge.setdefault(e, []).append(a)
    sister = np.empty(len(arcs), np.int64)
    for a, b in of_edge.values():
        sister[a], sister[b] = b, a
    reference, reference_side = solve_min_cut(
        first, [v for _, v, *_ in arcs], sister, [c for _, _, c, _ in arcs], terminal.ravel()
    )
    assert flow == pytest.approx(reference, rel=1e-10)
    np.testing.assert_array_equal(source_side.ravel(), reference_side)

    maxflow = pytest.importorskip("maxflow")
    graph = maxflow.Graph[float](terminal.size, len(edges))
    nodes = graph.add_nodes(terminal.size)
    for u, v, capacity in edges:
        graph.add_edge(nodes[u], nodes[v], capacity, capacity)
    for node, value in zip(nodes, terminal.ravel(), strict=True):
        graph.add_tedge(node, max(value, 0.0), max(-value, 0.0))
    assert flow == pytest.approx(graph.maxflow(), rel=1e-10)


def test_a_long_row_with_its_sink_at_the_end() -> None:
    """Distances far above what a node may rise between two searches."""
    terminal = np.full(3000, 1e-3)
    terminal[-1] = -10.0
    flow, source_side = solve_grid_cut(terminal, [[1]], np.full((1, 3000), 2.0))
    assert flow == pytest.approx(2.0, rel=1e-12)
    assert source_side[:-1].all()
    assert not source_side[-1]
    flow, source_side = solve_grid_cut(terminal, [[1]], np.full((1, 3000), 4.0))
    assert flow == pytest.approx(2.999, rel=1e-12)
    assert not source_side.any()


def test_capacities_of_very_different_size() -> None:
    flow, source_side = solve_grid_cut([1e12, 0.0, 0.0, 3e-30, -1e-30], [[1]], [[1e12, 1e-30, 1e12, 1e-30, np.nan]])
    # From the right: 1e-30 fits into the sink, whoever sends it.
    assert flow == pytest.approx(1e-30, rel=1e-12, abs=0.0)
    assert source_side.tolist() == [True, True, True, True, False]


@pytest.mark.parametrize("terminal", [np.zeros((4, 5)), np.ones((4, 5)), -np.ones((4, 5))])
def test_one_terminal_or_none(terminal: NDArray[np.float64]) -> None:
    flow, source_side = solve_grid_cut(terminal, EIGHT, np.ones((4, 4, 5)))
    assert flow == 0.0
    np.testing.assert_array_equal(source_side, terminal > 0)


def test_arguments_are_not_modified() -> None:
    terminal, capacities = hard_case((12, 14))
    given = terminal.copy(), capacities.copy()
    solve_grid_cut(terminal, EIGHT, capacities)
    np.testing.assert_array_equal(terminal, given[0])
    np.testing.assert_array_equal(capacities, given[1])


@pytest.mark.parametrize("bad", [-1.0, np.nan, np.inf])
def test_bad_capacities_are_refused_only_where_they_count(bad: float) -> None:
    terminal, capacities = np.ones((3, 3)), np.ones((2, 3, 3))
    capacities[0, :, -1] = bad  # there is no partner
    solve_grid_cut(terminal, FOUR, capacities)
    capacities[0, 1, 1] = bad
    with pytest.raises(ValueError, match="finite capacities >= 0"):
        solve_grid_cut(terminal, FOUR, capacities)


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="finite terminal capacities"):
        solve_grid_cut([1.0, np.inf], [[1]], [[1.0, 1.0]])
    with pytest.raises(ValueError, match=r"offsets \(n, 1\) and capacities \(n, 2\)"):
        solve_grid_cut([1.0, 2.0], [[1]], [[1.0]])
    with pytest.raises(ValueError, match="at most 16 offsets, got 17"):
        solve_grid_cut(np.ones(20), [[k] for k in range(1, 18)], np.ones((17, 20)))


@njit
def cut_among(network, scratch, nodes):  # type: ignore[no-untyped-def]
    count = start_among(network, scratch, nodes, len(nodes))
    return push_all(network, scratch, count, 4 * len(scratch.seen))


def test_a_cut_among_some_nodes_is_that_of_their_grid() -> None:
    """What other nodes hold is neither looked at nor changed."""
    shape, rows = (20, 30), 4
    random = np.random.default_rng(2)
    terminal, capacities = random.normal(size=shape), random.random((len(FOUR), *shape))
    step, bit = arc_steps(np.array(FOUR), shape), (1 << np.arange(4)).astype(mask_type(4))
    weight = np.zeros((20, 30, 4))
    weight[:, :-1, 0] = weight[:, 1:, 3] = capacities[0, :, :-1]
    weight[:-1, :, 1] = weight[1:, :, 2] = capacities[1, :-1]
    weight[rows - 1, :, 1] = weight[rows, :, 2] = 0  # the first rows are on their own
    weight = weight.reshape(-1, 4)
    arcs = ((weight > 0) * bit).sum(1, dtype=bit.dtype)
    network = new_network(step, bit, weight, np.zeros(600, np.int32), arcs, np.empty(weight.shape))
    network.excess[:] = terminal.ravel()
    scratch = new_scratch(600)
    size = cut_among(network, scratch, np.arange(30 * rows, dtype=np.uint32))
    _, expected = solve_grid_cut(terminal[:rows], FOUR, capacities[:, :rows])
    np.testing.assert_array_equal((scratch.seen == REACHED)[: 30 * rows].reshape(rows, 30), expected)
    assert sorted(scratch.region[:size].tolist()) == np.flatnonzero(expected.ravel()).tolist()
    np.testing.assert_array_equal(network.excess[30 * rows :], terminal.ravel()[30 * rows :])
