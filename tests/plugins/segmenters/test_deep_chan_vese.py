"""Deep Chan-Vese on single images: what it finds, that its energy falls, what it refuses."""

from __future__ import annotations

import math

import pytest
import torch

import regloss
from regloss import ReglossError, UsageError, deep_chan_vese
from regloss.solver import Status
from regloss_plugins.segmenters.deep_chan_vese import COUPLINGS
from regloss_plugins.segmenters.initial_phases import STARTS, start_labels

SMALL = {"name": "plain-cnn", "layers": 3, "channels": 8, "norm": "instance"}
QUICK = {"encoder": SMALL, "decoder": {"name": "plain-cnn", "layers": 1, "channels": 8}, "max_steps": 60, "warm_up": 30}


def stripes(size=40, seed=0):
    """A square of vertical stripes on horizontal ones, of the same colours: no colour tells them apart."""
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    inside = (y >= size // 4) & (y < 3 * size // 4) & (x >= size // 4) & (x < 3 * size // 4)
    generator = torch.Generator().manual_seed(seed)
    image = (
        torch.where(inside, x // 2 % 2, y // 2 % 2) * 0.6 + 0.2 + 0.02 * torch.randn(size, size, generator=generator)
    )
    return image.clamp(0, 1)[None, None], inside.long()[None]


def blobs():
    """Three colours."""
    image = torch.zeros(1, 3, 16, 16)
    image[:, 0, :, :6], image[:, 1, :, 6:11], image[:, 2, :, 11:] = 0.8, 0.7, 0.9
    truth = torch.zeros(1, 16, 16, dtype=torch.int64)
    truth[..., 6:11], truth[..., 11:] = 1, 2
    return (image + 0.05 * torch.randn(image.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1), truth


def agreement(labels, truth):
    """Best over renamings of three phases or fewer."""
    from itertools import permutations

    classes = int(max(labels.max(), truth.max())) + 1
    return max(float((torch.tensor(names)[labels] == truth).float().mean()) for names in permutations(range(classes)))


def test_texture_is_learnt_from_a_start_with_many_mistakes_where_colours_cannot_tell():
    image, truth = stripes()
    wrong = torch.rand(truth.shape, generator=torch.Generator().manual_seed(1)) < 0.3
    start = torch.where(wrong, 1 - truth, truth)
    classic = regloss.alternate("chan-vese", regloss.TotalVariation(0.1), "alpha-expansion", image, start).labels
    found = deep_chan_vese(image, start=start, **QUICK)
    assert agreement(classic, truth) <= 0.75  # what one phase alone would have
    assert agreement(found.labels, truth) > 0.94
    assert found.probabilities.shape == (1, 2, 40, 40)
    assert found.latent.shape == (1, 1, 40, 40)
    assert found.reconstruction.shape == (1, 1, 40, 40)
    assert torch.equal(found.start, start)
    torch.testing.assert_close(found.probabilities.sum(1), torch.ones(1, 40, 40))


@pytest.mark.parametrize("coupling", COUPLINGS)
def test_every_coupling_finds_three_phases(coupling):
    image, truth = blobs()
    found = deep_chan_vese(image, 3, coupling=coupling, **QUICK)
    assert agreement(found.labels, truth) > 0.97
    assert found.latent.shape == (1, 3, 16, 16)
    # In the latent space the phases are where they are meant to be.
    for phase in range(3):
        mean = found.latent[0][:, found.labels[0] == phase].mean(1)
        assert int(mean.argmax()) == phase
        assert float((mean - 5 * torch.eye(3)[phase]).norm()) < 2.5


def test_energies_add_up_and_fall():
    image, _ = blobs()
    looks = []
    found = deep_chan_vese(image, 3, callback=looks.append, **QUICK)
    assert tuple(looks) == found.history
    for look in looks:
        assert look.reconstruction + look.divergence + look.length == pytest.approx(look.energy, rel=1e-5)
        assert min(look.reconstruction, look.length) >= 0
    assert [look.step for look in looks] == list(range(10, looks[-1].step + 1, 10))
    assert looks[-1].energy < 0.3 * looks[0].energy


def test_it_stops_when_labels_rest_and_says_when_they_do_not():
    image, _ = blobs()
    found = deep_chan_vese(image, 3, **{**QUICK, "max_steps": 200, "warm_up": 20})
    assert found.status is Status.CONVERGED
    assert found.history[-1].step < 200
    short = deep_chan_vese(image, 3, **{**QUICK, "max_steps": 5, "warm_up": 0})
    assert short.status is Status.MAX_STEPS
    assert [look.step for look in short.history] == [5]


def test_the_same_seed_gives_the_same_and_no_global_state_changes():
    image, _ = blobs()
    torch.manual_seed(5)
    before = torch.get_rng_state()
    given = image.clone()
    first, second = (deep_chan_vese(image, 3, seed=3, **{**QUICK, "max_steps": 31}) for _ in range(2))
    assert torch.equal(first.probabilities, second.probabilities)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(image, given)


def test_snapshots_are_the_labels_after_so_many_steps():
    image, _ = blobs()
    full = deep_chan_vese(image, 3, snapshots=(40, 0, 30), tolerance=0.0, **QUICK)
    assert list(full.snapshots) == [0, 30, 40]
    held = deep_chan_vese(image, 3, tolerance=0.0, **QUICK)
    assert torch.equal(full.labels, held.labels)  # looking changes nothing
    assert torch.equal(full.snapshots[0], full.start)
    assert torch.equal(full.snapshots[30], full.start)  # until now they were held
    shorter = deep_chan_vese(image, 3, tolerance=0.0, **{**QUICK, "max_steps": 40})
    assert torch.equal(full.snapshots[40], shorter.labels)
    stopped = deep_chan_vese(image, 3, snapshots=(0, 60), tolerance=0.9, **{**QUICK, "warm_up": 5})
    assert list(stopped.snapshots) == [0]  # it ended before step 60


def test_noises_are_averaged():
    image, _ = blobs()
    found = {samples: deep_chan_vese(image, 3, samples=samples, **QUICK) for samples in (0, 1, 3)}
    assert {samples: of.elbo.samples for samples, of in found.items()} == {0: 0, 1: 1, 3: 3}
    energies = [of.history[0].reconstruction for of in found.values()]
    assert len(set(energies)) == 3


def test_levels_stay_bounded():
    """KL is linear in u: without the bound they would run to infinity."""
    image, _ = blobs()
    found = deep_chan_vese(image, 2, bound=2.0, level_rate=1.0, **QUICK)
    assert float(found.probabilities.max()) <= 1 / (1 + math.exp(-2.0)) + 1e-6


def test_pixels_without_opinion_are_filled_in():
    image, truth = blobs()
    start = truth.masked_fill(torch.rand(truth.shape, generator=torch.Generator().manual_seed(0)) < 0.7, 255)
    found = deep_chan_vese(image, 3, start=start, **QUICK)
    assert agreement(found.labels, truth) > 0.97


@pytest.mark.parametrize("start", [name for name in STARTS if name != "random"])
def test_named_starts_have_two_phases(start):
    image, _ = blobs()
    labels = start_labels(image, 2, start)
    assert labels.shape == (1, 16, 16)
    assert labels.unique().tolist() == [0, 1]


def test_random_starts_follow_the_seed():
    image, _ = blobs()
    assert torch.equal(start_labels(image, 3, "random", 1), start_labels(image, 3, "random", 1))
    assert not torch.equal(start_labels(image, 3, "random", 1), start_labels(image, 3, "random", 2))
    assert start_labels(image, 3, "random", 1).unique().tolist() == [0, 1, 2]


BAD_START = torch.zeros(1, 16, 16, dtype=torch.int64)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image": torch.full((1, 3, 16, 16), 0.5)}, "1 different colours, fewer than the 2"),
        ({"image": torch.full((1, 3, 16, 16), math.nan)}, "finite"),
        ({"image": torch.full((1, 3, 16, 16), 7.0)}, r"\[0, 1\]"),
        ({"image": blobs()[0].repeat(2, 1, 1, 1)}, "one image"),
        ({"image": (blobs()[0] > 0.5).float()[..., :2], "phases": 3}, "fewer than the 3 phases"),
        ({"phases": 1}, "2 to 255"),
        ({"phases": 2.0}, "phases .* whole number"),
        ({"start": BAD_START}, "only class 0"),
        ({"start": BAD_START + 255}, "no pixel"),
        ({"start": BAD_START[:, 1:]}, "shape"),
        ({"start": BAD_START + 2}, "0 to 1"),
        ({"start": "middle"}, "centre"),
        ({"phases": 3, "start": "centre"}, "two phases"),
        ({"coupling": "adm"}, "splitting"),
        ({"weight": -1.0}, "weight"),
        ({"weight": "heavy"}, "weight"),
        ({"fidelity": 0.0}, "fidelity"),
        ({"mean": -3.0}, "mean"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"bound": math.inf}, "bound"),
        ({"max_steps": 0}, "max_steps"),
        ({"max_steps": 10, "warm_up": 10}, "warm_up"),
        ({"tolerance": 1.0}, "tolerance"),
        ({"samples": -1}, "samples"),
        ({"snapshots": (0, 200)}, "snapshots are taken after steps, whole numbers from 0 to max_steps = 150"),
    ],
)
def test_bad_input_is_refused(changes, message):
    given = {"image": blobs()[0], **changes}
    with pytest.raises(UsageError, match=message):
        deep_chan_vese(**given)


def test_divergence_to_infinity_is_named():
    """The networks without normalisation, which would undo it."""
    image, _ = blobs()
    with pytest.raises(ReglossError, match="Lower the learning rates"):
        deep_chan_vese(image, 3, **{**QUICK, "encoder": "plain-cnn", "learning_rate": 1e18})
