"""The modules: how a regularizer or a data term becomes a loss.

    RegularizerLoss     mean:  sum over images of R(S) / number of pixels in the region of interest of the batch
    DataLoss            mean:  sum over images of the data term's sums / sum of its counts

with S = softmax(logits), or sigmoid(logits) where a regularizer's channels are sets. These are the terms of
`regloss.outer_loop`, so that a weight means the same in a loss, in an outer loop and in a configuration. R is the
energy, or for hard constraints the smooth penalty (`Term.penalty`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from regloss.batch import Batch
from regloss.checks import (
    at_least_float32,
    check_choice,
    check_labels,
    check_scores,
    check_spacing,
    holds,
    without_value_checks,
)
from regloss.data_term import combine_data_terms
from regloss.dataset import IGNORE
from regloss.errors import UsageError
from regloss.losses.operation import energies_as_one_operation, handle_of
from regloss.regularizer import Regularizer, combine

Reduction = Literal["mean", "sum", "none"]
REDUCTIONS: tuple[Reduction, ...] = get_args(Reduction)


class Loss(nn.Module, ABC):
    """What all losses have in common: the arguments of a call, when values are checked, and the reduction."""

    def __init__(self, ignore_index: int | None, reduction: Reduction, validate: bool) -> None:
        super().__init__()
        check_choice(REDUCTIONS, reduction=reduction)
        if ignore_index is not None and (isinstance(ignore_index, bool) or not isinstance(ignore_index, int)):
            raise UsageError(f"ignore_index must be an integer, a value of target; got {ignore_index!r}.")
        if not isinstance(validate, bool):
            raise UsageError(f"validate must be True or False; got {validate!r}.")
        self.ignore_index = ignore_index
        self.reduction = reduction
        self.validate = validate
        self._checked: set[Any] = set()

    def forward(
        self,
        logits: Tensor,
        target: Tensor | None = None,
        image: Tensor | None = None,
        roi: Tensor | None = None,
        spacing: Sequence[float] | None = None,
    ) -> Tensor:
        """The loss; see the class for shapes."""
        if torch.compiler.is_compiling():
            return self._reduced(logits, target, image, roi, spacing)
        given = (logits, target, image, roi)
        seen = tuple(None if part is None else (part.shape, part.dtype, part.device) for part in given)
        if self.validate and seen not in self._checked:
            result = self._reduced(*given, spacing)
            self._checked.add(seen)
            return result
        with without_value_checks():
            return self._reduced(*given, spacing)

    @abstractmethod
    def totals(
        self,
        logits: Tensor,
        target: Tensor | None,
        image: Tensor | None,
        roi: Tensor | None,
        spacing: tuple[float, ...] | None,
    ) -> tuple[Tensor, Tensor]:
        """The loss of each image, summed, and what to divide the sum over images by for a mean: (B,) both."""

    def _reduced(
        self,
        logits: Tensor,
        target: Tensor | None,
        image: Tensor | None,
        roi: Tensor | None,
        spacing: Sequence[float] | None,
    ) -> Tensor:
        check_scores(logits, "logits")
        shape = (logits.shape[0], *logits.shape[2:])
        if image is not None and (image.shape[0], *image.shape[2:]) != shape:
            raise UsageError(
                f"An image {tuple(image.shape)} does not fit logits {tuple(logits.shape)}: B and *S must agree. "
                "Interpolate the logits to the image's size."
            )
        for name, part in (("target", target), ("image", image), ("roi", roi)):
            if part is not None and part.device != logits.device:
                raise UsageError(
                    f"{name} is on {part.device}, the logits are on {logits.device}. Move it with .to(logits.device)."
                )
        sums, counts = self.totals(logits, target, image, roi, check_spacing(spacing, logits.ndim - 2))
        if self.reduction == "none":
            return sums
        if self.reduction == "sum":
            return sums.sum()
        count = counts.sum().detach().to(sums.dtype)
        # A batch of crops may hold nothing that counts: then the loss is 0, and still part of the graph.
        return sums.sum() / torch.where(count > 0, count, torch.ones_like(count))

    def _image_or_blank(self, image: Tensor | None, logits: Tensor, needed: bool) -> Tensor:
        if image is not None:
            return image
        if needed:
            raise UsageError(
                f"{type(self).__name__} looks at the image, and none was given: loss(logits, image=image), with image "
                "(B, C, *S) in [0, 1]."
            )
        # Takes no memory, and is at once known to lie in [0, 1].
        size = (logits.shape[0], 1, *logits.shape[2:])
        return torch.zeros([1] * len(size), dtype=at_least_float32(logits[:0]).dtype, device=logits.device).expand(size)


class RegularizerLoss(Loss):
    """Any regularizer, or a sum of several, as a loss; `GridCRFLoss` and its like are made from this class.

    Args:
        regularizer: an object, a name, a table with a name and settings, or a sequence of these, which add up.
        ignore_index: value of ``target`` whose pixels are left out of the region of interest; None = no target is
            taken.
        reduction: "mean" (the energy per pixel of the region of interest, over the whole batch), "sum" (over images)
            or "none" (one energy for each image).
        validate: whether values (of image and target) are checked, once for each shape; else, never.

    Shape:
        - logits: (B, K, *S) with one to three spatial axes *S, as far as the regularizer takes them.
        - target: (B, *S) integers, see ``ignore_index``.
        - image: (B, C, *S) in [0, 1]; not needed where the regularizer does not look at it.
        - roi: (B, *S) bool; outside nothing counts, neither pixels nor edges. None = everywhere.
        - spacing: distance between neighbouring pixels along each spatial axis in mm; None = in pixels.
        - output: scalar; (B,) for the reduction "none". In float32 at least.

    Raises:
        UsageError: a setting outside its range, shapes that disagree, a target though ``ignore_index`` is None.

    Examples:
        >>> import regloss
        >>> loss = RegularizerLoss(regloss.GridCRF(weight=2.0) + regloss.TotalVariation(weight=0.1))
        >>> logits = torch.randn(2, 3, 8, 8, requires_grad=True)
        >>> loss(logits, image=torch.rand(2, 3, 8, 8)).backward()
    """

    def __init__(
        self,
        regularizer: Any,
        *,
        ignore_index: int | None = None,
        reduction: Reduction = "mean",
        validate: bool = True,
    ) -> None:
        super().__init__(ignore_index, reduction, validate)
        combined = combine(regularizer)
        if combined is None:
            raise UsageError("A loss needs a regularizer; got none.")
        self._regularizer: Regularizer = combined
        self._prepare()

    def _prepare(self) -> None:
        self._opaque = self._regularizer.opaque
        self._needs_image = self._regularizer.needs_image
        self._handle = handle_of(self._regularizer)

    @property
    def regularizer(self) -> Regularizer:
        """The settings; to change them, make another loss."""
        return self._regularizer

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._prepare()  # copies and other processes have handles of their own

    def extra_repr(self) -> str:
        """The settings."""
        return f"{self._regularizer!r}, ignore_index={self.ignore_index}, reduction={self.reduction!r}"

    def totals(
        self,
        logits: Tensor,
        target: Tensor | None,
        image: Tensor | None,
        roi: Tensor | None,
        spacing: tuple[float, ...] | None,
    ) -> tuple[Tensor, Tensor]:
        """Energies, and numbers of pixels in the region of interest."""
        shape = (logits.shape[0], *logits.shape[2:])
        if target is not None:
            if self.ignore_index is None:
                raise UsageError(
                    f"{type(self).__name__} regularises labelled and unlabelled pixels alike: it looks at logits and "
                    "image, and takes no target. Leave it out; or, to leave out pixels that hold a certain value, "
                    "void for example, set ignore_index to it (not where it means unlabelled), or give roi."
                )
            check_labels(target, shape)
            inside = target != self.ignore_index
            roi = inside if roi is None else roi & inside
        image = self._image_or_blank(image, logits, self._needs_image)
        scores = at_least_float32(logits)
        probabilities = scores.sigmoid() if self._regularizer.channels == "sets" else scores.softmax(1)
        # With a spacing, weights of neighbours may follow from geometry that compilers cannot trace.
        if torch.compiler.is_compiling() and (self._opaque or spacing is not None):
            energies = energies_as_one_operation(probabilities, image, roi, spacing, self._handle)
        else:
            energies = self._regularizer.bind(image, roi, spacing).penalty(probabilities)
        if roi is None:
            return energies, energies.new_full((shape[0],), float(logits[0, 0].numel()))
        return energies, roi.flatten(1).sum(1).to(energies.dtype)


class DataLoss(Loss):
    """Any data term as a loss; `PartialCrossEntropyLoss` and its like are made from this class.

    Args:
        data_term: an object, a name, or a table with a name and settings (and ``weight``); or a sequence of these,
            whose means add up. Networks that they own are submodules of the loss: give the optimizer
            ``loss.parameters()`` too.
        ignore_index: value of ``target`` that means unlabelled or ignored.
        reduction: "mean" (over all that counts in the batch: labelled pixels, say), "sum" (over images) or "none"
            (the sum for each image).
        validate: whether values (of target and image) are checked, once for each shape; else, never.

    Shape:
        - logits: (B, K, *S).
        - target: (B, *S) integers, 0 to K - 1 or ``ignore_index``; not needed where the data term asks for no labels.
        - image: (B, C, *S) in [0, 1]; not needed where the data term does not look at it.
        - roi: (B, *S) bool; outside no label counts. None = everywhere.
        - spacing: distance between neighbouring pixels along each spatial axis in mm; None = in pixels.
        - output: scalar; (B,) for the reduction "none". In float32 at least.

    Raises:
        UsageError: a setting outside its range, shapes that disagree, labels out of range, what is needed not given.

    Examples:
        >>> loss = DataLoss({"name": "partial-cross-entropy", "label_smoothing": 0.1})
        >>> target = torch.full((2, 8, 8), 255)
        >>> target[:, 4] = 1
        >>> loss(torch.randn(2, 3, 8, 8, requires_grad=True), target).backward()
    """

    def __init__(
        self, data_term: Any, *, ignore_index: int = IGNORE, reduction: Reduction = "mean", validate: bool = True
    ) -> None:
        super().__init__(ignore_index, reduction, validate)
        term = combine_data_terms(data_term)
        self.networks = nn.ModuleDict(term.modules())
        self.data_term = term

    def extra_repr(self) -> str:
        """The settings."""
        return f"{self.data_term!r}, ignore_index={self.ignore_index}, reduction={self.reduction!r}"

    def totals(
        self,
        logits: Tensor,
        target: Tensor | None,
        image: Tensor | None,
        roi: Tensor | None,
        spacing: tuple[float, ...] | None,
    ) -> tuple[Tensor, Tensor]:
        """Sums and counts of the data term."""
        if target is None and self.data_term.needs_labels:
            raise UsageError(
                f"{type(self).__name__} compares with labels, and none were given: loss(logits, target), with target "
                f"(B, *S) integers, {self.ignore_index} = unlabelled."
            )
        if target is not None and self.ignore_index != IGNORE:
            check_labels(target, (logits.shape[0], *logits.shape[2:]))
            target = target.long()
            if not holds(target != IGNORE):
                raise UsageError(
                    f"target holds the value {IGNORE}, and {type(self).__name__} ignores {self.ignore_index}. If "
                    f"{IGNORE} means unlabelled, leave ignore_index at its default; a class it cannot be."
                )
            if self.ignore_index is not None:
                target = target.masked_fill(target.eq(self.ignore_index), IGNORE)
        image = self._image_or_blank(image, logits, self.data_term.needs_image)
        return self.data_term(logits, Batch(image, target, roi, spacing=spacing))
