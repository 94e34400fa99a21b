"""Checks of what users pass in, shared by the nouns. Each raises `UsageError` with both sides and the way out."""

from __future__ import annotations

import torch
from torch import Tensor

from regloss.dataset import IGNORE
from regloss.errors import UsageError


def check_image(image: Tensor) -> None:
    """``image`` must be (B, C, *S) with one to three spatial axes, floating point, finite, in [0, 1]."""
    if not isinstance(image, Tensor) or not image.is_floating_point():
        kind = image.dtype if isinstance(image, Tensor) else type(image).__name__
        raise UsageError(
            f"An image must be a floating-point tensor with values in [0, 1]; got {kind}. Divide bytes by 255."
        )
    if not 3 <= image.ndim <= 5 or image.numel() == 0:
        raise UsageError(f"An image must have the shape (B, C, *S) with 1 to 3 spatial axes; got {tuple(image.shape)}.")
    low, high = (float(value) for value in image.detach().aminmax())
    # aminmax propagates NaN, so one comparison that is false for NaN covers all of it; the margin is float16 rounding.
    if not (low >= -1e-3 and high <= 1 + 1e-3):
        count = int((~torch.isfinite(image)).sum())
        found = f"{count} values that are not finite" if count else f"values from {low:.4g} to {high:.4g}"
        raise UsageError(
            f"Image values must lie in [0, 1], because bandwidths are declared in those units; got {found}. "
            "Rescale the image (bytes: divide by 255), and normalise only what the network sees."
        )


def check_roi(roi: Tensor | None, shape: tuple[int, ...]) -> None:
    """``roi`` must be None, or (B, *S) bool with at least one pixel in every image."""
    if roi is None:
        return
    if roi.dtype != torch.bool:
        raise UsageError(f"A region of interest must be a bool tensor; got {roi.dtype}.")
    if tuple(roi.shape) != shape:
        raise UsageError(f"A region of interest must have the image's shape {shape} (B, *S); got {tuple(roi.shape)}.")
    if not bool(roi.flatten(1).any(1).all()):
        raise UsageError("A region of interest is empty in at least one image of the batch. Drop that image.")


def check_labels(labels: Tensor, shape: tuple[int, ...], classes: int | None = None) -> None:
    """``labels`` must be (B, *S) integers: class indices below ``classes`` (if given), or 255."""
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise UsageError(f"Labels must be integers (int64; 255 = unlabelled); got {labels.dtype}.")
    if tuple(labels.shape) != shape:
        raise UsageError(f"Labels must have the image's shape {shape} (B, *S); got {tuple(labels.shape)}.")
    if classes is not None:
        wrong = (labels != IGNORE) & ((labels < 0) | (labels >= classes))
        if bool(wrong.any()):
            values = sorted(set(labels[wrong].tolist()))[:10]
            raise UsageError(
                f"Labels must be 0 to {classes - 1} (K = {classes}), or 255 for unlabelled; found also {values}."
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
    if not bool(torch.isfinite(values.detach().sum())) and not bool(torch.isfinite(values).all()):
        bad = int((~torch.isfinite(values)).sum())
        raise UsageError(f"{name} holds {bad} values that are NaN or infinite. {way_out}".rstrip())


def at_least_float32(values: Tensor) -> Tensor:
    """``values`` in float32, or in float64 if they are: energies are never computed in half precision."""
    return values if values.dtype == torch.float64 else values.float()
