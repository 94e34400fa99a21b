"""The lattice filter as a chain of sparse matrices, so that values stay on the GPU they are on.

    W = D A^T G A D = (S^T C^T X_1^T .. X_d^T) (G_f .. G_1) (X_d .. X_1 C S)

for a built `SplineLattice`, whose operator this is, to rounding:

    S    from pixels to points, with the diagonal D in it
    C    from points to the colour nodes of their blocks, by the colours' splines
    X    from blocks to places, by the splines of one spatial axis after the other
    G    blurs along one axis after the other, first the spatial ones, then the colours'

Going one axis at a time takes a quarter ("finest") to six tenths ("fine") of the numbers in X and G that going along
the spatial axes, and then the colours', at once does: blocks side by side share places along an axis, and the taps of
the axes' blurs add up instead of being multiplied. In between, a blur holds all nodes on the way from one node that
some pixel touches to another, so that it is the whole G, and no others.

Both a matrix and its transpose are stored, as CSR: a product writes every row once, where one with the transpose in
place would add into rows by atomic operations. Everything but the lattice is built on the device, mostly by sorting;
filtering is products of matrices alone, and the host waits for none of them.
"""

from __future__ import annotations

import math
import warnings

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from regloss_plugins.kernels.lattice import SplineLattice, Splines, blur

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
        lattice: the operator.
        size: pixels of the whole grid.
        device: where the matrices are, and the values must be.
        dtype: theirs, float32 or float64.

    Attributes:
        chain: the matrices, CSR, in the order in which they are applied.
    """

    def __init__(self, lattice: SplineLattice, size: int, device: torch.device, dtype: torch.dtype) -> None:
        down, up, touched, shape = _spreading(lattice, size, device, dtype)
        self.chain = (*down, *_blurring(lattice, touched, shape, device, dtype), *reversed(up))
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
    lattice: SplineLattice, size: int, device: torch.device, dtype: torch.dtype
) -> tuple[list[Tensor], list[Tensor], Tensor, tuple[int, ...]]:
    """A D and its transpose, factor by factor; the nodes that are touched; along how many of them every axis has.

    Nodes are numbered by their places and last their colours, as an array of that shape would be.
    """

    def numbers(array: NDArray[np.generic]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(device, torch.int64)

    def floats(array: NDArray[np.floating]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(device, dtype)

    # Pixels to points, in the order of the image. Those that do not count have an empty row in the transpose.
    pixels, order = numbers(lattice.pixels).sort()
    point = numbers(lattice.point)[order]
    scale = floats(lattice.scale)
    _, into, out = _merged(point[:, None], scale[point][:, None])
    every = torch.arange(size + 1, device=device)
    down = [_csr(into.crow_indices(), pixels[into.col_indices()], into.values(), size)]
    up = [_csr(torch.searchsorted(pixels, every), out.col_indices(), out.values(), out.shape[1])]

    # Points to the colour nodes of their blocks.
    chosen = numbers(lattice.chosen)
    weights = floats(lattice.weights)[chosen]  # (P, axes, count)
    product = weights[:, -1, None, :]
    offsets = numbers(lattice.offsets)  # (R, axes - 1)
    for axis in range(offsets.shape[1]):
        product = product * weights[:, axis, offsets[:, axis], None]
    first = numbers(lattice.rows)[numbers(lattice.cells)[chosen]]  # (P, R)
    nodes = first[:, :, None] + torch.arange(weights.shape[2], device=device)
    held = numbers(np.diff(lattice.points))
    block = torch.repeat_interleave(torch.arange(len(held), device=device), held)
    keys, into, out = _merged((block[:, None, None] * lattice.nodes + nodes).flatten(1), product.flatten(1))
    down.append(into)
    up.append(out)

    # Blocks to places, the last axis first. No axes: one block, which is a place.
    inner = lattice.nodes
    for axis, (firsts, splines) in reversed(list(enumerate(lattice.splines))):
        length = lattice.sizes[axis]
        outer, rest = keys // inner, keys % inner
        coordinate = outer % len(firsts)
        places = numbers(firsts)[coordinate][:, None] + torch.arange(splines.shape[1], device=device)
        moved = ((outer // len(firsts))[:, None] * length + places) * inner + rest[:, None]
        keys, into, out = _merged(moved, floats(splines)[coordinate])
        down.append(into)
        up.append(out)
        inner *= length
    return down, up, keys, (*lattice.sizes, lattice.nodes)


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
        before: NDArray[np.int64],
        after: NDArray[np.int64],
        stride: int,
        taps: tuple[float, ...],
        device: torch.device,
    ) -> None:
        self.dimension, self.taps = dimension, taps
        steps = (np.arange(len(taps)) - len(taps) // 2) * stride
        self.sources = torch.from_numpy(_found(before, after[:, None] + steps)).to(device)  # (m, taps)
        self.targets = torch.from_numpy(_found(after, before[:, None] + steps)).to(device)  # (n, taps)

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


def _found(sorted_keys: NDArray[np.int64], asked: NDArray[np.int64]) -> NDArray[np.int64]:
    """Places of the ``asked`` among the sorted keys, -1 for others."""
    place = np.minimum(np.searchsorted(sorted_keys, asked), len(sorted_keys) - 1)
    result: NDArray[np.int64] = np.where(sorted_keys[place] == asked, place, -1)
    return result


def _axes(lattice: SplineLattice, device: torch.device) -> list[_Axis]:
    """Along the spatial axes first: there, the nodes of an axis are the same before and after."""
    axes = []
    taps = _taps(lattice.grid)
    for dimension in range(len(lattice.splines)):
        every = np.arange(lattice.sizes[dimension], dtype=np.int64)
        axes.append(_Axis(dimension, every, every, 1, taps, device))
    taps = _taps(lattice.colours)
    steps = np.arange(len(taps)) - len(taps) // 2
    # Colours between two that pixels touch: reached from one of them, and needed by one.
    needed = [lattice.node_keys]
    for stride in lattice.node_strides[:0:-1]:
        needed.insert(0, np.unique(needed[0][:, None] + steps * stride))
    before = lattice.node_keys
    for stride, wanted in zip(lattice.node_strides, needed, strict=True):
        after = np.intersect1d(np.unique(before[:, None] + steps * stride), wanted, assume_unique=True)
        axes.append(_Axis(len(lattice.sizes), before, after, int(stride), taps, device))
        before = after
    return axes


def _taps(splines: Splines) -> tuple[float, ...]:
    half = blur(splines)
    return (*half[:0:-1], *half)


def _blurring(
    lattice: SplineLattice, touched: Tensor, shape: tuple[int, ...], device: torch.device, dtype: torch.dtype
) -> list[Tensor]:
    """G from the ``touched`` nodes to themselves, axis by axis."""
    axes = _axes(lattice, device)
    mask = torch.zeros(math.prod(shape), dtype=torch.bool, device=device)
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
