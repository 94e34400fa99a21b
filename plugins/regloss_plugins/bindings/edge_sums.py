"""Sums along the edges of graphs, compiled: the products of `regloss.operators.EdgeDifferences`, on CPUs."""

from __future__ import annotations

import math
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from regloss.dispatch import fast
from regloss.operators import EdgeDifferences


class EdgeSums:
    """The task "edge-sums"; all tensors are on the CPU."""

    @staticmethod
    def gather(operator: EdgeDifferences, values: Tensor) -> Tensor:
        """W_e (values_j + sign * values_i) (B, K, E), for ``values`` (B, K, N)."""
        from regloss_plugins.kernels.edges import differences  # and numba with it, only where it is used

        weights, sign = operator.weights, operator.sign
        dtype = torch.promote_types(weights.dtype, values.dtype)
        out = values.new_empty(*values.shape[:2], weights.shape[1], dtype=dtype)
        for (first, second), weight, rows, result in zip(operator.ends, weights, values, out, strict=True):
            differences(array(first), array(second), array(weight), array(rows), sign, result.numpy())
        return out

    @staticmethod
    def scatter(operator: EdgeDifferences, flows: Tensor) -> Tensor:
        """W_e ``flows``_e (B, K, E) at j, and ``sign`` times it at i, summed up (B, K, N)."""
        from regloss_plugins.kernels.edges import scatter

        weights, sign = operator.weights, operator.sign
        dtype = torch.promote_types(weights.dtype, flows.dtype)
        out = flows.new_zeros(*flows.shape[:2], math.prod(operator.size), dtype=dtype)
        for (first, second), weight, rows, result in zip(operator.ends, weights, flows, out, strict=True):
            scatter(array(first), array(second), array(weight), array(rows), sign, result.numpy())
        return out


fast("edge-sums", EdgeDifferences, device="cpu")(EdgeSums)


def array(tensor: Tensor) -> NDArray[Any]:
    """The numbers of a tensor on the CPU, contiguous, without its history."""
    values: NDArray[Any] = tensor.detach().contiguous().numpy()
    return values
