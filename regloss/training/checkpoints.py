"""Checkpoints: safetensors for what is tensors, JSON for what is not; written to a temporary name and moved into place.

A checkpoint is a folder, checkpoints/STEP, with

    network.safetensors     weights and buffers
    optimizer.safetensors   optimizer tensors
    modules/                the same two of every further network, as NAME.safetensors and NAME-optimizer.safetensors
    state.json              counters, optimizer settings, format version

so a run that is killed while writing leaves the last complete one untouched.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from regloss.errors import FailedWrite, UsageError
from regloss.io.outputs import replacing
from regloss.training.saved import State, check_optimizer_state, checked, read_json, shortened

FORMAT = 1
_FORMAT_KEY = "regloss-format"  # in the metadata of weights files; those of other origin have none


@dataclass(frozen=True)
class Checkpoint:
    """What a run resumes from.

    Attributes:
        network: weights and buffers by name.
        tensors: those of the optimizer.
        state: JSON-able.
        modules: weights and optimizer tensors of every further network by its name.
    """

    network: dict[str, Tensor]
    tensors: dict[str, Tensor]
    state: dict[str, Any]
    modules: dict[str, tuple[dict[str, Tensor], dict[str, Tensor]]] = field(default_factory=dict)


def save(
    folder: Path,
    step: int,
    weights: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
    state: Mapping[str, Any],
    modules: Mapping[str, tuple[nn.Module, torch.optim.Optimizer]] | None = None,
) -> Path:
    """Write the checkpoint of ``step`` below ``folder``, then remove older ones.

    Args:
        folder: holds the checkpoints.
        step: optimizer steps done.
        weights: of the network.
        optimizer: of the network.
        state: what else there is, JSON-able.
        modules: further networks with their optimizers, by name.

    Raises:
        FailedWrite: the disk is full, say; earlier checkpoints are as they were.
    """
    tensors, optimizer_state = _flatten_optimizer(optimizer)
    of_modules = {}
    target = folder / f"{step:08d}"
    temporary = folder / f".{target.name}.{os.getpid()}"
    try:
        sweep(folder)
        temporary.mkdir(parents=True)
        _write_network(temporary / "network.safetensors", weights)
        save_file(tensors, temporary / "optimizer.safetensors")
        for name, (module, its_optimizer) in (modules or {}).items():
            (temporary / "modules").mkdir(exist_ok=True)
            its_tensors, of_modules[name] = _flatten_optimizer(its_optimizer)
            _write_network(temporary / "modules" / f"{name}.safetensors", module.state_dict())
            save_file(its_tensors, temporary / "modules" / f"{name}-optimizer.safetensors")
        written = {"format": FORMAT, "step": step, "optimizer": optimizer_state, "modules": of_modules, **state}
        (temporary / "state.json").write_text(json.dumps(written, indent=1), encoding="utf-8")
        if target.exists():
            shutil.rmtree(target)
        temporary.replace(target)
    except (OSError, SafetensorError) as cause:
        shutil.rmtree(temporary, ignore_errors=True)  # it may be what fills the disk
        raise FailedWrite(f"The checkpoint {target} cannot be written: {cause}") from cause
    for older in complete(folder):
        if older != target:
            shutil.rmtree(older)
    return target


def sweep(folder: Path) -> None:
    """Remove from ``folder`` what a killed run has left of checkpoints that it was writing or removing."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.is_dir() and not (path / "state.json").is_file():
            shutil.rmtree(path)
        elif path.name.startswith("."):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def complete(folder: Path) -> list[Path]:
    """Complete checkpoints below ``folder``, oldest first."""
    return sorted(path for path in folder.glob("[0-9]*") if (path / "state.json").is_file())


def load(path: Path) -> Checkpoint:
    """Read a checkpoint folder.

    Raises:
        UsageError: a file is missing or damaged, or the checkpoint is of another format version.
    """
    try:
        content = read_json(path / "state.json")
        if not isinstance(content, dict):
            raise ValueError(f"state.json holds {shortened(content)} instead of keys")
        _check_format(shortened(content.get("format")), f"The checkpoint {path}")
        state = checked(State, content, path / "state.json").model_dump(by_alias=True)
        modules = {
            name: (
                load_file(path / "modules" / f"{name}.safetensors"),
                load_file(path / "modules" / f"{name}-optimizer.safetensors"),
            )
            for name in state.get("modules", {})
        }
        network, tensors = load_file(path / "network.safetensors"), load_file(path / "optimizer.safetensors")
        return Checkpoint(network, tensors, state, modules)
    except UsageError:
        raise
    except (OSError, ValueError, SafetensorError) as cause:
        raise UsageError(f"The checkpoint {path} cannot be read: {cause}") from cause


def check(
    checkpoint: Checkpoint, optimizer: torch.optim.Optimizer, modules: Mapping[str, torch.optim.Optimizer], source: str
) -> None:
    """Make sure that optimizers can be put into the checkpoint's state.

    Args:
        checkpoint: with the ``source`` that messages name.
        optimizer: of the network.
        modules: those of further networks, by name.
        source: the checkpoint's folder.

    Raises:
        UsageError: they cannot; the message names the key.
    """
    where = f"The checkpoint {source} is damaged: state.json and optimizer.safetensors"
    check_optimizer_state(checkpoint.state["optimizer"], checkpoint.tensors, optimizer, where)
    for name in modules.keys() & checkpoint.modules.keys():
        state, tensors = checkpoint.state["modules"][name], checkpoint.modules[name][1]
        check_optimizer_state(state, tensors, modules[name], f"{where} of {name}")


def restore_optimizer(checkpoint: Checkpoint, optimizer: torch.optim.Optimizer) -> None:
    """Put ``optimizer`` into the checkpoint's state, on the devices of its parameters."""
    optimizer.load_state_dict(_restore_optimizer(checkpoint.tensors, checkpoint.state["optimizer"], optimizer))


def restore_module(checkpoint: Checkpoint, name: str, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Put a further network and its optimizer into the checkpoint's state.

    Raises:
        UsageError: the checkpoint holds none of this name, or one of other settings.
    """
    if name not in checkpoint.modules:
        held = ", ".join(checkpoint.modules) or "none"
        raise UsageError(f"The checkpoint has no network {name!r} beside the segmentation's; it holds: {held}.")
    weights, tensors = checkpoint.modules[name]
    load_network(module, weights, f"the checkpoint's {name}")
    optimizer.load_state_dict(_restore_optimizer(tensors, checkpoint.state["modules"][name], optimizer))


def write_json(path: Path, content: Any) -> None:
    """Write ``content`` as JSON, atomically.

    Raises:
        FailedWrite: the disk is full, say.
    """
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1), encoding="utf-8")


def _check_format(found: str, what: str) -> None:
    if found != str(FORMAT):
        raise UsageError(
            f"{what} has the format version {found}, but this regloss reads version {FORMAT}. Use the regloss that "
            "wrote it."
        )


def save_network(path: Path, weights: Mapping[str, Tensor]) -> None:
    """Write weights and buffers as safetensors, atomically.

    Raises:
        FailedWrite: the disk is full, say.
    """
    with replacing(path) as temporary:
        try:
            _write_network(temporary, weights)
        except SafetensorError as cause:  # which is what it makes of an OSError
            raise FailedWrite(f"{path} cannot be written: {cause}") from cause


def _write_network(path: Path, weights: Mapping[str, Tensor]) -> None:
    # clone: safetensors refuses tensors that share memory, tied weights for instance.
    copies = {name: value.detach().cpu().contiguous().clone() for name, value in weights.items()}
    save_file(copies, path, metadata={_FORMAT_KEY: str(FORMAT)})


def read_weights(path: Path) -> dict[str, Tensor]:
    """Weights from a file, or from a run's folder (its final model, else its last checkpoint).

    Files are .safetensors; or .pth, .pt and .bin with a state dict, or with one as their "state_dict".

    Raises:
        UsageError: there is nothing to read there, or it is of another format version.
    """
    if path.is_dir():
        candidates = [path / "model.safetensors"]
        candidates += [folder / "network.safetensors" for folder in reversed(complete(path / "checkpoints"))]
        found = next((candidate for candidate in candidates if candidate.is_file()), None)
        if found is None:
            raise UsageError(f"{path} holds no model.safetensors and no complete checkpoint. Has the run begun?")
        path = found
    if not path.is_file():
        raise UsageError(f"There is no weights file {path}. Give a run's folder, or a .safetensors or .pth file.")
    if path.suffix in (".pth", ".pt", ".bin"):
        return _read_state_dict(path)
    try:
        with safe_open(path, framework="pt") as file:
            _check_format((file.metadata() or {}).get(_FORMAT_KEY, str(FORMAT)), f"The weights file {path}")
        return load_file(path)
    except (OSError, SafetensorError) as cause:
        raise UsageError(f"The weights {path} cannot be read as safetensors: {cause}") from cause


def has_ended(run: Path) -> bool:
    """Whether a run's folder holds its final model, which `read_weights` takes before any checkpoint."""
    return (run / "model.safetensors").is_file()


def _read_state_dict(path: Path) -> dict[str, Tensor]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as cause:  # a damaged file makes torch.load raise nearly anything, down to AssertionError
        raise UsageError(f"The weights {path} cannot be read by torch.load(weights_only=True): {cause}") from cause
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise UsageError(f"The weights file {path} holds no state dict, which is tensors by name.")
    return {str(name): value for name, value in content.items()}


def load_network(network: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """Put ``weights`` into ``network``.

    Raises:
        UsageError: names or shapes differ, as they do for another network or other settings; the first few are named.
            Or values are of another kind, or not finite where the network's own are.
    """
    expected = network.state_dict()
    problems = [f"{name} is missing" for name in expected if name not in weights]
    problems += [f"{name} is unknown" for name in weights if name not in expected]
    problems += [
        f"{name} is {tuple(weights[name].shape)} instead of {tuple(expected[name].shape)}"
        for name in expected
        if name in weights and weights[name].shape != expected[name].shape
    ]
    if problems:
        listed = "; ".join(problems[:5]) + (f"; and {len(problems) - 5} more" if len(problems) > 5 else "")
        raise UsageError(
            f"The weights of {source} are of another network than the configured {type(network).__name__}: {listed}. "
            "Use the configuration that they were trained with."
        )
    check_values(weights, expected, source)
    network.load_state_dict(dict(weights))


def check_values(weights: Mapping[str, Tensor], expected: Mapping[str, Tensor], source: str) -> None:
    """Raise `UsageError` unless ``weights`` are floats where ``expected`` are, and finite where all of these are."""
    for name, values in expected.items():
        given = weights[name]
        if given.is_floating_point() != values.is_floating_point():
            raise UsageError(
                f"The weights of {source} hold {name} as {given.dtype} instead of {values.dtype}. Whole numbers that "
                "stand for weights have to be turned back into floats first."
            )
        wrong = int((~torch.isfinite(given)).sum())
        if wrong and bool(torch.isfinite(values).all()):
            raise UsageError(
                f"The weights of {source} hold {wrong} values of {name} that are NaN or infinite. Take them from an "
                "earlier checkpoint, or train anew."
            )


def _flatten_optimizer(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Optimizer tensors by "state/PARAMETER/NAME", and the rest as JSON."""
    full = optimizer.state_dict()
    tensors: dict[str, Tensor] = {}
    others: dict[str, dict[str, Any]] = {}
    for parameter, entries in full["state"].items():
        for name, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"state/{parameter}/{name}"] = value.detach().cpu().contiguous().clone()
            else:
                others.setdefault(str(parameter), {})[name] = value
    return tensors, {"param_groups": full["param_groups"], "plain": others}


def _restore_optimizer(
    tensors: Mapping[str, Tensor], state: Mapping[str, Any], optimizer: torch.optim.Optimizer
) -> dict[str, Any]:
    entries: dict[int, dict[str, Any]] = {int(key): dict(value) for key, value in state["plain"].items()}
    for key, value in tensors.items():
        _, parameter, name = key.split("/", 2)
        entries.setdefault(int(parameter), {})[name] = value
    # Settings that a later torch has added have the values that the optimizer began with.
    begun = optimizer.state_dict()["param_groups"]
    groups = [{**new, **group} for new, group in zip(begun, state["param_groups"], strict=True)]
    return {"state": entries, "param_groups": groups}
