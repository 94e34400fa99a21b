"""Mixtures of normal distributions: classes of several colours.

    F(s, theta) = sum over classes k and pixels p of s_kp (-log p_k(I_p))
    p_k(x) = (1 - u) sum over components m of share_km N(x; mean_km, covariance_km) + u N(x; mean_k, covariance_k + w^2)

in nats, with the mean and covariance of all of the class's colours in the last. Scribbles show some of a class's
colours, hardly all: one that was not scribbled is no proof against any class, but speaks for the one whose colours are
near, as a normal distribution of standard deviation w or more would. Where a histogram of three channels has thousands
of bins to fill, a mixture has a few dozen numbers, which a few hundred pixels determine.

The shares, means and covariances are those of expectation maximisation, whose every step raises the likelihood of the
class's pixels. It starts from clusters that are made by halving: the one with the largest sum of squares along one
axis is cut through its mean, across that axis, until there are as many as components, or none is left that is worth
it: of ``least`` pixels on either side, and wider than the floor. Nothing is random. Eigenvalues of the covariances are
raised to the floor, as in `regloss_plugins.region_forces.gaussian`, where the reason stands. What is reached is a local
maximum of the likelihood, so a fit may raise F: alternation then keeps the mixtures it has.

Source: Blake, Rother, Brown, Perez, Torr, "Interactive image segmentation using an adaptive GMMRF model", ECCV 2004;
Rother, Kolmogorov, Blake, "GrabCut", SIGGRAPH 2004; halving: Orchard, Bouman, "Color quantization of images", IEEE
Transactions on Signal Processing 1991; expectation maximisation: Dempster, Laird, Rubin, J. Royal Statistical Society B
1977.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from regloss.checks import check_at_least_one, check_not_negative
from regloss.errors import UsageError
from regloss.region_force import RegionForce

_LEAST = 10  # pixels, of weight 1, that a component needs at first
_MOST = 4096  # pixels of a class that a fit looks at


class Mixtures(NamedTuple):
    """Statistics of `GaussianMixture`, M components of each class.

    Attributes:
        share: (B, K, M), sums to 1; 0 for components that the class does not have.
        mean: (B, K, M, C).
        covariance: (B, K, M, C, C).
    """

    share: Tensor
    mean: Tensor
    covariance: Tensor


@dataclass(frozen=True)
class GaussianMixture(RegionForce):
    """-log of a mixture of normal densities and a little of a wide one; for any number of channels.

    Args:
        components: of each class, at most, >= 1; classes of few pixels or few colours get fewer.
        outliers: u, the share of the wide distribution, 0 < outliers < 1.
        spread: w, its standard deviation beside that of the class's colours, > 0, in units of the image.
        min_variance: lower bound of a covariance's eigenvalues, > 0, in squared units of the image; the default is a
            standard deviation of 0.01, or 2.5 of 255.
        max_steps: of expectation maximisation, >= 0.

    Raises:
        UsageError: a setting outside its range.

    A class of two colours, and one of the colour between:

    >>> image = torch.tensor([[[0.1, 0.9, 0.5] * 30]])
    >>> labels = torch.tensor([[[1.0, 1, 0] * 30, [0.0, 0, 1] * 30]])
    >>> force = GaussianMixture(components=2)
    >>> mixtures = force.fit(image, labels)
    >>> mixtures.mean[0, :, :, 0].sort().values, mixtures.share[0]
    (tensor([[0.1000, 0.9000],
            [0.5000, 0.5000]], dtype=torch.float64), tensor([[0.5000, 0.5000],
            [1.0000, 0.0000]], dtype=torch.float64))
    >>> force.unary(image, mixtures).argmin(1)[0, :3]
    tensor([0, 0, 1])
    """

    components: int = 5
    outliers: float = 0.05
    spread: float = 0.25
    min_variance: float = 1e-4
    max_steps: int = 10
    exact: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_at_least_one(components=self.components)
        if not 0 < self.outliers < 1:
            raise UsageError(f"outliers must lie between 0 and 1; got {self.outliers!r}.")
        for name, value in (("spread", self.spread), ("min_variance", self.min_variance)):
            if not 0 < value < float("inf"):
                raise UsageError(f"{name} must be a positive number; got {value!r}.")
        check_not_negative(max_steps=self.max_steps)

    def estimate(self, features: Tensor, weights: Tensor) -> Mixtures:
        """Expectation maximisation from clusters, of 4096 pixels in even steps where a class has more; on the CPU."""
        from regloss_plugins.kernels.mixtures import fit_mixture

        batch, classes, _ = weights.shape
        channels, components = features.shape[1], self.components
        share = torch.empty(batch, classes, components, dtype=torch.float64)
        mean = torch.empty(batch, classes, components, channels, dtype=torch.float64)
        covariance = torch.empty(batch, classes, components, channels, channels, dtype=torch.float64)
        for b, k in np.ndindex(batch, classes):
            places = weights[b, k].nonzero().squeeze(1)
            if len(places) > _MOST:
                places = places[torch.linspace(0, len(places) - 1, _MOST, device=places.device).round().long()]
            values = features[b].index_select(1, places).T.cpu().double().contiguous()
            mass = weights[b, k].index_select(0, places).cpu().double()
            fitted = fit_mixture(
                values.numpy(), mass.numpy(), components, float(_LEAST), float(self.min_variance), self.max_steps
            )
            share[b, k], mean[b, k], covariance[b, k] = (torch.from_numpy(values) for values in fitted)
        return Mixtures(share.to(weights), mean.to(weights), covariance.to(weights))

    def costs(self, features: Tensor, statistics: Mixtures) -> Tensor:
        """-log of the mixtures; in compiled code on the CPU."""
        statistics = self._with_outliers(statistics)
        roots = torch.linalg.cholesky(statistics.covariance)  # (B, K, M + 1, C, C), lower triangular
        variance = torch.diagonal(roots, dim1=-2, dim2=-1).square()
        whiten = torch.linalg.solve_triangular(roots, torch.eye(roots.shape[-1]).to(roots), upper=False)
        shift = -(whiten @ statistics.mean.unsqueeze(-1)).squeeze(-1)
        scale = statistics.share.log() - _log_norm(variance)  # -inf where there is none
        whiten, shift, scale = (values.to(features).contiguous() for values in (whiten, shift, scale))
        if features.device.type != "cpu":
            return mixture_costs_by_tensors(features, whiten, shift, scale)
        from regloss_plugins.kernels.mixtures import mixture_costs

        costs = features.new_empty(features.shape[0], scale.shape[1], features.shape[2])
        given, filled = features.contiguous().numpy(), costs.numpy()
        for b in range(len(given)):
            mixture_costs(given[b], whiten[b].numpy(), shift[b].numpy(), scale[b].numpy(), filled[b])
        return costs

    def _with_outliers(self, statistics: Mixtures) -> Mixtures:
        """With the wide distribution as one component more."""
        share, mean, covariance = statistics
        weights = share.unsqueeze(-1)
        centre = (weights * mean).sum(2, keepdim=True)
        offset = (mean - centre).unsqueeze(-1)
        about = covariance + offset @ offset.transpose(-1, -2)
        about = (weights.unsqueeze(-1) * about).sum(2, keepdim=True)
        wide = about + self.spread**2 * torch.eye(mean.shape[-1]).to(mean)
        shares = torch.cat([(1 - self.outliers) * share, torch.full_like(share[..., :1], self.outliers)], dim=-1)
        return Mixtures(shares, torch.cat([mean, centre], dim=2), torch.cat([covariance, wide], dim=2))


def mixture_costs_by_tensors(features: Tensor, whiten: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Costs (B, K, N) of mixtures at ``features`` (B, C, N) by tensor operations.

    As `regloss_plugins.kernels.mixtures.mixture_costs` does for each image of the batch; the reference of that code.
    """
    costs = []
    for k in range(scale.shape[1]):  # one class after the other: all at once would be K M C times the image
        rows = whiten[:, k].flatten(1, 2) @ features + shift[:, k].flatten(1).unsqueeze(2)
        distances = rows.square().reshape(*shift[:, k].shape, -1).sum(2)
        costs.append(-(scale[:, k].unsqueeze(2) - distances / 2).logsumexp(1))
    return torch.stack(costs, dim=1)


def _log_norm(variance: Tensor) -> Tensor:
    """Log of a normal density's denominator, from the eigenvalues (..., C) of its covariance."""
    norm: Tensor = (variance.log().sum(-1) + variance.shape[-1] * math.log(2 * math.pi)) / 2
    return norm
