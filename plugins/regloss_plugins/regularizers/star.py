"""Star shape: from the centre one sees every pixel of a class without leaving it. A hard constraint.

    R(s) = 0 where s_label(parent(x)) >= s_label(x) for every pixel x, inf elsewhere
    parent(x) = round(x + (c - x) / max over axes of |c - x|),    parent(c) = c

so that the class's probability does not rise along any of the discrete rays that lead away from the centre c, and every
region {s_label > t} is star-shaped about c. The region where the class is the *most probable* one is so too for two
classes; with more, threshold its probability instead.

The centre is given, or taken from a prediction: the centre of mass of the region where the class is the most probable
one, rounded to a pixel. Evaluated, the prediction is what is evaluated; `solve` takes the minimiser of the unaries and
the entropy alone, and a layer the softmax of the network's logits. Where the class is the most probable one nowhere,
all its mass decides, and where it has none, the centre of the region of interest. No gradient flows through the centre.

A pixel whose parent lies outside the region of interest is not constrained. The constraint counts as met when no
probability exceeds its parent's by more than ``tolerance``. Gradient descent gets weight times the sum of squared
excesses.

As a saddle form, R(s) = max over q >= 0 of <-G s, q>, with (G s)(x) = s_label(parent(x)) - s_label(x), and
|G|^2 <= 2 (1 + largest number of children), about 9.4 in fact.

Source: Liu, Wang, Tai, arXiv:2002.03989, with the direction of the field reversed (its sign drives the class away from
the star); the tree of rays is that of Veksler, "Star shape prior for graph-cut image segmentation", ECCV 2008. Forward
differences, as printed there, let through digital regions that are not star-shaped and forbid some that are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from regloss import grid
from regloss.checks import check_scores, holds
from regloss.errors import UsageError
from regloss.regularizer import Face, Form, Regularizer, Saddle, SaddleBlock, Term


@dataclass(frozen=True)
class StarShape(Regularizer):
    """One class is star-shaped about a centre.

    Args:
        weight: of the penalty that gradient descent gets, >= 0; 0 switches the constraint off.
        label: the class, 0 to K - 1.
        center: pixel coordinates in the order of the image's axes, (y, x) in 2D, starting at 0; the same for all
            images (D,), or one for each (B, D); rounded to pixels. None = that of the prediction, see above.
        tolerance: excess of a probability over its parent's that still counts as met, > 0.

    Raises:
        UsageError: a setting outside its range, or (when bound) a centre outside the image.

    >>> labels = torch.tensor([[[1, 1, 0, 1, 0]]])
    >>> probabilities = torch.stack([labels == 0, labels == 1], dim=1).float()
    >>> term = StarShape(center=(0, 0)).bind(torch.zeros(1, 1, 1, 5))
    >>> term.energy(probabilities), term.violation(probabilities)
    (tensor([inf]), tensor([1.]))
    """

    weight: float = 1.0
    label: int = 1
    center: Sequence[float] | Sequence[Sequence[float]] | Tensor | None = None
    tolerance: float = 1e-2
    needs_image: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if isinstance(self.label, bool) or not isinstance(self.label, int) or self.label < 0:
            raise UsageError(f"label must be a class index, 0 or more; got {self.label!r}.")
        if not 0 < self.tolerance < 1:
            raise UsageError(f"tolerance must lie in (0, 1), a difference of probabilities; got {self.tolerance}.")
        if self.center is not None:
            center = _coordinates(self.center)
            if not bool(center.isfinite().all()):
                raise UsageError(f"center must be finite pixel coordinates; got {center.tolist()}.")

    @property
    def forms(self) -> tuple[type[Form], ...]:
        """The saddle form, once the centre is known."""
        return () if self.center is None else (Saddle,)

    @property
    def adapted_forms(self) -> tuple[type[Form], ...]:
        """The saddle form, as a prediction has a centre."""
        return (Saddle,)

    def centered_on(self, probabilities: Tensor, roi: Tensor | None = None) -> StarShape:
        """These settings with the centres of mass of a prediction, one for each image.

        Args:
            probabilities: (B, K, *S), of a network for example.
            roi: (B, *S) bool; only these pixels count.

        Returns:
            Settings for these B images.
        """
        check_scores(probabilities, "probabilities")
        _check_label(self.label, probabilities)
        return replace(self, center=_center_of_mass(probabilities.detach(), self.label, roi))

    def build(self, image: Tensor, roi: Tensor | None) -> Term:
        """Find every pixel's parent, if the centre is known."""
        shape = (image.shape[0], *image.shape[2:])
        everywhere = grid.full_roi(roi, shape, image.device)
        tree = None
        if self.center is not None:
            center = _coordinates(self.center).to(image.device).round().long()
            ndim = len(shape) - 1
            if center.shape[1] != ndim or center.shape[0] not in (1, shape[0]):
                raise UsageError(
                    f"center must have the shape ({ndim},) or ({shape[0]}, {ndim}) for these images; got "
                    f"{tuple(center.shape)}."
                )
            size = torch.tensor(shape[1:], device=image.device)
            if not holds((center >= 0) & (center < size)):
                raise UsageError(f"center {center.tolist()} lies outside the image, whose size is {tuple(shape[1:])}.")
            tree = _tree(center.expand(shape[0], ndim), everywhere)
        return _StarShapeTerm(self, tree, everywhere, shape, roi)


def _coordinates(center: Sequence[float] | Sequence[Sequence[float]] | Tensor) -> Tensor:
    """(1, D) or (B, D) float."""
    try:
        numbers = torch.as_tensor(center, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UsageError(f"center must be pixel coordinates (D,) or (B, D); got {center!r}.") from error
    if numbers.ndim not in (1, 2) or numbers.numel() == 0:
        raise UsageError(f"center must be pixel coordinates (D,) or (B, D); got {center!r}.")
    return numbers.reshape(-1, numbers.shape[-1])


def _check_label(label: int, probabilities: Tensor) -> None:
    if label >= probabilities.shape[1]:
        raise UsageError(f"star constrains the class {label}, but the segmentation has K = {probabilities.shape[1]}.")


def _center_of_mass(probabilities: Tensor, label: int, roi: Tensor | None) -> Tensor:
    """(B, D) pixel coordinates, rounded."""
    inside = grid.full_roi(roi, (probabilities.shape[0], *probabilities.shape[2:]), probabilities.device)
    chosen = inside.double()
    # The last of these that is not empty counts.
    for weights in (probabilities[:, label].double(), (probabilities.argmax(1) == label).double()):
        kept = weights * inside
        found = kept.flatten(1).sum(1) > 0
        chosen = torch.where(grid.spread(found, kept), kept, chosen)
    centers = []
    for axis in range(chosen.ndim - 1):
        others = [other + 1 for other in range(chosen.ndim - 1) if other != axis]
        profile = chosen.sum(others) if others else chosen
        steps = torch.arange(profile.shape[1], device=chosen.device, dtype=chosen.dtype)
        centers.append((profile * steps).sum(1) / profile.sum(1))
    return torch.stack(centers, dim=1).round()


@dataclass(frozen=True)
class _Tree:
    """Every pixel's parent."""

    parent: Tensor  # (B, N) int64
    active: Tensor  # (B, N) bool: pixels that have a parent, both in the region of interest
    most: Tensor  # () largest number of children of a pixel

    @property
    def children(self) -> int:
        """The same as a number, which waits for the device; only solvers ask for it."""
        return int(self.most)


def _tree(center: Tensor, inside: Tensor) -> _Tree:
    size = inside.shape[1:]
    axes = [torch.arange(length, device=inside.device) for length in size]
    pixels = torch.stack(torch.meshgrid(*axes, indexing="ij")).flatten(1)  # (D, N)
    toward = center.unsqueeze(2) - pixels  # (B, D, N)
    longest = toward.abs().amax(1, keepdim=True).clamp(min=1)
    at = (pixels + toward.double() / longest).round().long()  # halves to even, as usual; they come out exact
    parent = torch.zeros_like(at[:, 0])
    for axis, length in enumerate(size):
        parent = parent * length + at[:, axis]
    flat = inside.flatten(1)
    own = torch.arange(flat.shape[1], device=inside.device)
    active = flat & flat.gather(1, parent) & (parent != own)
    counts = torch.zeros_like(parent).scatter_add_(1, parent, active.long())
    return _Tree(parent, active, counts.amax())


class _StarShapeTerm(Term):
    def __init__(
        self,
        regularizer: StarShape,
        tree: _Tree | None,  # None where the centre depends on what is evaluated
        inside: Tensor,
        shape: tuple[int, ...],
        roi: Tensor | None,
    ) -> None:
        super().__init__(regularizer, shape, roi)
        self.settings, self.tree, self.inside = regularizer, tree, inside

    def adapted(self, probabilities: Tensor) -> Term:
        """This term about the centre of a prediction; itself, if its centre was given."""
        if self.tree is not None:
            return self
        settings = self.settings.centered_on(self.check(probabilities), self.roi)
        assert isinstance(settings.center, Tensor)
        tree = _tree(settings.center.to(self.inside.device).long(), self.inside)
        return _StarShapeTerm(settings, tree, self.inside, self.shape, self.roi)

    def builders(self) -> Mapping[type[Form], Callable[[], Form]]:
        tree = self.tree
        return {} if tree is None else {Saddle: lambda: Saddle((_block(self.settings, tree),))}

    def violation(self, probabilities: Tensor) -> Tensor:
        """Largest excess of a probability over its parent's, 0 to 1."""
        return self._excess(self.check(probabilities)).amax(1).clamp(min=0)

    def energy(self, probabilities: Tensor) -> Tensor:
        violation = self.violation(probabilities)
        if self.settings.weight == 0:
            return torch.zeros_like(violation)
        return torch.zeros_like(violation).masked_fill(violation > self.settings.tolerance, math.inf)

    def penalty(self, probabilities: Tensor) -> Tensor:
        return self.settings.weight * self._excess(self.check(probabilities)).clamp(min=0).square().sum(1)

    def _excess(self, s: Tensor) -> Tensor:
        """-G s, (B, N)."""
        _check_label(self.settings.label, s)
        tree = self.tree
        if tree is None:
            tree = _tree(_center_of_mass(s.detach(), self.settings.label, self.roi).long(), self.inside)
        return _rise(s, self.settings.label, tree)


def _rise(s: Tensor, label: int, tree: _Tree) -> Tensor:
    """How much more probable than its parent each pixel is, (B, N); 0 where it has none."""
    flat = s[:, label].flatten(1)
    return (flat - flat.gather(1, tree.parent)) * tree.active


def _block(settings: StarShape, tree: _Tree) -> SaddleBlock:
    """Dual variables are (B, K, *S): not negative in the row of the class, 0 in the others."""
    label, on = settings.label, float(settings.weight > 0)

    def only(row: Tensor, like: Tensor) -> Tensor:
        """``row`` (B, N) as the class's row of an array like ``like`` (B, K, *S)."""
        full = torch.zeros_like(like)
        full[:, label] = row.reshape(full[:, label].shape)
        return full

    def gather(values: Tensor, sign: int) -> Tensor:
        _check_label(label, values)
        flat = values[:, label].flatten(1)
        return only((flat + sign * flat.gather(1, tree.parent)) * tree.active, values)

    def scatter(dual: Tensor, sign: int) -> Tensor:
        kept = dual[:, label].flatten(1) * tree.active
        return only(kept + sign * torch.zeros_like(kept).scatter_add(1, tree.parent, kept), dual)

    def support(z: Tensor) -> Tensor:
        worst = z[:, label].flatten(1).amax(1) * on
        return torch.zeros_like(worst).masked_fill(worst > settings.tolerance, math.inf)

    def face(z: Tensor, dual: Tensor) -> Face:
        free = dual > 0
        return Face(lambda values: values * free)

    def select(images: Tensor) -> SaddleBlock:
        return _block(settings, replace(tree, parent=tree.parent[images], active=tree.active[images]))

    return SaddleBlock(
        apply=lambda values: gather(values, -1),
        adjoint=lambda dual: scatter(dual, -1),
        project=lambda dual: only(dual[:, label].clamp(min=0) * on, dual),
        support=support,
        # (s_x - s_parent)^2 <= 2 s_x^2 + 2 s_parent^2, and a pixel is a parent as often as it has children.
        norm=(2.0 * (1 + tree.children)) ** 0.5,
        absolute=lambda values: gather(values, 1),
        absolute_adjoint=lambda dual: scatter(dual, 1),
        squared=lambda values: gather(values, 1),
        face=face,
        select=select,
        cone=True,
    )
