"""Grid CRF: a contrast-weighted Potts model on the nearest neighbours.

    R(labels) = weight * sum over neighbour pairs pq of w_pq [l_p != l_q]
    w_pq      = exp(-|I_p - I_q|^2 / (2 sigma^2)) / distance(p, q)

|I_p - I_q|^2 is summed over channels, sigma is in units of image values (which lie in [0, 1]), distances are in pixels,
or in mm where the spacing is known; axes of unequal spacing are balanced by `regloss.grid.boundary_lengths`.
With sigma = "auto", sigma^2 is the mean of |I_p - I_q|^2 over all neighbour pairs of the image that lie inside the
region of interest, one value for each image; on a flat image all pairs get the weight 1 / distance.

For probabilities there are the relaxations of `regloss.potts`, equal to R on one-hot input.

Source: Marin, Tang, Ben Ayed, Boykov, "Beyond gradient descent for regularized segmentation losses", CVPR 2019, and
Marin, Boykov, "Robust trust region for weakly supervised segmentation", ICCV 2021.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from regloss import grid
from regloss.checks import check_choice
from regloss.errors import UsageError
from regloss.forms import Graph, GridGraph
from regloss.potts import RELAXATIONS, PottsTerm, Relaxation
from regloss.regularizer import Forms, Regularizer, Term


@dataclass(frozen=True)
class GridCRF(Regularizer):
    """Potts model on nearest neighbours, whose weights follow the image's contrast.

    Args:
        weight: factor of the whole energy, >= 0.
        connectivity: 4 or 8 in 2D, 6, 18 or 26 in 3D, 2 in 1D. The default 8 means the full neighbourhood: 26 in 3D.
        sigma: "auto", or a contrast bandwidth in units of image values, 0 < sigma <= 2.
        diagonal: "distance" divides a pair's weight by the distance of its ends, "unit" does not and counts pairs,
            whatever the spacing.
        relaxation: energy of probabilities: "bilinear", "quadratic" or "total-variation".

    Raises:
        UsageError: a setting outside its range.

    >>> image = torch.zeros(1, 1, 2, 2)
    >>> labels = torch.tensor([[[0, 1], [0, 1]]])
    >>> GridCRF().bind(image).form(GridGraph).cut(labels)  # two straight pairs, two diagonal ones
    tensor([3.4142])
    """

    weight: float = 1.0
    connectivity: int = 8
    sigma: float | Literal["auto"] = "auto"
    diagonal: Literal["distance", "unit"] = "distance"
    relaxation: Relaxation = "bilinear"

    def __post_init__(self) -> None:
        if self.connectivity not in (2, 4, 6, 8, 18, 26):
            raise UsageError(f"connectivity must be 4 or 8 (2D), 6, 18 or 26 (3D), or 2 (1D); got {self.connectivity}.")
        # The largest difference that an RGB image in [0, 1] can have is sqrt(3); a larger bandwidth means bytes.
        if self.sigma != "auto" and not (isinstance(self.sigma, int | float) and 0 < self.sigma <= 2):
            raise UsageError(
                f'sigma must be "auto" or lie in (0, 2], in units of image values in [0, 1]; got {self.sigma!r}. '
                "A bandwidth given for bytes is divided by 255."
            )
        if self.diagonal not in ("distance", "unit"):
            raise UsageError(f'diagonal must be "distance" or "unit"; got {self.diagonal!r}.')
        check_choice(RELAXATIONS, relaxation=self.relaxation)

    @property
    def forms(self) -> Forms:
        """A grid graph, and the same as a list of edges."""
        return {GridGraph: PottsTerm.grid_graph, Graph: PottsTerm.graph}

    def build(self, image: Tensor, roi: Tensor | None, spacing: tuple[float, ...] | None) -> Term:
        """Compute the pair weights of every image."""
        ndim = image.ndim - 2
        connectivity = 26 if ndim == 3 and self.connectivity == 8 else self.connectivity
        offsets = grid.neighbor_offsets(ndim, connectivity)
        shape = (image.shape[0], *image.shape[2:])
        contrast = image.new_zeros(shape[0], len(offsets), *shape[1:])
        pairs = torch.zeros(shape[0], dtype=torch.int64, device=image.device)
        everywhere = grid.full_roi(roi, shape, image.device)
        for number, offset in enumerate(offsets):
            first, second = grid.pair_slices(offset)
            difference = grid.pick(image, first) - grid.pick(image, second)
            inside = grid.pairs_inside(everywhere, offset)
            grid.pick(contrast[:, number], first).copy_(difference.square().sum(1))
            contrast[:, number] *= inside
            pairs += inside.flatten(1).sum(1)
        if self.sigma == "auto":
            variance = contrast.flatten(1).sum(1) / pairs.clamp(min=1)
            variance = torch.where(variance > 0, variance, torch.ones_like(variance))
        else:
            variance = image.new_full((shape[0],), float(self.sigma) ** 2)
        # In place, and one offset at a time: of a volume with 26 neighbours each copy is 13 times as large as it.
        weights = contrast.div_(-2 * variance.reshape(-1, *[1] * (ndim + 1))).exp_()
        for number, offset in enumerate(offsets):
            weights[:, number] *= grid.pairs_inside(everywhere, offset)
        if self.diagonal == "distance":
            weights /= image.new_tensor(grid.boundary_lengths(offsets, spacing)).reshape(1, -1, *[1] * ndim)
        return PottsTerm(self, GridGraph(offsets, weights.mul_(self.weight)), shape, roi, self.relaxation)
