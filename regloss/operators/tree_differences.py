"""Differences between each pixel and its parent in a tree, for one class: star shapes."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from regloss.dispatch import find
from regloss.errors import UsageError
from regloss.operators.edge_differences import EdgeDifferences, recorded
from regloss.operators.linear_operator import LinearOperator


class TreeDifferences(LinearOperator):
    """(K s)(x) = s_label(x) - s_label(parent(x)), 0 where x has no parent.

    Of dual shape (B, K, *S), with 0 in the rows of the other classes.

    (s_x - s_parent)^2 <= 2 s_x^2 + 2 s_parent^2, and a pixel is a parent as often as it has children, so that
    ||K||^2 <= 2 (1 + largest number of children).

    Args:
        parent: (B, N) int64, of each of the N pixels, row-major.
        active: (B, N) bool, pixels that have a parent that counts.
        children: largest number of children of a pixel.
        label: the class.
        sign: -1 for differences; 1 for the sums that |K| takes.
    """

    def __init__(self, parent: Tensor, active: Tensor, children: int, label: int, *, sign: int = -1) -> None:
        self.parent, self.active, self.children = parent, active, children
        self.label, self.sign = label, sign

    @cached_property
    def edges(self) -> EdgeDifferences:
        """The same for the class alone: differences along the edges from each pixel's parent to it."""
        pixels = torch.arange(self.parent.shape[1], device=self.parent.device).expand_as(self.parent)
        ends, weights = torch.stack([self.parent, pixels], 2), self.active.to(torch.float32)
        return EdgeDifferences(ends, weights, (self.parent.shape[1],), sign=self.sign)

    @property
    def norm(self) -> float:
        """From the number of children."""
        return float((2.0 * (1 + self.children)) ** 0.5)

    def apply(self, s: Tensor) -> Tensor:
        """How much more probable than its parent each pixel is, in the row of the class."""
        if self.label >= s.shape[1]:
            raise UsageError(
                f"The class {self.label} is constrained along a tree, but the segmentation has K = {s.shape[1]}."
            )
        flat = s[:, self.label].flatten(1)
        fast = None if recorded(s) else find("tree-sums", TreeDifferences, device=s.device)
        found: Tensor | None = None if fast is None else fast.gather(self, flat)
        if found is not None:
            return self._row(found, s)
        return self._row((flat + self.sign * flat.gather(1, self.parent)) * self.active, s)

    def adjoint(self, y: Tensor) -> Tensor:
        """Each pixel's own value and, with the sign, those of its children."""
        flat = y[:, self.label].flatten(1)
        fast = None if recorded(y) else find("tree-sums", TreeDifferences, device=y.device)
        found: Tensor | None = None if fast is None else fast.scatter(self, flat)
        if found is not None:
            return self._row(found, y)
        kept = flat * self.active
        return self._row(kept + self.sign * torch.zeros_like(kept).scatter_add(1, self.parent, kept), y)

    def _row(self, values: Tensor, like: Tensor) -> Tensor:
        """``values`` (B, N) as the class's row of an array like ``like`` (B, K, *S)."""
        full = torch.zeros_like(like)
        full[:, self.label] = values.reshape(full[:, self.label].shape)
        return full

    def absolute(self) -> TreeDifferences:
        """The sums of pixel and parent."""
        return TreeDifferences(self.parent, self.active, self.children, self.label, sign=1)

    def squared(self) -> TreeDifferences:
        """The same, since all entries are 0, 1 or -1."""
        return self.absolute()

    def __getitem__(self, images: Tensor) -> TreeDifferences:
        return TreeDifferences(self.parent[images], self.active[images], self.children, self.label, sign=self.sign)
