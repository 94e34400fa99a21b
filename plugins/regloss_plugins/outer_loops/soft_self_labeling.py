"""Soft self-labeling: the network learns soft pseudo-labels, which are found anew in every iteration.

    min over theta and y of   data(S, Y) + (1 / N) ( coupling * sum over unlabelled p of H(y_p, S_p) + R(y; image) )

with soft labels y_p in the simplex, one-hot on seeds, R a relaxation of a Potts model, S the softmax, and H one of

    collision       -ln sum over k of y_k S_k     0 only if both are one-hot and equal; where one of them is uniform it
                                                  is ln K whatever the other is, so that doubtful labels teach nothing
    cross-entropy   -sum over k of y_k ln S_k     doubtful labels teach doubt

by turns: y by a descent that starts at the prediction (`propose`), theta by the network's optimizer (`objective`).

The descent is mirror descent on ln y, each image with a step t of its own. With g the gradient of the energy E in y,

    y+ = y exp(-t g) / sum over k of y exp(-t g),     taken if E(y+) <= E(y) + <g, y+ - y> + KL(y+ | y) / t

or else t is quartered; after a step that was taken it is doubled. y+ minimises the right side, which is E(y) at y
itself, so E never rises. An image is done when a step lowers its E by less than ``tolerance`` per pixel.

Source: Zhang, Boykov, "Soft self-labeling and Potts relaxations for weakly-supervised segmentation", CVPR 2025, which
descends in the logits of y with a step given beforehand.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch import Tensor

from regloss import grid
from regloss.batch import Batch
from regloss.checks import at_least_float32, check_finite, check_labels
from regloss.data_term import combine_data_terms
from regloss.dataset import IGNORE
from regloss.divergence import log_softmax
from regloss.errors import UsageError
from regloss.numerics import one_hot
from regloss.outer_loop import OuterLoop, Proposal, check_logits, seeded_labels, seeds_of
from regloss.regularizer import Regularizer, Term, combine
from regloss.schedule import Schedule, as_schedule
from regloss.solver import Solution, allowed_cost, statuses
from regloss_plugins.data_terms.collision_cross_entropy import collision_cross_entropy
from regloss_plugins.outer_loops.proposal_loop import check_proposal_weight

_SMALLEST_STEP = 1e-6  # of the descent; a step below it has met rounding


class SoftSelfLabeling(OuterLoop):
    """Soft pseudo-labels between the prediction and a relaxed Potts model, solved for in every iteration.

    Args:
        regularizer: one or several (objects, names or tables); its relaxation is that of the pseudo-labels.
        data_term: one or several (objects, names or tables).
        coupling: weight of the cross entropy in the descent of y; number or schedule.
        cross_entropy: H, "collision" or "cross-entropy", in both steps.
        max_steps: trials of the descent at most, >= 1; each costs the regularizer's value and gradient.
        tolerance: fall of the energy per pixel at which an image is done, >= 0.
        step: t at first, > 0.
        proposal_weight: weight of H in the network's step; None = the coupling, so that both minimise one energy.
        seeded_only: restrict each image's pseudo-labels to the classes seeded in it.

    Raises:
        UsageError: no regularizer, or a setting outside its range.

    >>> from regloss import Batch
    >>> loop = SoftSelfLabeling({"name": "grid-crf", "weight": 0.5})
    >>> labels = torch.full((1, 4, 4), 255); labels[0, 0, 0], labels[0, 3, 3] = 0, 1
    >>> found = loop.propose(torch.zeros(1, 2, 4, 4), Batch(torch.zeros(1, 1, 4, 4), labels))
    >>> found.probabilities[0, :, 0, 0].tolist(), bool(found.solution.energy < found.solution.start_energy)
    ([1.0, 0.0], True)
    """

    def __init__(
        self,
        regularizer: Any,
        data_term: Any = "partial-cross-entropy",
        coupling: float | Schedule | dict[str, Any] = 1.0,
        cross_entropy: Literal["collision", "cross-entropy"] = "collision",
        max_steps: int = 30,
        tolerance: float = 1e-4,
        step: float = 1.0,
        proposal_weight: float | None = None,
        seeded_only: bool = False,
    ) -> None:
        super().__init__("step")
        combined = combine(regularizer)
        if combined is None:
            raise UsageError("Soft self-labeling needs a regularizer, grid-crf for example; got none.")
        self.regularizer: Regularizer = combined
        self.data_term = combine_data_terms(data_term)
        self.coupling = as_schedule(coupling, "coupling")
        if min(self.coupling.start, self.coupling.end) < 0:
            raise UsageError(f"coupling must not be negative; got {coupling!r}.")
        if cross_entropy not in ("collision", "cross-entropy"):
            raise UsageError(f'cross_entropy must be "collision" or "cross-entropy"; got {cross_entropy!r}.')
        if isinstance(max_steps, bool) or not isinstance(max_steps, int) or max_steps < 1:
            raise UsageError(f"max_steps must be a whole number, at least 1; got {max_steps!r}.")
        if not 0 <= tolerance < float("inf") or not _SMALLEST_STEP < step < float("inf"):
            raise UsageError(
                f"tolerance must be finite and not negative, and step finite and above {_SMALLEST_STEP}; got "
                f"{tolerance} and {step}."
            )
        check_proposal_weight(proposal_weight)
        self.cross_entropy = cross_entropy
        self.max_steps, self.tolerance, self.step = max_steps, tolerance, step
        self.proposal_weight = proposal_weight
        self.seeded_only = seeded_only

    def propose(self, logits: Tensor, batch: Batch, warm: Tensor | None = None) -> Proposal:
        """Descend from the prediction. An earlier labelling ``warm`` is not used: from one-hot labels nothing moves."""
        check_logits(logits, batch)
        check_finite(logits, "logits", "Has the training diverged?")
        classes = logits.shape[1]
        seeds = seeds_of(batch, classes)
        # As a leaf of its own, under whatever mode the caller is in.
        prediction = log_softmax(logits.detach())
        start = prediction
        if self.seeded_only:
            allowed = seeded_labels(seeds, classes)
            start = F.log_softmax(-allowed_cost(-start, allowed), dim=1)
        term = self.regularizer.bind(batch.image, batch.roi, batch.spacing)
        return self._descend(start, prediction, seeds, term, batch)

    def _descend(self, start: Tensor, prediction: Tensor, seeds: Tensor, term: Term, batch: Batch) -> Proposal:
        batch_size, classes = start.shape[:2]
        inside = grid.full_roi(batch.roi, batch.shape, start.device)
        free = (seeds < 0) & inside
        given = one_hot(seeds.clamp(min=0), classes, start.dtype)
        seeded = (seeds >= 0).unsqueeze(1)
        coupling = self.coupling.at(self.progress)

        def labels_of(log_y: Tensor) -> Tensor:
            return torch.where(seeded, given, log_y.exp())

        def evaluate(log_y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            """Energies (B,), y and gradient (B, K, *S)."""
            with torch.enable_grad(), torch.autocast(log_y.device.type, enabled=False):
                y = labels_of(log_y).requires_grad_()
                apart = (_entropies[self.cross_entropy](y, prediction) * free).flatten(1).sum(1)
                energy = coupling * apart + term.penalty(y)
                (gradient,) = torch.autograd.grad(energy.sum(), y)
            # A pixel that may not move, or not count, must not enter the test of a step.
            return energy.detach(), y.detach(), gradient.to(log_y) * free.unsqueeze(1)

        log_y = start
        energy, y, gradient = evaluate(log_y)
        first = energy
        length = torch.full((batch_size,), self.step, dtype=start.dtype, device=start.device)
        running = torch.ones_like(length, dtype=torch.bool)
        taken = torch.zeros(batch_size, dtype=torch.int64, device=start.device)
        for _ in range(self.max_steps):
            log_trial = F.log_softmax(log_y - grid.spread(length, gradient) * gradient, dim=1)
            trial_energy, trial_y, trial_gradient = evaluate(log_trial)
            linear = (gradient * (trial_y - y)).flatten(1).sum(1)
            moved = torch.where(free.unsqueeze(1), trial_y, 0)
            distance = (moved * (log_trial - log_y).nan_to_num()).flatten(1).sum(1)
            # Both sides are sums over all pixels: what rounding may add to them is no rise. E itself must not rise.
            slack = 1e-6 * energy.abs()
            good = running & (trial_energy <= energy) & (trial_energy <= energy + linear + distance / length + slack)
            small = good & (energy - trial_energy <= self.tolerance * batch.pixels.to(energy))
            keep = grid.spread(good, log_y)
            log_y, y = torch.where(keep, log_trial, log_y), torch.where(keep, trial_y, y)
            gradient = torch.where(keep, trial_gradient, gradient)
            energy = torch.where(good, trial_energy, energy)
            taken += good
            length = torch.where(good, 2 * length, length / 4)
            running = running & ~small & (length > _SMALLEST_STEP)
            if not bool(running.any()):
                break
        labels = y.argmax(1)
        if batch.roi is not None:
            labels = labels.masked_fill(~batch.roi, IGNORE)
        solution = Solution(
            probabilities=y,
            labels=y.argmax(1),
            energy=energy,
            bound=torch.full_like(energy, -torch.inf),
            steps=taken,
            status=statuses((~running).tolist()),
            start_energy=first,
            violation=term.violation(y),
        )
        return Proposal(labels, solution, y)

    def objective(self, logits: Tensor, batch: Batch, proposal: Proposal | None = None) -> Tensor:
        """Mean data term plus weighted H per pixel, off the seeds. Labels alone stand for one-hot pseudo-labels."""
        if proposal is None:
            raise UsageError("SoftSelfLabeling.objective needs a proposal: what loop.propose(logits, batch) gave.")
        check_logits(logits, batch)
        soft = proposal.probabilities
        if soft is None:
            check_labels(proposal.labels, batch.shape, logits.shape[1])
            hard = proposal.labels.masked_fill(proposal.labels == IGNORE, 0)
            soft = one_hot(hard, logits.shape[1], at_least_float32(logits).dtype)
        apart = _entropies[self.cross_entropy](soft, log_softmax(logits))
        off_seeds = ~batch.labelled
        if batch.roi is not None:
            off_seeds = off_seeds & batch.roi
        totals = torch.where(off_seeds, apart, 0).flatten(1).sum(1)
        weight = self.coupling.at(self.progress) if self.proposal_weight is None else self.proposal_weight
        return self.total_loss(**self.data_loss_terms(logits, batch), proposal=weight * self.mean(totals, batch.pixels))


def _cross_entropy(soft: Tensor, log_probabilities: Tensor) -> Tensor:
    return -(soft.to(log_probabilities) * log_probabilities).sum(1)


_entropies: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "collision": collision_cross_entropy,
    "cross-entropy": _cross_entropy,
}
