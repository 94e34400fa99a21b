r"""Exact minimum s-t cuts by incremental breadth-first search.

Minimises, over the side ``x_v`` in {source, sink} of every node of a graph with arc capacities ``c >= 0``,

    sum_{v at the sink} max(t_v, 0)  +  sum_{v at the source} max(-t_v, 0)  +  sum_{arcs u->v, u source, v sink} c_uv

where ``t_v`` is one signed number a node: a capacity from the source (positive) or to the sink (negative).

Two breadth-first trees grow level by level, one along residual arcs from the nodes with excess, one against them from
the nodes with deficit. Where they touch, flow is pushed along the tree path; a node whose arc to its parent becomes
saturated is an orphan and is adopted by a residual neighbour one level below, or else moves up to the lowest level that
a residual neighbour offers, or else leaves the tree. Levels never fall, so the work is O(nodes^2 arcs) whatever the
capacities. Every push saturates its bottleneck to exactly 0.0 (x - x), so comparisons with zero need no tolerance.

Source: Goldberg, Hed, Kaplan, Tarjan and Werneck, "Maximum flows by incremental breadth-first search", ESA 2011; the
pair of search trees is that of Boykov and Kolmogorov, PAMI 2004.

Graphs are in compressed-row form: the arcs that leave node ``v`` are ``first[v] .. first[v + 1] - 1``; arc ``a`` ends
at ``head[a]``, and ``sister[a]`` is the arc of the opposite direction. Nodes and arcs are uint32: with unsigned indices
numba need not test for negative ones, which makes the whole a third faster.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .compiling import helper, kernel

__all__ = ["Graph", "Scratch", "min_cut", "new_scratch", "solve_min_cut"]

SOURCE, SINK = 1, -1  # the two trees; also the sign of a node's level
ROOT = 2**32 - 1  # parent of a node that still has excess or deficit
NONE = 2**32 - 2  # no parent: orphans and nodes in neither tree; the end of a linked list


class Graph(NamedTuple):
    """A flow network; the solver overwrites ``residual`` and ``excess``."""

    first: NDArray[np.uint32]  # (N + 1,) where the arcs of each node begin
    head: NDArray[np.uint32]  # (A,) node at the end of each arc
    sister: NDArray[np.uint32]  # (A,) the opposite arc
    residual: NDArray[np.float64]  # (A,) in: capacities; out: residual capacities
    excess: NDArray[np.float64]  # (N,) in: > 0 capacity from the source, < 0 to the sink; out: what is left


class Scratch(NamedTuple):
    """Memory of the solver, reusable over graphs with as many nodes; :func:`min_cut` leaves ``level`` behind."""

    level: NDArray[np.int32]  # (N,) distance to the tree's terminal; > 0 source tree, < 0 sink tree, 0 in neither
    parent: NDArray[np.uint32]  # (N,) arc from the node to its parent, ROOT or NONE
    current: NDArray[np.uint32]  # (N,) no earlier arc leads to a possible parent one level below
    bucket: NDArray[np.uint32]  # (N + 2,) first node of each level's list, in :func:`_adopt`
    next_node: NDArray[np.uint32]  # (N,) the lists' links
    lost: NDArray[np.uint32]  # (N,) nodes that lost their level
    offer: NDArray[np.int32]  # (N,) the level that such a node can have so far; 0 at all others
    queue: NDArray[np.uint32]  # (N,) such nodes, in the order in which they were offered the next level
    fronts: NDArray[np.uint32]  # (3, N) next fronts of the source and the sink tree, and the one being scanned
    counts: NDArray[np.int64]  # (2,) lengths of the next fronts
    waiting: NDArray[np.uint8]  # (N,) bit 0: node is in the source tree's next front; bit 1: in the sink tree's


def new_scratch(nodes: int) -> Scratch:
    """Memory for :func:`min_cut` on graphs with that many nodes (45 bytes a node)."""
    return Scratch(
        level=np.empty(nodes, np.int32),
        parent=np.empty(nodes, np.uint32),
        current=np.empty(nodes, np.uint32),
        bucket=np.full(nodes + 2, NONE, np.uint32),
        next_node=np.empty(nodes, np.uint32),
        lost=np.empty(nodes, np.uint32),
        offer=np.zeros(nodes, np.int32),
        queue=np.empty(nodes, np.uint32),
        fronts=np.empty((3, nodes), np.uint32),
        counts=np.zeros(2, np.int64),
        waiting=np.empty(nodes, np.uint8),
    )


# The helpers of min_cut each have one call site or are tiny; calls would cost as much as what they do.
@helper(forceinline=True)
def _row(side: int) -> int:
    """Row of ``fronts`` and ``counts``, and bit of ``waiting``, that belong to a tree."""
    return 0 if side == SOURCE else 1


@helper(forceinline=True)
def _enqueue(scratch: Scratch, side: int, v: int) -> None:
    """Put a node on the next front of a tree, once."""
    row = _row(side)
    bit = 1 << row
    if scratch.waiting[v] & bit == 0:
        scratch.waiting[v] |= bit
        scratch.fronts[row, scratch.counts[row]] = v
        scratch.counts[row] += 1


@helper(forceinline=True)
def _push(scratch: Scratch, level: int, v: int) -> None:
    """Put a node on the list of a level."""
    scratch.next_node[v] = scratch.bucket[level]
    scratch.bucket[level] = v


@helper(forceinline=True)
def _adopt(graph: Graph, scratch: Scratch, side: int, lowest: int, highest: int, limit: int) -> None:
    """Find parents for the orphans of one tree, whose levels are ``lowest .. highest``.

    A parent's level is at most ``limit``: nodes above have not been scanned, and will find what was dropped here when
    they are. A node is lost and settled at most once a call. (To move orphans up one at a time, each to the level above
    its lowest neighbour, would have a region that is cut off from the terminal count its way up to the limit.)
    """
    first, head, sister, residual, _ = graph
    tree, parent, offer, bucket = scratch.level, scratch.parent, scratch.offer, scratch.bucket
    lost, queue = scratch.lost, scratch.queue

    # By rising level, so that all nodes below are decided: a new parent one level below, or the subtree comes apart.
    lost_count = 0
    level = lowest
    while level <= highest:
        v = bucket[level]
        if v == NONE:
            level += 1
            continue
        bucket[level] = scratch.next_node[v]
        if level > 1:  # below level 1 there is only the terminal
            below = side * (level - 1)
            for a in range(scratch.current[v], first[v + 1]):
                if tree[head[a]] == below and residual[sister[a] if side == SOURCE else a] > 0.0:
                    parent[v] = a
                    scratch.current[v] = a
                    break
        if parent[v] == NONE:
            tree[v] = 0
            offer[v] = limit + 2
            lost[lost_count] = v
            lost_count += 1
            for a in range(first[v], first[v + 1]):
                u = head[a]
                if parent[u] == sister[a]:
                    parent[u] = NONE
                    _push(scratch, level + 1, u)
                    highest = max(highest, level + 1)

    # The level that the rest of the tree offers to each lost node,
    lowest, highest = limit + 2, 0
    for i in range(lost_count):
        v = lost[i]
        best = limit + 1
        for a in range(first[v], first[v + 1]):
            height = side * tree[head[a]]
            if 0 < height < best and residual[sister[a] if side == SOURCE else a] > 0.0:
                best = height
                parent[v] = a
        if best <= limit:
            offer[v] = best + 1
            _push(scratch, best + 1, v)
            lowest = min(lowest, best + 1)
            highest = max(highest, best + 1)

    # and a breadth-first search from these into the lost region.
    begin, end = 0, 0
    for level in range(lowest, limit + 2):
        if level > highest:
            break
        next_level = end
        while True:
            v = bucket[level]
            if v != NONE:
                bucket[level] = scratch.next_node[v]
            elif begin < next_level:
                v = queue[begin]
                begin += 1
            else:
                break
            if tree[v] != 0:  # settled at a lower level than it was first offered
                continue
            tree[v] = side * level
            offer[v] = 0
            scratch.current[v] = first[v]
            if level == limit + 1:
                _enqueue(scratch, side, v)
                continue
            for a in range(first[v], first[v + 1]):
                u = head[a]
                if offer[u] > level + 1 and residual[a if side == SOURCE else sister[a]] > 0.0:
                    offer[u] = level + 1
                    parent[u] = sister[a]
                    queue[end] = u
                    end += 1
                    highest = max(highest, level + 1)
    for i in range(lost_count):
        offer[lost[i]] = 0


@helper(forceinline=True)
def _augment(graph: Graph, scratch: Scratch, bridge: int, limits: tuple[int, int]) -> float:
    """Push what fits along the tree path through ``bridge``, an arc from the source tree to the sink tree."""
    _, head, sister, residual, excess = graph
    tree, parent = scratch.level, scratch.parent
    tail, tip = head[sister[bridge]], head[bridge]

    amount: float = residual[bridge]
    v = tail
    while parent[v] != ROOT:
        amount = min(amount, residual[sister[parent[v]]])
        v = head[parent[v]]
    amount = min(amount, excess[v])
    v = tip
    while parent[v] != ROOT:
        amount = min(amount, residual[parent[v]])
        v = head[parent[v]]
    amount = min(amount, -excess[v])

    residual[bridge] -= amount
    residual[sister[bridge]] += amount
    for side in (SOURCE, SINK):
        v = tail if side == SOURCE else tip
        lowest, highest = 0, 0  # levels of the orphans
        while parent[v] != ROOT:
            a = parent[v]
            inward = sister[a] if side == SOURCE else a
            residual[inward] -= amount
            residual[sister[inward]] += amount
            if residual[inward] == 0.0:
                lowest = side * tree[v]
                highest = max(highest, lowest)
                parent[v] = NONE
                _push(scratch, lowest, v)
            v = head[a]
        excess[v] -= side * amount
        if excess[v] == 0.0:
            lowest = 1
            highest = max(highest, lowest)
            parent[v] = NONE
            _push(scratch, lowest, v)
        if highest > 0:
            _adopt(graph, scratch, side, lowest, highest, limits[_row(side)])
    return amount


@helper(forceinline=True)
def _grow(graph: Graph, scratch: Scratch, side: int, height: int, limits: tuple[int, int]) -> float:
    """Scan a tree's nodes at level ``height``: free neighbours join above it, bridges to the other tree carry flow."""
    first, head, sister, residual, _ = graph
    tree = scratch.level
    row = _row(side)
    count = scratch.counts[row]
    # All marks are cleared before the scan: a node that leaves this front unscanned may join the next one.
    for i in range(count):
        v = scratch.fronts[row, i]
        scratch.fronts[2, i] = v
        scratch.waiting[v] &= ~(1 << row)
    scratch.counts[row] = 0

    flow = 0.0
    for i in range(count):
        v = scratch.fronts[2, i]
        for a in range(first[v], first[v + 1]):
            if tree[v] != side * height:
                break
            u = head[a]
            outward = a if side == SOURCE else sister[a]
            # A push can leave the bridge standing, take away v's level, or set u free.
            while side * tree[u] < 0 and residual[outward] > 0.0 and tree[v] == side * height:
                flow += _augment(graph, scratch, outward, limits)
            if tree[u] == 0 and residual[outward] > 0.0 and tree[v] == side * height:
                tree[u] = side * (height + 1)
                scratch.parent[u] = sister[a]
                scratch.current[u] = first[u]
                _enqueue(scratch, side, u)
    return flow


@helper(forceinline=True)
def _cancel(graph: Graph) -> float:
    """Push flow from nodes with excess to neighbours with deficit.

    Most paths of an easy problem are that short, and trees would be torn apart and rebuilt for each.
    """
    first, head, sister, residual, excess = graph
    flow = 0.0
    for v in range(len(excess)):
        if excess[v] <= 0.0:
            continue
        for a in range(first[v], first[v + 1]):
            u = head[a]
            if excess[u] < 0.0 and residual[a] > 0.0:
                amount = min(excess[v], residual[a], -excess[u])
                residual[a] -= amount
                residual[sister[a]] += amount
                excess[v] -= amount
                excess[u] += amount
                flow += amount
                if excess[v] == 0.0:
                    break
    return flow


@helper()
def min_cut(graph: Graph, scratch: Scratch) -> float:
    """Maximum flow through a graph, which is overwritten with the residual graph.

    Afterwards ``scratch.level[v] > 0`` exactly where node ``v`` can be reached from the source in the residual graph.
    That is the smallest source side of all minimum cuts: nodes that neither terminal reaches are at the sink.
    """
    nodes = len(graph.excess)
    flow = _cancel(graph)
    scratch.counts[:] = 0
    for v in range(nodes):
        excess = graph.excess[v]
        scratch.waiting[v] = 0
        scratch.current[v] = graph.first[v]
        if excess == 0.0:
            scratch.level[v] = 0
            scratch.parent[v] = NONE
        else:
            side = SOURCE if excess > 0.0 else SINK
            scratch.level[v] = side
            scratch.parent[v] = ROOT
            _enqueue(scratch, side, v)

    source_height, sink_height = 1, 1
    # A tree without a front is complete: its border is saturated. The source tree is completed even where the sink tree
    # came first, so that the answer is always the same one of several minimum cuts.
    # Otherwise the smaller front grows: an expansion often concerns few pixels, which then need not touch the others.
    while scratch.counts[0] > 0:
        if scratch.counts[1] == 0 or scratch.counts[0] <= scratch.counts[1]:
            side, height, limits = SOURCE, source_height, (source_height, sink_height - 1)
            source_height += 1
        else:
            side, height, limits = SINK, sink_height, (source_height - 1, sink_height)
            sink_height += 1
        flow += _grow(graph, scratch, side, height, limits)
    return flow


@kernel()
def _solve(graph_arrays: tuple[Any, ...], scratch_arrays: tuple[Any, ...]) -> float:
    graph, scratch = Graph(*graph_arrays), Scratch(*scratch_arrays)
    return min_cut(graph, scratch)


def solve_min_cut(
    first: NDArray[Any],
    head: NDArray[Any],
    sister: NDArray[Any],
    capacity: NDArray[Any],
    terminal: NDArray[Any],
) -> tuple[float, NDArray[np.bool_]]:
    """Maximum flow and minimum cut of a graph in compressed-row form.

    Args:
        first: (N + 1,) integers, the arcs of node v are ``first[v] .. first[v + 1] - 1``.
        head: (A,) integers, the node where each arc ends.
        sister: (A,) integers, the arc of the opposite direction; ``sister[sister[a]] == a``.
        capacity: (A,) finite numbers >= 0.
        terminal: (N,) finite numbers; positive: capacity from the source, negative: to the sink.

    Returns:
        The flow, which is the capacity of the cut, and (N,) bool, True where a node lies on the source side. Of all
        minimum cuts it is the one with the smallest source side; nodes that neither terminal reaches are at the sink.

    Raises:
        ValueError: if a capacity is negative, infinite or NaN, a terminal is infinite or NaN, or shapes do not match.

    Source -5-> 0 -3-> 1 -4-> sink, with an arc of capacity 1 back from 1 to 0:

    >>> flow, source_side = solve_min_cut([0, 1, 2], [1, 0], [1, 0], [3.0, 1.0], [5.0, -4.0])
    >>> flow, source_side.tolist()
    (3.0, [True, False])
    """
    graph = Graph(
        np.array(first, np.uint32),
        np.array(head, np.uint32),
        np.array(sister, np.uint32),
        np.array(capacity, np.float64),
        np.array(terminal, np.float64),
    )
    nodes, arcs = len(graph.excess), len(graph.residual)
    if graph.first.shape != (nodes + 1,) or graph.head.shape != (arcs,) or graph.sister.shape != (arcs,):
        raise ValueError(
            f"expected first ({nodes + 1},), head ({arcs},) and sister ({arcs},) "
            f"for {nodes} terminals and {arcs} capacities, "
            f"got {graph.first.shape}, {graph.head.shape} and {graph.sister.shape}"
        )
    if not (np.isfinite(graph.residual).all() and (graph.residual >= 0).all()):
        raise ValueError("expected finite capacities >= 0, got negative, infinite or NaN ones")
    if not np.isfinite(graph.excess).all():
        raise ValueError("expected finite terminal capacities, got infinite or NaN ones")
    scratch = new_scratch(nodes)
    flow: float = _solve(tuple(graph), tuple(scratch))
    return flow, scratch.level > 0
