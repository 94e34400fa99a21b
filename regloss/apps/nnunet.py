"""Priors as losses, and the trust region's proposals, in trainings by nnU-Net v2 (`regloss[nnunet]`).

    nnU-Net's own loss, Dice + cross entropy where there are labels,  +  weight * R(S; image) / pixels
    nnU-Net's own loss                                                +  D(X, S) / pixels,  X the stored proposals

at the finest resolution of its deep supervision. Plans, preprocessing, augmentation, optimizer and inference stay
nnU-Net's.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from regloss.apps.components import parse_component
from regloss.batch import Batch
from regloss.dataset import IGNORE
from regloss.errors import MissingDependency, UsageError
from regloss.losses.modules import RegularizerLoss
from regloss.outer_loop import OuterLoop, Proposal
from regloss.registry import create
from regloss.training.proposal_engine import Proposals

try:
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
except ImportError as cause:
    raise MissingDependency(f"regloss.apps.nnunet needs nnU-Net: pip install 'regloss[nnunet]' ({cause})") from cause

VARIABLE = "REGLOSS_REGULARIZER"
"""Environment variable with the prior, ``NAME:weight=0.3,setting=value``; several with spaces between them."""

DEFAULT = "grid-crf:weight=0.1"

SPREADS = 5.0
"""Intensities of so many standard deviations to either side of the mean lie in [0, 1] of the prior's image."""

_NO_REGIONS = (
    "{} needs labels that exclude each other; this data set trains on regions. Give each label a number of its own in "
    "dataset.json."
)


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
            raise UsageError(_NO_REGIONS.format(type(self).__name__))
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


class nnUNetTrainerTrustRegion(nnUNetTrainer):  # type: ignore[misc]  # noqa: N801 - nnU-Net's way
    """nnU-Net's trainer with the robust trust region, in 2D.

    Every `update_every` epochs the solver proposes a segmentation of every training slice, from the prior that
    REGLOSS_REGULARIZER names. Proposals are one more channel of nnU-Net's label maps, as those of a previous stage of
    its cascade are, and so go through its augmentation. For other settings derive a class of your own, in a folder that
    ``nnUNet_extTrainer`` names.

    Attributes:
        coupling, epsilon, update_every: as of `TrustRegion`; an epoch of nnU-Net is 250 steps.
    """

    coupling: ClassVar[float] = 0.05
    epsilon: ClassVar[float] = 0.3
    update_every: ClassVar[int] = 5

    def initialize(self) -> None:
        """As nnU-Net does, and check what proposals need.

        Raises:
            UsageError: a configuration in 3D; a prior that does not exist.
        """
        if len(self.configuration_manager.patch_size) != 2:
            raise UsageError("nnUNetTrainerTrustRegion proposes slice by slice: train the configuration 2d with it.")
        self.loop: OuterLoop = create(
            "outer-loop",
            "trust-region",
            regularizer=prior_of_environment().regularizer,
            coupling=self.coupling,
            epsilon=self.epsilon,
            update_every=self.update_every,
        )
        super().initialize()

    def _build_loss(self) -> nn.Module:
        """The loss of nnU-Net, and the divergence from proposals.

        Raises:
            UsageError: regions instead of labels.
        """
        if self.label_manager.has_regions:
            raise UsageError(_NO_REGIONS.format(type(self).__name__))
        return LossWithProposals(super()._build_loss(), self.loop)

    def get_tr_and_val_datasets(self) -> tuple[Any, Any]:
        """Those of nnU-Net; the training's has proposals, the first of which are made now."""
        training, validation = super().get_tr_and_val_datasets()
        self.slices = {
            f"{case}/{number}": (case, number)
            for case in training.identifiers
            for number in range(training.load_case(case)[0].shape[1])
        }
        going_on = bool(self.plans_manager.plans.get("continue_training"))
        folder = Path(self.output_folder) / "proposals"
        self.proposals = Proposals(self.loop, list(self.slices), folder, resume=going_on)
        self.cases = training
        self._refresh()
        return CasesWithProposals(training, self.proposals), validation

    def on_train_epoch_start(self) -> None:
        """Make proposals if they are due."""
        self.loop.set_progress(self.current_epoch / self.num_epochs)
        self._refresh()
        super().on_train_epoch_start()

    def _refresh(self) -> None:
        if self.proposals.due(self.current_epoch):
            numbers = self.proposals.refresh(self.current_epoch, self._whole_logits, self._whole_slices())
            self.print_to_log_file("Proposals: " + ", ".join(f"{name} {value:.4g}" for name, value in numbers.items()))

    def _whole_slices(self) -> Iterator[Batch]:
        for sample_id in self.proposals.share:
            case, number = self.slices[sample_id]
            data, seg, _, _ = self.cases.load_case(case)
            image = torch.from_numpy(np.asarray(data[:, number])).float()
            labels = torch.from_numpy(np.asarray(seg[0, number])).long().clamp(min=0)  # as nnU-Net's own transforms do
            if self.label_manager.ignore_label is not None:
                labels[labels == self.label_manager.ignore_label] = IGNORE
            yield Batch(unit_image(image)[None], labels[None], ids=[sample_id])

    def _whole_logits(self, image: Tensor) -> Tensor:
        """(1, K, H, W) of a whole slice (1, C, H, W) in [0, 1], padded to what the network can halve as it does."""
        network: Any = getattr(self.network, "module", self.network)
        multiples = np.prod(self.configuration_manager.pool_op_kernel_sizes, axis=0)
        size = image.shape[2:]
        bottom, right = (int(-length % multiple) for length, multiple in zip(size, multiples, strict=True))
        normalised = (image.to(self.device) - 0.5) * (2 * SPREADS)
        network.eval()
        output = network(nn.functional.pad(normalised, (0, right, 0, bottom)))
        network.train()
        logits: Tensor = output[0] if isinstance(output, list | tuple) else output
        return logits[..., : size[0], : size[1]].float().to(image.device)

    def train_step(self, batch: dict[str, Any]) -> Any:
        """A step of nnU-Net; the loss sees images and proposals."""
        target = batch["target"] if isinstance(batch["target"], list) else [batch["target"]]
        self.loss.image, self.loss.proposal = batch["data"], target[0][:, 1]
        labels = [each[:, :1] for each in target]
        return super().train_step({**batch, "target": labels if isinstance(batch["target"], list) else labels[0]})

    def validation_step(self, batch: dict[str, Any]) -> Any:
        """A step of nnU-Net, which has no proposals."""
        self.loss.proposal = None
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


class LossWithProposals(nn.Module):
    """Loss of predictions and labels plus the finest predictions' divergence from ``proposal``, for ``image``.

    Args:
        loss: nnU-Net's.
        loop: whose objective holds the divergence.
    """

    def __init__(self, loss: nn.Module, loop: OuterLoop) -> None:
        super().__init__()
        self.loss = loss
        self.loop = loop
        self.image: Tensor | None = None
        self.proposal: Tensor | None = None

    def forward(self, output: Any, target: Any) -> Tensor:
        """The sum, of nnU-Net's loss alone where there is no proposal."""
        own: Tensor = self.loss(output, target)
        if self.proposal is None:
            return own
        assert self.image is not None
        logits: Tensor = output[0] if isinstance(output, list | tuple) else output
        proposal = self.proposal.to(logits.device).long()
        # Its labels are learnt by nnU-Net's own loss; the loop's data term has none to look at.
        batch = Batch(unit_image(self.image.to(logits.device)), torch.full_like(proposal, IGNORE))
        return own + self.loop.objective(logits, batch, Proposal(proposal))


class CasesWithProposals:
    """nnU-Net's training cases, whose proposals stand where its cascade has segmentations of a previous stage.

    Args:
        cases: nnU-Net's data set.
        proposals: of slices, by "case/number".
    """

    def __init__(self, cases: Any, proposals: Proposals) -> None:
        self.cases = cases
        self.proposals = proposals
        self.identifiers = cases.identifiers

    def __getitem__(self, identifier: str) -> tuple[Any, ...]:
        return self.load_case(identifier)

    def load_case(self, identifier: str) -> tuple[Any, ...]:
        """Image (C, D, H, W), labels (1, D, H, W), proposals (D, H, W) and properties of a case."""
        data, seg, _, properties = self.cases.load_case(identifier)
        slices = [self.proposals.labels(f"{identifier}/{number}") for number in range(data.shape[1])]
        return data, seg, np.stack(slices).astype(np.int16), properties


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
