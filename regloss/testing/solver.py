"""Checks for solvers."""

from __future__ import annotations

import math
import pickle
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from regloss import registry
from regloss.errors import ReglossError, UsageError
from regloss.numerics import one_hot
from regloss.regularizer import Regularizer, Term
from regloss.solver import Solution, Solver, Status, linear_energy, negative_entropy, negotiate, solve
from regloss.testing.suite import (
    SIZES,
    Suite,
    Unchanged,
    assert_at_most,
    assert_close,
    available_devices,
    box_region,
    irregular_region,
    no_make,
    normal_values,
    random_image,
    random_labels,
    without_border,
)

__all__ = ["SolverConformance"]


class SolverConformance(Suite):
    """Checks of a `Solver`: certificates, seeds, regions, warm starts, and all labellings of tiny images enumerated.

    >>> from regloss import AlphaExpansion
    >>> class TestMySolver(SolverConformance):
    ...     exact_for_two = True
    ...
    ...     def make(self):
    ...         return AlphaExpansion(workers=1)
    >>> TestMySolver().test_energy_is_that_of_the_solution(ndim=2, weight=0.3)
    """

    # ---- what must be defined

    def make(self) -> Solver:
        """The solver, with enough steps to converge on images of 6x7 pixels."""
        raise no_make(self)

    # ---- what might be defined

    discrete: ClassVar[bool] = True
    """Whether it minimises over labels (one-hot probabilities) rather than over the simplex."""
    exact_for_two: ClassVar[bool] = False
    """Whether its energy for two classes is the least that labels can have."""
    monotone: ClassVar[bool] = True
    """Whether it never ends above the labels it starts from."""
    local: ClassVar[bool] = False
    """Whether where pixels lie in memory decides which of several local minima it ends in."""
    entropy: ClassVar[float] = 0.0
    """Weight of the entropy term in all problems; 0 for discrete solvers."""
    spatial: ClassVar[Sequence[int]] = (2, 3)
    weights: ClassVar[Sequence[float]] = (0.0, 0.3, 2.0)
    """Weights of the regularizer: none, unaries win, regularizer wins."""
    tolerance: ClassVar[float] = 1e-6
    """Relative error of energies, in float64."""

    def regularizer(self, weight: float) -> Regularizer:
        """One that offers a form that the solver accepts; by default the first installed one that does."""
        for name in ("grid-crf", "tv", *registry.names("regularizer")):
            try:
                candidate: Regularizer = registry.create("regularizer", name, weight=weight)
                negotiate(candidate, self.make())
            except ReglossError:
                continue  # needs settings, is broken, or offers no fitting form: not the one we look for
            return candidate
        raise UsageError("No installed regularizer offers a form that the solver accepts. Override regularizer().")

    # ---- the checks

    class_counts: ClassVar[Sequence[int]] = (2, 3)
    dtypes: ClassVar[Sequence[torch.dtype]] = (torch.float32, torch.float64, torch.bfloat16)
    devices: ClassVar[Sequence[str]] = available_devices()
    tables: ClassVar[Mapping[str, str]] = {
        "ndim": "spatial",
        "weight": "weights",
        "classes": "class_counts",
        "dtype": "dtypes",
        "device": "devices",
    }

    def _image(self, ndim: int) -> Tensor:
        return random_image(2, 3, SIZES[ndim])

    def _unary(self, ndim: int, classes: int = 3) -> Tensor:
        return normal_values(2, classes, *SIZES[ndim], seed=1)

    def _fixed(self, ndim: int, classes: int = 3) -> Tensor:
        """Seeds on about a tenth of the pixels, -1 elsewhere."""
        shape = (2, *SIZES[ndim])
        labels = random_labels(*shape, classes=classes, seed=2)
        return torch.where(normal_values(*shape, seed=3) > 1.3, labels, -1)

    def _admitted(self, ndim: int, allowed: Tensor) -> Tensor:
        """The seeds that ``allowed`` (2, K) admits."""
        fixed = self._fixed(ndim)
        admitted = allowed.gather(1, fixed.clamp(min=0).flatten(1)).reshape(fixed.shape)
        return torch.where(admitted, fixed, -1)

    def _solve(self, term: Term, unary: Tensor, **given: Any) -> Solution:
        return solve(term, unary, self.make(), entropy=self.entropy, **given)

    def _energy(self, term: Term, unary: Tensor, probabilities: Tensor) -> Tensor:
        linear = linear_energy(unary, probabilities, term.roi)
        return linear + self.entropy * negative_entropy(probabilities, term.roi) + term.energy(probabilities)

    def test_solution_is_complete(self, ndim: int) -> None:
        """Shapes, types and one status for each image."""
        unary = self._unary(ndim)
        solution = self._solve(self.regularizer(0.3).bind(self._image(ndim)), unary)
        assert solution.probabilities.shape == unary.shape
        assert solution.labels.shape == (2, *SIZES[ndim])
        assert solution.labels.dtype == torch.int64
        for name in ("energy", "bound", "gap", "steps", "start_energy"):
            assert getattr(solution, name).shape == (2,), f"{name} must have the shape (B,)"
        assert not solution.energy.isnan().any()
        assert not solution.bound.isnan().any(), "bound is -inf where none is known, not NaN"
        assert not solution.steps.is_floating_point()
        assert bool((solution.steps >= 0).all())
        assert len(solution.status) == 2
        assert all(isinstance(status, Status) for status in solution.status)

    def test_solution_lies_in_the_simplex(self, ndim: int, weight: float) -> None:
        """Probabilities are some, labels are their argmax, and discrete solvers give one-hot ones."""
        solution = self._solve(self.regularizer(weight).bind(self._image(ndim)), self._unary(ndim))
        probabilities = solution.probabilities
        assert bool((probabilities >= -self.tolerance).all())
        assert_close(probabilities.sum(1), torch.ones(2, *SIZES[ndim]), self.tolerance, "sum of probabilities")
        chosen = probabilities.gather(1, solution.labels.unsqueeze(1)).squeeze(1)
        assert_close(chosen, probabilities.amax(1), self.tolerance, "the labels are not the most probable ones")
        if self.discrete:
            assert torch.equal(probabilities, one_hot(solution.labels, 3, probabilities.dtype))

    def test_energy_is_that_of_the_solution(self, ndim: int, weight: float) -> None:
        """The stated energy is <u, s> + entropy <s, log s> + R(s), and not below the stated bound."""
        image, unary = self._image(ndim), self._unary(ndim)
        for region in (None, irregular_region(2, SIZES[ndim])):
            term = self.regularizer(weight).bind(image, region)
            solution = self._solve(term, unary)
            energy = self._energy(term, unary, solution.probabilities)
            assert_close(solution.energy, energy, self.tolerance, "stated energy and energy of the solution")
            assert_at_most(solution.bound, solution.energy, self.tolerance, "the lower bound exceeds the energy")

    def test_no_regularizer_means_no_coupling(self, ndim: int) -> None:
        """With weight 0 every pixel goes its own way: the cheapest label, or softmax(-unary / entropy)."""
        term, unary = self.regularizer(0.0).bind(self._image(ndim)), self._unary(ndim)
        solution = self._solve(term, unary)
        if self.entropy > 0:
            expected = (-unary / self.entropy).softmax(1)
        else:
            expected = one_hot(unary.argmin(1), 3, torch.float64)
        assert_close(
            solution.energy, self._energy(term, unary, expected), self.tolerance, "energy without a regularizer"
        )

    def test_entropies_it_does_not_take_are_refused(self) -> None:
        """What `entropies` leaves out raises; the entropy of these checks is one that it takes."""
        solver, ndim = self.make(), self.spatial[0]
        regularizer = self.regularizer(0.3)
        taken = solver.entropies(negotiate(regularizer, solver))
        assert taken in ("any", "zero", "positive")
        assert taken != ("zero" if self.entropy > 0 else "positive"), "entropies() leaves out that of these checks"
        if taken == "any":
            return
        term = regularizer.bind(self._image(ndim))
        with pytest.raises(UsageError, match="entropy"):
            solve(term, self._unary(ndim), solver, entropy=0.5 if taken == "zero" else 0.0)

    def test_no_labelling_is_better_than_claimed(self, classes: int, weight: float) -> None:
        """All labellings of 3x3 images, free and with seeds: no bound above, no discrete energy below their best."""
        batch, size = 3, (3, 3)
        image = random_image(batch, 3, size, seed=5)
        unary = normal_values(batch, classes, *size, seed=6)
        every = torch.cartesian_prod(*[torch.arange(classes)] * math.prod(size)).reshape(-1, *size)
        seeds = torch.full((batch, *size), -1)
        seeds[:, 0, 0], seeds[:, 2, 1] = 0, classes - 1
        values = torch.stack([self._labelling_energies(image[i], unary[i], every, weight) for i in range(batch)])
        for name, fixed in (("free", None), ("with seeds", seeds)):
            solution = self._solve(self.regularizer(weight).bind(image), unary, fixed=fixed)
            best = values
            if fixed is not None:
                agrees = ((every == seeds.unsqueeze(1)) | (seeds.unsqueeze(1) < 0)).flatten(2).all(2)
                best = values.masked_fill(~agrees, math.inf)
            best = best.amin(1)
            assert_at_most(
                solution.bound, best, self.tolerance, f"the bound exceeds the least energy of labels, {name}"
            )
            if self.discrete:
                assert_at_most(best, solution.energy, self.tolerance, f"the energy is too good to be true, {name}")
            if self.exact_for_two and classes == 2 and self.entropy == 0:
                assert_close(solution.energy, best, self.tolerance, f"least energy of two labels, {name}")

    def _labelling_energies(self, image: Tensor, unary: Tensor, every: Tensor, weight: float) -> Tensor:
        """(M,) energies of all labellings ``every`` (M, *S) of one image."""
        count, classes = len(every), len(unary)
        term = self.regularizer(weight).bind(image.expand(count, *image.shape))
        return self._energy(term, unary.expand(count, *unary.shape), one_hot(every, classes, torch.float64))

    def test_never_ends_above_its_start(self, ndim: int, weight: float) -> None:
        """Where ``monotone``: from random labels, with and without seeds, the energy does not rise."""
        if not self.monotone:
            pytest.skip("monotone = False")
        term, unary = self.regularizer(weight).bind(self._image(ndim)), self._unary(ndim)
        start = random_labels(2, *SIZES[ndim], classes=3, seed=7)
        for fixed in (None, self._fixed(ndim)):
            solution = self._solve(term, unary, fixed=fixed, warm=start)
            kept = start if fixed is None else torch.where(fixed >= 0, fixed, start)
            energy = self._energy(term, unary, one_hot(kept, 3, torch.float64))
            assert_at_most(solution.energy, energy, self.tolerance, "the energy rose above that of the start")
            known = ~solution.start_energy.isnan()
            assert_close(solution.start_energy[known], energy[known], self.tolerance, "start_energy")

    def test_fixed_labels_are_kept(self, ndim: int, weight: float) -> None:
        """Seeds are hard, even against a large unary."""
        fixed = self._fixed(ndim)
        unary = self._unary(ndim)
        against = 1e4 * one_hot(fixed.clamp(min=0), 3, torch.float64) * (fixed >= 0).unsqueeze(1)
        solution = self._solve(self.regularizer(weight).bind(self._image(ndim)), unary + against, fixed=fixed)
        given = fixed >= 0
        assert torch.equal(solution.labels[given], fixed[given])
        expected = one_hot(fixed.clamp(min=0), 3, torch.float64)
        inside = given.unsqueeze(1).expand_as(expected)
        assert_close(solution.probabilities[inside], expected[inside], self.tolerance, "probabilities of fixed pixels")

    def test_allowed_labels_are_respected(self, ndim: int, weight: float) -> None:
        """Pixels take allowed labels only, also from a start that is not allowed; seeds are kept."""
        allowed = torch.tensor([[True, False, True], [False, True, True]])
        fixed = self._admitted(ndim, allowed)
        start = torch.ones(2, *SIZES[ndim], dtype=torch.int64)
        for warm in (None, start):
            term = self.regularizer(weight).bind(self._image(ndim))
            solution = self._solve(term, self._unary(ndim), allowed=allowed, fixed=fixed, warm=warm)
            assert not bool((solution.labels[0] == 1).any())
            assert not bool((solution.labels[1] == 0).any())
            assert torch.equal(solution.labels[fixed >= 0], fixed[fixed >= 0])

    def test_region_of_interest_is_a_crop(self, ndim: int, weight: float) -> None:
        """In a box of interest the problem is that of the images cropped to it, whatever the unaries outside."""
        size = SIZES[ndim]
        image, unary, fixed = self._image(ndim), self._unary(ndim), self._fixed(ndim)
        region = box_region(2, size)
        term = self.regularizer(weight).bind(image, region)
        cropped = self.regularizer(weight).bind(without_border(image, size))
        solution = self._solve(term, unary, fixed=fixed)
        energy = self._energy(cropped, without_border(unary, size), without_border(solution.probabilities, size))
        assert_close(
            solution.energy, energy, self.tolerance, "energy in a box of interest, and of its solution in a crop"
        )
        if not self.local:
            alone = self._solve(cropped, without_border(unary, size), fixed=without_border(fixed, size))
            assert_close(solution.energy, alone.energy, self.tolerance, "energy in a box of interest, and of a crop")
        loud = torch.where(region.unsqueeze(1), unary, 50 * unary.roll(1, 1))
        changed = self._solve(term, loud, fixed=torch.where(region, fixed, 1))
        assert_close(
            changed.energy, solution.energy, self.tolerance, "energy in a box of interest after a change outside"
        )
        for labels in (solution.labels, changed.labels):
            assert int(labels.min()) >= 0
            assert int(labels.max()) < 3

    def test_batch_is_one_by_one(self, ndim: int, weight: float) -> None:
        """Images of a batch do not see each other."""
        allowed = torch.tensor([[True, False, True], [True, True, True]])
        image, unary, fixed = self._image(ndim), self._unary(ndim), self._admitted(ndim, allowed)
        region = irregular_region(2, SIZES[ndim])
        regularizer = self.regularizer(weight)
        together = self._solve(regularizer.bind(image, region), unary, fixed=fixed, allowed=allowed)
        for i in range(2):
            term = regularizer.bind(image[[i]], region[[i]])
            alone = self._solve(term, unary[[i]], fixed=fixed[[i]], allowed=allowed[[i]])
            assert_close(
                alone.energy, together.energy[[i]], self.tolerance, f"energy of image {i} alone and in a batch"
            )
            assert alone.status[0] is together.status[i]

    def test_restarting_is_not_worse(self, ndim: int, weight: float) -> None:
        """From its own solution, given as such and by its state, a solver ends no higher."""
        term, unary = self.regularizer(weight).bind(self._image(ndim)), self._unary(ndim)
        first = self._solve(term, unary)
        starts = [first] if first.state is None else [first, first.state]
        for start in starts:
            again = self._solve(term, unary, warm=start)
            assert_at_most(again.energy, first.energy, self.tolerance, "the energy rose from one solve to the next")

    def test_arguments_are_not_modified(self, ndim: int) -> None:
        """Unaries, seeds, allowed labels, the start and the region are read only."""
        image, unary, fixed = self._image(ndim), self._unary(ndim), self._fixed(ndim)
        start = random_labels(2, *SIZES[ndim], classes=3, seed=7)
        allowed = torch.ones(2, 3, dtype=torch.bool)
        region = irregular_region(2, SIZES[ndim])
        with Unchanged(image=image, unary=unary, fixed=fixed, allowed=allowed, warm=start, roi=region):
            term = self.regularizer(0.3).bind(image, region)
            self._solve(term, unary, fixed=fixed, allowed=allowed, warm=start)
        first = self._solve(term, unary)
        if isinstance(first.state, Tensor):
            with Unchanged(state=first.state):
                self._solve(term, 2 * unary, warm=first)

    def test_unaries_of_any_precision(self, dtype: torch.dtype) -> None:
        """Half-precision unaries are solved in float32, under autocast too; probabilities have the unaries' type."""
        ndim = self.spatial[0]
        image, unary = self._image(ndim).float(), self._unary(ndim).to(dtype)
        term = self.regularizer(0.3).bind(image)
        solution = self._solve(term, unary)
        assert solution.probabilities.dtype == dtype
        assert solution.energy.dtype in (torch.float32, torch.float64)
        exact = self._solve(self.regularizer(0.3).bind(image.double()), unary.double())
        assert_close(solution.energy, exact.energy, max(1e-4, self.tolerance), f"energy of {dtype} unaries")
        with torch.autocast("cpu", dtype=torch.bfloat16):
            cast = self._solve(term, unary)
        assert_close(cast.energy, solution.energy, max(1e-5, self.tolerance), "energy under autocast")

    def test_result_is_on_the_device_of_the_unaries(self, device: str) -> None:
        """A solver that works on the CPU takes its data there and brings the result back."""
        ndim = self.spatial[0]
        term = self.regularizer(0.3).bind(self._image(ndim).to(device))
        unary, fixed = self._unary(ndim), self._fixed(ndim)
        start = random_labels(2, *SIZES[ndim], classes=3, seed=7)
        solution = self._solve(term, unary.to(device), fixed=fixed.to(device), warm=start.to(device))
        for name in ("probabilities", "labels", "energy", "bound", "steps", "start_energy"):
            assert getattr(solution, name).device.type == device, f"{name} is not on {device}"
        expected = self._solve(self.regularizer(0.3).bind(self._image(ndim)), unary, fixed=fixed, warm=start)
        assert_close(solution.energy, expected.energy, self.tolerance, f"energy on {device}")

    def test_solving_twice_gives_the_same(self, ndim: int) -> None:
        """No random numbers."""
        term, unary = self.regularizer(0.3).bind(self._image(ndim)), self._unary(ndim)
        first, second = self._solve(term, unary), self._solve(term, unary)
        assert torch.equal(first.labels, second.labels)
        assert torch.equal(first.probabilities, second.probabilities)

    def test_survives_pickling(self) -> None:
        """Worker processes get solvers by pickle."""
        ndim = self.spatial[0]
        term, unary = self.regularizer(0.3).bind(self._image(ndim)), self._unary(ndim)
        again = pickle.loads(pickle.dumps(self.make()))
        solution = solve(term, unary, again, entropy=self.entropy)
        assert_close(solution.energy, self._solve(term, unary).energy, self.tolerance, "energy after pickling")
