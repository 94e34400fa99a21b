"""A device that knows no float64, as Apple's GPUs: tensors on the CPU that say they are there, and refuse it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map_only

PLACE = torch.device("mps")
_TO_CPU = {Tensor.cpu}
_FORBIDDEN = {Tensor.numpy, Tensor.__array__}


class _There(Tensor):
    """A tensor on the device."""

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), options: Any = None) -> Any:
        return _computed(function, args, options or {})


class WithoutDoubles(TorchFunctionMode):
    """Makes such a device usable as ``torch.device("mps")``, in code whose tensors were brought to it."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), options: Any = None) -> Any:
        """Compute, on the device where that is asked for or a tensor is there."""
        return _computed(function, args, options or {})


def _brought(value: Tensor) -> Tensor:
    if value.dtype in (torch.float64, torch.complex128):
        raise TypeError(f"a tensor on {PLACE} of {value.dtype}, which the device does not know")
    return value if isinstance(value, _There) else value.as_subclass(_There)


def _computed(function: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
    leaves, _ = tree_flatten((args, options))
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    away = any(isinstance(tensor, _There) for tensor in tensors)
    if function == Tensor.device.__get__ and away:
        return PLACE
    if function in _FORBIDDEN and away:
        raise TypeError(f"a tensor on {PLACE} is no array; bring it to the CPU")
    target = away
    asked = [torch.device(leaf) for leaf in leaves if isinstance(leaf, torch.device)]
    asked += [torch.device(options["device"])] if isinstance(options.get("device"), str) else []
    if function is Tensor.to and len(args) > 1 and isinstance(args[1], str):
        asked += [torch.device(args[1])]
    if function is Tensor.to and len(args) > 1 and isinstance(args[1], Tensor):
        target = isinstance(args[1], _There)
    elif function in _TO_CPU:
        target = False
    elif asked:
        target = asked[0].type == PLACE.type
    elif away and not function.__name__.startswith("__get") and torch._C._current_graph_task_id() < 0:
        apart = [each for each in tensors if not isinstance(each, _There) and each.ndim > 0 and not each.is_sparse]
        if apart and function is not Tensor.__setitem__ and function is not Tensor.copy_:
            raise RuntimeError(f"{function.__name__}: tensors on {PLACE} and on the CPU")
    with torch._C.DisableTorchFunction():
        args, options = tree_map_only(torch.device, lambda _: torch.device("cpu"), (args, options))
        if isinstance(options.get("device"), str):
            options["device"] = "cpu"
        if function is Tensor.to:
            args = tuple("cpu" if isinstance(each, str) else each for each in args)
        found = function(*args, **options)
    if isinstance(found, torch.Size):
        return found
    return tree_map_only(Tensor, _brought if target else _left, found)


def _left(value: Tensor) -> Tensor:
    return value.as_subclass(Tensor) if isinstance(value, _There) else value
