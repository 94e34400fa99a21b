"""Trained models compared: the scores of several runs as one table and one chart.

Scores of a run are those of `regloss.apps.evaluate.evaluate_noisy`: on images as they are and with noise, over whole
images and within bands around true boundaries.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from regloss.apps.evaluate import evaluate_noisy
from regloss.apps.noise import Noise
from regloss.errors import UsageError
from regloss.training.model import load_model

Comparison = Mapping[str, Mapping[str, Mapping[str, Any]]]
"""Scores by run, then by subset and noise ("test", "test gaussian:0.1")."""

MEASURES = ("mean-iou", "mean-foreground-dice", "accuracy", "boundary-density", "energy")


def compare_runs(
    runs: Sequence[Path],
    subset: str,
    noise: Sequence[str | Noise] = (),
    changes: Sequence[str] = (),
    *,
    devices: int = 1,
    nodes: int = 1,
    callback: Callable[[str], object] | None = None,
) -> dict[str, dict[str, dict[str, Any]]]:
    """Scores of several runs by their names, those of the folders or, where they repeat, of the paths.

    Args:
        runs: output folders of trainings. All are opened before the first one is scored.
        subset: see `regloss.apps.evaluate.evaluate_run`.
        noise: see `evaluate_noisy`.
        changes: likewise, of every run; ``evaluation.trimap=[4, 8]`` scores bands.
        devices: see `evaluate_noisy`.
        nodes: likewise.
        callback: called with sentences on the data sets.

    Raises:
        UsageError: a run is given twice; and what `evaluate_noisy` raises.
    """
    names = [run.resolve().name for run in runs]
    if len(set(names)) < len(names):
        names = [str(run) for run in runs]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UsageError(f"The run {twice} is given twice.")
    for run in runs:
        load_model(run, changes)
    return {
        name: evaluate_noisy(run, subset, noise, changes, devices=devices, nodes=nodes, callback=callback)
        for name, run in zip(names, runs, strict=True)
    }


def parse_widths(text: str) -> list[int]:
    """Widths of bands from text.

    Raises:
        UsageError: they are not different positive whole numbers with commas between.

    >>> parse_widths("2, 4,8")
    [2, 4, 8]
    """
    parts = [part.strip() for part in text.split(",")]
    widths = [int(part) for part in parts if part.isdecimal()]
    if len(widths) < len(parts) or 0 in widths or len(set(widths)) < len(widths):
        raise UsageError(
            f"Widths of bands are different positive numbers of pixels, for example 2,4,8,16; got {text!r}."
        )
    return widths


def table_of(comparison: Comparison) -> list[dict[str, Any]]:
    """One row for each run, kind and level of noise, and band; ``trimap`` is its width, None for whole images.

    >>> bands = {"4": {"accuracy": 0.5, "mean-iou": 0.25, "pixels": 4}}
    >>> for row in table_of({"adm": {"test salt:0.01": {"accuracy": 0.9, "mean-iou": 0.8, "trimap": bands}}}):
    ...     print(row["run"], row["noise"], row["level"], row["trimap"], row["accuracy"])
    adm salt 0.01 None 0.9
    adm salt 0.01 4 0.5
    """
    rows = []
    for run, by_noise in comparison.items():
        for name, scores in by_noise.items():
            _, _, noisy = name.partition(" ")
            level = Noise.parse(noisy) if noisy else None
            about = {
                "run": run,
                "noise": "none" if level is None else level.kind,
                "level": 0.0 if level is None else level.level,
            }
            rows.append({**about, "trimap": None, **{key: scores.get(key) for key in MEASURES}})
            rows += [
                {**about, "trimap": int(width), **{key: band.get(key) for key in MEASURES}}
                for width, band in scores["trimap"].items()
            ]
    return rows


def as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as comma-separated values, with a line of names; what is None is left empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def draw_chart(comparison: Comparison, path: Path) -> None:
    """Write the chart of `regloss.report.charts.comparison_chart` to a new file, in the format of its suffix.

    Raises:
        UsageError: the scores hold neither bands nor noise, over which curves could be drawn.
    """
    from regloss.io.outputs import replacing
    from regloss.report.charts import DPI, comparison_chart

    figure = comparison_chart(table_of(comparison))
    if figure is None:
        raise UsageError(NO_CURVES)
    with replacing(path) as temporary:
        figure.savefig(temporary, format=path.suffix[1:].lower(), dpi=DPI, facecolor="white")


NO_CURVES = "A chart needs curves: over bands of two widths (--trimap 4,8), or over noise (--noise gaussian:0.1)."
FORMATS = (".png", ".svg", ".pdf")


def check_chart(path: Path, widths: Sequence[int], noise: Sequence[str]) -> None:
    """Make sure that a chart can be drawn into the new file ``path``, before anything is scored.

    Raises:
        UsageError: it exists, its folder does not, it has another suffix; or nothing is asked for that has curves.
    """
    from regloss.io.outputs import check_new_file

    if path.suffix.lower() not in FORMATS:
        raise UsageError(f"A chart is a file {', '.join(FORMATS[:-1])} or {FORMATS[-1]}; got {path}.")
    if len(widths) < 2 and not noise:
        raise UsageError(NO_CURVES)
    check_new_file(path)
