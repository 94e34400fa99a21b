"""Colour histograms: any distribution of colours.

    F(s, p) = sum over classes k and pixels of s_k (-log p_k(colour))

in nats. p_k is a histogram of the colours of class k, smoothed by a Gaussian and mixed with the uniform distribution,
so that a colour never seen costs something finite. From scribbles, kept fixed, it is the colour model of interactive
graph cuts; fitted again to each segmentation, it works as in GrabCut. The smoothed histogram is not the one at which F
is smallest, so a fit may raise F: alternation then keeps the histograms it has.

Source: Boykov, Jolly, "Interactive graph cuts", ICCV 2001; Rother, Kolmogorov, Blake, "GrabCut", SIGGRAPH 2004 (with
mixtures of normal distributions).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from regloss.checks import check_image
from regloss.errors import UsageError
from regloss.region_force import RegionForce

MAX_CHANNELS = 3  # the number of bins grows with the power of the channels


class Histograms(NamedTuple):
    """Statistics of `HistogramForce`: the probability (B, K, bins ** C) of each bin; the last channel runs fastest."""

    probability: Tensor


@dataclass(frozen=True)
class HistogramForce(RegionForce):
    """-log of a smoothed histogram of the class's colours; for images of 1 to 3 channels in [0, 1].

    Args:
        bins: for each channel, >= 2.
        spread: standard deviation of the smoothing, >= 0, in units of image values.
        uniform: share of the uniform distribution, 0 < uniform < 1.

    Raises:
        UsageError: a setting outside its range, more than three channels, values outside [0, 1].

    >>> image = torch.tensor([[[0.1, 0.1, 0.9, 0.9]]])
    >>> seeds = torch.tensor([[[1.0, 0, 0, 0], [0, 0, 0, 1]]])
    >>> force = HistogramForce()
    >>> force.unary(image, force.fit(image, seeds)).argmin(1)
    tensor([[0, 0, 1, 1]])
    """

    bins: int = 16
    spread: float = 0.06
    uniform: float = 0.05
    exact: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not (isinstance(self.bins, int) and self.bins >= 2):
            raise UsageError(f"bins must be a whole number, at least 2; got {self.bins!r}.")
        if not 0 <= self.spread <= 1:
            raise UsageError(f"spread must lie in [0, 1], in units of image values; got {self.spread!r}.")
        if not 0 < self.uniform < 1:
            raise UsageError(f"uniform must lie between 0 and 1, so that no colour costs inf; got {self.uniform!r}.")

    def check_features(self, features: Tensor) -> None:
        """An image of 1 to 3 channels."""
        check_image(features)
        if features.shape[1] > MAX_CHANNELS:
            raise UsageError(
                f"The colour model is for images of 1 to {MAX_CHANNELS} channels; got {features.shape[1]}. Use another "
                "region force, gaussian for example, or none."
            )

    def estimate(self, features: Tensor, weights: Tensor) -> Histograms:
        """Counts, smoothed, mixed with the uniform distribution; on the CPU."""
        from scipy import ndimage

        size = (self.bins,) * features.shape[1]
        places = self._places(features)
        masses = weights.cpu().numpy()
        found = np.empty((*masses.shape[:2], self.bins ** len(size)))
        for image, label in np.ndindex(masses.shape[:2]):
            counts = np.bincount(places[image], weights=masses[image, label], minlength=found.shape[2])
            smooth = ndimage.gaussian_filter(counts.reshape(size), self.spread * self.bins, mode="constant")
            found[image, label] = (1 - self.uniform) * smooth.ravel() / smooth.sum() + self.uniform / smooth.size
        return Histograms(torch.from_numpy(found).to(weights))

    def costs(self, features: Tensor, statistics: Histograms) -> Tensor:
        """-log p_k at the bin of every pixel."""
        places = torch.from_numpy(self._places(features)).to(features.device)
        costs = -statistics.probability.log()
        return costs.gather(2, places.unsqueeze(1).expand(-1, costs.shape[1], -1)).to(features)

    def _places(self, features: Tensor) -> npt.NDArray[np.int64]:
        """(B, N) the bin of every pixel."""
        cells = (features.cpu().numpy() * self.bins).astype(np.int64).clip(0, self.bins - 1)
        places: npt.NDArray[np.int64] = np.ravel_multi_index(
            tuple(cells.swapaxes(0, 1)), (self.bins,) * features.shape[1]
        )
        return places
