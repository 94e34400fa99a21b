from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional

import regloss
from regloss.errors import UsageError
from regloss.testing import NetworkConformance
from regloss_plugins.networks.building_blocks import NORMS
from regloss_plugins.networks.segnet import SegNet


def build(seed: int = 0, **settings: object) -> SegNet:
    torch.manual_seed(seed)
    return SegNet(**{"in_channels": 2, "classes": 3, "levels": 3, "channels": 4, **settings})


@pytest.mark.parametrize("size", [(1, 1), (3, 50), (16, 16), (17, 23), (40, 9)])
@pytest.mark.parametrize(
    "settings", [{}, {"levels": 1, "convolutions": 1}, {"levels": 5, "max_channels": 8}, {"norm": "none"}], ids=str
)
def test_logits_have_the_size_of_the_image(size: tuple[int, int], settings: dict[str, object]) -> None:
    image = torch.rand(1, 2, *size)
    given = image.clone()
    logits = build(**settings).eval()(image)
    assert logits.shape == (1, 3, *size)
    assert logits.is_contiguous()
    assert torch.equal(image, given)


@pytest.mark.parametrize("norm", NORMS)
def test_gradients_reach_every_parameter_and_the_image(norm: str) -> None:
    network = build(norm=norm)
    image = torch.rand(2, 2, 18, 20, requires_grad=True)
    network(image).square().sum().backward()
    without = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert without == []
    assert image.grad is not None
    assert image.grad.abs().sum() > 0


def test_padding_repeats_the_last_row_and_column() -> None:
    network = build().eval()
    image = torch.rand(1, 2, 17, 10)
    padded = functional.pad(image, (0, 6, 0, 7), mode="replicate")
    assert torch.equal(network(image), network(padded)[..., :17, :10])


def test_the_defaults_are_the_papers() -> None:
    """VGG-16's thirteen convolutions, and their mirror image, whose last one classifies."""
    network = SegNet(3, 11)
    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    widths = [(layer.in_channels, layer.out_channels) for layer in convolutions]
    encoder = [(3, 64), (64, 64), (64, 128), (128, 128), (128, 256), *[(256, 256)] * 2, (256, 512), *[(512, 512)] * 5]
    assert widths[:13] == encoder
    mirrored = [pair[::-1] for pair in encoder[1:]]
    assert sorted(widths[13:]) == sorted([*mirrored, (64, 11)])
    weights = sum(9 * before * after for before, after in [*encoder, *mirrored, (64, 11)])
    # A scale and a shift for each feature map but the logits, which have a bias.
    normalised = sum(2 * after for _, after in [*encoder, *mirrored])
    assert sum(p.numel() for p in network.parameters()) == weights + normalised + 11 == 29_441_419


def test_convolutions_by_level() -> None:
    def counts(**settings: object) -> list[int]:
        return [sum(isinstance(layer, nn.Conv2d) for layer in stage) for stage in build(**settings).encoder]

    assert counts(levels=6) == [2, 2, 3, 3, 3, 3]
    assert counts(levels=2, convolutions=1) == [1, 1]
    assert counts(levels=3, convolutions=[3, 1, 2]) == [3, 1, 2]


def test_features_return_to_where_they_were_found() -> None:
    """A network that only pools and returns keeps the largest pixel of each window, and sets the others to 0."""
    network = SegNet(1, 1, levels=2, channels=1, max_channels=1, convolutions=1, norm="none")
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.dirac_(module.weight)
            assert module.bias is not None
            nn.init.zeros_(module.bias)
    image = torch.rand(2, 1, 8, 12)
    kept = network(image)
    windows, found = (x.unfold(2, 4, 4).unfold(3, 4, 4).flatten(4) for x in (image, kept))
    assert torch.equal(found.amax(-1), windows.amax(-1))
    assert torch.equal(found.argmax(-1), windows.argmax(-1))
    assert int((kept != 0).sum()) == 2 * 2 * 3


def test_logits_follow_a_shifted_image() -> None:
    """By a multiple of the coarsest pixel, away from the border, whose padding is another matter."""
    network = build(levels=2, norm="none").eval().double()
    image = torch.rand(1, 2, 64, 64, dtype=torch.float64)
    logits, moved = network(image), network(image.roll((8, 4), (2, 3)))
    torch.testing.assert_close(moved.roll((-8, -4), (2, 3))[..., 28:36, 28:36], logits[..., 28:36, 28:36])


def test_it_learns_a_thin_structure() -> None:
    """A line of one pixel, whose place the pooling indices carry through the coarse levels."""
    network = build(in_channels=1, classes=2, levels=3, channels=8)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    generator = torch.Generator().manual_seed(0)
    label = torch.zeros(4, 32, 32, dtype=torch.int64)
    for number, column in enumerate((5, 10, 19, 26)):
        label[number, :, column] = 1
    image = label.unsqueeze(1) + 0.2 * torch.randn(4, 1, 32, 32, generator=generator)
    for _ in range(80):
        loss = functional.cross_entropy(network(image), label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float((network(image).argmax(1) == label).double().mean()) > 0.999


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"levels": 0}, "levels must be a whole number of at least 1, not 0"),
        ({"channels": 1.5}, "channels must be a whole number"),
        ({"classes": 0}, "classes must be"),
        ({"in_channels": "3"}, "in_channels must be"),
        ({"max_channels": 3}, r"max_channels must be at least channels \(4\), not 3"),
        ({"norm": "layer"}, "norm must be one of batch, instance, group, none, not 'layer'"),
        ({"convolutions": [2, 2]}, r"one for each of the 3 levels, not \[2, 2\]"),
        ({"convolutions": 0}, "convolutions must be a whole number of at least 1"),
        ({"convolutions": [2, 2, 0.5]}, "convolutions must be"),
    ],
)
def test_invalid_settings(settings: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match="segnet: .*" + message):
        build(**settings)


@pytest.mark.parametrize("shape", [(2, 16, 16), (1, 3, 16, 16), (1, 2, 8, 8, 8)])
def test_images_of_another_kind(shape: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match=r"expected an image \(batch, 2, height, width\), not one of shape"):
        build()(torch.zeros(shape))


PLACES = {  # of the convolutions of torchvision's vgg16 and vgg16_bn
    "vgg16": (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28),
    "vgg16_bn": (0, 3, 7, 10, 14, 17, 20, 24, 27, 30, 34, 37, 40),
}


def vgg16(kind: str) -> tuple[nn.Sequential, dict[str, torch.Tensor]]:
    """The convolutions of torchvision's network with strange statistics, and a state dict as in its files."""
    torch.manual_seed(4)
    layers: list[nn.Module] = []
    before = 3
    for width, count in zip((64, 128, 256, 512, 512), (2, 2, 3, 3, 3), strict=True):
        for _ in range(count):
            layers.append(nn.Conv2d(before, width, 3, padding=1))
            layers += [nn.BatchNorm2d(width)] * (kind == "vgg16_bn") + [nn.ReLU()]
            before = width
        layers.append(nn.MaxPool2d(2))
    network = nn.Sequential(*layers).eval()
    for layer in network:
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.8, 1.2)
            nn.init.normal_(layer.bias, std=0.1)
            nn.init.normal_(layer.running_mean, std=0.1)
            nn.init.uniform_(layer.running_var, 0.1, 0.3)
    state = {f"features.{name}": value for name, value in network.state_dict().items()}
    assert tuple(n for n, layer in enumerate(network) if isinstance(layer, nn.Conv2d)) == PLACES[kind]
    return network, {**state, "classifier.0.weight": torch.zeros(3, 4)}


@pytest.mark.parametrize(("kind", "norm"), [("vgg16", "none"), ("vgg16_bn", "batch"), ("vgg16_bn", "none")])
def test_the_encoder_starts_as_vgg16(tmp_path: Path, kind: str, norm: str) -> None:
    """Features behind the last pooling are those of torchvision's network; the decoder's weights are its own."""
    theirs, state = vgg16(kind)
    path = tmp_path / f"{kind}.safetensors"
    save_file(state, path)
    torch.manual_seed(0)
    plain = SegNet(3, 2, norm=norm).eval()
    torch.manual_seed(0)
    network = SegNet(3, 2, norm=norm, weights=path).eval()
    image = torch.rand(1, 3, 32, 64)
    with torch.no_grad():
        features = image
        for stage in network.encoder:
            features = functional.max_pool2d(stage(features), 2)
        expected = theirs(image)
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
    for name, value in plain.decoder.state_dict().items():
        assert torch.equal(network.decoder.state_dict()[name], value)


@pytest.mark.parametrize("kind", PLACES)
def test_other_normalisations_take_the_convolutions_alone(tmp_path: Path, kind: str) -> None:
    _, state = vgg16(kind)
    path = tmp_path / "weights.pth"
    torch.save(state, path)
    network = SegNet(3, 2, norm="batch" if kind == "vgg16" else "group", weights=path)
    convolutions = [layer for layer in network.encoder.modules() if isinstance(layer, nn.Conv2d)]
    for layer, place in zip(convolutions, PLACES[kind], strict=True):
        assert torch.equal(layer.weight, state[f"features.{place}.weight"])
    for layer in network.encoder.modules():
        if isinstance(layer, nn.BatchNorm2d | nn.GroupNorm):
            assert bool((layer.weight == 1).all())


def test_weights_that_do_not_fit(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save(vgg16("vgg16")[1], path)
    with pytest.raises(UsageError, match=r"holds 13 convolutions .* the encoder has 7, the first that differs"):
        build(in_channels=3, weights=path)
    with pytest.raises(UsageError, match=r"the first that differs is \(64, 3, 3, 3\) instead of \(64, 1, 3, 3\)\."):
        SegNet(1, 2, weights=path)
    torch.save({"conv1.weight": torch.zeros(64, 3, 7, 7)}, path)
    with pytest.raises(UsageError, match="holds 0 convolutions"):
        SegNet(3, 2, weights=path)


class TestSegNet(NetworkConformance):
    def make(self):
        return regloss.create(
            "network", "segnet", in_channels=self.in_channels, classes=self.classes, levels=3, channels=4
        )
