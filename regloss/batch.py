"""Batch: images with whatever labels there are."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from regloss.checks import check_image, check_labels, check_roi, check_spacing
from regloss.dataset import IGNORE
from regloss.errors import UsageError


@dataclass(frozen=True)
class Batch:
    """A batch as the outer loops see it.

    Args:
        image: (B, C, *S) in [0, 1].
        labels: (B, *S) int64 class indices; 255 = unlabelled, still regularised. None where nothing is labelled.
        roi: (B, *S) bool region of interest; outside (padding, void) nothing counts. None = everywhere.
        ids: B sample ids, by which proposals are stored.
        spacing: distance between neighbouring pixels along each spatial axis in mm, of all images; None = not known,
            and every distance is in pixels.

    Raises:
        UsageError: shapes disagree, values are NaN or outside [0, 1], labels are not integers.

    >>> batch = Batch(torch.rand(2, 3, 8, 8), torch.full((2, 8, 8), 255))
    >>> batch.pixels
    tensor([64., 64.])
    """

    image: Tensor
    labels: Tensor | None
    roi: Tensor | None = None
    ids: Sequence[str] | None = None
    spacing: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        check_image(self.image)
        if self.labels is not None:
            check_labels(self.labels, self.shape)
        check_roi(self.roi, self.shape)
        object.__setattr__(self, "spacing", check_spacing(self.spacing, self.image.ndim - 2))
        if self.ids is not None and len(self.ids) != self.image.shape[0]:
            raise UsageError(f"A batch of {self.image.shape[0]} images needs as many ids; got {len(self.ids)}.")

    def to(self, device: torch.device | str) -> Batch:
        """The batch on ``device``; what has been checked is not looked at again, which would wait for the device."""
        return self._with_tensors(lambda values: values.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """The batch in page-locked memory, as a `torch.utils.data.DataLoader` asks for it."""
        return self._with_tensors(Tensor.pin_memory)

    def _with_tensors(self, change: Callable[[Tensor], Tensor]) -> Batch:
        made = copy.copy(self)
        for name in ("image", "labels", "roi"):
            values = getattr(self, name)
            if values is not None:
                object.__setattr__(made, name, change(values))
        return made

    @property
    def shape(self) -> tuple[int, ...]:
        """(B, *S)."""
        return (self.image.shape[0], *self.image.shape[2:])

    @property
    def pixels(self) -> Tensor:
        """(B,) number of pixels in the region of interest, as floats."""
        if self.roi is not None:
            return self.roi.flatten(1).sum(1).to(torch.float32)
        return torch.full((self.shape[0],), float(self.image[0, 0].numel()), device=self.image.device)

    @property
    def labelled(self) -> Tensor:
        """(B, *S) bool: pixels with a label, inside the region of interest."""
        if self.labels is None:
            return torch.zeros(self.shape, dtype=torch.bool, device=self.image.device)
        mask = self.labels != IGNORE
        return mask if self.roi is None else mask & self.roi
