from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from regloss_plugins.networks.encoders.encoder import load_weights
from regloss_plugins.networks.encoders.resnet import ResNet

# Parameters of torchvision's resnet50 and resnet101, and entries of their state dicts.
PUBLISHED = {50: (25_557_032, 320), 101: (44_549_160, 626)}
FC_PARAMETERS, FC_ENTRIES = 2048 * 1000 + 1000, 2

SHAPES = {
    "conv1.weight": (64, 3, 7, 7),
    "bn1.weight": (64,),
    "bn1.running_mean": (64,),
    "bn1.num_batches_tracked": (),
    "layer1.0.conv1.weight": (64, 64, 1, 1),
    "layer1.0.bn1.bias": (64,),
    "layer1.0.conv2.weight": (64, 64, 3, 3),
    "layer1.0.conv3.weight": (256, 64, 1, 1),
    "layer1.0.bn3.running_var": (256,),
    "layer1.0.downsample.0.weight": (256, 64, 1, 1),
    "layer1.0.downsample.1.running_mean": (256,),
    "layer1.2.conv1.weight": (64, 256, 1, 1),
    "layer2.0.downsample.0.weight": (512, 256, 1, 1),
    "layer2.3.conv2.weight": (128, 128, 3, 3),
    "layer3.0.conv2.weight": (256, 256, 3, 3),
    "layer3.5.bn2.weight": (256,),
    "layer4.0.downsample.0.weight": (2048, 1024, 1, 1),
    "layer4.2.conv3.weight": (2048, 512, 1, 1),
    "layer4.2.bn3.bias": (2048,),
}


# Mean, standard deviation and three values of the low-level and of the high-level features.
REFERENCE = (
    (13.4965771388, 22.5909973873, 0.0, 11.6331499452, 0.0),
    (232.886418393, 323.628382305, 0.0, 73.2219196346, 0.0),
)


def build(depth: int = 50, output_stride: int = 16) -> ResNet:
    torch.manual_seed(0)
    return ResNet(3, depth, output_stride)


def randomise_norms(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.3, 0.7)
            nn.init.normal_(module.bias)
            nn.init.normal_(module.running_mean)


@pytest.mark.parametrize("depth", PUBLISHED)
@pytest.mark.parametrize("output_stride", [8, 16, 32])
def test_parameters_are_those_of_torchvision(depth: int, output_stride: int) -> None:
    with torch.device("meta"):
        network = build(depth, output_stride)
    parameters, entries = PUBLISHED[depth]
    assert sum(p.numel() for p in network.parameters()) == parameters - FC_PARAMETERS
    state = network.state_dict()
    assert len(state) == entries - FC_ENTRIES
    assert {key: tuple(state[key].shape) for key in SHAPES} == SHAPES
    assert ("layer3.22.conv1.weight" in state) == (depth == 101)
    assert "layer3.23.conv1.weight" not in state


def test_dilation_keeps_the_features_of_the_strided_network() -> None:
    strided = build(output_stride=32).double().eval()
    randomise_norms(strided)
    image = torch.rand(1, 3, 65, 40, dtype=torch.float64)
    low_level, high_level = strided(image)
    assert low_level.shape == (1, 256, 17, 10)
    assert high_level.shape == (1, 2048, 3, 2)
    for output_stride in (16, 8):
        dilated = build(output_stride=output_stride).double().eval()
        dilated.load_state_dict(strided.state_dict())
        same_low_level, finer = dilated(image)
        step = 32 // output_stride
        assert torch.equal(same_low_level, low_level)
        assert finer.shape == (1, 2048, (65 - 1) // output_stride + 1, (40 - 1) // output_stride + 1)
        torch.testing.assert_close(finer[..., ::step, ::step], high_level, rtol=1e-10, atol=1e-10)


def test_weights_round_trip(tmp_path: Path) -> None:
    trained = build().eval()
    randomise_norms(trained)
    path = tmp_path / "resnet50.pth"
    torch.save({**trained.state_dict(), "fc.weight": torch.zeros(1000, 2048), "fc.bias": torch.zeros(1000)}, path)
    torch.manual_seed(1)
    loaded = ResNet(3, 50, 16).eval()
    load_weights(loaded, path)
    path.unlink()
    image = torch.rand(1, 3, 33, 33)
    for features, expected in zip(loaded(image), trained(image), strict=True):
        assert torch.equal(features, expected)


def fill_with_waves(network: nn.Module) -> None:
    """Give every parameter values that any implementation with the same names and order can repeat."""
    for index, (name, parameter) in enumerate(network.named_parameters()):
        wave = torch.sin(torch.arange(parameter.numel(), dtype=torch.float64) * 0.7 + index).reshape(parameter.shape)
        if parameter.ndim == 4:
            parameter.data = wave * (4.0 / parameter[0].numel()) ** 0.5
        else:
            parameter.data = wave * 0.1 + (1.0 if name.endswith("weight") else 0.0)


def test_features_are_those_of_torchvision() -> None:
    # The numbers are those of torchvision 0.29.2 with the same parameters, its layer4 dilated as ours is.
    network = build().double().eval()
    fill_with_waves(network)
    image = (40 * torch.sin(torch.arange(3 * 33 * 41, dtype=torch.float64) * 0.1)).reshape(1, 3, 33, 41)
    for features, expected in zip(network(image), REFERENCE, strict=True):
        parts = (features.mean(), features.std(), features[0, 1, 0, 0], features[0, 20, 1, 1], features[0, 7, -1, 0])
        torch.testing.assert_close(
            torch.stack(parts), torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-9
        )


def test_weights_of_transformers(tmp_path: Path) -> None:
    """Of a checkpoint of a classifier, and of the network alone: the same features as theirs."""
    transformers = pytest.importorskip("transformers", reason="pip install 'regloss[transformers]'")
    torch.manual_seed(2)
    theirs = transformers.ResNetForImageClassification(transformers.ResNetConfig()).eval()
    randomise_norms(theirs)
    path = tmp_path / "model.safetensors"
    image = torch.rand(1, 3, 65, 40)
    with torch.no_grad():
        expected = theirs.resnet(image).last_hidden_state
        for state in (theirs.state_dict(), theirs.resnet.state_dict()):
            save_file({name: value.contiguous() for name, value in state.items()}, path)
            encoder = build(output_stride=32).eval()
            left = load_weights(encoder, path)
            assert all(name.startswith("classifier.") for name in left)
            _, found = encoder(image)
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("resnet.embedder.embedder.convolution.weight", "conv1.weight"),
        ("embedder.embedder.normalization.running_var", "bn1.running_var"),
        ("resnet.encoder.stages.0.layers.0.shortcut.convolution.weight", "layer1.0.downsample.0.weight"),
        ("encoder.stages.3.layers.0.shortcut.normalization.bias", "layer4.0.downsample.1.bias"),
        ("resnet.encoder.stages.2.layers.22.layer.0.convolution.weight", "layer3.22.conv1.weight"),
        (
            "resnet.encoder.stages.1.layers.3.layer.2.normalization.num_batches_tracked",
            "layer2.3.bn3.num_batches_tracked",
        ),
        ("layer2.3.bn3.weight", "layer2.3.bn3.weight"),
        ("classifier.1.weight", "classifier.1.weight"),
    ],
)
def test_names_of_transformers(theirs: str, ours: str) -> None:
    value = torch.zeros(1)
    assert ResNet.torchvision_names({theirs: value}) == {ours: value}
