"""The ACDC comparison of dense priors and soft self-labeling, with boundary distances, and shortened scribbles.

    python docs/experiments/dense.py train [--methods dense-gd ...] [--seeds 0 1 2]
    python docs/experiments/dense.py train --lengths [--variants short ...] [--seeds 0]
    python docs/experiments/dense.py train --published [--variants short ...] [--seeds 0]
    python docs/experiments/dense.py camvid [--methods dense-gd ...] [--seeds 0]
    python docs/experiments/dense.py camvid --lengths [--methods adm ...] [--variants short ...] [--seeds 0 1 2]
    python docs/experiments/dense.py table
    python docs/experiments/dense.py lengths
    python docs/experiments/dense.py picture [--methods gd dense-gd ...] [--seeds 0]

Data, network, start and steps are those of acdc.py, whose runs are used where both name the same. `table` scores the
trained models on the test patients, writes dense-methods.csv and dense-lengths.csv and prints them; of runs that are
not here both keep the rows, as acdc.csv does. `--published` trains the trust region with the weights that its paper has
for each length, as far as they carry over to four classes. `lengths` draws scores against the length of the scribbles,
`picture` test predictions. `camvid` trains and scores many classes, on scribbles simulated from dense labels, with the
settings of each method that ACDC's files hold; with `--lengths` on shortened ones and in fewer epochs, with the scores
in dense-camvid-lengths.csv. Set REGLOSS_DATA first.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from statistics import mean
from typing import Any

import acdc
import numpy as np
import tomllib
from seeds import mean_and_spread

METHODS = ("pce", "grabcut", "dense-gd", "gated-crf", "dense-adm", "soft", "soft-dense", "gd", "trust-region", "full")
OF_LENGTH = ("pce", "gd", "dense-gd", "adm", "trust-region", "published")
OF_LENGTH_CAMVID = ("pce", "gd", "adm", "trust-region")
PICTURED = ("gd", "dense-gd", "dense-adm", "soft", "trust-region", "full")
LENGTHS = {"click": 0.0, "short": 0.3, "half": 0.5, "most": 0.8, "full": 1.0}
TITLES = {
    "start": "the start",
    "pce": "partial cross entropy",
    "gd": "grid CRF, gradient descent",
    "dense-gd": "dense CRF, gradient descent",
    "adm": "grid CRF, ADM",
    "trust-region": "grid CRF, trust region",
    "published": "the same, published weights",
}
# Of the trust region: epsilon with K = 21, and coupling, as published; pixels of ACDC for each scribbled one.
PUBLISHED = {
    "full": (0.944, 0.05, 50),
    "most": (0.946, 0.075, 62),
    "half": (0.9514, 0.1, 98),
    "short": (0.9516, 0.1, 165),
    "click": (0.9522, 0.1, 3215),
}
COLUMNS = ("method", "variant", "length", "seed", "trained", "dice", "hd95", "unmatched", "seconds", "solver-share")

CAMVID = Path("runs/dense-camvid")
CAMVID_LENGTHS = Path("runs/dense-camvid-lengths")
# Of partial cross entropy, then of each method.
EPOCHS = {CAMVID: (15, 6), CAMVID_LENGTHS: (10, 4)}
# Another folder, and a split that means all of it.
CAMVID_TEST = ("data.images=val/images", "data.labels=val/labels", 'data.split={test = ["*"]}', "data.test=test")


def score(run: Path, changes: Sequence[str] = ()) -> dict[str, float]:
    """Scores of a trained model on the test images; kept beside the runs, since they take seconds.

    Args:
        run: its folder.
        changes: settings that replace the run's.
    """
    import torch

    from regloss.metrics.scores import Scores
    from regloss.registry import create
    from regloss.training.model import load_model, predict

    kept = run.parent / "dense-scores.json"
    known: dict[str, Any] = json.loads(kept.read_text()) if kept.is_file() else {}
    if run.name not in known:
        model = load_model(run, changes)
        data = model.config.data
        dataset = create("dataset", data.dataset, **data.component_settings())
        scores = Scores(model.classes, hausdorff=True)
        for sample_id in dataset.ids(data.test):
            sample = dataset.load(sample_id)
            prediction = predict(model.segmenter, torch.from_numpy(sample.image).unsqueeze(0)).argmax(1)[0]
            scores.update(prediction, torch.from_numpy(sample.label.astype(np.int64)), sample.group)
        found = scores.compute()
        known[run.name] = {
            "dice": 100 * found["mean-foreground-dice"],
            "hd95": found["mean-foreground-hd95"],
            "unmatched": 100 * found["unmatched"],
            "mean-iou": 100 * found["mean-iou"],
            "accuracy": 100 * found["accuracy"],
        }
        kept.write_text(json.dumps(known, indent=1))
    return known[run.name]


def read(variant: str, method: str, seed: int) -> dict[str, Any] | None:
    """One row of the tables; None where the run is not finished."""
    row = acdc.read(variant, method, seed)
    if row is None:
        return None
    row |= {"length": LENGTHS[variant], **score(acdc.folder(variant, method, seed))}
    return {column: row[column] for column in COLUMNS}


def published(variant: str) -> list[str]:
    """Settings of acdc-published.toml for a length; epsilon as far below (K - 1) / K as the published one."""
    epsilon, coupling, pixels = PUBLISHED[variant]
    return [
        f"loss.outer-loop.epsilon={epsilon / (20 / 21) * (3 / 4):.6f}",
        f"loss.outer-loop.coupling={coupling}",
        f"loss.outer-loop.proposal-weight={pixels}",
    ]


def table(seeds: list[int]) -> None:
    rows = acdc.update(
        acdc.HERE / "dense-methods.csv",
        (row for method in ("start", *METHODS) for seed in seeds if (row := read("full", method, seed)) is not None),
    )
    newest = max(row["trained"] for row in rows)
    print(f"trained on {newest}, † = before\n")
    print("| method | Dice, by seed | mean | HD95, by seed | mean | unmatched | seconds | solver share |")
    print("|---|---|---|---|---|---|---|---|")
    for method in ("start", *METHODS):
        of = [row for row in rows if row["method"] == method]
        if of:
            cells = [method, *(acdc.by_seed(of, key, newest) for key in ("dice", "hd95"))]
            unmatched, seconds, share = (
                mean(row[key] for row in of) for key in ("unmatched", "seconds", "solver-share")
            )
            print(f"| {' | '.join(cells)} | {unmatched:.0f} % | {seconds:.0f} | {share:.2f} |")

    rows = acdc.update(
        acdc.HERE / "dense-lengths.csv",
        (
            row
            for variant in LENGTHS
            for method in ("start", *OF_LENGTH)
            for seed in seeds
            if (row := read(variant, method, seed)) is not None
        ),
    )
    print("\n" + lengths_table(rows, ("start", *OF_LENGTH), "dice"))
    if rows := acdc.rows_of(acdc.HERE / "dense-camvid-lengths.csv"):
        print("\nCamVid\n\n" + lengths_table(rows, ("start", *OF_LENGTH_CAMVID), "mean-iou"))


def by_length(rows: Sequence[dict[str, Any]], method: str) -> dict[float, list[dict[str, Any]]]:
    """A method's rows of each length, of the seeds that all its lengths have: others would compare starts."""
    of = [row for row in rows if row["method"] == method]
    lengths = sorted({row["length"] for row in of})
    seeds = [{row["seed"] for row in of if row["length"] == length} for length in lengths]
    common = set.intersection(*seeds) if seeds else set()
    return {length: [row for row in of if row["length"] == length and row["seed"] in common] for length in lengths}


def lengths_table(rows: Sequence[dict[str, Any]], methods: Sequence[str], measure: str) -> str:
    """Means and deviations over seeds against lengths; what holds a number from before the newest day has a dagger."""
    newest = max(row["trained"] for row in rows)
    lines = ["| method | seeds | " + " | ".join(f"{length:g}" for length in LENGTHS.values()) + " |"]
    lines.append("|---|---|" + "---|" * len(LENGTHS))
    for method in methods:
        found = by_length(rows, method)
        seeds = " ".join(sorted({str(row["seed"]) for of in found.values() for row in of}))
        cells = [over_seeds(found.get(length, []), measure, newest) for length in LENGTHS.values()]
        lines.append(f"| {method} | {seeds} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def over_seeds(rows: Sequence[dict[str, Any]], measure: str, newest: str) -> str:
    """Mean and standard deviation; a dagger where a number is from before ``newest``."""
    values = [row[measure] for row in rows]
    if not values:
        return "-"
    return f"{mean_and_spread(values, 1)}{max(acdc.old(row, newest) for row in rows)}"


def camvid(methods: list[str], seeds: list[int]) -> None:
    """Train and score on whole strokes."""
    print("| method | seed | mean IoU | accuracy | HD95 | unmatched |\n|---|---|---|---|---|---|")
    rows = []
    for seed in seeds:
        for method in ("start", *methods):
            of = score(train_camvid(CAMVID, "full", method, seed), CAMVID_TEST)
            rows.append({"method": method, "seed": seed, **{key: f"{value:.4f}" for key, value in of.items()}})
            numbers = " | ".join(f"{of[key]:.1f}" for key in ("mean-iou", "accuracy", "hd95", "unmatched"))
            print(f"| {method} | {seed} | {numbers} % |", flush=True)
    with (acdc.HERE / "dense-camvid.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def camvid_lengths(methods: list[str], variants: list[str], seeds: list[int]) -> None:
    """Train and score with shortened strokes; the table has every run as soon as it is finished."""
    for seed in seeds:
        for variant in variants:
            for method in ("start", *methods):
                run = train_camvid(CAMVID_LENGTHS, variant, method, seed)
                row = {"variant": variant, "method": method, "length": LENGTHS[variant], "seed": seed}
                row["trained"] = date.fromtimestamp((run / "model.safetensors").stat().st_mtime).isoformat()
                rows = acdc.update(acdc.HERE / "dense-camvid-lengths.csv", [row | score(run, CAMVID_TEST)])
    print(lengths_table(rows, ("start", *methods), "mean-iou"))


# Settings of [data] in which ACDC's files differ.
OF_DATA = ("supervision", "proposals")


def train_camvid(runs: Path, variant: str, method: str, seed: int) -> Path:
    """The run's folder below ``runs``; trains what is not there yet."""
    output = runs / acdc.folder(variant, method, seed).name
    if (output / "model.safetensors").is_file():
        return output
    of_start, of_method = EPOCHS[runs]
    changes = [f"seed={seed}", f"output={output}", *acdc.VARIANTS[variant]]
    changes += [f"training.epochs={of_start if method == 'start' else of_method}"]
    changes += [acdc.MIXED] if runs == CAMVID_LENGTHS else []
    if method != "start":
        settings = tomllib.loads((acdc.HERE / f"acdc-{method}.toml").read_text())
        changes += [f"loss={toml(settings.get('loss', {}))}", 'training.schedule={name = "poly", power = 0.9}']
        changes += [f"training.start-from={runs / acdc.folder(variant, 'start', seed).name}"]
        changes += [f"data.{key}={toml(settings['data'][key])}" for key in OF_DATA if key in settings["data"]]
    command = [sys.executable, "-m", "regloss_cli.main", "train", str(acdc.HERE / "dense-camvid.toml"), "--quiet"]
    command += ["--resume"] if output.exists() else []
    for change in changes:
        command += ["--set", change]
    subprocess.run(command, check=True)
    return output


def toml(value: Any) -> str:
    """As an inline TOML value."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    return json.dumps(value)


def plot_lengths() -> None:
    from matplotlib.figure import Figure

    charts = {
        "ACDC, Dice": ("dense-lengths.csv", "dice", 100),
        "CamVid, mean IoU": ("dense-camvid-lengths.csv", "mean-iou", 50),
    }
    figure = Figure(figsize=(10, 4.5), layout="constrained")
    shown = {}
    for axis, (title, (name, measure, top)) in zip(figure.subplots(1, 2), charts.items(), strict=True):
        rows = acdc.rows_of(acdc.HERE / name)
        for number, ((method, name_of_method), marker) in enumerate(zip(TITLES.items(), "xosdv^P", strict=True)):
            found = {length: [row[measure] for row in of] for length, of in by_length(rows, method).items() if of}
            if len(found) > 1:
                means = [mean(values) for values in found.values()]
                spread = [
                    [m - min(values) for m, values in zip(means, found.values(), strict=True)],
                    [max(values) - m for m, values in zip(means, found.values(), strict=True)],
                ]
                look = {"color": f"C{number}", "marker": marker, "capsize": 3}
                shown[name_of_method] = axis.errorbar(list(found), means, spread, **look)
        axis.set_title(title)
        axis.set_xlabel("fraction of each scribble's length that is kept")
        axis.set_ylabel("on test images, percent")
        axis.set_ylim(0, top)
        axis.grid(alpha=0.3)
    figure.legend(shown.values(), shown.keys(), loc="outside lower center", ncols=4, fontsize="small")
    figure.savefig(acdc.HERE / "dense-lengths.png", dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("train", "camvid", "table", "lengths", "picture"))
    parser.add_argument("--methods", nargs="+", choices=(*METHODS, "adm"))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--lengths", action="store_true", help="train on shortened scribbles")
    parser.add_argument("--published", action="store_true", help="train the trust region with its published weights")
    parser.add_argument("--variants", nargs="+", choices=tuple(LENGTHS), default=list(LENGTHS), help="lengths")
    chosen = parser.parse_args()
    if chosen.what == "train" and chosen.published:
        for variant in chosen.variants:
            acdc.train(variant, ["published"], chosen.seeds, published(variant))
    elif chosen.what == "train" and chosen.lengths:
        for variant in chosen.variants:
            acdc.train(variant, list(chosen.methods or OF_LENGTH[:-1]), chosen.seeds)
    elif chosen.what == "train":
        acdc.train("full", list(chosen.methods or METHODS), chosen.seeds)
    elif chosen.what == "camvid" and chosen.lengths:
        camvid_lengths(list(chosen.methods or OF_LENGTH_CAMVID), chosen.variants, chosen.seeds)
    elif chosen.what == "camvid":
        camvid(list(chosen.methods or METHODS), chosen.seeds)
    elif chosen.what == "table":
        table(chosen.seeds)
    elif chosen.what == "lengths":
        plot_lengths()
    else:
        acdc.picture(chosen.seeds[0], chosen.methods or PICTURED, "dense.png")


if __name__ == "__main__":
    main()
