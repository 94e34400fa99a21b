"""Total variation: conformance, facts on labels, reference energies, symmetries."""

from pathlib import Path

import numpy as np
import pytest
import torch

from regloss import Graph, GridCRF, GridGraph, MissingForm, Saddle, TotalVariation
from regloss.numerics import one_hot
from regloss.testing import RegularizerConformance


def tv_by_loops(probabilities, isotropic):
    """Forward differences, one pixel and one class at a time; 2D."""
    batch, classes, height, width = probabilities.shape
    energies = []
    for b in range(batch):
        total = 0.0
        for k in range(classes):
            u = probabilities[b, k].tolist()
            for y in range(height):
                for x in range(width):
                    dy = u[y + 1][x] - u[y][x] if y + 1 < height else 0.0
                    dx = u[y][x + 1] - u[y][x] if x + 1 < width else 0.0
                    total += (dy**2 + dx**2) ** 0.5 if isotropic else abs(dy) + abs(dx)
        energies.append(total)
    return torch.tensor(energies, dtype=torch.float64)


class TestAnisotropic(RegularizerConformance):
    spatial = (1, 2, 3)
    nonnegative = True

    def make(self):
        return TotalVariation(weight=1.3)


class TestIsotropic(RegularizerConformance):
    nonnegative = True
    discrete = False

    def make(self):
        return TotalVariation(weight=0.7, isotropic=True)


class TestWithoutWeight(RegularizerConformance):
    """Weight 0 is a valid setting of a solver's problem: all forms stay, and say 0."""

    spatial = (2,)

    def make(self):
        return TotalVariation(weight=0.0)


@pytest.mark.parametrize("isotropic", [False, True])
def test_energy_follows_the_definition(isotropic):
    probabilities = torch.randn(2, 3, 5, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64).softmax(1)
    energy = TotalVariation(isotropic=isotropic).bind(torch.zeros(2, 1, 5, 6)).energy(probabilities)
    torch.testing.assert_close(energy, tv_by_loops(probabilities, isotropic), rtol=1e-12, atol=0)


@pytest.mark.parametrize(("size", "connectivity"), [((6, 7), 4), ((4, 5, 3), 6)])
@pytest.mark.parametrize("classes", [2, 3, 5])
def test_on_labels_it_is_twice_the_cut_of_nearest_neighbours(size, connectivity, classes):
    labels = torch.randint(classes, (3, *size), generator=torch.Generator().manual_seed(classes))
    image = torch.zeros(3, 1, *size, dtype=torch.float64)
    energy = TotalVariation(weight=1.5).bind(image).energy(one_hot(labels, classes, torch.float64))
    cut = GridCRF(connectivity=connectivity).bind(image).form(GridGraph).cut(labels)
    assert energy.tolist() == (2 * 1.5 * cut).tolist()


def test_isotropic_on_labels_counts_corners_less():
    """A corner pixel with jumps along both axes costs sqrt 2 instead of 2, for each of the two classes."""
    labels = torch.zeros(1, 4, 4, dtype=torch.int64)
    labels[0, :2, :2] = 1
    probabilities = one_hot(labels, 2, torch.float64)
    image = torch.zeros(1, 1, 4, 4)
    assert float(TotalVariation().bind(image).energy(probabilities)) == 8
    # The 2x2 square in the corner has jumps at 4 pixel sides; both sides of pixel (1, 1) meet in one gradient.
    expected = 2 * (2 + 2**0.5)
    assert float(TotalVariation(isotropic=True).bind(image).energy(probabilities)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", ["tv_aniso", "tv_iso"])
def test_oracle_energy(name: str, oracles: Path):
    """The minimum of -<A, o> + eps <A, log A> + lam TV(A), found by an interior-point solver."""
    case = dict(np.load(oracles / f"{name}.npz"))
    height, width = int(case["H"]), int(case["W"])
    solution = torch.from_numpy(case["A"]).T.reshape(1, 3, height, width)
    scores = torch.from_numpy(case["o"]).T.reshape(1, 3, height, width)
    term = TotalVariation(weight=float(case["lam"]), isotropic=name == "tv_iso").bind(torch.zeros(1, 1, height, width))
    entropy = float(case["eps"]) * torch.special.xlogy(solution, solution).sum()
    energy = term.energy(solution) - (scores * solution).sum() + entropy
    assert float(energy) == pytest.approx(float(case["E"]), abs=1e-9)
    assert term.form(Saddle).norm ** 2 >= float(case["norm2"])
    assert term.form(Saddle).norm ** 2 < 8.0001


def test_anisotropic_is_symmetric_and_isotropic_is_not():
    """Flips and quarter turns leave the l1 length as it is; forward differences favour one corner."""
    probabilities = torch.randn(1, 3, 9, 9, generator=torch.Generator().manual_seed(4), dtype=torch.float64).softmax(1)
    image = torch.zeros(1, 1, 9, 9)
    moved = [probabilities.flip(-1), probabilities.flip(-2), probabilities.rot90(1, (-2, -1))]
    plain, isotropic = TotalVariation().bind(image), TotalVariation(isotropic=True).bind(image)
    for other in moved:
        assert float(plain.energy(other)) == pytest.approx(float(plain.energy(probabilities)), rel=1e-12)
    assert abs(float(isotropic.energy(moved[0]) - isotropic.energy(probabilities))) > 1e-3


def test_isotropic_is_no_cut():
    """On labels it depends on more than pairs, so it offers no graph."""
    term = TotalVariation(isotropic=True).bind(torch.zeros(1, 1, 3, 3))
    for kind in (Graph, GridGraph):
        with pytest.raises(MissingForm, match="tv does not offer"):
            term.form(kind)


def test_the_image_does_not_matter():
    probabilities = torch.full((1, 2, 4, 4), 0.5)
    probabilities[0, :, 0] = torch.tensor([[0.9], [0.1]])
    energies = [
        TotalVariation().bind(image).energy(probabilities)
        for image in (torch.zeros(1, 1, 4, 4), torch.rand(1, 3, 4, 4))
    ]
    assert energies[0] == energies[1]
