"""Differences along the edges of graphs and trees in Triton, whole batches at once, on CUDA devices."""

from __future__ import annotations

from torch import Tensor

from regloss.dispatch import fast
from regloss.operators import EdgeDifferences, TreeDifferences
from regloss_plugins.bindings.triton_kernels import triton_is_there


class EdgeSumsOnDevice:
    """The task "edge-sums", in float32 or float64."""

    @staticmethod
    def gather(operator: EdgeDifferences, values: Tensor) -> Tensor | None:
        """W_e (values_j + sign * values_i) (B, K, E), for ``values`` (B, K, N)."""
        if not triton_is_there():
            return None
        from regloss_plugins.kernels.edges_triton import edge_differences  # and triton with it, only where it is used

        weights = operator.weights.contiguous()
        found: Tensor = edge_differences(operator.edges.contiguous(), weights, values.contiguous(), operator.sign)
        return found

    @staticmethod
    def scatter(operator: EdgeDifferences, flows: Tensor) -> Tensor | None:
        """W_e ``flows``_e (B, K, E) at j, and ``sign`` times it at i, summed up (B, K, N)."""
        if not triton_is_there():
            return None
        from regloss_plugins.kernels.edges_triton import edge_sums

        weights = operator.weights.contiguous()
        found: Tensor = edge_sums(*operator.incidence, weights, flows.contiguous(), operator.sign)
        return found


class TreeSumsOnDevice:
    """The task "tree-sums": along the edges of a tree, always summed in the same order."""

    @staticmethod
    def gather(operator: TreeDifferences, values: Tensor) -> Tensor | None:
        """``values`` (B, N) at each pixel and, with the sign, at its parent; 0 where there is none."""
        found = EdgeSumsOnDevice.gather(operator.edges, values.unsqueeze(1))
        return None if found is None else found.squeeze(1)

    @staticmethod
    def scatter(operator: TreeDifferences, flows: Tensor) -> Tensor | None:
        """Each pixel's own ``flows`` (B, N) and, with the sign, those of its children."""
        found = EdgeSumsOnDevice.scatter(operator.edges, flows.unsqueeze(1))
        return None if found is None else found.squeeze(1)


fast("edge-sums", EdgeDifferences, device="cuda")(EdgeSumsOnDevice)
fast("tree-sums", TreeDifferences, device="cuda")(TreeSumsOnDevice)
