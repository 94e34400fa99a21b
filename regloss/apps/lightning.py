"""Proposals in trainings by Lightning (`regloss[lightning]`)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, distributed

from regloss.batch import Batch
from regloss.errors import MissingDependency
from regloss.training.proposal_engine import Proposals, process

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
except ImportError as cause:
    raise MissingDependency(
        f"regloss.apps.lightning needs Lightning: pip install 'regloss[lightning]' ({cause})"
    ) from cause


class ProposalCallback(Callback):  # type: ignore[misc]
    """Makes proposals at the beginning of epochs when they are due, and goes on with them in a resumed run.

    It also tells the loop's schedules how much of the training is done, and the loop how to take means over the batches
    of all processes. The training step stays the module's: `Proposals.apart`, the network, `OuterLoop.objective`.

    Args:
        proposals: which the data set reads by `Proposals.beside`.
        batches: called in every process for its batches of whole images, those of ``proposals.share``; not needed where
            the samples of ``proposals`` are those of a `regloss.Dataset`.
        network: a batch's images to what `Proposals.refresh` takes for logits; None = the module's ``forward``.
    """

    def __init__(
        self,
        proposals: Proposals,
        batches: Callable[[], Iterable[Batch]] | None = None,
        network: Callable[[Tensor], Any] | None = None,
    ) -> None:
        self.proposals = proposals
        self.batches = batches
        self.network = network
        self._epoch = 0  # that the run begins or goes on with

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make the first proposals: Lightning loads the first batches before it says that an epoch begins."""
        if trainer.world_size > 1:
            self.proposals.loop.all_reduce = _sum_over_processes
            self.proposals.loop.world_size = trainer.world_size
        self._refresh(self._epoch, pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make proposals if they are due."""
        for name, value in self._refresh(trainer.current_epoch, pl_module).items():
            if name.startswith("proposal-"):  # the same in all processes
                pl_module.log(name, value)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Tell the schedules."""
        self.proposals.loop.set_progress(min(trainer.global_step / trainer.estimated_stepping_batches, 1.0))

    def state_dict(self) -> dict[str, Any]:
        """Of the proposals."""
        return self.proposals.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from the proposals that a checkpoint was made with."""
        self.proposals.load_state_dict(state_dict)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Find out which epoch the run goes on with: the trainer says so after its first batches only."""
        loop = checkpoint["loops"]["fit_loop"]
        total = loop["epoch_progress"]["total"]
        within = total["processed"] < total["started"]  # saved within an epoch, after its last step maybe
        done = within and loop["epoch_loop.batch_progress"]["is_last_batch"]
        self._epoch = loop["epoch_progress"]["current"]["processed"] + int(done)

    def _refresh(self, epoch: int, pl_module: LightningModule) -> dict[str, float]:
        if not self.proposals.due(epoch):
            return {}
        batches = None if self.batches is None else self.batches()
        return self.proposals.refresh(epoch, self.network or pl_module, batches)


def _sum_over_processes(value: Tensor) -> Tensor:
    if process()[1] > 1:
        distributed.all_reduce(value)
    return value
