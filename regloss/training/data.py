"""From a data set to batches: crops, augmentation, padding, and the order of samples.

Everything random is drawn from (run seed, epoch, place in the data set), never from a global generator: any worker,
process or resumed run draws the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from regloss.batch import Batch
from regloss.dataset import IGNORE, Sample
from regloss.dataset import Dataset as SampleSource
from regloss.errors import UsageError
from regloss.io.scribbles import shorten
from regloss.training.augment import Replay, photometric, sample_geometry
from regloss.training.color_pseudo_labels import ColorPseudoLabels
from regloss.training.config import Data
from regloss.training.proposals import ProposalStore

CACHE_LIMIT = 2 * 1024**3  # bytes of decoded samples kept in memory by each process


@dataclass(frozen=True)
class Prepared:
    """One training crop. image (C, *S), labels (*S) int64, roi (*S) bool, proposal (*S) int64 or None."""

    id: str
    image: Tensor
    labels: Tensor
    roi: Tensor
    proposal: Tensor | None


class SampleCache:
    """Samples of a data set, decoded once while they fit into memory."""

    def __init__(
        self,
        source: SampleSource,
        enabled: bool = True,
        scribble_length: float = 1.0,
        proposals: ColorPseudoLabels | None = None,
    ) -> None:
        self.source = source
        self.enabled = enabled
        self.scribble_length = scribble_length
        self.proposals = proposals
        self._samples: dict[str, Sample] = {}
        self._bytes = 0

    def __getstate__(self) -> dict[str, Any]:
        # Loader processes decode what they need; sending them everything decoded so far would be slower.
        return {**self.__dict__, "_samples": {}, "_bytes": 0}

    def load(self, sample_id: str) -> Sample:
        """One sample; checked, see `check_sample`."""
        if sample_id in self._samples:
            return self._samples[sample_id]
        sample = self.source.load(sample_id)
        check_sample(sample, len(self.source.classes))
        if sample.scribble is not None and self.scribble_length < 1:
            sample = replace(sample, scribble=shorten(sample.scribble, self.scribble_length))
        if self.proposals is not None:
            sample = self.proposals(sample)
        size = sum(a.nbytes for a in (sample.image, sample.label, sample.scribble) if a is not None)
        if self.enabled and self._bytes + size <= CACHE_LIMIT:
            self._samples[sample_id] = sample
            self._bytes += size
        return sample


def check_sample(sample: Sample, classes: int) -> None:
    """Raise `UsageError` unless the sample keeps the contract of `regloss.dataset.Sample`."""
    image = sample.image
    if image.ndim < 3 or image.dtype != np.float32:
        raise UsageError(f"{sample.id}: an image must be (C, *S) float32; got {image.shape} {image.dtype}.")
    low, high = float(image.min()), float(image.max())
    if not (low >= 0 and high <= 1):  # false for NaN too
        found = "NaN" if np.isnan(image).any() else f"values from {low:.4g} to {high:.4g}"
        raise UsageError(f"{sample.id}: image values must lie in [0, 1]; got {found}. Rescale the image.")
    for name, labels in (("label", sample.label), ("scribble", sample.scribble)):
        if labels is None:
            continue
        if labels.shape != image.shape[1:]:
            raise UsageError(
                f"{sample.id}: the {name} has the size {labels.shape}, the image {image.shape[1:]}. They must agree."
            )
        wrong = (labels >= classes) & (labels != IGNORE)
        if wrong.any():
            raise UsageError(
                f"{sample.id}: the {name} holds the values {sorted(set(labels[wrong].tolist()))[:10]}, but there are "
                f"{classes} classes: 0 to {classes - 1}, or 255."
            )


def supervision_of(sample: Sample, supervision: str) -> np.ndarray:
    """The labels that training may see; 255 everywhere where that is none."""
    if supervision == "none":
        return np.full(sample.image.shape[1:], IGNORE, dtype=np.uint8)
    labels = sample.scribble if supervision == "scribbles" else sample.label
    if labels is None:
        raise UsageError(f"{sample.id} has no {supervision[:-1]}, and training was asked to use {supervision}.")
    return labels


def check_training_samples(cache: SampleCache, ids: Sequence[str], supervision: str) -> list[str]:
    """Read every training sample once and check it, before anything is written.

    Returns:
        Warnings worth telling: images in which only one class is labelled.

    Raises:
        UsageError: a sample breaks the contract, or has no labelled pixel at all; or all are of one class.
    """
    empty, single = [], []
    seeded: set[int] = set()
    for sample_id in ids:
        labels = supervision_of(cache.load(sample_id), supervision)
        if supervision == "none":
            continue  # loading has checked the image
        present = np.unique(labels[labels != IGNORE])
        seeded.update(present.tolist())
        if present.size == 0:
            empty.append(sample_id)
        elif present.size == 1 and supervision == "scribbles":
            single.append(sample_id)
    if empty:
        raise UsageError(
            f"{len(empty)} training images have no labelled pixel in their {supervision}: {_listed(empty)}. "
            "Label them, or leave them out of the split."
        )
    if len(seeded) == 1:
        (only,) = seeded
        raise UsageError(
            f"All {supervision} of the training images are of class {only} ({cache.source.classes[only]!r}), so there "
            "is nothing to tell apart. Label at least two classes, background among them."
        )
    if single:
        return [
            f"In {len(single)} images only one class is seeded, so proposals may take any class: {_listed(single)}."
        ]
    return []


def check_evaluation_samples(cache: SampleCache, subset: str) -> None:
    """Read every sample of ``subset`` once and check it.

    Raises:
        UsageError: a sample breaks the contract or has no dense label, or there is none.
    """
    ids = cache.source.ids(subset)
    if not ids:
        raise UsageError(f"The subset {subset!r} of the data set is empty: there is nothing to evaluate.")
    for sample_id in ids:
        supervision_of(cache.load(sample_id), "labels")


def _listed(names: Sequence[str], most: int = 10) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


class TrainingSet(Dataset[Any]):
    """Augmented crops by (epoch, place); proposals of a generation are read through the same geometry."""

    def __init__(
        self, cache: SampleCache, ids: Sequence[str], data: Data, seed: int, store: ProposalStore | None = None
    ) -> None:
        self.cache = cache
        self.ids = list(ids)
        self.data = data
        self.seed = seed
        self.store = store

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, key: tuple[int, int, int]) -> Prepared:
        """The crop of (epoch, place, generation); generation -1 = no proposal."""
        epoch, place, generation = key
        sample = self.cache.load(self.ids[place])
        image = torch.from_numpy(sample.image)
        labels = torch.from_numpy(supervision_of(sample, self.data.supervision))
        source = tuple(image.shape[1:])
        draw = [self.seed, epoch, place]
        replay = Replay(sample_geometry(source, crop_size(self.data, len(source)), self.data.augment, draw), source)
        proposal = None
        if generation >= 0:
            assert self.store is not None
            proposal = replay.labels(torch.from_numpy(self.store.read(generation, sample.id)), IGNORE).long()
        crop = photometric(replay.image(image), self.data.augment, draw) * replay.inside
        return Prepared(sample.id, crop, replay.labels(labels, IGNORE).long(), replay.inside, proposal)


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
