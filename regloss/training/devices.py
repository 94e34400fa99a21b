"""Where a trained model runs, when one process is enough."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

from regloss.training.config import Config


class Process(Protocol):
    """What evaluation must know of the process that it runs in; a Lightning Fabric is one."""

    @property
    def device(self) -> torch.device:
        """Where networks and images are."""

    @property
    def global_rank(self) -> int:
        """Number of this process among all, from 0."""

    @property
    def world_size(self) -> int:
        """Number of processes."""


@dataclass(frozen=True)
class OneProcess:
    """The only process; see `Process`."""

    device: torch.device
    global_rank: int = 0
    world_size: int = 1


def one_process(config: Config) -> OneProcess:
    """The CPU if the training was told to use it, else what there is: a model outlives the machine it was made on."""
    name = "cpu"
    if config.training.accelerator != "cpu":
        name = "cuda:0" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    return OneProcess(torch.device(name))
