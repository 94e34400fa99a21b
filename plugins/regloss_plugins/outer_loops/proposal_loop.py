"""What ADM and trust region share: the proposal step.

    X = argmin of  R(X; image) + coupling * sum over pixels p of <D_A(., S_p), X_p> + entropy * <X, log X>   seeds given

over labellings, where entropy = 0, or over probabilities, of which the argmax is proposed. D_A(k, S_p) is the
divergence of stage A from S at a pixel that has the label k: -log S_pk for KL. With KL and entropy = coupling, the last
two terms are coupling * KL(X || S) of a soft X, so that X is S where R says nothing; for a concave R that is mean
field's problem.

An approximate solver that starts at an earlier labelling never ends above it, so the split energy cannot rise.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from regloss.batch import Batch
from regloss.checks import LARGEST, check_not_negative
from regloss.data_term import combine_data_terms
from regloss.dataset import IGNORE
from regloss.divergence import Divergence
from regloss.errors import UsageError
from regloss.outer_loop import Cadence, OuterLoop, Proposal, check_logits, seeded_labels, seeds_of
from regloss.registry import name_of, resolve
from regloss.regularizer import Regularizer, combine
from regloss.schedule import Schedule, as_schedule
from regloss.solver import negotiate, solve


def check_proposal_weight(weight: float | None) -> None:
    """The ``weight`` of the divergence in the network's step must be None, or finite and not negative."""
    if weight is not None:
        check_not_negative(proposal_weight=weight)


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
        entropy: weight of the entropy in the proposal step, >= 0, or "coupling"; None = 0, or "coupling" with a solver
            that takes positive ones only.

    Raises:
        MissingForm: the solver cannot serve the regularizer.
        UsageError: an entropy that the solver does not take; a setting outside its range.
    """

    def __init__(
        self,
        regularizer: Any,
        solver: Any,
        data_term: Any,
        coupling: float | Schedule | dict[str, Any],
        seeded_only: bool,
        update_every: Cadence,
        entropy: float | Literal["coupling"] | None = None,
    ) -> None:
        super().__init__(update_every)
        combined = combine(regularizer)
        if combined is None:
            raise UsageError("Proposals need a regularizer, grid-crf for example; got none.")
        self.regularizer: Regularizer = combined
        self.solver = resolve("solver", solver)
        form = negotiate(self.regularizer, self.solver)
        self.data_term = combine_data_terms(data_term)
        self.coupling = as_schedule(coupling, "coupling")
        if min(self.coupling.start, self.coupling.end) < 0:
            raise UsageError(f"coupling must not be negative; got {coupling!r}.")
        self.seeded_only = seeded_only
        self.entropy = self._checked_entropy(entropy, self.solver.entropies(form))

    def _checked_entropy(
        self, entropy: float | Literal["coupling"] | None, taken: Literal["any", "zero", "positive"]
    ) -> float | Literal["coupling"]:
        """``entropy``, or its default, if the solver takes what it is ``taken`` to take."""
        if entropy is None:
            entropy = "coupling" if taken == "positive" else 0.0
        if entropy != "coupling" and (
            isinstance(entropy, bool) or not isinstance(entropy, int | float) or not 0 <= entropy <= LARGEST
        ):
            raise UsageError(f'entropy must be a number of 0 to 1e30, or "coupling"; got {entropy!r}.')
        solver = name_of(self.solver)
        if taken == "zero" and entropy != 0:
            raise UsageError(
                f"{solver} proposes labellings, which have no entropy; got entropy = {entropy!r}. Leave entropy out, "
                "or use a solver over probabilities (mean-field, pdhg, dca)."
            )
        if taken == "positive" and entropy == 0:
            raise UsageError(
                f"{solver} needs an entropy above 0 with {name_of(self.regularizer)}; got entropy = 0. Leave entropy "
                'out, which makes it "coupling", or give a number.'
            )
        if taken == "positive" and entropy == "coupling" and min(self.coupling.start, self.coupling.end) == 0:
            raise UsageError(
                f'{solver} needs an entropy above 0, and entropy = "coupling" makes it the coupling, which goes from '
                f"{self.coupling.start:g} to {self.coupling.end:g}. Give entropy as a number, or a coupling above 0."
            )
        return entropy

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
            term = self.regularizer.bind(batch.image, batch.roi, batch.spacing)
            start = torch.where(seeds >= 0, seeds, start)
            entropy = coupling if self.entropy == "coupling" else self.entropy
            try:
                solution = solve(term, unary, self.solver, entropy=entropy, fixed=seeds, allowed=allowed, warm=start)
            except UsageError as error:
                if allowed is None or bool(allowed.all()):
                    raise
                raise type(error)(
                    f"{error} (The labels that are allowed are those seeded in each image: seeded_only = false allows "
                    "all of them.)"
                ) from error
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
