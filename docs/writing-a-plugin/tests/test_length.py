"""The inherited checks, and what is special to this regularizer."""

import torch
from regloss_geodesic.length import GeodesicLength

import regloss
from regloss.testing import RegularizerConformance


class TestGeodesicLength(RegularizerConformance):
    spatial = (2,)
    nonnegative = True

    def make(self) -> GeodesicLength:
        return GeodesicLength(weight=2.0, contrast=0.3)


def disc(radius: float) -> torch.Tensor:
    """(1, H, W): 1 inside a disc, 0 outside."""
    axis = torch.arange(101.0) - 50
    return (axis[:, None] ** 2 + axis**2 < radius**2).long().unsqueeze(0)


def test_a_disc_on_a_flat_image_has_its_circumference() -> None:
    term = GeodesicLength().bind(torch.zeros(1, 1, 101, 101))
    length = float(term.form(regloss.GridGraph).cut(disc(40.0)))
    assert abs(length / (2 * torch.pi * 40) - 1) < 0.02


def test_alpha_expansion_finds_the_edge_of_the_image() -> None:
    """Two seeds and no unaries: the shortest boundary between them runs along the disc's edge."""
    inside = disc(30.0)
    term = regloss.create("regularizer", "geodesic-length", contrast=0.01).bind(0.2 + 0.6 * inside.unsqueeze(1).float())
    seeds = torch.full_like(inside, -1)
    seeds[0, 45:55, 45:55], seeds[0, 0] = 1, 0
    solution = regloss.solve(term, torch.zeros(1, 2, 101, 101), "alpha-expansion", fixed=seeds)
    assert torch.equal(solution.labels, inside)
    assert float(solution.gap) == 0  # two classes: one minimum cut, exact
