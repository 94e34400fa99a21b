"""Convex shape: conformance, reference fills, what holds for all convex and for all other regions."""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from regloss import Projection, UsageError
from regloss.numerics import one_hot
from regloss.testing import ConstraintConformance
from regloss.testing.suite import SIZES
from regloss_plugins.regularizers.convex import ConvexShape, dents, fill

RADII = (1.5, 3, 5, 9, 15)


class TestConvex(ConstraintConformance):
    """Probabilities whose class 1 exceeds 1/2 in a box, whose part in any region is convex too."""

    spatial = (1, 2, 3)
    symmetric = False

    def make(self):
        return ConvexShape(weight=1.2, label=1, radii=(1.5, 3))

    def probabilities(self, ndim):
        s = 0.2 + 0.1 * super().probabilities(ndim)
        s[(slice(None), 1, *[slice(1, 4)] * ndim)] += 0.8
        return s / s.sum(1, keepdim=True)

    def labels(self, ndim):
        labels = torch.zeros(2, *SIZES[ndim], dtype=torch.int64)
        labels[(slice(None), *[slice(1, 4)] * ndim)] = 1
        return labels

    def discrete_violation(self, image, labels):
        dents = [active_by_loops(labels == 1, (radius,)).flatten(1).sum(1) for radius in (1.5, 3)]
        return torch.stack(dents).amax(0).double()

    # A ragged region of interest is no convex set, so what lies in it is none; the box is.
    def _terms(self, ndim):
        yield self.make().bind(self.image(ndim)), "everywhere"


class TestWithoutWeight(TestConvex):
    spatial = (2,)

    def make(self):
        return ConvexShape(weight=0.0)

    def labels(self, ndim):
        return ConstraintConformance.labels(self, ndim)

    def discrete_violation(self, image, labels):
        return torch.zeros(len(labels))


def active_by_loops(regions, radii):
    """The condition, pixel by pixel; (B, *S) bool."""
    found = torch.zeros_like(regions)
    size = tuple(regions.shape[1:])
    for number, region in enumerate(regions):
        for radius in radii:
            reach = int(radius)
            ball = [
                z
                for z in itertools.product(range(-reach, reach + 1), repeat=len(size))
                if sum(step**2 for step in z) <= radius**2
            ]
            for p in itertools.product(*map(range, size)):
                if region[p]:
                    continue
                near = [tuple(a + b for a, b in zip(p, z, strict=True)) for z in ball]
                near = [q for q in near if all(0 <= a < length for a, length in zip(q, size, strict=True))]
                found[(number, *p)] |= 2 * sum(bool(region[q]) for q in near) > len(ball)
    return found


def polygon(size, corners):
    """(1, H, W) bool: lattice points in the convex hull of ``corners`` (M, 2)."""
    return torch.from_numpy(in_hull(size, corners)).unsqueeze(0)


def hull_of(points):
    """Corners of the convex hull in order, by the monotone chain; exact for integers."""
    points = sorted(map(tuple, points))

    def half(given):
        chain = []
        for p in given:
            while len(chain) > 1 and cross(chain[-2], chain[-1], p) <= 0:
                chain.pop()
            chain.append(p)
        return chain[:-1]

    return half(points) + half(points[::-1])


def cross(a, b, c):
    return (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])


def in_hull(size, points):
    corners = hull_of(points)
    y, x = np.meshgrid(*map(np.arange, size), indexing="ij")
    inside = np.ones(size, dtype=bool)
    for a, b in zip(corners, corners[1:] + corners[:1], strict=True):
        inside &= cross(a, b, (y, x)) >= 0
    return inside


@pytest.mark.parametrize("name", ["L", "U", "disc", "discs_far", "discs_near", "border_halfdisc"])
def test_oracle(name: str, oracles: Path):
    case = np.load(oracles / "cs.npz")

    def mask(prefix):
        return torch.from_numpy(np.unpackbits(case[f"{prefix}_{name}"]).reshape(1, 32, 32).astype(bool))

    radii = tuple(case["radii"].tolist())
    filled, sweeps = fill(mask("in"), radii)
    assert torch.equal(filled, mask("out"))
    assert sweeps == int(case[f"its_{name}"])
    term = ConvexShape(radii=radii).bind(torch.zeros(1, 1, 32, 32))
    s = term.form(Projection).project(one_hot(mask("in").long(), 2, torch.float64))
    assert torch.equal(s, one_hot(mask("out").long(), 2, torch.float64))
    assert float(term.violation(s)) == 0
    was_convex = torch.equal(mask("in"), mask("out"))
    before = one_hot(mask("in").long(), 2, torch.float64)
    assert (float(term.violation(before)) == 0) == was_convex
    assert float(term.energy(before)) == 0


def random_polygons(count, size=(28, 31), seed=0, outside=8):
    """Convex hulls of random points, many of them cut off by the frame."""
    generator = np.random.default_rng(seed)
    for _ in range(count):
        center = generator.integers(0, size)
        points = center + generator.integers(-outside - 6, outside + 7, (generator.integers(3, 9), 2))
        if len({tuple(p) for p in points}) < 3 or len(hull_of(points.tolist())) < 3:
            continue
        yield polygon(size, points.tolist())


def test_convex_polygons_have_no_dents():
    """Also where they touch the frame, for every radius."""
    regions = torch.cat(list(random_polygons(200)))
    assert len(regions) > 190
    touching = regions[:, 0].any(1) | regions[:, -1].any(1) | regions[:, :, 0].any(1) | regions[:, :, -1].any(1)
    assert int(touching.sum()) > 60
    for radius in (*RADII, 1, 2, 7.3, 40):
        assert not bool(dents(regions, radius).any())


def random_regions(count, size=(28, 31), seed=0):
    """Smooth blobs of all kinds of shapes."""
    noise = torch.randn(count, 1, *size, generator=torch.Generator().manual_seed(seed))
    smooth = torch.nn.functional.avg_pool2d(noise, 7, stride=1, padding=3, count_include_pad=False)[:, 0]
    y, x = torch.meshgrid(*[torch.linspace(-1, 1, length) for length in size], indexing="ij")
    return smooth * 4 + 0.8 - 2 * (x**2 + y**2) > 0


def test_fill_stays_in_the_hull_is_idempotent_and_monotone():
    regions = random_regions(30)
    filled, _ = fill(regions, RADII)
    assert int((filled & ~regions).sum()) > 500
    for region, result in zip(regions, filled, strict=True):
        hull = torch.from_numpy(in_hull(region.shape, region.nonzero().tolist()))
        assert not bool((result & ~hull).any())
        assert not bool((region & ~result).any())
    again, sweeps = fill(filled, RADII)
    assert torch.equal(again, filled)
    assert sweeps == len(RADII)
    smaller = regions & random_regions(30, seed=1)
    assert not bool((fill(smaller, RADII)[0] & ~filled).any())


def test_dents_follow_the_definition():
    regions = random_regions(2, (9, 10))
    for radius in (1, 1.5, 3, 12):
        assert torch.equal(dents(regions, radius), active_by_loops(regions, (radius,)))
    blocks = torch.rand(2, 4, 5, 6, generator=torch.Generator().manual_seed(0)) > 0.4
    assert torch.equal(dents(blocks, 1.5), active_by_loops(blocks, (1.5,)))


def test_an_l_becomes_nearly_its_hull():
    """Known sizes of the published example: 897 pixels, hull 1275, filled to 1228."""
    region = torch.zeros(1, 64, 64, dtype=torch.bool)
    region[:, 12:52, 12:27] = True
    region[:, 37:52, 12:52] = True
    filled, _ = fill(region, RADII)
    hull = torch.from_numpy(in_hull((64, 64), region[0].nonzero().tolist()))
    share = int(filled.sum()) / int(hull.sum())
    assert 0.95 < share <= 1
    # Small radii see nothing of so wide a dent.
    assert int((fill(region, (1.5,))[0] & ~region).sum()) < 10


def test_soft_background_does_not_leak():
    """Background at 0.12 all over: the fill follows the mask, and probabilities that were not added stay."""
    labels = torch.zeros(1, 40, 40, dtype=torch.int64)
    labels[:, 8:30, 8:16] = 1
    labels[:, 22:30, 8:32] = 1
    s = one_hot(labels, 2, torch.float64) * 0.76 + 0.12
    term = ConvexShape().bind(torch.zeros(1, 1, 40, 40))
    projected = term.form(Projection).project(s)
    hull = torch.from_numpy(in_hull((40, 40), labels[0].nonzero().tolist()))
    added = (projected != s).any(1)[0]
    assert not bool((added & ~hull).any())
    assert int(added.sum()) > 50
    assert projected[0, 1][added].unique().tolist() == [1]
    assert torch.equal(projected.sum(1), torch.ones(1, 40, 40, dtype=torch.float64))


def test_gradient_passes_where_nothing_was_added():
    region = torch.zeros(1, 12, 12, dtype=torch.int64)
    region[:, 2:10, 2:5] = region[:, 7:10, 2:10] = 1
    s = (one_hot(region, 2, torch.float64) * 0.6 + 0.2).requires_grad_()
    projected = ConvexShape().bind(torch.zeros(1, 1, 12, 12)).form(Projection).project(s)
    (gradient,) = torch.autograd.grad(projected.sum(), s)
    added = (projected != s).any(1, keepdim=True).expand_as(s)
    assert bool(added.any())
    assert torch.equal(gradient, (~added).double())


def test_nested_regions_stay_nested():
    """Ordering before filling survives the fill."""
    outer = random_regions(10, seed=3)
    inner = outer & random_regions(10, seed=4)
    assert not bool((fill(inner, RADII)[0] & ~fill(outer, RADII)[0]).any())


def test_penalty_by_hand():
    """One background pixel between two of a class, in 1D: its fraction with radius 1 is 2/3 of 0.9, plus 0.2 / 3."""
    s = torch.tensor([0.9, 0.2, 0.9, 0.0], dtype=torch.float64)
    term = ConvexShape(weight=2.0, radii=(1,)).bind(torch.zeros(1, 1, 4))
    fractions = [(0.9 + 0.2) / 3, 2 / 3, (0.2 + 0.9) / 3, 0.3]
    expected = 2 * sum(max(0, (1 - u) * (2 * f - 1)) for u, f in zip(s.tolist(), fractions, strict=True))
    assert float(term.penalty(torch.stack([1 - s, s]).unsqueeze(0))) == pytest.approx(expected, rel=1e-12)
    assert expected > 0


def test_penalty_gradient_on_random_probabilities():
    s = torch.rand(1, 2, 6, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    term = ConvexShape(radii=(1.5, 3)).bind(torch.zeros(1, 1, 6, 7))
    assert float(term.penalty(s.detach())) > 0
    assert torch.autograd.gradcheck(term.penalty, (s,))


def test_a_region_of_interest_bounds_the_fill():
    region = torch.zeros(1, 20, 20, dtype=torch.int64)
    region[:, 4:16, 4:8] = region[:, 12:16, 4:16] = 1
    roi = torch.ones(1, 20, 20, dtype=torch.bool)
    roi[:, 10] = False
    s = one_hot(region, 2, torch.float64)
    projected = ConvexShape().bind(torch.zeros(1, 1, 20, 20), roi).form(Projection).project(s)
    assert torch.equal(projected[:, :, 10], s[:, :, 10])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"radii": ()}, "radii"),
        ({"radii": (0,)}, "radii"),
        ({"radii": (3, math.nan)}, "radii"),
        ({"radii": (3, math.inf)}, "radii"),
        ({"radii": 3}, "radii"),
        ({"radii": "3"}, "radii"),
        ({"label": -1}, "label"),
        ({"label": "disc"}, "label"),
        ({"weight": -1.0}, "weight"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(UsageError, match=message):
        ConvexShape(**settings)


def test_a_label_outside_the_classes_is_refused():
    term = ConvexShape(label=2).bind(torch.zeros(1, 1, 5, 5))
    s = torch.full((1, 2, 5, 5), 0.5)
    for evaluate in (term.energy, term.penalty, term.violation, term.form(Projection).project):
        with pytest.raises(UsageError, match=r"class 2.*K = 2"):
            evaluate(s)


def test_nan_is_no_convex_region():
    term = ConvexShape().bind(torch.zeros(1, 1, 5, 5))
    with pytest.raises(UsageError, match="probabilities holds 50 values that are NaN"):
        term.violation(torch.full((1, 2, 5, 5), math.nan))


def test_empty_and_full_regions_are_convex():
    term = ConvexShape().bind(torch.zeros(2, 1, 9, 9))
    s = one_hot(torch.stack([torch.zeros(9, 9), torch.ones(9, 9)]).long(), 2, torch.float32)
    assert term.violation(s).tolist() == [0, 0]
    assert torch.equal(term.form(Projection).project(s), s)
