"""Grid CRF: conformance of every relaxation and neighbourhood, its definition in plain loops, reference vectors."""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch

import regloss
from regloss import Graph, GridCRF, GridGraph, UsageError, solve
from regloss.testing import RegularizerConformance


def pairs_of(size, connectivity):
    """Unordered neighbour pairs of pixels with their distances, by looking at all pairs of pixels."""
    pixels = list(itertools.product(*map(range, size)))
    differing = {4: 1, 8: 2, 6: 1, 18: 2, 26: 3}[connectivity]
    for p, q in itertools.combinations(pixels, 2):
        steps = [abs(a - b) for a, b in zip(p, q, strict=True)]
        if max(steps) == 1 and sum(steps) <= differing:
            yield p, q, math.sqrt(sum(steps))


def energy_by_loops(crf, image, labels):
    """The module's formula, one image, one pair at a time."""
    connectivity = 26 if image.ndim == 5 and crf.connectivity == 8 else crf.connectivity
    energies = []
    for one, given in zip(image.numpy(), labels.numpy(), strict=True):
        pairs = list(pairs_of(given.shape, connectivity))
        contrasts = [float(((one[(..., *p)] - one[(..., *q)]) ** 2).sum()) for p, q, _ in pairs]
        variance = sum(contrasts) / len(pairs) if crf.sigma == "auto" else crf.sigma**2
        energies.append(
            crf.weight
            * sum(
                math.exp(-contrast / (2 * variance)) / (distance if crf.diagonal == "distance" else 1)
                for (p, q, distance), contrast in zip(pairs, contrasts, strict=True)
                if given[p] != given[q]
            )
        )
    return torch.tensor(energies, dtype=torch.float64)


class GridCRFConformance(RegularizerConformance):
    nonnegative = True

    def discrete_energy(self, image, labels):
        return energy_by_loops(self.make(), image, labels)


class TestBilinear(GridCRFConformance):
    def make(self):
        return GridCRF(weight=1.7)


class TestQuadratic(GridCRFConformance):
    spatial = (2,)

    def make(self):
        return GridCRF(weight=0.6, connectivity=4, relaxation="quadratic")


class TestTotalVariation(GridCRFConformance):
    channels = 1

    def make(self):
        return GridCRF(weight=2.0, sigma=0.2, diagonal="unit", relaxation="total-variation")


class TestQuadraticOnAllNeighbours(GridCRFConformance):
    classes = 2

    def make(self):
        return GridCRF(diagonal="unit", relaxation="quadratic")


class TestFaces(GridCRFConformance):
    spatial = (3,)

    def make(self):
        return GridCRF(weight=3.0, connectivity=6, relaxation="total-variation")


class TestFacesAndEdges(GridCRFConformance):
    spatial = (3,)

    def make(self):
        return GridCRF(connectivity=18, sigma=0.5)


class TestFullNeighbourhoodOfVolumes(GridCRFConformance):
    spatial = (3,)
    classes = 5

    def make(self):
        return GridCRF(connectivity=26, relaxation="quadratic")


class TestLine(RegularizerConformance):
    spatial = (1,)
    nonnegative = True

    def make(self):
        return GridCRF(connectivity=2)


def test_relaxations_are_ordered():
    """On the simplex |p - q|^2 <= |p - q|_1 <= 2 (1 - <p, q>)."""
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, 3, 6, 5, generator=generator, dtype=torch.float64)
    for seed in range(20):
        logits = 3 * torch.randn(1, 4, 6, 5, generator=generator.manual_seed(seed), dtype=torch.float64)
        quadratic, variation, bilinear = (
            float(GridCRF(relaxation=name).bind(image).energy(logits.softmax(1)))
            for name in ("quadratic", "total-variation", "bilinear")
        )
        assert quadratic < variation < bilinear


def test_gradient_of_bilinear_is_minus_neighbours():
    """METHODS: the gradient of sum of w (1 - <S_p, S_q>) is -W S."""
    image = torch.rand(1, 1, 4, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    term = GridCRF().bind(image)
    graph = term.form(Graph)
    matrix = torch.zeros(20, 20, dtype=torch.float64)
    for (p, q), w in zip(graph.edges.tolist(), graph.weights[0].tolist(), strict=True):
        matrix[p, q] = matrix[q, p] = w
    s = torch.randn(1, 3, 4, 5, dtype=torch.float64).softmax(1).requires_grad_()
    (gradient,) = torch.autograd.grad(term.energy(s).sum(), s)
    expected = -(s.detach().flatten(2) @ matrix).reshape(1, 3, 4, 5)
    torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-12)


@pytest.fixture(scope="module")
def potts(oracles: Path):
    return dict(np.load(oracles / "potts.npz"))


class TestOracle:
    """3x4 grids with 8 neighbours, whose energies were enumerated."""

    def image(self, potts, i):
        return torch.from_numpy(potts["img"][i]).movedim(-1, 0).unsqueeze(0)

    @pytest.mark.parametrize("i", range(5))
    def test_weights(self, potts, i):
        graph = GridCRF(diagonal="unit").bind(self.image(potts, i)).form(Graph)
        found = {
            tuple(sorted(edge)): w for edge, w in zip(graph.edges.tolist(), graph.weights[0].tolist(), strict=True)
        }
        expected = dict(zip(map(tuple, potts["pairs"].tolist()), potts["w"][i].tolist(), strict=True))
        assert found == pytest.approx(expected, rel=1e-12)

    @pytest.mark.parametrize("relaxation", ["bilinear", "quadratic", "total-variation"])
    @pytest.mark.parametrize("i", range(5))
    def test_energy_of_the_best_labels(self, potts, i, relaxation):
        labels = torch.from_numpy(potts["labels"][i]).reshape(1, 3, 4)
        probabilities = torch.nn.functional.one_hot(labels, 3).movedim(-1, 1).double()
        term = GridCRF(diagonal="unit", relaxation=relaxation).bind(self.image(potts, i))
        unary = torch.from_numpy(potts["unary"][i]).T.reshape(1, 3, 3, 4)
        energy = term.energy(probabilities) + (unary * probabilities).sum()
        assert float(energy) == pytest.approx(float(potts["E_min"][i]), abs=1e-9)

    @pytest.mark.parametrize("i", range(5))
    def test_bilinear_relaxation_is_tight(self, potts, i):
        """Not even soft labels found by many gradient steps from random starts are cheaper than the best labels."""
        term = GridCRF(diagonal="unit").bind(self.image(potts, i))
        unary = torch.from_numpy(potts["unary"][i]).T.reshape(1, 3, 3, 4)
        for seed in range(3):
            logits = torch.randn(1, 3, 3, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
            logits.requires_grad_()
            optimizer = torch.optim.Adam([logits], lr=0.3)
            for _ in range(60):
                s = logits.softmax(1)
                energy = term.energy(s).sum() + (unary * s).sum()
                optimizer.zero_grad()
                energy.backward()
                optimizer.step()
            assert float(energy.detach()) >= float(potts["E_min"][i]) - 1e-9


def test_flat_image_has_weights_of_distance_alone():
    graph = GridCRF().bind(torch.full((1, 3, 4, 4), 0.3)).form(GridGraph)
    for offset, weights in zip(graph.offsets, graph.weights[0], strict=True):
        inside = weights[weights > 0]
        assert inside.unique().tolist() == pytest.approx([1 / math.hypot(*offset)])


def test_contrast_rule_looks_at_each_image_alone():
    """A second image of other contrast in the batch, or bright void, leaves the bandwidth as it is."""
    generator = torch.Generator().manual_seed(5)
    image = torch.rand(1, 1, 5, 5, generator=generator)
    pair = torch.cat([image, image * 0.01])
    weights = GridCRF().bind(pair).form(GridGraph).weights
    # The rule is invariant under a change of contrast: exp(-d^2 / (2 mean d^2)).
    torch.testing.assert_close(weights[1], weights[0], rtol=1e-4, atol=1e-6)


def test_single_pixel_and_single_row():
    """No pairs at all, and pairs along one axis only."""
    lone = GridCRF().bind(torch.rand(1, 1, 1, 1))
    assert lone.energy(torch.full((1, 2, 1, 1), 0.5)).tolist() == [0]
    assert lone.form(Graph).edges.shape == (0, 2)
    row = GridCRF().bind(torch.zeros(1, 1, 1, 4))
    assert row.form(GridGraph).cut(torch.tensor([[[0, 1, 1, 0]]])).tolist() == [2]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"weight": -1.0}, "weight"),
        ({"weight": math.nan}, "weight"),
        ({"weight": math.inf}, "weight"),
        ({"connectivity": 5}, "connectivity"),
        ({"sigma": 15.0}, "divided by 255"),
        ({"sigma": 0.0}, "sigma"),
        ({"sigma": "automatic"}, "sigma"),
        ({"diagonal": "long"}, "distance"),
        ({"relaxation": "convex"}, "bilinear, quadratic, total-variation"),
    ],
)
def test_invalid_settings_are_refused(settings, words):
    with pytest.raises(UsageError, match=words):
        GridCRF(**settings)


@pytest.mark.parametrize(
    ("connectivity", "ndim", "ways_out"), [(4, 3, "6 or 18 or 26"), (26, 2, "4 or 8"), (6, 2, "4 or 8")]
)
def test_connectivity_must_exist_in_the_dimension(connectivity, ndim, ways_out):
    with pytest.raises(UsageError, match=ways_out):
        GridCRF(connectivity=connectivity).bind(torch.zeros(1, 1, *[3] * ndim))


def test_presets_of_the_papers_share_one_energy_with_the_solver():
    """What the solver reports is what the loss says of its labels."""
    image = torch.rand(2, 3, 8, 9, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    unary = torch.randn(2, 4, 8, 9, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    term = regloss.TrustRegion.preset("voc-scribbles").regularizer.bind(image)
    solution = solve(term, unary, "alpha-expansion")
    stated = term.energy(solution.probabilities) + (unary * solution.probabilities).flatten(1).sum(1)
    torch.testing.assert_close(solution.energy, stated, rtol=1e-12, atol=1e-9)
