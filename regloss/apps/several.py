"""Work that is spread over processes, on one machine or on several, each with a device of its own."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import torch

from regloss.errors import ReglossError, UsageError

T = TypeVar("T")


def check_processes(devices: int, nodes: int) -> None:
    """Refuse numbers of processes and machines that are none.

    Raises:
        UsageError: one is less than 1; there are several machines, and nothing says where the first is.
    """
    if devices < 1:
        raise UsageError(f"Work is spread over 1 device or more; got {devices}.")
    if nodes < 1:
        raise UsageError(f"Work is spread over 1 machine or more; got {nodes}.")
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK") if name not in os.environ]
    if nodes > 1 and missing:
        raise UsageError(
            f"With several machines {', '.join(missing)} must be set in the environment: MASTER_ADDR and MASTER_PORT, "
            "an address and a free port of the first machine, and NODE_RANK, the number of this one, from 0."
        )


def is_first_machine(nodes: int) -> bool:
    """Whether this machine is the one that prepares what all work on."""
    return nodes == 1 or os.environ["NODE_RANK"] == "0"


def spread(work: Callable[[Any], T], devices: int, nodes: int = 1) -> T:
    """Run ``work`` in processes that Lightning Fabric starts; what the first of this machine returns.

    Each is given its Fabric, which knows its device, its ``global_rank``, and the ``world_size``. On several machines
    the same command runs on each; see `check_processes`.

    Args:
        work: a function that other processes can import, or a partial of one.
        devices: processes on each machine, with a GPU each, or on the CPU.
        nodes: machines.

    Raises:
        ReglossError: a process failed.
    """
    from lightning_fabric import Fabric
    from torch.multiprocessing.spawn import ProcessException

    kind = "cuda" if torch.cuda.is_available() else "cpu"
    fabric = Fabric(accelerator=kind, devices=devices, num_nodes=nodes, strategy="ddp_spawn")
    try:
        # Arguments of launch itself are searched for tensors, which frozen dataclasses do not allow.
        found: T = fabric.launch(partial(_in_process, work))
    except ProcessException as error:
        raise ReglossError(f"One of the processes failed: {error}") from error
    return found


def _in_process(work: Callable[[Any], T], fabric: Any) -> T:
    from torch import distributed

    try:
        return work(fabric)
    finally:
        if distributed.is_available() and distributed.is_initialized():
            distributed.destroy_process_group()
