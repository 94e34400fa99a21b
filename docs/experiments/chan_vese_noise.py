"""Chan-Vese, classic and deep, under heavy noise: standard deviations of 100 to 160 of 255 on five pictures.

    python docs/experiments/chan_vese_noise.py run [--sigma 100 130 160]
    python docs/experiments/chan_vese_noise.py table
    python docs/experiments/chan_vese_noise.py picture [--sigma 160]

The pictures have two regions: a silhouette, blobs, a head phantom, and two photographs of coins and of a cell, whose
regions are those that classic Chan-Vese finds without noise. They have at most 128 pixels along each side. After the
noise, values are scaled so that the 0.1 and 99.9 per cent quantiles become 0 and 1, and clipped. All methods start
from the same phases: k-means on the noisy picture smoothed by a Gaussian of 3 pixels. `run` writes chan_vese_noise.csv,
one row a picture, noise and method; what has a row already is skipped.
"""

from __future__ import annotations

import argparse
import csv
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import skimage.data
import torch
from PIL import Image
from scipy import ndimage
from torch import Tensor

import regloss

HERE = Path(__file__).resolve().parent
TABLE = HERE / "chan_vese_noise.csv"
SIGMAS = (100, 120, 130, 140, 160)
LONGEST = 128
SMOOTHING = 3.0  # pixels, of the picture that the start is found in
WEIGHTS = (0.01, 0.03, 0.1)  # of total variation in classic Chan-Vese
CRF_WEIGHTS = (0.5, 1.0, 2.0)  # of the grid CRF in the statistical model, in nats
COLUMNS = ("picture", "sigma", "method", "f-measure", "accuracy", "seconds")

Grey = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
Method = Callable[[Tensor, Tensor], Tensor]


# ---- the methods: noisy picture (1, 1, H, W) and start (1, H, W) to phases (1, H, W)


def classic(weight: float) -> Method:
    """Chan-Vese, labels and means in turn, labels solved for globally."""

    def run(image: Tensor, start: Tensor) -> Tensor:
        return regloss.alternate("chan-vese", {"name": "tv", "weight": weight}, "alpha-expansion", image, start).labels

    return run


def statistical(weight: float) -> Method:
    """Normal distributions of the values, likewise."""

    def run(image: Tensor, start: Tensor) -> Tensor:
        prior = {"name": "grid-crf", "weight": weight}
        return regloss.alternate("gaussian", prior, "alpha-expansion", image, start).labels

    return run


METHODS: dict[str, Method] = {
    "start": lambda image, start: start,
    **{f"chan-vese {weight:g}": classic(weight) for weight in WEIGHTS},
    **{f"statistical {weight:g}": statistical(weight) for weight in CRF_WEIGHTS},
    "deep chan-vese": lambda image, start: regloss.deep_chan_vese(image, start=start).labels,
}


# ---- pictures


def pictures() -> dict[str, tuple[Grey, Mask]]:
    """Picture in [0, 1] and its object, by name."""
    silhouette = reduced(~skimage.data.horse())
    blobs = reduced(skimage.data.binary_blobs(LONGEST, blob_size_fraction=0.25, volume_fraction=0.4, rng=3))
    found = {name: (0.2 + 0.6 * of, of > 0.5) for name, of in (("horse", silhouette), ("blobs", blobs))}
    head = reduced(skimage.data.shepp_logan_phantom())
    found["head"] = (head, head > 0.1)
    for name, photograph in (("coins", skimage.data.coins()[20:250, 150:380]), ("cell", skimage.data.cell())):
        small = reduced(photograph / 255)
        found[name] = (small, classic(0.1)(tensor(small), k_means(small))[0].numpy() == 1)
    return found


def reduced(values: npt.NDArray[Any]) -> Grey:
    """By box means to ``LONGEST`` pixels along the longer side."""
    picture = Image.fromarray(np.asarray(values, dtype=np.float32))
    factor = min(1.0, LONGEST / max(picture.size))
    size = (round(picture.width * factor), round(picture.height * factor))
    return np.asarray(picture.resize(size, Image.Resampling.BOX), dtype=np.float64)


def noisy(picture: Grey, sigma: float, seed: int) -> Grey:
    """With noise of ``sigma`` of 255, scaled to [0, 1]."""
    values = picture + sigma / 255 * np.random.default_rng(seed).standard_normal(picture.shape)
    low, high = np.quantile(values, [0.001, 0.999])
    return np.asarray(((values - low) / (high - low)).clip(0, 1))


def k_means(image: Grey) -> Tensor:
    """Phases (1, H, W) of its values, dark ones first."""
    return regloss.phases_by_color(tensor(image), 2)


def tensor(image: Grey) -> Tensor:
    """(1, 1, H, W)."""
    return torch.from_numpy(image.astype(np.float32))[None, None]


def examples(sigma: float) -> dict[str, tuple[Grey, Mask, Tensor]]:
    """Noisy picture, object and start, by name."""
    found = {}
    for seed, (name, (picture, mask)) in enumerate(pictures().items()):
        image = noisy(picture, sigma, seed)
        found[name] = (image, mask, k_means(ndimage.gaussian_filter(image, SMOOTHING)))
    return found


# ---- what the command does


def scores(found: Mask, truth: Mask) -> tuple[float, float]:
    """F-measure of the brighter phase, and accuracy; both 1 for a perfect mask."""
    hit = np.logical_and(found, truth).sum()
    return float(2 * hit / max(1, found.sum() + truth.sum())), float((found == truth).mean())


def rows() -> list[dict[str, str]]:
    """The rows of the table so far."""
    if not TABLE.is_file():
        return []
    with TABLE.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def run(sigmas: Sequence[int]) -> None:
    """One row a picture, noise and method."""
    done = {(row["picture"], row["sigma"], row["method"]) for row in rows()}
    for sigma in sigmas:
        for name, (image, truth, start) in examples(sigma).items():
            for method, segment in METHODS.items():
                if (name, str(sigma), method) in done:
                    continue
                began = time.process_time()
                found = segment(tensor(image), start)[0].numpy() == 1
                seconds = time.process_time() - began
                f_measure, accuracy = scores(found, truth)
                new = not TABLE.is_file()
                with TABLE.open("a", newline="", encoding="utf-8") as file:
                    writer = csv.writer(file)
                    if new:
                        writer.writerow(COLUMNS)
                    writer.writerow([name, sigma, method, f"{f_measure:.4f}", f"{accuracy:.4f}", f"{seconds:.2f}"])
                print(f"{name} {sigma} {method}: F {f_measure:.3f}, {seconds:.1f} s", flush=True)


def table() -> None:
    """Mean F-measure over the pictures, by method and noise."""
    found = rows()
    sigmas = sorted({int(row["sigma"]) for row in found})
    print("| method | " + " | ".join(f"sigma {sigma}" for sigma in sigmas) + " | seconds |")
    print("|---|" + "---|" * (len(sigmas) + 1))
    for method in METHODS:
        of_method = [row for row in found if row["method"] == method]
        means = [np.mean([float(r["f-measure"]) for r in of_method if r["sigma"] == str(sigma)]) for sigma in sigmas]
        seconds = np.mean([float(row["seconds"]) for row in of_method])
        print(f"| {method} | " + " | ".join(f"{value:.3f}" for value in means) + f" | {seconds:.1f} |")


def best(family: str, sigma: int) -> str:
    """The method of those names with the highest F-measure at that noise, over all pictures."""
    found = rows()

    def total(method: str) -> float:
        return sum(float(row["f-measure"]) for row in found if (row["sigma"], row["method"]) == (str(sigma), method))

    return max((method for method in METHODS if method.startswith(family)), key=total)


def picture(sigmas: Sequence[int]) -> None:
    """chan_vese_noise.png: noisy pictures, and regions by the best weights of both models and by the deep form."""
    import drawing
    import matplotlib.pyplot as plt

    shown = {sigma: (best("chan-vese", sigma), best("statistical", sigma), "deep chan-vese") for sigma in sigmas}
    titles = [title for sigma in sigmas for title in (f"sigma {sigma}", *shown[sigma])]
    figure, axes = plt.subplots(5, len(titles), figsize=(1.9 * len(titles), 8.4), layout="constrained", squeeze=False)
    for place, sigma in enumerate(sigmas):
        for row, (image, truth, start) in zip(axes, examples(sigma).values(), strict=True):
            panels = [image]
            for method in shown[sigma]:
                panels.append(METHODS[method](tensor(image), start)[0].numpy() == 1)
            for axis, panel in zip(row[4 * place :], panels, strict=False):
                axis.imshow(panel, cmap="gray")
                if panel is not image:
                    axis.contour(truth, [0.5], colors="#ef4444", linewidths=0.8)
                axis.axis("off")
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize=9)
    drawing.save(figure, HERE / "chan-vese-noise.png", dpi=90)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("run", "table", "picture"))
    parser.add_argument("--sigma", type=int, nargs="+", default=None)
    given = parser.parse_args()
    if given.command == "run":
        run(given.sigma or SIGMAS)
    elif given.command == "table":
        table()
    else:
        picture(given.sigma or SIGMAS[-1:])


if __name__ == "__main__":
    main()
