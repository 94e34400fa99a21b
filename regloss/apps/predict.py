"""Images segmented with a trained model: label maps and overlays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from regloss.apps.trained_model import load, probabilities_of
from regloss.errors import UsageError
from regloss.io.folders import index_folder, left_out
from regloss.io.images import as_image, read_header, read_stored
from regloss.io.labels import save_label_png
from regloss.io.outputs import check_new_folder, make_new_folder, writing
from regloss.io.probabilities import check_format, save_probabilities
from regloss.io.types import FloatImage
from regloss.io.windows import DEEP, Window, clipped_note, find_window
from regloss.report.overlays import outlined
from regloss.solver import Solution

_PREDICTIONS = ("labels", "overlays", "probabilities")  # what predict_files leaves in its folder


def predict_files(
    run: Path,
    images: Path,
    output: Path,
    changes: Sequence[str] = (),
    *,
    post_process: Callable[[Tensor, Tensor], Solution] | None = None,
    probabilities: str | None = None,
    window: Window | None = None,
    callback: Callable[[str], object] | None = None,
    overwrite: bool = False,
    quiet: bool = True,
) -> int:
    """Segment an image, or a folder of images, with a run's model.

    Writes output/labels/STEM.png (a palette PNG of class indices) and output/overlays/STEM.png, and if wanted
    output/probabilities/STEM.npy or .tif. Where training reduced the images (the data sets' setting ``reduce``), so
    does this, and the logits are enlarged again.

    Args:
        run: output folder of a training.
        images: an image, or a folder of images.
        output: folder for the results.
        changes: ``section.key=value`` settings that replace the run's: more steps of the layer, say.
        post_process: logits (1, K, *S) and image (1, C, *S), both of the image's size, to a solution whose labels are
            written instead; see `regloss.apps.post_process.PostProcess`. None = the network's own.
        probabilities: write them too: "npy", arrays (K, H, W), or "tiff", a page for each class; those of
            ``post_process`` where there is one.
        window: which values of the files become 0 and 1; None = as in the training, or, if that had no 16-bit images
            and these have, as suits these.
        callback: called with sentences on what was left out of a folder, and on ranges of values.
        overwrite: replace the results of an earlier call.
        quiet: no progress bar.

    Returns:
        The number of images.

    Raises:
        UsageError: no such run or images, an unknown format, or the output exists and ``overwrite`` is not set.
    """
    model = load(run, changes)
    files = [images] if images.is_file() else list(index_folder(images).values()) if images.is_dir() else []
    if not files:
        left = f" {left_out(images)}" if images.is_dir() else ""
        raise UsageError(f"{images} is neither an image nor a folder with images.{left}")
    if probabilities is not None:
        check_format(probabilities)
    say = callback or (lambda message: None)
    skipped = left_out(images) if images.is_dir() else ""
    if skipped:
        say(skipped)
    if window is None:
        window = model.model.window
    if window is None:
        deep = [path for path in files if read_header(path).bits == DEEP]
        window, found_range = find_window(map(read_stored, deep))
        if found_range:
            say(f"{found_range}; --window LOW HIGH chooses another range.")

    def read(path: Path, window: Window | None = window) -> FloatImage:
        stored = read_stored(path)
        note = clipped_note(stored, window, path)
        if note:
            say(note)
        return as_image(stored, path, model.channels, window)

    loaded_first = read(files[0])  # a wrong kind of image shows before anything is written
    check_new_folder(output, _PREDICTIONS, overwrite=overwrite)
    make_new_folder(output, _PREDICTIONS)
    for name in _PREDICTIONS[: 2 if probabilities is None else 3]:
        (output / name).mkdir()
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), disable=quiet) as bar:
        task = bar.add_task("Segmenting", total=len(files))
        for number, path in enumerate(files):
            image = loaded_first if number == 0 else read(path)
            bar.update(task, description=f"{path.name}, {image.shape[2]} x {image.shape[1]}")
            logits = model.logits(image)
            if post_process is None:
                found, soft = logits.argmax(1), None if probabilities is None else probabilities_of(logits)
            else:
                solution = post_process(logits, torch.from_numpy(image).unsqueeze(0).to(logits.device))
                found, soft = solution.labels, solution.probabilities
            labels = found[0].cpu().numpy().astype(np.uint8)
            save_label_png(output / "labels" / f"{path.stem}.png", labels, model.colors)
            overlay = output / "overlays" / f"{path.stem}.png"
            with writing(overlay):
                Image.fromarray(outlined(image, labels, model.colors)).save(overlay)
            if probabilities is not None and soft is not None:
                with writing(output / "probabilities"):
                    save_probabilities(
                        output / "probabilities", path.stem, soft[0].float().cpu().numpy(), probabilities
                    )
            bar.advance(task)
    return len(files)
