"""Regularized softmax layers on real data: a plain network against the same network with layers, three seeds each.

    python docs/experiments/layers.py train   [--data-set wbc2 ...] [--seed 0 ...]
    python docs/experiments/layers.py table   [--data-set wbc2 ...]
    python docs/experiments/layers.py picture [--data-set wbc2 ...] [--seed 0]
    python docs/experiments/layers.py enlarge [--data-set wbc2 ...] [--seed 0]
    python docs/experiments/layers.py choose  [--data-set wbc2 ...]

`train` trains a plain network with the data set's TOML file, then goes on from it with every layer and, for as many
steps, without one; then it scores all of them on the test images, clean and noisy. What is there already is skipped.
`table` gathers the scores of all runs in layers.csv and prints tables, `picture` draws test predictions, `enlarge` what
is in those windows in which the methods differ most. `choose` is how the layers' weights came about: it puts layers of
several weights behind the plain network of seed 0, without training, and scores them on the validation images. Set
REGLOSS_DATA first; runs lie below runs/layers, or --runs.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage, signal

from regloss import RegularizedSoftmax
from regloss.apps.evaluate import evaluate_run
from regloss.apps.noise import Noise
from regloss.metrics.scores import Scores
from regloss.registry import create
from regloss.training.model import Model, load_model, predict

HERE = Path(__file__).resolve().parent
SEEDS = (0, 1, 2)
RADII = (1.5, 3, 5, 9, 15, 30)  # pixels, of the balls that look for dents: the layer's, and the check's
ENLARGED = 44  # pixels along each side of an enlarged window
TOLD = "std, told the volume"  # the networks of std, told the lesion's true area at the test

# ---- the layers, as the configuration's tables

Layer = dict[str, Any]
TEN_STEPS: Layer = {"entropy": 1.0, "steps": 10, "backward": "unrolled"}
TEN_DC_STEPS: Layer = {**TEN_STEPS, "solver": "dca"}
# Each of the ten steps ends in a convex problem.
NESTED: Layer = {
    **TEN_STEPS,
    "solver": {"name": "dca", "convex": {"name": "pdhg", "max_steps": 20}},
    "backward": "implicit",  # through 200 steps it would take five times as long
    "backward-steps": 10,
}


def tv(weight: float) -> Layer:
    return {"regularizer": {"name": "tv", "weight": weight}, **TEN_STEPS}


def tv_solved(weight: float) -> Layer:
    """Solved rather than stopped after ten steps, and differentiated at the solution."""
    solved = {"entropy": 1.0, "steps": 200, "tolerance": 1e-4, "backward": "implicit", "backward-steps": 50}
    return {"regularizer": {"name": "tv", "weight": weight}, **solved}


def nltv(weight: float) -> Layer:
    # The published bandwidths, in pixels of halved images.
    graph = {"neighbors": 10, "sigma-xy": 20.0, "sigma-near": 1.5, "cache": "runs/layers/graphs"}
    return {"regularizer": {"name": "nltv", "weight": weight, **graph}, **TEN_STEPS}


def nltv_learnt(weight: float) -> Layer:
    """With bandwidths that it learns, which needs a graph for every step; from the published ones, halved."""
    graph = {"neighbors": 10, "weights": "bilateral", "sigma-xy": 20.0}
    return {
        "regularizer": {"name": "nltv", "weight": weight, **graph},
        **TEN_STEPS,
        "learn": ["weight", "sigma-xy", "sigma-rgb"],
    }


def heat(weight: float) -> Layer:
    return {"name": "threshold-dynamics", "weight": weight, "sigma": 2.0, "perimeter": True}


def std(weight: float) -> Layer:
    return {"regularizer": heat(weight), **TEN_DC_STEPS}


def std_volume(weight: float) -> Layer:
    """Bounds that hold for all training images, whose lesions cover 5.6 to 94 % of the image."""
    bounds = {"name": "volume", "lower": [0.05, 0.05], "upper": [0.95, 0.95], "unit": "fraction"}
    return {"regularizer": [heat(weight), bounds], **TEN_DC_STEPS}


def std_star(weight: float) -> Layer:
    return {"regularizer": [heat(weight), {"name": "star", "label": 1}], **NESTED}


def std_star_solved(weight: float) -> Layer:
    """For the test alone: steps until the constraint holds."""
    convex = {"name": "pdhg", "max_steps": 300, "tolerance": 1e-6}
    return {**std_star(weight), "solver": {"name": "dca", "convex": convex}, "steps": 50}


def convex_ordered(weight: float) -> Layer:
    shapes = [{"name": "ordered"}, {"name": "convex", "radii": list(RADII)}]
    return {"kind": "sigmoid", "regularizer": [heat(weight), *shapes], **TEN_DC_STEPS}


def toml(value: Any) -> str:
    """As an inline TOML value."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    return json.dumps(value)


# ---- the data sets


@dataclass(frozen=True)
class Experiment:
    """One data set.

    Attributes:
        layers: by the method's name, each with its weight; "plain" is always there too.
        epochs: of the second part of the training.
        columns: of the table without noise, keys of the rows that `examine` makes.
        noise: to test with, besides none.
        noisy: of these columns a table is printed with all kinds of noise.
        test: settings that replace the run's at the test.
        grid: weights that `choose` tries.
        once: methods that are trained for the first seed alone.
        swapped: methods that are not trained: another's networks get another layer at the test, None for none.
        network: settings of the network, by the name of a method without a layer.
        file: whose TOML file is read, absent = the experiment's own.
    """

    layers: dict[str, tuple[Callable[[float], Layer], float]]
    epochs: int
    columns: Sequence[str]
    noise: Sequence[str] = ()
    noisy: Sequence[str] = ()
    test: Sequence[str] = ()
    grid: Sequence[float] = (0.1, 0.3, 1.0, 3.0, 10.0)
    once: Sequence[str] = ()
    swapped: dict[str, tuple[str, Layer | None]] = field(default_factory=dict)
    network: dict[str, Sequence[str]] = field(default_factory=dict)
    file: str = ""

    def trained(self, seed: int) -> dict[str, Layer | None]:
        """Layer by method, in the order of the tables."""
        kept = {name: chosen for name, chosen in self.layers.items() if seed == SEEDS[0] or name not in self.once}
        without = dict.fromkeys(("plain", *self.network))
        return {**without, **{name: make(weight) for name, (make, weight) in kept.items()}}

    def tested(self, seed: int) -> list[str]:
        """Methods in the order of the tables."""
        return [*self.trained(seed), *self.swapped]


_CELL_NOISE = [f"gaussian:{level}" for level in (0.03, 0.05, 0.1)]
_CELL_NOISE += [f"salt-and-pepper:{level}" for level in (0.01, 0.02, 0.05)]
_COMMON = ("mean-iou", "accuracy", "boundary")
_NERVE_COUNTS = ("dented-discs", "dented-cups", "cups-at-edge", "split-discs", "split-cups")
COUNTS = (*_NERVE_COUNTS, "not-star")  # columns that are numbers of images

EXPERIMENTS = {
    "wbc2": Experiment(
        layers={"tv": (tv, 1.0), "tv, solved": (tv_solved, 1.0), "nltv": (nltv, 0.1), "std": (std, 1.0)},
        epochs=15,
        columns=_COMMON,
        noise=_CELL_NOISE,
        noisy=("mean-iou", "boundary"),
        once=("tv, solved",),
        swapped={"plain, tv at the test": ("plain", tv(1.0)), "plain, nltv at the test": ("plain", nltv(0.1))},
    ),
    "drishti": Experiment(
        layers={"std": (std, 1.0), "std + convex + ordered": (convex_ordered, 1.0)},
        epochs=20,
        columns=("disc", "cup", "disc-dents", "cup-dents", *_NERVE_COUNTS),
        noise=[f"gaussian:{level / 255:.3f}" for level in (10, 15, 25)],
        noisy=("disc", "cup", *_NERVE_COUNTS),
        swapped={"std, convex + ordered at the test": ("std", convex_ordered(1.0))},
    ),
    "ph2": Experiment(
        layers={"std": (std, 1.0), "std + volume": (std_volume, 1.0), "std + star": (std_star, 1.0)},
        epochs=12,
        columns=("dice", "jaccard", "accuracy", "boundary", "not-star"),
        swapped={"std + star, solved at the test": ("std + star", std_star_solved(1.0)), TOLD: ("std", None)},
    ),
    "camvid": Experiment(
        layers={"tv": (tv, 1.0), "nltv": (nltv, 0.1)},
        epochs=2,
        columns=_COMMON,
        # Another folder, and a split that means all of it.
        test=("data.images=val/images", "data.labels=val/labels", 'data.split={test = ["*"]}'),
    ),
    "wbc2-attention": Experiment(
        layers={"tv": (tv, 1.0), "nltv": (nltv, 0.1)},
        epochs=15,
        columns=_COMMON,
    ),
    "wbc1": Experiment(
        layers={"tv": (tv, 1.0), "nltv": (nltv, 0.1), "std": (std, 1.0)},
        epochs=6,
        columns=_COMMON,
        noise=_CELL_NOISE,
        noisy=("mean-iou", "boundary"),
    ),
}
EXPERIMENTS["ph2-deeplab"] = replace(EXPERIMENTS["ph2"], epochs=8)
EXPERIMENTS["wbc2-learnt"] = replace(
    EXPERIMENTS["wbc2"],
    file="wbc2",
    network={"units that smooth": ["network.smoothing=0.1"]},
    layers={
        "tv": (tv, 1.0),
        "tv, learnt": (lambda weight: {**tv(weight), "learn": ["weight"]}, 1.0),
        "std": (std, 1.0),
        "std, learnt": (lambda weight: {**std(weight), "learn": ["weight", "sigma"]}, 1.0),
        "nltv, learnt": (nltv_learnt, 0.1),
    },
    once=(),
    swapped={},
)


# ---- training


def folder(runs: Path, name: str, method: str, seed: int) -> Path:
    return runs / name / f"{re.sub(r'[^a-z]+', '-', method)}-{seed}"


def train(runs: Path, name: str, seed: int) -> None:
    experiment = EXPERIMENTS[name]
    start = folder(runs, name, "start", seed)
    run_training(start, name, seed, [])
    for method in experiment.trained(seed):
        run_training(folder(runs, name, method, seed), name, seed, going_on(name, method, seed, start))
    for method in experiment.tested(seed):
        score(runs, name, method, seed)


def going_on(name: str, method: str, seed: int, start: Path) -> list[str]:
    """Settings of the second part of a training, which goes on from the run ``start``."""
    experiment = EXPERIMENTS[name]
    layer = experiment.trained(seed)[method]
    return [
        f"training.start-from={start}",
        f"training.epochs={experiment.epochs}",
        f"training.evaluate-every={experiment.epochs}",
        "training.optimizer.lr=1e-3",
        *([] if layer is None else [f"layer={toml(layer)}"]),
        *experiment.network.get(method, []),
    ]


def configuration(name: str) -> Path:
    return HERE / f"layers-{EXPERIMENTS[name].file or name}.toml"


def run_training(output: Path, name: str, seed: int, changes: Sequence[str]) -> None:
    if (output / "scores.json").is_file():
        return
    command = [sys.executable, "-m", "regloss_cli.main", "train", str(configuration(name)), "--quiet"]
    command += ["--resume"] if output.exists() else []
    for change in (f"seed={seed}", f"output={output}", *changes):
        command += ["--set", change]
    began = time.perf_counter()
    subprocess.run(command, check=True)
    print(f"{output}: {time.perf_counter() - began:.0f} s", flush=True)


# ---- scores


def score(runs: Path, name: str, method: str, seed: int) -> None:
    """Write rows.json into the run's folder: one row for every kind of noise."""
    output = folder(runs, name, method, seed) / "rows.json"
    if output.is_file():
        return
    experiment = EXPERIMENTS[name]
    trained, _ = experiment.swapped.get(method, (method, None))
    began = time.perf_counter()
    model = load(runs, name, method, seed)
    kinds = ["none", *experiment.noise]
    found = [examine(model, name, kind, told=method == TOLD) for kind in kinds]
    seconds = training_seconds(folder(runs, name, trained, seed))
    about = {"data": name, "method": method, "seed": seed, "train-seconds": seconds}
    output.parent.mkdir(parents=True, exist_ok=True)
    rows = [{**about, "noise": kind, **row} for kind, row in zip(kinds, found, strict=True)]
    output.write_text(json.dumps(rows, indent=1))
    print(f"{output}: {time.perf_counter() - began:.0f} s", flush=True)


def load(runs: Path, name: str, method: str, seed: int) -> Model:
    """The method's model, with the layer that it has at the test."""
    experiment = EXPERIMENTS[name]
    trained, layer = experiment.swapped.get(method, (method, experiment.trained(seed).get(method)))
    changes = 'layer=""' if layer is None else f"layer={toml(layer)}"
    # Said again where it is the run's own: where nltv keeps its graphs is not taken from a run. What was learnt is.
    learns = layer is not None and "learn" in layer
    return load_model(folder(runs, name, trained, seed), [*experiment.test, *([] if learns else [changes])])


def training_seconds(run: Path) -> float:
    with (run / "log" / "epochs.csv").open() as file:
        return sum(float(row["train-seconds"]) for row in csv.DictReader(file))


def learnt(run: Path) -> dict[str, float]:
    """What the layer had learnt at the end of the training."""
    with (run / "log" / "epochs.csv").open() as file:
        *_, last = csv.DictReader(file)
    return {key.removeprefix("layer-"): float(value) for key, value in last.items() if key.startswith("layer-")}


def examine(model: Model, name: str, kind: str, *, told: bool = False) -> dict[str, float]:
    """Scores over the test images, as fractions, and numbers of images whose shapes are not as they should be."""
    scores, shapes = Scores(model.classes), []
    for image, label, sample_id in test_images(model, kind):
        predicted = labels_of(model, image, label if told else None)
        scores.update(torch.from_numpy(predicted), torch.from_numpy(label), sample_id)
        shapes.append(SHAPES.get(name, no_shapes)(predicted, label))
    found = scores.compute()
    sums = {key: float(sum(shape[key] for shape in shapes)) for key in shapes[0]}
    shared = {key: value if key in COUNTS else value / len(shapes) for key, value in sums.items()}
    return {
        "mean-iou": found["mean-iou"],
        "accuracy": found["accuracy"],
        "boundary": found["boundary-density"],
        "true-boundary": found["true-boundary-density"],
        "images": found["images"],
        **shared,
    }


def test_images(model: Model, kind: str) -> list[tuple[NDArray[np.float32], NDArray[np.int64], str]]:
    """Image (C, H, W) with noise, labels (H, W), id."""
    config = model.config
    dataset = create("dataset", config.data.dataset, **config.data.component_settings())
    samples = [dataset.load(sample_id) for sample_id in dataset.ids("test")]
    if kind != "none":
        noise = Noise.parse(kind)
        # One seed for all runs: every model sees the same noisy images.
        samples = [replace(sample, image=noise(sample.image, sample.id, seed=0)) for sample in samples]
    found = []
    for sample in samples:
        assert sample.label is not None
        found.append((sample.image, sample.label.astype(np.int64), sample.id))
    return found


def labels_of(model: Model, image: NDArray[np.float32], told: NDArray[np.int64] | None = None) -> NDArray[np.int64]:
    """Predicted labels (H, W); with ``told`` labels, their areas go into a layer behind the model, which has none."""
    batch = torch.from_numpy(image).unsqueeze(0)
    logits = predict(model.segmenter, batch)
    if told is not None:
        areas = np.bincount(told.ravel(), minlength=len(model.classes)).tolist()
        known = [heat(EXPERIMENTS["ph2"].layers["std"][1]), {"name": "volume", "volumes": areas}]
        with torch.no_grad():
            logits = RegularizedSoftmax(known, "dca", 1.0, max_steps=10).log_probabilities(logits, batch)
    labels: NDArray[np.int64] = logits.argmax(1)[0].numpy()
    return labels


def predictions_of(
    models: dict[str, Model], image: NDArray[np.float32], label: NDArray[np.int64]
) -> dict[str, NDArray[np.int64]]:
    """Predicted labels (H, W) of the models by their methods."""
    return {method: labels_of(model, image, label if method == TOLD else None) for method, model in models.items()}


def overlap(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> float:
    """Dice."""
    total = one.sum() + other.sum()
    return float(2 * (one & other).sum() / total) if total else 1.0


def no_shapes(predicted: NDArray[np.int64], label: NDArray[np.int64]) -> dict[str, float]:
    return {}


def nerve_shapes(predicted: NDArray[np.int64], label: NDArray[np.int64]) -> dict[str, float]:
    """Dice of disc and cup, and whether they are in one piece, without dents, and the cup inside the disc.

    A label map cannot put the cup outside of the disc, which is rim and cup; but a cup that meets the background has
    left the disc's inside.
    """
    disc, cup = predicted > 0, predicted == 2
    disc_dents, cup_dents = dents(disc), dents(cup)
    return {
        "disc": overlap(disc, label > 0),
        "cup": overlap(cup, label == 2),
        "disc-dents": disc_dents,
        "cup-dents": cup_dents,
        "true-disc-dents": dents(label > 0),
        "true-cup-dents": dents(label == 2),
        "dented-discs": disc_dents > 0,
        "dented-cups": cup_dents > 0,
        "cups-at-edge": bool((ndimage.binary_dilation(cup) & ~disc).any()),
        "split-discs": ndimage.label(disc, np.ones((3, 3)))[1] > 1,
        "split-cups": ndimage.label(cup, np.ones((3, 3)))[1] > 1,
    }


def dents(region: NDArray[np.bool_]) -> float:
    """Background pixels with more than half of a ball about them in ``region``, as a fraction of its own.

    Balls of all radii count; outside of the image is background.
    """
    found = np.zeros_like(region)
    for radius in RADII:
        reach = int(radius)
        rows, columns = np.mgrid[-reach : reach + 1, -reach : reach + 1]
        ball = (rows**2 + columns**2 <= radius**2).astype(np.float64)
        inside = signal.fftconvolve(region.astype(np.float64), ball, mode="same")
        found |= ~region & (2 * inside > ball.sum() + 0.5)  # numbers of pixels: whole, but for rounding
    return float(found.sum() / max(region.sum(), 1))


def lesion_shapes(predicted: NDArray[np.int64], label: NDArray[np.int64]) -> dict[str, float]:
    lesion, truth = predicted == 1, label == 1
    dice = overlap(lesion, truth)
    return {"dice": dice, "jaccard": dice / (2 - dice), "not-star": not star_shaped(lesion)}


SHAPES = {"drishti": nerve_shapes, "ph2": lesion_shapes, "ph2-deeplab": lesion_shapes}


def star_shaped(region: NDArray[np.bool_]) -> bool:
    """Whether the region is star-shaped about its centre of mass or a pixel at most 3 rows and columns from there.

    It is if every pixel's next one on the way to the centre lies in it too.
    """
    places = np.argwhere(region)
    for shift in np.ndindex(7, 7) if len(places) else ():
        way = np.round(places.mean(0)) + np.array(shift) - 3 - places
        step = np.abs(way).max(1, keepdims=True)
        parents = np.round(places + way / np.maximum(step, 1)).astype(int).clip(0, np.array(region.shape) - 1)
        if region[tuple(parents.T)].all():
            return True
    return len(places) == 0


# ---- tables, pictures, weights


def table(runs: Path, names: Sequence[str]) -> None:
    """Write into layers.csv what there is of all data sets, and print the tables of those asked for."""
    rows = [row for name in EXPERIMENTS for row in finished(runs, name)]
    if not rows:
        raise SystemExit(f"There are no scores below {runs}: run `train` first, or name another folder with --runs.")
    with (HERE / "layers.csv").open(newline="") as file:  # other data sets keep their rows
        kept = [row for row in csv.DictReader(file) if row["data"] not in {found["data"] for found in rows}]
    written = [{key: f"{v:.5g}" if isinstance(v, float) else v for key, v in row.items()} for row in rows]
    written = sorted([*kept, *written], key=lambda row: list(EXPERIMENTS).index(row["data"]))
    keys = list(dict.fromkeys(key for row in written for key in row))
    with (HERE / "layers.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, keys, lineterminator="\n")
        writer.writeheader()
        writer.writerows(written)
    for name in names:
        of_data = [row for row in rows if row["data"] == name]
        if of_data:
            seeds = {row["seed"] for row in of_data}
            starts = sum(training_seconds(folder(runs, name, "start", seed)) for seed in seeds)
            spent = {(row["method"], row["seed"]): row["train-seconds"] for row in of_data}
            again = sum(seconds for (method, _), seconds in spent.items() if method not in EXPERIMENTS[name].swapped)
            print(
                f"\n{name}: {(starts + again) / 60:.0f} minutes of training, of which the starts took {starts / 60:.0f}"
            )
            print_clean(name, [row for row in of_data if row["noise"] == "none"])
        for row in of_data:
            run = folder(runs, name, row["method"], row["seed"])
            if row["noise"] == "none" and row["method"].endswith("learnt"):
                found = ", ".join(f"{key} {value:.3g}" for key, value in learnt(run).items())
                print(f"{row['method']}, seed {row['seed']}: {found}")
        noisy = EXPERIMENTS[name].noisy if of_data else ()
        for column in noisy:
            if column not in COUNTS:
                print_noisy(name, column, of_data)
        if set(noisy) & set(COUNTS):
            print_counts(name, [column for column in noisy if column in COUNTS], of_data)


def finished(runs: Path, name: str) -> list[dict[str, Any]]:
    methods = EXPERIMENTS[name].tested(SEEDS[0])
    paths = [folder(runs, name, method, seed) / "rows.json" for method in methods for seed in SEEDS]
    return [row for path in paths if path.is_file() for row in json.loads(path.read_text())]


def print_clean(name: str, rows: Sequence[dict[str, Any]]) -> None:
    columns = EXPERIMENTS[name].columns
    true = [f"{key[5:]} {number(value, key[5:])}" for key, value in rows[0].items() if key.startswith("true-")]
    print(f"\n{name}: {rows[0]['images']} test images; of their labels: {', '.join(true)}\n")
    print(f"| method | {' | '.join(columns)} | seconds |\n" + "|---" * (len(columns) + 2) + "|")
    for method in dict.fromkeys(row["method"] for row in rows):
        of = {row["seed"]: row for row in rows if row["method"] == method}
        seconds = mean(row["train-seconds"] for row in of.values())
        cells = [cell({seed: row[column] for seed, row in of.items()}, column) for column in columns]
        print(f"| {method} | {' | '.join(cells)} | {seconds:.0f} |")


def cell(values: dict[int, float], column: str) -> str:
    """Mean over the seeds, if all of them are there, and each seed's value."""
    each = " / ".join(number(values[seed], column) if seed in values else "-" for seed in SEEDS)
    return f"{number(mean(values.values()), column, average=True) if len(values) == len(SEEDS) else '-'} ({each})"


def number(value: float, column: str, *, average: bool = False) -> str:
    """Fractions in percent, boundary lengths and numbers of images as they are."""
    if column in COUNTS:
        return f"{value:.1f}" if average else f"{value:.0f}"
    return f"{value:.2f}" if column == "boundary" else f"{100 * value:.2f}"


def print_noisy(name: str, column: str, rows: Sequence[dict[str, Any]]) -> None:
    """Means over seeds by noise, and what the layer gains on the plain network: mean and spread."""
    kinds = ("none", *EXPERIMENTS[name].noise)
    values = {(row["method"], row["noise"], row["seed"]): row[column] for row in rows}
    print(f"\n{name}: {column}; gain on plain ± standard deviation over seeds\n")
    print(f"| method | {' | '.join(kinds)} |\n" + "|---" * (len(kinds) + 1) + "|")
    for method in dict.fromkeys(row["method"] for row in rows):
        cells = []
        for kind in kinds:
            own = {seed: values[method, kind, seed] for seed in SEEDS if (method, kind, seed) in values}
            text = number(mean(own.values()), column, average=True)
            # A row of fewer seeds has no mean that could be compared, but a gain.
            text = text if len(own) == len(SEEDS) else "-"
            if method != "plain":
                scale = 1 if column == "boundary" else 100
                gains = [scale * (value - values["plain", kind, seed]) for seed, value in own.items()]
                text += f" ({mean(gains):+.2f}" + (f" ± {stdev(gains):.2f})" if len(gains) > 1 else ")")
            cells.append(text)
        print(f"| {method} | {' | '.join(cells)} |")


def print_counts(name: str, columns: Sequence[str], rows: Sequence[dict[str, Any]]) -> None:
    """Numbers of images, mean over seeds, without noise / with each kind of it."""
    print(f"\n{name}: {' / '.join(['none', *EXPERIMENTS[name].noise])}\n")
    print(f"| method | {' | '.join(columns)} |\n" + "|---" * (len(columns) + 1) + "|")
    for method in dict.fromkeys(row["method"] for row in rows):
        cells = []
        for column in columns:
            by_noise = [
                [row[column] for row in rows if (row["method"], row["noise"]) == (method, kind)]
                for kind in ("none", *EXPERIMENTS[name].noise)
            ]
            cells.append(" / ".join(number(mean(values), column, average=True) for values in by_noise))
        print(f"| {method} | {' | '.join(cells)} |")


def picture(runs: Path, name: str, seed: int) -> None:
    """Four test images, the last two of them noisy if there is noise: image, labels, and all methods' predictions."""
    import drawing
    from matplotlib.figure import Figure

    from regloss.report.overlays import outlined

    models = {method: load(runs, name, method, seed) for method in EXPERIMENTS[name].trained(seed)}
    kinds = ["none"] * 4
    if EXPERIMENTS[name].noise:
        kinds[2:] = [EXPERIMENTS[name].noise[1], EXPERIMENTS[name].noise[-2 if name != "drishti" else -1]]
    plain = models["plain"]
    titles = ["image", "labels", *models]
    sets = {kind: test_images(plain, kind) for kind in dict.fromkeys(kinds)}
    height, width = sets["none"][0][1].shape
    figure = Figure(figsize=(1.9 * len(titles), 4 * 1.9 * height / width + 0.3), layout="constrained")
    axes = figure.subplots(4, len(titles))
    for place, (row, kind) in enumerate(zip(axes, kinds, strict=True)):
        samples = sets[kind]
        image, label, _ = samples[len(samples) * (2 * place + 1) // 8]
        panels = [label * 0, label, *predictions_of(models, image, label).values()]
        for axis, title, labels in zip(row, titles, panels, strict=True):
            axis.imshow(outlined(image, labels.astype(np.uint8), plain.colors))
            axis.set_xticks([])
            axis.set_yticks([])
            if place == 0:
                axis.set_title(title, fontsize=10)
        if EXPERIMENTS[name].noise:
            row[0].set_ylabel("no noise" if kind == "none" else kind, fontsize=10)
    drawing.save(figure, HERE / f"layers-{name}.png", dpi=80)


def enlarge(runs: Path, name: str, seed: int) -> None:
    """Details of three test images, where the methods that were trained, or swapped in, differ in most pixels."""
    import drawing
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    from regloss.report.overlays import outlined

    experiment, models = EXPERIMENTS[name], {}
    for method in experiment.tested(seed):
        trained, _ = experiment.swapped.get(method, (method, None))
        if (folder(runs, name, trained, seed) / "model.json").is_file():
            models[method] = load(runs, name, method, seed)
    plain = models["plain"]
    found = []
    for image, label, _ in test_images(plain, "none"):
        predictions = predictions_of(models, image, label)
        differ = np.ptp(np.stack(list(predictions.values())), axis=0) > 0
        # Windows start where they stay inside.
        count = signal.fftconvolve(differ.astype(np.float64), np.ones((ENLARGED, ENLARGED)), mode="valid")
        place = np.unravel_index(int(count.argmax()), count.shape)
        found.append((float(count.max()), image, label, predictions, place))
    found = sorted(found, key=lambda entry: -entry[0])[:3]
    titles = ["image", "enlarged", "labels", *models]
    figure = Figure(figsize=(1.75 * len(titles), 5.9), layout="constrained")
    for row, (_, image, label, predictions, place) in zip(figure.subplots(3, len(titles)), found, strict=True):
        part = tuple(slice(start, start + ENLARGED) for start in place)
        row[0].imshow(image.transpose(1, 2, 0))
        row[0].add_patch(Rectangle(place[::-1], ENLARGED, ENLARGED, fill=False, color="white"))
        for axis, labels in zip(row[1:], [label * 0, label, *predictions.values()], strict=True):
            shown = outlined(image[(slice(None), *part)], labels[part].astype(np.uint8), plain.colors)
            axis.imshow(shown, interpolation="nearest")
        for axis, title in zip(row, titles, strict=True):
            axis.set_axis_off()
            axis.set_title(title.replace(", ", ",\n"), fontsize=8)
    drawing.save(figure, HERE / f"layers-{name}-enlarged.png", dpi=80)


def choose(runs: Path, name: str) -> None:
    """Scores on the validation images of layers behind the plain network of seed 0, without training."""
    start = folder(runs, name, "start", 0)
    print(f"\n{name}\n| layer | weight | mean-iou | boundary |\n|---|---|---|---|")
    for method, (make, chosen) in {"plain": (None, 0.0), **EXPERIMENTS[name].layers}.items():
        # Local and nonlocal weights are of different scales: a pixel has more neighbours here.
        factor = 0.1 if make is nltv else 1.0
        for weight in [factor * weight for weight in EXPERIMENTS[name].grid] if make is not None else [0.0]:
            changes = [] if make is None else [f"layer={toml(make(weight))}"]
            found = evaluate_run(start, "val", changes)
            mark = " *" if make is not None and weight == chosen else ""
            numbers = f"{100 * found['mean-iou']:.2f} | {found['boundary-density']:.2f} |"
            print(f"| {method} | {weight:g}{mark} | {numbers}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("train", "table", "picture", "enlarge", "choose"))
    parser.add_argument("--data-set", nargs="+", choices=tuple(EXPERIMENTS), default=list(EXPERIMENTS))
    parser.add_argument("--seed", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--runs", type=Path, default=Path("runs/layers"))
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    if chosen.what == "table":
        table(chosen.runs, chosen.data_set)
        return
    for name in chosen.data_set:
        if chosen.what == "train":
            for seed in chosen.seed:
                train(chosen.runs, name, seed)
        elif chosen.what == "picture":
            picture(chosen.runs, name, chosen.seed[0])
        elif chosen.what == "enlarge":
            enlarge(chosen.runs, name, chosen.seed[0])
        else:
            choose(chosen.runs, name)


if __name__ == "__main__":
    main()
