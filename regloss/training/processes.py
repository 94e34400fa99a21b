"""Devices and processes of a run, by Lightning Fabric: how they are started, and what they exchange."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import pickle
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.utilities.exceptions import MisconfigurationException
from torch.utils.data import DataLoader

from regloss.errors import ReglossError, UsageError
from regloss.training.config import Config

if TYPE_CHECKING:
    from regloss.training.run_parts import Parts


def build_fabric(config: Config) -> Fabric:
    """What runs the training on the configured devices.

    Raises:
        UsageError: there are no such devices, or settings that do not fit each other.
    """
    training = config.training
    largest = max(16, os.cpu_count() or 1)
    on_cpu = training.accelerator == "cpu" or not (torch.cuda.is_available() or torch.backends.mps.is_available())
    if on_cpu and isinstance(training.devices, int) and training.devices > largest:
        raise UsageError(f"training.devices = {training.devices} is too many for a CPU: at most {largest} processes.")
    try:
        return Fabric(
            accelerator=training.accelerator,
            devices=training.devices,
            num_nodes=training.nodes,
            strategy=_strategy(config),
            precision=training.precision,  # type: ignore[arg-type]
        )
    except (ValueError, TypeError, RuntimeError, MisconfigurationException) as cause:
        raise UsageError(f"training.accelerator, devices, nodes, strategy or precision: {cause}") from cause


def _strategy(config: Config) -> str:
    training = config.training
    if training.strategy != "auto" or training.devices in (1, "auto"):
        return training.strategy
    return "ddp_spawn" if training.accelerator == "cpu" else "ddp"


def end_with_parent() -> None:
    """End this process as soon as the one that started it ends, be it killed.

    Processes of a fork server are children of that server and not of the process that asked for them, so neither its
    death nor a signal of the system reaches them. It holds one end of a pipe, though, and they watch the other.
    """
    parent = multiprocessing.parent_process()
    number = os.getppid()

    def watch() -> None:
        if parent is not None:
            multiprocessing.connection.wait([parent.sentinel])
        else:  # started by a command: who adopts an orphan is another process
            while os.getppid() == number:
                time.sleep(1)
        os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))

    threading.Thread(target=watch, name="end-with-parent", daemon=True).start()


def received(loader: DataLoader[Any], then: str) -> Iterator[Any]:
    """The items of a loader whose data set gives what went wrong as an item, where torch makes a message of it.

    Args:
        loader: the loader.
        then: what to do with fewer processes, after one was killed.

    Raises:
        ReglossError: a process of the loader was killed; and whatever an item is that can be raised.
    """
    items: Iterator[Any] | None = None
    while True:
        try:
            if items is None:
                items = iter(loader)
            found = next(items, None)
        except (RuntimeError, ConnectionError, EOFError) as error:
            # torch tells of a dead worker only once the fork server has reaped it; until then the connection is
            # just broken. What reading a sample raises comes as an item, so nothing else breaks one.
            if isinstance(error, RuntimeError) and not str(error).startswith("DataLoader worker (pid"):
                raise
            raise ReglossError(
                "A process that loads images was killed, by the system for want of memory, say "
                f"({str(error) or type(error).__name__}). Lower data.workers if it was, and {then}."
            ) from error
        if found is None:
            return
        if isinstance(found, Exception):
            raise found
        yield found


@contextmanager
def children_end_with_exceptions() -> Iterator[None]:
    """Processes that the block starts end if it raises: an interrupted one would else wait until they have trained."""
    before = set(multiprocessing.active_children())
    try:
        yield
    except BaseException:
        for child in set(multiprocessing.active_children()) - before:
            child.terminate()
        raise


class CopiedParts:
    """Parts on their way to processes that Fabric spawns: copied by value.

    Sent as they are, tensors would lie in shared memory, and all processes would train one and the same weights.
    """

    def __init__(self, parts: Parts) -> None:
        self.parts = parts

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpack, (pickle.dumps(self.parts),)


def _unpack(content: bytes) -> CopiedParts:
    return CopiedParts(pickle.loads(content))


def average_gradients(fabric: Fabric, module: torch.nn.Module) -> None:
    """Means over the processes, as data-parallel wrappers take them for the network itself.

    Further networks are not wrapped: they are called several times a step, and not all in every update.
    """
    if fabric.world_size == 1:
        return
    for parameter in module.parameters():
        if parameter.grad is not None:
            parameter.grad = fabric.all_reduce(parameter.grad, reduce_op="mean")  # type: ignore[assignment]


def mean_over_processes(fabric: Fabric, values: dict[str, float]) -> dict[str, float]:
    """Means over the processes; see `OuterLoop.mean` for why these are those of the global batch."""
    if fabric.world_size == 1:
        return values
    tensor = torch.tensor(list(values.values()), dtype=torch.float64, device=fabric.device)
    means = fabric.all_reduce(tensor, reduce_op="mean")
    return dict(zip(values, means.tolist(), strict=True))  # type: ignore[union-attr]
