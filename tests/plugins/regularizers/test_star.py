"""Star shape: conformance, the tree, reference vectors, what superlevel sets look like."""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from regloss import Batch, MissingForm, Saddle, TotalVariation, UsageError, create, solve
from regloss.numerics import one_hot
from regloss.testing import ConstraintConformance
from regloss.testing.suite import SIZES, box_region, irregular_region
from regloss_plugins.regularizers.star import StarShape


def parent_of(pixel, center):
    """The pixel one step towards the centre; Python rounds halves to even."""
    toward = [c - p for p, c in zip(pixel, center, strict=True)]
    longest = max(map(abs, toward))
    return tuple(round(p + t / max(longest, 1)) for p, t in zip(pixel, toward, strict=True))


def falling(size, center, drop, label=1):
    """Probabilities (2, 3, *S) of which one class's falls by ``drop`` with every step from the centre."""
    axes = torch.meshgrid(*[torch.arange(length) for length in size], indexing="ij")
    distance = torch.stack([(axis - c).abs() for axis, c in zip(axes, center, strict=True)]).amax(0).double()
    mine = 0.6 - drop * distance
    others = (1 - mine) / 2
    s = torch.stack([mine if k == label else others for k in range(3)])
    return s.expand(2, *s.shape).contiguous()


class TestCenterOfThePrediction(ConstraintConformance):
    """The most probable region of the class is one pixel, inside all regions of interest that the suite tries."""

    spatial = (1, 2, 3)
    symmetric = False

    def make(self):
        return StarShape(weight=1.7, label=2)

    def labels(self, ndim):
        labels = torch.zeros(2, *SIZES[ndim], dtype=torch.int64)
        labels[(slice(None), *[slice(1, 4)] * ndim)] = 2
        return labels

    def probabilities(self, ndim):
        inside = irregular_region(2, SIZES[ndim]).all(0) & box_region(1, SIZES[ndim])[0]
        center = inside.nonzero()[0].tolist()
        s = falling(SIZES[ndim], center, drop=0.02, label=2)
        # Elsewhere below 1/3, so that the centre alone is the most probable one.
        lower = s[:, 2] - 0.3
        lower[(slice(None), *center)] = 0.6
        return torch.stack([(1 - lower) / 2, (1 - lower) / 2, lower], dim=1)

    def discrete_violation(self, image, labels):
        return torch.zeros(len(labels))


class TestCenterGiven(ConstraintConformance):
    """In a crop the same coordinates are another pixel; the fall is small enough to be met about both."""

    spatial = (2,)
    symmetric = False

    def make(self):
        return StarShape(weight=0.8, label=1, center=(3, 2))

    def labels(self, ndim):
        labels = torch.zeros(2, *SIZES[ndim], dtype=torch.int64)
        labels[0, 2:5, 1:4] = 1
        labels[1, 3, :] = 1
        labels[1, 0] = 2
        return labels

    def probabilities(self, ndim):
        return falling(SIZES[ndim], (3, 2), drop=1e-3)

    def discrete_violation(self, image, labels):
        size = tuple(labels.shape[1:])
        energies = []
        for one in labels:
            met = all(one[parent_of(p, (3, 2))] == 1 for p in itertools.product(*map(range, size)) if one[p] == 1)
            energies.append(0.0 if met else 1.0)
        return torch.tensor(energies)


class TestWithoutWeight(TestCenterGiven):
    def make(self):
        return StarShape(weight=0.0, label=1, center=(3, 2))

    def labels(self, ndim):
        return ConstraintConformance.labels(self, ndim)

    def discrete_violation(self, image, labels):
        return torch.zeros(len(labels))


@pytest.mark.parametrize(("size", "center"), [((9,), (3,)), ((7, 9), (3, 5)), ((6, 8), (0, 7)), ((4, 5, 6), (2, 1, 5))])
def test_constraint_follows_the_tree(size, center):
    """Pixel by pixel, a class that is the pixel alone violates it unless the pixel is the centre."""
    term = StarShape(center=center).bind(torch.zeros(1, 1, *size))
    operator = term.form(Saddle).parts[0].operator
    for pixel in itertools.product(*map(range, size)):
        values = torch.zeros(1, 2, *size, dtype=torch.float64)
        values[(0, 1, *pixel)] = 1
        rise = operator.apply(values)[0, 1]
        expected = torch.zeros(size, dtype=torch.float64)
        for other in itertools.product(*map(range, size)):
            expected[other] = float(other == pixel) - float(parent_of(other, center) == pixel)
        assert torch.equal(rise, expected)


def test_oracle(oracles: Path):
    """The exact minimiser with the tree's constraint, by pdhg; the multipliers are not negative and complementary."""
    case = np.load(oracles / "star.npz")
    unary = -torch.from_numpy(case["o"]).T.reshape(1, 2, 9, 9)
    term = StarShape(center=tuple(case["centre"].tolist())).bind(torch.zeros(1, 1, 9, 9, dtype=torch.float64))
    operator = term.form(Saddle).parts[0].operator
    assert operator.norm**2 >= float(case["norm2_tree"])
    parents = [parent_of((index // 9, index % 9), (4, 4)) for index in range(81)]
    assert [9 * y + x for y, x in parents] == case["parent"].tolist()
    solver = create("solver", "pdhg", max_steps=20000, tolerance=1e-14)
    solution = solve(term, unary, solver, entropy=float(case["eps"]))
    expected = torch.from_numpy(case["u_tree"]).T.reshape(1, 2, 9, 9)
    torch.testing.assert_close(solution.probabilities, expected, rtol=0, atol=1e-6)
    (dual,) = solution.state.duals
    assert float(dual.min()) >= 0
    assert abs(float((dual * operator.apply(solution.probabilities)).sum())) < 1e-6
    assert float(term.violation(solution.probabilities)) < 1e-6


def disc(size, center, radius):
    y, x = torch.meshgrid(*[torch.arange(length) for length in size], indexing="ij")
    return ((y - center[0]) ** 2 + (x - center[1]) ** 2 <= radius**2).long().unsqueeze(0)


@pytest.mark.parametrize("radius", [3, 7.5, 10])
def test_a_disc_is_a_star_and_a_ring_is_not(radius):
    """Also the direction's sign: turned round, most of the disc's boundary would violate it."""
    labels = disc((31, 33), (15, 14), radius)
    term = StarShape(center=(15, 14)).bind(torch.zeros(1, 1, 31, 33))
    assert float(term.violation(one_hot(labels, 2, torch.float64))) == 0
    assert float(term.violation(one_hot(1 - labels, 2, torch.float64))) == 1
    ring = labels - disc((31, 33), (15, 14), 1.5)
    assert float(term.violation(one_hot(ring, 2, torch.float64))) == 1
    # A constraint has no energy, held or not.
    assert float(term.energy(one_hot(ring, 2, torch.float64))) == 0


def test_penalty_is_the_sum_of_squared_excesses():
    s = torch.rand(2, 3, 6, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    term = StarShape(weight=1.5, label=2, center=(2, 3)).bind(torch.zeros(2, 1, 6, 7))
    pixels = list(itertools.product(range(6), range(7)))
    expected = [1.5 * sum(max(0, float(u[p] - u[parent_of(p, (2, 3))])) ** 2 for p in pixels) for u in s[:, 2]]
    assert term.penalty(s).tolist() == pytest.approx(expected, rel=1e-12)
    worst = [max(0, *(float(u[p] - u[parent_of(p, (2, 3))]) for p in pixels)) for u in s[:, 2]]
    assert term.violation(s).tolist() == pytest.approx(worst, rel=1e-12)
    assert torch.autograd.gradcheck(term.penalty, (s.requires_grad_(),))


def test_superlevel_sets_of_the_solution_are_stars():
    """Of a noisy ring with bites; the constraint holds within tolerance, and exactly for the sets."""
    size, center = (33, 33), (16, 15)
    truth = disc(size, center, 11) - disc(size, (16, 22), 4) * disc(size, center, 11) - disc(size, center, 3)
    noise = torch.randn(1, *size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    score = 2 * truth.double() - 1 + noise
    unary = torch.stack([score, -score], dim=1) / 2
    term = StarShape(center=center).bind(torch.zeros(1, 1, *size, dtype=torch.float64))
    free = solve(
        term.regularizer.__class__(weight=0.0, center=center).bind(torch.zeros(1, 1, *size)), unary, "pdhg", entropy=0.5
    )
    assert float(term.violation(one_hot(free.labels, 2, torch.float64))) == 1
    solution = solve(term, unary, create("solver", "pdhg", max_steps=1500, tolerance=1e-8), entropy=0.5)
    assert float(term.violation(solution.probabilities)) < 1e-3
    for threshold in (0.2, 0.5, 0.8):
        above = (solution.probabilities[:, 1] > threshold).long()
        assert 0 < int(above.sum()) < 33 * 33
        assert float(term.violation(one_hot(above, 2, torch.float64))) == 0


def test_the_center_of_a_prediction():
    labels = torch.cat([disc((21, 25), (7, 9), 4), disc((21, 25), (12, 16), 5)])
    settings = StarShape().centered_on(one_hot(labels, 2, torch.float32))
    assert settings.center.tolist() == [[7, 9], [12, 16]]
    term = settings.bind(torch.zeros(2, 1, 21, 25))
    assert term.violation(one_hot(labels, 2, torch.float32)).tolist() == [0, 0]
    # A class that is the most probable one nowhere has a centre all the same.
    weak = one_hot(labels, 2, torch.float32).flip(1) * 0.2
    weak = torch.stack([1 - weak[:, 0], weak[:, 0]], dim=1)
    assert StarShape().centered_on(weak).center.tolist() == [[7, 9], [12, 16]]
    # Only the region of interest counts.
    region = torch.zeros(1, 21, 25, dtype=torch.bool)
    region[:, :, :10] = True
    assert StarShape().centered_on(one_hot(labels[:1], 2, torch.float32), region).center.tolist() == [[7, 8]]
    # Without any mass there, it is the region's own centre.
    empty = StarShape().centered_on(one_hot(labels[1:], 2, torch.float32), region)
    assert empty.center.tolist() == [[10, 4]]  # 4.5 rounds to even


def test_without_a_center_the_prediction_has_one():
    """Energy, violation and penalty take the centre of what they are given; a saddle form needs a prediction."""
    labels = disc((21, 25), (7, 9), 4)
    term = StarShape().bind(torch.zeros(1, 1, 21, 25))
    assert float(term.violation(one_hot(labels, 2, torch.float64))) == 0
    crescent = labels * (1 - disc((21, 25), (7, 11), 3))
    assert float(term.violation(one_hot(crescent, 2, torch.float64))) == 1
    with pytest.raises(MissingForm, match=r"star.*conditioned_on"):
        term.form(Saddle)
    conditioned = term.conditioned_on(one_hot(crescent, 2, torch.float64))
    assert conditioned.regularizer.center.tolist() == [[7, 8]]
    assert conditioned.form(Saddle).parts[0].dual_set.is_cone
    assert conditioned.conditioned_on(one_hot(labels, 2, torch.float64)) is conditioned


def test_solve_takes_the_center_of_the_unaries():
    """With the seeds and without labels that are not allowed; also in a sum, and each image its own."""
    labels = torch.cat([disc((15, 17), (5, 6), 4), disc((15, 17), (8, 9), 5)])
    bites = torch.cat([disc((15, 17), (5, 8), 1), disc((15, 17), (8, 7), 1)])
    score = (4.0 * labels * (1 - bites) - 2).double()
    unary = torch.stack([score, -score], dim=1)
    image = torch.zeros(2, 1, 15, 17, dtype=torch.float64)
    solver = create("solver", "pdhg", max_steps=5000, tolerance=1e-9)
    for prior in (StarShape(), StarShape() + TotalVariation(0.01)):
        term = prior.bind(image)
        assert prior.needs_prediction
        assert set(prior.forms) == {Saddle}
        solution = solve(term, unary, solver, entropy=0.5)
        center = StarShape().centered_on((-unary).softmax(1)).center
        about = StarShape(center=center).bind(image)
        assert float(about.violation(solution.probabilities).max()) <= 1e-8
        assert float(about.violation((-unary / 0.5).softmax(1)).min()) > 0.5
    # Seeds are part of the prediction, whatever the unaries say.
    fixed = torch.full((2, 15, 17), -1)
    fixed[:, 3, 12] = 1
    seeded = solve(StarShape().bind(image), torch.zeros_like(unary), solver, entropy=0.5, fixed=fixed)
    about = StarShape(center=(3, 12)).bind(image)
    assert float(about.violation(seeded.probabilities).max()) <= 1e-8
    assert float((seeded.probabilities[:, 1] > 0.5).sum()) >= 2


def test_a_center_that_seeds_contradict_is_moved_to_them():
    """Two discs have their centre of mass between them, where a seed says background."""
    labels = disc((15, 31), (7, 6), 5) | disc((15, 31), (7, 24), 5)
    score = (4.0 * labels - 2).double()
    unary = torch.stack([score, -score], dim=1)
    image = torch.zeros(1, 1, 15, 31, dtype=torch.float64)
    fixed = torch.full((1, 15, 31), -1)
    fixed[:, :, 15] = 0
    fixed[:, 6:9, 24] = 1
    for prior in (StarShape(), StarShape() + TotalVariation(0.01)):
        found = solve(prior.bind(image), unary, "pdhg", entropy=0.5, fixed=fixed)
        about = StarShape(center=(7, 24)).bind(image)
        assert about.violation_of_labels(found.labels, 2).tolist() == [0]
        assert bool((found.labels[fixed >= 0] == fixed[fixed >= 0]).all())
        assert 60 <= int(found.labels.sum()) <= 90
    # A centre that was given stays, and no centre will do for seeds on both sides.
    with pytest.raises(UsageError, match=r"star constraint.* image 0"):
        solve(StarShape(center=(7, 6)).bind(image), unary, "pdhg", entropy=0.5, fixed=fixed)
    fixed[:, 7, 6] = 1
    with pytest.raises(UsageError, match=r"star constraint.* image 0"):
        solve(StarShape().bind(image), unary, "pdhg", entropy=0.5, fixed=fixed)


def test_gradient_descent_takes_the_center_of_the_network():
    """No gradient flows through it: the loss's derivative is that about the centre that it has."""
    labels = disc((15, 17), (5, 6), 4)
    logits = torch.randn(1, 2, 15, 17, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    logits[:, 1] += 3 * (2 * labels - 1)
    batch = Batch(torch.zeros(1, 1, 15, 17, dtype=torch.float64), labels)
    gradients = []
    for center in (None, StarShape().centered_on(logits.softmax(1)).center):
        variable = logits.clone().requires_grad_()
        loop = create("outer-loop", "gradient-descent", regularizer=StarShape(weight=2.0, center=center))
        loop.objective(variable, batch).backward()
        gradients.append(variable.grad)
    assert torch.equal(*gradients)
    assert float(gradients[0].abs().max()) > 0


def test_a_center_at_the_border_and_in_a_corner():
    for center in ((0, 0), (8, 4)):
        term = StarShape(center=center).bind(torch.zeros(1, 1, 9, 9))
        assert float(term.violation(one_hot(disc((9, 9), center, 4), 2, torch.float64))) == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"label": -1}, "label"),
        ({"label": 1.0}, "label"),
        ({"center": (math.nan, 1)}, "finite"),
        ({"center": "middle"}, "coordinates"),
        ({"center": ()}, "coordinates"),
        ({"tolerance": 0}, "tolerance"),
        ({"weight": -1}, "weight"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(UsageError, match=message):
        StarShape(**settings)


@pytest.mark.parametrize(
    ("center", "message"),
    [
        ((9, 1), "outside the image"),
        ((-1, 1), "outside the image"),
        ((1, 2, 3), "must have the shape"),
        ([[1, 2], [3, 4]], "must have the shape"),
    ],
)
def test_bad_centers_are_refused(center, message):
    with pytest.raises(UsageError, match=message):
        StarShape(center=center).bind(torch.zeros(1, 1, 9, 9))


def test_a_label_outside_the_classes_is_refused():
    s = torch.full((1, 2, 5, 5), 0.5)
    for term in (
        StarShape(label=2, center=(2, 2)).bind(torch.zeros(1, 1, 5, 5)),
        StarShape(label=2).bind(torch.zeros(1, 1, 5, 5)),
    ):
        for evaluate in (term.energy, term.penalty, term.violation):
            with pytest.raises(UsageError, match=r"class 2.*K = 2"):
                evaluate(s)
    with pytest.raises(UsageError, match=r"class 2.*K = 2"):
        StarShape(label=2).centered_on(s)
    with pytest.raises(UsageError, match=r"class 2.*K = 2"):
        StarShape(label=2, center=(2, 2)).bind(torch.zeros(1, 1, 5, 5)).form(Saddle).value(s)
