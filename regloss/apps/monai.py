"""Losses and proposals in trainings by MONAI's engines (`regloss[monai]`)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from regloss.batch import Batch
from regloss.errors import MissingDependency, UsageError
from regloss.losses.modules import DataLoss, Loss
from regloss.outer_loop import OuterLoop, Proposal
from regloss.training.proposal_engine import Proposals

try:
    from ignite.engine import Engine, Events
    from monai.data import MetaTensor
    from monai.data.utils import affine_to_spacing
    from monai.engines.utils import default_prepare_batch
except ImportError as cause:
    raise MissingDependency(f"regloss.apps.monai needs MONAI: pip install 'regloss[monai]' ({cause})") from cause


class ImageLoss(nn.Module):
    """A loss for ``SupervisedTrainer`` that sees the image, too: losses that add up, or an outer loop's objective.

    MONAI gives a loss predictions and labels. This one takes the image from `prepare_batch`, which the trainer calls
    before it: give it both, ``SupervisedTrainer(loss_function=loss, prepare_batch=loss.prepare_batch, ...)``. The
    spacing of a ``MetaTensor`` is that of its affine.

    Args:
        losses: of `regloss.losses`, or others that take logits (B, K, *S) and labels (B, *S).
        loop: an outer loop instead.
        image: key of the images, with values in [0, 1], that the prior looks at; the network's input is "image" always.
        proposal: key of proposals (B, 1, *S), where ``loop`` learns such.

    Shape:
        - logits: (B, K, *S).
        - label: (B, 1, *S) or (B, *S), class indices of any type; 255 = unlabelled.
        - output: scalar.

    Raises:
        UsageError: neither losses nor a loop are given, or both; predictions that are no tensor.
    """

    def __init__(
        self,
        losses: Sequence[nn.Module] | nn.Module = (),
        loop: OuterLoop | None = None,
        image: str = "image",
        proposal: str = "proposal",
    ) -> None:
        super().__init__()
        self.losses = nn.ModuleList([losses] if isinstance(losses, nn.Module) else losses)
        self.loop = loop
        if (loop is None) == (len(self.losses) == 0):
            raise UsageError("ImageLoss needs losses or an outer loop, and not both.")
        self.image, self.proposal = image, proposal
        self.data: Mapping[str, Any] = {}
        """The batch that was prepared last."""

    def prepare_batch(
        self, batchdata: Any, device: str | torch.device | None = None, non_blocking: bool = False, **kwargs: Any
    ) -> Any:
        """What MONAI's default makes of a batch; its other entries are kept for the loss that follows."""
        if not isinstance(batchdata, Mapping) or self.image not in batchdata:
            raise UsageError(f"ImageLoss needs batches that are dictionaries with the key {self.image!r}.")
        self.data = batchdata
        return default_prepare_batch(batchdata, device, non_blocking, **kwargs)

    def forward(self, logits: Tensor, label: Tensor) -> Tensor:
        """The loss of the batch that was prepared last."""
        if not isinstance(logits, Tensor):
            raise UsageError(
                f"The network gives a {type(logits).__name__}; ImageLoss needs logits (B, K, *S). With deep "
                "supervision, call it for the finest ones."
            )
        if not self.data:
            raise UsageError("ImageLoss has seen no image: give the trainer prepare_batch=loss.prepare_batch, too.")
        given = self.data[self.image]
        image, labels = _plain(given).to(logits.device), _labels(label, logits)
        spacing, logits = spacing_of(given), _plain(logits)
        if self.loop is not None:
            stored = self.data.get(self.proposal)
            proposal = None if stored is None else Proposal(_labels(stored, logits).to(logits.device))
            return self.loop.objective(logits, Batch(image, labels, spacing=spacing), proposal)
        terms = []
        for loss in self.losses:
            if isinstance(loss, Loss):
                target = labels if isinstance(loss, DataLoss) else None
                terms.append(loss(logits, target, image=image, spacing=spacing))
            else:
                terms.append(loss(logits, labels))
        return torch.stack(terms).sum()


class ProposalHandler:
    """An event handler that makes proposals at the beginning of epochs when they are due.

    It also tells the loop's schedules how much of the training is done. ``proposals`` go into a ``CheckpointSaver`` as
    they are: they have ``state_dict`` and ``load_state_dict``.

    Args:
        proposals: which the data set reads by `Proposals.labels`, before its transforms.
        network: see `Proposals.refresh`.
        batches: called in every process for its batches of whole images; not needed where the samples of ``proposals``
            are those of a `regloss.Dataset`.
    """

    def __init__(
        self,
        proposals: Proposals,
        network: Callable[[Tensor], Any] | nn.Module,
        batches: Callable[[], Iterable[Batch]] | None = None,
    ) -> None:
        self.proposals = proposals
        self.network = network
        self.batches = batches

    def attach(self, engine: Engine) -> None:
        """Listen to a trainer."""
        # Loader processes begin with the first images as the run starts, before its first epoch does.
        engine.add_event_handler(Events.STARTED, lambda engine: self._refresh(engine.state.epoch))
        engine.add_event_handler(Events.EPOCH_STARTED, lambda engine: self._refresh(engine.state.epoch - 1))
        engine.add_event_handler(Events.ITERATION_STARTED, self._tell)

    def _refresh(self, epoch: int) -> None:
        if self.proposals.due(epoch):
            self.proposals.refresh(epoch, self.network, None if self.batches is None else self.batches())

    def _tell(self, engine: Engine) -> None:
        state = engine.state
        self.proposals.loop.set_progress((state.iteration - 1) / (state.max_epochs * state.epoch_length))


def spacing_of(image: Tensor) -> tuple[float, ...] | None:
    """Distance of neighbouring pixels along each axis of images (B, C, *S), from a ``MetaTensor``'s affine.

    None for other tensors.

    Raises:
        UsageError: the images of the batch differ in it.
    """
    if not isinstance(image, MetaTensor):
        return None
    ndim = image.ndim - 2
    affines = image.affine.reshape(-1, *image.affine.shape[-2:])
    found = [tuple(float(step) for step in affine_to_spacing(affine, ndim)) for affine in affines]
    for other in found[1:]:
        if max(abs(a - b) for a, b in zip(found[0], other, strict=True)) > 1e-3 * min(found[0]):
            raise UsageError(
                f"The images of a batch must have one spacing; there are {found[0]} and {other} mm. Resample them, by "
                "Spacingd for example."
            )
    return found[0]


def _plain(values: Tensor) -> Tensor:
    tensor: Tensor = values.as_tensor() if isinstance(values, MetaTensor) else values
    return tensor


def _labels(label: Tensor, logits: Tensor) -> Tensor:
    plain = _plain(label)
    if plain.ndim == logits.ndim and plain.shape[1] == 1:
        plain = plain.squeeze(1)
    return plain.long()
