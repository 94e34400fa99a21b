"""Every solver over labels, against enumeration, the oracle files and each other."""

from __future__ import annotations

import importlib.util
import itertools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

import regloss
from regloss import GridCRF, Status, solve
from regloss.forms import Graph
from regloss.regularizer import Term

# Found without being imported: gco would change numpy for all other tests.
PACKAGES = {"pymaxflow": "maxflow", "gco": "gco"}
SOLVERS = ["alpha-expansion", "pymaxflow", "gco"]


@pytest.fixture(params=SOLVERS)
def solver(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    if name in PACKAGES and importlib.util.find_spec(PACKAGES[name]) is None:
        pytest.skip(f"{PACKAGES[name]} is not installed")
    return name


# --------------------------------------------------------------------------------------------------------------------
# Enumeration


@dataclass
class Tiny:
    """A few problems small enough to enumerate; the energy is written out anew here."""

    unary: Tensor  # (B, K, *S) in [0, 2]
    image: Tensor
    fixed: Tensor | None = None
    allowed: Tensor | None = None
    roi: Tensor | None = None
    weight: float = 0.8

    def term(self) -> Term:
        connectivity = 2 if self.image.ndim == 3 else 8
        return GridCRF(weight=self.weight, connectivity=connectivity).bind(self.image, self.roi)

    def arguments(self) -> dict[str, Any]:
        return {"fixed": self.fixed, "allowed": self.allowed}

    def inside(self, b: int) -> NDArray[np.bool_]:
        shape = self.image.shape[2:]
        return np.ones(shape.numel(), bool) if self.roi is None else self.roi[b].numpy().ravel()

    def energies(self, b: int, labels: NDArray[np.int64]) -> NDArray[np.float64]:
        """Energies (n,) of ``labels`` (n, N) for image b."""
        shape, inside = tuple(self.image.shape[2:]), self.inside(b)
        where = np.stack(np.unravel_index(np.arange(math.prod(shape)), shape), axis=1)
        colour = self.image[b].flatten(1).numpy().T
        pairs = [
            (p, q)
            for p, q in itertools.combinations(range(len(where)), 2)
            if inside[p] and inside[q] and abs(where[p] - where[q]).max() == 1
        ]
        contrast = np.array([((colour[p] - colour[q]) ** 2).sum() for p, q in pairs])
        unary = self.unary[b].flatten(1).numpy()
        total = (unary[labels, np.arange(labels.shape[1])] * inside).sum(1)
        for (p, q), difference in zip(pairs, contrast, strict=True):
            weight = np.exp(-difference / (2 * contrast.mean())) / np.linalg.norm(where[p] - where[q])
            total = total + self.weight * weight * (labels[:, p] != labels[:, q])
        return np.asarray(total)

    def feasible(self, b: int) -> NDArray[np.int64]:
        """All labellings (n, N) of image b that respect what is fixed and allowed, 0 outside the region of interest."""
        classes = self.unary.shape[1]
        choices = range(classes) if self.allowed is None else self.allowed[b].nonzero().flatten().tolist()
        options = []
        for p, counts in enumerate(self.inside(b)):
            seed = -1 if self.fixed is None else int(self.fixed[b].flatten()[p])
            options.append([0] if not counts else [seed] if seed >= 0 else choices)
        return np.array(list(itertools.product(*options)))


def tiny(classes: int, shape: tuple[int, ...], batch: int, constraints: str) -> Tiny:
    random = torch.Generator().manual_seed(classes + len(shape))
    image = torch.rand(batch, 3, *shape, dtype=torch.float64, generator=random)
    unary = 2 * torch.rand(batch, classes, *shape, dtype=torch.float64, generator=random)
    problem = Tiny(unary, image)
    if constraints in ("fixed", "all"):
        given = torch.randint(classes, (batch, *shape), generator=random)
        problem.fixed = torch.where(torch.rand(batch, *shape, generator=random) < 0.25, given, -1)
    if constraints in ("allowed", "all"):
        problem.allowed = torch.ones(batch, classes, dtype=torch.bool)
        problem.allowed[torch.arange(batch), torch.arange(batch) % classes] = False
        if problem.fixed is not None:
            admitted = problem.allowed.gather(1, problem.fixed.clamp(min=0).flatten(1)).reshape(problem.fixed.shape)
            problem.fixed = torch.where(admitted, problem.fixed, -1)
    if constraints in ("roi", "all"):
        problem.roi = torch.rand(batch, *shape, generator=random) < 0.75
    return problem


SHAPES = [(2, (3, 4)), (3, (3, 3)), (3, (2, 2, 2)), (3, (8,))]
CONSTRAINTS = ["none", "fixed", "allowed", "roi", "all"]
# gco takes a process for every image, so it gets few of them.
CASES = [(name, constraints) for name in SOLVERS[:2] for constraints in CONSTRAINTS] + [("gco", "all")]


@pytest.mark.parametrize(("solver", "constraints"), CASES, indirect=["solver"])
@pytest.mark.parametrize(("classes", "shape"), SHAPES)
def test_enumeration(solver: str, classes: int, shape: tuple[int, ...], constraints: str) -> None:
    problem = tiny(classes, shape, 1 if solver == "gco" else 8, constraints)
    solution = solve(problem.term(), problem.unary, solver, **problem.arguments())

    for b in range(len(problem.unary)):
        inside, found = problem.inside(b), solution.labels[b].flatten().numpy()
        if problem.fixed is not None:
            seeds = problem.fixed[b].flatten().numpy()
            assert (found == seeds)[inside & (seeds >= 0)].all()
        feasible = problem.feasible(b)
        energies = problem.energies(b, feasible)
        energy, least = float(solution.energy[b]), energies.min()
        assert energy == pytest.approx(problem.energies(b, np.where(inside, found, 0)[None])[0], rel=1e-9)
        assert (feasible == np.where(inside, found, 0)).all(1).any(), "a label that is not allowed"
        choices = classes if problem.allowed is None else int(problem.allowed[b].sum())
        assert energy >= least - 1e-9
        assert energy <= (least if choices <= 2 else 2 * least) + 1e-9
        assert float(solution.bound[b]) <= least + 1e-9
        if choices <= 2:
            assert float(solution.gap[b]) < 1e-4
            assert solution.status[b] in (Status.OPTIMAL, Status.CONVERGED)
        assert energy <= float(solution.start_energy[b])


@pytest.mark.parametrize(("solver", "constraints"), CASES, indirect=["solver"])
def test_warm_start_is_never_left_for_worse(solver: str, constraints: str) -> None:
    problem = tiny(3, (3, 3), 1 if solver == "gco" else 8, constraints)
    batch = range(len(problem.unary))
    feasible = [problem.feasible(b) for b in batch]
    chosen = [feasible[b][7 * b % len(feasible[b])] for b in batch]
    warm = torch.from_numpy(np.stack(chosen)).reshape(-1, 3, 3)
    solution = solve(problem.term(), problem.unary, solver, warm=warm, **problem.arguments())
    expected = [problem.energies(b, chosen[b][None])[0] for b in batch]
    assert solution.start_energy.tolist() == pytest.approx(expected, rel=1e-9)
    assert (solution.energy <= solution.start_energy).all()


@pytest.mark.parametrize("solver", SOLVERS[:2], indirect=True)
def test_goes_on_from_its_own_solution(solver: str) -> None:
    problem = tiny(3, (3, 3), 8, "all")
    cold = solve(problem.term(), problem.unary, solver, **problem.arguments())
    for warm in (cold, cold.labels):
        solution = solve(problem.term(), problem.unary, solver, warm=warm, **problem.arguments())
        assert solution.start_energy.tolist() == pytest.approx(cold.energy.tolist(), rel=1e-12)
        assert torch.equal(solution.labels, cold.labels)


def test_arguments_are_not_modified(solver: str) -> None:
    problem = tiny(3, (3, 3), 1, "all")
    term = problem.term()
    warm = torch.full((1, 3, 3), 2)
    given = [problem.unary, problem.fixed, problem.allowed, problem.roi, problem.image, warm, term.form(Graph).weights]
    before = [value.clone() for value in given if value is not None]
    solve(term, problem.unary, solver, warm=warm, **problem.arguments())
    assert all(torch.equal(value, old) for value, old in zip(given, before, strict=True) if value is not None)


def test_solution_of_one_image(solver: str) -> None:
    """What a solution holds besides its energy."""
    problem = tiny(3, (3, 3), 1, "none")
    solution = solve(problem.term(), problem.unary.float(), solver)
    assert solution.probabilities.dtype == torch.float32
    assert torch.equal(solution.probabilities.argmax(1), solution.labels)
    assert torch.equal(solution.probabilities.sum(1), torch.ones(1, 3, 3))
    assert torch.equal(solution.state, solution.labels)
    assert solution.labels.dtype == torch.int64
    assert 1 <= int(solution.steps) <= 5
    assert solution.status == (Status.CONVERGED,)
    assert solution.bound.isneginf().all()
    assert solution.gap.isposinf().all()


def test_region_of_interest_is_a_crop(solver: str) -> None:
    problem = tiny(3, (7, 8), 1, "none")
    problem.roi = torch.zeros(1, 7, 8, dtype=torch.bool)
    problem.roi[:, 1:6, 3:7] = True
    crop = (..., slice(1, 6), slice(3, 7))
    cropped = Tiny(problem.unary[crop], problem.image[crop])
    whole, part = (solve(p.term(), p.unary, solver) for p in (problem, cropped))
    assert torch.equal(whole.labels[crop], part.labels)
    assert whole.energy.tolist() == pytest.approx(part.energy.tolist(), rel=1e-12)


def test_refuses_entropy(solver: str) -> None:
    problem = tiny(2, (3, 4), 1, "none")
    with pytest.raises(regloss.UsageError, match=rf"{solver}.*entropy = 0\.5.*mean-field"):
        solve(problem.term(), problem.unary, solver, entropy=0.5)


def test_refuses_a_start_that_is_not_labels(solver: str) -> None:
    problem = tiny(2, (3, 4), 1, "none")
    with pytest.raises(regloss.UsageError, match=r"labels.*dict"):
        solve(problem.term(), problem.unary, solver, warm={})


def test_refuses_no_cycles(solver: str) -> None:
    with pytest.raises(regloss.UsageError, match="max_cycles must be at least 1; got 0"):
        regloss.create("solver", solver, max_cycles=0)


# --------------------------------------------------------------------------------------------------------------------
# Oracle files


@pytest.fixture
def potts(oracles: Path) -> dict[str, NDArray[Any]]:
    with np.load(oracles / "potts.npz") as arrays:
        return dict(arrays)


def as_tensor(values: NDArray[Any], potts: dict[str, NDArray[Any]]) -> Tensor:
    """(n, N, C) arrays of the file as (n, C, H, W)."""
    return torch.from_numpy(values).movedim(-1, 1).reshape(len(values), values.shape[-1], *potts["img"].shape[1:3])


def test_oracle_minima(solver: str, potts: dict[str, NDArray[Any]]) -> None:
    number = 1 if solver == "gco" else len(potts["unary"])
    image = as_tensor(potts["img"][:number], potts)
    solution = solve(GridCRF(diagonal="unit").bind(image), as_tensor(potts["unary"][:number], potts), solver)
    assert solution.energy.tolist() == pytest.approx(potts["E_min"][:number].tolist(), abs=1e-9)
    assert torch.equal(solution.labels.flatten(1), torch.from_numpy(potts["labels"][:number]))


def test_oracle_proposal_step(solver: str, potts: dict[str, NDArray[Any]]) -> None:
    """The X-step of ADM: the network's unaries off the seeds, nothing but the seeds on them."""
    seeds = torch.from_numpy(potts["adm_seeds"]).reshape(1, 3, 4)
    unary = -float(potts["adm_gamma"]) * as_tensor(potts["adm_S"][None], potts).log() * (seeds < 0)
    term = GridCRF(weight=float(potts["adm_lambda"]), diagonal="unit").bind(as_tensor(potts["img"][:1], potts))
    solution = solve(term, unary, solver, fixed=seeds)
    assert solution.energy.item() == pytest.approx(float(potts["adm_E"]), abs=1e-9)
    assert torch.equal(solution.labels.flatten(), torch.from_numpy(potts["adm_X"]))


# --------------------------------------------------------------------------------------------------------------------
# Real sizes


def scene(classes: int, height: int = 60, width: int = 70) -> tuple[Tensor, Tensor]:
    """A noisy image with curved regions, and the unaries of a classifier that is right a little more often than not."""
    random = torch.Generator().manual_seed(classes)
    y, x = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    truth = ((torch.sin(7 * x + 3 * y) + torch.cos(9 * y - 2 * x) + 2.2) / 4.4 * classes).long().clamp(0, classes - 1)
    image = 0.1 + 0.8 * truth / (classes - 1) + 0.08 * torch.randn(1, 1, height, width, generator=random)
    scores = torch.randn(1, classes, height, width, generator=random)
    scores += 1.2 * torch.nn.functional.one_hot(truth, classes).movedim(-1, 0)
    return image.clamp(0, 1).double(), -scores.log_softmax(1).double()


@pytest.mark.parametrize("weight", [0.3, 1.0, 4.0])
@pytest.mark.parametrize(("classes", "tolerance"), [(2, 1e-6), (4, 1e-3)])
def test_solvers_agree_at_a_real_size(classes: int, tolerance: float, weight: float) -> None:
    image, unary = scene(classes)
    term = GridCRF(weight=weight).bind(image)
    present = ["alpha-expansion", *(name for name, package in PACKAGES.items() if importlib.util.find_spec(package))]
    if weight != 1.0 and "gco" in present:
        present.remove("gco")
    if len(present) == 1:
        pytest.skip("neither PyMaxflow nor gco-wrapper is installed")
    energies = {name: solve(term, unary, name).energy.item() for name in present}
    least = min(energies.values())
    assert all(energy <= least * (1 + tolerance) for energy in energies.values()), energies
