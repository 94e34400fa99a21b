"""Checks for regularizers."""

from __future__ import annotations

import dataclasses
import math
import pickle
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from regloss import grid
from regloss.dispatch import find
from regloss.dual_problem import DualIterations, DualProblem
from regloss.errors import MissingForm, UsageError
from regloss.forms import Concave, Form, Graph, GridGraph, Projection, Saddle, SaddlePart
from regloss.numerics import one_hot
from regloss.operators import LinearOperator
from regloss.regularizer import Regularizer, Term
from regloss.testing.suite import (
    SIZES,
    SPACINGS,
    Suite,
    Unchanged,
    assert_at_most,
    assert_close,
    available_devices,
    box_region,
    directional_derivative,
    gradient_of_sum,
    inner_products,
    irregular_region,
    no_make,
    normal_values,
    random_image,
    random_labels,
    without_border,
)

__all__ = ["RegularizerConformance"]


class RegularizerConformance(Suite):
    """Checks of a `Regularizer`, its terms and their forms.

    >>> from regloss import GridCRF
    >>> class TestMyPrior(RegularizerConformance):
    ...     spatial = (2,)
    ...
    ...     def make(self):
    ...         return GridCRF(connectivity=4)
    >>> TestMyPrior().check_grid_graph(ndim=2)
    """

    # ---- what must be defined

    def make(self) -> Regularizer:
        """The regularizer, with a weight other than 0 and settings that matter."""
        raise no_make(self)

    # ---- what might be defined

    spatial: ClassVar[Sequence[int]] = (2, 3)
    """Numbers of spatial axes that it takes."""
    classes: ClassVar[int] = 3
    channels: ClassVar[int] = 3
    discrete: ClassVar[bool] = True
    """Whether its energy of one-hot probabilities is an energy of labels: see `discrete_energy`."""
    nonnegative: ClassVar[bool] = False
    """Whether the energy is never below 0."""
    symmetric: ClassVar[bool] = True
    """Whether renaming the classes leaves the energy as it is."""
    tolerance: ClassVar[float] = 1e-9
    """Relative error of energies in float64; larger for approximate filters."""

    def image(self, ndim: int) -> Tensor:
        """Two images (2, C, *S), float64."""
        return random_image(2, self.channels, SIZES[ndim])

    def probabilities(self, ndim: int) -> Tensor:
        """Probabilities (2, K, *S), float64 and above 0, at which the energy is finite."""
        return normal_values(2, self.classes, *SIZES[ndim], seed=1).mul(1.5).softmax(1)

    def labels(self, ndim: int) -> Tensor:
        """Labels (2, *S), int64, at which the energy is finite."""
        return random_labels(2, *SIZES[ndim], classes=self.classes, seed=2)

    def discrete_energy(self, image: Tensor, labels: Tensor) -> Tensor:
        """The energy (B,) of ``labels`` (B, *S); better than this cut of the graph is the definition in plain loops."""
        term = self.make().bind(image)
        if GridGraph in term.regularizer.forms:
            return term.form(GridGraph).cut(labels)
        assert Graph in term.regularizer.forms, (
            "no graph form is offered: override discrete_energy, or say discrete = False"
        )
        return term.form(Graph).cut(labels)

    # ---- the checks

    dtypes: ClassVar[Sequence[torch.dtype]] = (torch.float32, torch.float64, torch.bfloat16)
    devices: ClassVar[Sequence[str]] = available_devices()
    tables: ClassVar[Mapping[str, str]] = {
        "ndim": "spatial",
        "dtype": "dtypes",
        "device": "devices",
        "check": "form_checks",
    }

    @property
    def form_checks(self) -> list[str]:
        """Names of the ``check_`` methods for the forms that the regularizer offers."""
        offered = self.make().forms
        return [name for kind, names in _FORM_CHECKS.items() if kind in offered for name in names]

    def _terms(self, ndim: int) -> Iterator[tuple[Term, str]]:
        """Bound terms: everywhere, in a ragged region of interest, and at a spacing of its own along each axis."""
        yield self.make().bind(self.image(ndim)), "everywhere"
        region = irregular_region(2, SIZES[ndim])
        yield self.make().bind(self.image(ndim), region), "in a region of interest"
        if ndim == max(self.spatial):
            yield self.make().bind(self.image(ndim), region, SPACINGS[:ndim]), f"at spacings of {SPACINGS[:ndim]}"

    def _solvable(self, ndim: int) -> Iterator[tuple[Term, str]]:
        """The same, conditioned on a prediction, which some need for their forms."""
        for term, where in self._terms(ndim):
            yield term.conditioned_on(self.probabilities(ndim)), where

    def test_a_spacing_of_one_is_no_spacing(self, ndim: int) -> None:
        """Pixels of 1 mm give the energies of pixels, bit for bit."""
        image, probabilities = self.image(ndim), self.probabilities(ndim)
        expected = self.make().bind(image).penalty(probabilities)
        found = self.make().bind(image, spacing=(1.0,) * ndim).penalty(probabilities)
        assert torch.equal(found, expected), "spacing = 1 along every axis changes the energy"

    def test_is_a_frozen_dataclass_with_a_weight(self) -> None:
        """Settings are fields, so that configurations can name them, and weight = 1 is the default."""
        regularizer = self.make()
        assert dataclasses.is_dataclass(regularizer), "a regularizer must be a dataclass"
        defaults = {field.name: field.default for field in dataclasses.fields(regularizer)}
        assert defaults.get("weight") == 1.0, "a regularizer must have the field weight: float = 1.0"
        with pytest.raises(dataclasses.FrozenInstanceError):
            regularizer.weight = 2.0

    def test_survives_pickling(self) -> None:
        """Worker processes get regularizers by pickle."""
        ndim = self.spatial[0]
        again = pickle.loads(pickle.dumps(self.make()))
        image, probabilities = self.image(ndim), self.probabilities(ndim)
        expected = self.make().bind(image).energy(probabilities)
        assert_close(again.bind(image).energy(probabilities), expected, 1e-12, "energy after pickling")

    def test_energy_is_one_number_per_image(self, ndim: int) -> None:
        """Energy, penalty and violation are (B,), finite where the energy is."""
        for term, where in self._terms(ndim):
            probabilities = self.probabilities(ndim)
            for name in ("energy", "penalty", "violation"):
                value = getattr(term, name)(probabilities)
                assert value.shape == (2,), f"{name} {where} must have the shape (B,); got {tuple(value.shape)}"
                assert bool(value.isfinite().all()), f"{name} {where} is {value.tolist()}"
            if self.nonnegative:
                assert_at_most(torch.zeros(2), term.energy(probabilities), 0.0, f"energy {where} is negative")

    def test_energy_is_computed_in_float32_at_least(self, dtype: torch.dtype) -> None:
        """Half-precision input gives the float32 energy of the same numbers."""
        ndim = self.spatial[0]
        image, probabilities = self.image(ndim).to(dtype), self.probabilities(ndim).to(dtype)
        energy = self.make().bind(image).energy(probabilities)
        expected = torch.float64 if dtype == torch.float64 else torch.float32
        assert energy.dtype == expected, f"the energy of {dtype} input must be {expected}; got {energy.dtype}"
        exact = self.make().bind(image.double()).energy(probabilities.double())
        assert_close(energy, exact, max(1e-5, self.tolerance), f"energy of {dtype} input")

    def test_energy_does_not_depend_on_autocast(self) -> None:
        """Mixed precision is for networks."""
        ndim = self.spatial[0]
        image, probabilities = self.image(ndim).float(), self.probabilities(ndim).float()
        expected = self.make().bind(image).energy(probabilities)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            energy = self.make().bind(image).energy(probabilities)
        assert_close(energy, expected, 1e-5, "energy under autocast")

    def test_energy_is_the_same_on_every_device(self, device: str) -> None:
        """The energy stays on the probabilities' device, and so do the tensors of the graphs."""
        ndim = self.spatial[0]
        image, probabilities = self.image(ndim), self.probabilities(ndim)
        expected = self.make().bind(image).energy(probabilities)
        term = self.make().bind(image.to(device))
        energy = term.energy(probabilities.to(device))
        assert energy.device.type == device
        assert_close(energy, expected, max(1e-9, self.tolerance), f"energy on {device}")
        for kind in {Graph, GridGraph} & set(term.regularizer.forms):
            form: Any = term.form(kind)
            assert form.weights.device.type == device

    def test_energy_of_labels_follows_the_definition(self, ndim: int) -> None:
        """On one-hot input every relaxation of a discrete energy equals it."""
        if not self.discrete:
            pytest.skip("discrete = False: it is no relaxation of an energy of labels")
        image, labels = self.image(ndim), self.labels(ndim)
        energy = self.make().bind(image).energy(one_hot(labels, self.classes, torch.float64))
        assert_close(energy, self.discrete_energy(image, labels), self.tolerance, "energy of labels")

    def test_penalty_gradient_matches_finite_differences(self, ndim: int) -> None:
        """Along three directions that keep the sum over classes, in float64."""
        for term, where in self._terms(ndim):
            probabilities = self.probabilities(ndim)
            gradient = gradient_of_sum(term.penalty, probabilities)
            for seed in range(3):
                direction = normal_values(*probabilities.shape, seed=10 + seed)
                direction = direction - direction.mean(1, keepdim=True)
                expected = directional_derivative(term.penalty, probabilities, direction)
                assert_close(
                    inner_products(gradient, direction), expected, max(1e-6, self.tolerance), f"derivative {where}"
                )

    def test_penalty_gradient_is_finite_at_flat_and_hard_probabilities(self, ndim: int) -> None:
        """Where norms have no derivative, a subgradient will do; NaN would destroy a training."""
        probabilities = self.probabilities(ndim)
        flat = torch.full_like(probabilities, 1 / self.classes)
        hard = one_hot(self.labels(ndim), self.classes, torch.float64)
        for term, where in self._terms(ndim):
            for name, at in (("flat", flat), ("one-hot", hard)):
                gradient = gradient_of_sum(term.penalty, at)
                assert bool(gradient.isfinite().all()), f"the gradient at {name} probabilities {where} is not finite"

    def test_arguments_are_not_modified(self, ndim: int) -> None:
        """Neither by binding, nor by evaluating, nor by any function of any form."""
        image, region = self.image(ndim), irregular_region(2, SIZES[ndim])
        probabilities, labels = self.probabilities(ndim), self.labels(ndim)
        with Unchanged(image=image, roi=region, probabilities=probabilities, labels=labels):
            term = self.make().bind(image, region)
            term.energy(probabilities), term.penalty(probabilities), term.violation(probabilities)
            term = term.conditioned_on(probabilities)
            for kind in term.regularizer.forms:
                form = term.form(kind)
                if isinstance(form, Graph | GridGraph):
                    form.cut(labels)
                elif isinstance(form, Saddle):
                    for part in form.parts:
                        dual = part.operator.apply(probabilities)
                        with Unchanged(dual=dual):
                            part.operator.adjoint(dual), part.dual_set.project(dual), part.dual_set.support(dual)
                elif isinstance(form, Concave):
                    form.concave.value(probabilities), form.concave.supergradient(probabilities)
                elif isinstance(form, Projection):
                    form.project(probabilities)

    def test_image_matters_where_it_says_so(self, ndim: int) -> None:
        """A loss asks for no image where ``needs_image`` is False, so the energy must not depend on it."""
        regularizer, image, probabilities = self.make(), self.image(ndim), self.probabilities(ndim)
        if regularizer.needs_image:
            pytest.skip("needs_image = True")
        expected = regularizer.bind(image).penalty(probabilities)
        for other in (1 - image, torch.zeros_like(image[:, :1])):
            assert_close(regularizer.bind(other).penalty(probabilities), expected, 1e-12, "penalty with another image")

    def test_batch_is_one_by_one(self, ndim: int) -> None:
        """Images of a batch do not see each other."""
        image, region = self.image(ndim), irregular_region(2, SIZES[ndim])
        probabilities = self.probabilities(ndim)
        together = self.make().bind(image, region).energy(probabilities)
        alone = [self.make().bind(image[[i]], region[[i]]).energy(probabilities[[i]]) for i in range(2)]
        assert_close(together, torch.cat(alone), max(1e-12, self.tolerance), "energy of a batch")

    def test_region_of_interest_is_a_crop(self, ndim: int) -> None:
        """A box of interest gives what the images cropped to it give, whatever lies outside."""
        size = SIZES[ndim]
        image, probabilities, region = self.image(ndim), self.probabilities(ndim), box_region(2, size)
        expected = self.make().bind(without_border(image, size)).energy(without_border(probabilities, size))
        inside = region.unsqueeze(1)
        for name, shown in (("", image), (" after a change outside", torch.where(inside, image, 1 - image))):
            kept = torch.where(inside, probabilities, probabilities.roll(1, 1)) if name else probabilities
            energy = self.make().bind(shown, region).energy(kept)
            assert_close(energy, expected, max(1e-10, self.tolerance), f"energy in a box of interest{name}")

    def test_region_that_holds_everything_is_none(self, ndim: int) -> None:
        """``roi`` all True changes nothing."""
        image, probabilities = self.image(ndim), self.probabilities(ndim)
        everywhere = torch.ones(2, *SIZES[ndim], dtype=torch.bool)
        expected = self.make().bind(image).energy(probabilities)
        assert_close(
            self.make().bind(image, everywhere).energy(probabilities), expected, 1e-12, "energy with roi all True"
        )

    def test_classes_may_be_renamed(self, ndim: int) -> None:
        """Where ``symmetric``, the order of the classes does not matter."""
        if not self.symmetric:
            pytest.skip("symmetric = False: its classes are not alike")
        term, probabilities = self.make().bind(self.image(ndim)), self.probabilities(ndim)
        order = torch.arange(self.classes).roll(1)
        energy = term.energy(probabilities[:, order])
        assert_close(
            energy, term.energy(probabilities), max(1e-10, self.tolerance), "energy after renaming the classes"
        )

    def test_weight_scales_the_energy(self, ndim: int) -> None:
        """Energy and penalty are proportional to the weight, down to 0."""
        regularizer, image, probabilities = self.make(), self.image(ndim), self.probabilities(ndim)
        term = regularizer.bind(image)
        for factor in (2.5, 0.0):
            other = dataclasses.replace(regularizer, weight=factor * regularizer.weight).bind(image)  # type: ignore[type-var]
            for name in ("energy", "penalty"):
                expected = factor * getattr(term, name)(probabilities)
                assert_close(
                    getattr(other, name)(probabilities), expected, 1e-10, f"{name} with {factor} times the weight"
                )

    def test_negative_weight_is_refused(self) -> None:
        """A prior with a negative weight is another prior."""
        with pytest.raises(UsageError, match="weight"):
            dataclasses.replace(self.make(), weight=-1.0)  # type: ignore[type-var]

    def test_bad_images_are_refused(self, ndim: int) -> None:
        """NaN, values outside [0, 1], and a region of another shape."""
        image = self.image(ndim)
        for bad in (math.nan, 1.5, -0.5, math.inf):
            broken = image.clone()
            broken.view(-1)[3] = bad
            with pytest.raises(UsageError, match=r"\[0, 1\]"):
                self.make().bind(broken)
        with pytest.raises(UsageError, match="region of interest"):
            self.make().bind(image, torch.ones(2, *SIZES[ndim][:-1], 2, dtype=torch.bool))

    def test_probabilities_that_do_not_fit_are_refused(self, ndim: int) -> None:
        """`Term.check` in the energy sees to it."""
        term, probabilities = self.make().bind(self.image(ndim)), self.probabilities(ndim)
        for wrong in (probabilities[..., :-1], probabilities[:1], probabilities[:, :1]):
            with pytest.raises(UsageError, match="probabilities"):
                term.energy(wrong)

    def test_forms_are_those_that_terms_build(self, ndim: int) -> None:
        """Each of the regularizer's ``forms`` is built as what it says, and no other."""
        for term, _ in self._solvable(ndim):
            offered = term.regularizer.forms
            assert isinstance(offered, Mapping), "forms must be a mapping: {Saddle: _Term.saddle}, say"
            for kind in _FORM_CHECKS:
                if kind in offered:
                    assert isinstance(term.form(kind), kind)
                else:
                    with pytest.raises(MissingForm, match=kind.__name__):
                        term.form(kind)

    def test_binding_twice_gives_the_same(self, ndim: int) -> None:
        """No random numbers, no state from one binding to the next."""
        regularizer, image, probabilities = self.make(), self.image(ndim), self.probabilities(ndim)
        first = regularizer.bind(image).energy(probabilities)
        regularizer.bind(1 - image)
        assert torch.equal(regularizer.bind(image).energy(probabilities), first)

    def test_forms_keep_their_contracts(self, ndim: int, check: str) -> None:
        """Every check below whose form is offered; with and without a region of interest."""
        getattr(self, check)(ndim)

    def check_graph(self, ndim: int) -> None:
        """Cut and energy of labels agree, no weight is negative, no edge stands there twice."""
        labels = self.labels(ndim)
        for term, where in self._solvable(ndim):
            graph = term.form(Graph)
            energy = term.energy(one_hot(labels, self.classes, torch.float64))
            assert_close(graph.cut(labels), energy, self.tolerance, f"cut of the graph {where}")
            assert bool((graph.weights >= 0).all()), f"negative weight {where}"
            assert graph.edges.dtype == torch.int64
            edges = graph.edges.sort(1).values.tolist()
            assert len({*map(tuple, edges)}) == len(edges), f"an edge stands there twice {where}"
            assert all(p != q for p, q in edges), f"an edge joins a pixel with itself {where}"

    def check_grid_graph(self, ndim: int) -> None:
        """Cut and energy of labels agree, no weight is negative or leaves the region, no pair stands there twice."""
        labels = self.labels(ndim)
        for term, where in self._solvable(ndim):
            graph = term.form(GridGraph)
            energy = term.energy(one_hot(labels, self.classes, torch.float64))
            assert_close(graph.cut(labels), energy, self.tolerance, f"cut of the grid graph {where}")
            assert graph.weights.shape == (2, len(graph.offsets), *SIZES[ndim])
            assert bool((graph.weights >= 0).all()), f"negative weight {where}"
            both = {*graph.offsets, *(tuple(-step for step in offset) for offset in graph.offsets)}
            assert len(both) == 2 * len(graph.offsets), f"a pair stands there twice {where}"
            region = grid.full_roi(term.roi, (2, *SIZES[ndim]), graph.weights.device)
            for number, offset in enumerate(graph.offsets):
                outside = ~grid.pairs_inside(region, offset)
                assert float(graph.weights[:, number][outside].sum()) == 0, f"a pair leaves the grid or region {where}"

    def _parts(self, ndim: int) -> Iterator[tuple[Term, SaddlePart, Tensor, str]]:
        """Every part of the saddle form, with a random dual variable."""
        for term, where in self._solvable(ndim):
            for number, part in enumerate(term.form(Saddle).parts):
                shape = part.operator.apply(self.probabilities(ndim)).shape
                yield term, part, normal_values(*shape, seed=20 + number), f"in part {number} {where}"

    def check_saddle_adjoint(self, ndim: int) -> None:
        """<K x, y> = <x, K^T y>, and K is linear."""
        for _, part, dual, where in self._parts(ndim):
            first = normal_values(*self.probabilities(ndim).shape, seed=30)
            check_operator(part.operator, first, dual, where)

    def check_saddle_projection(self, ndim: int) -> None:
        """Idempotent, and at an obtuse angle to the set: what defines a projection on a convex set."""
        for _, part, dual, where in self._parts(ndim):
            other = part.dual_set.project(normal_values(*dual.shape, seed=32))
            for scale in (0.1, 1.0, 30.0):
                outside = scale * dual
                inside = part.dual_set.project(outside)
                assert inside.shape == dual.shape
                again = part.dual_set.project(inside)
                assert_close(again, inside, 1e-10, f"projecting twice is not projecting once {where}")
                angle = inner_products(outside - inside, other - inside)
                assert_at_most(
                    angle, torch.zeros(2), 1e-8 * float(1 + outside.abs().sum()), f"<y - Py, z - Py> > 0 {where}"
                )

    def check_saddle_support(self, ndim: int) -> None:
        """The support function is the largest <z, y> over the set, and adds up to the energy."""
        for term, part, dual, where in self._parts(ndim):
            at, dual_set = part.residual(self.probabilities(ndim)), part.dual_set
            support = dual_set.support(at)
            assert support.shape == (2,), f"support must give (B,) {where}; got {tuple(support.shape)}"
            for scale in (0.1, 1.0, 30.0):
                assert_at_most(
                    inner_products(at, dual_set.project(scale * dual)),
                    support,
                    1e-9,
                    f"<z, P y> above the support {where}",
                )
            # The projection of a far point in the direction z maximises <z, y> in the limit.
            far = at * (1e8 / at.abs().max().clamp(min=1e-30))
            attained = inner_products(at, dual_set.project(far))
            assert_close(attained, support, 1e-5, f"the support is not attained {where}")
            value = term.form(Saddle).value(self.probabilities(ndim))
            energy = term.energy(self.probabilities(ndim))
            assert_close(value, energy, max(1e-10, self.tolerance), "value of the saddle form and energy")

    def check_saddle_norm(self, ndim: int) -> None:
        """The stated bound is not below what power iteration finds; solvers take their steps from it."""
        for _, part, _, where in self._parts(ndim):
            vector = normal_values(*self.probabilities(ndim).shape, seed=33)
            length = torch.zeros(2, dtype=torch.float64)
            for _ in range(60):
                vector = vector / inner_products(vector, vector).sqrt().reshape(-1, *[1] * (vector.ndim - 1)).clamp(
                    min=1e-30
                )
                applied = part.operator.apply(vector)
                length = inner_products(applied, applied).sqrt()
                vector = part.operator.adjoint(applied)
            bound = torch.full_like(length, part.operator.norm)
            assert_at_most(length, bound, 1e-9, f"the norm exceeds its bound {where}")

    def check_saddle_gap(self, ndim: int) -> None:
        """support(z) - <z, y>, for y in the set, is what the set's own sum gives, and never negative."""
        for _, part, dual, where in self._parts(ndim):
            at, dual_set = part.residual(self.probabilities(ndim)), part.dual_set
            for scale in (0.1, 1.0, 30.0):
                inside = dual_set.project(scale * dual)
                gap = dual_set.fenchel_gap(at, inside)
                assert gap.shape == (2,), f"fenchel_gap must give (B,) {where}; got {tuple(gap.shape)}"
                difference = dual_set.support(at) - inner_products(at, inside)
                assert_close(gap, difference, 1e-9, f"fenchel_gap and support(z) - <z, y> {where}")
                assert_at_most(torch.zeros(2), gap, 1e-9, f"the gap is negative {where}")

    def check_saddle_steps(self, ndim: int) -> None:
        """K K^T <= diag(r) for all parts together, by power iteration; so steps of 2 entropy / r are safe."""
        for term, where in self._solvable(ndim):
            form = term.form(Saddle)
            for diagonal in (True, False):
                bounds = form.diagonal_bound(self.probabilities(ndim), diagonal=diagonal)
                vector = normal_values(*self.probabilities(ndim).shape, seed=34)
                length = torch.zeros(2, dtype=torch.float64)
                for _ in range(60):
                    vector = vector / inner_products(vector, vector).sqrt().reshape(-1, *[1] * (vector.ndim - 1)).clamp(
                        min=1e-30
                    )
                    back, length = torch.zeros_like(vector), torch.zeros(2, dtype=torch.float64)
                    for part, bound in zip(form.parts, bounds, strict=True):
                        applied = part.operator.apply(vector)
                        assert bool((applied.abs()[(bound <= 0).expand_as(applied)] == 0).all()), (
                            f"a bound of 0 {where}"
                        )
                        scaled = applied / bound.clamp(min=1e-30)
                        length = length + inner_products(applied, scaled)
                        back = back + part.operator.adjoint(scaled)
                    vector = back
                assert_at_most(length, torch.ones_like(length), 1e-9, f"steps taken from r would be too long {where}")

    def check_saddle_tangent(self, ndim: int) -> None:
        """Where a dual set defines its tangent: Q is an orthogonal projection, and the curvature is not negative."""
        for _, part, dual, where in self._parts(ndim):
            for scale in (0.1, 30.0):
                inside = part.dual_set.project(scale * dual)
                try:
                    tangent = part.dual_set.tangent(part.residual(self.probabilities(ndim)), inside)
                except MissingForm:
                    continue  # layers of it are unrolled
                first, second = normal_values(*dual.shape, seed=35), normal_values(*dual.shape, seed=36)
                once = tangent.project(first)
                again = tangent.project(once)
                assert_close(again, once, 1e-10, f"projecting on the tangent twice is not projecting once {where}")
                assert_close(
                    inner_products(once, second),
                    inner_products(first, tangent.project(second)),
                    1e-10,
                    f"Q is not symmetric {where}",
                )
                assert bool((torch.as_tensor(tangent.curvature) >= 0).all()), f"negative curvature {where}"

    def check_saddle_images(self, ndim: int) -> None:
        """Images are left out by indexing: what remains acts on them as before."""
        for _, part, dual, where in self._parts(ndim):
            images, probabilities = torch.tensor([1]), self.probabilities(ndim)
            alone = part[images]
            found, expected = alone.residual(probabilities[1:]), part.residual(probabilities)[1:]
            assert_close(found, expected, 1e-12, f"K of image 1 {where}")
            back = part.operator.adjoint(dual)[1:]
            assert_close(alone.operator.adjoint(dual[1:]), back, 1e-12, f"K^T of image 1 {where}")
            inside = part.dual_set.project(dual)[1:]
            assert_close(alone.dual_set.project(dual[1:]), inside, 1e-12, f"projection of image 1 {where}")

    def check_saddle_fast(self, ndim: int) -> None:
        """Where there is fast code for a part: its steps are those of the reference, and so are the values."""
        for term, part, dual, where in self._parts(ndim):
            ascent = find("dual-ascent", type(part.operator), type(part.dual_set), device=dual.device)
            if ascent is None:
                continue
            cost = normal_values(*self.probabilities(ndim).shape, seed=37)
            cost[:, 0, ..., 0] = float("inf")
            start = part.dual_set.project(0.3 * dual)
            for smoothing, given, steps, factor in (
                ("entropy", start, "diagonal", 1.0),
                ("entropy", None, "norm", 0.6),
                ("square", start, 0.05, 1.0),
            ):
                if smoothing == "square":
                    cost = cost.nan_to_num(posinf=0.5)
                problem = DualProblem(
                    part.operator,
                    part.dual_set,
                    cost,
                    smoothing,  # type: ignore[arg-type]
                    0.7,
                    steps,  # type: ignore[arg-type]
                    given,
                    term.roi,
                    factor,
                )
                compare_ascents(problem, ascent(problem), torch.zeros_like(start), f"{steps}, {smoothing}, {where}")

    def check_concave(self, ndim: int) -> None:
        """The value is the energy, and lies below its tangents on the simplex, but for the stated curvature."""
        for term, where in self._solvable(ndim):
            form = term.form(Concave)
            first = self.probabilities(ndim)
            value, slope = form.value(first), form.concave.supergradient(first)
            assert_close(value, term.energy(first), max(1e-10, self.tolerance), f"value of the concave form {where}")
            assert slope.shape == first.shape
            for seed in range(5):
                scale = 0.3 * 2.0**seed
                second = (first.log() + scale * normal_values(*first.shape, seed=40 + seed)).softmax(1)
                tangent = value + inner_products(slope, second - first)
                tangent = tangent + form.concave.curvature / 2 * (second - first).square().flatten(1).sum(1)
                assert_at_most(
                    form.value(second), tangent, max(1e-10, self.tolerance), f"the value exceeds a tangent {where}"
                )
            direction = first.roll(1, 1) - first
            expected = directional_derivative(form.value, first, direction)
            assert_close(
                inner_products(slope, direction), expected, max(1e-6, self.tolerance), f"supergradient {where}"
            )
            if form.concave.is_quadratic:
                linear = form.concave.supergradient(torch.zeros_like(first))
                half = inner_products(linear + slope, first) / 2
                assert_close(half, value, max(1e-10, self.tolerance), f"the concave form is not quadratic {where}")

    def check_concave_images(self, ndim: int) -> None:
        """Images are left out by indexing: what remains is as before."""
        for term, where in self._solvable(ndim):
            function = term.form(Concave).concave
            images, probabilities = torch.tensor([1]), self.probabilities(ndim)
            alone, kept = function[images], probabilities[1:]
            limit = max(1e-10, self.tolerance)
            assert_close(alone.value(kept), function.value(probabilities)[1:], limit, f"value of image 1 alone {where}")
            slope = function.supergradient(probabilities)[1:]
            assert_close(alone.supergradient(kept), slope, limit, f"supergradient of image 1 alone {where}")

    def check_projection(self, ndim: int) -> None:
        """What was projected violates nothing; an exact projection is idempotent."""
        for term, where in self._solvable(ndim):
            form = term.form(Projection)
            inside = form.project(normal_values(2, self.classes, *SIZES[ndim], seed=50).mul(2).softmax(1))
            assert inside.shape == (2, self.classes, *SIZES[ndim])
            assert bool(term.energy(inside).isfinite().all()), f"the projection violates the constraint {where}"
            if form.exact:
                assert_close(form.project(inside), inside, max(1e-8, self.tolerance), f"projecting twice {where}")


def check_operator(operator: LinearOperator, first: Tensor, dual: Tensor, where: str) -> None:
    """<K x, y> = <x, K^T y>, and K is linear, at ``first`` (B, K, *S) and ``dual`` of dual shape."""
    second = normal_values(*first.shape, seed=31)
    back = operator.adjoint(dual)
    assert back.shape == first.shape, f"the adjoint gives the shape {tuple(back.shape)} {where}"
    products = inner_products(operator.apply(first), dual)
    assert_close(products, inner_products(first, back), 1e-10, f"<K x, y> and <x, K^T y> {where}")
    assert_close(
        operator.apply(2 * first - 3 * second),
        2 * operator.apply(first) - 3 * operator.apply(second),
        1e-10,
        f"K is not linear {where} (constants belong into shift)",
    )


def compare_ascents(problem: DualProblem, images: DualIterations, blank: Tensor, where: str) -> None:
    """A few steps of ``images`` with those made of tensor operations, from ``blank`` where the problem has no start."""
    operator, dual_set, weight, factor = problem.operator, problem.dual_set, problem.weight, problem.factor
    y = before = blank if problem.start is None else problem.start
    if isinstance(problem.steps, str):
        form = Saddle((SaddlePart(operator, dual_set),))
        (bound,) = form.diagonal_bound(problem.cost, diagonal=problem.steps == "diagonal")
        tau = torch.where(bound > 0, problem.step_scale / (factor**2 * bound), 0).expand_as(y)
    else:
        tau = torch.full_like(y, problem.steps)

    def minimiser(dual: Tensor) -> Tensor:
        scores = -(problem.cost + factor * operator.adjoint(dual)) / weight
        return scores.softmax(1) if problem.smoothing == "entropy" else scores

    for extrapolation in (0.0, 0.4, 0.0, 0.9):
        x = y + extrapolation * (y - before)
        before, y_old = y, y
        y = dual_set.project(x + tau * factor * operator.apply(minimiser(x)))
        criterion = ((x - y) * (y - y_old) * torch.where(tau > 0, 1 / tau, 0)).flatten(1).sum(1)
        found = torch.tensor([image.step(extrapolation) for image in images], dtype=torch.float64)
        assert_close(found, criterion, 1e-9, f"<x - y+, (y+ - y) / tau> of the fast step with {where}")
        duals = torch.stack([image.dual for image in images])
        assert_close(duals, y, 1e-9, f"dual variables of the fast step with {where}")
    s = minimiser(y)
    if problem.smoothing == "entropy":
        smooth = torch.where(s > 0, s * problem.cost, 0) + weight * torch.special.xlogy(s, s)
    else:
        smooth = (s + problem.cost / weight).square() * (weight / 2)
    smooth = smooth.sum(1) if problem.roi is None else smooth.sum(1) * problem.roi
    z = factor * operator.apply(s)
    for number, image in enumerate(images):
        result = image.certify()
        assert_close(result.minimiser, s[number], 1e-9, f"fast minimiser with {where}")
        for name, value in (
            ("smooth", smooth.flatten(1).sum(1)),
            ("support", dual_set.support(z)),
            ("fenchel_gap", dual_set.fenchel_gap(z, y)),
        ):
            found = torch.tensor(getattr(result, name), dtype=torch.float64)
            assert_close(found, value[number], 1e-9, f"fast {name} with {where}")


_FORM_CHECKS: Mapping[type[Form], tuple[str, ...]] = {
    Graph: ("check_graph",),
    GridGraph: ("check_grid_graph",),
    Saddle: (
        "check_saddle_adjoint",
        "check_saddle_projection",
        "check_saddle_support",
        "check_saddle_norm",
        "check_saddle_gap",
        "check_saddle_steps",
        "check_saddle_tangent",
        "check_saddle_images",
        "check_saddle_fast",
    ),
    Concave: ("check_concave", "check_concave_images"),
    Projection: ("check_projection",),
}
