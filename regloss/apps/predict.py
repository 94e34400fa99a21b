"""Images and volumes segmented with trained models: label maps and overlays."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from regloss.apps.several import check_processes, is_first_machine, spread
from regloss.apps.tiled import LABEL_WRITERS, LARGE, TILE, Tiling, predict_tiled, value_range
from regloss.apps.trained_model import TrainedModel, averaged, load_several, probabilities_of
from regloss.errors import ReglossError, UsageError, listed
from regloss.io.cases import cases_of, read_case, rounded_spacing, stem_of
from regloss.io.dicom import has_series
from regloss.io.folders import index_folder, left_out
from regloss.io.foreign.source import read_json
from regloss.io.images import IMAGE_SUFFIXES, as_image, read_header, read_stored
from regloss.io.labels import save_label_png
from regloss.io.outputs import check_new_folder, finished_name, make_new_folder, replace_file, replacing, writing
from regloss.io.palettes import Colors
from regloss.io.probabilities import check_format, save_probabilities
from regloss.io.tiles import open_parts
from regloss.io.types import FloatImage, LabelMap
from regloss.io.volumes import STORED_SUFFIXES, VOLUME_SUFFIXES, Geometry, is_volume, write_label_volume
from regloss.io.windows import DEEP, Window, clipped_note, find_window
from regloss.report.montage import montage
from regloss.report.overlays import outlined
from regloss.solver import Solution
from regloss.training.inference import largest_components

_FOLDERS = ("labels", "overlays", "probabilities")
_SETTINGS = "prediction.json"
_PREDICTIONS = (_SETTINGS, *_FOLDERS)  # what predict_files leaves in its folder; removed in this order


def predict_files(
    run: Path | Sequence[Path],
    images: Path,
    output: Path,
    changes: Sequence[str] = (),
    *,
    post_process: Callable[[Tensor, Tensor, Sequence[float] | None], Solution] | None = None,
    probabilities: str | None = None,
    window: Window | None = None,
    labels: str = "png",
    tile: int | None = None,
    devices: int = 1,
    nodes: int = 1,
    resume: bool = False,
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
        labels: format of label maps of images, "png" or "tiff", which has tiles.
        tile: rows and columns of the tiles that images larger than that are cut into; None = 1024, of images of more
            than 16 megapixels (see `regloss.apps.tiled`), unless they are needed as a whole.
        devices: processes that images are spread over, each with a GPU of its own, or on the CPU.
        nodes: machines that they are spread over, on each of which the same call is made, and which share the folders;
            see `regloss.apps.several`.
        resume: go on with what an earlier call with the same settings has left undone.
        callback: called with sentences on what was left out of a folder, and on ranges of values; with several devices
            a function that other processes can import.
        overwrite: replace the results of an earlier call.
        quiet: no progress bar.

    Returns:
        The number of images.

    Raises:
        UsageError: no such run or images, an unknown format, runs of different classes or channels, or the output
            exists and ``overwrite`` is not set; an image in the middle that cannot be used, where those before it are
            done and stay.
        FailedWrite: likewise, where the disk is full, say.
    """
    runs = (run,) if isinstance(run, Path) else tuple(run)
    models = load_several(runs, changes)
    say = callback or _silent
    check_processes(devices, nodes)
    if labels not in LABEL_WRITERS:
        raise UsageError(f"Label maps are written as {' or '.join(LABEL_WRITERS)}; got {labels!r}.")
    whole = post_process is not None or probabilities is not None or models[0].config.inference.largest_component
    if tile is not None and whole:
        raise UsageError("Probabilities, --crf and largest components need whole images; leave --tile out.")
    items, three_axes, chosen = _items(images, models[0], window, say)
    if probabilities is not None:
        check_format(probabilities)
    if three_axes and probabilities not in (None, "npy"):
        raise UsageError(f"Probabilities of volumes are written as npy; got {probabilities!r}.")
    if three_axes and (labels != "png" or tile is not None):
        raise UsageError("Labels of volumes are written as NIfTI, and volumes are not cut into tiles; leave both out.")
    tilings = {item.stem: item.tiles(tile) for item in items} if not whole else {}
    tiling = Tiling.of(models, TILE if tile is None else tile) if any(tilings.values()) else None
    if tiling is not None and not tiling.exact:
        say(
            f"By tiles with {tiling.margin} pixels around them, as the network looks at the whole image: labels may "
            "differ from those of whole images."
        )
    work = _Work(
        runs,
        tuple(changes),
        images,
        output,
        chosen,
        post_process,
        probabilities,
        labels,
        tiling,
        tuple(s for s in tilings if tilings[s]),
    )
    if not is_first_machine(nodes):  # the first one checks and prepares what all share, and says what is left
        with work.resumable(len(items)):
            spread(partial(_share, work, (), say, quiet), devices, nodes)
        return len(items)
    done = work.start(overwrite=overwrite, resume=resume)
    left = [item.stem for item in items if item.stem not in done]
    if done:
        say(f"{len(done)} of {len(items)} are done already.")
    if left:  # a wrong kind of image shows before anything is written
        first = next(item for item in items if item.stem == left[0])
        if first.path is not None and first.stem in work.tiled:
            with open_parts(first.path) as parts:
                as_image(parts.read(slice(0, 1), slice(0, 1)), first.path, models[0].channels, chosen)
        else:
            first.read()
    work.prepare(clean=not resume)
    with work.resumable(len(items)):
        if devices == nodes == 1:
            work.segment(models, [item for item in items if item.stem in left], say, quiet)
        else:
            spread(partial(_share, work, tuple(left), say, quiet), devices, nodes)
    return len(items)


def _silent(message: str) -> None:
    """Say nothing."""


def _advance(bar: Any, task: Any, done: int, part: float) -> None:
    """Move a progress bar to a part of an image behind those that are done."""
    bar.update(task, completed=done + part)


def _share(work: _Work, stems: Sequence[str], say: Callable[[str], object], quiet: bool, fabric: Any) -> None:
    """What one of several processes segments: every so many-th of what is left, as the first machine knows it."""
    stems = fabric.broadcast(stems)
    models = load_several(work.runs, work.changes, device=fabric.device)
    items, _, _ = _items(work.images, models[0], work.window, _silent)
    mine = set(stems[fabric.global_rank :: fabric.world_size])
    work.segment(models, [item for item in items if item.stem in mine], say, quiet or fabric.global_rank > 0)
    fabric.barrier()  # the first of the processes holds what the others connect to


@dataclass(frozen=True)
class _Work:
    """What is written, and how; for every process the same."""

    runs: tuple[Path, ...]
    changes: tuple[str, ...]
    images: Path
    output: Path
    window: Window | None
    post_process: Callable[[Tensor, Tensor, Sequence[float] | None], Solution] | None
    probabilities: str | None
    labels: str
    tiling: Tiling | None
    tiled: tuple[str, ...]

    def settings(self) -> dict[str, Any]:
        """What must be the same where a prediction goes on."""
        return {
            "runs": [str(run.resolve()) for run in self.runs],
            "changes": list(self.changes),
            "images": str(self.images.resolve()),
            "window": None if self.window is None else self.window.as_list(),
            "post-process": None if self.post_process is None else repr(self.post_process),
            "probabilities": self.probabilities,
            "labels": self.labels,
            "tiling": None if self.tiling is None else asdict(self.tiling),
        }

    def start(self, *, overwrite: bool, resume: bool) -> set[str]:
        """Check the output; gives what is done already of a prediction that goes on. Nothing is written."""
        file = self.output / _SETTINGS
        if resume and self.output.is_dir() and all(map(finished_name, self.output.iterdir())):
            return set()  # it was killed while it wrote the first file
        if not (resume and file.is_file()):
            check_new_folder(self.output, _PREDICTIONS, overwrite=overwrite, read=(self.images, *self.runs))
            return set()
        before, now = read_json(file), self.settings()
        changed = sorted(key for key in now if before.get(key) != now[key])
        if changed:
            raise UsageError(
                f"{self.output} was begun with other {listed(changed)}, so it cannot go on. Give what it was begun "
                "with, or another --output."
            )
        return self.done()

    def done(self) -> set[str]:
        """What has its labels, which are written last."""
        return {stem_of(path) for path in (self.output / "labels").glob("[!.]*")}

    @contextmanager
    def resumable(self, total: int) -> Iterator[None]:
        """An error says how many of ``total`` images are done, which stay, and how to go on."""
        try:
            yield
        except ReglossError as error:
            raise type(error)(
                f"{len(self.done())} of {total} are done, in {self.output / 'labels'}. Mend this, and go on with "
                f"--resume: {error}"
            ) from error

    def prepare(self, *, clean: bool) -> None:
        """Make the output's folders."""
        if clean or not (self.output / _SETTINGS).is_file():
            make_new_folder(self.output, _PREDICTIONS)
        # First of all, so that whatever is there after a kill can be gone on with.
        replace_file(self.output / _SETTINGS, json.dumps(self.settings(), indent=1).encode())
        folders = [self.output / name for name in _FOLDERS[: 2 if self.probabilities is None else 3]]
        for folder in folders:
            folder.mkdir(exist_ok=True)
        for path in [path for folder in (self.output, *folders) for path in folder.iterdir()]:
            if finished_name(path) is not None:  # of a process that was killed while it wrote
                path.unlink()

    def segment(
        self, models: Sequence[TrainedModel], items: Sequence[_Item], say: Callable[[str], object], quiet: bool
    ) -> None:
        """Segment one after the other."""
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=Console(stderr=True), disable=quiet) as bar:
            task = bar.add_task("Segmenting", total=len(items))
            for number, item in enumerate(items):
                bar.update(task, description=item.name)
                if item.stem in self.tiled:
                    self._by_tiles(models, item, say, partial(_advance, bar, task, number))
                else:
                    self._as_a_whole(models, item)
                bar.update(task, completed=number + 1)

    def _by_tiles(
        self,
        models: Sequence[TrainedModel],
        item: _Item,
        say: Callable[[str], object],
        progress: Callable[[float], object],
    ) -> None:
        assert self.tiling is not None
        assert item.path is not None
        predict_tiled(
            models,
            item.path,
            self.output / "labels" / f"{item.stem}{LABEL_WRITERS[self.labels][0]}",
            self.output / "overlays" / f"{item.stem}.png",
            tiling=self.tiling,
            window=self.window,
            format=self.labels,
            callback=say,
            progress=progress,
        )

    def _as_a_whole(self, models: Sequence[TrainedModel], item: _Item) -> None:
        image, geometry = item.read()
        logits = averaged([_logits(each, image, geometry) for each in models])
        if self.post_process is None:
            found, soft = logits.argmax(1), None if self.probabilities is None else probabilities_of(logits)
        else:
            pixels = torch.from_numpy(image).unsqueeze(0).to(logits.device)
            solution = self.post_process(logits, pixels, None if geometry is None else geometry.spacing)
            found, soft = solution.labels, solution.probabilities
        labels = found[0].cpu().numpy().astype(np.uint8)
        if models[0].config.inference.largest_component:
            labels = largest_components(labels, len(models[0].classes))
        if self.probabilities is not None and soft is not None:
            with writing(self.output / "probabilities"):
                save_probabilities(
                    self.output / "probabilities", item.stem, soft[0].float().cpu().numpy(), self.probabilities
                )
        _write(self.output, item.stem, image, labels, models[0].colors, geometry, self.labels)


@dataclass(frozen=True)
class _Item:
    """One image or volume to segment: what is said of it, the name of its results, and how it is read."""

    name: str
    stem: str
    read: Callable[[], tuple[FloatImage, Geometry | None]]
    path: Path | None = None

    def tiles(self, tile: int | None) -> bool:
        """Whether it is cut into tiles: a picture that is large, or larger than a tile that somebody asks for."""
        if self.path is None:
            return False
        height, width = read_header(self.path).size
        return height * width > LARGE if tile is None else max(height, width) > tile


def _items(
    images: Path, model: TrainedModel, window: Window | None, say: Callable[[str], object]
) -> tuple[list[_Item], bool, Window | None]:
    """What there is to segment, whether it is volumes, and the window of pictures.

    A folder may hold both: a model that was trained on volumes takes those, and others take pictures if there are any.
    """
    of_volumes = model.dataset_setting("dims") is not None
    if images.is_file() or has_series(images):
        stack = of_volumes and images.name.lower().endswith(STORED_SUFFIXES)
        volumes = {stem_of(images): images} if stack or is_volume(images) else {}
        pictures = {} if volumes else {images.stem: images}
    elif images.is_dir():
        endings = STORED_SUFFIXES if of_volumes else VOLUME_SUFFIXES
        volumes, pictures = index_folder(images, endings, series=True), index_folder(images)
        if of_volumes or not pictures:
            pictures = {}
        else:
            volumes = {}
        left = left_out(images, endings if volumes or of_volumes else IMAGE_SUFFIXES, series=bool(volumes))
        if left and (volumes or pictures):
            say(left)
    else:
        volumes, pictures = {}, {}
    if pictures and model.dataset_setting("dims") == 3:
        raise UsageError(f"The model was trained on volumes; {images} is a picture. Give NIfTI, NRRD or MetaImage.")
    if volumes:
        intensities = model.intensities(window)
        cases = cases_of(volumes, model.channels)
        steps = model.dataset_setting("file_spacing")
        items = [
            _Item(paths[0].name, stem, partial(read_case, paths, intensities, steps, model.channels))
            for stem, paths in cases.items()
        ]
        return items, True, window
    if not pictures:
        one, many = ("a volume", "volumes") if of_volumes else ("an image", "images")
        raise UsageError(
            f"{images} is neither {one} nor a folder with {many}.{f' {left_out(images)}' if images.is_dir() else ''}"
        )
    chosen = window or model.model.window
    if chosen is None:
        deep = [path for path in pictures.values() if read_header(path).bits == DEEP]
        chosen, found_range = find_window(np.array([[value_range(path)]], dtype=np.uint16) for path in deep)
        if found_range:
            say(f"{found_range}; --window LOW HIGH chooses another range.")

    def read(path: Path) -> tuple[FloatImage, None]:
        stored = read_stored(path)
        note = clipped_note(stored, chosen, path)
        if note:
            say(note)
        return as_image(stored, path, model.channels, chosen), None

    return [_Item(path.name, path.stem, partial(read, path), path) for path in pictures.values()], False, chosen


def _logits(model: TrainedModel, image: FloatImage, geometry: Geometry | None) -> Tensor:
    return model.logits(image) if geometry is None else model.volume_logits(image, rounded_spacing(geometry))


def _write(
    output: Path, stem: str, image: FloatImage, labels: LabelMap, colors: Colors, geometry: Geometry | None, format: str
) -> None:
    """The overlay, and then the labels, whose file says that all of it is done."""
    overlay = output / "overlays" / f"{stem}.png"
    shown = outlined(image, labels, colors) if geometry is None else montage(image, labels, colors, geometry.spacing)
    with writing(overlay):
        Image.fromarray(shown).save(overlay)
    if geometry is not None:
        write_label_volume(output / "labels" / f"{stem}.nii.gz", labels, geometry)
    elif format == "png":
        save_label_png(output / "labels" / f"{stem}.png", labels, colors)
    else:
        suffix, write = LABEL_WRITERS[format]
        with replacing(output / "labels" / f"{stem}{suffix}") as temporary:
            write(temporary, (labels.shape[0], labels.shape[1]), [labels], colors)
