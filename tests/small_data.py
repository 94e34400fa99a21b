"""Eight small images with labels and scribbles, and configurations that train on them in about a second."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from regloss.training.config import apply_change

SIZE = (24, 28)
TRAIN, TEST = tuple(f"i{n}" for n in range(6)), ("i6", "i7")

LOOPS: dict[str, dict[str, Any]] = {
    "trust-region": {
        "name": "trust-region",
        "coupling": 0.05,
        "divergence": {"name": "robust-kl", "epsilon": 0.3},
        "update-every": 2,
    },
    "adm": {"name": "adm", "coupling": 0.1},
    "gradient-descent": {"name": "gradient-descent"},
    "dual-branch": {"name": "dual-branch"},  # with network.auxiliary-decoder
    "mean-teacher": {"name": "mean-teacher", "samples": 2},
}


def write_folder(root: Path, *, size: tuple[int, int] = SIZE, classes: int = 3, channels: int = 1) -> Path:
    """A disk (1) and a rectangle (2) that are brighter than the background; one stroke a class."""
    rng = np.random.default_rng(0)
    for name in ("images", "labels", "scribbles"):
        (root / name).mkdir(parents=True)
    rows, columns = np.indices(size)
    for name in TRAIN + TEST:
        row, column = rng.integers(8, 12, 2)
        label = np.zeros(size, dtype=np.uint8)
        scribble = np.full(size, 255, dtype=np.uint8)
        label[(rows - row) ** 2 + (columns - column) ** 2 < 25] = 1
        scribble[0, 2:20], scribble[row, column - 2 : column + 3] = 0, 1
        if classes > 2:
            label[14:21, 17:25], scribble[17, 19:23] = 2, 2
        image = np.clip(0.2 + 0.3 * label + rng.normal(0, 0.08, size), 0, 1)
        pixels = np.round(255 * image).astype(np.uint8)
        Image.fromarray(pixels if channels == 1 else np.stack([pixels] * 3, axis=-1)).save(root / f"images/{name}.png")
        Image.fromarray(label).save(root / f"labels/{name}.png")
        Image.fromarray(scribble).save(root / f"scribbles/{name}.png")
    return root


def settings(root: Path, output: Path, *changes: str, loop: str = "trust-region", classes: int = 3) -> dict[str, Any]:
    """A configuration as plain data; ``changes`` are ``section.key=value``."""
    table: dict[str, Any] = {
        "output": str(output),
        "data": {
            "dataset": "folder",
            "root": str(root),
            "classes": classes,
            "split": {"train": list(TRAIN), "test": list(TEST)},
            "crop": 24,
            "augment": {"flip": True, "scale": [0.8, 1.2], "rotate": 10.0, "brightness": 0.1},
        },
        "network": {"name": "unet", "levels": 2, "channels": 4, "norm": "group"},
        "loss": {"regularizer": [{"name": "grid-crf"}], "outer-loop": copy.deepcopy(LOOPS[loop])},
        "training": {
            "epochs": 4,
            "batch-size": 2,
            "accelerator": "cpu",
            "optimizer": {"name": "adam", "lr": 1e-3},
        },
        "evaluation": {"examples": 0},
    }
    for change in changes:
        apply_change(table, change)
    return table


def toml(table: dict[str, Any]) -> str:
    """``table`` as TOML: one line a section, whose tables are inline; what is None is left out."""
    return "\n".join(f"{key} = {_value(value)}" for key, value in table.items()) + "\n"


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {_value(entry)}" for key, entry in value.items() if entry is not None) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_value, value)) + "]"
    return json.dumps(value)  # strings, numbers and booleans are written as in JSON
