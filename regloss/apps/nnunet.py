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
from regloss.schedule import Schedule
from regloss.training.proposal_engine import OfBatches, Proposals

try:
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
except ImportError as cause:
    raise MissingDependency(f"regloss.apps.nnunet needs nnU-Net: pip install 'regloss[nnunet]' ({cause})") from cause

VARIABLE = "REGLOSS_REGULARIZER"
"""Environment variable with the prior, ``NAME:weight=0.3,setting=value``; several with spaces between them."""

DEFAULT = "grid-crf:weight=0.1"
"""What it is for a loss, where it is not set."""

DEFAULT_OF_PROPOSALS = "grid-crf:weight=1"
"""Likewise, for proposals."""

SPREADS = 5.0
"""Intensities of so many standard deviations to either side of the mean lie in [0, 1] of the prior's image."""

_CUDA = torch.device("cuda")

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
        return LossWithPrior(super()._build_loss(), prior, relative_spacing(self.configuration_manager))

    def train_step(self, batch: dict[str, Any]) -> Any:
        """A step of nnU-Net, whose images the loss sees."""
        self.loss.image = batch["data"]
        return super().train_step(batch)

    def validation_step(self, batch: dict[str, Any]) -> Any:
        """Likewise."""
        self.loss.image = batch["data"]
        return super().validation_step(batch)


class nnUNetTrainerTrustRegion(nnUNetTrainer):  # type: ignore[misc]  # noqa: N801 - nnU-Net's way
    """nnU-Net's trainer with the robust trust region.

    Every `update_every` epochs the solver proposes a segmentation of everything there is to train on, slice by slice in
    2D and volume by volume in 3D, from the prior that REGLOSS_REGULARIZER names. Proposals are one more channel of
    nnU-Net's label maps, as those of a previous stage of its cascade are, and so go through its augmentation. For other
    settings derive a class of your own, in a folder that ``nnUNet_extTrainer`` names.

    Attributes:
        coupling, epsilon, update_every: as of `TrustRegion`; an epoch of nnU-Net is 250 steps.
        slab: in 3D, solve for so many slices at a time, which bounds memory; None = for whole volumes.
    """

    coupling: ClassVar[float | Schedule] = 0.05
    epsilon: ClassVar[float | Schedule] = 0.3
    update_every: ClassVar[int] = 5
    slab: ClassVar[int | None] = None

    def __init__(
        self,
        plans: dict[str, Any],
        configuration: str,
        fold: int | str,
        dataset_json: dict[str, Any],
        device: torch.device = _CUDA,
    ) -> None:
        self.going_on = bool(plans.get("continue_training"))  # nnU-Net's constructor takes it out of the plans
        super().__init__(plans, configuration, fold, dataset_json, device)

    def initialize(self) -> None:
        """As nnU-Net does, and check what proposals need.

        Raises:
            UsageError: a stage of the cascade, whose own segmentations stand where proposals would; a prior that does
                not exist.
        """
        if self.is_cascaded:
            raise UsageError(
                f"{type(self).__name__} keeps its proposals where a cascade has the segmentations of its previous "
                f"stage, so it cannot train {self.configuration_name}. Train 2d, 3d_fullres or 3d_lowres with it."
            )
        self.loop: OuterLoop = create(
            "outer-loop",
            "trust-region",
            regularizer=prior_of_environment(DEFAULT_OF_PROPOSALS).regularizer,
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
        self.flat = len(self.configuration_manager.patch_size) == 2
        self.parts: dict[str, tuple[str, int | slice]] = {}
        """What proposals are made of by their ids: a case, and which of its slices."""
        for case in training.identifiers:
            if self.flat:
                numbers = range(training.load_case(case)[0].shape[1])
                self.parts |= {f"{case}/{number}": (case, number) for number in numbers}
            else:
                self.parts[case] = case, slice(None)
        folder = Path(self.output_folder) / "proposals"
        self.proposals = Proposals(self.loop, list(self.parts), folder, resume=self.going_on, slab=self.slab)
        self.cases = training
        self._refresh()
        return CasesWithProposals(training, self.proposals, self.flat), validation

    def on_train_epoch_start(self) -> None:
        """Make proposals if they are due."""
        self.loop.set_progress(self.current_epoch / self.num_epochs)
        self._refresh()
        super().on_train_epoch_start()

    def _refresh(self) -> None:
        if not self.proposals.due(self.current_epoch):
            return
        network: Any = getattr(self.network, "module", self.network)
        predictor = nnUNetPredictor(
            use_mirroring=False,
            perform_everything_on_device=self.device.type == "cuda",
            device=self.device,
            allow_tqdm=False,
        )
        predictor.manual_initialization(
            network, self.plans_manager, self.configuration_manager, None, self.dataset_json, type(self).__name__, None
        )

        def logits(batch: Batch) -> Tensor:
            assert batch.ids is not None
            found: Tensor = predictor.predict_sliding_window_return_logits(self._normalised(batch.ids[0])).float()
            return (found[:, 0] if self.flat else found)[None].to(batch.image.device)

        self.set_deep_supervision_enabled(False)
        numbers = self.proposals.refresh(self.current_epoch, OfBatches(logits), self._whole())
        self.set_deep_supervision_enabled(self.enable_deep_supervision)
        self.print_to_log_file("Proposals: " + ", ".join(f"{name} {value:.4g}" for name, value in numbers.items()))

    def _normalised(self, sample_id: str) -> Tensor:
        """(C, D, H, W) as nnU-Net has preprocessed it; of a slice D = 1."""
        case, part = self.parts[sample_id]
        chosen = slice(part, part + 1) if isinstance(part, int) else part
        return torch.from_numpy(np.asarray(self.cases.load_case(case)[0][:, chosen])).float()

    def _whole(self) -> Iterator[Batch]:
        spacing = relative_spacing(self.configuration_manager)
        for sample_id in self.proposals.share:
            case, part = self.parts[sample_id]
            labels = torch.from_numpy(np.asarray(self.cases.load_case(case)[1][0, part])).long()
            labels = labels.clamp(min=0)  # as nnU-Net's own transforms do
            if self.label_manager.ignore_label is not None:
                labels[labels == self.label_manager.ignore_label] = IGNORE
            image = unit_image(self._normalised(sample_id))
            image = image[:, 0] if self.flat else image
            yield Batch(image[None], labels[None], ids=[sample_id], spacing=spacing)

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
        spacing: of the images, see `relative_spacing`.
    """

    def __init__(self, loss: nn.Module, prior: RegularizerLoss, spacing: tuple[float, ...] | None = None) -> None:
        super().__init__()
        self.loss = loss
        self.prior = prior
        self.spacing = spacing
        self.image: Tensor | None = None

    def forward(self, output: Any, target: Any) -> Tensor:
        """The sum; ``output`` and ``target`` are tensors, or lists from fine to coarse."""
        logits: Tensor = output[0] if isinstance(output, list | tuple) else output
        assert self.image is not None
        own: Tensor = self.loss(output, target)
        prior: Tensor = self.prior(logits, image=unit_image(self.image.to(logits.device)), spacing=self.spacing)
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
        proposals: of slices, by "case/number", or of volumes, by "case".
        flat: whether they are of slices.
    """

    def __init__(self, cases: Any, proposals: Proposals, flat: bool) -> None:
        self.cases = cases
        self.proposals = proposals
        self.flat = flat
        self.identifiers = cases.identifiers

    def __getitem__(self, identifier: str) -> tuple[Any, ...]:
        return self.load_case(identifier)

    def load_case(self, identifier: str) -> tuple[Any, ...]:
        """Image (C, D, H, W), labels (1, D, H, W), proposals (D, H, W) and properties of a case."""
        data, seg, _, properties = self.cases.load_case(identifier)
        if self.flat:
            found = np.stack([self.proposals.labels(f"{identifier}/{number}") for number in range(data.shape[1])])
        else:
            found = self.proposals.labels(identifier)
        return data, seg, found.astype(np.int16), properties


def prior_of_environment(default: str = DEFAULT) -> RegularizerLoss:
    """The prior that REGLOSS_REGULARIZER names, else ``default``, as a loss.

    Raises:
        UsageError: there is no such regularizer, or it has no such setting.
    """
    parts = os.environ.get(VARIABLE, default).split()
    return RegularizerLoss([parse_component("regularizer", part) for part in parts], validate=False)


def relative_spacing(configuration: Any) -> tuple[float, ...] | None:
    """Distances of neighbouring voxels along each axis, the finest being 1; None where all are the same.

    So that the weight of a prior means in 3D, and for voxels of any length, what it means in pixels.
    """
    spacing = [float(length) for length in configuration.spacing]
    relative = tuple(length / min(spacing) for length in spacing)
    return None if max(relative) < 1 + 1e-6 else relative


def unit_image(image: Tensor) -> Tensor:
    """Normalised intensities (mean 0, spread 1) in [0, 1]; those beyond `SPREADS` are cut off.

    >>> unit_image(torch.tensor([-9.0, 0.0, 1.0]))
    tensor([0.0000, 0.5000, 0.6000])
    """
    return (0.5 + image.to(torch.float32) / (2 * SPREADS)).clamp(0, 1)
