"""VGG-16 as DeepLab uses it: poolings of 3x3 windows, the last two without strides, and dilations behind them.

Source: Simonyan and Zisserman, Very Deep Convolutional Networks for Large-Scale Image Recognition, ICLR 2015, table 1,
column D; Chen, Papandreou, Kokkinos, Murphy and Yuille, Semantic Image Segmentation with Deep Convolutional Nets and
Fully Connected CRFs, ICLR 2015, section 3.1, and the networks that its authors have published, whose poolings have 3x3
windows in place of 2x2 ones, so that a position is centred on a pixel.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from regloss_plugins.networks.encoders.encoder import Encoder

WIDTHS = (64, 128, 256, 512, 512)
CONVOLUTIONS = (2, 2, 3, 3, 3)
# Strides of the poolings, and dilations of the convolutions before them.
_STRIDES = (2, 2, 2, 1, 1)
_DILATIONS = (1, 1, 1, 1, 2)


class VGG16(Encoder):
    """The convolutions and poolings of VGG-16, with the output stride 8.

    Args:
        in_channels: channels of the image.
    """

    low_level_channels = WIDTHS[1]
    high_level_channels = WIDTHS[-1]
    # The fully connected layers, as torchvision and as timm calls them.
    unused_keys: ClassVar[tuple[str, ...]] = ("classifier.", "pre_logits.", "head.")
    first_convolution: ClassVar[str] = "features.0.weight"

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = in_channels
        for width, count, stride, dilation in zip(WIDTHS, CONVOLUTIONS, _STRIDES, _DILATIONS, strict=True):
            for _ in range(count):
                layers += [nn.Conv2d(before, width, 3, padding=dilation, dilation=dilation), nn.ReLU(inplace=True)]
                before = width
            layers.append(nn.MaxPool2d(3, stride=stride, padding=1))
        self.features = nn.Sequential(*layers)
        self.initialise()

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the features of stride 4 (behind the second pooling) and of stride 8 (behind the fifth)."""
        pooled = self.pooled(image)
        return pooled[1], pooled[-1]

    def pooled(self, image: Tensor) -> list[Tensor]:
        """Compute the features behind each of the five poolings, of the strides 2, 4, 8, 8 and 8."""
        found = []
        for layer in self.features:
            image = layer(image)
            if isinstance(layer, nn.MaxPool2d):
                found.append(image)
        return found
