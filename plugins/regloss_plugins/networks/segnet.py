"""SegNet: an encoder like VGG-16's, and a decoder that puts features back to where the encoder's poolings found them.

Every pooling keeps the place of the maximum in each 2x2 window. The decoder's stages mirror the encoder's: features go
back to these places, with zeros elsewhere, and convolutions make them dense. So boundaries survive without the feature
maps that a U-Net keeps: per window, two bits are remembered instead of four numbers.

Source: Badrinarayanan, Kendall, Cipolla, "SegNet: A Deep Convolutional Encoder-Decoder Architecture for Image
Segmentation", PAMI 2017.

Differs from it in: 1. the numbers of levels, feature maps and convolutions and the normalisation are settings (the
defaults are the paper's); 2. images of any size are padded inside; 3. the encoder starts from random weights.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from regloss.errors import UsageError
from regloss_plugins.networks.building_blocks import (
    Network,
    check_flat_image,
    check_settings,
    convolution,
    extended,
    level_widths,
)

_VGG = (2, 2, 3, 3, 3)  # convolutions of VGG-16's levels


class SegNet(Network):
    """SegNet for images of any size.

    Level 0 has the resolution of the image and ``channels`` feature maps; each further level halves the resolution and
    doubles the feature maps, up to ``max_channels``. A convolution is 3x3, followed by the normalisation and a ReLU;
    the decoder's last one makes the logits, without these.

    An image whose size is not divisible by ``2 ** levels`` is padded inside by repeating its last row and column, and
    the logits are cropped to the size of the image.

    Args:
        in_channels: channels C of the image, at least 1.
        classes: classes K, at least 1.
        levels: number of poolings, at least 1.
        channels: feature maps at full resolution, at least 1.
        max_channels: upper bound on the feature maps of a level, at least ``channels``.
        convolutions: of each level in the encoder, and again in the decoder: a number, or one for each level from fine
            to coarse; None = VGG-16's, 2 in the two finest levels and 3 below.
        norm: ``"batch"``, ``"instance"``, ``"group"`` (up to 8 groups) or ``"none"``.

    Raises:
        UsageError: a setting is not one of the allowed values.

    Example:
        >>> network = SegNet(in_channels=1, classes=4, levels=2, channels=4)
        >>> network(torch.zeros(2, 1, 37, 50)).shape
        torch.Size([2, 4, 37, 50])
    """

    def __init__(
        self,
        in_channels: int,
        classes: int,
        *,
        levels: int = 5,
        channels: int = 64,
        max_channels: int = 512,
        convolutions: int | Sequence[int] | None = None,
        norm: str = "batch",
    ) -> None:
        super().__init__()
        check_settings("segnet", in_channels, classes, levels, channels, max_channels, norm)
        counts = _counts(convolutions, levels)

        self.in_channels = in_channels
        widths = level_widths(channels, levels, max_channels)
        befores = [in_channels, *widths[:-1]]
        self.encoder = nn.ModuleList(
            _stage([before, *[width] * count], norm)
            for before, width, count in zip(befores, widths, counts, strict=True)
        )
        # Stored from fine to coarse; the finest one ends in the logits.
        self.decoder = nn.ModuleList(
            _stage([width] * count + [after] * (level > 0), norm)
            for level, (width, after, count) in enumerate(zip(widths, [0, *widths[:-1]], counts, strict=True))
        )
        self.classifier = nn.Conv2d(widths[0], classes, kernel_size=3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        """Compute the logits.

        Args:
            image: ``(B, C, H, W)``, floating point.

        Returns:
            Logits ``(B, K, H, W)``.

        Raises:
            UsageError: the image has another number of dimensions or channels than the network.
        """
        check_flat_image("segnet", image, self.in_channels, ", and use unet for volumes")
        height, width = image.shape[2:]
        features = self._pad(image).clone(memory_format=torch.channels_last)
        places: list[Tensor] = []
        for stage in self.encoder:
            features, place = functional.max_pool2d(stage(features), kernel_size=2, return_indices=True)
            places.append(place)
        for stage in reversed(self.decoder):
            features = stage(functional.max_unpool2d(features, places.pop(), kernel_size=[2, 2]))
        logits: Tensor = self.classifier(features)
        return logits[..., :height, :width].contiguous()

    def _pad(self, image: Tensor) -> Tensor:
        divisor = 2 ** len(self.encoder)
        return extended(image, [divisor * math.ceil(size / divisor) for size in image.shape[2:]])


def _counts(convolutions: int | Sequence[int] | None, levels: int) -> list[int]:
    """Convolutions of each level."""
    if convolutions is None:
        return [_VGG[min(level, len(_VGG) - 1)] for level in range(levels)]
    counts = [convolutions] * levels if isinstance(convolutions, int) else list(convolutions)
    if len(counts) != levels or not all(isinstance(count, int) and count >= 1 for count in counts):
        raise UsageError(
            "segnet: convolutions must be a whole number of at least 1, or one for each of the "
            f"{levels} levels, not {convolutions!r}"
        )
    return counts


def _stage(widths: Sequence[int], norm: str) -> nn.Sequential:
    """Convolutions between the given numbers of feature maps."""
    layers = [layer for pair in itertools.pairwise(widths) for layer in convolution(*pair, norm, 2)]
    return nn.Sequential(*layers)
