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
from scipy import ndimage
from torch import Tensor

from regloss.errors import UsageError
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
    source: tuple[int, ...],
    crop: tuple[int, ...] | None,
    augment: Augment,
    seed: list[int],
    *,
    spacing: tuple[float, ...] | None = None,
    holds: tuple[int, ...] | None = None,
) -> Geometry:
    """Draw a geometry; the same seed gives the same one.

    Args:
        source: size of the source, one number an axis, two or three.
        crop: output size; None = the source's.
        augment: what to draw from.
        seed: integers, for example (run seed, epoch, index).
        spacing: of the source's pixels along each axis; None = 1. Of a volume, rotation turns the plane across the axis
            of the largest spacing, of equal ones the first; angles are those in mm.
        holds: a source pixel that the crop holds, before magnification and rotation; None = anywhere.

    Raises:
        UsageError: images are to be flipped along an axis that they do not have.
    """
    rng = np.random.default_rng(seed)
    ndim = len(source)
    flips = [False] * ndim
    flips[-1] = augment.flip and bool(rng.random() < 0.5)
    flips[-2] = augment.flip_vertical and bool(rng.random() < 0.5)
    if augment.flip_depth:
        if ndim < 3:
            raise UsageError("data.augment.flip-depth mirrors the first axis of volumes; these images have two axes.")
        flips[-3] = bool(rng.random() < 0.5)
    scale = math.exp(rng.uniform(math.log(augment.scale[0]), math.log(augment.scale[1])))
    angle = math.radians(rng.uniform(-augment.rotate, augment.rotate))
    turns = int(rng.integers(4)) if augment.quarter_turns else 0
    step = np.ones(ndim) if spacing is None else np.array(spacing)
    one, other = [axis for axis in range(ndim) if ndim == 2 or axis != int(np.argmax(step))]
    cosine, sine = math.cos(angle), math.sin(angle)
    for _ in range(turns):  # exactly: whole numbers stay whole
        cosine, sine = -sine, cosine
    matrix = np.eye(ndim)
    matrix[one, one] = matrix[other, other] = cosine
    matrix[one, other] = -sine * step[other] / step[one]
    matrix[other, one] = sine * step[one] / step[other]
    matrix = matrix @ np.diag([-1.0 if flip else 1.0 for flip in flips]) / scale
    on_grid = scale == 1 and angle == 0 and (turns % 2 == 0 or step[one] == step[other])
    lying = list(range(ndim))  # the axis of the output that lies along each axis of the source
    if turns % 2:
        lying[one], lying[other] = other, one
    size = tuple(source[axis] for axis in lying) if crop is None else crop
    shift = []
    centre_out = (np.array(size) - 1) / 2
    for axis in range(ndim):
        # The crop covers `extent` source pixels; its place is uniform where it fits, centred where it does not.
        extent = size[lying[axis]] / scale
        free = source[axis] - extent
        low, high = 0.0, free
        if holds is not None:
            low, high = max(low, holds[axis] - extent + 1), min(high, holds[axis])
        start = rng.uniform(low, high) if free > 0 else free / 2
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


def photometric(image: Tensor, augment: Augment, seed: list[int], spacing: tuple[float, ...] | None = None) -> Tensor:
    """Values of ``image`` (C, *S) changed, within [0, 1]; the same seed gives the same change.

    In this order: contrast, brightness, gamma, blur, low resolution, noise, as light, optics and sensor do.

    Args:
        image: in [0, 1].
        augment: what to draw from.
        seed: as of `sample_geometry`.
        spacing: of its pixels; blur and low resolution are those of the axes with the finest spacing.
    """
    rng = np.random.default_rng([*seed, 1])
    contrast = 1 + rng.uniform(-augment.contrast, augment.contrast)
    brightness = rng.uniform(-augment.brightness, augment.brightness)
    if augment.brightness or augment.contrast:
        mean = image.mean()
        image = ((image - mean) * contrast + mean + brightness).clamp(0, 1)
    if augment.gamma != (1, 1):
        image = image ** math.exp(rng.uniform(math.log(augment.gamma[0]), math.log(augment.gamma[1])))
    ndim = image.ndim - 1
    finer = np.ones(ndim) if spacing is None else min(spacing) / np.array(spacing)
    if augment.blur:
        blurred = ndimage.gaussian_filter(image.numpy(), (0, *(finer * rng.uniform(0, augment.blur))))
        image = torch.from_numpy(blurred).clamp(0, 1)
    if augment.low_resolution > 1:
        factor = rng.uniform(1, augment.low_resolution)
        size = [max(1, round(length / max(1, factor * f))) for length, f in zip(image.shape[1:], finer, strict=True)]
        mode = "bilinear" if ndim == 2 else "trilinear"
        small = F.interpolate(image.unsqueeze(0), size, mode="area")
        image = F.interpolate(small, image.shape[1:], mode=mode, align_corners=False)[0]
    noise = augment.noise
    if noise.gaussian[1]:
        spread = rng.uniform(*noise.gaussian)
        image = (image + torch.from_numpy(rng.normal(0, spread, image.shape)).to(image.dtype)).clamp(0, 1)
    for (low, high), value in ((noise.salt, 1.0), (noise.pepper, 0.0)):
        if high:
            image = image.masked_fill(torch.from_numpy(rng.random(image.shape[1:]) < rng.uniform(low, high)), value)
    return image
