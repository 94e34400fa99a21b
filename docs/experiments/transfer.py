"""Trained on one data set and tested on another: white blood cells of two laboratories, optic nerves in other light.

    python docs/experiments/transfer.py train [--trained wbc1 wbc2 drishti] [--seeds 0 1 2]
    python docs/experiments/transfer.py test [--trained wbc1 wbc2 drishti] [--seeds 0 1 2]
    python docs/experiments/transfer.py table
    python docs/experiments/transfer.py picture

`train` trains layers.py's plain networks of wbc1, wbc2 and drishti, and goes on from them with and without layers.
`test` scores all of them on the test images of their own set and of the other one, or in other light, into
transfer.csv, and plain networks of optic nerves with the shape at the test alone; what has a row already is skipped.
`picture` draws seed 0. Set REGLOSS_DATA first.
"""

from __future__ import annotations

import argparse
import csv
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean

import drawing
import layers
import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from seeds import mean_and_spread

from regloss.apps.evaluate import evaluate_run
from regloss.training.model import Model, load_model

HERE = Path(__file__).resolve().parent
RUNS = Path("runs/transfer")
TABLE = HERE / "transfer.csv"
COLUMNS = ("trained", "tested", "method", "seed", "measure", "value")

TRAINED = {
    "wbc1": ("plain", "tv", "std"),
    "wbc2": ("plain", "tv", "std"),
    "drishti": ("plain", "std", "std + convex + ordered"),
}
AT_THE_TEST = "plain, std + convex + ordered at the test"
NERVES = (*TRAINED["drishti"], AT_THE_TEST)
# As `regloss evaluate RUN --set ...` takes them.
CELLS = {
    "wbc1": ["data.root=wbc1", "data.split=docs/experiments/splits/wbc1.toml", "data.reduce=1"],
    "wbc2": ["data.root=wbc2", "data.split=docs/experiments/splits/wbc2.toml", "data.reduce=2"],
}

Image = NDArray[np.float32]  # (C, H, W) in [0, 1]


def gamma(exponent: float) -> Callable[[Image], Image]:
    return lambda image: (image**exponent).astype(np.float32)


def ramp(least: float) -> Callable[[Image], Image]:
    """Light that falls from 1 at the right to ``least`` at the left."""
    return lambda image: image * np.linspace(least, 1, image.shape[2], dtype=np.float32)


def contrast(factor: float) -> Callable[[Image], Image]:
    """About the mean of the image; images are normalised, so that this changes next to nothing."""
    return lambda image: ((image - image.mean()) * factor + image.mean()).clip(0, 1)


LIGHTS: dict[str, Callable[[Image], Image]] = {
    "as taken": lambda image: image,
    "contrast .5": contrast(0.5),
    "contrast 2": contrast(2.0),
    "gamma .5": gamma(0.5),
    "gamma 2": gamma(2.0),
    "light from the right, .5": ramp(0.5),
    "light from the right, .25": ramp(0.25),
}


def run_of(name: str, method: str, seed: int) -> Path:
    return layers.folder(RUNS, name, method, seed)


def train(names: Sequence[str], seed: int) -> None:
    for name in names:
        start = run_of(name, "start", seed)
        layers.run_training(start, name, seed, [])
        for method in TRAINED[name]:
            changes = layers.going_on(name, method, seed, start)
            layers.run_training(run_of(name, method, seed), name, seed, changes)


def test(names: Sequence[str], seed: int) -> None:
    done = {(row["trained"], row["tested"], row["method"]) for row in rows() if row["seed"] == str(seed)}
    for name in names:
        for method in TRAINED[name] if name in CELLS else ():
            for tested, changes in CELLS.items():
                if (name, tested, method) not in done:
                    found = evaluate_run(run_of(name, method, seed), "test", changes)
                    write(name, tested, method, seed, {key: found[key] for key in ("mean-iou", "boundary-density")})
        for method in NERVES if name == "drishti" else ():
            model = nerve_model(method, seed)
            for light in LIGHTS:
                if (name, light, method) not in done:
                    write(name, light, method, seed, nerves(model, light))


def nerve_model(method: str, seed: int) -> Model:
    if method != AT_THE_TEST:
        return load_model(run_of("drishti", method, seed))
    layer = layers.EXPERIMENTS["drishti"].trained(seed)["std + convex + ordered"]
    return load_model(run_of("drishti", "plain", seed), [f"layer={layers.toml(layer)}"])


def nerves(model: Model, light: str) -> dict[str, float]:
    """Means over the test images of the Dice of disc and cup, and how many are in several pieces or dented."""
    found = [
        layers.nerve_shapes(layers.labels_of(model, LIGHTS[light](image)), label)
        for image, label, _ in layers.test_images(model, "none")
    ]
    count = len(found)
    means = {key: sum(shape[key] for shape in found) / count for key in ("disc", "cup")}
    return {**means, **{key: float(sum(shape[key] for shape in found)) for key in ("split-discs", "split-cups")}}


def write(trained: str, tested: str, method: str, seed: int, found: dict[str, float]) -> None:
    new = not TABLE.is_file()
    with TABLE.open("a", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        if new:
            writer.writerow(COLUMNS)
        writer.writerows([trained, tested, method, seed, key, f"{value:.6g}"] for key, value in found.items())
    print(trained, tested, method, seed, found, flush=True)


def rows() -> list[dict[str, str]]:
    if not TABLE.is_file():
        return []
    with TABLE.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def table() -> None:
    values: defaultdict[tuple[str, str, str, str], list[float]] = defaultdict(list)
    for row in rows():
        values[row["trained"], row["tested"], row["method"], row["measure"]].append(float(row["value"]))

    def cell(trained: str, tested: str, method: str, measure: str, also: str) -> str:
        """In percent, mean and standard deviation over the seeds, and the mean of another measure."""
        found = [100 * value for value in values[trained, tested, method, measure]]
        if not found:
            return "-"
        digits = ".2f" if also == "boundary-density" else ".3g"  # others are numbers of images
        return f"{mean_and_spread(found, 2)} ({mean(values[trained, tested, method, also]):{digits}})"

    print("| trained on | method | wbc1 | wbc2 |\n|---|---|---|---|")
    for name in CELLS:
        for method in TRAINED[name]:
            cells = [cell(name, tested, method, "mean-iou", "boundary-density") for tested in CELLS]
            print(f"| {name} | {method} | {' | '.join(cells)} |")
    for part in ("disc", "cup"):
        print(f"\n| {part} | {' | '.join(NERVES)} |\n|{'---|' * (1 + len(NERVES))}")
        for light in LIGHTS:
            cells = [cell("drishti", light, method, part, f"split-{part}s") for method in NERVES]
            print(f"| {light} | {' | '.join(cells)} |")


def picture() -> None:
    """Test images of either set of cells by the networks of the other, and one optic nerve in three lights."""
    from regloss.report.overlays import outlined

    shown = []
    for trained, tested, places in (("wbc1", "wbc2", (3, 8)), ("wbc2", "wbc1", (10, 40))):
        models = [load_model(run_of(trained, method, 0), CELLS[tested]) for method in TRAINED[trained]]
        images = layers.test_images(models[0], "none")
        shown += [(trained, f"{trained} to {tested}", models, *images[place][:2]) for place in places]
    models = [nerve_model(method, 0) for method in TRAINED["drishti"]]
    image, label, _ = layers.test_images(models[0], "none")[4]
    shown += [
        ("drishti", light, models, LIGHTS[light](image), label) for light in ("as taken", "gamma 2", list(LIGHTS)[-1])
    ]
    figure = Figure(figsize=(9.2, 1.9 * len(shown)), layout="constrained")
    for row, (trained, name, models, values, truth) in zip(figure.subplots(len(shown), 5), shown, strict=True):
        panels = [truth * 0, truth, *(layers.labels_of(model, values) for model in models)]
        titles = ["image", "labels", *TRAINED[trained]]
        for axes, title, labels in zip(row, titles, panels, strict=True):
            axes.imshow(outlined(values, labels.astype(np.uint8), models[0].colors))
            axes.set_xticks([])
            axes.set_yticks([])
            axes.set_title(title, fontsize=8)
        row[0].set_ylabel(name, fontsize=8)
    drawing.save(figure, HERE / "transfer.png", dpi=80)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("train", "test", "table", "picture"))
    parser.add_argument("--trained", nargs="+", choices=tuple(TRAINED), default=list(TRAINED))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    if chosen.what in ("train", "test"):
        for seed in chosen.seeds:
            {"train": train, "test": test}[chosen.what](chosen.trained, seed)
    else:
        {"table": table, "picture": picture}[chosen.what]()


if __name__ == "__main__":
    main()
