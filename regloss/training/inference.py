"""What can be done with a trained model: score it, and segment folders of images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from lightning_fabric import Fabric
from PIL import Image
from torch import Tensor

from regloss.errors import UsageError
from regloss.io.folders import index_folder
from regloss.io.images import read_image
from regloss.io.labels import save_label_png
from regloss.io.outputs import check_new_folder, make_new_folder
from regloss.io.reduction import reduce_image
from regloss.registry import create
from regloss.report.overlays import outlined
from regloss.solver import Solution
from regloss.training.config import Config
from regloss.training.evaluation import evaluate_samples
from regloss.training.model import load_model, predict
from regloss.training.noise import Noise
from regloss.training.sample_reader import SampleReader

_PREDICTIONS = ("labels", "overlays")  # what predict_files leaves in its folder


def evaluate_run(run: Path, subset: str, changes: Sequence[str] = ()) -> dict[str, Any]:
    """Scores of a run's model on a subset of its data set; see `regloss.training.evaluation.evaluate_samples`.

    Args:
        run: output folder of a training.
        subset: "test", "val", "train", or a name of the data set's own.
        changes: ``section.key=value`` settings that replace the run's: another root, another split, more steps of the
            layer.

    Raises:
        UsageError: no such run or subset, or samples without dense labels.
    """
    return evaluate_noisy(run, subset, (), changes)[subset]


def evaluate_noisy(
    run: Path, subset: str, noise: Sequence[str | Noise], changes: Sequence[str] = ()
) -> dict[str, dict[str, Any]]:
    """Scores on a subset, and once more for each kind and level of noise that is added to its images.

    Args:
        run: output folder of a training.
        subset: see `evaluate_run`.
        noise: `Noise`, or text like "gaussian:0.1"; drawn anew for every image, from its id and the run's ``seed``.
        changes: see `evaluate_run`; ``seed=1`` draws other noise.

    Returns:
        Scores by "test" and "test gaussian:0.1" (with the subset's name).

    Raises:
        UsageError: see `evaluate_run`; noise of another kind, or a level outside its range.
    """
    levels = [Noise.parse(level) if isinstance(level, str) else level for level in noise]
    model = load_model(run, changes)
    config = model.config
    dataset = create("dataset", config.data.dataset, **config.data.component_settings())
    dataset.check(subset, need=("label",))
    if tuple(dataset.classes) != model.classes:
        raise UsageError(f"The data set has the classes {list(dataset.classes)}, the model {list(model.classes)}.")
    fabric = _one_device(config)
    segmenter = model.segmenter.to(fabric.device)
    reader = SampleReader(dataset)
    scores = {subset: evaluate_samples(fabric, segmenter, reader, config, subset)}
    for level in levels:
        scores[f"{subset} {level}"] = evaluate_samples(fabric, segmenter, reader, config, subset, level)
    return scores


def _one_device(config: Config) -> Fabric:
    """The CPU if the training was told to use it, else what there is: a model outlives the machine it was made on."""
    return Fabric(accelerator="cpu" if config.training.accelerator == "cpu" else "auto", devices=1)


def predict_files(
    run: Path,
    images: Path,
    output: Path,
    changes: Sequence[str] = (),
    *,
    refine: Callable[[Tensor, Tensor], Solution] | None = None,
    overwrite: bool = False,
    quiet: bool = True,
) -> int:
    """Segment an image, or a folder of images, with a run's model.

    Writes output/labels/STEM.png (a palette PNG of class indices) and output/overlays/STEM.png. Where training reduced
    the images (the data sets' setting ``reduce``), so does this, and the logits are enlarged again.

    Args:
        run: output folder of a training.
        images: an image, or a folder of images.
        output: folder for the results.
        changes: ``section.key=value`` settings that replace the run's: more steps of the layer, say.
        refine: logits (1, K, *S) and image (1, C, *S), both of the image's size, to a solution whose labels are
            written instead; see `regloss.training.refinement.Refinement`. None = the network's own.
        overwrite: replace the results of an earlier call.
        quiet: no progress bar.

    Returns:
        The number of images.

    Raises:
        UsageError: no such run or images, images of other channels, or the output exists and ``overwrite`` is not set.
    """
    model = load_model(run, changes)
    files = [images] if images.is_file() else list(index_folder(images).values()) if images.is_dir() else []
    if not files:
        raise UsageError(f"{images} is neither an image nor a folder with images.")
    loaded_first = read_image(files[0], model.channels)  # a wrong kind of image shows before anything is written
    check_new_folder(output, _PREDICTIONS, overwrite=overwrite)
    fabric = _one_device(model.config)
    segmenter = model.segmenter.to(fabric.device)
    factor = model.config.data.component_settings().get("reduce", 1)
    make_new_folder(output, _PREDICTIONS)
    for name in _PREDICTIONS:
        (output / name).mkdir()
    from rich.progress import track

    for number, path in enumerate(track(files, "Segmenting", disable=quiet)):
        image = loaded_first if number == 0 else read_image(path, model.channels)
        logits = predict(segmenter, torch.from_numpy(reduce_image(image, factor)).unsqueeze(0).to(fabric.device))
        if factor > 1:
            enlarged = F.interpolate(logits, scale_factor=factor, mode="bilinear", align_corners=False)
            logits = enlarged[..., : image.shape[1], : image.shape[2]]
        found = logits.argmax(1)
        if refine is not None:
            found = refine(logits, torch.from_numpy(image).unsqueeze(0).to(logits.device)).labels
        labels = found[0].cpu().numpy().astype(np.uint8)
        save_label_png(output / "labels" / f"{path.stem}.png", labels, model.colors)
        Image.fromarray(outlined(image, labels, model.colors)).save(output / "overlays" / f"{path.stem}.png")
    return len(files)
