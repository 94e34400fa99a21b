"""The demonstration: train on the sample images from scribbles, with and without the trust region, and compare."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from regloss.batch import Batch
from regloss.io.outputs import check_new_folder, make_new_folder
from regloss.outer_loop import OuterLoop
from regloss.registry import resolve
from regloss.training.config import Config, parse
from regloss.training.output_lock import check_idle
from regloss.training.trainer import train

_CONFIG: dict[str, Any] = {
    "data": {
        "dataset": "sample",
        "crop": 128,
        "normalize": "image",
        "augment": {"flip": True, "flip-vertical": True, "scale": [0.8, 1.25], "rotate": 20.0, "brightness": 0.1},
    },
    "network": {"name": "unet", "channels": 16, "levels": 4},
    "training": {"batch-size": 4, "optimizer": {"name": "adam", "lr": 2e-3}, "schedule": {"name": "cosine"}},
    "evaluation": {"trimap": [2, 4, 8], "examples": 8},
}

_TRUST_REGION: dict[str, Any] = {
    "regularizer": [{"name": "grid-crf", "weight": 1.0}],
    "outer-loop": {
        "name": "trust-region",
        "solver": "alpha-expansion",
        "coupling": 0.05,
        "divergence": "robust-kl",
        "epsilon": {"start": 0.0, "end": 0.3},
        "update-every": 6,
    },
}


_RUNS = {
    "start": "partial cross entropy on the scribbles, from scratch",
    "partial-cross-entropy": "going on without a prior",
    "trust-region": "going on with a prior, the grid CRF, and a solver",
}


def demo_configs(output: Path, epochs: int, seed: int = 0) -> dict[str, Config]:
    """The three runs of the demonstration by name, in their order: a start, then two that go on from it."""
    configs = {}
    for name, loss in (
        ("start", {}),
        ("partial-cross-entropy", {}),
        ("trust-region", _TRUST_REGION),
    ):
        table = copy.deepcopy(_CONFIG)
        table["seed"] = seed
        table["output"] = str(output / name)
        table["loss"] = loss
        table["training"]["epochs"] = epochs
        if name != "start":
            table["training"]["start-from"] = str(output / "start")
        configs[name] = table
    return {name: parse(table, f"the demo's {name}") for name, table in configs.items()}


def run_demo(
    output: Path,
    *,
    epochs: int = 120,
    seed: int = 0,
    overwrite: bool = False,
    quiet: bool = True,
    callback: Callable[[str], None] = print,
) -> list[str]:
    """Train on the sample images; returns the comparison in words.

    Args:
        output: folder for the three runs, each with its report.
        epochs: of each run.
        seed: of all that is random.
        overwrite: replace an earlier demonstration.
        quiet: no progress bars.
        callback: called with messages worth reading.

    Raises:
        UsageError: the output is in use, or the package that carries the images is not installed.
    """
    configs = demo_configs(output, epochs, seed)
    check_new_folder(output, tuple(configs), overwrite=overwrite)
    for name in configs:
        check_idle(output / name)
    make_new_folder(output, tuple(configs))
    callback("Compiling the graph cuts: some seconds the first time, then they are kept.")
    _compile()
    scores = {}
    for number, (name, config) in enumerate(configs.items(), 1):
        callback(f"Training {number} of {len(configs)}, {name}: {epochs} epochs of {_RUNS[name]}.")
        scores[name] = train(config, quiet=quiet, callback=callback)["test"]
    lines = [f"{'on the test images':24}  mean IoU   grid-CRF energy a pixel"]
    for name in ("partial-cross-entropy", "trust-region"):
        lines.append(f"{name:24}  {scores[name]['mean-iou']:.3f}      {scores[name]['energy']:.4f}")
    run = output / "trust-region"
    return [
        *lines,
        "",
        f"Open {run / 'report.html'} in a browser: scores, curves, and pictures of what was learnt.",
        "Try next:",
        f"  regloss predict {run} FOLDER --output masks     photographs of your own, if they show coins or cells",
        f"  regloss demo --seed 1 --output {output}-1          how much depends on chance",
        "  docs/start/your-images.md                       scribbles on your own images, and a training",
    ]


def _compile() -> None:
    """Have the solver of `_TRUST_REGION` compiled now, where it can be said, and not in the middle of a training."""
    settings = {key: _TRUST_REGION["outer-loop"][key] for key in ("name", "solver")}
    loop: OuterLoop = resolve("outer-loop", settings | {"regularizer": _TRUST_REGION["regularizer"]})
    labels = torch.full((1, 8, 8), 255)
    labels[0, 0, 0], labels[0, 7, 7] = 0, 1
    loop.propose(torch.zeros(1, 2, 8, 8), Batch(torch.zeros(1, 3, 8, 8), labels))
