"""Splitting: the regularizer sees a variable of its own, tied to the network's output by a quadratic.

For a regularizer with the saddle form R(S) = h(K S - b), h(z) = max over y in Y of <z, y>, the loss

    data(S, Y) + min over w of [ h(w) + coupling / 2 |w - (K S - b)|^2 ] / N            N = pixels

is minimised by turns: over w in closed form, over the network by its optimizer with w held. By Moreau's identity the
w-step is w = z - P(coupling z) / coupling at z = K S - b, P being the projection onto Y. For total variation, K the
gradient and Y balls of radius nu = weight, that is shrinkage,

    w = max(|z| - nu / coupling, 0) z / |z|      and 0 where z = 0,

and what is left after it is the Huber function of z: coupling |z|^2 / 2 up to |z| = nu / coupling, nu |z| - nu^2 / (2
coupling) from there. So the gradient in S is K^T P(coupling z), as smooth as coupling is small; towards infinity the
loss is the regularizer's own.

Source: Zheng, Bao, Shi, Ling, Ma, "Unsupervised deep learning meets Chan-Vese model", sec. 3; the splitting is that of
Wang, Yang, Yin, Zhang, SIAM J. Imaging Sciences 2008. Differs from the first in: 1. any saddle form will do; 2. w
follows from the network's output in every step, so that nothing has to be stored between steps.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from regloss.batch import Batch
from regloss.checks import at_least_float32
from regloss.data_term import combine_data_terms
from regloss.errors import MissingForm, UsageError
from regloss.forms import Saddle
from regloss.outer_loop import OuterLoop, Proposal, check_logits
from regloss.registry import name_of
from regloss.regularizer import Regularizer, combine
from regloss.schedule import Schedule, as_schedule


class Splitting(OuterLoop):
    """Data term plus a split regularizer, whose own variable is solved for in closed form in each step.

    Args:
        regularizer: one or several (objects, names or tables); they must offer the saddle form.
        data_term: one or several (objects, names or tables).
        coupling: lambda > 0: factor of the quadratic, in units of the regularizer over squared gradient; a number or a
            schedule.

    Raises:
        MissingForm: the regularizer offers no saddle form.
        UsageError: a coupling that is not positive; no regularizer.

    >>> loop = Splitting({"name": "tv", "weight": 1.0, "isotropic": True}, coupling=10.0)
    >>> step = torch.tensor([[[[0.05, 0.45]], [[0.95, 0.55]]]])
    >>> (w,) = loop.split(step, Batch(torch.zeros(1, 1, 1, 2), None))
    >>> w[0, 0, 1]  # the difference 0.4 along x shrinks by 1 / 10
    tensor([[0.3000, 0.0000]])
    """

    def __init__(
        self,
        regularizer: Any,
        data_term: Any = "partial-cross-entropy",
        coupling: float | Schedule | dict[str, Any] = 10.0,
    ) -> None:
        super().__init__("never")
        combined = combine(regularizer)
        if combined is None:
            raise UsageError("splitting needs a regularizer, tv for example; got none.")
        if Saddle not in combined.forms:
            offered = " or ".join(form.__name__ for form in combined.forms) or "no form"
            raise MissingForm(
                f"Cannot use splitting with {name_of(combined)}: it offers {offered}, splitting needs Saddle. tv and "
                "nltv offer it; gradient-descent takes every regularizer."
            )
        self.regularizer: Regularizer = combined
        self.data_term = combine_data_terms(data_term)
        self.coupling = as_schedule(coupling, "coupling")
        if min(self.coupling.start, self.coupling.end) <= 0:
            raise UsageError(f"coupling must be positive; got {coupling!r}.")

    def propose(self, logits: Tensor, batch: Batch, warm: Tensor | None = None) -> None:
        """No proposal: w is not a segmentation, and follows from the logits."""
        return None

    def split(self, probabilities: Tensor, batch: Batch) -> tuple[Tensor, ...]:
        """The w-step: the best w for ``probabilities`` (B, K, *S), one tensor of dual shape a part; no gradient."""
        return self._split(self._form(batch), probabilities)

    def split_energy(self, probabilities: Tensor, split: tuple[Tensor, ...], batch: Batch) -> Tensor:
        """h(w) + coupling / 2 |w - (K S - b)|^2 (B,), differentiable in ``probabilities``."""
        return self._energy(self._form(batch), probabilities, split)

    def objective(self, logits: Tensor, batch: Batch, proposal: Proposal | None = None) -> Tensor:
        """Mean data term plus the split regularizer per pixel, at the best w."""
        check_logits(logits, batch)
        probabilities = at_least_float32(logits).softmax(1)
        form = self._form(batch)
        energy = self._energy(form, probabilities, self._split(form, probabilities))
        return self.total_loss(**self.data_loss_terms(logits, batch), regularizer=self.mean(energy, batch.pixels))

    def _split(self, form: Saddle, probabilities: Tensor) -> tuple[Tensor, ...]:
        coupling = self.coupling.at(self.progress)
        with torch.no_grad():
            residuals = [part.residual(probabilities) for part in form.parts]
            return tuple(
                z - part.dual_set.project(coupling * z) / coupling
                for part, z in zip(form.parts, residuals, strict=True)
            )

    def _energy(self, form: Saddle, probabilities: Tensor, split: tuple[Tensor, ...]) -> Tensor:
        coupling = self.coupling.at(self.progress)
        energy = probabilities.new_zeros(probabilities.shape[0])
        for part, w in zip(form.parts, split, strict=True):
            apart = (w - part.residual(probabilities)).square().flatten(1).sum(1)
            energy = energy + part.dual_set.support(w) + coupling / 2 * apart
        return energy

    def _form(self, batch: Batch) -> Saddle:
        form = self.regularizer.bind(batch.image, batch.roi, batch.spacing).form(Saddle)
        assert isinstance(form, Saddle)
        return form
