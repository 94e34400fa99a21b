"""Metrics that keep numbers for each group (a patient's volume, an image), in states that processes can exchange."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from regloss.errors import UsageError

NOTHING = "There is nothing to score: no image has been added. Is the subset empty, or unlabelled?"


class ScoreMetric(Metric):
    """A torchmetrics Metric whose scores are those of the whole set, on every process.

    `compute` returns plain numbers, strings, lists and dictionaries, ready for JSON: what is undefined is None.
    """

    full_state_update: bool | None = False
    higher_is_better: bool | None = None
    is_differentiable: bool | None = False

    @property
    def update_called(self) -> bool:
        """Always true: a process that got no image computes the scores of the others' images."""
        return True

    def _setting(self) -> object:
        """What must agree where two metrics are merged."""
        return None

    def merge_state(self, incoming_state: dict[str, Any] | Metric) -> None:
        """Add what another metric of the same settings has counted.

        Raises:
            UsageError: its settings are others.
        """
        if isinstance(incoming_state, ScoreMetric):
            mine, theirs = self._setting(), incoming_state._setting()
            if type(incoming_state) is not type(self) or mine != theirs:
                raise UsageError(
                    f"Only scores of the same settings add up; these have {type(self).__name__} {mine}, "
                    f"those have {type(incoming_state).__name__} {theirs}."
                )
        super().merge_state(incoming_state)
        self._computed = None


class GroupMetric(ScoreMetric):
    """Sums of numbers by group.

    The states are ``group_names``, each a UTF-8 text that ends in a zero byte, and ``group_sums`` (1, *shape), in the
    same order. A group may occur several times, when it is spread over processes: `by_group` adds these up.

    Args:
        shape: of the numbers of one group.
        dtype: of the numbers.
    """

    group_names: list[Tensor]
    group_sums: list[Tensor]

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        super().__init__()
        self._shape, self._number_type = shape, dtype
        self._places: dict[str, int] = {}  # in the lists; `place_of` makes it anew where the states were replaced
        self.add_state("group_names", [], dist_reduce_fx="cat")
        self.add_state("group_sums", [], dist_reduce_fx="cat")

    def add(self, group: str, numbers: Tensor) -> None:
        """Add ``numbers`` (*shape) to those of a group."""
        if not group or "\0" in group:
            raise UsageError(f"A group's name is a text of at least one character, none of them zero; got {group!r}.")
        numbers = numbers.to(self.device, self._number_type).unsqueeze(0)
        place = self.place_of(group)
        if place is not None:
            self.group_sums[place] = self.group_sums[place] + numbers
            return
        self._places[group] = len(self.group_names)
        self.group_names.append(torch.tensor([*group.encode(), 0], dtype=torch.uint8, device=self.device))
        self.group_sums.append(numbers)

    def place_of(self, group: str) -> int | None:
        """Where a group stands in the states' lists, None if it is new."""
        if len(self._places) != len(self.group_names):
            self._places = {name: place for place, part in enumerate(self.group_names) for name in _texts(part)}
        place = self._places.get(group)
        return place if place is not None and _texts(self.group_names[place]) == [group] else None

    def by_group(self) -> dict[str, Tensor]:
        """The sums (*shape) of each group, on the CPU, sorted by name, so that it does not matter who counted what."""
        # After synchronisation the states are tensors, otherwise lists of them.
        names = [name for part in _parts(self.group_names) for name in _texts(part)]
        found: dict[str, Tensor] = {}
        for name, row in zip(names, (row for part in _parts(self.group_sums) for row in part.cpu()), strict=True):
            found[name] = found[name] + row if name in found else row
        return dict(sorted(found.items()))

    def sync(self, *args: Any, **kwargs: Any) -> None:
        """See torchmetrics; a process without images takes part with empty states of the right type and shape."""
        if isinstance(self.group_names, list) and not self.group_names:
            self.group_names.append(torch.zeros(0, dtype=torch.uint8, device=self.device))
            self.group_sums.append(torch.zeros((0, *self._shape), dtype=self._number_type, device=self.device))
        super().sync(*args, **kwargs)

    def unsync(self, *args: Any, **kwargs: Any) -> None:
        """See torchmetrics."""
        super().unsync(*args, **kwargs)
        if isinstance(self.group_names, list):
            self.group_names = [part for part in self.group_names if len(part)]
            self.group_sums = [part for part in self.group_sums if len(part)]


def _parts(state: list[Tensor] | Tensor) -> list[Tensor]:
    return [state] if isinstance(state, Tensor) else state


def _texts(codes: Tensor) -> list[str]:
    return bytes(codes.tolist()).decode().split("\0")[:-1]
