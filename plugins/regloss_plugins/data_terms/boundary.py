"""Boundary loss: probabilities weighted by their signed distance from the true boundary.

    loss = (1 / N) sum over pixels p and classes k of  phi_k(p) S_k(p)

phi_k is negative inside class k of the given labels and positive outside. For one-hot S the loss, less its value at the
labels themselves, is the sum over wrongly classified pixels of their distance from the class's boundary: mistakes count
by how far off they are, and a small class counts as much as a large one. It is linear in S, says nothing of a class
that is absent, and is used beside cross entropy, with a weight that grows.

Distances run between centres of labelled pixels, less half a pixel: the boundary lies midway between two classes'
pixels. Pixels whose label is 255 are on neither side. Where a class is absent, or all there is, phi_k = 0.

Source: Kervadec, Bouchtiba, Desrosiers, Granger, Dolz, Ben Ayed, "Boundary loss for highly unbalanced segmentation",
MIDL 2019, whose phi is 0 at the pixels just inside the boundary and 1 just outside.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage
from torch import Tensor

from regloss.batch import Batch
from regloss.checks import at_least_float32
from regloss.data_term import DataTerm
from regloss.errors import UsageError
from regloss.grid import full_roi, spread
from regloss.numerics import widest_float
from regloss_plugins.data_terms.cross_entropy import given_labels


@dataclass(frozen=True)
class Boundary(DataTerm):
    """Mean over labelled pixels of distance times probability, summed over classes; for dense labels.

    Args:
        classes: which classes count; None = all but the background, 0.
        unit: of the distances: "pixels", or "diagonal", fractions of the diagonal of the region of interest (of the box
            around it), which do not depend on resolution.

    Raises:
        UsageError: no labels in the batch, classes that do not exist or none at all.

    Class 1 predicted where class 0 is labelled, at pixels that are 1.5 and .5 pixels from the boundary:

    >>> labels = torch.tensor([[[0, 0, 1, 1]]])
    >>> wrong = torch.tensor([[50.0, 50, -50, -50], [-50, -50, 50, 50]]).flip(0).reshape(1, 2, 1, 4)
    >>> Boundary(unit="pixels")(wrong, Batch(torch.zeros(1, 1, 1, 4), labels))
    (tensor([2.]), tensor([4.]))
    """

    classes: Sequence[int] | None = None
    unit: Literal["pixels", "diagonal"] = "pixels"
    needs_image: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.unit not in ("pixels", "diagonal"):
            raise UsageError(f'unit of boundary must be "pixels" or "diagonal"; got {self.unit!r}.')
        if self.classes is not None:
            object.__setattr__(self, "classes", tuple(self.classes))
            if not self.classes or len(set(self.classes)) < len(self.classes):
                raise UsageError(f"classes of boundary must be different, and at least one; got {list(self.classes)}.")

    def __call__(self, logits: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Sums (B,) and numbers of labelled pixels (B,)."""
        labels, counts = given_labels(logits, batch)
        chosen = tuple(range(1, logits.shape[1])) if self.classes is None else self.classes
        if not all(0 <= k < logits.shape[1] for k in chosen):
            raise UsageError(f"classes of boundary must lie in 0..{logits.shape[1] - 1}; got {list(chosen)}.")
        distances = signed_distances(labels, counts > 0, chosen)
        if self.unit == "diagonal":
            distances = distances / spread(_diagonals(full_roi(batch.roi, batch.shape, labels.device)), distances)
        probabilities = at_least_float32(logits).softmax(1)[:, list(chosen)]
        return (probabilities * distances.to(probabilities)).flatten(1).sum(1), counts.flatten(1).sum(1)


def signed_distances(labels: Tensor, known: Tensor, classes: Sequence[int]) -> Tensor:
    """Distances (B, len(classes), *S) in pixels to each class's boundary, negative inside; 0 where not known.

    Args:
        labels: (B, *S) integers.
        known: (B, *S) bool, pixels whose label counts.
        classes: which.

    >>> signed_distances(torch.tensor([[0, 1, 1]]), torch.ones(1, 3, dtype=torch.bool), [1])
    tensor([[[ 0.5000, -0.5000, -1.5000]]], dtype=torch.float64)
    """
    distances: Tensor = _signed_distances(labels, known, list(classes))
    return distances


_SCHEMA = "(Tensor labels, Tensor known, int[] classes) -> Tensor"


@torch.library.custom_op("regloss::signed_distances", mutates_args=(), schema=_SCHEMA)
def _signed_distances(labels: Tensor, known: Tensor, classes: list[int]) -> Tensor:
    # One operation to compilers, which cannot look into scipy.
    values, given = labels.cpu().numpy(), known.cpu().numpy()
    found = np.zeros((labels.shape[0], len(classes), *labels.shape[1:]))
    for image in range(labels.shape[0]):
        for place, k in enumerate(classes):
            inside = (values[image] == k) & given[image]
            outside = given[image] & ~inside
            if inside.any() and outside.any():
                found[image, place] = _to(inside) * outside - _to(outside) * inside
    return torch.from_numpy(found).to(labels.device, widest_float(labels.device))


@_signed_distances.register_fake
def _(labels: Tensor, known: Tensor, classes: list[int]) -> Tensor:
    size = labels.shape[0], len(classes), *labels.shape[1:]
    return torch.empty(size, dtype=widest_float(labels.device), device=labels.device)


def _diagonals(region: Tensor) -> Tensor:
    """Lengths (B,) of the diagonals of the boxes around a region (B, *S)."""
    squares = torch.zeros(region.shape[0], dtype=torch.int64, device=region.device)
    for axis in range(1, region.ndim):
        others = [other for other in range(1, region.ndim) if other != axis]
        occupied = region.any(dim=others) if others else region
        place = torch.arange(region.shape[axis], device=region.device)
        low = torch.where(occupied, place, region.shape[axis]).amin(1)
        squares += (torch.where(occupied, place, -1).amax(1) + 1 - low).square()
    return squares.to(widest_float(region.device)).sqrt()


def _to(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """Distance of every pixel to the nearest one of the mask, less half a pixel."""
    distance: npt.NDArray[np.float64] = ndimage.distance_transform_edt(~mask) - 0.5
    return distance
