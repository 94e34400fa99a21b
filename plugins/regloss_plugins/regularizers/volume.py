"""Volume: every class covers a given number of pixels, or one between bounds. A hard constraint.

    lower_k <= m_k(s) <= upper_k for every class k;    m_k(s) = sum over pixels of s_k

Volumes given exactly are lower = upper. Only pixels of the region of interest count. The violation is the largest error
of an m_k as a fraction of the pixels; a solver's iterate counts as meeting the constraint up to ``tolerance``. Gradient
descent gets weight * pixels * sum over k of (m_k's distance from its bounds / pixels)^2.

Labels have whole volumes: those between the bounds, and where there are none, the next ones on both sides, so that the
error is below one pixel. Rounded, the labels are those of least total cost with such volumes, exactly
(`regloss_plugins.kernels.assignment`). Probabilities become feasible by one factor per class
(`regloss_plugins.kernels.volumes`): they are the nearest ones in Kullback-Leibler divergence.

As a saddle form, R(s) = max over y of <m(s) - volumes, y> with one number y_k per class, free for exact volumes; for
bounds there are two, not negative, one on each side. (Rows are divided by sqrt(pixels): the norm is then 1, and
the set is as it was.) `DCA` recognises sums over classes and solves for these numbers by Newton's method.

A volume of 0 closes its class. For dual methods that would need an infinite number, so pdhg only approaches it; dca
leaves the class out.

Source: Liu, Wang, Tai, "Deep convolutional neural networks with spatial regularization, volume and star-shape priori
for image segmentation", arXiv:2002.03989. Its volumes may sum to anything; here they must sum to the number of pixels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from regloss import grid
from regloss.checks import holds
from regloss.constraint import ConstraintTerm, HardConstraint, contradiction
from regloss.dual_sets import Free, Orthant
from regloss.errors import UsageError
from regloss.forms import Saddle, SaddlePart
from regloss.numerics import double, double_sum, one_hot
from regloss.operators import ClassSums
from regloss.regularizer import Forms, Term
from regloss_plugins.kernels.assignment import assign
from regloss_plugins.kernels.volumes import scale_to_volumes

# Volumes that are off the number of pixels by less than this part of it are rounded ones; they are scaled to fit.
_ROUNDING = 1e-4
# Of each physical unit, how many dimensions it has, and its size in powers of mm.
_PHYSICAL = {"mm2": (2, 1.0), "mm3": (3, 1.0), "ml": (3, 1000.0)}


@dataclass(frozen=True)
class Volume(HardConstraint):
    """Prescribed volumes, or bounds on them.

    Args:
        weight: of the penalty that gradient descent gets, >= 0; 0 switches the constraint off.
        volumes: (K,) for all images or (B, K), >= 0; sequence or tensor. They must sum to the number of pixels of the
            region of interest (to 1e-4 of it; that much is scaled away). A tensor may need a gradient.
        lower: (K,) or (B, K) least volumes instead; None = 0.
        upper: (K,) or (B, K) largest volumes instead; None = all pixels.
        unit: "pixels", "fraction" of the region of interest's pixels, or "mm2", "mm3" or "ml", for images of two or
            three dimensions whose spacing is known.
        tolerance: volume error that still counts as met, as a fraction of the pixels, > 0.

    Raises:
        UsageError: volumes and bounds both given or both missing, negative or not finite ones, ones that no
            segmentation has.

    >>> image = torch.zeros(1, 1, 2, 2)
    >>> term = Volume(volumes=(3, 1)).bind(image)
    >>> labels = torch.tensor([[[0, 0], [0, 1]]])
    >>> probabilities = torch.stack([labels == 0, labels == 1], dim=1).float()
    >>> term.violation(probabilities), term.violation(probabilities.flip(1))
    (tensor([0.]), tensor([0.5000]))
    """

    weight: float = 1.0
    volumes: Sequence[Any] | Tensor | None = None
    lower: Sequence[Any] | Tensor | None = None
    upper: Sequence[Any] | Tensor | None = None
    unit: Literal["pixels", "fraction", "mm2", "mm3", "ml"] = "pixels"
    tolerance: float = 1e-3
    needs_image: ClassVar[bool] = False
    example: ClassVar[Mapping[str, Any]] = {"volumes": (0.25, 0.75), "unit": "fraction"}

    def __post_init__(self) -> None:
        if self.unit not in ("pixels", "fraction", *_PHYSICAL):
            raise UsageError(f'unit must be "pixels", "fraction", "mm2", "mm3" or "ml"; got {self.unit!r}.')
        if not 0 < self.tolerance < 1:
            raise UsageError(f"tolerance must lie in (0, 1), a fraction of the pixels; got {self.tolerance}.")
        bounded = self.lower is not None or self.upper is not None
        if (self.volumes is not None) == bounded:
            found = "both" if bounded else "neither"
            raise UsageError(f"volume needs either volumes, or lower and upper bounds; got {found}.")
        given = {name: getattr(self, name) for name in ("volumes", "lower", "upper") if getattr(self, name) is not None}
        shapes = {}
        for name, value in given.items():
            numbers = _numbers(value, name)
            shapes[name] = numbers.shape[-1]
            if not bool(((numbers >= 0) & numbers.isfinite()).all()):
                raise UsageError(f"{name} must be finite and not negative; got {numbers.detach().tolist()}.")
        if len(set(shapes.values())) > 1:
            raise UsageError(f"lower and upper must be given for the same classes; got {shapes}.")

    @property
    def forms(self) -> Forms:
        """The saddle form."""
        return {Saddle: _VolumeTerm.saddle}

    def build(self, image: Tensor, roi: Tensor | None, spacing: tuple[float, ...] | None) -> Term:
        """Turn volumes into numbers of pixels and see whether they are possible."""
        shape = (image.shape[0], *image.shape[2:])
        inside = grid.full_roi(roi, shape, image.device)
        pixels = double(inside.flatten(1).sum(1, keepdim=True))
        unit = pixels if self.unit == "fraction" else torch.full_like(pixels, self._pixels_per_unit(spacing, shape))

        def in_pixels(name: str, missing: Tensor) -> Tensor:
            value = getattr(self, name)
            numbers = missing if value is None else _numbers(value, name).to(pixels)
            if numbers.ndim == 2 and numbers.shape[0] not in (1, shape[0]):
                raise UsageError(f"{name} are given for {numbers.shape[0]} images, but bound to {shape[0]}.")
            return numbers if value is None else numbers * unit

        if self.volumes is not None:
            volumes = in_pixels("volumes", pixels)
            total = volumes.sum(1, keepdim=True)
            wrong = (total - pixels).abs() > _ROUNDING * pixels
            if not holds(~wrong):
                first = int(wrong.flatten().nonzero()[0])
                raise UsageError(
                    f"volumes must sum to the pixels of the region of interest; in image {first} of the batch they sum "
                    f"to {float(total[first]):.6g}, and there are {int(pixels[first])} pixels. Scale them by "
                    f"{float(pixels[first]):.6g} / {float(total[first]):.6g}, or give lower and upper bounds."
                )
            lower = upper = volumes * (pixels / total)
        else:
            lower, upper = in_pixels("lower", torch.zeros_like(pixels)), in_pixels("upper", pixels)
            lower, upper = torch.broadcast_tensors(lower, upper)  # type: ignore[no-untyped-call]
            if not holds(lower <= upper):
                raise UsageError("A lower bound of volume exceeds the upper bound of its class.")
            least, most = lower.sum(1, keepdim=True), upper.sum(1, keepdim=True)
            slack = 1e-9 * pixels
            wrong = (least > pixels + slack) | (most < pixels - slack)
            if not holds(~wrong):
                first = int(wrong.flatten().nonzero()[0])
                raise UsageError(
                    f"No segmentation of {int(pixels[first])} pixels has volumes that sum to at least "
                    f"{float(least[first]):.6g} and at most {float(most[first]):.6g} (image {first} of the batch). "
                    "Lower bounds must sum to at most, upper ones to at least the pixels of the region of interest."
                )
        if self.weight == 0:
            lower, upper = torch.zeros_like(lower), pixels.expand_as(lower)
        return _VolumeTerm(self, inside, pixels, lower, upper, shape, roi)

    def _pixels_per_unit(self, spacing: tuple[float, ...] | None, shape: tuple[int, ...]) -> float:
        if self.unit not in _PHYSICAL:
            return 1.0
        axes, size = _PHYSICAL[self.unit]
        if spacing is None or len(shape) - 1 != axes:
            found = "the spacing is not known" if spacing is None else f"the image has {len(shape) - 1}"
            raise UsageError(
                f"Volumes in {self.unit} need an image of {axes} dimensions with its spacing in mm; {found}. Use "
                'unit = "pixels" or "fraction".'
            )
        return size / math.prod(spacing)


def _numbers(value: Sequence[Any] | Tensor, name: str) -> Tensor:
    """(K,) -> (1, K); (B, K) stays."""
    try:
        numbers = value if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{name} must be numbers, (K,) or (B, K); got {value!r}.") from error
    if numbers.ndim not in (1, 2) or numbers.shape[-1] < 2:
        raise UsageError(f"{name} must have the shape (K,) or (B, K) with K >= 2; got {tuple(numbers.shape)}.")
    return numbers.reshape(-1, numbers.shape[-1])


class _VolumeTerm(ConstraintTerm):
    def __init__(
        self,
        regularizer: Volume,
        inside: Tensor,  # (B, *S) bool
        pixels: Tensor,  # (B, 1) float64, like both bounds on the CPU where the image's device knows no float64
        lower: Tensor,  # (B or 1, K) float64
        upper: Tensor,
        shape: tuple[int, ...],
        roi: Tensor | None,
    ) -> None:
        super().__init__(regularizer, shape, roi)
        self.settings = regularizer
        self.everywhere, self.pixels, self.lower, self.upper = inside, pixels, lower, upper

    def saddle(self) -> Saddle:
        """Dual variables are (B, K) for exact volumes, (B, 2, K) for bounds: first those of the upper ones."""
        if self.settings.weight == 0:
            return Saddle(())
        exact = self.settings.volumes is not None
        operator = ClassSums(self.everywhere, self.lower.shape[1], two_sided=not exact)
        upper, lower = self.upper * operator.scale, self.lower * operator.scale
        tolerance = self.settings.tolerance * self.pixels.sqrt().squeeze(1)
        if exact:
            return Saddle((SaddlePart(operator, Free(tolerance), upper),))
        return Saddle((SaddlePart(operator, Orthant(tolerance), torch.stack([upper, -lower], dim=1)),))

    def violation(self, probabilities: Tensor) -> Tensor:
        """Largest volume error, as a fraction of the pixels."""
        s = self.check(probabilities)
        return self._errors(s).abs().amax(1).to(s)

    def check_classes(self, probabilities: Tensor) -> None:
        """As many as there are volumes."""
        _check_classes(self.lower, probabilities)

    def __getitem__(self, images: Tensor) -> _VolumeTerm:
        """Those images."""
        roi, inside = None if self.roi is None else self.roi[images], self.everywhere[images]
        some = images.to(self.pixels.device)
        lower, upper = (bound if bound.shape[0] == 1 else bound[some] for bound in (self.lower, self.upper))
        return _VolumeTerm(self.settings, inside, self.pixels[some], lower, upper, tuple(inside.shape), roi)

    def refuse(self, possible: Tensor) -> None:
        """Seeds and allowed labels must leave room for the volumes: to each class, and to all together."""
        must, may = self._room(possible)
        lower, upper = self.lower.detach().to(must), self.upper.detach().to(must)
        slack = 1e-9 * self.pixels
        above, below = (
            "{} pixels must be class {}, whose largest volume is {}",
            "{} pixels may be class {}, whose least volume is {}",
        )
        named = ((must > upper + slack, must, upper, above), (may < lower - slack, may, lower, below))
        for wrong, found, wanted, why in named:
            if bool(wrong.any()):
                image, label = wrong.nonzero()[0].tolist()
                limit = wanted.expand_as(found)[image, label]
                raise contradiction(self, image, why.format(int(found[image, label]), label, f"{float(limit):.6g}"))
        least, most = torch.maximum(lower, must).sum(1), torch.minimum(upper, may).sum(1)
        pixels = self.pixels.squeeze(1)
        joint = (
            (least > pixels + slack.squeeze(1), least, must, "volumes exceed the pixels that are free"),
            (most < pixels - slack.squeeze(1), most, may, "allowed volumes do not fill the image"),
        )
        for wrong, total, found, why in joint:
            if bool(wrong.any()):
                image = int(wrong.nonzero()[0])
                label = int((found - lower if found is must else upper - found)[image].argmax())
                raise contradiction(
                    self,
                    image,
                    f"{why}: with {int(found[image, label])} pixels that {'must' if found is must else 'may'} be class "
                    f"{label}, they come to {float(total[image]):.6g} of {int(pixels[image])}",
                )

    def counts(self, possible: Tensor) -> Tensor:
        """Whole numbers between the bounds; the next ones outside where there are none that add up."""
        lower, upper = (bound.detach().expand(len(possible), -1) for bound in (self.lower, self.upper))
        tiny = 1e-9 * self.pixels
        floor, ceiling = (lower + tiny).floor(), (upper - tiny).ceil()
        least, most = (lower - tiny).ceil(), (upper + tiny).floor()
        none = least > most
        least, most = torch.where(none, floor, least), torch.where(none, ceiling, most)
        must, may = self._room(possible)
        least = torch.where((torch.maximum(least, must).sum(1, keepdim=True) > self.pixels), floor, least)
        most = torch.where((torch.minimum(most, may).sum(1, keepdim=True) < self.pixels), ceiling, most)
        return torch.stack([least, most], dim=-1).long()

    def violation_of_labels(self, labels: Tensor, classes: int) -> Tensor:
        """Of whole volumes, as a fraction of the pixels."""
        chosen = one_hot(labels, classes)
        self.check_classes(chosen)
        # Which whole numbers count does not depend on the labels' own possibilities, but for seeds.
        counts = self.counts(torch.ones_like(chosen, dtype=torch.bool))
        found = double_sum((chosen * self.everywhere.unsqueeze(1)).flatten(2))
        off = (found - torch.minimum(torch.maximum(found, counts[..., 0]), counts[..., 1].to(found))).abs()
        return (off.amax(1) / self.pixels.squeeze(1)).to(chosen)

    def round(self, cost: Tensor, possible: Tensor, counts: Tensor | None = None) -> Tensor:
        """The cheapest labels with such volumes, exactly."""
        allowed = self.counts(possible) if counts is None else counts
        flat, inside = cost.flatten(2), self.everywhere.flatten(1)
        labels = flat.argmin(1)
        bounds = allowed.cpu().numpy()
        for image in range(len(flat)):
            chosen = flat[image][:, inside[image]].cpu().double().numpy()
            found = assign(chosen, bounds[image, :, 0], bounds[image, :, 1])
            labels[image, inside[image]] = torch.from_numpy(found).to(labels.device)
        return labels.reshape(self.shape)

    def feasible(self, log_probabilities: Tensor, possible: Tensor) -> Tensor:
        """The nearest ones: a factor for each class."""
        must, _ = self._room(possible)
        lower, upper = (bound.detach().expand_as(must) for bound in (self.lower, self.upper))
        # Classes that seeds fill already take no further pixels, and need no factor.
        closed = upper - must <= 1e-9 * self.pixels
        free = possible.sum(1, keepdim=True) > 1
        shut = closed.to(free.device).reshape(*closed.shape, *[1] * (possible.ndim - 2)) & free
        cost = (-log_probabilities).masked_fill(shut, torch.inf)
        # Where nothing else is left, what was shut has to do; the violation tells.
        cost = torch.where((cost == torch.inf).all(1, keepdim=True), -log_probabilities, cost)
        lower, upper = torch.where(closed, must, lower), torch.where(closed, must, upper)
        return scale_to_volumes(cost, 1.0, lower, upper, self.everywhere).probabilities

    def _room(self, possible: Tensor) -> tuple[Tensor, Tensor]:
        """(B, K) float64 numbers of pixels that must be, and that may be of each class."""
        inside = self.everywhere.unsqueeze(1)
        must = possible & (possible.sum(1, keepdim=True) == 1) & inside
        return must.flatten(2).sum(2).to(self.pixels), (possible & inside).flatten(2).sum(2).to(self.pixels)

    def penalty(self, probabilities: Tensor) -> Tensor:
        s = self.check(probabilities)
        squares = self.pixels.squeeze(1) * self._errors(s).square().sum(1)
        return (self.settings.weight * squares).to(s)

    def _errors(self, s: Tensor) -> Tensor:
        """(B, K) float64: how much too large each volume is, negative if too small, as a fraction of the pixels."""
        _check_classes(self.lower, s)
        masses = double_sum((s * self.everywhere.unsqueeze(1)).flatten(2))
        return (masses - torch.minimum(torch.maximum(masses, self.lower), self.upper)) / self.pixels


def _check_classes(bound: Tensor, s: Tensor) -> None:
    if bound.shape[1] != s.shape[1]:
        raise UsageError(
            f"volume has settings for {bound.shape[1]} classes, but the segmentation has K = {s.shape[1]}. Give one "
            "volume for each class."
        )
