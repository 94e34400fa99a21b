"""Small volumes of bright balls in noise, as NIfTI, with labels and scribbles, and configurations that learn them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from regloss.training.config import Config, apply_change, parse

SIZE = (6, 20, 24)  # slices, rows, columns
SPACING = (3.0, 1.0, 1.0)
AFFINE = np.diag([*SPACING[::-1], 1.0])
AFFINE[:3, 3] = (5, 6, 7)


def save(path: Path, values: npt.NDArray[Any], affine: npt.NDArray[np.float64] = AFFINE) -> None:
    """Write (*S), slowest axis first."""
    import nibabel

    nibabel.save(nibabel.Nifti1Image(values.T, affine), path)


def save_series(folder: Path, values: npt.NDArray[Any], spacing: tuple[float, float, float] = SPACING) -> Path:
    """Write (*S) int16 as a DICOM series, the slices' names in the opposite order to their places."""
    import SimpleITK

    from regloss.io.dicom import locale_kept

    folder.mkdir()
    writer = SimpleITK.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for place, plane in enumerate(values):
        image = SimpleITK.GetImageFromArray(plane)
        image.SetSpacing((spacing[2], spacing[1]))
        for tag, value in (
            ("0008|0060", "CT"), ("0020|000e", "1.2.826.0.1.3680043.2.1125.1"), ("0020|0013", str(place)),
            ("0020|0032", f"0\\0\\{spacing[0] * place:g}"), ("0020|0037", "1\\0\\0\\0\\1\\0"),
            ("0028|1052", "0"), ("0028|1053", "1"),
        ):  # fmt: skip
            image.SetMetaData(tag, value)
        writer.SetFileName(str(folder / f"{len(values) - 1 - place}.dcm"))
        with locale_kept():
            writer.Execute(image)
    return folder


def write_volumes(root: Path) -> Path:
    """Three balls of radius 6 mm; of case0 and case1 slices 1 and 4 are scribbled, one stroke a class."""
    rng = np.random.default_rng(0)
    for folder in ("images", "labels", "scribbles"):
        (root / folder).mkdir(parents=True)
    slices, rows, columns = np.indices(SIZE)
    for number in range(3):
        row, column = 9 + number, 13 - number
        squares = ((slices - 2.5) * SPACING[0]) ** 2 + (rows - row) ** 2 + (columns - column) ** 2
        label = (squares <= 36).astype(np.uint8)
        image = (300 + 200.0 * label + rng.normal(0, 20, SIZE)).astype(np.int16)
        scribble = np.full(SIZE, 255, np.uint8)
        for place in (1, 4):
            scribble[place, 2, 4:21] = scribble[place, 17, 4:21] = 0
            scribble[place, 3:17, 4] = scribble[place, 3:17, 20] = 0
            scribble[place, row, column - 3 : column + 4] = 1
        save(root / "images" / f"case{number}.nii.gz", image)
        save(root / "labels" / f"case{number}.nii.gz", label)
        if number < 2:
            save(root / "scribbles" / f"case{number}.nii.gz", scribble)
    return root


def volume_settings(root: Path, output: Path, dims: int, *changes: str) -> Config:
    """A configuration that learns the balls in seconds; ``changes`` are ``section.key=value``."""
    split = {"train": ["case0", "case1"], "test": ["case2"]}
    table: dict[str, Any] = {
        "output": str(output),
        "data": {
            "dataset": "volumes",
            "root": str(root),
            "dims": dims,
            "classes": ["background", "ball"],
            "split": split,
            "train": "train-scribbled" if dims == 2 else "train",
            "crop": [4, 16, 16] if dims == 3 else 16,
            "crops-per-image": 4,
            "labelled-share": 0.5,
            "augment": {"flip": True, "scale": [0.9, 1.1], "rotate": 10.0, "noise": 0.05, "blur": 0.5},
        },
        "network": {"name": "unet", "levels": 2, "channels": 4, "norm": "group", "dims": dims},
        "loss": {"regularizer": [{"name": "grid-crf", "weight": 0.3}], "outer-loop": {"name": "gradient-descent"}},
        "training": {"epochs": 24, "batch-size": 2, "accelerator": "cpu", "optimizer": {"name": "adam", "lr": 1e-2}},
        "evaluation": {"examples": 0},
    }
    if dims == 3:
        table["network"]["spacing"] = [3.0, 1.0, 1.0]
        table["data"]["augment"]["flip-depth"] = True
    for change in changes:
        apply_change(table, change)
    return parse(table)
