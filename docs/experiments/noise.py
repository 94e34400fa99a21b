"""Cells with noise: trained without it and with it, with and without a layer, tested over 26 levels.

    python docs/experiments/noise.py train [--seeds 0 1 2] [--methods plain tv std smoothness tv-l1]
    python docs/experiments/noise.py table
    python docs/experiments/noise.py plot
    python docs/experiments/noise.py choose [--methods tv-l1]

`train` goes on from layers.py's plain network of wbc2, once on images as they are and once on noisy ones, with every
layer, with the smoothness loss, and without; then it scores all of them on noisy test images, beside the runs, and so
it does TV-L1 of what the plain networks predict. `table` gathers the scores in noise.csv and prints tables, `plot`
draws them. `choose` is how the weights of the smoothness loss and of TV-L1 came about, on the validation images. What
is there already is skipped. Set REGLOSS_DATA first.
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
import numpy as np
import torch
from matplotlib.figure import Figure

import regloss
from regloss.apps.compare import compare_runs, table_of
from regloss.apps.evaluate import evaluate_run
from regloss.apps.noise import Noise
from regloss.apps.post_process import PostProcess
from regloss.metrics.scores import Scores
from regloss.registry import create
from regloss.training.model import load_model, predict

HERE = Path(__file__).resolve().parent
RUNS = Path("runs/noise")
LAYERS: dict[str, layers.Layer] = {"tv": layers.tv(1.0), "std": layers.std(1.0)}
SMOOTHNESS, TV_L1 = 1.0, 1.0  # weights
TRAINED_METHODS = ("plain", *LAYERS, "smoothness")
METHODS = (*TRAINED_METHODS, "tv-l1")  # the last is post-processing, of the plain networks
# Levels of every training image; those of the published training are not known.
TRAINED = {"clean": "0", "noisy": "{gaussian = [0, 0.1], salt = 0.01, pepper = 0.01}"}
LEVELS = [f"gaussian:{level / 255:.4f}" for level in range(1, 26)]
POINTS = ("salt:0.01", "pepper:0.01")
COLORS = {"plain": "#d97706", "tv": "#2563eb", "std": "#059669", "smoothness": "#9333ea", "tv-l1": "#dc2626"}
EPOCHS = 15


def folder(trained: str, method: str, seed: int) -> Path:
    return RUNS / f"{trained}-{method}-{seed}"


def settings(method: str, noise: str, smoothness: float = SMOOTHNESS) -> list[str]:
    """Settings that replace those of layers-wbc2.toml."""
    changes = [
        f"training.epochs={EPOCHS}",
        f"training.evaluate-every={EPOCHS}",
        "training.optimizer.lr=1e-3",
        f"data.augment.noise={noise}",
    ]
    if method in LAYERS:
        changes.append(f"layer={layers.toml(LAYERS[method])}")
    if method == "smoothness":
        terms = ["cross-entropy", {"name": "smoothness", "weight": smoothness}]
        changes.append(f"loss.data-term={layers.toml(terms)}")
    return changes


def train(seeds: Sequence[int], methods: Sequence[str]) -> None:
    for seed in seeds:
        start = RUNS / f"start-{seed}"
        layers.run_training(start, "wbc2", seed, [])
        for trained, noise in TRAINED.items():
            for method in methods:
                run = folder(trained, method, seed)
                if method in TRAINED_METHODS:
                    layers.run_training(run, "wbc2", seed, [f"training.start-from={start}", *settings(method, noise)])
                    score(run)
                else:
                    score_tv_l1(folder(trained, "plain", seed), run)


def score(run: Path) -> None:
    """Write noise.json into the run's folder; every model sees the same noise."""
    if not (run / "noise.json").is_file():
        found = compare_runs([run], "test", [*LEVELS, *POINTS], ["seed=0"])
        (run / "noise.json").write_text(json.dumps(table_of(found), indent=1))


def score_tv_l1(plain: Path, output: Path) -> None:
    """Write noise.json into a folder: the scores of what becomes of the plain run's predictions."""
    if not (output / "noise.json").is_file():
        found = {kind: tv_l1_scores(plain, "test", TV_L1, kind) for kind in ("", *LEVELS, *POINTS)}
        output.mkdir(parents=True, exist_ok=True)
        rows = table_of({output.name: {f"test {kind}".strip(): scores for kind, scores in found.items()}})
        (output / "noise.json").write_text(json.dumps(rows, indent=1))


def tv_l1_scores(run: Path, subset: str, weight: float, kind: str = "") -> dict[str, Any]:
    """Scores of min |s - f|_1 + weight TV(s) for the labels f that a run predicts, on noisy images or on clean ones."""
    post_process = PostProcess(regloss.TotalVariation(weight), regloss.AlphaExpansion(), 0.0, "labels")
    model = load_model(run)
    dataset = create("dataset", model.config.data.dataset, **model.config.data.component_settings())
    scores = Scores(model.classes)
    for sample in map(dataset.load, dataset.ids(subset)):
        assert sample.label is not None
        values = Noise.parse(kind)(sample.image, sample.id, seed=0) if kind else sample.image
        image = torch.from_numpy(values)[None]
        labels = post_process(predict(model.segmenter, image), image).labels[0]
        scores.update(labels, torch.from_numpy(sample.label.astype(np.int64)), sample.id)
    return {**scores.compute(), "trimap": {}}


def choose(methods: Sequence[str]) -> None:
    """Scores on the validation images for several weights, of the networks of seed 0 that saw no noise."""
    print("| method | weight | mean-iou | boundary |\n|---|---|---|---|")
    start, plain = RUNS / "start-0", folder("clean", "plain", 0)
    print_choice("plain", 0, evaluate_run(plain, "val"))
    for weight in (0.1, 0.3, 1.0, 3.0) if "smoothness" in methods else ():
        run = RUNS / f"smoothness-{weight:g}"
        layers.run_training(run, "wbc2", 0, [f"training.start-from={start}", *settings("smoothness", "0", weight)])
        print_choice("smoothness", weight, evaluate_run(run, "val"))
    for weight in (0.1, 0.3, 0.5, 0.7, 1.0, 1.5, 3.0) if "tv-l1" in methods else ():
        print_choice("tv-l1", weight, tv_l1_scores(plain, "val", weight))


def print_choice(method: str, weight: float, found: dict[str, Any]) -> None:
    numbers = f"{100 * found['mean-iou']:.2f} | {found['boundary-density']:.2f}"
    print(f"| {method} | {weight:g} | {numbers} |", flush=True)


def rows_of() -> list[dict[str, Any]]:
    rows = []
    for trained in TRAINED:
        for method in METHODS:
            for run in sorted(RUNS.glob(f"{trained}-{method}-[0-9]*/noise.json")):
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
    figure = Figure(figsize=(10.5, 4.2), layout="constrained")
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
    figure.legend(
        *figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False, fontsize=8
    )
    drawing.save(figure, HERE / "noise.png", dpi=90)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("train", "table", "plot", "choose"))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    if chosen.what == "train":
        train(chosen.seeds, chosen.methods)
    elif chosen.what == "choose":
        choose(chosen.methods)
    elif chosen.what == "table":
        table()
    else:
        plot()


if __name__ == "__main__":
    main()
