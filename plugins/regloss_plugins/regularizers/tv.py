"""Total variation: the sum over classes of the length of each class's gradient.

    R(s) = weight * sum over classes k and pixels of e_p |(D s_k)_p|

with forward differences D, unit spacing, 0 across the far border; |.| is the l1 norm over the axes (anisotropic) or the
Euclidean norm (isotropic, per pixel and class). A difference with an end outside the region of interest is 0.
e = 1 / (1 + edge_scale |grad I|^2) makes boundaries cheap on edges of the image I; edge_scale is 0 by default.

On one-hot labels the anisotropic value is *twice* the number of cut 4-neighbour pairs (6-neighbour pairs in 3D), since
both classes jump; its graph form carries that factor, so that solver and loss share one energy.

As a saddle form, R(s) = max <e D s, y> over |y| <= weight, with ||D||^2 < 4 per axis.
Source: Jia, Tai, Liu, "Nonlocal regularized CNN for image segmentation", and Liu, Wang, Tai, arXiv:2002.03989.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from regloss import grid
from regloss.ascent import ArrayAscent, Ascent
from regloss.errors import UsageError
from regloss.regularizer import Face, Form, Graph, GridGraph, Regularizer, Saddle, SaddleBlock, Term
from regloss_plugins.regularizers.threshold_dynamics import edge_weights

if TYPE_CHECKING:
    from regloss_plugins.kernels.grid_ascent import Rows

_TINY = 1e-30


@dataclass(frozen=True)
class TotalVariation(Regularizer):
    """Total variation of every class's probability, summed over classes; looks at the image only for its edges.

    Args:
        weight: factor of the whole energy, >= 0.
        isotropic: Euclidean norm of the gradient instead of the l1 norm.
        edge_scale: contrast factor of e, in 1 / image value^2, >= 0; 0 = the image does not matter.

    Raises:
        UsageError: a setting outside its range.

    >>> labels = torch.tensor([[[0, 1], [0, 1]]])
    >>> probabilities = torch.stack([labels == 0, labels == 1], dim=1).float()
    >>> TotalVariation().bind(torch.zeros(1, 1, 2, 2)).energy(probabilities)
    tensor([4.])
    """

    weight: float = 1.0
    isotropic: bool = False
    edge_scale: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.edge_scale < math.inf:
            raise UsageError(f"edge_scale must be finite and not negative; got {self.edge_scale}.")

    @property
    def forms(self) -> tuple[type[Form], ...]:
        """A saddle form; a graph too if anisotropic, since then it is a cut on one-hot labels."""
        return (Saddle,) if self.isotropic else (Saddle, GridGraph, Graph)

    @property
    def needs_image(self) -> bool:
        """For edges alone."""
        return self.edge_scale > 0

    def build(self, image: Tensor, roi: Tensor | None) -> Term:
        """Note which differences lie inside the region of interest, and what they count."""
        shape = (image.shape[0], *image.shape[2:])
        edges = edge_weights(image, roi, self.edge_scale) if self.edge_scale > 0 else None
        return _TotalVariationTerm(self, _Factors(shape, roi, edges, image.dtype, image.device), roi)


def _axes(ndim: int) -> tuple[grid.Offset, ...]:
    """The offsets along which differences are taken, one for each axis."""
    return tuple(tuple(int(i == axis) for i in range(ndim)) for axis in range(ndim))


def _differences(roi: Tensor) -> Tensor:
    """(B, axes, *S) bool, True where both ends of a difference lie in ``roi`` (B, *S)."""
    return torch.stack([grid.pairs_inside(roi, offset) for offset in _axes(roi.ndim - 1)], dim=1)


@dataclass(frozen=True)
class _Factors:
    """What each difference counts, in [0, 1].

    Attributes:
        shape: (B, *S).
        roi: (B, *S) bool; None = everywhere.
        edges: (B, 1, *S) weights; None = 1.
        dtype: of the factors.
        device: of the factors.
    """

    shape: tuple[int, ...]
    roi: Tensor | None
    edges: Tensor | None
    dtype: torch.dtype
    device: torch.device

    @property
    def plain(self) -> bool:
        """Whether all are 1, wherever a difference stays on the grid."""
        return self.roi is None and self.edges is None

    @cached_property
    def there(self) -> Tensor:
        """(B, axes, *S): 1 where both ends count, else 0. Computed when it is needed, which is not always."""
        return self._there()

    def _there(self) -> Tensor:
        return _differences(grid.full_roi(self.roi, self.shape, self.device)).to(self.dtype)

    @cached_property
    def values(self) -> Tensor:
        """(B, axes, *S)."""
        return self.there if self.edges is None else self.there * self.edges

    def select(self, images: Tensor) -> _Factors:
        """Of those images alone."""
        roi, edges = (None if part is None else part[images] for part in (self.roi, self.edges))
        return _Factors((len(images), *self.shape[1:]), roi, edges, self.dtype, self.device)

    def of_differences(self, differences: Tensor) -> Tensor:
        """``differences`` (B, K, axes, *S), which are 0 across the border, times the factors."""
        if self.plain:
            return differences
        if torch.compiler.is_compiling():  # which knows no cached properties before Python 3.12
            there = self._there()
            return differences * (there if self.edges is None else there * self.edges).unsqueeze(1)
        return differences * self.values.unsqueeze(1)


class _TotalVariationTerm(Term):
    def __init__(self, regularizer: TotalVariation, factors: _Factors, roi: Tensor | None) -> None:
        super().__init__(regularizer, factors.shape, roi)
        self.offsets = _axes(len(factors.shape) - 1)
        self.factors = factors
        self.weight = regularizer.weight
        self.isotropic = regularizer.isotropic

    def energy(self, probabilities: Tensor) -> Tensor:
        probabilities = self.check(probabilities)
        differences = grid.forward_differences(probabilities, len(self.offsets))
        return _lengths(self.factors.of_differences(differences), self.weight, self.isotropic)

    def builders(self) -> Mapping[type[Form], Callable[[], Form]]:
        builders: dict[type[Form], Callable[[], Form]] = {
            Saddle: lambda: Saddle((_block(self.factors, self.weight, self.isotropic),))
        }
        if not self.isotropic:
            builders[GridGraph] = self._grid_graph
            builders[Graph] = lambda: self._grid_graph().graph()
        return builders

    def _grid_graph(self) -> GridGraph:
        return GridGraph(self.offsets, 2 * self.weight * self.factors.values)


def _lengths(differences: Tensor, weight: float, isotropic: bool) -> Tensor:
    """Sum of the lengths of ``differences`` (B, K, axes, *S), weighted: (B,)."""
    # vector_norm has the subgradient 0 at 0, where the root of a sum of squares would give NaN.
    norms: Tensor = torch.linalg.vector_norm(differences, ord=2 if isotropic else 1, dim=2)
    return weight * norms.flatten(1).sum(1)


def _block(factors: _Factors, weight: float, isotropic: bool) -> SaddleBlock:
    """The saddle form; dual variables are (B, K, axes, *S), those of an axis and pixel with |y| <= weight."""
    axes = len(factors.shape) - 1

    def apply(values: Tensor) -> Tensor:
        return factors.of_differences(grid.forward_differences(values, axes))

    def adjoint(dual: Tensor) -> Tensor:
        return grid.forward_differences_adjoint(factors.of_differences(dual), axes)

    def project(dual: Tensor) -> Tensor:
        if not isotropic:
            return dual.clamp(-weight, weight)
        dual = dual * factors.there.unsqueeze(1)  # what stands where no difference is must not shorten the others
        # Clamped before the root is taken, whose derivative at 0 is infinite. Norms along an inner axis are slow.
        square = dual.square().sum(2, keepdim=True)
        return dual * (weight / square.clamp(min=max(weight**2, torch.finfo(dual.dtype).tiny)).sqrt())

    def support(differences: Tensor) -> Tensor:
        return _lengths(differences, weight, isotropic)

    def slack(differences: Tensor, dual: Tensor) -> Tensor:
        if not isotropic:
            # w |z| - z y = |z| (w - sign(z) y): a product of two numbers that are not negative.
            return (differences.abs() * (weight - differences.sign() * dual)).flatten(1).sum(1)
        along = (differences * dual).sum(2)
        short: Tensor = weight * torch.linalg.vector_norm(differences, dim=2) - along
        return short.clamp(min=0).flatten(1).sum(1)

    def absolute(values: Tensor) -> Tensor:
        # |D| sums the two ends of a difference.
        sums = (2 * values.unsqueeze(2) + grid.forward_differences(values, axes)) * factors.values.unsqueeze(1)
        # The axes of a pixel are projected jointly if isotropic, so they share the largest value.
        return sums.amax(2, keepdim=True).expand_as(sums) if isotropic else sums

    def absolute_adjoint(dual: Tensor) -> Tensor:
        # |D^T| y is the adjoint of 2 * identity + D, axis by axis.
        kept = dual * factors.values.unsqueeze(1)
        return 2 * kept.sum(2) + grid.forward_differences_adjoint(kept, axes)

    def squared(values: Tensor) -> Tensor:
        sums = 2 * values.unsqueeze(2) + grid.forward_differences(values, axes)
        return sums * factors.values.square().unsqueeze(1)

    def face(differences: Tensor, dual: Tensor) -> Face:
        # As near to the rim as rounding can tell, a dual variable counts as lying on it.
        there = factors.there.unsqueeze(1)
        edge = weight * (1 - max(1e-9, 8 * torch.finfo(dual.dtype).eps))
        if not isotropic:
            free = (dual.abs() < edge) * there
            return Face(lambda values: values * free)
        dual = dual * there
        radius = torch.linalg.vector_norm(dual, dim=2, keepdim=True)
        free = radius < edge
        # On the rim y = weight * z / |z| turns with z. Its own direction serves as that of z, which may be 0 there.
        normal = torch.where(free, 0, dual / radius.clamp(min=_TINY))
        length = torch.linalg.vector_norm(differences, dim=2, keepdim=True)
        curvature = torch.where(free, 0, length / max(weight, _TINY))
        return Face(lambda values: values * there - normal * (normal * values).sum(2, keepdim=True), curvature)

    return SaddleBlock(
        apply=apply,
        adjoint=adjoint,
        project=project,
        support=support,
        norm=(4.0 * axes) ** 0.5,
        slack=slack,
        absolute=absolute,
        absolute_adjoint=absolute_adjoint,
        squared=squared,
        face=face,
        select=lambda images: _block(factors.select(images), weight, isotropic),
        compiled=lambda ascent: _compiled(factors, weight, isotropic, ascent),
        dtype=factors.dtype,
    )


def _compiled(factors: _Factors, weight: float, isotropic: bool, ascent: Ascent) -> list[ArrayAscent]:
    """The ascent of each image."""
    from regloss_plugins.kernels.grid_ascent import GridAscent  # and numba with it, only where it is used

    size = factors.shape[1:]
    axes, width = len(size), size[-1]
    count = math.prod(size[:-1])
    images = []
    rows: Rows | None = None
    for number, scores in enumerate(ascent.cost):
        if rows is None or not factors.plain:  # else they are those of the image before
            rows = _rows(factors.select(torch.tensor([number], device=factors.device)), isotropic, ascent)
        classes = len(scores)
        start = None
        if ascent.start is not None:
            start = ascent.start[number].to(scores).reshape(classes, axes, count, width).numpy()
        kernel = GridAscent(
            scores.reshape(classes, count, width).numpy(),
            start,
            rows,
            weight,
            isotropic,
            ascent.strength,
            ascent.smoothing == "entropy",
            None if ascent.roi is None else ascent.roi[number].reshape(count, width).numpy(),
        )
        images.append(ArrayAscent(kernel, scores.shape, (classes, axes, *size)))
    return images


def _rows(factors: _Factors, isotropic: bool, ascent: Ascent) -> Rows:
    """What the compiled ascent needs to know of each row of a grid; ``factors`` are those of one image."""
    from regloss_plugins.kernels.grid_ascent import Rows

    axes, lengths, width = len(factors.shape) - 1, factors.shape[1:-1], factors.shape[-1]
    entry = np.arange(math.prod(lengths))
    if factors.plain:
        # Rows away from the border are alike, and a grid of at most five rows along each axis has all kinds.
        short = [min(length, 5) for length in lengths]
        kinds = [_kinds(length) for length in lengths]
        entry = np.arange(math.prod(short)).reshape(short)[np.ix_(*kinds)].ravel()
        factors = replace(factors, shape=(1, *short, width))
    weights = (ascent.factor * factors.values[0]).to(ascent.cost)
    if isinstance(ascent.steps, str):
        # One class stands for all.
        form = Saddle((_block(factors, 1.0, isotropic),))
        one = factors.values.new_zeros(1, 1, *factors.shape[1:])
        (bound,) = form.diagonal_bound(one, diagonal=ascent.steps == "diagonal")
        bound = (ascent.factor**2 * bound).to(ascent.cost).expand(1, 1, *weights.shape)[0, 0]
        steps = torch.where(bound > 0, ascent.pace / bound, 0)
    else:
        steps = torch.full_like(weights, ascent.steps)
    w, moves, metric = (
        values.reshape(axes, -1, width).transpose(0, 1).contiguous().numpy()
        for values in (weights, weights * steps, torch.where(steps > 0, 1 / steps, 0))
    )
    return Rows(w, moves, metric, entry, lengths[-1] if lengths else 1)


def _kinds(length: int) -> list[int]:
    """The place on an axis of at most five that each place on an axis is like, as to the distances to both ends."""
    if length <= 5:
        return list(range(length))
    return [0, *[2] * (length - 3), 3, 4]
