"""Proposals of a training, whoever runs its loop: made when they are due, kept by sample id, read in any process.

The loop may be PyTorch's plainest, Lightning's, MONAI's, nnU-Net's, or `regloss.training.trainer`. Of its host the
engine asks three things: the number of the epoch that begins, the network, and whole images that nothing has augmented.
"""

from __future__ import annotations

import math
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, distributed, nn

from regloss.batch import Batch
from regloss.checks import check_at_least_one
from regloss.constraint import has_constraints
from regloss.dataset import IGNORE, Dataset, Sample
from regloss.errors import ReglossError, UsageError
from regloss.network_output import logits_of
from regloss.outer_loop import OuterLoop, Proposal
from regloss.regularizer import Regularizer
from regloss.settings import CheckedSettings, fits
from regloss.training.finite import check_finite_logits
from regloss.training.proposals import ProposalStore
from regloss.training.slabs import by_slabs

ENERGIES = ("proposal-energy-before", "proposal-energy-after")
"""Names of energies per pixel of proposals, before the solver and after it."""

_LARGE = 2**28  # bytes of logits: those of 16 million voxels and four classes

Network = Callable[[Tensor], Any]


@dataclass(frozen=True)
class OfBatches:
    """A network that is called with whole batches, as what stands behind it heeds their spacing, say."""

    logits: Callable[[Batch], Tensor]


class Proposals(metaclass=CheckedSettings):
    """The proposals of an outer loop for the images of a training, on disk.

    Every ``loop.update_every`` epochs `refresh` asks the loop for a segmentation of every image, whole and
    un-augmented, and keeps it by the image's id. In between, training crops read it: `beside` puts a proposal beside
    an image's labels as one more channel, so that whatever flips, crops, scales and rotates labels does the same to it,
    and `apart` takes them apart again behind the augmentation.

    Each refresh writes a generation of its own, which counts once all of it is there. What a killed run had is found
    again with ``resume``: `refresh` goes on from the proposals of the epoch that it is called with.

    Args:
        loop: makes the proposals; one whose ``update_every`` is a number of epochs.
        samples: the ids of all training images, texts that can be file names; or a `Dataset`, whose images are then
            loaded here.
        folder: where proposals are kept. Processes that share them share the folder.
        subset: of the data set, where ``samples`` is one.
        supervision: which labels of its samples the loop may see.
        batch_size: images of a `Dataset` that the network and the solver get at once, >= 1.
        resume: go on from proposals that the folder holds.
        spelled: how the loop's messages are worded, for loops that are made from a configuration.
        slab: solve for so many slices of a volume at a time, >= 2, which bounds memory (`regloss.training.slabs`); None
            = for whole volumes.

    Raises:
        UsageError: the loop makes no proposals to be kept; ids that are no file names or not unique; a setting that is
            none.

    >>> import regloss, tempfile
    >>> loop = regloss.TrustRegion(regloss.GridCRF(weight=1.0), update_every=5)
    >>> image, scribbles = torch.rand(1, 3, 8, 8), torch.full((1, 8, 8), 255)
    >>> scribbles[:, 0], scribbles[:, 7] = 0, 1
    >>> network = torch.nn.Conv2d(3, 2, 1)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     proposals = Proposals(loop, ["cat"], folder)
    ...     _ = proposals.refresh(0, network, [Batch(image, scribbles, ids=["cat"])])
    ...     crop = proposals.beside(scribbles[0], "cat").flip(-1)
    ...     labels, proposal = proposals.apart(crop.unsqueeze(0))
    >>> labels.shape, proposal.labels.unique()
    (torch.Size([1, 8, 8]), tensor([0, 1]))
    """

    def __init__(
        self,
        loop: OuterLoop,
        samples: Sequence[str] | Dataset,
        folder: str | Path,
        *,
        subset: str = "train",
        supervision: Literal["scribble", "label"] = "scribble",
        batch_size: int = 8,
        resume: bool = False,
        spelled: Callable[[str], str] = str,
        slab: int | None = None,
    ) -> None:
        if not isinstance(loop, OuterLoop):
            raise UsageError(f"loop must be an outer loop, regloss.TrustRegion(...), say; got {loop!r}.")
        check_at_least_one(batch_size=batch_size)
        if slab is not None and slab < 2:
            raise UsageError(f"slab must be at least 2 slices; got {slab}.")
        if not isinstance(loop.update_every, int):
            raise UsageError(
                f"{type(loop).__name__} with update_every = {loop.update_every!r} makes no proposals to be kept. Give "
                'it a number of epochs; with "step" call propose on every batch yourself, with "never" objective alone.'
            )
        self.loop = loop
        self.dataset = samples if isinstance(samples, Dataset) else None
        self.ids = _checked_ids(samples.ids(subset) if isinstance(samples, Dataset) else samples)
        self.supervision = supervision
        self.batch_size = batch_size
        self.store = ProposalStore(Path(folder))
        self.generation, self.epoch = -1, -1
        """Of the proposals in use, and the epoch that began with them; -1 = none."""
        self._begun = False
        self._resume = resume
        self._spelled = spelled
        self.slab = slab

    # ---- making them

    def due(self, epoch: int) -> bool:
        """Whether ``epoch`` (0, 1, ...) begins with new proposals."""
        every = self.loop.update_every
        if not isinstance(every, int) or self.epoch == epoch:  # resumed where proposals are there already
            return False
        return self.generation < 0 or (every > 0 and epoch % every == 0)

    def refresh(
        self,
        epoch: int,
        network: Network | nn.Module | OfBatches,
        batches: Iterable[Batch] | None = None,
        step: int | None = None,
    ) -> dict[str, float]:
        """Make new proposals if they are due; call it at the beginning of every epoch, in every process.

        The network works on the next images while the solver, in a thread, works on these: solvers release Python's
        lock.

        Args:
            epoch: that begins, counted from 0.
            network: (B, C, *S) images of the batches to logits (B, K, *S), or to what
                `regloss.network_output.logits_of` finds them in. A module works in evaluation mode, on the
                device of its parameters, without gradients, and is left as it was.
            batches: whole images with their labels and ids, on any device, those of this process's share of the ids;
                see `share`. None where the samples are those of a `Dataset`.
            step: optimizer steps done, which the message names if the network has diverged.

        Returns:
            Energies per pixel before and after the solver, if it tells, and seconds; nothing if nothing was due.

        Raises:
            UsageError: what `OuterLoop.propose` raises, with the images named; batches without ids, or with unknown
                ones; more than 255 classes; an epoch that is none; the folder holds proposals of another run, and is
                not to be gone on with.
            ReglossError: logits that are not finite; an image without a proposal.
        """
        if not fits(epoch, int) or epoch < 0:
            raise UsageError(f"epoch is the number of the epoch that begins, counted from 0; got {epoch!r}.")
        if not self._begun:
            if not self._resume and self.store.generations():
                raise UsageError(
                    f"{self.store.folder} holds proposals of an earlier run. Go on with them by resume=True or by a "
                    "checkpoint's state_dict, remove them, or choose another folder."
                )
            self.restore(*self._made_until(epoch))
        if not self.due(epoch):
            return {}
        if batches is None:
            if self.dataset is None:
                raise UsageError("These proposals know ids alone, so refresh needs batches of whole images.")
            batches = self._batches(self.dataset)
        began = time.perf_counter()
        barrier()
        new = self.generation + 1
        totals = _Totals()
        # torch keeps the number of its threads per thread, and a new one starts with all cores.
        threads = torch.get_num_threads()
        with ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(threads,)) as pool:
            waiting: deque[Future[None]] = deque()
            for whole in batches:
                self._check(whole)
                batch = _on(whole, _device(network, whole.image.device))
                started = time.perf_counter()
                logits = _logits(network, batch)
                check_finite_logits(logits, step, batch)
                totals.network += time.perf_counter() - started
                waiting.append(pool.submit(self._solve, batch, logits, self._warm(batch), new, totals))
                # Bounds the memory of what waits: beside a solver that is at work on a large volume there is no room.
                while len(waiting) > (2 if logits.nbytes <= _LARGE else 0):
                    waiting.popleft().result()
            for future in waiting:
                future.result()
        barrier()
        missing = [sample_id for sample_id in self.ids if not self.store.holds(new, sample_id)]
        if missing:
            raise ReglossError(
                f"{len(missing)} of {len(self.ids)} images got no proposal: {', '.join(missing[:5])}. The batches of "
                "all processes together must hold every id."
            )
        if process()[0] == 0:
            self.store.finish(new, len(self.ids), epoch)
        barrier()
        self.generation, self.epoch = new, epoch
        return {**totals.means(self._constrained()), "update-seconds": time.perf_counter() - began}

    @property
    def share(self) -> list[str]:
        """The ids that this process makes proposals for."""
        rank, size = process()
        return self.ids[rank::size]

    def _solve(self, batch: Batch, logits: Tensor, warm: Tensor | None, generation: int, totals: _Totals) -> None:
        started = time.perf_counter()

        def propose_part(logits: Tensor, batch: Batch, warm: Tensor | None) -> Proposal | None:
            return propose(self.loop, logits, batch, warm, self._spelled)

        proposal = by_slabs(propose_part, logits, batch, warm, self.slab)
        if proposal is None:
            raise ReglossError(f"{type(self.loop).__name__} made no proposal for {', '.join(batch.ids or ())}.")
        totals.add(proposal, batch, time.perf_counter() - started)
        for sample_id, labels in zip(batch.ids or (), proposal.labels.cpu().numpy().astype(np.uint8), strict=True):
            self.store.write(generation, sample_id, labels)

    def _warm(self, batch: Batch) -> Tensor | None:
        if self.generation < 0:
            return None
        stored = np.stack([self.store.read(self.generation, sample_id) for sample_id in batch.ids or ()])
        return torch.from_numpy(stored).long().to(batch.image.device)

    def _batches(self, dataset: Dataset) -> Iterator[Batch]:
        from regloss.training.loader import like_groups, whole_batch  # with our trainer's configuration behind it

        for chosen in like_groups((dataset.load(sample_id) for sample_id in self.share), self.batch_size):
            yield whole_batch(chosen, [self._supervision(sample) for sample in chosen])

    def _supervision(self, sample: Sample) -> npt.NDArray[np.uint8]:
        labels = sample.scribble if self.supervision == "scribble" else sample.label
        if labels is None:
            raise UsageError(f"{sample.id} has no {self.supervision}, which its proposal needs.")
        return labels

    def _check(self, batch: Batch) -> None:
        if batch.ids is None:
            raise UsageError("Proposals are kept by id: give the batches their ids, Batch(image, labels, ids=[...]).")
        unknown = sorted(set(batch.ids) - set(self.ids))
        if unknown:
            raise UsageError(f"The batches hold ids that these proposals were not made for: {', '.join(unknown[:5])}.")

    def _constrained(self) -> bool:
        regularizer = getattr(self.loop, "regularizer", None)
        return isinstance(regularizer, Regularizer) and has_constraints(regularizer)

    # ---- reading them

    def labels(self, sample_id: str) -> npt.NDArray[np.uint8]:
        """(*S) of one image as it is, un-augmented; 255 outside the region of interest.

        In a process that loads images, too: the newest generation in the folder counts.

        Raises:
            UsageError: the file is damaged.
            ReglossError: there are none yet, or none of this image.
        """
        newest = self._newest()
        if newest < 0:
            raise ReglossError(f"There are no proposals in {self.store.folder} yet: call refresh first.")
        return self.store.read(newest, sample_id)

    def beside(self, labels: Tensor | npt.NDArray[np.integer], sample_id: str) -> Tensor:
        """An image's labels (*S) and its proposal as two channels (2, *S) int64, for transforms of label maps.

        What the transforms fill in beyond the image must be 255, for both channels.

        Raises:
            UsageError: the labels are not of the size of the proposal, as they are of an image augmented already; or no
                whole numbers.
        """
        given, stored = torch.as_tensor(labels), torch.from_numpy(self.labels(sample_id)).long()
        _check_whole(given)
        if given.shape != stored.shape:
            raise UsageError(
                f"The labels of {sample_id} are {tuple(given.shape)}, its proposal is {tuple(stored.shape)}: put them "
                "together before the image is cropped or scaled."
            )
        return torch.stack([given.long(), stored])

    @staticmethod
    def apart(channels: Tensor) -> tuple[Tensor, Proposal]:
        """Labels (B, *S) int64, and the proposal, from augmented channels (B, 2, *S) of `beside`.

        Raises:
            UsageError: there are not two channels, or values are not whole numbers, as after an interpolation.
        """
        if channels.ndim < 3 or channels.shape[1] != 2:
            raise UsageError(f"Labels and proposal are two channels (B, 2, *S); got {tuple(channels.shape)}.")
        _check_whole(channels)
        labels, proposal = channels.long().unbind(1)
        return labels, Proposal(proposal)

    # ---- going on, and clearing up

    def restore(self, generation: int, epoch: int) -> None:
        """Go on from ``generation``, made at the beginning of ``epoch``; later ones are removed. -1, -1 = none."""
        self.generation, self.epoch = generation, epoch
        self._begun = True
        barrier()
        if process()[0] == 0:
            self.store.discard_after(generation)
        barrier()

    def state_dict(self) -> dict[str, int]:
        """What a checkpoint keeps, for hosts that have such: the generation in use, and the epoch it was made in."""
        return {"generation": self.generation, "epoch": self.epoch}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on from what `state_dict` gave.

        Raises:
            UsageError: the folder does not hold these proposals any more.
        """
        generation, epoch = state["generation"], state["epoch"]
        if generation >= 0 and not self.store.is_complete(generation):
            raise UsageError(
                f"The checkpoint goes on from proposals that {self.store.folder} does not hold, those of generation "
                f"{generation}. Take them from a copy of the run, or begin anew."
            )
        self.restore(generation, epoch)

    def clear_before(self, epoch: int) -> None:
        """Remove proposals that a run resumed at the beginning of ``epoch`` or later does not need.

        Call it once a checkpoint is written; else all generations stay.
        """
        if process()[0] == 0:
            self.store.keep_from(self._made_until(epoch)[0])

    def _made_until(self, epoch: int) -> tuple[int, int]:
        """The newest complete generation that ``epoch`` or one before began with, and which one."""
        for generation in reversed(self.store.generations()):
            if self.store.is_complete(generation):
                made = self.store.epoch(generation)
                if made <= epoch:
                    return generation, made
        return -1, -1

    def _newest(self) -> int:
        complete = (found for found in reversed(self.store.generations()) if self.store.is_complete(found))
        return next(complete, -1)


def propose(
    loop: OuterLoop,
    logits: Tensor,
    batch: Batch,
    warm: Tensor | None = None,
    spelled: Callable[[str], str] = str,
) -> Proposal | None:
    """The loop's proposal; errors name the images, in words that ``spelled`` may change."""
    with named_images(batch, spelled):
        return loop.propose(logits, batch, warm)


@contextmanager
def named_images(batch: Batch, spelled: Callable[[str], str]) -> Iterator[None]:
    """Errors of a loop that proposes name the images of ``batch``, in words that ``spelled`` may change."""
    try:
        yield
    except UsageError as error:
        where = f" for {', '.join(batch.ids)}" if batch.ids else ""
        raise type(error)(f"No proposal{where}: {spelled(str(error))}") from error


def finite_energies(energies: dict[str, float]) -> dict[str, float]:
    """Those that exist: a start outside a hard constraint has none, and some solvers do not compute that of a start."""
    return {name: energy for name, energy in energies.items() if math.isfinite(energy)}


def process() -> tuple[int, int]:
    """Rank of this process, and how many there are."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def barrier() -> None:
    """Wait for all processes."""
    if process()[1] > 1:
        distributed.barrier()


class _Totals:
    """Sums over the images of this process."""

    def __init__(self) -> None:
        self.before = self.after = self.violation = 0.0
        self.images = 0
        self.network = self.solver = 0.0  # seconds
        self.device = torch.device("cpu")

    def add(self, proposal: Proposal, batch: Batch, seconds: float) -> None:
        self.solver += seconds
        self.images += batch.image.shape[0]
        self.device = batch.image.device
        if proposal.solution is None:  # slab by slab, of which there is no energy
            self.before = self.after = math.nan
        else:
            pixels = batch.pixels.to(proposal.solution.energy)
            self.before += float((proposal.solution.start_energy / pixels).sum())
            self.after += float((proposal.solution.energy / pixels).sum())
            self.violation += float(proposal.solution.violation.sum())

    def means(self, constrained: bool) -> dict[str, float]:
        """Over the images of all processes; seconds are those of this one."""
        sums = torch.tensor([self.before, self.after, self.violation, float(self.images)], dtype=torch.float64)
        if process()[1] > 1:
            sums = sums.to(self.device)
            distributed.all_reduce(sums)
        before, after, violation, count = sums.tolist()
        return {
            **({"proposal-violation": violation / count} if constrained else {}),
            **finite_energies(dict(zip(ENERGIES, (before / count, after / count), strict=True))),
            "solver-seconds": self.solver,
            "network-seconds": self.network,
        }


def _logits(network: Network | nn.Module | OfBatches, batch: Batch) -> Tensor:
    if isinstance(network, nn.parallel.DistributedDataParallel):
        network = network.module  # its forward waits for the other processes, whose batches may be fewer
    modes = {module: module.training for module in network.modules()} if isinstance(network, nn.Module) else {}
    try:
        if isinstance(network, nn.Module):
            network.eval()
        with torch.no_grad():
            found = network.logits(batch) if isinstance(network, OfBatches) else network(batch.image)
            logits = logits_of(found, batch.image.shape[2:])
    finally:
        for module, mode in modes.items():
            module.training = mode
    if logits.shape[1] > IGNORE:
        raise UsageError(f"Proposals are kept as bytes, 255 = none: at most 255 classes; got {logits.shape[1]}.")
    return logits


def _device(network: Network | nn.Module | OfBatches, otherwise: torch.device) -> torch.device:
    parameter = next(network.parameters(), None) if isinstance(network, nn.Module) else None
    return otherwise if parameter is None else parameter.device


def _on(batch: Batch, device: torch.device) -> Batch:
    if batch.image.device == device:
        return batch
    labels = None if batch.labels is None else batch.labels.to(device)
    roi = None if batch.roi is None else batch.roi.to(device)
    return Batch(batch.image.to(device), labels, roi, batch.ids, batch.spacing)


def _check_whole(labels: Tensor) -> None:
    if labels.is_floating_point() and not bool((labels == labels.round()).all()):
        raise UsageError("Labels and proposals have been interpolated: transform them by the nearest neighbour.")


def _checked_ids(ids: Sequence[str]) -> list[str]:
    if isinstance(ids, str):  # whose letters would be ids
        raise UsageError(f"samples are several ids, or a data set; got the text {ids!r}. Of one image give [{ids!r}].")
    for sample_id in ids:
        if not isinstance(sample_id, str) or not sample_id or PurePath(sample_id).is_absolute():
            raise UsageError(f"Ids of proposals are texts that can be file names; got {sample_id!r}.")
        if ".." in PurePath(sample_id).parts or "\\" in sample_id or "\0" in sample_id:
            raise UsageError(f"Ids of proposals are texts that can be file names; got {sample_id!r}.")
    found = list(ids)
    twice = [sample_id for sample_id, count in Counter(found).items() if count > 1]
    if twice:
        raise UsageError(f"Ids of proposals must be unique; given twice: {', '.join(twice[:5])}.")
    if not found:
        raise UsageError("Proposals need at least one image; there are no ids.")
    return found
