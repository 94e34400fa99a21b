"""Star shape: from the centre one sees every pixel of a class without leaving it. A hard constraint.

    s_label(parent(x)) >= s_label(x) for every pixel x
    parent(x) = round(x + (c - x) / max over axes of |c - x|),    parent(c) = c

so that the class's probability does not rise along any of the discrete rays that lead away from the centre c, and every
region {s_label > t} is star-shaped about c. The region where the class is the *most probable* one is so too for two
classes, and the labels of a solution are made so with more.

The centre is given, or taken from a prediction: the centre of mass of the region where the class is the most probable
one, rounded to a pixel. No gradient flows through it.

A pixel whose parent lies outside the region of interest is not constrained. A solver's iterate counts as meeting the
constraint when no probability exceeds its parent's by more than ``tolerance``. Gradient descent gets weight times the
sum of squared excesses.

Rounded, the labels are those of least total cost in which the class's region holds every pixel's parent: the cheapest
closed set of the tree, by dynamic programming from the outermost pixels inwards, exactly and in linear time.
Probabilities become feasible by the mean of two monotone ones around them: the least on the way to the centre, and the
largest among those behind.

As a saddle form, R(s) = max over q >= 0 of <-G s, q>, with (G s)(x) = s_label(parent(x)) - s_label(x), and
|G|^2 <= 2 (1 + largest number of children), about 9.4 in fact.

Source: Liu, Wang, Tai, arXiv:2002.03989, with the direction of the field reversed (its sign drives the class away from
the star); the tree of rays is that of Veksler, "Star shape prior for graph-cut image segmentation", ECCV 2008. Forward
differences, as printed there, let through digital regions that are not star-shaped and forbid some that are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from regloss import grid
from regloss.checks import check_scores, holds
from regloss.constraint import ConstraintTerm, HardConstraint, contradiction
from regloss.dual_sets import Orthant
from regloss.errors import UsageError
from regloss.forms import Saddle, SaddlePart
from regloss.numerics import double, widest_float
from regloss.operators import TreeDifferences
from regloss.regularizer import Forms, Term

_CENTERS = 50  # seeds that are tried as centres, about


@dataclass(frozen=True)
class StarShape(HardConstraint):
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
    (tensor([0.]), tensor([1.]))
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
    def forms(self) -> Forms:
        """The saddle form."""
        return {Saddle: _StarShapeTerm.saddle}

    @property
    def needs_prediction(self) -> bool:
        """Whether the centre is that of a prediction."""
        return self.center is None

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

    def build(self, image: Tensor, roi: Tensor | None, spacing: tuple[float, ...] | None) -> Term:
        """Find every pixel's parent, if the centre is known."""
        shape = (image.shape[0], *image.shape[2:])
        everywhere = grid.full_roi(roi, shape, image.device)
        tree = None
        if self.center is not None:
            center = _coordinates(self.center).round().long().to(image.device)
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
        numbers = double(center)
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
    wide = widest_float(inside.device)
    chosen = inside.to(wide)
    # The last of these that is not empty counts.
    for weights in (probabilities[:, label].to(wide), (probabilities.argmax(1) == label).to(wide)):
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
    depth: Tensor  # (B, N) int64 steps to the centre

    @property
    def children(self) -> int:
        """The same as a number, which waits for the device; only solvers ask for it."""
        return int(self.most)

    def __getitem__(self, images: Tensor) -> _Tree:
        return _Tree(self.parent[images], self.active[images], self.most, self.depth[images])

    def levels(self) -> tuple[Tensor, list[Tensor]]:
        """Parents (B N,) of all pixels of the batch, counted through, and the active pixels, outermost level last."""
        count = self.parent.shape[1]
        first = torch.arange(len(self.parent), device=self.parent.device).unsqueeze(1) * count
        pixels = self.active.flatten().nonzero().squeeze(1)
        depth = self.depth.flatten()[pixels]
        depth, order = depth.sort()
        sizes = torch.unique_consecutive(depth, return_counts=True)[1].tolist()
        return (self.parent + first).flatten(), list(torch.split(pixels[order], sizes)) if sizes else []


def _tree(center: Tensor, inside: Tensor) -> _Tree:
    size = inside.shape[1:]
    axes = [torch.arange(length, device=inside.device) for length in size]
    pixels = torch.stack(torch.meshgrid(*axes, indexing="ij")).flatten(1)  # (D, N)
    toward = center.unsqueeze(2) - pixels  # (B, D, N)
    longest = toward.abs().amax(1, keepdim=True).clamp(min=1)
    # Halves to even, as usual; they come out exact.
    at = (double(pixels) + double(toward) / double(longest)).round().long().to(inside.device)
    parent = torch.zeros_like(at[:, 0])
    for axis, length in enumerate(size):
        parent = parent * length + at[:, axis]
    flat = inside.flatten(1)
    itself = torch.arange(flat.shape[1], device=inside.device)
    active = flat & flat.gather(1, parent) & (parent != itself)
    counts = torch.zeros_like(parent).scatter_add_(1, parent, active.long())
    return _Tree(parent, active, counts.amax(), toward.abs().amax(1))


class _StarShapeTerm(ConstraintTerm):
    def __init__(
        self,
        regularizer: StarShape,
        tree: _Tree | None,  # None where the centre depends on what is evaluated
        inside: Tensor,
        shape: tuple[int, ...],
        roi: Tensor | None,
        taken: bool = False,  # whether the centre is that of a prediction
    ) -> None:
        super().__init__(regularizer, shape, roi)
        self.settings, self.tree, self.everywhere, self.taken = regularizer, tree, inside, taken

    def conditioned_on(self, probabilities: Tensor) -> Term:
        """This term about the centre of a prediction; itself, if its centre was given."""
        if self.tree is not None:
            return self
        settings = self.settings.centered_on(self.check(probabilities), self.roi)
        assert isinstance(settings.center, Tensor)
        tree = _tree(settings.center.to(self.everywhere.device).long(), self.everywhere)
        return _StarShapeTerm(settings, tree, self.everywhere, self.shape, self.roi, taken=True)

    def reconciled(self, possible: Tensor) -> Term:
        """About another centre, in images where seeds contradict the one that was taken; see `StarShape`."""
        label, center = self.settings.label, self.settings.center
        if not self.taken or self.settings.weight == 0:
            return self
        assert isinstance(center, Tensor)
        forced, forbidden = (values.reshape(len(possible), -1) for values in self._forced(possible))
        if not bool((forced & forbidden).any()):
            return self
        must = ~possible.masked_fill(_is_label(possible, label), False).any(1) & self.everywhere
        centers = center.clone()
        for image in (forced & forbidden).any(1).nonzero().flatten().tolist():
            seeds = must[image].nonzero()
            order = (seeds - center[image].to(seeds)).square().sum(1).argsort(stable=True)
            middle = double(seeds).mean(0, keepdim=True).round().long().to(seeds.device)
            one = self[torch.tensor([image], device=possible.device)]
            for tried in torch.cat([middle, seeds[order][:: max(1, len(seeds) // _CENTERS)]]):
                tree = _tree(tried.unsqueeze(0), one.everywhere)
                other = _StarShapeTerm(self.settings, tree, one.everywhere, one.shape, one.roi)
                needed, lost = other._forced(possible[[image]])
                if not bool((needed & lost).any()):
                    centers[image] = tried.to(centers)
                    break
        settings = replace(self.settings, center=centers)
        tree = _tree(centers.to(self.everywhere.device).long(), self.everywhere)
        return _StarShapeTerm(settings, tree, self.everywhere, self.shape, self.roi, taken=True)

    def saddle(self) -> Saddle:
        """Dual variables are (B, K, *S): not negative in the row of the class, 0 in the others."""
        tree = self.tree
        assert tree is not None
        if self.settings.weight == 0:
            return Saddle(())
        operator = TreeDifferences(tree.parent, tree.active, tree.children, self.settings.label)
        return Saddle((SaddlePart(operator, Orthant(self.settings.tolerance)),))

    def violation(self, probabilities: Tensor) -> Tensor:
        """Largest excess of a probability over its parent's, 0 to 1."""
        return self._excess(self.check(probabilities)).amax(1).clamp(min=0)

    def check_classes(self, probabilities: Tensor) -> None:
        """The class must be one of them."""
        _check_label(self.settings.label, probabilities)

    def penalty(self, probabilities: Tensor) -> Tensor:
        return self.settings.weight * self._excess(self.check(probabilities)).clamp(min=0).square().sum(1)

    def __getitem__(self, images: Tensor) -> _StarShapeTerm:
        """Those images."""
        tree, inside = None if self.tree is None else self.tree[images], self.everywhere[images]
        roi = None if self.roi is None else self.roi[images]
        return _StarShapeTerm(self.settings, tree, inside, tuple(inside.shape), roi)

    def refuse(self, possible: Tensor) -> None:
        """A seed of the class needs the whole way to the centre, which seeds of other classes may stand on."""
        forced, forbidden = self._forced(possible)
        wrong = forced & forbidden
        if bool(wrong.any()):
            image, pixel = wrong.reshape(len(possible), -1).nonzero()[0].tolist()
            place = [int(index) for index in torch.unravel_index(torch.tensor(pixel), self.shape[1:])]
            label = self.settings.label
            raise contradiction(
                self,
                image,
                f"the way to the centre, at {place} or nearer to it, leads from a pixel that must be class {label} "
                f"over one that must not be class {label}",
            )

    def settled(self, labels: Tensor, possible: Tensor) -> Tensor:
        """Which pixels are of the class; what the others are is left open."""
        region = (labels == self.settings.label).unsqueeze(1)
        return possible & (region == _is_label(possible, self.settings.label))

    def round(self, cost: Tensor, possible: Tensor, counts: Tensor | None = None) -> Tensor:
        """The cheapest closed set of the tree, exactly; with counts, by a price on the class's pixels."""
        label = self.settings.label
        mine, others = cost[:, label], cost.masked_fill(_is_label(cost, label), torch.inf)
        cheapest, rest = others.min(1)
        forced, forbidden = self._forced(possible)
        gain = torch.where(forced | forbidden, 0, (cheapest - mine).flatten())  # of taking the class
        region = self._closed_set(gain, forced, forbidden)
        if counts is not None:
            region = self._counted(region, gain, forced, forbidden, counts)
        return torch.where(region.reshape(rest.shape), label, rest)

    def feasible(self, log_probabilities: Tensor, possible: Tensor) -> Tensor:
        """Between the largest monotone probabilities below and the least above; the other classes share the rest."""
        label = self.settings.label
        forced, forbidden = self._forced(possible)
        u = log_probabilities[:, label].exp().flatten()
        u = torch.where(forced, 1, torch.where(forbidden, 0, u))
        parent, levels = self._tree_of(possible).levels()
        below, above = u.clone(), u.clone()
        for level in levels:
            below[level] = torch.minimum(below[level], below[parent[level]])
        for level in reversed(levels):
            above.scatter_reduce_(0, parent[level], above[level], "amax")
        u = ((below + above) / 2).reshape(log_probabilities[:, label].shape)
        is_label = _is_label(possible, label)
        others = log_probabilities.masked_fill(is_label, -torch.inf)
        # Where the others have no probability at all they share alike.
        none = (others == -torch.inf).all(1, keepdim=True)
        others = torch.where(none, torch.where(possible & ~is_label, 0.0, -torch.inf), others)
        shares = torch.softmax(others, dim=1).nan_to_num(0.0)
        return torch.where(is_label, u.unsqueeze(1), shares * (1 - u).unsqueeze(1))

    def _tree_of(self, like: Tensor) -> _Tree:
        """The tree, of which there is one wherever a solver has been: without a centre it has none."""
        if self.tree is None:
            raise UsageError("star has no centre yet: give center, or ask term.conditioned_on(probabilities) for one.")
        return self.tree

    def _forced(self, possible: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels (B N,) bool that must be of the class, and that must not, with what follows along the tree."""
        label = self.settings.label
        parent, levels = self._tree_of(possible).levels()
        forced = (~possible.masked_fill(_is_label(possible, label), False).any(1)).flatten()
        forbidden = (~possible[:, label]).flatten()
        for level in reversed(levels):
            forced[parent[level][forced[level]]] = True
        for level in levels:
            forbidden[level] |= forbidden[parent[level]]
        return forced, forbidden

    def _closed_set(self, gain: Tensor, forced: Tensor, forbidden: Tensor) -> Tensor:
        """The closed set (B N,) bool of largest total ``gain``, with the forced and without the forbidden pixels."""
        assert self.tree is not None
        parent, levels = self.tree.levels()
        total = gain.clone()  # of a pixel and the best of what lies behind it
        for level in reversed(levels):
            behind = torch.where(
                forbidden[level], 0, torch.where(forced[level], total[level], total[level].clamp(min=0))
            )
            total.index_add_(0, parent[level], behind)
        region = (forced | (total > 0)) & ~forbidden
        for level in levels:
            region[level] &= region[parent[level]]
        return region

    def _counted(self, region: Tensor, gain: Tensor, forced: Tensor, forbidden: Tensor, counts: Tensor) -> Tensor:
        """As `_closed_set`, with a number of pixels that the counts of all classes allow."""
        label, inside = self.settings.label, self.everywhere.flatten()
        pixels, batch = self.everywhere.flatten(1).sum(1), len(self.everywhere)
        others = counts.sum(1) - counts[:, label]
        least = torch.maximum(counts[:, label, 0], pixels - others[:, 1])
        most = torch.minimum(counts[:, label, 1], pixels - others[:, 0])

        def size(chosen: Tensor) -> Tensor:
            return (chosen & inside).reshape(batch, -1).sum(1)

        now = size(region)
        wanted = torch.maximum(torch.minimum(now, most), least)
        if bool((wanted == now).all()):
            return region
        # Sets grow with a premium on the class; between two of them pixels are taken from the centre outwards, which
        # keeps them closed.
        everything = ~forbidden & (inside | region)
        small, large = forced, everything
        reach = 1.001 * gain.reshape(batch, -1).abs().amax(1) + 1e-12  # gains of sets are means of their pixels' ones
        low, high = -reach, reach
        for _ in range(50):
            middle = (low + high) / 2
            premium = middle.unsqueeze(1).expand(batch, len(gain) // batch).flatten()
            tried = self._closed_set(torch.where(forced | forbidden, gain, gain + premium), forced, forbidden)
            up = size(tried) > wanted
            low, high = torch.where(up, low, middle), torch.where(up, middle, high)
            rows = up.unsqueeze(1).expand(batch, len(gain) // batch).flatten()
            large, small = torch.where(rows, tried, large), torch.where(rows, small, tried)
        assert self.tree is not None
        chosen = small.reshape(batch, -1).clone()
        between = (large & ~small & inside).reshape(batch, -1)
        for image in range(batch):
            missing = int(wanted[image]) - int((chosen[image] & inside.reshape(batch, -1)[image]).sum())
            pixels_between = between[image].nonzero().squeeze(1)
            order = self.tree.depth[image][pixels_between].argsort(stable=True)
            chosen[image, pixels_between[order[: max(missing, 0)]]] = True
        return chosen.flatten()

    def _excess(self, s: Tensor) -> Tensor:
        """-G s, (B, N)."""
        _check_label(self.settings.label, s)
        tree = self.tree
        if tree is None:
            tree = _tree(_center_of_mass(s.detach(), self.settings.label, self.roi).long(), self.everywhere)
        return _rise(s, self.settings.label, tree)


def _is_label(values: Tensor, label: int) -> Tensor:
    """(1, K, 1, ...) bool: the channel of the class."""
    order = torch.arange(values.shape[1], device=values.device)
    return (order == label).reshape(1, -1, *[1] * (values.ndim - 2))


def _rise(s: Tensor, label: int, tree: _Tree) -> Tensor:
    """How much more probable than its parent each pixel is, (B, N); 0 where it has none."""
    flat = s[:, label].flatten(1)
    return (flat - flat.gather(1, tree.parent)) * tree.active
