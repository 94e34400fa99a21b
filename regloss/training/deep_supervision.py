"""Deep supervision: coarser levels of a decoder learn the same objective, each half as much as the next finer one.

    loss = L(logits) + sum over levels l = 1, 2, ... of 2^-l L(logits_l)

with logits_l interpolated to the size of the image. A network takes part by an attribute ``coarser``, a list of logits
(B, K, *S), fine to coarse, which a call in training mode leaves.

Sources: Lee et al., Deeply-Supervised Nets, AISTATS 2015; Isensee et al., nnU-Net, Nature Methods 18, 2021 (weights).
"""

from __future__ import annotations

from torch import Tensor, nn

from regloss.batch import Batch
from regloss.outer_loop import OuterLoop, Proposal


def coarser_loss(network: nn.Module, loop: OuterLoop, batch: Batch, proposal: Proposal | None) -> Tensor | None:
    """What the coarser levels add to the loss; None where the network has none.

    Args:
        network: that has just been called in training mode.
        loop: whose objective it is.
        batch: see `OuterLoop.objective`.
        proposal: likewise.
    """
    total: Tensor | None = None
    for level, logits in enumerate(getattr(network, "coarser", ()), start=1):
        part = loop.objective(logits, batch, proposal) / 2**level
        total = part if total is None else total + part
    return total
