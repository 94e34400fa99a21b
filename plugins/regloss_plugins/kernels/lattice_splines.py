"""B-splines of a lattice along one axis, and the blur that goes with them; see `regloss_plugins.kernels.lattice`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class LatticeTooLarge(ValueError):
    """The nodes of a lattice cannot be numbered, or their table would not fit into memory; the message says why."""


@dataclass(frozen=True)
class Splines:
    """How a lattice approximates.

    Attributes:
        degree: of the B-splines, 1 to 3; degree + 1 nodes along each axis.
        step: distance of two nodes, in bandwidths.
        reach: how many nodes away G looks along each axis.
        shares: how many values along an axis there are from node to node; pixels take the nearest.
    """

    degree: int
    step: float
    reach: int
    shares: int


# More numbers than this (16 GiB in float64) are certainly a mistake in the settings.
MOST_NUMBERS = 2**31


def spline_weights(places: Tensor, degree: int) -> tuple[Tensor, Tensor]:
    """B-splines of ``degree`` at ``places`` (...): first node (...) int64 and weights (..., degree + 1), of sum 1."""
    if degree == 2:
        middle = places.round()
        t = places - middle
        return middle.long() - 1, torch.stack([(0.5 - t) ** 2 / 2, 0.75 - t**2, (0.5 + t) ** 2 / 2], -1)
    low = places.floor()
    t = places - low
    if degree == 1:
        return low.long(), torch.stack([1 - t, t], -1)
    cubic = [(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3]
    return low.long() - 1, torch.stack(cubic, -1) / 6


@lru_cache
def blur(splines: Splines) -> tuple[float, ...]:
    """The numbers of G along an axis, from the node itself to ``reach`` nodes away.

    They minimise the squared error of W for points on a line, over all positions between nodes, each taken to the one
    that it shares. As D depends on them, they are found by repeating a linear problem, which settles within a few
    rounds.
    """
    samples = 12
    count, reach = splines.degree + 1, splines.reach
    inner = (np.arange(samples) + 0.5) / samples
    shared = torch.from_numpy(np.rint(inner * splines.shares) / splines.shares)
    first, weights = (part.numpy() for part in spline_weights(shared, splines.degree))
    pairs = [(i, j) for i in range(count) for j in range(count)]
    cells = range(math.ceil(4.5 / splines.step) + 3)

    def products(cell: int) -> NDArray[Any]:
        """Of the numbers, for all pairs of a sample and one ``cell`` cells further on."""
        result = np.zeros((samples, samples, reach + 1))
        for i, j in pairs:
            apart = abs(cell + first[None, :] + j - first[:, None] - i)
            for number in range(reach + 1):
                result[:, :, number] += (apart == number) * weights[:, None, i] * weights[None, :, j]
        return result

    from scipy.optimize import nnls  # takes longer to import than all else here

    # Of the pairs within one cell, both orders are among the samples.
    shares = [math.sqrt(0.5) if cell == 0 else 1.0 for cell in cells]
    distances = [(cell + inner[None, :] - inner[:, None]) * splines.step for cell in cells]
    design = np.stack([share * products(cell) for share, cell in zip(shares, cells, strict=True)]).reshape(
        -1, reach + 1
    )
    target = np.stack([share * np.exp(-(d**2) / 2) for share, d in zip(shares, distances, strict=True)]).ravel()
    diagonal = np.diagonal(products(0)).T
    found = np.exp(-((np.arange(reach + 1) * splines.step) ** 2))
    for _ in range(10):
        peak = np.sqrt(diagonal @ found)
        scale = np.tile(np.outer(peak, peak).ravel(), len(cells))
        found, _ = nnls(design / scale[:, None], target)
    return tuple(float(value) for value in found)


def spline_diagonal(weights: Tensor, splines: Splines) -> Tensor:
    """b^T G b (...) of the weights b (..., degree + 1) along an axis."""
    numbers, count = blur(splines), splines.degree + 1
    matrix = weights.new_tensor(
        [[numbers[abs(i - j)] if abs(i - j) < len(numbers) else 0 for j in range(count)] for i in range(count)]
    )
    return (weights @ matrix * weights).sum(-1)


class Line(NamedTuple):
    """Blocks of pixels along one spatial axis, and their nodes; tensors are on the CPU.

    Attributes:
        length: pixels of a block; the last one may have fewer.
        first: (T,) int64 first of degree + 1 nodes of each block.
        weights: (T, degree + 1) float64.
        diagonal: (T,) b^T G b.
        nodes: how many there are.
    """

    length: int
    first: Tensor
    weights: Tensor
    diagonal: Tensor
    nodes: int


def spline_line(extent: int, sigma: float, splines: Splines) -> Line:
    """The blocks of ``extent`` pixels, of a bandwidth of ``sigma`` pixels; of one node if that is infinite."""
    if math.isinf(sigma):
        one = torch.ones(1, dtype=torch.float64)
        return Line(extent, torch.zeros(1, dtype=torch.int64), one.unsqueeze(1), one, 1)
    length = max(1, math.floor(sigma * splines.step / splines.shares))
    begin = torch.arange(0, extent, length, dtype=torch.float64)
    centers = (begin + (begin + length).clamp(max=extent) - 1) / 2
    first, weights = spline_weights(centers / (sigma * splines.step), splines.degree)
    first = first - first.min()
    return Line(length, first, weights, spline_diagonal(weights, splines), int(first.max()) + splines.degree + 1)


def check_keys(bound: int, axes: int) -> None:
    """Whether numbers up to ``bound`` can be told apart.

    Raises:
        LatticeTooLarge: they cannot.
    """
    if bound >= 2**62:
        raise LatticeTooLarge(f"The lattice cannot number the nodes of {axes} feature axes. Use the backend 'exact'.")


def check_cells(cells: int, axes: int, count: int) -> None:
    """Whether so many different colours may touch ``count`` nodes along each axis.

    Raises:
        LatticeTooLarge: they would not fit into memory.
    """
    if cells * count**axes > MOST_NUMBERS // 8:
        raise LatticeTooLarge(
            f"{cells} different colours of {axes} channels touch {count}^{axes} nodes of the lattice each, too "
            "many. Use the backend 'exact', a coarser accuracy, or larger bandwidths."
        )


def check_nodes(nodes: int, places: int, width: int) -> None:
    """Whether a table of all colours at all places may be held, ``width`` numbers each.

    Raises:
        LatticeTooLarge: it would not fit into memory.
    """
    if places * nodes > MOST_NUMBERS // width:
        raise LatticeTooLarge(
            f"The lattice has {nodes} colours at {places} places, more than fits into memory. Use larger "
            "bandwidths, a smaller image, or the backend 'exact'."
        )
