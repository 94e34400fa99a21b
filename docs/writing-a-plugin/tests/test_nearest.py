"""The inherited checks, and what is special to this segmenter."""

import torch
from regloss_geodesic.nearest import NearestSeed

import regloss
from regloss.testing import SegmenterConformance


class TestNearestSeed(SegmenterConformance):
    def make(self) -> NearestSeed:
        return NearestSeed(contrast=0.05)


def test_distances_by_hand() -> None:
    """Steps of 1, but for the edge, which costs 1 + .8 / .4 = 3: the pixel at its foot is nearer to the left."""
    image = torch.tensor([[[0.1, 0.1, 0.1, 0.9, 0.9]]])
    scribbles = torch.tensor([[0, 255, 255, 255, 1]])
    found = regloss.create("segmenter", "nearest-seed", contrast=0.4)(image, scribbles=scribbles)
    assert found.labels.tolist() == [[0, 0, 0, 1, 1]]
    assert found.energy == found.bound == 0 + 1 + 2 + 1 + 0
