"""Kernel cut: a normalised cut and a dense CRF with the same Gaussian weights, for the price of one filter.

    R(labels) = weight * (normalized-cut(labels) + crf_weight * dense-crf(labels))

with both energies as their modules define them, at weight 1 and with the same settings, and their (bilinear)
relaxations. The first prefers classes that hang together, of any size; the second makes them smooth.

Source: Tang, Perazzi, Djelouah, Ben Ayed, Schroers, Boykov, "On regularized losses for weakly-supervised CNN
segmentation", ECCV 2018.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from regloss import grid
from regloss.errors import UsageError
from regloss.grid import Unit
from regloss.regularizer import Forms, Regularizer, Term
from regloss_plugins.filters.affinity import Affinity, check_affinity
from regloss_plugins.filters.gaussian import Accuracy, Backend
from regloss_plugins.regularizers.normalized_cut import NormalizedCutTerm


@dataclass(frozen=True)
class KernelCut(Regularizer):
    """Normalised cut plus dense CRF.

    Args:
        weight: factor of the whole energy, >= 0.
        crf_weight: weight of the dense CRF in it, >= 0.
        sigma_xy: bandwidth of places, > 0, in ``unit``.
        sigma_rgb: bandwidth of image values, 0 < sigma_rgb <= 2.
        scale: resolution at which places and colours are looked at, in (0, 1].
        backend: of the filter: "exact", "lattice", or "auto" (exact on GPUs and for few pixels).
        accuracy: of the lattice: "fast", "fine" or "finest".
        unit: of sigma_xy: "pixel", or "mm", for images whose spacing is known.

    Raises:
        UsageError: a setting outside its range.

    >>> import torch
    >>> from regloss import DenseCRF, NormalizedCut
    >>> image, probabilities = torch.rand(1, 3, 6, 6), torch.rand(1, 2, 6, 6).softmax(1)
    >>> parts = NormalizedCut().bind(image), DenseCRF(weight=2.0).bind(image)
    >>> whole = KernelCut(crf_weight=2.0).bind(image).energy(probabilities)
    >>> torch.allclose(whole, sum(part.energy(probabilities) for part in parts))
    True
    """

    weight: float = 1.0
    crf_weight: float = 1.0
    sigma_xy: float = 100.0
    sigma_rgb: float = 0.06
    scale: float = 0.5
    backend: Backend = "auto"
    accuracy: Accuracy = "fine"
    unit: Unit = "pixel"
    opaque: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 <= self.crf_weight < float("inf"):
            raise UsageError(f"crf_weight must be finite and not negative; got {self.crf_weight}.")
        check_affinity("kernel-cut", self.sigma_xy, self.sigma_rgb, self.scale, self.backend, self.accuracy, self.unit)

    @property
    def forms(self) -> Forms:
        """None."""
        return {}

    def build(self, image: Tensor, roi: Tensor | None, spacing: tuple[float, ...] | None) -> Term:
        """Set up the filter."""
        steps = grid.steps_in(self.unit, spacing, image.ndim - 2, "kernel-cut")
        settings = (self.sigma_xy, self.sigma_rgb, self.scale, self.backend, self.accuracy)
        affinity = Affinity(image, roi, *settings, steps)
        return _KernelCutTerm(self, affinity, (image.shape[0], *image.shape[2:]), roi)


class _KernelCutTerm(NormalizedCutTerm):
    def __init__(self, regularizer: KernelCut, affinity: Affinity, shape: tuple[int, ...], roi: Tensor | None) -> None:
        super().__init__(regularizer, affinity, shape, roi)
        self.crf_weight = regularizer.crf_weight

    def of_cuts(self, probabilities: Tensor, cuts: Tensor) -> Tensor:
        """Normalised cut, and dense CRF."""
        return super().of_cuts(probabilities, cuts) + self.crf_weight / 2 * cuts.sum(1)
