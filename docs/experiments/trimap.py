"""Scores near true boundaries, by the width of the band: the runs of acdc.py and dense.py with whole scribbles.

    python docs/experiments/trimap.py [--seeds 0 1 2]

scores what is trained, writes trimap.csv and prints means over the seeds beside the published accuracies. The chart of
one seed is a command:

    regloss evaluate runs/acdc/{pce,dense-gd,gd,adm,trust-region,full}-0 --trimap 1,2,4,8,16,32 --chart trimap.png

Set REGLOSS_DATA first.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Sequence
from statistics import mean
from typing import Any

import acdc

from regloss.apps.compare import compare_runs, table_of

WIDTHS = (1, 2, 4, 8, 16, 32)
# Accuracies on PASCAL VOC with a VGG16, within 8 and 16 pixels and over whole images (ADM, Table 3).
PUBLISHED = {
    "pce": "64.1 / 70.9 / 88.9",
    "dense-gd": "72.0 / 77.8 / 91.1",
    "gd": "69.0 / 75.6 / 90.5",
    "adm": "72.4 / 78.1 / 91.3",
    "trust-region": "",
    "full": "76.9 / 81.9 / 91.6",
}
MEASURES = ("accuracy", "mean-iou")


def score(seeds: Sequence[int]) -> list[dict[str, Any]]:
    """One row for each method, seed and band; ``width`` is empty for whole images."""
    runs = {acdc.folder("full", method, seed).name: (method, seed) for method in PUBLISHED for seed in seeds}
    here = [acdc.RUNS / name for name in runs if (acdc.RUNS / name / "scores.json").is_file()]
    rows = table_of(compare_runs(here, "test", changes=[f"evaluation.trimap={list(WIDTHS)}"]))
    return [
        {
            "method": runs[row["run"]][0],
            "seed": runs[row["run"]][1],
            "width": row["trimap"] or "",
            **{key: 100 * row[key] for key in MEASURES},
        }
        for row in rows
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    rows = score(parser.parse_args().seeds)
    with (acdc.HERE / "trimap.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: f"{v:.4f}" if isinstance(v, float) else v for key, v in row.items()} for row in rows)
    for key in MEASURES:
        print(f"\n{key}\n\n| method | seeds | " + " | ".join(map(str, WIDTHS)) + " | all | published, 8 / 16 / all |")
        print("|---" * (len(WIDTHS) + 4) + "|")
        for method, published in PUBLISHED.items():
            of = [row for row in rows if row["method"] == method]
            if not of:
                continue
            values = (mean(row[key] for row in of if row["width"] == width) for width in (*WIDTHS, ""))
            cells = [
                method,
                " ".join(str(row["seed"]) for row in of if not row["width"]),
                *(f"{v:.1f}" for v in values),
            ]
            print(f"| {' | '.join(cells)} | {published if key == 'accuracy' else ''} |")


if __name__ == "__main__":
    main()
