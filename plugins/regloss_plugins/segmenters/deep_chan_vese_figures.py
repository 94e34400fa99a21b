"""Pictures of a segmentation by deep Chan-Vese: what the networks make of the image, and how the energy fell."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from regloss.io.palettes import class_colors
from regloss_plugins.segmenters.deep_chan_vese import DeepChanVese, FitRecord

_INK = "#1f2937"


def latent_figure(image: Tensor, result: DeepChanVese) -> Figure:
    """Image, start, what the encoder makes of each pixel, and what the decoder makes of that."""
    maps = [(f"latent {number}", values) for number, values in enumerate(result.latent[0].numpy())]
    panels: list[tuple[str, npt.NDArray[Any]]] = [
        ("image", _shown(image[0].cpu().numpy())),
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


def histogram_figure(image: Tensor, labels: Tensor, result: DeepChanVese) -> Figure:
    """Values of the phases' pixels before encoding (the mean over the channels) and after (each latent channel)."""
    latent = result.latent[0].numpy()
    label_map = labels[0].cpu().numpy()
    shades = _shades(len(result.probabilities[0]))
    panels = [("image value", image[0].mean(0).cpu().numpy())]
    panels += [(f"latent {number}" if len(latent) > 1 else "latent", values) for number, values in enumerate(latent)]
    figure = Figure(figsize=(3.2 * len(panels), 2.8), layout="constrained")
    for axes, (name, values) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        _style(axes, name)
        edges = np.histogram_bin_edges(values, bins=60)
        for phase, shade in enumerate(shades):
            inside = values[label_map == phase]
            if inside.size:
                axes.hist(inside, bins=edges, alpha=0.6, color=shade, label=f"phase {phase}")
        axes.set_yticks([])
    figure.axes[0].legend(loc="upper right", frameon=False, fontsize=8)
    return figure


def snapshot_figure(image: Tensor, result: DeepChanVese) -> Figure:
    """Outlines of the phases after the steps that were asked for, and at the end."""
    panels = [(f"step {step}" if step else "start", labels) for step, labels in result.snapshots.items()]
    panels.append((f"end, step {result.history[-1].step}", result.labels))
    figure = Figure(figsize=(2.4 * len(panels), 2.6), layout="constrained")
    for axes, (title, labels) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        axes.imshow(_shown(image[0].cpu().numpy()), cmap="gray")
        for phase, shade in enumerate(_shades(len(result.probabilities[0]))):
            inside = labels[0].cpu().numpy() == phase
            if phase and inside.any() and not inside.all():
                axes.contour(inside, [0.5], colors=shade, linewidths=1.5)
        axes.set_title(title, fontsize=10, color=_INK)
        axes.axis("off")
    return figure


def energy_figure(history: tuple[FitRecord, ...]) -> Figure:
    """Energy per pixel and its terms by step, logarithmic."""
    figure = Figure(figsize=(6.4, 3.4), layout="constrained")
    axes = figure.add_subplot()
    _style(axes, "step")
    steps = [record.step for record in history]
    curves = (("energy", _INK), ("reconstruction", "#2563eb"), ("divergence", "#d97706"), ("length", "#059669"))
    for name, color in curves:
        axes.plot(steps, [getattr(record, name) for record in history], color=color, linewidth=1.4, label=name)
    axes.set_yscale("log" if all(record.energy > 0 for record in history) else "linear")
    axes.set_title("Energy per pixel", loc="left", fontsize=11, color=_INK)
    axes.legend(loc="upper right", frameon=False, fontsize=8)
    return figure


def _shades(phases: int) -> list[str]:
    return ["#{:02x}{:02x}{:02x}".format(*color) for color in class_colors(phases)]


def _shown(image: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """(H, W, 3) or (H, W) of (C, H, W)."""
    return np.moveaxis(image, 0, -1) if len(image) == 3 else image[0]


def _style(axes: Axes, x: str) -> None:
    axes.set_xlabel(x, fontsize=9, color=_INK)
    axes.tick_params(labelsize=8, colors=_INK)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
