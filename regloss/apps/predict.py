"""Images segmented with a trained model: label maps and overlays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from PIL import Image
from torch import Tensor

from regloss.errors import UsageError
from regloss.io.folders import index_folder
from regloss.io.images import read_image
from regloss.io.labels import save_label_png
from regloss.io.outputs import check_new_folder, make_new_folder
from regloss.io.reduction import reduce_image
from regloss.report.overlays import outlined
from regloss.solver import Solution
from regloss.training.devices import one_process
from regloss.training.model import load_model, predict

_PREDICTIONS = ("labels", "overlays")  # what predict_files leaves in its folder


def predict_files(
    run: Path,
    images: Path,
    output: Path,
    changes: Sequence[str] = (),
    *,
    post_process: Callable[[Tensor, Tensor], Solution] | None = None,
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
        post_process: logits (1, K, *S) and image (1, C, *S), both of the image's size, to a solution whose labels are
            written instead; see `regloss.apps.post_process.PostProcess`. None = the network's own.
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
    device = one_process(model.config).device
    segmenter = model.segmenter.to(device)
    factor = model.config.data.component_settings().get("reduce", 1)
    make_new_folder(output, _PREDICTIONS)
    for name in _PREDICTIONS:
        (output / name).mkdir()
    from rich.progress import track

    for number, path in enumerate(track(files, "Segmenting", disable=quiet)):
        image = loaded_first if number == 0 else read_image(path, model.channels)
        logits = predict(segmenter, torch.from_numpy(reduce_image(image, factor)).unsqueeze(0).to(device))
        if factor > 1:
            enlarged = F.interpolate(logits, scale_factor=factor, mode="bilinear", align_corners=False)
            logits = enlarged[..., : image.shape[1], : image.shape[2]]
        found = logits.argmax(1)
        if post_process is not None:
            found = post_process(logits, torch.from_numpy(image).unsqueeze(0).to(logits.device)).labels
        labels = found[0].cpu().numpy().astype(np.uint8)
        save_label_png(output / "labels" / f"{path.stem}.png", labels, model.colors)
        Image.fromarray(outlined(image, labels, model.colors)).save(output / "overlays" / f"{path.stem}.png")
    return len(files)
