"""Volume: conformance for exact volumes and bounds, what is refused, seeds of certainty by hand."""

import math

import pytest
import torch

from regloss import Ordered, Saddle, StarShape, Status, TotalVariation, UsageError, create, solve
from regloss.numerics import one_hot
from regloss.testing import ConstraintConformance
from regloss_plugins.regularizers.volume import Volume


class TestExact(ConstraintConformance):
    """Probabilities of 1/3 everywhere have equal volumes in every region."""

    spatial = (1, 2, 3)
    discrete = False

    def make(self):
        return Volume(weight=2.0, volumes=(1 / 3, 1 / 3, 1 / 3), unit="fraction")

    def probabilities(self, ndim):
        return torch.full_like(super().probabilities(ndim), 1 / 3)


class TestBounds(ConstraintConformance):
    spatial = (2, 3)
    symmetric = False

    def make(self):
        return Volume(weight=0.5, lower=(0.1, 0.05, 0.2), upper=(0.9, 0.6, 0.7), unit="fraction")

    def discrete_violation(self, image, labels):
        pixels = labels[0].numel()
        errors = []
        for one in labels:
            shares = [int((one == k).sum()) / pixels for k in range(3)]
            sides = zip((0.1, 0.05, 0.2), shares, (0.9, 0.6, 0.7), strict=True)
            errors.append(max(max(low - x, x - high, 0.0) for low, x, high in sides))
        return torch.tensor(errors, dtype=torch.float64)


class TestWithoutWeight(TestBounds):
    """Weight 0 switches it off, also where the volumes are wrong."""

    spatial = (2,)

    def make(self):
        return Volume(weight=0.0, volumes=(0.98, 0.01, 0.01), unit="fraction")

    def discrete_violation(self, image, labels):
        return torch.zeros(len(labels))


def labelled(text):
    labels = torch.tensor([[int(letter) for letter in row] for row in text.split()]).unsqueeze(0)
    return one_hot(labels, 3, torch.float64)


def bound(**settings):
    return Volume(**settings).bind(torch.zeros(1, 1, 2, 5, dtype=torch.float64))


def test_energy_violation_and_penalty_by_hand():
    s = labelled("00011 00012")
    assert float(bound(volumes=(6, 3, 1)).violation(s)) == 0
    off = bound(volumes=(5, 3, 2), weight=3.0)
    assert float(off.energy(s)) == 0
    assert float(off.violation(s)) == pytest.approx(0.1)
    # 10 pixels * (0.1^2 + 0.1^2), times the weight
    assert float(off.penalty(s)) == pytest.approx(0.6)
    limits = bound(lower=(0, 4, 0), upper=(9, 9, 1))
    assert float(limits.violation(s)) == pytest.approx(0.1)
    assert float(bound(upper=(6, 3, 1)).violation(s)) == 0
    assert float(bound(lower=(6, 3, 1)).violation(s)) == 0


def test_tolerance_decides_when_an_iterate_counts_as_meeting_it():
    """Not what the labels of a solution have to obey."""
    unary = torch.randn(1, 3, 2, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for tolerance, status in ((0.9, Status.MAX_STEPS), (1e-6, Status.NOT_MET)):
        term, solver = bound(volumes=(5, 3, 2), tolerance=tolerance), create("solver", "pdhg", max_steps=1)
        found = solve(term, unary, solver, entropy=0.5)
        assert found.status == (status,)
        assert 1e-3 < float(found.violation) < 0.9
        assert found.labels.flatten().bincount(minlength=3).tolist() == [5, 3, 2]


def test_only_the_region_counts():
    region = torch.tensor([[[True, True, True, True, False], [False] * 5]])
    term = Volume(volumes=(3, 1, 0)).bind(torch.zeros(1, 1, 2, 5), region)
    assert float(term.violation(labelled("00012 22222"))) == 0


def test_volumes_may_differ_by_image():
    image = torch.zeros(2, 1, 2, 5)
    s = torch.cat([labelled("00011 00012"), labelled("00000 00000")])
    assert Volume(volumes=[[6, 3, 1], [10, 0, 0]]).bind(image).violation(s).tolist() == [0, 0]
    off = Volume(volumes=torch.tensor([[6, 3, 1], [9.0, 1, 0]])).bind(image).violation(s)
    assert off.tolist() == pytest.approx([0, 0.1])


def test_rounded_fractions_are_scaled_to_fit():
    term = bound(volumes=(0.33333, 0.33333, 0.33333), unit="fraction")
    (part,) = term.form(Saddle).parts
    assert float(part.shift.sum() * 10**0.5) == pytest.approx(10, rel=1e-12)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "neither"),
        ({"volumes": (5, 5), "lower": (1, 1)}, "both"),
        ({"volumes": (11, -1)}, "not negative"),
        ({"volumes": (math.nan, 1)}, "finite"),
        ({"lower": (math.inf, 1)}, "finite"),
        ({"volumes": (10,)}, "K >= 2"),
        ({"volumes": ("a", "b")}, "numbers"),
        ({"volumes": 10}, "K >= 2"),
        ({"lower": (1, 2), "upper": (3, 4, 5)}, "same classes"),
        ({"volumes": (5, 5), "unit": "percent"}, "unit"),
        ({"volumes": (5, 5), "tolerance": 0}, "tolerance"),
        ({"volumes": (5, 5), "weight": math.inf}, "weight"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(UsageError, match=message):
        Volume(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"volumes": (5, 4)}, r"sum to 9, and there are 10 pixels. Scale them by 10 / 9"),
        ({"volumes": (0.5, 0.4), "unit": "fraction"}, "sum to 9"),
        ({"volumes": (0, 0)}, "sum to 0"),
        ({"lower": (6, 6)}, "at least 12"),
        ({"upper": (4, 4)}, "at most 8"),
        ({"lower": (6, 0), "upper": (5, 10)}, "exceeds the upper"),
        ({"volumes": [[5, 5], [5, 5]]}, "given for 2 images, but bound to 1"),
    ],
)
def test_impossible_volumes_are_refused(settings, message):
    with pytest.raises(UsageError, match=message):
        bound(**settings)


def test_volumes_for_other_classes_are_refused():
    term = bound(volumes=(5, 5))
    s = labelled("00011 00012")
    for evaluate in (term.energy, term.violation, term.penalty, term.form(Saddle).value):
        with pytest.raises(UsageError, match=r"2 classes, but the segmentation has K = 3"):
            evaluate(s)


@pytest.mark.parametrize(
    "settings", [{"volumes": (20, 12, 10)}, {"lower": (20, 0, 0), "upper": (42, 30, 5)}, {"upper": (42, 42, 5)}]
)
def test_two_solvers_agree(settings):
    """The first-order dual method on the saddle form and Newton's method end at the same point."""
    unary = torch.randn(2, 3, 6, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    term = Volume(**settings).bind(torch.zeros(2, 1, 6, 7, dtype=torch.float64))
    exact = solve(term, unary, create("solver", "dca"), entropy=0.4)
    dual = solve(term, unary, create("solver", "pdhg", max_steps=3000, tolerance=1e-10), entropy=0.4)
    torch.testing.assert_close(dual.probabilities, exact.probabilities, rtol=0, atol=1e-4)
    torch.testing.assert_close(dual.energy, exact.energy, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "regularizer",
    [
        Volume(volumes=(5, 3, 2)),
        Volume(lower=(1, 0, 0)),
        StarShape(center=(1, 1)),
        Ordered(),
    ],
    ids=str,
)
def test_a_hard_constraint_is_its_own_multiple(regularizer):
    """Y is a cone, as the set says; so weights of sums and learnt weights leave the part as it is."""
    form = regularizer.bind(torch.zeros(1, 1, 2, 5, dtype=torch.float64)).form(Saddle)
    (part,) = form.parts
    operator, dual_set = part.operator, part.dual_set
    assert dual_set.is_cone
    s = torch.rand(1, 3, 2, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    dual = torch.randn(operator.apply(s).shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    torch.testing.assert_close(dual_set.project(3 * dual), 3 * dual_set.project(dual))
    for factor in (3.0, torch.tensor(0.2, requires_grad=True)):
        assert form.scaled(factor).parts[0] is part
    (tv,) = TotalVariation().bind(torch.zeros(1, 1, 2, 5)).form(Saddle).parts
    assert not tv.dual_set.is_cone
    assert Saddle((tv,)).scaled(3.0).parts[0] is not tv


@pytest.mark.parametrize("regularizer", [StarShape(0.0, 1, (1, 1)), Ordered(0.0), Volume(0.0, (4, 3, 3))], ids=str)
def test_a_weight_of_0_leaves_nothing_to_solve_for(regularizer):
    assert regularizer.bind(torch.zeros(1, 1, 2, 5)).form(Saddle).parts == ()


def test_penalty_drives_gradient_descent_to_the_volumes():
    term = Volume(weight=1.0, volumes=(4, 3, 3)).bind(torch.zeros(1, 1, 2, 5))
    logits = torch.randn(1, 3, 2, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()
    optimizer = torch.optim.SGD([logits], lr=2.0)
    for _ in range(300):
        optimizer.zero_grad()
        term.penalty(logits.softmax(1)).sum().backward()
        optimizer.step()
    assert float(term.violation(logits.softmax(1).detach())) < 1e-3
