from __future__ import annotations

import pytest
import torch
from torch import nn

from regloss_plugins.networks.encoders.mobilenetv2 import MobileNetV2

# torchvision's mobilenet_v2: parameters without classifier, entries of its state dict.
PUBLISHED_PARAMETERS, PUBLISHED_ENTRIES = 2_223_872, 314
# features.18, which the encoder leaves out: 320 -> 1280 channels and its norm; the classifier has two entries.
LAST_PARAMETERS, LAST_ENTRIES, CLASSIFIER_ENTRIES = 320 * 1280 + 2 * 1280, 6, 2

SHAPES = {
    "features.0.0.weight": (32, 3, 3, 3),
    "features.0.1.running_var": (32,),
    "features.1.conv.0.0.weight": (32, 1, 3, 3),
    "features.1.conv.0.1.bias": (32,),
    "features.1.conv.1.weight": (16, 32, 1, 1),
    "features.1.conv.2.weight": (16,),
    "features.2.conv.0.0.weight": (96, 16, 1, 1),
    "features.2.conv.1.0.weight": (96, 1, 3, 3),
    "features.2.conv.1.1.running_mean": (96,),
    "features.2.conv.2.weight": (24, 96, 1, 1),
    "features.2.conv.3.num_batches_tracked": (),
    "features.4.conv.2.weight": (32, 144, 1, 1),
    "features.7.conv.2.weight": (64, 192, 1, 1),
    "features.11.conv.2.weight": (96, 384, 1, 1),
    "features.14.conv.1.0.weight": (576, 1, 3, 3),
    "features.17.conv.0.1.weight": (960,),
    "features.17.conv.2.weight": (320, 960, 1, 1),
    "features.17.conv.3.running_var": (320,),
}


# Mean, standard deviation and three values of the low-level and of the high-level features.
REFERENCE = (
    (0.0200562819311, 0.568687231512, 0.158839420766, 1.22445505044, -0.0732981246465),
    (0.0164944246364, 0.672868414968, 0.708351305572, 0.190010734819, 0.508026345717),
)


def build(output_stride: int) -> MobileNetV2:
    torch.manual_seed(0)
    return MobileNetV2(3, output_stride)


@pytest.mark.parametrize("output_stride", [8, 16, 32])
def test_parameters_are_those_of_torchvision(output_stride: int) -> None:
    network = build(output_stride)
    assert sum(p.numel() for p in network.parameters()) == PUBLISHED_PARAMETERS - LAST_PARAMETERS
    state = network.state_dict()
    assert len(state) == PUBLISHED_ENTRIES - LAST_ENTRIES - CLASSIFIER_ENTRIES
    assert {key: tuple(state[key].shape) for key in SHAPES} == SHAPES
    assert not any(key.startswith("features.18.") for key in state)


def test_dilation_keeps_the_features_of_the_strided_network() -> None:
    strided = build(32).double().eval()
    for module in strided.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.bias)
            nn.init.normal_(module.running_mean)
    image = torch.rand(1, 3, 65, 40, dtype=torch.float64)
    low_level, high_level = strided(image)
    assert low_level.shape == (1, 24, 17, 10)
    assert high_level.shape == (1, 320, 3, 2)
    for output_stride in (16, 8):
        dilated = build(output_stride).double().eval()
        dilated.load_state_dict(strided.state_dict())
        same_low_level, finer = dilated(image)
        step = 32 // output_stride
        assert torch.equal(same_low_level, low_level)
        assert finer.shape == (1, 320, (65 - 1) // output_stride + 1, (40 - 1) // output_stride + 1)
        torch.testing.assert_close(finer[..., ::step, ::step], high_level, rtol=1e-10, atol=1e-10)


def fill_with_waves(network: nn.Module) -> None:
    """Give every parameter values that any implementation with the same names and order can repeat."""
    for index, (name, parameter) in enumerate(network.named_parameters()):
        wave = torch.sin(torch.arange(parameter.numel(), dtype=torch.float64) * 0.7 + index).reshape(parameter.shape)
        if parameter.ndim == 4:
            parameter.data = wave * (4.0 / parameter[0].numel()) ** 0.5
        else:
            parameter.data = wave * 0.1 + (1.0 if name.endswith("weight") else 0.0)


def test_features_are_those_of_torchvision() -> None:
    # The numbers are those of torchvision 0.29.2 with the same parameters, its ``features`` without the last entry.
    network = build(32).double().eval()
    fill_with_waves(network)
    image = (40 * torch.sin(torch.arange(3 * 33 * 41, dtype=torch.float64) * 0.1)).reshape(1, 3, 33, 41)
    for features, expected in zip(network(image), REFERENCE, strict=True):
        parts = (features.mean(), features.std(), features[0, 1, 0, 0], features[0, 20, 1, 1], features[0, 7, -1, 0])
        torch.testing.assert_close(
            torch.stack(parts), torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-9
        )
