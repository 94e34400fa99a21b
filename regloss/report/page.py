"""The report of a training run: one HTML file with everything in it, and the same pictures as PNG files.

The page needs neither network nor scripts: pictures are embedded, text is escaped. What a run does not have (proposals,
labels, a validation set) leaves its part out.
"""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from regloss.errors import UsageError
from regloss.io.outputs import replace_file
from regloss.io.palettes import Color, Colors
from regloss.report.advice import Advice
from regloss.report.charts import (
    DPI,
    confusion_chart,
    energy_chart,
    example_figure,
    further_losses_chart,
    histogram_chart,
    learning_rate_chart,
    loss_chart,
    prediction_energy_chart,
    score_charts,
    time_chart,
    trimap_chart,
)
from regloss.report.examples import Example
from regloss.report.numbers import duration, is_number, left_out, percent, series, slug, time_parts

_MOST_GROUPS = 200  # rows; a table of every image of a large set would be most of the page


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
    advice: Sequence[Advice] = (),
    sections: Sequence[tuple[str, str]] = (),
) -> Path:
    """Write ``folder/report.html`` and its pictures ``folder/report/*.png``; files of these names are replaced.

    Args:
        folder: of the run; made if it does not exist.
        title: the page's heading.
        config_text: the configuration, shown as it is.
        steps: one row per optimizer step: ``step``, ``epoch``, ``learning-rate``, ``loss`` and the loss's terms
            under any other names.
        epochs: one row per epoch: ``epoch``, ``loss``, ``seconds`` and its parts ``train-seconds``,
            ``network-seconds`` (network inference for the proposals) and ``solver-seconds``;
            ``proposal-energy-before`` and ``-after`` (per pixel) where proposals were renewed; ``train-energy`` and
            ``val-energy`` of the predictions; and scores of any name that begins with ``val-`` or ``test-``. Columns
            may be missing, values may be NaN or None.
        scores: for each subset what `regloss.metrics.scores.Scores.compute` returns.
        classes: the K class names.
        colors: one RGB triple of 0..255 for each class.
        examples: images to show side by side with their labellings.
        advice: what looks bad and what to try; see `regloss.report.advice.advice`.
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
        figure.savefig(buffer, format="png", dpi=DPI, facecolor="white")
        replace_file(pictures / f"{name}.png", buffer.getvalue())
        encoded = base64.b64encode(buffer.getvalue()).decode("ascii")
        description = html.escape(name.replace("-", " "))
        return f'<figure><img alt="{description}" src="data:image/png;base64,{encoded}">{below}</figure>'

    curves = [
        picture("loss", loss_chart(steps, epochs), left_out(steps or epochs, "loss")),
        picture("further-losses", further_losses_chart(steps)),
        picture("learning-rate", learning_rate_chart(steps)),
        *(picture(name, figure) for name, figure in score_charts(epochs).items()),
        picture("energy", prediction_energy_chart(epochs)),
        picture("proposal-energy", energy_chart(epochs)),
        picture("time", time_chart(epochs)),
        picture("trimap", trimap_chart(scores)),
    ]
    histograms = [
        picture(f"histogram-{slug(name)}", histogram_chart(examples, name, classes))
        for name in ["image", *dict.fromkeys(name for example in examples for name in example.numbers)]
        if any(example.numbers for example in examples)
    ]
    matrices = [picture(f"confusion-{slug(name)}", confusion_chart(name, of, classes)) for name, of in scores.items()]
    shown = [
        name
        for name in ("scribble", "proposal", "prediction", "truth")
        if any(e.maps()[name] is not None for e in examples)
    ]
    overlays = [
        picture(f"example-{number:02d}-{slug(example.id)}", example_figure(example, shown, classes, colors))
        for number, example in enumerate(examples, 1)
    ]
    parts = [
        _section("Results", _cards(steps, epochs, scores)),
        _section("What to try", _advice_list(advice)),
        _section("Training", _grid(curves)),
        _section("Foreground, whatever the phases are called", _foreground_table(scores)),
        _section(
            "Scores by class", _class_table(scores, classes, colors) + _grid(matrices) + _group_tables(scores, classes)
        ),
        _section(
            "Examples",
            (_legend(classes, colors) + _shown_channels(examples) + "".join(overlays)) if overlays else "",
        ),
        _section("Values of the examples' pixels by predicted class", _grid(histograms)),
        *(_section(heading, content) for heading, content in sections),
        _section("Configuration", f"<pre>{html.escape(config_text)}</pre>" if config_text.strip() else ""),
    ]
    page = _PAGE.format(title=html.escape(title), style=_STYLE, body="\n".join(filter(None, parts)))
    target = folder / "report.html"
    replace_file(target, page.encode("utf-8"))
    return target


# -- The page ---------------------------------------------------------------------------------------------------------


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
            (name, percent(of[key]))
            for key, name in (
                ("mean-iou", "mean IoU"),
                ("mean-foreground-dice", "mean foreground Dice"),
                ("accuracy", "accuracy"),
            )
            if key in of
        ]
        if is_number(of.get("boundary-density")):
            facts.append(("boundary length per area", f"{of['boundary-density']:.2f} %"))
        if "images" in of:
            facts.append(("images", str(of["images"])))
        rows.append((subset, facts))
    run: list[tuple[str, str]] = []
    place, value = series(epochs, "epoch", "val-mean-iou")
    if len(place):
        best = int(value.argmax())
        run.append((f"best val mean IoU (epoch {place[best]:.0f})", percent(value[best])))
    for name, table in (("epochs", epochs), ("steps", steps)):
        if table:
            run.append((name, str(len(table))))
    last = next((row["loss"] for row in reversed(epochs or steps) if row.get("loss") is not None), None)
    if last is not None:  # NaN is shown as such
        run.append(("last loss", f"{last:.4g}"))
    timed = [row for row in epochs if is_number(row.get("seconds"))]
    if timed:
        parts = time_parts(timed)
        total = float(sum(part.sum() for part in parts.values()))
        run.append(("time", duration(total)))
        if total > 0 and parts["solver"].any():
            run.append(("of it in the solver", percent(parts["solver"].sum() / total)))
    rows.append(("run", run))
    return "".join(
        f'<h3>{html.escape(name)}</h3><div class="cards">'
        + "".join(f"<div><b>{html.escape(fact)}</b><span>{html.escape(label)}</span></div>" for label, fact in facts)
        + "</div>"
        for name, facts in rows
        if facts
    )


def _advice_list(advice: Sequence[Advice]) -> str:
    """What was found, and below it what to try."""
    entries = "".join(f"<li><b>{html.escape(each.found)}</b> {html.escape(each.remedy)}</li>" for each in advice)
    return f"<ul>{entries}</ul>" if entries else ""


def _foreground_table(scores: Mapping[str, Mapping[str, Any]]) -> str:
    """Scores of phases that have no names; see `regloss.metrics.foreground.ForegroundScores`."""
    names = {"f-measure": "F-measure", "foreground-iou": "foreground IoU", "accuracy": "accuracy"}
    rules = {"best": "best match of each image", "border": "less of the border", "last": "all but phase 0"}
    rows = "".join(
        f"<tr><th>{html.escape(subset)}: {rules[rule]}</th>"
        + "".join(f"<td>{percent(of['unsupervised'][rule][score])}</td>" for score in names)
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
        + "".join(f"<td>{percent(values.get(name))}</td>" for _, _, values in columns)
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
        return float(value) if value is not None and is_number(value) else math.inf

    rows = sorted(groups.items(), key=mean)[:_MOST_GROUPS]
    head = "".join(f"<th>{html.escape(name)}</th>" for name in classes)
    body = "".join(
        f"<tr><th>{html.escape(group)}</th><td>{percent(of.get('mean-foreground-dice'))}</td>"
        + "".join(f"<td>{percent(of['dice'].get(name))}</td>" for name in classes)
        + "</tr>"
        for group, of in rows
    )
    cut = f", the worst {len(rows)} of {len(groups)}" if len(rows) < len(groups) else f" ({len(rows)}), the worst first"
    return (
        f"<details><summary>Dice of the groups of {html.escape(subset)}{cut}</summary>"
        f'<div class="wide"><table><thead><tr><th>group</th><th>mean foreground</th>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div></details>"
    )


def _shown_channels(examples: Sequence[Example]) -> str:
    """A sentence on images that have other channels than grey or RGB."""
    counts = sorted({example.image.shape[0] for example in examples} - {1, 3})
    return f"<p>Of {counts[0]} channels the first is shown, in grey.</p>" if counts else ""


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
section > ul { margin: 0; padding-left: 20px; }
li { margin-bottom: 6px; }
li b { font-weight: 600; }
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
