"""Ordered sets: conformance, isotonic regression against reference vectors and definitions, nested sets."""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from regloss import Projection, UsageError, create, solve
from regloss.testing import ConstraintConformance
from regloss_plugins.regularizers.ordered import Ordered, classes_of, isotonic, nested_of, ordered_sigmoid


class TestOrdered(ConstraintConformance):
    spatial = (1, 2, 3)
    symmetric = False

    def make(self):
        return Ordered(weight=1.4)

    def probabilities(self, ndim):
        """Sorted, and apart from each other, since the penalty bends where they meet."""
        s = super().probabilities(ndim).sort(dim=1).values
        return (s + 0.1 * torch.arange(3).reshape(1, 3, *[1] * ndim)) / 1.3

    def labels(self, ndim):
        return torch.full_like(super().labels(ndim), 2)

    def discrete_violation(self, image, labels):
        # One-hot probabilities do not fall from class to class where the last one is 1.
        return torch.where((labels == 2).flatten(1).all(1), 0.0, 1.0)


class TestWithoutWeight(TestOrdered):
    spatial = (2,)

    def make(self):
        return Ordered(weight=0.0)

    def labels(self, ndim):
        return ConstraintConformance.labels(self, ndim)

    def discrete_violation(self, image, labels):
        return torch.zeros(len(labels))


def pool_adjacent_violators(sequence):
    """The textbook's algorithm on one list of numbers."""
    pools = []
    for value in sequence:
        pools.append([value, 1])
        while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
            (a, m), (b, n) = pools[-2:]
            pools[-2:] = [[(a * m + b * n) / (m + n), m + n]]
    return [mean for mean, count in pools for _ in range(count)]


@pytest.mark.parametrize("count", [1, 2, 3, 5, 12])
def test_isotonic_regression_pools_adjacent_violators(count):
    values = torch.randn(40, count, generator=torch.Generator().manual_seed(count), dtype=torch.float64)
    expected = torch.tensor([pool_adjacent_violators(row.tolist()) for row in values], dtype=torch.float64)
    torch.testing.assert_close(isotonic(values), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(isotonic(values.T, dim=0), expected.T, rtol=0, atol=1e-12)


def test_oracle(oracles: Path):
    case = {name: torch.from_numpy(np.asarray(value)) for name, value in np.load(oracles / "order.npz").items()}
    y, entropy = case["y"], float(case["eps"])
    torch.testing.assert_close(isotonic(y), case["isotonic"], rtol=0, atol=1e-10)
    term = Ordered().bind(torch.zeros(24, 1, 1, dtype=torch.float64))
    projected = term.form(Projection).project(y.unsqueeze(2)).squeeze(2)
    torch.testing.assert_close(projected, case["proj_box"], rtol=0, atol=1e-10)
    torch.testing.assert_close(projected, case["proj_box_qp"], rtol=0, atol=1e-7)
    found = ordered_sigmoid(y.unsqueeze(2), entropy).squeeze(2)
    torch.testing.assert_close(found, case["sigmoid_ordered"], rtol=0, atol=1e-10)
    torch.testing.assert_close(found, case["sigmoid_ordered_cvx"], rtol=0, atol=1e-7)
    # The other order of the two steps is another map.
    assert float((isotonic(y.clamp(0, 1)) - case["proj_box"]).abs().max()) > 0.1


def test_output_is_sorted_and_a_fixed_point():
    y = torch.randn(2, 4, 5, 6, generator=torch.Generator().manual_seed(0))
    u = ordered_sigmoid(y, 0.3)
    assert float(torch.diff(u, dim=1).min()) >= -1e-6
    torch.testing.assert_close(isotonic(u), u)
    assert Ordered().bind(torch.zeros(2, 1, 5, 6)).violation(u).amax().item() <= 1e-6


def test_derivative_averages_over_pools():
    y = torch.tensor([[0.3, 2.0, 1.0, 0.9, 4.0, 3.0]], dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(isotonic, y)[0, :, 0]
    pools = [torch.full((size, size), 1 / size, dtype=torch.float64) for size in (1, 3, 2)]
    expected = torch.block_diag(*pools)
    torch.testing.assert_close(jacobian, expected, rtol=0, atol=1e-10)


def test_sets_are_nested_at_every_threshold():
    """Thresholded channels lie in each other, and turn into label maps and back."""
    u = ordered_sigmoid(torch.randn(1, 3, 8, 9, generator=torch.Generator().manual_seed(1), dtype=torch.float64))
    for threshold in (0.2, 0.5, 0.7):
        masks = u > threshold
        assert not bool((masks[:, :-1] & ~masks[:, 1:]).any())
    s = classes_of(u)
    assert s.shape == (1, 4, 8, 9)
    assert float(s.min()) >= -1e-12
    torch.testing.assert_close(s.sum(1), torch.ones(1, 8, 9, dtype=torch.float64))
    torch.testing.assert_close(nested_of(s), u)


def test_linear_costs_of_label_maps():
    """Sum over g of o_g (u_g - u_(g-1)) is the cost of label l, for sublevel sets u_g = [l <= g]; l = 1 lies inmost."""
    cost = torch.randn(4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for label in range(1, 5):
        nested = torch.tensor([float(label <= g) for g in range(1, 4)], dtype=torch.float64).reshape(1, 3, 1)
        from_inside = classes_of(nested)[0, :, 0].flip(0)
        assert float((from_inside * cost).sum()) == pytest.approx(float(cost[label - 1]), rel=1e-14)


def test_penalty_and_violation_by_hand():
    u = torch.tensor([0.7, 0.4, 0.9, 0.2]).reshape(1, 4, 1, 1)
    term = Ordered(weight=2.0).bind(torch.zeros(1, 1, 1, 1))
    assert float(term.penalty(u)) == pytest.approx(2 * (0.3**2 + 0.7**2))
    assert float(term.violation(u)) == pytest.approx(0.7)
    assert float(term.energy(u)) == 0


def test_only_the_region_counts():
    u = torch.tensor([[[0.2, 0.9]], [[0.8, 0.1]]]).unsqueeze(0)
    region = torch.tensor([[[True, False]]])
    term = Ordered().bind(torch.zeros(1, 1, 1, 2), region)
    assert float(term.violation(u)) == 0
    assert torch.equal(term.form(Projection).project(u), u)


def test_the_saddle_form_can_be_solved():
    """With probabilities that sum to 1, against enumeration on a fine grid of them."""
    unary = torch.tensor([-1.0, 0.3, 0.2], dtype=torch.float64).reshape(1, 3, 1, 1)
    term = Ordered().bind(torch.zeros(1, 1, 1, 1, dtype=torch.float64))
    solution = solve(term, unary, create("solver", "pdhg", max_steps=3000, tolerance=1e-10), entropy=0.5)
    best = math.inf
    for first, second in itertools.product(range(101), range(151)):
        s = [first / 300, second / 300]
        s.append(1 - sum(s))
        if s[0] <= s[1] <= s[2]:
            entropy = sum(p * math.log(p) for p in s if p > 0)
            best = min(best, sum(u * p for u, p in zip((-1.0, 0.3, 0.2), s, strict=True)) + 0.5 * entropy)
    assert best - 1e-3 < float(solution.energy) <= best + 1e-6


@pytest.mark.parametrize(("settings", "message"), [({"tolerance": 0}, "tolerance"), ({"weight": math.nan}, "weight")])
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(UsageError, match=message):
        Ordered(**settings)
    with pytest.raises(UsageError, match="entropy"):
        ordered_sigmoid(torch.zeros(1, 2, 3), 0.0)
