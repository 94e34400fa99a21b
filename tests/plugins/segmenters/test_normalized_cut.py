"""Normalised cuts: conformance, against all divisions of a small image, the loss of that name, dense eigenvectors."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

import regloss
from regloss.numerics import one_hot
from regloss.segmenter import Segmenter
from regloss.testing import SegmenterConformance
from regloss_plugins.segmenters import normalized_cut
from regloss_plugins.segmenters.normalized_cut import NormalizedCutSegmenter


class TestNormalizedCut(SegmenterConformance):
    takes_start = False

    def make(self) -> Segmenter:
        return NormalizedCutSegmenter()


def halves(size: tuple[int, int], seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    image = torch.full((1, 3, *size), 0.3)
    image[..., size[1] // 2 :] = 0.6
    return (image + 0.05 * torch.randn(1, 3, *size, generator=generator)).clamp(0, 1)


def test_the_minimum_over_all_divisions_of_a_small_image() -> None:
    image = halves((3, 4))
    segmenter = NormalizedCutSegmenter(sigma_rgb=0.3)
    found = segmenter(image, phases=2)
    weights = segmenter.affinity(image[0].double(), [1.0, 1.0])
    energies = [
        normalized_cut.normalized_cut(weights, np.array([0, *rest]), 2)
        for rest in itertools.product((0, 1), repeat=11)
        if any(rest)
    ]
    assert found.energy == pytest.approx(min(energies))
    assert 0.5 * min(energies) < found.bound <= min(energies)


def test_the_energy_is_that_of_the_loss() -> None:
    """With a radius that holds all pairs, of which the loss takes the sum N times."""
    image = halves((5, 6), seed=1).double()
    found = NormalizedCutSegmenter(sigma_xy=2.0, sigma_rgb=0.2, radius=9.0)(image, phases=3)
    loss = regloss.create("regularizer", "normalized-cut", sigma_xy=2.0, sigma_rgb=0.2, scale=1.0, backend="exact")
    energy = loss.bind(image).energy(one_hot(found.labels, 3, torch.float64))
    assert found.energy == pytest.approx(float(energy) / 30, rel=1e-6)


def test_lanczos_finds_what_dense_eigenvectors_are(monkeypatch: pytest.MonkeyPatch) -> None:
    image = halves((18, 24), seed=2)
    lanczos = NormalizedCutSegmenter(tolerance=0.0)(image, phases=3)
    rough = NormalizedCutSegmenter()(image, phases=3)
    monkeypatch.setattr(normalized_cut, "_DENSE", 1000)
    dense = NormalizedCutSegmenter()(image, phases=3)
    assert torch.equal(lanczos.labels, dense.labels)
    assert lanczos.bound == pytest.approx(dense.bound, rel=1e-6)
    assert rough.bound == -math.inf
    assert rough.energy == pytest.approx(dense.energy, rel=1e-3)


def test_spacing_is_in_units_of_the_finest() -> None:
    """Rows 2.5 times as far apart as columns are joined less, as their distance says."""
    image = torch.rand(1, 1, 3, 8, generator=torch.Generator().manual_seed(0)) * 0.01
    weights = NormalizedCutSegmenter().affinity(image[0].double(), [2.5, 1.0])
    across = weights[0, 8] / weights[0, 1]
    contrast = [(image[0, 0, 0, 0] - image[0, 0].flatten()[other]) ** 2 for other in (8, 1)]
    expected = math.exp(-(2.5**2 - 1) / 32 - float(contrast[0] - contrast[1]) / 0.02)
    assert across == pytest.approx(expected, rel=1e-4)


def test_bad_input_is_refused() -> None:
    for settings, words in (
        ({"sigma_xy": 0.0}, "sigma_xy must be positive"),
        ({"sigma_rgb": -1.0}, "sigma_rgb must be positive"),
        ({"radius": 0.5}, "radius must be at least 1"),
        ({"tolerance": 1.0}, "tolerance must lie in"),
    ):
        with pytest.raises(regloss.UsageError, match=words):
            NormalizedCutSegmenter(**settings)
    image = halves((4, 4))
    with pytest.raises(regloss.UsageError, match=r"knows no start.*Leave start out"):
        NormalizedCutSegmenter()(image, start=torch.arange(16).reshape(1, 4, 4) % 2)
    with pytest.raises(regloss.UsageError, match="16 pixels and 16 phases"):
        NormalizedCutSegmenter()(image, phases=16)
