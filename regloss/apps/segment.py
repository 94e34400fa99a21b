"""One image, no network: a segmenter, from file to files.

Which segmenters there are, the registry says; `regloss.segmenter` is what they have in common.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from regloss.apps.components import parse_component, split_name
from regloss.dataset import IGNORE
from regloss.errors import ReglossError, UsageError
from regloss.io.images import read_image
from regloss.io.labels import read_scribble_map, save_label_png
from regloss.io.outputs import check_new_folder, make_new_folder, writing
from regloss.io.palettes import class_colors
from regloss.io.types import FloatImage, LabelMap
from regloss.region_force import RegionForce
from regloss.registry import (
    OWN_DISTRIBUTION,
    Component,
    components,
    get,
    load,
    name_of,
    settings,
)
from regloss.report.convergence import has_curve, write_chart, write_table
from regloss.report.overlays import outlined
from regloss.segmenter import EnergyRecord, Segmentation, Segmenter

_FILES = ("labels.png", "overlay.png", "masks", "convergence.csv", "convergence.png")


@dataclass(frozen=True)
class SegmentedFile:
    """Result of `segment_file`.

    Attributes:
        labels: (*S) uint8.
        segmentation: what the segmenter found, with its certificate.
        files: what was written.
    """

    labels: LabelMap
    segmentation: Segmentation
    files: tuple[Path, ...]

    def lines(self) -> list[str]:
        """The result in words."""
        counts = np.bincount(self.labels.ravel(), minlength=self.segmentation.probabilities.shape[1])
        return [
            self.segmentation.summary(),
            "pixels per class: " + ", ".join(f"{label}: {count}" for label, count in enumerate(counts)),
            *self.segmentation.notes,
            *(f"wrote {path}" for path in self.files),
        ]


def segment_file(
    path: Path,
    output: Path,
    *,
    scribbles: Path | None = None,
    phases: int | None = None,
    start: Path | str | None = None,
    method: str | None = None,
    region_force: str | None = None,
    regularizers: Sequence[str] | None = None,
    solver: str | None = None,
    unary: str = "color",
    entropy: float | None = None,
    max_rounds: int | None = None,
    coupling: str | None = None,
    post_processing: str | None = None,
    seed: int = 0,
    overwrite: bool = False,
    callback: Callable[[str], object] | None = None,
) -> SegmentedFile:
    """Segment one image from scribbles, or into phases.

    Args:
        path: the image.
        output: folder for labels.png and overlay.png; without scribbles also masks/, a mask for each phase; where an
            energy was followed also convergence.csv and convergence.png; and the pictures that the segmenter draws.
        scribbles: PNG of class indices, 255 = unlabelled, of the image's size.
        phases: how many, at least 2, where there are no scribbles; None = 2, or as many as ``start`` has.
        start: PNG of phase indices to start from, 255 = no opinion; or the name of a start that the segmenter knows.
        method: ``NAME`` or ``NAME:setting=value,...`` of a segmenter; None = the one with the given region force, else
            the one that is the default with scribbles, or without.
        region_force: ``NAME`` or ``NAME:setting=value,...``, a setting of the segmenter like all that follow.
        regularizers: likewise; they add up.
        solver: likewise.
        unary: "color", or "uniform" for seeds alone, with no region force.
        entropy: weight of the entropy, for solvers over probabilities.
        max_rounds: how often labels are solved for.
        coupling: of the boundaries' length, for segmenters that fit networks.
        post_processing: what is done with the probabilities at the end.
        seed: of all that is random.
        overwrite: replace the files of an earlier call.
        callback: called with a sentence now and then.

    Raises:
        UsageError: files missing or of different sizes, neither scribbles nor phases, one class seeded only, fewer
            colours than phases, a setting that the segmenter does not have, or a solver that cannot serve the
            regularizers.
    """
    if unary not in ("color", "uniform"):
        raise UsageError(f'unary must be "color" or "uniform"; got {unary!r}.')
    free = phases is not None or start is not None or method is not None or region_force is not None
    if scribbles is None and not free:
        raise UsageError(
            "Give scribbles: a PNG of the image's size with class indices, 255 = unlabelled (--scribbles). Or let "
            "colours decide: say how many phases there are (--phases 2)."
        )
    if scribbles is not None and (phases is not None or start is not None):
        raise UsageError("With scribbles these are the start, and say how many classes there are. Leave --phases out.")
    if unary == "uniform" and (scribbles is None or region_force is not None or method is not None):
        raise UsageError('unary "uniform" means seeds alone: give scribbles, and neither method nor region force.')
    given = {
        "region_force": None if region_force is None else parse_component("region-force", region_force),
        "regularizer": [parse_component("regularizer", text) for text in regularizers or ()] or None,
        "solver": None if solver is None else parse_component("solver", solver),
        "entropy": entropy,
        "max_rounds": max_rounds,
        "coupling": coupling,
        "post_processing": post_processing,
    }
    chosen = {name: value for name, value in given.items() if value is not None}
    if unary == "uniform":
        chosen["region_force"] = None
    segmenter = _segmenter(method, chosen, "phases" if scribbles is None else "scribbles")
    files = (*_FILES, *(f"{name}.png" for name in segmenter.figures))
    check_new_folder(output, files, overwrite=overwrite)
    image = read_image(path)
    found = segmenter(
        torch.from_numpy(image).unsqueeze(0),
        scribbles=None if scribbles is None else _read_labels(scribbles, path, image),
        phases=phases,
        start=_start(start, path, image),
        seed=seed,
        callback=callback,
    )
    labels = found.labels[0].cpu().numpy().astype(np.uint8)
    with writing(output):
        written = _write(output, files, image, labels, found, masks=scribbles is None)
    return SegmentedFile(labels, found, written)


def _segmenter(method: str | None, chosen: Mapping[str, Any], task: Literal["scribbles", "phases"]) -> Segmenter:
    """The segmenter to use, with the ``chosen`` settings."""
    if method is None:
        method = _default(chosen.get("region_force"), task)
    name, _ = split_name("segmenter", method)
    known = settings(get("segmenter", name))
    unknown = [setting.replace("_", " ") for setting in chosen if setting not in known]
    if unknown:
        others = [component.name for component, cls in _loaded() if chosen.keys() <= settings(cls).keys()]
        raise UsageError(
            f"{name} knows no {' or '.join(unknown)}; methods that do: {', '.join(others) or 'none'}. Its own settings "
            f"are written behind its name, {name}:setting=value,...: "
            f"{', '.join(setting.replace('_', '-') for setting in known)}."
        )
    segmenter: Segmenter = parse_component("segmenter", method, **chosen)
    return segmenter


def _default(region_force: RegionForce | None, task: Literal["scribbles", "phases"]) -> str:
    """The segmenter where none is named: of regloss's own the one with the region force, else the one for the task."""
    own = {component.name: cls for component, cls in _loaded() if component.distribution == OWN_DISTRIBUTION}
    if region_force is not None:
        task = "scribbles"  # where no segmenter has it, the one whose regularizer suits costs in nats
        for name, cls in own.items():
            parameter = settings(cls).get("region_force")
            if parameter is not None and parameter.default == name_of(region_force):
                return name
    return next(name for name, cls in own.items() if task in cls.default_for)


def _loaded() -> list[tuple[Component, type[Segmenter]]]:
    """The segmenters that can be imported."""
    found = []
    for component in components("segmenter"):
        try:
            found.append((component, load(component)))
        except ReglossError:
            continue  # a broken plugin is no suggestion; using it by name still reports why
    return found


def _read_labels(path: Path, of: Path, image: FloatImage) -> Tensor:
    """(1, *S) int64 class indices of a PNG."""
    labels = read_scribble_map(path, [str(number) for number in range(IGNORE)], image.shape[1:])
    if labels.shape != image.shape[1:]:
        raise UsageError(
            f"{path} has the size {labels.shape}, {of} {image.shape[1:]} (height, width). They must agree."
        )
    return torch.from_numpy(labels.astype(np.int64)).unsqueeze(0)


def _start(start: Path | str | None, of: Path, image: FloatImage) -> Tensor | str | None:
    """What to start from: the labels of a file, or a name."""
    if start is None or not (Path(start).is_file() or Path(start).suffix):
        return None if start is None else str(start)
    return _read_labels(Path(start), of, image)


def _write(
    output: Path, names: Sequence[str], image: FloatImage, labels: LabelMap, found: Segmentation, *, masks: bool
) -> tuple[Path, ...]:
    make_new_folder(output, names)
    classes = found.probabilities.shape[1]
    colors = class_colors(classes)
    files = [output / "labels.png", output / "overlay.png"]
    save_label_png(files[0], labels, colors)
    Image.fromarray(outlined(image, labels, colors)).save(files[1])
    if masks:
        (output / "masks").mkdir()
        for phase in range(classes):
            files.append(output / "masks" / f"phase-{phase}.png")
            Image.fromarray(np.where(labels == phase, np.uint8(255), np.uint8(0))).save(files[-1])
    figures = found.figures(torch.from_numpy(image).unsqueeze(0))
    for name, figure in figures.items():
        files.append(output / f"{name}.png")
        figure.savefig(files[-1], dpi=130, facecolor="white")
    if has_curve(found.history):
        files.append(output / "convergence.csv")
        write_table(found.history, files[-1])
        if "convergence" not in figures and isinstance(found.history[0], EnergyRecord):
            files.append(output / "convergence.png")
            write_chart(found.history, files[-1])
    return tuple(files)
