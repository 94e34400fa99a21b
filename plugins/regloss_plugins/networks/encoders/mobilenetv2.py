"""MobileNetV2 with dilations in place of the last strides.

Source: Sandler, Howard, Zhu, Zhmoginov and Chen, MobileNetV2: Inverted Residuals and Linear Bottlenecks, CVPR 2018,
table 2; section 6.3 puts DeepLab's head on the last bottleneck (320 channels) and leaves out the convolution to 1280
channels behind it, which torchvision calls ``features.18``.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from regloss_plugins.networks.encoders.encoder import Encoder, atrous_stages

# Expansion factor, channels, blocks and stride of each stage.
STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
# The stem and the first two stages: what reaches stride 4.
_LOW_LEVEL_BLOCKS = 4


class MobileNetV2(Encoder):
    """MobileNetV2 up to its last bottleneck.

    Args:
        in_channels: channels of the image.
        output_stride: stride of the high-level features, 8, 16 or 32.
    """

    low_level_channels = 24
    high_level_channels = 320
    unused_keys: ClassVar[tuple[str, ...]] = ("features.18.", "classifier.")
    first_convolution: ClassVar[str] = "features.0.0.weight"

    def __init__(self, in_channels: int, output_stride: int) -> None:
        super().__init__()
        before = 32
        blocks: list[nn.Module] = [_convolution(in_channels, before, kernel_size=3, stride=2)]
        plan = atrous_stages([stride for *_, stride in STAGES], start=2, output_stride=output_stride)
        for (expansion, after, count, _), (stride, first_dilation, dilation) in zip(STAGES, plan, strict=True):
            blocks.append(_InvertedResidual(before, after, expansion, stride, first_dilation))
            blocks += [_InvertedResidual(after, after, expansion, 1, dilation) for _ in range(count - 1)]
            before = after
        self.features = nn.Sequential(*blocks)
        self.initialise()

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the features of stride 4 (``features.3``) and of the output stride (``features.17``)."""
        low_level = self.features[:_LOW_LEVEL_BLOCKS](image)
        return low_level, self.features[_LOW_LEVEL_BLOCKS:](low_level)


class _InvertedResidual(nn.Module):
    """1x1 expansion, 3x3 depthwise, linear 1x1 projection, added to the input where the shapes agree."""

    def __init__(self, before: int, after: int, expansion: int, stride: int, dilation: int) -> None:
        super().__init__()
        width = before * expansion
        layers: list[nn.Module] = [] if expansion == 1 else [_convolution(before, width, kernel_size=1)]
        layers += [
            _convolution(width, width, kernel_size=3, stride=stride, dilation=dilation, groups=width),
            nn.Conv2d(width, after, kernel_size=1, bias=False),
            nn.BatchNorm2d(after),
        ]
        self.conv = nn.Sequential(*layers)
        # A stage's first block adds no input even where a dilation has replaced its stride: the channels differ.
        self.adds_input = stride == 1 and before == after

    def forward(self, features: Tensor) -> Tensor:
        projected: Tensor = self.conv(features)
        return features + projected if self.adds_input else projected


def _convolution(
    before: int, after: int, kernel_size: int, stride: int = 1, dilation: int = 1, groups: int = 1
) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(
            before,
            after,
            kernel_size,
            stride=stride,
            padding=dilation * (kernel_size // 2),
            dilation=dilation,
            groups=groups,
            bias=False,
        ),
        nn.BatchNorm2d(after),
        nn.ReLU6(inplace=True),
    )
