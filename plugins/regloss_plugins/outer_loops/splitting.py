"""What ADM and trust region share: the proposal step.

    X = argmin over labellings of  R(X; image) + coupling * D_proposal(X, logits) + entropy * <X, log X>    seeds given

With entropy = 0 that is a labelling; solvers over probabilities need an entropy, and of their X the argmax is proposed.
With the divergence KL and entropy = coupling, the last two terms are coupling * KL(X || S) of a soft X: mean field.

An approximate solver that starts at an earlier labelling never ends above it, so the split energy cannot rise.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from regloss.batch import Batch
from regloss.data_term import combine_data_terms
from regloss.dataset import IGNORE
from regloss.divergence import Divergence
from regloss.errors import UsageError
from regloss.outer_loop import Cadence, OuterLoop, Proposal, check_logits, seeded_labels, seeds_of
from regloss.registry import resolve
from regloss.regularizer import Regularizer, combine
from regloss.schedule import Schedule, as_schedule
from regloss.solver import negotiate, solve


def check_proposal_weight(weight: float | None) -> None:
    """The ``weight`` of the divergence in the network's step must be None, or finite and not negative."""
    if weight is not None and not 0 <= weight < float("inf"):
        raise UsageError(f"proposal_weight must be finite and not negative; got {weight}.")


class ProposalLoop(OuterLoop):
    """An outer loop whose network learns a solver's proposals; subclasses choose start, labels and divergence.

    Args:
        regularizer: one or several (objects, names or tables).
        solver: an object, a name or a table; it must accept a form that the regularizer offers.
        data_term: one or several (objects, names or tables).
        coupling: factor of the unaries in the proposal step, against the regularizer's weight; number or schedule.
        seeded_only: restrict each image's proposal to the classes that are seeded in it (to all classes if fewer than
            two are).
        update_every: see `OuterLoop`.
        entropy: weight of the entropy in the proposal step, >= 0, or "coupling".

    Raises:
        MissingForm: the solver cannot serve the regularizer.
    """

    def __init__(
        self,
        regularizer: Any,
        solver: Any,
        data_term: Any,
        coupling: float | Schedule | dict[str, Any],
        seeded_only: bool,
        update_every: Cadence,
        entropy: float | Literal["coupling"] = 0.0,
    ) -> None:
        super().__init__(update_every)
        combined = combine(regularizer)
        if combined is None:
            raise UsageError("Proposals need a regularizer, grid-crf for example; got none.")
        self.regularizer: Regularizer = combined
        self.solver = resolve("solver", solver)
        negotiate(self.regularizer, self.solver)
        self.data_term = combine_data_terms(data_term)
        self.coupling = as_schedule(coupling, "coupling")
        if min(self.coupling.start, self.coupling.end) < 0:
            raise UsageError(f"coupling must not be negative; got {coupling!r}.")
        self.seeded_only = seeded_only
        if entropy != "coupling" and not (isinstance(entropy, int | float) and 0 <= entropy < float("inf")):
            raise UsageError(f'entropy must be finite and not negative, or "coupling"; got {entropy!r}.')
        self.entropy = entropy

    def solve_proposal(self, logits: Tensor, batch: Batch, unaries: Divergence, start: Tensor) -> Proposal:
        """The proposal step, from the labels ``start`` (B, *S), seeds hard."""
        check_logits(logits, batch)
        with torch.no_grad():
            classes = logits.shape[1]
            seeds = seeds_of(batch, classes)
            coupling = self.coupling.at(self.progress)
            unary = coupling * unaries.unary(logits)
            # A seed's unary is a constant of the problem; 0 keeps energies comparable between images.
            unary = unary.masked_fill((seeds >= 0).unsqueeze(1), 0)
            allowed = seeded_labels(seeds, classes) if self.seeded_only else None
            term = self.regularizer.bind(batch.image, batch.roi)
            start = torch.where(seeds >= 0, seeds, start)
            entropy = coupling if self.entropy == "coupling" else self.entropy
            solution = solve(term, unary, self.solver, entropy=entropy, fixed=seeds, allowed=allowed, warm=start)
            labels = solution.labels
            if batch.roi is not None:
                labels = labels.masked_fill(~batch.roi, IGNORE)
            return Proposal(labels, solution)

    def proposal_term(self, divergence: Divergence, logits: Tensor, batch: Batch, proposal: Proposal | None) -> Tensor:
        """Divergence from the proposal per pixel of the region of interest; seeds are left to the data term."""
        if proposal is None:
            raise UsageError(
                f"{type(self).__name__}.objective needs a proposal: what loop.propose(logits, batch) gave, or an "
                "earlier one in the same geometry."
            )
        check_logits(logits, batch)
        off_seeds = (~batch.labelled).to(torch.float32)
        if batch.roi is not None:
            off_seeds = off_seeds * batch.roi
        return self.mean(divergence(proposal.labels, logits, weight=off_seeds), batch.pixels)
