"""One image by deep Chan-Vese, from file to files; see `regloss.deep_chan_vese` for the method."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from regloss.dataset import IGNORE
from regloss.deep_segmentation import STARTS, DeepChanVese, Look, deep_chan_vese, start_labels
from regloss.errors import UsageError
from regloss.guided import guided_filter
from regloss.io.images import read_image
from regloss.io.labels import read_scribble_map, save_label_png
from regloss.io.outputs import check_new_folder, make_new_folder
from regloss.io.palettes import class_colors
from regloss.io.types import FloatImage, LabelMap
from regloss.report.overlays import outlined

NAME = "deep-chan-vese"
REFINEMENTS = ("guided",)

_FILES = (
    "labels.png",
    "overlay.png",
    "masks",
    "latent.png",
    "histograms.png",
    "convergence.csv",
    "convergence.png",
)
_INK = "#1f2937"


@dataclass(frozen=True)
class DeepSegmentation:
    """Result of `deep_segment_file`.

    Attributes:
        labels: (*S) uint8 phases, refined if that was asked for.
        result: of the method.
        files: what was written.
    """

    labels: LabelMap
    result: DeepChanVese
    files: tuple[Path, ...]

    def lines(self) -> list[str]:
        """The result in words."""
        last = self.result.looks[-1]
        counts = np.bincount(self.labels.ravel(), minlength=self.result.probabilities.shape[1])
        return [
            f"energy per pixel {last.energy:.6g} (reconstruction {last.reconstruction:.4g}, divergence "
            f"{last.divergence:.4g}, length {last.length:.4g}); {last.step} steps, {last.seconds:.1f} s; "
            f"{self.result.status.value}",
            "pixels per class: " + ", ".join(f"{label}: {count}" for label, count in enumerate(counts)),
            *(f"wrote {path}" for path in self.files),
        ]


def deep_segment_file(
    path: Path,
    output: Path,
    *,
    phases: int | None = None,
    start: Path | str | None = None,
    refine: str | None = None,
    settings: dict[str, Any] | None = None,
    seed: int = 0,
    overwrite: bool = False,
    tell: Callable[[str], object] | None = None,
) -> DeepSegmentation:
    """Segment one image into phases by networks that are fitted to it.

    Args:
        path: the image.
        output: folder for labels.png, overlay.png, masks/, latent.png (start, latent maps, reconstruction),
            histograms.png (phases before and after encoding), convergence.csv and convergence.png.
        phases: how many, at least 2; None = 2, or as many as ``start`` has.
        start: PNG of phase indices, 255 = no opinion, or a name in `regloss.deep_segmentation.STARTS`.
        refine: "guided" has the guided filter move probabilities to the edges of the image; None = they stay.
        settings: of `regloss.deep_chan_vese`.
        seed: of networks, noise and start.
        overwrite: replace the files of an earlier call.
        tell: called with a line now and then.

    Raises:
        UsageError: before anything is written: whatever `regloss.deep_chan_vese` refuses, files missing or of different
            sizes.
    """
    if refine is not None and refine not in REFINEMENTS:
        raise UsageError(f"refine must be one of {', '.join(REFINEMENTS)}; got {refine!r}.")
    check_new_folder(output, _FILES, overwrite=overwrite)
    image = read_image(path)
    tensor = torch.from_numpy(image).unsqueeze(0)
    given, phases = _start(start, phases, path, image)
    begin = start_labels(tensor, phases, given, seed)

    def told(look: Look) -> None:
        if tell is not None:
            tell(
                f"step {look.step}: energy {look.energy:.5g} per pixel (reconstruction {look.reconstruction:.4g}, "
                f"divergence {look.divergence:.4g}, length {look.length:.4g}), {100 * look.changed:.2f} % changed"
            )

    result = deep_chan_vese(tensor, phases, start=begin, seed=seed, tell=told, **(settings or {}))
    found = result.labels
    if refine == "guided":
        found = guided_filter(tensor, result.probabilities).argmax(1)
    labels = found[0].numpy().astype(np.uint8)
    return DeepSegmentation(labels, result, _write(output, image, labels, result))


def _start(
    start: Path | str | None, phases: int | None, of: Path, image: FloatImage
) -> tuple[Tensor | str | None, int]:
    """What to start from, and the number of phases."""
    if start is None or str(start) in STARTS:
        return (None if start is None else str(start)), (2 if phases is None else phases)
    file = Path(start)
    if not file.is_file() and not file.suffix:
        raise UsageError(f"start must be a PNG of phase indices, or one of {', '.join(STARTS)}; got {str(start)!r}.")
    labels = read_scribble_map(file, [str(number) for number in range(IGNORE)], image.shape[1:])
    if labels.shape != image.shape[1:]:
        raise UsageError(
            f"{file} has the size {labels.shape}, {of} {image.shape[1:]} (height, width). They must agree."
        )
    present = np.unique(labels[labels != IGNORE])
    if phases is None:
        phases = max(2, int(present.max()) + 1 if present.size else 2)
    return torch.from_numpy(labels.astype(np.int64)).unsqueeze(0), phases


def _write(output: Path, image: FloatImage, labels: LabelMap, result: DeepChanVese) -> tuple[Path, ...]:
    make_new_folder(output, _FILES)
    classes = result.probabilities.shape[1]
    colors = class_colors(classes)
    files = [output / "labels.png", output / "overlay.png"]
    save_label_png(files[0], labels, colors)
    Image.fromarray(outlined(image, labels, colors)).save(files[1])
    (output / "masks").mkdir()
    for phase in range(classes):
        files.append(output / "masks" / f"phase-{phase}.png")
        Image.fromarray(np.where(labels == phase, np.uint8(255), np.uint8(0))).save(files[-1])
    shades = ["#{:02x}{:02x}{:02x}".format(*color) for color in colors]
    for name, figure in (
        ("latent.png", latent_figure(image, result)),
        ("histograms.png", histogram_figure(image, labels, result, shades)),
        ("convergence.png", energy_figure(result.looks)),
    ):
        files.append(output / name)
        figure.savefig(files[-1], dpi=130, facecolor="white")
    files.append(output / "convergence.csv")
    with files[-1].open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([column.name for column in fields(Look)])
        writer.writerows(astuple(look) for look in result.looks)
    return tuple(files)


def latent_figure(image: FloatImage, result: DeepChanVese) -> Figure:
    """Image, start, what the encoder makes of each pixel, and what the decoder makes of that."""
    maps = [(f"latent {number}", values) for number, values in enumerate(result.latent[0].numpy())]
    panels: list[tuple[str, npt.NDArray[Any]]] = [
        ("image", _shown(image)),
        ("start", result.start[0].numpy()),
        *(maps if len(maps) > 1 else [("latent", maps[0][1])]),
        ("reconstruction", _shown(result.reconstruction[0].clamp(0, 1).numpy())),
    ]
    figure = Figure(figsize=(2.4 * len(panels), 2.6), layout="constrained")
    for axes, (title, values) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        shown = axes.imshow(values, cmap="coolwarm" if title.startswith("latent") else "gray")
        if title.startswith("latent"):
            figure.colorbar(shown, ax=axes, shrink=0.8)
        axes.set_title(title, fontsize=10, color=_INK)
        axes.axis("off")
    return figure


def histogram_figure(image: FloatImage, labels: LabelMap, result: DeepChanVese, shades: list[str]) -> Figure:
    """Values of the phases' pixels before encoding (the mean over the channels) and after (each latent channel)."""
    latent = result.latent[0].numpy()
    panels = [("image value", image.mean(0))]
    panels += [(f"latent {number}" if len(latent) > 1 else "latent", values) for number, values in enumerate(latent)]
    figure = Figure(figsize=(3.2 * len(panels), 2.8), layout="constrained")
    for axes, (name, values) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        _style(axes, name)
        edges = np.histogram_bin_edges(values, bins=60)
        for phase, shade in enumerate(shades):
            inside = values[labels == phase]
            if inside.size:
                axes.hist(inside, bins=edges, alpha=0.6, color=shade, label=f"phase {phase}")
        axes.set_yticks([])
    figure.axes[0].legend(frameon=False, fontsize=8)
    return figure


def energy_figure(looks: tuple[Look, ...]) -> Figure:
    """Energy per pixel and its addends by step, logarithmic."""
    figure = Figure(figsize=(6.4, 3.4), layout="constrained")
    axes = figure.add_subplot()
    _style(axes, "step")
    steps = [look.step for look in looks]
    curves = (("energy", _INK), ("reconstruction", "#2563eb"), ("divergence", "#d97706"), ("length", "#059669"))
    for name, color in curves:
        axes.plot(steps, [getattr(look, name) for look in looks], color=color, linewidth=1.4, label=name)
    axes.set_yscale("log" if all(look.energy > 0 for look in looks) else "linear")
    axes.set_title("Energy per pixel", loc="left", fontsize=11, color=_INK)
    axes.legend(frameon=False, fontsize=8)
    return figure


def _shown(image: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """(H, W, 3) or (H, W) of (C, H, W)."""
    return np.moveaxis(image, 0, -1) if len(image) == 3 else image[0]


def _style(axes: Axes, x: str) -> None:
    axes.set_xlabel(x, fontsize=9, color=_INK)
    axes.tick_params(labelsize=8, colors=_INK)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
