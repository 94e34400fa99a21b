"""OuterLoop: how network and solver are coupled.

Everything is averaged here and nowhere else: data terms over labelled pixels, regularizers and divergences over the
pixels of the region of interest. Weights therefore do not depend on resolution, batch size or how much was scribbled.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from regloss.batch import Batch
from regloss.checks import at_least_float32, check_labels, check_scores
from regloss.data_term import DataTerm
from regloss.errors import UsageError
from regloss.regularizer import Regularizer
from regloss.settings import CheckedSettings
from regloss.solver import Solution

Cadence = int | Literal["step", "never"]


@dataclass(frozen=True)
class Proposal:
    """A segmentation that the solver proposes and the network then learns.

    Attributes:
        labels: (B, *S) int64; 255 outside the region of interest.
        solution: what the solver said of it; None for a proposal read back from a store.
        probabilities: (B, K, *S) of a soft proposal, whose argmax the labels are. Only for loops that propose in every
            step: stores keep labels alone. None = the labels are all there is.
    """

    labels: Tensor
    solution: Solution | None = None
    probabilities: Tensor | None = None


@dataclass(frozen=True)
class Update:
    """One of the updates that a training step consists of.

    Attributes:
        loss: scalar to back-propagate.
        networks: who takes an optimizer's step along its gradient: names in `OuterLoop.modules`, and "network" for the
            one that makes the logits.
    """

    loss: Tensor
    networks: tuple[str, ...]


class OuterLoop(metaclass=CheckedSettings):
    """Couples a network with the minimisation of a regularized loss.

    Attributes:
        update_every: when a training loop should call `propose`: "never", "step" (in every iteration, on the batch
            itself), or a number of epochs (on whole, un-augmented images, whose proposals are kept); 0 = once, before
            the first epoch.
        all_reduce: in a training distributed over processes, a function that sums a tensor over them; with it, means
            are over the global batch.
        world_size: number of processes that ``all_reduce`` sums over.
        data_term: the data term of the objective; None for a loop that has none of its own.
        decoders: how many decoders the network must have, all of which learn; see `propose_from`.
    """

    update_every: Cadence
    data_term: DataTerm | None = None
    presets: ClassVar[dict[str, dict[str, Any]]] = {}
    decoders: ClassVar[int] = 1

    def __init__(self, update_every: Cadence = "never") -> None:
        if update_every not in ("never", "step") and (
            isinstance(update_every, bool) or not isinstance(update_every, int) or update_every < 0
        ):
            raise UsageError(
                f'update_every must be "step", "never", or a number of epochs (0 = only once); got {update_every!r}.'
            )
        self.update_every = update_every
        self._loss_terms: dict[str, Tensor] = {}
        self._metrics: dict[str, Tensor] = {}
        self.all_reduce: Callable[[Tensor], Tensor] | None = None
        self.world_size = 1
        self.progress = 0.0

    # ---- what must be defined

    @abstractmethod
    def objective(self, logits: Tensor, batch: Batch, proposal: Proposal | None = None) -> Tensor:
        """The scalar to back-propagate.

        Args:
            logits: (B, K, *S).
            batch: images and labels, augmented like the logits' input.
            proposal: of `propose`, in the same geometry; None where the loop makes none.
        """

    @abstractmethod
    def propose(self, logits: Tensor, batch: Batch, warm: Tensor | None = None) -> Proposal | None:
        """Solve for a segmentation; no gradient. None for loops that make no proposals.

        Args:
            logits: (B, K, *S).
            batch: images and labels.
            warm: (B, *S) labels of the previous proposal, 255 outside the region of interest; None at first.
        """

    # ---- what might be defined

    def propose_from(self, branches: Sequence[Tensor], batch: Batch) -> Proposal | None:
        """Propose from the logits of all decoders of a network, in every step; from the first's, unless it says else.

        Args:
            branches: (B, K, *S) of each decoder, the first of which is the one that predicts.
            batch: images and labels.
        """
        return self.propose(branches[0], batch)

    def attach(self, network: nn.Module) -> None:
        """Take note of the network that will be trained, once, before the first step and before `modules` is asked for.

        For loops that keep a copy of it; most do nothing.

        Args:
            network: (B, C, *S) images and (B, *S) bool regions of interest (or None) to logits (B, K, *S).
        """

    def modules(self) -> Mapping[str, nn.Module]:
        """Networks that are trained beside the one that makes the logits, by name; see `DataTerm.modules`.

        Those of ``data_term``, for a loop that has one.
        """
        return {} if self.data_term is None else self.data_term.modules()

    def updates(
        self,
        logits: Tensor,
        batch: Batch,
        proposal: Proposal | None,
        network: Callable[[Tensor, Tensor | None], Tensor],
    ) -> Iterator[Update]:
        """The updates of one training step; one of all networks along the `objective`, unless a loop says otherwise.

        Whoever trains carries out each update before it asks for the next, whose loss may so depend on what has been
        updated already; a gradient that the loss has in other networks is dropped.

        Args:
            logits: (B, K, *S) of ``network`` at the batch.
            batch: see `objective`.
            proposal: see `objective`.
            network: (B, C, *S) images and (B, *S) bool regions of interest (or None) to logits, for loops that ask for
                more than those of the batch.
        """
        yield Update(self.objective(logits, batch, proposal), ("network", *self.modules()))

    # ---- what should not be redefined

    @classmethod
    def preset(cls, name: str, **changes: Any) -> OuterLoop:
        """A loop with published settings.

        Args:
            name: a key of ``presets``; its source stands beside it.
            **changes: settings that replace the preset's.

        Raises:
            UsageError: there is no such preset.
        """
        if name not in cls.presets:
            known = ", ".join(cls.presets) or "none"
            raise UsageError(f"{cls.__name__} has no preset {name!r}. Its presets are: {known}.")
        return cls(**{**cls.presets[name], **changes})

    def set_progress(self, progress: float) -> None:
        """Tell the schedules that the fraction ``progress`` (0 to 1) of the training is done."""
        if not 0 <= progress <= 1:
            raise UsageError(f"progress is the fraction of the training that is done, from 0 to 1; got {progress}.")
        self.progress = progress

    def mean(self, totals: Tensor, counts: Tensor) -> Tensor:
        """Sum of ``totals`` (B,) over sum of ``counts`` (B,), over the batches of all processes; 0 if nothing counts.

        With several processes the result is scaled so that *averaging* the gradients over them, as data-parallel
        training does, gives the gradient of the global mean.
        """
        count = counts.sum().detach().to(totals.dtype)
        if self.all_reduce is not None:
            count = self.all_reduce(count)
        # A batch of crops may hold no labelled pixel at all: then the term is 0, and still part of the graph.
        safe = torch.where(count > 0, count, torch.ones_like(count))
        return totals.sum() * (self.world_size / safe)

    def data_loss_terms(self, logits: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Means of ``data_term``, for `total_loss`: "data", or "data-NAME" for each of several, with its weight."""
        if self.data_term is None:
            return {}
        terms = self.data_term.loss_terms(logits, batch)
        return {f"data-{name}" if name else "data": self.mean(*term) for name, term in terms.items()}

    def regularizer_loss_terms(
        self, regularizer: Regularizer | None, weight: float, logits: Tensor, batch: Batch
    ) -> dict[str, Tensor]:
        """``weight`` times the mean per pixel of a relaxed regularizer, for `total_loss`; nothing if either is none."""
        if regularizer is None or weight == 0:
            return {}
        probabilities = at_least_float32(logits).softmax(1)
        energy = regularizer.bind(batch.image, batch.roi, batch.spacing).penalty(probabilities)
        return {"regularizer": weight * self.mean(energy, batch.pixels)}

    def total_loss(self, **loss_terms: Tensor) -> Tensor:
        """Sum of the terms of a loss, kept for ``parts`` under their names."""
        self._loss_terms = {name.replace("_", "-"): value.detach() for name, value in loss_terms.items()}
        return torch.stack(list(loss_terms.values())).sum()

    def log_metric(self, **metrics: Tensor) -> None:
        """Keep numbers beside the loss's terms, for ``metrics`` under their names."""
        self._metrics |= {name.replace("_", "-"): value.detach() for name, value in metrics.items()}

    @property
    def metrics(self) -> dict[str, float]:
        """Other numbers of the last step by name; losses of further networks are called NAME-loss."""
        return {name: float(value) for name, value in self._metrics.items()}

    @property
    def parts(self) -> dict[str, float]:
        """The terms of the last `objective` by name, weights included; they add up to it.

        Reading it waits for the device, so log every few steps rather than every step on a GPU.
        """
        return {name: float(value) for name, value in self._loss_terms.items()}


def seeds_of(batch: Batch, classes: int) -> Tensor:
    """(B, *S) int64: the given labels inside the region of interest, -1 elsewhere.

    Raises:
        UsageError: the batch has no labels, or labels outside 0..K-1 and 255.
    """
    if batch.labels is None:
        raise UsageError("Proposals need labels (scribbles, seeds) in the batch, and it has none.")
    check_labels(batch.labels, batch.shape, classes)
    return torch.where(batch.labelled, batch.labels.to(torch.int64), -1)


def seeded_labels(seeds: Tensor, classes: int) -> Tensor:
    """(B, K) bool: classes seeded in each image; all of them where fewer than two are.

    With one seeded class the only allowed labelling would be constant, which teaches a network nothing.
    """
    flat = seeds.flatten(1)
    counts = torch.zeros(flat.shape[0], classes + 1, dtype=torch.int64, device=seeds.device)
    counts.scatter_add_(1, flat + 1, torch.ones_like(flat))
    present = counts[:, 1:] > 0
    return present | (present.sum(1, keepdim=True) < 2)


def check_logits(logits: Tensor, batch: Batch) -> None:
    """Raise `UsageError` unless ``logits`` (B, K, *S) fit the batch."""
    check_scores(logits, "logits")
    if (logits.shape[0], *logits.shape[2:]) != batch.shape:
        raise UsageError(
            f"logits {tuple(logits.shape)} do not fit the batch's images, with (B, *S) = {batch.shape}. "
            "A network must return logits at the size of its input."
        )
