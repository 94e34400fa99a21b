"""Images of any number of channels: what looks at them takes two and five, in two dimensions and in three."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch

import regloss

COUNTS = (2, 5)
LOOK_AT_IMAGES: Mapping[str, Mapping[str, Any]] = {
    "grid-crf": {},
    "tv": {"edge_scale": 100.0},
    "nltv": {"neighbors": 4},
    "threshold-dynamics": {"sigma": 1.0, "edge": "sqrt", "edge_scale": 100.0},
    "dense-crf": {"backend": "exact"},
    "gated-crf": {"radius": 2},
    "normalized-cut": {},
    "kernel-cut": {},
    "tree-energy": {},
}

FROM_SCRIBBLES = [name for name in regloss.names("segmenter") if regloss.get("segmenter", name).takes_scribbles]


def image_of(channels: int, size: tuple[int, ...]) -> torch.Tensor:
    """Noise, but for the last channel, in which the right half is bright."""
    image = 0.1 * torch.rand(1, channels, *size, generator=torch.Generator().manual_seed(0))
    image[:, -1, ..., size[-1] // 2 :] += 0.8
    return image


@pytest.mark.parametrize("channels", COUNTS)
@pytest.mark.parametrize("name", LOOK_AT_IMAGES)
@pytest.mark.parametrize("size", [(8, 12), (4, 6, 8)])
def test_regularizers_see_the_last_channel(name: str, channels: int, size: tuple[int, ...]) -> None:
    """A boundary along its edge costs less than one elsewhere: the others are noise."""
    regularizer = regloss.create("regularizer", name, **LOOK_AT_IMAGES[name])
    right = torch.zeros(1, *size, dtype=torch.int64)
    right[..., size[-1] // 2 :] = 1
    beside = right.roll(1, -1).index_fill(-1, torch.tensor([0]), 0)
    term = regularizer.bind(image_of(channels, size))
    along, off = (
        float(term.energy(torch.nn.functional.one_hot(labels, 2).movedim(-1, 1).float())) for labels in (right, beside)
    )
    assert along < off


@pytest.mark.parametrize("channels", COUNTS)
@pytest.mark.parametrize("name", FROM_SCRIBBLES)
@pytest.mark.parametrize("size", [(16, 20), (5, 10, 12)])
def test_segmenters_see_the_last_channel(name: str, channels: int, size: tuple[int, ...]) -> None:
    image, scribbles = image_of(channels, size), torch.full((1, *size), 255)
    scribbles[..., 1], scribbles[..., -2] = 0, 1
    settings: dict[str, Any] = {}
    if name == "random-walker":
        settings = {"method": "direct"}
    if name == "graph-cut":
        settings = {"region_force": "gaussian-mixture"}  # a histogram of five channels would have a million bins
    segmenter = regloss.create("segmenter", name, **settings)
    found = segmenter(image, scribbles=scribbles).labels[0]
    assert torch.equal(found, (image[0, -1] > 0.5).long())


@pytest.mark.parametrize("channels", COUNTS)
@pytest.mark.parametrize("name", ["unet", "segnet", "plain-cnn", "deeplabv3plus"])
def test_networks(name: str, channels: int) -> None:
    network = regloss.create("network", name, in_channels=channels, classes=3).eval()
    with torch.no_grad():
        assert network(image_of(channels, (64, 64))).shape == (1, 3, 64, 64)
