"""Runs whose files were damaged, or tampered with: one message with file and key, and nothing is changed."""

import json
import os
import shutil

import numpy as np
import pytest
import small_data
import torch
from safetensors.torch import load_file, save_file

from regloss.errors import UsageError
from regloss.training.config import parse
from regloss.training.logs import CsvLog
from regloss.training.model import load_model
from regloss.training.proposals import ProposalStore
from regloss.training.run_parts import build
from regloss.training.trainer import train

DEEP = "[" * 200_000 + "]" * 200_000
MODEL = {  # key of model.json, what it becomes, what is said
    "classes a number": ("classes", 4, "classes: .*valid list.*got 4"),
    "classes null": ("classes", None, "classes: .*valid list"),
    "none": ("classes", [], "classes: .*at least 1"),
    "classes numbers": ("classes", [1, 2, 3], r"classes\.0: .*valid string"),
    "colors null": ("colors", None, "colors: .*valid list"),
    "a color short": ("colors", [[0, 0, 0]], "3 classes and 1 colors"),
    "a color too bright": ("colors", [[0, 0, 256]] * 3, r"colors\.0\.2: .*255; got 256"),
    "channels": ("channels", 10**12, "channels: .*1024; got 1000000000000"),
    "channels text": ("channels", "1", "channels: .*valid integer; got '1'"),
    "spacing": ("spacing", [1.0, 0.0], r"spacing\.1: .*greater than 0; got 0"),
    "spacing of four": ("spacing", [1.0] * 4, "spacing: .*at most 3"),
    "no configuration": ("config", 5, "config: .*valid dictionary"),
    "network": ("config.network.name", 3, "network.name"),
    "levels": ("config.network.levels", 60, "levels must be at most 16, not 60"),
    "crop": ("config.data.crop", 10**9, r"data\.crop"),
    "loss": ("config.loss", [3], "loss"),
}
STATE = {
    "step missing": ("step", ..., "step: Field required"),
    "step a text": ("step", "abc", "step: .*valid integer"),
    "step negative": ("step", -5, "step: .*greater than or equal to 0; got -5"),
    "step beyond": ("step", 10**12, "has step 1000000000000, but the training ends with 3"),
    "numbers": ("numbers", [1], "numbers: .*valid dictionary"),
    "a number": ("numbers", {"loss": "low"}, r"numbers\.loss: .*valid number"),
    "generation": ("generation", 10**6, "generation-1000000, which is not complete or not there"),
    "no generation": ("generation", -1, "generation -1 and generation-epoch 0 at step 3, which needs stored"),
    "groups": ("optimizer.param_groups", [], "param_groups holds 0 groups instead of 1"),
    "group": ("optimizer.param_groups.0.params", [1], r"param_groups\.0\.params cannot be \[1\]"),
    "betas": ("optimizer.param_groups.0.betas", ["a", 1], r"param_groups\.0\.betas cannot be \['a', 1\]"),
    "epsilon": ("optimizer.param_groups.0.eps", -1, r"param_groups\.0\.eps cannot be -1"),
    "plain": ("optimizer.plain", {"999": {}}, r"optimizer\.plain\.999"),
    "optimizer": ("optimizer", None, "optimizer: .*valid dictionary"),
}


def change(path, key, value):
    content = json.loads(path.read_text())
    *outer, last = [int(part) if part.isdigit() else part for part in key.split(".")]
    table = content
    for part in outer:
        table = table[part]
    if value is ...:
        del table[last]
    else:
        table[last] = value
    path.write_text(json.dumps(content))


@pytest.fixture(scope="module")
def finished(images, tmp_path_factory):
    """An output folder, with stored proposals; not to be changed."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    from regloss.hooks import manager

    manager().unregister(name="regloss:tensorboard")
    train(parse(small_data.settings(images, folder, "training.epochs=1", "data.test=")))
    return folder


@pytest.fixture
def run(finished, tmp_path):
    """A copy, to be changed."""
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def resume(images, run):
    def go_on():
        train(parse(small_data.settings(images, run, "training.epochs=1", "data.test=")), resume=True)

    return go_on


def contents(folder):
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(("key", "value", "expected"), MODEL.values(), ids=MODEL)
def test_a_damaged_card_is_named_with_its_key(key, value, expected, run):
    change(run / "model.json", key, value)
    with pytest.raises(UsageError, match=rf"(?s)(model\.json|levels).*{expected}|{expected}"):
        load_model(run)


@pytest.mark.parametrize("text", [DEEP, "[1]", '"abc"', "{", "\ufeff{}", "1" * 100_000], ids=range(6))
def test_files_that_are_no_card_or_state(text, run, resume):
    for path in (run / "model.json", next(run.glob("checkpoints/*/state.json")), run / "config.json"):
        before = path.read_text()
        path.write_text(text)
        kept = contents(run)
        with pytest.raises(
            UsageError, match=path.name.partition(".")[0] if path.name != "state.json" else "checkpoint"
        ):
            load_model(run) if path.name == "model.json" else resume()
        assert contents(run) == kept
        path.write_text(before)


@pytest.mark.parametrize(("key", "value", "expected"), STATE.values(), ids=STATE)
def test_a_damaged_state_is_named_with_its_key(key, value, expected, run, resume):
    change(next(run.glob("checkpoints/*/state.json")), key, value)
    before = contents(run)
    with pytest.raises(UsageError, match=rf"checkpoint.*state\.json.*{expected}|checkpoint.*{expected}"):
        resume()
    assert contents(run) == before


def test_keys_that_others_have_added_do_no_harm(run, resume):
    """Of later versions, or of an optimizer of an earlier torch, which has fewer settings."""
    state = next(run.glob("checkpoints/*/state.json"))
    change(state, "further", [1])
    change(state, "optimizer.param_groups.0.foreach", ...)
    change(run / "model.json", "further", [1])
    resume()
    load_model(run)


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda value: value[:-1], r"instead of \("),
        (lambda value: value.to(torch.int8), "torch.int8, holds other than finite floats"),
        (lambda value: value * float("nan"), "holds other than finite floats"),
    ],
)
def test_an_optimizer_of_other_tensors_is_refused(damage, expected, run, resume):
    path = next(run.glob("checkpoints/*/optimizer.safetensors"))
    # Older versions map the file, which is written over here.
    tensors = {name: value.clone() for name, value in load_file(path).items()}
    name = next(name for name, value in tensors.items() if value.ndim == 4)
    save_file({**tensors, name: damage(tensors[name]).contiguous()}, path)
    with pytest.raises(UsageError, match=rf"{name}.*{expected}"):
        resume()
    save_file({key: value for key, value in tensors.items() if not key.endswith("exp_avg_sq")}, path)
    with pytest.raises(UsageError, match="exp_avg_sq is missing"):
        resume()


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda value: torch.full_like(value, float("nan")), r"values of .* that are NaN or infinite"),
        (lambda value: (value * 100).to(torch.int8), r"as torch.int8 instead of torch.float32"),
    ],
)
def test_weights_that_mean_nothing_are_refused(damage, expected, run, resume, images, tmp_path):
    for path in (run / "model.safetensors", next(run.glob("checkpoints/*/network.safetensors"))):
        tensors = load_file(path)
        name = next(iter(tensors))
        save_file({**tensors, name: damage(tensors[name])}, path)
        with pytest.raises(UsageError, match=rf"The weights of .* {name} .*|The weights.*{expected}") as caught:
            load_model(run) if path.name == "model.safetensors" else resume()
        assert name in str(caught.value)
    start = f"training.start-from={run}"
    with pytest.raises(UsageError, match="The weights of"):
        train(parse(small_data.settings(images, tmp_path / "new", start)))


def test_half_precision_is_no_damage(run):
    tensors = load_file(run / "model.safetensors")
    save_file({name: value.bfloat16() for name, value in tensors.items()}, run / "model.safetensors")
    load_model(run)


# -- Proposals and logs ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 20, 60])
def test_a_truncated_proposal_is_named(size, run):
    path = next(run.glob("proposals/generation-0000/i*.png"))
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(UsageError, match=rf"{path.name} is damaged: .*--overwrite"):
        ProposalStore(run / "proposals").read(0, path.stem)
    (path.parent / "v.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(UsageError, match=r"v\.npy is damaged"):
        ProposalStore(run / "proposals").read(0, "v")


@pytest.mark.parametrize("labels", [np.zeros((3, 4), np.uint8), np.full(small_data.SIZE, 7, np.uint8)])
def test_a_proposal_of_another_image_is_named(labels, images, tmp_path):
    from regloss.registry import create
    from regloss.training.loader import TrainingSet
    from regloss.training.sample_reader import SampleReader

    parsed = parse(small_data.settings(images, tmp_path / "run"))
    source = create("dataset", "folder", **parsed.data.component_settings())
    store = ProposalStore(tmp_path / "proposals")
    store.write(0, "i0", labels)
    store.finish(0, 1)
    with pytest.raises(UsageError, match="stored proposal of i0 is damaged"):
        TrainingSet(SampleReader(source), ["i0"], parsed.data, 0, store)[0, 0, 0]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("x,0,0.1\n", "line 3: could not convert"),
        ("1,2,3,4,5,6,7,8,9\n", "line 3 has more values"),
        (",0,1\n", "line 3 has no step"),
        ("\u00b2,0,1\n", "line 3: could not convert"),
    ],
)
def test_a_damaged_log_is_named_with_its_line(line, expected, tmp_path):
    path = tmp_path / "steps.csv"
    log = CsvLog(path)
    log.add({"step": 1, "epoch": 0, "loss": 0.5})
    with path.open("a") as file:
        file.write(line)
    with pytest.raises(UsageError, match=rf"steps\.csv is damaged: {expected}"):
        CsvLog(path, "step")
    path.write_bytes(b"\xff\xfe\xfa\n")
    with pytest.raises(UsageError, match=r"steps\.csv is damaged"):
        CsvLog(path, "step")


# -- Runs from elsewhere -----------------------------------------------------------------------------------------------


def test_a_run_from_elsewhere_makes_no_folder(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    elsewhere = tmp_path / "elsewhere"
    energy = {"name": "nltv", "neighbors": 3, "cache": str(elsewhere)}
    change(run / "model.json", "config.evaluation.energy", energy)
    with pytest.raises(UsageError, match=r"keeps graphs in .*elsewhere, outside its.*--set evaluation.energy.cache="):
        load_model(run)
    with pytest.raises(UsageError, match="outside its folder"):
        load_model(run, ["data.cache=false"])
    assert load_model(run, ["evaluation.energy.cache="]).config.evaluation.energy["cache"] == ""
    assert load_model(run, [f"evaluation.energy.cache={elsewhere}"]).config.evaluation.energy["cache"] == str(elsewhere)
    for path, allowed in ((run / "graphs", True), (run / ".." / "graphs", False), ("graphs", False), ("run/g", True)):
        change(run / "model.json", "config.evaluation.energy.cache", str(path))
        if allowed:
            load_model(run)
        else:
            with pytest.raises(UsageError, match="outside its folder"):
                load_model(run)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


def test_a_training_does_not_start_from_what_it_replaces(run, images):
    before = contents(run)
    for start in (run, run / "model.safetensors"):
        parsed = parse(small_data.settings(images, run, f"training.start-from={start}"))
        with pytest.raises(UsageError, match="in the output that the training replaces"):
            train(parsed, overwrite=True)
    assert contents(run) == before


def test_a_start_from_a_run_that_has_not_ended_is_told(run, images, tmp_path):
    parsed = parse(small_data.settings(images, tmp_path / "new", f"training.start-from={run}"))
    assert not [warning for warning in build(parsed).warnings if "start-from" in warning]
    (run / "model.safetensors").unlink()
    (warning,) = [warning for warning in build(parsed).warnings if "start-from" in warning]
    assert warning == f"training.start-from: the run {run} has not ended, and its last checkpoint is taken."


@pytest.mark.parametrize(("size", "told"), [(12, False), (13, True)])
def test_a_batch_of_more_than_an_epoch_is_told(images, tmp_path, size, told):
    """Six images, two crops of each: more of them would be the same ones again."""
    changes = f"training.batch-size={size}", "data.crops-per-image=2", "training.epochs=1"
    warnings = build(parse(small_data.settings(images, tmp_path / "new", *changes))).warnings
    assert any("A batch of 13 is more than the 12 crops of an epoch" in warning for warning in warnings) == told


def test_two_trainings_that_start_from_each_other(run, images, tmp_path):
    """Each reads the other's weights once; nothing goes round."""
    second = f"training.start-from={run}"
    train(parse(small_data.settings(images, tmp_path / "b", second, "training.epochs=1", "data.test=")))
    first = small_data.settings(images, run, f"training.start-from={tmp_path / 'b'}", "training.epochs=1", "data.test=")
    train(parse(first), overwrite=True)
    assert (run / "model.safetensors").exists()


# -- Limits ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "setting",
    [
        "training.optimizer.lr=1e300",
        "loss.regularizer.0.weight=1e300",
        f"training.batch-size={10**18}",
        f"data.crop={10**9}",
        "data.crop=[60000, 60000]",
        f"data.reduce={10**9}",
        f"seed={2**70}",
        f"training.threads={10**6}",
        f"data.workers={10**6}",
        "training.devices=1000",
        "training.epochs=1e30",
        "network.levels=60",
        f"network.max-channels={10**9}",
        "training.epochs=" + "1" * 100_000,
        "training.epochs=" + DEEP,
    ],
    ids=lambda setting: setting[:30],
)
def test_absurd_settings_are_refused_at_once(setting, images, tmp_path):
    with pytest.raises(UsageError) as caught:
        train(parse(small_data.settings(images, tmp_path / "run", setting)))
    assert len(str(caught.value)) < 2000
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="has no named pipes")
def test_named_pipes_are_not_waited_for(tmp_path):
    from regloss.io.images import read_image
    from regloss.io.labels import read_label_map
    from regloss.io.toml import read_toml
    from regloss.training.config import read

    os.mkfifo(tmp_path / "pipe.png")
    for reader in (read_image, read_toml, read):
        with pytest.raises(UsageError, match=r"pipe\.png cannot be read: it is no regular file"):
            reader(tmp_path / "pipe.png")
    with pytest.raises(UsageError, match="no regular file"):
        read_label_map(tmp_path / "pipe.png", ["a", "b"])


def test_hostile_pictures_and_configurations(tmp_path):
    import struct
    import zlib

    from PIL import Image

    from regloss.io.images import read_image
    from regloss.training.config import read

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    path = tmp_path / "text.png"
    Image.new("L", (4, 4)).save(path)
    data = path.read_bytes()
    text = chunk(b"zTXt", b"comment\0\0" + zlib.compress(b"x" * 80_000_000))
    path.write_bytes(data[:33] + text + data[33:])
    with pytest.raises(UsageError, match=r"text\.png cannot be read"):
        read_image(path)
    config = tmp_path / "c.toml"
    for content in ("a = " + DEEP, "a = " + "1" * 100_000, "\n".join(f"k{n} = 1" for n in range(100_000))):
        config.write_text(content)
        with pytest.raises(UsageError, match=r"c\.toml") as caught:
            read(config)
        assert len(str(caught.value)) < 5000
    config.write_text("#" * (17 * 1024**2))
    with pytest.raises(UsageError, match="files of settings have at most"):
        read(config)
