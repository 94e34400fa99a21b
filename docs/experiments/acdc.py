"""The ACDC comparison: every method on the same data, network, start and number of steps, three seeds each.

    python docs/experiments/acdc.py train [--methods pce gd ...] [--seeds 0 1 2] [--variant full]
    python docs/experiments/acdc.py table
    python docs/experiments/acdc.py picture [--methods gd adm ...]

`train` runs `regloss train` with the TOML files of this folder, skipping what is there already; `table` reads the
scores, writes acdc.csv and prints the tables; `picture` draws the test predictions of all methods. Of runs that are not
here, acdc.csv keeps the rows, with the day of their training; the tables mark with a dagger those that are older than
others. Set REGLOSS_DATA first.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import date
from pathlib import Path
from statistics import mean
from typing import Any

HERE = Path(__file__).resolve().parent
RUNS = Path("runs/acdc")
METHODS = ("pce", "gd", "adm", "trust-region", "one-shot", "full")
# Twice as many steps in a time, on CPUs that can; the variant "mixed" measures what it changes.
MIXED = "training.precision=bf16-mixed"
# Settings that differ from the TOML files, by variant of the set-up.
VARIANTS: dict[str, list[str]] = {
    "full": [],
    "mixed": [MIXED],
    "most": ["data.scribble-length=0.8", MIXED],
    "half": ["data.scribble-length=0.5", MIXED],
    "short": ["data.scribble-length=0.3", MIXED],
    "click": ["data.scribble-length=0", MIXED],
    "crop": ["data.reduce=1", "data.center=160", "data.crop=160"],
}


def folder(variant: str, method: str, seed: int) -> Path:
    return RUNS / (f"{method}-{seed}" if variant == "full" else f"{variant}-{method}-{seed}")


def train(variant: str, methods: Sequence[str], seeds: Sequence[int], further: Sequence[str] = ()) -> None:
    """Train what is not there yet; ``further`` settings are those of every method but the start."""
    for seed in seeds:
        for method in ("start", *methods):
            output = folder(variant, method, seed)
            if (output / "scores.json").is_file():
                continue
            changes = [f"seed={seed}", f"output={output}", *VARIANTS[variant]]
            if method != "start":
                changes += [f"training.start-from={folder(variant, 'start', seed)}", *further]
            command = [sys.executable, "-m", "regloss_cli.main", "train", str(HERE / f"acdc-{method}.toml"), "--quiet"]
            command += ["--resume"] if output.exists() else []
            for change in changes:
                command += ["--set", change]
            began = time.perf_counter()
            subprocess.run(command, check=True)
            print(f"{output}: {time.perf_counter() - began:.0f} s", flush=True)


def read(variant: str, method: str, seed: int) -> dict[str, Any] | None:
    """One row of the table; None where the run is not finished."""
    output = folder(variant, method, seed)
    if not (output / "scores.json").is_file():
        return None
    test = json.loads((output / "scores.json").read_text())["test"]
    with (output / "log" / "epochs.csv").open() as file:
        rows = [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)]
    # Stage A's wall time where proposals are kept; the solver's time inside the steps where they are not.
    solver = sum(row.get("update-seconds", row.get("solver-seconds", 0.0)) for row in rows)
    return {
        "variant": variant,
        "method": method,
        "seed": seed,
        "trained": date.fromtimestamp((output / "scores.json").stat().st_mtime).isoformat(),
        "dice": 100 * test["mean-foreground-dice"],
        "energy": test["energy"],
        "seconds": sum(row["seconds"] for row in rows),
        "solver-share": solver / sum(row["seconds"] for row in rows),
    }


TYPES: dict[str, Callable[[str], Any]] = {"variant": str, "method": str, "trained": str, "seed": int}


def rows_of(path: Path) -> list[dict[str, Any]]:
    """Rows of a table that is kept beside this file; none where it does not exist."""
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return [{key: TYPES.get(key, float)(value) for key, value in row.items()} for row in csv.DictReader(file)]


def update(path: Path, rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Replace in the table ``path`` what ``rows`` have anew, by variant, method and seed; all rows that it has then."""
    found = {(row["variant"], row["method"], row["seed"]): row for row in [*rows_of(path), *rows]}
    methods = list(dict.fromkeys(method for _, method, _ in found))  # in the order of their first rows
    place = {key: (list(VARIANTS).index(key[0]), methods.index(key[1]), key[2]) for key in found}
    ordered = [found[key] for key in sorted(found, key=place.__getitem__)]
    write(path, ordered)
    return ordered


def write(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: f"{v:.4f}" if isinstance(v, float) else v for key, v in row.items()} for row in rows)


def by_seed(rows: Sequence[dict[str, Any]], key: str, newest: str, seeds: Sequence[int] = (0, 1, 2)) -> str:
    """Two cells of a table: the numbers of all seeds, those trained before ``newest`` with a dagger, and their mean."""
    of = {row["seed"]: f"{row[key]:.1f}{old(row, newest)}" for row in rows}
    mark = max(old(row, newest) for row in rows)
    return f"{' / '.join(of.get(seed, '-') for seed in seeds)} | {mean(row[key] for row in rows):.1f}{mark}"


def old(row: dict[str, Any], newest: str) -> str:
    return "†" if row["trained"] < newest else ""


def table(seeds: list[int]) -> None:
    rows = update(
        HERE / "acdc.csv",
        (
            row
            for variant in VARIANTS
            for method in ("start", *METHODS)
            for seed in seeds
            if (row := read(variant, method, seed)) is not None
        ),
    )
    for variant in VARIANTS:
        of_variant = [row for row in rows if row["variant"] == variant]
        if not of_variant:
            continue
        newest = max(row["trained"] for row in of_variant)
        print(f"\n{variant}, trained on {newest}, † = before\n")
        print("| method | Dice, seeds 0 / 1 / 2 | mean | energy | seconds | solver share |")
        print("|---|---|---|---|---|---|")
        for method in ("start", *METHODS):
            of = [row for row in of_variant if row["method"] == method]
            if of:
                energy, seconds, share = (mean(row[key] for row in of) for key in ("energy", "seconds", "solver-share"))
                print(f"| {method} | {by_seed(of, 'dice', newest)} | {energy:.4f} | {seconds:.0f} | {share:.2f} |")


def picture(seed: int, methods: Sequence[str] = METHODS, name: str = "acdc.png") -> None:
    import torch
    from matplotlib.figure import Figure

    from regloss.registry import create
    from regloss.report.overlays import outlined
    from regloss.training.model import load_model, predict

    models = {method: load_model(folder("full", method, seed)) for method in methods}
    config = models[methods[0]].config
    dataset = create("dataset", config.data.dataset, **config.data.component_settings())
    ids = dataset.ids("test")
    chosen = [ids[len(ids) * place // 8] for place in (1, 3, 5, 7)]
    titles = ["image", *methods, "truth"]
    figure = Figure(figsize=(2 * len(titles), 2.2 * len(chosen)), layout="constrained")
    axes = figure.subplots(len(chosen), len(titles))
    for row, sample_id in zip(axes, chosen, strict=True):
        sample = dataset.load(sample_id)
        image = torch.from_numpy(sample.image).unsqueeze(0)
        panels = [sample.label * 0]
        panels += [predict(model.segmenter, image).argmax(1)[0].numpy().astype("uint8") for model in models.values()]
        panels.append(sample.label)
        for axis, title, labels in zip(row, titles, panels, strict=True):
            axis.imshow(outlined(sample.image, labels, dataset.colors))
            axis.set_axis_off()
            if sample_id == chosen[0]:
                axis.set_title(title)
    figure.savefig(HERE / name, dpi=90)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("train", "table", "picture"))
    parser.add_argument("--variant", choices=tuple(VARIANTS), default="full")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    chosen = parser.parse_args()
    if chosen.what == "train":
        train(chosen.variant, chosen.methods, chosen.seeds)
    elif chosen.what == "table":
        table(chosen.seeds)
    else:
        picture(chosen.seeds[0], chosen.methods)


if __name__ == "__main__":
    main()
