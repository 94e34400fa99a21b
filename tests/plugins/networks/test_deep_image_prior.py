from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

import regloss
from regloss.errors import UsageError
from regloss.testing import NetworkConformance
from regloss_plugins.networks.deep_image_prior import DeepImagePrior


def build(**settings: object) -> DeepImagePrior:
    torch.manual_seed(0)
    return DeepImagePrior(**{"in_channels": 2, "classes": 3, "depth": 2, "channels": 4, **settings})


class TestDeepImagePrior(NetworkConformance):
    def make(self) -> nn.Module:
        return regloss.create(
            "network", "deep-image-prior", in_channels=self.in_channels, classes=self.classes, depth=2, channels=8
        )


def test_the_defaults_are_published() -> None:
    """Five scales of 128 feature maps, with skips of four."""
    network = DeepImagePrior(3, 3)
    finer = [3, 128, 128, 128, 128]
    down = sum(9 * before * 128 + 9 * 128 * 128 + 4 * 128 for before in finer)
    skips = sum(4 * before + 2 * 4 for before in finer)
    up = 5 * (2 * 132 + 9 * 132 * 128 + 128 * 128 + 4 * 128)
    assert sum(p.numel() for p in network.parameters()) == down + skips + up + 3 * 128 + 3


def test_it_sees_farther_the_deeper_it_is() -> None:
    """Without a normalisation, a logit depends on the pixels around it alone."""

    def reach(depth: int) -> int:
        network = build(depth=depth, norm="none").double()
        image = torch.rand(1, 2, 96, 96, dtype=torch.float64, requires_grad=True)
        network(image)[..., 48, 48].sum().backward()
        seen = (image.grad != 0).any(1)[0].any(0).nonzero().squeeze(1)
        return int(seen[-1] - seen[0]) + 1

    reaches = [reach(depth) for depth in (1, 2, 3)]
    assert reaches[0] < 20 < reaches[1] < 40 < reaches[2]


def test_volumes_and_padding() -> None:
    assert build(dims=3)(torch.rand(1, 2, 5, 9, 4)).shape == (1, 3, 5, 9, 4)
    network = build().eval()
    image = torch.rand(1, 2, 17, 10)
    padded = functional.pad(image, (0, 2, 0, 3), mode="replicate")
    assert torch.equal(network(image), network(padded)[..., :17, :10])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"depth": 0}, "depth must be a whole number of at least 1, not 0"),
        ({"depth": 13}, "depth must be at most 12, not 13"),
        ({"skip_channels": 0}, "skip_channels must be a whole number"),
        ({"norm": "layer"}, "norm must be one of batch, instance, group, none"),
        ({"dims": 1}, "dims must be 2"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, object], words: str) -> None:
    with pytest.raises(UsageError, match="deep-image-prior: " + words):
        build(**settings)
