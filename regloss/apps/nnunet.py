"""Priors as losses in trainings by nnU-Net v2 (`regloss[nnunet]`).

    nnU-Net's own loss, Dice + cross entropy where there are labels,  +  weight * R(S; image) / pixels

at the finest resolution of its deep supervision. Plans, preprocessing, augmentation, optimizer and inference stay
nnU-Net's.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor, nn

from regloss.apps.components import parse_component
from regloss.errors import MissingDependency, UsageError
from regloss.losses.modules import RegularizerLoss

try:
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
except ImportError as cause:
    raise MissingDependency(f"regloss.apps.nnunet needs nnU-Net: pip install 'regloss[nnunet]' ({cause})") from cause

VARIABLE = "REGLOSS_REGULARIZER"
"""Environment variable with the prior, ``NAME:weight=0.3,setting=value``; several with spaces between them."""

DEFAULT = "grid-crf:weight=0.1"

SPREADS = 5.0
"""Intensities of so many standard deviations to either side of the mean lie in [0, 1] of the prior's image."""


class nnUNetTrainerRegloss(nnUNetTrainer):  # type: ignore[misc]  # noqa: N801 - nnU-Net's way
    """nnU-Net's trainer with a prior beside its loss.

    nnU-Net finds it through ``nnUNet_extTrainer``, the folder `regloss.apps.nnunet_trainers`, and the prior stands in
    the environment variable REGLOSS_REGULARIZER. The prior looks at nnU-Net's normalised image, where a standard
    deviation is 1 / (2 `SPREADS`) = 0.1: a ``sigma-rgb`` of 0.05 is half of one.
    """

    def _build_loss(self) -> nn.Module:
        """The loss of nnU-Net, and the prior.

        Raises:
            UsageError: regions instead of labels; a prior that does not exist.
        """
        if self.label_manager.has_regions:
            raise UsageError(
                "nnUNetTrainerRegloss needs labels that exclude each other; this data set trains on regions. Give "
                "each label a number of its own in dataset.json."
            )
        prior = prior_of_environment()
        self.print_to_log_file(f"Prior: {prior}")
        return LossWithPrior(super()._build_loss(), prior)

    def train_step(self, batch: dict[str, Any]) -> Any:
        """A step of nnU-Net, whose images the loss sees."""
        self.loss.image = batch["data"]
        return super().train_step(batch)

    def validation_step(self, batch: dict[str, Any]) -> Any:
        """Likewise."""
        self.loss.image = batch["data"]
        return super().validation_step(batch)


class LossWithPrior(nn.Module):
    """Loss of predictions and labels plus the prior of the finest predictions, whose images are ``image``.

    Args:
        loss: nnU-Net's.
        prior: a regularizer's.
    """

    def __init__(self, loss: nn.Module, prior: RegularizerLoss) -> None:
        super().__init__()
        self.loss = loss
        self.prior = prior
        self.image: Tensor | None = None

    def forward(self, output: Any, target: Any) -> Tensor:
        """The sum; ``output`` and ``target`` are tensors, or lists from fine to coarse."""
        logits: Tensor = output[0] if isinstance(output, list | tuple) else output
        assert self.image is not None
        own: Tensor = self.loss(output, target)
        prior: Tensor = self.prior(logits, image=unit_image(self.image.to(logits.device)))
        return own + prior


def prior_of_environment() -> RegularizerLoss:
    """The prior that REGLOSS_REGULARIZER names, as a loss.

    Raises:
        UsageError: there is no such regularizer, or it has no such setting.
    """
    parts = os.environ.get(VARIABLE, DEFAULT).split()
    return RegularizerLoss([parse_component("regularizer", part) for part in parts], validate=False)


def unit_image(image: Tensor) -> Tensor:
    """Normalised intensities (mean 0, spread 1) in [0, 1]; those beyond `SPREADS` are cut off.

    >>> unit_image(torch.tensor([-9.0, 0.0, 1.0]))
    tensor([0.0000, 0.5000, 0.6000])
    """
    return (0.5 + image.to(torch.float32) / (2 * SPREADS)).clamp(0, 1)
