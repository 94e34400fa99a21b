"""Size bounds: each class's size in an image lies between two given numbers, by the extension of the log barrier.

    loss = sum over classes k of  psi(lower_k - size_k) + psi(size_k - upper_k),      size_k = (1 / N) sum of S_k

    psi(z) = -ln(-z) / t                            z <= -1 / t^2
             t z - ln(1 / t^2) / t + 1 / t          beyond

psi is convex and continuously differentiable, and defined where bounds are violated, unlike the barrier -ln(-z) / t: no
feasible start is needed. As t grows it tends to 0 where z < 0 and to infinity where z > 0. Where a bound holds the
gradient is at most t, and does not vanish as long as t is small: so t is raised while training goes on.

Source: Kervadec, Dolz, Yuan, Desrosiers, Granger, Ben Ayed, "Constrained deep networks: Lagrangian optimization via
log-barrier extensions", 2019; bounds on sizes: Kervadec, Dolz, Tang, Granger, Boykov, Ben Ayed, "Constrained-CNN losses
for weakly supervised segmentation", Medical Image Analysis 2019.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from regloss.batch import Batch
from regloss.checks import at_least_float32, check_labels
from regloss.data_term import DataTerm
from regloss.errors import UsageError
from regloss.outer_loop import check_logits


@dataclass(frozen=True)
class SizeBounds(DataTerm):
    """Mean over images of barriers at the bounds of each class's size.

    Args:
        lower: one number a class, or None for no lower bounds; a bound of 0 is none.
        upper: one number a class, or None; a bound of everything (1, or infinitely many pixels) is none.
        unit: of the bounds: "fraction" of the pixels in the region of interest, or "pixels". Sizes in the formula are
            fractions either way, so that t means the same for all images.
        sharpness: t, > 0. The slope beyond a bound, for a size as a fraction.
        present: whether only classes with a labelled pixel in an image are bounded there; it needs labels then.

    Raises:
        UsageError: no bounds, bounds that are negative, contradict each other, or do not fit K.

    Half of the pixels, where between .6 and .8 are asked for, cost t times the .1 that is missing and a constant:

    >>> term = SizeBounds(lower=[0, 0.6], upper=[1, 0.8], sharpness=10.0)
    >>> term(torch.zeros(1, 2, 2, 2), Batch(torch.zeros(1, 1, 2, 2), None))
    (tensor([1.6809]), tensor([1.]))
    """

    lower: Sequence[float] | None = None
    upper: Sequence[float] | None = None
    unit: Literal["fraction", "pixels"] = "fraction"
    sharpness: float = 5.0
    present: bool = False
    needs_labels: ClassVar[bool] = False  # of images without labels it says nothing only where ``present`` asks it to
    needs_image: ClassVar[bool] = False
    example: ClassVar[Mapping[str, Any]] = {"lower": (0.0, 0.2), "upper": (1.0, 0.6)}

    def __post_init__(self) -> None:
        if self.unit not in ("fraction", "pixels"):
            raise UsageError(f'unit of size-bounds must be "fraction" or "pixels"; got {self.unit!r}.')
        if self.lower is None and self.upper is None:
            raise UsageError("size-bounds needs lower or upper bounds, one number a class; got neither.")
        most = 1.0 if self.unit == "fraction" else math.inf
        for name in ("lower", "upper"):
            given = getattr(self, name)
            if given is None:
                continue
            bounds = tuple(float(value) for value in given)
            if not all(0 <= value <= most for value in bounds):
                raise UsageError(
                    f"{name} bounds of size-bounds must lie in [0, {most:g}], in the unit {self.unit!r}; got "
                    f"{list(bounds)}."
                )
            object.__setattr__(self, name, bounds)
        if self.lower is not None and self.upper is not None:
            if len(self.lower) != len(self.upper):
                raise UsageError(
                    f"lower and upper of size-bounds must have one number a class each; got {len(self.lower)} and "
                    f"{len(self.upper)}."
                )
            if any(low > high for low, high in zip(self.lower, self.upper, strict=True)):
                raise UsageError(
                    f"A lower bound of size-bounds lies above the upper one: {list(self.lower)}, {list(self.upper)}."
                )
        if not 0 < self.sharpness < math.inf:
            raise UsageError(f"sharpness of size-bounds must be finite and positive; got {self.sharpness}.")

    def __call__(self, logits: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Sums over classes (B,), and 1 for each image that has pixels (B,)."""
        check_logits(logits, batch)
        probabilities = at_least_float32(logits).softmax(1)
        if batch.roi is not None:
            probabilities = probabilities * batch.roi.unsqueeze(1)
        pixels = batch.pixels.to(probabilities)
        sizes = probabilities.flatten(2).sum(2) / pixels.clamp(min=1).unsqueeze(1)
        applies = self._applies(sizes, batch) & (pixels > 0).unsqueeze(1)
        losses = torch.zeros_like(sizes)
        for given, sign in ((self.lower, -1.0), (self.upper, 1.0)):
            if given is None:
                continue
            if len(given) != sizes.shape[1]:
                raise UsageError(f"size-bounds got {len(given)} bounds for K = {sizes.shape[1]} classes.")
            bound = sizes.new_tensor(given)
            if self.unit == "pixels":
                bound = bound / pixels.clamp(min=1).unsqueeze(1)
            # A size is never below 0 or above 1: such a bound says nothing.
            says = applies & (bound > 0 if sign < 0 else bound < 1)
            excess = torch.where(says, sign * (sizes - torch.where(says, bound, 0)), -1.0)
            losses = losses + torch.where(says, barrier(excess, self.sharpness), 0)
        return losses.sum(1), (pixels > 0).to(sizes)

    def _applies(self, sizes: Tensor, batch: Batch) -> Tensor:
        """(B, K) whether a class is bounded in an image."""
        if not self.present:
            return torch.ones_like(sizes, dtype=torch.bool)
        if batch.labels is None:
            raise UsageError("size-bounds with present = true needs labels in the batch, and it has none.")
        classes = sizes.shape[1]
        check_labels(batch.labels, batch.shape, classes)
        labels = torch.where(batch.labelled, batch.labels.long(), classes).to(sizes.device).flatten(1)
        counts = torch.zeros(sizes.shape[0], classes + 1, dtype=torch.int64, device=sizes.device)
        return counts.scatter_add(1, labels, torch.ones_like(labels))[:, :classes] > 0


def barrier(z: Tensor, sharpness: float) -> Tensor:
    """The extension psi of the log barrier, for the constraint z <= 0; differentiable everywhere.

    >>> barrier(torch.tensor([-1.0, 0.0, 1.0]), 2.0)
    tensor([-0.0000, 1.1931, 3.1931])
    """
    t = sharpness
    joint = -1 / t**2
    # Each side is evaluated only where it applies: the other's derivative there may be infinite.
    inner = -torch.log(-z.clamp(max=joint)) / t
    outer = t * z - math.log(1 / t**2) / t + 1 / t
    return torch.where(z <= joint, inner, outer)
