"""Assignment with counts: the cheapest labels of which every class has a number of pixels between two bounds.

    min over labels l of  sum over pixels x of cost[l_x, x]     with  least_k <= #{x: l_x = k} <= most_k

a transport problem with few sources, which has whole solutions. Two classes: sort the pixels by the difference of their
costs. More: successive shortest paths. Labels that are cheapest under prices q, argmin over k of cost_k - q_k, are the
cheapest with the counts that they have; they are changed along shortest paths in the graph of the classes and one node
for the slack in the bounds, with an arc from a to b as long as the cheapest change of one pixel from a to b, until the
counts fit. Each path keeps what is reached optimal for its counts, so that the end is optimal. Prices of a smoothed
problem (`regloss_plugins.kernels.volumes`) leave few paths to be found; pixels that tie are moved together.

Source: Ahuja, Magnanti, Orlin, "Network flows", 1993, chapter 9 (successive shortest paths).
"""

from __future__ import annotations

import heapq
import itertools

import numpy as np
import numpy.typing as npt
import torch

from regloss_plugins.kernels.volumes import scale_to_volumes

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

# Pixels of a sample that prices are found from, and the smoothing, as a part of the costs' range.
_SAMPLE = 20_000
_SMOOTHING = 2e-3


def assign(cost: Floats, least: Integers, most: Integers) -> Integers:
    """Labels (N,) of one image.

    Args:
        cost: (K, N); inf forbids a class at a pixel, which must have another.
        least: (K,) >= 0.
        most: (K,) >= least; sums of ``least`` and ``most`` must enclose N.

    Returns:
        The cheapest labels with these counts; where what is forbidden leaves none with them, the cheapest of those that
        the search could reach.

    >>> assign(np.array([[0.0, 0.0, 0.0], [0.1, 0.3, 0.2]]), np.array([0, 2]), np.array([3, 3]))
    array([1, 0, 1])
    """
    classes, pixels = cost.shape
    labels: Integers = cost.argmin(0)
    counts = np.bincount(labels, minlength=classes)
    if ((counts >= least) & (counts <= most)).all():
        return labels
    if classes == 2:
        return _two(cost, least, most, int(counts[1]))
    prices = _prices(cost, least, most)
    return _Paths(cost, least, most, prices).labels if pixels else labels


def _two(cost: Floats, least: Integers, most: Integers, now: int) -> Integers:
    pixels = cost.shape[1]
    with np.errstate(invalid="ignore"):
        gain = cost[0] - cost[1]  # of taking the second class
    wanted = min(max(now, int(least[1]), pixels - int(most[0])), int(most[1]), pixels - int(least[0]))
    # Neither fewer than what must be of it, nor more than what may.
    wanted = min(max(wanted, int((gain == np.inf).sum())), int((gain > -np.inf).sum()))
    labels: Integers = np.zeros(pixels, dtype=np.int64)
    labels[np.argsort(-gain, kind="stable")[:wanted]] = 1
    return labels


def _prices(cost: Floats, least: Integers, most: Integers) -> Floats:
    """(K,) prices of the smoothed problem on a sample of the pixels; in the bounds' slack they are 0."""
    pixels = cost.shape[1]
    chosen = np.arange(pixels) if pixels <= _SAMPLE else np.linspace(0, pixels - 1, _SAMPLE).astype(np.int64)
    some = torch.from_numpy(cost[:, chosen]).unsqueeze(0)
    finite = some[some.isfinite()]
    reach = float(finite.max() - finite.min())
    share = len(chosen) / pixels
    lower, upper = (torch.from_numpy(bound * share).double().unsqueeze(0) for bound in (least, most))
    may = some.isfinite()
    # Bounds that what is forbidden allows, at least; a class with no room is left to the paths.
    must = (may.sum(1, keepdim=True) == 1) & may
    forced, possible = must.sum(2).double(), may.sum(2).double()
    lower = torch.minimum(torch.maximum(lower, forced), possible)
    upper = torch.minimum(torch.maximum(upper, lower), possible).clamp(min=1e-3)
    if not reach > 0 or float(lower.sum()) > len(chosen) or float(upper.sum()) < len(chosen):
        return np.zeros(len(cost))
    found = scale_to_volumes(some, _SMOOTHING * reach, lower, upper, max_steps=30, tolerance=1e-4)
    prices: Floats = found.dual[0].numpy()
    return np.nan_to_num(prices, nan=0.0, posinf=0.0, neginf=0.0)


class _Paths:
    """Successive shortest paths from the labels that are cheapest under prices."""

    def __init__(self, cost: Floats, least: Integers, most: Integers, prices: Floats) -> None:
        self.cost, self.classes = cost, len(cost)
        self.labels: Integers = (cost - prices[:, None]).argmin(0)
        self.counts = np.bincount(self.labels, minlength=self.classes)
        self.least, self.most = least, most
        # Flow from each class to the slack: at the bound that its price presses against.
        free = np.clip(self.counts, least, most)
        self.flow = np.where(prices > 0, least, np.where(prices < 0, most, free))
        excess = np.append(self.counts - self.flow, self.flow.sum() - cost.shape[1])
        self.excess = excess  # the last one is the slack's
        # No arc is ever used more often than there are pixels to be moved.
        self.depth = int(np.abs(excess).sum()) // 2 + 1
        self.heaps: dict[tuple[int, int], list[tuple[float, int]]] = {}
        for a in range(self.classes):
            self._fill(a)
        while self._move():
            pass

    def _fill(self, a: int) -> None:
        """The cheapest changes of pixels of the class a to each other class."""
        members = np.flatnonzero(self.labels == a)
        for b in range(self.classes):
            if b == a:
                continue
            change = self.cost[b, members] - self.cost[a, members]
            kept = np.arange(len(members))
            if len(kept) > self.depth:
                kept = np.argpartition(change, self.depth - 1)[: self.depth]
            kept = kept[change[kept] < np.inf]
            heap = list(zip(change[kept].tolist(), members[kept].tolist(), strict=True))
            heapq.heapify(heap)
            self.heaps[a, b] = heap

    def _cheapest(self, a: int, b: int) -> float:
        heap = self.heaps[a, b]
        while heap and self.labels[heap[0][1]] != a:
            heapq.heappop(heap)
        return heap[0][0] if heap else np.inf

    def _lengths(self) -> Floats:
        """(K + 1, K + 1) lengths of the arcs; the last node is the slack."""
        count, slack = self.classes + 1, self.classes
        lengths = np.full((count, count), np.inf)
        for a, b in self.heaps:
            lengths[a, b] = self._cheapest(a, b)
        lengths[:slack, slack] = np.where(self.flow < self.most, 0.0, np.inf)
        lengths[slack, :slack] = np.where(self.flow > self.least, 0.0, np.inf)
        return lengths

    def _move(self) -> bool:
        """One path from a node with too much to one with too little; False if there is none."""
        if not (self.excess > 0).any():
            return False
        lengths = self._lengths()
        distance = np.where(self.excess > 0, 0.0, np.inf)
        before = np.full(len(distance), -1)
        for _ in range(len(distance)):
            through = distance[:, None] + lengths
            origin = through.argmin(0)
            shorter = through[origin, np.arange(len(distance))]
            # By more than rounding, which would let paths run in circles.
            better = (shorter < np.inf) & (shorter < distance - 1e-12 * (1 + np.abs(np.minimum(shorter, 1e300))))
            if not better.any():
                break
            distance, before = np.where(better, shorter, distance), np.where(better, origin, before)
        ends = np.where(self.excess < 0, distance, np.inf)
        end = int(ends.argmin())
        if not ends[end] < np.inf:
            return False
        path = [end]
        while before[path[0]] >= 0 and len(path) <= len(distance):
            path.insert(0, int(before[path[0]]))
        arcs = list(itertools.pairwise(path))
        self._carry(arcs, min(int(self.excess[path[0]]), -int(self.excess[end])))
        return True

    def _carry(self, arcs: list[tuple[int, int]], most: int) -> None:
        """Move pixels along the path, as many as tie, ``most`` at most."""
        slack = self.classes
        amount = most
        taken: list[list[int]] = []
        for a, b in arcs:
            if b == slack:
                amount = min(amount, int(self.most[a] - self.flow[a]))
            elif a == slack:
                amount = min(amount, int(self.flow[b] - self.least[b]))
            else:
                pixels: list[int] = []
                length = self._cheapest(a, b)
                while len(pixels) < amount and self._cheapest(a, b) == length:
                    pixels.append(heapq.heappop(self.heaps[a, b])[1])
                taken.append(pixels)
                amount = min(amount, len(pixels))
        moves = iter(taken)
        for a, b in arcs:
            if b == slack:
                self.flow[a] += amount
            elif a == slack:
                self.flow[b] -= amount
            else:
                pixels = next(moves)
                for pixel in pixels[amount:]:
                    heapq.heappush(self.heaps[a, b], (float(self.cost[b, pixel] - self.cost[a, pixel]), pixel))
                self._enter(np.array(pixels[:amount]), b)
        start, end = arcs[0][0], arcs[-1][1]
        self.excess[start] -= amount
        self.excess[end] += amount

    def _enter(self, pixels: Integers, b: int) -> None:
        """Pixels take the class b, and may leave it for others."""
        self.labels[pixels] = b
        for c in range(self.classes):
            if c != b:
                change = self.cost[c, pixels] - self.cost[b, pixels]
                for value, pixel in zip(change.tolist(), pixels.tolist(), strict=True):
                    if value < np.inf:
                        heapq.heappush(self.heaps[b, c], (value, pixel))
