"""Trainings from TOML whose proposals are made by solvers over probabilities, in both loops that propose."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_data
from PIL import Image

from regloss.errors import UsageError
from regloss.training.config import parse, read
from regloss.training.proposals import ProposalStore
from regloss.training.trainer import train

VOLUMES = (
    'loss.regularizer=[{name = "tv", weight = 0.3}, {name = "volume", unit = "fraction", lower = [0.6, 0.05, 0.0]}]'
)
DENSE = 'loss.regularizer=[{name = "dense-crf", sigma-xy = 4.0, sigma-rgb = 0.2, scale = 1.0, backend = "exact"}]'
PDHG = ['loss.outer-loop.solver={name = "pdhg", max-steps = 100, tolerance = 1e-3}', "loss.outer-loop.entropy=0.05"]
MEAN_FIELD = ['loss.outer-loop.solver="mean-field"']


REAL: dict[str, tuple[list[dict[str, Any]], dict[str, Any]]] = {
    "volumes": (
        [
            {"name": "tv", "weight": 0.5, "edge-scale": 10.0},
            {"name": "volume", "unit": "fraction", "lower": [0.75, 0.0, 0.0, 0.0], "upper": [1.0, 0.1, 0.08, 0.08]},
        ],
        {"solver": {"name": "pdhg", "max-steps": 60, "tolerance": 1e-3}, "entropy": 0.1},
    ),
    "dense-crf": (
        [{"name": "dense-crf", "weight": 1.0, "sigma-xy": 15.0, "sigma-rgb": 0.1, "backend": "lattice"}],
        {"solver": "mean-field"},
    ),
    "convex": (
        [{"name": "tv", "weight": 0.5, "edge-scale": 10.0}, {"name": "convex", "label": 3, "radii": [1.5, 3, 5]}],
        {"solver": {"name": "projected", "max-steps": 60, "tolerance": 1e-3}, "entropy": 0.1},
    ),
}
REAL_LOOPS: dict[str, dict[str, Any]] = {
    "trust-region": {
        "name": "trust-region",
        "coupling": 0.3,
        "divergence": {"name": "robust-kl", "epsilon": 0.2},
        "update-every": 2,
    },
    "adm": {"name": "adm", "coupling": 0.3, "proposal-weight": 1.0, "seeded-only": True},
}


def rows(folder: Path, name: str) -> list[dict[str, float]]:
    with (folder / "log" / f"{name}.csv").open(newline="") as file:
        return [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)]


@pytest.mark.usefixtures("real_report")
@pytest.mark.parametrize("loop", ["trust-region", "adm"])
@pytest.mark.parametrize("changes", [[VOLUMES, *PDHG], [DENSE, *MEAN_FIELD]], ids=["pdhg", "mean-field"])
def test_a_short_training(loop: str, changes: list[str], images: Path, tmp_path: Path) -> None:
    """Everything that is logged is finite; proposals keep the seeds; the report is written."""
    run = tmp_path / "run"
    table = small_data.settings(images, run, *changes, "training.epochs=2", "evaluation.examples=2", loop=loop)
    path = tmp_path / "configuration.toml"
    path.write_text(small_data.toml(table))
    train(read(path))
    steps, epochs = rows(run, "steps"), rows(run, "epochs")
    assert len(steps) == 6
    for row in (*steps, *epochs):
        assert all(math.isfinite(value) for value in row.values()), row
        assert row["loss"] == pytest.approx(row["data"] + row["proposal"], rel=1e-5)
    assert "proposal-energy-after" in epochs[0]
    if loop == "trust-region":
        store = ProposalStore(run / "proposals")
        for name in small_data.TRAIN:
            scribble = np.array(Image.open(images / f"scribbles/{name}.png"))
            proposal = store.read(0, name)
            assert np.array_equal(proposal[scribble != 255], scribble[scribble != 255])
    assert (run / "report.html").is_file()
    assert {"loss.png", "proposal-energy.png"} <= {path.name for path in (run / "report").iterdir()}


def test_volumes_in_pixels(images: Path, tmp_path: Path) -> None:
    """Which no image but those of the data set can hold: 400 of 24 x 28."""
    prior = 'loss.regularizer=[{name = "volume", lower = [400, 10, 10]}]'
    changes = [prior, *PDHG, "training.epochs=1"]
    train(parse(small_data.settings(images, tmp_path / "run", *changes)))
    counts = [
        np.bincount(ProposalStore(tmp_path / "run" / "proposals").read(0, name).ravel(), minlength=3)
        for name in small_data.TRAIN
    ]
    assert len(counts) == 6
    assert all(count[0] > 350 for count in counts)


def test_what_no_image_can_meet_names_the_image_and_the_setting(images: Path, tmp_path: Path) -> None:
    """Seeded classes alone are allowed, and only two are, of three with a volume."""
    prior = 'loss.regularizer=[{name = "threshold-dynamics"}, {name = "volume", lower = [10, 10, 10, 10]}]'
    changes = [prior, 'loss.outer-loop.solver="dca"', "data.classes=4"]
    with pytest.raises(
        UsageError,
        match=r"No proposal for i0: .*0 pixels may be class 3, whose least volume is 10.*seeded-only = false",
    ):
        train(parse(small_data.settings(images, tmp_path / "run", *changes)))
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("real_report")
@pytest.mark.parametrize("loop", ["trust-region", "adm"])
@pytest.mark.parametrize("prior", list(REAL))
def test_a_training_on_real_scribbles(loop: str, prior: str, data_root: Path, tmp_path: Path) -> None:
    """Two patients of ACDC, from a start by partial cross entropy: finite numbers, seeds kept, energies that fall."""
    root = data_root / "acdc"
    names = sorted(path.stem for path in (root / "images").iterdir())
    patients = sorted({name.split("_")[0] for name in names})
    of = {name: patients.index(name.split("_")[0]) for name in names}
    table: dict[str, Any] = {
        "seed": 0,
        "data": {
            "dataset": "folder",
            "root": str(root),
            "classes": ["background", "right ventricle", "myocardium", "left ventricle"],
            "reduce": 2,
            "crop": 96,
            "normalize": "image",
            "split": {
                "train": [name for name in names if of[name] < 2],
                "test": [name for name in names if of[name] == 2],
            },
        },
        "network": {"name": "unet", "channels": 8},
        "training": {
            "epochs": 6,
            "batch-size": 8,
            "accelerator": "cpu",
            "optimizer": {"name": "adam", "lr": 2e-3},
        },
        "evaluation": {"examples": 2},
    }
    for run in ("start", "proposals"):
        table["output"] = str(tmp_path / run)
        if run == "proposals":
            table["loss"] = {"regularizer": REAL[prior][0], "outer-loop": {**REAL_LOOPS[loop], **REAL[prior][1]}}
            table["training"] |= {"epochs": 3, "start-from": str(tmp_path / "start")}
        path = tmp_path / f"{run}.toml"
        path.write_text(small_data.toml(table))
        scores = train(read(path))["test"]
        assert scores["images"] == len(table["data"]["split"]["test"])
    for row in (*rows(tmp_path / "proposals", "steps"), *rows(tmp_path / "proposals", "epochs")):
        assert all(math.isfinite(value) for value in row.values()), row
    renewed = [row for row in rows(tmp_path / "proposals", "epochs") if "solver-seconds" in row]
    assert len(renewed) == (2 if loop == "trust-region" else 3)
    pictures = {path.name for path in (tmp_path / "proposals" / "report").iterdir()}
    assert (tmp_path / "proposals" / "report.html").is_file()
    assert {"loss.png", "proposal-energy.png"} <= pictures
    if prior == "dense-crf":  # mean field begins at labels, and never rises
        assert all(row["proposal-energy-after"] < row["proposal-energy-before"] for row in renewed)
