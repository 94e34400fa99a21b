"""Sums over all pairs of pixels, weighted by a Gaussian of place and colour, as energies of segmentations need them.

    w_pq = exp(-|x_p - x_q|^2 / (2 sigma_xy^2) - |I_p - I_q|^2 / (2 sigma_rgb^2)) / ((2 pi)^(D/2) sigma_xy^D),   p != q

in D spatial dimensions. The divisor is the number of pixels that a spatial Gaussian covers, so that the degree of a
pixel, the sum of w_pq over q, lies between 0 and 1 (about) whatever the width; with a width that grows with the image,
a mean over pixels does not depend on resolution. Pairs of a pixel with itself never count.

With scale < 1, x_p and I_p are those of the block of pixels that p lies in (1/scale long; mean colour), within the
region of interest, from whose lower corner blocks are counted. All sums still run over pairs of pixels, those within a
block having the weight of distance 0; they need a filter of blocks only. Nothing else changes: energies are sums over
the image's own pixels, and energies of labels are cuts of a graph with weights w_pq.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch import Tensor

from regloss import grid
from regloss.errors import UsageError
from regloss_plugins.filters.gaussian import (
    ACCURACIES,
    BACKENDS,
    Accuracy,
    Backend,
    GaussianFilter,
    gaussian_filter,
)


class Affinity:
    """The weights w_pq of a batch of images.

    Args:
        image: (B, C, *S) in [0, 1], float32 or float64.
        roi: (B, *S) bool, or None.
        sigma_xy: in pixels of ``image``, or in the unit of ``steps``.
        sigma_rgb: in units of ``image``.
        scale: in (0, 1], blocks are 1 / scale pixels long.
        backend: of the filter, see `gaussian_filter`; so is ``accuracy``.
        accuracy: of the lattice.
        steps: distance of neighbouring pixels along each axis; None = 1.

    Attributes:
        inside: (B, 1, *S), 1 in the region of interest and 0 outside.
        pixels: (B,) how many count.
        counts: (B, 1, *R) pixels in each block of the reduced grid R.
        means: (B, C, *R) colours of the blocks.
        filter: W of the blocks, whose weights are not divided by ``mass``, with 1 on its diagonal.
        degrees: (B, 1, *R) filtered counts.
        mass: (2 pi)^(D/2) sigma_xy^D, in pixels.
        steps: see above.
    """

    def __init__(
        self,
        image: Tensor,
        roi: Tensor | None,
        sigma_xy: float,
        sigma_rgb: float,
        scale: float,
        backend: Backend,
        accuracy: Accuracy,
        steps: tuple[float, ...] | None = None,
    ) -> None:
        ndim = image.ndim - 2
        steps = (1.0,) * ndim if steps is None else steps
        shape = (image.shape[0], *image.shape[2:])
        region = grid.full_roi(roi, shape, image.device)
        self.steps = steps
        self.inside = region.unsqueeze(1).to(image.dtype)
        self.pixels = self.inside.flatten(1).sum(1)
        self.mass = math.sqrt(2 * math.pi) ** ndim * sigma_xy**ndim / math.prod(steps)
        self._blocks = None if scale == 1 else _Blocks(region, scale)
        self.counts = self.sums(torch.ones_like(self.inside))
        self.means = image if self._blocks is None else self.sums(image) / self.counts.clamp(min=1)
        occupied = (self.counts > 0).squeeze(1)
        kept = None if bool(occupied.all()) else occupied
        self.filter: GaussianFilter = gaussian_filter(
            self.means,
            tuple(sigma_xy * scale / step for step in steps),
            sigma_rgb,
            kept,
            backend=backend,
            accuracy=accuracy,
        )
        self.degrees = self.filter(self.counts)

    def select(self, images: Tensor) -> Affinity:
        """The weights of the images with the indices ``images`` (M,) alone; nothing is computed anew."""
        some = copy.copy(self)
        some.inside, some.pixels = self.inside[images], self.pixels[images]
        some.counts, some.degrees, some.means = self.counts[images], self.degrees[images], self.means[images]
        some.filter = self.filter.select(images)
        some._blocks = None if self._blocks is None else self._blocks.select(images)
        return some

    def sums(self, values: Tensor) -> Tensor:
        """Sums (B, K, *R) of ``values`` (B, K, *S) over the pixels of each block that count; differentiable."""
        kept = values * self.inside.to(values.dtype)
        return kept if self._blocks is None else self._blocks.sums(kept)

    def spread(self, blocks: Tensor) -> Tensor:
        """To each pixel (B, K, *S) that counts what its block has in ``blocks`` (B, K, *R); transpose of `sums`."""
        spread = blocks if self._blocks is None else self._blocks.spread(blocks)
        return spread * self.inside.to(blocks.dtype)

    def cuts(self, probabilities: Tensor) -> Tensor:
        """Sum over ordered pairs of w_pq s_p (1 - s_q), for each class: (B, K), differentiable, >= 0 on the simplex."""
        sums = self.sums(probabilities)
        counts, degrees = self.counts.to(sums.dtype), self.degrees.to(sums.dtype)
        both: Tensor = _Cuts.apply(sums, counts, degrees, self.filter)  # type: ignore[no-untyped-call]
        diagonal = probabilities * (1 - probabilities) * self.inside.to(probabilities.dtype)
        return (both - diagonal.flatten(2).sum(2)) / self.mass

    def associations(self, values: Tensor) -> Tensor:
        """Sum over ordered pairs, the own ones included, of w_pq v_p v_q, for each channel: (B, K), differentiable."""
        result: Tensor = _Associations.apply(self.sums(values), self.filter)  # type: ignore[no-untyped-call]
        return result / self.mass

    def weighted(self, values: Tensor) -> Tensor:
        """Sum over ordered pairs, the own ones included, of w_pq v_p, for each channel: (B, K), differentiable."""
        return (self.sums(values) * self.degrees.to(values.dtype)).flatten(2).sum(2) / self.mass


class _Cuts(torch.autograd.Function):
    """<S_k, W (n - S_k)>: both factors are counts, so that nothing cancels, and what W gave serves the gradient too."""

    @staticmethod
    def forward(ctx: Any, sums: Tensor, counts: Tensor, degrees: Tensor, bound: GaussianFilter) -> Tensor:
        others = bound(counts - sums)
        ctx.save_for_backward(sums, counts, degrees, others)
        ctx.bound = bound
        return (sums * others).flatten(2).sum(2)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        sums, counts, degrees, others = ctx.saved_tensors
        if torch.is_grad_enabled():  # a second derivative is wanted
            others = ctx.bound(counts - sums)
        # The derivative W (n - S) - W S, with W S = W n - W (n - S).
        return _by_class(gradient, sums) * (2 * others - degrees), None, None, None


class _Associations(torch.autograd.Function):
    """<V_k, W V_k>, whose gradient is 2 W V_k, computed already."""

    @staticmethod
    def forward(ctx: Any, sums: Tensor, bound: GaussianFilter) -> Tensor:
        filtered = bound(sums)
        ctx.save_for_backward(sums, filtered)
        ctx.bound = bound
        return (sums * filtered).flatten(2).sum(2)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        sums, filtered = ctx.saved_tensors
        if torch.is_grad_enabled():
            filtered = ctx.bound(sums)
        return _by_class(gradient, sums) * 2 * filtered, None


def _by_class(gradient: Tensor, like: Tensor) -> Tensor:
    return gradient.reshape(*gradient.shape, *[1] * (like.ndim - 2))


class _Blocks:
    """Pixels to blocks and back.

    Args:
        region: (B, *S) bool. Blocks are counted from the corner of its bounding box, so that a crop has the same ones.
        scale: in (0, 1).
    """

    def __init__(self, region: Tensor, scale: float) -> None:
        batch, *size = region.shape
        lengths, coordinates = [], []
        for axis, length in enumerate(size):
            others = [other + 1 for other in range(len(size)) if other != axis]
            occupied = region.any(dim=others) if others else region  # (B, S_axis)
            place = torch.arange(length, device=region.device)
            low = torch.where(occupied, place, length).amin(1, keepdim=True)
            # The small number undoes the rounding of 3 * (1 / 3).
            block = ((place - low) * scale + 1e-9).floor().to(torch.int64)
            coordinates.append(block)
            lengths.append(int(torch.where(occupied, block, 0).max()) + 1)
        index = torch.zeros_like(region, dtype=torch.int64)
        for axis, (block, length) in enumerate(zip(coordinates, lengths, strict=True)):
            view = [batch, *(size[axis] if other == axis else 1 for other in range(len(size)))]
            # Outside the region any block will do: values there are 0.
            index = index * length + block.clamp(0, length - 1).reshape(view)
        self.index = index.flatten(1).unsqueeze(1)  # (B, 1, N)
        self.size, self.shape = tuple(size), tuple(lengths)
        self.factor = self._whole_factor(coordinates, scale)

    def _whole_factor(self, coordinates: list[Tensor], scale: float) -> int | None:
        """Length of the blocks, if they tile all images from the first pixel on: pooling is much faster then."""
        factor = round(1 / scale)
        whole = abs(factor * scale - 1) < 1e-9 and self.shape == tuple(-(-length // factor) for length in self.size)
        return factor if whole and all(bool((block[:, 0] == 0).all()) for block in coordinates) else None

    def select(self, images: Tensor) -> _Blocks:
        """Those of some images alone."""
        some = copy.copy(self)
        some.index = self.index[images]
        return some

    def sums(self, values: Tensor) -> Tensor:
        """(B, K, *S) to (B, K, *R)."""
        if self.factor is not None:
            missing = [count * self.factor - size for size, count in zip(self.size, self.shape, strict=True)]
            padded = F.pad(values, [pad for right in reversed(missing) for pad in (0, right)])
            pool = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[len(self.size) - 1]
            pooled: Tensor = pool(padded, self.factor) * self.factor ** len(self.size)
            return pooled
        flat = values.flatten(2)
        sums = flat.new_zeros(*flat.shape[:2], math.prod(self.shape))
        return sums.scatter_add(2, self.index.expand_as(flat), flat).reshape(*flat.shape[:2], *self.shape)

    def spread(self, blocks: Tensor) -> Tensor:
        """(B, K, *R) to (B, K, *S)."""
        index = self.index.expand(-1, blocks.shape[1], -1)
        return blocks.flatten(2).gather(2, index).reshape(*blocks.shape[:2], *self.size)


def check_affinity(
    name: str, sigma_xy: float, sigma_rgb: float, scale: float, backend: str, accuracy: str, unit: str
) -> None:
    """Raise `UsageError` unless the settings that dense regularizers share lie in their ranges."""
    if not 0 < sigma_xy < math.inf:
        raise UsageError(f"sigma_xy of {name} must be finite and positive; got {sigma_xy}.")
    grid.check_unit(unit, name)
    # The largest difference that an RGB image in [0, 1] can have is sqrt(3); a larger bandwidth means bytes.
    if not (0 < sigma_rgb <= 2 or sigma_rgb == math.inf):
        raise UsageError(
            f"sigma_rgb of {name} must lie in (0, 2], in units of image values in [0, 1], or be inf, where colours do "
            f"not matter; got {sigma_rgb}. A bandwidth given for bytes is divided by 255."
        )
    if not 0 < scale <= 1:
        raise UsageError(f"scale of {name} must lie in (0, 1], 1 being the image's own resolution; got {scale}.")
    if backend not in BACKENDS:
        raise UsageError(f"backend of {name} must be one of {', '.join(BACKENDS)}; got {backend!r}.")
    if accuracy not in ACCURACIES:
        raise UsageError(f"accuracy of {name} must be one of {', '.join(ACCURACIES)}; got {accuracy!r}.")
