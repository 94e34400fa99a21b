"""The report of a training run: one HTML file with everything in it, and the same pictures as PNG files.

The page needs neither network nor scripts: pictures are embedded, text is escaped. What a run does not have (proposals,
labels, a validation set) leaves its part out. Pictures are drawn through matplotlib's object interface, so neither a
display nor pyplot's global state is touched.
"""

from __future__ import annotations

import base64
import html
import io
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Patch
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator
from PIL import Image
from scipy import ndimage

from regloss.dataset import IGNORE
from regloss.errors import UsageError

Color = tuple[int, int, int]
Colors = Sequence[Color]
Labels = npt.NDArray[np.uint8]
Picture = npt.NDArray[np.uint8]

IGNORE_COLOR: Color = (224, 224, 192)
"""What 255 looks like where it has to be shown: PASCAL VOC's colour for it."""

_STEP_COLUMNS = {"step", "epoch", "learning-rate", "loss"}
_TIMES = {"train-seconds": "network training", "network-seconds": "network inference", "solver-seconds": "solver"}
_INK, _MUTED = "#1f2937", "#6b7280"
_LINES = ("#2563eb", "#d97706", "#059669", "#7c3aed", "#dc2626", "#0891b2", "#be185d", "#65a30d")
_MOST_GROUPS = 200  # rows; a table of every image of a large set would be most of the page
_DPI = 130


@dataclass(frozen=True, eq=False)
class Example:
    """One image to show, with whatever labellings there are; a volume is shown by the middle slice of its first axis.

    Attributes:
        id: the sample's name.
        image: (C, *S) float32 in [0, 1], two or three spatial axes; three channels are RGB, of others the first is
            shown.
        scribble: (*S) class indices with 255 = unlabelled, or None.
        proposal: (*S) class indices with 255 = outside the region of interest, or None.
        prediction: (*S) class indices.
        label: (*S) class indices with 255 = ignored, or None.
        numbers: further maps (*S) by name, of which histograms are drawn too: what an encoder makes of the image.
    """

    id: str
    image: npt.NDArray[np.float32]
    scribble: Labels | None
    proposal: Labels | None
    prediction: Labels
    label: Labels | None
    numbers: Mapping[str, npt.NDArray[np.float32]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.image.ndim not in (3, 4):
            raise UsageError(f"Example {self.id!r}: an image must be (C, *S) in 2D or 3D; got {self.image.shape}.")
        for name, labels in {**self.maps(), **self.numbers}.items():
            if labels is not None and labels.shape != self.image.shape[1:]:
                raise UsageError(
                    f"Example {self.id!r}: its {name} must have the image's size {self.image.shape[1:]}; "
                    f"got {labels.shape}."
                )

    def maps(self) -> dict[str, Labels | None]:
        """The labellings by name, in the order in which they are shown."""
        return {
            "scribble": self.scribble,
            "proposal": self.proposal,
            "prediction": self.prediction,
            "truth": self.label,
        }


def write_report(
    folder: Path,
    *,
    title: str,
    config_text: str,
    steps: Sequence[Mapping[str, float]],
    epochs: Sequence[Mapping[str, float]],
    scores: Mapping[str, Mapping[str, Any]],
    classes: Sequence[str],
    colors: Colors,
    examples: Sequence[Example],
    sections: Sequence[tuple[str, str]] = (),
) -> Path:
    """Write ``folder/report.html`` and its pictures ``folder/report/*.png``; files of these names are replaced.

    Args:
        folder: of the run; made if it does not exist.
        title: the page's heading.
        config_text: the configuration, shown as it is.
        steps: one row per optimizer step: ``step``, ``epoch``, ``learning-rate``, ``loss`` and the loss's addends
            under any other names.
        epochs: one row per epoch: ``epoch``, ``loss``, ``seconds`` and its parts ``train-seconds``,
            ``network-seconds`` (network inference for the proposals) and ``solver-seconds``;
            ``proposal-energy-before`` and ``-after`` (per pixel) where proposals were renewed; and scores of any name
            that begins with ``val-`` or ``test-``. Columns may be missing, values may be NaN or None.
        scores: for each subset what `regloss.training.metrics.Scores.compute` returns.
        classes: the K class names.
        colors: one RGB triple of 0..255 for each class.
        examples: images to show side by side with their labellings.
        sections: further (heading, HTML) pairs, shown before the configuration; whoever gives text escapes it.

    Returns:
        The path of the page.

    Raises:
        UsageError: classes and colours differ in number, or a labelling has values that are no class.
    """
    if len(classes) != len(colors):
        raise UsageError(f"Every class needs one colour; got {len(classes)} classes and {len(colors)} colours.")
    pictures = folder / "report"
    pictures.mkdir(parents=True, exist_ok=True)

    def picture(name: str, figure: Figure | None, caption: str = "") -> str:
        """Write one figure, and give the HTML that embeds it; of a figure with nothing to draw, its caption."""
        below = f"<figcaption>{html.escape(caption)}</figcaption>" if caption else ""
        if figure is None:
            return f"<figure>{below}</figure>" if caption else ""
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=_DPI, facecolor="white")
        _replace(pictures / f"{name}.png", buffer.getvalue())
        encoded = base64.b64encode(buffer.getvalue()).decode("ascii")
        description = html.escape(name.replace("-", " "))
        return f'<figure><img alt="{description}" src="data:image/png;base64,{encoded}">{below}</figure>'

    curves = [
        picture("loss", _loss_chart(steps, epochs), _left_out(steps or epochs, "loss")),
        picture("further-losses", _further_losses_chart(steps)),
        picture("learning-rate", _learning_rate_chart(steps)),
        *(picture(name, figure) for name, figure in _score_charts(epochs).items()),
        picture("proposal-energy", _energy_chart(epochs)),
        picture("time", _time_chart(epochs)),
        picture("trimap", _trimap_chart(scores)),
    ]
    histograms = [
        picture(f"histogram-{_slug(name)}", _histogram_chart(examples, name, classes))
        for name in ["image", *dict.fromkeys(name for example in examples for name in example.numbers)]
        if any(example.numbers for example in examples)
    ]
    matrices = [picture(f"confusion-{_slug(name)}", _confusion_chart(name, of, classes)) for name, of in scores.items()]
    shown = [
        name
        for name in ("scribble", "proposal", "prediction", "truth")
        if any(e.maps()[name] is not None for e in examples)
    ]
    overlays = [
        picture(f"example-{number:02d}-{_slug(example.id)}", _example_figure(example, shown, classes, colors))
        for number, example in enumerate(examples, 1)
    ]
    parts = [
        _section("Results", _cards(steps, epochs, scores)),
        _section("Training", _grid(curves)),
        _section("Foreground, whatever the phases are called", _foreground_table(scores)),
        _section(
            "Scores by class", _class_table(scores, classes, colors) + _grid(matrices) + _group_tables(scores, classes)
        ),
        _section("Examples", (_legend(classes, colors) + "".join(overlays)) if overlays else ""),
        _section("Values of the examples' pixels by predicted class", _grid(histograms)),
        *(_section(heading, content) for heading, content in sections),
        _section("Configuration", f"<pre>{html.escape(config_text)}</pre>" if config_text.strip() else ""),
    ]
    page = _PAGE.format(title=html.escape(title), style=_STYLE, body="\n".join(filter(None, parts)))
    target = folder / "report.html"
    _replace(target, page.encode("utf-8"))
    return target


# -- Pictures of labels ------------------------------------------------------------------------------------------------


def overlay(
    image: npt.NDArray[np.floating[Any]], labels: npt.NDArray[Any], colors: Colors, alpha: float = 0.5
) -> Picture:
    """Paint ``labels`` over ``image``.

    Args:
        image: (C, H, W) in [0, 1]; three channels are RGB, of others the first is shown in grey.
        labels: (H, W) integer class indices; pixels with 255 show the image.
        colors: one RGB triple of 0..255 for each class.
        alpha: 0 shows the image alone, 1 hides it (for scribbles).

    Returns:
        (H, W, 3) RGB.

    Raises:
        UsageError: shapes differ, ``alpha`` is not in [0, 1], or a value is neither a class nor 255.

    >>> overlay(np.zeros((1, 1, 2)), np.array([[0, 255]]), [(200, 100, 0)]).tolist()
    [[[100, 50, 0], [0, 0, 0]]]
    """
    if image.ndim != 3 or labels.shape != image.shape[1:]:
        raise UsageError(
            f"An overlay needs an image (C, H, W) and labels (H, W) of its size; got {image.shape} and {labels.shape}. "
            "Of a volume, take one slice."
        )
    if not 0 <= alpha <= 1:
        raise UsageError(f"An overlay's alpha must lie in [0, 1]; got {alpha}.")
    indices = _class_indices(labels, colors)
    picture = 255 * np.clip(image if image.shape[0] == 3 else image[:1], 0, 1).astype(np.float64)
    picture = np.broadcast_to(np.moveaxis(picture, 0, -1), (*labels.shape, 3)).copy()
    painted = indices != IGNORE
    paint = np.asarray(colors, dtype=np.float64)[indices[painted]]
    picture[painted] = (1 - alpha) * picture[painted] + alpha * paint
    rounded: Picture = np.rint(picture).astype(np.uint8)
    return rounded


def save_label_png(path: Path, labels: npt.NDArray[Any], colors: Colors) -> None:
    """Write a label map as a palette PNG: read as numbers it is the class indices, looked at it is their colours.

    The file appears complete or not at all; missing folders are made.

    Args:
        path: ends in .png; an existing file is replaced.
        labels: (H, W) integer class indices, or 255.
        colors: one RGB triple of 0..255 for each class.

    Raises:
        UsageError: the path does not end in .png, the labels are not (H, W), or a value is neither a class nor 255.
    """
    if path.suffix.lower() != ".png":
        raise UsageError(f"A label map is written as PNG, so its name must end in .png; got {path.name!r}.")
    if labels.ndim != 2 or labels.size == 0:
        raise UsageError(f"A label PNG holds one map (H, W); got {labels.shape}. Write a volume slice by slice.")
    indices = _class_indices(labels, colors)
    palette = np.zeros((256, 3), dtype=np.uint8)
    palette[: len(colors)] = colors
    palette[IGNORE] = IGNORE_COLOR
    picture = Image.frombytes("P", (indices.shape[1], indices.shape[0]), indices.tobytes())
    picture.putpalette(palette.tobytes())
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    path.parent.mkdir(parents=True, exist_ok=True)
    _replace(path, buffer.getvalue())


def _class_indices(labels: npt.NDArray[Any], colors: Colors) -> Labels:
    if labels.dtype.kind not in "iu":
        raise UsageError(f"A label map must hold integers; got {labels.dtype}. Of probabilities take the argmax.")
    wrong = (labels != IGNORE) & ((labels < 0) | (labels >= len(colors)))
    if wrong.any():
        values = np.unique(labels[wrong]).tolist()[:10]
        raise UsageError(f"Labels must be 0 to {len(colors) - 1} (one colour each), or 255; found also {values}.")
    return np.ascontiguousarray(labels, dtype=np.uint8)


def _replace(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _example_figure(example: Example, shown: Sequence[str], classes: Sequence[str], colors: Colors) -> Figure:
    """The image and its labellings in a row of equal boxes, with a legend of the classes that occur in them."""
    image, where = example.image, ""
    maps = {name: None if labels is None else _class_indices(labels, colors) for name, labels in example.maps().items()}
    if image.ndim == 4:
        middle = image.shape[1] // 2
        where = f", slice {middle + 1} of {image.shape[1]}"
        image = image[:, middle]
        maps = {name: None if labels is None else labels[middle] for name, labels in maps.items()}
    present = sorted({int(value) for labels in maps.values() if labels is not None for value in np.unique(labels)})
    void = any(labels is not None and (labels == IGNORE).any() for name, labels in maps.items() if name != "scribble")
    names = [_short(classes[value], 24) for value in present if value < len(classes)]
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
        _short(example.id, int(9 * across)) + where,
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
        panels.append((name, _shades(numbers if numbers.ndim == 2 else numbers[len(numbers) // 2])))
    for name in shown:
        labels = maps[name]
        draw = _scribble_panel if name == "scribble" else outlined
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
    _plain(legend.get_texts())
    return figure


def outlined(image: npt.NDArray[np.float32], labels: Labels, colors: Colors) -> Picture:
    """Dense labels (H, W) over an image (C, H, W): transparent fill with opaque outlines.

    A black background stays image, since black paint only darkens.
    """
    palette = [*colors, IGNORE_COLOR]
    fill = np.where(labels == IGNORE, np.uint8(len(colors)), labels)
    if tuple(colors[0]) == (0, 0, 0):
        fill[labels == 0] = IGNORE
    edge = np.zeros(labels.shape, dtype=bool)
    for axis in (0, 1):
        step = np.diff(labels.astype(np.int16), axis=axis) != 0
        edge |= np.pad(step, [(0, int(axis == 0)), (0, int(axis == 1))])
        edge |= np.pad(step, [(int(axis == 0), 0), (int(axis == 1), 0)])
    edge = ndimage.binary_dilation(edge, iterations=_thickness(labels)) if _thickness(labels) else edge
    outline = np.where(edge, fill, IGNORE)
    picture = overlay(image, fill, palette, alpha=0.45)
    return np.where(outline[..., None] != IGNORE, overlay(image, outline, palette, alpha=1.0), picture)


def _shades(numbers: npt.NDArray[np.float32]) -> Picture:
    """A map (H, W) from dark to bright."""
    low, high = float(numbers.min()), float(numbers.max())
    shades = np.rint(255 * (numbers - low) / max(high - low, 1e-12)).astype(np.uint8)
    return np.repeat(shades[..., None], 3, axis=2)


def _scribble_panel(image: npt.NDArray[np.float32], labels: Labels, colors: Colors) -> Picture:
    """Scribbles opaque, with a thin white rim: a black scribble on a dark image would not be seen."""
    drawn = labels != IGNORE
    rim = ndimage.binary_dilation(drawn, iterations=1 + _thickness(labels)) & ~drawn
    picture = overlay(image, labels, colors, alpha=1.0)
    picture[rim] = 255
    return picture


def _thickness(labels: Labels) -> int:
    """Pixels by which lines are thickened, so that they survive when a large image is shown small."""
    longest: int = max(labels.shape)
    return longest // 400


# -- Charts ------------------------------------------------------------------------------------------------------------


def _loss_chart(steps: Sequence[Mapping[str, Any]], epochs: Sequence[Mapping[str, Any]]) -> Figure | None:
    rows, x = (steps, "step") if steps else (epochs, "epoch")
    names = [key for key in _columns(steps) if key not in _STEP_COLUMNS and not key.startswith("layer-")]
    addends = [name for name in names if not name.endswith("-loss")]
    return _curves_chart("Loss and its addends" if addends else "Loss", rows, x, ["loss", *addends])


def _further_losses_chart(steps: Sequence[Mapping[str, Any]]) -> Figure | None:
    """Losses of networks that are trained beside the segmentation's."""
    names = [key for key in _columns(steps) if key.endswith("-loss")]
    return _curves_chart("Losses of further networks", steps, "step", names)


def _curves_chart(title: str, rows: Sequence[Mapping[str, Any]], x: str, names: Sequence[str]) -> Figure | None:
    """Smoothed curves of some columns; the first is shown as it is, too, if it is the loss."""
    curves = {name: _series(rows, x, name) for name in names}
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


def _learning_rate_chart(steps: Sequence[Mapping[str, Any]]) -> Figure | None:
    place, value = _series(steps, "step", "learning-rate")
    if not len(place):
        return None
    figure, axes = _chart("Learning rate", "step", "learning rate")
    axes.plot(place, value, color=_LINES[0], **_stroke(len(place)), label="learning rate")
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter("{x:.3g}")
    _finish(axes)
    return figure


def _score_charts(epochs: Sequence[Mapping[str, Any]]) -> dict[str, Figure]:
    """Scores in [0, 1] share a chart, the boundary density has its own, and whatever else there is shares a third."""
    chosen: dict[str, dict[str, tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]]] = {}
    for key in _columns(epochs):
        curve = _series(epochs, "epoch", key)
        if not key.startswith(("val-", "test-")) or not len(curve[0]):
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


def _energy_chart(epochs: Sequence[Mapping[str, Any]]) -> Figure | None:
    before, after = (_series(epochs, "epoch", f"proposal-energy-{when}") for when in ("before", "after"))
    if not len(before[0]) and not len(after[0]):
        return None
    figure, axes = _chart("Energy of the proposals, before and after the solver", "epoch", "energy per pixel")
    starts = dict(zip(*before, strict=True))
    for place, value in zip(*after, strict=True):
        if place in starts:
            axes.plot([place, place], [starts[place], value], color="#d1d5db", linewidth=2, zorder=1)
    for (place, value), color, name in ((before, _LINES[1], "before"), (after, _LINES[2], "after")):
        axes.plot(place, value, color=color, marker="o", markersize=4.5, linewidth=1, label=name, zorder=2)
    _finish(axes)
    return figure


def _time_chart(epochs: Sequence[Mapping[str, Any]]) -> Figure | None:
    rows = [row for row in epochs if _is_number(row.get("epoch")) and _is_number(row.get("seconds"))]
    if not rows:
        return None
    parts = _time_parts(rows)
    if not any(map(np.any, parts.values())):
        return None
    figure, axes = _chart("Time per epoch", "epoch", "seconds")
    place, base = np.array([float(row["epoch"]) for row in rows]), np.zeros(len(rows))
    colors = dict(zip([*_TIMES.values(), "other"], ("#93c5fd", "#2563eb", "#d97706", "#d1d5db"), strict=True))
    for name, seconds in parts.items():
        if np.any(seconds):
            axes.bar(place, seconds, bottom=base, width=0.8, color=colors[name], label=name)
        base = base + seconds
    if parts["solver"].any():
        share = _percent(parts["solver"].sum() / base.sum())
        axes.set_title(f"solver: {share} of all time", loc="right", fontsize=8, color=_MUTED)
    axes.set_ylim(0, 1.02 * base.max())
    _finish(axes)
    return figure


def _trimap_chart(scores: Mapping[str, Mapping[str, Any]]) -> Figure | None:
    curves = {}
    for subset, of in scores.items():
        rows = [{"width": float(width), "iou": band["mean-iou"]} for width, band in of.get("trimap", {}).items()]
        place, value = _series(sorted(rows, key=lambda row: row["width"] or 0.0), "width", "iou")
        if len(place) > 1:
            curves[subset] = place, value
    if not curves:
        return None
    figure, axes = _chart("Mean IoU near true boundaries", "width of the band (pixels)", "mean IoU")
    for color, (subset, (place, value)) in zip(_colors(len(curves), 0), curves.items(), strict=True):
        axes.plot(place, value, color=color, marker="o", markersize=4, label=subset)
    _finish(axes)
    return figure


def _confusion_chart(subset: str, scores: Mapping[str, Any], classes: Sequence[str]) -> Figure | None:
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
    names = [_short(name, 16) for name in classes]
    size = 9 if few else 7
    axes.set_xticks(range(len(classes)), names, rotation=45, ha="right", rotation_mode="anchor", fontsize=size)
    axes.set_yticks(range(len(classes)), names, fontsize=size)
    _plain([*axes.get_xticklabels(), *axes.get_yticklabels()])
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


def _histogram_chart(examples: Sequence[Example], name: str, classes: Sequence[str]) -> Figure | None:
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
        axes.stairs(density, edges, color=color, linewidth=1.5, label=_short(classes[label], 24))
    _finish(axes)
    return figure


def _chart(title: str, x: str, y: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(6.4, 3.5), layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1))
    axes = figure.add_subplot()
    axes.set_title(title, loc="left", fontsize=11, color=_INK)
    axes.set_xlabel(x, fontsize=9, color=_INK)
    axes.set_ylabel(y, fontsize=9, color=_INK)
    axes.tick_params(labelsize=8, colors=_INK)
    axes.grid(axis="y", color="#e5e7eb", linewidth=0.8)
    axes.set_axisbelow(True)
    if x in ("step", "epoch"):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_edgecolor("#9ca3af")
    return figure, axes


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
    _plain(legend.get_texts())


def _plain(texts: Sequence[Text]) -> None:
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


# -- Numbers -----------------------------------------------------------------------------------------------------------


def _is_number(value: object) -> bool:
    return isinstance(value, int | float | np.number) and math.isfinite(value)


def _columns(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names of all columns, in the order of their first appearance."""
    return list(dict.fromkeys(key for row in rows for key in row))


def _series(
    rows: Sequence[Mapping[str, Any]], x: str, y: str
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Two columns as arrays, of the rows where both are finite numbers."""
    chosen = [row for row in rows if _is_number(row.get(x)) and _is_number(row.get(y))]
    return np.array([float(row[x]) for row in chosen]), np.array([float(row[y]) for row in chosen])


def _left_out(rows: Sequence[Mapping[str, Any]], column: str) -> str:
    """A curve must not hide that a run diverged."""
    count = sum(1 for row in rows if row.get(column) is not None and not _is_number(row[column]))
    return f"{count} values of the {column} are NaN or infinite; they are not drawn." if count else ""


def _time_parts(rows: Sequence[Mapping[str, Any]]) -> dict[str, npt.NDArray[np.float64]]:
    """Seconds of each row by what they were spent on; "other" is what the total has more than its parts."""
    parts = {
        name: np.array([float(row[key]) if _is_number(row.get(key)) else 0.0 for row in rows])
        for key, name in _TIMES.items()
    }
    total = np.array([float(row["seconds"]) for row in rows])
    parts["other"] = np.maximum(total - sum(parts.values()), 0.0)
    return parts


def _percent(value: Any) -> str:
    return f"{100 * value:.1f} %" if _is_number(value) else "n/a"


def _duration(seconds: float) -> str:
    """Seconds in the two largest units that fit.

    >>> _duration(3725), _duration(75), _duration(4.2)
    ('1 h 2 min', '1 min 15 s', '4.2 s')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = int(seconds) // 60
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min {int(seconds) % 60} s"


def _short(name: str, length: int) -> str:
    return name if len(name) <= length else name[: length - 1] + "…"


def _slug(name: str) -> str:
    """``name`` as part of a file name."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-.") or "unnamed"


# -- The page ----------------------------------------------------------------------------------------------------------


def _section(heading: str, content: str) -> str:
    return f"<section><h2>{html.escape(heading)}</h2>{content}</section>" if content else ""


def _grid(figures: Sequence[str]) -> str:
    present = "".join(figures)
    return f'<div class="grid">{present}</div>' if present else ""


def _cards(
    steps: Sequence[Mapping[str, Any]], epochs: Sequence[Mapping[str, Any]], scores: Mapping[str, Mapping[str, Any]]
) -> str:
    """The headline: one row of numbers for each subset, then one for the run."""
    rows: list[tuple[str, list[tuple[str, str]]]] = []
    for subset, of in scores.items():
        facts = [
            (name, _percent(of[key]))
            for key, name in (
                ("mean-iou", "mean IoU"),
                ("mean-foreground-dice", "mean foreground Dice"),
                ("accuracy", "accuracy"),
            )
            if key in of
        ]
        if _is_number(of.get("boundary-density")):
            facts.append(("boundary length per area", f"{of['boundary-density']:.2f} %"))
        if "images" in of:
            facts.append(("images", str(of["images"])))
        rows.append((subset, facts))
    run: list[tuple[str, str]] = []
    place, value = _series(epochs, "epoch", "val-mean-iou")
    if len(place):
        best = int(value.argmax())
        run.append((f"best val mean IoU (epoch {place[best]:.0f})", _percent(value[best])))
    for name, table in (("epochs", epochs), ("steps", steps)):
        if table:
            run.append((name, str(len(table))))
    last = next((row["loss"] for row in reversed(epochs or steps) if row.get("loss") is not None), None)
    if last is not None:  # NaN is shown as such
        run.append(("last loss", f"{last:.4g}"))
    timed = [row for row in epochs if _is_number(row.get("seconds"))]
    if timed:
        parts = _time_parts(timed)
        total = float(sum(part.sum() for part in parts.values()))
        run.append(("time", _duration(total)))
        if total > 0 and parts["solver"].any():
            run.append(("of it in the solver", _percent(parts["solver"].sum() / total)))
    rows.append(("run", run))
    return "".join(
        f'<h3>{html.escape(name)}</h3><div class="cards">'
        + "".join(f"<div><b>{html.escape(fact)}</b><span>{html.escape(label)}</span></div>" for label, fact in facts)
        + "</div>"
        for name, facts in rows
        if facts
    )


def _foreground_table(scores: Mapping[str, Mapping[str, Any]]) -> str:
    """Scores of phases that have no names; see `regloss.training.metrics.ForegroundScores`."""
    names = {"f-measure": "F-measure", "foreground-iou": "foreground IoU", "accuracy": "accuracy"}
    rules = {"best": "best match of each image", "border": "less of the border", "last": "all but phase 0"}
    rows = "".join(
        f"<tr><th>{html.escape(subset)}: {rules[rule]}</th>"
        + "".join(f"<td>{_percent(of['unsupervised'][rule][score])}</td>" for score in names)
        + "</tr>"
        for subset, of in scores.items()
        if "unsupervised" in of
        for rule in rules
    )
    if not rows:
        return ""
    head = "".join(f"<th>{name}</th>" for name in names.values())
    return (
        f'<div class="wide"><table><thead><tr><th>which phases are foreground</th>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div><p>Means over the images. The best match looks at the truth.</p>"
    )


def _class_table(scores: Mapping[str, Mapping[str, Any]], classes: Sequence[str], colors: Colors) -> str:
    columns: list[tuple[str, str, Mapping[str, Any]]] = []
    for subset, of in scores.items():
        for key, name in (("iou", "IoU"), ("dice", "Dice"), ("dice-per-group", "Dice, mean over groups")):
            if key in of:
                columns.append((subset, name, of[key]))
    if not columns:
        return ""
    head = "".join(f"<th>{html.escape(subset)}<br>{html.escape(name)}</th>" for subset, name, _ in columns)
    body = "".join(
        f"<tr><th>{_swatch(color)}{html.escape(name)}</th>"
        + "".join(f"<td>{_percent(values.get(name))}</td>" for _, _, values in columns)
        + "</tr>"
        for name, color in zip(classes, colors, strict=True)
    )
    return (
        f'<div class="wide"><table><thead><tr><th>class</th>{head}</tr></thead><tbody>{body}</tbody></table></div>'
        "<p>A class that occurs neither in the truth nor in the prediction has no score (n/a); means leave it out.</p>"
    )


def _group_tables(scores: Mapping[str, Mapping[str, Any]], classes: Sequence[str]) -> str:
    return "".join(_group_table(subset, of["groups"], classes) for subset, of in scores.items() if of.get("groups"))


def _group_table(subset: str, groups: Mapping[str, Mapping[str, Any]], classes: Sequence[str]) -> str:
    """Dice by group, the worst first, since those are what one looks for."""

    def mean(item: tuple[str, Mapping[str, Any]]) -> float:
        value = item[1].get("mean-foreground-dice")
        return float(value) if value is not None and _is_number(value) else math.inf

    rows = sorted(groups.items(), key=mean)[:_MOST_GROUPS]
    head = "".join(f"<th>{html.escape(name)}</th>" for name in classes)
    body = "".join(
        f"<tr><th>{html.escape(group)}</th><td>{_percent(of.get('mean-foreground-dice'))}</td>"
        + "".join(f"<td>{_percent(of['dice'].get(name))}</td>" for name in classes)
        + "</tr>"
        for group, of in rows
    )
    cut = f", the worst {len(rows)} of {len(groups)}" if len(rows) < len(groups) else f" ({len(rows)}), the worst first"
    return (
        f"<details><summary>Dice of the groups of {html.escape(subset)}{cut}</summary>"
        f'<div class="wide"><table><thead><tr><th>group</th><th>mean foreground</th>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div></details>"
    )


def _legend(classes: Sequence[str], colors: Colors) -> str:
    entries = "".join(
        f"<span>{_swatch(color)}{html.escape(name)}</span>" for name, color in zip(classes, colors, strict=True)
    )
    return f'<p class="legend">{entries}</p>'


def _swatch(color: Color) -> str:
    red, green, blue = color
    return f'<i class="swatch" style="background:rgb({red:d},{green:d},{blue:d})"></i>'


_STYLE = """
:root { color-scheme: light; }
body { margin: 0; background: #f3f4f6; color: #1f2937; font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 1240px; margin: 0 auto; padding: 24px; }
h1 { font-size: 26px; margin: 8px 0 20px; overflow-wrap: anywhere; }
h2 { font-size: 19px; margin: 0 0 12px; }
h3 { font-size: 12px; margin: 14px 0 6px; color: #6b7280; text-transform: uppercase; letter-spacing: .06em; }
section { background: #fff; border: 1px solid #e5e7eb; border-radius: 10px; padding: 20px; margin-bottom: 20px; }
.cards { display: flex; flex-wrap: wrap; gap: 10px; }
.cards div { background: #f9fafb; border: 1px solid #e5e7eb; border-radius: 8px; padding: 8px 16px; }
.cards b { display: block; font-size: 21px; font-variant-numeric: tabular-nums; }
.cards span { color: #6b7280; font-size: 13px; }
.grid { display: grid; grid-template-columns: repeat(auto-fit, minmax(440px, 1fr)); gap: 16px; }
.grid figure { max-width: 832px; }
figure { margin: 0 0 12px; }
figure img { max-width: 100%; height: auto; display: block; }
figcaption, section > p { color: #6b7280; font-size: 13px; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 14px; }
th, td { padding: 5px 14px; text-align: right; border-bottom: 1px solid #e5e7eb; white-space: nowrap; }
thead th { color: #6b7280; font-weight: 600; vertical-align: bottom; }
th:first-child { text-align: left; }
tbody th { font-weight: 500; }
tbody tr:hover { background: #f9fafb; }
details { margin-top: 12px; }
summary { cursor: pointer; font-weight: 600; }
.swatch { display: inline-block; width: 12px; height: 12px; margin-right: 7px; border: 1px solid #9ca3af;
  border-radius: 3px; vertical-align: -1px; }
.legend span { margin-right: 18px; white-space: nowrap; color: #1f2937; }
.text { white-space: pre-wrap; color: #1f2937; font-size: 15px; margin: 0; }
pre { background: #f9fafb; border: 1px solid #e5e7eb; border-radius: 8px; padding: 14px; overflow-x: auto;
  font: 13px/1.45 ui-monospace, monospace; margin: 0; }
@media print { body { background: #fff; } section { break-inside: avoid; } }
"""

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body><main>
<h1>{title}</h1>
{body}
</main></body>
</html>
"""
