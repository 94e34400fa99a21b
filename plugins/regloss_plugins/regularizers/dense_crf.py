"""Dense CRF: a Potts model that joins every pixel with every other, by a Gaussian of place and colour.

    R(labels) = weight * sum over unordered pairs p != q of w_pq [l_p != l_q]
    w_pq      = exp(-|p - q|^2 / (2 sigma_xy^2) - |I_p - I_q|^2 / (2 sigma_rgb^2)) / ((2 pi)^(D/2) sigma_xy^D)

in D spatial dimensions, sigma_xy in pixels of the image, sigma_rgb in units of image values (which lie in [0, 1]), the
square summed over channels. The divisor makes R at most weight / 2 per pixel (about), so that a weight means the same
for any width, and for any resolution if the width goes with it; papers leave it out and quote tiny weights.

With scale = 0.5, places and colours are those of blocks of 2x2 pixels, while the pairs remain those of pixels: R keeps
its scale, and is a Potts model still (see `regloss_plugins.kernels.gaussian_filter_affinity`). Sums over pairs are
Gaussian filters, exact or by a lattice (`regloss_plugins.kernels.gaussian_filter`); with a lattice, the w_pq are the
lattice's own, which are near the formula's, and R and its gradient are exact for them.

For probabilities S there are those relaxations of `regloss.potts` that filters can compute, each equal to R on one-hot
input at any scale: bilinear, quadratic and normalized-quadratic. With bilinear, and W the filter with w_pp on its
diagonal,

    R(S) = weight * (const - sum over classes k of <S_k, W S_k> / 2 + |S|^2 w_pp / 2),

concave but for the last term, which the form's ``curvature`` accounts for: `DCA` lowers the energy in every step. With
entropy = 1 and damping off, its step is the parallel mean-field update of Krähenbühl and Koltun.

Source: Krähenbühl, Koltun, "Efficient inference in fully connected CRFs with Gaussian edge potentials", NeurIPS 2011
(the model); Tang, Perazzi, Djelouah, Ben Ayed, Schroers, Boykov, "On regularized losses for weakly-supervised CNN
segmentation", ECCV 2018 (as a loss). Its published weight is 2e-9 for the sum over ordered pairs of blocks at
scale = 0.5, without the divisor; a mean over N pixels of this R takes 2e-9 N / 8 times the divisor instead: 4.13 for
crops of 513x513 and sigma_xy = 100.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from regloss.errors import UsageError
from regloss.regularizer import Concave, Form, Regularizer, Term, check_weight
from regloss_plugins.kernels.gaussian_filter import Accuracy, Backend
from regloss_plugins.kernels.gaussian_filter_affinity import Affinity, check_affinity

RELAXATIONS = ("bilinear", "quadratic", "normalized-quadratic")


@dataclass(frozen=True)
class DenseCRF(Regularizer):
    """Potts model on all pairs of pixels, whose weights fall with distance and difference of colour.

    Args:
        weight: factor of the whole energy, >= 0.
        sigma_xy: bandwidth of places in pixels, > 0.
        sigma_rgb: bandwidth of image values, 0 < sigma_rgb <= 2.
        scale: resolution at which places and colours are looked at, in (0, 1].
        backend: of the filter: "exact", "lattice", or "auto" (exact on GPUs and for few pixels).
        accuracy: of the lattice: "fast", "fine" or "finest".
        relaxation: energy of probabilities: "bilinear", "quadratic" or "normalized-quadratic".

    Raises:
        UsageError: a setting outside its range.

    Two pixels of one colour and one of another, far apart in colour:

    >>> import torch
    >>> image = torch.tensor([[[[0.0, 0.0, 1.0]]]])
    >>> term = DenseCRF(sigma_xy=2.0, sigma_rgb=0.1, scale=1.0).bind(image)
    >>> for labels in ([0, 1, 1], [0, 0, 1]):
    ...     probabilities = torch.nn.functional.one_hot(torch.tensor([[labels]])).movedim(-1, 1).float()
    ...     print(round(float(term.energy(probabilities)), 4))
    0.0351
    0.0
    """

    weight: float = 1.0
    sigma_xy: float = 100.0
    sigma_rgb: float = 0.06
    scale: float = 0.5
    backend: Backend = "auto"
    accuracy: Accuracy = "fine"
    relaxation: Literal["bilinear", "quadratic", "normalized-quadratic"] = "bilinear"

    def __post_init__(self) -> None:
        check_weight(self.weight, "dense-crf")
        check_affinity("dense-crf", self.sigma_xy, self.sigma_rgb, self.scale, self.backend, self.accuracy)
        if self.relaxation not in RELAXATIONS:
            raise UsageError(
                f"relaxation of dense-crf must be one of {', '.join(RELAXATIONS)}, which filters can compute; got "
                f"{self.relaxation!r}. The others take every pair by itself: use gated-crf or grid-crf."
            )

    @property
    def forms(self) -> tuple[type[Form], ...]:
        """The concave form of the bilinear relaxation; none of the others."""
        return (Concave,) if self.relaxation == "bilinear" else ()

    def build(self, image: Tensor, roi: Tensor | None) -> Term:
        """Set up the filter."""
        affinity = Affinity(image, roi, self.sigma_xy, self.sigma_rgb, self.scale, self.backend, self.accuracy)
        return _DenseTerm(self, affinity, (image.shape[0], *image.shape[2:]), roi)


class _DenseTerm(Term):
    def __init__(self, regularizer: DenseCRF, affinity: Affinity, shape: tuple[int, ...], roi: Tensor | None) -> None:
        super().__init__(regularizer, shape, roi)
        self.settings = regularizer
        self.affinity = affinity

    def energy(self, probabilities: Tensor) -> Tensor:
        probabilities = self.check(probabilities)
        if self.settings.relaxation == "bilinear":
            return self._bilinear(probabilities)
        squares = probabilities.square().sum(1, keepdim=True)
        affinity = self.affinity
        if self.settings.relaxation == "quadratic":
            # The own pairs, |S_p|^2 - <S_p, S_p>, are 0.
            apart = affinity.weighted(squares).sum(1) - affinity.associations(probabilities).sum(1)
        else:
            # On the simplex no norm is below 1 / sqrt(K).
            normalised = probabilities * squares.rsqrt()
            ones = probabilities.new_ones(probabilities.shape[0], 1, *self.shape[1:])
            apart = affinity.weighted(ones).sum(1) - affinity.associations(normalised).sum(1)
        return self.settings.weight / 2 * apart

    def _bilinear(self, probabilities: Tensor) -> Tensor:
        return self.settings.weight / 2 * self.affinity.cuts(probabilities).sum(1)

    def builders(self) -> Mapping[type[Form], Callable[[], Form]]:
        if self.settings.relaxation != "bilinear":
            return {}
        # Without w_pp on the diagonal, W is no longer positive semidefinite, but then W + w_pp is.
        curvature = self.settings.weight / self.affinity.mass
        return {Concave: lambda: Concave(self._bilinear, self._supergradient, curvature)}

    def _supergradient(self, s: Tensor) -> Tensor:
        affinity = self.affinity
        counts = affinity.counts.to(s.dtype)
        # W (n - 2 S) in one filter, as half the difference of what pulls towards and away from each class.
        pull = affinity.spread(affinity.filter(counts - 2 * affinity.sums(s)))
        own = (1 - 2 * s) * affinity.inside.to(s.dtype)
        return self.settings.weight / (2 * affinity.mass) * (pull - own)
