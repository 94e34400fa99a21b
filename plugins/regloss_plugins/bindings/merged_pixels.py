"""The implicit gradient's linear system over merged pixels, compiled: total variation on grids and graphs, on CPUs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from regloss.dispatch import fast
from regloss.dual_sets import Balls, Box
from regloss.dual_sets.dual_set import below_rim
from regloss.implicit import Adjoint, AdjointProblem
from regloss.numerics import vector_lengths
from regloss.operators import EdgeDifferences, Gradient, unscaled
from regloss_plugins.bindings.edge_sums import array

if TYPE_CHECKING:
    from regloss_plugins.kernels.merged_pixels import MergedPixels, Response, Rows


@fast("adjoint", EdgeDifferences, Box, device="cpu")
def merged_by_edges(problem: AdjointProblem) -> Adjoint:
    """Of a graph for each image."""
    operator, dual_set = unscaled(problem.part.operator)[0], problem.part.dual_set
    assert isinstance(operator, EdgeDifferences)
    assert isinstance(dual_set, Box)
    limit = below_rim(dual_set.radius, problem.dual.dtype)

    def solve(image: int) -> Response:
        free = (problem.dual[image].abs() < limit) & (operator.weights[image].detach() > 0)
        first, second = (array(end.to(torch.int32)) for end in operator.ends[image])
        merged = _merged(problem, image, first, second, free)
        return _respond(problem, image, merged)

    return _adjoint(problem, solve)[0]


@fast("adjoint", Gradient, Box, device="cpu")
def merged_on_grid(problem: AdjointProblem) -> Adjoint:
    """Of a grid, axis by axis."""
    grid, dual_set = _Grid.of(problem), problem.part.dual_set
    assert isinstance(dual_set, Box)
    limit = below_rim(dual_set.radius, problem.dual.dtype)

    def solve(image: int) -> Response:
        free = (grid.vectors(problem.dual[image]).abs() < limit) & (grid.weights_of(image) > 0)
        merged = _merged(problem, image, grid.first, grid.second, free)
        return _respond(problem, image, merged)

    return _adjoint(problem, solve)[0]


@fast("adjoint", Gradient, Balls, device="cpu")
def merged_jointly_on_grid(problem: AdjointProblem) -> Adjoint:
    """Of a grid whose axes are bounded together: vectors y on the rim turn, around their normals n = y / |y|."""
    grid, dual_set = _Grid.of(problem), problem.part.dual_set
    assert isinstance(dual_set, Balls)
    limit = below_rim(dual_set.radius, problem.dual.dtype)
    force = problem.part.residual(problem.log_probabilities.exp())
    tiny = torch.finfo(problem.dual.dtype).tiny
    kept: list[tuple[Tensor, Tensor]] = [(torch.empty(0), torch.empty(0))] * len(problem.dual)

    def solve(image: int) -> Response:
        from regloss_plugins.kernels.merged_pixels import Rows

        weights = grid.weights_of(image)
        there = weights > 0
        dual = grid.vectors(problem.dual[image])  # (K, axes, N)
        length = vector_lengths(dual * there, 1)
        free = length < limit
        merged = _merged(problem, image, grid.first, grid.second, free.unsqueeze(1) & there)
        rims = (~free & (length > 0)).flatten().nonzero().squeeze(1)  # class * N + pixel
        rows, turns = Rows.of_rims(
            array(rims),
            array(dual),
            array(grid.vectors(force[image])),
            array(weights),
            merged.labels,
            np.array(grid.strides),
            max(dual_set.radius, tiny),
        )
        kept[image] = rims, torch.from_numpy(turns)
        return _respond(problem, image, merged, rows)

    adjoint, found = _adjoint(problem, solve)
    if not problem.part.parameters:
        return adjoint
    nu = torch.zeros_like(problem.dual)
    for image, ((rims, turns), response) in enumerate(zip(kept, found, strict=True)):
        turned = torch.from_numpy(response.nu).unsqueeze(1) * turns
        whole = turned.reshape(-1, grid.axes - 1, grid.axes).sum(1)
        grid.vectors(nu[image])[rims // grid.pixels, :, rims % grid.pixels] = whole
    return dataclasses.replace(adjoint, duals=(nu,))


@dataclass(frozen=True)
class _Grid:
    """Edges of a grid, from each pixel along each axis, whether there is a pixel or not.

    Attributes:
        weights: (B or 1, axes, N) of the differences; 0 where there is none.
        strides: between the pixels of an edge, for each axis.
        first: (axes * N,) int32 ends; ``second`` likewise, too large where there is none.
    """

    weights: Tensor
    strides: list[int]
    first: NDArray[np.int32]
    second: NDArray[np.int32]

    @staticmethod
    def of(problem: AdjointProblem) -> _Grid:
        """That of the operator."""
        operator, factor = unscaled(problem.part.operator)
        assert isinstance(operator, Gradient)
        pixels = math.prod(operator.size)
        strides = [math.prod(operator.size[axis + 1 :]) for axis in range(operator.axes)]
        first = np.tile(np.arange(pixels, dtype=np.int32), operator.axes)
        second = first + np.repeat(np.array(strides, np.int32), pixels)
        return _Grid(factor * operator.weights(problem.dual).detach().flatten(2), strides, first, second)

    @property
    def axes(self) -> int:
        """How many."""
        return len(self.strides)

    @property
    def pixels(self) -> int:
        """N."""
        return self.weights.shape[2]

    def weights_of(self, image: int) -> Tensor:
        """(axes, N)."""
        return self.weights[image % len(self.weights)]

    def vectors(self, values: Tensor) -> Tensor:
        """(K, axes, *S) as (K, axes, N), a view."""
        return values.flatten(2)


def _merged(
    problem: AdjointProblem, image: int, first: NDArray[Any], second: NDArray[Any], free: Tensor
) -> MergedPixels:
    from regloss_plugins.kernels.merged_pixels import MergedPixels  # and numba with it, only where it is used

    log_probabilities = problem.log_probabilities[image].flatten(1)
    return MergedPixels(first, second, array(free.flatten(1)), array(log_probabilities), problem.entropy)


def _respond(problem: AdjointProblem, image: int, merged: MergedPixels, rows: Rows | None = None) -> Response:
    from regloss_plugins.kernels.merged_pixels import Rows

    start = array(problem.start[image].flatten(1))
    return merged.respond(start, rows or Rows.none(start.dtype), problem.max_steps, problem.tolerance)


def _adjoint(problem: AdjointProblem, solve: Callable[[int], Response]) -> tuple[Adjoint, list[Response]]:
    """Solve all images, in as many threads as torch uses, and put together what they gave."""
    batch, probabilities = len(problem.start), problem.log_probabilities.exp()
    threads = min(torch.get_num_threads(), batch)
    with torch.no_grad():
        if threads == 1:
            found = [solve(image) for image in range(batch)]
        else:
            with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
                found = list(pool.map(solve, range(batch)))
    v = torch.stack([torch.from_numpy(one.values) for one in found]).reshape(probabilities.shape)
    # Where the system was not quite solved the classes do not quite sum to 0, which costs nothing of the other bounds
    # that `regloss.implicit` names: v = P A (P^T g - mu - T^T nu) for P = 1 - s 1^T, and P A P^T <= S'.
    v = (v - probabilities * v.sum(1, keepdim=True)).to(probabilities)
    residual = torch.tensor([one.residual for one in found], dtype=v.dtype)
    return Adjoint(v, (None,), max(one.steps for one in found), residual), found
