"""Checks for outer loops."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from regloss.batch import Batch
from regloss.dataset import IGNORE
from regloss.errors import UsageError
from regloss.outer_loop import OuterLoop, Proposal
from regloss.testing.suite import (
    SIZES,
    Suite,
    Unchanged,
    assert_at_most,
    assert_close,
    box_region,
    directional_derivative,
    gradient_of_sum,
    irregular_region,
    no_make,
    normal_values,
    random_image,
    random_labels,
    without_border,
)

__all__ = ["OuterLoopConformance"]


class OuterLoopConformance(Suite):
    """Checks of an `OuterLoop`: objective, proposals, and means that depend on neither batch nor processes.

    >>> from regloss import ADM
    >>> class TestMyLoop(OuterLoopConformance):
    ...     def make(self):
    ...         return ADM("grid-crf", coupling=0.5)
    >>> TestMyLoop().test_parts_add_up_to_the_objective()
    """

    # ---- what must be defined

    def make(self) -> OuterLoop:
        """The loop, with a regularizer and settings that matter."""
        raise no_make(self)

    # ---- what might be defined

    classes: ClassVar[int] = 3
    channels: ClassVar[int] = 3
    size: ClassVar[tuple[int, ...]] = SIZES[2]
    tolerance: ClassVar[float] = 1e-9

    # ---- the checks

    dtypes: ClassVar[Sequence[torch.dtype]] = (torch.float32, torch.float64, torch.bfloat16)
    tables: ClassVar[Mapping[str, str]] = {"dtype": "dtypes"}

    def _logits(self) -> Tensor:
        return normal_values(3, self.classes, *self.size, seed=1)

    def _batch(self, roi: Tensor | None = None) -> Batch:
        """Three images, each with seeds of every class, and each with more of them than the next."""
        shape = (3, *self.size)
        labels = random_labels(*shape, classes=self.classes, seed=2)
        rarity = torch.tensor([-0.3, -0.8, -1.3]).reshape(3, *[1] * len(self.size))
        sparse = labels.masked_fill(normal_values(*shape, seed=3) > rarity, IGNORE)
        centre = tuple(length // 2 for length in self.size[:-1])
        row: tuple[Any, ...] = (slice(None), *centre, slice(1, 1 + self.classes))
        sparse[row] = torch.arange(self.classes)
        return Batch(random_image(3, self.channels, self.size), sparse, roi, ids=("first", "second", "third"))

    def _objective(self, logits: Tensor, batch: Batch) -> Tensor:
        """The objective of a new loop, with its own proposal."""
        loop = self.make()
        return loop.objective(logits, batch, loop.propose(logits.detach(), batch))

    def _proposes(self) -> bool:
        return self.make().propose(self._logits(), self._batch()) is not None

    def test_objective_is_a_scalar_with_a_gradient(self) -> None:
        """Finite, with and without a region of interest; pixels outside of it have no gradient."""
        for roi in (None, irregular_region(3, self.size)):
            logits = self._logits().requires_grad_()
            objective = self._objective(logits, self._batch(roi))
            assert objective.shape == ()
            assert bool(objective.isfinite())
            objective.backward()  # type: ignore[no-untyped-call]
            assert logits.grad is not None
            assert bool(logits.grad.isfinite().all())
            assert float(logits.grad.abs().max()) > 0
            if roi is not None:
                assert float(logits.grad.abs().amax(1)[~roi].max()) == 0, "a pixel outside the region has a gradient"

    def test_gradient_matches_finite_differences(self) -> None:
        """With the proposal held."""
        batch, logits = self._batch(irregular_region(3, self.size)), self._logits()
        loop = self.make()
        proposal = loop.propose(logits, batch)

        def value(at: Tensor) -> Tensor:
            return loop.objective(at, batch, proposal).reshape(1)

        gradient = gradient_of_sum(value, logits)
        for seed in range(3):
            direction = normal_values(*logits.shape, seed=10 + seed)
            expected = directional_derivative(value, logits, direction)
            assert_close((gradient * direction).sum(), expected[0], max(1e-6, self.tolerance), "derivative")

    def test_parts_add_up_to_the_objective(self) -> None:
        """``parts`` holds the terms, weights included."""
        loop, batch = self.make(), self._batch()
        objective = loop.objective(self._logits(), batch, loop.propose(self._logits(), batch))
        assert loop.parts, "no parts were recorded"
        assert all(isinstance(value, float) for value in loop.parts.values())
        assert_close(torch.tensor(sum(loop.parts.values())), objective, 1e-6, "sum of the parts")

    def test_modules_are_found(self) -> None:
        """Networks of its own and of its data term: the same objects in each call, none left out."""
        loop = self.make()
        owned = loop.modules()
        assert all(isinstance(module, nn.Module) and name and "." not in name for name, module in owned.items())
        again = loop.modules()
        assert list(again) == list(owned)
        assert all(again[name] is module for name, module in owned.items())
        of_data = {} if loop.data_term is None else loop.data_term.modules()
        missing = [name for name, module in of_data.items() if all(module is not other for other in owned.values())]
        assert missing == [], "networks of the data term would not be trained"

    def test_cadence_says_whether_it_proposes(self) -> None:
        """``update_every`` is "never" exactly for loops that make no proposals."""
        loop = self.make()
        assert (loop.update_every == "never") == (not self._proposes())
        assert loop.update_every in ("never", "step") or isinstance(loop.update_every, int)

    def test_proposal_is_a_labelling_that_keeps_the_seeds(self) -> None:
        """Classes inside the region of interest, 255 outside; seeds as given; no gradient."""
        for roi in (None, irregular_region(3, self.size)):
            batch = self._batch(roi)
            logits = self._logits().requires_grad_()
            proposal = self.make().propose(logits, batch)
            if proposal is None:
                assert self.make().update_every == "never"
                continue
            labels = proposal.labels
            assert labels.shape == batch.shape
            assert labels.dtype == torch.int64
            assert not labels.requires_grad
            assert logits.grad is None
            inside = torch.ones(batch.shape, dtype=torch.bool) if roi is None else roi
            assert bool((labels[~inside] == IGNORE).all()), "labels outside the region of interest must be 255"
            assert int(labels[inside].min()) >= 0
            assert int(labels[inside].max()) < self.classes
            assert batch.labels is not None
            assert torch.equal(labels[batch.labelled], batch.labels[batch.labelled]), "seeds were not kept"

    def test_proposals_continue_from_earlier_ones(self) -> None:
        """``warm`` takes an earlier proposal, 255 outside the region included, and its energy does not rise."""
        batch, loop = self._batch(irregular_region(3, self.size)), self.make()
        first = loop.propose(self._logits(), batch)
        second = loop.propose(self._logits(), batch, warm=None if first is None else first.labels)
        assert (first is None) == (second is None)
        if first is None or second is None:
            return
        if first.solution is not None and second.solution is not None:
            assert_at_most(second.solution.energy, first.solution.energy, self.tolerance, "the energy rose")

    def test_one_decoder_is_enough_to_propose(self) -> None:
        """`OuterLoop.propose_from` of one decoder's logits is `OuterLoop.propose`, whatever is drawn."""
        loop, batch, logits = self.make(), self._batch(irregular_region(3, self.size)), self._logits()
        expected, found = loop.propose(logits, batch), loop.propose_from([logits], batch)
        assert (found is None) == (expected is None)
        if found is not None and expected is not None:
            assert torch.equal(found.labels, expected.labels), "one decoder's proposal is another one"

    def test_objective_needs_the_proposal(self) -> None:
        """Loops that propose say so when the proposal is missing; others do without."""
        if self._proposes():
            with pytest.raises(UsageError, match="propos"):
                self.make().objective(self._logits(), self._batch(), None)
        else:
            assert bool(self.make().objective(self._logits(), self._batch(), None).isfinite())

    def test_repeating_the_batch_changes_nothing(self) -> None:
        """Means do not depend on the batch's size, and neither do gradients of a shared network."""
        batch, logits = self._batch(), self._logits()
        assert batch.labels is not None
        twice = Batch(batch.image.repeat(2, 1, *[1] * len(self.size)), batch.labels.repeat(2, *[1] * len(self.size)))

        def once(at: Tensor) -> Tensor:
            return self._objective(at, batch)

        def repeated(at: Tensor) -> Tensor:
            return self._objective(torch.cat([at, at]), twice)

        assert_close(repeated(logits), once(logits), self.tolerance, "objective of a repeated batch")
        assert_close(gradient_of_sum(repeated, logits), gradient_of_sum(once, logits), self.tolerance, "its gradient")

    def test_region_of_interest_is_a_crop(self) -> None:
        """A box of interest gives what the batch cropped to it gives, objective and gradient."""
        batch, logits = self._batch(box_region(3, self.size)), self._logits()
        assert batch.labels is not None
        cropped = Batch(without_border(batch.image, self.size), without_border(batch.labels, self.size))
        expected = self._objective(without_border(logits, self.size), cropped)
        assert_close(self._objective(logits, batch), expected, self.tolerance, "objective in a box of interest")
        gradient = gradient_of_sum(lambda at: self._objective(at, batch), logits)
        inner = gradient_of_sum(lambda at: self._objective(at, cropped), without_border(logits, self.size))
        assert_close(without_border(gradient, self.size), inner, self.tolerance, "gradient in a box of interest")

    def test_two_processes_give_the_mean_of_one(self) -> None:
        """Objectives of two parts of a batch, with an ``all_reduce``, average to that of the whole batch."""
        batch, logits = self._batch(), self._logits()
        assert batch.labels is not None
        shares = [slice(0, 2), slice(2, 3)]
        parts = [Batch(batch.image[share], batch.labels[share]) for share in shares]
        loop = self.make()
        proposals = [loop.propose(logits[share], part) for share, part in zip(shares, parts, strict=True)]
        whole = None
        if proposals[0] is not None and proposals[1] is not None:
            soft = [found.probabilities for found in proposals if found is not None and found.probabilities is not None]
            labels = torch.cat([proposals[0].labels, proposals[1].labels])
            whole = Proposal(labels, probabilities=torch.cat(soft) if soft else None)
        expected = loop.objective(logits, batch, whole)

        def run(rank: int, reduce: Callable[[Tensor], Tensor]) -> Tensor:
            process = self.make()
            process.all_reduce, process.world_size = reduce, 2
            return process.objective(logits[shares[rank]], parts[rank], proposals[rank])

        # A rehearsal notes what each process contributes to each reduction; then every process is told the sums.
        contributions: list[list[Tensor]] = [[], []]

        def note(rank: int) -> Callable[[Tensor], Tensor]:
            def reduce(value: Tensor) -> Tensor:
                contributions[rank].append(value)
                return value

            return reduce

        for rank in range(2):
            run(rank, note(rank))
        sums = [first + second for first, second in zip(*contributions, strict=True)]
        results = []
        for rank in range(2):
            answers = iter(sums)
            results.append(run(rank, lambda value, answers=answers: next(answers)))  # type: ignore[misc]
        assert_close((results[0] + results[1]) / 2, expected, self.tolerance, "mean of two processes")

    def test_a_batch_without_any_label_is_finite(self) -> None:
        """A crop may miss every scribble."""
        logits = self._logits().requires_grad_()
        batch = Batch(random_image(3, self.channels, self.size), torch.full((3, *self.size), IGNORE))
        objective = self._objective(logits, batch)
        assert bool(objective.isfinite())
        objective.backward()  # type: ignore[no-untyped-call]
        assert logits.grad is not None
        assert bool(logits.grad.isfinite().all())

    def test_logits_of_any_precision(self, dtype: torch.dtype) -> None:
        """Half-precision logits give the float32 objective of the same numbers."""
        batch, logits = self._batch(), self._logits().to(dtype)
        loop = self.make()
        proposal = loop.propose(logits.double(), batch)
        objective = loop.objective(logits, batch, proposal)
        assert objective.dtype in (torch.float32, torch.float64)
        assert_close(objective, loop.objective(logits.double(), batch, proposal), 1e-4, f"objective of {dtype} logits")
        assert (loop.propose(logits, batch) is None) == (proposal is None)

    def test_progress_may_run_from_0_to_1(self) -> None:
        """Schedules are followed without error, and objectives stay finite."""
        loop, batch = self.make(), self._batch()
        for progress in (0.0, 0.5, 1.0):
            loop.set_progress(progress)
            objective = loop.objective(self._logits(), batch, loop.propose(self._logits(), batch))
            assert bool(objective.isfinite())

    def test_arguments_are_not_modified(self) -> None:
        """Logits, batch and earlier proposals are read only."""
        batch, logits, loop = self._batch(irregular_region(3, self.size)), self._logits(), self.make()
        with Unchanged(logits=logits, image=batch.image, labels=batch.labels, roi=batch.roi):
            proposal = loop.propose(logits, batch)
            loop.objective(logits, batch, proposal)
        if proposal is not None:
            with Unchanged(labels=proposal.labels):
                loop.propose(logits, batch, warm=proposal.labels)
                loop.objective(logits, batch, proposal)

    def test_bad_input_is_refused(self) -> None:
        """Logits of another size than the images."""
        batch, logits, loop = self._batch(), self._logits(), self.make()
        proposal = loop.propose(logits, batch)
        with pytest.raises(UsageError, match="logits"):
            loop.objective(logits[..., 1:], batch, proposal)
        if proposal is not None:
            with pytest.raises(UsageError, match="logits"):
                loop.propose(logits[..., 1:], batch)

    def test_presets_can_be_made(self) -> None:
        """Every preset is complete."""
        cls = type(self.make())
        for name in cls.presets:
            assert isinstance(cls.preset(name), cls)
