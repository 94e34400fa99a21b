"""Geometry of augmentation: one affine map from output to source pixels, the same for image, labels, proposals.

A crop, flip, magnification and rotation are sampled once as a `Geometry`; each array is then read through the same map:
images bilinearly, labels at the nearest pixel. Where the map leaves the source the region of interest is False, so
padding is never mistaken for "unlabelled". Flips and shifts alone read source pixels exactly, without interpolation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch import Tensor

from regloss.training.config import Augment


@dataclass(frozen=True)
class Geometry:
    """Output pixel p reads the source at matrix @ p + shift (pixel units, array-axis order).

    Attributes:
        size: output size, one number an axis.
        matrix: (n, n) rows of numbers.
        shift: n numbers.
    """

    size: tuple[int, ...]
    matrix: tuple[tuple[float, ...], ...]
    shift: tuple[float, ...]

    @property
    def exact(self) -> bool:
        """Whether every output pixel falls on a source pixel."""
        return all(value == int(value) for row in (*self.matrix, self.shift) for value in row)


def identity(size: tuple[int, ...]) -> Geometry:
    """The whole image, unchanged."""
    n = len(size)
    return Geometry(size, tuple(tuple(float(i == j) for j in range(n)) for i in range(n)), (0.0,) * n)


def sample_geometry(
    source: tuple[int, ...], crop: tuple[int, ...] | None, augment: Augment, seed: list[int]
) -> Geometry:
    """Draw a geometry; the same seed gives the same one.

    Args:
        source: size of the source, one number an axis (two or three; rotation turns the last two).
        crop: output size; None = the source's.
        augment: what to draw from.
        seed: integers, for example (run seed, epoch, index).
    """
    rng = np.random.default_rng(seed)
    ndim = len(source)
    size = source if crop is None else crop
    flips = [False] * ndim
    flips[-1] = augment.flip and bool(rng.random() < 0.5)
    flips[-2] = augment.flip_vertical and bool(rng.random() < 0.5)
    scale = math.exp(rng.uniform(math.log(augment.scale[0]), math.log(augment.scale[1])))
    angle = math.radians(rng.uniform(-augment.rotate, augment.rotate))
    matrix = np.eye(ndim)
    if angle != 0:
        matrix[-2:, -2:] = [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
    matrix = matrix @ np.diag([-1.0 if flip else 1.0 for flip in flips]) / scale
    on_grid = scale == 1 and angle == 0
    shift = []
    centre_out = (np.array(size) - 1) / 2
    for axis in range(ndim):
        # The crop covers `extent` source pixels; its place is uniform where it fits, centred where it does not.
        extent = size[axis] / scale
        free = source[axis] - extent
        start = rng.uniform(0, free) if free > 0 else free / 2
        shift.append(start + (extent - 1) / 2)
    offset = np.array(shift) - matrix @ centre_out
    if on_grid:
        offset = np.floor(offset + 0.5)
    return Geometry(size, tuple(map(tuple, matrix.tolist())), tuple(offset.tolist()))


def crop_coverage(source: tuple[int, ...], crop: int | tuple[int, ...] | None) -> npt.NDArray[np.float64]:
    """The share of the places of a crop at which it holds each pixel, before magnification and rotation.

    Args:
        source: size of the source, one number an axis.
        crop: output size, a number or one an axis; None = the source's.

    Returns:
        (*S), values in (0, 1]; its mean is the share of the source that a crop holds.

    >>> crop_coverage((4,), 2)
    array([0.33333333, 0.66666667, 0.66666667, 0.33333333])
    """
    lengths = source if crop is None else (crop,) * len(source) if isinstance(crop, int) else crop
    coverage = np.ones(())
    for axis_length, length in zip(source, lengths, strict=True):
        places = max(axis_length - length, 0) + 1
        pixel = np.arange(axis_length)
        held = np.minimum(pixel, places - 1) - np.maximum(pixel - length + 1, 0) + 1
        coverage = np.multiply.outer(coverage, held / places)
    return coverage


def _source_positions(geometry: Geometry) -> Tensor:
    """(n, *size) float64 source coordinates of each output pixel."""
    axes = [torch.arange(length, dtype=torch.float64) for length in geometry.size]
    positions = torch.stack(torch.meshgrid(*axes, indexing="ij")).flatten(1)
    matrix = torch.tensor(geometry.matrix, dtype=torch.float64)
    moved = matrix @ positions + torch.tensor(geometry.shift, dtype=torch.float64).unsqueeze(1)
    return moved.reshape(-1, *geometry.size)


class AppliedGeometry:
    """A geometry prepared for one source size: positions are computed once and every array is read through them."""

    def __init__(self, geometry: Geometry, source: tuple[int, ...]) -> None:
        self.geometry = geometry
        self.source = source
        self.positions = _source_positions(geometry)
        # Round half up, always: torch.round goes to the even pixel, so two neighbours could read the same source.
        nearest = torch.floor(self.positions + 0.5).long()
        limits = torch.tensor(source).reshape(-1, *[1] * len(source))
        self.inside = ((nearest >= 0) & (nearest < limits)).all(0)
        self.nearest = tuple(nearest.clamp_(min=0).minimum(limits - 1))

    def labels(self, labels: Tensor, outside: int) -> Tensor:
        """``labels`` (*S) at the nearest source pixel; ``outside`` beyond the source."""
        return labels[self.nearest].masked_fill(~self.inside, outside)

    def image(self, image: Tensor) -> Tensor:
        """``image`` (C, *S) bilinearly (trilinearly); 0 beyond the source."""
        if self.geometry.exact:
            return image[(slice(None), *self.nearest)] * self.inside
        scale = torch.tensor([2.0 / length for length in self.source], dtype=torch.float64)
        unit = (self.positions.movedim(0, -1) + 0.5) * scale - 1
        grid = unit.flip(-1).to(image.dtype).unsqueeze(0)  # grid_sample wants (x, y), the last axis first
        sampled = F.grid_sample(image.unsqueeze(0), grid, mode="bilinear", padding_mode="border", align_corners=False)
        return sampled[0].clamp(0, 1) * self.inside


def photometric(image: Tensor, augment: Augment, seed: list[int]) -> Tensor:
    """Brightness and contrast of ``image`` (C, *S), clipped to [0, 1]; the same seed gives the same change."""
    if augment.brightness == 0 and augment.contrast == 0:
        return image
    rng = np.random.default_rng([*seed, 1])
    contrast = 1 + rng.uniform(-augment.contrast, augment.contrast)
    brightness = rng.uniform(-augment.brightness, augment.brightness)
    mean = image.mean()
    return ((image - mean) * contrast + mean + brightness).clamp(0, 1)
