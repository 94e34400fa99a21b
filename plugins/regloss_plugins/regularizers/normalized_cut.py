"""Normalised cut: what is cut off each class, relative to all that the class is joined to.

    R(labels) = weight * N * sum over classes k of  cut_k / volume_k
    cut_k     = sum of w_pq over ordered pairs with l_p = k, l_q != k
    volume_k  = sum of w_pq over ordered pairs with l_p = k                              (0 / 0 counts as 0)

over pixels p != q, with the Gaussian weights of dense-crf, whose constant factor does not matter here. The sum lies
between 0 and the number of classes, however large the image; the number N of pixels in the region of interest makes R a
sum over pixels like other energies, so that a mean over pixels has the quotients' own scale.

For probabilities S the relaxation is <S_k, W (1 - S_k)> / <S_k, d>, d the degrees of W, equal to R on one-hot input;
unlike a Potts model it does not favour small classes. No solver of ours takes it: it is a loss.

Source: Shi, Malik, "Normalized cuts and image segmentation", PAMI 2000; Tang, Djelouah, Perazzi, Boykov, Schroers,
"Normalized cut loss for weakly-supervised CNN segmentation", CVPR 2018.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from regloss import grid
from regloss.grid import Unit
from regloss.registry import name_of
from regloss.regularizer import Forms, Regularizer, Term
from regloss_plugins.filters.affinity import Affinity, check_affinity
from regloss_plugins.filters.gaussian import Accuracy, Backend

_HIDDEN = 32  # rounding errors of filters, in units of the last place


class CutRegularizer(Regularizer):
    """A prior whose energy is made of the cuts between classes, with Gaussian weights between all pixels."""

    sigma_xy: float
    sigma_rgb: float
    scale: float
    backend: Backend
    accuracy: Accuracy
    unit: Unit
    forms: ClassVar[Forms] = {}
    opaque: ClassVar[bool] = True

    @abstractmethod
    def of_cuts(self, affinity: Affinity, probabilities: Tensor, cuts: Tensor) -> Tensor:
        """The energy (B,) at weight 1, from ``cuts`` (B, K) of the affinity; differentiable."""

    def __post_init__(self) -> None:
        check_affinity(name_of(self), self.sigma_xy, self.sigma_rgb, self.scale, self.backend, self.accuracy, self.unit)

    def build(self, image: Tensor, roi: Tensor | None, spacing: tuple[float, ...] | None) -> Term:
        """Set up the filter."""
        steps = grid.steps_in(self.unit, spacing, image.ndim - 2, name_of(self))
        settings = (self.sigma_xy, self.sigma_rgb, self.scale, self.backend, self.accuracy)
        affinity = Affinity(image, roi, *settings, steps)
        return _CutTerm(self, affinity, (image.shape[0], *image.shape[2:]), roi)


class _CutTerm(Term):
    def __init__(
        self, regularizer: CutRegularizer, affinity: Affinity, shape: tuple[int, ...], roi: Tensor | None
    ) -> None:
        super().__init__(regularizer, shape, roi)
        self.settings = regularizer
        self.affinity = affinity
        self.joined = _degrees(affinity) > 0

    def energy(self, probabilities: Tensor) -> Tensor:
        joined = self.check(probabilities) * self.joined
        cuts = self.affinity.cuts(joined)
        return self.settings.weight * self.settings.of_cuts(self.affinity, joined, cuts)


@dataclass(frozen=True)
class NormalizedCut(CutRegularizer):
    """Normalised cut with Gaussian weights between all pixels.

    Args:
        weight: factor of the whole energy, >= 0.
        sigma_xy: bandwidth of places, > 0, in ``unit``.
        sigma_rgb: bandwidth of image values, 0 < sigma_rgb <= 2.
        scale: resolution at which places and colours are looked at, in (0, 1].
        backend: of the filter: "exact", "lattice", or "auto" (exact on GPUs and for few pixels).
        accuracy: of the lattice: "fast", "fine" or "finest".
        unit: of sigma_xy: "pixel", or "mm", for images whose spacing is known.

    Raises:
        UsageError: a setting outside its range.

    Half an image cut through its middle, where nothing tells the halves apart, and where colours do:

    >>> labels = torch.tensor([[[0, 0, 1, 1]]])
    >>> probabilities = torch.stack([labels == 0, labels == 1], dim=1).float()
    >>> for right in (0.0, 1.0):
    ...     image = torch.where(labels == 0, 0.0, right).unsqueeze(1)
    ...     print(round(float(NormalizedCut(scale=1.0).bind(image).energy(probabilities)) / 4, 3))
    1.333
    0.0
    """

    weight: float = 1.0
    sigma_xy: float = 100.0
    sigma_rgb: float = 0.06
    scale: float = 0.5
    backend: Backend = "auto"
    accuracy: Accuracy = "fine"
    unit: Unit = "pixel"

    def of_cuts(self, affinity: Affinity, probabilities: Tensor, cuts: Tensor) -> Tensor:
        """Pixels times the sum over classes of cut / volume."""
        return normalized_cut(affinity, probabilities, cuts)


def _degrees(affinity: Affinity) -> Tensor:
    """The sum of w_pq over q but p itself, times the mass: (B, 1, *S), 0 where it is hidden by rounding.

    Such a pixel is joined to nothing, and what rounding leaves of its cut and volume would have a quotient of any size.
    """
    to_others = affinity.degrees - 1  # its own weight is 1
    hidden = to_others <= _HIDDEN * torch.finfo(to_others.dtype).eps
    return affinity.spread(to_others.masked_fill(hidden, 0))


def normalized_cut(affinity: Affinity, probabilities: Tensor, cuts: Tensor) -> Tensor:
    """The energy (B,) of the definition at weight 1, from ``cuts`` (B, K) of the affinity; differentiable."""
    to_others = _degrees(affinity).to(probabilities.dtype)
    volumes = (probabilities * to_others).flatten(2).sum(2) / affinity.mass
    # A class that is all but absent is none: its quotient, of two numbers that vanish, has no derivative to follow.
    all_pixels = to_others.flatten(2).sum(2) / affinity.mass
    joined = ~(volumes <= torch.finfo(volumes.dtype).eps * all_pixels)  # NaN stays NaN
    quotients = torch.where(joined, cuts / torch.where(joined, volumes, 1), 0)
    return affinity.pixels.to(cuts.dtype) * quotients.sum(1)
