"""DeepLabV3+: atrous spatial pyramid pooling on a dilated encoder, and a decoder that adds features of stride 4.

Source: Chen, Zhu, Papandreou, Schroff and Adam, Encoder-Decoder with Atrous Separable Convolution for Semantic Image
Segmentation, ECCV 2018.

Differs from the paper in: 1. the head's 3x3 convolutions are ordinary ones unless ``separable`` is set; 2. the
image-level branch of the pyramid has a bias in place of batch normalisation, which would see only B numbers a channel:
too few at usual batch sizes, and undefined for a batch of one.
"""

from __future__ import annotations

import os

import torch
from torch import Tensor, nn
from torch.nn import functional

from regloss.errors import UsageError
from regloss_plugins.networks.building_blocks import check_counts, check_dropout
from regloss_plugins.networks.deeplab import DeepLab, resized
from regloss_plugins.networks.encoders.encoder import Encoder, load_weights
from regloss_plugins.networks.encoders.mobilenetv2 import MobileNetV2
from regloss_plugins.networks.encoders.resnet import ResNet

ENCODERS = ("mobilenetv2", "resnet50", "resnet101")
# Section 4 of the paper for stride 16, doubled for stride 8 so that the field of view stays the same in pixels.
ATROUS_RATES = {16: (6, 12, 18), 8: (12, 24, 36)}

_HEAD_CHANNELS = 256
_LOW_LEVEL_CHANNELS = 48


class DeepLabV3Plus(DeepLab[Encoder]):
    """DeepLabV3+; `DeepLab` says what happens to images.

    Args:
        in_channels: channels C of the image, at least 1.
        classes: classes K, at least 1.
        encoder: ``"mobilenetv2"``, ``"resnet50"`` or ``"resnet101"``.
        output_stride: stride of the encoder's features, 16 or 8; 8 is finer and up to twice as expensive.
        weights: local file with the encoder's weights under torchvision's names, ``.pth``, ``.pt`` or
            ``.safetensors``; the classifier in it is left out. Without it the encoder is initialised at random.
        separable: whether the 3x3 convolutions of pyramid and decoder are a depthwise and a 1x1 convolution each, as
            in the paper's final model: a quarter of the head's parameters, and with mobilenetv2 about 0.6 of the time.
        dropout: probability in [0, 1) that a feature map of the pyramid is dropped.

    Raises:
        UsageError: a setting is not one of the allowed values, or the weights do not fit.

    Example:
        >>> network = DeepLabV3Plus(in_channels=3, classes=21).eval()
        >>> network(torch.rand(1, 3, 40, 51)).shape
        torch.Size([1, 21, 40, 51])
    """

    name = "deeplabv3plus"

    def __init__(
        self,
        in_channels: int,
        classes: int,
        *,
        encoder: str = "mobilenetv2",
        output_stride: int = 16,
        weights: str | os.PathLike[str] | None = None,
        separable: bool = False,
        dropout: float = 0.1,
    ) -> None:
        check_counts(self.name, in_channels=in_channels, classes=classes)
        if encoder not in ENCODERS:
            raise UsageError(f"{self.name}: encoder must be one of {', '.join(ENCODERS)}, not {encoder!r}")
        if output_stride not in ATROUS_RATES:
            raise UsageError(f"{self.name}: output_stride must be 16 or 8, not {output_stride!r}")
        check_dropout(self.name, dropout)
        super().__init__(in_channels, _encoder(encoder, in_channels, output_stride), output_stride)
        self.pyramid = _AtrousPyramid(self.encoder.high_level_channels, ATROUS_RATES[output_stride], separable)
        self.dropout = nn.Dropout2d(dropout)
        self.low_level = _convolution(self.encoder.low_level_channels, _LOW_LEVEL_CHANNELS, kernel_size=1)
        self.decoder = nn.Sequential(
            _convolution(_HEAD_CHANNELS + _LOW_LEVEL_CHANNELS, _HEAD_CHANNELS, kernel_size=3, separable=separable),
            _convolution(_HEAD_CHANNELS, _HEAD_CHANNELS, kernel_size=3, separable=separable),
        )
        self.classifier = nn.Conv2d(_HEAD_CHANNELS, classes, kernel_size=1)
        if weights is not None:
            load_weights(self.encoder, weights)

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
        low_level, high_level = self.encoder(padded)
        context = self.dropout(self.pyramid(high_level))
        low_level = self.low_level(low_level)
        joined = torch.cat([low_level, resized(context, low_level.shape[2:])], dim=1)
        return self.enlarged(self.classifier(self.decoder(joined)), padded, image)


class _AtrousPyramid(nn.Module):
    """A 1x1 convolution, three atrous 3x3 ones and the image's mean, side by side, projected to 256 channels."""

    def __init__(self, before: int, rates: tuple[int, ...], separable: bool) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            [
                _convolution(before, _HEAD_CHANNELS, kernel_size=1),
                *(
                    _convolution(before, _HEAD_CHANNELS, kernel_size=3, dilation=rate, separable=separable)
                    for rate in rates
                ),
            ]
        )
        self.image_level = nn.Conv2d(before, _HEAD_CHANNELS, kernel_size=1)
        nn.init.kaiming_normal_(self.image_level.weight, nonlinearity="relu")
        self.project = _convolution((len(self.branches) + 1) * _HEAD_CHANNELS, _HEAD_CHANNELS, kernel_size=1)

    def forward(self, features: Tensor) -> Tensor:
        image_level = functional.relu(self.image_level(features.mean(dim=(2, 3), keepdim=True)))
        branches = [branch(features) for branch in self.branches]
        projected: Tensor = self.project(torch.cat([*branches, image_level.expand_as(branches[0])], dim=1))
        return projected


def _encoder(name: str, in_channels: int, output_stride: int) -> Encoder:
    if name == "mobilenetv2":
        return MobileNetV2(in_channels, output_stride)
    return ResNet(in_channels, int(name.removeprefix("resnet")), output_stride)


def _convolution(
    before: int, after: int, kernel_size: int, dilation: int = 1, separable: bool = False
) -> nn.Sequential:
    if separable:
        return nn.Sequential(
            *_convolution_layers(before, before, kernel_size, dilation, groups=before),
            *_convolution_layers(before, after, kernel_size=1),
        )
    return nn.Sequential(*_convolution_layers(before, after, kernel_size, dilation))


def _convolution_layers(
    before: int, after: int, kernel_size: int, dilation: int = 1, groups: int = 1
) -> tuple[nn.Module, ...]:
    padding = dilation * (kernel_size // 2)
    convolution = nn.Conv2d(before, after, kernel_size, padding=padding, dilation=dilation, groups=groups, bias=False)
    nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
    return convolution, nn.BatchNorm2d(after), nn.ReLU(inplace=True)
