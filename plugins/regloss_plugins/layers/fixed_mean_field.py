"""FixedMeanField: what a dense-crf layer computes, as a fixed number of tensor operations, for `torch.export`.

    A <- softmax((o - sum over kernels m of (W^m - diagonal) A C_m / mass_m) / entropy)

from softmax(o / entropy), damped as `DCA` damps it where ``damped`` is set. W^m is the sum over all pairs of pixels
itself, as with the backend "exact": of a kernel of places alone one matrix for each axis, of others the matrix of all
pairs of blocks, which is computed once an image and kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from regloss.checks import at_least_float32
from regloss.errors import UsageError
from regloss.layer import RegularizedLayer

_TILE = 2048  # rows of the matrix of pairs that are computed at once
_MOST = 2**14  # blocks, whose pairs take 1 GB


@dataclass(frozen=True)
class Kernel:
    """A Gaussian, and what labels that differ cost under it.

    Attributes:
        costs: (K, K), symmetric.
        sigma_xy: in pixels.
        sigma_rgb: in units of image values; inf = colours do not matter.
    """

    costs: Tensor
    sigma_xy: float
    sigma_rgb: float


class FixedMeanField(RegularizedLayer):
    """Logits and image to probabilities by a fixed number of steps of mean field; nothing is learnt.

    Args:
        kernels: at least one.
        entropy: > 0.
        scale: of blocks, see `regloss.DenseCRF`.
        max_steps: how many.
        damped: as of `regloss.DenseCRFLayer`.

    Raises:
        UsageError: in a call, a region of interest, or an image whose pairs would not fit into memory.

    >>> kernel = Kernel(2.0 * (1 - torch.eye(2)), sigma_xy=2.0, sigma_rgb=0.1)
    >>> layer = FixedMeanField([kernel], entropy=1.0, scale=1.0, max_steps=10, damped=True)
    >>> logits = torch.tensor([[[[3.0, 0.0, 0.0, 0.0]], [[0.0, 0.0, 0.0, 3.0]]]])
    >>> layer(logits, torch.tensor([[[[0.2, 0.2, 0.8, 0.8]]]])).argmax(1)
    tensor([[[0, 0, 1, 1]]])
    """

    def __init__(
        self, kernels: Sequence[Kernel], *, entropy: float, scale: float, max_steps: int, damped: bool
    ) -> None:
        super().__init__()
        self.kernels = tuple(kernels)
        self.extremes = [_extremes(kernel.costs) for kernel in kernels]  # numbers, which a graph does not compute
        self.entropy = entropy
        self.scale = scale
        self.max_steps = max_steps
        self.damped = damped

    def log_probabilities(
        self,
        logits: Tensor,
        image: Tensor,
        roi: Tensor | None = None,
        warm: Any = None,
        spacing: Sequence[float] | None = None,
    ) -> Tensor:
        """Log-probabilities (B, K, *S); arguments as of `RegularizedLayer`."""
        if roi is not None:
            raise UsageError("A dense CRF of fixed steps takes whole images, without a region of interest.")
        scores = at_least_float32(logits)
        image = image.to(scores)
        size = image.shape[2:]
        members = [self._members(length).to(scores) for length in size]  # (R, S) of each axis, 1 where in the block
        counts = _along_axes(torch.ones_like(image[:, :1]), members)
        means = _along_axes(image, members) / counts
        filters = [self._filter(kernel, means) for kernel in self.kernels]
        masses = [(math.sqrt(2 * math.pi) * kernel.sigma_xy) ** len(size) for kernel in self.kernels]
        spread = [member.T for member in members]

        gamma = scores.new_zeros(())
        if self.damped:
            for (low, high), mass, filtered in zip(self.extremes, masses, filters, strict=True):
                gamma = gamma + (high * (filtered(counts).flatten().amax(0) - 1)).clamp(min=max(-low, 0.0)) / mass
            gamma = ((gamma - self.entropy) / 2).clamp(min=0)
        log_s = torch.log_softmax(scores / self.entropy, dim=1)
        for _ in range(self.max_steps):
            s = log_s.exp()
            sums = _along_axes(s, members)
            slope = torch.zeros_like(s)
            for kernel, mass, filtered in zip(self.kernels, masses, filters, strict=True):
                others = _along_axes(filtered(sums), spread) - s
                slope = slope + torch.einsum("kl,bl...->bk...", (kernel.costs / mass).to(s), others)
            slope = slope - gamma * s.clamp(min=torch.finfo(s.dtype).eps).log()
            log_s = torch.log_softmax((scores - slope) / (self.entropy + gamma), dim=1)
        return log_s.to(logits.dtype)

    def _members(self, length: int) -> Tensor:
        """(R, S) which of the pixels along an axis lie in which of its blocks."""
        block = [math.floor(place * self.scale + 1e-9) for place in range(length)]
        return torch.nn.functional.one_hot(torch.tensor(block), block[-1] + 1).T

    def _filter(self, kernel: Kernel, means: Tensor) -> Callable[[Tensor], Tensor]:
        """W of a kernel for images of blocks with these mean colours (B, C, *R)."""
        shape = means.shape[2:]
        width = kernel.sigma_xy * self.scale
        places = [torch.arange(length, dtype=means.dtype, device=means.device) / width for length in shape]
        if math.isinf(kernel.sigma_rgb):
            matrices = [(-(place[:, None] - place).square() / 2).exp() for place in places]
            return lambda values: _along_axes(values, matrices)
        pairs = math.prod(shape) ** 2
        if math.prod(shape) > _MOST:
            raise UsageError(
                f"A dense CRF of fixed steps keeps the weights of all pairs of pixels, {4e-9 * pairs:.0f} GB for "
                f"{' x '.join(map(str, shape))}. Take smaller images, or a smaller scale (--set layer.scale=0.5)."
            )
        mesh = torch.stack(torch.meshgrid(*places, indexing="ij")).expand(len(means), -1, *shape)
        features = torch.cat([means / kernel.sigma_rgb, mesh], dim=1).flatten(2)  # (B, F, N)
        features = features - features.mean(2, keepdim=True)  # the smaller their products, the less is lost of them
        squares = features.square().sum(1)  # (B, N)
        tiles = []
        for begin in range(0, features.shape[2], _TILE):
            rows = slice(begin, begin + _TILE)
            products = features[:, :, rows].transpose(1, 2) @ features
            apart = (products - (squares[:, rows, None] + squares[:, None]) / 2).clamp(max=0)
            tiles.append(apart.exp())

        def filtered(values: Tensor) -> Tensor:
            flat = values.flatten(2).transpose(1, 2)
            return torch.cat([tile @ flat for tile in tiles], dim=1).transpose(1, 2).reshape(values.shape)

        return filtered


def _extremes(costs: Tensor) -> tuple[float, float]:
    """Smallest and largest eigenvalue along differences of probabilities, which sum to 0."""
    matrix = costs.cpu().double()
    matrix = matrix - matrix.mean(0) - matrix.mean(1, keepdim=True) + matrix.mean()
    found = torch.linalg.eigvalsh(matrix)
    return float(found[0]), float(found[-1])


def _along_axes(values: Tensor, matrices: Sequence[Tensor]) -> Tensor:
    """Each matrix (R, S) times ``values`` (B, K, *S) along its axis."""
    for axis, matrix in enumerate(matrices, start=2):
        values = (values.movedim(axis, -1) @ matrix.T).movedim(-1, axis)
    return values
