"""Segmentation from scribbles: regloss beside OpenCV's grabCut and scikit-image's random walker, all in one run.

    REGLOSS_DATA=.../data python tests/benchmarks/segment.py [--choose] [--slices 30] [--pictures FOLDER]

Photographs of $REGLOSS_DATA/iseg with the scribbles of two people, 68 pairs: mean and median intersection over union of
the object, and the median of CPU seconds of one call, on one thread, after a first one that does not count. A call
begins with the image as an array and ends with its labels. Pixels that the true labels leave open do not count.

The defaults of scribble-cut were chosen on one half of the photographs and are scored on the other: names in order, the
first, third, fifth ... are the first half, on which they were chosen; both halves hold two pairs of each photograph.
The halves are not equally hard, for any method, so both are shown. --choose repeats the choice on a grid of settings
about the defaults, for each half, and scores the one chosen on either half on the other.

Slices of $REGLOSS_DATA/acdc are grey, with four classes: Dice scores of the structures, of scribble-cut and of
graph-cut, which was the default before. Rivals that are not installed are left out by name
(pip install opencv-python-headless scikit-image).

grabCut: the scribbles are certain, all else probably background; five iterations, its default. Random walker: mode
"cg_j", beta 130, its default.
"""

from __future__ import annotations

import argparse
import importlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np
import torch

import regloss
from regloss.io.images import read_image
from regloss.io.labels import read_values
from regloss.report.overlays import outlined

Array = np.ndarray[Any, Any]
Method = Callable[[Array, Array], Array]
"""From an image (C, H, W) in [0, 1] and scribbles (H, W) uint8, 255 = none, to labels (H, W)."""


@dataclass(frozen=True)
class Pair:
    """An image with scribbles. ``half`` is 0 for the first, third, ... name."""

    name: str
    half: int
    image: Array
    scribbles: Array
    truth: Array


def pairs(folder: Path) -> Iterator[Pair]:
    """The photographs that have scribbles, with those of each person."""
    names = sorted(path.stem for path in (folder / "scribbles1").glob("*.png"))
    for number, name in enumerate(names):
        image = read_image(next((folder / "images").glob(f"{name}.*")), 3)
        truth = read_values(folder / "labels" / f"{name}.png")
        for person in ("scribbles1", "scribbles2"):
            scribbles = read_values(folder / person / f"{name}.png")
            yield Pair(f"{name} {person}", number % 2, image, scribbles, truth)


def slices(folder: Path, count: int) -> Iterator[Pair]:
    """As many slices with scribbles of several classes, at even distances among their names."""
    names = sorted(path.stem for path in (folder / "scribbles").glob("*.png"))
    for name in names[:: max(1, len(names) // count)][:count]:
        scribbles = read_values(folder / "scribbles" / f"{name}.png")
        if len(np.unique(scribbles[scribbles != 255])) > 1:
            image = read_image(folder / "images" / f"{name}.png", 1)
            yield Pair(name, 0, image, scribbles, read_values(folder / "labels" / f"{name}.png"))


def of_regloss(segmenter: regloss.Segmenter) -> Method:
    """A segmenter of regloss."""

    def method(image: Array, scribbles: Array) -> Array:
        given = torch.from_numpy(scribbles.astype(np.int64)).unsqueeze(0)
        return segmenter(torch.from_numpy(image).unsqueeze(0), scribbles=given).labels[0].numpy()

    return method


def grab_cut() -> Method:
    """OpenCV's."""
    cv2 = importlib.import_module("cv2")
    cv2.setNumThreads(1)

    def method(image: Array, scribbles: Array) -> Array:
        cv2.setRNGSeed(0)
        mask = np.full(scribbles.shape, cv2.GC_PR_BGD, np.uint8)
        mask[scribbles == 0], mask[scribbles == 1] = cv2.GC_BGD, cv2.GC_FGD
        pixels = np.ascontiguousarray((255 * image[::-1]).round().astype(np.uint8).transpose(1, 2, 0))
        models = np.zeros((1, 65)), np.zeros((1, 65))
        found, *_ = cv2.grabCut(pixels, mask, None, *models, 5, cv2.GC_INIT_WITH_MASK)
        return ((found == cv2.GC_FGD) | (found == cv2.GC_PR_FGD)).astype(np.int64)

    return method


def random_walker() -> Method:
    """scikit-image's."""
    segmentation = importlib.import_module("skimage.segmentation")

    def method(image: Array, scribbles: Array) -> Array:
        markers = np.where(scribbles == 255, 0, scribbles.astype(np.int64) + 1)
        return segmentation.random_walker(image, markers, mode="cg_j", channel_axis=0) - 1

    return method


RIVALS = {
    "OpenCV grabCut": ("opencv-python-headless", grab_cut),
    "scikit-image random walker": ("scikit-image", random_walker),
}


def methods() -> Iterator[tuple[str, Method]]:
    """What is compared."""
    yield "scribble-cut, the default", of_regloss(regloss.ScribbleCut())
    yield "  colours alone", of_regloss(regloss.ScribbleCut(place=0.0))
    yield "  two rounds", of_regloss(regloss.ScribbleCut(max_rounds=2))
    yield "graph-cut, the default before", of_regloss(regloss.GraphCut())
    for name, (package, make) in RIVALS.items():
        try:
            yield name, make()
        except ImportError:
            print(f"{name}: left out, it is not installed (pip install {package})")


def intersection_over_union(found: Array, truth: Array) -> float:
    """Of class 1, where the truth is known."""
    mine, right, known = found == 1, truth == 1, truth != 255
    union = ((mine | right) & known).sum()
    return float((mine & right & known).sum() / union) if union else 1.0


def dice(found: Array, truth: Array) -> list[float]:
    """Of each class of the truth but the background."""
    classes = [k for k in np.unique(truth) if k not in (0, 255)]
    return [float(2 * ((found == k) & (truth == k)).sum() / ((found == k).sum() + (truth == k).sum())) for k in classes]


def seconds_of(method: Method, pair: Pair) -> tuple[Array, float]:
    """Labels, and CPU seconds."""
    start = time.process_time()
    labels = method(pair.image, pair.scribbles)
    return labels, time.process_time() - start


def summary(values: list[float]) -> str:
    """Mean and median."""
    return f"{mean(values):6.3f} {median(values):6.3f}"


def compare_photographs(data: list[Pair], pictures: Path | None) -> None:
    """One line for each method."""
    print(f"{'IoU of the object: mean, median':34}{'chosen on':>14}{'reported on':>15}{'all':>14}  CPU s")
    for name, method in methods():
        method(data[0].image, data[0].scribbles)
        scores, seconds = [], []
        for pair in data:
            labels, taken = seconds_of(method, pair)
            scores.append(intersection_over_union(labels, pair.truth))
            seconds.append(taken)
            if pictures is not None:
                save(pictures / name.strip().replace(" ", "-"), pair, labels)
        halves = [[score for score, pair in zip(scores, data, strict=True) if pair.half == half] for half in (0, 1)]
        columns = [summary(halves[0]), summary(halves[1]), summary(scores)]
        print(f"{name:34} {columns[0]}  {columns[1]}  {columns[2]}  {median(seconds):5.3f}", flush=True)


def save(folder: Path, pair: Pair, labels: Array) -> None:
    """The image with the boundaries of the labels."""
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    colors = ((40, 90, 220), (230, 60, 40), (60, 170, 60), (240, 190, 30))
    picture = outlined(pair.image, labels.astype(np.uint8), colors)
    Image.fromarray(picture).save(folder / f"{pair.name.replace(' ', '-')}.png")


def compare_slices(data: list[Pair], pictures: Path | None) -> None:
    """Grey images with several classes, before and after."""
    print(f"\n{'Dice of the structures, ' + str(len(data)) + ' slices':34}{'mean':>7}{'median':>7}  CPU s")
    chosen: dict[str, regloss.Segmenter] = {
        "scribble-cut, the default": regloss.ScribbleCut(),
        "graph-cut, the default before": regloss.GraphCut(),
    }
    for name, segmenter in chosen.items():
        method = of_regloss(segmenter)
        method(data[0].image, data[0].scribbles)
        scores, seconds = [], []
        for pair in data:
            labels, taken = seconds_of(method, pair)
            scores += dice(labels, pair.truth)
            seconds.append(taken)
            if pictures is not None:
                save(pictures / f"{name.split(',')[0]}-slices", pair, labels)
        print(f"{name:34} {summary(scores)}  {median(seconds):5.3f}", flush=True)


def choose(data: list[Pair]) -> None:
    """The best of a grid on each half by the mean, and what it scores on the other."""
    grid = product((15.0, 30.0, 60.0), (0.04, 0.08, 0.16), (0.065, 0.13, 0.26))
    found = []
    for place, barrier, smoothness in grid:
        method = of_regloss(regloss.ScribbleCut(place=place, barrier=barrier, smoothness=smoothness))
        scores = [intersection_over_union(method(pair.image, pair.scribbles), pair.truth) for pair in data]
        halves = [[score for score, pair in zip(scores, data, strict=True) if pair.half == half] for half in (0, 1)]
        found.append((f"place={place:g},barrier={barrier:g},smoothness={smoothness:g}", halves))
        print(f"{found[-1][0]:42} {summary(halves[0])}  {summary(halves[1])}", flush=True)
    across: list[float] = []
    for half in (0, 1):
        name, halves = max(found, key=lambda row: mean(row[1][half]))
        across += halves[1 - half]
        which = ("first", "second")
        print(f"best on the {which[half]} half: {name}; on the {which[1 - half]} half {summary(halves[1 - half])}")
    print(f"both together, each image by settings chosen without it: {summary(across)}")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--choose", action="store_true", help="repeat the choice of the defaults instead")
    parser.add_argument("--slices", type=int, default=30, help="how many of acdc; 0 = none")
    parser.add_argument("--pictures", type=Path, help="folder for pictures of all results")
    options = parser.parse_args()
    torch.set_num_threads(1)
    root = Path(os.environ.get("REGLOSS_DATA", ""))
    if not (os.environ.get("REGLOSS_DATA") and (root / "iseg").is_dir()):
        raise SystemExit("Set REGLOSS_DATA to the folder that holds iseg and acdc.")
    data = list(pairs(root / "iseg"))
    if options.choose:
        choose(data)
        return
    compare_photographs(data, options.pictures)
    if options.slices and (root / "acdc").is_dir():
        compare_slices(list(slices(root / "acdc", options.slices)), options.pictures)


if __name__ == "__main__":
    main()
