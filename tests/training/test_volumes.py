"""Training on volumes: slices and patches, proposals of whole volumes, from files to scores."""

import csv
import shutil

import numpy as np
import pytest
import torch
from volume_files import SIZE, SPACING, save, volume_settings, write_volumes

import regloss
from regloss.errors import UsageError
from regloss.outer_loop import Proposal
from regloss.training.inference import window_starts
from regloss.training.model import build_model, load_model
from regloss.training.proposals import ProposalStore
from regloss.training.slabs import by_slabs
from regloss.training.trainer import train
from regloss_plugins.layers.softmax import RegularizedSoftmax

nibabel = pytest.importorskip("nibabel", reason="pip install 'regloss[volumes]'")


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


def test_slabs(balls, tmp_path):
    """Proposals slab by slab, each slice from the slab in which it lies deeper; of all slices at once, the same."""
    loop = regloss.TrustRegion(regloss.GridCRF(weight=0.3), coupling=1.0, seeded_only=False)
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 2, 9, 8, 8, generator=generator)
    batch = regloss.Batch(torch.rand(1, 1, 9, 8, 8, generator=generator), torch.full((1, 9, 8, 8), 255))
    seen = []

    def propose(logits, batch, warm):
        seen.append(loop.propose(logits, batch, warm).labels)
        return Proposal(seen[-1])

    whole = by_slabs(propose, logits, batch, None, None)
    assert torch.equal(by_slabs(propose, logits, batch, None, 9).labels, whole.labels)
    assert [labels.shape[1] for labels in seen] == [9, 9]
    found = by_slabs(propose, logits, batch, whole.labels, 4).labels
    slabs, starts = seen[2:], window_starts(9, 4, 0.25)
    assert [labels.shape[1] for labels in slabs] == [4] * len(starts) == [4, 4, 4]
    for place in range(9):
        deepest = max(range(3), key=lambda slab: min(place - starts[slab], starts[slab] + 3 - place))
        assert torch.equal(found[:, place], slabs[deepest][:, place - starts[deepest]]), place
    train(volume_settings(balls, tmp_path / "run", 3, TRUST_REGION, "training.epochs=1", "inference.slab=4"))
    labels = ProposalStore(tmp_path / "run" / "proposals").read(0, "case1")
    assert labels.shape == SIZE
    with (tmp_path / "run" / "log" / "epochs.csv").open() as file:
        assert "proposal-energy-after" not in next(csv.DictReader(file))


def test_coarser_levels_learn_too(balls, tmp_path):
    """Their classifiers move, the loss in the log is the objective's, and the weights are read back."""
    changes = ("training.epochs=2", "network.levels=3", "network.deep-supervision=1")
    train(volume_settings(balls, tmp_path / "run", 3, *changes))
    model = load_model(tmp_path / "run").segmenter.network
    before = build_model(volume_settings(balls, tmp_path / "run", 3, *changes), 1, 2).network
    assert not torch.equal(model.coarser_classifiers[0].weight, before.coarser_classifiers[0].weight)
    with (tmp_path / "run" / "log" / "steps.csv").open() as file:
        rows = list(csv.DictReader(file))
    parts = set(rows[0]) - {"step", "epoch", "learning-rate", "loss"}
    assert float(rows[0]["loss"]) == pytest.approx(sum(float(rows[0][name]) for name in parts), rel=1e-5)


def test_a_layer_heeds_the_spacing(balls, tmp_path):
    """In training, proposals and evaluation: a layer that counts what it is given."""
    seen = []

    class Watching(RegularizedSoftmax):
        def bind(self, image, roi=None, spacing=None):
            seen.append(spacing)
            return super().bind(image, roi, spacing)

    regloss.register("layer", "watching")(Watching)
    try:
        layer = 'layer={kind = "watching", regularizer = "tv", max-steps = 3}'
        train(volume_settings(balls, tmp_path / "run", 3, "training.epochs=1", TRUST_REGION, layer))
    finally:
        regloss.unregister("layer", "watching")
    assert set(seen) == {SPACING}


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


def test_volumes_of_other_spacings_need_batches_of_one(balls, tmp_path):
    root = shutil.copytree(balls, tmp_path / "balls")
    for part in ("images", "labels", "scribbles"):
        path = root / part / "case1.nii.gz"
        save(path, np.asarray(nibabel.load(path).dataobj).T, np.diag([1.5, 1.5, 3, 1]))
    message = r"2 spacings \(\(3.0, 1.0, 1.0\) mm: 1 \(case0, say\), .*training.batch-size = 1"
    with pytest.raises(UsageError, match=message):
        train(volume_settings(root, tmp_path / "run", 3))
    assert not (tmp_path / "run").exists()
    train(volume_settings(root, tmp_path / "run", 3, "training.batch-size=1", "training.epochs=1"))


def test_slices_that_are_not_drawn_on(balls, tmp_path):
    with pytest.raises(UsageError, match='train = "train-scribbled" learns from the others'):
        train(volume_settings(balls, tmp_path / "run", 2, "data.train=train"))
