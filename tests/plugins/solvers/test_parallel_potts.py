"""Energies of parallel-potts against expansion moves, enumeration and bounds; its coarser grids."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

import regloss
from regloss import GridCRF, GridGraph, Problem, Status, UsageError, grid, solve
from regloss.solver import one_hot
from regloss_plugins.solvers.parallel_potts import ParallelPotts, _joined, _pooled, _refined, _simplex_projection


def photographs(step: int = 5) -> Tensor:
    """(3, 3, H, W) of scikit-image's photographs, cut to one size."""
    data = pytest.importorskip("skimage.data", reason="scikit-image is not installed (extra regloss[sample])")
    pictures = [getattr(data, name)()[:400:step, :400:step, :3] for name in ("astronaut", "chelsea", "coffee")]
    height, width = (min(picture.shape[axis] for picture in pictures) for axis in (0, 1))
    stacked = torch.stack([torch.from_numpy(picture[:height, :width].copy()) for picture in pictures])
    return stacked.permute(0, 3, 1, 2).double() / 255


def colour_unaries(image: Tensor, classes: int, noise: float, strength: float) -> Tensor:
    """Noisy distances to some colours of each image."""
    random = torch.Generator().manual_seed(classes)
    unaries = []
    for picture in image:
        pixels = picture.flatten(1).T
        colours = pixels[torch.randperm(len(pixels), generator=random)[:classes]]
        distances = torch.cdist(pixels, colours).T.reshape(classes, *picture.shape[1:])
        noise_part = noise * torch.randn(distances.shape, generator=random, dtype=torch.float64)
        unaries.append(strength * (distances + noise_part))
    return torch.stack(unaries)


@pytest.mark.parametrize(
    ("classes", "noise", "strength"), [(4, 0.1, 10.0), (6, 0.1, 10.0), (4, 0.5, 1.0), (6, 0.5, 2.0)]
)
def test_energy_is_close_to_that_of_expansion_moves(classes: int, noise: float, strength: float) -> None:
    image = photographs()
    unary = colour_unaries(image, classes, noise, strength)
    term = GridCRF().bind(image)
    expanded, found = solve(term, unary, "alpha-expansion"), solve(term, unary, ParallelPotts())
    ratio = found.energy / expanded.energy
    assert ratio.mean().item() <= 1.005, ratio.tolist()
    assert ratio.max().item() <= 1.02, ratio.tolist()
    assert bool((found.bound <= expanded.energy).all())
    assert bool((found.bound >= 0.9 * expanded.energy).all())


def test_energy_with_scribbles_and_hardly_any_unaries() -> None:
    """Trust region: a few seeds, pairs that outweigh the unaries by far."""
    image = photographs()
    random = torch.Generator().manual_seed(0)
    unary = -0.05 * torch.randn(3, 4, *image.shape[2:], generator=random, dtype=torch.float64).log_softmax(1)
    fixed = torch.full((3, *image.shape[2:]), -1)
    for label, (row, column) in enumerate(((8, 8), (40, 30), (60, 10), (20, 45))):
        fixed[:, row : row + 2, column : column + 9] = label
    term = GridCRF(weight=25.0).bind(image)
    expanded = solve(term, unary, "alpha-expansion", fixed=fixed)
    found = solve(term, unary, ParallelPotts(max_steps=400), fixed=fixed)
    ratio = found.energy / expanded.energy
    assert ratio.max().item() <= 1.02, ratio.tolist()
    assert bool((found.bound <= expanded.energy).all())


@pytest.mark.parametrize("classes", [2, 3, 4])
def test_bound_is_never_above_the_minimum(classes: int) -> None:
    random = torch.Generator().manual_seed(classes)
    image = torch.rand(50, 3, 2, 4, generator=random, dtype=torch.float64)
    unary = torch.randn(50, classes, 2, 4, generator=random, dtype=torch.float64)
    seeds = torch.randint(classes, (50, 2, 4), generator=random)
    fixed = torch.where(torch.rand(50, 2, 4, generator=random) < 0.15, seeds, -1)
    roi = torch.rand(50, 2, 4, generator=random) < 0.9
    term = GridCRF(weight=0.6).bind(image, roi)
    solution = solve(term, unary, ParallelPotts(max_steps=100, check_every=25), fixed=fixed)
    every = torch.tensor(list(itertools.product(range(classes), repeat=8))).reshape(-1, 2, 4)
    graph = term.form(GridGraph)
    tight = 0
    for b in range(50):
        agrees = ((every == fixed[b]) | (fixed[b] < 0) | ~roi[b]).flatten(1).all(1)
        labels = every[agrees]
        cut = GridGraph(graph.offsets, graph.weights[[b]].expand(len(labels), -1, -1, -1)).cut(labels)
        costs = (one_hot(labels, classes, torch.float64) * unary[b]).sum(1) * roi[b]
        least = (cut + costs.flatten(1).sum(1)).min().item()
        assert solution.bound[b].item() <= least + 1e-9
        assert solution.energy[b].item() >= least - 1e-9
        tight += solution.energy[b].item() - solution.bound[b].item() < 1e-3
    assert tight >= 40


def test_an_image_does_not_depend_on_its_batch() -> None:
    """Also where others need more steps: the last one is all of one label."""
    random = torch.Generator().manual_seed(1)
    image = torch.rand(3, 1, 9, 20, generator=random)
    unary = torch.rand(3, 3, 9, 20, generator=random) * torch.tensor([20.0, 1.0, 0.3]).reshape(3, 1, 1, 1)
    crf, solver = GridCRF(weight=0.3), ParallelPotts(check_every=10, max_steps=60, tolerance=1e-4)
    together = solve(crf.bind(image), unary, solver)
    assert together.steps[2] < together.steps[0]
    assert together.status[2] is Status.OPTIMAL
    for b in range(3):
        alone = solve(crf.bind(image[[b]]), unary[[b]], solver)
        assert torch.equal(alone.labels, together.labels[[b]])
        assert alone.steps.item() == together.steps[b].item()
        assert alone.status[0] is together.status[b]


def test_weights_of_very_different_size() -> None:
    """Neither overflow nor NaN; pairs of 1e12 are not cut, those of 1e-30 do not matter."""
    unary = torch.tensor([[[[0.0, 0.0, 3.0, 0.0]], [[1.0, 1.0, 0.0, 1.0]]]])
    weights = torch.tensor([[[[1e12, 1e-30, 1e12, 0.0]]]])
    solution = ParallelPotts().minimise(Problem(GridGraph(((0, 1),), weights), unary))
    assert solution.labels.tolist() == [[[0, 0, 1, 1]]]
    assert solution.energy.item() == pytest.approx(1.0)
    assert math.isfinite(solution.bound.item())


@pytest.mark.parametrize("shape", [(9,), (6, 7), (5, 4, 6)])
def test_coarser_grids_keep_the_energy(shape: tuple[int, ...]) -> None:
    """Labels of blocks cost on the coarser grid what they cost on the finer one."""
    random = torch.Generator().manual_seed(2)
    image = torch.rand(2, 1, *shape, generator=random)
    graph = GridCRF(connectivity=2 if len(shape) == 1 else 8).bind(image).form(GridGraph)
    unary = torch.rand(2, 3, *shape, generator=random)
    pooled, joined = _pooled(unary), _joined(graph.offsets, graph.weights)
    assert pooled.shape[2:] == joined.shape[2:] == tuple((size + 1) // 2 for size in shape)
    blocks = torch.randint(3, (2, *pooled.shape[2:]), generator=random)
    labels = _refined(blocks, shape)
    for coarse, fine in (
        (GridGraph(graph.offsets, joined).cut(blocks), graph.cut(labels)),
        (_cost(pooled, blocks), _cost(unary, labels)),
    ):
        assert coarse.tolist() == pytest.approx(fine.tolist(), rel=1e-5)


def _cost(unary: Tensor, labels: Tensor) -> Tensor:
    return unary.gather(1, labels.unsqueeze(1)).flatten(1).sum(1)


def test_weights_of_joined_pairs_stay_inside() -> None:
    """No weight at pairs that leave the coarser grid."""
    graph = GridCRF().bind(torch.rand(1, 1, 5, 8, generator=torch.Generator().manual_seed(3))).form(GridGraph)
    joined = _joined(graph.offsets, graph.weights)
    for number, offset in enumerate(graph.offsets):
        inside = grid.pairs_inside(torch.ones(1, 3, 4, dtype=torch.bool), offset)
        assert bool((joined[:, number][~inside] == 0).all())
        assert bool((joined[:, number][inside] > 0).all())


@pytest.mark.parametrize("classes", [1, 2, 5, 21])
def test_projection_onto_the_simplex(classes: int) -> None:
    """Against the one by sorting; a few calls with the last threshold are exact."""
    values = 2 * torch.randn(1, classes, 40, generator=torch.Generator().manual_seed(classes), dtype=torch.float64)
    threshold = None
    for _ in range(8):
        found, threshold = _simplex_projection(values, threshold)
    ordered = values.sort(1, descending=True).values
    means = (ordered.cumsum(1) - 1) / torch.arange(1, classes + 1).reshape(1, -1, 1)
    expected = (values - means.amax(1, keepdim=True)).clamp(min=0)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_steps": 0}, "max_steps and check_every must be at least 1"),
        ({"check_every": 0}, "max_steps and check_every must be at least 1"),
        ({"coarse_steps": -1}, "coarse_steps must not be negative"),
        ({"balance": 0.0}, "balance must be finite and above 0"),
        ({"tolerance": float("inf")}, "tolerance must be finite"),
    ],
)
def test_refuses_settings(settings: dict[str, float], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        regloss.create("solver", "parallel-potts", **settings)


def test_refuses_what_is_no_problem_over_labels() -> None:
    term, unary = GridCRF().bind(torch.zeros(1, 1, 2, 3)), torch.zeros(1, 2, 2, 3)
    with pytest.raises(UsageError, match=r"parallel-potts minimises over labels.*entropy = 0\.5"):
        solve(term, unary, ParallelPotts(), entropy=0.5)
    with pytest.raises(UsageError, match=r"parallel-potts starts from labels.*dict"):
        solve(term, unary, ParallelPotts(), warm={})
