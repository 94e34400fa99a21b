"""DeepLabv2: four classifiers of different fields of view on a dilated ResNet, whose logits are summed.

Source: Chen, Papandreou, Kokkinos, Murphy and Yuille, DeepLab: Semantic Image Segmentation with Deep Convolutional
Nets, Atrous Convolution, and Fully Connected CRFs, PAMI 2018, section 3.2 and figure 4.

Differs from the authors' network in: 1. a bottleneck strides in its 3x3 convolution and the first block of a dilated
stage keeps the rate of the stage before, as torchvision's weights want (see `ResNet`); 2. one scale of the image, where
the paper's best results take the largest logits of three; 3. the CRF is what regloss is for.
"""

from __future__ import annotations

import os

import torch
from torch import Tensor, nn

from regloss.errors import UsageError
from regloss_plugins.networks.building_blocks import check_counts
from regloss_plugins.networks.deeplab import DeepLab, initialise_classifier
from regloss_plugins.networks.encoders.encoder import load_weights
from regloss_plugins.networks.encoders.resnet import ResNet

ENCODERS = ("resnet101", "resnet50")
RATES = (6, 12, 18, 24)
_STRIDE = 8


class DeepLabV2(DeepLab[ResNet]):
    """DeepLabv2 of one scale; `DeepLab` says what happens to images.

    Args:
        in_channels: channels C of the image, at least 1.
        classes: classes K, at least 1.
        encoder: ``"resnet101"`` or ``"resnet50"``, with the output stride 8.
        weights: local file with the encoder's weights, ``.pth``, ``.pt`` or ``.safetensors``, under the names of
            torchvision, timm or transformers; the classifier in it is left out. Without it the encoder is initialised
            at random.

    Raises:
        UsageError: a setting is not one of the allowed values, or the weights do not fit.

    Example:
        >>> network = DeepLabV2(in_channels=3, classes=21, encoder="resnet50").eval()
        >>> network(torch.rand(1, 3, 40, 51)).shape
        torch.Size([1, 21, 40, 51])
    """

    name = "deeplabv2"

    def __init__(
        self,
        in_channels: int,
        classes: int,
        *,
        encoder: str = "resnet101",
        weights: str | os.PathLike[str] | None = None,
    ) -> None:
        check_counts(self.name, in_channels=in_channels, classes=classes)
        if encoder not in ENCODERS:
            raise UsageError(f"{self.name}: encoder must be one of {', '.join(ENCODERS)}, not {encoder!r}")
        depth = int(encoder.removeprefix("resnet"))
        super().__init__(in_channels, ResNet(in_channels, depth, _STRIDE), _STRIDE)
        self.classifiers = nn.ModuleList(
            nn.Conv2d(self.encoder.high_level_channels, classes, kernel_size=3, padding=rate, dilation=rate)
            for rate in RATES
        )
        self.classifiers.apply(initialise_classifier)
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
        _, features = self.encoder(padded)
        logits = torch.stack([classifier(features) for classifier in self.classifiers]).sum(0)
        return self.enlarged(logits, padded, image)
