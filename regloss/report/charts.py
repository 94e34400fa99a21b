"""The figures of a report: examples with their labellings, curves, scores, and the numbers that they show.

Drawn through matplotlib's object interface, so neither a display nor pyplot's global state is touched.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Patch
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator

from regloss.dataset import IGNORE
from regloss.io.labels import class_indices
from regloss.io.palettes import IGNORE_COLOR, Color, Colors
from regloss.report.examples import Example
from regloss.report.numbers import TIMES, columns, is_number, percent, series, short, time_parts
from regloss.report.overlays import Picture, outlined, overlay, scribble_panel, shades

_INK, _MUTED = "#1f2937", "#6b7280"
_LINES = ("#2563eb", "#d97706", "#059669", "#7c3aed", "#dc2626", "#0891b2", "#be185d", "#65a30d")
DPI = 130
_STEP_COLUMNS = {"step", "epoch", "learning-rate", "loss"}


def example_figure(example: Example, shown: Sequence[str], classes: Sequence[str], colors: Colors) -> Figure:
    """The image and its labellings in a row of equal boxes, with a legend of the classes that occur in them."""
    image, where = example.image, ""
    maps = {name: None if labels is None else class_indices(labels, colors) for name, labels in example.maps().items()}
    if image.ndim == 4:
        middle = image.shape[1] // 2
        where = f", slice {middle + 1} of {image.shape[1]}"
        image = image[:, middle]
        maps = {name: None if labels is None else labels[middle] for name, labels in maps.items()}
    present = sorted({int(value) for labels in maps.values() if labels is not None for value in np.unique(labels)})
    void = any(labels is not None and (labels == IGNORE).any() for name, labels in maps.items() if name != "scribble")
    names = [short(classes[value], 24) for value in present if value < len(classes)]
    handles = [_patch(colors[value]) for value in present if value < len(classes)]
    if void:
        names, handles = [*names, "no label (255)"], [*handles, _patch(IGNORE_COLOR)]

    # All boxes are laid out by hand in inches: the examples' pictures then agree in size and position.
    width, gap, top, row = 2.3, 0.08, 0.5, 0.21
    height = width * min(max(image.shape[1] / image.shape[2], 0.5), 1.5)
    count = 1 + len(example.numbers) + len(shown)
    across = count * width + (count + 1) * gap
    longest = max((len(name) for name in names), default=0)
    columns = max(1, min(len(names), int(across / (0.4 + 0.075 * longest))))
    bottom = 0.16 + row * math.ceil(len(names) / columns)
    figure = Figure(figsize=(across, top + height + bottom))
    figure.text(
        gap / across,
        1 - 0.06 / (top + height + bottom),
        short(example.id, int(9 * across)) + where,
        ha="left",
        va="top",
        fontsize=10,
        fontweight="bold",
        color=_INK,
        parse_math=False,
    )
    nothing = np.full(image.shape[1:], IGNORE, dtype=np.uint8)
    panels: list[tuple[str, Picture | None]] = [("image", overlay(image, nothing, colors))]
    for name, numbers in example.numbers.items():
        panels.append((name, shades(numbers if numbers.ndim == 2 else numbers[len(numbers) // 2])))
    for name in shown:
        labels = maps[name]
        draw = scribble_panel if name == "scribble" else outlined
        panels.append((name, None if labels is None else draw(image, labels, colors)))
    for index, (name, panel) in enumerate(panels):
        left = (gap + index * (width + gap)) / across
        total = top + height + bottom
        axes = figure.add_axes((left, bottom / total, width / across, height / total))
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_title(name, fontsize=9, color=_INK, pad=3)
        for spine in axes.spines.values():
            spine.set_edgecolor("#d1d5db")
        if panel is None:
            axes.text(0.5, 0.5, "none", ha="center", va="center", color=_MUTED, transform=axes.transAxes)
        else:
            axes.imshow(panel)
    legend = figure.legend(
        handles,
        names,
        loc="lower center",
        ncols=columns,
        frameon=False,
        fontsize=8,
        handlelength=1.1,
        handleheight=1.1,
        borderaxespad=0.2,
        columnspacing=1.4,
        labelcolor=_INK,
    )
    _without_formulas(legend.get_texts())
    return figure


def loss_chart(steps: Sequence[Mapping[str, Any]], epochs: Sequence[Mapping[str, Any]]) -> Figure | None:
    """The loss and its parts by step, or by epoch where steps were not logged."""
    rows, x = (steps, "step") if steps else (epochs, "epoch")
    names = [key for key in columns(steps) if key not in _STEP_COLUMNS and not key.startswith("layer-")]
    terms = [name for name in names if not name.endswith("-loss")]
    return _curves_chart("Loss and its terms" if terms else "Loss", rows, x, ["loss", *terms])


def further_losses_chart(steps: Sequence[Mapping[str, Any]]) -> Figure | None:
    """Losses of networks that are trained beside the segmentation's."""
    names = [key for key in columns(steps) if key.endswith("-loss")]
    return _curves_chart("Losses of further networks", steps, "step", names)


def _curves_chart(title: str, rows: Sequence[Mapping[str, Any]], x: str, names: Sequence[str]) -> Figure | None:
    """Smoothed curves of some columns; the first is shown as it is, too, if it is the loss."""
    curves = {name: series(rows, x, name) for name in names}
    curves = {name: curve for name, curve in curves.items() if len(curve[0])}
    if not curves:
        return None
    window = max(1, max(len(curve[0]) for curve in curves.values()) // 40)
    figure, axes = _chart(title, x, "loss")
    if window > 1 and "loss" in curves:
        axes.plot(*curves["loss"], color=_INK, alpha=0.18, linewidth=0.7)
    for color, (name, (place, value)) in zip(_colors(len(curves)), curves.items(), strict=True):
        size = min(window, len(value))
        smooth = np.convolve(value, np.full(size, 1 / size), mode="valid")
        # A mean over a window belongs to its middle, or the smoothed curve would lag behind.
        middle = np.convolve(place, np.full(size, 1 / size), mode="valid")
        axes.plot(middle, smooth, color=color, **_stroke(len(smooth)), label=name)
    if window > 1:
        axes.set_title(f"means over {window} steps", loc="right", fontsize=8, color=_MUTED)
    values = np.concatenate([value for _, value in curves.values()])
    if values.min() > 0 and values.max() / values.min() > 100:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
    _finish(axes)
    return figure


def learning_rate_chart(steps: Sequence[Mapping[str, Any]]) -> Figure | None:
    """The learning rate by step."""
    place, value = series(steps, "step", "learning-rate")
    if not len(place):
        return None
    figure, axes = _chart("Learning rate", "step", "learning rate")
    axes.plot(place, value, color=_LINES[0], **_stroke(len(place)), label="learning rate")
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter("{x:.3g}")
    _finish(axes)
    return figure


def score_charts(epochs: Sequence[Mapping[str, Any]]) -> dict[str, Figure]:
    """Scores in [0, 1] share a chart, the boundary density has its own, and whatever else there is shares a third.

    Energies have `prediction_energy_chart`.
    """
    chosen: dict[str, dict[str, tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]]] = {}
    for key in columns(epochs):
        curve = series(epochs, "epoch", key)
        if not key.startswith(("val-", "test-")) or key.endswith("-energy") or not len(curve[0]):
            continue
        if key.endswith("boundary-density"):
            chart = "boundary-density"
        else:
            chart = "scores" if curve[1].min() >= 0 and curve[1].max() <= 1 else "other-scores"
        chosen.setdefault(chart, {})[key] = curve
    titles = {
        "scores": ("Scores", "score (1 = perfect)"),
        "boundary-density": ("Boundary length per area (lower is smoother)", "percent"),
        "other-scores": ("Other measures", "value"),
    }
    charts = {}
    for chart in filter(chosen.__contains__, titles):
        figure, axes = _chart(titles[chart][0], "epoch", titles[chart][1])
        for color, (key, (place, value)) in zip(_colors(len(chosen[chart]), 0), chosen[chart].items(), strict=True):
            axes.plot(place, value, color=color, **_stroke(len(place)), label=key)
        _finish(axes)
        charts[chart] = figure
    return charts


def prediction_energy_chart(epochs: Sequence[Mapping[str, Any]]) -> Figure | None:
    """The discrete energy of what the network predicts, on training and validation images, by epoch."""
    curves = {key: series(epochs, "epoch", key) for key in ("train-energy", "val-energy")}
    curves = {key: curve for key, curve in curves.items() if len(curve[0])}
    if not curves:
        return None
    figure, axes = _chart("Energy of the predictions", "epoch", "energy per pixel")
    for color, (key, (place, value)) in zip(_colors(len(curves), 0), curves.items(), strict=True):
        axes.plot(place, value, color=color, **_stroke(len(place)), label=key.removesuffix("-energy"))
    axes.set_ylim(bottom=0)
    _finish(axes)
    return figure


def energy_chart(epochs: Sequence[Mapping[str, Any]]) -> Figure | None:
    """Energies of the proposals before and after the solver, by epoch."""
    before, after = (series(epochs, "epoch", f"proposal-energy-{when}") for when in ("before", "after"))
    if not len(before[0]) and not len(after[0]):
        return None
    figure, axes = _chart("Energy of the proposals, before and after the solver", "epoch", "energy per pixel")
    energy_before = dict(zip(*before, strict=True))
    for place, value in zip(*after, strict=True):
        if place in energy_before:
            axes.plot([place, place], [energy_before[place], value], color="#d1d5db", linewidth=2, zorder=1)
    for (place, value), color, name in ((before, _LINES[1], "before"), (after, _LINES[2], "after")):
        axes.plot(place, value, color=color, marker="o", markersize=4.5, linewidth=1, label=name, zorder=2)
    _finish(axes)
    return figure


def time_chart(epochs: Sequence[Mapping[str, Any]]) -> Figure | None:
    """Where the time of each epoch went."""
    rows = [row for row in epochs if is_number(row.get("epoch")) and is_number(row.get("seconds"))]
    if not rows:
        return None
    parts = time_parts(rows)
    if not any(map(np.any, parts.values())):
        return None
    figure, axes = _chart("Time per epoch", "epoch", "seconds")
    place, base = np.array([float(row["epoch"]) for row in rows]), np.zeros(len(rows))
    colors = dict(zip([*TIMES.values(), "other"], ("#93c5fd", "#2563eb", "#d97706", "#d1d5db"), strict=True))
    for name, seconds in parts.items():
        if np.any(seconds):
            axes.bar(place, seconds, bottom=base, width=0.8, color=colors[name], label=name)
        base = base + seconds
    if parts["solver"].any():
        share = percent(parts["solver"].sum() / base.sum())
        axes.set_title(f"solver: {share} of all time", loc="right", fontsize=8, color=_MUTED)
    axes.set_ylim(0, 1.02 * base.max())
    _finish(axes)
    return figure


def trimap_chart(scores: Mapping[str, Mapping[str, Any]]) -> Figure | None:
    """Mean IoU within so many pixels of a true boundary, by that width, for each subset."""
    curves = {}
    for subset, of in scores.items():
        rows = [{"width": float(width), "iou": band["mean-iou"]} for width, band in of.get("trimap", {}).items()]
        place, value = series(sorted(rows, key=lambda row: row["width"] or 0.0), "width", "iou")
        if len(place) > 1:
            curves[subset] = place, value
    if not curves:
        return None
    figure, axes = _chart("Mean IoU near true boundaries", "width of the band (pixels)", "mean IoU")
    for color, (subset, (place, value)) in zip(_colors(len(curves), 0), curves.items(), strict=True):
        axes.plot(place, value, color=color, marker="o", markersize=4, label=subset)
    _finish(axes)
    return figure


def comparison_chart(rows: Sequence[Mapping[str, Any]]) -> Figure | None:
    """Several runs: scores within bands around true boundaries by their width, and mean IoU by the level of noise.

    Args:
        rows: as of `regloss.apps.compare.table_of`: ``run``, ``noise``, ``level``, ``trimap`` (width or None) and
            scores.

    Returns:
        The chart; None where there are neither two widths nor any noise.
    """
    clean = [row for row in rows if row["noise"] == "none"]
    bands = [row for row in clean if row["trimap"] is not None]
    whole = [row for row in rows if row["trimap"] is None]
    panels = []  # title, name of the x axis, its column, that of the scores, rows
    if len({row["trimap"] for row in bands}) > 1:
        panels += [
            (f"{name} near true boundaries", "width of the band (pixels)", "trimap", key, bands)
            for name, key in (("Accuracy", "accuracy"), ("Mean IoU", "mean-iou"))
        ]
    for kind in dict.fromkeys(row["noise"] for row in whole if row["noise"] != "none"):
        unit = "standard deviation" if kind == "gaussian" else "fraction of the pixels"
        of_kind = [row for row in whole if row["noise"] in ("none", kind)]
        panels.append((f"Mean IoU with {kind} noise", unit, "level", "mean-iou", of_kind))
    if not panels:
        return None
    names = list(dict.fromkeys(row["run"] for row in rows))
    figure = Figure(figsize=(4.4 * len(panels) + 1.6, 3.5), layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1))
    for axes, (title, x, column, key, chosen) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True
    ):
        _dress(axes, title, x, key.replace("-", " ").replace("iou", "IoU"))
        for number, (color, name) in enumerate(zip(_colors(len(names), 0), names, strict=True)):
            of_run = sorted((row for row in chosen if row["run"] == name), key=lambda row: row[column])
            place, value = series(of_run, column, key)
            style = ("-", "--", ":")[number // (1 + len(_LINES)) % 3]  # where colours begin again
            axes.plot(place, value, color=color, linestyle=style, marker="o", markersize=3, label=name)
    handles, labels = axes.get_legend_handles_labels()
    legend = figure.legend(handles, labels, loc="outside right upper", frameon=False, fontsize=8, labelcolor=_INK)
    _without_formulas(legend.get_texts())
    return figure


def confusion_chart(subset: str, scores: Mapping[str, Any], classes: Sequence[str]) -> Figure | None:
    """True against predicted classes of a subset."""
    if "confusion" not in scores:
        return None
    counts = np.asarray(scores["confusion"], dtype=np.float64)
    rows = counts.sum(1, keepdims=True)
    percent = np.ma.masked_invalid(np.divide(100 * counts, rows, out=np.full_like(counts, np.nan), where=rows > 0))
    few = len(classes) <= 12
    figure = Figure(figsize=(6.4, 5.2), layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1))
    axes = figure.add_subplot()
    drawn = axes.imshow(percent, cmap="Blues", vmin=0, vmax=100)
    axes.set_title(f"Confusion on {subset}, percent of each true class", fontsize=11, color=_INK, parse_math=False)
    names = [short(name, 16) for name in classes]
    size = 9 if few else 7
    axes.set_xticks(range(len(classes)), names, rotation=45, ha="right", rotation_mode="anchor", fontsize=size)
    axes.set_yticks(range(len(classes)), names, fontsize=size)
    _without_formulas([*axes.get_xticklabels(), *axes.get_yticklabels()])
    axes.set_xlabel("predicted", fontsize=9, color=_INK)
    axes.set_ylabel("true", fontsize=9, color=_INK)
    axes.tick_params(length=0, colors=_INK)
    for spine in axes.spines.values():
        spine.set_visible(False)
    bar = figure.colorbar(drawn, ax=axes, shrink=0.85)
    bar.ax.tick_params(labelsize=8, colors=_INK)
    bar.outline.set_visible(False)
    if few:
        for (row, column), value in np.ndenumerate(percent.filled(np.nan)):
            if not np.isnan(value):
                color = "white" if value > 55 else _INK
                axes.text(column, row, f"{value:.1f}", ha="center", va="center", fontsize=8, color=color)
    return figure


def histogram_chart(examples: Sequence[Example], name: str, classes: Sequence[str]) -> Figure | None:
    """How often each value occurs among the pixels of each predicted class; "image" = mean over the channels."""
    pixels = [(e.image.mean(0) if name == "image" else e.numbers.get(name), e.prediction) for e in examples]
    parts = {
        label: np.concatenate([values[labels == label] for values, labels in pixels if values is not None])
        for label in range(len(classes))
    }
    parts = {label: values for label, values in parts.items() if values.size and np.isfinite(values).all()}
    if not parts:
        return None
    everything = np.concatenate(list(parts.values()))
    edges = np.linspace(everything.min(), max(everything.max(), everything.min() + 1e-6), 61)
    figure, axes = _chart(f"Values of {name}, all examples", "value", "density")
    for color, (label, values) in zip(_colors(len(parts), 0), parts.items(), strict=True):
        density, _ = np.histogram(values, edges, density=True)
        axes.stairs(density, edges, color=color, linewidth=1.5, label=short(classes[label], 24))
    _finish(axes)
    return figure


def _chart(title: str, x: str, y: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(6.4, 3.5), layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1))
    axes = figure.add_subplot()
    _dress(axes, title, x, y)
    if x in ("step", "epoch"):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure, axes


def _dress(axes: Axes, title: str, x: str, y: str) -> None:
    """Titles and lines as all charts have them."""
    axes.set_title(title, loc="left", fontsize=11, color=_INK)
    axes.set_xlabel(x, fontsize=9, color=_INK)
    axes.set_ylabel(y, fontsize=9, color=_INK)
    axes.tick_params(labelsize=8, colors=_INK)
    axes.grid(axis="y", color="#e5e7eb", linewidth=0.8)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_edgecolor("#9ca3af")


def _finish(axes: Axes) -> None:
    """A legend beside the data, so that it hides none of it (a lone curve is named above), and room for one point."""
    low, high = axes.get_xlim()
    if high - low < 1:  # a single step or epoch: ticks at fractions of it would mean nothing
        axes.set_xlim((low + high) / 2 - 1, (low + high) / 2 + 1)
    handles, names = axes.get_legend_handles_labels()
    if len(handles) == 1:
        if names[0] != axes.get_ylabel() and not axes.get_title(loc="right"):
            axes.set_title(names[0], loc="right", fontsize=8, color=_MUTED, parse_math=False)
        return
    legend = axes.legend(
        loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize=8, labelcolor=_INK, handlelength=1.4
    )
    _without_formulas(legend.get_texts())


def _without_formulas(texts: Sequence[Text]) -> None:
    """Names are shown as they are: a dollar sign in them opens no formula."""
    for text in texts:
        text.set_parse_math(False)


def _patch(color: Color) -> Patch:
    red, green, blue = (part / 255 for part in color)
    return Patch(facecolor=(red, green, blue), edgecolor="#9ca3af", linewidth=0.6)


def _colors(count: int, first: int = -1) -> list[str]:
    """Line colours; the ink comes first, for the total."""
    palette = (_INK, *_LINES)
    return [palette[(first + 1 + index) % len(palette)] for index in range(count)]


def _stroke(points: int) -> dict[str, Any]:
    """A line; with markers where points are few, since a single point draws no line."""
    return {"linewidth": 1.5, "marker": "o" if points <= 40 else None, "markersize": 3}
