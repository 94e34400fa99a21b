"""Differences along the edges of graphs and trees in Triton, whole batches at once, on CUDA devices."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from regloss.dispatch import fast
from regloss.dual_problem import DualProblem
from regloss.dual_sets import Box
from regloss.operators import EdgeDifferences, TreeDifferences
from regloss_plugins.bindings.edge_ascent import step_sizes
from regloss_plugins.bindings.triton_kernels import triton_is_there

if TYPE_CHECKING:
    from regloss_plugins.kernels.edge_ascent_triton import EdgeSteps


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


@fast("dual-steps", EdgeDifferences, Box, device="cuda")
def edge_steps(problem: DualProblem, most: float) -> EdgeSteps | None:
    """The ascent of the batch; None in double precision, which GPUs are slow in, and where there is no edge."""
    operator, dual_set = problem.operator, problem.dual_set
    assert isinstance(operator, EdgeDifferences)
    assert isinstance(dual_set, Box)
    if problem.cost.dtype != torch.float32 or not operator.edges.numel() or not triton_is_there():
        return None
    from regloss_plugins.kernels.edge_ascent_triton import EdgeSteps  # and triton with it, only where it is used

    cost = problem.cost.flatten(2).transpose(1, 2).contiguous()  # (B, N, K)
    batch, edges = operator.weights.shape
    weights = problem.factor * operator.weights.detach().to(cost)
    steps, metric = step_sizes(operator, problem)
    duals = cost.new_zeros(2, batch, edges, cost.shape[2])
    if problem.start is not None:
        duals[:] = problem.start.to(cost).transpose(1, 2)
    start, order = operator.incidence
    return EdgeSteps(
        duals=duals,
        adjoints=cost.new_zeros(2, *cost.shape),
        momenta=cost.new_ones(batch),
        extrapolations=cost.new_zeros(batch),
        points=torch.empty_like(cost),
        cost=cost,
        ends=operator.edges.contiguous(),
        start=start,
        order=order,
        weights=weights.contiguous(),
        moves=(weights * steps).contiguous(),
        metric=metric.contiguous(),
        radius=dual_set.radius,
        smoothing_weight=problem.weight,
        entropy=problem.smoothing == "entropy",
        most=most,
    )
