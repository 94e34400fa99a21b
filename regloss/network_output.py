"""What networks of other libraries give instead of logits at the size of their images."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch import Tensor

from regloss.errors import UsageError

_NAMES = ("logits", "out")  # as Hugging Face's models and torchvision's call them


def logits_of(output: Any, size: Sequence[int]) -> Tensor:
    """Logits (B, K, *S) at the size of the image, from a network's output.

    Args:
        output: logits, or a mapping or an object with fields, one of which is called ``logits`` or ``out``.
        size: S of the image. Smaller logits are enlarged, bilinearly in 2D and trilinearly in 3D.

    Raises:
        UsageError: the output is something else, or larger than the image.

    >>> import torch
    >>> logits_of({"out": torch.zeros(1, 2, 4, 4), "aux": None}, (8, 8)).shape
    torch.Size([1, 2, 8, 8])
    """
    logits = _tensor_in(output)
    if logits.ndim != len(size) + 2:
        raise UsageError(
            f"The network makes {tuple(logits.shape)} of an image of {tuple(size)}; logits have the axes (B, K, *S)."
        )
    found = tuple(logits.shape[2:])
    if found == tuple(size):
        return logits
    if any(have > wanted for have, wanted in zip(found, size, strict=True)):
        raise UsageError(f"The network makes logits of {found}, larger than their image of {tuple(size)}.")
    mode = {1: "linear", 2: "bilinear", 3: "trilinear"}[len(size)]
    return F.interpolate(logits, tuple(size), mode=mode, align_corners=False)


def _tensor_in(output: Any) -> Tensor:
    if isinstance(output, Tensor):
        return output
    held: Mapping[str, Any] = {}
    if isinstance(output, Mapping):
        held = output
    elif dataclasses.is_dataclass(output):
        held = {field.name: getattr(output, field.name) for field in dataclasses.fields(output)}
    for name in _NAMES:
        if isinstance(held.get(name), Tensor):
            found: Tensor = held[name]
            return found
    holds = f" with {', '.join(map(repr, held))}" if held else ""
    raise UsageError(
        f"The network's output is a {type(output).__name__}{holds}; needed are logits, or a mapping or dataclass that "
        "holds them as 'logits' or 'out'. Wrap the network in a module that picks them."
    )
