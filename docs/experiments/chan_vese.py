"""Chan-Vese and its relatives on single photographs, without any label: regions against masks drawn by people.

    python docs/experiments/chan_vese.py run     [--data-set weizmann_horse iseg] [--method NAME ...] [--images 30]
    python docs/experiments/chan_vese.py table
    python docs/experiments/chan_vese.py picture

`run` segments evenly spaced images of each set by every method, one row of chan_vese.csv for each, and keeps the masks
below runs/chan-vese (--masks); what has a row already is skipped, so it can be stopped and called again. `table` prints
means over the images that all methods have, `picture` draws the images on which the deep form comes out best, in the
middle and worst. Set REGLOSS_DATA first. Images are reduced to 128 pixels along their longer side.

All but the normalized cuts, which take no start, begin with the same mask: the border contrast of the image above
Otsu's threshold (`regloss.phases_by_saliency`). Which phase is the object is not known to any of them; three rules are
reported, see `regloss.metrics.foreground.ForegroundScores`.
"""

from __future__ import annotations

import argparse
import csv
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from skimage import graph
from skimage.segmentation import chan_vese, morphological_chan_vese, slic
from torch import Tensor

import regloss
from regloss.metrics.foreground import RULES, ForegroundScores
from regloss_plugins.segmenters.saliency import phases_by_saliency

HERE = Path(__file__).resolve().parent
TABLE = HERE / "chan_vese.csv"
DATA_SETS = ("weizmann_horse", "iseg")
LONGEST = 128
SCORES = ("f-measure", "foreground-iou", "accuracy")
COLUMNS = ("data-set", "image", "method", "phases", "seconds", *(f"{rule}-{s}" for rule in RULES for s in SCORES))

WITHOUT_START = ("skimage normalized cut", "normalized cut")

Rgb = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]
Method = Callable[[Rgb, Labels], Labels]

# ---- the methods: RGB image (H, W, 3) in [0, 1] and start (H, W) to phases (H, W)


def start_alone(image: Rgb, start: Labels) -> Labels:
    """The saliency mask as it is."""
    return start


def alternated(force: str, regularizer: dict[str, Any]) -> Method:
    """A region force and a regularizer, labels and statistics in turn, labels solved for globally."""

    def run(image: Rgb, start: Labels) -> Labels:
        found = regloss.alternate(force, regularizer, "alpha-expansion", tensor(image), torch.from_numpy(start)[None])
        return found.labels[0].numpy()

    return run


def deep(image: Rgb, start: Labels) -> Labels:
    """Networks fitted to the image."""
    from regloss_plugins.segmenters.deep_chan_vese import deep_chan_vese

    return deep_chan_vese(tensor(image), 2, start=torch.from_numpy(start)[None]).labels[0].numpy()


def scikit_image(image: Rgb, start: Labels) -> Labels:
    """The level-set flow of scikit-image, on the grey image; its own settings."""
    return chan_vese(grey(image), init_level_set=np.where(start == 1, 1.0, -1.0)).astype(np.int64)


def morphological(image: Rgb, start: Labels) -> Labels:
    """Morphological operators in place of the flow; 35 steps as in scikit-image's gallery."""
    return morphological_chan_vese(grey(image), num_iter=35, init_level_set=start.astype(np.int8)).astype(np.int64)


def normalized_cut(image: Rgb, start: Labels) -> Labels:
    """Normalized cut of 200 superpixels, at the lowest threshold of a list that cuts at all: two regions or a few."""
    superpixels = slic(image, n_segments=200, compactness=10, start_label=0)
    adjacency = graph.rag_mean_color(image, superpixels, mode="similarity", sigma=0.2)
    found = superpixels
    for threshold in np.geomspace(1e-3, 1.0, 13):
        # It draws a start vector for its eigenvalues, and relabels the graph in place.
        found = graph.cut_normalized(superpixels, adjacency, thresh=threshold, in_place=False, rng=0)
        if found.max() > found.min():
            break
    return np.unique(found, return_inverse=True)[1].reshape(found.shape).astype(np.int64)


def eigenvectors(image: Rgb, start: Labels) -> Labels:
    """Normalized cut of the pixels into two regions, by eigenvectors."""
    return regloss.NormalizedCutSegmenter()(tensor(image), phases=2).labels[0].numpy()


METHODS: dict[str, Method] = {
    "start": start_alone,
    "chan-vese": alternated("chan-vese", {"name": "tv", "weight": 0.1}),
    "statistical": alternated("gaussian", {"name": "grid-crf", "weight": 5.0}),
    "skimage chan_vese": scikit_image,
    "skimage morphological": morphological,
    "skimage normalized cut": normalized_cut,
    "normalized cut": eigenvectors,
    "deep chan-vese": deep,
}


def tensor(image: Rgb) -> Tensor:
    """(1, 3, H, W)."""
    return torch.from_numpy(image.astype(np.float32)).permute(2, 0, 1)[None]


def grey(image: Rgb) -> npt.NDArray[np.float64]:
    """Luminance (H, W)."""
    mixed: npt.NDArray[np.float64] = image @ np.array([0.299, 0.587, 0.114])
    return mixed


# ---- images


def chosen_images(name: str, count: int) -> list[Path]:
    """Evenly spaced images of a data set, by name."""
    files = sorted((Path(os.environ["REGLOSS_DATA"]) / name / "images").iterdir())
    places = np.unique(np.linspace(0, len(files) - 1, count).round().astype(int))
    return [files[place] for place in places]


def read(path: Path) -> tuple[Rgb, Labels]:
    """Image by box means and label by nearest pixels, at the reduced size."""
    picture = Image.open(path).convert("RGB")
    factor = min(1.0, LONGEST / max(picture.size))
    size = (round(picture.width * factor), round(picture.height * factor))
    label = Image.open(path.parents[1] / "labels" / f"{path.stem}.png")
    image = np.asarray(picture.resize(size, Image.Resampling.BOX), dtype=np.float64) / 255
    return image, np.asarray(label.resize(size, Image.Resampling.NEAREST)).astype(np.int64)


# ---- what the command does


def run(names: Sequence[str], methods: Sequence[str], count: int, masks: Path) -> None:
    """Segment and score; one row at a time."""
    done = {(row["data-set"], row["image"], row["method"]) for row in rows()}
    for method in methods:
        if method in ("chan-vese", "statistical"):  # compile before timing
            METHODS[method](np.random.default_rng(0).random((24, 24, 3)), np.pad(np.ones((8, 8), np.int64), 8))
        for name in names:
            for path in chosen_images(name, count):
                if (name, path.stem, method) in done:
                    continue
                image, label = read(path)
                start = phases_by_saliency(tensor(image))[0].numpy()
                began = time.process_time()
                found = METHODS[method](image, start)
                seconds = time.process_time() - began
                scores = ForegroundScores(max(2, int(found.max()) + 1))
                scores.update(torch.from_numpy(found), torch.from_numpy(label), path.stem)
                result = scores.compute()
                phases = len(np.unique(found))
                values = [f"{result[rule][score]:.4f}" for rule in RULES for score in SCORES]
                target = masks / name / method.replace(" ", "-") / f"{path.stem}.png"
                target.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(found.astype(np.uint8)).save(target)
                append([name, path.stem, method, str(phases), f"{seconds:.2f}", *values])
                print(f"{name} {path.stem} {method}: best IoU {result['best']['foreground-iou']:.3f}", flush=True)


def rows() -> list[dict[str, str]]:
    """The rows of the table so far."""
    if not TABLE.is_file():
        return []
    with TABLE.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def append(values: Sequence[str]) -> None:
    """One more row."""
    new = not TABLE.is_file()
    with TABLE.open("a", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        if new:
            writer.writerow(COLUMNS)
        writer.writerow(values)


def table() -> None:
    """Means over the images that every method has."""
    found = rows()
    for name in DATA_SETS:
        of_set = [row for row in found if row["data-set"] == name]
        methods = [method for method in METHODS if any(row["method"] == method for row in of_set)]
        if not methods:
            continue
        have = [{row["image"] for row in of_set if row["method"] == method} for method in methods]
        common = set.intersection(*have)
        print(f"\n{name}: means over {len(common)} images that all of these methods have\n")
        print(
            "| method | F, best | IoU, best | accuracy, best | F, border | IoU, border | F, last | IoU, last | CPU s |"
        )
        print("|---|---|---|---|---|---|---|---|---|")
        for method in methods:
            chosen = [row for row in of_set if row["method"] == method and row["image"] in common]
            columns = [f"best-{score}" for score in SCORES]
            columns += [f"{rule}-{score}" for rule in RULES[1:] for score in SCORES[:2]]
            means = [f"{np.mean([float(row[column]) for row in chosen]):.3f}" for column in columns]
            if method in WITHOUT_START:
                means[-2:] = ["-", "-"]  # its phases have no order
            seconds = np.mean([float(row["seconds"]) for row in chosen])
            print(f"| {method} | " + " | ".join(means) + f" | {seconds:.2f} |")


def picture(names: Sequence[str], masks: Path, each: int = 3) -> None:
    """Images on which the deep form is best, in the middle and worst, by every method."""
    import drawing
    from matplotlib.figure import Figure

    found = rows()
    shown: list[tuple[str, str]] = []
    for name in names:
        deep_rows = [row for row in found if row["data-set"] == name and row["method"] == "deep chan-vese"]
        deep_rows = deep_rows or [row for row in found if row["data-set"] == name and row["method"] == "chan-vese"]
        ranked = [row["image"] for row in sorted(deep_rows, key=lambda row: -float(row["best-foreground-iou"]))]
        middle = len(ranked) // 2
        shown += [(name, image) for image in (*ranked[:each], *ranked[middle : middle + each], *ranked[-each:])]
    methods = [method for method in METHODS if any(row["method"] == method for row in found)]
    scored = {(row["data-set"], row["image"], row["method"]): float(row["best-foreground-iou"]) for row in found}
    figure = Figure(figsize=(1.5 * (2 + len(methods)), 1.25 * len(shown)), layout="constrained")
    grid = figure.subplots(len(shown), 2 + len(methods), squeeze=False)
    for line, (name, stem) in zip(grid, shown, strict=True):
        (path,) = (Path(os.environ["REGLOSS_DATA"]) / name / "images").glob(f"{stem}.*")
        image, label = read(path)
        line[0].imshow(image)
        line[1].imshow(label == 1, cmap="gray", vmin=0, vmax=1)
        for axes, method in zip(line[2:], methods, strict=True):
            file = masks / name / method.replace(" ", "-") / f"{stem}.png"
            if file.is_file():
                phases = np.asarray(Image.open(file))
                axes.imshow(phases, cmap="gray", vmin=0, vmax=max(1, int(phases.max())))
                axes.set_xlabel(f"{scored[name, stem, method]:.2f}", fontsize=7, labelpad=1)
    for axes in grid.flat:
        axes.set_xticks([])
        axes.set_yticks([])
    for axes, title in zip(grid[0], ["image", "truth", *methods], strict=True):
        axes.set_title(title.replace("skimage ", "skimage\n"), fontsize=7)
    target = TABLE.with_suffix(".png")
    drawing.save(figure, target, dpi=80)
    print(f"wrote {target}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "table", "picture"))
    parser.add_argument("--data-set", nargs="+", choices=DATA_SETS, default=list(DATA_SETS))
    parser.add_argument("--method", nargs="+", choices=tuple(METHODS), default=list(METHODS))
    parser.add_argument("--images", type=int, default=30, help="of each data set")
    parser.add_argument("--masks", type=Path, default=Path("runs/chan-vese"))
    chosen = parser.parse_args()
    if "REGLOSS_DATA" not in os.environ:
        sys.exit("Set REGLOSS_DATA to the folder of the data sets.")
    torch.set_num_threads(1)
    if chosen.what == "run":
        run(chosen.data_set, chosen.method, chosen.images, chosen.masks)
    elif chosen.what == "table":
        table()
    else:
        picture(chosen.data_set, chosen.masks)


if __name__ == "__main__":
    main()
