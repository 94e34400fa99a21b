"""The lattice filter as a chain of sparse matrices, so that values stay on the GPU they are on.

    W = D A^T G A D = (S^T C^T X_1^T .. X_d^T) (G_f .. G_1) (X_d .. X_1 C S)

as `regloss_plugins.kernels.lattice.SplineLattice` is, to rounding:

    S    from pixels to points, with the diagonal D in it
    C    from points to the colour nodes of their blocks, by the colours' splines
    X    from blocks to places, by the splines of one spatial axis after the other
    G    blurs along one axis after the other, first the spatial ones, then the colours'

Going one axis at a time takes a quarter ("finest") to six tenths ("fine") of the numbers in X and G that going along
the spatial axes, and then the colours', at once does: blocks side by side share places along an axis, and the taps of
the axes' blurs add up instead of being multiplied. In between, a blur holds all nodes on the way from one node that
some pixel touches to another, so that it is the whole G, and no others.

Both a matrix and its transpose are stored, as CSR: a product writes every row once, where one with the transpose in
place would add into rows by atomic operations. Everything is built on the device, mostly by sorting; filtering is
products of matrices alone, and the host waits for none of them.
"""

from __future__ import annotations

import math
import warnings

import torch
from torch import Tensor

from regloss_plugins.kernels.lattice_points import LatticePoints
from regloss_plugins.kernels.lattice_splines import Splines, blur

# Where torch multiplies CSR matrices by dense ones: with cuSPARSE, and with hipSPARSE under the same name. It does not
# on MPS. On the CPU it does too, but there the compiled lattice is quicker.
_DEVICES = frozenset({"cuda"})
# Of the largest table in between; channels beyond that are filtered after each other. 1 GiB in float32.
_MOST_NUMBERS = 2**28


def filters_on(device: torch.device) -> bool:
    """Whether values on ``device`` are filtered there, by matrices; others go to the CPU's compiled lattice and back.

    >>> filters_on(torch.device("cuda", 0)), filters_on(torch.device("mps")), filters_on(torch.device("cpu"))
    (True, False, False)
    """
    return device.type in _DEVICES


class LatticeMatrices:
    """W of one image on a device.

    Args:
        points: of the image, on the device where the values must be.
        size: pixels of the whole grid.
        dtype: of the matrices, float32 or float64.

    Attributes:
        chain: the matrices, CSR, in the order in which they are applied.
    """

    def __init__(self, points: LatticePoints, size: int, dtype: torch.dtype) -> None:
        down, up, touched, shape = _spreading(points, size, dtype)
        self.chain = (*down, *_blurring(points, touched, shape, dtype), *reversed(up))
        self._channels = max(1, _MOST_NUMBERS // max(matrix.shape[0] for matrix in self.chain))

    def __call__(self, values: Tensor) -> Tensor:
        """W ``values`` (K, pixels of the whole grid), without autograd; 0 at pixels that do not count.

        The result need not be contiguous.
        """
        results = []
        for start in range(0, len(values), self._channels):
            rows = values[start : start + self._channels].T.contiguous()
            for matrix in self.chain:
                rows = matrix @ rows
            results.append(rows.T)
        return results[0] if len(results) == 1 else torch.cat(results)


def _csr(pointers: Tensor, columns: Tensor, values: Tensor, width: int) -> Tensor:
    # MKL and cuSPARSE both prefer 32 bits, and torch would convert them for MKL in every product.
    index = torch.int32 if len(columns) < 2**31 else torch.int64
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta", category=UserWarning)
        return torch.sparse_csr_tensor(
            pointers.to(index), columns.to(index), values, (len(pointers) - 1, width), check_invariants=False
        )


def _merged(keys: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of weights for nodes with ``keys``, both (n, m): the U different keys, the matrix (U, n), its transpose."""
    count, per_row = keys.shape
    ordered, order = keys.flatten().sort(stable=True)
    fresh = torch.ones_like(ordered, dtype=torch.bool)
    fresh[1:] = ordered[1:] != ordered[:-1]
    firsts = fresh.nonzero().squeeze(1)
    pointers = torch.cat([firsts, firsts.new_full((1,), len(ordered))])
    into = _csr(pointers, order // per_row, weights.flatten()[order], count)
    columns = torch.empty_like(order)
    columns[order] = fresh.cumsum(0) - 1
    every = torch.arange(0, len(ordered) + 1, per_row, device=keys.device)
    return ordered[firsts], into, _csr(every, columns, weights.flatten(), len(firsts))


def _spreading(
    points: LatticePoints, size: int, dtype: torch.dtype
) -> tuple[list[Tensor], list[Tensor], Tensor, tuple[int, ...]]:
    """A D and its transpose, factor by factor; the nodes that are touched; along how many of them every axis has.

    Nodes are numbered by their places and last their colours, as an array of that shape would be.
    """
    device = points.pixels.device
    # Pixels to points. Those that do not count have an empty row in the transpose.
    _, into, out = _merged(points.point[:, None], points.scale.to(dtype)[points.point][:, None])
    every = torch.arange(size + 1, device=device)
    down = [_csr(into.crow_indices(), points.pixels[into.col_indices()], into.values(), size)]
    up = [_csr(torch.searchsorted(points.pixels, every), out.col_indices(), out.values(), out.shape[1])]

    # Points to the colour nodes of their blocks.
    weights = points.weights.to(dtype)  # (P, axes, count)
    product = weights[:, -1, None, :]
    offsets = torch.tensor(points.offsets, dtype=torch.int64, device=device)  # (R, axes - 1)
    for axis in range(offsets.shape[1]):
        product = product * weights[:, axis, offsets[:, axis], None]
    count = len(points.keys)
    keys, into, out = _merged((points.block[:, None, None] * count + points.nodes).flatten(1), product.flatten(1))
    down.append(into)
    up.append(out)

    # Blocks to places, the last axis first. No axes: one block, which is a place.
    inner = count
    for line in reversed(points.lines):
        firsts, splines = line.first.to(device), line.weights.to(device, dtype)
        outer, rest = keys // inner, keys % inner
        coordinate = outer % len(firsts)
        places = firsts[coordinate][:, None] + torch.arange(splines.shape[1], device=device)
        moved = ((outer // len(firsts))[:, None] * line.nodes + places) * inner + rest[:, None]
        keys, into, out = _merged(moved, splines[coordinate])
        down.append(into)
        up.append(out)
        inner *= line.nodes
    return down, up, keys, (*points.sizes, count)


class _Axis:
    """A blur along one axis of an array of nodes; the nodes of the axis may be others before and after it.

    Args:
        dimension: which axis.
        before: (n,) int64 sorted keys of the nodes before.
        after: (m,) of those after.
        stride: how much the keys of neighbours differ.
        taps: from the left neighbour to the right one, an odd number of them.
    """

    def __init__(
        self,
        dimension: int,
        before: Tensor,
        after: Tensor,
        stride: int,
        taps: tuple[float, ...],
    ) -> None:
        self.dimension, self.taps = dimension, taps
        self.sources = _found(before, _around(after, stride, len(taps)))  # (m, taps)
        self.targets = _found(after, _around(before, stride, len(taps)))  # (n, taps)

    def reached(self, mask: Tensor) -> Tensor:
        """Nodes after the blur that those in ``mask`` reach."""
        return self._any(mask, self.sources)

    def needed(self, mask: Tensor) -> Tensor:
        """Nodes before the blur that those in ``mask`` after it are reached by."""
        return self._any(mask, self.targets)

    def _any(self, mask: Tensor, near: Tensor) -> Tensor:
        # -1, for no node, becomes a further one, which is in no mask.
        empty = torch.zeros_like(mask.narrow(self.dimension, 0, 1))
        padded = torch.cat([mask, empty], self.dimension)
        near = torch.where(near < 0, mask.shape[self.dimension], near)
        result = padded.index_select(self.dimension, near[:, 0])
        for tap in range(1, near.shape[1]):
            result |= padded.index_select(self.dimension, near[:, tap])
        return result

    def matrix(self, before: Tensor, after: Tensor, dtype: torch.dtype) -> Tensor:
        """From the nodes in the mask ``before`` to those in ``after``."""
        flat = before.flatten()
        numbers = (flat.cumsum(0, dtype=torch.int32) - 1).masked_fill_(~flat, -1)
        inner = math.prod(after.shape[self.dimension + 1 :])
        held = after.flatten().nonzero().squeeze(1)
        outer, rest = held // inner, (held % inner)[:, None]
        near = self.sources[outer % after.shape[self.dimension]]
        outer = (outer // after.shape[self.dimension])[:, None]
        # Clamped as there may be no node; what is read then is not used.
        read = numbers[(outer * before.shape[self.dimension] + near.clamp(min=0)) * inner + rest]
        used = (near >= 0) & (read >= 0)
        taps = torch.tensor(self.taps, dtype=dtype, device=after.device).expand(used.shape)
        pointers = torch.cat([used.new_zeros(1, dtype=torch.int64), used.sum(1).cumsum(0)])
        return _csr(pointers, read[used], taps[used], int(flat.sum()))


def _around(keys: Tensor, stride: int, taps: int) -> Tensor:
    """``keys`` (n,) and what lies within the taps' reach along an axis, (n, taps)."""
    return keys[:, None] + (torch.arange(taps, device=keys.device) - taps // 2) * stride


def _found(sorted_keys: Tensor, asked: Tensor) -> Tensor:
    """Places of the ``asked`` among the sorted keys, -1 for others."""
    place = torch.searchsorted(sorted_keys, asked).clamp(max=len(sorted_keys) - 1)
    return torch.where(sorted_keys[place] == asked, place, -1)


def _axes(points: LatticePoints) -> list[_Axis]:
    """Along the spatial axes first: there, the nodes of an axis are the same before and after."""
    axes = []
    taps = _taps(points.grid)
    for dimension, line in enumerate(points.lines):
        every = torch.arange(line.nodes, device=points.keys.device)
        axes.append(_Axis(dimension, every, every, 1, taps))
    taps = _taps(points.colours)
    # Colours between two that pixels touch: reached from one of them, and needed by one.
    needed = [points.keys]
    for stride in points.strides[:0:-1]:
        needed.insert(0, torch.unique(_around(needed[0], stride, len(taps))))
    before = points.keys
    for stride, wanted in zip(points.strides, needed, strict=True):
        reached = torch.unique(_around(before, stride, len(taps)))
        after = reached[torch.isin(reached, wanted, assume_unique=True)]
        axes.append(_Axis(len(points.sizes), before, after, stride, taps))
        before = after
    return axes


def _taps(splines: Splines) -> tuple[float, ...]:
    half = blur(splines)
    return (*half[:0:-1], *half)


def _blurring(points: LatticePoints, touched: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> list[Tensor]:
    """G from the ``touched`` nodes to themselves, axis by axis."""
    axes = _axes(points)
    mask = torch.zeros(math.prod(shape), dtype=torch.bool, device=touched.device)
    mask[touched] = True
    mask = mask.view(shape)
    needed = [mask]
    for axis in reversed(axes[1:]):
        needed.append(axis.needed(needed[-1]))
    matrices = []
    for axis, wanted in zip(axes, reversed(needed), strict=True):
        after = axis.reached(mask) & wanted
        matrices.append(axis.matrix(mask, after, dtype))
        mask = after
    return matrices
