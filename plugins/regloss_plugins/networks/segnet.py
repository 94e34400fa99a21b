"""SegNet: an encoder like VGG-16's, and a decoder that puts features back to where the encoder's poolings found them.

Every pooling keeps the place of the maximum in each 2x2 window. The decoder's stages mirror the encoder's: features go
back to these places, with zeros elsewhere, and convolutions make them dense. So boundaries survive without the feature
maps that a U-Net keeps: per window, two bits are remembered instead of four numbers.

Source: Badrinarayanan, Kendall, Cipolla, "SegNet: A Deep Convolutional Encoder-Decoder Architecture for Image
Segmentation", PAMI 2017.

Differs from it in: 1. the numbers of levels, feature maps and convolutions and the normalisation are settings (the
defaults are the paper's); 2. images of any size are padded inside; 3. under a normalisation convolutions have no bias,
which it would subtract.
"""

from __future__ import annotations

import itertools
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path

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
from regloss_plugins.networks.encoders.encoder import read_weights_file

_VGG = (2, 2, 3, 3, 3)  # convolutions of VGG-16's levels
_NORM = ("weight", "bias", "running_mean", "running_var")  # of a batch normalisation
_EPSILON = 1e-5  # of torchvision's


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
        weights: local file with the weights of VGG-16, with or without batch normalisation, under torchvision's names,
            ``.pth``, ``.pt`` or ``.safetensors``, which fill the encoder; levels, channels and convolutions are then
            VGG-16's, the defaults. They were trained on images of ImageNet's mean and standard deviation.

    Raises:
        UsageError: a setting is not one of the allowed values, or the weights do not fit.

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
        weights: str | os.PathLike[str] | None = None,
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
        if weights is not None:
            _fill(self.encoder, Path(weights))

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


def _fill(encoder: nn.ModuleList, path: Path) -> None:
    """Put VGG-16's weights into an encoder.

    Raises:
        UsageError: the file does not hold them, or the encoder is another network.
    """
    state = read_weights_file(path)
    numbers = [int(key.split(".")[1]) for key in state if re.fullmatch(r"features\.\d+\.bias", key)]
    given = [number for number in sorted(numbers) if state[f"features.{number}.weight"].ndim == 4]
    layers = [layer for stage in encoder for layer in stage.children()]
    convolutions = [(layer, behind) for layer, behind in itertools.pairwise(layers) if isinstance(layer, nn.Conv2d)]
    shapes = [tuple(state[f"features.{number}.weight"].shape) for number in given]
    expected = [tuple(layer.weight.shape) for layer, _ in convolutions]
    if shapes != expected:
        unlike = [f"{one} instead of {other}" for one, other in zip(shapes, expected, strict=False) if one != other]
        raise UsageError(
            f"segnet: {path} holds {len(shapes)} convolutions features.*, the encoder has {len(expected)}"
            f"{''.join(f', the first that differs is {text}' for text in unlike[:1])}. Expected are the weights of "
            "VGG-16 under torchvision's names, and segnet on images of three channels with its default levels, "
            "channels and convolutions"
        )
    for (layer, behind), number in zip(convolutions, given, strict=True):
        weight, bias = state[f"features.{number}.weight"], state[f"features.{number}.bias"]
        if f"features.{number + 1}.running_mean" in state:
            norm = {part: state[f"features.{number + 1}.{part}"] for part in _NORM}
            mean = norm["running_mean"] - bias  # as there is no bias that it would subtract
            if isinstance(behind, nn.BatchNorm2d):
                behind.load_state_dict({**behind.state_dict(), **norm, "running_mean": mean})
            elif layer.bias is not None:  # no normalisation, so its scale and shift become the convolution's
                scale = norm["weight"] / (norm["running_var"] + _EPSILON).sqrt()
                weight, bias = weight * scale[:, None, None, None], norm["bias"] - mean * scale
        layer.load_state_dict({"weight": weight, **({} if layer.bias is None else {"bias": bias})})


def _stage(widths: Sequence[int], norm: str) -> nn.Sequential:
    """Convolutions between the given numbers of feature maps."""
    layers = [layer for pair in itertools.pairwise(widths) for layer in convolution(*pair, norm, 2)]
    return nn.Sequential(*layers)
