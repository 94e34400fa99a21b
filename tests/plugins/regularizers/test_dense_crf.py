"""Dense CRF: conformance at every scale, relaxation and backend, its definition in plain loops, reference vectors."""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from regloss import Concave, DenseCRF, GridCRF, MissingForm, UsageError, solve
from regloss.testing import RegularizerConformance


def weights_by_loops(image, sigma_xy, sigma_rgb, scale, matrix=None):
    """(N, N) weights of one image (C, *S), zero diagonal: by the definition, or by a filter's ``matrix`` of blocks."""
    places = list(itertools.product(*map(range, image.shape[1:])))
    blocks = [tuple(math.floor(x * scale + 1e-9) for x in place) for place in places]
    names = sorted(set(blocks))
    colours = {
        name: torch.stack([image[(..., *place)] for place, block in zip(places, blocks, strict=True) if block == name])
        .mean(0)
        for name in names
    }  # fmt: skip
    if matrix is not None:
        index = torch.tensor([names.index(block) for block in blocks])
        weights = matrix[index][:, index].clone()
    else:
        place = torch.tensor(blocks, dtype=torch.float64) / (sigma_xy * scale)
        features = torch.cat([place, torch.stack([colours[block] for block in blocks]) / sigma_rgb], 1)
        weights = torch.exp(-(features[:, None] - features[None]).square().sum(-1) / 2)
    weights.fill_diagonal_(0)
    return weights / (math.sqrt(2 * math.pi) * sigma_xy) ** (image.ndim - 1)


class DenseConformance(RegularizerConformance):
    nonnegative = True

    def discrete_energy(self, image, labels):
        crf = self.make()
        energies = []
        for one, given in zip(image, labels.flatten(1), strict=True):
            matrix = None
            if crf.backend == "lattice":  # the energy is exact for the lattice's own weights
                term = crf.bind(one[None])
                size = term.affinity.filter.shape[1:]
                eye = torch.eye(math.prod(size), dtype=torch.float64)
                matrix = term.affinity.filter(eye.reshape(1, -1, *size)).reshape(math.prod(size), -1)
            weights = weights_by_loops(one, crf.sigma_xy, crf.sigma_rgb, crf.scale, matrix)
            energies.append(crf.weight / 2 * weights[given[:, None] != given[None, :]].sum())
        return torch.stack(energies)


class TestFullResolution(DenseConformance):
    def make(self):
        return DenseCRF(weight=1.7, sigma_xy=3.0, sigma_rgb=0.4, scale=1.0)


class TestHalfResolution(DenseConformance):
    def make(self):
        return DenseCRF(weight=0.6, sigma_xy=4.0, sigma_rgb=0.3)


class TestOddScale(DenseConformance):
    channels = 1
    spatial = (1, 2)

    def make(self):
        return DenseCRF(sigma_xy=4.0, sigma_rgb=0.3, scale=0.4)


class TestThirds(DenseConformance):
    spatial = (2,)

    def make(self):
        return DenseCRF(sigma_xy=4.0, sigma_rgb=0.3, scale=1 / 3)


class TestLattice(DenseConformance):
    # Where a region of interest or a batch moves the lattice, nothing changes: it begins at the pixels that count.
    tolerance = 1e-7

    def make(self):
        return DenseCRF(sigma_xy=3.0, sigma_rgb=0.3, scale=1.0, backend="lattice")


class TestFastLatticeAtHalfResolution(DenseConformance):
    spatial = (2,)
    channels = 1
    tolerance = 1e-7

    def make(self):
        return DenseCRF(sigma_xy=4.0, sigma_rgb=0.2, backend="lattice", accuracy="fast")


class TestFinestLattice(DenseConformance):
    spatial = (2,)
    channels = 2
    classes = 5
    tolerance = 1e-7

    def make(self):
        return DenseCRF(sigma_xy=4.0, sigma_rgb=0.2, scale=1.0, backend="lattice", accuracy="finest")


class TestQuadratic(DenseConformance):
    def make(self):
        return DenseCRF(weight=2.0, sigma_xy=3.0, sigma_rgb=0.4, relaxation="quadratic")


class TestNormalizedQuadratic(DenseConformance):
    def make(self):
        return DenseCRF(sigma_xy=3.0, sigma_rgb=0.4, scale=1.0, relaxation="normalized-quadratic")


class TestQuadraticOnTheLattice(DenseConformance):
    spatial = (2,)
    tolerance = 1e-7

    def make(self):
        return DenseCRF(sigma_xy=3.0, sigma_rgb=0.4, relaxation="quadratic", backend="lattice")


class TestSmoothness(DenseConformance):
    """Places alone."""

    spatial = (2,)

    def make(self):
        return DenseCRF(weight=1.3, sigma_xy=1.5, sigma_rgb=math.inf, scale=1.0)


# Costs of pairs of labels; only the symmetric part counts, and neither sign is assumed.
COSTS = torch.tensor([[0.1, 1.0, 0.3], [0.8, -0.2, -1.5], [0.5, 0.9, 0.4]], dtype=torch.float64)


class TestCompatibility(RegularizerConformance):
    symmetric = False
    channels = 2

    def make(self):
        return DenseCRF(weight=1.7, sigma_xy=3.0, sigma_rgb=0.4, scale=1.0, compatibility=COSTS)

    def discrete_energy(self, image, labels):
        crf = self.make()
        energies = []
        for one, given in zip(image, labels.flatten(1), strict=True):
            weights = weights_by_loops(one, crf.sigma_xy, crf.sigma_rgb, crf.scale)
            energies.append(crf.weight / 2 * (weights * COSTS[given][:, given]).sum())
        return torch.stack(energies)


class TestCompatibilityAtHalfResolution(TestCompatibility):
    spatial = (2,)

    def make(self):
        return DenseCRF(weight=0.7, sigma_xy=1.0, sigma_rgb=0.4, compatibility=COSTS)


class TestLearnableWidths(DenseConformance):
    spatial = (2,)

    def make(self):
        sigmas = torch.tensor([3.0, 0.4], dtype=torch.float64)
        return DenseCRF(weight=1.7, sigma_xy=sigmas[0], sigma_rgb=sigmas[1], scale=0.5)


class TestOracle:
    """A 12x12 image with every pair in a loop."""

    @pytest.fixture
    def dense(self, oracles: Path):
        return dict(np.load(oracles / "densecrf.npz"))

    @pytest.fixture
    def term(self, dense):
        image = torch.from_numpy(dense["img"]).movedim(-1, 0).unsqueeze(0)
        return DenseCRF(sigma_xy=float(dense["sigma_xy"]), sigma_rgb=float(dense["sigma_rgb"]), scale=1.0).bind(image)

    def test_energy(self, dense, term):
        s = torch.from_numpy(dense["S"]).T.reshape(1, 3, 12, 12)
        assert float(term.energy(s)) * term.affinity.mass == pytest.approx(float(dense["E_unordered"]), rel=1e-8)

    def test_energy_of_labels(self, dense, term):
        hard = torch.nn.functional.one_hot(torch.from_numpy(dense["hard"]).long(), 3).T.reshape(1, 3, 12, 12).double()
        assert float(term.energy(hard)) * term.affinity.mass == pytest.approx(float(dense["E_hard_potts"]), rel=1e-8)

    def test_gradient(self, dense, term):
        """The vectors' gradient does not use that classes sum to 1, ours does: they agree along the simplex."""
        s = torch.from_numpy(dense["S"]).T.reshape(1, 3, 12, 12).requires_grad_()
        (gradient,) = torch.autograd.grad(term.energy(s).sum() * term.affinity.mass, s)
        expected = torch.from_numpy(dense["grad_S"]).T.reshape(1, 3, 12, 12)
        torch.testing.assert_close(
            gradient - gradient.mean(1, keepdim=True), expected - expected.mean(1, keepdim=True), rtol=0, atol=1e-9
        )


@pytest.mark.parametrize("relaxation", ["bilinear", "quadratic", "normalized-quadratic"])
@pytest.mark.parametrize(("size", "seed"), [((12, 12), 0), ((17, 13), 1), ((24, 24), 2)])
def test_relaxations_by_all_pairs(relaxation, size, seed):
    """The same relaxation as that of grids, which looks at one pair at a time."""
    from regloss.potts import pair_cost

    generator = torch.Generator().manual_seed(seed)
    image = torch.rand(1, 3, *size, generator=generator, dtype=torch.float64)
    s = (2 * torch.randn(1, 4, *size, generator=generator, dtype=torch.float64)).softmax(1)
    places = torch.cartesian_prod(*(torch.arange(n, dtype=torch.float64) for n in size))
    features = torch.cat([image[0].flatten(1).T / 0.2, places / 5.0], 1)
    weights = torch.exp(-(features[:, None] - features[None]).square().sum(-1) / 2) / (2 * math.pi * 25)
    weights = weights.fill_diagonal_(0)
    flat = s.flatten(2)
    cost = pair_cost(relaxation, flat.unsqueeze(3), flat.unsqueeze(2))[0]
    energy = DenseCRF(sigma_xy=5.0, sigma_rgb=0.2, scale=1.0, relaxation=relaxation).bind(image).energy(s)
    assert float(energy) == pytest.approx(float((weights * cost).sum() / 2), rel=1e-10)


@pytest.mark.parametrize("backend", ["exact", "lattice"])
@pytest.mark.parametrize("relaxation", ["bilinear", "quadratic", "normalized-quadratic"])
def test_gradient_by_finite_differences(backend, relaxation):
    """Every single derivative, to 1e-5 of the largest, against the backend's own energy."""
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, 3, 5, 4, generator=generator, dtype=torch.float64)
    term = DenseCRF(sigma_xy=2.0, sigma_rgb=0.3, backend=backend, relaxation=relaxation).bind(image)
    logits = torch.randn(1, 3, 5, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(term.energy(logits.softmax(1)).sum(), logits)
    step = 1e-6
    for index in range(logits.numel()):
        moved = torch.zeros(logits.numel(), dtype=torch.float64)
        moved[index] = step
        moved = moved.reshape(logits.shape)
        with torch.no_grad():
            rise = term.energy((logits + moved).softmax(1)) - term.energy((logits - moved).softmax(1))
        assert float(rise) / (2 * step) == pytest.approx(
            float(gradient.flatten()[index]), abs=1e-5 * float(gradient.abs().max())
        )


def test_second_derivatives():
    """Needed by what differentiates through gradient steps; the filter is run again for them."""
    generator = torch.Generator().manual_seed(1)
    image = torch.rand(1, 1, 4, 4, generator=generator, dtype=torch.float64)
    term = DenseCRF(sigma_xy=2.0, sigma_rgb=0.3).bind(image)
    s = torch.rand(1, 2, 4, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(term.energy, s)


def test_labels_without_a_boundary_cost_nothing():
    """Exactly 0 in float32, where a difference of two large numbers would leave a rest of either sign."""
    image = torch.rand(1, 3, 90, 80, generator=torch.Generator().manual_seed(0))
    constant = torch.zeros(1, 4, 90, 80)
    constant[:, 2] = 1
    for backend in ("exact", "lattice"):
        assert DenseCRF(backend=backend).bind(image).energy(constant).tolist() == [0]


@pytest.mark.parametrize("backend", ["exact", "lattice"])
def test_a_mean_over_pixels_does_not_depend_on_resolution(backend):
    """Twice the pixels and twice the bandwidth give the same energy per pixel."""
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, 3, 24, 20, generator=generator, dtype=torch.float64)
    s = torch.randn(1, 3, 24, 20, generator=generator, dtype=torch.float64).softmax(1)
    small = DenseCRF(sigma_xy=8.0, sigma_rgb=0.3, scale=1.0, backend=backend).bind(image).energy(s) / s[0, 0].numel()
    fine, larger = (t.repeat_interleave(2, 2).repeat_interleave(2, 3) for t in (image, s))
    for scale in (1.0, 0.5):
        term = DenseCRF(sigma_xy=16.0, sigma_rgb=0.3, scale=scale, backend=backend).bind(fine)
        assert float(term.energy(larger)) / larger[0, 0].numel() == pytest.approx(float(small), rel=0.02)


def test_scale_is_near_full_resolution():
    """On a smooth image, blocks of 2x2 pixels say about the same as pixels."""
    y, x = torch.meshgrid(torch.linspace(0, 1, 40), torch.linspace(0, 1, 48), indexing="ij")
    image = torch.stack([y, x, (y * 3).sin().abs()]).unsqueeze(0).double()
    s = torch.stack([(4 * (x - y)).sigmoid(), 1 - (4 * (x - y)).sigmoid()]).unsqueeze(0).double()
    full, half = (DenseCRF(sigma_xy=10.0, sigma_rgb=0.2, scale=scale).bind(image).energy(s) for scale in (1.0, 0.5))
    assert float(half) == pytest.approx(float(full), rel=0.01)


def test_blocks_in_a_ragged_region_are_those_of_its_crop():
    """Blocks are counted from the region's corner, also where that is odd, and hold only pixels that count."""
    generator = torch.Generator().manual_seed(4)
    image = torch.rand(2, 3, 11, 9, generator=generator, dtype=torch.float64)
    s = torch.randn(2, 3, 11, 9, generator=generator, dtype=torch.float64).softmax(1)
    region = torch.zeros(2, 11, 9, dtype=torch.bool)
    region[0, 3:10, 1:8] = True
    region[1, 2:, 5:] = True
    region[1, 4:6, 6:] = False
    together = DenseCRF(sigma_xy=3.0, sigma_rgb=0.4).bind(image, region).energy(s)
    first = DenseCRF(sigma_xy=3.0, sigma_rgb=0.4).bind(image[:1, :, 3:10, 1:8]).energy(s[:1, :, 3:10, 1:8])
    inner = region[1:, 2:, 5:]
    second = DenseCRF(sigma_xy=3.0, sigma_rgb=0.4).bind(image[1:, :, 2:, 5:], inner).energy(s[1:, :, 2:, 5:])
    torch.testing.assert_close(together, torch.cat([first, second]), rtol=1e-12, atol=0)


@pytest.mark.parametrize("scale", [1.0, 0.5])
@pytest.mark.parametrize("given", [None, COSTS])
def test_derivatives_by_widths_and_costs(scale, given):
    """Of the energy and of its slope, by finite differences; in a ragged region of interest."""
    generator = torch.Generator().manual_seed(2)
    image = torch.rand(2, 3, 7, 6, generator=generator, dtype=torch.float64)
    s = torch.randn(2, 3, 7, 6, generator=generator, dtype=torch.float64).softmax(1).requires_grad_()
    cotangent = torch.randn(s.shape, generator=generator, dtype=torch.float64)
    cotangent = cotangent - cotangent.mean(1, keepdim=True)  # slopes are given up to a constant over the classes
    region = torch.ones(2, 7, 6, dtype=torch.bool)
    region[0, :2, 1:] = region[1, 5, 2] = False
    widths = torch.tensor([2.0, 0.3], dtype=torch.float64, requires_grad=True)
    costs = None if given is None else given.clone().requires_grad_()
    learnt = [widths] if costs is None else [widths, costs]

    def look(*tensors):
        crf = DenseCRF(1.5, tensors[0][0], tensors[0][1], scale, "exact", compatibility=(*tensors, None)[1])
        term = crf.bind(image, region)
        slope = term.form(Concave).supergradient(tensors[-1] if tensors[-1].shape == s.shape else s)
        return term.energy(s).sum() + (slope * cotangent).sum()

    torch.autograd.gradcheck(look, learnt, atol=1e-7, rtol=1e-5)
    found = torch.autograd.grad(look(*learnt), s)[0]
    step = 1e-6 * cotangent
    plain = DenseCRF(1.5, 2.0, 0.3, scale, "exact", compatibility=given).bind(image, region)

    def value(at):
        return plain.energy(at).sum() + (plain.form(Concave).supergradient(at) * cotangent).sum()

    with torch.no_grad():
        expected = float(value(s + step) - value(s - step)) / 2e-6
    assert float((found * cotangent).sum()) == pytest.approx(expected, rel=1e-5)


def test_derivatives_by_widths_through_a_lattice():
    """Near those of the exact filter, as its values are; in float32."""
    image = torch.rand(1, 3, 30, 26, generator=torch.Generator().manual_seed(0))
    s = torch.randn(1, 3, 30, 26, generator=torch.Generator().manual_seed(1)).softmax(1)
    found = []
    for backend in ("exact", "lattice"):
        widths = torch.tensor([6.0, 0.3], requires_grad=True)
        energy = DenseCRF(30.0, widths[0], widths[1], 1.0, backend).bind(image).energy(s)
        found.append(torch.autograd.grad(energy.sum(), widths)[0])
    torch.testing.assert_close(found[0], found[1], rtol=0.15, atol=0)


def test_costs_of_one_where_labels_differ_are_the_potts_model():
    generator = torch.Generator().manual_seed(2)
    image = torch.rand(1, 3, 7, 6, generator=generator, dtype=torch.float64)
    unary = torch.randn(1, 3, 7, 6, generator=generator, dtype=torch.float64)
    potts = DenseCRF(20.0, 2.0, 0.3).bind(image)
    general = DenseCRF(20.0, 2.0, 0.3, compatibility=1 - torch.eye(3)).bind(image)
    assert general.form(Concave).curvature == pytest.approx(potts.form(Concave).curvature)
    for solver in ("mean-field", "dca"):
        first, second = (solve(term, unary, solver, entropy=0.4).probabilities for term in (potts, general))
        torch.testing.assert_close(first, second, rtol=0, atol=1e-5)


@pytest.mark.parametrize("solver", ["mean-field", "dca"])
@pytest.mark.parametrize("seeded_only", [True, False])
def test_adm_proposes_with_it(solver, seeded_only):
    """Each image's classes are those that are seeded, whatever the others of the batch have; seeds stay."""
    from regloss import ADM, Batch

    generator = torch.Generator().manual_seed(0)
    image = torch.rand(2, 3, 12, 10, generator=generator)
    logits = torch.randn(2, 4, 12, 10, generator=generator)
    labels = torch.full((2, 12, 10), 255)
    labels[0, 2, 2:5], labels[0, 8, 4:7] = 1, 3
    labels[1, 4, 1:4], labels[1, 9, 6:8] = 0, 2
    loop = ADM(DenseCRF(weight=20.0, sigma_xy=4.0), solver, seeded_only=seeded_only, entropy="coupling")
    found = loop.propose(logits, Batch(image, labels)).labels
    assert torch.equal(found[labels != 255], labels[labels != 255])
    allowed = [{1, 3}, {0, 2}] if seeded_only else [set(range(4))] * 2
    for one, classes in zip(found, allowed, strict=True):
        assert set(one.unique().tolist()) <= classes


class TestSolving:
    """The concave form serves dca: with damping off and entropy 1, its step is parallel mean field."""

    def problem(self, backend):
        generator = torch.Generator().manual_seed(0)
        image = torch.rand(1, 3, 12, 10, generator=generator, dtype=torch.float64)
        unary = 2 * torch.randn(1, 3, 12, 10, generator=generator, dtype=torch.float64)
        return DenseCRF(weight=30.0, sigma_xy=4.0, sigma_rgb=0.5, scale=1.0, backend=backend).bind(image), unary

    @pytest.mark.parametrize("backend", ["exact", "lattice"])
    @pytest.mark.parametrize("entropy", [1.0, 0.02])
    def test_dca_never_rises(self, backend, entropy):
        from regloss import DCA

        term, unary = self.problem(backend)
        energies = []
        for steps in range(1, 12):
            energies.append(float(solve(term, unary, DCA(max_steps=steps), entropy=entropy).energy))
        assert all(after <= before + 1e-9 for before, after in itertools.pairwise(energies))
        assert energies[-1] < energies[0] - 1e-3

    def test_undamped_step_is_mean_field(self):
        from regloss import DCA

        term, unary = self.problem("exact")
        start = (-unary).softmax(1)
        s = start.flatten(2)
        eye = torch.eye(120, dtype=torch.float64).reshape(1, 120, 12, 10)
        matrix = term.affinity.filter(eye).reshape(120, 120).fill_diagonal_(0) * 30 / term.affinity.mass
        expected = (-unary.flatten(2) + s @ matrix).softmax(1).reshape(start.shape)
        found = solve(term, unary, DCA(max_steps=1, damped=False), entropy=1.0).probabilities
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)

    def test_smooths_noise(self):
        """Noisy unaries on two flat halves: what is left is the halves."""
        truth = torch.zeros(1, 20, 24, dtype=torch.int64)
        truth[:, :, 12:] = 1
        image = truth.double().unsqueeze(1) * 0.8 + 0.1
        noise = torch.randn(1, 2, 20, 24, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        unary = -torch.nn.functional.one_hot(truth, 2).movedim(-1, 1).double() + 1.5 * noise
        assert float((unary.argmin(1) != truth).double().mean()) > 0.2
        for backend in ("exact", "lattice"):
            term = DenseCRF(weight=30.0, sigma_xy=6.0, sigma_rgb=0.1, backend=backend).bind(image)
            assert torch.equal(solve(term, unary, "dca", entropy=0.5).labels, truth)

    def test_a_graph_solver_is_refused_by_name(self):
        term, unary = self.problem("exact")
        with pytest.raises(MissingForm, match=r"Solvers that can: dca, mean-field"):
            solve(term, unary, "alpha-expansion")

    def test_other_relaxations_offer_no_form(self):
        assert not DenseCRF(relaxation="quadratic").forms


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"weight": -1.0}, "weight"),
        ({"sigma_xy": 0.0}, "sigma_xy"),
        ({"sigma_xy": -3.0}, "sigma_xy"),
        ({"sigma_xy": math.inf}, "sigma_xy"),
        ({"sigma_xy": math.nan}, "sigma_xy"),
        ({"sigma_rgb": 15.0}, "divided by 255"),
        ({"sigma_rgb": 0.0}, "sigma_rgb"),
        ({"sigma_rgb": math.nan}, "sigma_rgb"),
        ({"scale": 0.0}, "scale"),
        ({"scale": 2.0}, "scale"),
        ({"backend": "permutohedral"}, "auto, exact, lattice"),
        ({"accuracy": "good"}, "fast, fine, finest"),
        ({"relaxation": "collision-cross-entropy"}, "gated-crf"),
        ({"sigma_xy": torch.ones(2)}, r"shape \(\).*\(2,\)"),
        ({"sigma_xy": torch.tensor(-1.0)}, "sigma_xy"),
        ({"sigma_rgb": torch.tensor(15.0)}, "divided by 255"),
        ({"sigma_rgb": torch.tensor(0.1), "relaxation": "quadratic"}, "need the bilinear relaxation"),
        ({"compatibility": torch.ones(2, 3)}, r"square.*\(2, 3\)"),
        ({"compatibility": torch.full((2, 2), math.nan)}, "not finite"),
        ({"compatibility": [[0, 1], [1, 0]]}, r"floating-point tensor \(K, K\)"),
        ({"compatibility": torch.eye(2), "relaxation": "quadratic"}, "need the bilinear relaxation"),
    ],
)
def test_invalid_settings_are_refused(settings, words):
    with pytest.raises(UsageError, match=words):
        DenseCRF(**settings)


@pytest.mark.parametrize(
    ("channels", "backend", "accuracy", "error"),
    [
        (1, "auto", "fine", 1e-12),
        (5, "auto", "fine", 1e-12),
        (1, "lattice", "fine", 0.02),
        (5, "lattice", "fine", 0.06),
    ],
)
def test_any_number_of_channels(channels, backend, accuracy, error):
    """The lattice's energy is near the exact one; its error grows with the number of axes."""
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, channels, 14, 12, generator=generator, dtype=torch.float64)
    s = torch.randn(1, 3, 14, 12, generator=generator, dtype=torch.float64).softmax(1)
    exact = DenseCRF(sigma_xy=5.0, sigma_rgb=0.5, backend="exact").bind(image).energy(s)
    found = DenseCRF(sigma_xy=5.0, sigma_rgb=0.5, backend=backend, accuracy=accuracy).bind(image).energy(s)
    assert float(found) == pytest.approx(float(exact), rel=error)


def test_single_pixels():
    """No pairs at all: no energy, at any scale; a region of one pixel is the same."""
    half = torch.full((1, 2, 1, 1), 0.5)
    assert DenseCRF().bind(torch.rand(1, 3, 1, 1)).energy(half).tolist() == [0]
    region = torch.zeros(1, 4, 4, dtype=torch.bool)
    region[0, 1, 2] = True
    assert DenseCRF().bind(torch.rand(1, 3, 4, 4), region).energy(half.expand(1, 2, 4, 4)).tolist() == [0]


def test_float16_images_and_probabilities():
    """Computed in float32, as grid-crf does."""
    image = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0)).half()
    s = torch.rand(1, 2, 8, 8, generator=torch.Generator().manual_seed(1)).softmax(1).half()
    for crf in (DenseCRF(sigma_xy=3.0), GridCRF()):
        energy = crf.bind(image).energy(s)
        assert energy.dtype == torch.float32
        assert float(energy) == pytest.approx(float(crf.bind(image.double()).energy(s.double())), rel=1e-4)
