"""Further logits of a network learn the objective too: those of other decoders, and of a decoder's coarser levels.

    loss = L(logits) + sum over other decoders of L(logits_j) + sum over levels l = 1, 2, ... of 2^-l L(logits_l)

with logits_l interpolated to the size of the image. A network takes part by an attribute ``auxiliary``, or ``coarser``:
a list of logits (B, K, *S), of ``coarser`` fine to coarse, which a call in training mode leaves.

Sources: Lee et al., Deeply-Supervised Nets, AISTATS 2015; Isensee et al., nnU-Net, Nature Methods 18, 2021 (weights of
levels); Luo et al., Scribble-supervised medical image segmentation via dual-branch network, MICCAI 2022 (decoders).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from regloss.batch import Batch
from regloss.errors import UsageError
from regloss.outer_loop import OuterLoop, Proposal
from regloss.registry import name_of


def auxiliary_logits(network: nn.Module) -> Sequence[Tensor]:
    """Logits (B, K, *S) of decoders beside the first, of the last call in training mode; none for most networks."""
    found: Sequence[Tensor] = getattr(network, "auxiliary", ())
    return found


def further_loss(network: nn.Module, loop: OuterLoop, batch: Batch, proposal: Proposal | None) -> Tensor | None:
    """What further logits add to the loss; None where the network has none.

    Args:
        network: that has just been called in training mode.
        loop: whose objective it is.
        batch: see `OuterLoop.objective`.
        proposal: likewise.
    """
    weighted = [(logits, 1.0) for logits in auxiliary_logits(network)]
    weighted += [(logits, 2.0**-level) for level, logits in enumerate(getattr(network, "coarser", ()), start=1)]
    total: Tensor | None = None
    for logits, weight in weighted:
        part = weight * loop.objective(logits, batch, proposal)
        total = part if total is None else total + part
    return total


def check_decoders(network: nn.Module, loop: OuterLoop) -> None:
    """Raise `UsageError` unless ``network``, by its attribute ``decoders``, has as many as the loop asks for."""
    have = getattr(network, "decoders", 1)
    if have < loop.decoders:
        raise UsageError(
            f"The outer loop {name_of(loop)!r} learns with {loop.decoders} decoders, and {type(network).__name__} has "
            f'{have}. Give it a second one (network.auxiliary-decoder = true, of "unet"), or take another loop.'
        )
