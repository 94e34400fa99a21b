"""Energies of parallel-potts against expansion moves, enumeration and bounds; its coarser grids."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

import regloss
from regloss import GridCRF, GridGraph, Problem, Status, UsageError, grid, solve
from regloss.numerics import one_hot
from regloss.solver import Solver
from regloss.testing import SolverConformance
from regloss_plugins.solvers.parallel_potts import (
    ParallelPotts,
    _FreeProblem,
    _joined,
    _one_channel,
    _pooled,
    _reduced_costs,
    _refined,
    _refined_dual,
    _simplex_projection,
)


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
    found = solve(term, unary, ParallelPotts(), fixed=fixed)
    ratio = found.energy / expanded.energy
    assert ratio.mean().item() <= 1.005, ratio.tolist()
    assert ratio.max().item() <= 1.02, ratio.tolist()
    assert bool((found.bound <= expanded.energy).all())


def scribbled(root: Path, kind: str, count: int, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Pictures (count, C, *size) of a data set and their scribbles, -1 where there are none."""
    images, seeds = [], []
    for path in sorted((root / kind).glob("*.png"))[:count]:
        scribble = torch.from_numpy(np.asarray(Image.open(path)).astype(np.int64))
        picture = np.asarray(Image.open(next(root.glob(f"images/{path.stem}.*"))), dtype=np.float32) / 255
        image = torch.from_numpy(picture.reshape(*picture.shape[:2], -1)).permute(2, 0, 1).unsqueeze(0)
        if scribble.shape[0] > scribble.shape[1]:
            image, scribble = image.transpose(2, 3), scribble.T
        images.append(functional.interpolate(image, size, mode="bicubic").clamp(0, 1))
        seeds.append(functional.interpolate(scribble[None, None].float(), size, mode="nearest")[:, 0].long())
    fixed = torch.cat(seeds)
    return torch.cat(images), torch.where(fixed == 255, -1, fixed)


@pytest.mark.parametrize(("folder", "kind", "classes"), [("iseg", "scribbles1", 2), ("acdc", "scribbles", 4)])
def test_energy_with_real_scribbles(data_root: Path, folder: str, kind: str, classes: int) -> None:
    """The level 1/2 of the relaxed solution would cost up to half as much again: see `move_levels`."""
    image, fixed = scribbled(data_root / folder, kind, 3, (125, 166))
    random = torch.Generator().manual_seed(0)
    unary = -0.05 * torch.randn(3, classes, *image.shape[2:], generator=random).log_softmax(1)
    term = GridCRF(weight=25.0).bind(image)
    expanded = solve(term, unary, "alpha-expansion", fixed=fixed)
    found = solve(term, unary, ParallelPotts(), fixed=fixed)
    ratio = found.energy / expanded.energy
    assert ratio.mean().item() <= 1.005, ratio.tolist()
    assert ratio.max().item() <= 1.02, ratio.tolist()
    assert torch.equal(found.labels[fixed >= 0], fixed[fixed >= 0])
    assert bool((found.bound <= expanded.energy * (1 + 1e-6)).all())


def test_two_labels_are_exact_where_large_parts_hardly_matter(data_root: Path) -> None:
    """Two photographs in which some labelling that differs in a large part costs 1 and 2 percent more than the minimum.

    300 steps end with those, whatever moves follow.
    """
    image, fixed = scribbled(data_root / "iseg", "scribbles1", 11, (187, 250))
    image, fixed = image[[7, 10]], fixed[[7, 10]]
    random = torch.Generator().manual_seed(0)
    unary = -0.05 * torch.randn(1, 2, 187, 250, generator=random).log_softmax(1).repeat(2, 1, 1, 1)
    term = GridCRF(weight=25.0).bind(image)
    least = solve(term, unary, "alpha-expansion", fixed=fixed).energy
    found = solve(term, unary, ParallelPotts(), fixed=fixed)
    assert (found.energy / least).tolist() == pytest.approx([1.0, 1.0], abs=1e-5)
    assert bool((found.bound <= least * (1 + 1e-9)).all())


def test_two_labels_take_the_steps_of_the_simplex() -> None:
    """One channel in place of two changes nothing but the work."""
    random = torch.Generator().manual_seed(6)
    graph = GridCRF(weight=0.8).bind(torch.rand(2, 1, 19, 14, generator=random)).form(GridGraph)
    unary = torch.rand(2, 2, 19, 14, generator=random)
    solver = ParallelPotts(coarse_steps=0)
    both = solver._iteration(unary, graph.offsets, graph.weights, two_labels=False)
    single, doubled = _one_channel(unary, graph.weights)
    one = solver._iteration(single, graph.offsets, doubled, two_labels=True)
    for steps in (1, 10, 30):
        both.run(steps)
        one.run(steps)
        torch.testing.assert_close(one.probabilities(), both.probabilities(), atol=1e-4, rtol=0)
        torch.testing.assert_close(one.dual_of_labels(), both.dual_of_labels(), atol=1e-4, rtol=0)
    assert 0.1 < one.probabilities().std().item() < 0.5


def test_only_an_open_gap_takes_more_steps() -> None:
    """Three pixels in a triangle, two labels each: two of the three pairs must be cut, and half of each is, relaxed."""
    unary = torch.full((2, 3, 2, 2), 9.0)
    for pixel, labels in {(0, 0): (0, 1), (0, 1): (0, 2), (1, 0): (1, 2)}.items():
        unary[(0, list(labels), *pixel)] = 0
    unary[1, 0] = 0  # an easy image
    roi = torch.tensor([[True, True], [True, False]]).expand(2, -1, -1)
    term = GridCRF(weight=1.0, connectivity=8).bind(torch.zeros(2, 1, 2, 2), roi)
    solution = solve(term, unary, "parallel-potts")
    diagonal = 2**-0.5
    torch.testing.assert_close(solution.energy, torch.tensor([1 + diagonal, 0.0]), check_dtype=False)
    torch.testing.assert_close(solution.bound, torch.tensor([(2 + diagonal) / 2, 0.0]), check_dtype=False)
    assert solution.steps.tolist() == [1000, 100]
    assert solution.status == (Status.MAX_STEPS, Status.OPTIMAL)
    assert solve(term, unary, ParallelPotts(max_steps=150)).steps.tolist() == [150, 100]
    # What all labels have in common is no part of the gap, and the look at 300 steps is always taken.
    assert solve(term, unary + 100, "parallel-potts").steps.tolist() == [1000, 100]
    assert solve(term, unary, ParallelPotts(check_every=200, tolerance=0)).steps.tolist() == [1000, 200]


@pytest.mark.parametrize("offset", [0.0, 1e6, 1e8])
@pytest.mark.parametrize("classes", [2, 3])
def test_what_labels_have_in_common_costs_no_digits(offset: float, classes: int) -> None:
    generator = torch.Generator().manual_seed(0)
    unary = torch.rand(1, classes, 24, 24, generator=generator, dtype=torch.float64)
    term = GridCRF(weight=0.3).bind(torch.rand(1, 1, 24, 24, generator=generator, dtype=torch.float64))
    plain, moved = solve(term, unary, "parallel-potts"), solve(term, unary + offset, "parallel-potts")
    exact = solve(term, unary, "alpha-expansion")
    torch.testing.assert_close(moved.energy - offset * 24 * 24, plain.energy, rtol=0, atol=1e-4)
    assert float(moved.bound - offset * 24 * 24) <= float(exact.energy) + 1e-4
    if classes == 2:
        torch.testing.assert_close(plain.energy, exact.energy)


def test_a_label_that_is_not_allowed_may_be_cheaper_by_any_amount() -> None:
    unary = torch.zeros(1, 2, 4, 4)
    unary[:, 1] = 1e9
    term = GridCRF(weight=0.3).bind(torch.zeros(1, 1, 4, 4))
    solution = solve(term, unary, "parallel-potts", allowed=torch.tensor([[False, True]]))
    assert bool((solution.labels == 1).all())
    assert float(solution.energy) == pytest.approx(16e9)


def test_seeds_allowed_labels_roi_and_start_together() -> None:
    """In double precision, with three different images; the start holds what is not allowed, and is not modified."""
    image = photographs(step=10)
    unary = colour_unaries(image, 5, 0.5, 1.0)
    random = torch.Generator().manual_seed(4)
    shape = (3, *image.shape[2:])
    roi = torch.ones(shape, dtype=torch.bool)
    roi[0, :, :9] = False
    allowed = torch.ones(3, 5, dtype=torch.bool)
    allowed[1, [0, 3]] = False
    fixed = torch.where(torch.rand(shape, generator=random) < 0.01, 2, -1)
    start = torch.randint(5, shape, generator=random)
    given = start.clone()
    term = GridCRF(weight=2.0).bind(image, roi)
    arguments: dict[str, Any] = {"fixed": fixed, "allowed": allowed}
    found = solve(term, unary, ParallelPotts(), warm=start, **arguments)
    expanded = solve(term, unary, "alpha-expansion", **arguments)
    assert found.probabilities.dtype is torch.float64
    assert torch.equal(start, given)
    assert bool((found.labels[(fixed >= 0) & roi] == 2).all())
    assert not bool(((found.labels[1] == 0) | (found.labels[1] == 3)).any())
    assert bool((found.energy < found.start_energy).all())
    assert bool((found.energy <= 1.005 * expanded.energy).all()), (found.energy / expanded.energy).tolist()
    before = found.labels.to(torch.uint8)
    again = solve(term, unary, ParallelPotts(max_steps=10, check_every=10), warm=before, **arguments)
    assert bool((again.energy <= found.energy * (1 + 1e-12)).all())


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


@pytest.mark.parametrize("classes", [2, 3])
def test_bound_of_any_dual_variables(classes: int) -> None:
    """Over-relaxation takes z beyond [-1, 1], where unary + D^T z bounds nothing; the minimum is by enumeration."""
    random = torch.Generator().manual_seed(classes)
    image = torch.rand(30, 3, 2, 3, generator=random)
    unary = torch.randn(30, classes, 2, 3, generator=random)
    graph = GridCRF(weight=0.6).bind(image).form(GridGraph)
    every = torch.tensor(list(itertools.product(range(classes), repeat=6))).reshape(-1, 2, 3)
    costs = one_hot(every, classes, torch.float64).flatten(1) @ unary.double().flatten(1).T
    exact = graph.weights.double()
    cuts = [GridGraph(graph.offsets, weights.expand(len(every), -1, -1, -1)).cut(every) for weights in exact]
    least = (costs + torch.stack(cuts, dim=1)).amin(0)
    free = _FreeProblem(Problem(graph, unary))
    iteration = ParallelPotts(coarse_steps=0)._iteration(unary, graph.offsets, graph.weights, two_labels=False)
    beyond = False
    for steps in (1, 1, 1, 2, 3):
        iteration.run(steps)
        beyond |= bool(iteration.dual.abs().max() > 1.1)
        assert (free.bound(iteration.dual) - least).max().item() <= 1e-9
    assert beyond
    assert (free.bound(4 * torch.randn(iteration.dual.shape, generator=random)) - least).max().item() <= 1e-9


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


@pytest.mark.parametrize(
    ("shape", "connectivity"), [((9,), 2), ((6, 7), 4), ((6, 7), 8), ((5, 4, 6), 6), ((5, 4, 6), 26)]
)
def test_dual_variables_keep_every_block_on_the_finer_grid(shape: tuple[int, ...], connectivity: int) -> None:
    """unary + D^T z has the sums that it had, and is level within whole blocks of which all pixels are neighbours."""
    random = torch.Generator().manual_seed(5)
    graph = GridCRF(connectivity=connectivity).bind(torch.rand(2, 1, *shape, generator=random)).form(GridGraph)
    unary = 0.02 * torch.rand(2, 3, *shape, generator=random)
    pooled, joined = _pooled(unary), _joined(graph.offsets, graph.weights)
    dual = 0.02 * torch.randn(2, len(graph.offsets), 3, *pooled.shape[2:], generator=random)
    refined = _refined_dual(dual, unary, graph.offsets, graph.weights)
    assert refined.abs().max().item() < 1  # nothing was clamped
    coarse = _reduced_costs(pooled, graph.offsets, joined.unsqueeze(2) / 2, dual)
    fine = _reduced_costs(unary, graph.offsets, graph.weights.unsqueeze(2) / 2, refined)
    torch.testing.assert_close(_pooled(fine), coarse, atol=1e-6, rtol=0)
    if connectivity in (2, 8, 26):
        whole = tuple(slice(2 * (length // 2)) for length in shape)
        level = _refined(coarse, shape) / 2 ** len(shape)
        torch.testing.assert_close(grid.pick(fine, whole), grid.pick(level, whole), atol=1e-6, rtol=0)


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
    found, threshold = torch.empty_like(values), None
    for _ in range(8):
        threshold = _simplex_projection(values, threshold, out=found)
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


class TestParallelPotts(SolverConformance):
    local = True  # which pixels form the coarser grids' blocks depends on where they lie

    def make(self) -> Solver:
        return ParallelPotts(max_steps=60, coarse_steps=20, check_every=30)
