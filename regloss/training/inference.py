"""What can be done with a trained model: score it, and segment folders of images."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from PIL import Image

from regloss.errors import UsageError
from regloss.files import index_folder, read_image
from regloss.registry import create
from regloss.training.config import apply_change, parse
from regloss.training.data import SampleCache
from regloss.training.evaluation import evaluate_samples
from regloss.training.model import load_model, predict
from regloss.training.report import outlined, save_label_png


def evaluate_run(run: Path, subset: str, changes: Sequence[str] = ()) -> dict[str, Any]:
    """Scores of a run's model on a subset of its data set; see `regloss.training.metrics.Scores`.

    Args:
        run: output folder of a training.
        subset: "test", "val", "train", or a name of the data set's own.
        changes: ``section.key=value`` settings that replace the run's: another root, another split.

    Raises:
        UsageError: no such run or subset, or samples without dense labels.
    """
    model = load_model(run)
    table = model.config.dump()
    for change in changes:
        apply_change(table, change)
    config = parse(table, f"{run} with the given changes")
    dataset = create("dataset", config.data.dataset, **config.data.component_settings())
    dataset.check(subset, need=("label",))
    if tuple(dataset.classes) != model.classes:
        raise UsageError(f"The data set has the classes {list(dataset.classes)}, the model {list(model.classes)}.")
    fabric = Fabric(accelerator=config.training.accelerator, devices=1)
    segmenter = model.segmenter.to(fabric.device)
    return evaluate_samples(fabric, segmenter, SampleCache(dataset), config, subset)


def predict_files(run: Path, images: Path, output: Path, *, overwrite: bool = False, quiet: bool = True) -> int:
    """Segment an image, or a folder of images, with a run's model.

    Writes output/labels/STEM.png (a palette PNG of class indices) and output/overlays/STEM.png.

    Returns:
        The number of images.

    Raises:
        UsageError: no such run or images, images of other channels, or the output exists and ``overwrite`` is not set.
    """
    model = load_model(run)
    files = [images] if images.is_file() else list(index_folder(images).values()) if images.is_dir() else []
    if not files:
        raise UsageError(f"{images} is neither an image nor a folder with images.")
    loaded_first = read_image(files[0], model.channels)  # a wrong kind of image shows before anything is written
    check_new_folder(output, ("labels", "overlays"), overwrite=overwrite)
    fabric = Fabric(accelerator=model.config.training.accelerator, devices=1)
    segmenter = model.segmenter.to(fabric.device)
    (output / "labels").mkdir(parents=True, exist_ok=True)
    (output / "overlays").mkdir(exist_ok=True)
    from rich.progress import track

    for number, path in enumerate(track(files, "Segmenting", disable=quiet)):
        image = loaded_first if number == 0 else read_image(path, model.channels)
        logits = predict(segmenter, torch.from_numpy(image).unsqueeze(0).to(fabric.device))
        labels = logits.argmax(1)[0].cpu().numpy().astype(np.uint8)
        save_label_png(output / "labels" / f"{path.stem}.png", labels, model.colors)
        Image.fromarray(outlined(image, labels, model.colors)).save(output / "overlays" / f"{path.stem}.png")
    return len(files)


def check_new_folder(folder: Path, expected: Sequence[str], *, overwrite: bool) -> None:
    """Make sure that ``folder`` may be written.

    It may if it is new or empty, or if ``overwrite`` is set and it holds only ``expected`` entries; these are removed.

    Raises:
        UsageError: it is in use, or holds something that no call of regloss has put there.
    """
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"The output {folder} is a file; a folder is needed.")
    present = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
    if present and not overwrite:
        raise UsageError(f"The output {folder} exists already. Replace it with --overwrite, or choose another.")
    foreign = [name for name in present if name not in expected]
    if foreign:
        raise UsageError(
            f"The output {folder} also holds {', '.join(foreign[:5])}, so it is left alone. Choose another."
        )
    parent = folder
    while not parent.exists():
        parent = parent.parent
    if not os.access(parent, os.W_OK):
        raise UsageError(f"The output {folder} cannot be made: {parent} cannot be written to.")
    for name in present:
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def write_new(path: Path, text: str) -> None:
    """Write a new text file.

    Raises:
        UsageError: it exists already, or its folder does not.
    """
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as cause:
        raise UsageError(f"{path} exists already. Choose another name.") from cause
    except OSError as cause:
        raise UsageError(f"{path} cannot be written: {cause}") from cause
