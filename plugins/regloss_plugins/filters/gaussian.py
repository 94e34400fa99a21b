"""Gaussian filtering in places and colours at once: one interface, several backends.

    (W v)_p = sum over q of w_pq v_q,   w_pq = exp(-|p - q|^2 / (2 sigma_xy^2) - |I_p - I_q|^2 / (2 sigma_rgb^2))

over the pixels of the region of interest, w_pp = 1 included. W is symmetric, so a filter is its own adjoint and serves
forward and backward passes alike; it is positive semidefinite; its entries are not negative. That holds for every
backend, and the energies built on a filter are exact for *its* W. The backends:

    "exact"    the sum itself, tile by tile; time grows with the square of the pixels, memory does not; on any device
    "lattice"  splines on a lattice (`regloss_plugins.kernels.lattice`), whose time and memory grow with the pixels. On
               the CPU compiled code builds it and filters; images and values on a CUDA device stay there
               (`regloss_plugins.kernels.lattice_matrices`); those on any other, MPS for one, which has no products
               with sparse rows, go to the CPU and back
    "auto"     "exact" on a GPU, for at most 1024 pixels, and for more than 3 channels; otherwise "lattice"

How near the lattice comes is a matter of ``accuracy``. Relative error (root of the mean square) of filtered class
probabilities on a photograph of 500x375 pixels, by sigma_xy and 255 sigma_rgb:

    accuracy     80, 13    100, 15    20, 13    10, 30
    "fast"        .076       .083      .090      .099
    "fine"        .016       .017      .012      .015
    "finest"      .009       .008      .007      .006
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor

from regloss.checks import at_least_float32, check_choice, check_finite, check_roi
from regloss.dispatch import find
from regloss.errors import UsageError
from regloss.numerics import double
from regloss_plugins.kernels.lattice import SplineLattice
from regloss_plugins.kernels.lattice_matrices import LatticeMatrices, filters_on
from regloss_plugins.kernels.lattice_points import LatticePoints, lattice_points
from regloss_plugins.kernels.lattice_splines import LatticeTooLarge, Splines

Backend = Literal["auto", "exact", "lattice"]
BACKENDS: tuple[Backend, ...] = ("auto", "exact", "lattice")

Built = TypeVar("Built")

Accuracy = Literal["fast", "fine", "finest"]
# Splines of the colour axes, and of the spatial ones, which cost little and may be finer.
_ACCURACIES: dict[str, tuple[Splines, Splines]] = {
    "fast": (Splines(1, 1.2, 1, 3), Splines(1, 1.2, 1, 6)),
    "fine": (Splines(2, 1.0, 1, 12), Splines(2, 0.8, 2, 12)),
    "finest": (Splines(3, 0.8, 2, 24), Splines(3, 0.8, 2, 20)),
}
ACCURACIES = tuple(_ACCURACIES)

# Up to here the exact sum takes about as long as building a lattice and filtering twice.
_EXACT_PIXELS = 1024
_LATTICE_CHANNELS = 3
_TILE = {"cpu": 2048, "cuda": 8192}


class GaussianFilter(ABC):
    """W of a batch of images. Call it to filter; the result is differentiable to any order.

    Attributes:
        shape: (B, *S) of the images.
    """

    # ---- what must be defined

    @abstractmethod
    def filtered(self, values: Tensor) -> Tensor:
        """W ``values``, without autograd; ``values`` (B, K, *S) are float32 or float64 and fit."""

    @abstractmethod
    def select(self, images: Tensor) -> GaussianFilter:
        """The filter of the images with the indices ``images`` (M,) alone; what was computed for them is shared."""

    # ---- what should not be redefined

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape

    def __call__(self, values: Tensor) -> Tensor:
        """W ``values`` (B, K, *S), each channel for itself, in float32 at least; 0 outside the region of interest.

        Raises:
            UsageError: the shape does not fit the images.
        """
        if not values.is_floating_point() or (values.shape[0], *values.shape[2:]) != self.shape:
            raise UsageError(
                f"A filter bound to images with (B, *S) = {self.shape} takes floating-point values (B, K, *S); got "
                f"{values.dtype} of shape {tuple(values.shape)}."
            )
        result: Tensor = _Filtering.apply(at_least_float32(values), self)  # type: ignore[no-untyped-call]
        return result


class _Filtering(torch.autograd.Function):
    """W is symmetric, so the backward pass is the filter again, and so is the backward pass of that."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, bound: GaussianFilter) -> Tensor:
        ctx.bound = bound
        with torch.autocast(values.device.type, enabled=False):
            return bound.filtered(values)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _Filtering.apply(gradient, ctx.bound), None  # type: ignore[no-untyped-call]


class ExactFilter(GaussianFilter):
    """The sum itself over tiles of pixel pairs, each weight computed once for both its directions; on any device.

    Weights come from products of feature vectors. Where float32 would lose them (bandwidths far below the image's
    range), the products are computed in float64, by the CPU where the device knows none. Float32 values on a CUDA
    device are filtered by one pass of a kernel (`regloss_plugins.kernels.gaussian_sums_triton`) that takes differences
    of features and stores no weights.

    Args:
        features: (B, F, *S), already over their bandwidths, float32 or float64.
        roi: (B, *S) bool, or None.
    """

    def __init__(self, features: Tensor, roi: Tensor | None) -> None:
        super().__init__((features.shape[0], *features.shape[2:]))
        flat = features.flatten(2)
        everywhere = torch.arange(flat.shape[2], device=features.device)
        inside = [everywhere if roi is None else mask.flatten().nonzero().squeeze(1) for mask in _masks(roi, flat)]
        self._images = [(chosen, f[:, chosen].T.contiguous()) for f, chosen in zip(flat, inside, strict=True)]
        self._tile = _TILE["cuda" if features.is_cuda else "cpu"]

    def select(self, images: Tensor) -> ExactFilter:
        """Some of the images alone."""
        some = copy.copy(self)
        some.shape = (len(images), *self.shape[1:])
        some._images = [self._images[image] for image in images.tolist()]
        return some

    def filtered(self, values: Tensor) -> Tensor:
        """One image after the other."""
        result = torch.zeros_like(values)
        flat, into = values.flatten(2), result.view(*values.shape[:2], -1)
        fast = find("gaussian-sums", device=values.device)
        for image, (chosen, features) in enumerate(self._images):
            kept, features = flat[image][:, chosen].T.contiguous(), features.to(values.device)  # (N, K), (N, F)
            sums = None if fast is None else fast(features, kept)
            into[image][:, chosen] = (self._product(features, kept) if sums is None else sums).T
        return result

    def _product(self, features: Tensor, values: Tensor) -> Tensor:
        left, right = _augmented(features)
        result = torch.zeros_like(values)
        starts = range(0, len(values), self._tile)
        for begin in starts:
            rows = slice(begin, begin + self._tile)
            for other in starts:
                if other < begin:
                    continue
                columns = slice(other, other + self._tile)
                weights = (left[rows] @ right[columns].T).clamp_(max=0).exp_().to(values)
                if begin == other:
                    weights.fill_diagonal_(1)
                    result[rows] += weights @ values[rows]
                else:
                    result[rows] += weights @ values[columns]
                    result[columns] += weights.T @ values[rows]
        return result


def _masks(roi: Tensor | None, flat: Tensor) -> list[Tensor]:
    return [flat[0]] * len(flat) if roi is None else list(roi)


def _augmented(features: Tensor) -> tuple[Tensor, Tensor]:
    """Two matrices (N, F + 2) whose rows' inner products are -|f_p - f_q|^2 / 2."""
    features = features - features.mean(0)
    squared = features.square().sum(1, keepdim=True) / 2
    if features.dtype == torch.float32 and float(squared.max()) * torch.finfo(torch.float32).eps > 1e-5:
        return _augmented(double(features))
    ones = torch.ones_like(squared)
    return torch.cat([features, -squared, -ones], 1), torch.cat([features, ones, squared], 1)


class LatticeFilter(GaussianFilter):
    """Splines on a lattice, an approximation.

    It is built where the values are, at binding for those on the image's device, and kept. Values on the CPU are
    filtered by compiled code, images in parallel if torch has several threads; values on a CUDA device by sparse
    matrices, image after image; values on any other device are taken to the CPU and back.

    Args:
        features: (B, C, *S), already over their bandwidths, float32 or float64.
        sigma: bandwidth of places along each axis in pixels; all inf = they do not matter.
        roi: (B, *S) bool, or None.
        accuracy: "fast", "fine" or "finest".

    Raises:
        UsageError: the lattice would not fit into memory.
    """

    def __init__(self, features: Tensor, sigma: Sequence[float], roi: Tensor | None, accuracy: Accuracy) -> None:
        super().__init__((features.shape[0], *features.shape[2:]))
        regions: Sequence[Tensor | None] = [None] * len(features) if roi is None else list(roi)
        self._images = [
            _LatticeImage(one, tuple(sigma), region, *_ACCURACIES[accuracy])
            for one, region in zip(features.detach(), regions, strict=True)
        ]
        for image in self._images:
            image.build(features.device)

    def select(self, images: Tensor) -> LatticeFilter:
        """Some of the images alone."""
        some = copy.copy(self)
        some.shape = (len(images), *self.shape[1:])
        some._images = [self._images[image] for image in images.tolist()]
        return some

    def filtered(self, values: Tensor) -> Tensor:
        """One image after the other, or several at once."""
        if filters_on(values.device):
            pairs = zip(self._images, values.detach().flatten(2), strict=True)
            return torch.stack([image.by_matrices(given) for image, given in pairs]).reshape(values.shape)
        flat = values.detach().cpu().flatten(2).numpy()
        workers = min(len(flat), torch.get_num_threads())
        if workers > 1:
            with ThreadPoolExecutor(workers) as pool:
                results = list(pool.map(lambda image, given: image.lattice(given), self._images, flat))
        else:
            results = [image.lattice(given) for image, given in zip(self._images, flat, strict=True)]
        stacked = torch.from_numpy(results[0][None] if len(results) == 1 else np.stack(results))
        return stacked.reshape(values.shape).to(values)


class _LatticeImage:
    """The lattice of one image, for the devices and precisions that it was asked for.

    Args:
        features: (C, *S), already over their bandwidths.
        sigma: see `LatticeFilter`.
        region: (*S) bool; None = everywhere.
        colours: how the features' axes are approximated.
        grid: how the spatial axes are.
    """

    def __init__(
        self, features: Tensor, sigma: tuple[float, ...], region: Tensor | None, colours: Splines, grid: Splines
    ) -> None:
        self.features, self.sigma, self.region, self.splines = features, sigma, region, (colours, grid)
        self.matrices: dict[tuple[torch.device, torch.dtype], LatticeMatrices] = {}

    def build(self, device: torch.device) -> None:
        """What values on ``device`` are filtered by."""
        if filters_on(device):
            self._matrices(device, self.features.dtype)
        else:
            _ = self.lattice

    @cached_property
    def lattice(self) -> SplineLattice:
        """The compiled one."""
        features, places, pixels = (part.numpy() for part in self._chosen(torch.device("cpu")))
        return _fitting(lambda: SplineLattice(features, places, pixels, self.sigma, *self.splines))

    def by_matrices(self, values: Tensor) -> Tensor:
        """W ``values`` (K, pixels), in their precision."""
        # In the greater of both precisions, as the compiled code computes.
        dtype = torch.promote_types(values.dtype, self.features.dtype)
        return self._matrices(values.device, dtype)(values.to(dtype)).to(values.dtype)

    def _matrices(self, device: torch.device, dtype: torch.dtype) -> LatticeMatrices:
        if (device, dtype) not in self.matrices:
            points: LatticePoints = _fitting(lambda: lattice_points(*self._chosen(device), self.sigma, *self.splines))
            self.matrices[device, dtype] = LatticeMatrices(points, math.prod(self.features.shape[1:]), dtype)
        return self.matrices[device, dtype]

    def _chosen(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Features (N, C), places (N, D) and numbers (N,) of the pixels that count, on ``device``."""
        features = self.features.to(device)
        size = features.shape[1:]
        inside = torch.ones(size, dtype=torch.bool, device=device) if self.region is None else self.region.to(device)
        return features[:, inside].T, inside.nonzero(), inside.flatten().nonzero().squeeze(1)


def _fitting(build: Callable[[], Built]) -> Built:
    try:
        return build()
    except LatticeTooLarge as error:
        raise UsageError(str(error)) from error


def gaussian_filter(
    image: Tensor,
    sigma_xy: float | Sequence[float],
    sigma_rgb: float,
    roi: Tensor | None = None,
    *,
    backend: Backend = "auto",
    accuracy: Accuracy = "fine",
) -> GaussianFilter:
    """The filter of a batch of images; what depends on the images alone is computed here.

    Args:
        image: (B, C, *S) colours or any other features of pixels, one to three spatial axes, finite.
        sigma_xy: bandwidth of places in pixels, > 0, or one for each spatial axis; inf = places do not matter.
        sigma_rgb: bandwidth of features in the image's units, > 0; inf = they do not matter.
        roi: (B, *S) bool, pixels that count, at least one in each image; None = all.
        backend: "exact", "lattice", or "auto".
        accuracy: of the lattice: "fast", "fine" or "finest"; see the module for errors.

    Raises:
        UsageError: a width that is not positive, an image with NaN, an empty region, an unknown backend or accuracy,
            or a lattice that would not fit into memory.

    >>> image = torch.tensor([[[[0.0, 0.0, 1.0]]]])
    >>> gaussian_filter(image, sigma_xy=math.inf, sigma_rgb=0.5)(torch.ones(1, 1, 1, 3))
    tensor([[[[2.1353, 2.1353, 1.2707]]]])
    """
    for name, sigma in (("sigma_xy", sigma_xy), ("sigma_rgb", sigma_rgb)):
        for one in sigma if isinstance(sigma, Sequence) else (sigma,):
            if not one > 0:
                raise UsageError(f"{name} must be positive (inf = it does not matter); got {sigma}.")
    if not isinstance(image, Tensor) or not image.is_floating_point() or not 3 <= image.ndim <= 5 or not image.numel():
        found = f"{image.dtype} of shape {tuple(image.shape)}" if isinstance(image, Tensor) else type(image).__name__
        raise UsageError(f"An image must be a floating-point tensor (B, C, *S) with 1 to 3 spatial axes; got {found}.")
    check_finite(image, "The image to filter by")
    shape = (image.shape[0], *image.shape[2:])
    check_roi(roi, shape)
    check_choice(BACKENDS, backend=backend)
    check_choice(ACCURACIES, accuracy=accuracy)
    features = at_least_float32(image.detach()) / sigma_rgb
    if math.isinf(sigma_rgb):
        features = features[:, :0]
    if backend == "auto":
        small = math.prod(shape[1:]) <= _EXACT_PIXELS
        backend = "exact" if image.is_cuda or small or features.shape[1] > _LATTICE_CHANNELS else "lattice"
    widths = tuple(sigma_xy) if isinstance(sigma_xy, Sequence) else (sigma_xy,) * (len(shape) - 1)
    if len(widths) != len(shape) - 1 or len({math.isinf(width) for width in widths}) > 1:
        raise UsageError(f"sigma_xy must be one number, or a finite one for each spatial axis; got {sigma_xy}.")
    if backend == "lattice":
        return LatticeFilter(features, widths, roi, accuracy)
    if not math.isinf(widths[0]):
        axes = [torch.arange(size, device=image.device, dtype=features.dtype) for size in shape[1:]]
        axes = [axis / width for axis, width in zip(axes, widths, strict=True)]
        places = torch.stack(torch.meshgrid(*axes, indexing="ij"))
        features = torch.cat([features, places.expand(shape[0], *places.shape)], 1)
    return ExactFilter(features, roi)
