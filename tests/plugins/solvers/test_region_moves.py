"""Connected regions against scipy, and moves: they lower the energy, and end where no region or pixel gains."""

from __future__ import annotations

import pytest
import torch
from scipy import ndimage
from torch import Tensor

from regloss import GridGraph, grid
from regloss_plugins.solvers.region_moves import connected_regions, move_levels, move_pixels, move_regions

SHAPES = [(13,), (11, 14), (5, 6, 7)]
CONNECTIVITY = {1: 2, 2: 8, 3: 26}


def random_problem(shape: tuple[int, ...], classes: int = 4) -> tuple[Tensor, GridGraph, Tensor]:
    """Unaries, pairs and labels of two images."""
    random = torch.Generator().manual_seed(len(shape))
    offsets = grid.neighbor_offsets(len(shape), CONNECTIVITY[len(shape)])
    weights = torch.zeros(2, len(offsets), *shape)
    for number, offset in enumerate(offsets):
        first, _ = grid.pair_slices(offset)
        part = grid.pick(weights[:, number], first)
        part.copy_(torch.rand(part.shape, generator=random))
    unary = torch.rand(2, classes, *shape, generator=random)
    return unary, GridGraph(offsets, weights), torch.randint(classes, (2, *shape), generator=random)


def energy(unary: Tensor, graph: GridGraph, labels: Tensor) -> Tensor:
    exact = GridGraph(graph.offsets, graph.weights.double())
    return unary.double().gather(1, labels.unsqueeze(1)).flatten(1).sum(1) + exact.cut(labels)


@pytest.mark.parametrize("shape", SHAPES)
def test_regions_are_those_of_scipy(shape: tuple[int, ...]) -> None:
    _, graph, labels = random_problem(shape, 2)
    labels = labels.clamp(max=1)
    found = connected_regions(labels, graph.offsets, graph.weights > 0)
    structure = ndimage.generate_binary_structure(len(shape), len(shape))
    for image in range(2):
        for label in (0, 1):
            mask = labels[image] == label
            expected, count = ndimage.label(mask.numpy(), structure)
            numbers = found[image][mask]
            pairs = torch.stack([numbers, torch.from_numpy(expected)[mask].to(numbers)], dim=1).tolist()
            assert len({tuple(pair) for pair in pairs}) == count == len(set(numbers.tolist()))
    index = torch.arange(found.numel()).reshape(found.shape)
    assert bool((found <= index).all())
    assert torch.equal(found.flatten()[found.flatten()], found.flatten())


def test_a_spiral_is_one_region() -> None:
    """The longest path that a picture can hold."""
    spiral = torch.zeros(1, 25, 25, dtype=torch.int64)
    top, left, bottom, right = 0, 0, 24, 24
    while left <= right and top <= bottom:
        spiral[0, top, left : right + 1] = 1
        spiral[0, top : bottom + 1, right] = 1
        spiral[0, bottom, left : right + 1] = 1
        spiral[0, top + 2 : bottom + 1, left] = 1
        spiral[0, top + 2, left : left + 2] = 1
        top, left, bottom, right = top + 2, left + 2, bottom - 2, right - 2
    offsets = grid.neighbor_offsets(2, 4)
    connected = torch.stack([grid.pairs_inside(torch.ones_like(spiral, dtype=torch.bool), o) for o in offsets], dim=1)
    found = connected_regions(spiral, offsets, connected)
    assert set(found[spiral == 1].tolist()) == {0}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("strength", [0.1, 0.5])
def test_moves_lower_the_energy_until_none_helps(shape: tuple[int, ...], strength: float) -> None:
    unary, graph, labels = random_problem(shape)
    graph = GridGraph(graph.offsets, strength * graph.weights)
    arguments = (unary, graph.offsets, graph.weights)
    given = labels.clone()
    start = energy(unary, graph, labels)
    regions = move_regions(*arguments, labels, max_rounds=50)
    pixels = move_pixels(*arguments, regions, max_rounds=50)
    first, second = energy(unary, graph, regions), energy(unary, graph, pixels)
    assert bool((first < start).all())
    assert bool((second <= first).all())
    assert torch.equal(labels, given)
    assert torch.equal(move_regions(*arguments, regions), regions)
    for p in range(0, unary[0, 0].numel(), 7):
        for label in range(4):
            changed = pixels.clone()
            changed.flatten(1)[:, p] = label
            assert bool((energy(unary, graph, changed) >= second - 1e-5).all())


def test_parts_split_regions() -> None:
    """A region may give up a part, that on which another labelling differs."""
    unary = torch.zeros(1, 2, 1, 6)
    unary[0, 0, 0, 3:] = 1.0
    weights = torch.tensor([[[[0.5] * 5 + [0.0]]]])
    labels, parts = torch.zeros(1, 1, 6, dtype=torch.int64), torch.tensor([[[0, 0, 0, 1, 1, 1]]])
    unary[0, 1, 0, :3] = 2.0
    assert torch.equal(move_regions(unary, ((0, 1),), weights, labels), labels)
    assert torch.equal(move_regions(unary, ((0, 1),), weights, labels, parts=parts), parts)


def by_every_level(unary: Tensor, graph: GridGraph, labels: Tensor, probabilities: Tensor, levels: int) -> Tensor:
    """What `move_levels` finds, one labelling at a time."""
    for label in range(unary.shape[1]):
        others = probabilities.clone()
        others[:, label] = -1
        base = torch.where(labels == label, others.argmax(1), labels)
        for level in range(levels):
            candidate = torch.where(probabilities[:, label] > level / levels, label, base)
            better = energy(unary, graph, candidate) < energy(unary, graph, labels)
            labels = torch.where(grid.spread(better, labels), candidate, labels)
    return labels


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("classes", [2, 4])
def test_moves_along_level_sets_are_the_best_ones(shape: tuple[int, ...], classes: int) -> None:
    unary, graph, labels = random_problem(shape, classes)
    random = torch.Generator().manual_seed(classes)
    probabilities = (4 * torch.randn(unary.shape, generator=random)).softmax(1)
    given = labels.clone()
    found = move_levels(unary, graph.offsets, graph.weights, labels, probabilities, levels=16)
    assert torch.equal(labels, given)
    assert bool((energy(unary, graph, found) < energy(unary, graph, labels)).all())
    assert torch.equal(found, by_every_level(unary, graph, labels, probabilities, 16))


def test_level_sets_hold_no_label_that_is_not_allowed() -> None:
    unary, graph, labels = random_problem((11, 14))
    unary[:, 3] = -5.0  # would be taken everywhere
    probabilities = torch.rand(unary.shape, generator=torch.Generator().manual_seed(3))
    probabilities[:, 3] = -1.0
    probabilities[1, :3] = torch.tensor([-1.0, 0.4, -1.0]).reshape(3, 1, 1)  # one label only
    labels = labels.clamp(max=2)
    labels[1] = 1
    found = move_levels(unary, graph.offsets, graph.weights, labels, probabilities)
    assert bool((found[0] < 3).all())
    assert bool((found[0] != labels[0]).any())
    assert torch.equal(found[1], labels[1])


def test_one_label_has_no_level_sets() -> None:
    unary, graph, _ = random_problem((13,), 1)
    labels = torch.zeros(2, 13, dtype=torch.int64)
    assert torch.equal(move_levels(unary, graph.offsets, graph.weights, labels, torch.ones(2, 1, 13)), labels)
