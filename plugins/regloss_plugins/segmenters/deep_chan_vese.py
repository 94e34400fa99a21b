"""Deep Chan-Vese on a single image: segmentation without labels, by phases that are constant in a latent space.

    min over u, G, F of   fidelity / 2 E |F(G(I) + eta) - I|^2  +  sum over pixels of sum_i u_i KL_i  +  weight * length

an encoder G, a decoder F and the logits of u being fitted to the one image together; see the data term "elbo" for the
first two terms. Length is that of the boundaries, the total variation of u, with one of three couplings:

    splitting           logits are free; the gradient of u has a variable of its own, solved for in closed form
    gradient-descent    logits are free; total variation by its subgradient, which is 0 where the gradient is
    layer               u = argmin of <KL, u> + <u, log u> + weight * length: no logits, an implicit layer behind KL

Two phases have one level set phi, u = sigmoid(phi), phase 1 where phi > 0, and a latent space of one dimension with the
means -10 and 10; K > 2 phases have u = softmax(Phi), K dimensions and the means 5 e_i. As KL is linear in u, the level
sets would run to infinity: they are kept within +-``bound``.

The energy has many minima, so the start matters. During the first steps (``warm_up``) u stays where it starts, and the
networks learn what a phase looks like; then a pixel changes sides where they disagree with it. ``balance`` has every
phase count the same in what the networks learn: they would otherwise put all pixels nearest to the larger one first,
and the smaller would be gone as soon as u may move. What u minimises, and what is reported, is the energy above.

Source: Zheng, Bao, Shi, Ling, Ma, "Unsupervised deep learning meets Chan-Vese model". Differs from it in: 1. the first
steps and the balance, as said; 2. fidelity, see "elbo"; 3. a small encoder, which knows a pixel by its surroundings and
not by its place, so that it does not learn a wrong start by heart as easily.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from regloss.batch import Batch
from regloss.checks import check_choice, check_image
from regloss.dataset import IGNORE
from regloss.errors import ReglossError, UsageError
from regloss.layer import RegularizedLayer
from regloss.numerics import one_hot
from regloss.outer_loop import OuterLoop
from regloss.registry import create
from regloss.segmenter import Segmentation, Segmenter, Task, check_phases
from regloss.settings import checked
from regloss.solver import Status
from regloss_plugins.segmenters.guided_filter import guided_filter
from regloss_plugins.segmenters.initial_phases import start_labels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from regloss_plugins.data_terms.elbo import ELBO

COUPLINGS = ("splitting", "gradient-descent", "layer")
POST_PROCESSING = ("guided",)

_EVERY = 10  # steps between two records of energy and labels
_QUIET = 4  # records in a row in which hardly a label has changed, for convergence


@dataclass(frozen=True)
class FitRecord:
    """The energy at a step, its terms per pixel; they add up to it.

    Attributes:
        step: steps taken.
        energy: the sum.
        reconstruction: fidelity / 2 |F(G + eta) - I|^2.
        divergence: sum_i u_i KL_i.
        length: weight times the length, as the coupling measures it.
        changed: fraction of the pixels whose label has changed since the last record.
        seconds: processor time since the start.
    """

    step: int
    energy: float
    reconstruction: float
    divergence: float
    length: float
    changed: float
    seconds: float


@dataclass(frozen=True)
class DeepChanVese:
    """Result of `deep_chan_vese`.

    Attributes:
        labels: (1, *S) int64 phases.
        probabilities: (1, K, *S), u.
        start: (1, *S) int64 phases that it began with; 255 = no opinion.
        latent: (1, d, *S), G(I).
        reconstruction: (1, C, *S), F(G(I)).
        divergences: (1, K, *S), KL to each phase.
        history: energies on the way.
        snapshots: (1, *S) int64 labels at those steps that were asked for and taken.
        status: whether labels came to rest before the steps ran out.
        elbo: the data term, with the fitted networks.
    """

    labels: Tensor
    probabilities: Tensor
    start: Tensor
    latent: Tensor
    reconstruction: Tensor
    divergences: Tensor
    history: tuple[FitRecord, ...]
    snapshots: Mapping[int, Tensor]
    status: Status
    elbo: ELBO


@dataclass(frozen=True, kw_only=True)
class DeepChanVeseSegmentation(Segmentation):
    """What a `DeepChanVeseSegmenter` has found; ``energy`` is per pixel, and ``labels`` are post-processed.

    Attributes:
        result: of the method.
    """

    result: DeepChanVese

    def summary(self) -> str:
        """The energy and its terms, time and status."""
        last = self.result.history[-1]
        return (
            f"energy per pixel {last.energy:.6g} (reconstruction {last.reconstruction:.4g}, divergence "
            f"{last.divergence:.4g}, length {last.length:.4g}); {last.step} steps, {last.seconds:.1f} s; "
            f"{self.status.value}"
        )

    def figures(self, image: Tensor) -> Mapping[str, Figure]:
        """Start, latent maps and reconstruction; phases before and after encoding; the energy; labels on the way."""
        from regloss_plugins.segmenters import deep_chan_vese_figures as drawn

        found = {
            "latent": drawn.latent_figure(image, self.result),
            "histograms": drawn.histogram_figure(image, self.labels, self.result),
            "convergence": drawn.energy_figure(self.result.history),
        }
        if self.result.snapshots:
            found["snapshots"] = drawn.snapshot_figure(image, self.result)
        return found


@dataclass(frozen=True)
class DeepChanVeseSegmenter(Segmenter):
    """Phases that are constant in a latent space, of networks that are fitted to the one image.

    Settings are those of `deep_chan_vese`, and

    Args:
        post_processing: "guided" has the guided filter move probabilities to the edges of the image; None = they stay.

    Raises:
        UsageError: a setting outside its range.
    """

    takes_scribbles = False
    figures = ("latent", "histograms", "convergence")

    coupling: Literal["splitting", "gradient-descent", "layer"] = "splitting"
    weight: float | None = None
    fidelity: float | None = None
    mean: float | None = None
    balance: bool = True
    encoder: Any = None
    decoder: Any = None
    samples: int = 1
    learning_rate: float = 0.02
    level_rate: float = 0.5
    splitting: float = 10.0
    bound: float = 6.0
    warm_up: int = 50
    max_steps: int = 150
    tolerance: float = 1e-3
    snapshots: Sequence[int] = ()
    post_processing: str | None = None

    def __post_init__(self) -> None:
        check_settings(
            self.coupling,
            0.0 if self.weight is None else self.weight,
            self.learning_rate,
            self.level_rate,
            self.splitting,
            self.bound,
            self.warm_up,
            self.max_steps,
            self.tolerance,
            self.snapshots,
        )
        if self.post_processing is not None and self.post_processing not in POST_PROCESSING:
            raise UsageError(
                f"post_processing must be one of {', '.join(POST_PROCESSING)}; got {self.post_processing!r}."
            )
        if self.snapshots:  # only then is there such a picture
            object.__setattr__(self, "figures", (*self.figures, "snapshots"))

    def segment(self, task: Task) -> DeepChanVeseSegmentation:
        """Fit the networks to the image."""

        def report(record: FitRecord) -> None:
            if task.callback is not None:
                task.callback(
                    f"step {record.step}: energy {record.energy:.5g} per pixel (reconstruction "
                    f"{record.reconstruction:.4g}, divergence {record.divergence:.4g}, length {record.length:.4g}), "
                    f"{100 * record.changed:.2f} % changed"
                )

        settings = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "post_processing"}
        result = deep_chan_vese(task.image, task.phases, start=task.start, seed=task.seed, callback=report, **settings)
        labels = result.labels
        if self.post_processing == "guided":
            labels = guided_filter(task.image, result.probabilities).argmax(1)
        last = result.history[-1]
        return DeepChanVeseSegmentation(
            labels=labels,
            probabilities=result.probabilities,
            energy=last.energy,
            steps=last.step,
            status=result.status,
            history=result.history,
            result=result,
        )


@checked
def deep_chan_vese(
    image: Tensor,
    phases: int = 2,
    *,
    start: Tensor | str | None = None,
    coupling: Literal["splitting", "gradient-descent", "layer"] = "splitting",
    weight: float | None = None,
    fidelity: float | None = None,
    mean: float | None = None,
    balance: bool = True,
    encoder: nn.Module | str | Mapping[str, Any] | None = None,
    decoder: nn.Module | str | Mapping[str, Any] | None = None,
    samples: int = 1,
    learning_rate: float = 0.02,
    level_rate: float = 0.5,
    splitting: float = 10.0,
    bound: float = 6.0,
    warm_up: int = 50,
    max_steps: int = 150,
    tolerance: float = 1e-3,
    snapshots: Sequence[int] = (),
    seed: int = 0,
    callback: Callable[[FitRecord], object] | None = None,
) -> DeepChanVese:
    """Segment one image into phases, with networks that are fitted to it.

    Args:
        image: (1, C, *S) in [0, 1], two or three spatial axes.
        phases: K, at least 2 and at most the number of colours.
        start: (1, *S) phases to start from, 255 = no opinion; or "color" (k-means), "border-contrast" or
            "spectral-residual" (saliency, two phases), "centre" (an ellipse in the middle, two phases), "random".
            None = "color".
        coupling: of total variation, see above.
        weight: nu, of the length of boundaries in pixels, >= 0. None = 0.4 times what a pixel in the middle of another
            phase costs, which is 2 mean^2 for two phases and mean^2 for more.
        fidelity: of the reconstruction, > 0, see the data term "elbo"; None = half of that cost.
        mean: distance of the latent means from 0; None = 10 for two phases, 5 for more.
        balance: whether every phase counts the same in what the networks learn, see above.
        encoder: a network (which is trained), its name or a table; None = "plain-cnn" with 5 layers of 12 channels and
            instance normalisation.
        decoder: likewise; None = the same with 2 layers.
        samples: noises drawn in each step, see the data term "elbo".
        learning_rate: of Adam for the networks.
        level_rate: of Adam for the level sets.
        splitting: lambda / nu of the coupling "splitting": where a step of u between pixels is less than 1 / splitting,
            it counts as its square.
        bound: of the level sets, > 0.
        warm_up: steps during which u stays at its start.
        max_steps: at most.
        tolerance: fraction of the pixels that may change between two records while labels count as at rest.
        snapshots: steps after which labels are kept; 0 = the start.
        seed: of networks, noise and start.
        callback: called with each `FitRecord`.

    Returns:
        See `DeepChanVese`. A phase may have lost all its pixels.

    Raises:
        UsageError: an image that is not of this form or has fewer colours than there are phases, a start that has not
            at least two phases, settings outside their range.
        ReglossError: the energy became NaN or infinite.
    """
    check_image(image)
    if image.shape[0] != 1 or image.ndim < 4:
        raise UsageError(
            f"deep Chan-Vese fits networks to one image (1, C, *S) with 2 or 3 spatial axes; got {tuple(image.shape)}. "
            "Call it for each image of a batch."
        )
    means = latent_means(phases, mean)
    cost = 0.5 * float((means[0] - means[1]).square().sum())
    weight = 0.4 * cost if weight is None else weight
    fidelity = 0.5 * cost if fidelity is None else fidelity
    check_settings(
        coupling, weight, learning_rate, level_rate, splitting, bound, warm_up, max_steps, tolerance, snapshots
    )
    labels = start_labels(image, phases, start, seed)
    image = image.float()
    with torch.random.fork_rng(devices=[image.device] if image.is_cuda else []), torch.enable_grad():
        torch.manual_seed(seed)
        elbo = _elbo(image, means, fidelity, balance, encoder, decoder, samples)
        fit = _Fit(image, labels, elbo, phases, coupling, weight, splitting, bound)
        kept = dict.fromkeys(snapshots, fit.held().detach().argmax(1))
        history, status = _descend(fit, learning_rate, level_rate, warm_up, max_steps, tolerance, kept, callback)
    with torch.no_grad():
        latent = elbo.latent(image).mean
        logits = fit.logits()
        return DeepChanVese(
            logits.argmax(1),
            logits.softmax(1),
            labels,
            latent,
            elbo.decode(latent),
            elbo.divergences(image),
            tuple(history),
            {step: labels for step, labels in sorted(kept.items()) if step <= history[-1].step},
            status,
            elbo,
        )


def check_settings(
    coupling: str,
    weight: float,
    learning_rate: float,
    level_rate: float,
    splitting: float,
    bound: float,
    warm_up: int,
    max_steps: int,
    tolerance: float,
    snapshots: Sequence[int] = (),
) -> None:
    """Raise `UsageError` for settings of `deep_chan_vese` that are invalid."""
    check_choice(COUPLINGS, coupling=coupling)
    if not (_is_number(weight) and 0 <= weight < math.inf):
        raise UsageError(f"weight must be finite and not negative; got {weight!r}.")
    for name, value in (
        ("learning_rate", learning_rate),
        ("level_rate", level_rate),
        ("splitting", splitting),
        ("bound", bound),
    ):
        if not (_is_number(value) and 0 < value < math.inf):
            raise UsageError(f"{name} must be positive and finite; got {value!r}.")
    whole = isinstance(max_steps, int) and isinstance(warm_up, int)
    if not whole or max_steps < 1 or not 0 <= warm_up < max_steps:
        raise UsageError(
            "max_steps must be a whole number of at least 1, warm_up one from 0 to below it; got "
            f"{max_steps!r} and {warm_up!r}."
        )
    if not (_is_number(tolerance) and 0 <= tolerance < 1):
        raise UsageError(f"tolerance must lie in [0, 1); got {tolerance!r}.")
    if any(not isinstance(step, int) or isinstance(step, bool) or not 0 <= step <= max_steps for step in snapshots):
        raise UsageError(
            f"snapshots are taken after steps, whole numbers from 0 to max_steps = {max_steps}; got {list(snapshots)}."
        )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def latent_means(phases: int, mean: float | None = None) -> Tensor:
    """Means (K, d) of the phases in the latent space; see `deep_chan_vese`.

    Raises:
        UsageError: an invalid number of phases or mean.

    >>> latent_means(2), latent_means(3, mean=4.0)[1]
    (tensor([[-10.],
            [ 10.]]), tensor([0., 4., 0.]))
    """
    check_phases(phases)
    if mean is not None and not (_is_number(mean) and 0 < mean < math.inf):
        raise UsageError(f"mean must be positive and finite; got {mean!r}.")
    if phases == 2:
        distance = 10.0 if mean is None else mean
        return torch.tensor([[-distance], [distance]])
    return (5.0 if mean is None else mean) * torch.eye(phases)


def _elbo(
    image: Tensor, means: Tensor, fidelity: float, balance: bool, encoder: Any, decoder: Any, samples: int
) -> ELBO:
    standard = {"name": "plain-cnn", "norm": "instance", "channels": 12, "dims": image.ndim - 2}
    elbo: ELBO = create(
        "data-term",
        "elbo",
        encoder={**standard, "layers": 5} if encoder is None else encoder,
        decoder={**standard, "layers": 2} if decoder is None else decoder,
        means=means,
        fidelity=fidelity,
        balance=balance,
        samples=samples,
        channels=image.shape[1],
    )
    for module in elbo.modules().values():
        module.to(image.device)
    return elbo


class _Fit:
    """The variables of one image and how u follows from them."""

    def __init__(
        self,
        image: Tensor,
        start: Tensor,
        elbo: ELBO,
        phases: int,
        coupling: str,
        weight: float,
        splitting: float,
        bound: float,
    ) -> None:
        self.batch, self.elbo, self.phases, self.bound = Batch(image, None), elbo, phases, bound
        # Both sides of a boundary have its length: half of the weight each.
        tv = create("regularizer", "tv", weight=weight / 2, isotropic=True)
        self.layer: RegularizedLayer | None = None
        self.loop: OuterLoop
        if coupling == "splitting":
            # Without a weight nothing is split, whatever the coupling.
            coupled = splitting * (weight / 2 or 1.0)
            self.loop = create("outer-loop", "splitting", regularizer=tv, data_term=elbo, coupling=coupled)
        else:
            self.loop = create("outer-loop", "gradient-descent", regularizer=tv, data_term=elbo)
        if coupling == "layer":
            self.layer = create("layer", "softmax", regularizer=tv, solver="pdhg", entropy=1.0)
        known = start != IGNORE
        sides = 2 * one_hot(start.masked_fill(~known, 0), phases, torch.float32) - 1
        levels = bound / 2 * sides * known.unsqueeze(1)
        self.levels = (levels[:, 1:] if phases == 2 else levels).contiguous().requires_grad_()

    def held(self) -> Tensor:
        """Logits (1, K, *S) of the level sets."""
        return torch.cat([torch.zeros_like(self.levels), self.levels], 1) if self.phases == 2 else self.levels

    def logits(self, *, warm: bool = False) -> Tensor:
        """Logits (1, K, *S) of u; with ``warm``, those of the start where they would follow from the networks."""
        if self.layer is None or warm:
            return self.held()
        return self.layer.log_probabilities(-self.elbo.divergences(self.batch.image), self.batch.image)


def _descend(
    fit: _Fit,
    learning_rate: float,
    level_rate: float,
    warm_up: int,
    max_steps: int,
    tolerance: float,
    snapshots: dict[int, Tensor],
    callback: Callable[[FitRecord], object] | None,
) -> tuple[list[FitRecord], Status]:
    """Energies on the way, and how it ended; fills ``snapshots`` at the steps that are its keys."""
    networks = [p for module in fit.elbo.modules().values() for p in module.parameters()]
    optimizer = torch.optim.Adam(
        [{"params": networks, "lr": learning_rate}, {"params": [fit.levels], "lr": level_rate}]
    )
    history: list[FitRecord] = []
    labels, quiet, began = fit.held().detach().argmax(1), 0, time.process_time()
    for step in range(1, max_steps + 1):
        warm = step <= warm_up
        logits = fit.held().detach() if warm else fit.logits()
        loss = fit.loop.objective(logits, fit.batch)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        with torch.no_grad():
            fit.levels.clamp_(-fit.bound, fit.bound)
        if step in snapshots:
            with torch.no_grad():
                snapshots[step] = fit.logits(warm=warm).argmax(1)
        if step % _EVERY == 0 or step == max_steps:
            record, labels = _record(fit, step, warm, labels, time.process_time() - began)
            history.append(record)
            if not math.isfinite(record.energy):
                raise ReglossError(
                    f"The energy of deep Chan-Vese became {record.energy} at step {step}. Lower the learning rates."
                )
            if callback is not None:
                callback(record)
            quiet = quiet + 1 if record.changed <= tolerance and not warm else 0
            if quiet == _QUIET:
                return history, Status.CONVERGED
    return history, Status.MAX_STEPS


def _record(fit: _Fit, step: int, warm: bool, before: Tensor, seconds: float) -> tuple[FitRecord, Tensor]:
    """Energy and labels (1, *S) as they are now; ``before`` are the labels at the last record."""
    with torch.no_grad():
        logits = fit.logits(warm=warm)
        energy = float(fit.loop.objective(logits, fit.batch))
        length = fit.loop.parts.get("regularizer", 0.0)
        divergence = float((logits.softmax(1) * fit.elbo.divergences(fit.batch.image)).sum(1).mean())
        labels = logits.argmax(1)
    changed = float((labels != before).float().mean())
    return FitRecord(step, energy, energy - divergence - length, divergence, length, changed, seconds), labels
