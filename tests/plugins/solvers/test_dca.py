"""Difference-of-convex steps: conformance, reference iterates, the decrease of the energy, volumes, derivatives."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from waiting import waits

import regloss
from regloss import (
    PDHG,
    Composite,
    Concave,
    RegularizedSoftmax,
    Saddle,
    StarShape,
    Status,
    Sum,
    TotalVariation,
    UsageError,
    solve,
)
from regloss.numerics import one_hot
from regloss.solver import Problem, linear_energy, negative_entropy, negotiate
from regloss.testing import SolverConformance
from regloss_plugins.regularizers import threshold_dynamics
from regloss_plugins.regularizers.threshold_dynamics import ThresholdDynamics
from regloss_plugins.regularizers.volume import Volume
from regloss_plugins.solvers import dca
from regloss_plugins.solvers.dca import DCA, DCAState

KL_SLACK = 1e-10


class TestConcave(SolverConformance):
    discrete = False
    entropy = 0.2

    def make(self):
        return DCA(max_steps=2000, tolerance=1e-9)

    def regularizer(self, weight):
        return ThresholdDynamics(weight=weight, sigma=1.0, edge="sqrt")


class TestDamped(TestConcave):
    """A kernel that is not positive semidefinite."""

    spatial = (2,)
    weights = (0.3, 1.0)

    def regularizer(self, weight):
        return ThresholdDynamics(weight=weight, kernel="disk", radius=1.5)


def scores(size, batch=2, classes=3, seed=0, dtype=torch.float64):
    return torch.randn(batch, classes, *size, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def energy_of(term, unary, entropy, probabilities):
    linear = linear_energy(unary, probabilities, term.roi)
    return linear + entropy * negative_entropy(probabilities, term.roi) + term.energy(probabilities)


@pytest.mark.parametrize("form", ["e", "s"])
def test_oracle_iterates(form: str, oracles: Path, monkeypatch):
    """The published steps, u1, u2, u5 and u200; with plain edge weights they are not damped in the paper."""
    case = np.load(oracles / "std.npz")
    size = int(case["H"]), int(case["W"])
    edge = torch.from_numpy(case["edge"])[None, None]
    monkeypatch.setattr(threshold_dynamics, "edge_weights", lambda image, roi, scale, spacing: edge)

    def field(name):
        return torch.from_numpy(case[name]).T.reshape(1, 3, *size)

    settings = ThresholdDynamics(
        weight=float(case["lam"]), sigma=1.0, kernel="truncated-gaussian", edge="plain" if form == "e" else "sqrt"
    )
    term = settings.bind(torch.zeros(1, 1, *size, dtype=torch.float64))
    entropy = float(case["eps"])
    for steps in (1, 2, 5, 200):
        solver = DCA(max_steps=steps, tolerance=0, damped=False)
        solution = solve(term, -field("o"), solver, entropy=entropy)
        torch.testing.assert_close(solution.probabilities, field(f"u_{form}_{steps}"), rtol=0, atol=1e-12)
        assert float(solution.energy) == pytest.approx(float(case[f"energies_{form}"][steps]), abs=1e-11)
    # The gradient through five steps.
    unary = -field("o").requires_grad_()
    problem = Problem(form=term.form(Concave), unary=unary, entropy=entropy)
    log_s = DCA(max_steps=5, damped=False).unroll(problem, torch.tensor(entropy, dtype=torch.float64))
    (gradient,) = torch.autograd.grad((log_s.exp() * field("g")).sum(), unary)
    torch.testing.assert_close(-gradient, field(f"vjp_{form}_5"), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("edge", [None, "sqrt"])
def test_every_step_decreases_the_energy_by_what_it_should(edge):
    """E(u) - E(u+) = entropy KL(u | u+) + weight <a d, K a d>, d = u+ - u: an identity, so to rounding."""
    size, entropy, weight = (7, 9), 0.2, 3.0
    image = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    term = ThresholdDynamics(weight=weight, sigma=1.5, edge=edge).bind(image)
    form, unary = term.form(Concave), scores(size)
    u = (-unary / entropy).softmax(1)
    for _ in range(10):
        new = solve(term, unary, DCA(max_steps=1), entropy=entropy, warm=DCAState(u)).probabilities
        fall = energy_of(term, unary, entropy, u) - energy_of(term, unary, entropy, new)
        divergence = (u * (u.log() - new.log())).flatten(1).sum(1)
        d = new - u
        # <a d, K a d> = -R's second-order part, and R is quadratic.
        second = form.value(u) + (form.supergradient(u) * d).flatten(1).sum(1) - form.value(new)
        torch.testing.assert_close(fall, entropy * divergence + second, rtol=1e-12, atol=1e-12)
        assert bool((second >= -1e-12).all())
        u = new


BAD = [
    (ThresholdDynamics(weight=20.0, kernel="disk", radius=1.5), 0.1),
    (ThresholdDynamics(weight=4.0, kernel="disk", radius=1.0), 0.5),
    (ThresholdDynamics(weight=26.5, sigma=1.0, edge="plain", edge_scale=100.0), 0.04),
    (ThresholdDynamics(weight=30.0, sigma=5.0, radius=3, kernel="truncated-gaussian"), 0.1),
]


@pytest.mark.parametrize(("settings", "entropy"), BAD)
def test_damped_steps_never_raise_the_energy(settings, entropy):
    """Not by more than 1e-10, where the prior is far from concave."""
    size = (10, 11)
    image = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    term, unary = settings.bind(image), scores(size)
    assert term.form(Concave).curvature > entropy
    u = (-unary / entropy).softmax(1)
    energy = energy_of(term, unary, entropy, u)
    for _ in range(30):
        u = solve(term, unary, DCA(max_steps=1), entropy=entropy, warm=DCAState(u)).probabilities
        new = energy_of(term, unary, entropy, u)
        assert bool((new <= energy + KL_SLACK).all()), (energy, new)
        energy = new


def test_undamped_steps_can_raise_it_for_ever():
    """What the damping is for: a disk of five pixels turns a checkerboard into its negative."""
    settings, entropy = BAD[1]
    size = (10, 12)
    term, unary = settings.bind(torch.zeros(1, 1, *size, dtype=torch.float64)), 0.01 * scores(size, 1, 2)
    board = (torch.arange(10).unsqueeze(1) + torch.arange(12)) % 2
    start = DCAState((one_hot(board.unsqueeze(0), 2, torch.float64) + 0.05).clamp(max=0.95))
    ends = [solve(term, unary, DCA(max_steps=n, damped=False), entropy=entropy, warm=start) for n in (41, 42)]
    assert float((ends[0].probabilities - ends[1].probabilities).abs().amax()) > 0.9
    assert ends[0].status == (Status.MAX_STEPS,)
    assert float(ends[0].energy) > float(ends[0].start_energy) + 10
    damped = solve(term, unary, DCA(max_steps=3000), entropy=entropy, warm=start)
    assert damped.status == (Status.CONVERGED,)
    assert float(damped.energy) < float(ends[0].start_energy) - 10


def test_a_weak_prior_has_one_solution():
    """weight < entropy makes the step a contraction; a strong one has several solutions, by the start."""
    size = (8, 9)
    unary = 0.1 * scores(size)
    starts = [DCAState(5 * scores(size, seed=seed).exp()) for seed in range(3)]
    for weight, entropy, same in ((0.29, 0.3, True), (4.0, 0.3, False)):
        term = ThresholdDynamics(weight=weight, sigma=1.0).bind(torch.zeros(2, 1, *size, dtype=torch.float64))
        ends = [solve(term, unary, DCA(2000, 1e-11), entropy=entropy, warm=start).probabilities for start in starts]
        difference = max(float((ends[0] - other).abs().max()) for other in ends[1:])
        assert difference < 1e-8 if same else difference > 0.5


def test_status_and_steps_are_by_image():
    size = (6, 7)
    unary = torch.cat([100 * scores(size, batch=1), 0.01 * scores(size, batch=1)])
    term = ThresholdDynamics(weight=1.0, sigma=1.0).bind(torch.zeros(2, 1, *size))
    solution = solve(term, unary, DCA(max_steps=4), entropy=0.5)
    assert solution.status == (Status.CONVERGED, Status.MAX_STEPS)
    assert solution.steps.tolist() == [1, 4]


@pytest.mark.parametrize("method", ["nested", "single-loop"])
@pytest.mark.parametrize(
    "prior",
    [
        ThresholdDynamics(weight=0.4, sigma=1.0, edge="sqrt"),
        ThresholdDynamics(weight=0.4, sigma=1.0) + Volume(volumes=(0.5, 0.3, 0.2), unit="fraction"),
        ThresholdDynamics(weight=0.4, sigma=1.0) + TotalVariation(0.1),
        Sum([ThresholdDynamics(weight=1.0, kernel="disk", radius=1.5), StarShape(center=(2, 3))], 0.4),
    ],
    ids=["concave", "volume", "tv", "star"],
)
def test_converged_images_leave_the_batch(prior, method):
    """The work shrinks to the images that are left, and every image ends where it would have ended alone."""
    size, batch = (6, 7), 4
    image = torch.rand(batch, 1, *size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    roi = torch.ones(batch, *size, dtype=torch.bool)
    roi[2, :, 5:] = False
    fixed = torch.full((batch, *size), -1)
    fixed[1, 0, 0] = 2
    scale = torch.tensor([3.0, 0.1, 1.0, 2.0], dtype=torch.float64).reshape(-1, 1, 1, 1)
    unary = scale * scores(size, batch=batch)
    solver = DCA(400, 1e-4, convex=PDHG(1000, 1e-7), method=method)
    looks = []
    together = solve(prior.bind(image, roi), unary, solver, entropy=0.3, fixed=fixed, callback=looks.append)
    sizes = [len(look.images) for look in looks]
    assert sizes[0] == batch
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < batch
    assert all(torch.equal(look.images, (together.steps >= look.steps).nonzero().squeeze(1)) for look in looks)
    for i in range(batch):
        alone = solve(prior.bind(image[[i]], roi[[i]]), unary[[i]], solver, entropy=0.3, fixed=fixed[[i]])
        assert alone.status[0] is together.status[i]
        assert int(alone.steps) == int(together.steps[i])
        torch.testing.assert_close(alone.probabilities[0], together.probabilities[i], rtol=0, atol=1e-9)
        torch.testing.assert_close(alone.energy[0], together.energy[i], rtol=1e-9, atol=1e-9)
    assert Status.CONVERGED in together.status
    again = solve(prior.bind(image, roi), unary, solver, entropy=0.3, fixed=fixed, warm=together)
    assert all(
        int(n) <= 2 for n, status in zip(again.steps, together.status, strict=True) if status is Status.CONVERGED
    )


def test_images_that_are_done_leave_the_batch():
    """Each ends where, and when, it would have ended alone."""
    size = (6, 7)
    unary = torch.cat([30 * scores(size, batch=1), 0.1 * scores(size, batch=1)])
    term = ThresholdDynamics(weight=0.5, sigma=1.0).bind(torch.zeros(2, 1, *size, dtype=torch.float64))
    form = term.form(Concave)
    together = DCA().minimise(Problem(form=form, unary=unary, entropy=0.3))
    assert together.steps[0] < together.steps[1]
    for image in range(2):
        some = torch.tensor([image])
        alone = DCA().minimise(Problem(form=form[some], unary=unary[some], entropy=0.3))
        assert alone.steps.tolist() == together.steps[some].tolist()
        torch.testing.assert_close(alone.probabilities, together.probabilities[some], rtol=0, atol=1e-12)


def test_single_loop_ends_at_a_stationary_point():
    """One from which a nested step does not move; where it stops before, no status says that it converged."""
    size, entropy = (10, 11), 0.3
    image, unary = torch.zeros(2, 1, *size, dtype=torch.float64), scores(size)
    dynamics, fractions = ThresholdDynamics(weight=0.4, sigma=1.5), (0.5, 0.3, 0.2)
    for extra in (
        Volume(volumes=fractions, unit="fraction"),
        Volume(lower=(0.6, 0, 0), upper=(1, 1, 0.2), unit="fraction"),
        StarShape(center=(4, 5)),
        StarShape(center=(4, 5)) + Volume(volumes=fractions, unit="fraction"),
    ):
        term = Sum([dynamics, extra]).bind(image)
        found = solve(term, unary, DCA(5000, 1e-5, method="single-loop"), entropy=entropy)
        assert found.status == (Status.CONVERGED,) * 2
        assert bool(found.energy.isfinite().all())
        nested = DCA(1, 1e-5, convex=PDHG(20000, 1e-9))
        moved = solve(term, unary, nested, entropy=entropy, warm=found)
        torch.testing.assert_close(moved.state.probabilities, found.state.probabilities, rtol=0, atol=2e-3)
        short = solve(term, unary, DCA(2, 1e-6, method="single-loop"), entropy=entropy)
        assert short.status == (Status.NOT_MET,) * 2
        assert bool((term.violation(short.state.probabilities) > 1e-3).all())
        assert bool((short.violation > 1e-3).all())
        assert bool(short.energy.isfinite().all())
        assert float(term.violation(short.probabilities).max()) <= 1e-8


def test_single_loop_that_cycles_says_so():
    """A strong prior and a volume that it does not want: the published loop runs for ever, and does not meet it."""
    size, entropy = (12, 13), 0.3
    prior = ThresholdDynamics(weight=2.0, sigma=1.5) + Volume(volumes=(0.5, 0.3, 0.2), unit="fraction")
    term, unary = prior.bind(torch.zeros(2, 1, *size, dtype=torch.float64)), scores(size)
    cycling = solve(term, unary, DCA(1000, method="single-loop"), entropy=entropy)
    assert cycling.status == (Status.NOT_MET, Status.CONVERGED)
    assert float(cycling.violation[0]) > 1e-3 > float(cycling.violation[1])
    assert bool(cycling.energy.isfinite().all())
    nested = solve(term, unary, DCA(1000), entropy=entropy)
    assert nested.status == (Status.CONVERGED,) * 2
    assert bool(nested.energy.isfinite().all())


def test_single_loop_scales_volumes_as_published():
    """q <- q + entropy log(V / m), u <- softmax((q - cost) / entropy), from q = 0."""
    size, entropy = (5, 6), 0.4
    unary, wanted = scores(size, batch=1), torch.tensor([15.0, 9, 6], dtype=torch.float64)
    term = Volume(volumes=wanted).bind(torch.zeros(1, 1, *size, dtype=torch.float64))
    q, u = torch.zeros(3, dtype=torch.float64), (-unary / entropy).softmax(1)
    for steps in range(1, 6):
        q = q + entropy * (wanted / u.flatten(2).sum(2)[0]).log()
        u = ((q.reshape(1, 3, 1, 1) - unary) / entropy).softmax(1)
        found = solve(term, unary, DCA(steps, 0.0, method="single-loop"), entropy=entropy)
        torch.testing.assert_close(found.state.probabilities, u, rtol=0, atol=1e-12)
        torch.testing.assert_close(found.state.convex[0], q, rtol=0, atol=1e-12)


def test_a_learnt_weight_does_not_change_how_volumes_are_solved():
    """Nor does the weight of a sum: a hard constraint is its own multiple, and stays the block that it is."""
    size = (5, 6)
    logits, image = scores(size, batch=1), torch.zeros(1, 1, *size, dtype=torch.float64)
    parts = [ThresholdDynamics(weight=0.6, sigma=1.0), Volume(volumes=(0.5, 0.3, 0.2), unit="fraction")]
    fixed = RegularizedSoftmax(parts, "dca", 0.5)
    learnt = RegularizedSoftmax(parts, "dca", 0.5, learn=("weight",)).double()
    weighted = RegularizedSoftmax(Sum([replace(parts[0], weight=0.3), parts[1]], weight=2.0), "dca", 0.5)
    plain = fixed(logits, image)
    for other in (learnt, weighted):
        torch.testing.assert_close(other(logits, image), plain, rtol=0, atol=1e-7)
        assert other.solution.steps.tolist() == fixed.solution.steps.tolist()
        assert isinstance(other.solution.state.convex, torch.Tensor)  # Newton's numbers, not another solver's state
    learnt(logits, image).square().sum().backward()
    assert float(learnt.log_weight.grad[0]) != 0
    assert float(learnt.log_weight.grad[1]) == 0


def test_starting_from_labels_is_not_the_end():
    """One-hot probabilities lie at the rim, where a damped step by itself would stay."""
    size = (6, 7)
    unary = scores(size)
    term = ThresholdDynamics(weight=5.0, kernel="disk", radius=1.5).bind(torch.zeros(2, 1, *size, dtype=torch.float64))
    start = unary.argmax(1)  # the dearest labels
    solution = solve(term, unary, DCA(max_steps=3000), entropy=0.2, warm=start)
    at_start = energy_of(term, unary, 0.2, one_hot(start, 3, torch.float64))
    assert solution.status == (Status.CONVERGED,) * 2
    assert bool((solution.energy < at_start - 10).all())
    torch.testing.assert_close(solution.start_energy, at_start)


def volumes_of(solution):
    return solution.probabilities.double().flatten(2).sum(2)


def test_volumes_are_met_exactly(oracles: Path):
    """A volume constraint alone, against a dense Newton solve of the optimality conditions."""
    case = np.load(oracles / "vp.npz")
    unary = -torch.from_numpy(case["o"]).T.reshape(1, 3, 6, 10)
    image = torch.zeros(1, 1, 6, 10, dtype=torch.float64)
    exact = solve(Volume(volumes=case["V"].tolist()).bind(image), unary, DCA(), entropy=float(case["eps"]))
    torch.testing.assert_close(exact.probabilities.flatten(2)[0].T, torch.from_numpy(case["u"]), rtol=0, atol=1e-9)
    assert exact.status == (Status.OPTIMAL,)
    assert float(exact.gap) == pytest.approx(0, abs=1e-8)
    bounds = Volume(lower=case["lo"].tolist(), upper=case["hi"].tolist()).bind(image)
    solution = solve(bounds, unary, DCA(), entropy=float(case["eps"]))
    expected = torch.from_numpy(case["u_bounds"])
    torch.testing.assert_close(solution.probabilities.flatten(2)[0].T, expected, rtol=0, atol=1e-9)


def test_threshold_dynamics_with_volumes():
    """The sum offers a mixed form; the energy falls on the constraint set, and the volumes hold to the last digit."""
    size, entropy = (12, 13), 0.2
    regularizer = Sum([ThresholdDynamics(weight=2.0, sigma=1.5), Volume(volumes=(0.5, 0.3, 0.2), unit="fraction")])
    assert set(regularizer.forms) == {Composite}
    term, unary = regularizer.bind(torch.zeros(2, 1, *size, dtype=torch.float64)), scores(size)
    wanted = 156 * torch.tensor([[0.5, 0.3, 0.2]], dtype=torch.float64)
    energies, warm = [], None
    for _ in range(12):
        solution = solve(term, unary, DCA(max_steps=1), entropy=entropy, warm=warm)
        torch.testing.assert_close(volumes_of(solution), wanted.expand(2, 3), rtol=0, atol=1e-7)
        energies.append(solution.energy)
        warm = solution
    rises = torch.stack(energies).diff(dim=0)
    assert float(rises.max()) < KL_SLACK
    whole = solve(term, unary, DCA(), entropy=entropy)
    assert whole.status == (Status.CONVERGED,) * 2
    torch.testing.assert_close(whole.energy, energy_of(term, unary, entropy, whole.probabilities))
    assert bool((whole.energy <= energies[-1] + 1e-9).all())
    # Without the constraint the volumes are others.
    free = solve(ThresholdDynamics(weight=2.0, sigma=1.5).bind(torch.zeros(2, 1, *size)), unary, DCA(), entropy=entropy)
    assert float((volumes_of(free) - wanted).abs().max()) > 5


def test_threshold_dynamics_with_total_variation():
    """The convex part goes to pdhg; what results is a stationary point of the sum."""
    size, entropy = (4, 5), 0.4
    term = Sum([ThresholdDynamics(weight=0.8, sigma=1.0), TotalVariation(weight=0.1)]).bind(
        torch.zeros(1, 1, *size, dtype=torch.float64)
    )
    unary = scores(size, batch=1)
    convex = regloss.create("solver", "pdhg", max_steps=1000, tolerance=1e-9)
    solution = solve(term, unary, DCA(tolerance=1e-6, convex=convex), entropy=entropy)
    assert solution.status == (Status.CONVERGED,)
    form = term.form(Composite)
    linearised = unary + form.concave.supergradient(solution.probabilities)
    alone = solve(TotalVariation(weight=0.1).bind(torch.zeros(1, 1, *size)), linearised, convex, entropy=entropy)
    torch.testing.assert_close(alone.probabilities, solution.probabilities, rtol=0, atol=1e-4)


def test_a_class_without_volume_is_left_out():
    """V_k = 0 is a limit case with finite results, and so are classes that seeds fill."""
    size = (6, 7)
    unary, image = scores(size, batch=1), torch.zeros(1, 1, *size, dtype=torch.float64)
    solution = solve(Volume(volumes=(30, 12, 0)).bind(image), unary, DCA(), entropy=0.3)
    assert bool(solution.probabilities.isfinite().all())
    assert float(solution.probabilities[:, 2].abs().max()) == 0
    torch.testing.assert_close(volumes_of(solution), torch.tensor([[30.0, 12, 0]], dtype=torch.float64))
    fixed = torch.full((1, *size), -1)
    fixed[0, 0, :2] = 2
    seeded = solve(Volume(volumes=(30, 10, 2)).bind(image), unary, DCA(), entropy=0.3, fixed=fixed)
    assert float(seeded.probabilities[0, 2, 1:].abs().max()) == 0
    assert seeded.labels[0, 0, :2].tolist() == [2, 2]
    torch.testing.assert_close(volumes_of(seeded), torch.tensor([[30.0, 10, 2]], dtype=torch.float64))


def test_volumes_with_seeds_regions_and_allowed_labels():
    size = (6, 7)
    region = torch.zeros(1, *size, dtype=torch.bool)
    region[:, 1:-1, 1:] = True
    fixed = torch.full((1, *size), -1)
    fixed[0, 2, 3], fixed[0, 3, 3] = 0, 2
    allowed = torch.tensor([[True, False, True]])
    term = Volume(volumes=(13, 0, 11)).bind(torch.zeros(1, 1, *size, dtype=torch.float64), region)
    solution = solve(term, scores(size, batch=1), DCA(), entropy=0.3, fixed=fixed, allowed=allowed)
    inside = (solution.probabilities * region.unsqueeze(1)).flatten(2).sum(2)
    torch.testing.assert_close(inside, torch.tensor([[13.0, 0, 11]], dtype=torch.float64))
    assert int(solution.labels[0, 3, 3]) == 2


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"fixed": torch.zeros(1, 2, 3, dtype=torch.int64)}, "image 0 .*6 pixels must be class 0, .* volume is 4"),
        ({"allowed": torch.tensor([[True, False]])}, "image 0 .*6 pixels must be class 0, .* volume is 4"),
    ],
)
def test_impossible_volumes_are_refused(given, message):
    term = Volume(volumes=(4, 2)).bind(torch.zeros(1, 1, 2, 3))
    with pytest.raises(UsageError, match=message):
        solve(term, torch.zeros(1, 2, 2, 3), DCA(), entropy=0.5, **given)


def test_volumes_for_other_classes_are_refused():
    term = Volume(volumes=(4, 2)).bind(torch.zeros(1, 1, 2, 3))
    with pytest.raises(UsageError, match=r"2 classes.*K = 3"):
        solve(term, torch.zeros(1, 3, 2, 3), DCA(), entropy=0.5)


# --------------------------------------------------------------------------------------------------------------------
# Derivatives


def gradients(term, unary, entropy, cotangent, solver):
    """Implicit gradients of <cotangent, s>."""
    form = term.form(negotiate(term.regularizer, solver))
    problem = Problem(form=form, unary=unary, entropy=entropy, roi=term.roi)
    with torch.no_grad():
        solution = solver.minimise(problem)
    assert all(status is not Status.MAX_STEPS for status in solution.status)
    s = solver.log_probabilities(problem, solution).exp()
    return solver.pullback(problem, solution, cotangent * s, max_steps=3000, tolerance=1e-10)


PRIORS = [
    ThresholdDynamics(weight=0.7, sigma=1.0, edge="sqrt"),
    ThresholdDynamics(weight=0.7, kernel="disk", radius=1.5),
    Volume(volumes=(0.5, 0.3, 0.2), unit="fraction"),
    Volume(lower=(0.5, 0.0, 0.0), upper=(1, 1, 0.2), unit="fraction"),
    ThresholdDynamics(weight=0.7, sigma=1.0) + Volume(volumes=(0.5, 0.3, 0.2), unit="fraction"),
]


@pytest.mark.parametrize("prior", PRIORS)
def test_implicit_gradients_match_finite_differences(prior):
    size, entropy = (5, 6), 0.3
    unary = scores(size, batch=1)
    cotangent, direction = scores(size, batch=1, seed=5), scores(size, batch=1, seed=6)
    term = prior.bind(torch.zeros(1, 1, *size, dtype=torch.float64))
    solver = DCA(max_steps=5000, tolerance=1e-13)

    def loss(unary, entropy):
        return float((solve(term, unary, solver, entropy=entropy).probabilities * cotangent).sum())

    found = gradients(term, unary, entropy, cotangent, solver)
    step = 1e-5
    expected = (loss(unary + step * direction, entropy) - loss(unary - step * direction, entropy)) / (2 * step)
    assert float((found.unary * direction).sum()) == pytest.approx(expected, rel=1e-5)
    assert float(found.unary.sum(1).abs().max()) < 1e-9
    expected = (loss(unary, entropy + step) - loss(unary, entropy - step)) / (2 * step)
    assert float(found.entropy) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("steps", [1, 5, 10])
def test_implicit_gradients_of_a_solver_that_was_stopped_early_stay_bounded(steps):
    """Far from a minimum the energy bends down along some directions, and a fixed-point iteration would diverge."""
    size = (24, 24)
    logits, cotangent = scores(size, batch=1), scores(size, batch=1, seed=5)
    layer = RegularizedSoftmax([ThresholdDynamics(1.0), TotalVariation(1.0)], "dca", 0.5, max_steps=steps)
    variable = logits.clone().requires_grad_()
    (layer(variable, torch.zeros(1, 1, *size, dtype=torch.float64)) * cotangent).sum().backward()
    assert layer.solution.status == (Status.MAX_STEPS,)
    assert float(variable.grad.norm()) < float(cotangent.norm()) / 0.5


def test_gradients_by_sigma_and_volumes():
    size, entropy = (5, 6), 0.3
    unary, cotangent = scores(size, batch=1), scores(size, batch=1, seed=5)
    image, solver = torch.zeros(1, 1, *size, dtype=torch.float64), DCA(max_steps=5000, tolerance=1e-13)

    def prior(sigma, volumes):
        return ThresholdDynamics(weight=0.7, sigma=sigma, radius=4) + Volume(volumes=volumes)

    def loss(sigma, volumes):
        solution = solve(prior(sigma, volumes).bind(image), unary, solver, entropy=entropy)
        return float((solution.probabilities * cotangent).sum())

    sigma = torch.tensor(1.1, dtype=torch.float64, requires_grad=True)
    volumes = torch.tensor([15.0, 9.0, 6.0], dtype=torch.float64, requires_grad=True)
    term = prior(sigma, volumes).bind(image)
    form = term.form(Composite)
    assert len(solver.parameters(form)) == 2
    problem = Problem(form=form, unary=unary, entropy=entropy)
    with torch.no_grad():
        solution = solver.minimise(problem)
    s = solver.log_probabilities(problem, solution).exp()
    found = solver.pullback(problem, solution, cotangent * s, max_steps=3000, tolerance=1e-10)
    # The parameters are the forms' own tensors; what the user gave is one step of autograd further.
    given = torch.autograd.grad(solver.parameters(form), (sigma, volumes), found.parameters)
    step, turn = 1e-5, torch.tensor([1.0, -0.7, -0.3], dtype=torch.float64)
    by_sigma = (loss(1.1 + step, volumes.detach()) - loss(1.1 - step, volumes.detach())) / (2 * step)
    assert float(given[0]) == pytest.approx(by_sigma, rel=1e-5)
    ends = [loss(1.1, volumes.detach() + sign * step * turn) for sign in (1, -1)]
    assert float((given[1] * turn).sum()) == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-5)


@pytest.mark.parametrize("prior", PRIORS)
def test_unrolled_steps_are_the_steps(prior):
    """`unroll` gives what `minimise` gives after as many steps; its gradient is that of the map."""
    size, entropy = (4, 5), 0.3
    term = prior.bind(torch.zeros(1, 1, *size, dtype=torch.float64))
    solver = DCA(max_steps=3, tolerance=0)
    form = term.form(negotiate(prior, solver))
    unary, cotangent = scores(size, batch=1), scores(size, batch=1, seed=5)

    def unrolled(unary, entropy):
        return solver.unroll(Problem(form=form, unary=unary, entropy=0.3), entropy).exp()

    at = torch.tensor(entropy, dtype=torch.float64)
    expected = solve(term, unary, solver, entropy=entropy).state.probabilities
    torch.testing.assert_close(unrolled(unary, at), expected, rtol=0, atol=1e-9)
    variable, weight = unary.clone().requires_grad_(), at.clone().requires_grad_()
    (unrolled(variable, weight) * cotangent).sum().backward()
    direction, step = scores(size, batch=1, seed=6), 1e-6
    for given, turned in (
        ((variable.grad * direction).sum(), lambda sign: unrolled(unary + sign * step * direction, at)),
        (weight.grad, lambda sign: unrolled(unary, at + sign * step)),
    ):
        ends = [float((turned(sign) * cotangent).sum()) for sign in (1, -1)]
        assert float(given) == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-5, abs=1e-8)


def test_unrolling_with_seeds_has_finite_gradients():
    size = (4, 5)
    form = ThresholdDynamics(sigma=1.0).bind(torch.zeros(1, 1, *size)).form(Concave)
    fixed = torch.full((1, *size), -1)
    fixed[0, 1, 1] = 2
    unary = scores(size, batch=1).requires_grad_()
    entropy = torch.tensor(0.3, requires_grad=True)
    problem = Problem(form=form, unary=unary, entropy=0.3, fixed=fixed)
    s = DCA(max_steps=3).unroll(problem, entropy).exp()
    assert s[0, :, 1, 1].tolist() == [0, 0, 1]
    (s.square().sum()).backward()
    assert bool(unary.grad.isfinite().all())
    assert bool(entropy.grad.isfinite())
    assert not unary.grad[0, :, 1, 1].any()


def test_a_layer_can_be_built_of_it():
    """Threshold dynamics with volumes as the last layer: gradients by logits, weight and entropy."""
    size, step = (5, 6), 1e-4  # volumes are met to 1e-10, so a smaller step would measure their error
    logits, cotangent, direction = (scores(size, batch=1, seed=seed) for seed in (0, 5, 6))
    image = torch.zeros(1, 1, *size, dtype=torch.float64)
    prior = [ThresholdDynamics(weight=0.6, sigma=1.0), Volume(volumes=(0.5, 0.3, 0.2), unit="fraction")]
    layer = RegularizedSoftmax(
        prior,
        solver="dca",
        entropy=0.5,
        max_steps=300,
        tolerance=1e-9,
        learn=("weight", "entropy"),
        backward_tolerance=1e-10,
    ).double()

    def loss(given):
        return (layer(given, image) * cotangent).sum()

    variable = logits.clone().requires_grad_()
    loss(variable).backward()
    with torch.no_grad():
        expected = (loss(logits + step * direction) - loss(logits - step * direction)) / (2 * step)
        assert float((variable.grad * direction).sum()) == pytest.approx(float(expected), rel=1e-4)
        for parameter in (layer.log_entropy, layer.log_weight):
            entry = parameter.view(-1)[0]
            ends = []
            for sign in (1, -2):
                entry += sign * step
                ends.append(float(loss(logits)))
            entry += step
            assert float(parameter.grad.view(-1)[0]) == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-4)


EXACT_PDHG = PDHG(max_steps=20000, tolerance=1e-13)
LAYERS = {
    "threshold dynamics": ThresholdDynamics(weight=0.7, sigma=1.0),
    "with volumes": ThresholdDynamics(weight=0.7, sigma=1.0) + Volume(volumes=(0.5, 0.3, 0.2), unit="fraction"),
    "with bounds": ThresholdDynamics(weight=0.7, sigma=1.0)
    + Volume(lower=(0.5, 0, 0), upper=(1, 1, 0.2), unit="fraction"),
    "with a star": ThresholdDynamics(weight=0.7, sigma=1.0) + StarShape(center=(2, 1)),
    "damped": ThresholdDynamics(weight=0.7, kernel="disk", radius=1.5)
    + Volume(volumes=(0.5, 0.3, 0.2), unit="fraction"),
}


@pytest.mark.parametrize("method", ["nested", "single-loop"])
@pytest.mark.parametrize("backward", ["implicit", "unrolled", "one-step"])
@pytest.mark.parametrize("prior", LAYERS.values(), ids=LAYERS)
def test_layer_gradients_match_finite_differences(prior, backward, method):
    """In logits, weights and entropy, of all three ways backward; what a step holds is held in the difference too."""
    size, step = (4, 4), 1e-4
    logits, cotangent, direction = (scores(size, batch=1, seed=seed) for seed in (0, 5, 6))
    image = torch.zeros(1, 1, *size, dtype=torch.float64)
    many = 20000 if method == "single-loop" else 3000
    solver = DCA(3 if backward == "unrolled" else many, 1e-11, convex=EXACT_PDHG, method=method)
    layer = RegularizedSoftmax(
        prior,
        solver,
        0.5,
        backward=backward,
        learn=("weight", "entropy"),
        backward_steps=3000,
        backward_tolerance=1e-12,
    ).double()
    variable = logits.clone().requires_grad_()
    (layer(variable, image) * cotangent).sum().backward()
    # One step is taken from where the solver ended, whatever is turned afterwards.
    held = layer.solution
    assert (held is None) == (backward == "unrolled")
    assert held is None or held.status == (Status.CONVERGED,)
    turned = RegularizedSoftmax(
        prior,
        replace(solver, max_steps=1) if backward == "one-step" else solver,
        0.5,
        backward="unrolled" if backward == "one-step" else backward,
        learn=("weight", "entropy"),
    ).double()

    def loss(given):
        warm = held if backward == "one-step" else None
        return float((turned(given, image, warm=warm) * cotangent).sum())

    with torch.no_grad():
        turned.load_state_dict(layer.state_dict())
        expected = (loss(logits + step * direction) - loss(logits - step * direction)) / (2 * step)
        assert float((variable.grad * direction).sum()) == pytest.approx(expected, rel=1e-4, abs=1e-7)
        for found, parameter in ((layer.log_entropy, turned.log_entropy), (layer.log_weight, turned.log_weight)):
            flat = parameter.view(-1)
            for index in range(len(flat)):
                flat[index] += step
                above = loss(logits)
                flat[index] -= 2 * step
                expected = (above - loss(logits)) / (2 * step)
                flat[index] += step
                assert float(found.grad.view(-1)[index]) == pytest.approx(expected, rel=1e-4, abs=1e-7)


# --------------------------------------------------------------------------------------------------------------------
# Misuse


@pytest.mark.parametrize("settings", [{"max_steps": 0}, {"tolerance": -1.0}, {"tolerance": math.nan}])
def test_bad_settings_are_refused(settings):
    with pytest.raises(UsageError, match=next(iter(settings))):
        DCA(**settings)


def test_a_convex_part_needs_entropy():
    concave = ThresholdDynamics()
    for prior, entropy in ((concave + TotalVariation(), 0.0), (TotalVariation(), 0.0), (concave, 1e-60)):
        term = prior.bind(torch.zeros(1, 1, 3, 3))
        with pytest.raises(UsageError, match="dca needs an entropy weight > 0"):
            solve(term, torch.zeros(1, 2, 3, 3), DCA(), entropy=entropy)


@pytest.mark.parametrize("isotropic", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("solver", ["dca", "pdhg"])
def test_a_huge_entropy_does_not_overflow(solver, dtype, isotropic):
    """All labels are as probable as each other; beyond it the entropy is refused."""
    term = TotalVariation(isotropic=isotropic).bind(
        torch.rand(1, 3, 6, 7, generator=torch.Generator().manual_seed(0)).to(dtype)
    )
    unary = scores((6, 7), batch=1, dtype=torch.float32).to(dtype)
    solution = solve(term, unary, solver, entropy=1e30)
    classes = unary.shape[1]
    assert float((solution.probabilities - 1 / classes).abs().max()) < 1e-6
    assert float(solution.energy) == pytest.approx(-1e30 * 42 * math.log(classes), rel=1e-5)
    assert bool((solution.bound <= solution.energy * (1 - 1e-6)).all())
    for entropy in (3e38, 1e300):
        with pytest.raises(UsageError, match="entropy must be at most 1e30"):
            solve(term, unary, solver, entropy=entropy)


def test_a_tiny_entropy_does_not_overflow():
    term = ThresholdDynamics(weight=1.0).bind(torch.zeros(1, 1, 6, 7))
    unary = scores((6, 7), batch=1, dtype=torch.float32)
    solution = solve(term, unary, DCA(), entropy=1e-30)
    assert bool(solution.probabilities.isfinite().all())
    assert bool(solution.energy.isfinite().all())


@pytest.mark.parametrize(
    "warm",
    [
        DCAState(torch.zeros(1, 2, 3, 4)),
        DCAState(-torch.ones(1, 2, 3, 3)),
        DCAState(torch.full((1, 2, 3, 3), math.nan)),
        3,
    ],
)
def test_bad_starts_are_refused(warm):
    term = ThresholdDynamics().bind(torch.zeros(1, 1, 3, 3))
    with pytest.raises(UsageError, match="dca"):
        solve(term, torch.zeros(1, 2, 3, 3), DCA(), entropy=0.5, warm=warm)


def test_the_convex_solver_must_accept_saddle_forms():
    term = Sum([ThresholdDynamics(), TotalVariation()]).bind(torch.zeros(1, 1, 3, 3))
    for convex in ("mean-field", DCA()):
        with pytest.raises(UsageError, match="saddle forms"):
            solve(term, torch.zeros(1, 2, 3, 3), DCA(convex=convex), entropy=0.5)


def test_the_form_decides_the_status():
    """A convex problem that is solved is solved to optimality; a stationary point is not."""
    image, unary = torch.zeros(1, 1, 3, 4), scores((3, 4), batch=1)
    assert solve(Volume(volumes=(6, 3, 3)).bind(image), unary, DCA(), entropy=0.5).status == (Status.OPTIMAL,)
    concave = solve(ThresholdDynamics().bind(image), unary, DCA(), entropy=0.5)
    assert concave.status == (Status.CONVERGED,)
    assert float(concave.bound) == -math.inf
    assert replace(concave, bound=concave.energy).gap.tolist() == [0]
    assert negotiate(TotalVariation(), DCA()) is Saddle


@pytest.mark.parametrize("method", ["nested", "single-loop"])
@pytest.mark.parametrize(
    "prior", [TotalVariation(0.3), TotalVariation(0.3, isotropic=True), regloss.NonlocalTV(0.1, neighbors=3)]
)
def test_precisions_of_unary_and_image_may_differ(method, prior):
    image, unary = torch.rand(2, 1, 4, 5, dtype=torch.float64), scores((4, 5))
    solver = DCA(100, 1e-7, method=method)
    for dynamics in ([], [ThresholdDynamics(0.3, sigma=1.0)]):
        regularizer = Sum([prior, *dynamics])
        fine = solve(regularizer.bind(image), unary.float().double(), solver, entropy=0.5)
        for kinds in ((torch.float32, torch.float64), (torch.float16, torch.float64), (torch.float64, torch.float32)):
            mixed = solve(regularizer.bind(image.to(kinds[1])), unary.to(kinds[0]), solver, entropy=0.5)
            assert mixed.probabilities.dtype == kinds[0]
            torch.testing.assert_close(mixed.probabilities.double(), fine.probabilities, rtol=0, atol=1e-2)
        layer = RegularizedSoftmax(regularizer, solver, 0.5, backward="implicit")
        logits = (-unary.float()).requires_grad_()
        layer(logits, image).square().sum().backward()
        assert bool(logits.grad.isfinite().all())


@pytest.mark.parametrize(
    ("others", "method"), [((), "nested"), (("star",), "single-loop"), (("volume",), "single-loop")]
)
def test_between_two_looks_a_device_is_not_waited_for(others, method, monkeypatch):
    """As on a GPU, where the host looks at every tenth step; what comes out is the same as if it looked at each."""
    parts = {"star": StarShape(center=(3, 4)), "volume": Volume(lower=(10.0, 0.0), upper=(72.0, 40.0))}
    term = Sum([ThresholdDynamics(weight=0.8, sigma=1.0), *(parts[name] for name in others)]).bind(
        torch.zeros(2, 1, 8, 9, dtype=torch.float64)
    )
    unary = scores((8, 9), classes=2)
    unary[0, 0], unary[0, 1] = -9, 9  # decided at once, while the second image goes on
    solver = DCA(max_steps=47, tolerance=1e-3, method=method)
    expected = solve(term, unary, solver, entropy=0.5)
    assert expected.steps[0] < 10 < expected.steps[1]
    monkeypatch.setattr(dca, "look_every", lambda device: 10)
    found = solve(term, unary, solver, entropy=0.5)
    assert torch.equal(found.steps, expected.steps)
    assert found.status == expected.status
    torch.testing.assert_close(found.probabilities, expected.probabilities, rtol=1e-12, atol=1e-12)
    again = solve(term, unary, replace(solver, max_steps=1), entropy=0.5, warm=found.state)
    before = solve(term, unary, replace(solver, max_steps=1), entropy=0.5, warm=expected.state)
    torch.testing.assert_close(again.probabilities, before.probabilities, rtol=1e-12, atol=1e-12)

    def waited(max_steps):
        endless = replace(solver, max_steps=max_steps, tolerance=0.0)
        return waits(lambda: solve(term, unary, endless, entropy=0.5))

    assert waited(30) - waited(20) == 2  # whether any image goes on, and which


def test_matrices_of_a_kernel_are_made_once(monkeypatch):
    made = []
    original = threshold_dynamics._band
    monkeypatch.setattr(threshold_dynamics, "_band", lambda *given: made.append(1) or original(*given))
    term = ThresholdDynamics(weight=0.8, sigma=1.0).bind(torch.zeros(2, 1, 8, 9, dtype=torch.float64))
    solve(term, scores((8, 9)), DCA(max_steps=5, tolerance=0.0), entropy=0.5)
    assert len(made) == 2  # one for each axis
