"""Sums along the edges of graphs, compiled: the products of `regloss.operators.EdgeDifferences`, on CPUs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray
from torch import Tensor

from regloss.dispatch import fast
from regloss.operators import EdgeDifferences


class EdgeSums:
    """The task "edge-sums"; all tensors are on the CPU."""

    @staticmethod
    def gather(ends: Sequence[tuple[Tensor, Tensor]], weights: Tensor, values: Tensor, sign: int, out: Tensor) -> None:
        """Set ``out`` (B, K, E) to w_e (values_j + sign * values_i), for ``values`` (B, K, N)."""
        from regloss_plugins.kernels.edges import differences  # and numba with it, only where it is used

        for (first, second), weight, rows, result in zip(ends, weights, values, out, strict=True):
            differences(array(first), array(second), array(weight), array(rows), sign, result.numpy())

    @staticmethod
    def scatter(ends: Sequence[tuple[Tensor, Tensor]], weights: Tensor, flows: Tensor, sign: int, out: Tensor) -> None:
        """Add w_e ``flows``_e (B, K, E) to ``out`` (B, K, N) at j, and ``sign`` times it at i."""
        from regloss_plugins.kernels.edges import scatter

        for (first, second), weight, rows, result in zip(ends, weights, flows, out, strict=True):
            scatter(array(first), array(second), array(weight), array(rows), sign, result.numpy())


fast("edge-sums", EdgeDifferences, device="cpu")(EdgeSums)


def array(tensor: Tensor) -> NDArray[Any]:
    """The numbers of a tensor on the CPU, contiguous, without its history."""
    values: NDArray[Any] = tensor.detach().contiguous().numpy()
    return values
