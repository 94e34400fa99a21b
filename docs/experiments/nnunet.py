"""nnU-Net on ACDC's scribbles: its own loss of the labelled pixels, the same plus a grid CRF, and the trust region.

    python docs/experiments/volumes.py $REGLOSS_DATA/acdc acdc_volumes
    python docs/experiments/nnunet.py prepare acdc_volumes
    python docs/experiments/nnunet.py train [--methods own prior trust-region] [--seeds 0 1 2]
    python docs/experiments/nnunet.py time
    python docs/experiments/nnunet.py table

`prepare` writes nnU-Net's raw folders, plans and preprocesses; `train` trains, predicts and scores what is not there
yet, and goes on where it was stopped; `time` measures steps of each method; `table` writes nnunet.csv and prints the
tables. Everything is below runs/nnunet.
"""

from __future__ import annotations

import argparse
import copy
import csv
import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np
import tomllib

HERE = Path(__file__).resolve().parent
ROOT = Path("runs/nnunet").resolve()
DATASET, NUMBER = "Dataset901_ACDC", "901"
CONFIGURATION = "2d_small"
CLASSES = {"background": 0, "right ventricle": 1, "myocardium": 2, "left ventricle": 3, "ignore": 4}
START = "start"
METHODS = {
    START: ("nnUNetTrainerStart", ""),
    "own": ("nnUNetTrainerShort", ""),
    "prior": ("nnUNetTrainerShortPrior", "grid-crf:weight=0.3"),
    "trust-region": ("nnUNetTrainerShortTrustRegion", "grid-crf:weight=1"),
}


def environment(results: str, regularizer: str = "", loaders: int = 0) -> dict[str, str]:
    folders = {"nnUNet_raw": "raw", "nnUNet_preprocessed": "preprocessed", "nnUNet_results": results}
    return {
        **os.environ,
        **{name: str(ROOT / folder) for name, folder in folders.items()},
        "nnUNet_extTrainer": str(HERE / "nnunet_trainers"),
        "nnUNet_n_proc_DA": str(loaders),  # none but the training's process: a seed decides what is drawn
        "nnUNet_def_n_proc": "1",
        **({"REGLOSS_REGULARIZER": regularizer} if regularizer else {}),
    }


def prepare(volumes: Path) -> None:
    import nibabel

    patients = tomllib.loads((HERE / "splits" / "acdc.toml").read_text())
    raw = ROOT / "raw" / DATASET
    for folder in ("imagesTr", "labelsTr", "imagesTs", "labelsTs"):
        (raw / folder).mkdir(parents=True)
    for path in sorted((volumes / "images").glob("*.nii.gz")):
        case = path.name.removesuffix(".nii.gz")
        part = "Tr" if case.split("_")[0] in patients["train"] else "Ts"
        shutil.copy(path, raw / f"images{part}" / f"{case}_0000.nii.gz")
        # The network learns from scribbles, and is scored by dense labels.
        labels = nibabel.load(volumes / ("scribbles" if part == "Tr" else "labels") / path.name)
        values = np.asarray(labels.dataobj)
        values = np.where(values == 255, CLASSES["ignore"], values).astype(np.uint8)
        nibabel.save(nibabel.Nifti1Image(values, labels.affine), raw / f"labels{part}" / path.name)
    card = {
        "channel_names": {"0": "MR"},
        "labels": CLASSES,
        "numTraining": len(list((raw / "imagesTr").iterdir())),
        "file_ending": ".nii.gz",
    }
    (raw / "dataset.json").write_text(json.dumps(card, indent=2))
    plan = [str(Path(sys.executable).with_name("nnUNetv2_plan_and_preprocess")), "-d", NUMBER, "-np", "1", "-npfp", "1"]
    subprocess.run([*plan, "-c", "2d"], check=True, env=environment("results", loaders=1))
    # The small plan: a configuration of its own beside that of nnU-Net, as its documentation says.
    path = ROOT / "preprocessed" / DATASET / "nnUNetPlans.json"
    plans = json.loads(path.read_text())
    architecture = copy.deepcopy(plans["configurations"]["2d"]["architecture"])
    features = [min(8 * 2**stage, 64) for stage in range(architecture["arch_kwargs"]["n_stages"])]
    architecture["arch_kwargs"]["features_per_stage"] = features
    small = {"inherits_from": "2d", "batch_size": 8, "architecture": architecture}
    plans["configurations"][CONFIGURATION] = small
    path.write_text(json.dumps(plans, indent=2))
    print(f"patch {plans['configurations']['2d']['patch_size']}, features {features}")


def train(methods: list[str], seeds: list[int]) -> None:
    for seed in seeds:
        for method in (START, *methods):
            if scores(method, seed).is_file():
                continue
            command = [sys.executable, str(Path(__file__).resolve()), "one", "--methods", method, "--seeds", str(seed)]
            subprocess.run(command, check=True, env=environment(f"results-{seed}", METHODS[method][1]))


def run(method: str, seed: int) -> Path:
    folder = f"{METHODS[method][0]}__nnUNetPlans__{CONFIGURATION}"
    return ROOT / f"results-{seed}" / DATASET / folder


def scores(method: str, seed: int) -> Path:
    return run(method, seed) / "scores.json"


def make_trainer(method: str, seed: int, go_on: bool) -> Any:
    import torch
    from nnunetv2.run.run_training import get_trainer_from_args, maybe_load_checkpoint

    random.seed(seed)
    np.random.seed(seed)  # what nnU-Net draws from
    torch.manual_seed(seed)
    name, device = METHODS[method][0], torch.device("cpu")
    trainer = get_trainer_from_args(NUMBER, CONFIGURATION, "all", name, continue_training=go_on, device=device)
    maybe_load_checkpoint(trainer, go_on, validation_only=False)
    return trainer


def one(method: str, seed: int) -> None:
    """Train, predict and score; in a process whose environment `train` has set."""
    import torch
    from nnunetv2.evaluation.evaluate_predictions import compute_metrics_on_folder2
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    output = run(method, seed)
    final = output / "fold_all" / "checkpoint_final.pth"
    if not final.is_file():
        go_on = (output / "fold_all" / "checkpoint_latest.pth").is_file()
        trainer = make_trainer(method, seed, go_on)
        if method != START and not go_on:
            # All of the start's weights; -pretrained_weights would leave out the last layers, whose logits the first
            # proposals are made of.
            trainer.initialize()
            weights = torch.load(run(START, seed) / "fold_all" / "checkpoint_final.pth", weights_only=False)
            trainer.network.load_state_dict(weights["network_weights"])
        trainer.run_training()
    raw = ROOT / "raw" / DATASET
    files = sorted((raw / "imagesTs").glob("*.nii.gz"))
    predicted = output / "test"
    predicted.mkdir(exist_ok=True)
    predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(output), ("all",))
    targets = [str(predicted / file.name.replace("_0000.nii.gz", ".nii.gz")) for file in files]
    predictor.predict_from_files_sequential([[str(file)] for file in files], targets)
    cards = [str(output / name) for name in ("dataset.json", "plans.json")]
    compute_metrics_on_folder2(str(raw / "labelsTs"), str(predicted), *cards, str(output / "summary.json"), 1)
    found = json.loads((output / "summary.json").read_text())
    volumes = {
        Path(case["prediction_file"]).name: {label: values["Dice"] for label, values in case["metrics"].items()}
        for case in found["metric_per_case"]
    }
    scores(method, seed).write_text(json.dumps(volumes, indent=1))


def measure() -> None:
    """Seconds of a step of each method, all in one process and in turns, so that they meet the same machine."""
    shutil.rmtree(ROOT / "results-time", ignore_errors=True)
    command = [sys.executable, str(Path(__file__).resolve()), "steps"]
    subprocess.run(command, check=True, env=environment("results-time"))


def steps() -> None:
    trainers, batches = {}, {}
    for method in (name for name in METHODS if name != START):
        regularizer = METHODS[method][1]
        if regularizer:
            os.environ["REGLOSS_REGULARIZER"] = regularizer
        trainers[method] = make_trainer(method, 0, go_on=False)
        trainers[method].on_train_start()
        trainers[method].on_train_epoch_start()
        began = time.perf_counter()
        batches[method] = [next(trainers[method].dataloader_train) for _ in range(13)]
        print(f"LOADER {method}: {(time.perf_counter() - began) / 13:.3f} s", flush=True)
    for turn in range(13):
        for method, trainer in trainers.items():
            trainer.train_step(batches[method][turn])
    for method, trainer in trainers.items():
        found = trainer.seconds[3:]
        print(f"STEPS {method}: median {median(found):.3f} s, least {min(found):.3f} s", flush=True)


def table(seeds: list[int]) -> None:
    rows = []
    for method in METHODS:
        for seed in seeds:
            if not scores(method, seed).is_file():
                continue
            volumes = json.loads(scores(method, seed).read_text())
            of_classes = {
                name: 100 * mean(volume[str(label)] for volume in volumes.values())
                for name, label in CLASSES.items()
                if 0 < label < 4
            }
            rows.append(
                {
                    "method": method,
                    "seed": seed,
                    "dice": mean(of_classes.values()),
                    **of_classes,
                    "volumes": len(volumes),
                }
            )
    with (HERE / "nnunet.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: f"{v:.4f}" if isinstance(v, float) else v for key, v in row.items()} for row in rows)
    print(
        f"| method | Dice, seeds {' / '.join(map(str, seeds))} | mean | right ventricle | myocardium | left ventricle |"
    )
    print("|---|---|---|---|---|---|")
    for method in METHODS:
        own = [row for row in rows if row["method"] == method]
        if own:
            dice = " / ".join(f"{row['dice']:.1f}" for row in own)
            names = ("dice", "right ventricle", "myocardium", "left ventricle")
            print(
                f"| {method} | {dice} | " + " | ".join(f"{mean(row[name] for row in own):.1f}" for name in names) + " |"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("prepare", "train", "time", "table", "one", "steps"))
    parser.add_argument("volumes", type=Path, nargs="?", help="what volumes.py has written, for prepare")
    parser.add_argument("--methods", nargs="+", choices=tuple(METHODS), default=list(METHODS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    chosen = parser.parse_args()
    if chosen.what == "prepare":
        prepare(chosen.volumes)
    elif chosen.what == "train":
        train(chosen.methods, chosen.seeds)
    elif chosen.what == "one":
        one(chosen.methods[0], chosen.seeds[0])
    elif chosen.what == "time":
        measure()
    elif chosen.what == "steps":
        steps()
    else:
        table(chosen.seeds)


if __name__ == "__main__":
    main()
