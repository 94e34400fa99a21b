"""Mean field: the energy and its updates recomputed by other routes, and what every solver owes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from regloss import GridCRF, GridGraph, MeanField, Problem, Solution, Status, Term, TotalVariation, UsageError, solve
from regloss.solver import Progress, Solver, linear_energy, negative_entropy
from regloss.testing import SolverConformance
from regloss_plugins.solvers.mean_field import MeanFieldState

SHAPES = [(2, (13,)), (3, (6, 7)), (3, (3, 4, 5)), (4, (1, 5))]


def problem(classes: int, shape: tuple[int, ...], batch: int = 3, weight: float = 0.6) -> tuple[Term, Tensor]:
    random = torch.Generator().manual_seed(classes)
    image = torch.rand(batch, 2, *shape, dtype=torch.float64, generator=random)
    crf = GridCRF(weight=weight, connectivity=2 if len(shape) == 1 else 8)
    return crf.bind(image), 2 * torch.rand(batch, classes, *shape, dtype=torch.float64, generator=random)


def constraints(classes: int, shape: tuple[int, ...], batch: int = 3) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(9)
    labels = torch.randint(classes, (batch, *shape), generator=random)
    allowed = torch.ones(batch, classes, dtype=torch.bool)
    allowed[1, 0] = False
    admitted = allowed.gather(1, labels.flatten(1)).reshape(labels.shape)
    seeded = (torch.rand(batch, *shape, generator=random) < 0.2) & admitted
    return {"fixed": torch.where(seeded, labels, -1), "allowed": allowed}


def value(term: Term, unary: Tensor, probabilities: Tensor, entropy: float) -> Tensor:
    """The definition, by way of the term's own bilinear relaxation."""
    linear = linear_energy(unary, probabilities, term.roi)
    return linear + entropy * negative_entropy(probabilities, term.roi) + term.energy(probabilities)


@pytest.mark.parametrize("entropy", [0.05, 0.7])
@pytest.mark.parametrize(("classes", "shape"), SHAPES)
def test_energy_falls_step_by_step(classes: int, shape: tuple[int, ...], entropy: float) -> None:
    term, unary = problem(classes, shape)
    given = constraints(classes, shape)
    for damping in (0.0, 0.5):
        runs = [solve(term, unary, MeanField(n, damping, 1e-9), entropy=entropy, **given) for n in range(1, 13)]
        energies = torch.stack([runs[0].start_energy, *(run.energy for run in runs)])
        assert (energies.diff(dim=0) <= 1e-12 * energies[1:].abs()).all()
        assert (energies[-1] < energies[0])[[0, 2]].all()  # image 1 may have a single label left
        for run in runs:
            expected = value(term, unary, run.probabilities, entropy)
            assert run.energy.tolist() == pytest.approx(expected.tolist(), rel=1e-12)
            assert (run.bound <= run.energy).all()


@pytest.mark.parametrize(("classes", "shape"), SHAPES)
def test_stops_at_a_stationary_point(classes: int, shape: tuple[int, ...]) -> None:
    """The gradient of the energy, by autograd, is the same for all labels of a pixel that are allowed."""
    term, unary = problem(classes, shape)
    given, entropy = constraints(classes, shape), 0.4
    solution = solve(term, unary, MeanField(500, tolerance=1e-12), entropy=entropy, **given)
    assert solution.status == (Status.CONVERGED,) * 3
    probabilities = solution.probabilities.clone().requires_grad_()
    energy = value(term, unary, probabilities.clamp(min=1e-300), entropy).sum()
    (gradient,) = torch.autograd.grad(energy, probabilities)
    allowed = given["allowed"].reshape(3, classes, *[1] * len(shape)).expand_as(probabilities)
    high = gradient.masked_fill(~allowed, -torch.inf).amax(1)
    low = gradient.masked_fill(~allowed, torch.inf).amin(1)
    assert ((high - low)[given["fixed"] < 0]).max() < 1e-8


@pytest.mark.parametrize(("classes", "shape"), SHAPES)
def test_one_step_is_pixel_by_pixel(classes: int, shape: tuple[int, ...]) -> None:
    """The updates written as a loop over pixels, colour class by colour class."""
    term, unary = problem(classes, shape, batch=1)
    entropy, edges = 0.3, term.form(GridGraph).graph()
    costs = unary[0].flatten(1).T
    matrix = torch.zeros(len(costs), len(costs), dtype=torch.float64)
    for (p, q), weight in zip(edges.edges.tolist(), edges.weights[0], strict=True):
        matrix[p, q] = matrix[q, p] = weight
    s = (-costs / entropy).softmax(1)
    where = torch.cartesian_prod(*(torch.arange(size) for size in shape)).reshape(len(costs), -1) % 2
    for p in sorted(range(len(costs)), key=lambda pixel: where[pixel].tolist()):
        s[p] = (-(costs[p] - matrix[p] @ s) / entropy).softmax(0)
    found = solve(term, unary, MeanField(max_steps=1), entropy=entropy).probabilities[0].flatten(1).T
    assert torch.allclose(found, s, atol=1e-13)


def test_without_pairs_it_is_a_softmax_and_the_bound_is_tight() -> None:
    term, unary = problem(3, (5, 4), weight=0.0)
    given = constraints(3, (5, 4))
    solution = solve(term, unary, "mean-field", entropy=0.5, **given)
    masked = unary.masked_fill(~given["allowed"].reshape(3, 3, 1, 1), torch.inf)
    free = (given["fixed"] < 0).unsqueeze(1)
    assert torch.allclose(solution.probabilities * free, (-masked / 0.5).softmax(1) * free, atol=1e-14)
    assert solution.steps.tolist() == [1, 1, 1]
    assert solution.gap.max() < 1e-12
    assert solution.gap.min() >= 0


def test_bound_holds_for_labellings() -> None:
    """One-hot input has no entropy, so no labelling's energy may lie below the bound."""
    term, unary = problem(2, (3, 3), batch=1)
    bound = solve(term, unary, "mean-field", entropy=0.2).bound
    labellings = torch.cartesian_prod(*[torch.arange(2)] * 9).reshape(-1, 3, 3)
    one_hot = torch.nn.functional.one_hot(labellings, 2).movedim(-1, 1).double()
    cut = torch.stack([term.form(GridGraph).cut(labels[None])[0] for labels in labellings])
    assert ((unary * one_hot).flatten(1).sum(1) + cut >= bound).all()


def test_seeds_and_forbidden_labels() -> None:
    term, unary = problem(3, (6, 7))
    given = constraints(3, (6, 7))
    solution = solve(term, unary, "mean-field", entropy=0.5, **given)
    seeded = given["fixed"] >= 0
    assert (solution.labels == given["fixed"])[seeded].all()
    assert (solution.probabilities.amax(1)[seeded] == 1).all()
    assert (solution.probabilities[1, 0][~seeded[1]] == 0).all()
    assert torch.allclose(solution.probabilities.sum(1), torch.ones_like(unary[:, 0]), atol=1e-12)
    # They do not only stay: they pull their neighbours.
    free = solve(term, unary, "mean-field", entropy=0.5, allowed=given["allowed"])
    assert (solution.probabilities - free.probabilities).abs().amax(1)[~seeded].max() > 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_batch_is_one_by_one(dtype: torch.dtype) -> None:
    """Images stop on their own: an easy one beside hard ones takes and returns what it does alone."""
    random = torch.Generator().manual_seed(0)
    image = torch.rand(3, 1, 9, 8, dtype=dtype, generator=random)
    unary = torch.rand(3, 4, 9, 8, dtype=dtype, generator=random) * torch.tensor([9.0, 0.3, 1.0]).reshape(3, 1, 1, 1)
    unary = unary.to(dtype)
    solver = MeanField(max_steps=60, tolerance=1e-4)
    together = solve(GridCRF().bind(image), unary, solver, entropy=0.8)
    alone = [solve(GridCRF().bind(image[b : b + 1]), unary[b : b + 1], solver, entropy=0.8) for b in range(3)]
    assert together.probabilities.dtype == dtype
    assert len(set(together.steps.tolist())) > 1
    assert together.steps.tolist() == [int(one.steps) for one in alone]
    assert together.status == tuple(one.status[0] for one in alone)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    assert torch.allclose(together.probabilities, torch.cat([one.probabilities for one in alone]), atol=tolerance)
    assert torch.allclose(together.energy, torch.cat([one.energy for one in alone]), rtol=tolerance)


def test_region_of_interest_is_a_crop() -> None:
    """Colour classes count from the corner of the image, so the crop begins at even coordinates."""
    random = torch.Generator().manual_seed(2)
    image = torch.rand(1, 1, 8, 9, dtype=torch.float64, generator=random)
    unary = torch.rand(1, 3, 8, 9, dtype=torch.float64, generator=random)
    crop = (..., slice(2, 7), slice(4, 9))
    roi = torch.zeros(1, 8, 9, dtype=torch.bool)
    roi[crop] = True
    unary = torch.where(roi.unsqueeze(1), unary, 1e4 * unary)  # what lies outside must not be noticed
    whole = solve(GridCRF().bind(image, roi), unary, "mean-field", entropy=0.3)
    part = solve(GridCRF().bind(image[crop]), unary[crop], "mean-field", entropy=0.3)
    assert torch.allclose(whole.probabilities[crop], part.probabilities, atol=1e-12)
    assert whole.steps.tolist() == part.steps.tolist()
    for number in ("energy", "start_energy", "bound"):
        assert getattr(whole, number).tolist() == pytest.approx(getattr(part, number).tolist(), rel=1e-12)
    # Nor does it count as a change: inside nothing is left to do.
    scrambled = torch.where(roi.unsqueeze(1), whole.probabilities, 1 / 3)
    again = solve(GridCRF().bind(image, roi), unary, "mean-field", entropy=0.3, warm=MeanFieldState(scrambled))
    assert again.steps.tolist() == [1]


def test_seeds_outside_the_region_of_interest_mean_nothing() -> None:
    _, unary = problem(3, (6, 7), batch=1)
    roi = torch.ones(1, 6, 7, dtype=torch.bool)
    roi[:, :2] = False
    form = GridCRF().bind(torch.zeros(1, 1, 6, 7, dtype=torch.float64), roi).form(GridGraph)
    fixed = torch.full((1, 6, 7), -1)
    fixed[:, 3, 3] = 2
    seeded = fixed.masked_fill(~roi, 255)
    runs = [MeanField().minimise(Problem(form, unary, 0.4, fixed=given, roi=roi)) for given in (fixed, seeded)]
    assert torch.equal(runs[0].probabilities, runs[1].probabilities)
    assert torch.equal(runs[0].bound, runs[1].bound)


def test_looks_are_taken_on_the_way() -> None:
    term, unary = problem(3, (6, 7))
    looks: list[Progress] = []
    end = solve(term, unary, MeanField(30, tolerance=1e-3), entropy=0.4, callback=looks.append)
    assert [look.steps for look in looks] == list(range(1, int(end.steps.max()) + 1))
    for image, steps in enumerate(end.steps.tolist()):
        seen = [float(look.energy[look.images == image]) for look in looks if image in look.images.tolist()]
        assert len(seen) == steps
        assert seen == sorted(seen, reverse=True)
        assert seen[-1] == pytest.approx(float(end.energy[image]), rel=1e-12)


def test_arguments_are_not_modified() -> None:
    term, unary = problem(3, (6, 7))
    warm = torch.rand(unary.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    given = constraints(3, (6, 7))
    kept = [unary, warm, term.form(GridGraph).weights, *given.values()]
    before = [values.clone() for values in kept]
    solve(term, unary, "mean-field", entropy=0.4, warm=MeanFieldState(warm), **given)
    assert all(torch.equal(values, old) for values, old in zip(kept, before, strict=True))


# --------------------------------------------------------------------------------------------------------------------
# Starts


def test_goes_on_from_its_own_state() -> None:
    term, unary = problem(3, (6, 7))
    once = solve(term, unary, MeanField(8, tolerance=0.0), entropy=0.3)
    half = solve(term, unary, MeanField(4, tolerance=0.0), entropy=0.3)
    assert half.status == (Status.MAX_STEPS,) * 3
    for warm in (half, half.state, MeanFieldState(half.probabilities)):
        rest = solve(term, unary, MeanField(4, tolerance=0.0), entropy=0.3, warm=warm)
        assert torch.allclose(rest.probabilities, once.probabilities, atol=1e-14)
        assert rest.start_energy.tolist() == pytest.approx(half.energy.tolist(), rel=1e-12)


def test_starts_from_labels() -> None:
    term, unary = problem(3, (6, 7))
    given: dict[str, Any] = {**constraints(3, (6, 7))}
    discrete = solve(term, unary, "alpha-expansion", **given)
    for warm in (discrete, discrete.labels, discrete.labels.to(torch.uint8)):
        solution = solve(term, unary, "mean-field", entropy=0.2, warm=warm, **given)
        # A labelling has no entropy, so the start costs what it costs there.
        assert solution.start_energy.tolist() == pytest.approx(discrete.energy.tolist(), rel=1e-12)
        assert (solution.energy <= solution.start_energy).all()


def test_start_gives_way_to_what_is_allowed() -> None:
    term, unary = problem(3, (6, 7))
    allowed = torch.tensor([[False, True, True]]).expand(3, 3)
    warm = torch.zeros(3, 6, 7, dtype=torch.int64)
    solution = solve(term, unary, MeanField(1, damping=0.9), entropy=0.2, warm=warm, allowed=allowed)
    assert (solution.probabilities[:, 0] == 0).all()
    expected = (-unary.masked_fill(~allowed.reshape(3, 3, 1, 1), torch.inf) / 0.2).softmax(1)
    assert solution.start_energy.tolist() == pytest.approx(value(term, unary, expected, 0.2).tolist(), rel=1e-12)


@pytest.mark.parametrize(
    ("warm", "message"),
    [
        (MeanFieldState(torch.ones(3, 3, 7, 6)), r"shape \(3, 3, 6, 7\).*got shape \(3, 3, 7, 6\)\."),
        (MeanFieldState(-torch.ones(3, 3, 6, 7)), "negative values or NaN"),
        (MeanFieldState(torch.full((3, 3, 6, 7), torch.nan)), "negative values or NaN"),
        ("uniform", "type str"),
    ],
)
def test_refuses_a_start(warm: Any, message: str) -> None:
    term, unary = problem(3, (6, 7))
    with pytest.raises(UsageError, match=message):
        solve(term, unary, "mean-field", entropy=0.2, warm=warm)


# --------------------------------------------------------------------------------------------------------------------
# Limits


def hard_energy(term: Term, unary: Tensor, solution: Solution) -> Tensor:
    one_hot = torch.nn.functional.one_hot(solution.labels, unary.shape[1]).movedim(-1, 1)
    return (unary * one_hot).flatten(1).sum(1) + term.form(GridGraph).cut(solution.labels)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("entropy", [1e-2, 1e-30])
def test_small_entropy_gives_a_fair_labelling(entropy: float, dtype: torch.dtype) -> None:
    """Near alpha-expansion, and far better than the unaries alone; no overflow at any entropy."""
    random = torch.Generator().manual_seed(0)
    truth = (torch.arange(24)[:, None] + torch.arange(30)[None]) // 14
    image = (0.2 * truth + 0.1 * torch.rand(1, 1, 24, 30, generator=random)).to(dtype)
    unary = (1.5 * torch.rand(1, 4, 24, 30, generator=random)).to(dtype)
    unary -= torch.nn.functional.one_hot(truth, 4).movedim(-1, 0)
    unary -= unary.amin(1, keepdim=True)  # unaries >= 0, so that ratios of energies mean something
    term = GridCRF(weight=0.3).bind(image)
    best = solve(term, unary, "alpha-expansion").energy
    found = solve(term, unary, "mean-field", entropy=entropy)
    assert found.status == (Status.CONVERGED,)
    reached, alone = hard_energy(term, unary, found), found.start_energy
    assert (reached <= 1.05 * best).all(), (reached, best)
    assert (alone > 1.3 * best).all()
    assert found.energy.item() == pytest.approx(reached.item(), rel=2e-2)


def test_costs_that_overflow_when_divided_by_the_entropy() -> None:
    unary = torch.tensor([[[1000.0, 1001.0], [1001.0, 1000.0]]])
    solution = solve(GridCRF(weight=0.0, connectivity=2).bind(torch.zeros(1, 1, 2)), unary, "mean-field", entropy=1e-37)
    assert solution.probabilities.tolist() == [[[1.0, 0.0], [0.0, 1.0]]]
    assert solution.energy.tolist() == solution.bound.tolist() == [2000.0]


def test_minimises_the_bilinear_relaxation_whatever_the_term_is_set_to() -> None:
    image = torch.rand(1, 1, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    unary = torch.rand(1, 2, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    runs = [
        solve(GridCRF(relaxation=relaxation).bind(image), unary, "mean-field", entropy=0.3)
        for relaxation in ("bilinear", "quadratic", "total-variation")
    ]
    assert all(torch.equal(run.probabilities, runs[0].probabilities) for run in runs)


def test_offsets_longer_than_one() -> None:
    """Any offset with an odd component will do, as long as the border is wide enough for it."""
    weights = torch.rand(1, 2, 6, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    weights[:, 0, :, 6:] = 0  # (0, 3) leaves the grid
    weights[:, 1, 4:] = 0
    weights[:, 1, :, 0] = 0  # (2, -1) leaves the grid
    form = GridGraph(((0, 3), (2, -1)), weights)
    unary = torch.rand(1, 3, 6, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    solution = MeanField(300, tolerance=1e-13).minimise(Problem(form, unary, entropy=0.5))
    graph, s = form.graph(), solution.probabilities[0].flatten(1).T
    pull = torch.zeros_like(s)
    pull.index_add_(0, graph.edges[:, 0], graph.weights[0, :, None] * s[graph.edges[:, 1]])
    pull.index_add_(0, graph.edges[:, 1], graph.weights[0, :, None] * s[graph.edges[:, 0]])
    assert torch.allclose(s, ((pull - unary[0].flatten(1).T) / 0.5).softmax(1), atol=1e-10)


def test_refuses_pairs_within_a_colour() -> None:
    form = GridGraph(((0, 1), (0, 2)), torch.ones(1, 2, 4, 4))
    with pytest.raises(UsageError, match=r"\(0, 2\).*odd component.*alpha-expansion"):
        MeanField().minimise(Problem(form, torch.zeros(1, 2, 4, 4), entropy=1.0))


@pytest.mark.parametrize("entropy", [0.0, 1e-60])
def test_refuses_no_entropy(entropy: float) -> None:
    term, unary = TotalVariation().bind(torch.zeros(1, 1, 4, 4)), torch.rand(1, 2, 4, 4)
    with pytest.raises(UsageError, match=r"entropy weight > 0; got entropy = .*alpha-expansion"):
        solve(term, unary, "mean-field", entropy=entropy)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_steps": 0}, "max_steps must be at least 1; got 0"),
        ({"damping": 1.0}, r"damping must lie in \[0, 1\)"),
        ({"damping": -0.1}, r"damping must lie in \[0, 1\)"),
        ({"damping": float("nan")}, r"damping must lie in \[0, 1\)"),
        ({"tolerance": -1e-9}, "tolerance must be finite and not negative"),
        ({"tolerance": float("inf")}, "tolerance must be finite and not negative"),
    ],
)
def test_refuses_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        MeanField(**settings)


class TestMeanField(SolverConformance):
    discrete = False
    local = True  # which local minimum it ends in depends on where the grid's parity classes lie
    entropy = 0.2

    def make(self) -> Solver:
        return MeanField()
