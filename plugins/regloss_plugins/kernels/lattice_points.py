"""The points of an image and the nodes of their colours, built by sorting, on any device.

They are those of `regloss_plugins.kernels.lattice.SplineLattice`, in another order; `lattice_matrices` filters by them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from regloss_plugins.kernels.lattice_splines import (
    Line,
    Splines,
    check_cells,
    check_keys,
    check_nodes,
    spline_diagonal,
    spline_line,
    spline_weights,
)


@dataclass(frozen=True)
class LatticePoints:
    """N pixels as P points, which touch some of M colour nodes; tensors are on one device.

    Attributes:
        pixels: (N,) int64 where the pixels stand in the arrays that are filtered, ascending.
        point: (N,) int64 which point each is part of.
        block: (P,) int64 which block of pixels a point lies in, all axes together.
        scale: (P,) float64, the diagonal D.
        weights: (P, axes, degree + 1) float64, of the colours' splines.
        nodes: (P, R, degree + 1) int64 nodes of the colours; R combinations of all axes but the last.
        offsets: of these, along each of these axes.
        keys: (M,) int64 of the nodes, ascending; neighbours along an axis differ by its stride.
        strides: of the axes.
        lines: of the spatial axes; () = places do not matter.
        colours: how the colours' axes are approximated.
        grid: how the spatial axes are.
    """

    pixels: Tensor
    point: Tensor
    block: Tensor
    scale: Tensor
    weights: Tensor
    nodes: Tensor
    offsets: list[tuple[int, ...]]
    keys: Tensor
    strides: list[int]
    lines: tuple[Line, ...]
    colours: Splines
    grid: Splines

    @property
    def sizes(self) -> tuple[int, ...]:
        """Nodes along each spatial axis."""
        return tuple(line.nodes for line in self.lines) or (1,)


def lattice_points(
    features: Tensor, places: Tensor, pixels: Tensor, sigma: Sequence[float], colours: Splines, grid: Splines
) -> LatticePoints:
    """The points of one image.

    Args:
        features: (N, F) of the pixels that count, in bandwidths; float32 or float64.
        places: (N, D) int64, where they lie on the grid.
        pixels: (N,) int64, where they stand in the arrays that are filtered, ascending.
        sigma: bandwidth of the places along each axis, in pixels; all inf = they do not matter.
        colours: how the features' axes are approximated.
        grid: how the spatial axes are.

    Raises:
        LatticeTooLarge: the table of nodes would not fit into memory.
    """
    if features.shape[1] == 0:
        features = features.new_zeros(len(features), 1)
    device, count = features.device, colours.degree + 1
    lines: list[Line] = []
    block = torch.zeros_like(pixels)
    if not math.isinf(sigma[0]):
        low, high = places.amin(0), places.amax(0)
        extents = (high - low + 1).tolist()
        lines = [spline_line(extent, width, grid) for extent, width in zip(extents, sigma, strict=True)]
        for axis, one in enumerate(lines):
            block = block * len(one.first) + (places[:, axis] - low[axis]) // one.length

    # Pixels of a block that share a colour are one point.
    shared = (features.double() * (colours.shares / colours.step)).round().long()
    shared = shared - shared.amin(0)
    lengths = (shared.amax(0) + 1).tolist()
    different, colour = torch.unique(_keys(shared, lengths), return_inverse=True)
    together, point = torch.unique(block * len(different) + colour, return_inverse=True)
    block, chosen = together // len(different), together % len(different)

    # The nodes of every colour.
    coordinates = _coordinates(different, lengths).double() * (colours.step / colours.shares)
    first, weights = spline_weights(coordinates / colours.step, colours.degree)
    first = first - first.amin(0) + colours.reach  # a margin, so that neighbours of nodes have keys of their own
    sizes = (first.amax(0) + count + colours.reach).tolist()
    strides = _strides(sizes)
    cells, cell = torch.unique(_keys(first, sizes), return_inverse=True)
    check_cells(len(cells), len(sizes), count)
    offsets = list(itertools.product(range(count), repeat=len(sizes) - 1))
    moves = [sum(step * stride for step, stride in zip(offset, strides[:-1], strict=True)) for offset in offsets]
    firsts = cells.unsqueeze(1) + torch.tensor(moves, device=device)  # (cells, R)
    along = torch.arange(count, device=device)
    keys = torch.unique(firsts.unsqueeze(2) + along)
    # Keys that follow each other along the last axis are all nodes, hence numbered one after the other.
    rows = torch.searchsorted(keys, firsts)
    check_nodes(len(keys), math.prod(one.nodes for one in lines), 4)  # bytes, of masks over all of them

    length = spline_diagonal(weights, colours).prod(1)[chosen]
    at = _coordinates(block, [len(one.first) for one in lines])
    for axis, one in enumerate(lines):
        length = length * one.diagonal.to(device)[at[:, axis]]
    return LatticePoints(
        pixels=pixels,
        point=point,
        block=block,
        scale=length.rsqrt(),
        weights=weights[chosen],
        nodes=rows[cell][chosen].unsqueeze(2) + along,
        offsets=offsets,
        keys=keys,
        strides=strides,
        lines=tuple(lines),
        colours=colours,
        grid=grid,
    )


def _strides(lengths: Sequence[int]) -> list[int]:
    """Of an array of these lengths, row-major."""
    return [math.prod(lengths[axis + 1 :]) for axis in range(len(lengths))]


def _keys(coordinates: Tensor, lengths: Sequence[int]) -> Tensor:
    """Numbers (n,) of ``coordinates`` (n, axes) in an array of these lengths."""
    check_keys(math.prod(lengths), len(lengths))
    return (coordinates * torch.tensor(_strides(lengths), device=coordinates.device)).sum(1)


def _coordinates(keys: Tensor, lengths: Sequence[int]) -> Tensor:
    """The way back, (n, axes)."""
    columns = [keys // stride % length for stride, length in zip(_strides(lengths), lengths, strict=True)]
    return torch.stack(columns, 1) if columns else keys.new_zeros(len(keys), 0)
