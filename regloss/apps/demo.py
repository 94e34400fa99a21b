"""The demonstration: train on the sample images from scribbles, with and without the trust region, and compare."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

from regloss.io.outputs import check_new_folder, make_new_folder
from regloss.training.config import Config, parse
from regloss.training.output_lock import check_idle
from regloss.training.trainer import train

_CONFIG: dict[str, Any] = {
    "seed": 0,
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


def demo_configs(output: Path, epochs: int) -> dict[str, Config]:
    """The three runs of the demonstration by name, in their order: a start, then two that go on from it."""
    configs = {}
    for name, loss in (
        ("start", {}),
        ("partial-cross-entropy", {}),
        ("trust-region", _TRUST_REGION),
    ):
        table = copy.deepcopy(_CONFIG)
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
    epochs: int = 60,
    overwrite: bool = False,
    quiet: bool = True,
    callback: Callable[[str], None] = print,
) -> list[str]:
    """Train on the sample images; returns the comparison in words.

    Args:
        output: folder for the three runs, each with its report.
        epochs: of each run.
        overwrite: replace an earlier demonstration.
        quiet: no progress bars.
        callback: called with messages worth reading.

    Raises:
        UsageError: the output is in use, or the package that carries the images is not installed.
    """
    configs = demo_configs(output, epochs)
    check_new_folder(output, tuple(configs), overwrite=overwrite)
    for name in configs:
        check_idle(output / name)
    make_new_folder(output, tuple(configs))
    scores = {}
    for name, config in configs.items():
        callback(f"Training: {name}")
        scores[name] = train(config, quiet=quiet, callback=callback)["test"]
    lines = [f"{'on the test images':24}  mean IoU   grid-CRF energy a pixel"]
    for name in ("partial-cross-entropy", "trust-region"):
        lines.append(f"{name:24}  {scores[name]['mean-iou']:.3f}      {scores[name]['energy']:.4f}")
    lines.append(f"Report: {output / 'trust-region' / 'report.html'}")
    return lines
