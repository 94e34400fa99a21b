r"""Exact minimum s-t cuts on regular grids, by waves of a push-relabel method.

Minimises, over the sides of all nodes of a grid whose edges have capacities ``c >= 0``, the same in both directions,

    sum_{v at the sink} max(e_v, 0)  +  sum_{v at the source} max(-e_v, 0)  +  sum_{edges uv, ends apart} c_uv

where ``e_v`` is one signed number a node: a capacity from the source (excess) or to the sink (deficit). Three steps
repeat until no excess can reach a deficit:

1. Search: exact distances to the nearest deficit along residual arcs, by breadth-first search. What cannot reach one is
   trapped: it lies on the source side, and is not looked at again.
2. Wave: nodes with excess are discharged by falling distance, so that each push takes along what came from farther.
3. A node left with excess is relabelled and discharged again, but rises at most ``JUMP`` above its distance (more where
   few are left). What is still stuck waits for the next search.

Every residual capacity is pushed to exactly 0.0 (x - x), so comparisons with zero need no tolerance.

A search is local where excess is: it looks at what excess can reach, and no further than the first deficits. Residual
capacities come into being where flow first passes. Both make a cut in which little moves cost little.

Source: Goldberg and Tarjan, "A new approach to the maximum-flow problem", J. ACM 1988; Cherkassky and Goldberg, "On
implementing the push-relabel method", Algorithmica 1997 (global relabelling). Bounded relabelling is our own.
"""

from typing import Any, NamedTuple

import numpy as np
from numba.cpython.unsafe.numbers import trailing_zeros as numba_trailing_zeros
from numpy.typing import ArrayLike, NDArray

from .arguments import pair_slices
from .compiling import helper, kernel

__all__ = [
    "Network",
    "Scratch",
    "min_cut",
    "new_network",
    "new_scratch",
    "push_all",
    "solve_grid_cut",
    "start_among",
    "start_everywhere",
]

trailing_zeros: Any = numba_trailing_zeros  # mypy does not know that numba supplies its first argument

MOST_ARCS = 32  # bits of the widest mask
NONE = np.uint32(2**32 - 1)  # end of a linked list
FAR = 2**30  # level of a trapped node
# Without a limit nodes that are cut off from every deficit would climb by tiny steps, passing their excess to and fro,
# which is what makes push-relabel methods slow on images; without any rise five times as many searches are needed.
JUMP = 4  # measured: 2 and 8 cost a tenth more, 0 three times as much, 1000 five times
LONG_JUMP, FEW = 16, 100  # where few nodes are stuck a search costs more than their detours: a fifth less in hard cases
UNSEEN, SEEN, LABELLED, TRAPPED, REACHED = 0, 1, 2, 3, 4  # what the searches have found out about a node


class Network(NamedTuple):
    """A grid of nodes and the flow through it, D arcs a node.

    The arcs of node ``v`` are ``0 .. D - 1``; arc ``k`` ends at ``v + step[k]``, and the arc back has the number
    ``D - 1 - k``. The capacity of an edge is its weight if its ends bear one label, half its weight otherwise. Which
    arcs leave a node with residual capacity, and which enter it, is kept in the bits of one small number a node, so
    that searches touch two bytes and two words a node. Node numbers are uint32: with unsigned indices numba need not
    test for negative ones.
    """

    step: NDArray[np.uint32]  # (D,) from a node to the end of each arc, modulo 2^32
    bit: NDArray[Any]  # (D,) 1 << k, in the masks' type
    weight: NDArray[Any]  # (N, D) of each arc; the same for both of an edge
    labels: NDArray[np.int32]  # (N,)
    excess: NDArray[np.float64]  # (N,) in: > 0 capacity from the source, < 0 to the sink; out: what is left
    residual: NDArray[np.float64]  # (N, D) of the nodes that are ready
    leaving: NDArray[Any]  # (N,) bits of the arcs with residual capacity from the node; in: of its arcs
    entering: NDArray[Any]  # (N,) bits of the arcs over which residual capacity enters the node; in: the same
    ready: NDArray[np.bool_]  # (N,) whether the node's residual capacities are in place


class Scratch(NamedTuple):
    """Memory of the solver, reusable over cuts of as many nodes."""

    level: NDArray[np.int32]  # (N,) lower bound on the distance to a deficit, in arcs
    limit: NDArray[np.int32]  # (N,) how far the level may rise before the next search
    bucket: NDArray[np.uint32]  # (N + LONG_JUMP + 2,) first active node of each level's list; all NONE between waves
    following: NDArray[np.uint32]  # (N,) the lists' links
    region: NDArray[np.uint32]  # (N + 1,) nodes of a search; after min_cut those on the source side
    queue: NDArray[np.uint32]  # (N + 1,) of a breadth-first search
    stuck: NDArray[np.uint32]  # (N,) nodes whose excess waits for the next search
    trapped: NDArray[np.uint32]  # (N,) nodes whose excess is trapped
    seen: NDArray[np.uint8]  # (N,) UNSEEN .. REACHED


def mask_type(arcs: int) -> type[np.unsignedinteger[Any]]:
    """The smallest type that has a bit for each of so many arcs, at most ``MOST_ARCS``."""
    return np.uint8 if arcs <= 8 else np.uint16 if arcs <= 16 else np.uint32


def new_network(
    step: NDArray[np.uint32],
    bit: NDArray[Any],
    weight: NDArray[Any],
    labels: NDArray[np.int32],
    arcs: NDArray[Any],
    residual: NDArray[np.float64],
) -> Network:
    """A network without excess over nodes whose arcs are the bits of ``arcs`` (N,).

    Labels, weights and ``residual`` (N, D), which need not be set, are shared.
    """
    nodes = len(weight)
    return Network(
        step,
        bit,
        weight,
        labels,
        np.zeros(nodes),
        residual,
        arcs.copy(),
        arcs.copy(),
        np.zeros(nodes, np.bool_),
    )


def new_scratch(nodes: int) -> Scratch:
    """Memory for :func:`min_cut` (37 bytes a node)."""
    return Scratch(
        level=np.empty(nodes, np.int32),
        limit=np.empty(nodes, np.int32),
        bucket=np.full(nodes + LONG_JUMP + 2, NONE, np.uint32),
        following=np.empty(nodes, np.uint32),
        # Entries are written before it is known whether they count, hence one more.
        region=np.empty(nodes + 1, np.uint32),
        queue=np.empty(nodes + 1, np.uint32),
        stuck=np.empty(nodes, np.uint32),
        trapped=np.empty(nodes, np.uint32),
        seen=np.empty(nodes, np.uint8),
    )


# The helpers each have one or two call sites; calls would cost as much as what they do.
@helper(forceinline=True)
def prepare(network: Network, v: Any) -> None:
    """Put the residual capacities of a node in place, unless they are."""
    if network.ready[v]:
        return
    network.ready[v] = True
    label = network.labels[v]
    bits = network.leaving[v]  # no flow has passed, so these are all its arcs
    while bits != 0:
        k = np.uint32(trailing_zeros(bits))
        bits &= bits - 1
        weight = np.float64(network.weight[v, k])
        network.residual[v, k] = weight if network.labels[np.uint32(v + network.step[k])] == label else 0.5 * weight


@helper(forceinline=True)
def push(network: Network, v: Any, k: Any, u: Any, amount: float) -> None:
    """Move flow along arc ``k`` from ``v`` to ``u``, both prepared; excess is the caller's business."""
    back = np.uint32(len(network.step) - 1 - k)
    capacity = network.residual[v, k]
    network.residual[v, k] = capacity - amount
    if amount == capacity:
        network.leaving[v] ^= network.bit[k]
        network.entering[u] ^= network.bit[back]
    returning = network.residual[u, back]
    if returning == 0.0:
        network.leaving[u] |= network.bit[back]
        network.entering[v] |= network.bit[k]
    network.residual[u, back] = returning + amount


@helper(forceinline=True)
def _cancel(network: Network, scratch: Scratch, count: int) -> int:
    """Push excess to neighbouring deficits, which are most of the paths of an easy problem; returns who is stuck."""
    excess = network.excess
    stuck_count = 0
    for i in range(count):
        v = scratch.stuck[i]
        left = excess[v]
        bits = network.leaving[v]
        while bits != 0 and left > 0.0:
            k = np.uint32(trailing_zeros(bits))
            bits &= bits - 1
            u = np.uint32(v + network.step[k])
            if excess[u] < 0.0:
                prepare(network, v)
                prepare(network, u)
                amount = left if left < network.residual[v, k] else network.residual[v, k]
                if -excess[u] < amount:
                    amount = -excess[u]
                push(network, v, k, u, amount)
                excess[u] += amount
                left -= amount
        excess[v] = left
        if left > 0.0:
            scratch.stuck[stuck_count] = v
            stuck_count += 1
    return stuck_count


@helper(forceinline=True)
def _search_near(network: Network, scratch: Scratch, count: int) -> tuple[int, int]:
    """Find all that the stuck nodes reach before deficits, unless that is much.

    Returns how many deficits there are, in ``queue``, and how many nodes, in ``region``; (-1, 0) if it is much.
    """
    seen, region, queue = scratch.seen, scratch.region, scratch.queue
    most = len(seen) // 4
    for i in range(count):
        v = scratch.stuck[i]
        region[i] = v
        seen[v] = SEEN
    size, roots = count, 0
    i = 0
    while i < size:
        v = region[i]
        i += 1
        if network.excess[v] < 0.0:  # nothing has its nearest deficit behind another
            seen[v] = LABELLED
            queue[roots] = v
            roots += 1
            continue
        bits = network.leaving[v]
        while bits != 0:
            k = np.uint32(trailing_zeros(bits))
            bits &= bits - 1
            u = np.uint32(v + network.step[k])
            # No branch on what is found, which would be mispredicted once a node.
            known = seen[u]
            new = known == UNSEEN
            region[size] = u
            size += new
            seen[u] = known + new
        if size > most:
            for j in range(size):
                seen[region[j]] = UNSEEN
            return -1, 0
    return roots, size


@helper(forceinline=True)
def _search(network: Network, scratch: Scratch, count: int, everywhere: bool) -> bool:
    """Set the levels of what the stuck nodes reach, or of all nodes; returns whether it was all."""
    level, limit, seen, region, queue = scratch.level, scratch.limit, scratch.seen, scratch.region, scratch.queue
    jump = JUMP if count > FEW else LONG_JUMP
    end, size = -1, 0
    if not everywhere:
        end, size = _search_near(network, scratch, count)
    everywhere = end < 0
    if everywhere:
        end = 0
        for v in range(len(seen)):
            node = np.uint32(v)
            deficit = network.excess[node] < 0.0
            queue[end] = node
            end += deficit
            if deficit:
                seen[node] = LABELLED
            elif seen[node] != TRAPPED:
                seen[node] = SEEN
        size = len(seen)

    begin, height = 0, 0
    while begin < end:
        next_height = end
        while begin < next_height:
            v = queue[begin]
            begin += 1
            level[v] = height
            limit[v] = height + jump
            bits = network.entering[v]
            while bits != 0:
                k = np.uint32(trailing_zeros(bits))
                bits &= bits - 1
                u = np.uint32(v + network.step[k])
                known = seen[u]
                new = known == SEEN
                queue[end] = u
                end += new
                seen[u] = known + new
        height += 1

    for i in range(size):
        node = np.uint32(i) if everywhere else region[i]
        if seen[node] == LABELLED:
            seen[node] = UNSEEN
        else:
            seen[node] = TRAPPED
            level[node] = FAR
    return everywhere


@helper(forceinline=True)
def _wave(network: Network, scratch: Scratch, height: int) -> int:
    """Discharge the nodes in the buckets from level ``height`` downwards; returns how many are stuck."""
    level, bucket, following, excess = scratch.level, scratch.bucket, scratch.following, network.excess
    stuck_count = 0
    while height >= 0:
        v = bucket[height]
        if v == NONE:
            height -= 1
            continue
        bucket[height] = following[v]
        level_v = level[v]
        left = excess[v]
        prepare(network, v)
        while True:
            lowest = FAR
            bits = network.leaving[v]
            while bits != 0:
                k = np.uint32(trailing_zeros(bits))
                bits &= bits - 1
                u = np.uint32(v + network.step[k])
                level_u = level[u]
                if level_u != level_v - 1:
                    if level_u < lowest:
                        lowest = level_u
                    continue
                prepare(network, u)
                capacity = network.residual[v, k]
                amount = left if left < capacity else capacity
                push(network, v, k, u, amount)
                before = excess[u]
                excess[u] = before + amount
                if before <= 0.0 and excess[u] > 0.0:
                    following[u] = bucket[level_u]
                    bucket[level_u] = u
                left -= amount
                if left == 0.0:
                    break
            if left == 0.0 or lowest >= scratch.limit[v]:
                break
            level_v = lowest + 1
        excess[v] = left
        level[v] = level_v
        if level_v > height:
            height = level_v  # it may have pushed to nodes just below
        if left > 0.0:
            scratch.stuck[stuck_count] = v
            stuck_count += 1
    return stuck_count


@kernel()
def min_cut(network_arrays: tuple[Any, ...], scratch_arrays: tuple[Any, ...]) -> int:
    """Find the smallest source side of all minimum cuts; nodes that neither terminal reaches are at the sink.

    Takes the arrays of a :class:`Network` and of a :class:`Scratch`. Returns the number of the nodes: they are
    ``scratch.region[:number]``, and have ``scratch.seen[v] == REACHED``. The network must be without flow (no node
    ready); afterwards it holds a maximum preflow.
    """
    network, scratch = Network(*network_arrays), Scratch(*scratch_arrays)
    count = start_everywhere(network, scratch)
    return push_all(network, scratch, count, len(network.excess) // 4)


@helper()
def start_everywhere(network: Network, scratch: Scratch) -> int:
    """Forget an earlier cut, and collect the nodes with excess as those that are stuck; returns how many they are."""
    excess = network.excess
    scratch.level[:] = 0
    scratch.limit[:] = JUMP
    scratch.seen[:] = UNSEEN
    count = 0
    for v in range(len(excess)):
        if excess[v] > 0.0:
            scratch.stuck[count] = v
            count += 1
    return count


@helper()
def start_among(network: Network, scratch: Scratch, nodes: NDArray[np.uint32], size: int) -> int:
    """As :func:`start_everywhere`, in a network of ``nodes[:size]``: no arc may lead to others; they are not looked at.

    They may be a quarter of all at most, so that no search looks everywhere.
    """
    scratch.seen[:] = UNSEEN
    count = 0
    for i in range(size):
        v = nodes[i]
        scratch.level[v] = 0
        scratch.limit[v] = JUMP
        if network.excess[v] > 0.0:
            scratch.stuck[count] = v
            count += 1
    return count


@helper()
def push_all(network: Network, scratch: Scratch, count: int, much: int) -> int:
    """Push the excess of ``count`` nodes, those stuck, as far as it gets; returns as :func:`min_cut` does.

    Searches do not look everywhere unless a quarter of ``much`` nodes are stuck, or what these reach has been most.
    """
    seen, region = scratch.seen, scratch.region
    count = _cancel(network, scratch, count)
    trapped_count = 0
    while count > 0:
        # What excess reaches is most of the grid, or likely to be: then it need not be found out first.
        if _search(network, scratch, count, 4 * count > much):
            much = count
        height = -1
        for i in range(count):
            v = scratch.stuck[i]
            if scratch.level[v] == FAR:
                scratch.trapped[trapped_count] = v
                trapped_count += 1
            else:
                scratch.following[v] = scratch.bucket[scratch.level[v]]
                scratch.bucket[scratch.level[v]] = v
                if scratch.level[v] > height:
                    height = scratch.level[v]
        count = _wave(network, scratch, height)

    # What is trapped somewhere need not be reached by what is left of the excess, since other excess may have passed.
    for i in range(trapped_count):
        v = scratch.trapped[i]
        region[i] = v
        seen[v] = REACHED
    size = trapped_count
    i = 0
    while i < size:
        v = region[i]
        i += 1
        bits = network.leaving[v]
        while bits != 0:
            k = np.uint32(trailing_zeros(bits))
            bits &= bits - 1
            u = np.uint32(v + network.step[k])
            if seen[u] != REACHED:
                seen[u] = REACHED
                region[size] = u
                size += 1
    return size


def solve_grid_cut(terminal: ArrayLike, offsets: ArrayLike, capacities: ArrayLike) -> tuple[float, NDArray[np.bool_]]:
    """Maximum flow and minimum cut of a regular grid S of any dimension.

    Args:
        terminal: (*S) finite numbers; positive: capacity from the source, negative: to the sink.
        offsets: (n, D) integers, from a node to its partner in each of n edges, n <= 16; each edge once.
        capacities: (n, *S) finite numbers >= 0, of the edge from p to ``p + offsets[i]``, in both directions. Entries
            whose partner lies outside the grid are ignored.

    Returns:
        The flow, which is the capacity of the cut, and (*S) bool, True where a node lies on the source side. Of all
        minimum cuts it is the one with the smallest source side; nodes that neither terminal reaches are at the sink.

    Raises:
        ValueError: if a capacity is negative, infinite or NaN, a terminal is infinite or NaN, or shapes do not match.

    Source -5-> 0 -3- 1 -1- 2 -4-> sink:

    >>> flow, source_side = solve_grid_cut([5.0, 0.0, -4.0], [[1]], [[3.0, 1.0, 0.0]])
    >>> flow, source_side.tolist()
    (1.0, [True, True, False])
    """
    sources = np.array(terminal, np.float64)
    shape = sources.shape
    steps = np.array(offsets, np.int64)
    values = np.array(capacities, np.float64)
    if steps.ndim != 2 or steps.shape[1] != sources.ndim or values.shape != (len(steps), *shape):
        raise ValueError(
            f"expected offsets (n, {sources.ndim}) and capacities (n, {', '.join(map(str, shape))}) for terminals "
            f"{shape}, got {steps.shape} and {values.shape}"
        )
    if 2 * len(steps) > MOST_ARCS:
        raise ValueError(f"expected at most {MOST_ARCS // 2} offsets, got {len(steps)}")
    if not np.isfinite(sources).all():
        raise ValueError("expected finite terminal capacities, got infinite or NaN ones")
    weight = np.zeros((sources.size, 2 * len(steps)))
    nodes = np.arange(sources.size).reshape(shape)
    for n, offset in enumerate(steps):
        near, far = pair_slices(offset, shape)
        if not offset.any():
            continue
        weight[nodes[near], n] = values[n][near]
        weight[nodes[far], -1 - n] = values[n][near]
    if not (np.isfinite(weight).all() and (weight >= 0).all()):
        raise ValueError("expected finite capacities >= 0, got negative, infinite or NaN ones")
    bit = (1 << np.arange(weight.shape[1])).astype(mask_type(weight.shape[1]))
    arcs = ((weight > 0) * bit).sum(1, dtype=bit.dtype)
    labels = np.zeros(sources.size, np.int32)
    network = new_network(arc_steps(steps, shape), bit, weight, labels, arcs, np.empty(weight.shape))
    network.excess[:] = sources.ravel()
    scratch = new_scratch(sources.size)
    min_cut(tuple(network), tuple(scratch))
    flow = (np.maximum(sources.ravel(), 0.0) - np.maximum(network.excess, 0.0)).sum()
    return float(flow), (scratch.seen == REACHED).reshape(shape)


def arc_steps(offsets: NDArray[np.int64], shape: tuple[int, ...]) -> NDArray[np.uint32]:
    """Steps (2 n,) of all arcs between flat indices of a grid, modulo 2^32, from offsets (n, D): there, then back."""
    strides = np.array([int(np.prod(shape[axis + 1 :])) for axis in range(len(shape))], np.int64)
    forward = offsets @ strides
    return np.concatenate([forward, -forward[::-1]]).astype(np.uint32)
