from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from regloss.errors import UsageError
from regloss_plugins.networks.encoders.encoder import atrous_stages, load_weights
from regloss_plugins.networks.encoders.mobilenetv2 import MobileNetV2


def build(seed: int = 0, in_channels: int = 3) -> MobileNetV2:
    torch.manual_seed(seed)
    return MobileNetV2(in_channels, output_stride=16)


def published(seed: int = 1, in_channels: int = 3) -> dict[str, Tensor]:
    """A state dict as in a file of torchvision: with the layers that the encoder has not."""
    state = dict(build(seed, in_channels).state_dict())
    state["features.18.0.weight"] = torch.rand(1280, 320, 1, 1)
    state["features.18.1.running_var"] = torch.rand(1280)
    state["classifier.1.weight"] = torch.rand(10, 1280)
    state["classifier.1.bias"] = torch.rand(10)
    return state


@pytest.mark.parametrize(
    ("strides", "start", "output_stride", "expected"),
    [
        ((1, 2, 2, 2), 4, 32, [(1, 1, 1), (2, 1, 1), (2, 1, 1), (2, 1, 1)]),
        ((1, 2, 2, 2), 4, 16, [(1, 1, 1), (2, 1, 1), (2, 1, 1), (1, 1, 2)]),
        ((1, 2, 2, 2), 4, 8, [(1, 1, 1), (2, 1, 1), (1, 1, 2), (1, 2, 4)]),
        ((2, 1, 2, 1), 4, 8, [(2, 1, 1), (1, 1, 1), (1, 1, 2), (1, 2, 2)]),
    ],
)
def test_strides_become_dilations(
    strides: tuple[int, ...], start: int, output_stride: int, expected: list[tuple[int, int, int]]
) -> None:
    assert list(atrous_stages(strides, start, output_stride)) == expected


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".safetensors"])
def test_weights_are_loaded(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"weights{suffix}"
    state = published()
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    encoder = build()
    load_weights(encoder, path)
    assert all(torch.equal(value, state[key]) for key, value in encoder.state_dict().items())


def test_files_without_batch_counts_are_loaded(tmp_path: Path) -> None:
    path = tmp_path / "old.pth"
    state = {key: value for key, value in published().items() if not key.endswith("num_batches_tracked")}
    torch.save(state, path)
    encoder = build()
    load_weights(encoder, path)
    assert torch.equal(encoder.state_dict()["features.17.conv.2.weight"], state["features.17.conv.2.weight"])


def test_weights_for_grey_images(tmp_path: Path) -> None:
    path = tmp_path / "grey.pth"
    torch.save(published(in_channels=1), path)
    load_weights(build(in_channels=1), path)


def test_channels_of_the_images_must_agree(tmp_path: Path) -> None:
    path = tmp_path / "colour.pth"
    torch.save(published(), path)
    with pytest.raises(UsageError, match="trained on images of 3 channels, but in_channels is 1; give images of 3"):
        load_weights(build(in_channels=1), path)


def test_what_does_not_fit_is_listed(tmp_path: Path) -> None:
    path = tmp_path / "other.pth"
    state = published()
    del state["features.3.conv.2.weight"]
    state |= {f"neck.{index}.weight": torch.zeros(1) for index in range(8)}
    state["features.5.conv.3.bias"] = torch.zeros(7)
    torch.save(state, path)
    encoder = build()
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    with pytest.raises(UsageError) as caught:
        load_weights(encoder, path)
    message = str(caught.value)
    assert str(path) in message
    assert "1 missing: features.3.conv.2.weight;" in message
    assert "8 unexpected: neck.0.weight, neck.1.weight" in message
    assert "neck.4.weight and 3 more;" in message
    assert "1 of another shape: features.5.conv.3.bias (7,) instead of (32,)" in message
    assert all(torch.equal(value, before[key]) for key, value in encoder.state_dict().items())


def test_missing_file(tmp_path: Path) -> None:
    path = tmp_path / "nowhere.pth"
    with pytest.raises(UsageError, match=r"nowhere\.pth does not exist .*nothing is downloaded"):
        load_weights(build(), path)


def test_another_format(tmp_path: Path) -> None:
    path = tmp_path / "weights.onnx"
    path.write_bytes(b"")
    with pytest.raises(UsageError, match=r"must end in \.pth, \.pt or \.safetensors, not in '\.onnx'"):
        load_weights(build(), path)


@pytest.mark.parametrize(
    "content",
    [b"", b"no weights", b"PK\x03\x04 truncated", pickle.dumps(Path("x"), protocol=2)],
    ids=["empty", "text", "truncated", "pickled-object"],
)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_unreadable_file(tmp_path: Path, content: bytes, suffix: str) -> None:
    path = tmp_path / f"broken{suffix}"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=rf"broken\{suffix} cannot be read"):
        load_weights(build(), path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.zeros(1)], "must hold a state dict .*, not a list"),
        ({"state_dict": {"a": torch.zeros(1)}, "epoch": 3}, "2 that are no tensors: 'state_dict', 'epoch'"),
    ],
)
def test_file_that_holds_something_else(tmp_path: Path, content: object, message: str) -> None:
    path = tmp_path / "checkpoint.pt"
    torch.save(content, path)
    with pytest.raises(UsageError, match=message):
        load_weights(build(), path)
