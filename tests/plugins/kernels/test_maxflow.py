"""Minimum cuts against enumeration, another implementation, and the definition of the side that is returned."""

import itertools

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import breadth_first_order, maximum_flow

from regloss_plugins.kernels.maxflow import solve_min_cut


def rows(nodes: int, pairs: NDArray[np.int64], there: NDArray[np.float64], back: NDArray[np.float64]):
    """Compressed rows (first, head, sister, capacity) of arcs in both directions along pairs (E, 2)."""
    count = len(pairs)
    tail = np.concatenate([pairs[:, 0], pairs[:, 1]])
    tip = np.concatenate([pairs[:, 1], pairs[:, 0]])
    order = np.argsort(tail, kind="stable")
    place = np.empty_like(order)
    place[order] = np.arange(2 * count)
    sister = place[np.roll(np.arange(2 * count), count)[order]]
    first = np.concatenate([[0], np.cumsum(np.bincount(tail, minlength=nodes))])
    return first, tip[order], sister, np.concatenate([there, back])[order]


def cut_value(
    side: NDArray[np.bool_],
    pairs: NDArray[np.int64],
    there: NDArray[np.float64],
    back: NDArray[np.float64],
    terminal: NDArray[np.float64],
) -> float:
    tail, tip = side[pairs[:, 0]], side[pairs[:, 1]]
    return float(
        np.maximum(terminal, 0)[~side].sum()
        + np.maximum(-terminal, 0)[side].sum()
        + there[tail & ~tip].sum()
        + back[tip & ~tail].sum()
    )


def random_network(rng: np.random.Generator, nodes: int, edges: int, integers: bool):
    pairs = np.array([rng.choice(nodes, 2, replace=False) for _ in range(edges)], dtype=np.int64).reshape(-1, 2)

    def draw(count: int) -> NDArray[np.float64]:
        if integers:  # many ties and many zeros
            return rng.integers(0, 4, count).astype(float)
        return rng.random(count) * (rng.random(count) < 0.8)

    return pairs, draw(edges), draw(edges), draw(nodes) - draw(nodes)


@pytest.mark.parametrize("integers", [True, False])
def test_value_and_cut_agree_with_enumeration(integers: bool) -> None:
    rng = np.random.default_rng(0)
    for _ in range(60):
        nodes = int(rng.integers(2, 9))
        pairs, there, back, terminal = random_network(rng, nodes, int(rng.integers(0, 3 * nodes)), integers)
        flow, side = solve_min_cut(*rows(nodes, pairs, there, back), terminal)
        best = min(
            cut_value(np.array(sides), pairs, there, back, terminal)
            for sides in itertools.product([False, True], repeat=nodes)
        )
        assert flow == pytest.approx(best, abs=1e-12)
        assert cut_value(side, pairs, there, back, terminal) == pytest.approx(best, abs=1e-12)


def test_value_agrees_with_scipy_and_the_source_side_is_the_smallest() -> None:
    rng = np.random.default_rng(1)
    for _ in range(20):
        nodes = int(rng.integers(20, 80))
        pairs, there, back, terminal = random_network(rng, nodes, 3 * nodes, integers=True)
        flow, side = solve_min_cut(*rows(nodes, pairs, there, back), terminal)

        source, sink = nodes, nodes + 1
        dense = np.zeros((nodes + 2, nodes + 2), np.int32)
        np.add.at(dense, (pairs[:, 0], pairs[:, 1]), there.astype(np.int32))
        np.add.at(dense, (pairs[:, 1], pairs[:, 0]), back.astype(np.int32))
        dense[source, :nodes] = np.maximum(terminal, 0)
        dense[:nodes, sink] = np.maximum(-terminal, 0)
        reference = maximum_flow(csr_matrix(dense), source, sink)
        assert flow == reference.flow_value

        residual = csr_matrix(dense - reference.flow.toarray())
        reached = breadth_first_order(residual, source, return_predecessors=False)
        smallest = np.isin(np.arange(nodes), reached)
        np.testing.assert_array_equal(side, smallest)


def test_long_chain_needs_no_recursion() -> None:
    nodes = 50_000
    pairs = np.stack([np.arange(nodes - 1), np.arange(1, nodes)], axis=1)
    weight = np.full(nodes - 1, 2.0)
    weight[31_000] = 0.1 + 0.2  # the narrowest link; flow through it must leave exactly nothing
    terminal = np.zeros(nodes)
    terminal[0], terminal[-1] = 1.0, -1.0
    flow, side = solve_min_cut(*rows(nodes, pairs, weight, weight), terminal)
    assert flow == weight[31_000]
    np.testing.assert_array_equal(side, np.arange(nodes) <= 31_000)


def test_nodes_out_of_reach_are_at_the_sink() -> None:
    pairs = np.array([[0, 1], [2, 3]])
    flow, side = solve_min_cut(*rows(5, pairs, np.ones(2), np.ones(2)), np.array([3.0, 0.0, 0.0, 0.0, 0.0]))
    assert flow == 0.0
    assert side.tolist() == [True, True, False, False, False]


def test_no_nodes() -> None:
    flow, side = solve_min_cut([0], [], [], [], [])
    assert flow == 0.0
    assert side.shape == (0,)


def test_arguments_are_not_modified() -> None:
    rng = np.random.default_rng(2)
    pairs, there, back, terminal = random_network(rng, 20, 50, integers=False)
    arguments = (*(np.asarray(a, t) for a, t in zip(rows(20, pairs, there, back), "iiid", strict=True)), terminal)
    copies = [a.copy() for a in arguments]
    solve_min_cut(*arguments)
    for argument, copy in zip(arguments, copies, strict=True):
        np.testing.assert_array_equal(argument, copy)


@pytest.mark.parametrize("bad", [-1.0, np.nan, np.inf])
def test_bad_capacities_are_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="finite capacities >= 0"):
        solve_min_cut([0, 1, 2], [1, 0], [1, 0], [bad, 1.0], [5.0, -4.0])


def test_bad_terminals_and_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="finite terminal"):
        solve_min_cut([0, 1, 2], [1, 0], [1, 0], [1.0, 1.0], [np.nan, -4.0])
    with pytest.raises(ValueError, match=r"expected first \(3,\)"):
        solve_min_cut([0, 1], [1, 0], [1, 0], [1.0, 1.0], [1.0, -4.0])
