"""What an encoder offers, how its strides become dilations, and how it reads a weights file."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from regloss.errors import UsageError
from regloss.settings import CheckedSettings

_LISTED_KEYS = 5


class Encoder(nn.Module, metaclass=CheckedSettings):
    """A classification network without its classifier, as ``forward(image) -> (low_level, high_level)``.

    ``low_level`` ``(B, low_level_channels, *)`` has stride 4, ``high_level`` ``(B, high_level_channels, *)`` has the
    output stride that the encoder was built with. Along an axis of n pixels a stride of s leaves
    ``floor((n - 1) / s) + 1`` positions, the i-th centred on pixel ``s * i``.

    Parameters and buffers are named as in torchvision's network of the same name.
    """

    low_level_channels: int
    high_level_channels: int
    # Prefixes of the keys in a weights file that belong to layers which the encoder deliberately does not have.
    unused_keys: ClassVar[tuple[str, ...]] = ()
    first_convolution: ClassVar[str]

    @staticmethod
    def torchvision_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A state dict with the names of another library that the encoder knows, under torchvision's."""
        return dict(state)

    def initialise(self) -> None:
        """Draw the convolutions' weights (He et al. 2015, by outgoing connections); norms start as the identity."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)


def atrous_stages(strides: Sequence[int], start: int, output_stride: int) -> Iterator[tuple[int, int, int]]:
    """Replace strides by dilations once the output stride is reached.

    Where a stage may no longer stride, its first block keeps the dilation of the stage before and all later blocks
    double it. So, at the positions that the strided network has, the features are those of the strided network, and
    weights trained with strides mean the same (Chen et al., Rethinking Atrous Convolution, 2017, section 3.1).

    Args:
        strides: the stride of each stage's first block, as published.
        start: stride in front of the first stage.
        output_stride: stride that must not be exceeded.

    Yields:
        For each stage the stride of its first block, the dilation of its first block, the dilation of the others.

    Example:
        >>> list(atrous_stages([1, 2, 2, 2], start=4, output_stride=8))
        [(1, 1, 1), (2, 1, 1), (1, 1, 2), (1, 2, 4)]
    """
    reached, dilation = start, 1
    for stride in strides:
        if reached * stride <= output_stride:
            reached *= stride
            yield stride, dilation, dilation
        else:
            yield 1, dilation, dilation * stride
            dilation *= stride


def load_weights(encoder: Encoder, path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Fill an encoder from a local file that holds a state dict with torchvision's names, or others that it knows.

    Keys of the classifier (``encoder.unused_keys``) are left out on purpose. ``num_batches_tracked`` may be missing, as
    in files written before torch 0.4.1; training with the usual momentum does not read it. Every other key must match.

    Args:
        encoder: changed in place.
        path: a ``.pth`` or ``.pt`` file, read with ``torch.load(weights_only=True)``, or a ``.safetensors`` file.

    Returns:
        What was left out, by name.

    Raises:
        UsageError: the file is missing, unreadable, of another format, or does not fit the encoder.
    """
    path = Path(path)
    state = encoder.torchvision_names(read_weights_file(path))
    given = {key: value for key, value in state.items() if not key.startswith(encoder.unused_keys)}
    expected = encoder.state_dict()
    for key, value in expected.items():
        if key.endswith(".num_batches_tracked"):
            given.setdefault(key, value)

    name = encoder.first_convolution
    if name in given and given[name].ndim == 4 and given[name].shape[1] != expected[name].shape[1]:
        raise UsageError(
            f"{path} was trained on images of {given[name].shape[1]} channels, but in_channels is "
            f"{expected[name].shape[1]}; give images of {given[name].shape[1]} channels (a grey image can be repeated) "
            "or leave out weights"
        )
    problems = [
        _listed("missing", [key for key in expected if key not in given]),
        _listed("unexpected", [key for key in given if key not in expected]),
        _listed(
            "of another shape",
            [
                f"{key} {tuple(given[key].shape)} instead of {tuple(value.shape)}"
                for key, value in expected.items()
                if key in given and given[key].shape != value.shape
            ],
        ),
    ]
    if any(problems):
        raise UsageError(
            f"{path} does not hold weights of this encoder: {'; '.join(filter(None, problems))}. "
            "Expected is a state dict with torchvision's names; check that weights and encoder belong together"
        )
    encoder.load_state_dict(given)
    return {key: value for key, value in state.items() if key not in given}


def read_weights_file(path: Path) -> dict[str, Tensor]:
    """The tensors of a weights file by name.

    Raises:
        UsageError: the file is missing, unreadable, or holds something else.
    """
    if not path.is_file():
        raise UsageError(
            f"weights file {path} does not exist (or is no file); nothing is downloaded, give a local file"
        )
    if path.suffix == ".safetensors":
        try:
            return safetensors.torch.load_file(path)
        except safetensors.SafetensorError as error:
            raise UsageError(f"weights file {path} cannot be read as safetensors: {error}") from error
    if path.suffix not in (".pth", ".pt"):
        raise UsageError(f"weights file {path} must end in .pth, .pt or .safetensors, not in {path.suffix!r}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file makes torch.load raise nearly anything, down to AssertionError
        raise UsageError(f"weights file {path} cannot be read by torch.load(weights_only=True): {error}") from error
    if not isinstance(content, dict):
        raise UsageError(
            f"weights file {path} must hold a state dict (names to tensors), not a {type(content).__name__}"
        )
    strangers = [
        repr(key) for key, value in content.items() if not (isinstance(key, str) and isinstance(value, Tensor))
    ]
    if strangers:
        raise UsageError(
            f"weights file {path} must hold a state dict (names to tensors) and nothing else; "
            f"{_listed('that are no tensors', strangers)}. Save the state dict of the encoder alone"
        )
    return content


def _listed(problem: str, keys: Sequence[str]) -> str:
    if not keys:
        return ""
    more = f" and {len(keys) - _LISTED_KEYS} more" if len(keys) > _LISTED_KEYS else ""
    return f"{len(keys)} {problem}: {', '.join(keys[:_LISTED_KEYS])}{more}"
