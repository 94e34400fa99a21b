"""Whether a device knows double precision. A device in, a truth value out."""

from __future__ import annotations

import torch


def knows_doubles(device: torch.device) -> bool:
    """Whether there is float64 on it; not on Apple's GPUs."""
    return device.type != "mps"
