from __future__ import annotations

import weakref

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

import regloss
from regloss.errors import UsageError
from regloss.testing import NetworkConformance
from regloss_plugins.networks.building_blocks import NORMS
from regloss_plugins.networks.unet import UNet


def build(seed: int = 0, **settings: object) -> UNet:
    torch.manual_seed(seed)
    return UNet(**{"in_channels": 2, "classes": 3, "levels": 3, "channels": 4, **settings})


@pytest.mark.parametrize("size", [(1, 1), (3, 50), (16, 16), (17, 23), (40, 9)])
@pytest.mark.parametrize(
    "settings", [{}, {"attention": True}, {"levels": 1}, {"levels": 5, "max_channels": 8}], ids=str
)
def test_logits_have_the_size_of_the_image(size: tuple[int, int], settings: dict[str, object]) -> None:
    image = torch.rand(1, 2, *size)
    given = image.clone()
    logits = build(**settings)(image)
    assert logits.shape == (1, 3, *size)
    assert logits.is_contiguous()
    assert torch.equal(image, given)


@pytest.mark.parametrize("size", [(1, 1, 1), (7, 12, 5), (8, 8, 8)])
@pytest.mark.parametrize("attention", [False, True])
def test_volumes(size: tuple[int, int, int], attention: bool) -> None:
    network = build(dims=3, attention=attention)
    assert network(torch.rand(2, 2, *size)).shape == (2, 3, *size)


@pytest.mark.parametrize("size", [(1, 1, 1), (5, 30, 33), (12, 16, 16)])
@pytest.mark.parametrize("attention", [False, True])
def test_long_voxels_are_not_halved_until_they_are_as_wide(size: tuple[int, int, int], attention: bool) -> None:
    network = build(dims=3, attention=attention, levels=4, spacing=[3.0, 0.5, 0.5], norm="none")
    assert network(torch.rand(1, 2, *size)).shape == (1, 3, *size)
    assert network.factors == [(1, 2, 2), (1, 2, 2), (2, 2, 2)]
    assert [tuple(block[0].kernel_size) for block in network.encoder] == [(1, 3, 3), (1, 3, 3), (3, 3, 3), (3, 3, 3)]
    # Until then slices do not see each other.
    flat = build(dims=3, attention=attention, levels=2, spacing=[3.0, 0.5, 0.5], norm="none").eval()
    image = torch.rand(1, 2, *(max(length, 2) for length in size))
    changed = image.clone()
    changed[:, :, 0] = 0
    assert torch.equal(flat(image)[:, :, 1:], flat(changed)[:, :, 1:])
    for spacing in ([3.0, 0.5], [3.0, 0.5, 0.0], [3.0, 0.5, float("inf")]):
        with pytest.raises(UsageError, match="unet: spacing must be 3 positive numbers"):
            build(dims=3, spacing=spacing)


@pytest.mark.parametrize("spacing", [None, [3.0, 0.5, 0.5]])
def test_coarser_levels_have_logits_in_training(spacing: list[float] | None) -> None:
    network = build(dims=3, levels=4, spacing=spacing, deep_supervision=2, norm="none")
    image = torch.rand(1, 2, 5, 21, 30)
    logits = network(image)
    assert [each.shape for each in network.coarser] == [logits.shape] * 2
    # Of the level below, once interpolated, and the one below that: coarser means smoother.
    roughness = [float((each.diff(dim=-1).abs().mean() / each.std()).detach()) for each in network.coarser]
    assert roughness[1] < roughness[0]
    sum(each.square().sum() for each in (logits, *network.coarser)).backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
    assert torch.equal(network.eval()(image), logits)
    assert network.coarser == []
    assert build(levels=4, deep_supervision=0).state_dict().keys() == build(levels=4).state_dict().keys()
    for levels, most in ((4, 2), (2, 0), (1, 0)):
        with pytest.raises(UsageError, match=f"deep_supervision must lie in 0 to {most}"):
            build(levels=levels, deep_supervision=most + 1)


@pytest.mark.parametrize("dims", [2, 3])
def test_a_second_decoder_has_logits_in_training(dims: int) -> None:
    image = torch.rand(2, 2, *(21, 30, 9)[:dims])
    network = build(dims=dims, auxiliary_decoder=True, attention=True, norm="none")
    logits = network(image)
    (second,) = network.auxiliary
    assert second.shape == logits.shape
    (logits.square().sum() + second.square().sum()).backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in network.parameters())
    with torch.random.fork_rng():
        other = network(image)
    assert torch.equal(other, logits), "dropout of the second decoder's features reaches the first"
    assert not torch.equal(network.auxiliary[0], second)
    assert torch.equal(network.eval()(image), logits)
    assert network.auxiliary == []
    # As a copy, and without dropout, it is the first.
    copied = build(dims=dims, auxiliary_decoder=True, auxiliary_dropout=0.0, attention=True, norm="none")
    plain = build(dims=dims, attention=True, norm="none")
    copied.load_state_dict(copied.start_weights(plain.state_dict()))
    torch.testing.assert_close(copied(image), plain(image), rtol=0, atol=0)
    torch.testing.assert_close(copied.auxiliary[0], plain(image), rtol=0, atol=0)
    assert (copied.decoders, plain.decoders) == (2, 1)
    own = network.state_dict()
    assert all(torch.equal(value, own[name]) for name, value in network.start_weights(own).items())
    with pytest.raises(UsageError, match=r"auxiliary_dropout must lie in \[0, 1\)"):
        build(auxiliary_decoder=True, auxiliary_dropout=1.0)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("attention", [False, True])
def test_gradients_reach_every_parameter_and_the_image(norm: str, dims: int, attention: bool) -> None:
    network = build(norm=norm, dims=dims, attention=attention, dropout=0.1)
    image = torch.rand(2, 2, *(9, 12, 10)[:dims], requires_grad=True)
    network(image).square().sum().backward()
    without = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert without == []
    assert image.grad is not None
    assert image.grad.abs().sum() > 0


def test_padding_repeats_the_last_row_and_column() -> None:
    network = build().eval()
    image = torch.rand(1, 2, 17, 10)
    padded = functional.pad(image, (0, 2, 0, 3), mode="replicate")
    assert torch.equal(network(image), network(padded)[..., :17, :10])


def test_parameter_count_by_hand() -> None:
    network = UNet(in_channels=1, classes=3, levels=2, channels=4, norm="none")
    fine, coarse = (1 * 9 + 1) * 4 + (4 * 9 + 1) * 4, (4 * 9 + 1) * 8 + (8 * 9 + 1) * 8
    reduce, joined, classifier = (8 + 1) * 4, (8 * 9 + 1) * 4 + (4 * 9 + 1) * 4, (4 + 1) * 3
    assert sum(p.numel() for p in network.parameters()) == fine + coarse + reduce + joined + classifier


def test_channels_double_up_to_the_bound() -> None:
    network = build(levels=5, channels=4, max_channels=12)
    assert [block[0].out_channels for block in network.encoder] == [4, 8, 12, 12, 12]


def symmetrise(network: nn.Module) -> None:
    """Make every kernel equal to its mirror image along the last axis."""
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.Conv3d)):
            module.weight.data = (module.weight.data + module.weight.data.flip(-1)) / 2


@pytest.mark.parametrize("attention", [False, True])
def test_resolutions_are_aligned(attention: bool) -> None:
    # With symmetric kernels a mirrored image gives mirrored logits, unless a pooling or upsampling is shifted.
    network = build(attention=attention).double().eval()
    symmetrise(network)
    image = torch.rand(1, 2, 12, 20, dtype=torch.float64)
    torch.testing.assert_close(network(image.flip(-1)), network(image).flip(-1), rtol=0, atol=1e-12)


def test_upsampling_maps_coarse_positions_to_pixels() -> None:
    # Coarse pixel i pools pixels 2i and 2i + 1, so it is centred on 2i + 1/2; beyond the last centre there is no slope.
    network = build(levels=2)
    seen: list[Tensor] = []
    network.decoder[0].reduce.register_forward_hook(lambda *_: (2 * torch.arange(6.0) + 0.5).expand(1, 4, 6, -1))
    network.decoder[0].block.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    network(torch.rand(1, 2, 12, 12))
    expected = torch.arange(12.0).clamp(0.5, 10.5).expand(1, 4, 12, -1)
    torch.testing.assert_close(seen[0][:, 4:], expected)


def test_attention_gate_is_the_published_formula() -> None:
    gate = build(attention=True).decoder[0].gate
    skip, gating = torch.randn(1, 4, 2, 2), torch.randn(1, 8, 1, 1)
    hidden = torch.einsum("fckl,bckl->bf", gate.skip.weight, skip)
    hidden = torch.relu(hidden + gating.flatten(1) @ gate.gating.weight[:, :, 0, 0].T + gate.gating.bias)
    score = hidden @ gate.psi.weight.flatten() + gate.psi.bias
    torch.testing.assert_close(gate(skip, gating), skip * torch.sigmoid(score))


def test_instance_norm_is_that_of_torch() -> None:
    first, norm = build(norm="instance").encoder[0][:2]
    features = first(torch.rand(2, 2, 8, 8))
    torch.testing.assert_close(norm(features), functional.instance_norm(features), rtol=1e-4, atol=1e-5)


def test_group_norm_has_up_to_eight_groups() -> None:
    network = build(channels=6, norm="group")
    assert [block[1].num_groups for block in network.encoder] == [2, 4, 8]


@pytest.mark.parametrize("norm", NORMS)
def test_evaluation_treats_images_separately(norm: str) -> None:
    network = build(norm=norm, dropout=0.5).double()
    network(torch.rand(4, 2, 16, 16, dtype=torch.float64))  # running statistics off their start
    network.eval()
    images = torch.rand(3, 2, 13, 18, dtype=torch.float64)
    logits = network(images)
    assert logits.dtype == torch.float64
    one_by_one = torch.cat([network(image[None]) for image in images])
    torch.testing.assert_close(logits, one_by_one, rtol=0, atol=1e-12)


def test_dropout_acts_in_training_only() -> None:
    network = build(channels=16, norm="none", dropout=0.5)
    image = torch.rand(1, 2, 16, 16)
    assert not torch.equal(network(image), network(image))
    network.eval()
    assert torch.equal(network(image), network(image))


@pytest.mark.parametrize("norm", NORMS)
def test_autocast_to_bfloat16(norm: str) -> None:
    network = build(norm=norm).eval()
    image = torch.rand(2, 2, 17, 24)
    expected = network(image)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = network(image)
    assert (logits.float() - expected).abs().max() < 0.05 * expected.abs().max()


def test_initialisation_follows_the_seed() -> None:
    first, same, other = (build(seed=seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not torch.equal(first["encoder.0.0.weight"], other["encoder.0.0.weight"])


def test_state_after_training_fits_safetensors(tmp_path: object) -> None:
    # safetensors refuses the strides of channels_last, which must therefore not reach the parameters.
    network = build()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    network(torch.rand(2, 2, 16, 16)).sum().backward()
    optimizer.step()
    path = f"{tmp_path}/network.safetensors"
    save_file(network.state_dict(), path)
    restored = build(seed=1)
    restored.load_state_dict(load_file(path))
    image = torch.rand(1, 2, 16, 16)
    assert torch.equal(restored.eval()(image), network.eval()(image))


def test_learns_to_threshold() -> None:
    network = build(in_channels=1, classes=2, levels=2)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    image = torch.rand(2, 1, 24, 24)
    labels = (image[:, 0] > 0.5).long()
    losses: list[Tensor] = []
    for _ in range(60):
        optimizer.zero_grad()
        losses.append(functional.cross_entropy(network(image), labels))
        losses[-1].backward()
        optimizer.step()
    assert losses[0] > 0.4
    assert losses[-1] < 0.2


def test_one_parameter_group() -> None:
    network = build()
    groups = network.parameter_groups()
    assert list(groups) == ["all"]
    assert [id(p) for p in groups["all"]] == [id(p) for p in network.parameters()]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"norm": "layer"}, "norm must be one of batch, instance, group, none, not 'layer'"),
        ({"dims": 1}, "dims must be 2 .images. or 3 .volumes., not 1"),
        ({"levels": 0}, "levels must be a whole number of at least 1, not 0"),
        ({"channels": 2.5}, "channels must be a whole number of at least 1, not 2.5"),
        ({"classes": 0}, "classes must be"),
        ({"in_channels": "3"}, "in_channels must be a whole number of at least 1, not '3'"),
        ({"max_channels": 3}, r"max_channels must be at least channels \(4\), not 3"),
        ({"dropout": 1.0}, r"dropout must lie in \[0, 1\), not 1.0"),
    ],
)
def test_bad_settings(settings: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build(**settings)


@pytest.mark.parametrize("shape", [(1, 3, 8, 8), (1, 2, 8), (1, 2, 8, 8, 8), (2, 8, 8)])
def test_bad_images(shape: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match=r"expected an image \(batch, 2, \*size\) with 2 spatial dimensions"):
        build()(torch.rand(shape))


def test_without_gradients_skips_are_gone_before_the_convolutions() -> None:
    """A skip of full size and its copy in the joined features would be most of the memory that an image takes."""
    network = build(levels=3).eval()
    skips: list[weakref.ref[Tensor]] = []
    alive: list[int] = []
    for stage in network.decoder:
        stage.register_forward_pre_hook(lambda module, inputs: skips.append(weakref.ref(inputs[1][-1])))
        stage.block.register_forward_pre_hook(lambda module, inputs: alive.append(skips[-1]() is not None))
    with torch.no_grad():
        network(torch.rand(1, 2, 16, 16))
    assert alive == [False, False]


class TestUNet(NetworkConformance):
    def make(self):
        return regloss.create(
            "network", "unet", in_channels=self.in_channels, classes=self.classes, levels=3, channels=4
        )


class TestUNet3D(NetworkConformance):
    sizes = ((9, 10, 11),)

    def make(self):
        return regloss.create(
            "network", "unet", in_channels=self.in_channels, classes=self.classes, levels=2, channels=4, dims=3
        )
