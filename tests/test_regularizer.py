"""Regularizers, terms, forms and their sums."""

import dataclasses
import itertools
import math
from types import MappingProxyType

import pytest
import torch

from regloss import (
    Composite,
    Concave,
    ConcaveFunction,
    Form,
    Graph,
    GridCRF,
    GridGraph,
    LinearOperator,
    MissingForm,
    Projection,
    Regularizer,
    Saddle,
    SaddlePart,
    Sum,
    Term,
    TotalVariation,
    UsageError,
)
from regloss.dual_sets import Box, Orthant
from regloss.regularizer import check_weight, combine
from regloss.testing import RegularizerConformance

# --------------------------------------------------------------------------------------------------------------------
# One small regularizer for each form that no built-in offers, so that sums of all forms are tried


@dataclasses.dataclass(frozen=True)
class Impurity(Regularizer):
    """weight * sum over pixels and classes of s (1 - s): concave, 0 on labels."""

    weight: float = 1.0

    @property
    def forms(self):
        return {Concave: ImpurityTerm.concave}

    def build(self, image, roi, spacing):
        return ImpurityTerm(self, (image.shape[0], *image.shape[2:]), roi)


class ImpurityTerm(Term):
    def energy(self, probabilities):
        return ImpurityFunction(self.regularizer.weight, self.roi).value(self.check(probabilities))

    def concave(self):
        return Concave(ImpurityFunction(self.regularizer.weight, self.roi))


@dataclasses.dataclass(frozen=True)
class ImpurityFunction(ConcaveFunction):
    weight: float
    roi: torch.Tensor | None

    def value(self, s):
        values = (s * (1 - s)).sum(1)
        return self.weight * (values if self.roi is None else values * self.roi).flatten(1).sum(1)

    def supergradient(self, s):
        slope = self.weight * (1 - 2 * s)
        return slope if self.roi is None else slope * self.roi.unsqueeze(1)

    def __getitem__(self, images):
        return ImpurityFunction(self.weight, None if self.roi is None else self.roi[images])


@dataclasses.dataclass(frozen=True)
class Majority(Regularizer):
    """Class 0 has at least the mass of class 1: a cone in the saddle form, a half-space as a projection."""

    weight: float = 1.0

    @property
    def forms(self):
        return {Saddle: MajorityTerm.saddle, Projection: MajorityTerm.projection}

    def build(self, image, roi, spacing):
        return MajorityTerm(self, (image.shape[0], *image.shape[2:]), roi)


def indicator(excess):
    """0 where the excess is 0 or less, within a tolerance, and infinite elsewhere."""
    return torch.zeros_like(excess).masked_fill(excess > 1e-9, math.inf)


class MajorityTerm(Term):
    @property
    def operator(self):
        return Excess(self.shape, self.roi)

    def excess(self, s):
        return self.operator.apply(s)[:, 0]

    def violation(self, probabilities):
        return self.excess(self.check(probabilities)).clamp(min=0)

    def energy(self, probabilities):
        return indicator(self.violation(probabilities))

    def penalty(self, probabilities):
        return self.regularizer.weight * self.violation(probabilities).square()

    def project(self, s):
        normal = self.operator.normal(s)
        step = self.excess(s).clamp(min=0) / normal.square().flatten(1).sum(1)
        return s - step.reshape(-1, *[1] * (s.ndim - 1)) * normal

    def saddle(self):
        return Saddle((SaddlePart(self.operator, Orthant(1e-9)),))

    def projection(self):
        return Projection(self.project)


@dataclasses.dataclass(frozen=True)
class Excess(LinearOperator):
    """How much more mass class 1 has than class 0: (B, 1)."""

    shape: tuple[int, ...]
    roi: torch.Tensor | None

    def normal(self, s):
        """(B, K, *S): the excess is <normal, s>."""
        normal = torch.zeros_like(s)
        normal[:, 0], normal[:, 1] = -1, 1
        return normal if self.roi is None else normal * self.roi.unsqueeze(1)

    def apply(self, s):
        return (self.normal(s) * s).flatten(1).sum(1, keepdim=True)

    def adjoint(self, y):
        return y.reshape(-1, *[1] * len(self.shape)) * self.normal(y.new_zeros(len(y), 3, *self.shape[1:]))

    @property
    def norm(self):
        return (2.0 * math.prod(self.shape[1:])) ** 0.5

    def __getitem__(self, images):
        return Excess((len(images), *self.shape[1:]), None if self.roi is None else self.roi[images])


class TestImpurity(RegularizerConformance):
    discrete = False
    nonnegative = True

    def make(self):
        return Impurity(0.7)


class MajorityConformance(RegularizerConformance):
    discrete = False
    symmetric = False
    nonnegative = True

    def probabilities(self, ndim):
        """Class 0 the likeliest everywhere, so that the constraint holds."""
        return super().probabilities(ndim).sort(dim=1, descending=True).values

    def labels(self, ndim):
        return super().labels(ndim) * 0


class TestMajority(MajorityConformance):
    def make(self):
        return Majority(2.0)


# --------------------------------------------------------------------------------------------------------------------
# Sums keep every promise of a regularizer


class TestSumOfGraphs(RegularizerConformance):
    nonnegative = True

    def make(self):
        return Sum([GridCRF(0.5), {"name": "tv", "weight": 0.3}], weight=1.7)


class TestSumOfSaddles(RegularizerConformance):
    nonnegative = True
    discrete = False

    def make(self):
        return Sum([TotalVariation(0.5), TotalVariation(2.0, isotropic=True)], weight=0.4)


class TestSumOfConcaves(RegularizerConformance):
    discrete = False

    def make(self):
        return Impurity(0.5) + Impurity(0.25)


class TestNestedSum(RegularizerConformance):
    def make(self):
        return Sum([TotalVariation(0.5) + TotalVariation(1.0), Sum(["tv"], weight=0.5)], weight=2.0)


class TestSumWithAConstraint(MajorityConformance):
    def make(self):
        return Sum([TotalVariation(0.5), Majority()])


class TestSumOfOne(MajorityConformance):
    """A single part keeps all its forms, also those that do not add up."""

    def make(self):
        return Sum([Majority()])


# --------------------------------------------------------------------------------------------------------------------
# Sum and combine


IMAGE = torch.rand(2, 3, 5, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
SOFT = torch.randn(2, 3, 5, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64).softmax(1)
LABELS = torch.randint(3, (2, 5, 6), generator=torch.Generator().manual_seed(2))


def test_energies_add_with_the_weight():
    parts = [GridCRF(0.5), TotalVariation(0.3), Impurity(2.0)]
    expected = 0.7 * sum(part.bind(IMAGE).energy(SOFT) for part in parts)
    torch.testing.assert_close(Sum(parts, weight=0.7).bind(IMAGE).energy(SOFT), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("parts", "forms"),
    [
        (["grid-crf", "tv"], {GridGraph, Graph}),
        (["tv", "tv"], {GridGraph, Graph, Saddle}),
        ([TotalVariation(isotropic=True), "tv"], {Saddle}),
        ([TotalVariation(isotropic=True), "grid-crf"], set()),
        ([Majority(), Majority()], {Saddle}),
        ([Majority()], {Saddle, Projection}),
        ([Impurity(), "tv"], {Composite}),
        ([Impurity(), "grid-crf"], set()),
        ([Impurity(), Sum([Impurity(), "tv"])], {Composite}),
    ],
)
def test_a_sum_offers_what_all_parts_offer(parts, forms):
    assert set(Sum(parts).forms) == forms


def test_added_graphs_merge_common_pairs():
    """4 axis-parallel edges of tv coincide with those of the grid CRF: no edge is listed twice."""
    total = (GridCRF(0.5) + TotalVariation(0.3)).bind(IMAGE)
    crf = GridCRF(0.5).bind(IMAGE)
    tv = TotalVariation(0.3).bind(IMAGE)
    for kind in (Graph, GridGraph):
        both = crf.form(kind).cut(LABELS) + tv.form(kind).cut(LABELS)
        torch.testing.assert_close(total.form(kind).cut(LABELS), both, rtol=1e-12, atol=0)
    assert total.form(Graph).edges.shape == crf.form(Graph).edges.shape
    assert total.form(GridGraph).offsets == crf.form(GridGraph).offsets


def test_graph_sum_adds_weights_of_an_edge_in_either_direction():
    first = Graph(torch.tensor([[0, 1], [2, 1]]), torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    second = Graph(torch.tensor([[1, 2], [3, 0]]), torch.tensor([[10.0, 20.0], [30.0, 40.0]]))
    joined = first + second
    assert joined.edges.tolist() == [[0, 1], [0, 3], [1, 2]]
    assert joined.weights.tolist() == [[1, 20, 12], [3, 40, 34]]
    for labels in itertools.product(range(2), repeat=4):
        flat = torch.tensor([labels, labels])
        torch.testing.assert_close(joined.cut(flat), first.cut(flat) + second.cut(flat))


def test_graph_sum_of_nothing():
    """Images of one pixel have no edges."""
    empty = GridCRF().bind(torch.rand(2, 1, 1, 1)).form(Graph)
    assert (empty + empty).edges.shape == (0, 2)
    assert (empty + empty).cut(torch.zeros(2, 1, 1, dtype=torch.int64)).tolist() == [0, 0]


def test_grid_graph_sum_keeps_other_offsets():
    four = GridCRF(connectivity=4).bind(IMAGE).form(GridGraph)
    eight = GridCRF(connectivity=8, diagonal="unit").bind(IMAGE).form(GridGraph)
    joined = four + eight
    assert set(joined.offsets) == set(eight.offsets)
    torch.testing.assert_close(joined.cut(LABELS), four.cut(LABELS) + eight.cut(LABELS))


def test_grid_graph_is_its_graph():
    form = GridCRF(connectivity=6).bind(torch.rand(2, 1, 3, 4, 5)).form(GridGraph)
    labels = torch.randint(4, (2, 3, 4, 5))
    torch.testing.assert_close(form.graph().cut(labels), form.cut(labels))


def test_forms_of_different_kinds_do_not_add_up():
    term = TotalVariation().bind(IMAGE)
    forms = [term.form(kind) for kind in (Graph, GridGraph, Saddle)]
    forms += [Impurity().bind(IMAGE).form(Concave), Majority().bind(IMAGE).form(Projection)]
    for first, second in itertools.product(forms, repeat=2):
        composites = isinstance(first, Composite) and isinstance(second, Composite)
        if isinstance(first, Projection) or (type(first) is not type(second) and not composites):
            with pytest.raises(MissingForm, match=type(first).__name__):
                first + second


def test_saddle_norm_of_a_stack():
    (part,) = TotalVariation().bind(IMAGE).form(Saddle).parts
    assert Saddle((part, part, part)).norm == pytest.approx((3 * part.operator.norm**2) ** 0.5)


class Identity(LinearOperator):
    norm = 1.0

    def apply(self, s):
        return s

    def adjoint(self, y):
        return y

    def __getitem__(self, images):
        return self


def test_shift_enters_the_value():
    """max over |y| <= 1 of <s - b, y> is |s - b|."""
    shift = torch.full((2, 3, 5, 6), 0.2, dtype=torch.float64)
    part = SaddlePart(Identity(), Box(1.0), shift)
    expected = (SOFT - 0.2).abs().flatten(1).sum(1)
    torch.testing.assert_close(Saddle((part,)).value(SOFT), expected)
    assert torch.equal(part[torch.tensor([1])].shift, shift[1:])
    torch.testing.assert_close(Saddle((part,)).scaled(3.0).value(SOFT), 3 * expected)


@pytest.mark.parametrize("factor", [0.25, 1.0, 3.0])
def test_scaled_forms_are_of_the_scaled_energy(factor):
    term = TotalVariation(0.5).bind(IMAGE)
    for kind in (Graph, GridGraph):
        torch.testing.assert_close(term.form(kind).scaled(factor).cut(LABELS), factor * term.form(kind).cut(LABELS))
    torch.testing.assert_close(term.form(Saddle).scaled(factor).value(SOFT), factor * term.energy(SOFT))
    concave = Impurity().bind(IMAGE).form(Concave)
    torch.testing.assert_close(concave.scaled(factor).value(SOFT), factor * concave.value(SOFT))
    slope = factor * concave.concave.supergradient(SOFT)
    torch.testing.assert_close(concave.scaled(factor).concave.supergradient(SOFT), slope)
    projection = Majority().bind(IMAGE).form(Projection)
    assert projection.scaled(factor) is projection


def test_a_composite_sum_keeps_its_parts_apart():
    """Concave parts on one side, saddles on the other, in whatever order and nesting they come."""
    weights = (2.0, 0.5, 3.0)
    inner = Sum([TotalVariation(weights[1], isotropic=True), Impurity(weights[2])], weight=0.5)
    term = Sum([Impurity(weights[0]), inner, Majority()], weight=3.0).bind(IMAGE)
    form = term.form(Composite)
    concave = 3 * (2.0 + 0.5 * 3.0) * Impurity().bind(IMAGE).energy(SOFT)
    torch.testing.assert_close(form.concave.value(SOFT), concave)
    slope = 3 * (2.0 + 0.5 * 3.0) * Impurity().bind(IMAGE).form(Concave).concave.supergradient(SOFT)
    torch.testing.assert_close(form.concave.supergradient(SOFT), slope)
    assert len(form.saddle.parts) == 2
    torch.testing.assert_close(form.concave.value(SOFT) + form.saddle.value(SOFT), term.energy(SOFT))


class Bent(ImpurityFunction):
    curvature = 0.25


def test_curvatures_of_concave_forms_add():
    bent = Concave(Bent(1.0, None))
    assert (bent + bent).concave.curvature == 0.5
    assert bent.scaled(3.0).concave.curvature == 0.75
    factor = torch.tensor(2.0, requires_grad=True)
    assert bent.scaled(factor).parameters == (factor,)


def test_scaling_that_cannot_be_is_refused():
    class Unknown(Form):
        pass

    with pytest.raises(MissingForm, match="Unknown cannot be scaled"):
        Unknown().scaled(2.0)
    with pytest.raises(MissingForm, match="Unknown cannot be added up"):
        Unknown() + Unknown()
    with pytest.raises(MissingForm, match="Unknown cannot do without"):
        Unknown()[torch.tensor([0])]


def test_of_nothing_only_constraints_remain():
    total = Sum([TotalVariation(), Majority()], weight=0.0).bind(IMAGE).form(Saddle)
    (part,) = total.parts
    assert part.dual_set.is_cone


def test_a_form_of_a_plugin_takes_part_in_sums():
    """Its own addition and scaling are all that it takes."""

    @dataclasses.dataclass(frozen=True)
    class Table(Form):
        costs: float
        summable = True

        def __add__(self, other):
            return Table(self.costs + other.costs)

        def scaled(self, factor):
            return Table(factor * self.costs)

    @dataclasses.dataclass(frozen=True)
    class Tabled(Regularizer):
        weight: float = 1.0

        @property
        def forms(self):
            return {Table: lambda term: Table(self.weight)}

        def build(self, image, roi, spacing):
            return ImpurityTerm(self, (image.shape[0], *image.shape[2:]), roi)

    total = Sum([Tabled(2.0), Tabled(3.0)], weight=4.0)
    assert set(total.forms) == {Table}
    assert total.bind(IMAGE).form(Table) == Table(20.0)


def test_violation_of_a_sum_is_the_worst():
    wrong = SOFT.flip(1).sort(dim=1).values[:, [0, 2, 1]]  # class 1 the likeliest
    alone = Majority().bind(IMAGE)
    assert float(alone.violation(wrong).min()) > 1
    total = Sum([TotalVariation(), Majority(), Majority(3.0)]).bind(IMAGE)
    torch.testing.assert_close(total.violation(wrong), alone.violation(wrong))
    assert total.energy(wrong).isinf().all()
    assert total.penalty(wrong).isfinite().all()


def test_plus_makes_a_sum():
    total = GridCRF(2.0) + TotalVariation() + TotalVariation(3.0)
    assert isinstance(total, Sum)
    expected = sum(part.bind(IMAGE).energy(SOFT) for part in (GridCRF(2.0), TotalVariation(), TotalVariation(3.0)))
    torch.testing.assert_close(total.bind(IMAGE).energy(SOFT), expected)


def test_invalid_sums_are_refused():
    with pytest.raises(UsageError, match="at least one"):
        Sum([])
    with pytest.raises(UsageError, match="weight of a sum"):
        Sum(["tv"], weight=-1.0)
    with pytest.raises(UsageError, match="Did you mean 'grid-crf'"):
        Sum(["grid-cfr"])


def test_combine():
    assert combine(None) is None
    assert combine([]) is None
    assert combine("tv") == TotalVariation()
    assert combine({"name": "tv", "weight": 2.0}) == TotalVariation(2.0)
    assert combine([GridCRF(3.0)]) == GridCRF(3.0)
    assert combine(["tv", {"name": "grid-crf"}]) == Sum([TotalVariation(), GridCRF()])


# --------------------------------------------------------------------------------------------------------------------
# Terms


def test_missing_forms_name_what_is_offered():
    with pytest.raises(MissingForm, match=r"grid-crf does not offer Saddle; it offers GridGraph, Graph"):
        GridCRF().bind(IMAGE).form(Saddle)

    class Nothing(Regularizer):
        weight = 1.0
        forms = MappingProxyType({})

        def build(self, image, roi, spacing):
            return Blank(self, (image.shape[0], *image.shape[2:]), roi)

    class Blank(Term):
        def energy(self, probabilities):
            return self.check(probabilities).flatten(1).sum(1) * 0

    with pytest.raises(MissingForm, match="Nothing does not offer Graph; it offers no form"):
        Nothing().bind(IMAGE).form(Graph)


def test_probabilities_must_fit_the_images():
    with pytest.raises(UsageError, match=r"\(2, 3, 5, 5\).*tv was bound to.*\(2, 5, 6\)"):
        TotalVariation().bind(IMAGE).energy(SOFT[..., 1:])


def test_binding_cuts_the_gradient_of_the_image():
    """Weights are constants of the problem; an image that requires a gradient does not keep the graph alive."""
    image = IMAGE.clone().requires_grad_()
    assert not GridCRF().bind(image).form(GridGraph).weights.requires_grad


@pytest.mark.parametrize("weight", [-1e-9, math.nan, math.inf, -math.inf])
def test_invalid_weights_are_refused(weight):
    with pytest.raises(UsageError, match="weight of something"):
        check_weight(weight, "something")


def test_the_base_class_checks_the_weight():
    """Before the fields that a subclass checks, and in subclasses of it, which need not say so."""

    @dataclasses.dataclass(frozen=True)
    class Sharp(Impurity):
        sharpness: float = 1.0

        def __post_init__(self):
            if self.sharpness <= self.weight:
                raise UsageError("sharpness must exceed the weight")

    @dataclasses.dataclass(frozen=True)
    class Sharper(Sharp):
        def __post_init__(self):
            super().__post_init__()
            object.__setattr__(self, "sharpness", 2 * self.sharpness)

    for cls in (Impurity, Sharp, Sharper):
        for weight in (-1.0, float("nan"), float("inf")):
            with pytest.raises(UsageError, match=f"weight of .*{cls.__name__} must be finite and not negative"):
                cls(weight)
        with pytest.raises(UsageError, match=r"must be a number.*give other settings by name"):
            cls("heavy")
    with pytest.raises(UsageError, match="sharpness must exceed"):
        Sharp(1.0, sharpness=0.5)
    assert Sharper(1.0, sharpness=3.0).sharpness == 6.0
    with pytest.raises(UsageError, match="weight of grid-crf"):
        GridCRF(-1.0)


def test_what_was_meant_for_another_setting_is_no_weight():
    with pytest.raises(UsageError, match=r"weight of tv must be a number; got \(4, 5\).*by name"):
        TotalVariation((4, 5))
