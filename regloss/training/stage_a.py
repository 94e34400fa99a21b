"""Stage A: new proposals for all training images, un-augmented, by `regloss.training.proposal_engine`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from regloss.batch import Batch
from regloss.outer_loop import OuterLoop, Proposal
from regloss.training.config import as_written
from regloss.training.loader import like_groups, whole_batch
from regloss.training.model import predict
from regloss.training.proposal_engine import ENERGIES, OfBatches, Proposals, named_images
from regloss.training.sample_reader import supervision_of

if TYPE_CHECKING:
    from regloss.training.run_parts import Parts


def propose(loop: OuterLoop, branches: Sequence[Tensor], batch: Batch) -> Proposal | None:
    """The loop's proposal from the logits of all decoders; errors name the images, and settings as in a configuration.

    Args:
        loop: that proposes in every step.
        branches: (B, K, *S) of each decoder, see `OuterLoop.propose_from`.
        batch: images and labels.
    """
    with named_images(batch, as_written):
        return loop.propose_from(branches, batch)


def propose_all(proposals: Proposals, parts: Parts, epoch: int, step: int, device: torch.device) -> dict[str, float]:
    """Refresh ``proposals``, if they are due; see `Proposals.refresh`."""
    network = OfBatches(lambda batch: predict(parts.segmenter, batch.image, batch.spacing))
    return proposals.refresh(epoch, network, _whole_batches(proposals, parts, device), step)


def _whole_batches(proposals: Proposals, parts: Parts, device: torch.device) -> Iterator[Batch]:
    config = parts.config
    samples = (parts.reader.load(sample_id) for sample_id in proposals.share)
    for chosen in like_groups(samples, config.training.batch_size):
        labels = [supervision_of(sample, config.data.supervision) for sample in chosen]
        yield whole_batch(chosen, labels).to(device)


def add_energies(numbers: dict[str, float], proposal: Proposal | None, batch: Batch) -> None:
    """Running means over an epoch of the energies per pixel of proposals made in every step."""
    if proposal is None or proposal.solution is None:
        return
    pixels = batch.pixels.to(proposal.solution.energy)
    count = numbers.get("proposal-images", 0.0)
    new = count + len(pixels)
    for key, energies in zip(ENERGIES, (proposal.solution.start_energy, proposal.solution.energy), strict=True):
        numbers[key] = (numbers.get(key, 0.0) * count + float((energies / pixels).sum())) / new
    numbers["proposal-images"] = new
