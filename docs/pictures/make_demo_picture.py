"""Draws docs/pictures/demo.png from what the demonstration left: test images, two networks' segmentations, the truth.

    regloss demo --output runs/demo
    python docs/pictures/make_demo_picture.py runs/demo docs/pictures/demo.png

One test image of each kind is shown. The networks saw neither these images nor the scribbles on them, which only show
what is drawn on training images. The number is the mean IoU of the whole image.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from matplotlib.figure import Figure

from regloss import create
from regloss.metrics.scores import Scores
from regloss.report.overlays import outlined, overlay
from regloss.training.model import Model, load_model, predict

METHODS = {"partial-cross-entropy": "partial cross entropy", "trust-region": "trust region"}
SHOWN = ("coins-bottom-right", "tissue-centre", "coffee-bottom-left")
YELLOW, BLUE = (255, 225, 25), (37, 99, 235)  # told apart by every kind of colour vision
COLORS = ((0, 0, 0), YELLOW)  # of classes; black background stays image
CELL = 1.75  # inches

Labels = npt.NDArray[np.uint8]


def centre_square(size: tuple[int, ...]) -> tuple[slice, slice]:
    """The largest square in the middle, so that all cells have one shape."""
    side = min(size)
    top, left = ((length - side) // 2 for length in size)
    return slice(top, top + side), slice(left, left + side)


def segment(model: Model, image: npt.NDArray[np.float32]) -> Labels:
    """Labels (H, W) of one image (3, H, W)."""
    labels = predict(model.segmenter, torch.from_numpy(image).unsqueeze(0)).argmax(1)[0]
    return labels.numpy().astype(np.uint8)


def mean_iou(labels: Labels, truth: Labels, classes: tuple[str, ...]) -> float:
    """Mean IoU over the classes in percent."""
    scores = Scores(classes)
    scores.update(torch.from_numpy(labels).long(), torch.from_numpy(truth).long(), "this image")
    return 100 * float(scores.compute()["mean-iou"])


def draw(runs: Path, target: Path) -> None:
    """Make the picture of the runs below ``runs``."""
    models = {name: load_model(runs / name) for name in METHODS}
    dataset = create("dataset", "sample")
    titles = ("image", "scribbles", *METHODS.values(), "truth")
    figure = Figure(figsize=(CELL * len(titles), CELL * len(SHOWN) + 0.25), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0.01, hspace=0.01)  # type: ignore[union-attr, call-arg]
    axes = figure.subplots(len(SHOWN), len(titles))
    for row, sample_id in zip(axes, SHOWN, strict=True):
        sample = dataset.load(sample_id)
        square = centre_square(sample.label.shape)
        image = sample.image[(slice(None), *square)]
        pale = 0.5 * image + 0.5
        panels = [
            (outlined(image, np.zeros_like(sample.label[square]), COLORS), ""),
            (overlay(pale, sample.scribble[square], (BLUE, YELLOW), alpha=1.0), ""),
        ]
        for model in models.values():
            labels = segment(model, sample.image)
            score = f"{mean_iou(labels, sample.label, dataset.classes):.0f} %"
            panels.append((outlined(image, labels[square], COLORS), score))
        panels.append((outlined(image, sample.label[square], COLORS), ""))
        for axis, (picture, score) in zip(row, panels, strict=True):
            axis.imshow(picture)
            axis.set_axis_off()
            if score:
                box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 2.0}
                axis.text(0.96, 0.04, score, transform=axis.transAxes, ha="right", va="bottom", fontsize=9, bbox=box)
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize=10)
    figure.savefig(target, dpi=100, facecolor="white")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Draw the picture at the top of the README.")
    parser.add_argument("runs", type=Path, nargs="?", default=Path("runs/demo"))
    parser.add_argument("target", type=Path, nargs="?", default=Path(__file__).with_name("demo.png"))
    arguments = parser.parse_args()
    draw(arguments.runs, arguments.target)
