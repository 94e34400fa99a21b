"""A tiny folder of images with scribbles and the configuration of a run on it, shared by tests of training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def write_folder(root: Path, images: int = 8, size: tuple[int, int] = (20, 24), classes: int = 2) -> Path:
    """Bright discs on dark ground with noise; scribbles in disc and ground; the last two are for testing."""
    rng = np.random.default_rng(0)
    for folder in ("images", "labels", "scribbles"):
        (root / folder).mkdir(parents=True)
    rows, columns = np.mgrid[: size[0], : size[1]]
    for number in range(images):
        centre = (size[0] / 2 + rng.uniform(-2, 2), size[1] / 2 + rng.uniform(-2, 2))
        distance = np.hypot(rows - centre[0], columns - centre[1])
        label = np.clip(np.ceil((7 - distance) / 7 * (classes - 1)), 0, classes - 1).astype(np.uint8)
        grey = 60 + 120 * label / (classes - 1) + rng.normal(0, 12, size)
        scribble = np.full(size, 255, np.uint8)
        for value in range(classes):
            places = np.argwhere(label == value)
            for place in places[rng.choice(len(places), 6, replace=False)]:
                scribble[tuple(place)] = value
        name = f"p{number // 2}_{number}.png"
        Image.fromarray(grey.clip(0, 255).astype(np.uint8)).save(root / "images" / name)
        Image.fromarray(label).save(root / "labels" / name)
        Image.fromarray(scribble).save(root / "scribbles" / name)
    return root


LOOPS: dict[str, dict[str, Any]] = {
    "gradient-descent": {"regularizer": {"name": "grid-crf"}, "outer-loop": {"name": "gradient-descent"}},
    "adm": {"regularizer": {"name": "grid-crf"}, "outer-loop": {"name": "adm", "coupling": 1.0}},
    "trust-region": {
        "regularizer": {"name": "grid-crf"},
        "outer-loop": {"name": "trust-region", "coupling": 0.3, "update-every": 2, "epsilon": {"start": 0, "end": 0.2}},
    },
}


def configuration(root: Path, output: Path, loop: str = "trust-region", **training: Any) -> dict[str, Any]:
    """A run that takes a second: U-Net with two levels, group norm, dropout, augmentation."""
    return {
        "output": str(output),
        "seed": 3,
        "data": {
            "dataset": "folder",
            "root": str(root),
            "split": {"train": ["p0*", "p1*", "p2*"], "test": ["p3*"]},
            "group": "^(p\\d+)",
            "classes": 2,
            "crop": 22,
            "normalize": "image",
            "augment": {"flip": True, "rotate": 10.0, "scale": [0.9, 1.2], "brightness": 0.05},
        },
        "network": {"name": "unet", "levels": 2, "channels": 4, "norm": "group", "dropout": 0.1},
        "loss": LOOPS[loop],
        "training": {"epochs": 4, "batch-size": 2, "accelerator": "cpu", "threads": 1, **training},
        "evaluation": {"examples": 2},
    }


def to_toml(table: dict[str, Any]) -> str:
    """The plain tables above as TOML."""

    def value(item: Any) -> str:
        if isinstance(item, dict):
            return "{" + ", ".join(f"{key} = {value(entry)}" for key, entry in item.items()) + "}"
        if isinstance(item, list):
            return "[" + ", ".join(map(value, item)) + "]"
        if isinstance(item, bool):
            return str(item).lower()
        return repr(item) if isinstance(item, int | float) else "'" + str(item) + "'"

    return "\n".join(f"{key} = {value(item)}" for key, item in table.items()) + "\n"
