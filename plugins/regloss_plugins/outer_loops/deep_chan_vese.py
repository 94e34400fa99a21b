"""Deep Chan-Vese for a set of images: a segmentation network that is trained without any label.

With u = softmax of the network U at the image I, an encoder G and a decoder F as in `ELBO`, and phases N(mu_i, Sigma_i)
of the latent space, a step consists of the updates

    U    <u, KL(G(I) || phases)> + R(u) + a AuI(u) + c CRI(u)
    G    <u, KL(G(I) || phases)> + fidelity / 2 E |F(G(I) + eta) - I|^2
    F    fidelity / 2 E |F(G(I) + eta) - I|^2
    D    -ln D(I) - mean over phases i of ln (1 - D(F(Z_i)))

in this order, each with what the ones before have left (G and F share one loss, and one backward pass). All but D's
loss and CRI are per pixel; these two are one number an image.

    AuI  invariance under augmentation: with an augmentation O, the output b = U(O(I)) has to agree with a = O(U(I)), by
         the cross entropy -sum a ln b. For given a its minimum is the entropy of a, at b = a
    CRI  conservation of region information: -ln D(F(sum of u_i Z_i)). Z_i ~ N(mu_i, Sigma_i) are latent images of one
         phase alone. What F makes of one phase only must not pass for a photograph, and what it makes of both, put
         together as the segmentation says, must: so u may not be one phase everywhere

"All pixels in one phase" is a fixed point of the first two updates; the network is therefore first taught a saliency
map, for the fraction ``start_fraction`` of the training, in which G, F and D see that map in place of u. With
``start_weight`` = s > 0, s times the cross entropy with it remains in U's loss, as if it were a prior of the labels.

Source: Zheng, Bao, Shi, Ling, Ma, "Unsupervised deep learning meets Chan-Vese model", sec. 4.3 and Algorithm 3. Differs
from it in: 1. the sign of the second logarithm of AuI, without which it has no minimum; 2. D's loss, which does not
depend on U, is no part of U's; 3. the start, which there is a saliency network's, and its weight; 4. what `ELBO` lists.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch import Tensor, nn

from regloss.batch import Batch
from regloss.checks import at_least_float32
from regloss.errors import UsageError
from regloss.numerics import one_hot
from regloss.outer_loop import OuterLoop, Proposal, Update, check_logits
from regloss.registry import resolve, settings
from regloss.regularizer import Regularizer, combine
from regloss_plugins.data_terms.elbo import ELBO, Latent, Phases
from regloss_plugins.segmenters.saliency import SALIENCIES, otsu_threshold

# As for single images: networks that know a pixel by its surroundings, not by its place, and a fidelity of half of what
# a pixel in the middle of another phase costs.
_ENCODER = {"name": "plain-cnn", "layers": 5, "channels": 12, "norm": "instance"}
_DECODER = {"name": "plain-cnn", "layers": 2, "channels": 12, "norm": "instance"}
_FIDELITY = 9.0


class DeepChanVeseTraining(OuterLoop):
    """Segmentation network, encoder, decoder and discriminator, trained in turn on images alone.

    Args:
        regularizer: R, one or several (objects, names or tables); None = isotropic "tv" of weight 3.6.
        data_term: the `ELBO` (an object, or a table with the name "elbo"); None = two phases with means -3 and 3,
            balanced, fidelity 9, and plain convolutional networks for encoder and decoder. It needs ``channels`` for
            images that are not RGB.
        invariance: a >= 0, factor of AuI.
        conservation: c >= 0, factor of CRI; with 0 there is no discriminator.
        discriminator: a network from C channels to one logit an image: an object, a name ("strided" or
            "five-convolutions", the published one), or a table with such a name and settings; None = "strided".
        flip: whether augmentations mirror, along each axis with probability 1/2.
        quarter_turns: whether they turn the last two axes, too, by none to three quarters of a turn, as published.
        jitter: largest shift of the brightness, and largest relative change of the contrast, of an augmentation's
            channels, in [0, 1).
        detach: whether a = O(U(I)) is a target that has no gradient itself.
        start: the saliency that the network is taught first, "border-contrast" or "spectral-residual".
        start_fraction: of the training, in [0, 1): how long.
        start_weight: s >= 0, factor of the cross entropy with the saliency map from then on; 0 as published.

    Raises:
        UsageError: a setting outside its range; a data term other than an elbo.

    >>> loop = DeepChanVeseTraining(data_term={"name": "elbo", "means": [[-3.0], [3.0]], "channels": 1}, jitter=0.1)
    >>> sorted(loop.modules())
    ['decoder', 'discriminator', 'encoder']
    """

    def __init__(
        self,
        regularizer: Any = None,
        data_term: Any = None,
        invariance: float = 10.0,
        conservation: float = 1.0,
        discriminator: nn.Module | str | Mapping[str, Any] | None = None,
        flip: bool = True,
        quarter_turns: bool = False,
        jitter: float = 0.2,
        detach: bool = True,
        start: str = "border-contrast",
        start_fraction: float = 0.7,
        start_weight: float = 0.0,
    ) -> None:
        super().__init__("never")
        # 0.4 times what a pixel in the middle of another phase costs, as for single images, half of it for each side.
        chosen = {"name": "tv", "weight": 3.6, "isotropic": True} if regularizer is None else regularizer
        combined = combine(chosen)
        assert combined is not None
        self.regularizer: Regularizer = combined
        elbo = resolve("data-term", _elbo() if data_term is None else data_term)
        if not isinstance(elbo, ELBO):
            raise UsageError(f'deep-chan-vese needs the data term "elbo"; got {type(elbo).__name__}.')
        self.data_term: ELBO = elbo
        for name, value, most in (
            ("invariance", invariance, float("inf")),
            ("conservation", conservation, float("inf")),
            ("jitter", jitter, 1.0),
            ("start_fraction", start_fraction, 1.0),
            ("start_weight", start_weight, float("inf")),
        ):
            if not 0 <= value < most:
                raise UsageError(f"{name} must be a number in [0, {most:g}); got {value!r}.")
        if start not in SALIENCIES:
            raise UsageError(f"There is no saliency called {start!r}. Known: {', '.join(SALIENCIES)}.")
        self.invariance, self.conservation = invariance, conservation
        self.flip, self.quarter_turns, self.jitter, self.detach = flip, quarter_turns, jitter, detach
        self.start, self.start_fraction, self.start_weight = start, start_fraction, start_weight
        self.discriminator: nn.Module | None = None
        if discriminator is not None or conservation > 0:
            self.discriminator = _discriminator(discriminator, _channels_of(elbo.encoder))

    def modules(self) -> Mapping[str, nn.Module]:
        """Encoder and decoder, and the discriminator if there is one."""
        found = dict(self.data_term.modules())
        return found if self.discriminator is None else {**found, "discriminator": self.discriminator}

    def propose(self, logits: Tensor, batch: Batch, warm: Tensor | None = None) -> None:
        """No proposal: the phases follow from the networks."""
        return None

    def objective(self, logits: Tensor, batch: Batch, proposal: Proposal | None = None) -> Tensor:
        """U's loss without AuI, which takes the network itself; see `updates`. While starting, against the saliency."""
        return self.total_loss(**self._loss_terms_of_network(logits, batch, self._warm_up_target(batch)))

    def updates(
        self,
        logits: Tensor,
        batch: Batch,
        proposal: Proposal | None,
        network: Callable[[Tensor, Tensor | None], Tensor],
    ) -> Iterator[Update]:
        """The updates of U, of G and F, and of D."""
        target = self._warm_up_target(batch)
        u = target if target is not None and self.starting else at_least_float32(logits).softmax(1)
        loss_terms = self._loss_terms_of_network(logits, batch, target)
        if self.invariance > 0:
            view = self.augment(batch)
            view_logits = network(view.batch.image, view.batch.roi)
            loss = invariance_loss(view.seen(u.detach() if self.detach else u), view_logits, view.batch.roi)
            loss_terms["invariance"] = self.invariance * self.mean(loss, batch.pixels)
        yield Update(self.total_loss(**loss_terms), ("network",))

        elbo, image, u = self.data_term, at_least_float32(batch.image), u.detach()
        latent = elbo.latent(image, batch.roi)
        weights = elbo.balanced(u, batch.roi) if elbo.balance else u
        region = self.mean(self._region(weights, latent, elbo.phases_of(latent, u, batch.roi), batch), batch.pixels)
        error = elbo.reconstruction_error(latent, image, batch.roi)
        reconstruction = 0.5 * elbo.fidelity * self.mean(error, batch.pixels)
        self.log_metric(reconstruction_loss=reconstruction, encoder_loss=region + reconstruction)
        yield Update(region + reconstruction, ("encoder", "decoder"))

        if self.discriminator is not None:
            with torch.no_grad():
                if not math.isinf(elbo.prior_pixels):  # phases are each image's own, of the encoder as it is now
                    latent = elbo.latent(image, batch.roi)
                phases = elbo.phases_of(latent, u, batch.roi)
                fakes = [self._decoded(weight, phases, batch) for weight in torch.eye(elbo.phases)]
            judged = discriminator_loss(self._judged(_masked(image, batch.roi)), [self._judged(fake) for fake in fakes])
            loss = judged.mean()
            self.log_metric(discriminator_loss=loss)
            yield Update(loss, ("discriminator",))

    @property
    def starting(self) -> bool:
        """Whether the network is still taught the saliency map."""
        return self.progress < self.start_fraction

    def augment(self, batch: Batch) -> View:
        """O(I): the batch mirrored, turned and in other colours, one drawing of mirrors and turns for all of it."""
        ndim = batch.image.ndim - 2
        flipped = torch.rand(ndim) < 0.5
        axes = tuple(axis for axis in range(-ndim, 0) if self.flip and bool(flipped[axis]))
        turns = int(torch.randint(4, ())) if self.quarter_turns else 0
        image, roi, spacing = batch.image, batch.roi, batch.spacing
        if spacing is not None and turns % 2:
            spacing = (*spacing[:-2], spacing[-1], spacing[-2])
        if self.jitter > 0:
            shape = (image.shape[0], image.shape[1], *[1] * ndim)
            shift, stretch = (self.jitter * (2 * torch.rand(shape) - 1).to(image) for _ in range(2))
            mean = image.mean(tuple(range(1, image.ndim)), keepdim=True)
            image = _masked(((image - mean) * (1 + stretch) + mean + shift).clamp(0, 1), roi)
        seen = [None if values is None else _seen(values, axes, turns) for values in (image, roi)]
        assert seen[0] is not None
        return View(Batch(seen[0], None, seen[1], batch.ids, spacing), axes, turns)

    def _loss_terms_of_network(self, logits: Tensor, batch: Batch, target: Tensor | None) -> dict[str, Tensor]:
        """U's loss but for AuI; ``target`` (B, K, *S) are the phases of the saliency map, where it still counts."""
        check_logits(logits, batch)
        elbo = self.data_term
        if logits.shape[1] != elbo.phases:
            raise UsageError(
                f"The elbo has {elbo.phases} phases (rows of its means), but the logits are of {logits.shape[1]} "
                "classes. Give as many means as there are classes."
            )
        logits = at_least_float32(logits)
        warm_up = None if target is None else self.mean(invariance_loss(target, logits, batch.roi), batch.pixels)
        if warm_up is not None and self.starting:
            return {"start": warm_up}
        u = logits.softmax(1)
        with torch.no_grad():
            latent = elbo.latent(at_least_float32(batch.image), batch.roi)
            phases = elbo.phases_of(latent, u, batch.roi)
        loss_terms = {"region": self.mean(self._region(u, latent, phases, batch), batch.pixels)}
        if warm_up is not None:
            loss_terms["start"] = self.start_weight * warm_up
        loss_terms["regularizer"] = self.mean(
            self.regularizer.bind(batch.image, batch.roi, batch.spacing).penalty(u), batch.pixels
        )
        if self.discriminator is not None and self.conservation > 0:
            # F and D are looked through, not taught: their own updates come next.
            with _frozen(elbo.decoder), _frozen(self.discriminator):
                judged = self._judged(self._decoded(u, phases, batch))
            loss_terms["conservation"] = self.conservation * self.mean(
                conservation_loss(judged), torch.ones(len(u)).to(u)
            )
        return loss_terms

    def _region(self, weights: Tensor, latent: Latent, phases: Phases, batch: Batch) -> Tensor:
        """(B,) sums of ``weights`` (B, K, *S) times the divergences, and what phases of an image's own cost."""
        elbo = self.data_term
        divergences = elbo.divergences_of(latent, phases).to(weights)
        return _inside(weights * divergences, batch.roi) + elbo.prior_cost(phases).to(weights)

    def _warm_up_target(self, batch: Batch) -> Tensor | None:
        """`_salient_phases` as long as they count."""
        return self._salient_phases(batch) if self.starting or self.start_weight > 0 else None

    def _salient_phases(self, batch: Batch) -> Tensor:
        """(B, K, *S): 1 on salient pixels for the last phase, on the others for the first.

        All 0, which teaches nothing, in a crop in which nothing stands out.
        """
        maps = SALIENCIES[self.start](at_least_float32(batch.image))
        flat = maps.flatten(1)
        thresholds = otsu_threshold(flat).reshape(-1, *[1] * (maps.ndim - 1))
        salient = (maps > thresholds).long() * (self.data_term.phases - 1)
        contrast = (flat.amax(1) > flat.amin(1)).reshape(-1, *[1] * maps.ndim)
        return one_hot(salient, self.data_term.phases, maps.dtype) * contrast

    def _judged(self, image: Tensor) -> Tensor:
        """D's logits (B,)."""
        assert self.discriminator is not None
        dtype = next((parameter.dtype for parameter in self.discriminator.parameters()), image.dtype)
        judged: Tensor = at_least_float32(self.discriminator(image.to(dtype)))
        return judged

    def _decoded(self, weights: Tensor, phases: Phases, batch: Batch) -> Tensor:
        """F(sum of w_i Z_i), Z_i ~ N(mu_i, Sigma_i) at every pixel; ``weights`` (B, K, *S) or (K,), 0 outside."""
        elbo, image = self.data_term, batch.image
        shape = (image.shape[0], elbo.phases, elbo.dimensions, *image.shape[2:])
        ones = [1] * (image.ndim - 2)
        roots = torch.linalg.cholesky(phases.covariances).to(image)
        noise = torch.randn(shape, dtype=image.dtype, device=image.device)
        latent = torch.einsum("bkij,bkj...->bki...", roots, noise)
        latent = latent + phases.means.to(image).reshape(*phases.means.shape, *ones)
        weights = weights.to(image).reshape(1, -1, *ones) if weights.ndim == 1 else weights
        return _masked(elbo.decode((weights.unsqueeze(2) * latent).sum(1)), batch.roi)


class View(NamedTuple):
    """An augmented batch; ``axes``: those along which it is mirrored; ``turns``: by 90 degrees, after that."""

    batch: Batch
    axes: tuple[int, ...]
    turns: int = 0

    def seen(self, values: Tensor) -> Tensor:
        """``values`` (B, K, *S) as the view's mirrors and turns show them."""
        return _seen(values, self.axes, self.turns)


def _seen(values: Tensor, axes: tuple[int, ...], turns: int) -> Tensor:
    return torch.rot90(values.flip(axes), turns, (-2, -1))


class Discriminator(nn.Module):
    """Tells photographs from what a decoder makes of one phase: strided convolutions, then the mean of a score.

    Args:
        in_channels: C of the images.
        channels: feature maps of the first layer; doubled at each further one.
        layers: each halves the resolution.
        dims: spatial axes, 2 or 3.

    >>> Discriminator(3)(torch.zeros(2, 3, 20, 33)).shape
    torch.Size([2])
    """

    def __init__(self, in_channels: int, channels: int = 16, layers: int = 3, dims: int = 2) -> None:
        super().__init__()
        convolution: Any = {2: nn.Conv2d, 3: nn.Conv3d}[dims]
        widths = [channels * 2**layer for layer in range(layers)]
        stack: list[nn.Module] = []
        for before, after in zip([in_channels, *widths], widths, strict=False):
            stack += [convolution(before, after, 3, stride=2, padding=1), nn.LeakyReLU(0.2)]
        self.features = nn.Sequential(*stack)
        self.score = convolution(widths[-1], 1, 1)

    def forward(self, image: Tensor) -> Tensor:
        """Logits (B,) of (B, C, *S) being photographs."""
        scores: Tensor = self.score(self.features(image)).flatten(1).mean(1)
        return scores


class FiveConvolutions(nn.Module):
    """The published discriminator: five strided convolutions of 32 to 512 channels, and a fully connected layer.

    That layer sees 4 x 4 pixels, which is what five halvings leave of the published 128 x 128; features of images of
    another size are averaged to as many.

    Args:
        in_channels: C of the images.
        dims: spatial axes, 2 or 3.

    >>> FiveConvolutions(3)(torch.zeros(2, 3, 64, 48)).shape
    torch.Size([2])
    """

    def __init__(self, in_channels: int, dims: int = 2) -> None:
        super().__init__()
        convolution: Any = {2: nn.Conv2d, 3: nn.Conv3d}[dims]
        pooling: Any = {2: nn.AdaptiveAvgPool2d, 3: nn.AdaptiveAvgPool3d}[dims]
        widths = [in_channels, 32, 64, 128, 256, 512]
        stack: list[nn.Module] = []
        for before, after in itertools.pairwise(widths):
            stack += [convolution(before, after, 3, stride=2, padding=1), nn.LeakyReLU(0.2)]
        self.features = nn.Sequential(*stack, pooling(4), nn.Flatten())
        self.score = nn.Linear(widths[-1] * 4**dims, 1)

    def forward(self, image: Tensor) -> Tensor:
        """Logits (B,) of (B, C, *S) being photographs."""
        scores: Tensor = self.score(self.features(image)).flatten()
        return scores


DISCRIMINATORS: Mapping[str, type[nn.Module]] = {"strided": Discriminator, "five-convolutions": FiveConvolutions}


def _discriminator(given: nn.Module | str | Mapping[str, Any] | None, channels: int) -> nn.Module:
    """The network that is meant, for images of so many ``channels``."""
    if isinstance(given, nn.Module):
        return given
    table = {"name": given or "strided"} if given is None or isinstance(given, str) else dict(given)
    name = table.pop("name", None)
    kind = DISCRIMINATORS.get(str(name))
    if kind is None:
        raise UsageError(f"There is no discriminator called {name!r}. Known: {', '.join(DISCRIMINATORS)}.")
    known = [setting for setting in settings(kind) if setting != "in_channels"]
    unknown = [setting for setting in table if setting not in known]
    if unknown:
        raise UsageError(
            f"The discriminator {name} has no setting {unknown[0]!r}. Its settings are {', '.join(known)}."
        )
    return kind(channels, **table)


def invariance_loss(target: Tensor, logits: Tensor, roi: Tensor | None = None) -> Tensor:
    """AuI: cross entropy -sum over pixels and phases of a ln b, of one network's output with that at another view.

    Args:
        target: a (B, K, *S), probabilities.
        logits: of b, (B, K, *S).
        roi: (B, *S) bool; outside nothing counts.

    Returns:
        (B,), at least the entropy of a.

    >>> target = torch.tensor([[[0.3], [0.7]]])
    >>> round(float(invariance_loss(target, target.log())), 4)  # the entropy of 0.3
    0.6109
    """
    return -_inside(target * at_least_float32(logits).log_softmax(1), roi)


def discriminator_loss(real: Tensor, fakes: list[Tensor]) -> Tensor:
    """-ln D(I) - sum over phases of ln (1 - D(F(Z_i))), of logits (B,) each.

    >>> loss = discriminator_loss(torch.zeros(1), [torch.zeros(1), torch.zeros(1)])
    >>> round(float(loss), 4)  # 3 ln 2
    2.0794
    """
    return F.softplus(-real) + torch.stack([F.softplus(fake) for fake in fakes]).sum(0)


def conservation_loss(judged: Tensor) -> Tensor:
    """CRI: -ln D of what F makes of both phases put together, of logits (B,).

    >>> [round(float(conservation_loss(torch.tensor(logit))), 4) for logit in (0.0, 20.0)]
    [0.6931, 0.0]
    """
    return F.softplus(-judged)


@contextmanager
def _frozen(module: nn.Module) -> Iterator[None]:
    """Gradients pass through the module, but not to its parameters."""
    learnt = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in learnt:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in learnt:
            parameter.requires_grad_(True)


def _inside(values: Tensor, roi: Tensor | None) -> Tensor:
    """Sums (B,) of (B, K, *S) within the region of interest."""
    return (values if roi is None else values * roi.unsqueeze(1)).flatten(1).sum(1)


def _masked(image: Tensor, roi: Tensor | None) -> Tensor:
    return image if roi is None else image * roi.unsqueeze(1)


def _elbo() -> dict[str, Any]:
    means = [[-3.0], [3.0]]
    networks = {"encoder": dict(_ENCODER), "decoder": dict(_DECODER)}
    return {"name": "elbo", "means": means, "fidelity": _FIDELITY, "balance": True, **networks}


def _channels_of(network: nn.Module) -> int:
    channels: Any = getattr(network, "in_channels", 3)
    return int(channels)
