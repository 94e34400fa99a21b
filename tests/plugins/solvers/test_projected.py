"""Projected: convex regions in solve, in layers with both gradients and in outer loops, and its messages."""

import dataclasses

import pytest
import torch

import regloss
from regloss import (
    Batch,
    ConvexShape,
    GridCRF,
    MissingForm,
    RegularizedSoftmax,
    StarShape,
    Status,
    ThresholdDynamics,
    TotalVariation,
    UsageError,
    Volume,
    create,
    solve,
)
from regloss.constraint import Constraints
from regloss.regularizer import Constrained, Sum, combine
from regloss.solver import Problem, Solver, negotiate
from regloss.testing import SolverConformance
from regloss_plugins.solvers.projected import Projected, ProjectedState

SIZE = (24, 26)


def dented(seed=0, noise=0.7, dtype=torch.float64):
    """Logits (1, 2, *S) of a disc with a bite, and noise."""
    y, x = torch.meshgrid(torch.arange(SIZE[0]), torch.arange(SIZE[1]), indexing="ij")
    disc = (y - 12) ** 2 + (x - 12) ** 2 <= 70
    bite = (y - 12) ** 2 + (x - 19) ** 2 <= 12
    generator = torch.Generator().manual_seed(seed)
    score = 3.0 * (disc & ~bite) - 1.5 + noise * torch.randn(SIZE, generator=generator, dtype=torch.float64)
    return torch.stack([-score / 2, score / 2]).unsqueeze(0).to(dtype)


def image(dtype=torch.float64):
    return torch.zeros(1, 1, *SIZE, dtype=dtype)


CONVEX = ConvexShape(radii=(1.5, 3, 6))


@pytest.mark.parametrize(
    ("others", "entropy"),
    [
        ([], 0.5),
        ([], 0.0),
        ([TotalVariation(0.4)], 0.5),
        ([TotalVariation(0.4)], 0.01),
        ([ThresholdDynamics(weight=0.8, sigma=1.0)], 0.5),
        ([GridCRF(weight=1.0)], 0.0),
        ([TotalVariation(0.4), ThresholdDynamics(weight=0.4, sigma=1.0)], 0.5),
        ([TotalVariation(0.4), StarShape(center=(12, 12))], 0.5),
        ([TotalVariation(0.2), Volume(lower=(0.2, 0.2), upper=(0.8, 0.8), unit="fraction")], 0.5),
    ],
)
def test_regions_are_convex_beside_other_priors(others, entropy):
    term = combine([*others, CONVEX]).bind(image())
    logits = dented()
    found = solve(term, -logits, "projected", entropy=entropy)
    constraints = Constraints.of([term], logits)
    assert constraints.violation_of_labels(found.labels).tolist() == [0]
    assert float(constraints.violation(found.probabilities)) <= 1e-8
    assert bool(found.energy.isfinite().all())
    assert bool((found.gap >= -1e-6 * found.energy.abs()).all())
    if entropy > 0 and not any(isinstance(part, StarShape | ThresholdDynamics) for part in others[1:]):
        assert int(found.labels[0, 12, 18]) == 1  # in the bite
    assert 180 <= int(found.labels.sum()) <= 300
    unfilled = combine(others) or TotalVariation(0.0)
    if entropy > 0 and len(others) < 2:
        solver = "dca" if any(isinstance(part, ThresholdDynamics) for part in others) else "pdhg"
        free = solve(unfilled.bind(image()), -logits, solver, entropy=entropy)
        assert float(CONVEX.bind(image()).violation(free.probabilities)) > 0
        assert float(found.bound) <= float(free.energy) + 1e-6 * abs(float(free.energy))


def test_seeds_stay_and_the_fill_goes_round_them():
    fixed = torch.full((1, *SIZE), -1)
    fixed[0, 12, 18] = 0
    term = combine([TotalVariation(0.2), CONVEX]).bind(image())
    found = solve(term, -dented(), "projected", entropy=0.5, fixed=fixed)
    assert int(found.labels[0, 12, 18]) == 0
    assert float(CONVEX.bind(image()).violation_of_labels(found.labels, 2)) == 0
    assert int(found.labels.sum()) > 40


def test_a_region_that_is_convex_already_is_left_alone():
    y, x = torch.meshgrid(torch.arange(SIZE[0]), torch.arange(SIZE[1]), indexing="ij")
    score = 4.0 * ((y - 12) ** 2 + (x - 12) ** 2 <= 60).double() - 2
    logits = torch.stack([-score / 2, score / 2]).unsqueeze(0)
    found = solve(CONVEX.bind(image()), -logits, "projected", entropy=0.5)
    torch.testing.assert_close(found.probabilities, (logits / 0.5).softmax(1), rtol=0, atol=1e-12)
    assert found.status == (Status.CONVERGED,)
    assert float(found.gap) == pytest.approx(0, abs=1e-9)


def test_images_of_a_batch_do_not_see_each_other():
    logits = torch.cat([dented(0), dented(1)])
    term = combine([TotalVariation(0.3), CONVEX])
    together = solve(term.bind(image().expand(2, -1, -1, -1)), -logits, "projected", entropy=0.5)
    for number in range(2):
        alone = solve(term.bind(image()), -logits[[number]], "projected", entropy=0.5)
        assert torch.equal(alone.labels[0], together.labels[number])
        assert float(alone.energy) == pytest.approx(float(together.energy[number]), rel=1e-6)


def test_the_derivative_is_that_of_finite_differences():
    """With straight_through = False; in pixels that were filled there is none."""
    logits = dented()
    term = combine([TotalVariation(0.3), CONVEX]).bind(image())
    solver = Projected(5000, 1e-11, straight_through=False)
    weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def loss(values):
        layer = RegularizedSoftmax(term.regularizer, solver, 0.5, backward_tolerance=1e-10, backward_steps=2000)
        return (layer(values, term) * weights).sum()

    variable = logits.clone().requires_grad_()
    loss(variable).backward()
    direction = torch.randn(logits.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    step = 1e-5
    expected = (loss(logits + step * direction) - loss(logits - step * direction)) / (2 * step)
    assert float((variable.grad * direction).sum()) == pytest.approx(float(expected), rel=2e-3)
    solution = solve(term, -logits, solver, entropy=0.5)
    filled = solution.state.labels >= 0
    assert int(filled.sum()) > 5
    assert float(variable.grad[:, :, filled[0]].abs().max()) == 0


@pytest.mark.parametrize("backward", ["implicit", "unrolled", "one-step"])
@pytest.mark.parametrize("others", [[], [TotalVariation(0.3)], [ThresholdDynamics(weight=0.5, sigma=1.0)]])
def test_gradients_go_straight_through(backward, others):
    """As if nothing had been filled, with the filled values."""
    prior = combine([*others, CONVEX])
    logits = dented(dtype=torch.float32)
    settings = {"entropy": 0.5, "max_steps": 40, "backward": backward}
    layer = RegularizedSoftmax(prior, "projected", **settings)
    variable = logits.clone().requires_grad_()
    found = layer.log_probabilities(variable, image(torch.float32))
    assert bool(found.isfinite().all())
    assert float(CONVEX.bind(image()).violation(found.exp())) == 0
    weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(1))
    (found * weights).sum().backward()
    assert bool(variable.grad.isfinite().all())
    if not others:
        return
    solver = "pdhg" if isinstance(others[0], TotalVariation) else "dca"
    tolerance = {"tolerance": 1e-5}
    unfilled = RegularizedSoftmax(others[0], solver, **settings, **tolerance)
    other = logits.clone().requires_grad_()
    (unfilled.log_probabilities(other, image(torch.float32)) * weights).sum().backward()
    torch.testing.assert_close(variable.grad, other.grad, rtol=1e-3, atol=1e-4)


def test_a_layer_learns_through_it():
    """A few steps of gradient descent on logits, weights of the others learnt too."""
    layer = RegularizedSoftmax(
        [TotalVariation(0.05), CONVEX], "projected", entropy=0.5, max_steps=50, learn=("entropy",)
    )
    logits = (0.05 * dented(dtype=torch.float32)).requires_grad_()
    y, x = torch.meshgrid(torch.arange(SIZE[0]), torch.arange(SIZE[1]), indexing="ij")
    target = ((y - 12) ** 2 + (x - 12) ** 2 <= 70).long().unsqueeze(0)
    optimizer = torch.optim.Adam([logits, *layer.parameters()], lr=0.3)
    losses = []
    for _ in range(12):
        loss = torch.nn.functional.nll_loss(layer.log_probabilities(logits, image(torch.float32)), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]
    assert float(layer.entropy.detach()) != 0.5


@pytest.mark.parametrize("loop", ["adm", "trust-region"])
def test_proposals_are_convex(loop):
    labels = torch.full((1, *SIZE), 255)
    labels[0, 12, 10], labels[0, 1, 1] = 1, 0
    batch = Batch(image(torch.float32), labels)
    for regularizer, entropy in ((CONVEX, 0.0), ([TotalVariation(0.2), CONVEX], 0.5)):
        made = create("outer-loop", loop, regularizer=regularizer, solver="projected", coupling=1.0, entropy=entropy)
        proposal = made.propose(dented(dtype=torch.float32), batch)
        assert float(CONVEX.bind(image()).violation_of_labels(proposal.labels, 2)) == 0
        assert int(proposal.labels[0, 12, 18]) == 1
        assert bool(proposal.solution.energy.isfinite().all())


def test_forms_and_messages():
    assert Constrained in CONVEX.forms
    both = Sum([TotalVariation(0.3), CONVEX])
    assert tuple(both.forms) == (Constrained,)
    assert tuple(Sum([both, GridCRF()]).forms) == (Constrained,)
    assert Sum([Sum([CONVEX, TotalVariation()]), CONVEX]).bind(image()).form(Constrained).names == "convex, convex"
    with pytest.raises(MissingForm, match=r"In the way: convex, which offers .*Solvers that can: projected"):
        negotiate(both, create("solver", "pdhg"))
    with pytest.raises(MissingForm, match=r"projected with tv"):
        negotiate(TotalVariation(), Projected())
    term = Sum([StarShape(center=(1, 1)), CONVEX]).bind(image())
    with pytest.raises(MissingForm, match=r"mean-field for the rest of the prior, beside convex"):
        solve(term, -dented(), Projected(inner="mean-field"), entropy=0.5)
    for settings in ({"max_rounds": 0}, {"max_steps": 0}, {"tolerance": -1.0}):
        with pytest.raises(UsageError, match=next(iter(settings))):
            Projected(**settings)
    with pytest.raises(UsageError, match="needs another solver"):
        solve(CONVEX.bind(image()), -dented(), Projected(inner="projected"), entropy=0.5)


def test_without_weight_nothing_is_filled():
    term = Sum([TotalVariation(0.3), dataclasses.replace(CONVEX, weight=0.0)]).bind(image())
    found = solve(term, -dented(), "projected", entropy=0.5)
    plain = solve(TotalVariation(0.3).bind(image()), -dented(), "pdhg", entropy=0.5)
    torch.testing.assert_close(found.probabilities, plain.probabilities, rtol=0, atol=1e-9)


def test_warm_starts_and_rounds():
    term = combine([TotalVariation(0.3), CONVEX]).bind(image())
    first = solve(term, -dented(), Projected(3000), entropy=0.5)
    assert isinstance(first.state, ProjectedState)
    again = solve(term, -dented(), Projected(3000), entropy=0.5, warm=first)
    assert torch.equal(again.labels, first.labels)
    assert int(again.steps) < int(first.steps)
    short = solve(term, -dented(), Projected(3000, max_rounds=1), entropy=0.5)
    assert short.status == (Status.MAX_STEPS,)
    assert float(CONVEX.bind(image()).violation_of_labels(short.labels, 2)) == 0
    problem = Problem(form=term.form(Constrained), unary=-dented(), entropy=0.5)
    assert Projected().parameters(problem.form) == ()


class TestProjected(SolverConformance):
    discrete = False
    monotone = False  # what it starts from is where the other solver stopped
    entropy = 0.2
    spatial = (2,)

    def make(self) -> Solver:
        solver: Solver = regloss.create("solver", "projected")
        return solver
