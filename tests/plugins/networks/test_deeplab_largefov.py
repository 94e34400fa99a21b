from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import regloss
from regloss.errors import UsageError
from regloss.testing import NetworkConformance
from regloss_plugins.networks.deeplab_largefov import DeepLabLargeFOV, DeepLabMScLargeFOV
from regloss_plugins.networks.encoders.vgg import VGG16

VGG16_CONVOLUTIONS = 14_714_688  # parameters, with torchvision
BOTH = pytest.mark.parametrize("kind", [DeepLabLargeFOV, DeepLabMScLargeFOV])


def build(kind: type[DeepLabLargeFOV], seed: int = 0, **settings: object) -> DeepLabLargeFOV:
    torch.manual_seed(seed)
    return kind(**{"in_channels": 3, "classes": 4, **settings})


def test_parameters_by_the_papers_table() -> None:
    """20.5 million for the 21 classes of VOC (table 1 of the paper)."""
    with torch.device("meta"):
        network = build(DeepLabLargeFOV, classes=21)
    connected = (512 * 9 + 1) * 1024 + (1024 + 1) * 1024
    count = sum(p.numel() for p in network.parameters())
    assert count == VGG16_CONVOLUTIONS + connected + (1024 + 1) * 21 == 20_505_429
    groups = network.parameter_groups()
    assert {name: sum(p.numel() for p in group) for name, group in groups.items()} == {
        "backbone": VGG16_CONVOLUTIONS + connected,
        "head": (1024 + 1) * 21,
    }


def test_parameters_of_the_scales_by_hand() -> None:
    """Five times 128 3x3 and 128 1x1 convolutions; the classifier sees 5 * 128 = 640 channels more."""
    with torch.device("meta"):
        plain, network = build(DeepLabLargeFOV, classes=21), build(DeepLabMScLargeFOV, classes=21)
    scales = sum((9 * before + 1) * 128 + (128 + 1) * 128 for before in (3, 64, 128, 256, 512))
    counts = [sum(p.numel() for p in each.parameters()) for each in (plain, network)]
    assert counts[1] - counts[0] == scales + 640 * 21
    assert network.classifier.in_channels == 1024 + 640
    assert len(network.parameter_groups()["head"]) == 5 * 4 + 2


@BOTH
@pytest.mark.parametrize("size", [(1, 1), (17, 25), (16, 30)])
@pytest.mark.parametrize("in_channels", [1, 3])
def test_logits_have_the_size_of_the_image(
    kind: type[DeepLabLargeFOV], size: tuple[int, int], in_channels: int
) -> None:
    network = build(kind, in_channels=in_channels)
    image = torch.rand(1, in_channels, *size)
    with torch.no_grad():
        logits = network(image)
    assert logits.shape == (1, 4, *size)
    assert logits.is_contiguous()
    assert logits.isfinite().all()


def test_what_a_pixel_sees() -> None:
    """Of a strip, which costs little: 419 pixels, by the windows' sizes and strides, about its own place."""
    seen = 1
    stride = 1
    for convolutions, pooling, dilation in ((2, 2, 1), (2, 2, 1), (3, 2, 1), (3, 1, 1), (3, 1, 2)):
        seen += 2 * stride * dilation * convolutions
        seen += 2 * stride
        stride *= pooling
    seen += 2 * stride * 12
    assert seen == 419
    network = build(DeepLabLargeFOV).eval().double()
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):  # all positive, so that no ReLU hides anything
            nn.init.constant_(layer.weight, 1 / layer.weight[0].numel())
    image = torch.rand(1, 3, 1, 8 * 60 + 1, dtype=torch.float64, requires_grad=True)
    network.mean, network.std = torch.zeros(3, 1, 1), torch.ones(3, 1, 1)
    # A maximum looks at one pixel of its window; their mean looks at all of them.
    for place, layer in enumerate(network.encoder.features):
        if isinstance(layer, nn.MaxPool2d):
            network.encoder.features[place] = _Mean(layer)
    network(image)[0, 0, 0, 8 * 30].backward()
    assert image.grad is not None
    columns = image.grad.abs().sum((0, 1, 2)).nonzero().flatten()
    assert (int(columns[0]), int(columns[-1])) == (8 * 30 - 209, 8 * 30 + 209)


class _Mean(nn.MaxPool2d):
    def __init__(self, pooling: nn.MaxPool2d) -> None:
        super().__init__(pooling.kernel_size, pooling.stride, pooling.padding)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return nn.functional.avg_pool2d(features, self.kernel_size, self.stride, self.padding)


def test_resolutions_are_aligned() -> None:
    # With symmetric kernels a mirrored image gives mirrored logits, unless features and pixels are shifted.
    network = build(DeepLabMScLargeFOV).double().eval()
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.data = (module.weight.data + module.weight.data.flip(-1)) / 2
    image = torch.rand(1, 3, 25, 33, dtype=torch.float64)
    with torch.no_grad():
        logits = network(image)
        assert logits.std() > 1e-6
        torch.testing.assert_close(network(image.flip(-1)), logits.flip(-1), rtol=1e-8, atol=1e-12)


@BOTH
def test_weights_with_and_without_connected_layers(kind: type[DeepLabLargeFOV], tmp_path: Path) -> None:
    path = tmp_path / "vgg16.pth"
    torch.manual_seed(3)
    features = VGG16(3).state_dict()
    torch.save(features, path)
    plain, loaded = build(kind), build(kind, weights=path)
    for name, value in features.items():
        assert torch.equal(loaded.encoder.state_dict()[name], value)
    for name, value in plain.connected.state_dict().items():
        assert torch.equal(loaded.connected.state_dict()[name], value)
    # Of torchvision's size; each number says where it stands, as far as float32 tells them apart.
    first = torch.arange(4096.0)[:, None] + torch.zeros(4096, 512 * 49)
    first.view(4096, 512, 7, 7)[:, 3] += torch.arange(49.0).view(7, 7) / 64
    second = torch.arange(4096.0)[:, None] + torch.arange(4096.0) / 4096
    rest = {"classifier.0.bias": torch.arange(4096.0), "classifier.3.bias": -torch.arange(4096.0)}
    torch.save({**features, "classifier.0.weight": first, "classifier.3.weight": second, **rest}, path)
    loaded = build(kind, weights=path)
    weight, bias, weight_2, bias_2 = loaded.connected.state_dict().values()
    assert weight.shape == (1024, 512, 3, 3)
    torch.testing.assert_close(weight[:, 5], torch.arange(0.0, 4096, 4)[:, None, None].expand(1024, 3, 3))
    rows = torch.tensor([0.0, 3, 6])
    torch.testing.assert_close(weight[0, 3], (7 * rows[:, None] + rows) / 64)
    assert torch.equal(bias, torch.arange(0.0, 4096, 4))
    assert torch.equal(bias_2, -bias)
    torch.testing.assert_close(weight_2[2, 3, 0, 0], torch.tensor(8 + 12 / 4096))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"classes": 0}, "deeplab-largefov: classes must be a whole number of at least 1, not 0"),
        ({"dropout": 1.0}, r"deeplab-largefov: dropout must lie in \[0, 1\), not 1.0"),
        ({"weights": "nowhere.pth"}, r"weights file nowhere\.pth does not exist"),
    ],
)
def test_bad_settings(settings: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build(DeepLabLargeFOV, **settings)


def test_bad_images() -> None:
    with pytest.raises(UsageError, match=r"deeplab-msc-largefov: expected an image \(batch, 3, height, width\)"):
        build(DeepLabMScLargeFOV)(torch.rand(1, 1, 8, 8))


class TestDeepLabLargeFOV(NetworkConformance):
    sizes = ((17, 25), (16, 16))

    def make(self):
        return regloss.create("network", "deeplab-largefov", in_channels=self.in_channels, classes=self.classes)


class TestDeepLabMScLargeFOV(NetworkConformance):
    sizes = ((17, 25), (16, 16))

    def make(self):
        return regloss.create("network", "deeplab-msc-largefov", in_channels=self.in_channels, classes=self.classes)
