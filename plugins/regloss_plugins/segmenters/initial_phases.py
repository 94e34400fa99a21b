"""Phases to start from, by name: by colours, by saliency, by place, or at random."""

from __future__ import annotations

import torch
from torch import Tensor

from regloss.errors import UsageError
from regloss.segmenter import check_phases, checked_start
from regloss_plugins.segmenters.k_means import phases_by_color
from regloss_plugins.segmenters.saliency import SALIENCIES, phases_by_saliency

STARTS = ("color", *SALIENCIES, "centre", "random")


def start_labels(image: Tensor, phases: int, start: Tensor | str | None, seed: int = 0) -> Tensor:
    """Phases (1, *S) int64 to start from.

    Args:
        image: (1, C, *S) in [0, 1].
        phases: K.
        start: (1, *S) phases, 255 = no opinion; or "color" (k-means), "border-contrast" or "spectral-residual"
            (saliency, two phases), "centre" (an ellipse in the middle, two phases), "random"; None = "color".
        seed: of what is random.

    Raises:
        UsageError: the image has fewer colours than there are phases, or is of one colour; a start of another size, of
            one phase only, or by a name that is none or is for two phases.
    """
    check_phases(phases)
    by_color = phases_by_color(image, phases, seed=seed)  # refuses images of too few colours, whatever the start
    if start is None or (isinstance(start, str) and start == "color"):
        return by_color
    shape = (1, *image.shape[2:])
    if isinstance(start, Tensor):
        return checked_start(start, shape, phases, image.device)[0]
    if start not in STARTS:
        raise UsageError(
            f"start must hold phases, in a tensor or in a PNG of indices, or be one of {', '.join(STARTS)}; "
            f"got {start!r}."
        )
    if start == "random":
        generator = torch.Generator().manual_seed(seed)
        return torch.randint(phases, shape, generator=generator).to(image.device)
    if phases != 2:
        raise UsageError(f'The start {start!r} is for two phases; there are {phases}. Use "color" or "random".')
    if start == "centre":
        return _ellipse(shape[1:]).to(image.device).unsqueeze(0)
    return phases_by_saliency(image, start)


def _ellipse(size: tuple[int, ...]) -> Tensor:
    """(*S) int64: 1 in an ellipse in the middle, whose axes are 3/4 of the image's."""
    axes = [(torch.arange(length) + 0.5) / length - 0.5 for length in size]
    squares = [(axis / 0.375).square() for axis in axes]
    grids = torch.meshgrid(*squares, indexing="ij")
    return (torch.stack(grids).sum(0) < 1).long()
