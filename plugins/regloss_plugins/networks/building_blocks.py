"""What the networks of this package share: a base class, checks, a convolution with its normalisation, and sizes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from regloss.errors import UsageError
from regloss.settings import CheckedSettings

NORMS = ("batch", "instance", "group", "none")

CONVOLUTION: dict[int, type[nn.Conv2d] | type[nn.Conv3d]] = {2: nn.Conv2d, 3: nn.Conv3d}
_BATCH_NORM: dict[int, type[nn.BatchNorm2d] | type[nn.BatchNorm3d]] = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
_MAX_GROUPS = 8
_MAX_LEVELS = 16  # an image of 65,536 pixels then has one left
_MAX_CHANNELS = 2**14


class Network(nn.Module, metaclass=CheckedSettings):
    """Logits (B, K, *S) from images (B, C, *S), all of whose parameters belong together unless it says otherwise."""

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Name the groups of parameters that a trainer may give different learning rates: here one, ``"all"``."""
        return {"all": list(self.parameters())}


def check_settings(
    network: str, in_channels: int, classes: int, levels: int, channels: int, max_channels: int, norm: str
) -> None:
    """Raise `UsageError`, in the name of ``network``, for what no encoder-decoder can be made with."""
    check_counts(network, in_channels=in_channels, classes=classes, levels=levels, channels=channels)
    for name, value, largest in (("levels", levels, _MAX_LEVELS), ("max_channels", max_channels, _MAX_CHANNELS)):
        if value > largest:
            raise UsageError(f"{network}: {name} must be at most {largest}, not {value}")
    if max_channels < channels:
        raise UsageError(f"{network}: max_channels must be at least channels ({channels}), not {max_channels}")
    if norm not in NORMS:
        raise UsageError(f"{network}: norm must be one of {', '.join(NORMS)}, not {norm!r}")


def check_counts(network: str, **counts: int) -> None:
    """Raise `UsageError`, in the name of ``network``, unless each of ``counts`` is a whole number of at least 1."""
    for name, value in counts.items():
        if not isinstance(value, int) or value < 1:
            raise UsageError(f"{network}: {name} must be a whole number of at least 1, not {value!r}")


def check_dims(network: str, dims: int) -> None:
    """Raise `UsageError`, in the name of ``network``, unless there are as many spatial axes as convolutions have."""
    if dims not in CONVOLUTION:
        raise UsageError(f"{network}: dims must be 2 (images) or 3 (volumes), not {dims!r}")


def check_dropout(network: str, dropout: float, name: str = "dropout") -> None:
    """Raise `UsageError`, in the name of ``network``, unless ``dropout`` is a probability below 1."""
    if not 0.0 <= dropout < 1.0:
        raise UsageError(f"{network}: {name} must lie in [0, 1), not {dropout}")


def check_image(network: str, image: Tensor, in_channels: int, dims: int) -> None:
    """Raise `UsageError`, in the name of ``network``, unless an image is (B, C, *S) with the axes that it takes."""
    if image.ndim != dims + 2 or image.shape[1] != in_channels:
        raise UsageError(
            f"{network}: expected an image (batch, {in_channels}, *size) with {dims} spatial dimensions, not one of "
            f"shape {tuple(image.shape)}; set in_channels and dims to match"
        )


def check_flat_image(network: str, image: Tensor, in_channels: int, way_out: str = "") -> None:
    """As `check_image`, for a network that takes images (B, C, H, W) alone; ``way_out`` goes on in the message."""
    if image.ndim != 4 or image.shape[1] != in_channels:
        raise UsageError(
            f"{network}: expected an image (batch, {in_channels}, height, width), not one of shape "
            f"{tuple(image.shape)}; set in_channels to match{way_out}"
        )


def level_widths(channels: int, levels: int, max_channels: int) -> list[int]:
    """Feature maps of each level, from fine to coarse: twice as many in each, up to ``max_channels``.

    >>> level_widths(16, 4, 100)
    [16, 32, 64, 100]
    """
    return [min(channels * 2**level, max_channels) for level in range(levels)]


def halved_axes(spacing: Sequence[float] | None, levels: int, dims: int) -> list[tuple[bool, ...]]:
    """Which axes each pooling between ``levels`` halves: those whose spacing is less than twice the finest.

    So voxels become about as long as they are wide, before all axes are halved.

    >>> halved_axes((3.0, 0.5, 0.5), 4, 3)
    [(False, True, True), (False, True, True), (True, True, True)]
    """
    lengths = [1.0] * dims if spacing is None else list(spacing)
    found = []
    for _ in range(levels - 1):
        halved = tuple(length < 2 * min(lengths) for length in lengths)
        lengths = [2 * length if half else length for length, half in zip(lengths, halved, strict=True)]
        found.append(halved)
    return found


def extended(image: Tensor, lengths: Sequence[int]) -> Tensor:
    """An image (B, C, *S) up to these lengths along its axes, by repeating its last entries; itself if it has them."""
    missing = [length - size for length, size in zip(lengths, image.shape[2:], strict=True)]
    padding = [end for after in reversed(missing) for end in (0, after)]
    return functional.pad(image, padding, mode="replicate") if any(missing) else image


def convolution(
    before: int, after: int, norm: str, dims: int, kernel: Sequence[int] | None = None
) -> Sequence[nn.Module]:
    """A convolution (by default 3x3 or 3x3x3), the normalisation and a ReLU; what every network here is made of."""
    sizes: Any = (3,) * dims if kernel is None else tuple(kernel)  # torch's types want one for each number of axes
    margins: Any = tuple(size // 2 for size in sizes)
    # A normalisation subtracts what a bias would add, so the bias is only there without one.
    layer = CONVOLUTION[dims](before, after, kernel_size=sizes, padding=margins, bias=norm == "none")
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer, *normalization(after, norm, dims), nn.ReLU(inplace=True)


def normalization(channels: int, norm: str, dims: int) -> Sequence[nn.Module]:
    """The normalisation called ``norm`` of so many feature maps; no module for "none"."""
    if norm == "batch":
        return (_BATCH_NORM[dims](channels),)
    if norm == "instance":
        # One group a channel is instance normalisation, and unlike nn.InstanceNorm it works in channels_last.
        return (nn.GroupNorm(channels, channels),)
    if norm == "group":
        return (nn.GroupNorm(math.gcd(channels, _MAX_GROUPS), channels),)
    return ()
