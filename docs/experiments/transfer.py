"""Trained on one data set and tested on another: white blood cells of two laboratories, optic nerves in other light.

    python docs/experiments/transfer.py train [--trained wbc1 wbc2 drishti]
    python docs/experiments/transfer.py test [--trained wbc1 wbc2 drishti]
    python docs/experiments/transfer.py table
    python docs/experiments/transfer.py picture

`train` trains layers.py's plain networks of wbc1, wbc2 and drishti, and goes on from them, those of cells with and
without layers; seed 0. Layers for optic nerves stand behind the plain network at the test alone. `test` scores all of
them on the test images of their own set and of the other one, or in other light, into transfer.csv; what has a row
already is skipped. Set REGLOSS_DATA first.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Callable, Sequence
from pathlib import Path

import drawing
import layers
import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray

from regloss.apps.evaluate import evaluate_run
from regloss.training.model import Model, load_model

HERE = Path(__file__).resolve().parent
RUNS = Path("runs/transfer")
TABLE = HERE / "transfer.csv"
COLUMNS = ("trained", "tested", "method", "measure", "value")
SEED = 0

TRAINED = {
    "wbc1": ("plain", "tv", "std"),
    "wbc2": ("plain", "tv", "std"),
    "drishti": ("plain",),
}
# Behind the plain network of the optic nerves.
NERVES: dict[str, layers.Layer | None] = {
    "plain": None,
    "std": layers.std(1.0),
    "std + convex + ordered": layers.convex_ordered(1.0),
}
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


def run_of(name: str, method: str) -> Path:
    return layers.folder(RUNS, name, method, SEED)


def train(names: Sequence[str]) -> None:
    for name in names:
        start = run_of(name, "start")
        layers.run_training(start, name, SEED, [])
        epochs = layers.EXPERIMENTS[name].epochs
        for method in TRAINED[name]:
            layer = layers.EXPERIMENTS[name].trained(SEED)[method]
            changes = [f"training.start-from={start}", f"training.epochs={epochs}", f"training.evaluate-every={epochs}"]
            changes += ["training.optimizer.lr=1e-3", *([] if layer is None else [f"layer={layers.toml(layer)}"])]
            layers.run_training(run_of(name, method), name, SEED, changes)


def test(names: Sequence[str]) -> None:
    done = {(row["trained"], row["tested"], row["method"]) for row in rows()}
    for name in names:
        for method in TRAINED[name] if name in CELLS else ():
            for tested, changes in CELLS.items():
                if (name, tested, method) not in done:
                    found = evaluate_run(run_of(name, method), "test", changes)
                    write(name, tested, method, {key: found[key] for key in ("mean-iou", "boundary-density")})
        for method, model in nerve_models().items() if name == "drishti" else ():
            for light in LIGHTS:
                if (name, light, method) not in done:
                    write(name, light, method, nerves(model, light))


def nerve_models() -> dict[str, Model]:
    plain = run_of("drishti", "plain")
    return {
        method: load_model(plain, [] if layer is None else [f"layer={layers.toml(layer)}"])
        for method, layer in NERVES.items()
    }


def nerves(model: Model, light: str) -> dict[str, float]:
    """Means over the test images of the Dice of disc and cup, and how many are in several pieces or dented."""
    found = [
        layers.nerve_shapes(layers.labels_of(model, LIGHTS[light](image)), label)
        for image, label, _ in layers.test_images(model, "none")
    ]
    count = len(found)
    means = {key: sum(shape[key] for shape in found) / count for key in ("disc", "cup")}
    return {**means, **{key: float(sum(shape[key] for shape in found)) for key in ("split-discs", "split-cups")}}


def write(trained: str, tested: str, method: str, found: dict[str, float]) -> None:
    new = not TABLE.is_file()
    with TABLE.open("a", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        if new:
            writer.writerow(COLUMNS)
        writer.writerows([trained, tested, method, key, f"{value:.6g}"] for key, value in found.items())
    print(trained, tested, method, found, flush=True)


def rows() -> list[dict[str, str]]:
    if not TABLE.is_file():
        return []
    with TABLE.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def table() -> None:
    values = {tuple(row[key] for key in COLUMNS[:4]): float(row["value"]) for row in rows()}
    print("| trained on | method | wbc1 | wbc2 |\n|---|---|---|---|")
    for name in CELLS:
        for method in (method for method in TRAINED[name] if (name, name, method, "mean-iou") in values):
            cells = [
                f"{100 * values[name, tested, method, 'mean-iou']:.2f} "
                f"({values[name, tested, method, 'boundary-density']:.2f})"
                for tested in CELLS
            ]
            print(f"| {name} | {method} | {' | '.join(cells)} |")
    for part in ("disc", "cup") if any(key[0] == "drishti" for key in values) else ():
        print(f"\n| {part} | {' | '.join(NERVES)} |\n|---|---|---|---|")
        for light in LIGHTS:
            cells = [
                f"{100 * values['drishti', light, method, part]:.2f} "
                f"({values['drishti', light, method, f'split-{part}s']:.0f})"
                for method in NERVES
            ]
            print(f"| {light} | {' | '.join(cells)} |")


def picture() -> None:
    """Test images of either set of cells by the networks of the other, and one optic nerve in three lights."""
    from regloss.report.overlays import outlined

    shown = []
    for trained, tested, places in (("wbc1", "wbc2", (3, 8)), ("wbc2", "wbc1", (10, 40))):
        models = [load_model(run_of(trained, method), CELLS[tested]) for method in TRAINED[trained]]
        images = layers.test_images(models[0], "none")
        shown += [(trained, f"{trained} to {tested}", models, *images[place][:2]) for place in places]
    models = list(nerve_models().values())
    image, label, _ = layers.test_images(models[0], "none")[4]
    shown += [
        ("drishti", light, models, LIGHTS[light](image), label) for light in ("as taken", "gamma 2", list(LIGHTS)[-1])
    ]
    figure = Figure(figsize=(9.2, 1.9 * len(shown)), layout="constrained")
    for row, (trained, name, models, values, truth) in zip(figure.subplots(len(shown), 5), shown, strict=True):
        panels = [truth * 0, truth, *(layers.labels_of(model, values) for model in models)]
        titles = ["image", "labels", *(TRAINED[trained] if trained in CELLS else NERVES)]
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
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    if chosen.what in ("train", "test"):
        {"train": train, "test": test}[chosen.what](chosen.trained)
    else:
        {"table": table, "picture": picture}[chosen.what]()


if __name__ == "__main__":
    main()
