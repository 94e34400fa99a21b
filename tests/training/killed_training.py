"""A training that kills its own process at a chosen moment; test_resume.py runs this file in a process of its own."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from typing import Any

import torch

from regloss.hooks import manager
from regloss.training import checkpoints, trainer
from regloss.training.config import parse
from regloss.training.proposals import ProposalStore

# What is called at the moment; the process dies as it is called for the n-th time, before or after it does its work.
MOMENTS: dict[str, tuple[Any, str, bool]] = {
    "beginning": (checkpoints, "write_json", False),
    "step": (trainer.CsvLog, "add", True),
    "proposal": (ProposalStore, "write", True),
    "last proposal": (ProposalStore, "finish", False),
    "stage A": (ProposalStore, "finish", True),
    "half a checkpoint": (checkpoints, "save_file", True),
    "checkpoint": (checkpoints, "save", True),
    "evaluation": (trainer, "evaluate_samples", False),
    "model": (trainer, "save_model", False),
}


def die(function: Callable[..., Any], countdown: int, after: bool) -> Callable[..., Any]:
    """``function``, but the process is killed at a call of it, or behind it."""

    def call(*arguments: Any, **options: Any) -> Any:
        nonlocal countdown
        countdown -= 1
        if countdown == 0 and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        result = function(*arguments, **options)
        if countdown == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    return call


def run(table: dict[str, Any], moment: str | None, countdown: int) -> None:
    """Train, or go on, until the moment."""
    torch.set_num_threads(1)
    multiprocessing.set_forkserver_preload(["regloss.training.trainer"])  # of loaders, which import it anyway
    manager().unregister(name="regloss:tensorboard")
    if moment is not None:
        owner, name, after = MOMENTS[moment]
        setattr(owner, name, die(getattr(owner, name), countdown, after))
    trainer.train(parse(table), resume=True)


if __name__ == "job":
    run(**globals()["job"])
