"""The same work on a device in single precision, and on the CPU in double."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Place:
    """A device and a precision."""

    device: torch.device
    dtype: torch.dtype

    def __call__(self, value: Any) -> Any:
        """A tensor or a module there; labels and masks keep their type."""
        if isinstance(value, Tensor) and not value.is_floating_point():
            return value.to(self.device)
        return value.to(self.device, self.dtype)


Work = Callable[[Place], Sequence[Tensor]]


def found_and_exact(work: Work, device: torch.device) -> list[tuple[Tensor, Tensor]]:
    """What ``work`` gives on the device in single precision, each beside what it gives on the CPU in double."""
    exact = work(Place(torch.device("cpu"), torch.float64))
    found = work(Place(device, torch.float32))
    assert all(one.device.type == device.type for one in found)
    return list(zip(found, exact, strict=True))
