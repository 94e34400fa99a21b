"""DeepLab-LargeFOV and DeepLab-MSc-LargeFOV: VGG-16 with a 3x3 convolution of rate 12 for its first connected layer.

Source: Chen, Papandreou, Kokkinos, Murphy and Yuille, Semantic Image Segmentation with Deep Convolutional Nets and
Fully Connected CRFs, ICLR 2015, section 3 and table 1; section 4.3 for the multi-scale features.

Differs from it in: 1. VGG-16's fully connected layers are thinned out by taking every fourth feature map and every
third row and column, as the paper subsamples, where a file has them; 2. the CRF is what regloss is for.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from regloss_plugins.networks.building_blocks import check_counts, check_dropout
from regloss_plugins.networks.deeplab import DeepLab, initialise_classifier
from regloss_plugins.networks.encoders.encoder import load_weights
from regloss_plugins.networks.encoders.vgg import VGG16, WIDTHS

_STRIDE = 8
_RATE = 12
_CONNECTED = 1024
_BRANCH = 128
_VGG_KERNEL = 7
_VGG_CONNECTED = 4096


class DeepLabLargeFOV(DeepLab[VGG16]):
    """DeepLab-LargeFOV; `DeepLab` says what happens to images.

    Args:
        in_channels: channels C of the image, at least 1.
        classes: classes K, at least 1.
        weights: local file with VGG-16's weights under torchvision's names, ``.pth``, ``.pt`` or ``.safetensors``;
            its fully connected layers fill those of this network, if the file has them. Without it all weights are
            initialised at random.
        dropout: probability in [0, 1) that a feature behind a connected layer is dropped.

    Raises:
        UsageError: a setting is not one of the allowed values, or the weights do not fit.

    Example:
        >>> network = DeepLabLargeFOV(in_channels=3, classes=21).eval()
        >>> network(torch.rand(1, 3, 40, 51)).shape
        torch.Size([1, 21, 40, 51])
    """

    name = "deeplab-largefov"
    branch_strides: ClassVar[tuple[int, ...]] = ()
    """Of the image and what is behind the first poolings, where the classifier sees them."""

    def __init__(
        self,
        in_channels: int,
        classes: int,
        *,
        weights: str | os.PathLike[str] | None = None,
        dropout: float = 0.5,
    ) -> None:
        check_counts(self.name, in_channels=in_channels, classes=classes)
        check_dropout(self.name, dropout)
        super().__init__(in_channels, VGG16(in_channels), _STRIDE)
        self.connected = Connected(dropout)
        self.branches = nn.ModuleList(
            nn.Sequential(
                *_convolution(before, _BRANCH, dropout, kernel=3, stride=stride),
                *_convolution(_BRANCH, _BRANCH, dropout),
            )
            for before, stride in zip((in_channels, *WIDTHS), self.branch_strides, strict=False)
        )
        self.classifier = nn.Conv2d(_CONNECTED + len(self.branches) * _BRANCH, classes, kernel_size=1)
        initialise_classifier(self.classifier)
        if weights is not None:
            self.connected.fill(load_weights(self.encoder, weights))

    def backbone(self) -> Sequence[nn.Module]:
        """What VGG-16 has, too, as in the paper."""
        return [self.encoder, self.connected]

    def forward(self, image: Tensor) -> Tensor:
        """Compute the logits.

        Args:
            image: ``(B, C, H, W)``, floating point.

        Returns:
            Logits ``(B, K, H, W)``.

        Raises:
            UsageError: the image has another number of dimensions or channels than the network.
        """
        padded = self.prepared(image)
        pooled = self.encoder.pooled(padded)
        scales = [branch(part) for branch, part in zip(self.branches, (padded, *pooled), strict=False)]
        joined = torch.cat([self.connected(pooled[-1]), *scales], dim=1)
        return self.enlarged(self.classifier(joined), padded, image)


class DeepLabMScLargeFOV(DeepLabLargeFOV):
    """DeepLab-MSc-LargeFOV: besides, the classifier sees the image and what is behind the first four poolings.

    Each of the five goes through 128 3x3 and 128 1x1 convolutions, the first of them with the stride that is missing.

    Example:
        >>> network = DeepLabMScLargeFOV(in_channels=3, classes=21).eval()
        >>> network(torch.rand(1, 3, 40, 51)).shape
        torch.Size([1, 21, 40, 51])
    """

    name = "deeplab-msc-largefov"
    branch_strides: ClassVar[tuple[int, ...]] = (8, 4, 2, 1, 1)


class Connected(nn.Sequential):
    """VGG-16's two fully connected layers as convolutions, with 1024 feature maps each.

    Args:
        dropout: behind each.
    """

    def __init__(self, dropout: float) -> None:
        first = _convolution(WIDTHS[-1], _CONNECTED, dropout, kernel=3, dilation=_RATE)
        super().__init__(*first, *_convolution(_CONNECTED, _CONNECTED, dropout))

    def fill(self, layers: Mapping[str, Tensor]) -> None:
        """Take what ``layers`` of torchvision's classifier hold, thinned out to the size of these; nothing if none."""
        names = [f"classifier.{layer}.{kind}" for layer in (0, 3) for kind in ("weight", "bias")]
        if not all(name in layers for name in names):
            return
        first, first_bias, second, second_bias = (layers[name] for name in names)
        every = _VGG_CONNECTED // _CONNECTED
        windows = first.reshape(_VGG_CONNECTED, WIDTHS[-1], _VGG_KERNEL, _VGG_KERNEL)[::every, :, ::3, ::3]
        state = self.state_dict()
        parts = (windows, first_bias[::every], second[::every, ::every, None, None], second_bias[::every])
        self.load_state_dict(dict(zip(state, parts, strict=True)))


def _convolution(
    before: int, after: int, dropout: float, *, kernel: int = 1, stride: int = 1, dilation: int = 1
) -> tuple[nn.Module, ...]:
    margin = dilation * (kernel // 2)
    layer = nn.Conv2d(before, after, kernel, stride=stride, padding=margin, dilation=dilation)
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer, nn.ReLU(inplace=True), nn.Dropout(dropout)
