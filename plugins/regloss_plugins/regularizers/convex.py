"""Convex shape: no ball around a background pixel is mostly foreground. A hard constraint on one class.

With D = {s_label > 1/2} and B_r(x) the lattice ball of radius r about x, outside of the image counting as not D,

    R(s) = 0 where at most half of B_r(x) lies in D, for all radii r and pixels x that are not in D; inf elsewhere

Every digitised convex set fulfils it for every radius: a line through x has the set on one side, and lattice balls are
symmetric about their centre. The reverse holds only for smooth boundaries and small radii; on the grid small radii see
small dents, and large ones wide dents. Take radii from 1.5 to about the object's own. Separate components that come
close are forbidden too.

The projection cycles through the radii and adds to D all pixels that break the condition (they get probability 1),
until no radius finds any. It never leaves the convex hull, keeps inclusions between regions, and ends at a set that
fulfils the condition; it is not the nearest such set, and no energy is known to fall. Its derivative is the identity at
pixels that were not added and 0 at the others.

Gradient descent gets weight times the sum over pixels and the mean over radii of
relu((1 - s_label) (2 fraction_r(s_label) - 1)), with the ball's mean probability as the fraction.

The violation is the largest number of pixels, over the radii, that break the condition. Pixels outside the region of
interest count as background and are never added.

Source: Liu, Wang, Tai, arXiv:2002.03989, and Tai's lectures on it (the condition and the cycle). There the
probabilities are tested; the mask has to be, or straight boundaries creep outwards without end as soon as background
probabilities exceed a few parts in a hundred.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from regloss import grid
from regloss.errors import UsageError
from regloss.regularizer import Form, Projection, Regularizer, Term
from regloss_plugins.kernels.balls import ball_size, ball_sums


@dataclass(frozen=True)
class ConvexShape(Regularizer):
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
    def forms(self) -> tuple[type[Form], ...]:
        """The pseudo-projection."""
        return (Projection,)

    def build(self, image: Tensor, roi: Tensor | None) -> Term:
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


class _ConvexShapeTerm(Term):
    def __init__(self, regularizer: ConvexShape, inside: Tensor, shape: tuple[int, ...], roi: Tensor | None) -> None:
        super().__init__(regularizer, shape, roi)
        self.settings, self.inside = regularizer, inside

    def builders(self) -> Mapping[type[Form], Callable[[], Form]]:
        return {Projection: lambda: Projection(self._project, exact=False)}

    def violation(self, probabilities: Tensor) -> Tensor:
        """Largest number of dents over the radii."""
        s = self.check(probabilities)
        region = self._region(s)
        counts = [dents(region, radius, self.inside).flatten(1).sum(1) for radius in self.settings.radii]
        return torch.stack(counts).amax(0).to(s.dtype)

    def energy(self, probabilities: Tensor) -> Tensor:
        violation = self.violation(probabilities)
        if self.settings.weight == 0:
            return torch.zeros_like(violation)
        return torch.zeros_like(violation).masked_fill(violation > 0, math.inf)

    def penalty(self, probabilities: Tensor) -> Tensor:
        s = self.check(probabilities)
        ndim = s.ndim - 2
        u = self._class(s) * self.inside
        total = s.new_zeros(s.shape[0])
        for radius in self.settings.radii:
            fraction = ball_sums(u, radius, ndim) / ball_size(radius, ndim)
            total = total + ((1 - u) * (2 * fraction - 1) * self.inside).clamp(min=0).flatten(1).sum(1)
        return self.settings.weight * total / len(self.settings.radii)

    def _class(self, s: Tensor) -> Tensor:
        label = self.settings.label
        if label >= s.shape[1]:
            raise UsageError(f"convex constrains the class {label}, but the segmentation has K = {s.shape[1]}.")
        return s[:, label]

    def _region(self, s: Tensor) -> Tensor:
        return (self._class(s) > 0.5) & self.inside

    def _project(self, s: Tensor) -> Tensor:
        if self.settings.weight == 0:
            return s
        region = self._region(s.detach())
        added = (fill(region, self.settings.radii, self.inside)[0] & ~region).unsqueeze(1)
        order = torch.arange(s.shape[1], device=s.device).reshape(1, -1, *[1] * (s.ndim - 2))
        return torch.where(added, (order == self.settings.label).to(s.dtype), s)
