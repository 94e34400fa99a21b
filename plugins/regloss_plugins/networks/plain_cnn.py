"""A plain convolutional network: equal layers at the resolution of the image, nothing else.

It sees ``layers * (size // 2)`` pixels to each side, and knows nothing of what lies farther away: for latent maps of
single images and for tests that is often enough, at a fraction of a U-Net's time.
"""

from __future__ import annotations

from torch import Tensor, nn

from regloss_plugins.networks.building_blocks import (
    CONVOLUTION,
    Network,
    check_counts,
    check_dims,
    check_image,
    check_settings,
    convolution,
)


class PlainCNN(Network):
    """Layers of 3x3 convolution, normalisation and ReLU (3x3x3 for volumes), and a 1x1 convolution to the logits.

    Args:
        in_channels: channels C of the image, at least 1.
        classes: classes K, at least 1.
        layers: number of convolutions before the last one, at least 1.
        channels: feature maps, at least 1.
        norm: ``"batch"``, ``"instance"``, ``"group"`` (up to 8 groups) or ``"none"``.
        dims: 2 for images ``(B, C, H, W)``, 3 for volumes ``(B, C, D, H, W)``.

    Raises:
        UsageError: a setting is not one of the allowed values.

    Example:
        >>> import torch
        >>> PlainCNN(in_channels=1, classes=2, layers=2, channels=4)(torch.zeros(2, 1, 9, 5)).shape
        torch.Size([2, 2, 9, 5])
    """

    def __init__(
        self,
        in_channels: int,
        classes: int,
        *,
        layers: int = 3,
        channels: int = 16,
        norm: str = "none",
        dims: int = 2,
    ) -> None:
        super().__init__()
        check_settings("plain-cnn", in_channels, classes, 1, channels, channels, norm)
        check_counts("plain-cnn", layers=layers)
        check_dims("plain-cnn", dims)
        self.in_channels = in_channels
        self.dims = dims
        modules: list[nn.Module] = []
        for layer in range(layers):
            modules += convolution(channels if layer else in_channels, channels, norm, dims)
        self.features = nn.Sequential(*modules)
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
        check_image("plain-cnn", image, self.in_channels, self.dims)
        logits: Tensor = self.classifier(self.features(image))
        return logits
