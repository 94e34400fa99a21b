"""Precision of sums."""

from __future__ import annotations

import torch


def widest_float(device: torch.device) -> torch.dtype:
    """Float64, in which sums are taken whose differences are looked at; float32 where the device knows no float64."""
    return torch.float32 if device.type == "mps" else torch.float64  # Apple's GPUs
