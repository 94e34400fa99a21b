"""U-Net: an encoder and a decoder joined by skip connections, optionally with attention gates on the skips.

Sources: Ronneberger, Fischer and Brox, U-Net: Convolutional Networks for Biomedical Image Segmentation, MICCAI 2015;
Cicek et al., 3D U-Net, MICCAI 2016; Oktay et al., Attention U-Net: Learning Where to Look for the Pancreas, MIDL 2018;
poolings and convolutions by spacing: Isensee et al., nnU-Net, Nature Methods 18, 2021; the second decoder: Luo et al.,
Scribble-Supervised Medical Image Segmentation via Dual-Branch Network, MICCAI 2022.

Differs from the first of them in: 1. convolutions are padded, so that the logits have the size of the image; 2. the
decoder upsamples by linear interpolation, which leaves no checkerboard in the logits as the transposed convolution can,
for a tenth more time; 3. the normalisation can be chosen.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from regloss.errors import UsageError
from regloss_plugins.networks.building_blocks import (
    CONVOLUTION,
    Network,
    check_dims,
    check_dropout,
    check_image,
    check_settings,
    convolution,
    extended,
    halved_axes,
    level_widths,
)
from regloss_plugins.networks.regularized_relu import smooth_relus

_POOLING = {2: functional.max_pool2d, 3: functional.max_pool3d}
_DROPOUT: dict[int, type[nn.Dropout2d] | type[nn.Dropout3d]] = {2: nn.Dropout2d, 3: nn.Dropout3d}
_INTERPOLATION = {2: "bilinear", 3: "trilinear"}
_CHANNELS_LAST = {2: torch.channels_last, 3: torch.channels_last_3d}


class UNet(Network):
    """U-Net for images and volumes of any size.

    Level 0 has the resolution of the image and ``channels`` feature maps; each further level halves the resolution
    and doubles the feature maps, up to ``max_channels``. A level is two 3x3 convolutions (3x3x3 for volumes), each
    followed by the normalisation and a ReLU. With ``spacing``, axes whose voxels are twice as long as the shortest, or
    more, are neither halved nor convolved along until the others have caught up.

    An image whose size is not divisible by ``2 ** (levels - 1)``, or which is smaller than ``2 ** levels``, is padded
    inside by repeating its last row and column, and the logits are cropped to the size of the image.

    Features are kept channels_last, which saves up to a quarter of a training step on a CPU; parameters and logits
    have the ordinary contiguous layout.

    Args:
        in_channels: channels C of the image, at least 1.
        classes: classes K, at least 1.
        levels: number of resolutions, at least 1; there are ``levels - 1`` poolings.
        channels: feature maps at full resolution, at least 1.
        max_channels: upper bound on the feature maps of a level, at least ``channels``.
        norm: ``"batch"``, ``"instance"``, ``"group"`` (up to 8 groups) or ``"none"``.
        dims: 2 for images ``(B, C, H, W)``, 3 for volumes ``(B, C, D, H, W)``.
        attention: whether additive attention gates weight the skip connections (Oktay et al. 2018).
        dropout: probability in [0, 1) that a feature map between the two convolutions of a level is dropped.
        spacing: distance of neighbouring pixels along each of the ``dims`` axes, in any unit, of the images to come;
            None = the same along all.
        smoothing: weight of total variation within every ReLU (`regularized_relu`), in units of the features, which the
            normalisation gives unit spread; 0 = plain ReLUs.
        smoothing_steps: of the dual ascent within each of them, at least 1.
        deep_supervision: of how many coarser levels of the decoder the logits are learnt too, below ``levels`` - 1.
            In training mode `coarser` has them after a call.
        auxiliary_decoder: whether there is a second decoder, of the same form, for training alone. In training mode
            `auxiliary` has its logits after a call.
        auxiliary_dropout: probability in [0, 1) that the second decoder does not see a feature map of the encoder.

    Attributes:
        coarser: logits (B, K, *S) of coarser levels, fine to coarse, interpolated to the size of the image; empty in
            evaluation mode.
        auxiliary: logits (B, K, *S) of the second decoder; empty in evaluation mode, and where there is none.
        decoders: how many there are.

    Raises:
        UsageError: a setting is not one of the allowed values.

    Example:
        >>> network = UNet(in_channels=1, classes=4, levels=3, channels=4)
        >>> network(torch.zeros(2, 1, 37, 50)).shape
        torch.Size([2, 4, 37, 50])
    """

    def __init__(
        self,
        in_channels: int,
        classes: int,
        *,
        levels: int = 4,
        channels: int = 16,
        max_channels: int = 512,
        norm: str = "batch",
        dims: int = 2,
        attention: bool = False,
        dropout: float = 0.0,
        spacing: Sequence[float] | None = None,
        smoothing: float = 0.0,
        smoothing_steps: int = 3,
        deep_supervision: int = 0,
        auxiliary_decoder: bool = False,
        auxiliary_dropout: float = 0.5,
    ) -> None:
        super().__init__()
        check_settings("unet", in_channels, classes, levels, channels, max_channels, norm)
        check_dims("unet", dims)
        check_dropout("unet", dropout)
        check_dropout("unet", auxiliary_dropout, "auxiliary_dropout")
        if spacing is not None and (len(spacing) != dims or not all(0 < step < math.inf for step in spacing)):
            raise UsageError(f"unet: spacing must be {dims} positive numbers, one for each axis, not {list(spacing)}")

        self.in_channels = in_channels
        self.dims = dims
        widths = level_widths(channels, levels, max_channels)
        if not 0 <= deep_supervision <= max(levels - 2, 0):
            raise UsageError(
                f"unet: deep_supervision must lie in 0 to {max(levels - 2, 0)}, the coarser levels of a decoder for "
                f"levels = {levels}, not {deep_supervision}"
            )
        # One entry for each pooling; the factors of the axes' lengths, and at each level those axes that convolutions
        # see, which are the ones that it halves.
        halved = halved_axes(spacing, levels + 1, dims)
        self.factors = [tuple(2 if half else 1 for half in axes) for axes in halved[:-1]]
        # How much coarser than the image each level is. Here, since compilers cannot trace these products.
        self.scales = [
            tuple(math.prod(factors[axis] for factors in self.factors[:level]) for axis in range(dims))
            for level in range(levels)
        ]
        kernels = [tuple(3 if half else 1 for half in axes) for axes in halved]
        self.encoder = nn.ModuleList(
            _block(before, width, norm, dims, dropout, kernel)
            for before, width, kernel in zip([in_channels, *widths[:-1]], widths, kernels, strict=True)
        )

        def decoder() -> nn.ModuleList:
            """Stages from fine to coarse, stage l joining level l + 1 to level l."""
            return nn.ModuleList(
                _DecoderStage(coarse, fine, norm, dims, attention, dropout, factors, kernel)
                for (fine, coarse), factors, kernel in zip(
                    itertools.pairwise(widths), self.factors, kernels[:-1], strict=True
                )
            )

        self.decoder = decoder()
        self.classifier = CONVOLUTION[dims](widths[0], classes, kernel_size=1)
        self.coarser_classifiers = nn.ModuleList(
            CONVOLUTION[dims](width, classes, kernel_size=1) for width in widths[1 : deep_supervision + 1]
        )
        self.coarser: list[Tensor] = []
        self.decoders = 2 if auxiliary_decoder else 1
        if auxiliary_decoder:
            self.auxiliary_decoder = decoder()
            self.auxiliary_classifier = CONVOLUTION[dims](widths[0], classes, kernel_size=1)
            self.auxiliary_dropout = _DROPOUT[dims](auxiliary_dropout)
        self.auxiliary: list[Tensor] = []
        if isinstance(smoothing, Tensor) or not 0 <= smoothing < math.inf:
            raise UsageError(f"unet: smoothing must be at least 0, a finite number; got {smoothing}")
        if smoothing > 0:
            smooth_relus(self, smoothing, smoothing_steps)

    def forward(self, image: Tensor) -> Tensor:
        """Compute the logits.

        Args:
            image: ``(B, C, *S)``, floating point.

        Returns:
            Logits ``(B, K, *S)``.

        Raises:
            UsageError: the image has another number of dimensions or channels than the network.
        """
        check_image("unet", image, self.in_channels, self.dims)
        size = image.shape[2:]
        # clone, because contiguous() takes a one-channel image for channels_last already and leaves its strides alone.
        features = self._pad(image).clone(memory_format=_CHANNELS_LAST[self.dims])
        skips: list[Tensor] = []
        for level, block in enumerate(self.encoder):
            if level > 0:
                skips.append(features)
                features = _POOLING[self.dims](features, self.factors[level - 1])
            features = block(features)
        self.coarser, self.auxiliary = [], []
        if self.training and self.decoders > 1:
            self.auxiliary = [_cropped(self._auxiliary_logits(features, skips), size)]
        for level, stage in reversed(list(enumerate(self.decoder))):
            features = stage(features, skips)
            if self.training and 0 < level <= len(self.coarser_classifiers):
                logits = self.coarser_classifiers[level - 1](features)
                factors = tuple(map(float, self.scales[level]))
                logits = functional.interpolate(logits, scale_factor=factors, mode=_INTERPOLATION[self.dims])
                self.coarser.insert(0, _cropped(logits, size))
        return _cropped(self.classifier(features), size)

    def start_weights(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights to start from, of a network without a second decoder too: then it begins as a copy of the first."""
        missing = [name for name in self.state_dict() if name.startswith("auxiliary_") and name not in weights]
        firsts = {name: name.removeprefix("auxiliary_") for name in missing}
        return {**weights, **{name: weights[first].clone() for name, first in firsts.items() if first in weights}}

    def _auxiliary_logits(self, features: Tensor, skips: Sequence[Tensor]) -> Tensor:
        features, *seen = (self.auxiliary_dropout(each) for each in (features, *skips))
        for stage in reversed(self.auxiliary_decoder):
            features = stage(features, seen)
        logits: Tensor = self.auxiliary_classifier(features)
        return logits

    def _pad(self, image: Tensor) -> Tensor:
        # The coarsest level keeps two pixels along each axis: batch and instance normalisation need more than one.
        sizes = zip(image.shape[2:], self.scales[-1], strict=True)
        return extended(image, [max(-(-size // divisor), 2) * divisor for size, divisor in sizes])


def _cropped(logits: Tensor, size: Sequence[int]) -> Tensor:
    for axis, length in enumerate(size, start=2):
        logits = logits.narrow(axis, 0, length)
    return logits.contiguous()


class _DecoderStage(nn.Module):
    """Upsample the coarse features, join them with the skip, convolve twice.

    The 1x1 convolution commutes with the interpolation, so it stands before it, where there are 2^dims times fewer
    pixels. The skip is taken off a list of them, and nothing else holds it: without gradients it is gone before the
    convolutions begin, which is where an image of full size takes most memory.
    """

    def __init__(
        self,
        coarse: int,
        fine: int,
        norm: str,
        dims: int,
        attention: bool,
        dropout: float,
        factors: tuple[int, ...],
        kernel: tuple[int, ...],
    ) -> None:
        super().__init__()
        self.reduce = CONVOLUTION[dims](coarse, fine, kernel_size=1)
        self.gate = _AttentionGate(fine, coarse, dims, factors) if attention else None
        self.block = _block(2 * fine, fine, norm, dims, dropout, kernel)
        self.factors = tuple(map(float, factors))
        self.interpolation = _INTERPOLATION[dims]

    def forward(self, coarse: Tensor, skips: list[Tensor]) -> Tensor:
        joined: Tensor = self.block(self._joined(coarse, skips.pop()))
        return joined

    def _joined(self, coarse: Tensor, skip: Tensor) -> Tensor:
        if self.gate is not None:
            skip = self.gate(skip, coarse)
        upsampled = functional.interpolate(self.reduce(coarse), scale_factor=self.factors, mode=self.interpolation)
        return torch.cat([skip, upsampled], dim=1)


class _AttentionGate(nn.Module):
    """Additive attention on a skip connection: ``skip * sigmoid(psi' relu(W_x skip + W_g gating + b_g) + b_psi)``.

    ``W_x`` has the stride of the pooling, so that the sum is formed at the resolution of the gating signal (the coarser
    level), and the coefficients are interpolated to the resolution of the skip.
    """

    def __init__(self, skip: int, gating: int, dims: int, factors: Any) -> None:
        super().__init__()
        layer = CONVOLUTION[dims]
        self.skip = layer(skip, skip, kernel_size=factors, stride=factors, bias=False)
        self.factors = tuple(map(float, factors))
        self.gating = layer(gating, skip, kernel_size=1)
        self.psi = layer(skip, 1, kernel_size=1)
        self.interpolation = _INTERPOLATION[dims]

    def forward(self, skip: Tensor, gating: Tensor) -> Tensor:
        scores = self.psi(functional.relu(self.skip(skip) + self.gating(gating)))
        return skip * functional.interpolate(torch.sigmoid(scores), scale_factor=self.factors, mode=self.interpolation)


def _block(before: int, after: int, norm: str, dims: int, dropout: float, kernel: tuple[int, ...]) -> nn.Sequential:
    layers: list[nn.Module] = [*convolution(before, after, norm, dims, kernel)]
    if dropout > 0.0:
        layers.append(_DROPOUT[dims](dropout))
    layers += convolution(after, after, norm, dims, kernel)
    return nn.Sequential(*layers)
