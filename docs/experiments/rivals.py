"""Rivals of solvers on ACDC scribbles: pseudo-labels, teachers and losses of other papers, beside ours.

    python docs/experiments/rivals.py train [--methods entropy ...] [--seeds 0 1 2]
    python docs/experiments/rivals.py proposals [--thresholds 0 0.8]
    python docs/experiments/rivals.py table
    python docs/experiments/rivals.py picture

Data, network, start and steps are those of acdc.py, whose runs are used where both name the same. `table` reads the
scores and writes rivals.csv; of methods and seeds without a run here it takes the row that acdc.csv, dense-methods.csv
or rivals.csv has, and marks with a dagger what was trained before the newest of them. `proposals` compares random walks
on the training images, as pseudo-labels, with the dense labels. Set REGLOSS_DATA first.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import acdc
import numpy as np

# In the order of the published means, of five folds after 60,000 steps; None = not among them.
PUBLISHED: dict[str, float | None] = {
    "pce": 68.6,
    "random-walker": 78.8,
    "mumford-shah": 83.9,
    "entropy": 84.6,
    "dense-gd": 85.6,
    "dual-branch": 87.2,
    "mean-teacher": None,
    "gated-crf": None,
    "gd": None,
    "adm": None,
    "trust-region": None,
    "full": 89.8,
}
METHODS = tuple(PUBLISHED)
NEW = ("entropy", "mumford-shah", "random-walker", "dual-branch", "mean-teacher")
COLUMNS = ("method", "seed", "trained", "dice")
SEEDS = (0, 1, 2)
KEPT = ("acdc.csv", "dense-methods.csv", "rivals.csv")


def known_rows() -> list[dict[str, Any]]:
    """Rows by method and seed: of the runs that are here, else of the tables that are kept beside this file."""
    kept = [row for name in reversed(KEPT) for row in acdc.rows_of(acdc.HERE / name)]
    here = [acdc.read("full", method, seed) for method in PUBLISHED for seed in SEEDS]
    found = {
        (row["method"], row["seed"]): {column: row[column] for column in COLUMNS}
        for row in [*kept, *here]
        if row is not None and row.get("variant", "full") == "full"
    }
    return [found[method, seed] for method in PUBLISHED for seed in SEEDS if (method, seed) in found]


def table(path: Path = acdc.HERE / "rivals.csv") -> None:
    """Write ``path``, and print the table."""
    rows = known_rows()
    acdc.write(path, rows)
    newest = max(row["trained"] for row in rows)
    print(f"trained on {newest}, † = before\n")
    print("| method | Dice, seeds 0 / 1 / 2 | mean | published |\n|---|---|---|---|")
    for method, published in PUBLISHED.items():
        of = [row for row in rows if row["method"] == method]
        if of:
            print(f"| {method} | {acdc.by_seed(of, 'dice', newest)} | {published or ''} |")


def proposals(thresholds: list[float]) -> None:
    """How good random walks are as pseudo-labels of the training images, and how many pixels they label."""
    import torch

    from regloss.registry import create, resolve
    from regloss.training.config import read

    data = read(acdc.HERE / "acdc-random-walker.toml").data
    dataset = create("dataset", data.dataset, **data.component_settings())
    assert data.proposals is not None
    walker = resolve("segmenter", data.proposals.segmenter)
    confusions = {threshold: np.zeros((4, 4), dtype=np.int64) for threshold in thresholds}
    pixels = 0
    for sample in map(dataset.load, dataset.ids(data.train)):
        scribbles = torch.from_numpy(sample.scribble.astype(np.int64)).unsqueeze(0)
        if len(scribbles.unique()) < 3:  # one class alone, which the training leaves as it is
            continue
        found = walker(torch.from_numpy(sample.image).unsqueeze(0), scribbles=scribbles)
        labels, largest = found.labels[0].numpy(), found.probabilities.amax(1)[0].numpy()
        pixels += labels.size
        for threshold, confusion in confusions.items():
            given = largest >= threshold
            pairs = 4 * sample.label[given].astype(np.int64) + labels[given]
            confusion += np.bincount(pairs, minlength=16).reshape(4, 4)
    print("| threshold | labelled | right, of these | Dice of the foreground, of these |\n|---|---|---|---|")
    for threshold, confusion in confusions.items():
        dice = 2 * confusion.diagonal() / (confusion.sum(0) + confusion.sum(1))
        labelled, right = confusion.sum() / pixels, confusion.trace() / confusion.sum()
        print(f"| {threshold:g} | {100 * labelled:.1f} % | {100 * right:.1f} % | {dice[1:].mean():.3f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("train", "proposals", "table", "picture"))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(NEW))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--thresholds", nargs="+", type=float, default=[0.0, 0.5, 0.6, 0.7, 0.8, 0.9])
    chosen = parser.parse_args()
    if chosen.what == "train":
        acdc.train("full", chosen.methods, chosen.seeds)
    elif chosen.what == "proposals":
        proposals(chosen.thresholds)
    elif chosen.what == "table":
        table()
    else:
        acdc.picture(chosen.seeds[0], ("start", *chosen.methods), "rivals.png")


if __name__ == "__main__":
    main()
