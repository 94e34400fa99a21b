"""Draws docs/pictures/demo.png from what ``regloss demo`` left: test images, their scribbles, two networks, the truth.

    regloss demo --output runs/demo
    python docs/pictures/make_demo_picture.py runs/demo docs/pictures/demo.png

The networks never saw these images, nor any scribble on them; the scribbles only show what is drawn on training images.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy import ndimage

from regloss import create
from regloss.dataset import IGNORE
from regloss.training.metrics import Scores
from regloss.training.model import Model, load_model, predict
from regloss.training.report import overlay

METHODS = {"partial-cross-entropy": "partial cross entropy", "trust-region": "trust region"}
SHOWN = ("coins-top-middle","coins-bottom-right", "tissue-centre","tissue-lower-middle", "coffee-bottom-left")
BACKGROUND, OBJECT = (37, 99, 235), (245, 158, 11)  # blue and amber: told apart by every kind of colour vision
CELL = 1.75  # inches


def outlined(image: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The image with the objects tinted and a line around them; (H, W, 3)."""
    picture = overlay(image, np.where(labels == 1, 1, IGNORE), (BACKGROUND, OBJECT), alpha=0.35)
    inside = labels == 1
    picture[inside & ~ndimage.binary_erosion(inside, iterations=2, border_value=1)] = OBJECT
    picture[labels == IGNORE] = picture[labels == IGNORE] // 2 + 112  # left out of the scores
    return picture


def centre_square(size: tuple[int, ...]) -> tuple[slice, slice]:
    """The largest square in the middle, so that all cells have one shape."""
    side = min(size)
    top, left = ((length - side) // 2 for length in size)
    return slice(top, top + side), slice(left, left + side)


def segment(model: Model, image: np.ndarray) -> np.ndarray:
    """Labels (H, W) of one image (C, H, W)."""
    labels = predict(model.segmenter, torch.from_numpy(image).unsqueeze(0)).argmax(1)[0]
    return np.asarray(labels.numpy(), dtype=np.uint8)


def mean_iou(labels: np.ndarray, truth: np.ndarray, classes: tuple[str, ...]) -> float:
    """Mean over the classes, in percent."""
    scores = Scores(classes)
    scores.update(torch.from_numpy(labels).long(), torch.from_numpy(truth).long(), "one")
    return 100 * float(scores.compute()["mean-iou"])


def draw(runs: Path, target: Path) -> None:
    """Make the picture."""
    models = {name: load_model(runs / name) for name in METHODS}
    dataset = create("dataset", "sample")
    titles = ("image", "scribbles", *METHODS.values(), "truth")
    figure = Figure(figsize=(CELL * len(titles), CELL * len(SHOWN) + 0.3), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0.02, hspace=0.02)
    axes = figure.subplots(len(SHOWN), len(titles))
    for row, sample_id in zip(axes, SHOWN, strict=True):
        sample = dataset.load(sample_id)
        square = centre_square(sample.image.shape[1:])
        image, scribble, truth = (array[..., *square] for array in (sample.image, sample.scribble, sample.label))
        panels = [
            (overlay(image, np.full_like(truth, IGNORE), (BACKGROUND, OBJECT)), ""),
            (overlay(0.55 * image + 0.45, scribble, (BACKGROUND, OBJECT), alpha=1.0), ""),
        ]
        for model in models.values():
            labels = segment(model, sample.image)
            panels.append((outlined(image, labels[square]), f"{mean_iou(labels, sample.label, dataset.classes):.0f}"))
        panels.append((outlined(image, truth), ""))
        for axis, (picture, score) in zip(row, panels, strict=True):
            axis.imshow(picture)
            axis.set_axis_off()
            if score:
                axis.text(0.96, 0.04, f"IoU {score} %", transform=axis.transAxes, ha="right", va="bottom", fontsize=8)
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize=10)
    figure.savefig(target, dpi=150, facecolor="white")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="?", default=Path("runs/demo"))
    parser.add_argument("target", type=Path, nargs="?", default=Path(__file__).with_name("demo.png"))
    arguments = parser.parse_args()
    draw(arguments.runs, arguments.target)
