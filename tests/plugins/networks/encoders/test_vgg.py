from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from regloss.errors import UsageError
from regloss_plugins.networks.encoders.encoder import load_weights
from regloss_plugins.networks.encoders.vgg import VGG16

# Parameters of torchvision's vgg16, in all and in its three fully connected layers; the places of its convolutions.
PUBLISHED, CONNECTED = 138_357_544, 123_642_856
PLACES = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)


def build(seed: int = 0, in_channels: int = 3) -> VGG16:
    torch.manual_seed(seed)
    return VGG16(in_channels)


def test_parameters_are_those_of_torchvision() -> None:
    with torch.device("meta"):
        network = build()
    assert sum(p.numel() for p in network.parameters()) == PUBLISHED - CONNECTED
    assert list(network.state_dict()) == [f"features.{place}.{kind}" for place in PLACES for kind in ("weight", "bias")]


def test_strides_and_positions() -> None:
    """A stride of s leaves (n - 1) // s + 1 positions, whatever n is."""
    network = build().eval()
    with torch.no_grad():
        for size in ((17, 33), (20, 9)):
            pooled = network.pooled(torch.rand(1, 3, *size))
            for features, stride, width in zip(pooled, (2, 4, 8, 8, 8), (64, 128, 256, 512, 512), strict=True):
                assert features.shape == (1, width, *((length - 1) // stride + 1 for length in size))
            low_level, high_level = network(torch.rand(1, 3, *size))
            assert low_level.shape == pooled[1].shape
            assert high_level.shape == pooled[4].shape


class Strided(nn.Module):
    """VGG-16 as published but for the windows of its poolings, which are 3x3: strides everywhere, no dilation."""

    def __init__(self, dilated: VGG16) -> None:
        super().__init__()
        layers = []
        for layer in dilated.features:
            if isinstance(layer, nn.Conv2d):
                same = nn.Conv2d(layer.in_channels, layer.out_channels, 3, padding=1).double()
                same.load_state_dict(layer.state_dict())
                layers.append(same)
            else:
                layers.append(nn.MaxPool2d(3, 2, 1) if isinstance(layer, nn.MaxPool2d) else nn.ReLU())
        self.features = nn.Sequential(*layers)

    def forward(self, image: Tensor) -> Tensor:
        found: Tensor = self.features[:-1](image)
        return found


def test_dilation_keeps_what_is_before_the_fourth_pooling() -> None:
    """The convolutions behind it see every second position, as with a stride; the pooling's window itself does not."""
    network = build().double().eval()
    image = torch.rand(1, 3, 33, 49, dtype=torch.float64)
    strided = Strided(network)
    with torch.no_grad():
        fourth = strided.features[:23](image)  # up to the ReLU before the fourth pooling
        torch.testing.assert_close(network.features[:23](image), fourth, rtol=0, atol=0)
        after = strided(image)
        pooled = network.features[23](fourth)
        finer = network.features[24:30](pooled)
    torch.testing.assert_close(finer[..., ::2, ::2], after, rtol=1e-10, atol=1e-10)


def test_weights_of_torchvision_and_timm(tmp_path: Path) -> None:
    trained = build(1)
    path = tmp_path / "vgg16.pth"
    for others in (("classifier.0", "classifier.3", "classifier.6"), ("pre_logits.fc1", "pre_logits.fc2", "head.fc")):
        torch.save({**trained.state_dict(), **{f"{name}.weight": torch.rand(3, 4) for name in others}}, path)
        loaded = build()
        left = load_weights(loaded, path)
        assert sorted(left) == sorted(f"{name}.weight" for name in others)
        for name, value in trained.state_dict().items():
            assert torch.equal(loaded.state_dict()[name], value)


def test_weights_of_another_encoder(tmp_path: Path) -> None:
    path = tmp_path / "other.pth"
    torch.save({"conv1.weight": torch.rand(64, 3, 7, 7)}, path)
    with pytest.raises(UsageError, match=r"26 missing: features\.0\.weight.*1 unexpected: conv1\.weight"):
        load_weights(build(), path)
