"""Denoising with a regularizer: the by-product of its saddle form.

    min over u of  1/2 sum over channels and pixels of (u - f)^2 + R(u)

for a noisy image f, without any constraint on u. With total variation this is the model of Rudin, Osher and Fatemi,
channel by channel; with nonlocal total variation pixels are drawn to those that look like them, wherever they are.
Any regularizer in saddle form will do whose constraints a real-valued image can meet.

The dual is max over y in Y of |f|^2 / 2 - |f - K^T y|^2 / 2 - <b, y>, with u = f - K^T y, and certifies the result:

    |u - u*|^2 / 2 <= gap

Source: Rudin, Osher, Fatemi, "Nonlinear total variation based noise removal algorithms", 1992; Chambolle, "An algorithm
for total variation minimization and applications", 2004; Gilboa, Osher, "Nonlocal operators with applications to image
processing", 2008.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from regloss.checks import at_least_float32, check_finite
from regloss.errors import MissingForm, UsageError
from regloss.forms import Saddle
from regloss.registry import name_of, resolve
from regloss.regularizer import Regularizer, Term, combine
from regloss.solver import Callback, Problem, Solution, Solver


def denoise(
    image: Tensor,
    regularizer: Any,
    *,
    guide: Tensor | None = None,
    roi: Tensor | None = None,
    spacing: Sequence[float] | None = None,
    solver: Any = None,
    tolerance: float = 1e-5,
    max_steps: int = 1000,
    warm: Any = None,
    callback: Callback | None = None,
) -> Solution:
    """Remove noise from images: min over u of |u - image|^2 / 2 + R(u). No gradient flows through it.

    Args:
        image: (B, C, *S), any finite values.
        regularizer: "tv" or "nltv", with settings in a table or as an object, or any other in saddle form; a bound
            `Term` saves binding again. Channels take the place of classes. Its weight is the strength: the larger, the
            smoother, in units of image values.
        guide: (B, C', *S) in [0, 1], what the regularizer sees (graphs, edges); None = the image, cut to [0, 1].
        roi: (B, *S) bool; outside nothing is smoothed nor counted. None = everywhere.
        spacing: of neighbouring pixels along each axis in mm; None = 1.
        solver: one that can denoise, its name, or a table; None = pdhg with its momentum limited to 0.97, which gets to
            tolerances like the default one sooner. For far smaller ones take "pdhg" itself.
        tolerance: gap per pixel at which an image is done, >= 0: the squared distance to the minimiser is at most twice
            that per pixel, in units of squared image values; by default this is about 1/255.
        max_steps: largest number of steps, >= 1.
        warm: an earlier result for similar images, or its state, to start from.
        callback: called with each `regloss.solver.Progress`, at each look at the gap.

    Returns:
        The images, as ``image`` of a `Solution`, with their certificates; half the squared distance to the minimiser is
        at most the gap.

    Raises:
        UsageError: shapes disagree, values that are not finite, settings outside their range.
        MissingForm: the regularizer has no saddle form.

    >>> from regloss import TotalVariation
    >>> step = torch.tensor([0.1, -0.1, 0.1, 1.0, 0.8, 1.0]).reshape(1, 1, 1, 6)
    >>> denoise(step, TotalVariation(weight=0.3), tolerance=1e-10).image.round(decimals=3).squeeze()
    tensor([0.1330, 0.1330, 0.1330, 0.8330, 0.8330, 0.8330])
    """
    if not isinstance(image, Tensor) or not image.is_floating_point() or not 3 <= image.ndim <= 5:
        found = f"{image.dtype} of shape {tuple(image.shape)}" if isinstance(image, Tensor) else type(image).__name__
        raise UsageError(f"An image to denoise must be floating point of shape (B, C, *S); got {found}.")
    check_finite(image, "image", "Replace missing pixels, and leave them out by roi.")
    chosen = resolve("solver", {"name": "pdhg", "momentum": 0.97} if solver is None else solver)
    if not isinstance(chosen, Solver) or "square" not in chosen.smoothings:
        raise UsageError(f"Denoising needs a solver such as pdhg; {name_of(chosen)} minimises over labels only.")
    settings = {"tolerance": tolerance, "max_steps": max_steps}
    chosen = dataclasses.replace(chosen, **settings)  # type: ignore[type-var]
    if isinstance(warm, Tensor):
        raise UsageError("warm must be an earlier result or its state; got a tensor, which is no start for the dual.")
    values = at_least_float32(image.detach())
    with torch.no_grad(), torch.autocast(image.device.type, enabled=False):
        term = _bound(values, regularizer, guide, roi, spacing)
        if (values.shape[0], *values.shape[2:]) != term.shape:
            raise UsageError(f"image {tuple(image.shape)} does not fit the bound term, with (B, *S) = {term.shape}.")
        problem = Problem(
            form=_saddle(term),
            unary=-values,
            entropy=1.0,
            smoothing="square",
            roi=term.roi,
            warm=warm.state if isinstance(warm, Solution) else warm,
            callback=callback,
        )
        result = chosen.minimise(problem)
        violation = term.violation(result.probabilities)
    return dataclasses.replace(result, probabilities=result.probabilities.to(image.dtype), violation=violation)


def _bound(
    image: Tensor, regularizer: Any, guide: Tensor | None, roi: Tensor | None, spacing: Sequence[float] | None
) -> Term:
    if isinstance(regularizer, Term):
        if guide is not None or roi is not None or spacing is not None:
            raise UsageError("A bound term has its guide, region of interest and spacing already: give them to bind().")
        return regularizer
    chosen: Regularizer | None = combine(regularizer)
    if chosen is None:
        raise UsageError("Denoising needs a regularizer, such as tv.")
    return chosen.bind(image.clamp(0, 1) if guide is None else guide, roi, spacing)


def _saddle(term: Term) -> Saddle:
    if Saddle not in term.regularizer.forms:
        name = name_of(term.regularizer)
        raise MissingForm(f"Denoising needs a regularizer in saddle form, such as tv or nltv; {name} offers none.")
    return term.form(Saddle)
