"""Published networks on street scenes, from random weights: what they learn in a few minutes.

    python docs/experiments/networks.py train [--networks deeplabv2 ...] [--seeds 0 1 2]
    python docs/experiments/networks.py table
    python docs/experiments/networks.py picture

`train` runs `regloss train` with networks-camvid.toml, skipping what is there already; `table` scores the networks on
the official validation part, before their training and after it, beside one class everywhere, writes networks.csv and
prints means and standard deviations over the seeds; `picture` draws predictions of seed 0. Set REGLOSS_DATA first.
"""

from __future__ import annotations

import argparse
import csv
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import acdc
import drawing
import numpy as np
import torch
from dense import CAMVID_TEST
from seeds import mean_and_spread

from regloss.dataset import IGNORE, Dataset
from regloss.metrics.scores import Scores
from regloss.registry import create
from regloss.report.overlays import outlined
from regloss.training.config import read
from regloss.training.model import SegmentationModel, build_model, load_model, predict

CONFIG = acdc.HERE / "networks-camvid.toml"
RUNS = Path("runs/networks")


@dataclass(frozen=True)
class Trained:
    """How a network is trained; residual networks with batch norm take larger steps."""

    epochs: int
    rate: float


NETWORKS = {
    "deeplab-largefov": Trained(3, 1e-4),
    "deeplab-msc-largefov": Trained(3, 1e-4),
    "deeplabv2": Trained(2, 1e-3),
}
SEEDS = (0, 1, 2)
SCORES = ("untrained", "mean-iou", "accuracy")
COLUMNS = ("network", "seed", "parameters", "seconds", *SCORES)


def folder(network: str, seed: int) -> Path:
    return RUNS / f"{network}-{seed}"


def settings(network: str, seed: int) -> list[str]:
    """Settings that replace those of networks-camvid.toml."""
    how = NETWORKS[network]
    return [
        f"seed={seed}",
        f"output={folder(network, seed)}",
        f"network.name={network}",
        f"training.epochs={how.epochs}",
        f"training.optimizer.lr={how.rate}",
    ]


def train(networks: Sequence[str], seeds: Sequence[int]) -> None:
    for seed in seeds:
        for network in networks:
            run = folder(network, seed)
            if (run / "model.safetensors").is_file():
                continue
            command = [sys.executable, "-m", "regloss_cli.main", "train", str(CONFIG), "--quiet"]
            command += ["--resume"] if run.exists() else []
            for change in settings(network, seed):
                command += ["--set", change]
            subprocess.run(command, check=True)


def test_images() -> Dataset:
    data = read(CONFIG, CAMVID_TEST).data
    return create("dataset", data.dataset, **data.component_settings())


def scores_of(dataset: Dataset, labels_of: Callable[[torch.Tensor], torch.Tensor]) -> dict[str, Any]:
    """Scores on all images of labels (H, W) that a function gives for an image (1, C, H, W)."""
    scores = Scores(dataset.classes)
    for sample in map(dataset.load, dataset.ids("test")):
        assert sample.label is not None
        labels = labels_of(torch.from_numpy(sample.image)[None])
        scores.update(labels, torch.from_numpy(sample.label.astype(np.int64)), sample.id)
    return scores.compute()


def labelled(model: SegmentationModel, image: torch.Tensor) -> torch.Tensor:
    return predict(model, image).argmax(1)[0]


def table() -> None:
    dataset = test_images()
    rows = [row for network in NETWORKS for seed in SEEDS if (row := scored(dataset, network, seed)) is not None]
    acdc.write(acdc.HERE / "networks.csv", rows)
    print("| network | parameters | seconds | mean IoU untrained | trained | accuracy |\n|---|---|---|---|---|---|")
    found = one_class(dataset)
    print(f"| one class everywhere | | | | {100 * found['mean-iou']:.1f} | {100 * found['accuracy']:.1f} |")
    for network in NETWORKS:
        if of := [row for row in rows if row["network"] == network]:
            cells = [f"{of[0]['parameters'] / 1e6:.1f} million", f"{mean(row['seconds'] for row in of):.0f}"]
            cells += [mean_and_spread([row[key] for row in of], 1) for key in SCORES]
            print(f"| {network} | {' | '.join(cells)} |")


def scored(dataset: Dataset, network: str, seed: int) -> dict[str, Any] | None:
    """A row of networks.csv; None where the run is not finished."""
    run = folder(network, seed)
    if not (run / "model.safetensors").is_file():
        return None
    config = read(CONFIG, settings(network, seed))
    torch.manual_seed(config.seed)
    untrained = build_model(config, dataset.channels, len(dataset.classes)).eval()
    before = scores_of(dataset, partial(labelled, untrained))
    after = scores_of(dataset, partial(labelled, load_model(run).segmenter))
    with (run / "log" / "epochs.csv").open() as file:
        seconds = sum(float(row["train-seconds"]) for row in csv.DictReader(file) if row["train-seconds"])
    parameters = sum(values.numel() for values in untrained.parameters())
    scores = (100 * value for value in (before["mean-iou"], after["mean-iou"], after["accuracy"]))
    return dict(zip(COLUMNS, (network, seed, parameters, seconds, *scores), strict=True))


def one_class(dataset: Dataset) -> dict[str, Any]:
    """Scores of the class that most test pixels have, everywhere."""
    counts = np.zeros(len(dataset.classes), dtype=np.int64)
    for sample in map(dataset.load, dataset.ids("test")):
        assert sample.label is not None
        counts += np.bincount(sample.label[sample.label != IGNORE], minlength=len(counts))
    most = int(counts.argmax())
    return scores_of(dataset, lambda image: torch.full(image.shape[-2:], most))


def picture() -> None:
    from matplotlib.figure import Figure

    dataset = test_images()
    models = {network: load_model(folder(network, SEEDS[0])).segmenter for network in NETWORKS}
    ids = dataset.ids("test")
    chosen = [ids[len(ids) * place // 6] for place in (1, 3, 5)]
    titles = ["image", *models, "truth"]
    figure = Figure(figsize=(2 * len(titles), 1.75 * len(chosen)), layout="constrained")
    for row, sample_id in zip(figure.subplots(len(chosen), len(titles)), chosen, strict=True):
        sample = dataset.load(sample_id)
        assert sample.label is not None
        image = torch.from_numpy(sample.image)[None]
        found = [labelled(model, image).numpy().astype("uint8") for model in models.values()]
        panels = [sample.image.transpose(1, 2, 0)]
        panels += [outlined(sample.image, labels, dataset.colors) for labels in (*found, sample.label)]
        for axis, title, panel in zip(row, titles, panels, strict=True):
            axis.imshow(panel)
            axis.set_axis_off()
            if sample_id == chosen[0]:
                axis.set_title(title, fontsize=10)
    drawing.save(figure, acdc.HERE / "networks.png", dpi=90)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("train", "table", "picture"))
    parser.add_argument("--networks", nargs="+", choices=tuple(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--seeds", nargs="+", type=int, choices=SEEDS, default=list(SEEDS))
    chosen = parser.parse_args()
    if chosen.what == "train":
        train(chosen.networks, chosen.seeds)
    elif chosen.what == "table":
        table()
    else:
        picture()


if __name__ == "__main__":
    main()
