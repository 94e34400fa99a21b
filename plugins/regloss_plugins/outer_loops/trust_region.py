"""Robust trust region.

Stage A, every few epochs on whole images:   X = argmin R(X; image) + coupling * D_A(X, S), seeds hard, starting at the
last proposal (at first: background), over the classes that are seeded in the image.
Stage B, in between:   data(S, Y) + weight * D(X, S) / N, D the robust divergence, by the network's optimizer.

A small coupling is a large trust region: at 0 the proposals do not depend on the network at all; towards infinity they
are its argmax. D_A is KL, not robust: its unaries are -log S. Solvers over probabilities have entropy * <X, log X> in
stage A beside it, and the argmax of their X is learnt.

Source: Marin, Boykov, "Robust trust region for weakly supervised segmentation", ICCV 2021. Its published weight is 100
on the mean over neighbour pairs; with four pairs a pixel that is 25 a pair in the unit used here.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from regloss.batch import Batch
from regloss.dataset import IGNORE
from regloss.divergence import Divergence
from regloss.errors import UsageError
from regloss.outer_loop import Cadence, Proposal
from regloss.registry import resolve
from regloss.schedule import Schedule, as_schedule
from regloss_plugins.outer_loops.proposal_loop import ProposalLoop, check_proposal_weight


def _scribbles(epsilon: float, coupling: float) -> dict[str, Any]:
    """Published settings for PASCAL VOC (K = 21); epsilon must stay below (K - 1) / K for other K."""
    return {
        "regularizer": {"name": "grid-crf", "weight": 25.0},
        "solver": {"name": "alpha-expansion", "max-cycles": 5},
        "divergence": {"name": "robust-kl", "epsilon": epsilon},
        "coupling": coupling,
        "update_every": 5,
    }


class TrustRegion(ProposalLoop):
    """Proposals of a strong solver every few epochs, learnt in between with a robust loss.

    Args:
        regularizer: one or several (objects, names or tables).
        solver: an object, a name or a table.
        data_term: one or several (objects, names or tables).
        coupling: lambda: factor of the unaries (-log softmax for KL) in stage A, against the regularizer's weight;
            number or schedule.
        divergence: of stage B; an object, a name or a table.
        epsilon: outlier probability of the divergence, a number or a schedule; None leaves the divergence's own.
        proposal_weight: weight of the divergence in stage B.
        seeded_only: restrict each image's proposal to the classes seeded in it.
        update_every: epochs between two stages A; 0 = once, before the first epoch.
        proposal_divergence: D_A, whose unaries enter stage A; an object, a name or a table.
        entropy: weight of <X, log X> in stage A, >= 0; "coupling" = lambda, which with KL is lambda KL(X || S) of a
            soft X. None = 0, or "coupling" with a solver that takes positive ones only (mean-field, pdhg).

    Raises:
        MissingForm: the solver cannot serve the regularizer.
        UsageError: epsilon is given, but the divergence has none; an entropy that the solver does not take.

    >>> TrustRegion.preset("voc-scribbles").divergence.epsilon
    0.944
    """

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "voc-scribbles": _scribbles(0.944, 0.05),
        "voc-scribbles-80": _scribbles(0.946, 0.075),  # 80 % of each scribble's length
        "voc-scribbles-50": _scribbles(0.9514, 0.1),
        "voc-scribbles-30": _scribbles(0.9516, 0.1),
        "voc-clicks": _scribbles(0.9522, 0.1),
    }

    def __init__(
        self,
        regularizer: Any,
        solver: Any = "alpha-expansion",
        data_term: Any = "partial-cross-entropy",
        coupling: float | Schedule | dict[str, Any] = 0.05,
        divergence: Any = "robust-kl",
        epsilon: float | Schedule | dict[str, Any] | None = None,
        proposal_weight: float = 1.0,
        seeded_only: bool = True,
        update_every: Cadence = 5,
        proposal_divergence: Any = "kl",
        entropy: float | Literal["coupling"] | None = None,
    ) -> None:
        super().__init__(regularizer, solver, data_term, coupling, seeded_only, update_every, entropy)
        self.proposal_divergence: Divergence = resolve("divergence", proposal_divergence)
        self.divergence = resolve("divergence", divergence)
        self.epsilon = None if epsilon is None else as_schedule(epsilon, "epsilon")
        if self.epsilon is not None:
            fields = dataclasses.fields(self.divergence) if dataclasses.is_dataclass(self.divergence) else ()
            if "epsilon" not in {field.name for field in fields}:
                raise UsageError(
                    f"epsilon was given, but the divergence {type(self.divergence).__name__} has none. Use robust-kl."
                )
            self._with_epsilon(self.epsilon.end)  # refused now, rather than when training gets there
        check_proposal_weight(proposal_weight)
        self.proposal_weight = proposal_weight
        self.set_progress(0.0)

    def set_progress(self, progress: float) -> None:
        """Follow the schedules, epsilon's included."""
        super().set_progress(progress)
        if self.epsilon is not None:
            self.divergence = self._with_epsilon(self.epsilon.at(progress))

    def _with_epsilon(self, epsilon: float) -> Divergence:
        divergence: Any = self.divergence  # a dataclass with this field, as the constructor found out
        changed: Divergence = dataclasses.replace(divergence, epsilon=epsilon)
        return changed

    def propose(self, logits: Tensor, batch: Batch, warm: Tensor | None = None) -> Proposal:
        """Stage A, from ``warm`` (the last proposal) or else from background."""
        background = torch.zeros((), dtype=torch.int64, device=logits.device).expand(batch.shape)
        start = background if warm is None else warm.to(torch.int64).masked_fill(warm == IGNORE, 0)
        return self.solve_proposal(logits, batch, self.proposal_divergence, start)

    def objective(self, logits: Tensor, batch: Batch, proposal: Proposal | None = None) -> Tensor:
        """Stage B: mean data term plus weighted divergence per pixel, off the seeds."""
        term = self.proposal_term(self.divergence, logits, batch, proposal)
        return self.total_loss(**self.data_loss_terms(logits, batch), proposal=self.proposal_weight * term)
