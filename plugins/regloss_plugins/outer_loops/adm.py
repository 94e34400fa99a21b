"""ADM: alternating direction method for regularized losses.

    min over theta and X of   data(S, Y) + R(X; image) / N + coupling * KL(X || S) / N        X_p = y_p on seeds

by turns: X by the solver (`propose`), theta by the network's optimizer with X given (`objective`), whose gradient in
the logits of an unlabelled pixel is coupling * (S - X). The X-step starts at the earlier proposal, so that it never
raises the energy, and where there is none at the network's argmax.

Source: Marin, Tang, Ben Ayed, Boykov, "Beyond gradient descent for regularized segmentation losses", CVPR 2019.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from regloss.batch import Batch
from regloss.dataset import IGNORE
from regloss.outer_loop import Cadence, Proposal
from regloss.registry import resolve
from regloss.schedule import Schedule
from regloss_plugins.outer_loops.proposal_loop import ProposalLoop, check_proposal_weight


class ADM(ProposalLoop):
    """Splitting of the regularized loss; the proposal is solved anew in every iteration, on the batch itself.

    Args:
        regularizer: one or several (objects, names or tables).
        solver: an object, a name or a table.
        data_term: one or several (objects, names or tables).
        coupling: gamma: weight of the divergence against the regularizer, in both steps; number or schedule.
        divergence: an object, a name or a table; its unaries enter the proposal step.
        proposal_weight: weight of the divergence in the network's step; None = gamma, which makes both steps minimise
            one energy. Scaling regularizer and coupling together changes nothing but this weight.
        seeded_only: restrict each image's proposal to the classes seeded in it.
        update_every: "step", or a number of epochs, with proposals kept between.
        entropy: weight of <X, log X> in the proposal step, >= 0, for solvers over probabilities (mean-field, pdhg,
            dca), whose argmax is proposed; "coupling" = gamma, which with KL is gamma KL(X || S) of a soft X. None = 0,
            which is labellings, or "coupling" with a solver that takes positive ones only.

    Raises:
        MissingForm: the solver cannot serve the regularizer.
        UsageError: an entropy that the solver does not take; a setting outside its range.

    >>> ADM.preset("grid-crf-scribbles").update_every
    'step'
    """

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        # Marin et al., CVPR 2019: a graph cut in every iteration, at most 5 cycles; Potts weight 80 a pair (weights not
        # normalised by their number), cross-entropy weight 1.5.
        "grid-crf-scribbles": {
            "regularizer": {"name": "grid-crf", "weight": 80.0},
            "solver": {"name": "alpha-expansion", "max-cycles": 5},
            "coupling": 1.5,
        },
    }

    def __init__(
        self,
        regularizer: Any,
        solver: Any = "alpha-expansion",
        data_term: Any = "partial-cross-entropy",
        coupling: float | Schedule | dict[str, Any] = 1.0,
        divergence: Any = "kl",
        proposal_weight: float | None = None,
        seeded_only: bool = False,
        update_every: Cadence = "step",
        entropy: float | Literal["coupling"] | None = None,
    ) -> None:
        super().__init__(regularizer, solver, data_term, coupling, seeded_only, update_every, entropy)
        self.divergence = resolve("divergence", divergence)
        check_proposal_weight(proposal_weight)
        self.proposal_weight = proposal_weight

    def propose(self, logits: Tensor, batch: Batch, warm: Tensor | None = None) -> Proposal:
        """Solve for X, from ``warm`` (an earlier proposal in the same geometry) or else from the argmax."""
        argmax = logits.argmax(1)
        start = argmax if warm is None else torch.where(warm == IGNORE, argmax, warm.to(torch.int64))
        return self.solve_proposal(logits, batch, self.divergence, start)

    def objective(self, logits: Tensor, batch: Batch, proposal: Proposal | None = None) -> Tensor:
        """Mean data term plus gamma times the divergence per pixel."""
        weight = self.coupling.at(self.progress) if self.proposal_weight is None else self.proposal_weight
        term = self.proposal_term(self.divergence, logits, batch, proposal)
        return self.total_loss(**self.data_loss_terms(logits, batch), proposal=weight * term)
