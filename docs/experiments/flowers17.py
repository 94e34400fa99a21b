"""Photographs of flowers, segmented without any label: deep Chan-Vese for the whole set, its ablations, and Chan-Vese.

    python docs/experiments/flowers17.py train   [--variants full no-invariance neither ...] [--seeds 0 1 2]
    python docs/experiments/flowers17.py table
    python docs/experiments/flowers17.py picture

`train` trains with the TOML files beside this page (flowers17.toml, flowers17-VARIANT.toml), and goes on with what was
interrupted. `table` scores the networks on the 128 test images, with methods for single images beside them, writes
flowers17.csv, where rows of runs that are not at hand stay, and prints means over the seeds; `picture` draws test
images, by the networks of seed 0. Set REGLOSS_DATA first; runs lie below runs/flowers17, or --runs. Labels are for
scores only.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import chan_vese
import numpy as np
import torch
from numpy.typing import NDArray
from seeds import mean_and_spread

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
SALIENCY = "saliency mask"
SINGLE = ("start", "chan-vese", "statistical", "skimage chan_vese", "skimage morphological")
SCORES = ("accuracy", "foreground-iou", "f-measure")
NUMBERS = (*(f"{rule}-{score}" for rule in RULES for score in SCORES), "val", "seconds", "training-seconds")
COLUMNS = ("method", "seed", *NUMBERS)
ORDER = (SALIENCY, *SINGLE[1:], *(f"deep, {variant}" for variant in VARIANTS))
SEEDS = (0, 1, 2)


def folder(runs: Path, variant: str, seed: int) -> Path:
    return runs / f"{variant}-{seed}"


def train(runs: Path, variants: Sequence[str], seeds: Sequence[int]) -> None:
    """One run after another, each by the command."""
    for seed, variant in itertools.product(seeds, variants):
        output = folder(runs, variant, seed)
        if (output / "report.html").is_file():
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


Rows = dict[tuple[str, str], dict[str, str]]  # by method and seed, which is empty for single images


def rows() -> Rows:
    """The rows of the table as it is."""
    if not TABLE.is_file():
        return {}
    with TABLE.open(newline="", encoding="utf-8") as file:
        return {(row["method"], row["seed"]): row for row in csv.DictReader(file)}


def scored(labels: Sequence[NDArray[np.int64]], samples: Sequence[Sample], **more: float) -> dict[str, str]:
    """Numbers of a row but those in ``more``, and these."""
    scores = ForegroundScores(2)
    for sample, phases in zip(samples, labels, strict=True):
        scores.update(torch.from_numpy(phases), torch.from_numpy(sample.label.astype(np.int64)), sample.id)
    result = scores.compute()
    values = {f"{rule}-{score}": result[rule][score] for rule in RULES for score in SCORES}
    return {key: f"{value:.4f}" for key, value in {**values, **more}.items()}


def table(runs: Path) -> None:
    """Scores on the test images."""
    samples = test_samples()
    found = rows()
    for name in SINGLE:
        labels, seconds = by_method(name, samples)
        title = SALIENCY if name == "start" else name
        found[title, ""] = {"method": title, "seed": "", **scored(labels, samples, seconds=seconds)}
    for variant, seed in itertools.product(VARIANTS, SEEDS):
        run = folder(runs, variant, seed)
        if (run / "model.safetensors").is_file():
            labels, seconds = by_network(run, samples)
            epochs = CsvLog(run / "log" / "epochs.csv").rows
            more = {"val": epochs[-1]["val-foreground-iou-last"], "seconds": seconds}
            more["training-seconds"] = sum(row["train-seconds"] for row in epochs)
            about = {"method": f"deep, {variant}", "seed": str(seed)}
            found[f"deep, {variant}", str(seed)] = {**about, **scored(labels, samples, **more)}
    with TABLE.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(found[key] for key in sorted(found, key=lambda key: (ORDER.index(key[0]), key[1])))
    print(f"{len(samples)} test images\n")
    shown = [*(f"last-{score}" for score in SCORES), "val", "seconds"]
    print(f"| method | seeds | {' | '.join(shown)} |\n|{'---|' * (2 + len(shown))}")
    for method in ORDER:
        if of := [row for (name, _), row in found.items() if name == method]:
            print(
                f"| {method} | {' '.join(row['seed'] for row in of)} | {' | '.join(cell(of, key) for key in shown)} |"
            )


def cell(of: Sequence[dict[str, str]], key: str) -> str:
    """Mean and standard deviation over the seeds."""
    values = [float(row[key]) for row in of if row.get(key)]
    return mean_and_spread(values, 3) if values else ""


def picture(runs: Path, count: int = 12) -> None:
    """Evenly spaced test images, by every method."""
    import drawing
    from matplotlib.figure import Figure

    samples = test_samples()
    samples = [samples[place] for place in np.linspace(0, len(samples) - 1, count).round().astype(int)]
    found = {SALIENCY if name == "start" else name: by_method(name, samples)[0] for name in SINGLE}
    for variant in VARIANTS:
        if ((run := folder(runs, variant, SEEDS[0])) / "model.safetensors").is_file():
            found[f"deep, {variant}"] = by_network(run, samples)[0]
    figure = Figure(figsize=(1.15 * (2 + len(found)), 1.15 * count), layout="constrained")
    grid = figure.subplots(count, 2 + len(found), squeeze=False)
    for number, (line, sample) in enumerate(zip(grid, samples, strict=True)):
        line[0].imshow(sample.image.transpose(1, 2, 0))
        line[1].imshow(sample.label == 1, cmap="gray", vmin=0, vmax=1)
        for axes, labels in zip(line[2:], found.values(), strict=True):
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
    parser.add_argument("--variants", nargs="+", choices=tuple(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--seeds", nargs="+", type=int, choices=SEEDS, default=list(SEEDS))
    parser.add_argument("--runs", type=Path, default=Path("runs/flowers17"))
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    if chosen.what == "train":
        train(chosen.runs, chosen.variants, chosen.seeds)
    elif chosen.what == "table":
        table(chosen.runs)
    else:
        picture(chosen.runs)


if __name__ == "__main__":
    main()
