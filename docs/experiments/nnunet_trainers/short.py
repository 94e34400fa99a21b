"""Trainers of nnunet.py: the start, and what goes on from it for as many steps by each method; steps are timed.

nnU-Net finds them by ``nnUNet_extTrainer``, which names this folder.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from regloss import Schedule
from regloss.apps.nnunet import nnUNetTrainerRegloss, nnUNetTrainerTrustRegion


class Short:
    """Ten epochs of few steps, a checkpoint after each of them."""

    steps_of_epoch = 50

    def __init__(
        self,
        plans: dict[str, Any],
        configuration: str,
        fold: int | str,
        dataset_json: dict[str, Any],
        device: torch.device,
    ) -> None:
        super().__init__(plans, configuration, fold, dataset_json, device)  # type: ignore[call-arg]
        self.num_epochs, self.num_iterations_per_epoch, self.num_val_iterations_per_epoch = 10, self.steps_of_epoch, 1
        self.save_every = 1
        self.seconds: list[float] = []

    def train_step(self, batch: dict[str, Any]) -> Any:
        """A step, timed."""
        began = time.perf_counter()
        done = super().train_step(batch)  # type: ignore[misc]
        self.seconds.append(time.perf_counter() - began)
        return done


class nnUNetTrainerStart(Short, nnUNetTrainer):  # type: ignore[misc]  # noqa: N801 - nnU-Net's way
    """Partial Dice and cross entropy alone, from random weights."""

    steps_of_epoch = 40


class nnUNetTrainerShort(Short, nnUNetTrainer):  # type: ignore[misc]  # noqa: N801 - nnU-Net's way
    """Partial Dice and cross entropy alone."""


class nnUNetTrainerShortPrior(Short, nnUNetTrainerRegloss):  # type: ignore[misc]  # noqa: N801
    """The same plus the prior of REGLOSS_REGULARIZER."""


class nnUNetTrainerShortTrustRegion(Short, nnUNetTrainerTrustRegion):  # type: ignore[misc]  # noqa: N801
    """The same plus proposals, with the settings of acdc-trust-region.toml."""

    coupling = Schedule(0.03, 1.0, shape="exponential")
    epsilon = Schedule(0.0, 0.3)
    update_every = 2
