"""ResNet-50 and ResNet-101 with dilations in place of the last strides.

Source: He, Zhang, Ren and Sun, Deep Residual Learning for Image Recognition, CVPR 2016, table 1. As in torchvision a
bottleneck strides in its 3x3 convolution, not in the first 1x1 one; otherwise torchvision's weights would not fit.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor, nn

from regloss_plugins.networks.encoders.encoder import Encoder, atrous_stages

BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
_EXPANSION = 4
# Where the weights of transformers' ResNetModel, alone or below a classifier, stand in torchvision's.
_TRANSFORMERS = (
    (r"(?:resnet\.)?embedder\.embedder\.convolution\.", "conv1."),
    (r"(?:resnet\.)?embedder\.embedder\.normalization\.", "bn1."),
    (r"(?:resnet\.)?encoder\.stages\.(\d+)\.layers\.(\d+)\.shortcut\.convolution\.", "layer{}.{}.downsample.0."),
    (r"(?:resnet\.)?encoder\.stages\.(\d+)\.layers\.(\d+)\.shortcut\.normalization\.", "layer{}.{}.downsample.1."),
    (r"(?:resnet\.)?encoder\.stages\.(\d+)\.layers\.(\d+)\.layer\.(\d+)\.convolution\.", "layer{}.{}.conv{}."),
    (r"(?:resnet\.)?encoder\.stages\.(\d+)\.layers\.(\d+)\.layer\.(\d+)\.normalization\.", "layer{}.{}.bn{}."),
)


class ResNet(Encoder):
    """ResNet of bottleneck blocks, without pooling and ``fc``.

    Args:
        in_channels: channels of the image.
        depth: 50 or 101.
        output_stride: stride of the high-level features, 8, 16 or 32.
    """

    low_level_channels = 64 * _EXPANSION
    high_level_channels = 512 * _EXPANSION
    unused_keys: ClassVar[tuple[str, ...]] = ("fc.", "classifier.")
    first_convolution: ClassVar[str] = "conv1.weight"

    def __init__(self, in_channels: int, depth: int, output_stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 64, kernel_size=7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        stages, before = [], 64
        plan = atrous_stages((1, 2, 2, 2), start=4, output_stride=output_stride)
        for width, count, (stride, first_dilation, dilation) in zip(
            (64, 128, 256, 512), BLOCKS[depth], plan, strict=True
        ):
            blocks = [_Bottleneck(before, width, stride, first_dilation)]
            before = width * _EXPANSION
            blocks += [_Bottleneck(before, width, 1, dilation) for _ in range(count - 1)]
            stages.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.initialise()

    @staticmethod
    def torchvision_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Translate the names of transformers' ResNet; timm's are torchvision's."""
        return {_torchvision_name(key): value for key, value in state.items()}

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the features of stride 4 (``layer1``) and of the output stride (``layer4``)."""
        stem = self.maxpool(self.relu(self.bn1(self.conv1(image))))
        low_level = self.layer1(stem)
        return low_level, self.layer4(self.layer3(self.layer2(low_level)))


def _torchvision_name(key: str) -> str:
    for pattern, name in _TRANSFORMERS:
        found = re.match(pattern, key)
        if found:
            stage, *rest = (int(number) for number in found.groups()) if found.groups() else (0,)
            # Stages and convolutions of a block count from 1 with torchvision, blocks from 0.
            numbers = (stage + 1, *rest[:1], *(number + 1 for number in rest[1:]))
            return name.format(*numbers) + key[found.end() :]
    return key


class _Bottleneck(nn.Module):
    """1x1 reduction, 3x3, 1x1 expansion, added to the input."""

    def __init__(self, before: int, width: int, stride: int, dilation: int) -> None:
        super().__init__()
        after = width * _EXPANSION
        self.conv1 = nn.Conv2d(before, width, kernel_size=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(
            width, width, kernel_size=3, stride=stride, padding=dilation, dilation=dilation, bias=False
        )
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, after, kernel_size=1, bias=False)
        self.bn3 = nn.BatchNorm2d(after)
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module | None = None
        if stride != 1 or before != after:
            self.downsample = nn.Sequential(
                nn.Conv2d(before, after, kernel_size=1, stride=stride, bias=False), nn.BatchNorm2d(after)
            )

    def forward(self, features: Tensor) -> Tensor:
        identity = features if self.downsample is None else self.downsample(features)
        residual = self.relu(self.bn1(self.conv1(features)))
        residual = self.relu(self.bn2(self.conv2(residual)))
        joined: Tensor = self.relu(self.bn3(self.conv3(residual)) + identity)
        return joined
