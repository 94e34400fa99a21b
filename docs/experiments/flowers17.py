"""Photographs of flowers, segmented without any label: deep Chan-Vese for the whole set, its ablations, and Chan-Vese.

    python docs/experiments/flowers17.py train   [--variant full no-invariance no-conservation neither ...] [--seed 0]
    python docs/experiments/flowers17.py table
    python docs/experiments/flowers17.py picture

`train` trains with the TOML files beside this page (flowers17.toml, flowers17-VARIANT.toml), and goes on with what was
interrupted. `table` scores them on the 128 test images, with methods for single images beside them, writes
flowers17.csv, where rows of runs that are not at hand stay, and prints a table; `picture` draws test images. Set
REGLOSS_DATA first; runs lie below runs/flowers17, or --runs, which another seed needs. Labels are for scores only.
"""

from __future__ import annotations

import argparse
import csv
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import chan_vese
import numpy as np
import torch
from numpy.typing import NDArray

from regloss.dataset import Sample
from regloss.metrics.foreground import RULES, ForegroundScores
from regloss.registry import create
from regloss.training.logs import CsvLog
from regloss.training.model import load_model, predict
from regloss_plugins.segmenters.saliency import phases_by_saliency

HERE = Path(__file__).resolve().parent
TABLE = HERE / "flowers17.csv"
VARIANTS = {
    "full": HERE / "flowers17.toml",
    "no-invariance": HERE / "flowers17-no-invariance.toml",
    "no-conservation": HERE / "flowers17-no-conservation.toml",
    "neither": HERE / "flowers17-neither.toml",
    "turns": HERE / "flowers17-turns.toml",
    "start": HERE / "flowers17-start.toml",
}
SINGLE = ("start", "chan-vese", "statistical", "skimage chan_vese", "skimage morphological")
SCORES = ("accuracy", "foreground-iou", "f-measure")


def train(runs: Path, variants: Sequence[str], seed: int) -> None:
    """One run after another, each by the command."""
    for variant in variants:
        output = runs / variant
        if (output / "report.html").is_file():
            print(f"{variant}: is there already", flush=True)
            continue
        command = [sys.executable, "-m", "regloss_cli.main", "train", str(VARIANTS[variant]), "--quiet", "--resume"]
        subprocess.run([*command, "--set", f"output={output}", "--set", f"seed={seed}"], check=True)


def test_samples() -> list[Sample]:
    """The test images with their labels, as the configuration reads them."""
    from regloss.training.config import read

    data = read(VARIANTS["full"]).data
    dataset = create("dataset", data.dataset, **data.component_settings())
    return [dataset.load(sample_id) for sample_id in dataset.ids("test")]


def by_network(run: Path, samples: Sequence[Sample]) -> tuple[list[NDArray[np.int64]], float]:
    """Labels of every image, and processor seconds an image."""
    segmenter = load_model(run).segmenter
    images = [torch.from_numpy(sample.image).unsqueeze(0) for sample in samples]
    predict(segmenter, images[0])
    began = time.process_time()
    found = [predict(segmenter, image).argmax(1)[0].numpy() for image in images]
    return found, (time.process_time() - began) / len(images)


def by_method(name: str, samples: Sequence[Sample]) -> tuple[list[NDArray[np.int64]], float]:
    """Likewise for a method on single images, from the saliency mask."""
    run = chan_vese.METHODS[name]
    pictures = [sample.image.transpose(1, 2, 0).astype(np.float64) for sample in samples]
    starts = [phases_by_saliency(torch.from_numpy(sample.image).unsqueeze(0))[0].numpy() for sample in samples]
    run(pictures[0], starts[0])
    began = time.process_time()
    found = [run(picture, start) for picture, start in zip(pictures, starts, strict=True)]
    return found, (time.process_time() - began) / len(samples)


def everything(runs: Path, samples: Sequence[Sample]) -> dict[str, tuple[list[NDArray[np.int64]], float, float]]:
    """Labels, seconds an image, and seconds of training, by method."""
    found = {{"start": "saliency mask"}.get(name, name): (*by_method(name, samples), float("nan")) for name in SINGLE}
    for variant in VARIANTS:
        run = runs / variant
        if (run / "model.safetensors").is_file():
            epochs = CsvLog(run / "log" / "epochs.csv").rows
            found[f"deep, {variant}"] = (*by_network(run, samples), sum(row["train-seconds"] for row in epochs))
    return found


def rows_before() -> dict[str, list[str]]:
    """The rows of the table as it is, by method."""
    if not TABLE.is_file():
        return {}
    with TABLE.open(newline="", encoding="utf-8") as file:
        return {row[0]: row for row in csv.reader(file)}


def table(runs: Path) -> None:
    """Scores on the test images."""
    samples = test_samples()
    rules = ("best", "last")
    found = rows_before()
    for method, (labels, seconds, training) in everything(runs, samples).items():
        scores = ForegroundScores(2)
        for sample, phases in zip(samples, labels, strict=True):
            scores.update(torch.from_numpy(phases), torch.from_numpy(sample.label.astype(np.int64)), sample.id)
        result = scores.compute()
        values = [f"{result[rule][score]:.4f}" for rule in RULES for score in SCORES]
        found[method] = [method, *values, f"{seconds:.4f}", f"{training:.0f}"]
    order = ["saliency mask", *SINGLE[1:], *(f"deep, {variant}" for variant in VARIANTS)]
    rows = [found[method] for method in order if method in found]
    columns = ["method", *(f"{rule}-{score}" for rule in RULES for score in SCORES), "seconds", "training-seconds"]
    with TABLE.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([columns, *rows])
    print(f"{len(samples)} test images\n")
    print("| method | " + " | ".join(f"{score}, {rule}" for rule in rules for score in SCORES) + " | s / image |")
    print("|---|" + "---|" * (len(rules) * len(SCORES) + 1))
    for row in rows:
        cells = [f"{float(row[columns.index(f'{rule}-{score}')]):.3f}" for rule in rules for score in SCORES]
        print(f"| {row[0]} | " + " | ".join(cells) + f" | {row[columns.index('seconds')]} |")


def picture(runs: Path, count: int = 12) -> None:
    """Evenly spaced test images, by every method."""
    import drawing
    from matplotlib.figure import Figure

    samples = test_samples()
    samples = [samples[place] for place in np.linspace(0, len(samples) - 1, count).round().astype(int)]
    found = everything(runs, samples)
    figure = Figure(figsize=(1.15 * (2 + len(found)), 1.15 * count), layout="constrained")
    grid = figure.subplots(count, 2 + len(found), squeeze=False)
    for number, (line, sample) in enumerate(zip(grid, samples, strict=True)):
        line[0].imshow(sample.image.transpose(1, 2, 0))
        line[1].imshow(sample.label == 1, cmap="gray", vmin=0, vmax=1)
        for axes, (labels, *_) in zip(line[2:], found.values(), strict=True):
            axes.imshow(labels[number], cmap="gray", vmin=0, vmax=1)
    for axes in grid.flat:
        axes.set_xticks([])
        axes.set_yticks([])
    for axes, title in zip(grid[0], ["image", "truth", *found], strict=True):
        axes.set_title(title.replace(", ", ",\n").replace("skimage ", "skimage\n"), fontsize=6)
    drawing.save(figure, TABLE.with_suffix(".png"), dpi=100)
    print(f"wrote {TABLE.with_suffix('.png')}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("train", "table", "picture"))
    parser.add_argument("--variant", nargs="+", choices=tuple(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs", type=Path, default=Path("runs/flowers17"))
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    if chosen.what == "train":
        train(chosen.runs, chosen.variant, chosen.seed)
    elif chosen.what == "table":
        table(chosen.runs)
    else:
        picture(chosen.runs)


if __name__ == "__main__":
    main()
