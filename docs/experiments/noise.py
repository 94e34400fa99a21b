"""Cells with noise: trained without it and with it, with and without a layer, tested over 26 levels.

    python docs/experiments/noise.py train [--seeds 0 1 2]
    python docs/experiments/noise.py table
    python docs/experiments/noise.py plot

`train` goes on from layers.py's plain network of wbc2, once on images as they are and once on noisy ones, with every
layer and without; then it scores all of them on noisy test images, beside the runs. `table` gathers the scores in
noise.csv and prints tables, `plot` draws them. What is there already is skipped. Set REGLOSS_DATA first.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import drawing
import layers
from matplotlib.figure import Figure

from regloss.apps.compare import compare_runs, table_of

HERE = Path(__file__).resolve().parent
RUNS = Path("runs/noise")
LAYERS: dict[str, layers.Layer | None] = {"plain": None, "tv": layers.tv(1.0), "std": layers.std(1.0)}
# Levels of every training image; those of the published training are not known.
TRAINED = {"clean": "0", "noisy": "{gaussian = [0, 0.1], salt = 0.01, pepper = 0.01}"}
LEVELS = [f"gaussian:{level / 255:.4f}" for level in range(1, 26)]
POINTS = ("salt:0.01", "pepper:0.01")
COLORS = {"plain": "#d97706", "tv": "#2563eb", "std": "#059669"}
EPOCHS = 15


def folder(trained: str, method: str, seed: int) -> Path:
    return RUNS / f"{trained}-{method}-{seed}"


def train(seeds: Sequence[int]) -> None:
    for seed in seeds:
        start = RUNS / f"start-{seed}"
        layers.run_training(start, "wbc2", seed, [])
        for trained, noise in TRAINED.items():
            for method, layer in LAYERS.items():
                changes = [
                    f"training.start-from={start}",
                    f"training.epochs={EPOCHS}",
                    f"training.evaluate-every={EPOCHS}",
                    "training.optimizer.lr=1e-3",
                    f"data.augment.noise={noise}",
                ]
                changes += [] if layer is None else [f"layer={layers.toml(layer)}"]
                run = folder(trained, method, seed)
                layers.run_training(run, "wbc2", seed, changes)
                score(run)


def score(run: Path) -> None:
    """Write noise.json into the run's folder; every model sees the same noise."""
    if not (run / "noise.json").is_file():
        found = compare_runs([run], "test", [*LEVELS, *POINTS], ["seed=0"])
        (run / "noise.json").write_text(json.dumps(table_of(found), indent=1))


def rows_of() -> list[dict[str, Any]]:
    rows = []
    for trained in TRAINED:
        for method in LAYERS:
            for run in sorted(RUNS.glob(f"{trained}-{method}-*/noise.json")):
                about = {"trained": trained, "method": method, "seed": int(run.parent.name.rpartition("-")[2])}
                kept = ("noise", "level", "mean-iou", "accuracy", "boundary-density")
                rows += [{**about, **{key: row[key] for key in kept}} for row in json.loads(run.read_text())]
    return rows


def trained_runs(rows: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    """(trained, method) of what there is, in the order of the tables."""
    return list(dict.fromkeys((row["trained"], row["method"]) for row in rows))


def average(rows: Sequence[dict[str, Any]], key: str, **chosen: Any) -> float:
    return mean(row[key] for row in rows if all(row[name] == value for name, value in chosen.items()))


def table() -> None:
    rows = rows_of()
    with (HERE / "noise.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: f"{v:.5g}" if isinstance(v, float) else v for key, v in row.items()} for row in rows)
    kinds = [("none", 0.0)] + [("gaussian", round(level / 255, 4)) for level in (5, 13, 23)]
    kinds += [("salt", 0.01), ("pepper", 0.01)]
    for key, scale in (("mean-iou", 100), ("accuracy", 100), ("boundary-density", 1)):
        names = [kind if kind == "none" else f"{kind} {level:g}" for kind, level in kinds]
        print(f"\n{key}, mean over seeds\n\n| trained | method | {' | '.join(names)} |")
        print("|---" * (2 + len(kinds)) + "|")
        for trained, method in trained_runs(rows):
            of = [row for row in rows if (row["trained"], row["method"]) == (trained, method)]
            cells = [f"{scale * average(of, key, noise=kind, level=level):.2f}" for kind, level in kinds]
            print(f"| {trained} | {method} | {' | '.join(cells)} |")


def plot() -> None:
    """Mean IoU and boundary length over the standard deviation, mean over the seeds."""
    rows = [row for row in rows_of() if row["noise"] in ("none", "gaussian")]
    figure = Figure(figsize=(10.5, 3.6), layout="constrained")
    panels = {"mean-iou": "mean IoU", "boundary-density": "boundary length per area, percent"}
    for axes, (key, name) in zip(figure.subplots(1, 2), panels.items(), strict=True):
        for trained, method in trained_runs(rows):
            of = [row for row in rows if (row["trained"], row["method"]) == (trained, method)]
            levels = sorted({row["level"] for row in of})
            values = [average(of, key, level=level) for level in levels]
            style, label = "-" if trained == "clean" else "--", f"{method}, trained {trained}"
            axes.plot([255 * level for level in levels], values, style, color=COLORS[method], label=label)
        axes.set(xlabel="standard deviation of the noise, of 255", ylabel=name)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].legend(frameon=False, fontsize=8)
    drawing.save(figure, HERE / "noise.png", dpi=90)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("train", "table", "plot"))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    chosen = parser.parse_args()
    if chosen.what == "train":
        train(chosen.seeds)
    elif chosen.what == "table":
        table()
    else:
        plot()


if __name__ == "__main__":
    main()
