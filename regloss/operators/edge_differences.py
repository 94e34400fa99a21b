"""Weighted differences along the edges of a graph, a list of its own for each image: nonlocal total variation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from regloss.dispatch import find
from regloss.operators.linear_operator import LinearOperator


class Incidence(NamedTuple):
    """The edges at each pixel, without those of weight 0.

    Attributes:
        start: (B, N + 1) int32: those of pixel i stand at start[i] to start[i + 1] of ``order``.
        order: (B, 2 E) int32: e where i is the first end of the edge e, e + E where it is the second.
    """

    start: Tensor
    order: Tensor


class EdgeDifferences(LinearOperator):
    """(K s)_e = w_e (s_j - s_i) for the edges e = (i, j); dual shape (B, K, E).

    ||K||^2 <= 2 max over pixels of the sum of w_e^2 over the edges at the pixel.

    Args:
        edges: (B, E, 2) int64 row-major pixel indices.
        weights: w (B, E); may need a gradient.
        size: *S.
        sign: -1 for differences; 1 for the sums of both ends that |K| takes.
    """

    def __init__(self, edges: Tensor, weights: Tensor, size: tuple[int, ...], *, sign: int = -1) -> None:
        self.edges = edges
        self.weights = weights
        self.size = size
        self.sign = sign
        self._lists = _Lists(edges, weights.detach(), math.prod(size))

    @property
    def ends(self) -> list[tuple[Tensor, Tensor]]:
        """First and second ends (E,) of each image's edges, contiguous."""
        return self._lists.ends

    @property
    def incidence(self) -> Incidence:
        """The edges at each pixel."""
        return self._lists.incidence

    @cached_property
    def norm(self) -> float:
        """From the weights around each pixel."""
        with torch.no_grad():
            squares = self.weights.detach().square()
            incident = self._like(squares, 1).adjoint(torch.ones_like(squares).unsqueeze(1))
            return math.sqrt(2 * float(incident.max()))

    @property
    def dtype(self) -> torch.dtype:
        """That of the weights."""
        return self.weights.dtype

    @property
    def parameters(self) -> tuple[Tensor, ...]:
        """The weights."""
        return (self.weights,)

    @property
    def classes_are_alike(self) -> bool:
        """They are."""
        return True

    def apply(self, s: Tensor) -> Tensor:
        """Differences (B, K, E) of ``s`` (B, K, *S)."""
        weights, values = self.weights, s.flatten(2)
        fast = None if recorded(weights, s) else find("edge-sums", EdgeDifferences, device=s.device)
        found: Tensor | None = None if fast is None else fast.gather(self, values)
        if found is not None:
            return found
        return torch.stack(
            [
                torch.add(rows.index_select(1, second), rows.index_select(1, first), alpha=self.sign) * weight
                for (first, second), weight, rows in zip(self.ends, weights, values, strict=True)
            ]
        )

    def adjoint(self, y: Tensor) -> Tensor:
        """Sums (B, K, *S) over the edges at each pixel."""
        weights, (batch, classes) = self.weights, y.shape[:2]
        fast = None if recorded(weights, y) else find("edge-sums", EdgeDifferences, device=y.device)
        found: Tensor | None = None if fast is None else fast.scatter(self, y)
        if found is not None:
            return found.reshape(batch, classes, *self.size)
        dtype = torch.promote_types(weights.dtype, y.dtype)
        total = y.new_zeros(batch, classes, math.prod(self.size), dtype=dtype)
        sums = []
        for (first, second), weight, rows, zero in zip(self.ends, weights, y, total, strict=True):
            flow = rows * weight
            sums.append(zero.index_add(1, second, flow).index_add(1, first, flow, alpha=self.sign))
        return torch.stack(sums).reshape(batch, classes, *self.size)

    def absolute(self) -> EdgeDifferences:
        """The sums of both ends, weighted."""
        return self._like(self.weights, 1)

    def squared(self) -> EdgeDifferences:
        """The same with squared weights."""
        return self._like(self.weights.detach().square(), 1)

    def __getitem__(self, images: Tensor) -> EdgeDifferences:
        return EdgeDifferences(self.edges[images], self.weights[images], self.size, sign=self.sign)

    def _like(self, weights: Tensor, sign: int) -> EdgeDifferences:
        other = EdgeDifferences(self.edges, weights, self.size, sign=sign)
        other._lists = self._lists
        return other


@dataclass(frozen=True)
class _Lists:
    """What takes a pass over all edges (B, E, 2) and is found once, for all operators along them."""

    edges: Tensor
    weights: Tensor
    pixels: int

    @cached_property
    def ends(self) -> list[tuple[Tensor, Tensor]]:
        return [(pairs[:, 0].contiguous(), pairs[:, 1].contiguous()) for pairs in self.edges]

    @cached_property
    def incidence(self) -> Incidence:
        # What fills shorter lists up has one pixel at its ends, at which all others would wait for it.
        kept = self.edges.masked_fill((self.weights == 0).unsqueeze(2), self.pixels)
        ends, order = kept.transpose(1, 2).reshape(len(kept), -1).sort(dim=1, stable=True)
        every = torch.arange(self.pixels + 1, device=ends.device).expand(len(kept), -1).contiguous()
        return Incidence(torch.searchsorted(ends, every, out_int32=True), order.to(torch.int32))


def recorded(*tensors: Tensor) -> bool:
    """Whether autograd is to follow, which fast code cannot have."""
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
