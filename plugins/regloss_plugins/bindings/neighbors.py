"""Searches for nearest neighbours: by a tree or compiled on CPUs, in Triton on CUDA devices."""

from __future__ import annotations

import torch
from torch import Tensor

from regloss.dispatch import fast
from regloss_plugins.bindings.triton_kernels import triton_is_there


@fast("nearest-others", device="cpu")
def on_cpu(
    features: Tensor, places: Tensor, size: tuple[int, ...], window: int | None, count: int
) -> tuple[Tensor, Tensor]:
    """The ``count`` nearest others of each point, and squared distances, (N, count) each.

    Where there are fewer, -1 and inf.

    Args:
        features: (N, F) points, float64.
        places: (N, axes) int64 where they lie on a grid.
        size: of the grid.
        window: how far away along each axis a neighbour may be, >= 1; None = anywhere.
        count: 1 to N - 1.
    """
    from regloss_plugins.kernels.neighbors import nearest, nearest_in_window  # and numba with it

    if window is None:
        found = nearest(features.numpy(), count)
    else:
        found = nearest_in_window(features.numpy(), places.numpy(), size, window, count)
    return torch.from_numpy(found[0]), torch.from_numpy(found[1])


@fast("nearest-others", device="cuda")
def on_cuda(
    features: Tensor, places: Tensor, size: tuple[int, ...], window: int | None, count: int
) -> tuple[Tensor, Tensor] | None:
    """Likewise, distances in single precision; None = the reference is to do it."""
    if not triton_is_there():
        return None
    from regloss_plugins.kernels.neighbors_triton import nearest  # and triton with it, only where it is used

    indices, squared = nearest(features.float(), None if window is None else places, window or 0, count)
    return indices, squared.to(features)
