from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import regloss
from regloss.errors import UsageError
from regloss.testing import NetworkConformance
from regloss_plugins.networks.deeplabv2 import DeepLabV2
from regloss_plugins.networks.encoders.resnet import ResNet

RESNET101 = 44_549_160 - (2048 + 1) * 1000  # parameters with torchvision, without its classifier


def build(seed: int = 0, **settings: object) -> DeepLabV2:
    torch.manual_seed(seed)
    return DeepLabV2(**{"in_channels": 3, "classes": 4, "encoder": "resnet50", **settings})


def test_parameters_and_rates_of_the_paper() -> None:
    with torch.device("meta"):
        network = build(classes=21, encoder="resnet101")
    groups = {name: sum(p.numel() for p in group) for name, group in network.parameter_groups().items()}
    assert groups == {"backbone": RESNET101, "head": 4 * (2048 * 9 + 1) * 21}
    assert [layer.dilation for layer in network.classifiers] == [(6, 6), (12, 12), (18, 18), (24, 24)]
    assert network.encoder.layer4[-1].conv2.dilation == (4, 4)


@pytest.mark.parametrize("size", [(1, 1), (17, 26)])
@pytest.mark.parametrize("in_channels", [1, 3])
def test_logits_have_the_size_of_the_image(size: tuple[int, int], in_channels: int) -> None:
    image = torch.rand(1, in_channels, *size)
    with torch.no_grad():
        logits = build(in_channels=in_channels)(image)
    assert logits.shape == (1, 4, *size)
    assert logits.is_contiguous()
    assert logits.isfinite().all()


def test_logits_are_the_sum_of_four_classifiers() -> None:
    """Each alone, at the positions that an image of 8 m + 1 pixels has."""
    network = build().double().eval()
    image = torch.rand(1, 3, 25, 33, dtype=torch.float64)
    with torch.no_grad():
        logits = network(image)
        _, features = network.encoder((image - network.mean) / network.std)
        assert features.shape == (1, 2048, 4, 5)
        alone = sum(classifier(features) for classifier in network.classifiers)
    torch.testing.assert_close(logits[..., ::8, ::8], alone, rtol=1e-9, atol=1e-12)


def test_weights_of_torchvision(tmp_path: Path) -> None:
    path = tmp_path / "resnet50.safetensors"
    torch.manual_seed(5)
    state = ResNet(3, 50, 8).state_dict()
    save_file({**state, "fc.weight": torch.zeros(1000, 2048), "fc.bias": torch.zeros(1000)}, path)
    plain, loaded = build(), build(weights=path)
    for name, value in state.items():
        assert torch.equal(loaded.encoder.state_dict()[name], value)
    for name, value in plain.classifiers.state_dict().items():
        assert torch.equal(loaded.classifiers.state_dict()[name], value)


def test_bad_settings() -> None:
    with pytest.raises(UsageError, match="deeplabv2: encoder must be one of resnet101, resnet50, not 'vgg16'"):
        build(encoder="vgg16")
    with pytest.raises(UsageError, match="deeplabv2: classes must be a whole number"):
        build(classes=0)


class TestDeepLabV2(NetworkConformance):
    sizes = ((25, 33), (24, 24))

    def make(self):
        return regloss.create(
            "network", "deeplabv2", in_channels=self.in_channels, classes=self.classes, encoder="resnet50"
        )
