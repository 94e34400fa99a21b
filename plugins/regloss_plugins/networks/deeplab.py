"""What DeepLab's networks share: ImageNet's normalisation, images of a size that strides fit, groups of parameters."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from regloss_plugins.networks.building_blocks import Network, check_flat_image, extended
from regloss_plugins.networks.encoders.encoder import Encoder

# On images in [0, 1]; what torchvision's encoders were trained with.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

E = TypeVar("E", bound=Encoder)


class DeepLab(Network, Generic[E]):
    """A head on an encoder with dilations in place of its last strides, for images of any size.

    Features of stride s are centred on the pixels 0, s, 2s, ..., so feature maps and image align exactly when the
    image has ``output_stride * m + 1`` pixels along each axis (321 and 513 are such sizes). Other images are padded
    inside to the next such size by repeating their last row and column, and the logits are cropped to the size of the
    image.

    Images of three channels are normalised inside with ImageNet's mean and standard deviation; give values in [0, 1].
    Images of any other number of channels are taken as they are.

    Args:
        in_channels: channels C of the image.
        encoder: of the network.
        output_stride: of the encoder's features.
    """

    name: ClassVar[str]
    """As the configuration calls the network, for messages."""
    mean: Tensor
    std: Tensor
    encoder: E

    def __init__(self, in_channels: int, encoder: E, output_stride: int) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.output_stride = output_stride
        self.encoder = encoder
        normalised = in_channels == len(IMAGENET_MEAN)
        self.normalizes_input = normalised  # a second normalisation before this one is refused by training
        for buffer, numbers in (
            ("mean", IMAGENET_MEAN if normalised else (0.0,)),
            ("std", IMAGENET_STD if normalised else (1.0,)),
        ):
            # Not persistent: they follow from in_channels, and checkpoints need not repeat them.
            self.register_buffer(buffer, torch.tensor(numbers).reshape(-1, 1, 1), persistent=False)

    def backbone(self) -> Sequence[nn.Module]:
        """The modules that start from published weights."""
        return [self.encoder]

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Name the groups of parameters that a trainer may give different learning rates.

        Returns:
            ``"backbone"``, what published weights fill, and ``"head"``, everything else; each parameter is in exactly
            one of them.
        """
        backbone = [parameter for module in self.backbone() for parameter in module.parameters()]
        known = {id(parameter) for parameter in backbone}
        return {"backbone": backbone, "head": [each for each in self.parameters() if id(each) not in known]}

    def prepared(self, image: Tensor) -> Tensor:
        """An image (B, C, H, W), checked, normalised and padded.

        Raises:
            UsageError: it has another number of dimensions or channels than the network.
        """
        check_flat_image(self.name, image, self.in_channels)
        # At least two feature positions along each axis: batch normalisation needs more than one.
        stride = self.output_stride
        lengths = [stride * max(math.ceil((size - 1) / stride), 1) + 1 for size in image.shape[2:]]
        image = extended((image - self.mean) / self.std, lengths)
        # clone, because contiguous() takes a one-channel image for channels_last already and leaves its strides alone.
        return image.clone(memory_format=torch.channels_last)

    @staticmethod
    def enlarged(logits: Tensor, padded: Tensor, image: Tensor) -> Tensor:
        """Coarse logits (B, K, *) at the resolution of the padded image, cropped to the size of the image."""
        height, width = image.shape[2:]
        return resized(logits, padded.shape[2:])[:, :, :height, :width].contiguous()


def initialise_classifier(module: nn.Module) -> None:
    """Draw a convolution's weights as the authors of DeepLab do, so that all classes are about alike at first."""
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, std=0.01)
        assert module.bias is not None
        nn.init.zeros_(module.bias)


def resized(features: Tensor, size: torch.Size) -> Tensor:
    """Features, interpolated; the first and last are centred on the first and last pixel, see `DeepLab`."""
    return functional.interpolate(features, size=size, mode="bilinear", align_corners=True)
