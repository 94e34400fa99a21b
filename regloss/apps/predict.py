"""Images and volumes segmented with trained models: label maps and overlays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from regloss.apps.trained_model import TrainedModel, averaged, load_several, probabilities_of
from regloss.errors import UsageError
from regloss.io.cases import cases_of, read_case, rounded_spacing, slices_across, stem_of
from regloss.io.folders import index_folder, left_out
from regloss.io.images import IMAGE_SUFFIXES, as_image, read_header, read_stored
from regloss.io.labels import save_label_png
from regloss.io.outputs import check_new_folder, make_new_folder, writing
from regloss.io.palettes import Colors
from regloss.io.probabilities import check_format, save_probabilities
from regloss.io.types import FloatImage, LabelMap
from regloss.io.volumes import VOLUME_SUFFIXES, Geometry, is_volume, write_label_volume
from regloss.io.windows import DEEP, Window, clipped_note, find_window
from regloss.report.montage import montage
from regloss.report.overlays import outlined
from regloss.solver import Solution
from regloss.training.inference import largest_components

_PREDICTIONS = ("labels", "overlays", "probabilities")  # what predict_files leaves in its folder


def predict_files(
    run: Path | Sequence[Path],
    images: Path,
    output: Path,
    changes: Sequence[str] = (),
    *,
    post_process: Callable[[Tensor, Tensor, Sequence[float] | None], Solution] | None = None,
    probabilities: str | None = None,
    window: Window | None = None,
    callback: Callable[[str], object] | None = None,
    overwrite: bool = False,
    quiet: bool = True,
) -> int:
    """Segment an image or a volume, or a folder of them, with a run's model, or with those of several runs.

    Writes output/labels/STEM.png (a palette PNG of class indices) and output/overlays/STEM.png, and if wanted
    output/probabilities/STEM.npy or .tif. Where training reduced the images (the data sets' setting ``reduce``), so
    does this, and the logits are enlarged again. Of a volume labels are output/labels/STEM.nii.gz, with the image's
    affine, and the overlay shows slices through its three axes. A model of images segments volumes slice by slice.

    Args:
        run: output folder of a training; of several, the probabilities of their models are averaged.
        images: an image or a volume, or a folder of them; of several channels each is a file, CASE_0000.nii.gz ...
        output: folder for the results.
        changes: ``section.key=value`` settings that replace the run's: more steps of the layer, say.
        post_process: logits (1, K, *S), image (1, C, *S), both of the image's size, and a volume's spacing, to a
            solution whose labels are written instead; see `regloss.apps.post_process.PostProcess`. None = the
            network's own.
        probabilities: write them too: "npy", arrays (K, *S), or "tiff", a page for each class, for images; those of
            ``post_process`` where there is one.
        window: which values of the files become 0 and 1; None = as in the training, or, if that had no 16-bit images
            and these have, as suits these; of volumes, percentiles.
        callback: called with sentences on what was left out of a folder, and on ranges of values.
        overwrite: replace the results of an earlier call.
        quiet: no progress bar.

    Returns:
        The number of images.

    Raises:
        UsageError: no such run or images, an unknown format, runs of different classes or channels, or the output
            exists and ``overwrite`` is not set.
    """
    models = load_several([run] if isinstance(run, Path) else run, changes)
    model = models[0]
    say = callback or (lambda message: None)
    items, three_axes = _items(images, model, window, say)
    if probabilities is not None:
        check_format(probabilities)
        if three_axes and probabilities != "npy":
            raise UsageError(f"Probabilities of volumes are written as npy; got {probabilities!r}.")
    loaded_first = items[0].read()  # a wrong kind of image shows before anything is written
    check_new_folder(output, _PREDICTIONS, overwrite=overwrite)
    make_new_folder(output, _PREDICTIONS)
    for name in _PREDICTIONS[: 2 if probabilities is None else 3]:
        (output / name).mkdir()
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), disable=quiet) as bar:
        task = bar.add_task("Segmenting", total=len(items))
        for number, item in enumerate(items):
            image, geometry = loaded_first if number == 0 else item.read()
            bar.update(task, description=f"{item.name}, {' x '.join(map(str, image.shape[:0:-1]))}")
            logits = averaged([_logits(each, image, geometry) for each in models])
            if post_process is None:
                found, soft = logits.argmax(1), None if probabilities is None else probabilities_of(logits)
            else:
                pixels = torch.from_numpy(image).unsqueeze(0).to(logits.device)
                solution = post_process(logits, pixels, None if geometry is None else geometry.spacing)
                found, soft = solution.labels, solution.probabilities
            labels = found[0].cpu().numpy().astype(np.uint8)
            if model.config.inference.largest_component:
                labels = largest_components(labels, len(model.classes))
            _write(output, item.stem, image, labels, model.colors, geometry)
            if probabilities is not None and soft is not None:
                with writing(output / "probabilities"):
                    save_probabilities(
                        output / "probabilities", item.stem, soft[0].float().cpu().numpy(), probabilities
                    )
            bar.advance(task)
    return len(items)


@dataclass(frozen=True)
class _Item:
    """One image or volume to segment: what is said of it, the name of its results, and how it is read."""

    name: str
    stem: str
    read: Callable[[], tuple[FloatImage, Geometry | None]]


def _items(
    images: Path, model: TrainedModel, window: Window | None, say: Callable[[str], object]
) -> tuple[list[_Item], bool]:
    """What there is to segment, and whether it is volumes.

    A folder may hold both: a model that was trained on volumes takes those, and others take pictures if there are any.
    """
    of_volumes = model.dataset_setting("dims") is not None
    if images.is_file():
        volumes = {stem_of(images): images} if is_volume(images) else {}
        pictures = {} if volumes else {images.stem: images}
    elif images.is_dir():
        volumes, pictures = index_folder(images, VOLUME_SUFFIXES), index_folder(images)
        if of_volumes or not pictures:
            pictures = {}
        else:
            volumes = {}
        left = left_out(images, VOLUME_SUFFIXES if volumes or of_volumes else IMAGE_SUFFIXES)
        if left and (volumes or pictures):
            say(left)
    else:
        volumes, pictures = {}, {}
    if pictures and model.dataset_setting("dims") == 3:
        raise UsageError(f"The model was trained on volumes; {images} is a picture. Give NIfTI, NRRD or MetaImage.")
    if volumes:
        intensities = model.intensities(window)
        cases = cases_of(volumes, model.channels)
        items = [_Item(paths[0].name, stem, partial(read_case, paths, intensities)) for stem, paths in cases.items()]
        return items, True
    if not pictures:
        one, many = ("a volume", "volumes") if of_volumes else ("an image", "images")
        raise UsageError(
            f"{images} is neither {one} nor a folder with {many}.{f' {left_out(images)}' if images.is_dir() else ''}"
        )
    chosen = window or model.model.window
    if chosen is None:
        deep = [path for path in pictures.values() if read_header(path).bits == DEEP]
        chosen, found_range = find_window(map(read_stored, deep))
        if found_range:
            say(f"{found_range}; --window LOW HIGH chooses another range.")

    def read(path: Path) -> tuple[FloatImage, None]:
        stored = read_stored(path)
        note = clipped_note(stored, chosen, path)
        if note:
            say(note)
        return as_image(stored, path, model.channels, chosen), None

    return [_Item(path.name, path.stem, partial(read, path)) for path in pictures.values()], False


def _logits(model: TrainedModel, image: FloatImage, geometry: Geometry | None) -> Tensor:
    if geometry is None:
        return model.logits(image)
    axis = model.dataset_setting("axis")
    across = slices_across(geometry) if axis is None else axis
    return model.volume_logits(image, across, rounded_spacing(geometry))


def _write(
    output: Path, stem: str, image: FloatImage, labels: LabelMap, colors: Colors, geometry: Geometry | None
) -> None:
    if geometry is None:
        save_label_png(output / "labels" / f"{stem}.png", labels, colors)
        shown = outlined(image, labels, colors)
    else:
        write_label_volume(output / "labels" / f"{stem}.nii.gz", labels, geometry)
        shown = montage(image, labels, colors, geometry.spacing)
    overlay = output / "overlays" / f"{stem}.png"
    with writing(overlay):
        Image.fromarray(shown).save(overlay)
