"""Random inputs against numbers: losses and their gradients, priors' gradients, and every score.

    python tests/attacks/numerics.py --seed 0 --cases 10000

A case follows from its seed alone. Logits go from 1e-30 to 1e4, with ties and with sure and wrong pixels among others;
images have one pixel to a small volume; labels may be ignored in part or all, regions of interest have holes. Asked is

    data-term, divergence   the value is that of the definition, by loops over pixels (`references`); so it is in single
                            precision but for its rounding; the derivative is that of finite differences
    regularizer             the derivative of energies and penalties, in probabilities and through a softmax, and at
                            spacings that differ; the value, where pairs of pixels define it; what lies outside the
                            region of interest does not matter, nor who else is in the batch
    metric                  every score is that of loops over pixels, whether counted at once or in two parts

Derivatives are compared along random directions in double precision, with differences over steps from 1e-2 to 1e-7.
Where a function has a kink any derivative between those of its two sides will do. Printed are faults with their seeds,
and counts.
"""

from __future__ import annotations

import argparse
import collections
import math
import random
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

sys.path.append(str(Path(__file__).parents[1]))

from attacks import references
from attacks.problems import SHAPES, random_settings

from regloss import Batch, registry
from regloss.constraint import HardConstraint
from regloss.errors import UsageError
from regloss.metrics import boundary, confusion, foreground, scores, surface
from regloss.potts import RELAXATIONS
from regloss.regularizer import Regularizer, Sum

IGNORE = references.IGNORED
STEPS = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7)
Function = Callable[[Tensor], Tensor]  # logits or probabilities (B, K, *S) to a number for each image (B,)


class Fault(Exception):
    """A number that is not what it should be."""


class Dice:
    """What a case is made from; the same seed throws the same."""

    def __init__(self, seed: int) -> None:
        self.plain = random.Random(seed)
        self.torch = torch.Generator().manual_seed(seed)
        self.choice, self.uniform, self.randint = self.plain.choice, self.plain.uniform, self.plain.randint

    def often(self, probability: float) -> bool:
        return self.plain.random() < probability

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.torch, dtype=torch.float64)

    def even(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self.torch, dtype=torch.float64)

    def labels(self, classes: int, *shape: int) -> Tensor:
        return torch.randint(0, classes, shape, generator=self.torch)


# --------------------------------------------------------------------------------------------------------------------
# Inputs


@dataclass
class Images:
    """A batch (B, *S) with logits of K classes, labels, and a region of interest or None."""

    image: Tensor
    logits: Tensor
    labels: Tensor
    roi: Tensor | None

    @property
    def inside(self) -> Tensor:
        return torch.ones_like(self.labels, dtype=torch.bool) if self.roi is None else self.roi

    @property
    def classes(self) -> int:
        return self.logits.shape[1]


def images(dice: Dice) -> Images:
    """Any of them."""
    shape = dice.choice(SHAPES)
    batch, channels, classes = dice.choice((1, 1, 2, 3)), dice.choice((1, 3)), dice.choice((2, 2, 3, 5))
    image = dice.even(batch, channels, *shape)
    look = dice.plain.random()
    if look < 0.1:
        image = torch.zeros_like(image)
    elif look < 0.3:
        image = image.round()
    roi = None
    if dice.often(0.4):
        roi = dice.even(batch, *shape) < 0.6
        roi.flatten(1)[:, dice.randint(0, roi[0].numel() - 1)] = True
    labels = dice.labels(classes, batch, *shape)
    ignored = dice.even(batch, *shape) < dice.choice((0.0, 0.0, 0.3, 0.9, 1.0))
    labels = labels.masked_fill(ignored, IGNORE)
    return Images(image, logits_of(dice, (batch, classes, *shape)), labels, roi)


def logits_of(dice: Dice, shape: tuple[int, ...]) -> Tensor:
    """Of one size, or with pixels that are sure among others; numbers of single precision, in double."""
    logits = dice.normal(*shape) * 10.0 ** dice.choice((-30, -6, -1, 0, 0, 0, 0.5, 1, 2, 3, 4))
    if dice.often(0.1):
        logits = torch.zeros_like(logits)
    elif dice.often(0.15):
        logits = logits.round()
    if dice.often(0.2):
        logits = torch.where(dice.even(*shape) < 0.2, dice.normal(*shape).sign() * 10.0 ** dice.randint(1, 4), logits)
    return logits.float().double()


# --------------------------------------------------------------------------------------------------------------------
# Comparisons


def expect(name: str, found: Any, wanted: Any, tolerance: float = 1e-9, magnitude: float = 0.0) -> None:
    """Numbers, None, or dictionaries and lists of them; relative to the larger one, or to ``magnitude``."""
    if isinstance(wanted, Mapping):
        if found.keys() != wanted.keys():
            raise Fault(f"{name} has the keys {[*found]} instead of {[*wanted]}")
        for key in wanted:
            expect(f"{name}[{key!r}]", found[key], wanted[key], tolerance, magnitude)
    elif isinstance(wanted, list):
        if len(found) != len(wanted):
            raise Fault(f"{name} has {len(found)} entries instead of {len(wanted)}")
        for place, one in enumerate(wanted):
            expect(f"{name}[{place}]", found[place], one, tolerance, magnitude)
    elif wanted is None or found is None:
        if wanted is not found:
            raise Fault(f"{name} is {found} instead of {wanted}")
    elif not (found == wanted or abs(found - wanted) <= tolerance * max(abs(wanted), abs(found), magnitude)):
        raise Fault(f"{name} is {found!r} instead of {wanted!r}")


def check_slope(name: str, function: Function, at: Tensor, dice: Dice, added: float = 0.0) -> Tensor:
    """Compare the gradient with differences, along a direction of all numbers and along one number.

    Args:
        name: what it is.
        function: of which.
        at: where.
        dice: of the case.
        added: size of the numbers that a value is the sum of, where they cancel.

    Returns:
        The gradient of the sum over images with random factors.
    """
    factors = dice.even(len(at)) + 0.5

    def total(values: Tensor) -> Tensor:
        return (factors * function(values)).sum()

    given = at.clone().requires_grad_()
    value = total(given)
    if not bool(value.isfinite()):
        raise Fault(f"{name} is {value.item()}")
    (gradient,) = torch.autograd.grad(value, given, allow_unused=True)
    gradient = torch.zeros_like(at) if gradient is None else gradient
    if not bool(gradient.isfinite().all()):
        raise Fault(f"{name} has the gradient {gradient.flatten().tolist()[:8]}")
    one = torch.zeros(at.shape, dtype=at.dtype)
    one.view(-1)[dice.randint(0, at.numel() - 1)] = 1
    for direction in (dice.normal(*at.shape), one):
        _compare(name, total, at, direction, gradient, added)
    return gradient


def _compare(name: str, total: Function, at: Tensor, direction: Tensor, gradient: Tensor, added: float) -> None:
    slope = float((gradient * direction).sum())
    size = float((gradient * direction).abs().sum())
    middle, tried = float(total(at).detach()), []
    for step in STEPS:
        up, down = (float(total(at + sign * step * direction).detach()) for sign in (1, -1))
        right, left = (up - middle) / step, (middle - down) / step
        # What the values' own rounding makes of a difference, and what rounding of the place does.
        rounding = 32 * 2.3e-16 * (max(abs(up), abs(down), abs(middle), added) + size * float(at.abs().max())) / step
        # What is left where larger numbers cancel, of sure pixels for instance.
        rest = 1e-14 * float(direction.abs().sum())
        tolerance = 1e-6 * max(size, abs(right), abs(left)) + rounding + rest
        if abs((right + left) / 2 - slope) <= tolerance:
            return
        tried.append((left, right, tolerance))
    left, right, tolerance = tried[-1]
    if min(left, right) - tolerance <= slope <= max(left, right) + tolerance:
        return  # a kink, at which any slope between those of both sides is a derivative
    raise Fault(f"{name} has the slope {slope:.9g}, differences (left, right, tolerance) are {tried}")


def check_single(name: str, function: Function, at: Tensor, size: Tensor) -> None:
    """In single precision the value is the same but for rounding, ``size`` (B,) being that of the numbers added up."""
    single, double = function(at.float()).double(), function(at)
    if single.dtype == torch.float64 and bool(((single - double).abs() > 2e-6 * size + 1e-30).any()):
        raise Fault(f"{name} is {single.tolist()} in single precision, {double.tolist()} in double")


def each(values: Tensor | None, number: int) -> Any:
    """Image ``number`` of a batch as an array."""
    return None if values is None else values[number].numpy()


# --------------------------------------------------------------------------------------------------------------------
# Data terms


def data_term(dice: Dice) -> str:
    """Values by definition, derivatives by differences."""
    given = images(dice)
    classes = given.classes
    name = dice.choice(registry.names("data-term"))
    weights = tuple(dice.uniform(0.1, 3) for _ in range(classes)) if dice.often(0.4) else None
    smoothing = dice.choice((0.0, 0.0, 1e-6, 0.1, 0.9))
    wanted: Callable[[Any, Any, Any, Any], tuple[float, float]] | None
    settings: dict[str, Any]
    if name in ("cross-entropy", "partial-cross-entropy", "collision-cross-entropy"):
        settings = {"class_weights": weights, "label_smoothing": smoothing}
        of = references.collision_cross_entropy if name.startswith("collision") else references.cross_entropy

        def wanted(z: Any, y: Any, roi: Any, image: Any) -> tuple[float, float]:
            return of(z, y, roi, weights, smoothing)

    elif name == "partial-dice":
        settings = {"smooth": dice.choice((0.0, 0.0, 1e-5, 1.0)), "squared": dice.often(0.5)}

        def wanted(z: Any, y: Any, roi: Any, image: Any) -> tuple[float, float]:
            return references.partial_dice(z, y, roi, **settings)

    elif name == "entropy":
        settings = {}

        def wanted(z: Any, y: Any, roi: Any, image: Any) -> tuple[float, float]:
            return references.entropy(z, roi)

    elif name == "mumford-shah":
        settings = {}

        def wanted(z: Any, y: Any, roi: Any, image: Any) -> tuple[float, float]:
            return references.mumford_shah(z, roi, image)

    elif name == "size-bounds":
        lower, upper, pixels, t, present = _bounds(dice, given)
        unit = "pixels" if pixels else "fraction"
        settings = {"lower": lower, "upper": upper, "unit": unit, "sharpness": t, "present": present}

        def wanted(z: Any, y: Any, roi: Any, image: Any) -> tuple[float, float]:
            return references.size_bounds(z, y, roi, lower, upper, pixels, t, present)

    elif name == "boundary":
        some = tuple(sorted(dice.plain.sample(range(classes), dice.randint(1, classes))))
        settings = {"classes": dice.choice((None, some)), "unit": dice.choice(("pixels", "diagonal"))}

        def wanted(z: Any, y: Any, roi: Any, image: Any) -> tuple[float, float]:
            return references.boundary(z, y, roi, settings["classes"], settings["unit"] == "diagonal")

    elif name == "smoothness":
        settings = {}

        def wanted(z: Any, y: Any, roi: Any, image: Any) -> tuple[float, float]:
            return references.smoothness(z, y, roi)

    elif name == "elbo":
        settings, wanted = _elbo(dice, given)
    else:  # somebody else's
        settings, wanted = dict(registry.get("data-term", name).example), None
    term = registry.create("data-term", name, **settings)
    batch = Batch(given.image, given.labels, given.roi)
    single = Batch(given.image.float(), given.labels, given.roi)
    sums, counts = term(given.logits, batch)
    if wanted is not None:
        for number in range(len(sums)):
            inside = each(given.inside, number)
            total, count = wanted(
                *(each(v, number) for v in (given.logits, given.labels)), inside, each(given.image, number)
            )
            size = float(given.logits.abs().max())
            expect(f"{name}: sum of image {number}", float(sums[number].detach()), total, magnitude=size + count)
            expect(f"{name}: count of image {number}", float(counts[number]), count, 1e-6)  # may be single precision

    def loss(logits: Tensor) -> Tensor:
        found: Tensor = term(logits, single if logits.dtype == torch.float32 else batch)[0]
        return found

    gradient = check_slope(name, loss, given.logits, dice)
    if name != "elbo":  # whose networks are in double precision
        size = counts.double() * (1 + sum(weights or (1,))) * (1 + given.logits.flatten(1).abs().amax(1))
        steep = settings.get("sharpness", 1.0)
        check_single(name, loss, given.logits, 10 * max(1.0, steep) * (size + 1) * max(given.inside[0].shape))
    nothing = (
        ~given.inside
        if name in ("entropy", "size-bounds", "elbo", "mumford-shah")
        else ~given.inside | (given.labels == IGNORE)
    )
    if bool((gradient.movedim(1, -1)[nothing] != 0).any()):
        raise Fault(f"{name} has a gradient where nothing counts")
    return name


def _bounds(dice: Dice, given: Images) -> tuple[Any, Any, bool, float, bool]:
    pixels = dice.often(0.4)
    most = float(given.inside[0].sum()) if pixels else 1.0
    pairs = [sorted(dice.uniform(0, 1) * most for _ in range(2)) for _ in range(given.classes)]
    lower = tuple(dice.choice((0.0, low)) for low, _ in pairs)
    upper = tuple(dice.choice((most, high)) for _, high in pairs)
    which = dice.choice(("both", "both", "lower", "upper"))
    t = dice.choice((0.5, 1.0, 5.0, 100.0))
    return None if which == "upper" else lower, None if which == "lower" else upper, pixels, t, dice.often(0.3)


def _elbo(dice: Dice, given: Images) -> tuple[dict[str, Any], Any]:
    """Networks that are linear maps of the colours of a pixel; a definition for phases that are given."""
    channels, ndim, latent = given.image.shape[1], given.labels.ndim - 1, dice.choice((1, 2))
    kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[ndim - 1]
    learned = dice.often(0.3)
    encoder = kind(channels, latent * (2 if learned else 1), 1).double()
    decoder = kind(latent, channels, 1).double()
    for network in (encoder, decoder):
        for parameter in network.parameters():
            parameter.data = dice.normal(*parameter.shape)
    means = dice.normal(given.classes, latent) * 3
    roots = dice.normal(given.classes, latent, latent)
    covariances = roots @ roots.mT + torch.eye(latent, dtype=torch.float64)
    variance = [dice.uniform(0.1, 2) for _ in range(latent)]
    prior = dice.choice((math.inf, math.inf, 1e-3, 1.0, 50.0))
    settings = {
        "encoder": encoder,
        "decoder": decoder,
        "means": means,
        "covariances": covariances,
        "variance": "learned" if learned else variance,
        "samples": dice.choice((0, 1, 2)),
        "fidelity": dice.choice((0.1, 1.0, 10.0)),
        "entropy": dice.choice((0.0, 1.0)),
        "balance": dice.often(0.3),
        "prior_pixels": prior,
        "channels": channels,
        "noise_seed": 3,
    }
    if prior != math.inf or learned or settings["samples"] > 0:
        return settings, None

    def wanted(z: Any, y: Any, roi: Any, image: Any) -> tuple[float, float]:
        logs = references.log_softmax(z)
        V, (A, a), (B, b) = np.diag(variance), _linear(encoder), _linear(decoder)
        total = 0.0
        for place in zip(*np.nonzero(roi), strict=True):
            pixel = image[(slice(None), *place)]
            G = A @ pixel + a
            total += settings["fidelity"] / 2 * float(((B @ G + b - pixel) ** 2).sum())
            for i in range(len(z)):
                S = covariances[i].numpy()
                offset, log_u = G - means[i].numpy(), logs[(i, *place)]
                divergence = np.linalg.slogdet(S)[1] - np.linalg.slogdet(V)[1] - latent
                divergence += np.trace(np.linalg.solve(S, V)) + offset @ np.linalg.solve(S, offset)
                total += float(np.exp(log_u) * (divergence / 2 + settings["entropy"] * log_u))
        return total, float(roi.sum())

    return settings, wanted


def _linear(network: nn.Module) -> tuple[Any, Any]:
    assert isinstance(network.weight, Tensor)
    assert isinstance(network.bias, Tensor)
    return network.weight.detach().flatten(1).numpy(), network.bias.detach().numpy()


# --------------------------------------------------------------------------------------------------------------------
# Divergences


def divergence(dice: Dice) -> str:
    """Targets are labels or probabilities; logits of images, or of plain classification."""
    given = images(dice)
    logits, labels, classes = given.logits, given.labels, given.classes
    if dice.often(0.15):
        logits, labels = logits.flatten(2)[:, :, 0], labels.flatten(1)[:, 0]
    shape, name = labels.shape, dice.choice(registry.names("divergence"))
    settings: dict[str, Any] = {}
    noise = torch.eye(classes, dtype=torch.float64)
    if name == "robust-kl" and dice.often(0.5):
        epsilon = dice.choice((0.0, 1e-12, 0.1, 0.999 * (classes - 1) / classes))
        noise = torch.full((classes, classes), epsilon / (classes - 1), dtype=torch.float64)
        noise.fill_diagonal_(1 - epsilon)
        settings = {"epsilon": epsilon}
    elif name == "robust-kl":
        noise = dice.even(classes, classes) * (dice.even(classes, classes) < 0.7) + 1e-3 * torch.eye(classes)
        noise = noise / noise.sum(1, keepdim=True)
        settings = {"noise_matrix": noise}
    measure = registry.create("divergence", name, **settings)
    weight = dice.even(*shape) * 3 if dice.often(0.4) else None
    seeds = dice.even(*shape) < 0.3 if dice.often(0.4) else None
    soft = logits_of(dice, tuple(logits.shape)).softmax(1)
    if dice.often(0.3):
        soft = nn.functional.one_hot(dice.labels(classes, *shape), classes).movedim(-1, 1).double()
    target = soft if dice.often(0.5) else labels
    counted = torch.ones(shape, dtype=torch.float64) if weight is None else weight
    if target is labels:
        counted = counted * (labels != IGNORE)
        soft = nn.functional.one_hot(labels.masked_fill(labels == IGNORE, 0), classes).movedim(-1, 1).double()
    seeded = torch.zeros(shape, dtype=torch.bool) if seeds is None else seeds

    def of(values: Tensor) -> Tensor:
        found: Tensor = measure(
            target.to(values.dtype) if target.is_floating_point() else target,
            values,
            None if weight is None else weight.to(values.dtype),
            seeds,
        )
        return found

    found = of(logits)
    for number in range(len(found)):
        arrays = [each(values, number) for values in (soft, logits, counted, seeded)]
        if name == "euclidean":
            wanted = references.euclidean(arrays[0], arrays[1], arrays[2])
        elif name in ("kl", "robust-kl"):
            wanted = references.kl(arrays[0], references.seen_through(arrays[1], noise.numpy(), arrays[3]), arrays[2])
        else:
            continue
        expect(f"{name} of image {number}", float(found[number]), wanted, magnitude=1 + float(logits.abs().max()))
    pixels = logits[0, 0].numel()
    check_slope(name, of, logits, dice, added=3 * pixels * (1 + float(logits.abs().max())))
    check_single(name, of, logits, 30 * pixels * (1 + logits.flatten(1).abs().amax(1)))
    unary = measure.unary(logits)
    for k in range(classes):
        costs = torch.stack([measure(torch.full(shape, k), logits)], 1)
        expect(
            f"{name}: unary of class {k}",
            unary[:, k].flatten(1).sum(1).tolist() if unary.ndim > 2 else unary[:, k].tolist(),
            costs[:, 0].tolist(),
            1e-9,
            1.0,
        )
    return name


# --------------------------------------------------------------------------------------------------------------------
# Regularizers


def regularizer(dice: Dice) -> str:
    """Derivatives of energies and penalties; values of priors over pairs of pixels."""
    given = images(dice)
    shape, classes = tuple(given.labels.shape[1:]), given.classes
    name = dice.choice(registry.names("regularizer"))
    prior = _prior(dice, name, shape, classes)
    if dice.often(0.1):
        prior = Sum([prior, _prior(dice, dice.choice(registry.names("regularizer")), shape, classes)], 0.7)
    s = given.logits.softmax(1)
    if dice.often(0.25):
        s = nn.functional.one_hot(s.argmax(1), classes).movedim(-1, 1).double()
    term = prior.bind(given.image, given.roi).conditioned_on(s)
    at_logits = dice.often(0.5)

    def energy(values: Tensor) -> Tensor:
        return term.penalty(values.softmax(1) if at_logits else values)

    gradient = check_slope(str(prior), energy, given.logits if at_logits else s, dice)
    outside = ~given.inside
    if bool((gradient.movedim(1, -1)[outside] != 0).any()):
        raise Fault(f"{prior} has a gradient outside the region of interest")
    found = term.penalty(s)
    if bool((found < -1e-12 * prior.weight * s[0].numel()).any()):
        raise Fault(f"{prior} is {found.tolist()}")
    other = torch.where(outside.unsqueeze(1), s.roll(1, 1), s)
    expect(f"{prior}: with other values outside", term.penalty(other).tolist(), found.tolist(), 1e-12)
    for number in range(len(found)):
        roi = None if given.roi is None else given.roi[[number]]
        one = prior.bind(given.image[[number]], roi).conditioned_on(s[[number]])
        expect(f"{prior}: image {number} alone", float(one.penalty(s[[number]])), float(found[number]), 1e-9, 1e-9)
        wanted = _by_pairs(prior, each(s, number), each(given.image, number), each(given.inside, number))
        if wanted is not None:
            size = prior.weight * s[0].numel()
            expect(f"{prior}: energy of image {number}", float(found[number]), prior.weight * wanted, 1e-8, size)
    if dice.often(0.4):
        spacing = [dice.choice((0.3, 1.0, 2.5, 40.0)) for _ in shape]
        spaced = prior.bind(given.image, given.roi, spacing).conditioned_on(s)
        gradient = check_slope(f"{prior} at a spacing of {spacing}", spaced.penalty, s, dice)
        if bool((gradient.movedim(1, -1)[outside] != 0).any()):
            raise Fault(f"{prior} at a spacing of {spacing} has a gradient outside the region of interest")
    return name


def _prior(dice: Dice, name: str, shape: tuple[int, ...], classes: int) -> Regularizer:
    settings = random_settings(dice.plain, name, shape, classes)
    if name in ("grid-crf", "gated-crf"):
        settings["relaxation"] = dice.choice(RELAXATIONS)
    elif name == "dense-crf":
        settings["relaxation"] = dice.choice(("bilinear", "quadratic", "normalized-quadratic"))
    elif name == "tree-energy":
        settings = {
            "sigma_rgb": dice.choice((1e-3, 0.1, 2.0)),
            "relaxation": dice.choice(("total-variation", "bilinear")),
        }
    elif name == "kernel-cut":
        settings["crf_weight"] = dice.choice((0.0, 1.0, 30.0))
    weight = dice.choice((0.0, 1e-6, 1.0, 1.0, 2.5, 1e3))
    return registry.create("regularizer", name, weight=weight, **settings)  # type: ignore[no-any-return]


def _by_pairs(prior: Regularizer, s: Any, image: Any, roi: Any) -> float | None:
    """The energy by its definition, where that is short."""
    if isinstance(prior, Sum | HardConstraint):
        return None
    name, given = registry.name_of(prior), prior
    ndim = roi.ndim
    if name == "grid-crf":
        differing = {2: 1, 4: 1, 6: 1, 18: 2, 26: 3, 8: ndim}[given.connectivity]
        sigma = given.sigma if given.sigma == "auto" else float(given.sigma)
        return references.grid_crf(s, image, roi, differing, sigma, given.diagonal == "unit", given.relaxation)
    if name == "gated-crf":
        return references.gated_crf(s, image, roi, given.radius, given.sigma_xy, given.sigma_rgb, given.relaxation)
    if name == "tv":
        return references.total_variation(s, image, roi, given.isotropic, given.edge_scale)
    exact = name in ("dense-crf", "normalized-cut", "kernel-cut") and given.scale == 1
    if not exact:
        return None
    widths = given.sigma_xy, given.sigma_rgb
    if name == "dense-crf":
        return references.dense_crf(s, image, roi, *widths, given.relaxation)
    cut = references.normalized_cut(s, image, roi, *widths)
    if name == "normalized-cut" or cut is None:
        return cut
    return cut + given.crf_weight * references.dense_crf(s, image, roi, *widths, "bilinear")


# --------------------------------------------------------------------------------------------------------------------
# Metrics


def metric(dice: Dice) -> str:
    """All scores of a few images, counted by one object or by two that are merged."""
    shape = dice.choice([one for one in SHAPES if len(one) > 1])
    classes = dice.choice((2, 2, 3, 5))
    names = tuple(dice.choice(("background", "Herz", "a,b", "=1+1", "<b>")) + str(k) for k in range(classes))
    groups = [dice.choice(("p1", "p2", "Müller", "=A1")) for _ in range(dice.randint(1, 4))]
    types = (torch.int64, torch.uint8, torch.int32, torch.int16)
    some = dice.labels(classes, *shape) if dice.often(0.3) else None  # images that are alike
    pairs, tensors = [], []
    for group in groups:
        label = dice.labels(classes, *shape) if some is None else some
        if dice.often(0.3):
            label = label.flip(0).cummax(0).values  # larger regions
        prediction = torch.where(
            dice.even(*shape) < dice.choice((0.0, 0.1, 0.6, 1.0)), dice.labels(classes, *shape), label
        )
        ignored = dice.even(*shape) < dice.choice((0.0, 0.0, 0.3, 0.9, 1.0))
        label = label.masked_fill(ignored, IGNORE)
        if dice.often(0.2):
            prediction = prediction.masked_fill(ignored, IGNORE)
        tensors.append((prediction.to(dice.choice(types)), label.to(dice.choice(types)), group))
        pairs.append((prediction.numpy(), label.numpy(), group))
    widths = tuple(dice.plain.sample((1, 2, 3, 10), dice.randint(1, 3)))
    split = dice.randint(1, len(groups)) if dice.often(0.5) else len(groups)
    parts = [scores.Scores(names, widths, hausdorff=True) for _ in range(2)]
    for number, (prediction, label, group) in enumerate(tensors):
        parts[number >= split].update(prediction, label, group)
    if split < len(groups):
        parts[0].merge_state(parts[1])
    wanted = references.confusion_scores(pairs, names) | references.hausdorff_scores(pairs, names)
    wanted["trimap"] = {str(width): references.trimap_scores(pairs, names, width) for width in widths}
    densities = [[references.boundary_density(values[which]) for values in pairs] for which in (0, 1)]
    wanted["boundary-density"], wanted["true-boundary-density"] = (sum(d) / len(d) for d in densities)
    found = parts[0].compute()
    expect(
        "scores", {key: found[key] for key in sorted(wanted)}, {key: wanted[key] for key in sorted(wanted)}, 1e-9, 1e-12
    )
    prediction, label, _ = tensors[0]
    percentile, k = dice.choice((100.0, 95.0, 50.0, 1e-3)), dice.randint(0, classes - 1)
    distance = surface.hausdorff_distance(prediction, label, k, percentile)
    expected = references.hausdorff(pairs[0][0], pairs[0][1], k, percentile)
    if not (math.isnan(distance) and math.isnan(expected)):
        expect(f"hausdorff_distance({k}, {percentile})", distance, expected, 1e-9, 1e-12)
    distances = boundary.boundary_distance(label)
    expect(
        "boundary_distance",
        distances.flatten().tolist(),
        references.boundary_distances(pairs[0][1]).flatten().tolist(),
        1e-9,
        1e-12,
    )
    width = dice.choice((0.5, 1, 1.5, 4))
    inside = boundary.trimap(label, width).flatten().tolist()
    near = (references.boundary_distances(pairs[0][1]) < width) & (pairs[0][1] != IGNORE)
    expect("trimap", inside, near.flatten().tolist())
    expect("accuracy_of", confusion.accuracy_of(np.array([[3, 1], [0, 2]])), 5 / 6)
    _foregrounds(dice, pairs, tensors, classes)
    return "scores"


def _foregrounds(dice: Dice, pairs: list[Any], tensors: list[Any], phases: int) -> None:
    found = foreground.ForegroundScores(phases)
    for number, (prediction, label, _) in enumerate(tensors):
        found.update(prediction, label, f"image {number}")
    result = found.compute()
    names = ("f-measure", "foreground-iou", "accuracy")
    for number, (prediction, label, _) in enumerate(pairs):
        of_image = result["images"][f"image {number}"]
        for rule, chosen in (("last", range(1, phases)), ("border", references.off_border(prediction, phases))):
            wanted = references.foreground_scores(prediction, label, list(chosen))
            expect(f"foreground {rule} of image {number}", of_image[rule], dict(zip(names, wanted, strict=True)))
        best = references.best_foreground(prediction, label, phases)
        mine = tuple(of_image["best"][name] for name in names)
        if not any(max(abs(a - b) for a, b in zip(mine, one, strict=True)) < 1e-9 for one in best):
            raise Fault(f"foreground best of image {number} is {mine} instead of one of {best}")
    for rule in foreground.RULES:
        mean = {n: sum(one[rule][n] for one in result["images"].values()) / len(pairs) for n in names}
        expect(f"foreground {rule}", result[rule], mean)


# --------------------------------------------------------------------------------------------------------------------
# Running


KINDS: dict[str, Callable[[Dice], str]] = {
    "data-term": data_term,
    "divergence": divergence,
    "regularizer": regularizer,
    "metric": metric,
}


@dataclass
class Outcome:
    """What became of a case: which component, "refused" for settings that do not fit, a fault or none."""

    kind: str
    name: str
    fault: str = ""


def attack(seed: int) -> Outcome:
    """The case of a seed; kinds take turns."""
    kind = [*KINDS][seed % len(KINDS)]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            return Outcome(kind, KINDS[kind](Dice(seed)))
    except UsageError as error:
        return Outcome(kind, "refused", "" if str(error).endswith((".", ")")) else f"seed {seed}: {error}")
    except Fault as fault:
        return Outcome(kind, "wrong", f"seed {seed}: {fault}")
    except Exception:
        return Outcome(kind, "crashed", f"seed {seed}: {traceback.format_exc(limit=-6)}")


def main() -> int:
    """Run the attack; 1 if there was a fault."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="of the first case; the others follow")
    parser.add_argument("--cases", type=int, default=1000)
    given = parser.parse_args()
    torch.set_num_threads(1)
    counts: collections.Counter[tuple[str, str]] = collections.Counter()
    faults, begin = 0, time.process_time()
    for seed in range(given.seed, given.seed + given.cases):
        outcome = attack(seed)
        counts[outcome.kind, outcome.name] += 1
        if outcome.fault:
            faults += 1
            print(f"{outcome.kind}, {outcome.fault}", end="\n\n", flush=True)
    for kind in KINDS:
        of_kind = {name: count for (its, name), count in sorted(counts.items()) if its == kind}
        print(f"{kind}: {sum(of_kind.values())} ({', '.join(f'{count} {name}' for name, count in of_kind.items())})")
    print(f"{given.cases} cases from seed {given.seed}, {faults} faults, {time.process_time() - begin:.0f} s of CPU")
    return int(faults > 0)


if __name__ == "__main__":
    raise SystemExit(main())
