from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import regloss
from regloss.errors import UsageError
from regloss.testing import NetworkConformance
from regloss_plugins.networks.deeplabv3plus import ATROUS_RATES, ENCODERS, DeepLabV3Plus


def build(seed: int = 0, **settings: object) -> DeepLabV3Plus:
    torch.manual_seed(seed)
    return DeepLabV3Plus(**{"in_channels": 3, "classes": 4, **settings})


@pytest.fixture(scope="module")
def trained() -> DeepLabV3Plus:
    """A network in evaluation mode whose running statistics fit random images."""
    network = build()
    with torch.no_grad():
        for _ in range(20):
            network(torch.rand(2, 3, 33, 33))
    return network.eval()


@pytest.mark.parametrize("size", [(1, 1), (16, 50), (17, 33), (40, 9)])
@pytest.mark.parametrize("output_stride", [8, 16])
@pytest.mark.parametrize("in_channels", [1, 3])
def test_logits_have_the_size_of_the_image(size: tuple[int, int], output_stride: int, in_channels: int) -> None:
    # In training mode and for a batch of one, the case in which batch normalisation needs the padding.
    network = build(in_channels=in_channels, output_stride=output_stride)
    image = torch.rand(1, in_channels, *size)
    given = image.clone()
    with torch.no_grad():
        logits = network(image)
    assert logits.shape == (1, 4, *size)
    assert logits.is_contiguous()
    assert logits.isfinite().all()
    assert torch.equal(image, given)


@pytest.mark.parametrize(
    "settings",
    [{"encoder": "mobilenetv2"}, {"encoder": "mobilenetv2", "separable": True}, {"encoder": "resnet50"}],
    ids=str,
)
def test_gradients_reach_every_parameter_and_the_image(settings: dict[str, object]) -> None:
    network = build(output_stride=8, **settings)
    image = torch.rand(2, 3, 33, 25, requires_grad=True)
    network(image).square().sum().backward()
    without = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert without == []
    assert image.grad is not None
    assert image.grad.abs().sum() > 0


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("separable", [False, True])
def test_parameters_of_the_head_by_hand(encoder: str, separable: bool) -> None:
    with torch.device("meta"):
        network = build(encoder=encoder, classes=21, separable=separable)
    low, high = (24, 320) if encoder == "mobilenetv2" else (256, 2048)

    def pointwise(before: int, after: int) -> int:
        return before * after + 2 * after

    def convolution(before: int, after: int) -> int:
        return before * 9 + 2 * before + pointwise(before, after) if separable else 9 * before * after + 2 * after

    pyramid = pointwise(high, 256) + 3 * convolution(high, 256) + (high + 1) * 256 + pointwise(5 * 256, 256)
    decoder = pointwise(low, 48) + convolution(256 + 48, 256) + convolution(256, 256) + (256 + 1) * 21
    groups = network.parameter_groups()
    assert list(groups) == ["backbone", "head"]
    assert sum(p.numel() for p in groups["head"]) == pyramid + decoder
    assert [id(p) for p in groups["backbone"]] == [id(p) for p in network.encoder.parameters()]
    together = [id(p) for group in groups.values() for p in group]
    assert sorted(together) == sorted(id(p) for p in network.parameters())


@pytest.mark.parametrize("output_stride", [8, 16])
def test_atrous_rates_follow_the_output_stride(output_stride: int) -> None:
    network = build(output_stride=output_stride)
    rates = [branch[0].dilation[0] for branch in network.pyramid.branches]
    assert rates == [1, *ATROUS_RATES[output_stride]]
    assert [rate * output_stride for rate in rates[1:]] == [96, 192, 288]


@pytest.mark.parametrize("output_stride", [8, 16])
def test_resolutions_are_aligned(output_stride: int) -> None:
    # With symmetric kernels a mirrored image gives mirrored logits, unless features and pixels are shifted.
    network = build(output_stride=output_stride).double().eval()
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.data = (module.weight.data + module.weight.data.flip(-1)) / 2
    image = torch.rand(1, 3, 33, 49, dtype=torch.float64)
    logits = network(image)
    assert logits.std() > 1e-3
    torch.testing.assert_close(network(image.flip(-1)), logits.flip(-1), rtol=0, atol=1e-10)


@pytest.mark.parametrize("output_stride", [8, 16])
def test_interpolation_maps_feature_positions_to_pixels(output_stride: int) -> None:
    # Feature i of stride s is centred on pixel s * i: a ramp of these positions must come out as the pixels' own.
    network = build(classes=1, output_stride=output_stride).eval()
    coarse, fine = (torch.arange(0.0, 49.0, step) for step in (output_stride, 4))
    seen: list[Tensor] = []
    network.pyramid.register_forward_hook(lambda *_: coarse.expand(1, 256, len(coarse), -1))
    network.decoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    network.classifier.register_forward_hook(lambda *_: fine.expand(1, 1, len(fine), -1))
    logits = network(torch.rand(1, 3, 49, 49))
    torch.testing.assert_close(seen[0][:, 48:], fine.expand(1, 256, len(fine), -1))
    torch.testing.assert_close(logits, torch.arange(49.0).expand(1, 1, 49, -1))


def test_padding_repeats_the_last_row_and_column(trained: DeepLabV3Plus) -> None:
    image = torch.rand(1, 3, 30, 33)
    padded = functional.pad(image, (0, 0, 0, 3), mode="replicate")
    torch.testing.assert_close(trained(image), trained(padded)[:, :, :30], rtol=1e-5, atol=1e-5)


def test_colour_images_are_normalised() -> None:
    network = build()
    seen: list[Tensor] = []
    network.encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    image = torch.rand(2, 3, 17, 17)
    network(image)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    torch.testing.assert_close(seen[0], ((image.movedim(1, -1) - mean) / std).movedim(-1, 1))
    assert seen[0].is_contiguous(memory_format=torch.channels_last)


def test_grey_images_are_taken_as_they_are() -> None:
    network = build(in_channels=1)
    seen: list[Tensor] = []
    network.encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    image = torch.rand(2, 1, 17, 17)
    network(image)
    assert torch.equal(seen[0], image)


def test_evaluation_treats_images_separately(trained: DeepLabV3Plus) -> None:
    images = torch.rand(3, 3, 20, 33)
    one_by_one = torch.cat([trained(image[None]) for image in images])
    torch.testing.assert_close(trained(images), one_by_one, rtol=1e-4, atol=1e-4)


def test_double_precision(trained: DeepLabV3Plus) -> None:
    image = torch.rand(1, 3, 20, 33)
    precise = build().double().eval()
    precise.load_state_dict(trained.state_dict())
    logits = precise(image.double())
    assert logits.dtype == torch.float64
    torch.testing.assert_close(trained(image), logits.float(), rtol=1e-3, atol=1e-3)


def test_autocast_to_bfloat16(trained: DeepLabV3Plus) -> None:
    image = torch.rand(1, 3, 20, 33)
    expected = trained(image)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = trained(image)
    assert (logits.float() - expected).abs().max() < 0.1 * expected.abs().max()


def test_initialisation_follows_the_seed() -> None:
    first, same, other = (build(seed=seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], same[name]) for name in first)
    name = "encoder.features.0.0.weight"
    assert not torch.equal(first[name], other[name])


def test_weights_fill_the_encoder_and_leave_the_head(tmp_path: Path) -> None:
    path = tmp_path / "mobilenet_v2.pth"
    state = build(seed=5).encoder.state_dict()
    torch.save({**state, "classifier.1.weight": torch.zeros(1000, 1280), "classifier.1.bias": torch.zeros(1000)}, path)
    plain, loaded = build(seed=0), build(seed=0, weights=str(path))
    assert all(torch.equal(value, state[key]) for key, value in loaded.encoder.state_dict().items())
    for key, value in plain.state_dict().items():
        assert key.startswith("encoder.") or torch.equal(value, loaded.state_dict()[key])


def test_weights_of_another_encoder(tmp_path: Path) -> None:
    path = tmp_path / "mobilenet_v2.pth"
    torch.save(build().encoder.state_dict(), path)
    with torch.device("meta"), pytest.raises(UsageError, match=r"265 missing: conv1\.weight.*306 unexpected: features"):
        build(encoder="resnet50", weights=path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"encoder": "vgg16"}, "encoder must be one of mobilenetv2, resnet50, resnet101, not 'vgg16'"),
        ({"output_stride": 32}, "output_stride must be 16 or 8, not 32"),
        ({"classes": 0}, "classes must be a whole number of at least 1, not 0"),
        ({"in_channels": 1.0}, "in_channels must be a whole number of at least 1, not 1.0"),
        ({"dropout": -0.1}, r"dropout must lie in \[0, 1\), not -0.1"),
        ({"weights": "nowhere.pth"}, r"weights file nowhere\.pth does not exist"),
    ],
)
def test_bad_settings(settings: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build(**settings)


@pytest.mark.parametrize("shape", [(1, 1, 8, 8), (3, 8, 8), (1, 3, 8, 8, 8)])
def test_bad_images(trained: DeepLabV3Plus, shape: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match=r"expected an image \(batch, 3, height, width\)"):
        trained(torch.rand(shape))


class TestDeepLabV3Plus(NetworkConformance):
    def make(self):
        return regloss.create("network", "deeplabv3plus", in_channels=self.in_channels, classes=self.classes)
