"""Stage A: new proposals for all training images, un-augmented."""

from __future__ import annotations

import math
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor

from regloss.batch import Batch
from regloss.constraint import has_constraints
from regloss.errors import UsageError
from regloss.outer_loop import OuterLoop, Proposal
from regloss.regularizer import Regularizer
from regloss.training.config import as_written
from regloss.training.finite import check_finite_logits
from regloss.training.loader import like_groups, whole_batch
from regloss.training.model import predict
from regloss.training.processes import to_device
from regloss.training.proposals import ProposalStore
from regloss.training.sample_reader import supervision_of

if TYPE_CHECKING:
    from regloss.training.run_parts import Parts

ENERGIES = ("proposal-energy-before", "proposal-energy-after")
"""Columns of the log of epochs: energies per pixel of proposals, before the solver and after it."""


def propose(loop: OuterLoop, logits: Tensor, batch: Batch, warm: Tensor | None = None) -> Proposal | None:
    """The loop's proposal; errors name the images, and settings as a configuration spells them."""
    try:
        return loop.propose(logits, batch, warm)
    except UsageError as error:
        where = f" for {', '.join(batch.ids)}" if batch.ids else ""
        raise type(error)(f"No proposal{where}: {as_written(str(error))}") from error


def finite_energies(energies: dict[str, float]) -> dict[str, float]:
    """Those that exist: a start outside a hard constraint has none, and some solvers do not compute that of a start."""
    return {name: energy for name, energy in energies.items() if math.isfinite(energy)}


def proposals_due(loop: OuterLoop, epoch: int, generation: int, generation_epoch: int) -> bool:
    """Whether this epoch begins with new proposals."""
    if not isinstance(loop.update_every, int):
        return False
    if generation_epoch == epoch:
        return False  # resumed in the middle of an epoch whose proposals are there already
    return generation < 0 if loop.update_every == 0 else epoch % loop.update_every == 0


def propose_all(
    fabric: Fabric, parts: Parts, store: ProposalStore, generation: int, previous: int, step: int = 0
) -> dict[str, float]:
    """Solve for the proposals of all training images of this process and keep them as ``generation``.

    The network works on the next images while the solver, in a thread, works on these: solvers release the interpreter.
    """
    began = time.perf_counter()
    config, loop = parts.config, parts.loop
    ids = parts.ids[fabric.global_rank :: fabric.world_size]
    samples = [parts.reader.load(sample_id) for sample_id in ids]
    totals = {"before": 0.0, "after": 0.0, "solver": 0.0, "violation": 0.0}
    regularizer = getattr(loop, "regularizer", None)
    constrained = isinstance(regularizer, Regularizer) and has_constraints(regularizer)

    def solve(batch: Batch, logits: Tensor, warm: Tensor | None) -> None:
        started = time.perf_counter()
        proposal = propose(loop, logits, batch, warm)
        assert proposal is not None
        totals["solver"] += time.perf_counter() - started
        if proposal.solution is not None:
            pixels = batch.pixels.to(proposal.solution.energy)
            totals["before"] += float((proposal.solution.start_energy / pixels).sum())
            totals["after"] += float((proposal.solution.energy / pixels).sum())
            totals["violation"] += float(proposal.solution.violation.sum())
        for sample_id, labels in zip(batch.ids or (), proposal.labels.cpu().numpy().astype(np.uint8), strict=True):
            store.write(generation, sample_id, labels)

    network_seconds = 0.0
    # torch keeps the number of its threads per thread, and a new one starts with all cores.
    with ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(torch.get_num_threads(),)) as pool:
        waiting: deque[Future[None]] = deque()
        for group in like_groups(samples, config.training.batch_size):
            chosen = [samples[place] for place in group]
            labels = [supervision_of(sample, config.data.supervision) for sample in chosen]
            batch = to_device(whole_batch(chosen, labels), fabric.device)
            started = time.perf_counter()
            logits = predict(parts.segmenter, batch.image)
            network_seconds += time.perf_counter() - started
            check_finite_logits(logits, step, batch)
            warm = None
            if previous >= 0:
                stored = np.stack([store.read(previous, sample.id) for sample in chosen])
                warm = torch.from_numpy(stored).long().to(fabric.device)
            waiting.append(pool.submit(solve, batch, logits, warm))
            while len(waiting) > 2:  # bounds the memory of what waits for the solver
                waiting.popleft().result()
        for future in waiting:
            future.result()
    chosen_totals = [totals["before"], totals["after"], totals["violation"], float(len(ids))]
    sums = torch.tensor(chosen_totals, dtype=torch.float64)
    if fabric.world_size > 1:
        sums = fabric.all_reduce(sums.to(fabric.device), reduce_op="sum").cpu()  # type: ignore[union-attr]
    before, after, violation, count = sums.tolist()
    return {
        **({"proposal-violation": violation / count} if constrained else {}),
        **finite_energies(dict(zip(ENERGIES, (before / count, after / count), strict=True))),
        "solver-seconds": totals["solver"],
        "network-seconds": network_seconds,
        "update-seconds": time.perf_counter() - began,
    }


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
