"""Checks of what users pass in, shared by the nouns. Each raises `UsageError` with both sides and the way out.

Shapes and types are always checked. Checks of *values* wait for the device: they are made where `values_are_checked`
says so, which is everywhere but in a compiled program and inside of `without_value_checks`. Every such check of this
library asks here, through `holds` or the functions below.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from numbers import Real

import torch
from torch import Tensor

from regloss.dataset import IGNORE
from regloss.errors import UsageError

_checked: ContextVar[bool] = ContextVar("regloss_values_are_checked", default=True)


def values_are_checked() -> bool:
    """Whether checks may look at values: not while `torch.compile` traces, nor inside of `without_value_checks`."""
    return not torch.compiler.is_compiling() and _checked.get()


@contextmanager
def without_value_checks() -> Iterator[None]:
    """Checks inside look at shapes and types alone, so that nothing waits for the device; in this thread.

    Values out of range then go through unseen, and what comes of them is wrong or an error from somewhere else.

    >>> from regloss import Batch
    >>> with without_value_checks():
    ...     Batch(torch.full((1, 1, 2, 2), 255.0), None).pixels  # an image of bytes, which is refused elsewhere
    tensor([4.])
    """
    token = _checked.set(False)
    try:
        yield
    finally:
        _checked.reset(token)


def holds(condition: Tensor) -> bool:
    """Whether all of ``condition`` (any shape, bool) is True; True, unseen, where values are not checked."""
    return not values_are_checked() or bool(condition.all())


def check_image(image: Tensor) -> None:
    """``image`` must be (B, C, *S) with one to three spatial axes, floating point, finite, in [0, 1]."""
    if not isinstance(image, Tensor) or not image.is_floating_point():
        kind = image.dtype if isinstance(image, Tensor) else type(image).__name__
        raise UsageError(
            f"An image must be a floating-point tensor with values in [0, 1]; got {kind}. Divide bytes by 255."
        )
    if not 3 <= image.ndim <= 5 or image.numel() == 0:
        raise UsageError(f"An image must have the shape (B, C, *S) with 1 to 3 spatial axes; got {tuple(image.shape)}.")
    if not values_are_checked():
        return
    low, high = (float(value) for value in image.detach().aminmax())
    # aminmax propagates NaN, so one comparison that is false for NaN covers all of it; the margin is float16 rounding.
    if not (low >= -1e-3 and high <= 1 + 1e-3):
        count = int((~torch.isfinite(image)).sum())
        found = f"{count} values that are not finite" if count else f"values from {low:.4g} to {high:.4g}"
        raise UsageError(
            f"Image values must lie in [0, 1], because bandwidths are declared in those units; got {found}. "
            "Rescale the image (bytes: divide by 255), and normalise only what the network sees."
        )


def check_spacing(spacing: Sequence[float] | Tensor | None, ndim: int) -> tuple[float, ...] | None:
    """``spacing``, the distance of neighbouring pixels along each of ``ndim`` axes, as numbers; None stays None."""
    if spacing is None:
        return None
    try:
        found = tuple(float(step) for step in spacing)
        if any(isinstance(step, bool) for step in spacing):
            raise TypeError
    except (TypeError, ValueError) as error:
        raise UsageError(f"spacing must be {ndim} numbers, one for each axis; got {spacing!r}.") from error
    if len(found) != ndim or not all(0 < step < math.inf for step in found):
        raise UsageError(
            f"spacing must be {ndim} finite positive numbers (mm), one for each spatial axis in the image's order, the "
            f"same for all images of a batch; got {found}."
        )
    return found


def check_roi(roi: Tensor | None, shape: tuple[int, ...]) -> None:
    """``roi`` must be None, or (B, *S) bool with at least one pixel in every image."""
    if roi is None:
        return
    if roi.dtype != torch.bool:
        raise UsageError(f"A region of interest must be a bool tensor; got {roi.dtype}.")
    if tuple(roi.shape) != shape:
        raise UsageError(f"A region of interest must have the image's shape {shape} (B, *S); got {tuple(roi.shape)}.")
    if not holds(roi.flatten(1).any(1)):
        raise UsageError("A region of interest is empty in at least one image of the batch. Drop that image.")


_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)  # others torch can hardly compare


def check_labels(labels: Tensor, shape: tuple[int, ...], classes: int | None = None) -> None:
    """``labels`` must be (B, *S) integers: class indices below ``classes`` (if given), or 255."""
    if labels.dtype not in _INTEGERS:
        raise UsageError(f"Labels must be integers (int64; 255 = unlabelled); got {labels.dtype}. Convert: .long().")
    if tuple(labels.shape) != shape:
        raise UsageError(f"Labels must have the image's shape {shape} (B, *S); got {tuple(labels.shape)}.")
    if classes is not None:
        wrong = (labels != IGNORE) & ((labels < 0) | (labels >= classes))
        if not holds(~wrong):
            values = sorted(set(labels[wrong].tolist()))[:10]
            raise UsageError(
                f"Labels must be 0 to {classes - 1} (K = {classes}), or 255 for unlabelled; found also {values}."
            )
        if classes > IGNORE and not holds(labels != IGNORE):
            raise UsageError(
                f"Labels hold {IGNORE}, which means unlabelled and, as K = {classes}, is a class too. At most {IGNORE} "
                "classes can be told from pixels without a label: join some."
            )


def check_scores(scores: Tensor, name: str, *, spatial: bool = True) -> None:
    """``scores`` (logits, probabilities or unaries) must be (B, K, *S), K >= 2, and floating point.

    Values are not looked at: on a GPU that would wait for the network in every step.
    """
    if not isinstance(scores, Tensor) or not scores.is_floating_point():
        kind = scores.dtype if isinstance(scores, Tensor) else type(scores).__name__
        raise UsageError(f"{name} must be a floating-point tensor; got {kind}.")
    if scores.ndim < (3 if spatial else 2):
        expected = "(B, K, *S)" if spatial else "(B, K) or (B, K, *S)"
        raise UsageError(f"{name} must have the shape {expected}; got {tuple(scores.shape)}.")
    if scores.shape[1] < 2:
        raise UsageError(
            f"{name} has K = {scores.shape[1]} class. Segmentation needs at least two: background counts as one "
            "(turn a single foreground logit z into the pair (0, z))."
        )


def check_finite(values: Tensor, name: str, way_out: str = "") -> None:
    """``values`` must be free of NaN and infinities."""
    # One reduction instead of a mask: a sum of finite numbers can overflow, so only a suspicious sum is looked into.
    if not holds(torch.isfinite(values.detach().sum())) and not holds(torch.isfinite(values)):
        bad = int((~torch.isfinite(values)).sum())
        raise UsageError(f"{name} holds {bad} values that are NaN or infinite. {way_out}".rstrip())


LARGEST = 1e30
"""The largest weight of a term: float32 has multiples of it."""


def check_entropy(entropy: float | Tensor, *, positive: bool = False) -> None:
    """The weight of an entropy must be a number of 0 to 1e30, or above 0 if it is to be ``positive``."""
    if isinstance(entropy, Tensor) and entropy.ndim == 0:
        entropy = entropy.item()
    if isinstance(entropy, Real) and not isinstance(entropy, bool):
        if 0 <= entropy <= LARGEST and (entropy > 0 or not positive):
            return
        if LARGEST < entropy < float("inf"):
            raise UsageError(f"entropy must be at most 1e30; got {entropy}.")
    raise UsageError(f"entropy must be finite and {'positive' if positive else 'not negative'}; got {entropy!r}.")


def check_costs(unary: Tensor) -> None:
    """``unary`` must be finite, and small enough for sums over many pixels."""
    way_out = "To forbid a label use allowed=, to give a pixel's label use fixed=."
    check_finite(unary, "unary", way_out)
    dtype = at_least_float32(unary[:0]).dtype
    limit = 1e-8 * torch.finfo(dtype).max
    if not holds(unary.detach().abs().amax() <= limit):
        raise UsageError(
            f"unary holds costs of up to {float(unary.detach().abs().amax()):.3g}, whose sums {dtype} cannot hold: at "
            f"most {limit:.3g} will do. {way_out}"
        )


def check_not_negative(**settings: float) -> None:
    """Each of ``settings`` must be finite and not negative."""
    for name, value in settings.items():
        if not 0 <= value < float("inf"):
            raise UsageError(f"{name} must be finite and not negative; got {value}.")


def check_at_least_one(**settings: int) -> None:
    """Each of ``settings``, which are counts, must be at least 1."""
    for name, value in settings.items():
        if value < 1:
            raise UsageError(f"{name} must be at least 1; got {value}.")


def check_seed(seed: int) -> None:
    """A seed must be a whole number that all random generators take."""
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**64:
        raise UsageError(f"seed must be a whole number from 0 to 2^64 - 1; got {seed!r}.")


def check_choice(choices: Collection[str], **settings: str) -> None:
    """Each of ``settings`` must be one of ``choices``."""
    for name, value in settings.items():
        if value not in choices:
            raise UsageError(f"{name} must be one of {', '.join(choices)}; got {value!r}.")


def at_least_float32(values: Tensor) -> Tensor:
    """``values`` in float32, or in float64 if they are: energies are never computed in half precision."""
    return values if values.dtype == torch.float64 else values.float()
