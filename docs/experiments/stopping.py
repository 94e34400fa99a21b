"""Two rules for stopping the nonlocal softmax: the published relative gap, and the gap per pixel.

    python docs/experiments/stopping.py table
    python docs/experiments/stopping.py picture

`table` solves one problem of 480 x 360 pixels and 11 classes, a street scene with nltv, and notes when each rule would
have stopped, for logits o and for o + c(x), whose solution is the same; it writes stopping.csv. `picture` draws both
energies over the iterations at half that size, with the published steps and with ours. Set REGLOSS_DATA.
"""

from __future__ import annotations

import argparse
import csv
import time
from collections.abc import Callable
from pathlib import Path

import drawing
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional

import regloss
from regloss.registry import create

HERE = Path(__file__).resolve().parent
WEIGHT, ENTROPY, NEIGHBORS = 3.0, 0.5, 10  # as published, and its step:
STEP = 0.03
CLASSES = 11
LEVELS = (1e-2, 1e-3, 1e-4, 1e-5)
SHIFTS: dict[str, Callable[[Tensor], Tensor]] = {
    "o": torch.zeros_like,  # as the colours say, a density's logarithm
    "log softmax(o)": lambda o: -o.logsumexp(1, keepdim=True),
    "o - max o": lambda o: -o.amax(1, keepdim=True),
    "o + 10": lambda o: torch.full_like(o, 10.0),
}


def problem(enlarged: int) -> tuple[Tensor, Tensor]:
    """Image (1, 3, H, W) and logits (1, 11, H, W) of a street scene: normal densities of each class's colours there."""
    places = {"images": "val/images", "labels": "val/labels", "split": {"test": ["*"]}}
    dataset = create("dataset", "folder", root="camvid_half", classes=CLASSES, **places)
    sample = dataset.load(dataset.ids("test")[10])
    assert sample.label is not None
    image, labels = torch.from_numpy(sample.image), torch.from_numpy(sample.label)
    logits = torch.full((1, CLASSES, *labels.shape), -50.0)  # of classes that are not there
    for k in labels.unique().tolist():
        if k < CLASSES:
            colors = image[:, labels == k]
            spread = colors.std(1).mean() + 0.02
            apart = (image - colors.mean(1)[:, None, None]).square().sum(0)
            logits[0, k] = -apart / (2 * spread**2) - 3 * spread.log()
    size = [enlarged * length for length in labels.shape]
    larger = [functional.interpolate(values, size, mode="bilinear") for values in (image[None], logits)]
    return larger[0], larger[1]


def term_of(image: Tensor) -> regloss.Term:
    graph = regloss.NonlocalTV(WEIGHT, neighbors=NEIGHBORS, sigma_xy=40.0, sigma_near=3.0)
    return graph.bind(image)


def history(term: regloss.Term, logits: Tensor, solver: regloss.PDHG) -> tuple[list[tuple[int, float, float]], Tensor]:
    """(steps, energy, bound) at each look, and the labels at the end."""
    found: list[tuple[int, float, float]] = []
    solution = regloss.solve(
        term,
        -logits,
        solver,
        entropy=ENTROPY,
        callback=lambda now: found.append((now.steps, float(now.energy), float(now.bound))),
    )
    return found, solution.labels


def table() -> None:
    """Where each rule stops; the iterates do not depend on c(x), so that one run serves all shifts."""
    image, logits = problem(2)
    began = time.process_time()
    term = term_of(image)
    print(f"{tuple(image.shape[2:])}, graph in {time.process_time() - began:.1f} s", flush=True)
    began = time.process_time()
    looks, labels = history(term, logits, regloss.PDHG(max_steps=800, tolerance=0.0, check_every=10))
    print(f"{looks[-1][0]} steps in {time.process_time() - began:.1f} s")
    pixels = labels.numel()
    moved = {name: float(shift(logits).double().sum()) for name, shift in SHIFTS.items()}
    rows = []
    for level in LEVELS:
        for name, total in moved.items():
            # P(o + c) = P(o) - sum of c, and so is D.
            rule = [abs(energy - bound) / abs(energy - total) <= level for _, energy, bound in looks]
            rows.append(stopped("relative", name, level, rule, looks, pixels))
        rule = [(energy - bound) / pixels <= level for _, energy, bound in looks]
        rows.append(stopped("per pixel", "any", level, rule, looks, pixels))
    with (HERE / "stopping.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    print(f"| rule | {' | '.join(f'{level:.0e}' for level in LEVELS)} |\n" + "|---" * (len(LEVELS) + 1) + "|")
    for rule_name, name in [*(("relative", name) for name in SHIFTS), ("per pixel", "any")]:
        of = [row for row in rows if (row["rule"], row["logits"]) == (rule_name, name)]
        cells = [f"{row['steps']} ({row['gap']:.1e})" if row["steps"] else "never" for row in of]
        print(f"| {rule_name}, {name} | {' | '.join(cells)} |")


def stopped(
    rule: str, name: str, level: float, holds: list[bool], looks: list[tuple[int, float, float]], pixels: int
) -> dict[str, object]:
    place = holds.index(True) if True in holds else None
    steps, energy, bound = (0, float("nan"), float("nan")) if place is None else looks[place]
    return {"rule": rule, "logits": name, "level": level, "steps": steps, "gap": (energy - bound) / pixels}


def picture() -> None:
    """Primal and dual energy per pixel over the iterations."""
    image, logits = problem(1)
    terms = {"tv": regloss.TotalVariation(WEIGHT).bind(image), "nltv": term_of(image)}
    solvers = {
        "published: fixed step .03": regloss.PDHG(
            max_steps=1000, tolerance=0.0, check_every=10, method="projected-gradient", steps=STEP
        ),
        "accelerated, diagonal steps": regloss.PDHG(max_steps=1000, tolerance=0.0, check_every=10),
    }
    figure = Figure(figsize=(10, 6), layout="constrained")
    grid = figure.subplots(2, 2)
    pixels = logits[0, 0].numel()
    for row, (name, term) in zip(grid, terms.items(), strict=True):
        for (label, solver), color in zip(solvers.items(), ("#d97706", "#2563eb"), strict=True):
            looks, _ = history(term, logits, solver)
            steps = [look[0] for look in looks]
            row[0].plot(steps, [look[1] / pixels for look in looks], color=color, label=f"primal, {label}")
            row[0].plot(steps, [look[2] / pixels for look in looks], "--", color=color, label=f"dual, {label}")
            row[1].semilogy(steps, [max(look[1] - look[2], 1e-12) / pixels for look in looks], color=color, label=label)
            print(name, label, f"gap a pixel after {steps[-1]} steps: {(looks[-1][1] - looks[-1][2]) / pixels:.2e}")
        row[0].set(title=f"{name}: energies per pixel", xlabel="iteration")
        low = looks[-1][2] / pixels  # of the accelerated steps
        row[0].set_ylim(low - 0.6, low + 1.5)
        row[1].set(title=f"{name}: gap per pixel", xlabel="iteration")
        row[0].legend(frameon=False, fontsize=8)
        for axes in row:
            axes.spines[["top", "right"]].set_visible(False)
    drawing.save(figure, HERE / "stopping.png", dpi=85)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("table", "picture"))
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    {"table": table, "picture": picture}[chosen.what]()


if __name__ == "__main__":
    main()
