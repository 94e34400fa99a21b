"""Published networks on street scenes, from random weights: what they learn in a few minutes.

    python docs/experiments/networks.py train [--networks deeplabv2 ...]
    python docs/experiments/networks.py table
    python docs/experiments/networks.py picture

`train` runs `regloss train` with networks-camvid.toml, skipping what is there already; `table` scores the networks on
the official validation part, before their training and after it, beside one class everywhere, writes networks.csv and
prints it; `picture` draws predictions. Set REGLOSS_DATA first.
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
from typing import Any

import acdc
import drawing
import numpy as np
import torch
from dense import CAMVID_TEST

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
COLUMNS = ("network", "parameters", "seconds", "untrained", "mean-iou", "accuracy")


def settings(network: str) -> list[str]:
    """Settings that replace those of networks-camvid.toml."""
    how = NETWORKS[network]
    return [
        f"output={RUNS / network}",
        f"network.name={network}",
        f"training.epochs={how.epochs}",
        f"training.optimizer.lr={how.rate}",
    ]


def train(networks: Sequence[str]) -> None:
    for network in networks:
        if (RUNS / network / "model.safetensors").is_file():
            continue
        command = [sys.executable, "-m", "regloss_cli.main", "train", str(CONFIG), "--quiet"]
        command += ["--resume"] if (RUNS / network).exists() else []
        for change in settings(network):
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
    print("| network | parameters | seconds | mean IoU untrained | trained | accuracy |\n|---|---|---|---|---|---|")
    found = one_class(dataset)
    print(f"| one class everywhere | | | | {100 * found['mean-iou']:.1f} | {100 * found['accuracy']:.1f} |")
    rows = []
    for network in NETWORKS:
        run = RUNS / network
        if not (run / "model.safetensors").is_file():
            continue
        config = read(CONFIG, settings(network))
        torch.manual_seed(config.seed)
        untrained = build_model(config, dataset.channels, len(dataset.classes)).eval()
        before = scores_of(dataset, partial(labelled, untrained))
        after = scores_of(dataset, partial(labelled, load_model(run).segmenter))
        with (run / "log" / "epochs.csv").open() as file:
            seconds = sum(float(row["train-seconds"]) for row in csv.DictReader(file) if row["train-seconds"])
        parameters = sum(values.numel() for values in untrained.parameters())
        row = (network, parameters, seconds, *(100 * value for value in (before["mean-iou"], after["mean-iou"])))
        rows.append(dict(zip(COLUMNS, (*row, 100 * after["accuracy"]), strict=True)))
        numbers = " | ".join(f"{rows[-1][key]:.1f}" for key in COLUMNS[3:])
        print(f"| {network} | {parameters / 1e6:.1f} million | {seconds:.0f} | {numbers} |", flush=True)
    acdc.write(acdc.HERE / "networks.csv", rows)


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
    models = {network: load_model(RUNS / network).segmenter for network in NETWORKS}
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
    chosen = parser.parse_args()
    if chosen.what == "train":
        train(chosen.networks)
    elif chosen.what == "table":
        table()
    else:
        picture()


if __name__ == "__main__":
    main()
