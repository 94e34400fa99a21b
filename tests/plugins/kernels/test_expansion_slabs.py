"""Expansions slab by slab: energies fall, what is held stays, and where slabs do not matter the minimum is found."""

from __future__ import annotations

import itertools
import tracemalloc

import numpy as np
import pytest
import torch

import regloss
from regloss.grid import neighbor_offsets
from regloss_plugins.kernels import expansion_slabs
from regloss_plugins.kernels.expansion import expand_grid
from regloss_plugins.kernels.expansion_slabs import _energy, _halved, expand_slabs
from regloss_plugins.solvers import alpha_expansion

SHAPE = (11, 6, 7)


def problem(seed, classes=3, strength=0.4):
    rng = np.random.default_rng(seed)
    offsets = np.array(neighbor_offsets(3, 26))
    blobs = torch.nn.functional.interpolate(torch.from_numpy(rng.normal(size=(1, classes, 3, 2, 2))), SHAPE)[0].numpy()
    return {
        "unary": blobs + rng.normal(size=(classes, *SHAPE)),
        "offsets": offsets,
        "weights": strength * rng.random((len(offsets), *SHAPE)),
        "labels": rng.integers(0, classes, SHAPE),
        "fixed": np.where(rng.random(SHAPE) < 0.05, rng.integers(0, classes, SHAPE), -1),
        "roi": rng.random(SHAPE) > 0.1,
        "allowed": np.ones(classes, bool),
    }


def energy_of(given, labels):
    return expand_grid(**{**given, "labels": labels, "fixed": np.where(given["roi"], labels, -1)}, max_cycles=0).energy


@pytest.mark.parametrize("size", [(6, 4, 8), (7, 5, 9), (1, 3, 2), (4, 5)])
def test_energies_of_labels_that_are_constant_on_blocks(size):
    rng = np.random.default_rng(0)
    offsets = np.array(neighbor_offsets(len(size), 26 if len(size) == 3 else 8))
    unary, weights = rng.normal(size=(3, *size)), rng.random((len(offsets), *size))
    free, roi = np.full(size, -1), rng.random(size) > 0.2
    costs, steps, cuts, held, inside = _halved(unary, offsets, weights, free, roi)
    assert costs.shape[1:] == tuple(-(-length // 2) for length in size)
    assert not any((-step).tolist() in steps.tolist() for step in steps)
    assert (held == -1).all()
    for _ in range(3):
        coarse = rng.integers(0, 3, inside.shape)
        fine = coarse
        for axis, length in enumerate(size):
            fine = fine.repeat(2, axis).take(range(length), axis)
        assert _energy(costs, steps, cuts, coarse, inside) == pytest.approx(_energy(unary, offsets, weights, fine, roi))


def test_what_is_larger_than_a_slab_is_found():
    """A ball of 30 slices under a prior by which no slab of 4 of them would give way."""
    size = (40, 24, 24)
    z, y, x = np.indices(size)
    inside = ((z - 20) / 15) ** 2 + ((y - 12) / 9) ** 2 + ((x - 12) / 9) ** 2 < 1
    offsets = np.array(neighbor_offsets(3, 6))
    given = {
        "unary": np.stack([np.where(inside, 1.0, 0.0), np.where(inside, 0.0, 1.0), np.full(size, 3.0)]),
        "offsets": offsets,
        "weights": np.full((len(offsets), *size), 2.0),
        "labels": np.zeros(size, np.int64),
        "fixed": np.full(size, -1),
        "roi": np.ones(size, bool),
        "allowed": np.ones(3, bool),
    }
    whole, found = expand_grid(**given, max_cycles=20), expand_slabs(**given, max_cycles=20, slab=4)
    assert (whole.labels == 1).sum() > 4000
    assert found.energy == pytest.approx(whole.energy, rel=0.03)


@pytest.mark.parametrize("slab", [1, 2, 4, 10, 11, 20])
@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("seed", range(4))
def test_slabs(slab, classes, seed):
    given = problem(seed, classes)
    whole, found = expand_grid(**given, max_cycles=20), expand_slabs(**given, max_cycles=20, slab=slab)
    assert found.converged
    assert found.start_energy == pytest.approx(whole.start_energy, abs=1e-9)
    assert found.energy <= found.start_energy
    assert found.energy == pytest.approx(energy_of(given, found.labels), abs=1e-9)
    held = given["roi"] & (given["fixed"] >= 0)
    np.testing.assert_array_equal(found.labels[held], given["fixed"][held])
    np.testing.assert_array_equal(found.labels[~given["roi"]], given["labels"][~given["roi"]])
    if classes == 2:
        assert found.energy >= whole.energy - 1e-9
    if slab >= 4:
        assert found.energy <= whole.energy + 0.02 * (whole.start_energy - whole.energy)
    if slab >= len(given["labels"]):
        assert found.energy == pytest.approx(whole.energy, abs=1e-9)
    # No slab's expansion improves it.
    again = expand_slabs(**{**given, "labels": found.labels}, max_cycles=20, slab=slab)
    np.testing.assert_array_equal(again.labels, found.labels)


def test_no_labels_are_summed_twice(monkeypatch):
    """Over the whole volume, where every sum reads all costs."""
    summed = []

    def energy(unary, offsets, weights, labels, roi):
        summed.extend([labels.copy()] if labels.shape == SHAPE else [])
        return _energy(unary, offsets, weights, labels, roi)

    monkeypatch.setattr(expansion_slabs, "_energy", energy)
    found = expand_slabs(**problem(0), max_cycles=20, slab=4)
    assert found.energy < found.start_energy
    assert len(summed) == 4  # at the start, at the end, and after both of what comes between
    assert not any((one == other).all() for one, other in itertools.combinations(summed[:3], 2))


def test_slices_without_pairs_between_them_are_solved_exactly():
    given = problem(0, 2)
    flat = given["offsets"][:, 0] == 0
    given["offsets"], given["weights"] = given["offsets"][flat], given["weights"][flat]
    found = expand_slabs(**given, max_cycles=5, slab=3)
    assert found.energy == pytest.approx(expand_grid(**given, max_cycles=5).energy, abs=1e-9)


def test_labels_that_are_not_allowed_are_replaced():
    given = problem(1)
    given["allowed"] = np.array([True, False, True])
    found = expand_slabs(**given, max_cycles=5, slab=4)
    free = given["roi"] & (given["fixed"] < 0)
    assert set(np.unique(found.labels[free])) <= {0, 2}
    assert found.start_energy == pytest.approx(expand_grid(**given, max_cycles=0).energy, abs=1e-9)


def test_cycles_that_run_out_are_told():
    found = expand_slabs(**problem(2), max_cycles=2, slab=2)
    assert (found.cycles, found.converged) == (2, False)


def test_memory_is_that_of_a_slab():
    """Beside what is given, some 500 bytes for every voxel of a slab with its 26 neighbours, and few for all others."""
    size, slab, rng = (60, 32, 32), 4, np.random.default_rng(0)
    offsets = np.array(neighbor_offsets(3, 26))
    given = {
        "unary": rng.random((4, *size), np.float32),
        "offsets": offsets,
        "weights": 0.3 * rng.random((len(offsets), *size), np.float32),
        "labels": np.zeros(size, np.int64),
        "fixed": np.full(size, -1),
        "roi": np.ones(size, bool),
        "allowed": np.ones(4, bool),
    }
    expand_slabs(**given, max_cycles=1, slab=slab)  # loads what is compiled
    tracemalloc.start()
    try:
        expand_slabs(**given, max_cycles=1, slab=slab)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    voxels = np.prod(size)
    held = voxels * (slab + 2) / size[0]  # with a slice on either side
    assert peak < 500 * held + 15 * voxels


def test_the_solver_takes_large_volumes_by_slabs(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    image, unary = torch.rand(1, 1, *SHAPE, generator=generator), torch.from_numpy(problem(0, 2)["unary"])[None]
    term = regloss.GridCRF(weight=0.3).bind(image)
    whole = regloss.solve(term, unary, "alpha-expansion")
    by_slabs = regloss.solve(term, unary, {"name": "alpha-expansion", "slab": 4})
    assert whole.status[0] is regloss.Status.OPTIMAL
    assert by_slabs.status[0] is regloss.Status.CONVERGED
    assert torch.isinf(by_slabs.bound).all()
    assert whole.energy <= by_slabs.energy + 1e-5
    assert by_slabs.energy <= whole.energy + 0.02 * (whole.start_energy - whole.energy)
    monkeypatch.setattr(alpha_expansion, "_LARGE", 400)
    monkeypatch.setattr(alpha_expansion, "_AT_A_TIME", 4 * 42)
    automatic = regloss.solve(term, unary, "alpha-expansion")
    assert torch.equal(automatic.labels, by_slabs.labels)
    monkeypatch.setattr(alpha_expansion, "_LARGE", 500)
    assert torch.equal(regloss.solve(term, unary, "alpha-expansion").labels, whole.labels)
    with pytest.raises(regloss.UsageError, match="slab must be at least 1"):
        regloss.AlphaExpansion(slab=0)
