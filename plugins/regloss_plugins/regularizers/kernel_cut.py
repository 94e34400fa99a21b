"""Kernel cut: a normalised cut and a dense CRF with the same Gaussian weights, for the price of one filter.

    R(labels) = weight * (normalized-cut(labels) + crf_weight * dense-crf(labels))

with both energies as their modules define them, at weight 1 and with the same settings, and their (bilinear)
relaxations. The first prefers classes that hang together, of any size; the second makes them smooth.

Source: Tang, Perazzi, Djelouah, Ben Ayed, Schroers, Boykov, "On regularized losses for weakly-supervised CNN
segmentation", ECCV 2018.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from regloss.checks import check_not_negative
from regloss.grid import Unit
from regloss_plugins.filters.affinity import Affinity
from regloss_plugins.filters.gaussian import Accuracy, Backend
from regloss_plugins.regularizers.normalized_cut import CutRegularizer, normalized_cut


@dataclass(frozen=True)
class KernelCut(CutRegularizer):
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

    def __post_init__(self) -> None:
        check_not_negative(crf_weight=self.crf_weight)
        super().__post_init__()

    def of_cuts(self, affinity: Affinity, probabilities: Tensor, cuts: Tensor) -> Tensor:
        """Normalised cut, and dense CRF."""
        return normalized_cut(affinity, probabilities, cuts) + self.crf_weight / 2 * cuts.sum(1)
