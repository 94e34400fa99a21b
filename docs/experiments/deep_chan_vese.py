"""Deep Chan-Vese on single photographs: networks, numbers of noises, sizes, and the phases on the way.

    python docs/experiments/deep_chan_vese.py run [--what networks noises sizes]
    python docs/experiments/deep_chan_vese.py table
    python docs/experiments/deep_chan_vese.py picture

`run` segments evenly spaced horses from their saliency masks with one setting after another changed, one row of
deep_chan_vese.csv each, and keeps the masks below runs/deep-chan-vese (--masks); what has a row already is skipped.
`table` prints means. `picture` draws the masks by network, scores by number of noises and seconds by size, and two
images after 0 to 100 steps, with the start held at first and without. Set REGLOSS_DATA first.
"""

from __future__ import annotations

import argparse
import csv
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import chan_vese
import drawing
import numpy as np
import numpy.typing as npt
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from regloss.metrics.foreground import ForegroundScores
from regloss_plugins.segmenters.deep_chan_vese import DeepChanVese, deep_chan_vese
from regloss_plugins.segmenters.saliency import phases_by_saliency

HERE = Path(__file__).resolve().parent
TABLE = HERE / "deep_chan_vese.csv"
COLUMNS = ("what", "value", "image", "f-measure", "iou", "energy", "steps", "seconds")
DATA_SET = "weizmann_horse"
SNAPSHOTS = (0, 10, 20, 40, 100)  # as published
SIZES = (64, 96, 128, 192, 256)  # pixels along the longer side
IMAGES = {"networks": 3, "noises": 6, "sizes": 1}  # of those that are chosen, the first
DEFAULTS = {"networks": "plain", "noises": "1", "sizes": str(chan_vese.LONGEST)}  # one and the same run


def both(name: str, **settings: Any) -> dict[str, Any]:
    """The same network as encoder and as decoder."""
    network = {"name": name, "norm": "instance", **settings}
    return {"encoder": network, "decoder": network}


SETTINGS: dict[str, Mapping[str, dict[str, Any]]] = {
    "networks": {
        "plain": {},
        **{f"prior, depth {depth}": both("deep-image-prior", depth=depth, channels=16) for depth in (2, 3, 4, 5)},
        "U-Net": both("unet", levels=5, channels=8),
    },
    "noises": {str(count): {"samples": count} for count in (1, 2, 4, 8, 16)},
    "sizes": {str(longest): {} for longest in SIZES},
}


def read(path: Path, longest: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Image by box means and label by nearest pixels, the longer side of that many pixels."""
    picture = Image.open(path).convert("RGB")
    factor = longest / max(picture.size)
    size = (round(picture.width * factor), round(picture.height * factor))
    label = Image.open(path.parents[1] / "labels" / f"{path.stem}.png")
    image = np.asarray(picture.resize(size, Image.Resampling.BOX), dtype=np.float64) / 255
    return image, np.asarray(label.resize(size, Image.Resampling.NEAREST)).astype(np.int64)


def segment(image: npt.NDArray[np.float64], **settings: Any) -> DeepChanVese:
    """Two phases from the saliency mask."""
    given = chan_vese.tensor(image)
    return deep_chan_vese(given, start=phases_by_saliency(given), **settings)


# ---- what the command does


def rows() -> list[dict[str, str]]:
    """The rows of the table so far."""
    if not TABLE.is_file():
        return []
    with TABLE.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def files(what: str) -> list[Path]:
    """The images that a setting is tried on."""
    return chan_vese.chosen_images(DATA_SET, max(IMAGES.values()))[: IMAGES[what]]


def run(chosen: Sequence[str], masks: Path) -> None:
    """One row a setting and image."""
    for what in chosen:
        for value, settings in SETTINGS[what].items():
            for path in files(what):
                done = {(row["what"], row["value"], row["image"]): row for row in rows()}
                if (what, value, path.stem) in done:
                    continue
                same = [done.get((other, default, path.stem)) for other, default in DEFAULTS.items()]
                known = next((row for row in same if row is not None), None)
                if value == DEFAULTS[what] and known is not None:
                    append([what, value, *(known[column] for column in COLUMNS[2:])])
                    continue
                longest = int(value) if what == "sizes" else chan_vese.LONGEST
                append(scored(what, value, path, longest, settings, masks))


def scored(what: str, value: str, path: Path, longest: int, settings: Mapping[str, Any], masks: Path) -> list[str]:
    """Segment one image, keep its mask, and return its row."""
    image, label = read(path, longest)
    began = time.process_time()
    found = segment(image, **settings)
    seconds = time.process_time() - began
    scores = ForegroundScores(2)
    scores.update(found.labels[0], torch.from_numpy(label), path.stem)
    of = scores.compute()["last"]
    target = mask_file(masks, what, value, path.stem)
    target.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(found.labels[0].numpy().astype(np.uint8)).save(target)
    print(f"{what} {value} {path.stem}: F {of['f-measure']:.3f}, {seconds:.1f} s", flush=True)
    last = found.history[-1]
    numbers = (f"{of['f-measure']:.4f}", f"{of['foreground-iou']:.4f}", f"{last.energy:.4f}", str(last.step))
    return [what, value, path.stem, *numbers, f"{seconds:.2f}"]


def mask_file(masks: Path, what: str, value: str, stem: str) -> Path:
    """Where the mask of an image is kept; that of the default settings once."""
    return (masks / "default" if value == DEFAULTS[what] else masks / what / value) / f"{stem}.png"


def append(values: Sequence[str]) -> None:
    """One more row."""
    new = not TABLE.is_file()
    with TABLE.open("a", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        if new:
            writer.writerow(COLUMNS)
        writer.writerow(values)


def means() -> dict[str, dict[str, dict[str, float]]]:
    """Mean of every column, by what is changed and its value."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for what, values in SETTINGS.items():
        for value in values:
            of = [row for row in rows() if (row["what"], row["value"]) == (what, value)]
            if of:
                columns = {column: np.mean([float(row[column]) for row in of]) for column in COLUMNS[3:]}
                found.setdefault(what, {})[value] = {"images": len(of), **columns}
    return found


def table() -> None:
    """Means over the images."""
    for what, values in means().items():
        print(f"\n| {what} | images | F | IoU | energy | s |\n|---|---|---|---|---|---|")
        for value, of in values.items():
            print(
                f"| {value} | {of['images']:.0f} | {of['f-measure']:.3f} | {of['iou']:.3f} | {of['energy']:.2f} "
                f"| {of['seconds']:.1f} |"
            )


def outlined(axes: Axes, image: npt.NDArray[np.float64], labels: npt.NDArray[np.int64]) -> None:
    """The image, with the boundary of phase 1."""
    axes.imshow(image)
    if 0 < labels.sum() < labels.size:
        axes.contour(labels == 1, [0.5], colors="#ef4444", linewidths=1.2)
    axes.set_xticks([])
    axes.set_yticks([])


def networks_picture(masks: Path) -> None:
    """deep-chan-vese-networks.png: every image by every network."""
    values = list(SETTINGS["networks"])
    paths = files("networks")
    figure = Figure(figsize=(1.6 * (len(values) + 2), 1.2 * len(paths)), layout="constrained")
    grid = figure.subplots(len(paths), len(values) + 2, squeeze=False)
    for line, path in zip(grid, paths, strict=True):
        image, label = read(path, chan_vese.LONGEST)
        found = [np.asarray(Image.open(mask_file(masks, "networks", value, path.stem))) for value in values]
        start = phases_by_saliency(chan_vese.tensor(image))[0].numpy()
        for axes, labels in zip(line, (start, *found, label), strict=True):
            outlined(axes, image, labels)
    for axes, title in zip(grid[0], ("start", *values, "truth"), strict=True):
        axes.set_title(title, fontsize=9)
    drawing.save(figure, HERE / "deep-chan-vese-networks.png", dpi=85)


def curves_picture() -> None:
    """deep-chan-vese-curves.png: scores over the number of noises, seconds over sizes if there are any."""
    found = means()
    figure = Figure(figsize=(8, 2.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    counts = list(found["noises"])
    for column, name in (("f-measure", "F"), ("iou", "IoU")):
        scores = [found["noises"][count][column] for count in counts]
        left.plot([int(count) for count in counts], scores, "o-", label=name)
    left.set_xscale("log", base=2)
    left.set(xlabel="noises a step", ylim=(0, 1), xticks=[int(count) for count in counts], xticklabels=counts)
    left.legend(frameon=False)
    what, label = ("sizes", "pixels along the longer side") if "sizes" in found else ("noises", "noises a step")
    values = [int(value) for value in found[what]]
    right.plot(values, [of["seconds"] for of in found[what].values()], "o-")
    right.set(xlabel=label, ylabel="processor seconds", ylim=(0, None), xticks=values)
    drawing.save(figure, HERE / "deep-chan-vese-curves.png", dpi=85)


def steps_picture() -> None:
    """deep-chan-vese-steps.png: two images, each with the start held for 50 steps, and free from the first step on."""
    figure = Figure(figsize=(1.6 * (len(SNAPSHOTS) + 2), 5.4), layout="constrained")
    grid = figure.subplots(4, len(SNAPSHOTS) + 2)
    titles = [*(f"step {step}" for step in SNAPSHOTS), "last", "truth"]
    for number, path in enumerate(files("noises")[1:3]):
        image, label = read(path, chan_vese.LONGEST)
        for line, warm_up in zip(grid[2 * number : 2 * number + 2], (50, 0), strict=True):
            found = segment(image, snapshots=SNAPSHOTS, warm_up=warm_up, tolerance=0.0)
            panels = [labels[0].numpy() for labels in (*found.snapshots.values(), found.labels)]
            for axes, labels in zip(line, (*panels, label), strict=True):
                outlined(axes, image, labels)
            line[0].set_ylabel(f"held for {warm_up}", fontsize=9)
            of = [(panel[label == 1] == 1).sum() / max(1, ((panel == 1) | (label == 1)).sum()) for panel in panels]
            energies = {record.step: round(record.energy, 2) for record in found.history}
            print(path.stem, "held for", warm_up, "IoU", [round(float(iou), 3) for iou in of], "energy", energies)
    for axes, title in zip(grid[0], titles, strict=True):
        axes.set_title(title, fontsize=9)
    drawing.save(figure, HERE / "deep-chan-vese-steps.png", dpi=85)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("run", "table", "picture"))
    parser.add_argument("--what", nargs="+", choices=tuple(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--masks", type=Path, default=Path("runs/deep-chan-vese"))
    given = parser.parse_args()
    if given.command != "table" and "REGLOSS_DATA" not in os.environ:
        sys.exit("Set REGLOSS_DATA to the folder of the data sets.")
    torch.set_num_threads(1)
    if given.command == "run":
        run(given.what, given.masks)
    elif given.command == "table":
        table()
    else:
        networks_picture(given.masks)
        curves_picture()
        steps_picture()


if __name__ == "__main__":
    main()
