"""Level sets: conformance, against Chan-Vese for two phases and against its energy by hand for four."""

from __future__ import annotations

import pytest
import torch

import regloss
from regloss.numerics import one_hot
from regloss.segmenter import Segmenter
from regloss.testing import SegmenterConformance
from regloss_plugins.segmenters.level_sets import LevelSets, _phases, _sides


class TestLevelSets(SegmenterConformance):
    phase_counts = (2, 4)

    def make(self) -> Segmenter:
        return LevelSets(regularizer={"name": "tv", "weight": 0.02})


def four_squares() -> tuple[torch.Tensor, torch.Tensor]:
    """An image (1, 3, 16, 16) of four colours with noise, and its phases."""
    generator = torch.Generator().manual_seed(3)
    truth = torch.zeros(1, 16, 16, dtype=torch.int64)
    truth[:, :8, 8:], truth[:, 8:, 8:], truth[:, 8:, :8] = 1, 2, 3
    colors = torch.tensor([[0.1, 0.1, 0.1], [0.2, 0.2, 0.8], [0.7, 0.5, 0.2], [0.9, 0.9, 0.9]])
    image = colors[truth].movedim(-1, 1) + 0.1 * torch.randn(1, 3, 16, 16, generator=generator)
    return image.clamp(0, 1), truth


def test_sides_and_phases_are_inverse_and_neighbours_differ_in_one() -> None:
    labels = torch.arange(8).reshape(1, 8)
    sides = _sides(labels, 3)
    assert torch.equal(_phases(sides), labels)
    assert torch.stack(sides).diff(dim=-1).abs().sum(0).eq(1).all()


def test_two_phases_are_chan_vese() -> None:
    image, _ = four_squares()
    ours = LevelSets()(image, phases=2)
    theirs = regloss.ChanVeseSegmenter()(image, phases=2)
    assert torch.equal(ours.labels, theirs.labels)
    assert ours.energy == pytest.approx(theirs.energy, rel=1e-5)


def test_four_phases_and_their_energy() -> None:
    """Squares 0 and 2, and 1 and 3, differ in both sides; the others, which have boundaries here, in one."""
    image, truth = four_squares()
    found = LevelSets()(image, phases=4)
    assert torch.equal(found.labels, truth)
    energies = [record.energy for record in found.history]
    assert energies == sorted(energies, reverse=True)
    means = torch.stack([image[0][:, found.labels[0] == phase].mean(1) for phase in range(4)])
    misfit = float((image[0] - means[found.labels[0]].movedim(-1, 0)).square().sum())
    tv = regloss.TotalVariation(0.1).bind(image)
    lengths = sum(float(tv.energy(one_hot(side, 2, torch.float32))) for side in _sides(found.labels, 2))
    assert found.energy == pytest.approx(misfit + lengths, rel=1e-5)
    assert lengths == pytest.approx(4 * 8 * 2 * 0.1, rel=1e-6)  # each of 4 boundaries of 8 pixels crossed once


def test_no_change_of_one_level_set_is_better() -> None:
    """At the end, a side flipped at any one pixel raises the energy for the last statistics."""
    image, _ = four_squares()
    found = LevelSets(regularizer={"name": "tv", "weight": 0.3})(image, phases=4)
    tv = regloss.TotalVariation(0.3).bind(image)
    means = torch.stack([image[0][:, found.labels[0] == phase].mean(1) for phase in range(4)])

    def energy(sides: list[torch.Tensor]) -> float:
        misfit = float((image[0] - means[_phases(sides)[0]].movedim(-1, 0)).square().sum())
        return misfit + sum(float(tv.energy(one_hot(side, 2, torch.float32))) for side in sides)

    sides = _sides(found.labels, 2)
    least = energy(sides)
    for place in torch.randperm(256, generator=torch.Generator().manual_seed(1))[:40].tolist():
        for level in (0, 1):
            changed = [side.clone() for side in sides]
            changed[level].view(-1)[place] ^= 1
            assert energy(changed) >= least - 1e-4


def test_bad_settings_are_refused() -> None:
    with pytest.raises(regloss.UsageError, match=r"2, 4, 8, 16 ... phases.*got 3. For another number take chan-vese"):
        LevelSets()(torch.rand(1, 1, 5, 5), phases=3)
    with pytest.raises(regloss.UsageError, match="max_rounds"):
        LevelSets(max_rounds=0)
    with pytest.raises(regloss.UsageError, match="needs a regularizer"):
        LevelSets(regularizer=None)
    with pytest.raises(regloss.MissingForm):
        LevelSets(regularizer="dense-crf")
