"""Tree energy: each pixel is to look like the others, as seen along the image's minimum spanning tree.

    R(s) = weight * sum over pixels p of |s_p - t_p|_1 / 2,     t_p = sum over q of A_pq s_q / sum over q of A_pq
    A_pq = exp(-sum over the edges of the tree's path from p to q of |dI|^2 / (2 sigma_rgb^2))

over the tree that joins neighbouring pixels by the smallest differences of colour dI. However far away, a pixel has a
say if there is a way to it without a large step of colour; none behind an edge of the image. t are soft pseudo-labels,
and gradients flow through both s and t. On one-hot labels R is the sum over p and q of A_pq [l_p != l_q] over the sum
around p, which "bilinear" relaxes to 1 - <s_p, t_p> instead.

Differs from the published loss in: 1. the second tree, over a network's features, is left out, as a regularizer sees
the image alone; 2. all pixels count, not only those without a label; 3. the factor 1/2, so that R of labels counts
pixels; 4. sigma_rgb is a bandwidth: the released exp(-|dI|^2 / 0.002) is one of 0.0316 in the units of the image that
it is given.

A loss: no form is offered, as weights around p and q differ. The tree is built and filtered on the CPU, in time that
grows with the pixels; values on another device are taken there and back.

Source: Liang, Wang, Zhang, Sun, Shen, "Tree energy loss: towards sparsely annotated semantic segmentation", CVPR 2022.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from regloss import grid
from regloss.errors import UsageError
from regloss.regularizer import Forms, Regularizer, Term
from regloss_plugins.kernels.tree_filter import Tree, filter_tree, spanning_tree

RELAXATIONS = ("total-variation", "bilinear")


@dataclass(frozen=True)
class TreeEnergy(Regularizer):
    """How far segmentations are from their averages along the image's minimum spanning tree.

    Args:
        weight: factor of the whole energy, >= 0.
        sigma_rgb: bandwidth of image values, 0 < sigma_rgb <= 2, for each step along a path.
        relaxation: energy of probabilities: "total-variation", as published, or "bilinear".

    Raises:
        UsageError: a setting outside its range.

    The last pixel lies behind an edge, so that the one label of its own costs nothing:

    >>> image = torch.tensor([[[[0.0, 0.0, 1.0]]]])
    >>> term = TreeEnergy(sigma_rgb=0.1).bind(image)
    >>> for labels in ([0, 0, 1], [0, 1, 1]):
    ...     probabilities = torch.nn.functional.one_hot(torch.tensor([[labels]])).movedim(-1, 1).float()
    ...     print(round(float(term.energy(probabilities)), 4))
    0.0
    1.0
    """

    weight: float = 1.0
    sigma_rgb: float = 0.03
    relaxation: Literal["total-variation", "bilinear"] = "total-variation"
    forms: ClassVar[Forms] = {}
    opaque: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 < self.sigma_rgb <= 2:
            raise UsageError(
                f"sigma_rgb of tree-energy must lie in (0, 2], in units of image values in [0, 1]; got "
                f"{self.sigma_rgb}. A bandwidth given for bytes is divided by 255."
            )
        if self.relaxation not in RELAXATIONS:
            raise UsageError(
                f"relaxation of tree-energy must be one of {', '.join(RELAXATIONS)}; got {self.relaxation!r}."
            )

    def build(self, image: Tensor, roi: Tensor | None, spacing: tuple[float, ...] | None) -> Term:
        """Grow the trees."""
        return _TreeTerm(self, image, roi)


class _TreeTerm(Term):
    def __init__(self, regularizer: TreeEnergy, image: Tensor, roi: Tensor | None) -> None:
        shape = (image.shape[0], *image.shape[2:])
        super().__init__(regularizer, shape, roi)
        self.settings = regularizer
        region = grid.full_roi(roi, shape, image.device)
        self.inside = region.unsqueeze(1)
        self.filter = _TreeFilter(image, region, regularizer.sigma_rgb)
        self.degrees = self.filter(torch.ones_like(image[:, :1])).clamp(min=1)  # a pixel counts itself, as 1

    def energy(self, probabilities: Tensor) -> Tensor:
        s = self.check(probabilities)
        # Outside the region of interest, whatever stands there must not reach the result, not even as NaN.
        s = torch.where(self.inside, s, 0)
        around: Tensor = _Filtering.apply(s, self.filter) / self.degrees.to(s)  # type: ignore[no-untyped-call]
        if self.settings.relaxation == "bilinear":
            apart = self.inside.to(s) - (s * around).sum(1, keepdim=True)
        else:
            apart = (s - around).abs() / 2
        return self.settings.weight * apart.flatten(1).sum(1)


class _TreeFilter:
    """A of a batch of images, without autograd."""

    def __init__(self, image: Tensor, region: Tensor, sigma: float) -> None:
        self.shape = tuple(region.shape)
        size = tuple(image.shape[2:])
        offsets = grid.neighbor_offsets(len(size), 2 * len(size))
        index = torch.arange(int(np.prod(size))).reshape(size)
        pixels, mask = image.detach().cpu(), region.cpu()
        self.trees: list[tuple[Tree, NDArray[Any]]] = []
        for one, inside in zip(pixels, mask, strict=True):
            first, second, costs = [], [], []
            for offset in offsets:
                a, b = grid.pair_slices(offset)
                kept = (inside[a] & inside[b]).flatten()
                first.append(index[a].flatten()[kept])
                second.append(index[b].flatten()[kept])
                squares = (grid.pick(one, a) - grid.pick(one, b)).square().sum(0).flatten()[kept]
                costs.append(squares / (2 * sigma**2))
            tree = spanning_tree(
                torch.cat(first).numpy(), torch.cat(second).numpy(), torch.cat(costs).numpy(), inside.flatten().numpy()
            )
            self.trees.append((tree, np.exp(-tree.costs)))

    def __call__(self, values: Tensor) -> Tensor:
        """A ``values`` (B, K, *S)."""
        flat = values.detach().cpu().flatten(2).numpy()
        workers = min(len(flat), torch.get_num_threads())

        def one(tree: tuple[Tree, NDArray[Any]], given: NDArray[Any]) -> NDArray[Any]:
            return filter_tree(*tree, given)

        if workers > 1:
            with ThreadPoolExecutor(workers) as pool:
                results = list(pool.map(one, self.trees, flat))
        else:
            results = [one(tree, given) for tree, given in zip(self.trees, flat, strict=True)]
        return torch.from_numpy(np.stack(results)).reshape(values.shape).to(values)


class _Filtering(torch.autograd.Function):
    """A is symmetric, so the backward pass is the filter again."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, bound: _TreeFilter) -> Tensor:
        ctx.bound = bound
        return bound(values)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _Filtering.apply(gradient, ctx.bound), None  # type: ignore[no-untyped-call]
