"""The inherited checks, and what is special to this layer."""

import torch
from regloss_geodesic.votes import GeodesicVotes

import regloss
from regloss.testing import LayerConformance


class TestGeodesicVotes(LayerConformance):
    def make(self) -> GeodesicVotes:
        return GeodesicVotes(weight=1.5, contrast=0.3, steps=3)


def test_a_pixel_without_opinion_follows_its_side_of_the_edge() -> None:
    image = torch.zeros(1, 1, 8, 8)
    image[..., 4:] = 1.0
    logits = torch.where(image > 0.5, 2.0, -2.0) * torch.tensor([-0.5, 0.5]).reshape(1, 2, 1, 1)
    logits[..., 4, 3] = 0
    layer = regloss.create("layer", "geodesic-votes", contrast=0.05)
    assert torch.equal(layer(logits, image).argmax(1), (image[:, 0] > 0.5).long())
