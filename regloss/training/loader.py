"""From a data set to batches: crops, augmentation, padding, and the order of samples.

Everything random is drawn from (run seed, epoch, place in the data set), never from a global generator: any worker,
process or resumed run draws the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from regloss.batch import Batch
from regloss.dataset import IGNORE, Sample
from regloss.errors import ReglossError, UsageError
from regloss.training.augmentation import AppliedGeometry, photometric, sample_geometry
from regloss.training.config import Data
from regloss.training.processes import end_with_parent, received
from regloss.training.proposals import ProposalStore
from regloss.training.sample_reader import SampleReader, supervision_of

LARGEST_CROP = 2**28
"""Pixels of a training crop, 1 GiB of one channel."""


@dataclass(frozen=True)
class Prepared:
    """One training crop. image (C, *S), labels (*S) int64, roi (*S) bool, proposal (*S) int64 or None."""

    id: str
    image: Tensor
    labels: Tensor
    roi: Tensor
    proposal: Tensor | None
    spacing: tuple[float, ...] | None = None


class TrainingSet(Dataset[Any]):
    """Augmented crops by (epoch, place); proposals of a generation are read through the same geometry.

    Places number all crops of an epoch: those of an image lie as many places apart as there are images.
    """

    def __init__(
        self, reader: SampleReader, ids: Sequence[str], data: Data, seed: int, store: ProposalStore | None = None
    ) -> None:
        self.reader = reader
        self.ids = list(ids) * data.crops_per_image
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
        drawn = sample_geometry(
            source,
            crop_size(self.data, len(source)),
            self.data.augment,
            draw,
            spacing=sample.spacing,
            holds=_labelled_pixel(labels.numpy(), self.data.labelled_share, draw),
        )
        geometry = AppliedGeometry(drawn, source)
        proposal = None
        if generation >= 0:
            assert self.store is not None
            stored = self.store.read(generation, sample.id)
            _check_proposal(stored, source, len(self.reader.source.classes), sample.id)
            proposal = geometry.labels(torch.from_numpy(stored), IGNORE).long()
        changed = photometric(geometry.image(image), self.data.augment, draw, sample.spacing)
        made = geometry.labels(labels, IGNORE).long()
        return Prepared(sample.id, changed * geometry.inside, made, geometry.inside, proposal, sample.spacing)


def _labelled_pixel(labels: np.ndarray, share: float, draw: list[int]) -> tuple[int, ...] | None:
    """With probability ``share`` a pixel with a label, of a random class among those that there are."""
    rng = np.random.default_rng([*draw, 2])
    if rng.random() >= share:
        return None
    flat = labels.ravel()
    classes = np.flatnonzero(np.bincount(flat, minlength=IGNORE + 1)[:IGNORE])
    if not len(classes):
        return None
    pixel = rng.choice(np.flatnonzero(flat == rng.choice(classes)))
    return tuple(int(place) for place in np.unravel_index(pixel, labels.shape))


def _check_proposal(labels: np.ndarray, size: tuple[int, ...], classes: int, sample_id: str) -> None:
    if labels.shape != size or bool(((labels >= classes) & (labels != IGNORE)).any()):
        raise UsageError(
            f"The stored proposal of {sample_id} is damaged: it is {labels.shape} with values up to {labels.max()}, "
            f"for an image {size} and {classes} classes. Take it from a copy of the run, or begin with --overwrite."
        )


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
    if math.prod(crop) > LARGEST_CROP:
        raise UsageError(f"A crop of {crop} has more than {LARGEST_CROP} pixels. Choose a smaller one.")
    return crop


def common_spacing(items: Sequence[Prepared | Sample]) -> tuple[float, ...] | None:
    """The spacing of all ``items``.

    Raises:
        UsageError: it is not the same; the message names two of them.
    """
    for item in items[1:]:
        if item.spacing != items[0].spacing:
            raise UsageError(
                f"The images of a batch must have one spacing; {items[0].id} has {items[0].spacing} mm and {item.id} "
                f"{item.spacing}. Resample them to one spacing, or take batches of one image."
            )
    return items[0].spacing


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
        spacing=common_spacing(items),
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


class TrainingLoader:
    """The batches of every epoch, with their proposals, read by processes that live as long as the loader.

    Args:
        training_set: the crops.
        order: which of them make a batch.
        workers: processes that read; 0 = this one does.
        pinned: put batches into page-locked memory, from which copies to a GPU overlap with its work.
    """

    def __init__(self, training_set: TrainingSet, order: EpochOrder, workers: int, *, pinned: bool = False) -> None:
        self.order = order
        self._keys: list[list[tuple[int, int, int]]] = []  # of the current epoch, in place: the loader reads it
        self._loader: DataLoader[Any] = DataLoader(
            _Attempts(training_set),
            batch_sampler=self._keys,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=pinned,
            collate_fn=_collated,
            # The default start method copies threads' locks, numba's and OpenMP's among them, in an unknown state.
            multiprocessing_context="forkserver" if workers else None,
            worker_init_fn=_loads if workers else None,
            # A loader draws a base seed from torch's global generator; with its own, that generator's state does not
            # depend on how often a run was resumed.
            generator=torch.Generator().manual_seed(0),
        )

    def batches(self, epoch: int, generation: int, first_step: int = 0) -> Iterator[tuple[Batch, Tensor | None]]:
        """An epoch's remaining batches, and proposals (B, *S) of a generation (-1 = none).

        Raises:
            ReglossError: a loader process was killed; and whatever reading a sample raises, in whichever process it
                does.
        """
        self._keys[:] = self.order.batches(epoch, generation, first_step)
        return received(self._loader, "go on with --resume")


class _Attempts(Dataset[Any]):
    """Crops, or what went wrong with one: torch would make a message of the worker's traceback."""

    def __init__(self, training_set: TrainingSet) -> None:
        self.training_set = training_set

    def __getitems__(self, keys: Sequence[tuple[int, int, int]]) -> list[Prepared] | Exception:
        """The crops of a batch."""
        try:
            return [self.training_set[key] for key in keys]
        except (ReglossError, OSError) as error:
            return error


def _collated(items: Sequence[Prepared] | Exception) -> tuple[Batch, Tensor | None] | Exception:
    return items if isinstance(items, Exception) else collate(items)


def _loads(worker: int) -> None:
    """What a loader process begins with."""
    end_with_parent()
    info: Any = get_worker_info()
    info.dataset.training_set.reader.sharers = info.num_workers


def like_groups(samples: Iterable[Sample], largest: int) -> Iterator[list[Sample]]:
    """Consecutive samples of one size and spacing, at most ``largest`` together: batches without padding.

    Volumes come one by one, as each fills memory. No more samples are held than those of a batch.
    """
    group: list[Sample] = []
    for sample in samples:
        if group and (not _are_alike(group[0], sample) or len(group) == largest or sample.image.ndim > 3):
            yield group
            group = []
        group.append(sample)
    if group:
        yield group


def _are_alike(one: Sample, other: Sample) -> bool:
    return (one.image.shape, one.spacing) == (other.image.shape, other.spacing)


def whole_batch(samples: Sequence[Sample], labels: Sequence[np.ndarray] | None) -> Batch:
    """Un-augmented images of one size as a batch."""
    return Batch(
        image=torch.from_numpy(np.stack([sample.image for sample in samples])),
        labels=None if labels is None else torch.from_numpy(np.stack(labels).astype(np.int64)),
        ids=[sample.id for sample in samples],
        spacing=common_spacing(samples),
    )
