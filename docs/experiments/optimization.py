"""How well a grid CRF is minimised: costs on a line of pixels, energies over a training, gradients on one image.

    python docs/experiments/optimization.py chain
    python docs/experiments/optimization.py train [--seeds 0 1 2]
    python docs/experiments/optimization.py table
    python docs/experiments/optimization.py gradients [--seeds 0]

`chain` draws costs and descents on a line of pixels, and needs no data. `train` trains acdc.py's runs of gradient
descent and ADM, with the energy of their predictions logged in every epoch; `table` reads the logs, writes
optimization.csv, prints the table and draws the curves. `gradients` draws what drives a network's scores on a training
image, for the first of the seeds. Set REGLOSS_DATA first.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import acdc
import drawing
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

import regloss
from regloss.outer_loop import OuterLoop

METHODS = {"gd": "gradient descent", "adm": "ADM"}
COLORS = {"gd": "#d97706", "dense-gd": "#7c3aed", "adm": "#2563eb"}
# The test subset is looked at, and nothing is chosen by it.
LOGGED = ("data.val=test", "evaluation.energy-images=80")
ENERGIES = {"train-energy": "training images", "val-energy": "test images"}

# ---- a line of pixels

PIXELS, WEAK, STRONG = 100, 30, 70  # edges of the line, by their places
STARTS = (52, 38)  # where the scores change sign at first
STEPS = 300
SIGMA = 15.0  # of the dense CRF that is descended on, pixels


def line() -> Tensor:
    """(1, 1, 1, PIXELS): three grey values, the second edge six times as high as the first, and some noise."""
    values = torch.full((PIXELS,), 0.3)
    values[WEAK:] += 0.06
    values[STRONG:] += 0.36
    return (values + 0.008 * torch.randn(PIXELS, generator=torch.Generator().manual_seed(0)))[None, None, None]


def costs(regularizer: regloss.Regularizer) -> list[float]:
    """Energy of the two segments that meet before pixel t, for t in 1 .. PIXELS - 1."""
    term = regularizer.bind(line())
    found = []
    for place in range(1, PIXELS):
        second = (torch.arange(PIXELS) >= place).double()
        found.append(float(term.energy(torch.stack([1 - second, second])[None, :, None])))
    return found


def descents(start: int) -> dict[str, list[int]]:
    """Where scores that are descended on change sign, by step; both ends of the line are labelled."""
    labels = torch.full((1, 1, PIXELS), 255)
    labels[..., 0], labels[..., -1] = 0, 1
    batch = regloss.Batch(line(), labels)
    grid = regloss.GridCRF()
    # Its pairs are weighted for planes; on a line a pixel's weights would not sum to 1, but to this factor less.
    dense = regloss.DenseCRF((2 * math.pi) ** 0.5 * SIGMA, sigma_xy=SIGMA, sigma_rgb=0.1, scale=1.0, backend="exact")
    loops: dict[str, OuterLoop] = {
        "gd": regloss.GradientDescent(grid),
        "dense-gd": regloss.GradientDescent(dense),
        "adm": regloss.ADM(grid, coupling=0.003, proposal_weight=1.0),
    }
    found = {}
    for name, loop in loops.items():
        scores = torch.where(torch.arange(PIXELS) < start, -1.0, 1.0)
        logits = torch.stack([-scores, scores])[None, :, None].requires_grad_()
        found[name] = [start]
        for _ in range(STEPS):
            loss = loop.objective(logits, batch, loop.propose(logits.detach(), batch))
            (gradient,) = torch.autograd.grad(loss, logits)
            with torch.no_grad():
                logits -= 0.5 * PIXELS * gradient  # the objective is a mean over pixels
            found[name].append(int((logits[0, 1] <= logits[0, 0]).sum()))
    return found


def chain() -> None:
    """Intensities, costs of all places for grid and dense CRF, and the place over a descent's steps."""
    figure = Figure(figsize=(11, 5.4), layout="constrained")
    (intensities, grid), (moves, dense) = figure.subplots(2, 2)
    intensities.plot(line()[0, 0, 0], color="#1f2937", linewidth=1.2)
    intensities.set(title="a line of pixels", xlabel="x", ylabel="I(x)")
    places = np.arange(1, PIXELS)
    grid.plot(places, costs(regloss.GridCRF()), color=COLORS["adm"])
    grid.set(title="grid CRF: cost of a boundary at t", xlabel="t", ylabel="energy")
    for sigma, shade in ((5.0, "#c4b5fd"), (SIGMA, COLORS["dense-gd"]), (40.0, "#4c1d95")):
        energies = np.array(costs(regloss.DenseCRF(sigma_xy=sigma, sigma_rgb=0.1, scale=1.0, backend="exact")))
        dense.plot(places, energies / energies.max(), color=shade, label=f"{sigma:g} pixels")
    dense.set(title="dense CRF: cost of a boundary at t", xlabel="t", ylabel="energy / largest")
    dense.legend(title="sigma", frameon=False)
    names = {"gd": "grid CRF, gradient descent", "dense-gd": "dense CRF, gradient descent", "adm": "grid CRF, ADM"}
    for start, style in zip(STARTS, ("-", "--"), strict=True):
        for name, path in descents(start).items():
            moves.plot(path, style, color=COLORS[name], label=names[name] if start == STARTS[0] else None)
            print(f"{names[name]} from {start}: ends at {path[-1]}, first there after {path.index(path[-1])} steps")
    for place, text in ((WEAK, "weak edge"), (STRONG, "strong edge")):
        moves.axhline(place, color="#9ca3af", linewidth=0.8, linestyle=":")
        moves.text(0, place, text, va="bottom", ha="left", fontsize=8, color="#6b7280")
    moves.set(title="where free scores change sign, by step", xlabel="step", ylabel="t", ylim=(0, PIXELS))
    moves.legend(frameon=False, fontsize=8, loc="upper right")
    for axes in figure.axes:
        tidy(axes)
    drawing.save(figure, acdc.HERE / "optimization-chain.png", dpi=90)


def tidy(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    title = axes.get_title()
    axes.set_title("")
    axes.set_title(title, fontsize=10, loc="left")


# ---- energies over a training


def rows_of(seeds: Sequence[int]) -> list[dict[str, Any]]:
    """One row for each method, seed and number of steps, 0 being the network that both start from."""
    rows = []
    for seed in seeds:
        start = energies_of_start(acdc.folder("full", "start", seed))
        for method in METHODS:
            run = acdc.folder("full", method, seed)
            if not (run / "scores.json").is_file():
                continue
            with (run / "log" / "epochs.csv").open() as file:
                epochs = list(csv.DictReader(file))
            with (run / "log" / "steps.csv").open() as file:
                steps = int(float(list(csv.DictReader(file))[-1]["step"])) // len(epochs)
            about = {"method": method, "seed": seed}
            rows.append({**about, "step": 0, **start})
            rows += [
                {**about, "step": steps * (int(epoch["epoch"]) + 1), **{key: float(epoch[key]) for key in ENERGIES}}
                for epoch in epochs
            ]
    return rows


def energies_of_start(run: Path) -> dict[str, float]:
    """Those of a run before the first step, of the same images as the logs'; kept beside the run."""
    from regloss.training.devices import one_process
    from regloss.training.evaluation import evaluate_samples, training_energy
    from regloss.training.folds import open_dataset
    from regloss.training.model import load_model
    from regloss.training.sample_reader import SampleReader

    kept = run / "energies.json"
    if not kept.is_file():
        model = load_model(run, LOGGED)
        config = model.config
        reader = SampleReader(open_dataset(config.data, config.data.component_settings()))
        process = one_process(config)
        found = {
            "train-energy": training_energy(process, model.segmenter, reader, config),
            "val-energy": evaluate_samples(process, model.segmenter, reader, config, "test")["energy"],
        }
        kept.write_text(json.dumps(found))
    energies: dict[str, float] = json.loads(kept.read_text())
    return energies


def table(seeds: Sequence[int]) -> None:
    rows = rows_of(seeds)
    with (acdc.HERE / "optimization.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: f"{v:.5f}" if isinstance(v, float) else v for key, v in row.items()} for row in rows)
    print(f"| method | {' | '.join(ENERGIES.values())} |\n" + "|---" * (1 + len(ENERGIES)) + "|")
    for method, name in METHODS.items():
        of_seed = {row["seed"]: row for row in rows if row["method"] == method}  # the last one of each
        cells = [" / ".join(f"{row[key]:.4f}" for row in of_seed.values()) for key in ENERGIES]
        averages = [f"{mean(row[key] for row in of_seed.values()):.4f}" for key in ENERGIES]
        print(f"| {name} | " + " | ".join(f"{a} ({c})" for a, c in zip(averages, cells, strict=True)) + " |")

    figure = Figure(figsize=(9, 3.3), layout="constrained")
    for axes, (key, title) in zip(figure.subplots(1, 2, sharey=True), ENERGIES.items(), strict=True):
        for method, name in METHODS.items():
            for seed in seeds:
                of = [row for row in rows if (row["method"], row["seed"]) == (method, seed)]
                label = name if seed == seeds[0] else None
                place, value = ([row[column] for row in of] for column in ("step", key))
                axes.plot(place, value, color=COLORS[method], marker="o", markersize=3, linewidth=1.2, label=label)
        axes.set(title=title, xlabel="step", yscale="log", ylabel="grid CRF energy a pixel")
        axes.legend(frameon=False, fontsize=8)
        tidy(axes)
    drawing.save(figure, acdc.HERE / "optimization-energies.png", dpi=90)


# ---- gradients on one image


def gradients(seed: int) -> None:
    """A training image with its scribbles, the start's prediction, and the descent direction of each loss's scores."""
    from regloss.registry import create
    from regloss.report.overlays import outlined, scribble_panel
    from regloss.training.config import build_loop, read
    from regloss.training.model import load_model, predict

    model = load_model(acdc.folder("full", "start", seed))
    config = model.config
    dataset = create("dataset", config.data.dataset, **config.data.component_settings())
    ids = dataset.ids("train")
    shown = [ids[len(ids) * place // 8] for place in (3, 5)]
    names = {"dense-gd": "dense CRF, descent", "gd": "grid CRF, descent", "adm": "grid CRF, ADM"}
    figure = Figure(figsize=(2.0 * (3 + len(names)), 2.1 * len(shown)), layout="constrained")
    for row, sample_id in zip(figure.subplots(len(shown), 3 + len(names)), shown, strict=True):
        sample = dataset.load(sample_id)
        image = torch.from_numpy(sample.image).unsqueeze(0)
        batch = regloss.Batch(image, torch.from_numpy(sample.scribble.astype(np.int64)).unsqueeze(0))
        logits = predict(model.segmenter, image).detach()
        labels = logits.argmax(1)[0].numpy().astype(np.uint8)
        panels: dict[str, Any] = {
            "scribbles": scribble_panel(sample.image, sample.scribble, dataset.colors),
            "prediction": outlined(sample.image, labels, dataset.colors),
            "truth": outlined(sample.image, sample.label, dataset.colors),
        }
        for method, name in names.items():
            loop = build_loop(read(acdc.HERE / f"acdc-{method}.toml").loss, "scribbles")
            leaf = logits.clone().requires_grad_()
            loop.objective(leaf, batch, loop.propose(logits, batch)).backward()
            assert leaf.grad is not None
            panels[name] = -leaf.grad[0, 0].numpy()  # of the background's scores
        for axes, (name, panel) in zip(row, panels.items(), strict=True):
            if panel.ndim == 3:
                axes.imshow(panel)
            else:
                # Labelled pixels, an average of their own, would outshine all others.
                largest = np.quantile(np.abs(panel[sample.scribble == 255]), 0.995)
                axes.imshow(panel, cmap="RdBu", vmin=-largest, vmax=largest)
            axes.set_axis_off()
            if sample_id == shown[0]:
                axes.set_title(name, fontsize=9)
    drawing.save(figure, acdc.HERE / "optimization-gradients.png", dpi=90)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("chain", "train", "table", "gradients"))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    chosen = parser.parse_args()
    if chosen.what == "chain":
        chain()
    elif chosen.what == "train":
        acdc.train("full", tuple(METHODS), chosen.seeds, LOGGED)
    elif chosen.what == "table":
        table(chosen.seeds)
    else:
        gradients(chosen.seeds[0])


if __name__ == "__main__":
    main()
