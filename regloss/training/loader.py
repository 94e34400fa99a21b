"""From a data set to batches: crops, augmentation, padding, and the order of samples.

Everything random is drawn from (run seed, epoch, place in the data set), never from a global generator: any worker,
process or resumed run draws the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from regloss.batch import Batch
from regloss.dataset import IGNORE, Sample
from regloss.errors import UsageError
from regloss.training.augmentation import AppliedGeometry, photometric, sample_geometry
from regloss.training.config import Data
from regloss.training.proposals import ProposalStore
from regloss.training.sample_reader import SampleReader, supervision_of


@dataclass(frozen=True)
class Prepared:
    """One training crop. image (C, *S), labels (*S) int64, roi (*S) bool, proposal (*S) int64 or None."""

    id: str
    image: Tensor
    labels: Tensor
    roi: Tensor
    proposal: Tensor | None


class TrainingSet(Dataset[Any]):
    """Augmented crops by (epoch, place); proposals of a generation are read through the same geometry."""

    def __init__(
        self, reader: SampleReader, ids: Sequence[str], data: Data, seed: int, store: ProposalStore | None = None
    ) -> None:
        self.reader = reader
        self.ids = list(ids)
        self.data = data
        self.seed = seed
        self.store = store

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, key: tuple[int, int, int]) -> Prepared:
        """The crop of (epoch, place, generation); generation -1 = no proposal."""
        epoch, place, generation = key
        sample = self.reader.load(self.ids[place])
        image = torch.from_numpy(sample.image)
        labels = torch.from_numpy(supervision_of(sample, self.data.supervision))
        source = tuple(image.shape[1:])
        draw = [self.seed, epoch, place]
        drawn = sample_geometry(source, crop_size(self.data, len(source)), self.data.augment, draw)
        geometry = AppliedGeometry(drawn, source)
        proposal = None
        if generation >= 0:
            assert self.store is not None
            proposal = geometry.labels(torch.from_numpy(self.store.read(generation, sample.id)), IGNORE).long()
        crop = photometric(geometry.image(image), self.data.augment, draw) * geometry.inside
        return Prepared(sample.id, crop, geometry.labels(labels, IGNORE).long(), geometry.inside, proposal)


def crop_size(data: Data, ndim: int) -> tuple[int, ...] | None:
    """Size of training crops of images with ``ndim`` axes; None = whole images.

    Raises:
        UsageError: it has another number of axes, or is not positive.
    """
    if data.crop is None:
        return None
    crop = (data.crop,) * ndim if isinstance(data.crop, int) else tuple(data.crop)
    if len(crop) != ndim or min(crop) < 1:
        raise UsageError(
            f"crop must be one positive number, or one for each of the image's {ndim} axes; got {data.crop}."
        )
    return crop


def collate(items: Sequence[Prepared]) -> tuple[Batch, Tensor | None]:
    """Batch and proposals (B, *S); smaller images are padded at the far end, outside the region of interest."""
    size = tuple(max(item.image.shape[axis + 1] for item in items) for axis in range(items[0].image.ndim - 1))

    def padded(values: Tensor, value: float) -> Tensor:
        ndim = len(size)
        missing = [target - have for target, have in zip(size, values.shape[-ndim:], strict=True)]
        widths = [width for amount in reversed(missing) for width in (0, amount)]
        return torch.nn.functional.pad(values, widths, value=value)

    batch = Batch(
        image=torch.stack([padded(item.image, 0.0) for item in items]),
        labels=torch.stack([padded(item.labels, IGNORE) for item in items]),
        roi=torch.stack([padded(item.roi, False) for item in items]),
        ids=[item.id for item in items],
    )
    proposals = [item.proposal for item in items]
    if any(proposal is None for proposal in proposals):
        return batch, None
    return batch, torch.stack([padded(proposal, IGNORE) for proposal in proposals if proposal is not None])


class EpochOrder:
    """The batches of one epoch for one of several processes, as keys of a `TrainingSet`.

    The epoch's permutation is cut into global batches, and each of them among the processes; so W processes with a
    batch of b see, step for step, what one process with a batch of W b sees. A last, incomplete batch is filled up from
    the start of the permutation.
    """

    def __init__(self, count: int, batch_size: int, seed: int, rank: int = 0, world_size: int = 1) -> None:
        self.count = count
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size

    @property
    def steps(self) -> int:
        """Batches in an epoch."""
        return -(-self.count // (self.batch_size * self.world_size))

    def batches(self, epoch: int, generation: int, first_step: int = 0) -> Iterator[list[tuple[int, int, int]]]:
        """Keys of each batch from ``first_step`` on."""
        order = np.random.default_rng([self.seed, epoch]).permutation(self.count)
        size = self.batch_size * self.world_size
        order = np.resize(order, self.steps * size)
        for step in range(first_step, self.steps):
            start = step * size + self.rank * self.batch_size
            yield [(epoch, int(place), generation) for place in order[start : start + self.batch_size]]


def training_batches(
    training_set: TrainingSet, order: EpochOrder, epoch: int, generation: int, first_step: int, workers: int
) -> DataLoader[tuple[Batch, Tensor | None]]:
    """Loader of an epoch's remaining batches."""
    keys = list(order.batches(epoch, generation, first_step))
    return DataLoader(
        training_set,
        batch_sampler=keys,
        num_workers=workers,
        collate_fn=collate,
        # The default start method copies threads' locks, numba's and OpenMP's among them, in an unknown state.
        multiprocessing_context="forkserver" if workers else None,
        # A loader draws a base seed from torch's global generator; with its own, that generator's state does not depend
        # on how often a run was resumed.
        generator=torch.Generator().manual_seed(0),
    )


def same_size_groups(sizes: Sequence[tuple[int, ...]], largest: int) -> Iterator[list[int]]:
    """Consecutive places with one image size, at most ``largest`` together, so that batches need no padding."""
    group: list[int] = []
    for place, size in enumerate(sizes):
        if group and (sizes[group[0]] != size or len(group) == largest):
            yield group
            group = []
        group.append(place)
    if group:
        yield group


def whole_batch(samples: Sequence[Sample], labels: Sequence[np.ndarray] | None) -> Batch:
    """Un-augmented images of one size as a batch."""
    return Batch(
        image=torch.from_numpy(np.stack([sample.image for sample in samples])),
        labels=None if labels is None else torch.from_numpy(np.stack(labels).astype(np.int64)),
        ids=[sample.id for sample in samples],
    )
