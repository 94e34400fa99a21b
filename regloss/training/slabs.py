"""Proposals of volumes by slabs: consecutive slices that are solved for together, where a whole volume fills memory.

Slabs overlap by a quarter, and each slice takes its labels from the slab in which it lies deeper, so that a cut near a
slab's end, which has seen nothing beyond, is not used.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from regloss.batch import Batch
from regloss.outer_loop import Proposal
from regloss.training.inference import window_starts

_OVERLAP = 0.25

Propose = Callable[[Tensor, Batch, Tensor | None], Proposal | None]
"""Logits (B, K, *S), batch and labels to start from, to a proposal."""


def by_slabs(propose: Propose, logits: Tensor, batch: Batch, warm: Tensor | None, slab: int | None) -> Proposal | None:
    """The proposal of a batch, of volumes with more than ``slab`` slices along their first axis slab by slab.

    Energies of slabs do not add up to that of the volume, so such a proposal has no solution with it.

    Args:
        propose: makes the proposal of a batch.
        logits: (B, K, *S).
        batch: see `regloss.outer_loop.OuterLoop.propose`.
        warm: (B, *S) labels to start from, or None.
        slab: number of slices; None = all at once.
    """
    length = batch.image.shape[2]
    if slab is None or batch.image.ndim < 5 or length <= slab:
        return propose(logits, batch, warm)
    starts = window_starts(length, slab, _OVERLAP)
    # Between two slabs, the middle of what they share.
    ends = [(start + slab + following + 1) // 2 for start, following in itertools.pairwise(starts)]
    labels = torch.empty(batch.shape, dtype=torch.int64, device=logits.device)
    begin = 0
    for start, end in zip(starts, [*ends, length], strict=True):
        part = slice(start, start + slab)
        some = replace(
            batch,
            image=batch.image[:, :, part],
            labels=None if batch.labels is None else batch.labels[:, part],
            roi=None if batch.roi is None else batch.roi[:, part],
        )
        found = propose(logits[:, :, part], some, None if warm is None else warm[:, part])
        if found is None:
            return None
        labels[:, begin:end] = found.labels[:, begin - start : end - start]
        begin = end
    return Proposal(labels)
