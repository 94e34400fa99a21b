"""Convex shape: no ball around a background pixel is mostly foreground. A hard constraint on one class.

With D = {s_label > 1/2} and B_r(x) the lattice ball of radius r about x, outside of the image counting as not D,

    at most half of B_r(x) lies in D, for all radii r and pixels x that are not in D

Every digitised convex set fulfils it for every radius: a line through x has the set on one side, and lattice balls are
symmetric about their centre. The reverse holds only for smooth boundaries and small radii.

The projection cycles through the radii and adds to D all pixels that break the condition (they get probability 1),
until no radius finds any. It never leaves the convex hull, keeps inclusions between regions, and ends at a set that
fulfils the condition; it is not the nearest such set, and no energy is known to fall. Its derivative is the identity at
pixels that were not added and 0 at the others.

Gradient descent gets weight times the sum over pixels and the mean over radii of
relu((1 - s_label) (2 fraction_r(s_label) - 1)), with the ball's mean probability as the fraction.

The violation is the largest number of pixels, over the radii, that break the condition. Pixels outside the region of
interest count as background and are never added.

Labels are rounded by the same cycle. Where it would add a pixel that must not be of the class, because it is a seed of
another, it starts from fewer pixels: those at which the class is cheapest by the least margin that leaves no dent, and
its seeds.

Source: Liu, Wang, Tai, arXiv:2002.03989, and Tai's lectures on it (the condition and the cycle). There the
probabilities are tested; the mask has to be, or straight boundaries creep outwards without end as soon as background
probabilities exceed a few parts in a hundred.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from regloss import grid
from regloss.checks import check_finite
from regloss.constraint import ConstraintTerm, HardConstraint, contradiction
from regloss.errors import UsageError
from regloss.forms import Projection
from regloss.regularizer import Constrained, Forms, Term
from regloss_plugins.kernels.balls import ball_size, ball_sums


@dataclass(frozen=True)
class ConvexShape(HardConstraint):
    """The region of one class is convex, in 1D to 3D.

    Args:
        weight: of the penalty that gradient descent gets, >= 0; 0 switches the constraint off.
        label: the class, 0 to K - 1.
        radii: of the balls, in pixels, each at least 1; a ball of radius below 1 is a single pixel.

    Raises:
        UsageError: a setting outside its range.

    >>> labels = torch.tensor([[[0, 1, 1], [0, 1, 0], [0, 1, 1]]])
    >>> probabilities = torch.stack([labels == 0, labels == 1], dim=1).float()
    >>> term = ConvexShape(radii=(1.5,)).bind(torch.zeros(1, 1, 3, 3))
    >>> term.violation(probabilities), term.form(Projection).project(probabilities)[0, 1, 1]
    (tensor([1.]), tensor([0., 1., 1.]))
    """

    weight: float = 1.0
    label: int = 1
    radii: Sequence[float] = (1.5, 3, 5, 9, 15)
    needs_image: ClassVar[bool] = False
    opaque: ClassVar[bool] = True  # thousands of shifts of the image, for large radii in 3D

    def __post_init__(self) -> None:
        if isinstance(self.label, bool) or not isinstance(self.label, int) or self.label < 0:
            raise UsageError(f"label must be a class index, 0 or more; got {self.label!r}.")
        numbers = list(self.radii) if isinstance(self.radii, Sequence) and not isinstance(self.radii, str) else []
        if not numbers or not all(isinstance(r, int | float) and 1 <= r < math.inf for r in numbers):
            raise UsageError(f"radii must be one or more numbers of pixels, each at least 1; got {self.radii!r}.")

    @property
    def forms(self) -> Forms:
        """The pseudo-projection, and what solvers take of it."""
        return {Projection: _ConvexShapeTerm.projection, Constrained: _ConvexShapeTerm.constrained}

    def build(self, image: Tensor, roi: Tensor | None, spacing: tuple[float, ...] | None) -> Term:
        """Note the region of interest."""
        shape = (image.shape[0], *image.shape[2:])
        return _ConvexShapeTerm(self, grid.full_roi(roi, shape, image.device), shape, roi)


def dents(region: Tensor, radius: float, inside: Tensor | None = None) -> Tensor:
    """Background pixels with more than half of their ball in the region.

    Args:
        region: (B, *S) bool.
        radius: of the ball, in pixels.
        inside: (B, *S) bool, pixels that may be found; None = all.

    Returns:
        (B, *S) bool.
    """
    ndim = region.ndim - 1
    found = (2 * ball_sums(region, radius, ndim) > ball_size(radius, ndim)) & ~region
    return found if inside is None else found & inside


def fill(region: Tensor, radii: Sequence[float], inside: Tensor | None = None) -> tuple[Tensor, int]:
    """Add the dents of all radii in turn, until none is left.

    Args:
        region: (B, *S) bool, False outside of ``inside``.
        radii: of the balls, in pixels.
        inside: (B, *S) bool, pixels that may be added; None = all.

    Returns:
        The filled region, and the number of sweeps over the image; in the last ones, one for each radius, no image of
        the batch had a dent.
    """
    sweeps = quiet = 0
    while quiet < len(radii):
        added = dents(region, radii[sweeps % len(radii)], inside)
        sweeps += 1
        if bool(added.any()):
            region, quiet = region | added, 0
        else:
            quiet += 1
    return region, sweeps


class _ConvexShapeTerm(ConstraintTerm):
    def __init__(self, regularizer: ConvexShape, inside: Tensor, shape: tuple[int, ...], roi: Tensor | None) -> None:
        super().__init__(regularizer, shape, roi)
        self.settings, self.everywhere = regularizer, inside

    def projection(self) -> Projection:
        """The filling."""
        return Projection(self._project, exact=False)

    def constrained(self) -> Constrained:
        """Itself, with no other prior."""
        return Constrained((self,) if self.settings.weight > 0 else (), {})

    def violation(self, probabilities: Tensor) -> Tensor:
        """Largest number of dents over the radii."""
        s = self.check(probabilities)
        check_finite(s, "probabilities")  # NaN would be outside of the region, and leave no dents
        region = self._region(s)
        counts = [dents(region, radius, self.everywhere).flatten(1).sum(1) for radius in self.settings.radii]
        return torch.stack(counts).amax(0).to(s.dtype)

    def check_classes(self, probabilities: Tensor) -> None:
        """The class must be one of them."""
        self._class(probabilities)

    def __getitem__(self, images: Tensor) -> _ConvexShapeTerm:
        """Those images."""
        inside, roi = self.everywhere[images], None if self.roi is None else self.roi[images]
        return _ConvexShapeTerm(self.settings, inside, tuple(inside.shape), roi)

    def refuse(self, possible: Tensor) -> None:
        """What the seeds of the class fill must hold no pixel of another."""
        label = self.settings.label
        forced, forbidden = self._forced(possible)
        _, dented = self._filled(forced, forbidden)
        if bool(dented.any()):
            image = int(dented.nonzero()[0])
            raise contradiction(
                self, image, f"pixels that must be class {label} surround some that must not be class {label}"
            )

    def settled(self, labels: Tensor, possible: Tensor) -> Tensor:
        """Which pixels are of the class; what the others are is left open."""
        region = (labels == self.settings.label).unsqueeze(1)
        return possible & (region == self._channel(possible))

    def round(self, cost: Tensor, possible: Tensor, counts: Tensor | None = None) -> Tensor:
        """The fill of the region where the class is cheapest, or cheapest by a margin."""
        label = self.settings.label
        cheapest, rest = cost.masked_fill(self._channel(cost), torch.inf).min(1)
        forced, forbidden = self._forced(possible)
        gain = torch.where(forced | forbidden, 0, cheapest - cost[:, label])  # of taking the class
        most = None if counts is None else counts[:, label, 1]
        region = self._region_above(gain, torch.zeros_like(gain[:, :1]), forced, forbidden)
        filled, bad = self._filled(region, forbidden)
        bad = bad | self._too_large(filled, most)
        if bool(bad.any()):
            # The filled region shrinks as the margin grows, down to the fill of the seeds.
            low = gain.flatten(1).new_zeros(len(gain))
            high = gain.flatten(1).amax(1) + 1
            filled = torch.where(grid.spread(bad, filled), self._filled(forced, forbidden)[0], filled)
            for _ in range(24):
                middle = (low + high) / 2
                tried, worse = self._filled(
                    self._region_above(gain, grid.spread(middle, gain), forced, forbidden), forbidden
                )
                worse = worse | self._too_large(tried, most)
                low, high = torch.where(worse, middle, low), torch.where(worse, high, middle)
                filled = torch.where(grid.spread(bad & ~worse, filled), tried, filled)
        # Outside the region of interest, and where the class is forbidden, the others are left.
        outside = ~self.everywhere & (cost.argmin(1) == label)
        return torch.where(filled | outside, label, rest)

    def feasible(self, log_probabilities: Tensor, possible: Tensor) -> Tensor:
        """Pixels that are added get probability 1."""
        forced, forbidden = self._forced(possible)
        s = log_probabilities.exp()
        region = (self._region(s) | forced) & ~forbidden
        added = (self._filled(region, forbidden)[0] & ~region).unsqueeze(1)
        return torch.where(added, self._channel(s).to(s.dtype), s)

    def _channel(self, values: Tensor) -> Tensor:
        """(1, K, 1, ...) bool: the channel of the class."""
        order = torch.arange(values.shape[1], device=values.device)
        return (order == self.settings.label).reshape(1, -1, *[1] * (values.ndim - 2))

    def _forced(self, possible: Tensor) -> tuple[Tensor, Tensor]:
        """(B, *S) bool: pixels in the region of interest that must be of the class, and that must not."""
        forced = ~possible.masked_fill(self._channel(possible), False).any(1) & self.everywhere
        return forced, ~possible[:, self.settings.label] & self.everywhere

    def _region_above(self, gain: Tensor, margin: Tensor, forced: Tensor, forbidden: Tensor) -> Tensor:
        return (forced | (gain > margin)) & ~forbidden & self.everywhere

    def _filled(self, region: Tensor, forbidden: Tensor) -> tuple[Tensor, Tensor]:
        """The fill of a region by pixels that are not forbidden, and (B,) whether dents are left."""
        filled = fill(region, self.settings.radii, self.everywhere & ~forbidden)[0]
        left = torch.zeros(len(filled), dtype=torch.bool, device=filled.device)
        if bool(forbidden.any()):
            for radius in self.settings.radii:
                left = left | dents(filled, radius, forbidden).flatten(1).any(1)
        return filled, left

    def _too_large(self, filled: Tensor, most: Tensor | None) -> Tensor:
        sizes = filled.flatten(1).sum(1)
        return torch.zeros_like(sizes, dtype=torch.bool) if most is None else sizes > most

    def penalty(self, probabilities: Tensor) -> Tensor:
        s = self.check(probabilities)
        ndim = s.ndim - 2
        u = self._class(s) * self.everywhere
        total = s.new_zeros(s.shape[0])
        for radius in self.settings.radii:
            fraction = ball_sums(u, radius, ndim) / ball_size(radius, ndim)
            total = total + ((1 - u) * (2 * fraction - 1) * self.everywhere).clamp(min=0).flatten(1).sum(1)
        return self.settings.weight * total / len(self.settings.radii)

    def _class(self, s: Tensor) -> Tensor:
        label = self.settings.label
        if label >= s.shape[1]:
            raise UsageError(f"convex constrains the class {label}, but the segmentation has K = {s.shape[1]}.")
        return s[:, label]

    def _region(self, s: Tensor) -> Tensor:
        return (self._class(s) > 0.5) & self.everywhere

    def _project(self, s: Tensor) -> Tensor:
        if self.settings.weight == 0:
            return s
        region = self._region(s.detach())
        added = (fill(region, self.settings.radii, self.everywhere)[0] & ~region).unsqueeze(1)
        order = torch.arange(s.shape[1], device=s.device).reshape(1, -1, *[1] * (s.ndim - 2))
        return torch.where(added, (order == self.settings.label).to(s.dtype), s)
