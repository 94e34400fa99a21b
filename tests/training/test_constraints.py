"""Short trainings with hard constraints, by proposals and behind a layer: logs and charts are finite."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
import pytest
import small_data
import torch
from PIL import Image

from regloss import ConvexShape, StarShape
from regloss.training.config import parse, read
from regloss.training.proposals import ProposalStore
from regloss.training.trainer import train

ENTROPY = "loss.outer-loop.entropy=0.1"
PDHG = 'loss.outer-loop.solver={name = "pdhg", max-steps = 40}'
PROPOSED = {
    "star": ['loss.regularizer=[{name = "tv", weight = 0.3}, {name = "star"}]', PDHG, ENTROPY],
    "volume": [
        'loss.regularizer=[{name = "volume", unit = "fraction", volumes = [0.5, 0.3, 0.2]}]',
        'loss.outer-loop.solver={name = "dca", max-steps = 20}',
        ENTROPY,
        "loss.outer-loop.seeded-only=false",  # every image has all volumes, not all seeds
    ],
    "convex": [
        'loss.regularizer=[{name = "tv", weight = 0.3}, {name = "convex", radii = [1.5, 4]}]',
        'loss.outer-loop.solver={name = "projected", max-steps = 40}',
        ENTROPY,
    ],
}
LAYERS = {
    "star": {"regularizer": ["tv", {"name": "star"}], "steps": 10},
    "volume": {"regularizer": {"name": "volume", "unit": "fraction", "volumes": [0.5, 0.3, 0.2]}, "steps": 10},
    "convex": {"regularizer": ["tv", {"name": "convex", "radii": [1.5, 4]}], "solver": "projected", "steps": 10},
    "ordered": {"kind": "sigmoid", "regularizer": ["tv", "ordered"], "steps": 10},
}


def rows(folder: Path, name: str) -> list[dict[str, float]]:
    with (folder / "log" / f"{name}.csv").open(newline="") as file:
        return [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)]


def all_finite(run: Path) -> None:
    for name in ("steps", "epochs"):
        found = rows(run, name)
        assert found
        for row in found:
            assert all(math.isfinite(value) for value in row.values()), row


@pytest.mark.parametrize(
    ("name", "loop"),
    [
        ("convex", "trust-region"),
        *[pytest.param(name, "adm", marks=pytest.mark.slow) for name in PROPOSED],
        *[pytest.param(name, "trust-region", marks=pytest.mark.slow) for name in ("star", "volume")],
    ],
)
def test_proposals_that_obey(name: str, loop: str, images: Path, tmp_path: Path) -> None:
    """Energies of proposals are in the log, with the violation of the solver's iterates beside them."""
    run = tmp_path / "run"
    changes = [*PROPOSED[name], "training.epochs=2", "evaluation.examples=1", "loss.outer-loop.update-every=1"]
    path = tmp_path / "configuration.toml"
    path.write_text(small_data.toml(small_data.settings(images, run, *changes, loop=loop)))
    train(read(path))
    all_finite(run)
    epochs = rows(run, "epochs")
    assert {"proposal-energy-before", "proposal-energy-after", "proposal-violation"} <= set(epochs[0])
    assert epochs[0]["proposal-violation"] >= 0
    store = ProposalStore(run / "proposals")
    for sample in small_data.TRAIN:
        scribble = np.array(Image.open(images / f"scribbles/{sample}.png"))
        proposal = store.read(1, sample)  # of the second epoch
        assert np.array_equal(proposal[scribble != 255], scribble[scribble != 255])
        labels = torch.from_numpy(proposal.astype(np.int64)).unsqueeze(0)
        image = torch.zeros(1, 1, *labels.shape[1:])
        if name == "volume":
            pixels = proposal.size
            shares = np.bincount(proposal.ravel(), minlength=3) / pixels
            assert np.abs(shares - [0.5, 0.3, 0.2]).max() * pixels < 1
        elif name == "convex":
            assert float(ConvexShape(radii=(1.5, 4)).bind(image).violation_of_labels(labels, 3)) == 0
        else:
            stars = [StarShape(center=place).bind(image) for place in (labels[0] == 1).nonzero().tolist()]
            assert not stars or any(float(star.violation_of_labels(labels, 3)) == 0 for star in stars)


@pytest.mark.slow
@pytest.mark.parametrize("name", LAYERS)
def test_layers_that_obey(name: str, images: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    table = small_data.settings(images, run, "training.epochs=1")
    table["layer"] = LAYERS[name]
    table["loss"] = {"data-term": "partial-cross-entropy"}
    train(parse(table))
    all_finite(run)
    assert {"layer-steps", "layer-violation"} <= set(rows(run, "steps")[-1])
