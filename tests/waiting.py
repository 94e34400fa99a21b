"""How often the host waits for a device: counted on the CPU, by the operations that give it a number or a size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

_WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "equal"}


class _Counting(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.waits = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.waits += function.overloadpacket.__name__ in _WAITS
        return function(*args, **(kwargs or {}))


def waits(work: Callable[[], Any]) -> int:
    """How often ``work`` would wait for a GPU."""
    counting = _Counting()
    with counting:
        work()
    return counting.waits
