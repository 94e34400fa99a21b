"""Conformance checks that plugin authors inherit. Needs pytest, which the extra ``regloss[dev]`` brings.

Subclass the suite of your component's kind in a test module, say how to make the component, and pytest runs every check
of the suite on it. A suite's docstring begins with what you write; its attributes state facts about your component, and
are overridden where the default does not hold. Further tests of your own go into the same class.

Each suite is divided by banners: what must be defined, what might be, and the checks, which should not be redefined.
The name of a subclass must begin with ``Test``, or pytest does not collect it; the suites themselves are not collected.
For assertions that show the values compared, put this into your ``conftest.py``, before anything imports the module:

    pytest.register_assert_rewrite("regloss.testing")

>>> from regloss import TotalVariation
>>> class TestMyPrior(RegularizerConformance):
...     nonnegative = True
...
...     def make(self):
...         return TotalVariation(weight=2.0)
>>> TestMyPrior().test_weight_scales_the_energy(ndim=2)  # pytest calls this one and some thirty others
"""

from __future__ import annotations

import copy
import dataclasses
import math
import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from regloss import grid, registry
from regloss.alternation import alternate
from regloss.ascent import Ascent, Images
from regloss.batch import Batch
from regloss.data_term import DataTerm
from regloss.dataset import IGNORE, Dataset
from regloss.divergence import Divergence
from regloss.errors import MissingForm, ReglossError, UsageError
from regloss.outer_loop import OuterLoop, Proposal
from regloss.region_force import RegionForce
from regloss.regularizer import Concave, Form, Graph, GridGraph, Projection, Regularizer, Saddle, SaddleBlock, Term
from regloss.solver import Solution, Solver, Status, linear_energy, negative_entropy, negotiate, one_hot, solve

__all__ = [
    "DataTermConformance",
    "DatasetConformance",
    "DivergenceConformance",
    "NetworkConformance",
    "OuterLoopConformance",
    "RegionForceConformance",
    "RegularizerConformance",
    "SolverConformance",
]

SIZES: Mapping[int, tuple[int, ...]] = {1: (9,), 2: (6, 7), 3: (4, 5, 6)}
"""Grid by number of spatial axes: small, no two axes alike, and with an interior when the border is cut off."""

# --------------------------------------------------------------------------------------------------------------------
# What the suites share


class _Suite:
    """Parametrises each check by those of its arguments that name a table of the class.

    It is no abstract base class, because pytest passes over abstract classes in silence: without `make`, all checks
    fail instead.
    """

    tables: ClassVar[Mapping[str, str]] = {}
    """Attribute that holds the values, by the argument that takes them."""

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Called by pytest for each check; a class attribute, unlike a decorator's table, can be overridden."""
        for argument, attribute in self.tables.items():
            if argument in metafunc.fixturenames:
                values = list(getattr(self, attribute))
                metafunc.parametrize(argument, values, ids=[f"{argument}={_short(value)}" for value in values])


def _no_make(suite: _Suite) -> NotImplementedError:
    return NotImplementedError(f"{type(suite).__name__} must define make(self), which gives the component to check.")


def _short(value: Any) -> str:
    return str(value).removeprefix("torch.").replace(" ", "")


def _random(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Standard normal numbers that do not depend on, nor change, torch's global generator."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def _random_labels(*shape: int, classes: int, seed: int) -> Tensor:
    return torch.randint(classes, shape, generator=torch.Generator().manual_seed(seed))


def _random_image(batch: int, channels: int, size: Sequence[int], seed: int = 0) -> Tensor:
    """(B, C, *S) float64 in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(batch, channels, *size, generator=generator, dtype=torch.float64)


def _irregular_region(batch: int, size: Sequence[int]) -> Tensor:
    """(B, *S) bool with about two thirds of the pixels, ragged, different in each image."""
    return _random(batch, *size, seed=71) > -0.43


def _inner(values: Tensor, size: Sequence[int]) -> Tensor:
    """View of ``values`` (..., *S) without the border."""
    return grid.pick(values, tuple(slice(1, -1) for _ in size))


def _box_region(batch: int, size: Sequence[int]) -> Tensor:
    """(B, *S) bool: everything but the border."""
    region = torch.zeros(batch, *size, dtype=torch.bool)
    _inner(region, size).fill_(True)
    return region


def _dot(first: Tensor, second: Tensor) -> Tensor:
    """(B,) inner products of each image's entries."""
    return (first * second).flatten(1).sum(1)


def _close(actual: Tensor, expected: Tensor, tolerance: float, what: str) -> None:
    """Equal to ``tolerance``, relative for large numbers and absolute for small ones."""
    actual, expected = actual.detach().double().cpu(), expected.detach().double().cpu()
    torch.testing.assert_close(
        actual, expected, rtol=tolerance, atol=tolerance, msg=lambda text: f"{what}\n{text}", equal_nan=True
    )


def _at_most(smaller: Tensor, larger: Tensor, tolerance: float, what: str) -> None:
    slack = tolerance * (1 + larger.abs().nan_to_num(posinf=0.0, neginf=0.0))
    assert bool((smaller <= larger + slack).all()), f"{what}\n{smaller.tolist()} should be at most {larger.tolist()}"


def _directional(function: Callable[[Tensor], Tensor], at: Tensor, direction: Tensor, step: float = 1e-6) -> Tensor:
    """Central difference (B,) of ``function``, which gives (B,), along ``direction``."""
    with torch.no_grad():
        return (function(at + step * direction) - function(at - step * direction)) / (2 * step)


def _gradient(function: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    """Gradient of the sum of ``function``, which gives (B,)."""
    variable = at.detach().clone().requires_grad_()
    (gradient,) = torch.autograd.grad(function(variable).sum(), variable)
    return gradient


class _Unchanged:
    """Context in which none of the given tensors, arrays or objects may be modified."""

    def __init__(self, **given: Any) -> None:
        self.given = {name: value for name, value in given.items() if value is not None}
        self.copies = copy.deepcopy(self.given)

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if kind is not None:
            return
        for name, value in self.given.items():
            assert torch.equal(value, self.copies[name]), f"the argument {name} was modified"


def available_devices() -> tuple[str, ...]:
    """The CPU, and the GPU where there is one."""
    return ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)


# --------------------------------------------------------------------------------------------------------------------
# Regularizers


class RegularizerConformance(_Suite):
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
        raise _no_make(self)

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
        return _random_image(2, self.channels, SIZES[ndim])

    def probabilities(self, ndim: int) -> Tensor:
        """Probabilities (2, K, *S), float64 and above 0, at which the energy is finite."""
        return _random(2, self.classes, *SIZES[ndim], seed=1).mul(1.5).softmax(1)

    def labels(self, ndim: int) -> Tensor:
        """Labels (2, *S), int64, at which the energy is finite."""
        return _random_labels(2, *SIZES[ndim], classes=self.classes, seed=2)

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
        """Bound terms: everywhere, and in a ragged region of interest."""
        yield self.make().bind(self.image(ndim)), "everywhere"
        region = _irregular_region(2, SIZES[ndim])
        yield self.make().bind(self.image(ndim), region), "in a region of interest"

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
        _close(again.bind(image).energy(probabilities), expected, 1e-12, "energy after pickling")

    def test_energy_is_one_number_per_image(self, ndim: int) -> None:
        """Energy, penalty and violation are (B,), finite where the energy is."""
        for term, where in self._terms(ndim):
            probabilities = self.probabilities(ndim)
            for name in ("energy", "penalty", "violation"):
                value = getattr(term, name)(probabilities)
                assert value.shape == (2,), f"{name} {where} must have the shape (B,); got {tuple(value.shape)}"
                assert bool(value.isfinite().all()), f"{name} {where} is {value.tolist()}"
            if self.nonnegative:
                _at_most(torch.zeros(2), term.energy(probabilities), 0.0, f"energy {where} is negative")

    def test_energy_is_computed_in_float32_at_least(self, dtype: torch.dtype) -> None:
        """Half-precision input gives the float32 energy of the same numbers."""
        ndim = self.spatial[0]
        image, probabilities = self.image(ndim).to(dtype), self.probabilities(ndim).to(dtype)
        energy = self.make().bind(image).energy(probabilities)
        expected = torch.float64 if dtype == torch.float64 else torch.float32
        assert energy.dtype == expected, f"the energy of {dtype} input must be {expected}; got {energy.dtype}"
        exact = self.make().bind(image.double()).energy(probabilities.double())
        _close(energy, exact, max(1e-5, self.tolerance), f"energy of {dtype} input")

    def test_energy_does_not_depend_on_autocast(self) -> None:
        """Mixed precision is for networks."""
        ndim = self.spatial[0]
        image, probabilities = self.image(ndim).float(), self.probabilities(ndim).float()
        expected = self.make().bind(image).energy(probabilities)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            energy = self.make().bind(image).energy(probabilities)
        _close(energy, expected, 1e-5, "energy under autocast")

    def test_energy_is_the_same_on_every_device(self, device: str) -> None:
        """The energy stays on the probabilities' device, and so do the tensors of the graphs."""
        ndim = self.spatial[0]
        image, probabilities = self.image(ndim), self.probabilities(ndim)
        expected = self.make().bind(image).energy(probabilities)
        term = self.make().bind(image.to(device))
        energy = term.energy(probabilities.to(device))
        assert energy.device.type == device
        _close(energy, expected, max(1e-9, self.tolerance), f"energy on {device}")
        for kind in {Graph, GridGraph} & set(term.regularizer.forms):
            form: Any = term.form(kind)
            assert form.weights.device.type == device

    def test_energy_of_labels_follows_the_definition(self, ndim: int) -> None:
        """On one-hot input every relaxation of a discrete energy equals it."""
        if not self.discrete:
            pytest.skip("discrete = False: it is no relaxation of an energy of labels")
        image, labels = self.image(ndim), self.labels(ndim)
        energy = self.make().bind(image).energy(one_hot(labels, self.classes, torch.float64))
        _close(energy, self.discrete_energy(image, labels), self.tolerance, "energy of labels")

    def test_penalty_gradient_matches_finite_differences(self, ndim: int) -> None:
        """Along three directions that keep the sum over classes, in float64."""
        for term, where in self._terms(ndim):
            probabilities = self.probabilities(ndim)
            gradient = _gradient(term.penalty, probabilities)
            for seed in range(3):
                direction = _random(*probabilities.shape, seed=10 + seed)
                direction = direction - direction.mean(1, keepdim=True)
                expected = _directional(term.penalty, probabilities, direction)
                _close(_dot(gradient, direction), expected, max(1e-6, self.tolerance), f"derivative {where}")

    def test_penalty_gradient_is_finite_at_flat_and_hard_probabilities(self, ndim: int) -> None:
        """Where norms have no derivative, a subgradient will do; NaN would destroy a training."""
        probabilities = self.probabilities(ndim)
        flat = torch.full_like(probabilities, 1 / self.classes)
        hard = one_hot(self.labels(ndim), self.classes, torch.float64)
        for term, where in self._terms(ndim):
            for name, at in (("flat", flat), ("one-hot", hard)):
                gradient = _gradient(term.penalty, at)
                assert bool(gradient.isfinite().all()), f"the gradient at {name} probabilities {where} is not finite"

    def test_arguments_are_not_modified(self, ndim: int) -> None:
        """Neither by binding, nor by evaluating, nor by any function of any form."""
        image, region = self.image(ndim), _irregular_region(2, SIZES[ndim])
        probabilities, labels = self.probabilities(ndim), self.labels(ndim)
        with _Unchanged(image=image, roi=region, probabilities=probabilities, labels=labels):
            term = self.make().bind(image, region)
            term.energy(probabilities), term.penalty(probabilities), term.violation(probabilities)
            for kind in term.regularizer.forms:
                form = term.form(kind)
                if isinstance(form, Graph | GridGraph):
                    form.cut(labels)
                elif isinstance(form, Saddle):
                    for block in form.blocks:
                        dual = block.apply(probabilities)
                        with _Unchanged(dual=dual):
                            block.project(dual), block.adjoint(dual), block.support(dual)
                elif isinstance(form, Concave):
                    form.value(probabilities), form.supergradient(probabilities)
                elif isinstance(form, Projection):
                    form.project(probabilities)

    def test_batch_is_one_by_one(self, ndim: int) -> None:
        """Images of a batch do not see each other."""
        image, region = self.image(ndim), _irregular_region(2, SIZES[ndim])
        probabilities = self.probabilities(ndim)
        together = self.make().bind(image, region).energy(probabilities)
        alone = [self.make().bind(image[[i]], region[[i]]).energy(probabilities[[i]]) for i in range(2)]
        _close(together, torch.cat(alone), max(1e-12, self.tolerance), "energy of a batch")

    def test_region_of_interest_is_a_crop(self, ndim: int) -> None:
        """A box of interest gives what the images cropped to it give, whatever lies outside."""
        size = SIZES[ndim]
        image, probabilities, region = self.image(ndim), self.probabilities(ndim), _box_region(2, size)
        expected = self.make().bind(_inner(image, size)).energy(_inner(probabilities, size))
        inside = region.unsqueeze(1)
        for name, shown in (("", image), (" after a change outside", torch.where(inside, image, 1 - image))):
            kept = torch.where(inside, probabilities, probabilities.roll(1, 1)) if name else probabilities
            energy = self.make().bind(shown, region).energy(kept)
            _close(energy, expected, max(1e-10, self.tolerance), f"energy in a box of interest{name}")

    def test_region_that_holds_everything_is_none(self, ndim: int) -> None:
        """``roi`` all True changes nothing."""
        image, probabilities = self.image(ndim), self.probabilities(ndim)
        everywhere = torch.ones(2, *SIZES[ndim], dtype=torch.bool)
        expected = self.make().bind(image).energy(probabilities)
        _close(self.make().bind(image, everywhere).energy(probabilities), expected, 1e-12, "energy with roi all True")

    def test_classes_may_be_renamed(self, ndim: int) -> None:
        """Where ``symmetric``, the order of the classes does not matter."""
        if not self.symmetric:
            pytest.skip("symmetric = False: its classes are not alike")
        term, probabilities = self.make().bind(self.image(ndim)), self.probabilities(ndim)
        order = torch.arange(self.classes).roll(1)
        energy = term.energy(probabilities[:, order])
        _close(energy, term.energy(probabilities), max(1e-10, self.tolerance), "energy after renaming the classes")

    def test_weight_scales_the_energy(self, ndim: int) -> None:
        """Energy and penalty are proportional to the weight, down to 0."""
        regularizer, image, probabilities = self.make(), self.image(ndim), self.probabilities(ndim)
        term = regularizer.bind(image)
        for factor in (2.5, 0.0):
            other = dataclasses.replace(regularizer, weight=factor * regularizer.weight).bind(image)  # type: ignore[type-var]
            for name in ("energy", "penalty"):
                expected = factor * getattr(term, name)(probabilities)
                _close(getattr(other, name)(probabilities), expected, 1e-10, f"{name} with {factor} times the weight")

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
        """The regularizer's ``forms`` and the term's builders name the same; each builds what it says."""
        for term, where in self._terms(ndim):
            offered = set(term.regularizer.forms)
            assert offered == set(term.builders()), f"forms and builders() differ {where}"
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
        for term, where in self._terms(ndim):
            graph = term.form(Graph)
            energy = term.energy(one_hot(labels, self.classes, torch.float64))
            _close(graph.cut(labels), energy, self.tolerance, f"cut of the graph {where}")
            assert bool((graph.weights >= 0).all()), f"negative weight {where}"
            assert graph.edges.dtype == torch.int64
            edges = graph.edges.sort(1).values.tolist()
            assert len({*map(tuple, edges)}) == len(edges), f"an edge stands there twice {where}"
            assert all(p != q for p, q in edges), f"an edge joins a pixel with itself {where}"

    def check_grid_graph(self, ndim: int) -> None:
        """Cut and energy of labels agree, no weight is negative or leaves the region, no pair stands there twice."""
        labels = self.labels(ndim)
        for term, where in self._terms(ndim):
            graph = term.form(GridGraph)
            energy = term.energy(one_hot(labels, self.classes, torch.float64))
            _close(graph.cut(labels), energy, self.tolerance, f"cut of the grid graph {where}")
            assert graph.weights.shape == (2, len(graph.offsets), *SIZES[ndim])
            assert bool((graph.weights >= 0).all()), f"negative weight {where}"
            both = {*graph.offsets, *(tuple(-step for step in offset) for offset in graph.offsets)}
            assert len(both) == 2 * len(graph.offsets), f"a pair stands there twice {where}"
            region = grid.full_roi(term.roi, (2, *SIZES[ndim]), graph.weights.device)
            for number, offset in enumerate(graph.offsets):
                outside = ~grid.pairs_inside(region, offset)
                assert float(graph.weights[:, number][outside].sum()) == 0, f"a pair leaves the grid or region {where}"

    def _blocks(self, ndim: int) -> Iterator[tuple[Term, SaddleBlock, Tensor, str]]:
        """Every block of the saddle form, with a random dual variable."""
        for term, where in self._terms(ndim):
            for number, block in enumerate(term.form(Saddle).blocks):
                shape = block.apply(self.probabilities(ndim)).shape
                yield term, block, _random(*shape, seed=20 + number), f"in block {number} {where}"

    def check_saddle_adjoint(self, ndim: int) -> None:
        """<K x, y> = <x, K^T y>, and K is linear."""
        for _, block, dual, where in self._blocks(ndim):
            first = _random(*self.probabilities(ndim).shape, seed=30)
            second = _random(*first.shape, seed=31)
            back = block.adjoint(dual)
            assert back.shape == first.shape, f"the adjoint gives the shape {tuple(back.shape)} {where}"
            _close(_dot(block.apply(first), dual), _dot(first, back), 1e-10, f"<K x, y> and <x, K^T y> {where}")
            _close(
                block.apply(2 * first - 3 * second),
                2 * block.apply(first) - 3 * block.apply(second),
                1e-10,
                f"K is not linear {where} (constants belong into shift)",
            )

    def check_saddle_projection(self, ndim: int) -> None:
        """Idempotent, and at an obtuse angle to the set: what defines a projection on a convex set."""
        for _, block, dual, where in self._blocks(ndim):
            other = block.project(_random(*dual.shape, seed=32))
            for scale in (0.1, 1.0, 30.0):
                outside = scale * dual
                inside = block.project(outside)
                assert inside.shape == dual.shape
                _close(block.project(inside), inside, 1e-10, f"projecting twice is not projecting once {where}")
                angle = _dot(outside - inside, other - inside)
                _at_most(angle, torch.zeros(2), 1e-8 * float(1 + outside.abs().sum()), f"<y - Py, z - Py> > 0 {where}")

    def check_saddle_support(self, ndim: int) -> None:
        """The support function is the largest <z, y> over the set, and adds up to the energy."""
        for term, block, dual, where in self._blocks(ndim):
            at = block.apply(self.probabilities(ndim)) - block.shift
            support = block.support(at)
            assert support.shape == (2,), f"support must give (B,) {where}; got {tuple(support.shape)}"
            for scale in (0.1, 1.0, 30.0):
                _at_most(_dot(at, block.project(scale * dual)), support, 1e-9, f"<z, P y> above the support {where}")
            # The projection of a far point in the direction z maximises <z, y> in the limit.
            far = at * (1e8 / at.abs().max().clamp(min=1e-30))
            _close(_dot(at, block.project(far)), support, 1e-5, f"the support is not attained {where}")
            value = term.form(Saddle).value(self.probabilities(ndim))
            energy = term.energy(self.probabilities(ndim))
            _close(value, energy, max(1e-10, self.tolerance), "value of the saddle form and energy")

    def check_saddle_norm(self, ndim: int) -> None:
        """The stated bound is not below what power iteration finds; solvers take their steps from it."""
        for _, block, _, where in self._blocks(ndim):
            vector = _random(*self.probabilities(ndim).shape, seed=33)
            length = torch.zeros(2, dtype=torch.float64)
            for _ in range(60):
                vector = vector / _dot(vector, vector).sqrt().reshape(-1, *[1] * (vector.ndim - 1)).clamp(min=1e-30)
                applied = block.apply(vector)
                length = _dot(applied, applied).sqrt()
                vector = block.adjoint(applied)
            _at_most(length, torch.full_like(length, block.norm), 1e-9, f"the norm exceeds its bound {where}")

    def check_saddle_gap(self, ndim: int) -> None:
        """support(z) - <z, y>, for y in the set, is what the block's own sum gives, and never negative."""
        for _, block, dual, where in self._blocks(ndim):
            at = block.residual(self.probabilities(ndim))
            for scale in (0.1, 1.0, 30.0):
                inside = block.project(scale * dual)
                gap = block.gap(at, inside)
                assert gap.shape == (2,), f"gap must give (B,) {where}; got {tuple(gap.shape)}"
                _close(gap, block.support(at) - _dot(at, inside), 1e-9, f"gap and support(z) - <z, y> {where}")
                _at_most(torch.zeros(2), gap, 1e-9, f"the gap is negative {where}")

    def check_saddle_steps(self, ndim: int) -> None:
        """K K^T <= diag(r) for all blocks together, by power iteration; so steps of 2 entropy / r are safe."""
        for term, where in self._terms(ndim):
            form = term.form(Saddle)
            for diagonal in (True, False):
                bounds = form.diagonal_bound(self.probabilities(ndim), diagonal=diagonal)
                vector = _random(*self.probabilities(ndim).shape, seed=34)
                length = torch.zeros(2, dtype=torch.float64)
                for _ in range(60):
                    vector = vector / _dot(vector, vector).sqrt().reshape(-1, *[1] * (vector.ndim - 1)).clamp(min=1e-30)
                    back, length = torch.zeros_like(vector), torch.zeros(2, dtype=torch.float64)
                    for block, bound in zip(form.blocks, bounds, strict=True):
                        applied = block.apply(vector)
                        assert bool((applied.abs()[(bound <= 0).expand_as(applied)] == 0).all()), (
                            f"a bound of 0 {where}"
                        )
                        scaled = applied / bound.clamp(min=1e-30)
                        length = length + _dot(applied, scaled)
                        back = back + block.adjoint(scaled)
                    vector = back
                _at_most(length, torch.ones_like(length), 1e-9, f"steps taken from r would be too long {where}")

    def check_saddle_face(self, ndim: int) -> None:
        """Where a block tells its face: Q is an orthogonal projection, and the curvature is not negative."""
        for _, block, dual, where in self._blocks(ndim):
            if block.face is None:
                continue
            for scale in (0.1, 30.0):
                inside = block.project(scale * dual)
                face = block.face(block.residual(self.probabilities(ndim)), inside)
                first, second = _random(*dual.shape, seed=35), _random(*dual.shape, seed=36)
                once = face.project(first)
                _close(face.project(once), once, 1e-10, f"projecting on the face twice is not projecting once {where}")
                _close(_dot(once, second), _dot(first, face.project(second)), 1e-10, f"Q is not symmetric {where}")
                assert bool((torch.as_tensor(face.curvature) >= 0).all()), f"negative curvature {where}"

    def check_saddle_select(self, ndim: int) -> None:
        """Where a block can leave images out: what remains acts on them as before."""
        for _, block, dual, where in self._blocks(ndim):
            if block.select is None:
                continue
            images, probabilities = torch.tensor([1]), self.probabilities(ndim)
            alone = block.select(images)
            _close(alone.residual(probabilities[1:]), block.residual(probabilities)[1:], 1e-12, f"K of image 1 {where}")
            _close(alone.adjoint(dual[1:]), block.adjoint(dual)[1:], 1e-12, f"K^T of image 1 {where}")
            _close(alone.project(dual[1:]), block.project(dual)[1:], 1e-12, f"projection of image 1 {where}")

    def check_saddle_compiled(self, ndim: int) -> None:
        """Where a block offers compiled steps: they are those that its functions make, and so are the values."""
        for term, block, dual, where in self._blocks(ndim):
            if block.compiled is None:
                continue
            cost = _random(*self.probabilities(ndim).shape, seed=37)
            cost[:, 0, ..., 0] = float("inf")
            start = block.project(0.3 * dual)
            for smoothing, given, steps, factor in (
                ("entropy", start, "diagonal", 1.0),
                ("entropy", None, "norm", 0.6),
                ("square", start, 0.05, 1.0),
            ):
                if smoothing == "square":
                    cost = cost.nan_to_num(posinf=0.5)
                ascent = Ascent(cost, smoothing, 0.7, steps, given, term.roi, factor)  # type: ignore[arg-type]
                images = block.compiled(ascent)
                if images is not None:
                    _compare_ascents(block, ascent, images, torch.zeros_like(start), f"{steps}, {smoothing}, {where}")

    def check_concave(self, ndim: int) -> None:
        """The value is the energy, and lies below its tangents on the simplex, but for the stated curvature."""
        for term, where in self._terms(ndim):
            form = term.form(Concave)
            first = self.probabilities(ndim)
            value, slope = form.value(first), form.supergradient(first)
            _close(value, term.energy(first), max(1e-10, self.tolerance), f"value of the concave form {where}")
            assert slope.shape == first.shape
            for seed in range(5):
                scale = 0.3 * 2.0**seed
                second = (first.log() + scale * _random(*first.shape, seed=40 + seed)).softmax(1)
                tangent = value + _dot(slope, second - first)
                tangent = tangent + form.curvature / 2 * (second - first).square().flatten(1).sum(1)
                _at_most(
                    form.value(second), tangent, max(1e-10, self.tolerance), f"the value exceeds a tangent {where}"
                )
            direction = first.roll(1, 1) - first
            expected = _directional(form.value, first, direction)
            _close(_dot(slope, direction), expected, max(1e-6, self.tolerance), f"supergradient {where}")
            if form.quadratic:
                linear = form.supergradient(torch.zeros_like(first))
                half = _dot(linear + slope, first) / 2
                _close(half, value, max(1e-10, self.tolerance), f"the concave form is not quadratic {where}")

    def check_concave_select(self, ndim: int) -> None:
        """Where the concave form can leave images out: what remains is as before."""
        for term, where in self._terms(ndim):
            form = term.form(Concave)
            if form.select is None:
                continue
            images, probabilities = torch.tensor([1]), self.probabilities(ndim)
            alone, kept = form.select(images), probabilities[1:]
            limit = max(1e-10, self.tolerance)
            _close(alone.value(kept), form.value(probabilities)[1:], limit, f"value of image 1 alone {where}")
            slope = form.supergradient(probabilities)[1:]
            _close(alone.supergradient(kept), slope, limit, f"supergradient of image 1 alone {where}")

    def check_projection(self, ndim: int) -> None:
        """What was projected violates nothing; an exact projection is idempotent."""
        for term, where in self._terms(ndim):
            form = term.form(Projection)
            inside = form.project(_random(2, self.classes, *SIZES[ndim], seed=50).mul(2).softmax(1))
            assert inside.shape == (2, self.classes, *SIZES[ndim])
            assert bool(term.energy(inside).isfinite().all()), f"the projection violates the constraint {where}"
            if form.exact:
                _close(form.project(inside), inside, max(1e-8, self.tolerance), f"projecting twice {where}")


def _compare_ascents(block: SaddleBlock, ascent: Ascent, images: Images, blank: Tensor, where: str) -> None:
    """A few steps of ``images`` with those made of the block's functions."""
    y = before = blank if ascent.start is None else ascent.start
    if isinstance(ascent.steps, str):
        (bound,) = Saddle((block,)).diagonal_bound(ascent.cost, diagonal=ascent.steps == "diagonal")
        tau = torch.where(bound > 0, ascent.pace / (ascent.factor**2 * bound), 0).expand_as(y)
    else:
        tau = torch.full_like(y, ascent.steps)

    def respond(dual: Tensor) -> Tensor:
        scores = -(ascent.cost + ascent.factor * block.adjoint(dual)) / ascent.strength
        return scores.softmax(1) if ascent.smoothing == "entropy" else scores

    for push in (0.0, 0.4, 0.0, 0.9):
        x = y + push * (y - before)
        before, y_old = y, y
        y = block.project(x + tau * ascent.factor * block.apply(respond(x)))
        uphill = ((x - y) * (y - y_old) * torch.where(tau > 0, 1 / tau, 0)).flatten(1).sum(1)
        found = torch.tensor([image.step(push) for image in images], dtype=torch.float64)
        _close(found, uphill, 1e-9, f"<x - y+, (y+ - y) / tau> of the compiled step with {where}")
        _close(
            torch.stack([image.dual for image in images]), y, 1e-9, f"dual variables of the compiled step with {where}"
        )
    s = respond(y)
    if ascent.smoothing == "entropy":
        smooth = torch.where(s > 0, s * ascent.cost, 0) + ascent.strength * torch.special.xlogy(s, s)
    else:
        smooth = (s + ascent.cost / ascent.strength).square() * (ascent.strength / 2)
    smooth = smooth.sum(1) if ascent.roi is None else smooth.sum(1) * ascent.roi
    z = ascent.factor * block.apply(s)
    for number, image in enumerate(images):
        certified = image.certify()
        _close(certified.minimiser, s[number], 1e-9, f"compiled minimiser with {where}")
        for name, value in (
            ("smooth", smooth.flatten(1).sum(1)),
            ("support", block.support(z)),
            ("slack", block.gap(z, y)),
        ):
            found = torch.tensor(getattr(certified, name), dtype=torch.float64)
            _close(found, value[number], 1e-9, f"compiled {name} with {where}")


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
        "check_saddle_face",
        "check_saddle_select",
        "check_saddle_compiled",
    ),
    Concave: ("check_concave", "check_concave_select"),
    Projection: ("check_projection",),
}


# --------------------------------------------------------------------------------------------------------------------
# Solvers


class SolverConformance(_Suite):
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
        raise _no_make(self)

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
        return _random_image(2, 3, SIZES[ndim])

    def _unary(self, ndim: int, classes: int = 3) -> Tensor:
        return _random(2, classes, *SIZES[ndim], seed=1)

    def _fixed(self, ndim: int, classes: int = 3) -> Tensor:
        """Seeds on about a tenth of the pixels, -1 elsewhere."""
        shape = (2, *SIZES[ndim])
        labels = _random_labels(*shape, classes=classes, seed=2)
        return torch.where(_random(*shape, seed=3) > 1.3, labels, -1)

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
        _close(probabilities.sum(1), torch.ones(2, *SIZES[ndim]), self.tolerance, "sum of probabilities")
        chosen = probabilities.gather(1, solution.labels.unsqueeze(1)).squeeze(1)
        _close(chosen, probabilities.amax(1), self.tolerance, "the labels are not the most probable ones")
        if self.discrete:
            assert torch.equal(probabilities, one_hot(solution.labels, 3, probabilities.dtype))

    def test_energy_is_that_of_the_solution(self, ndim: int, weight: float) -> None:
        """The stated energy is <u, s> + entropy <s, log s> + R(s), and not below the stated bound."""
        image, unary = self._image(ndim), self._unary(ndim)
        for region in (None, _irregular_region(2, SIZES[ndim])):
            term = self.regularizer(weight).bind(image, region)
            solution = self._solve(term, unary)
            energy = self._energy(term, unary, solution.probabilities)
            _close(solution.energy, energy, self.tolerance, "stated energy and energy of the solution")
            _at_most(solution.bound, solution.energy, self.tolerance, "the lower bound exceeds the energy")

    def test_no_regularizer_means_no_coupling(self, ndim: int) -> None:
        """With weight 0 every pixel goes its own way: the cheapest label, or softmax(-unary / entropy)."""
        term, unary = self.regularizer(0.0).bind(self._image(ndim)), self._unary(ndim)
        solution = self._solve(term, unary)
        if self.entropy > 0:
            expected = (-unary / self.entropy).softmax(1)
        else:
            expected = one_hot(unary.argmin(1), 3, torch.float64)
        _close(solution.energy, self._energy(term, unary, expected), self.tolerance, "energy without a regularizer")

    def test_no_labelling_is_better_than_claimed(self, classes: int, weight: float) -> None:
        """All labellings of 3x3 images, free and with seeds: no bound above, no discrete energy below their best."""
        batch, size = 3, (3, 3)
        image = _random_image(batch, 3, size, seed=5)
        unary = _random(batch, classes, *size, seed=6)
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
            _at_most(solution.bound, best, self.tolerance, f"the bound exceeds the least energy of labels, {name}")
            if self.discrete:
                _at_most(best, solution.energy, self.tolerance, f"the energy is too good to be true, {name}")
            if self.exact_for_two and classes == 2 and self.entropy == 0:
                _close(solution.energy, best, self.tolerance, f"least energy of two labels, {name}")

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
        start = _random_labels(2, *SIZES[ndim], classes=3, seed=7)
        for fixed in (None, self._fixed(ndim)):
            solution = self._solve(term, unary, fixed=fixed, warm=start)
            kept = start if fixed is None else torch.where(fixed >= 0, fixed, start)
            energy = self._energy(term, unary, one_hot(kept, 3, torch.float64))
            _at_most(solution.energy, energy, self.tolerance, "the energy rose above that of the start")
            known = ~solution.start_energy.isnan()
            _close(solution.start_energy[known], energy[known], self.tolerance, "start_energy")

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
        _close(solution.probabilities[inside], expected[inside], self.tolerance, "probabilities of fixed pixels")

    def test_allowed_labels_are_respected(self, ndim: int, weight: float) -> None:
        """Free pixels take allowed labels only, also from a start that is not allowed; seeds may be others."""
        allowed = torch.tensor([[True, False, True], [False, True, True]])
        fixed = self._fixed(ndim)
        start = torch.ones(2, *SIZES[ndim], dtype=torch.int64)
        for warm in (None, start):
            term = self.regularizer(weight).bind(self._image(ndim))
            solution = self._solve(term, self._unary(ndim), allowed=allowed, fixed=fixed, warm=warm)
            labels = torch.where(fixed >= 0, -1, solution.labels)
            assert not bool((labels[0] == 1).any())
            assert not bool((labels[1] == 0).any())
            assert torch.equal(solution.labels[fixed >= 0], fixed[fixed >= 0])

    def test_region_of_interest_is_a_crop(self, ndim: int, weight: float) -> None:
        """In a box of interest the problem is that of the images cropped to it, whatever the unaries outside."""
        size = SIZES[ndim]
        image, unary, fixed = self._image(ndim), self._unary(ndim), self._fixed(ndim)
        region = _box_region(2, size)
        term = self.regularizer(weight).bind(image, region)
        cropped = self.regularizer(weight).bind(_inner(image, size))
        solution = self._solve(term, unary, fixed=fixed)
        energy = self._energy(cropped, _inner(unary, size), _inner(solution.probabilities, size))
        _close(solution.energy, energy, self.tolerance, "energy in a box of interest, and of its solution in a crop")
        if not self.local:
            alone = self._solve(cropped, _inner(unary, size), fixed=_inner(fixed, size))
            _close(solution.energy, alone.energy, self.tolerance, "energy in a box of interest, and of a crop")
        loud = torch.where(region.unsqueeze(1), unary, 50 * unary.roll(1, 1))
        changed = self._solve(term, loud, fixed=torch.where(region, fixed, 1))
        _close(changed.energy, solution.energy, self.tolerance, "energy in a box of interest after a change outside")
        for labels in (solution.labels, changed.labels):
            assert int(labels.min()) >= 0
            assert int(labels.max()) < 3

    def test_batch_is_one_by_one(self, ndim: int, weight: float) -> None:
        """Images of a batch do not see each other."""
        image, unary, fixed = self._image(ndim), self._unary(ndim), self._fixed(ndim)
        allowed = torch.tensor([[True, False, True], [True, True, True]])
        region = _irregular_region(2, SIZES[ndim])
        regularizer = self.regularizer(weight)
        together = self._solve(regularizer.bind(image, region), unary, fixed=fixed, allowed=allowed)
        for i in range(2):
            term = regularizer.bind(image[[i]], region[[i]])
            alone = self._solve(term, unary[[i]], fixed=fixed[[i]], allowed=allowed[[i]])
            _close(alone.energy, together.energy[[i]], self.tolerance, f"energy of image {i} alone and in a batch")
            assert alone.status[0] is together.status[i]

    def test_restarting_is_not_worse(self, ndim: int, weight: float) -> None:
        """From its own solution, given as such and by its state, a solver ends no higher."""
        term, unary = self.regularizer(weight).bind(self._image(ndim)), self._unary(ndim)
        first = self._solve(term, unary)
        starts = [first] if first.state is None else [first, first.state]
        for start in starts:
            again = self._solve(term, unary, warm=start)
            _at_most(again.energy, first.energy, self.tolerance, "the energy rose from one solve to the next")

    def test_arguments_are_not_modified(self, ndim: int) -> None:
        """Unaries, seeds, allowed labels, the start and the region are read only."""
        image, unary, fixed = self._image(ndim), self._unary(ndim), self._fixed(ndim)
        start = _random_labels(2, *SIZES[ndim], classes=3, seed=7)
        allowed = torch.ones(2, 3, dtype=torch.bool)
        region = _irregular_region(2, SIZES[ndim])
        with _Unchanged(image=image, unary=unary, fixed=fixed, allowed=allowed, warm=start, roi=region):
            term = self.regularizer(0.3).bind(image, region)
            self._solve(term, unary, fixed=fixed, allowed=allowed, warm=start)
        first = self._solve(term, unary)
        if isinstance(first.state, Tensor):
            with _Unchanged(state=first.state):
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
        _close(solution.energy, exact.energy, max(1e-4, self.tolerance), f"energy of {dtype} unaries")
        with torch.autocast("cpu", dtype=torch.bfloat16):
            cast = self._solve(term, unary)
        _close(cast.energy, solution.energy, max(1e-5, self.tolerance), "energy under autocast")

    def test_result_is_on_the_device_of_the_unaries(self, device: str) -> None:
        """A solver that works on the CPU takes its data there and brings the result back."""
        ndim = self.spatial[0]
        term = self.regularizer(0.3).bind(self._image(ndim).to(device))
        unary, fixed = self._unary(ndim), self._fixed(ndim)
        start = _random_labels(2, *SIZES[ndim], classes=3, seed=7)
        solution = self._solve(term, unary.to(device), fixed=fixed.to(device), warm=start.to(device))
        for name in ("probabilities", "labels", "energy", "bound", "steps", "start_energy"):
            assert getattr(solution, name).device.type == device, f"{name} is not on {device}"
        expected = self._solve(self.regularizer(0.3).bind(self._image(ndim)), unary, fixed=fixed, warm=start)
        _close(solution.energy, expected.energy, self.tolerance, f"energy on {device}")

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
        _close(solution.energy, self._solve(term, unary).energy, self.tolerance, "energy after pickling")


# --------------------------------------------------------------------------------------------------------------------
# Divergences


class DivergenceConformance(_Suite):
    """Checks of a `Divergence`: value, gradient, unaries, ignored pixels, weights.

    >>> from regloss import KL
    >>> class TestMyDivergence(DivergenceConformance):
    ...     def make(self):
    ...         return KL()
    >>> TestMyDivergence().test_unary_is_the_cost_of_each_label(spatial=(5, 6))
    """

    # ---- what must be defined

    def make(self) -> Divergence:
        """The divergence, with settings that matter."""
        raise _no_make(self)

    # ---- what might be defined

    classes: ClassVar[int] = 4
    nonnegative: ClassVar[bool] = True
    """Whether it is never below 0."""
    tolerance: ClassVar[float] = 1e-10

    # ---- the checks

    shapes: ClassVar[Sequence[tuple[int, ...]]] = ((), (5, 6), (3, 4, 5))
    dtypes: ClassVar[Sequence[torch.dtype]] = (torch.float32, torch.float64, torch.bfloat16)
    tables: ClassVar[Mapping[str, str]] = {"spatial": "shapes", "dtype": "dtypes"}

    def _logits(self, spatial: Sequence[int], seed: int = 1) -> Tensor:
        return 2 * _random(3, self.classes, *spatial, seed=seed)

    def _labels(self, spatial: Sequence[int]) -> Tensor:
        return _random_labels(3, *spatial, classes=self.classes, seed=2)

    def _targets(self, spatial: Sequence[int]) -> Iterator[tuple[str, Tensor]]:
        yield "labels", self._labels(spatial)
        yield "probabilities", self._logits(spatial, seed=3).softmax(1)

    def test_value_is_one_number_per_image(self, spatial: tuple[int, ...]) -> None:
        """(B,), finite, a sum over pixels."""
        divergence, logits = self.make(), self._logits(spatial)
        for name, target in self._targets(spatial):
            value = divergence(target, logits)
            assert value.shape == (3,), f"the divergence from {name} must have the shape (B,)"
            assert bool(value.isfinite().all())
            if self.nonnegative:
                _at_most(torch.zeros(3), value, self.tolerance, f"divergence from {name} is negative")
            if spatial:
                doubled = divergence(torch.cat([target, target], -1), torch.cat([logits, logits], -1))
                _close(doubled, 2 * value, self.tolerance, f"divergence from {name} over twice the pixels")

    def test_one_hot_probabilities_are_labels(self, spatial: tuple[int, ...]) -> None:
        """A label and its one-hot vector cost the same."""
        divergence, logits, labels = self.make(), self._logits(spatial), self._labels(spatial)
        soft = divergence(one_hot(labels, self.classes, torch.float64), logits)
        _close(soft, divergence(labels, logits), self.tolerance, "divergence from one-hot probabilities and labels")

    def test_unary_is_the_cost_of_each_label(self, spatial: tuple[int, ...]) -> None:
        """Entry k of the unaries is the divergence from label k, summed over pixels by the call."""
        divergence, logits = self.make(), self._logits(spatial)
        unary = divergence.unary(logits)
        assert unary.shape == logits.shape
        for k in range(self.classes):
            expected = divergence(torch.full((3, *spatial), k), logits)
            _close(unary[:, k].reshape(3, -1).sum(1), expected, self.tolerance, f"unaries of label {k}")

    def test_gradient_matches_finite_differences(self, spatial: tuple[int, ...]) -> None:
        """In the logits, from labels and from probabilities, with seeds."""
        logits = self._logits(spatial)
        seeds = _random(3, *spatial, seed=4) > 0
        for name, target in self._targets(spatial):

            def value(at: Tensor, target: Tensor = target) -> Tensor:
                return self.make()(target, at, seeds=seeds)

            gradient = _gradient(value, logits)
            for seed in range(3):
                direction = _random(*logits.shape, seed=10 + seed)
                expected = _directional(value, logits, direction)
                _close(_dot(gradient, direction), expected, max(1e-7, self.tolerance), f"derivative from {name}")

    def test_adding_a_constant_to_the_logits_changes_nothing(self, spatial: tuple[int, ...]) -> None:
        """Logits count up to a constant at each pixel."""
        logits = self._logits(spatial)
        shifted = logits + 5 * _random(3, 1, *spatial, seed=5)
        for name, target in self._targets(spatial):
            expected = self.make()(target, logits)
            _close(self.make()(target, shifted), expected, max(1e-9, self.tolerance), f"divergence from {name}")

    def test_extreme_logits_stay_finite(self) -> None:
        """Value, gradient and unaries in float32, where the network is certain and wrong, or certain and right."""
        logits = torch.zeros(1, self.classes, self.classes)
        logits[0, 0], logits[0, 1] = 80.0, -80.0
        labels = torch.arange(self.classes).unsqueeze(0)
        assert bool(self.make()(labels, logits).isfinite().all())
        assert bool(self.make().unary(logits).isfinite().all())
        assert bool(_gradient(lambda at: self.make()(labels, at), logits).isfinite().all())

    def test_ignored_pixels_do_not_count(self) -> None:
        """255 has no value and no gradient."""
        spatial = (5, 6)
        logits, labels = self._logits(spatial), self._labels(spatial)
        ignored = _random(3, *spatial, seed=6) > 0
        target = labels.masked_fill(ignored, IGNORE)
        expected = self.make()(labels, logits, weight=(~ignored).double())
        _close(self.make()(target, logits), expected, self.tolerance, "divergence with ignored pixels")
        gradient = _gradient(lambda at: self.make()(target, at), logits)
        assert float(gradient.abs().amax(1)[ignored].max()) == 0, "an ignored pixel has a gradient"

    def test_weights_multiply_pixels(self) -> None:
        """The divergence is linear in ``weight``; at 1 it is unweighted."""
        spatial = (5, 6)
        logits = self._logits(spatial)
        weight = _random(3, *spatial, seed=7).abs()
        for name, target in self._targets(spatial):
            plain = self.make()(target, logits)
            _close(self.make()(target, logits, weight=torch.ones(3, *spatial)), plain, self.tolerance, name)
            first = self.make()(target, logits, weight=weight)
            second = self.make()(target, logits, weight=1 - weight)
            _close(first + second, plain, max(1e-9, self.tolerance), f"weighted divergence from {name}")

    def test_batch_is_one_by_one(self, spatial: tuple[int, ...]) -> None:
        """Images of a batch do not see each other."""
        logits, divergence = self._logits(spatial), self.make()
        seeds = _random(3, *spatial, seed=4) > 0
        for name, target in self._targets(spatial):
            together = divergence(target, logits, seeds=seeds)
            alone = [divergence(target[[i]], logits[[i]], seeds=seeds[[i]]) for i in range(3)]
            _close(together, torch.cat(alone), self.tolerance, f"divergence of a batch from {name}")

    def test_arguments_are_not_modified(self) -> None:
        """Target, logits, weight and seeds are read only."""
        spatial = (5, 6)
        logits, weight = self._logits(spatial), torch.ones(3, *spatial)
        seeds = _random(3, *spatial, seed=4) > 0
        for _, target in self._targets(spatial):
            with _Unchanged(target=target, logits=logits, weight=weight, seeds=seeds):
                self.make()(target, logits, weight=weight, seeds=seeds)
                self.make().unary(logits)

    def test_logits_of_any_precision(self, dtype: torch.dtype) -> None:
        """Half-precision logits give the float32 value of the same numbers, under autocast too."""
        spatial = (5, 6)
        logits = self._logits(spatial).to(dtype)
        expected = torch.float64 if dtype == torch.float64 else torch.float32
        for name, target in self._targets(spatial):
            value = self.make()(target, logits)
            assert value.dtype == expected, f"{dtype} logits must give {expected}; got {value.dtype}"
            _close(value, self.make()(target, logits.double()), max(1e-4, self.tolerance), f"divergence from {name}")
            with torch.autocast("cpu", dtype=torch.bfloat16):
                cast = self.make()(target, logits)
            _close(cast, value, max(1e-5, self.tolerance), f"divergence from {name} under autocast")

    def test_bad_input_is_refused(self) -> None:
        """One class, labels outside 0..K-1, labels as floats, shapes that disagree."""
        spatial = (5, 6)
        logits, labels, divergence = self._logits(spatial), self._labels(spatial), self.make()
        with pytest.raises(UsageError, match="class"):
            divergence(torch.zeros_like(labels), logits[:, :1])
        with pytest.raises(UsageError, match="255"):
            divergence(labels + self.classes, logits)
        with pytest.raises(UsageError, match="integers"):
            divergence(labels.double(), logits)
        with pytest.raises(UsageError, match="shape"):
            divergence(labels[:, 1:], logits)
        with pytest.raises(UsageError, match="weight"):
            divergence(labels, logits, weight=torch.ones(3, 1, 1))

    def test_survives_pickling(self) -> None:
        """Settings go through pickle."""
        logits, labels = self._logits((5, 6)), self._labels((5, 6))
        again = pickle.loads(pickle.dumps(self.make()))
        _close(again(labels, logits), self.make()(labels, logits), 1e-12, "divergence after pickling")


# --------------------------------------------------------------------------------------------------------------------
# Data terms


class DataTermConformance(_Suite):
    """Checks of a `DataTerm`: sums and counts, ignored pixels, regions.

    >>> from regloss import CrossEntropy
    >>> class TestMyDataTerm(DataTermConformance):
    ...     def make(self):
    ...         return CrossEntropy()
    >>> TestMyDataTerm().test_gradient_matches_finite_differences(ndim=2)
    """

    # ---- what must be defined

    def make(self) -> DataTerm:
        """The data term, with settings that matter."""
        raise _no_make(self)

    # ---- what might be defined

    classes: ClassVar[int] = 3
    channels: ClassVar[int] = 3
    spatial: ClassVar[Sequence[int]] = (2, 3)
    uses_labels: ClassVar[bool] = True
    """Whether it compares with given labels; False for those that look at the image alone."""
    tolerance: ClassVar[float] = 1e-10

    # ---- the checks

    dtypes: ClassVar[Sequence[torch.dtype]] = (torch.float32, torch.float64, torch.bfloat16)
    tables: ClassVar[Mapping[str, str]] = {"ndim": "spatial", "dtype": "dtypes"}

    def _logits(self, ndim: int) -> Tensor:
        return _random(2, self.classes, *SIZES[ndim], seed=1)

    def _labels(self, ndim: int) -> Tensor:
        """Half of the pixels labelled, 255 elsewhere."""
        labels = _random_labels(2, *SIZES[ndim], classes=self.classes, seed=2)
        return labels.masked_fill(_random(2, *SIZES[ndim], seed=3) > 0, IGNORE)

    def _batch(self, ndim: int, roi: Tensor | None = None) -> Batch:
        labels = self._labels(ndim) if self.uses_labels else None
        return Batch(_random_image(2, self.channels, SIZES[ndim]), labels, roi)

    def test_gives_sums_and_counts(self, ndim: int) -> None:
        """Both (B,); the sum is differentiable, the count is not negative and follows no gradient."""
        for roi in (None, _irregular_region(2, SIZES[ndim])):
            logits = self._logits(ndim).requires_grad_()
            sums, counts = self.make()(logits, self._batch(ndim, roi))
            assert sums.shape == (2,)
            assert counts.shape == (2,)
            assert sums.requires_grad
            assert not counts.requires_grad
            assert bool(sums.isfinite().all())
            assert bool((counts > 0).all())
            assert counts.is_floating_point()

    def test_gradient_matches_finite_differences(self, ndim: int) -> None:
        """In the logits, with a region of interest."""
        batch, logits = self._batch(ndim, _irregular_region(2, SIZES[ndim])), self._logits(ndim)

        def value(at: Tensor) -> Tensor:
            return self.make()(at, batch)[0]

        gradient = _gradient(value, logits)
        for seed in range(3):
            direction = _random(*logits.shape, seed=10 + seed)
            expected = _directional(value, logits, direction)
            _close(_dot(gradient, direction), expected, max(1e-7, self.tolerance), "derivative")

    def test_pixels_that_do_not_count_have_no_gradient(self, ndim: int) -> None:
        """Neither unlabelled ones, where labels are used, nor those outside the region of interest."""
        roi = _irregular_region(2, SIZES[ndim])
        batch = self._batch(ndim, roi)
        gradient = _gradient(lambda at: self.make()(at, batch)[0], self._logits(ndim)).abs().amax(1)
        counting = batch.labelled if self.uses_labels else roi
        assert float(gradient[~counting].max()) == 0
        assert float(gradient[counting].max()) > 0

    def test_region_of_interest_is_a_crop(self, ndim: int) -> None:
        """A box of interest gives what the batch cropped to it gives."""
        size = SIZES[ndim]
        batch, logits = self._batch(ndim, _box_region(2, size)), self._logits(ndim)
        labels = None if batch.labels is None else _inner(batch.labels, size)
        cropped = Batch(_inner(batch.image, size), labels)
        for value, expected in zip(self.make()(logits, batch), self.make()(_inner(logits, size), cropped), strict=True):
            _close(value, expected, self.tolerance, "sum or count in a box of interest")

    def test_batch_is_one_by_one(self, ndim: int) -> None:
        """Images of a batch do not see each other."""
        batch, logits = self._batch(ndim), self._logits(ndim)
        together = self.make()(logits, batch)
        for i in range(2):
            labels = None if batch.labels is None else batch.labels[[i]]
            alone = self.make()(logits[[i]], Batch(batch.image[[i]], labels))
            for value, expected in zip(alone, together, strict=True):
                _close(value, expected[[i]], self.tolerance, f"sum or count of image {i}")

    def test_modules_are_found_and_trained(self, ndim: int) -> None:
        """Networks that it owns: the same objects under the same names, reached by the gradient, moved with it."""
        term = self.make()
        owned = term.modules()
        for name, module in owned.items():
            assert isinstance(module, nn.Module)
            assert name
            assert "." not in name, f"{name!r}: a name of a module must hold no dot"
            assert term.modules()[name] is module, f"{name} is another object in each call"
        parameters = [(f"{n}.{k}", p) for n, m in owned.items() for k, p in m.named_parameters()]
        if parameters:
            term(self._logits(ndim), self._batch(ndim))[0].sum().backward()  # type: ignore[no-untyped-call]
        for name, parameter in parameters:
            if parameter.requires_grad:
                assert parameter.grad is not None, f"the parameter {name} has no gradient"
                assert bool(parameter.grad.isfinite().all()), f"the gradient of {name} is not finite"

    def test_nothing_labelled_counts_nothing(self, ndim: int) -> None:
        """A crop may miss every scribble: then sum and count are 0, and the gradient is finite."""
        if not self.uses_labels:
            pytest.skip("uses_labels = False")
        blank = torch.full((2, *SIZES[ndim]), IGNORE)
        batch = Batch(_random_image(2, self.channels, SIZES[ndim]), blank)
        sums, counts = self.make()(self._logits(ndim), batch)
        assert sums.tolist() == [0, 0]
        assert counts.tolist() == [0, 0]
        gradient = _gradient(lambda at: self.make()(at, batch)[0], self._logits(ndim))
        assert float(gradient.abs().max()) == 0

    def test_logits_of_any_precision(self, dtype: torch.dtype) -> None:
        """Half-precision logits give the float32 value of the same numbers."""
        ndim = self.spatial[0]
        logits = self._logits(ndim).to(dtype)
        sums, _ = self.make()(logits, self._batch(ndim))
        assert sums.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        expected, _ = self.make()(logits.double(), self._batch(ndim))
        _close(sums, expected, max(1e-4, self.tolerance), f"sum for {dtype} logits")

    def test_arguments_are_not_modified(self, ndim: int) -> None:
        """Logits and batch are read only."""
        batch, logits = self._batch(ndim, _irregular_region(2, SIZES[ndim])), self._logits(ndim)
        with _Unchanged(logits=logits, image=batch.image, labels=batch.labels, roi=batch.roi):
            self.make()(logits, batch)

    def test_bad_input_is_refused(self, ndim: int) -> None:
        """Logits of another size, labels outside the classes, no labels at all."""
        batch, logits = self._batch(ndim), self._logits(ndim)
        with pytest.raises(UsageError, match="logits"):
            self.make()(logits[..., 1:], batch)
        if self.uses_labels:
            with pytest.raises(UsageError, match="255"):
                self.make()(logits, Batch(batch.image, torch.full((2, *SIZES[ndim]), self.classes)))
            with pytest.raises(UsageError, match="labels"):
                self.make()(logits, Batch(batch.image, None))


# --------------------------------------------------------------------------------------------------------------------
# Outer loops


class OuterLoopConformance(_Suite):
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
        raise _no_make(self)

    # ---- what might be defined

    classes: ClassVar[int] = 3
    channels: ClassVar[int] = 3
    size: ClassVar[tuple[int, ...]] = SIZES[2]
    tolerance: ClassVar[float] = 1e-9

    # ---- the checks

    dtypes: ClassVar[Sequence[torch.dtype]] = (torch.float32, torch.float64, torch.bfloat16)
    tables: ClassVar[Mapping[str, str]] = {"dtype": "dtypes"}

    def _logits(self) -> Tensor:
        return _random(3, self.classes, *self.size, seed=1)

    def _batch(self, roi: Tensor | None = None) -> Batch:
        """Three images, each with seeds of every class, and each with more of them than the next."""
        shape = (3, *self.size)
        labels = _random_labels(*shape, classes=self.classes, seed=2)
        rarity = torch.tensor([-0.3, -0.8, -1.3]).reshape(3, *[1] * len(self.size))
        sparse = labels.masked_fill(_random(*shape, seed=3) > rarity, IGNORE)
        centre = tuple(length // 2 for length in self.size[:-1])
        row: tuple[Any, ...] = (slice(None), *centre, slice(1, 1 + self.classes))
        sparse[row] = torch.arange(self.classes)
        return Batch(_random_image(3, self.channels, self.size), sparse, roi, ids=("first", "second", "third"))

    def _objective(self, logits: Tensor, batch: Batch) -> Tensor:
        """The objective of a new loop, with its own proposal."""
        loop = self.make()
        return loop.objective(logits, batch, loop.propose(logits.detach(), batch))

    def _proposes(self) -> bool:
        return self.make().propose(self._logits(), self._batch()) is not None

    def test_objective_is_a_scalar_with_a_gradient(self) -> None:
        """Finite, with and without a region of interest; pixels outside of it have no gradient."""
        for roi in (None, _irregular_region(3, self.size)):
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
        batch, logits = self._batch(_irregular_region(3, self.size)), self._logits()
        loop = self.make()
        proposal = loop.propose(logits, batch)

        def value(at: Tensor) -> Tensor:
            return loop.objective(at, batch, proposal).reshape(1)

        gradient = _gradient(value, logits)
        for seed in range(3):
            direction = _random(*logits.shape, seed=10 + seed)
            expected = _directional(value, logits, direction)
            _close((gradient * direction).sum(), expected[0], max(1e-6, self.tolerance), "derivative")

    def test_parts_add_up_to_the_objective(self) -> None:
        """``parts`` holds the addends, weights included."""
        loop, batch = self.make(), self._batch()
        objective = loop.objective(self._logits(), batch, loop.propose(self._logits(), batch))
        assert loop.parts, "no parts were recorded"
        assert all(isinstance(value, float) for value in loop.parts.values())
        _close(torch.tensor(sum(loop.parts.values())), objective, 1e-6, "sum of the parts")

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
        for roi in (None, _irregular_region(3, self.size)):
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
        batch, loop = self._batch(_irregular_region(3, self.size)), self.make()
        first = loop.propose(self._logits(), batch)
        second = loop.propose(self._logits(), batch, warm=None if first is None else first.labels)
        assert (first is None) == (second is None)
        if first is None or second is None:
            return
        if first.solution is not None and second.solution is not None:
            _at_most(second.solution.energy, first.solution.energy, self.tolerance, "the energy rose")

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

        _close(repeated(logits), once(logits), self.tolerance, "objective of a repeated batch")
        _close(_gradient(repeated, logits), _gradient(once, logits), self.tolerance, "its gradient")

    def test_region_of_interest_is_a_crop(self) -> None:
        """A box of interest gives what the batch cropped to it gives, objective and gradient."""
        batch, logits = self._batch(_box_region(3, self.size)), self._logits()
        assert batch.labels is not None
        cropped = Batch(_inner(batch.image, self.size), _inner(batch.labels, self.size))
        expected = self._objective(_inner(logits, self.size), cropped)
        _close(self._objective(logits, batch), expected, self.tolerance, "objective in a box of interest")
        gradient = _gradient(lambda at: self._objective(at, batch), logits)
        inner = _gradient(lambda at: self._objective(at, cropped), _inner(logits, self.size))
        _close(_inner(gradient, self.size), inner, self.tolerance, "gradient in a box of interest")

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
        _close((results[0] + results[1]) / 2, expected, self.tolerance, "mean of two processes")

    def test_a_batch_without_any_label_is_finite(self) -> None:
        """A crop may miss every scribble."""
        logits = self._logits().requires_grad_()
        batch = Batch(_random_image(3, self.channels, self.size), torch.full((3, *self.size), IGNORE))
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
        _close(objective, loop.objective(logits.double(), batch, proposal), 1e-4, f"objective of {dtype} logits")
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
        batch, logits, loop = self._batch(_irregular_region(3, self.size)), self._logits(), self.make()
        with _Unchanged(logits=logits, image=batch.image, labels=batch.labels, roi=batch.roi):
            proposal = loop.propose(logits, batch)
            loop.objective(logits, batch, proposal)
        if proposal is not None:
            with _Unchanged(labels=proposal.labels):
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


# --------------------------------------------------------------------------------------------------------------------
# Region forces


class RegionForceConformance(_Suite):
    """Checks of a `RegionForce`: statistics, costs, that what is called exact is, and alternation.

    >>> from regloss import ChanVese
    >>> class TestMyForce(RegionForceConformance):
    ...     def make(self):
    ...         return ChanVese()
    >>> TestMyForce().test_no_other_statistics_are_better(ndim=2)
    """

    # ---- what must be defined

    def make(self) -> RegionForce:
        """The region force, with settings that matter; the same for all classes."""
        raise _no_make(self)

    # ---- what might be defined

    spatial: ClassVar[Sequence[int]] = (1, 2, 3)
    channel_counts: ClassVar[Sequence[int]] = (1, 3)
    classes: ClassVar[int] = 3
    nonnegative: ClassVar[bool] = False
    """Whether no cost is below 0."""
    tolerance: ClassVar[float] = 1e-9

    # ---- the checks

    dtypes: ClassVar[Sequence[torch.dtype]] = (torch.float32, torch.float64, torch.bfloat16)
    tables: ClassVar[Mapping[str, str]] = {"ndim": "spatial", "channels": "channel_counts", "dtype": "dtypes"}

    def _image(self, ndim: int, channels: int = 3) -> Tensor:
        return _random_image(2, channels, SIZES[ndim], seed=51)

    def _probabilities(self, ndim: int, seed: int = 52) -> Tensor:
        return _random(2, self.classes, *SIZES[ndim], seed=seed).softmax(1)

    def _energy(self, image: Tensor, statistics: Any, probabilities: Tensor) -> Tensor:
        return linear_energy(self.make().unary(image, statistics), probabilities, None)

    def _same(self, first: Any, second: Any, what: str) -> None:
        for a, b in zip(first, second, strict=True):
            _close(a, b, self.tolerance, what)

    def test_statistics_are_tensors_by_image_and_class(self, ndim: int, channels: int) -> None:
        """A NamedTuple of tensors (B, K, ...), finite, from probabilities and from one-hot labels."""
        force, image = self.make(), self._image(ndim, channels)
        labels = torch.arange(math.prod(SIZES[ndim])).reshape(SIZES[ndim]).expand(2, *SIZES[ndim]) % self.classes
        for weights in (self._probabilities(ndim), one_hot(labels, self.classes, torch.float64)):
            statistics = force.fit(image, weights)
            assert hasattr(statistics, "_fields"), "statistics must be a NamedTuple"
            for name, values in zip(statistics._fields, statistics, strict=True):
                assert tuple(values.shape[:2]) == (2, self.classes), f"{name} must have the shape (B, K, ...)"
                assert bool(values.isfinite().all()), f"{name} must be finite"

    def test_costs_are_finite(self, ndim: int, channels: int) -> None:
        """(B, K, *S), also at colours that no class has."""
        force, image = self.make(), self._image(ndim, channels)
        statistics = force.fit(image / 2, self._probabilities(ndim))
        for at in (image, torch.ones_like(image), torch.zeros_like(image)):
            costs = force.unary(at, statistics)
            assert costs.shape == (2, self.classes, *SIZES[ndim])
            assert bool(costs.isfinite().all())
            assert not self.nonnegative or bool((costs >= 0).all())

    def test_an_image_of_one_colour_is_finite(self, ndim: int) -> None:
        """All classes cost the same there."""
        force, image = self.make(), torch.full_like(self._image(ndim), 0.4)
        costs = force.unary(image, force.fit(image, self._probabilities(ndim)))
        assert bool(costs.isfinite().all())
        _close(costs, costs[:, :1].expand_as(costs), max(1e-6, self.tolerance), "costs on a flat image")

    def test_no_other_statistics_are_better(self, ndim: int) -> None:
        """If ``exact``: at given probabilities F is lowest at the statistics fitted to them."""
        force, here = self.make(), self._probabilities(ndim)
        image = self._image(ndim) ** 3  # skewed, so that means are no medians
        if not force.exact:
            return
        lowest = self._energy(image, force.fit(image, here), here)
        others = [torch.lerp(here, self._probabilities(ndim, 61), share) for share in (0.01, 0.1, 1.0)]
        others += [here * (slope * image.mean(1, keepdim=True)).exp() for slope in (-1.0, -0.1, 0.1, 1.0)]
        for other in others:
            found = self._energy(image, force.fit(image, other), here)
            _at_most(lowest, found, self.tolerance, "other statistics have a lower F")

    def test_alternation_never_raises_the_energy(self, ndim: int) -> None:
        """Back and forth between statistics and labels, with a Potts model and minimum cuts."""
        solver: Solver = registry.create("solver", "alpha-expansion", workers=1)
        prior = registry.create("regularizer", "grid-crf", weight=0.02, connectivity={1: 2, 2: 4, 3: 6}[ndim])
        start = self._probabilities(ndim, seed=53).argmax(1)
        start.view(2, -1)[:, : self.classes] = torch.arange(self.classes)  # every class has a pixel
        found = alternate(self.make(), prior, solver, self._image(ndim), start, max_rounds=6)
        _at_most(found.energies[1:], found.energies[:-1], self.tolerance, "the energy rose")

    def test_pixels_without_weight_do_not_count(self, ndim: int) -> None:
        """Probabilities of 0 throughout, as where nothing is scribbled, and pixels outside the region of interest."""
        force, image, weights = self.make(), self._image(ndim), self._probabilities(ndim)
        region = _box_region(2, SIZES[ndim])
        inner = force.fit(_inner(image, SIZES[ndim]), _inner(weights, SIZES[ndim]))
        self._same(force.fit(image, weights, region), inner, "statistics in a region of interest and of a crop")
        self._same(force.fit(image, weights * region.unsqueeze(1)), inner, "statistics where others weigh 0")

    def test_classes_may_be_renamed(self, ndim: int) -> None:
        """Statistics and costs follow a permutation of the classes."""
        force, image, weights = self.make(), self._image(ndim), self._probabilities(ndim)
        order = torch.arange(self.classes).roll(1)
        expected = force.unary(image, force.fit(image, weights))[:, order]
        _close(force.unary(image, force.fit(image, weights[:, order])), expected, self.tolerance, "renamed classes")

    def test_batch_is_one_by_one(self, ndim: int) -> None:
        """Images of a batch do not see each other."""
        force, image, weights = self.make(), self._image(ndim), self._probabilities(ndim)
        together = force.unary(image, force.fit(image, weights))
        for i in range(2):
            alone = force.unary(image[[i]], force.fit(image[[i]], weights[[i]]))
            _close(together[[i]], alone, self.tolerance, "costs in a batch and alone")

    def test_a_class_without_pixels_keeps_its_statistics(self, ndim: int) -> None:
        """With earlier ones; without any it is refused by name."""
        force, image, weights = self.make(), self._image(ndim), self._probabilities(ndim)
        before = force.fit(image, weights)
        gone = weights.clone()
        gone[1, 2] = 0
        with pytest.raises(UsageError, match="Class 2 has no pixels at the start of image 1"):
            force.fit(image, gone)
        after = force.fit(image, gone, previous=before)
        for old, new, fresh in zip(before, after, force.fit(image, weights), strict=True):
            assert torch.equal(old[1, 2], new[1, 2]), "a class without pixels must keep its statistics"
            _close(new[0], fresh[0], self.tolerance, "statistics of the others")

    def test_arguments_are_not_modified(self, ndim: int) -> None:
        """Image, probabilities and region are read only."""
        force, image, weights = self.make(), self._image(ndim), self._probabilities(ndim)
        region = _box_region(2, SIZES[ndim])
        with _Unchanged(image=image, weights=weights, region=region):
            statistics = force.fit(image, weights, region)
            kept = copy.deepcopy(tuple(statistics))
            force.unary(image, statistics)
        for a, b in zip(statistics, kept, strict=True):
            assert torch.equal(a, b), "the statistics were modified"

    def test_images_of_any_precision(self, dtype: torch.dtype) -> None:
        """Costs in float32 at least, close to those of the same numbers in float64, under autocast too."""
        force, weights = self.make(), self._probabilities(2)
        image = self._image(2).to(dtype)
        costs = force.unary(image, force.fit(image, weights))
        assert costs.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        exact = force.unary(image.double(), force.fit(image.double(), weights))
        _close(costs, exact, max(1e-4, self.tolerance), f"costs of a {dtype} image")
        with torch.autocast("cpu", dtype=torch.bfloat16):
            cast = force.unary(image, force.fit(image, weights))
        _close(cast, costs, max(1e-6, self.tolerance), "costs under autocast")

    def test_bad_input_is_refused(self) -> None:
        """One class, NaN, bytes, shapes that disagree, negative probabilities."""
        force, image, weights = self.make(), self._image(2), self._probabilities(2)
        statistics = force.fit(image, weights)
        bad = image.clone()
        bad[0, 0, 1, 1] = float("nan")
        with pytest.raises(UsageError, match="class"):
            force.fit(image, weights[:, :1])
        with pytest.raises(UsageError, match="NaN"):
            force.fit(bad, weights)
        with pytest.raises(UsageError, match="NaN"):
            force.unary(bad, statistics)
        with pytest.raises(UsageError, match="floating-point"):
            force.fit((255 * image).to(torch.uint8), weights)
        with pytest.raises(UsageError, match="do not fit"):
            force.fit(image, weights[..., 1:])
        with pytest.raises(UsageError, match="negative"):
            force.fit(image, -weights)

    def test_survives_pickling(self) -> None:
        """Settings go through pickle."""
        image, weights = self._image(2), self._probabilities(2)
        again = pickle.loads(pickle.dumps(self.make()))
        self._same(again.fit(image, weights), self.make().fit(image, weights), "statistics after pickling")


# --------------------------------------------------------------------------------------------------------------------
# Networks


class NetworkConformance(_Suite):
    """Checks of a network: logits of the image's size, gradients, evaluation mode, reproducible construction.

    >>> from torch import nn
    >>> class TestMyNetwork(NetworkConformance):
    ...     def make(self):
    ...         return nn.Conv2d(self.in_channels, self.classes, 3, padding=1)
    >>> TestMyNetwork().test_logits_have_the_size_of_the_image(size=(5, 8))
    """

    # ---- what must be defined

    def make(self) -> nn.Module:
        """The network, small, taking ``in_channels`` and giving ``classes``; no weights from files."""
        raise _no_make(self)

    # ---- what might be defined

    in_channels: ClassVar[int] = 3
    classes: ClassVar[int] = 4
    sizes: ClassVar[Sequence[tuple[int, ...]]] = ((33, 47), (32, 32))
    """Image sizes; at least one should be odd, as crops and photographs are."""
    tolerance: ClassVar[float] = 1e-4
    """Error of float32 logits of an image alone against the same image in a batch."""

    # ---- the checks

    tables: ClassVar[Mapping[str, str]] = {"size": "sizes"}

    def _new(self) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return self.make()

    def _image(self, size: Sequence[int], batch: int = 2) -> Tensor:
        return _random_image(batch, self.in_channels, size).float()

    def test_logits_have_the_size_of_the_image(self, size: tuple[int, ...]) -> None:
        """(B, K, *S), finite, in training and in evaluation."""
        network = self._new()
        for training in (True, False):
            with torch.random.fork_rng(devices=[]), torch.no_grad():
                logits = network.train(training)(self._image(size))
            assert logits.shape == (2, self.classes, *size)
            assert logits.dtype == torch.float32
            assert bool(logits.isfinite().all())

    def test_gradient_reaches_every_parameter(self) -> None:
        """Nothing is left out of the graph, or frozen by mistake."""
        network = self._new().train()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            logits = network(self._image(self.sizes[0]))
        (logits * _random(*logits.shape, seed=1, dtype=torch.float32)).sum().backward()
        for name, parameter in network.named_parameters():
            assert parameter.grad is not None, f"the parameter {name} has no gradient"
            assert bool(parameter.grad.isfinite().all()), f"the gradient of {name} is not finite"
            assert float(parameter.grad.abs().max()) > 0, f"the gradient of {name} is 0"

    def test_evaluation_treats_images_one_by_one(self, size: tuple[int, ...]) -> None:
        """In evaluation mode nothing is shared over a batch, and nothing is random."""
        network = self._new().eval()
        image = self._image(size)
        with torch.no_grad():
            together = network(image)
            alone = torch.cat([network(image[[i]]) for i in range(2)])
            again = network(image)
        _close(alone, together, self.tolerance, "logits of an image alone and in a batch")
        assert torch.equal(again, together), "evaluation is random or changes the network"

    def test_construction_is_reproducible(self) -> None:
        """The same seed gives the same parameters, another seed others."""
        first, second = self._new().state_dict(), self._new().state_dict()
        assert first.keys() == second.keys()
        for name, value in first.items():
            assert torch.equal(value, second[name]), f"{name} differs between two constructions with one seed"

    def test_state_can_be_loaded(self) -> None:
        """A checkpoint of one object makes another give the same logits."""
        first, image = self._new(), self._image(self.sizes[0])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(2)
            first.train()(image)  # moves running statistics, if there are any
            second = self.make()
        second.load_state_dict(copy.deepcopy(first.state_dict()))
        with torch.no_grad():
            _close(second.eval()(image), first.eval()(image), 1e-6, "logits after loading a state")

    def test_images_are_not_modified(self) -> None:
        """Normalisation, if any, happens on a copy."""
        image = self._image(self.sizes[0])
        with _Unchanged(image=image), torch.no_grad():
            self._new().eval()(image)


# --------------------------------------------------------------------------------------------------------------------
# Data sets


class DatasetConformance(_Suite):
    """Checks of a `Dataset`: ids, ranges, types, and that loading is repeatable.

    >>> class TestMyDataset(DatasetConformance):
    ...     subsets = ("train", "val")
    ...
    ...     def make(self):
    ...         return MyDataset(root="data/mine")
    """

    # ---- what must be defined

    def make(self) -> Dataset:
        """The data set."""
        raise _no_make(self)

    # ---- what might be defined

    subsets: ClassVar[Sequence[str]] = ("train",)
    """Subsets that it has."""
    disjoint: ClassVar[bool] = True
    """Whether no id stands in two of them."""
    samples: ClassVar[int] = 3
    """How many samples of each subset are loaded."""

    # ---- the checks

    tables: ClassVar[Mapping[str, str]] = {"subset": "subsets"}

    def test_classes_and_colors(self) -> None:
        """At least two classes with different names, one RGB triple of bytes for each, and one channel or more."""
        dataset = self.make()
        assert len(dataset.classes) >= 2
        assert len(set(dataset.classes)) == len(dataset.classes)
        assert len(dataset.colors) == len(dataset.classes)
        for color in dataset.colors:
            assert len(color) == 3
            assert all(0 <= value <= 255 for value in color)
        assert len(set(map(tuple, dataset.colors))) == len(dataset.colors), "two classes have one colour"
        assert dataset.channels >= 1

    def test_ids_are_unique_and_stable(self, subset: str) -> None:
        """Strings that can serve as file names, in the same order every time."""
        ids = list(self.make().ids(subset))
        assert ids, f"the subset {subset} is empty"
        assert len(set(ids)) == len(ids)
        assert ids == list(self.make().ids(subset))
        for sample_id in ids:
            assert isinstance(sample_id, str)
            assert sample_id
            assert not set(sample_id) & set('/\\:*?"<>|\0'), f"{sample_id!r} cannot be a file name"

    def test_subsets_are_disjoint(self) -> None:
        """Nothing that is trained on is tested on."""
        if not self.disjoint:
            pytest.skip("disjoint = False")
        every = [sample_id for subset in self.subsets for sample_id in self.make().ids(subset)]
        assert len(set(every)) == len(every), "an id stands in two subsets"

    def test_samples_keep_their_contract(self, subset: str) -> None:
        """Image (C, *S) float32 in [0, 1]; labels and scribbles (*S) uint8, classes or 255."""
        dataset = self.make()
        for sample_id in list(dataset.ids(subset))[: self.samples]:
            sample = dataset.load(sample_id)
            assert sample.id == sample_id
            assert isinstance(sample.group, str)
            assert sample.group
            image = sample.image
            assert image.dtype == np.float32
            assert image.ndim in (3, 4)
            assert image.shape[0] == dataset.channels
            assert np.isfinite(image).all()
            assert image.min() >= 0
            assert image.max() <= 1
            for name in ("label", "scribble"):
                labels = getattr(sample, name)
                if labels is None:
                    continue
                assert labels.dtype == np.uint8
                assert labels.shape == image.shape[1:], f"{name} and image of {sample_id} have different sizes"
                wrong = set(np.unique(labels).tolist()) - {*range(len(dataset.classes)), IGNORE}
                assert not wrong, f"{name} of {sample_id} holds {sorted(wrong)}"

    def test_loading_twice_gives_the_same(self, subset: str) -> None:
        """And a caller who writes into what was loaded spoils nothing."""
        dataset = self.make()
        sample_id = dataset.ids(subset)[0]
        first = dataset.load(sample_id)
        kept = copy.deepcopy(first)
        for array in (first.image, first.label, first.scribble):
            if array is not None and array.flags.writeable:
                array[...] = 0
        second = dataset.load(sample_id)
        assert np.array_equal(second.image, kept.image)
        for name in ("label", "scribble"):
            before, after = getattr(kept, name), getattr(second, name)
            assert (before is None) == (after is None)
            assert before is None or np.array_equal(before, after)

    def test_check_finds_what_is_missing(self, subset: str) -> None:
        """`Dataset.check` refuses a subset exactly if a sample lacks what is needed, and says what that is."""
        dataset = self.make()
        ids = list(dataset.ids(subset))
        for what in ("label", "scribble"):
            message = ""
            try:
                dataset.check(subset, need=(what,))
            except UsageError as error:
                message = str(error)
            looked_at = ids if message else ids[: self.samples]  # one of all must lack it; those few must have it
            lacking = any(getattr(dataset.load(sample_id), what) is None for sample_id in looked_at)
            assert lacking == bool(message), f"check() for {what} in {subset}: {message or 'nothing is missing'}"
            assert not message or what in message

    def test_unknown_names_are_refused(self) -> None:
        """A subset and an id that do not exist."""
        with pytest.raises(UsageError):
            self.make().ids("no such subset")
        with pytest.raises(UsageError):
            self.make().load("no such id")

    def test_survives_pickling(self) -> None:
        """Worker processes get data sets by pickle."""
        dataset = self.make()
        again = pickle.loads(pickle.dumps(dataset))
        assert list(again.ids(self.subsets[0])) == list(dataset.ids(self.subsets[0]))
