"""Discrete operators on regular grids: neighbour offsets, pairs, forward differences and their adjoint.

A grid's shape ``S`` has one to three axes. An *offset* is one integer per axis; half of the neighbourhood is enough,
since every unordered pair is counted once. Pair arrays have the grid's own shape: entry ``p`` belongs to the pair
``(p, p + offset)`` and is 0 (or False) where ``p + offset`` lies outside the grid.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor

from regloss.errors import UsageError

Offset = tuple[int, ...]

# connectivity -> (axes, largest number of axes in which neighbours may differ)
_CONNECTIVITIES = {2: (1, 1), 4: (2, 1), 8: (2, 2), 6: (3, 1), 18: (3, 2), 26: (3, 3)}


def neighbor_offsets(ndim: int, connectivity: int) -> tuple[Offset, ...]:
    """Half of a neighbourhood: one offset of each pair ``(d, -d)``, the lexicographically positive one.

    Args:
        ndim: spatial axes, 1 to 3.
        connectivity: 2 in 1D; 4 or 8 in 2D; 6, 18 or 26 in 3D.

    Raises:
        UsageError: the connectivity does not exist in that dimension.

    >>> neighbor_offsets(2, 8)
    ((0, 1), (1, -1), (1, 0), (1, 1))
    """
    axes, differing = _CONNECTIVITIES.get(connectivity, (0, 0))
    if axes != ndim:
        fitting = [str(count) for count, (dims, _) in _CONNECTIVITIES.items() if dims == ndim]
        raise UsageError(f"A {ndim}D image has a connectivity of {' or '.join(fitting)}; got {connectivity}.")
    zero = (0,) * ndim
    return tuple(
        offset
        for offset in itertools.product((-1, 0, 1), repeat=ndim)
        if offset > zero and sum(map(abs, offset)) <= differing
    )


def axis_offsets(ndim: int) -> tuple[Offset, ...]:
    """The offsets along which forward differences are taken, one for each axis.

    >>> axis_offsets(2)
    ((1, 0), (0, 1))
    """
    return tuple(tuple(int(i == axis) for i in range(ndim)) for axis in range(ndim))


def pair_slices(offset: Offset) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Slices of the last axes that pick ``p`` and ``p + offset`` for all pairs inside the grid."""
    first = tuple(slice(0, -step) if step > 0 else slice(-step, None) for step in offset)
    second = tuple(slice(step, None) if step > 0 else slice(0, step or None) for step in offset)
    return first, second


def pick(values: Tensor, where: tuple[slice, ...]) -> Tensor:
    """View of ``values`` (..., *S) with ``where`` applied to its last axes."""
    index: tuple[Any, ...] = (..., *where)
    return values[index]


def pairs_inside(roi: Tensor, offset: Offset) -> Tensor:
    """(B, *S) bool: pairs with both ends in ``roi`` (B, *S)."""
    inside = torch.zeros_like(roi)
    first, second = pair_slices(offset)
    pick(inside, first).copy_(pick(roi, first) & pick(roi, second))
    return inside


def full_roi(roi: Tensor | None, shape: tuple[int, ...], device: torch.device) -> Tensor:
    """``roi``, or all of the grid where it is None."""
    return torch.ones(shape, dtype=torch.bool, device=device) if roi is None else roi


def spread(values: Tensor, like: Tensor) -> Tensor:
    """(B,) ``values``, one for each image, with axes of length 1 appended until they broadcast to ``like`` (B, ...)."""
    return values.reshape(-1, *[1] * (like.ndim - 1))


def forward_differences(values: Tensor, ndim: int) -> Tensor:
    """Forward differences over the last ``ndim`` axes, unit spacing, 0 across the far border (Neumann).

    Args:
        values: (..., *S).
        ndim: number of spatial axes.

    Returns:
        (..., ndim, *S).

    >>> forward_differences(torch.tensor([[0.0, 1.0, 3.0]]), 1)
    tensor([[[1., 2., 0.]]])
    """
    differences = []
    for axis in range(-ndim, 0):
        # The last difference is exactly 0 by repeating the last entry.
        last = values.narrow(axis, values.shape[axis] - 1, 1)
        differences.append(torch.diff(values, dim=axis, append=last))
    return torch.stack(differences, dim=-ndim - 1)


def forward_differences_adjoint(dual: Tensor, ndim: int) -> Tensor:
    """Adjoint of `forward_differences`; minus the divergence.

    Args:
        dual: (..., ndim, *S).
        ndim: number of spatial axes.

    Returns:
        (..., *S) with <D u, q> = <u, D^T q>.
    """
    total = torch.zeros_like(dual.select(-ndim - 1, 0))
    for index, axis in enumerate(range(-ndim, 0)):
        component = dual.select(-ndim - 1, index)
        inner = component.narrow(axis, 0, component.shape[axis] - 1)  # the last entry belongs to no difference
        total.narrow(axis, 0, inner.shape[axis]).sub_(inner)
        total.narrow(axis, 1, inner.shape[axis]).add_(inner)
    return total
