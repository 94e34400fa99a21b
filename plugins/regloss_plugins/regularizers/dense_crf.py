"""Dense CRF: a Potts model that joins every pixel with every other, by a Gaussian of place and colour.

    R(labels) = weight * sum over unordered pairs p != q of w_pq [l_p != l_q]
    w_pq      = exp(-|p - q|^2 / (2 sigma_xy^2) - |I_p - I_q|^2 / (2 sigma_rgb^2)) / ((2 pi)^(D/2) sigma_xy^D)

in D spatial dimensions, sigma_xy in pixels of the image (or in mm), sigma_rgb in units of image values (which lie in
[0, 1]), the square summed over channels. The divisor, in pixels, makes R at most weight / 2 per pixel (about). With
scale = 0.5, places and colours are those of blocks of 2x2 pixels, while the pairs remain those of pixels
(`regloss_plugins.filters.affinity`).
Sums over pairs are Gaussian filters (`regloss_plugins.filters.gaussian`), exact or by a lattice, for whose w_pq R and
its gradient are exact.

For probabilities S there are those relaxations of `regloss.potts` that filters can compute, each equal to R on one-hot
input at any scale: bilinear, quadratic and normalized-quadratic. With bilinear, and W the filter with w_pp on its
diagonal,

    R(S) = weight * (const - sum over classes k of <S_k, W S_k> / 2 + |S|^2 w_pp / 2),

concave but for the last term, which the form's ``curvature`` accounts for: `DCA` lowers the energy in every step. With
entropy = 1 and damping off, its step is the parallel mean-field update of Krähenbühl and Koltun; `MeanField` takes that
step as long as the energy does not rise.

Labels need not all be equally far from each other. With a ``compatibility`` C (K, K), a pair costs C[l_p, l_q] instead
of [l_p != l_q], relaxed to <S_p, C S_q>; only the symmetric part of C counts, as a pair has no direction. C and both
bandwidths may be tensors to be learnt, for which the form then gives derivatives (`regloss.DenseCRFLayer`).

Source: Krähenbühl, Koltun, "Efficient inference in fully connected CRFs with Gaussian edge potentials", NeurIPS 2011
(the model); Tang, Perazzi, Djelouah, Ben Ayed, Schroers, Boykov, "On regularized losses for weakly-supervised CNN
segmentation", ECCV 2018 (as a loss).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from regloss import grid
from regloss.errors import UsageError
from regloss.forms import Concave, ConcaveFunction
from regloss.grid import Unit
from regloss.regularizer import Forms, Regularizer, Term
from regloss_plugins.filters.affinity import Affinity, check_affinity
from regloss_plugins.filters.bandwidth_derivatives import filter_by_bandwidths
from regloss_plugins.filters.gaussian import Accuracy, Backend

RELAXATIONS = ("bilinear", "quadratic", "normalized-quadratic")


@dataclass(frozen=True)
class DenseCRF(Regularizer):
    """Potts model on all pairs of pixels, whose weights fall with distance and difference of colour.

    Args:
        weight: factor of the whole energy, >= 0.
        sigma_xy: bandwidth of places, > 0, in ``unit``.
        sigma_rgb: bandwidth of image values, 0 < sigma_rgb <= 2; inf = colours do not matter, the smoothness kernel.
        scale: resolution at which places and colours are looked at, in (0, 1].
        backend: of the filter: "exact", "lattice", or "auto" (exact on GPUs and for few pixels).
        accuracy: of the lattice: "fast", "fine" or "finest".
        relaxation: energy of probabilities: "bilinear", "quadratic" or "normalized-quadratic".
        compatibility: (K, K) floating-point tensor, what a pair of labels costs; None = 1 where they differ. Like the
            bandwidths, which may be () tensors, it is for "bilinear" alone.
        unit: of sigma_xy: "pixel", or "mm", for images whose spacing is known.

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
    sigma_xy: float | Tensor = 100.0
    sigma_rgb: float | Tensor = 0.06
    scale: float = 0.5
    backend: Backend = "auto"
    accuracy: Accuracy = "fine"
    relaxation: Literal["bilinear", "quadratic", "normalized-quadratic"] = "bilinear"
    compatibility: Tensor | None = None
    unit: Unit = "pixel"
    learnable: ClassVar[Sequence[str]] = ("sigma_xy", "sigma_rgb")
    opaque: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name in ("sigma_xy", "sigma_rgb"):
            sigma = getattr(self, name)
            if isinstance(sigma, Tensor) and (sigma.ndim != 0 or not sigma.is_floating_point()):
                raise UsageError(
                    f"{name} of dense-crf must be a number, or a floating-point tensor of shape (); got {sigma.dtype} "
                    f"of shape {tuple(sigma.shape)}."
                )
        widths = (_number(self.sigma_xy), _number(self.sigma_rgb))
        check_affinity("dense-crf", *widths, self.scale, self.backend, self.accuracy, self.unit)
        _check_compatibility(self.compatibility)
        if self.relaxation not in RELAXATIONS:
            raise UsageError(
                f"relaxation of dense-crf must be one of {', '.join(RELAXATIONS)}, which filters can compute; got "
                f"{self.relaxation!r}. The others take every pair by itself: use gated-crf or grid-crf."
            )
        if self.general and self.relaxation != "bilinear":
            raise UsageError(
                "A compatibility, and bandwidths that are tensors, need the bilinear relaxation of dense-crf; got "
                f"{self.relaxation!r}."
            )

    @property
    def general(self) -> bool:
        """Whether pairs of labels have costs of their own, or something is a tensor that may be learnt."""
        tensors = (self.sigma_xy, self.sigma_rgb, self.compatibility)
        return any(isinstance(value, Tensor) for value in tensors)

    @property
    def forms(self) -> Forms:
        """The concave form of the bilinear relaxation; none of the others."""
        return {Concave: _DenseTerm.concave} if self.relaxation == "bilinear" else {}

    def build(self, image: Tensor, roi: Tensor | None, spacing: tuple[float, ...] | None) -> Term:
        """Set up the filter."""
        widths = (_number(self.sigma_xy), _number(self.sigma_rgb))
        steps = grid.steps_in(self.unit, spacing, image.ndim - 2, "dense-crf")
        affinity = Affinity(image, roi, *widths, self.scale, self.backend, self.accuracy, steps)
        return _DenseTerm(self, affinity, (image.shape[0], *image.shape[2:]), roi)


def _number(value: float | Tensor) -> float:
    return float(value.detach()) if isinstance(value, Tensor) else value


def _check_compatibility(matrix: Tensor | None) -> None:
    if matrix is None:
        return
    if not isinstance(matrix, Tensor) or not matrix.is_floating_point() or matrix.ndim != 2:
        found = f"{matrix.dtype} of shape {tuple(matrix.shape)}" if isinstance(matrix, Tensor) else repr(matrix)
        raise UsageError(f"compatibility of dense-crf must be a floating-point tensor (K, K); got {found}.")
    if matrix.shape[0] != matrix.shape[1] or not bool(torch.isfinite(matrix.detach()).all()):
        raise UsageError(
            f"compatibility of dense-crf must be square (K, K) and finite; got {tuple(matrix.shape)}"
            f"{', with values that are not finite' if matrix.shape[0] == matrix.shape[1] else ''}."
        )


class _DenseTerm(Term):
    def __init__(self, regularizer: DenseCRF, affinity: Affinity, shape: tuple[int, ...], roi: Tensor | None) -> None:
        super().__init__(regularizer, shape, roi)
        self.settings = regularizer
        self.affinity = affinity
        bilinear = _GeneralBilinear if regularizer.general else _Bilinear
        self.function: ConcaveFunction = bilinear(regularizer, affinity)

    def energy(self, probabilities: Tensor) -> Tensor:
        probabilities = self.check(probabilities)
        if self.settings.relaxation == "bilinear":
            return self.function.value(probabilities)
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

    def concave(self) -> Concave:
        """The bilinear relaxation."""
        return Concave(self.function)


class _Bilinear(ConcaveFunction):
    """The bilinear relaxation, by the sum of cuts."""

    is_quadratic = True

    def __init__(self, settings: DenseCRF, affinity: Affinity) -> None:
        self.settings, self.affinity = settings, affinity

    @property
    def curvature(self) -> float:
        # Without w_pp on the diagonal, W is no longer positive semidefinite, but then W + w_pp is.
        return self.settings.weight / self.affinity.mass

    def __getitem__(self, images: Tensor) -> ConcaveFunction:
        return _Bilinear(self.settings, self.affinity.select(images))

    def value(self, s: Tensor) -> Tensor:
        return self.settings.weight / 2 * self.affinity.cuts(s).sum(1)

    def supergradient(self, s: Tensor) -> Tensor:
        affinity = self.affinity
        counts = affinity.counts.to(s.dtype)
        # W (n - 2 S) in one filter, as half the difference of the sums over other classes and over the own one.
        filtered = affinity.spread(affinity.filter(counts - 2 * affinity.sums(s)))
        diagonal = (1 - 2 * s) * affinity.inside.to(s.dtype)
        return self.settings.weight / (2 * affinity.mass) * (filtered - diagonal)


class _GeneralBilinear(ConcaveFunction):
    """Any compatibility, and widths that may be learnt; by filters of the blocks, as above.

    R(s) = weight / (2 mass) * (<S, C W S> - sum over pixels of <s_p, C s_p>)
    """

    is_quadratic = True

    def __init__(self, settings: DenseCRF, affinity: Affinity) -> None:
        self.settings, self.affinity = settings, affinity

    @property
    def parameters(self) -> tuple[Tensor, ...]:
        tensors = (self.settings.sigma_xy, self.settings.sigma_rgb, self.settings.compatibility)
        return tuple(value for value in tensors if isinstance(value, Tensor))

    def __getitem__(self, images: Tensor) -> ConcaveFunction:
        return _GeneralBilinear(self.settings, self.affinity.select(images))

    def value(self, s: Tensor) -> Tensor:
        affinity = self.affinity
        sums = affinity.sums(s)
        both = (sums * self._costs(self._filtered(sums))).flatten(1).sum(1)
        diagonal = (s * self._costs(s) * affinity.inside.to(s.dtype)).flatten(1).sum(1)
        return self._factor(s) / 2 * (both - diagonal)

    def supergradient(self, s: Tensor) -> Tensor:
        affinity = self.affinity
        filtered = affinity.spread(self._filtered(affinity.sums(s)))
        return self._factor(s) * self._costs(filtered - s * affinity.inside.to(s.dtype))

    def _factor(self, s: Tensor) -> float | Tensor:
        """Weight / mass, computed anew so that every derivative has a graph of its own."""
        sigma = self.settings.sigma_xy
        if not isinstance(sigma, Tensor):
            return self.settings.weight / self.affinity.mass
        ndim = s.ndim - 2
        mass: Tensor = (2 * math.pi) ** (ndim / 2) * sigma.to(s) ** ndim / math.prod(self.affinity.steps)
        return self.settings.weight / mass

    def _filtered(self, sums: Tensor) -> Tensor:
        affinity, settings = self.affinity, self.settings
        widths = (settings.sigma_xy, settings.sigma_rgb)
        if not any(isinstance(sigma, Tensor) for sigma in widths):
            return affinity.filter(sums)
        sides = [step / settings.scale for step in affinity.steps]  # of blocks, in the unit of sigma_xy
        axes = [
            torch.arange(n, device=sums.device, dtype=sums.dtype) * side
            for n, side in zip(sums.shape[2:], sides, strict=True)
        ]
        places = torch.stack(torch.meshgrid(*axes, indexing="ij")).unsqueeze(0)
        sigma_xy, sigma_rgb = (torch.as_tensor(sigma, dtype=sums.dtype, device=sums.device) for sigma in widths)
        return filter_by_bandwidths(affinity.filter, sums, places, affinity.means, sigma_xy, sigma_rgb)

    def _costs(self, s: Tensor) -> Tensor:
        """C s (B, K, ...), with the symmetric part of C."""
        given = self.settings.compatibility
        if given is None:
            return s.sum(1, keepdim=True) - s
        if given.shape[0] != s.shape[1]:
            raise UsageError(
                f"The compatibility of dense-crf is for {given.shape[0]} classes, but there are {s.shape[1]}."
            )
        with torch.autocast(s.device.type, enabled=False):
            return torch.einsum("kl,bl...->bk...", ((given + given.T) / 2).to(s), s)

    @property
    def curvature(self) -> float:
        """The Hessian is C times W without its diagonal, whose eigenvalues lie in [-1, largest degree - 1]."""
        given = self.settings.compatibility
        low, high = -1.0, -1.0  # eigenvalues of C along differences of probabilities, which sum to 0
        if given is not None:
            matrix = ((given + given.T) / 2).detach().cpu().double()
            matrix = matrix - matrix.mean(0) - matrix.mean(1, keepdim=True) + matrix.mean()
            found = torch.linalg.eigvalsh(matrix)
            low, high = float(found[0]), float(found[-1])
        degree = float(self.affinity.degrees.max())
        return self.settings.weight / self.affinity.mass * max(-low, high * (degree - 1), 0.0)
