"""Mixtures of normal distributions: classes of several colours.

    F(s, theta) = sum over classes k and pixels p of s_kp (-log p_k(I_p))
    p_k(x) = (1 - u) sum over components m of share_km N(x; mean_km, covariance_km) + u

in nats. u is a little of the uniform distribution on [0, 1]^C, so that a colour that was not scribbled costs at most
-log u: scribbles show some of a class's colours, hardly all. Where a histogram of three channels has thousands of bins
to fill, a mixture has a few dozen numbers, which a few hundred pixels determine.

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

import torch
from torch import Tensor

from regloss.errors import UsageError
from regloss.region_force import RegionForce

_LEAST = 10  # pixels, of weight 1, that a component needs at first
_MOST = 4096  # pixels of a class that a fit looks at
_CHUNK = 1 << 14  # pixels whose distances to all components stay in the processor's cache


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
    """-log of a mixture of normal densities and a little of the uniform one; for any number of channels.

    Args:
        components: of each class, at most, >= 1; classes of few pixels or few colours get fewer.
        uniform: share of the uniform distribution on [0, 1]^C, 0 < uniform < 1.
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
    uniform: float = 0.05
    min_variance: float = 1e-4
    max_steps: int = 10
    exact: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.components < 1:
            raise UsageError(f"components must be at least 1; got {self.components}.")
        if not 0 < self.uniform < 1:
            raise UsageError(f"uniform must lie between 0 and 1, so that no colour costs inf; got {self.uniform!r}.")
        if not 0 < self.min_variance < float("inf"):
            raise UsageError(f"min_variance must be a positive number; got {self.min_variance!r}.")
        if self.max_steps < 0:
            raise UsageError(f"max_steps must not be negative; got {self.max_steps}.")

    def estimate(self, features: Tensor, weights: Tensor) -> Mixtures:
        """Expectation maximisation from clusters; of more than 4096 pixels of a class, as many at even distances."""
        values, weights = _pixels(features.to(weights), weights)
        middle = (weights.unsqueeze(-1) * values).sum(2, keepdim=True) / weights.sum(2)[..., None, None]
        values = values - middle  # so that second moments lose no digits
        products = _products(values)
        members = self._clusters(values, products, weights)
        found = self._maximise(products, members)
        for _ in range(self.max_steps):
            logs = _log_densities(values, found)
            found = self._maximise(products, weights.unsqueeze(-1) * logs.softmax(-1))
        return found._replace(mean=found.mean + middle)

    def _clusters(self, values: Tensor, products: Tensor, weights: Tensor) -> Tensor:
        """(B, K, n, M) the weights of the pixels, each in one of M clusters, which may be empty."""
        cluster = torch.zeros(weights.shape, dtype=torch.int64, device=weights.device)
        order = torch.arange(self.components, device=weights.device)
        members = weights.unsqueeze(-1) * (cluster.unsqueeze(-1) == order)
        for number in range(1, self.components):
            mass, mean, covariance = _moments(products, members)
            variance, axes = torch.linalg.eigh(covariance)
            worth = (mass >= 2 * _LEAST) & (variance[..., -1] > self.min_variance)
            spread = torch.where(worth, mass * variance[..., -1], -1.0)
            widest, place = spread.max(-1)
            picked = place[..., None, None]
            centre = mean.gather(2, picked.expand(*place.shape, 1, mean.shape[-1]))
            axis = axes[..., -1].gather(2, picked.expand_as(centre))
            beyond = ((values - centre) * axis).sum(-1) > 0
            here = (cluster == place.unsqueeze(-1)) & (widest > 0).unsqueeze(-1)
            cluster = torch.where(here & beyond, number, cluster)
            members = weights.unsqueeze(-1) * (cluster.unsqueeze(-1) == order)
        return members

    def _maximise(self, products: Tensor, members: Tensor) -> Mixtures:
        """The mixtures of the largest likelihood for ``members`` (B, K, n, M), weights by component."""
        mass, mean, covariance = _moments(products, members)
        variance, axes = torch.linalg.eigh(covariance)
        raised = variance.clamp(min=self.min_variance).unsqueeze(-2)
        return Mixtures(mass / mass.sum(-1, keepdim=True), mean, (axes * raised) @ axes.transpose(-1, -2))

    def costs(self, features: Tensor, statistics: Mixtures) -> Tensor:
        """-log of the mixtures."""
        batch, classes, components, channels = statistics.mean.shape
        variance, axes = torch.linalg.eigh(statistics.covariance)
        whiten = (axes / variance.sqrt().unsqueeze(-2)).transpose(-1, -2)  # (B, K, M, C, C)
        shift = -(whiten @ statistics.mean.unsqueeze(-1))
        scale = math.log1p(-self.uniform) + statistics.share.log() - _log_norm(variance)  # -inf where there is none
        whiten = whiten.to(features).reshape(batch, classes, components * channels, channels)
        shift, scale = shift.to(features).reshape(batch, classes, -1, 1), scale.to(features).unsqueeze(-1)
        costs = features.new_empty(batch, classes, features.shape[2])
        for b in range(batch):
            for start in range(0, features.shape[2], _CHUNK):
                chunk = features[b, :, start : start + _CHUNK]
                for k in range(classes):
                    distances = torch.addmm(shift[b, k], whiten[b, k], chunk).square_()
                    logs = torch.sub(scale[b, k], distances.view(components, channels, -1).sum(1), alpha=0.5)
                    uniform = logs.new_full((1, logs.shape[1]), math.log(self.uniform))
                    costs[b, k, start : start + _CHUNK] = -torch.cat([logs, uniform]).logsumexp(0)
        return costs


def _pixels(features: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """The pixels of each class: features (B, K, n, C) and weights (B, K, n), 0 where a class has fewer than n."""
    chosen = []
    for row in weights.flatten(0, 1):
        places = row.nonzero().squeeze(1)
        if len(places) > _MOST:
            places = places[torch.linspace(0, len(places) - 1, _MOST, device=row.device).round().long()]
        chosen.append(places)
    index = torch.nn.utils.rnn.pad_sequence(chosen, batch_first=True, padding_value=-1)
    index = index.reshape(*weights.shape[:2], -1)
    places = index.clamp(min=0)
    picked = weights.gather(2, places) * (index >= 0)
    batch, channels, _ = features.shape
    values = features.gather(2, places.flatten(1).unsqueeze(1).expand(-1, channels, -1))
    return values.reshape(batch, channels, *places.shape[1:]).permute(0, 2, 3, 1), picked


def _products(values: Tensor) -> Tensor:
    """(B, K, n, 1 + C + C * C) of ``values`` (B, K, n, C): 1, x and x x^T, of which moments are sums."""
    squares = values.unsqueeze(-1) * values.unsqueeze(-2)
    return torch.cat([torch.ones_like(values[..., :1]), values, squares.flatten(-2)], dim=-1)


def _moments(products: Tensor, members: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mass (B, K, M), mean (B, K, M, C) and covariance (B, K, M, C, C) of ``members`` (B, K, n, M); 0 where empty."""
    sums = members.transpose(-1, -2) @ products
    channels = (math.isqrt(4 * sums.shape[-1] - 3) - 1) // 2
    mass = sums[..., 0]
    sums = sums[..., 1:] / mass.clamp(min=torch.finfo(mass.dtype).tiny).unsqueeze(-1)
    mean = sums[..., :channels]
    squares = sums[..., channels:].reshape(*mean.shape, channels)
    return mass, mean, squares - mean.unsqueeze(-1) * mean.unsqueeze(-2)


def _log_norm(variance: Tensor) -> Tensor:
    """Log of a normal density's denominator, from the eigenvalues (..., C) of its covariance."""
    norm: Tensor = (variance.log().sum(-1) + variance.shape[-1] * math.log(2 * math.pi)) / 2
    return norm


def _log_densities(values: Tensor, mixtures: Mixtures) -> Tensor:
    """(B, K, n, M) log of share times density of ``values`` (B, K, n, C)."""
    variance, axes = torch.linalg.eigh(mixtures.covariance)
    whiten = axes / variance.sqrt().unsqueeze(-2)  # (B, K, M, C, C)
    centred = values.unsqueeze(2) - mixtures.mean.unsqueeze(3)  # (B, K, M, n, C)
    distances = (centred @ whiten).square().sum(-1)
    logs: Tensor = (mixtures.share.log() - _log_norm(variance)).unsqueeze(-1) - distances / 2
    return logs.transpose(-1, -2)
