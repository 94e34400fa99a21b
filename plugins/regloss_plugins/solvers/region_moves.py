"""Moves of whole regions of a labelling, of single pixels, and along level sets, all over a batch at once.

    E(l) = sum over pixels of unary[l_p, p] + sum over pairs of w_pq [l_p != l_q],      w >= 0

A region is a connected set of pixels with one label. Each region knows what every label would cost it while all others
keep theirs,

    D[r, k] = sum over its pixels of unary[k, p] - sum over its boundary pairs pq of w_pq [k = l_q],

and takes the cheapest if no neighbour gains more by a move of its own. Neighbours then never move together, so E falls
by the sum of the gains. Regions that agree afterwards are one region in the next round. This removes what no move of a
single pixel can: specks, and patches between two regions. Single pixels move by the same rule.

Given probabilities s of the labels, a label k may also take one of its level sets {s^k > t}: pixels inside take k, and
those outside that had it take the most probable other label. The energies of all t come from one histogram, as a pixel
or pair changes its cost only where t passes the probabilities of its ends. If s minimises the linear relaxation for two
labels, almost every level set is a minimum cut (coarea formula); the level 1/2 of an s that is only near a minimiser
can be far from one while another level already is.

Everything is a fixed number of torch operations on whole batches, for each round or label; rounds end when nothing
moves, which the host has to look up.
"""

from __future__ import annotations

import torch
from torch import Tensor

from regloss import grid
from regloss.numerics import widest_float

__all__ = ["connected_regions", "move_levels", "move_pixels", "move_regions"]


def connected_regions(labels: Tensor, offsets: tuple[grid.Offset, ...], connected: Tensor) -> Tensor:
    """Numbers (B, *S) of the connected regions of equal labels: that of their first pixel in the batch, row-major.

    Args:
        labels: (B, *S).
        offsets: of pairs.
        connected: (B, n, *S) bool, which pairs (p, p + offset) connect at all; False where a pair leaves the grid.

    Every pixel points to the smallest pixel that it knows of its region. In each round the pixel pointed to learns of
    what the neighbours of all those that point to it point to, and pointers are followed; distances shrink by a factor.

    >>> labels = torch.tensor([[0, 0, 1, 0]])
    >>> connected_regions(labels, ((1,),), torch.tensor([[[True, True, True, False]]]))
    tensor([[0, 0, 2, 3]])
    """
    pointer = torch.arange(labels.numel(), device=labels.device)
    pairs = []
    for first, second, joined in grid.pairs(offsets, connected):
        pairs.append((first, second, joined & (grid.pick(labels, first) == grid.pick(labels, second))))
    while True:
        known = pointer.reshape(labels.shape)
        least = known.clone()
        for first, second, same in pairs:
            ahead, behind = grid.pick(known, first), grid.pick(known, second)
            lower = torch.minimum(ahead, behind)
            for end, there in ((first, ahead), (second, behind)):
                here = grid.pick(least, end)
                here.copy_(torch.minimum(here, torch.where(same, lower, there)))
        flat = least.flatten()
        hooked = torch.minimum(pointer, flat).scatter_reduce(0, pointer, flat, "amin")
        for _ in range(3):
            hooked = hooked[hooked]
        if torch.equal(hooked, pointer):
            return pointer.reshape(labels.shape)
        pointer = hooked


def move_regions(
    unary: Tensor,
    offsets: tuple[grid.Offset, ...],
    weights: Tensor,
    labels: Tensor,
    parts: Tensor | None = None,
    max_rounds: int = 20,
) -> Tensor:
    """Labels (B, *S) after moves of connected regions; E is nowhere higher.

    Args:
        unary: (B, K, *S).
        offsets: of pairs.
        weights: (B, n, *S), 0 where a pair leaves the grid.
        labels: (B, *S) int64.
        parts: (B, *S) other labels, in 0..K-1; regions are then connected sets on which both labellings are constant.
        max_rounds: how often at most all regions are asked.

    The second pixel alone would not move, the pair in the middle does:

    >>> unary = torch.tensor([[[[0.0, 1.0, 1.0, 0.0]], [[9.0, 0.0, 0.0, 9.0]]]])
    >>> weights = torch.tensor([[[[3.0, 3.0, 3.0, 0.0]]]])
    >>> move_regions(unary, ((0, 1),), weights, torch.tensor([[[0, 1, 1, 0]]]))
    tensor([[[0, 0, 0, 0]]])
    """
    classes = unary.shape[1]
    exact = widest_float(unary.device)
    by_pixel = unary.movedim(1, -1).reshape(-1, classes)
    for _ in range(max_rounds):
        kinds = labels if parts is None else labels * classes + parts
        numbers = connected_regions(kinds, offsets, weights > 0)
        first_pixels, region = torch.unique(numbers, return_inverse=True)
        count = len(first_pixels)
        label = labels.flatten()[first_pixels]
        cost = torch.zeros(count, classes, dtype=exact, device=unary.device)
        cost.index_add_(0, region.flatten(), by_pixel.to(exact))
        ends, others = [], []
        for first, second, weight in grid.pairs(offsets, weights):
            near, far = grid.pick(region, first), grid.pick(region, second)
            apart = (near != far) & (weight > 0)
            near, far, weight = near[apart], far[apart], weight[apart].to(exact)
            for end, other in ((near, far), (far, near)):
                cost.view(-1).index_add_(0, end * classes + label[other], -weight)
                ends.append(end)
                others.append(other)
        least, best = cost.min(1)
        gain = cost.gather(1, label.unsqueeze(1)).squeeze(1) - least
        # A rank settles ties, by the region's number; regions that gain nothing have none and stand in nobody's way.
        rank = torch.empty_like(label)
        rank[gain.argsort(stable=True)] = torch.arange(count, device=label.device)
        moves = gain > _rounding(cost)
        rank = rank.masked_fill(~moves, -1)
        highest = torch.full_like(rank, -1)
        if ends:  # an image of one pixel has no pairs
            highest.scatter_reduce_(0, torch.cat(ends), rank[torch.cat(others)], "amax")
        moves &= rank > highest
        if not bool(moves.any()):
            return labels
        labels = torch.where(moves, best, label)[region]
    return labels


def move_pixels(
    unary: Tensor, offsets: tuple[grid.Offset, ...], weights: Tensor, labels: Tensor, max_rounds: int = 20
) -> Tensor:
    """Labels (B, *S) after moves of single pixels; E is nowhere higher.

    Args:
        unary: (B, K, *S).
        offsets: of pairs.
        weights: (B, n, *S), 0 where a pair leaves the grid.
        labels: (B, *S) int64.
        max_rounds: how often at most all pixels are asked.
    """
    index = torch.arange(labels.numel(), device=labels.device).reshape(labels.shape)
    for _ in range(max_rounds):
        cost = unary.clone()
        for first, second, weight in grid.pairs(offsets, weights):
            for end, other in ((first, second), (second, first)):
                grid.pick(cost, end).scatter_add_(1, grid.pick(labels, other).unsqueeze(1), -weight.unsqueeze(1))
        least, best = cost.min(1)  # on a CPU several times faster than argmin
        gain = cost.gather(1, labels.unsqueeze(1)).squeeze(1) - least
        gain = gain.masked_fill(gain <= _rounding(cost.movedim(1, -1)), 0.0)
        moves = gain > 0
        for first, second, weight in grid.pairs(offsets, weights):
            apart = ~(weight > 0)
            ahead, behind = grid.pick(gain, first), grid.pick(gain, second)
            earlier = grid.pick(index, first) < grid.pick(index, second)
            wins = (ahead > behind) | ((ahead == behind) & earlier)
            grid.pick(moves, first).logical_and_(wins | apart)
            grid.pick(moves, second).logical_and_(~wins | apart)
        if not bool(moves.any()):
            return labels
        labels = torch.where(moves, best, labels)
    return labels


def move_levels(
    unary: Tensor,
    offsets: tuple[grid.Offset, ...],
    weights: Tensor,
    labels: Tensor,
    probabilities: Tensor,
    levels: int = 64,
) -> Tensor:
    """Labels (B, *S) after each label in turn took its best level set, where that lowers E of an image.

    Args:
        unary: (B, K, *S).
        offsets: of pairs.
        weights: (B, n, *S), 0 where a pair leaves the grid.
        labels: (B, *S) int64.
        probabilities: (B, K, *S), in [0, 1]; negative where a label is not allowed.
        levels: how many values of t are compared, 0, 1 / levels, .., >= 1.

    The most probable labels cut two pairs; the level set {s^1 > 0.25} cuts none:

    >>> unary, weights = torch.zeros(1, 2, 1, 4), torch.tensor([[[[1.0, 1.0, 1.0, 0.0]]]])
    >>> unary[0, 0, 0, 0] = 9.0
    >>> second = torch.tensor([[[0.9, 0.3, 0.6, 0.6]]])
    >>> probabilities = torch.stack([1 - second, second], dim=1)
    >>> move_levels(unary, ((0, 1),), weights, probabilities.argmax(1), probabilities)
    tensor([[[1, 1, 1, 1]]])
    """
    classes = unary.shape[1]
    if classes == 1:
        return labels
    likeliest, ranked = probabilities.topk(2, dim=1)
    bound_to_one = likeliest[:, 1] < 0  # no second label is allowed
    inner = ((probabilities > 0) & (probabilities < 1)).movedim(1, 0).flatten(1).any(1)
    energy = _energy(unary, offsets, weights, labels)
    for label in inner.nonzero().flatten().tolist():  # elsewhere all level sets are one
        other = torch.where(ranked[:, 0] == label, ranked[:, 1], ranked[:, 0])
        base = torch.where(labels == label, other, labels)
        # Pixel p takes the label at the levels 0 .. reach_p - 1.
        reach = (probabilities[:, label].clamp(0, 1) * levels).ceil().long()
        reach = reach.masked_fill(bound_to_one & (labels == label), levels)
        best = _level_energies(unary, offsets, weights, base, label, reach, levels).argmin(1)
        candidate = torch.where(reach > grid.spread(best, reach), label, base)
        found = _energy(unary, offsets, weights, candidate)
        better = found < energy
        energy = torch.where(better, found, energy)
        labels = torch.where(grid.spread(better, labels), candidate, labels)
    return labels


def _level_energies(
    unary: Tensor,
    offsets: tuple[grid.Offset, ...],
    weights: Tensor,
    base: Tensor,
    label: int,
    reach: Tensor,
    levels: int,
) -> Tensor:
    """E (B, levels), up to a constant, if pixels of reach > level take ``label`` and others keep ``base``, not it.

    Entry r of the histogram is what the levels below r have more than those from r on. A pair costs nothing at levels
    that both ends reach, its weight at those that one does, and beyond that what it costs in ``base``.
    """
    exact = widest_float(unary.device)
    width = levels + 1
    rows = torch.arange(len(base), device=base.device) * width
    place = reach + grid.spread(rows, reach)
    histogram = torch.zeros(len(base) * width, dtype=exact, device=base.device)
    change = unary[:, label] - unary.gather(1, base.unsqueeze(1)).squeeze(1)
    histogram.index_add_(0, place.flatten(), change.flatten().to(exact))
    for first, second, weight in grid.pairs(offsets, weights):
        ends = grid.pick(place, first), grid.pick(place, second)
        uncut = weight * (grid.pick(base, first) == grid.pick(base, second))
        histogram.index_add_(0, torch.maximum(*ends).flatten(), uncut.flatten().to(exact))
        histogram.index_add_(0, torch.minimum(*ends).flatten(), -weight.flatten().to(exact))
    return histogram.reshape(-1, width)[:, 1:].flip(1).cumsum(1).flip(1)


def _energy(unary: Tensor, offsets: tuple[grid.Offset, ...], weights: Tensor, labels: Tensor) -> Tensor:
    exact = widest_float(unary.device)
    total = unary.gather(1, labels.unsqueeze(1)).to(exact).flatten(1).sum(1)
    for first, second, weight in grid.pairs(offsets, weights):
        cut = grid.pick(labels, first) != grid.pick(labels, second)
        total += (weight * cut).to(exact).flatten(1).sum(1)
    return total


def _rounding(cost: Tensor) -> Tensor:
    """What a difference of two of the last axis' costs may be by rounding alone, (...)."""
    return 64 * torch.finfo(cost.dtype).eps * cost.abs().amax(-1)
