"""Checkpoints: bit-exact, whole or absent, and refused where they do not belong."""

import json

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from regloss.errors import UsageError
from regloss.training import checkpoints


def network(width=3):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, width, 3), nn.BatchNorm2d(width), nn.Conv2d(width, 2, 1))


OPTIMIZERS = {
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=0.1),
    "amsgrad": lambda parameters: torch.optim.AdamW(parameters, lr=0.1, amsgrad=True),
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9, nesterov=True),
    "plain": lambda parameters: torch.optim.SGD(parameters, lr=0.1),
}


def advance(model, optimizer, steps):
    for step in range(steps):
        torch.manual_seed(step)
        optimizer.zero_grad()
        model(torch.rand(2, 1, 6, 6)).square().mean().backward()
        optimizer.step()


def groups(model, make):
    return make([{"params": model[0].parameters()}, {"params": [*model[1:].parameters()], "lr": 0.03}])


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_training_goes_on_bit_by_bit(tmp_path, make):
    model = network()
    optimizer = groups(model, make)
    advance(model, optimizer, 3)
    path = checkpoints.save(tmp_path, 3, model.state_dict(), optimizer, {"generation": -1, "numbers": {"a": 0.1}})
    advance(model, optimizer, 2)

    again = network()
    other = groups(again, make)
    checkpoint = checkpoints.load(path)
    assert (checkpoint.state["step"], checkpoint.state["numbers"]) == (3, {"a": 0.1})
    checkpoints.load_network(again, checkpoint.network, "here")
    checkpoints.restore_optimizer(checkpoint, other)
    assert [group["lr"] for group in other.param_groups] == [0.1, 0.03]
    advance(again, other, 2)
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def test_the_last_one_stays(tmp_path):
    model = network()
    optimizer = OPTIMIZERS["plain"](model.parameters())
    for step in (5, 100, 1000):
        checkpoints.save(tmp_path, step, model.state_dict(), optimizer, {})
    assert [path.name for path in checkpoints.complete(tmp_path)] == ["00001000"]
    assert [path.name for path in tmp_path.iterdir()] == ["00001000"]


def test_an_incomplete_one_is_no_checkpoint(tmp_path):
    """Killed while writing, a process leaves a temporary folder; the next checkpoint clears it away."""
    model = network()
    optimizer = OPTIMIZERS["plain"](model.parameters())
    checkpoints.save(tmp_path, 5, model.state_dict(), optimizer, {})
    (tmp_path / ".00000010.123").mkdir()
    (tmp_path / ".00000010.123" / "network.safetensors").write_bytes(b"half")
    (tmp_path / "00000011").mkdir()
    assert [path.name for path in checkpoints.complete(tmp_path)] == ["00000005"]
    checkpoints.save(tmp_path, 15, model.state_dict(), optimizer, {})
    assert not (tmp_path / ".00000010.123").exists()
    assert [path.name for path in checkpoints.complete(tmp_path)] == ["00000015"]


def test_a_write_that_fails_leaves_the_last_one(tmp_path, monkeypatch):
    model = network()
    optimizer = OPTIMIZERS["adam"](model.parameters())
    advance(model, optimizer, 1)
    path = checkpoints.save(tmp_path, 5, model.state_dict(), optimizer, {})

    def fail(tensors, path, metadata=None):
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(checkpoints, "save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        checkpoints.save(tmp_path, 6, model.state_dict(), optimizer, {})
    assert checkpoints.complete(tmp_path) == [path]
    checkpoints.load(path)


def test_another_format_version_is_refused(tmp_path):
    model = network()
    optimizer = OPTIMIZERS["plain"](model.parameters())
    path = checkpoints.save(tmp_path / "checkpoints", 5, model.state_dict(), optimizer, {})
    state = json.loads((path / "state.json").read_text())
    (path / "state.json").write_text(json.dumps({**state, "format": 2}))
    with pytest.raises(UsageError, match=r"00000005 has the format version 2, but this regloss reads version 1"):
        checkpoints.load(path)
    weights = tmp_path / "model.safetensors"
    save_file(model.state_dict(), weights, metadata={"regloss-format": "2"})
    with pytest.raises(UsageError, match=r"model.safetensors has the format version 2"):
        checkpoints.read_weights(weights)


@pytest.mark.parametrize("file", ["state.json", "network.safetensors", "optimizer.safetensors"])
@pytest.mark.parametrize("content", [None, b"", b"\xff\xfenonsense"])
def test_a_damaged_one_is_named(tmp_path, file, content):
    model = network()
    path = checkpoints.save(tmp_path, 5, model.state_dict(), OPTIMIZERS["plain"](model.parameters()), {})
    if content is None:
        (path / file).unlink()
    else:
        (path / file).write_bytes(content)
    with pytest.raises(UsageError, match="00000005 cannot be read"):
        checkpoints.load(path)


# -- Weights -----------------------------------------------------------------------------------------------------------


def test_weights_of_a_file_a_run_and_a_run_under_way(tmp_path):
    model = network()
    checkpoints.save(tmp_path / "checkpoints", 5, model.state_dict(), OPTIMIZERS["plain"](model.parameters()), {})
    under_way = checkpoints.read_weights(tmp_path)
    assert torch.equal(under_way["0.weight"], model[0].weight)
    with torch.no_grad():
        model[0].weight.add_(1)
    checkpoints.save_network(tmp_path / "model.safetensors", model.state_dict())
    for path in (tmp_path, tmp_path / "model.safetensors"):
        assert torch.equal(checkpoints.read_weights(path)["0.weight"], model[0].weight)


def test_weights_of_other_programs_are_read(tmp_path):
    save_file(network().state_dict(), tmp_path / "theirs.safetensors", metadata={"format": "pt"})
    assert "0.weight" in checkpoints.read_weights(tmp_path / "theirs.safetensors")


def test_weights_that_are_not_there(tmp_path):
    with pytest.raises(UsageError, match=r"holds no model.safetensors and no complete checkpoint"):
        checkpoints.read_weights(tmp_path)
    with pytest.raises(UsageError, match="no weights file"):
        checkpoints.read_weights(tmp_path / "absent.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"nonsense")
    with pytest.raises(UsageError, match=r"broken.safetensors cannot be read as safetensors"):
        checkpoints.read_weights(tmp_path / "broken.safetensors")


def test_tied_and_odd_weights_are_saved(tmp_path):
    """safetensors refuses tensors that share memory, and strides other than the usual."""
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    model.register_buffer("odd", torch.arange(6.0).reshape(2, 3).T)
    checkpoints.save_network(tmp_path / "tied.safetensors", model.state_dict())
    read = checkpoints.read_weights(tmp_path / "tied.safetensors")
    assert torch.equal(read["1.weight"], model[0].weight)
    assert torch.equal(read["odd"], model.odd)


def test_another_network_is_refused():
    """The message names what differs, and is not longer than it must be."""
    with pytest.raises(UsageError, match=r"weights of here are of another network than the configured Sequential"):
        checkpoints.load_network(network(), network(4).state_dict(), "here")
    weights = network().state_dict()
    weights["extra"] = weights.pop("0.bias")
    with pytest.raises(UsageError, match=r"0.bias is missing; extra is unknown"):
        checkpoints.load_network(network(), weights, "here")
    with pytest.raises(UsageError, match=r"0.weight is \(4, 1, 3, 3\) instead of \(3, 1, 3, 3\).*and \d more"):
        checkpoints.load_network(network(), network(4).state_dict(), "here")
    model = network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(UsageError):
        checkpoints.load_network(model, network(4).state_dict(), "here")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
