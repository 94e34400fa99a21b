"""ELBO: the evidence lower bound of deep Chan-Vese, a data term that needs no label.

An encoder G maps the image to a latent space in which every phase is a Gaussian N(mu_i, Sigma_i), a decoder F back:

    fidelity / 2 E_eta |F(G(I) + sqrt(V) eta) - I|^2  +  sum over pixels x and phases i of u_ix KL_ix

    KL_ix = KL( N(G(I)_x, V_x) || N(mu_i, Sigma_i) )
          = 1/2 [ ln det Sigma_i - ln det V + tr(Sigma_i^-1 V) - d + (G(I) - mu_i)^T Sigma_i^-1 (G(I) - mu_i) ]

with eta ~ N(0, 1) and u = softmax(logits). Minus the bound, up to a constant, it is minimised: over logits by whoever
owns them, over G and F by the same optimizer (see `modules`). With total variation of u beside it, this is the energy
of deep Chan-Vese; with G the identity, V -> 0 and Sigma_i = 1 it is Chan-Vese's own.

The bound stays valid for u between 0 and 1, as KL is convex: sum_i u_i KL(q || p_i) >= KL(q || sum_i u_i p_i). With
``entropy`` = 1, sum_i u_i ln u_i beside it, and no regularizer, the best u is softmax(-KL).

Means and covariances are given, and the same for all images. With a finite ``prior_pixels`` = c every image has its own
instead, as in Chan-Vese, whose means follow the labels, and shares pi_i of the pixels beside them; KL_ix - ln (K pi_i)
stands for KL_ix. For given u and G they minimise the sum over x and i of u_ix times that, and over i of
c KL( given phase i || N(mu_i, Sigma_i) ) - c ln (K pi_i): with n_i = sum_x u_ix,

    mu_i = (c given mean + sum_x u_ix G(I)_x) / (c + n_i)        pi_i = (c + n_i) / sum_j (c + n_j)

and Sigma_i the covariance of the same c + n_i pixels, with V; c = infinity is the formula above. With ``balance`` every
phase counts the same in the gradient of the networks, but for phases with less than a tenth of the pixels.

Source: Zheng, Bao, Shi, Ling, Ma, "Unsupervised deep learning meets Chan-Vese model". Differs from it in: 1. fidelity,
the inverse variance of the decoder's noise, as image values lie in [0, 1] here; 2. V may be learnt; 3. phases may be
each image's own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from regloss.batch import Batch
from regloss.checks import at_least_float32, check_not_negative
from regloss.data_term import DataTerm
from regloss.errors import UsageError
from regloss.outer_loop import check_logits
from regloss.registry import create

_MAX_LOG_VARIANCE = 10.0
_LEAST_PRIOR, _MOST_PRIOR = 1e-6, 1e6
_SMALLEST_SHARE = 0.1  # of the pixels: a smaller phase is not given the weight of a larger one


class Latent(NamedTuple):
    """What the encoder says of an image.

    Attributes:
        mean: (B, d, *S), G(I).
        variance: (B, d, *S), the diagonal of V; broadcastable to the mean where it is fixed.
    """

    mean: Tensor
    variance: Tensor


class Phases(NamedTuple):
    """The Gaussians of the phases; B = 1 where they are the same for all images.

    Attributes:
        means: (B, K, d).
        covariances: (B, K, d, d).
        shares: (B, K), of the pixels; they sum to 1.
    """

    means: Tensor
    covariances: Tensor
    shares: Tensor


class ELBO(DataTerm):
    """Minus the evidence lower bound, per pixel of the region of interest; it reads no labels and trains two networks.

    Args:
        encoder: a network from C channels to d; an object, a name, or a table without ``in_channels`` and ``classes``.
            Where the variance is learnt it gives 2 d channels: means, then logarithms of the variances.
        decoder: a network from d channels to C, likewise.
        means: (K, d) latent means, one row a phase. None = 10 and -10, for two phases in one dimension.
        covariances: Sigma_i: one number (times the identity), or (K, d, d) symmetric positive definite matrices.
        variance: V: a number, d numbers (one for each latent channel), or "learned".
        samples: noises drawn for each image and call, at least 1; or 0, for a decoder that sees the mean itself.
        fidelity: factor of the reconstruction, > 0: one over the variance of the decoder's noise, in image values.
        entropy: factor of sum u ln u, >= 0; see above.
        balance: whether every phase counts the same in the gradient of the networks; see above.
        prior_pixels: c in [1e-6, 1e6], the pixels that given means and covariances count as in the phases of each
            image; infinity = the given phases are those of all images. See above.
        channels: C of the images, where a network is to be made.
        noise_seed: None draws new noise in each call; a number draws the same, always and for each image, which makes
            the energy a function that can be compared between calls.

    Raises:
        UsageError: shapes that disagree, covariances that are not positive definite, settings outside their range.

    >>> _ = torch.manual_seed(0)
    >>> elbo = ELBO("plain-cnn", "plain-cnn", means=[[3.0], [-3.0]], channels=1)
    >>> image = torch.rand(2, 1, 16, 16)
    >>> elbo.latent(image).mean.shape, elbo.divergences(image).shape, elbo.reconstruction(image).shape
    (torch.Size([2, 1, 16, 16]), torch.Size([2, 2, 16, 16]), torch.Size([2, 1, 16, 16]))
    >>> sums, counts = elbo(torch.zeros(2, 2, 16, 16), Batch(image, None))
    >>> counts, sorted(elbo.modules())
    (tensor([256., 256.]), ['decoder', 'encoder'])
    """

    needs_labels = False

    def __init__(
        self,
        encoder: nn.Module | str | Mapping[str, Any] = "unet",
        decoder: nn.Module | str | Mapping[str, Any] = "unet",
        means: Tensor | Sequence[Sequence[float]] | None = None,
        covariances: Tensor | float | Sequence[Sequence[Sequence[float]]] = 1.0,
        variance: float | Sequence[float] | Literal["learned"] = 1.0,
        samples: int = 1,
        fidelity: float = 1.0,
        entropy: float = 0.0,
        balance: bool = False,
        prior_pixels: float = math.inf,
        channels: int = 3,
        noise_seed: int | None = None,
    ) -> None:
        self.means = torch.as_tensor([[10.0], [-10.0]] if means is None else means, dtype=torch.float64)
        if self.means.ndim != 2 or self.means.shape[0] < 2 or not bool(torch.isfinite(self.means).all()):
            raise UsageError(
                f"means must be finite numbers (K, d), one row for each of at least two phases; got {means!r}."
            )
        self.phases, self.dimensions = self.means.shape
        self.covariances = _covariances(covariances, self.phases, self.dimensions)
        self.variance = None if variance == "learned" else _variance(variance, self.dimensions)
        if not isinstance(samples, int) or isinstance(samples, bool) or samples < 0:
            raise UsageError(f"samples must be a whole number, 0 or more; got {samples!r}.")
        if not 0 < fidelity < math.inf:
            raise UsageError(f"fidelity must be positive and finite; got {fidelity!r}.")
        check_not_negative(entropy=entropy)
        self.samples, self.fidelity, self.entropy, self.noise_seed = samples, fidelity, entropy, noise_seed
        # Beyond, single precision would not tell the phases of an image from the given ones, or those from nothing.
        if not (_LEAST_PRIOR <= prior_pixels <= _MOST_PRIOR or prior_pixels == math.inf):
            raise UsageError(
                f"prior_pixels must lie in [{_LEAST_PRIOR:g}, {_MOST_PRIOR:g}], or be infinity for fixed phases; got "
                f"{prior_pixels!r}."
            )
        self.balance, self.prior_pixels = balance, prior_pixels
        outputs = self.dimensions * (2 if self.variance is None else 1)
        self.encoder = _network(encoder, channels, outputs)
        self.decoder = _network(decoder, self.dimensions, channels)

    def modules(self) -> Mapping[str, nn.Module]:
        """The two networks, which are trained with whatever makes the logits."""
        return {"encoder": self.encoder, "decoder": self.decoder}

    def maps(self, image: Tensor) -> Mapping[str, Tensor]:
        """The first latent mean."""
        return {"latent": self.latent(image).mean[:, 0]}

    def latent(self, image: Tensor, roi: Tensor | None = None) -> Latent:
        """Where the encoder puts each pixel.

        Args:
            image: (B, C, *S) in [0, 1].
            roi: (B, *S) bool; the encoder sees 0 outside.

        Raises:
            UsageError: the encoder's output has not 'd' channels (2 d where the variance is learnt) or another size.
        """
        seen = image.to(_dtype(self.encoder, image))
        if roi is not None:
            seen = seen * roi.unsqueeze(1)
        output = at_least_float32(self.encoder(seen))
        wanted = self.dimensions * (2 if self.variance is None else 1)
        if output.shape != (image.shape[0], wanted, *image.shape[2:]):
            raise UsageError(
                f"The encoder makes {tuple(output.shape)} of images {tuple(image.shape)}; {wanted} channels at the "
                f"size of the image are needed, for {self.dimensions} latent dimensions"
                + (" and their variances." if self.variance is None else ".")
            )
        if self.variance is not None:
            variance = self.variance.to(output).reshape(1, -1, *[1] * (output.ndim - 2))
            return Latent(output, variance)
        mean, logarithm = output.chunk(2, dim=1)
        return Latent(mean, logarithm.clamp(-_MAX_LOG_VARIANCE, _MAX_LOG_VARIANCE).exp())

    def phases_of(self, latent: Latent, u: Tensor | None, roi: Tensor | None = None) -> Phases:
        """The phases of each image; no gradient.

        Args:
            latent: see `latent`.
            u: (B, K, *S) probabilities of the phases; None = the given phases, which fixed ones are in any case.
            roi: (B, *S) bool; outside nothing counts.

        Raises:
            UsageError: phases are each image's own, and there is no ``u``.
        """
        means, covariances = self.means.to(latent.mean).unsqueeze(0), self.covariances.to(latent.mean).unsqueeze(0)
        if math.isinf(self.prior_pixels):
            return Phases(means, covariances, torch.full_like(means[..., 0], 1 / self.phases))
        if u is None:
            raise UsageError(
                f"With prior_pixels = {self.prior_pixels:g} the phases are each image's own, so their "
                "probabilities 'u' are needed. Give them, or leave prior_pixels at infinity."
            )
        given = self.prior_pixels
        weights = (u if roi is None else u * roi.unsqueeze(1)).detach().to(latent.mean).flatten(2)
        position, variance = latent.mean.detach().flatten(2), latent.variance.detach().flatten(2)
        with torch.autocast(latent.mean.device.type, enabled=False):
            counts = given + weights.sum(2)
            centres = (given * means + torch.einsum("bkp,bip->bki", weights, position)) / counts.unsqueeze(2)
            # About the mean, not by differences of squares, which would lose the digits of a narrow phase.
            offsets, moved = position.unsqueeze(1) - centres.unsqueeze(3), means - centres
            spread = torch.einsum("bkp,bkip,bkjp->bkij", weights, offsets, offsets)
            within = torch.einsum("bkp,bip->bki", weights, variance.expand_as(position))
            spread = spread + torch.diag_embed(within) + given * (covariances + moved.unsqueeze(3) * moved.unsqueeze(2))
        return Phases(centres, spread / counts[..., None, None], counts / counts.sum(1, keepdim=True))

    def prior_cost(self, phases: Phases) -> Tensor:
        """What the given phases ask of an image's own, (B,) or (1,): sum of c KL(given || own) - c ln (K pi_i)."""
        means, covariances = self.means.to(phases.means), self.covariances.to(phases.means)
        if math.isinf(self.prior_pixels):
            return means.new_zeros(1)
        precisions = torch.linalg.inv(phases.covariances)
        offsets = means - phases.means
        with torch.autocast(means.device.type, enabled=False):
            distances = torch.einsum("bki,bkij,bkj->bk", offsets, precisions, offsets)
            traces = torch.einsum("bkij,kij->bk", precisions, covariances)
        log_ratio = torch.linalg.slogdet(phases.covariances).logabsdet - torch.linalg.slogdet(covariances).logabsdet
        of_phase = 0.5 * (log_ratio - self.dimensions + traces + distances) - (self.phases * phases.shares).log()
        cost: Tensor = self.prior_pixels * of_phase.sum(1)
        return cost

    def divergences_of(self, latent: Latent, phases: Phases | None = None) -> Tensor:
        """KL (B, K, *S) of a latent distribution to each phase, in nats; >= 0.

        Of phases that are each image's own less ln (K pi_i), and then it may be negative.

        Args:
            latent: see `latent`.
            phases: of `phases_of`; None = the given ones.

        Raises:
            UsageError: phases are each image's own, and not given.
        """
        mean, variance = latent
        phases = self.phases_of(latent, None) if phases is None else phases
        axes = [1] * (mean.ndim - 2)
        precisions = torch.linalg.inv(phases.covariances)
        offsets = mean.unsqueeze(1) - phases.means.reshape(*phases.means.shape, *axes)
        with torch.autocast(mean.device.type, enabled=False):
            distances = torch.einsum("bki...,bkij,bkj...->bk...", offsets, precisions, offsets)
            traces = torch.einsum("bkii,bi...->bk...", precisions, variance)
        of_phase = torch.linalg.slogdet(phases.covariances).logabsdet - self.dimensions
        of_phase = of_phase - 2 * (self.phases * phases.shares).log()
        of_phase = of_phase.reshape(*of_phase.shape, *axes)
        divergences: Tensor = 0.5 * (of_phase - variance.log().sum(1, keepdim=True) + traces + distances)
        return divergences

    def divergences(self, image: Tensor, roi: Tensor | None = None, u: Tensor | None = None) -> Tensor:
        """KL (B, K, *S) of every pixel's latent distribution to each phase: the deep region force.

        Args:
            image: (B, C, *S) in [0, 1].
            roi: (B, *S) bool.
            u: see `phases_of`; needed where phases are each image's own.
        """
        latent = self.latent(image, roi)
        return self.divergences_of(latent, self.phases_of(latent, u, roi))

    def reconstruction(self, image: Tensor, roi: Tensor | None = None) -> Tensor:
        """F(G(I)) (B, C, *S): what the decoder makes of the latent means."""
        return self.decode(self.latent(image, roi).mean)

    def decode(self, latent: Tensor) -> Tensor:
        """F at latent values (B, d, *S): (B, C, *S)."""
        return at_least_float32(self.decoder(latent.to(_dtype(self.decoder, latent))))

    def reconstruction_error(self, latent: Latent, image: Tensor, roi: Tensor | None = None) -> Tensor:
        """E_eta |F(G + sqrt(V) eta) - I|^2 (B,), by the mean over ``samples`` noises; summed over pixels and channels.

        Raises:
            UsageError: the decoder's output is not of the image's shape.
        """
        total = image.new_zeros(image.shape[0], dtype=latent.mean.dtype)
        # The root of the variance, not of variance times eta, which would be NaN for half of the samples.
        deviation = latent.variance.sqrt()
        generator = self._generator(image)
        for _ in range(max(1, self.samples)):
            at = latent.mean if self.samples == 0 else latent.mean + deviation * self._noise(latent.mean, generator)
            decoded = self.decode(at)
            if decoded.shape != image.shape:
                raise UsageError(
                    f"The decoder makes {tuple(decoded.shape)} for images {tuple(image.shape)}; it must restore them."
                )
            error = (decoded - image).square().sum(1)
            total = total + (error if roi is None else error * roi).flatten(1).sum(1)
        return total / max(1, self.samples)

    def balanced(self, u: Tensor, roi: Tensor | None = None) -> Tensor:
        """``u`` (B, K, *S) over the share of each phase, so that each sums to as many pixels."""
        inside = u if roi is None else u * roi.unsqueeze(1)
        counts = inside.flatten(2).sum(2)
        shares = counts / counts.sum(1, keepdim=True).clamp(min=1e-12)
        # A phase that is all but gone must not pull every pixel half-way to it.
        factors = 1 / (self.phases * shares.clamp(min=_SMALLEST_SHARE))
        return u * factors.reshape(*factors.shape, *[1] * (u.ndim - 2))

    def _generator(self, image: Tensor) -> torch.Generator | None:
        if self.noise_seed is None:
            return None
        return torch.Generator(device=image.device).manual_seed(self.noise_seed)

    def _noise(self, like: Tensor, generator: torch.Generator | None) -> Tensor:
        if generator is None:
            return torch.randn_like(like)
        # One draw for all images: each must get what it would get alone.
        return torch.randn(like.shape[1:], generator=generator, dtype=like.dtype, device=like.device).expand_as(like)

    def __call__(self, logits: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Sums (B,) of the two terms over the region of interest, and its numbers of pixels.

        Phases of an image's own are the best ones for it, so that the gradient is exact although none passes by them.

        Raises:
            UsageError: logits of another size than the image, or of another number of classes than there are phases.
        """
        check_logits(logits, batch)
        if logits.shape[1] != self.phases:
            raise UsageError(
                f"The elbo has {self.phases} phases (rows of its means), but the logits are of {logits.shape[1]} "
                "classes. Give as many means as there are classes."
            )
        logits = at_least_float32(logits)
        image = at_least_float32(batch.image)
        latent = self.latent(image, batch.roi)
        log_u = logits.log_softmax(1)
        u = log_u.exp()
        phases = self.phases_of(latent, u, batch.roi)
        divergences = self.divergences_of(latent, phases).to(logits)
        if self.balance:
            weighted = self.balanced(u.detach(), batch.roi) * divergences
            # The second term is 0, and has the networks' gradient.
            costs = (u * divergences.detach() + weighted - weighted.detach()).sum(1)
        else:
            costs = (u * divergences).sum(1)
        if self.entropy > 0:
            costs = costs + self.entropy * (u * log_u).sum(1)
        if batch.roi is not None:
            costs = costs * batch.roi
        error = self.reconstruction_error(latent, image, batch.roi).to(logits)
        costs = costs.flatten(1).sum(1) + self.prior_cost(phases).to(logits)
        return 0.5 * self.fidelity * error + costs, batch.pixels.to(logits)


def _network(given: nn.Module | str | Mapping[str, Any], inputs: int, outputs: int) -> nn.Module:
    if isinstance(given, nn.Module):
        return given
    table = {"name": given} if isinstance(given, str) else {key.replace("-", "_"): v for key, v in given.items()}
    name = table.pop("name", None)
    if not isinstance(name, str):
        raise UsageError('A network given as a table needs a name, for example {name = "unet"}.')
    network: nn.Module = create("network", name, in_channels=inputs, classes=outputs, **table)
    return network


def _dtype(network: nn.Module, otherwise: Tensor) -> torch.dtype:
    return next((parameter.dtype for parameter in network.parameters()), otherwise.dtype)


def _covariances(given: Any, phases: int, dimensions: int) -> Tensor:
    """(K, d, d) float64."""
    matrices = torch.as_tensor(given, dtype=torch.float64)
    if matrices.ndim == 0:
        matrices = matrices * torch.eye(dimensions, dtype=torch.float64).expand(phases, -1, -1)
    if matrices.shape != (phases, dimensions, dimensions):
        raise UsageError(
            f"covariances must be a number or (K, d, d) = {(phases, dimensions, dimensions)}, as the means are "
            f"{(phases, dimensions)}; got {tuple(matrices.shape)}."
        )
    if not bool(torch.isfinite(matrices).all()) or not torch.equal(matrices, matrices.mT):
        raise UsageError(f"covariances must be finite and symmetric; got {given!r}.")
    if bool((torch.linalg.cholesky_ex(matrices).info > 0).any()):
        raise UsageError(f"covariances must be positive definite; got {given!r}.")
    return matrices


def _variance(given: Any, dimensions: int) -> Tensor:
    """(d,) float64."""
    try:
        variance = torch.as_tensor(given, dtype=torch.float64)
    except (TypeError, ValueError) as cause:
        raise UsageError(
            f'variance must be a number, one for each latent channel, or "learned"; got {given!r}.'
        ) from cause
    if variance.ndim == 0:
        variance = variance.expand(dimensions)
    if variance.shape != (dimensions,) or not bool(((variance > 0) & torch.isfinite(variance)).all()):
        raise UsageError(
            f'variance must be positive: one number, {dimensions} of them (one for each latent channel), or "learned"; '
            f"got {given!r}."
        )
    return variance
