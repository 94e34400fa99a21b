"""Training on volumes: slices and patches, proposals of whole volumes, from files to scores."""

import csv

import numpy as np
import pytest
from volume_files import SIZE, volume_settings, write_volumes

from regloss.errors import UsageError
from regloss.training.proposals import ProposalStore
from regloss.training.trainer import train

pytest.importorskip("nibabel", reason="pip install 'regloss[volumes]'")


@pytest.fixture(scope="module")
def balls(tmp_path_factory):
    return write_volumes(tmp_path_factory.mktemp("data") / "balls")


TRUST_REGION = "loss.outer-loop={name = 'trust-region', coupling = 0.1, update-every = 8}"


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("loop", ["loss.outer-loop.name=gradient-descent", TRUST_REGION])
def test_balls_are_learnt(balls, tmp_path, dims, loop):
    scores = train(volume_settings(balls, tmp_path / "run", dims, loop))["test"]
    assert scores["mean-foreground-dice"] > 0.55  # everything where the ball may be: 0.4
    # Of slices too: the group is the volume.
    assert list(scores["groups"]) == ["case2"]
    with (tmp_path / "run" / "log" / "steps.csv").open() as file:
        steps = list(csv.DictReader(file))
    assert len(steps) == 24 * 4 * (4 if dims == 2 else 2) / 2


def test_proposals_are_of_whole_volumes(balls, tmp_path):
    train(volume_settings(balls, tmp_path / "run", 3, TRUST_REGION, "training.epochs=1"))
    labels = ProposalStore(tmp_path / "run" / "proposals").read(0, "case1")
    assert labels.shape == SIZE
    assert set(np.unique(labels)) <= {0, 1}


def test_a_report_shows_the_slices_that_are_drawn_on(balls, tmp_path, real_report):
    changes = ("training.epochs=1", "training.batch-size=1", "evaluation.examples=2", "data.crops-per-image=1")
    train(volume_settings(balls, tmp_path / "run", 3, *changes))
    names = [path.name for path in (tmp_path / "run" / "report").glob("example-*")]
    assert sorted(names) == ["example-01-case0-slice-1-of-6.png", "example-02-case2-slice-2-of-6.png"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("network={name = 'unet'}", "with 2 spatial dimensions"),
        ("data.crop=[8, 8]", "one for each of the image's 3 axes"),
        ("data.window=[5, 5]", "A window is two finite numbers"),
        ("data.train=train-scribled", "has no subset 'train-scribled'"),
        ("data.labelled-share=2", "less than or equal to 1"),
        ("network.spacing=[1, 1]", "unet: spacing must be 3 positive numbers"),
    ],
)
def test_what_does_not_fit_is_said_before_anything_is_written(balls, tmp_path, change, message):
    with pytest.raises(UsageError, match=message):
        train(volume_settings(balls, tmp_path / "run", 3, change))
    assert not (tmp_path / "run").exists()


def test_slices_that_are_not_drawn_on(balls, tmp_path):
    with pytest.raises(UsageError, match='train = "train-scribbled" learns from the others'):
        train(volume_settings(balls, tmp_path / "run", 2, "data.train=train"))
