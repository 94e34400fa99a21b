"""What is read back of a run's folder, JSON and checkpoints, checked as configurations are: files may be damaged."""

from __future__ import annotations

import json
import math
import re
import reprlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from torch import Tensor

from regloss.errors import UsageError
from regloss.io.classes import MAX_CLASSES
from regloss.io.windows import DEEP, Window

LARGEST = 64 * 1024**2
"""Bytes of a JSON file of a run; those of real runs have thousands."""

_shortened = reprlib.Repr()
_shortened.maxstring = _shortened.maxother = 200
_shortened.maxlong = 60
_shortened.maxlist = _shortened.maxtuple = _shortened.maxdict = 20

_Count = Annotated[int, Field(strict=True, ge=0, le=10**12)]
_Generation = Annotated[int, Field(strict=True, ge=-1, le=10**12)]
_Byte = Annotated[int, Field(strict=True, ge=0, le=255)]
_Name = Annotated[str, Field(strict=True)]
_Number = Annotated[float, Field(strict=True)]


class ModelCard(BaseModel):
    """model.json: what must be known of a model besides its weights."""

    config: dict[str, Any]
    classes: list[_Name] = Field(min_length=1, max_length=MAX_CLASSES)
    colors: list[tuple[_Byte, _Byte, _Byte]]
    channels: int = Field(strict=True, ge=1, le=1024)
    # Runs of earlier versions, which name none, have divided 16-bit values by the largest that there can be.
    window: tuple[_Number, _Number] | tuple[_Number, _Number, int] | None = (0, 65535, DEEP)

    spacing: list[Annotated[float, Field(strict=True, gt=0, lt=math.inf)]] | None = Field(
        default=None, min_length=2, max_length=3
    )

    @field_validator("window")
    @classmethod
    def _a_window(cls, value: Any) -> Any:
        Window.of(value)
        return value

    @model_validator(mode="after")
    def _one_color_a_class(self) -> ModelCard:
        if len(self.colors) != len(self.classes):
            raise ValueError(f"holds {len(self.classes)} classes and {len(self.colors)} colors")
        return self


class OptimizerState(BaseModel):
    """What is no tensor of an optimizer's state: settings of its groups, and numbers by parameter and name."""

    param_groups: list[dict[str, Any]]
    plain: dict[str, dict[str, Any]] = {}


class State(BaseModel):
    """state.json of a checkpoint; plugins' and later versions' keys beside these are kept."""

    model_config = ConfigDict(extra="allow")

    step: _Count
    generation: _Generation = -1
    generation_epoch: _Generation = Field(default=-1, alias="generation-epoch")
    numbers: dict[str, _Number] = {}
    optimizer: OptimizerState
    modules: dict[str, OptimizerState] = {}


Kind = TypeVar("Kind", bound=BaseModel)


def shortened(value: object) -> str:
    """``value`` as Python writes it, cut where it is long.

    >>> shortened("x" * 1000)[:3], len(shortened("x" * 1000)), shortened([1, "a"])
    ("'xx", 200, "[1, 'a']")
    """
    return _shortened.repr(value)


def read_json(path: Path) -> Any:
    """What a JSON file of a run holds.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no JSON, too large, or nested too deep.
    """
    size = path.stat().st_size
    if not path.is_file() or size > LARGEST:
        raise ValueError(f"it has {size} bytes, more than {LARGEST}" if path.is_file() else "it is no regular file")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except RecursionError as cause:
        raise ValueError("it is nested too deep") from cause


def checked(kind: type[Kind], content: Any, path: Path) -> Kind:
    """``content`` of the file ``path`` as ``kind``.

    Raises:
        UsageError: it is something else; the message names the keys.
    """
    try:
        return kind.model_validate(content)
    except ValidationError as cause:
        found = cause.errors()
        problems = [
            f"{'.'.join(map(str, error['loc'])) or 'it'}: {error['msg']}; got {shortened(error.get('input'))}"
            for error in found[:3]
        ]
        more = f"; and {len(found) - 3} more" if len(found) > 3 else ""
        raise UsageError(f"{path} is damaged: {'; '.join(problems)}{more}. Take it from a copy of the run.") from None


def check_optimizer_state(
    state: Mapping[str, Any], tensors: Mapping[str, Tensor], optimizer: torch.optim.Optimizer, where: str
) -> None:
    """Raise `UsageError`, naming ``where`` and the key, unless ``optimizer`` can go on from a checkpoint's state.

    Args:
        state: an `OptimizerState` as plain data.
        tensors: by "state/PARAMETER/NAME".
        optimizer: as it begins.
        where: the file, for messages.
    """
    groups, expected = state["param_groups"], optimizer.state_dict()["param_groups"]
    if len(groups) != len(expected):
        raise UsageError(f"{where}: optimizer.param_groups holds {len(groups)} groups instead of {len(expected)}.")
    for number, (group, begun) in enumerate(zip(groups, expected, strict=True)):
        for key, value in begun.items():
            if key in group and not _is_such(group[key], value, key):
                raise UsageError(
                    f"{where}: optimizer.param_groups.{number}.{key} cannot be {shortened(group[key])}, where this "
                    f"training begins with {shortened(value)}."
                )
        if "params" not in group:
            raise UsageError(f"{where}: optimizer.param_groups.{number}.params is missing.")
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    names: dict[int, set[str]] = {}
    for key, tensor in tensors.items():
        match = re.fullmatch(r"state/(\d{1,9})/(\w+)", key)
        if match is None or int(match[1]) >= len(parameters):
            raise UsageError(f"{where}: the optimizer's {key!r} belongs to none of {len(parameters)} parameters.")
        shape = parameters[int(match[1])].shape
        if tensor.shape != shape and tensor.numel() != 1:
            raise UsageError(f"{where}: the optimizer's {key} is {tuple(tensor.shape)} instead of {tuple(shape)}.")
        if not tensor.is_floating_point() or not bool(torch.isfinite(tensor).all()):
            raise UsageError(f"{where}: the optimizer's {key}, {tensor.dtype}, holds other than finite floats.")
        if match[2] == "step" and float(tensor) < 0:
            raise UsageError(f"{where}: the optimizer's {key} is {float(tensor)}, not a number of steps.")
        names.setdefault(int(match[1]), set()).add(match[2])
    for key, entries in state["plain"].items():
        if (
            not key.isdecimal()
            or int(key) >= len(parameters)
            or not all(value is None or isinstance(value, bool) or _is_number(value) for value in entries.values())
        ):
            raise UsageError(f"{where}: optimizer.plain.{key} is {shortened(entries)}, no numbers of a parameter.")
        names.setdefault(int(key), set()).update(entries)
    if isinstance(optimizer, torch.optim.Adam | torch.optim.AdamW):
        for parameter, found in names.items():
            missing = {"step", "exp_avg", "exp_avg_sq"} - found
            if missing:
                raise UsageError(f"{where}: the optimizer's state/{parameter}/{min(missing)} is missing.")


def _is_such(value: Any, begun: Any, key: str) -> bool:
    """Whether ``value`` may stand for a setting of an optimizer that begins with ``begun``."""
    if key == "params":
        return bool(value == begun)
    if isinstance(begun, Sequence) and not isinstance(begun, str):
        return (
            isinstance(value, Sequence)
            and len(value) == len(begun)
            and all(_is_such(one, other, "") for one, other in zip(value, begun, strict=True))
        )
    if _is_number(begun):
        return _is_number(value) and value >= 0
    return value is None or isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= 1e30
