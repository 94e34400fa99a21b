"""ACDC by patients in five folds, as the field's papers report it: every method by one script, for a GPU.

    python docs/experiments/acdc_folds.py train [ROOT ...] [--folds 1 2 ...] [--methods pce trust-region ...]
        [--seeds 0] [--steps 60000] [--set KEY=VALUE ...]
    python docs/experiments/acdc_folds.py table [--seeds 0]

Fold f tests on patients 20 (f - 1) + 1 to 20 f and trains on all the others that are there. ROOT is a folder with
images, labels and scribbles, files named patient001_frame01_slice_1.png and so on; several are read as one. `train`
skips what is there already and goes on with what was interrupted. `table` prints the mean Dice of the volumes of each
fold and writes acdc-folds.csv. No setting was chosen on a test fold.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from regloss.io.toml import read_toml
from regloss.training.config import apply_change, parse
from regloss.training.trainer import train as run

HERE = Path(__file__).resolve().parent
RUNS = Path("runs/acdc-folds")
FOLDS = (1, 2, 3, 4, 5)
PATIENTS = 20  # of a fold

GRID_CRF = [{"name": "grid-crf", "weight": 2.0}]
PROPOSALS = 8  # how often the trust region's are made
# What a method sets beside acdc-folds.toml; those of STARTED go on from the network of partial cross entropy.
METHODS: dict[str, dict[str, Any]] = {
    "pce": {},
    "entropy": {"loss": {"data-term": [{"name": "partial-cross-entropy"}, {"name": "entropy", "weight": 0.1}]}},
    "gd": {"loss": {"regularizer": GRID_CRF}},
    "gated-crf": {"loss": {"regularizer": [{"name": "gated-crf", "weight": 0.1}]}},
    "trust-region": {
        "loss": {
            "regularizer": GRID_CRF,
            "outer-loop": {
                "name": "trust-region",
                "solver": "alpha-expansion",
                "coupling": {"start": 0.03, "end": 1.0, "shape": "exponential"},
                "divergence": "robust-kl",
                "epsilon": {"start": 0.0, "end": 0.3},
            },
        }
    },
    "full": {"data": {"supervision": "labels"}},
}
STARTED = ("trust-region",)


def patients_of(fold: int) -> range:
    """Numbers of the patients on which ``fold`` (1 to 5) tests."""
    return range(PATIENTS * (fold - 1) + 1, PATIENTS * fold + 1)


def join(roots: Sequence[Path]) -> Path:
    """One folder with links to the files of all ``roots``."""
    joined = RUNS / "data"
    for part in ("images", "labels", "scribbles"):
        (joined / part).mkdir(parents=True, exist_ok=True)
        for root in roots:
            for path in sorted((root / part).iterdir()):
                link = joined / part / path.name
                if not link.exists():
                    link.symlink_to(path.resolve())
    return joined


def splits(ids: Sequence[str], fold: int) -> dict[str, list[str]]:
    """Ids to train and to test on.

    Raises:
        SystemExit: none of the patients of ``fold`` is there, or none of the others.
    """
    found: dict[str, list[str]] = {"train": [], "test": []}
    for name in ids:
        number = re.match(r"patient(\d+)_", name)
        if number is None:
            sys.exit(f"{name}: a file must be named like patient021_frame01_slice_1.png.")
        found["test" if int(number[1]) in patients_of(fold) else "train"].append(name)
    for part, names in found.items():
        if not names:
            sys.exit(f"Fold {fold} has no patients to {part} on among {len(ids)} slices.")
    return found


def folder(method: str, fold: int, seed: int) -> Path:
    return RUNS / f"{method}-{fold}-{seed}"


def settings(method: str, fold: int, seed: int, root: Path, steps: int) -> dict[str, Any]:
    """The configuration of a run."""
    table = read_toml(HERE / "acdc-folds.toml")
    ids = sorted(path.stem for path in (root / "images").iterdir())
    split = splits(ids, fold)
    epochs = math.ceil(steps / math.ceil(len(split["train"]) / table["training"]["batch-size"]))
    table |= {"output": str(folder(method, fold, seed)), "seed": seed}
    table["data"] |= {"root": str(root.resolve()), "split": split}
    table["training"]["epochs"] = epochs
    for section, changes in METHODS[method].items():
        table[section] = table.get(section, {}) | changes
    if method == "trust-region":
        table["loss"]["outer-loop"] = table["loss"]["outer-loop"] | {"update-every": math.ceil(epochs / PROPOSALS)}
    if method in STARTED:
        table["training"]["start-from"] = str(folder("pce", fold, seed))
    return table


def train(
    roots: Sequence[Path],
    methods: Sequence[str],
    folds: Sequence[int],
    seeds: Sequence[int],
    steps: int,
    changes: Sequence[str],
) -> None:
    root = join(roots)
    for seed in seeds:
        for fold in folds:
            wanted = ["pce", *methods] if set(methods) & set(STARTED) else methods
            for method in dict.fromkeys(wanted):
                output = folder(method, fold, seed)
                if (output / "scores.json").is_file():
                    continue
                table = settings(method, fold, seed, root, steps)
                for change in changes:
                    apply_change(table, change)
                run(parse(table), resume=output.exists(), callback=print)


def read(method: str, fold: int, seed: int) -> dict[str, Any] | None:
    output = folder(method, fold, seed)
    if not (output / "scores.json").is_file():
        return None
    test = json.loads((output / "scores.json").read_text())["test"]
    with (output / "log" / "epochs.csv").open(newline="") as file:
        seconds = sum(float(row["seconds"]) for row in csv.DictReader(file))
    dice = 100 * test["mean-foreground-dice"]
    return {"method": method, "fold": fold, "seed": seed, "dice": dice, "energy": test["energy"], "seconds": seconds}


def print_table(seeds: Sequence[int]) -> None:
    found = [
        result
        for method in METHODS
        for fold in FOLDS
        for seed in seeds
        if (result := read(method, fold, seed)) is not None
    ]
    if not found:
        sys.exit(f"No run in {RUNS} has ended; train some first.")
    with (HERE / "acdc-folds.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(found[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: f"{v:.4f}" if isinstance(v, float) else v for key, v in row.items()} for row in found)
    print(
        "| method | " + " | ".join(f"fold {fold}" for fold in FOLDS) + " | mean |\n" + "|---" * (len(FOLDS) + 2) + "|"
    )
    for method in METHODS:
        of = {fold: [row["dice"] for row in found if (row["method"], row["fold"]) == (method, fold)] for fold in FOLDS}
        scores = {fold: mean(dice) for fold, dice in of.items() if dice}
        if scores:
            cells = [f"{scores[fold]:.1f}" if fold in scores else "-" for fold in FOLDS]
            print(f"| {method} | " + " | ".join(cells) + f" | {mean(scores.values()):.1f} |")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("train", "table"))
    parser.add_argument("roots", nargs="*", type=Path)
    parser.add_argument("--folds", nargs="+", type=int, choices=FOLDS, default=list(FOLDS))
    parser.add_argument("--methods", nargs="+", choices=tuple(METHODS), default=list(METHODS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--steps", type=int, default=60_000)
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", dest="changes")
    chosen = parser.parse_args(arguments)
    if chosen.what == "table":
        print_table(chosen.seeds)
    elif not chosen.roots:
        parser.error("train needs the folder of the data, or several")
    else:
        train(chosen.roots, chosen.methods, chosen.folds, chosen.seeds, chosen.steps, chosen.changes)


if __name__ == "__main__":
    main()
