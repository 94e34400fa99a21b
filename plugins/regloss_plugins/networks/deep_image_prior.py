"""The network of the deep image prior: an hourglass with narrow skips, which shows large structures of an image first.

Fitted to one image by gradient descent, it reproduces smooth and self-similar parts long before noise; that order is
the prior. As encoder and decoder of deep Chan-Vese it keeps latent values alike within textures.

Source: Ulyanov, Vedaldi and Lempitsky, Deep Image Prior, CVPR 2018, the network of their Fig. 21. Differs from it in:
1. its input is the image, not noise; 2. zeros are padded, not reflections; 3. the normalisation can be chosen.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from regloss.errors import UsageError
from regloss_plugins.networks.building_blocks import (
    CONVOLUTION,
    Network,
    check_counts,
    check_dims,
    check_image,
    check_settings,
    extended,
    normalization,
)

_SLOPE = 0.2  # of the leaky ReLU below zero, as published
_MAX_DEPTH = 12
_INTERPOLATION = {2: "bilinear", 3: "trilinear"}


class DeepImagePrior(Network):
    """Hourglass of equally wide levels, each joined by a skip connection of a few feature maps.

    On its way down a level halves the resolution by a strided convolution and convolves once more. On its way up the
    coarser features are interpolated, joined with the skip, a 1x1 convolution of the finer ones to ``skip_channels``
    feature maps, and convolved by 3x3 and 1x1. Every convolution but the last is followed by the normalisation and a
    leaky ReLU. The defaults are published.

    An image whose size is not divisible by ``2 ** depth``, or which is smaller than ``2 ** (depth + 1)``, is padded
    inside by repeating its last row and column, and the logits are cropped to the size of the image.

    Args:
        in_channels: channels C of the image, at least 1.
        classes: classes K, at least 1.
        depth: how often the resolution is halved, 1 to 12.
        channels: feature maps of every level, at least 1.
        skip_channels: feature maps of every skip connection, at least 1.
        norm: ``"batch"``, ``"instance"``, ``"group"`` (up to 8 groups) or ``"none"``.
        dims: 2 for images ``(B, C, H, W)``, 3 for volumes ``(B, C, D, H, W)``.

    Raises:
        UsageError: a setting is not one of the allowed values.

    Example:
        >>> network = DeepImagePrior(in_channels=3, classes=1, depth=2, channels=8)
        >>> network(torch.zeros(1, 3, 37, 50)).shape
        torch.Size([1, 1, 37, 50])
    """

    def __init__(
        self,
        in_channels: int,
        classes: int,
        *,
        depth: int = 5,
        channels: int = 128,
        skip_channels: int = 4,
        norm: str = "batch",
        dims: int = 2,
    ) -> None:
        super().__init__()
        name = "deep-image-prior"
        check_settings(name, in_channels, classes, 1, channels, channels, norm)
        check_counts(name, depth=depth, skip_channels=skip_channels)
        if depth > _MAX_DEPTH:
            raise UsageError(f"{name}: depth must be at most {_MAX_DEPTH}, not {depth}")
        check_dims(name, dims)
        self.in_channels = in_channels
        self.dims = dims
        finer = [in_channels, *[channels] * (depth - 1)]
        self.down = nn.ModuleList(
            nn.Sequential(
                *_convolution(before, channels, norm, dims, 3, stride=2),
                *_convolution(channels, channels, norm, dims, 3),
            )
            for before in finer
        )
        self.skips = nn.ModuleList(
            nn.Sequential(*_convolution(before, skip_channels, norm, dims, 1)) for before in finer
        )
        self.up = nn.ModuleList(
            nn.Sequential(
                *normalization(channels + skip_channels, norm, dims),
                *_convolution(channels + skip_channels, channels, norm, dims, 3),
                *_convolution(channels, channels, norm, dims, 1),
            )
            for _ in finer
        )
        self.classifier = CONVOLUTION[dims](channels, classes, kernel_size=1)

    def forward(self, image: Tensor) -> Tensor:
        """Compute the logits.

        Args:
            image: ``(B, C, *S)``, floating point.

        Returns:
            Logits ``(B, K, *S)``.

        Raises:
            UsageError: the image has another number of dimensions or channels than the network.
        """
        check_image("deep-image-prior", image, self.in_channels, self.dims)
        divisor = 2 ** len(self.down)
        # The coarsest level keeps two pixels along each axis: batch and instance normalisation need more than one.
        features = extended(image, [max(-(-size // divisor), 2) * divisor for size in image.shape[2:]])
        skips = []
        for down, skip in zip(self.down, self.skips, strict=True):
            skips.append(skip(features))
            features = down(features)
        for up in reversed(self.up):
            coarse = functional.interpolate(features, scale_factor=2.0, mode=_INTERPOLATION[self.dims])
            features = up(torch.cat([skips.pop(), coarse], dim=1))
        logits: Tensor = self.classifier(features)
        for axis, length in enumerate(image.shape[2:], start=2):
            logits = logits.narrow(axis, 0, length)
        return logits.contiguous()


def _convolution(before: int, after: int, norm: str, dims: int, size: int, stride: int = 1) -> Sequence[nn.Module]:
    # A normalisation subtracts what a bias would add, so the bias is only there without one.
    settings: Any = {"stride": stride, "padding": size // 2, "bias": norm == "none"}
    layer = CONVOLUTION[dims](before, after, size, **settings)
    return layer, *normalization(after, norm, dims), nn.LeakyReLU(_SLOPE, inplace=True)
