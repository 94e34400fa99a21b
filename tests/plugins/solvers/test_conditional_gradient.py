"""Mean field in parallel and Frank-Wolfe steps on concave forms: conformance, all pairs, falling energies."""

import math
from dataclasses import replace

import pytest
import torch

from regloss import (
    DCA,
    Concave,
    ConcaveFunction,
    DenseCRF,
    GridCRF,
    GridGraph,
    MeanField,
    Status,
    ThresholdDynamics,
    UsageError,
    solve,
)
from regloss.numerics import one_hot
from regloss.solver import Problem, linear_energy, negative_entropy, possible_cost
from regloss.testing import SolverConformance
from regloss_plugins.solvers.conditional_gradient import descend
from regloss_plugins.solvers.dca import DCAState
from regloss_plugins.solvers.mean_field import MeanFieldState


class TestMeanFieldOnDenseCRF(SolverConformance):
    discrete = False
    entropy = 0.5
    class_counts = (2,)  # of three classes there are 20,000 labellings, and a filter for each

    def make(self):
        return MeanField(max_steps=2000, tolerance=1e-10)

    def regularizer(self, weight):
        return DenseCRF(weight=weight, sigma_xy=3.0, sigma_rgb=0.5, scale=1.0)


class TestDampedMeanField(TestMeanFieldOnDenseCRF):
    """A kernel that is not positive semidefinite, with few steps of full length."""

    spatial = (2,)
    weights = (0.3, 2.0)

    def make(self):
        return MeanField(max_steps=4000, tolerance=1e-10, damping=0.3)

    def regularizer(self, weight):
        return ThresholdDynamics(weight=weight, kernel="disk", radius=1.5)


class TestFrankWolfe(SolverConformance):
    discrete = False
    spatial = (2,)
    class_counts = (2,)

    def make(self):
        return DCA(max_steps=500, tolerance=1e-9)

    def regularizer(self, weight):
        return DenseCRF(weight=weight, sigma_xy=2.0, sigma_rgb=0.5)


def problem(weight=30.0, sigma_xy=1.0, size=(8, 9), batch=2, seed=0, unaries=0.3, **settings):
    generator = torch.Generator().manual_seed(seed)
    image = torch.rand(batch, 3, *size, generator=generator, dtype=torch.float64)
    unary = unaries * torch.randn(batch, 3, *size, generator=generator, dtype=torch.float64)
    crf = DenseCRF(weight=weight, sigma_xy=sigma_xy, sigma_rgb=2.0, scale=1.0, **settings)
    return crf.bind(image), unary


def energy_of(term, unary, entropy, s):
    return linear_energy(unary, s, term.roi) + entropy * negative_entropy(s, term.roi) + term.energy(s)


def affinity(term):
    """(N, N) weights of the first image, by definition symmetric, with nothing on the diagonal."""
    count = math.prod(term.shape[1:])
    eye = torch.eye(count, dtype=torch.float64).reshape(1, count, *term.shape[1:])
    matrix = term.affinity.filter.select(torch.tensor([0]))(eye).reshape(count, count).fill_diagonal_(0)
    return term.settings.weight / term.affinity.mass * matrix


# -- Steps -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("damping", [0.0, 0.4])
def test_parallel_updates_by_all_pairs(damping):
    """The published update, pixel by pixel over all others, on a 12x12 image; damping as a mean of old and new."""
    term, unary = problem(weight=5.0, sigma_xy=4.0, size=(12, 12), batch=1)
    matrix, costs = affinity(term), unary.flatten(2)
    s = (-costs).softmax(1)
    for _ in range(4):
        s = (1 - damping) * (s @ matrix - costs).softmax(1) + damping * s
    found = solve(term, unary, MeanField(4, damping, tolerance=0.0), entropy=1.0)
    torch.testing.assert_close(found.probabilities.flatten(2), s, rtol=0, atol=1e-12)
    assert found.steps.tolist() == [4]
    assert found.status == (Status.MAX_STEPS,)


def test_undamped_they_are_steps_of_dca():
    term, unary = problem(weight=5.0, sigma_xy=4.0)
    ours = solve(term, unary, MeanField(7, tolerance=0.0), entropy=0.7).probabilities
    theirs = solve(term, unary, DCA(7, tolerance=0.0, damped=False), entropy=0.7).probabilities
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-13)


def test_the_affinity_without_its_diagonal_is_indefinite():
    """Least eigenvalue of the weights: -w_pp, which the form's curvature states; added, it is 0 but for rounding."""
    term, _ = problem()
    least = float(torch.linalg.eigvalsh(affinity(term))[0])
    curvature = term.form(Concave).curvature
    assert least < -0.3 * curvature
    assert least >= -curvature * (1 + 1e-12)


def cycling():
    """Narrow and heavy: neighbours that agree to be different turn into each other's negative."""
    term, unary = problem(weight=40.0, sigma_xy=0.4, unaries=0.01)
    board = (torch.arange(8).unsqueeze(1) + torch.arange(9)) % 2
    start = (one_hot(board.expand(2, 8, 9), 3, torch.float64) + 0.05).clamp(max=0.9)
    return term, unary, start / start.sum(1, keepdim=True)


def test_published_steps_can_raise_the_energy_for_ever_and_ours_do_not():
    """Where w_pp outweighs the entropy, parallel steps cycle; dca damps them beforehand, mean field when they rise."""
    term, unary, start = cycling()
    entropy = 0.5
    assert term.form(Concave).curvature > entropy

    def end(solver, state):
        return solve(term, unary, solver, entropy=entropy, warm=state(start))

    published = [end(DCA(n, damped=False), DCAState) for n in (40, 41)]
    assert float((published[0].probabilities - published[1].probabilities).abs().max()) > 0.9
    assert published[0].status == (Status.MAX_STEPS,) * 2
    for kind, state in ((DCA, DCAState), (MeanField, MeanFieldState)):
        ends = [end(kind(max_steps=n), state) for n in range(1, 25)]
        energies = torch.stack([ends[0].start_energy, *(one.energy for one in ends)])
        assert bool((energies.diff(dim=0) <= 1e-10).all())
        assert bool((energies[-1] < energies[0] - 1).all())
        last = end(kind(max_steps=3000), state)
        assert last.status == (Status.CONVERGED,) * 2
        again = solve(term, unary, DCA(1, damped=False), entropy=entropy, warm=DCAState(last.probabilities))
        assert float((again.probabilities - last.probabilities).abs().max()) < 1e-5  # a fixed point of theirs too


@pytest.mark.parametrize("backend", ["exact", "lattice"])
@pytest.mark.parametrize(
    ("solver", "entropy"),
    [(MeanField(1, damping=0.2), 1.0), (MeanField(1, damping=0.2), 0.02), (DCA(1), 1.0), (DCA(1), 0.02), (DCA(1), 0.0)],
)
def test_the_energy_never_rises(backend, solver, entropy):
    """Step by step, for dense CRFs from wide to narrow, from random starts."""
    state = MeanFieldState if isinstance(solver, MeanField) else DCAState
    for seed, sigma_xy in enumerate((0.4, 1.0, 4.0)):
        term, unary = problem(60.0, sigma_xy, seed=seed, backend=backend)
        s = torch.rand(unary.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        s = s / s.sum(1, keepdim=True)
        energies = [energy_of(term, unary, entropy, s)]
        for _ in range(12):
            s = solve(term, unary, solver, entropy=entropy, warm=state(s)).probabilities
            energies.append(energy_of(term, unary, entropy, s))
        falls = -torch.stack(energies).diff(dim=0)
        assert bool((falls >= -1e-9).all())
        assert bool((falls.sum(0) > 1e-3).all())


def test_the_length_is_the_best_one():
    """Between a start and the cheapest labels of its tangent, no point of a fine line is better than the step."""
    term, unary, start = cycling()
    found = solve(term, unary, DCA(1), warm=DCAState(start))
    slope = term.form(Concave).concave.supergradient(start)
    target = one_hot((unary + slope).argmin(1), 3, torch.float64)
    line = [energy_of(term, unary, 0.0, start + x * (target - start)) for x in torch.linspace(0, 1, 501).tolist()]
    best = torch.stack(line).amin(0)
    assert bool((found.energy <= best + 1e-9).all())
    torch.testing.assert_close(found.energy, best, rtol=1e-4, atol=0)
    length = (found.probabilities - start).abs().amax() / (target - start).abs().amax()
    assert 0.01 < float(length) < 0.99


class Wrapped(ConcaveFunction):
    """Another function, to be changed in one respect."""

    def __init__(self, function):
        self.function = function

    def value(self, s):
        return self.function.value(s)

    def supergradient(self, s):
        return self.function.supergradient(s)

    def __getitem__(self, images):
        return type(self)(self.function[images])

    @property
    def curvature(self):
        return self.function.curvature

    @property
    def is_quadratic(self):
        return self.function.is_quadratic


class NotQuadratic(Wrapped):
    is_quadratic = False


def test_a_form_that_is_not_quadratic_is_bounded_by_its_curvature():
    """The same prior that does not say that it is quadratic: shorter steps, more evaluations, no rise."""
    term, unary, start = cycling()
    form = NotQuadratic(term.form(Concave).concave)
    given = Problem(form=Concave(form), unary=unary)
    energies = [energy_of(term, unary, 0.0, start)]
    for steps in (1, 2, 5, 20, 100):
        s = descend(given, form, unary, start, length=1.0, max_steps=steps, tolerance=1e-9).probabilities
        energies.append(energy_of(term, unary, 0.0, s))
    assert bool((torch.stack(energies).diff(dim=0) <= 1e-12).all())
    ours = descend(replace(given, entropy=0.3), form, unary, start, length=1.0, max_steps=30, tolerance=0.0)
    quadratic = term.form(Concave).concave
    theirs = descend(replace(given, entropy=0.3), quadratic, unary, start, length=1.0, max_steps=30, tolerance=0.0)
    torch.testing.assert_close(ours.probabilities, theirs.probabilities, rtol=0, atol=1e-12)


def test_without_entropy_it_stops_at_labels_that_no_pixel_alone_improves():
    """Where R is concave along every direction of one pixel; alpha-expansion on the same pairs is not far below."""
    image = torch.zeros(1, 1, 6, 7, dtype=torch.float64)
    unary = torch.randn(1, 3, 6, 7, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    term = DenseCRF(weight=4.0, sigma_xy=1.5, sigma_rgb=math.inf, scale=1.0).bind(image)
    found = solve(term, unary, DCA(2000, tolerance=1e-8))
    slope = term.form(Concave).concave.supergradient(one_hot(found.labels, 3, torch.float64))
    costs = unary + slope
    assert bool((costs.gather(1, found.labels.unsqueeze(1)).squeeze(1) <= costs.amin(1) + 1e-5).all())
    alone = energy_of(term, unary, 0.0, one_hot(unary.argmin(1), 3, torch.float64))
    assert float(found.energy) < float(alone)


# -- Grids -------------------------------------------------------------------------------------------------------------


def test_a_grid_in_its_concave_form():
    """Value, slope, curvature and gradients by weights are those of the term's own relaxation."""
    image = torch.rand(2, 3, 6, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    term = GridCRF(weight=1.3, connectivity=4).bind(image)
    graph = term.form(GridGraph)
    form = graph.relaxed().concave
    s = torch.randn(2, 3, 6, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64).softmax(1)
    s.requires_grad_()
    torch.testing.assert_close(form.value(s), term.energy(s))
    (slope,) = torch.autograd.grad(term.energy(s).sum(), s)
    difference = form.supergradient(s) - slope  # along the simplex they agree
    torch.testing.assert_close(difference, difference.mean(1, keepdim=True).expand_as(s), rtol=0, atol=1e-12)
    torch.testing.assert_close(
        (form.supergradient(s) * s).flatten(1).sum(1) / 2 + (form.supergradient(0 * s) * s).flatten(1).sum(1) / 2,
        form.value(s),
    )
    alone = form[torch.tensor([1])]
    torch.testing.assert_close(alone.supergradient(s[1:]), form.supergradient(s)[1:])
    matrix = torch.autograd.functional.jacobian(lambda v: graph.neighbor_sum(v)[0, 0], torch.zeros(2, 1, 6, 7).double())
    least = float(torch.linalg.eigvalsh(matrix[:, :, 0, 0].reshape(42, 42))[0])
    assert -form.curvature <= least < -0.4 * form.curvature


@pytest.mark.parametrize("entropy", [0.3, 0.0])
def test_on_a_grid_it_is_not_below_alpha_expansion(entropy):
    """What is reached is a labelling of the same problem, in monotone steps, and better than the unaries'."""
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, 1, 10, 11, generator=generator, dtype=torch.float64)
    unary = torch.rand(1, 3, 10, 11, generator=generator, dtype=torch.float64)
    term = GridCRF(weight=0.2).bind(image)
    best = float(solve(term, unary, "alpha-expansion").energy)
    graph, looks = term.form(GridGraph), []
    problem = Problem(graph.relaxed(), unary, entropy, callback=looks.append)
    for solver in [DCA(400)] if entropy == 0 else [DCA(400), MeanField(400)]:
        looks.clear()
        found = solver.minimise(problem).labels
        energies = torch.stack([look.energy[0] for look in looks])
        assert bool((energies.diff() <= 1e-9).all())
        own = float(unary.gather(1, found.unsqueeze(1)).sum() + graph.cut(found))
        alone = unary.argmin(1)
        assert best - 1e-9 <= own < 0.97 * float(unary.amin(1).sum() + graph.cut(alone))


# -- Batches, seeds, limits --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("solver", "entropy"), [(MeanField(300, tolerance=1e-6), 0.5), (DCA(300, tolerance=1e-5), 0.0)]
)
def test_converged_images_leave_the_batch(solver, entropy):
    """The work shrinks to those that are left, and every image ends where it would have ended alone."""
    term, unary = problem(weight=20.0, sigma_xy=2.0, batch=3)
    unary = unary * torch.tensor([30.0, 1.0, 0.1], dtype=torch.float64).reshape(3, 1, 1, 1)
    allowed = torch.tensor([[True, True, True], [True, False, True], [True, True, True]])
    fixed = torch.full((3, 8, 9), -1)
    fixed[:, 2, 3] = 2
    together = solve(term, unary, solver, entropy=entropy, allowed=allowed, fixed=fixed)
    assert len(set(together.steps.tolist())) > 1
    assert together.status == (Status.CONVERGED,) * 3
    seen = []
    form = term.form(Concave)

    class Counted(Wrapped):
        def __getitem__(self, images):
            seen.append(len(images))
            return super().__getitem__(images)

    from regloss_plugins.solvers.gibbs import gibbs

    given = Problem(form=form, unary=unary, entropy=entropy)
    cost = possible_cost(Problem(form=form, unary=unary, fixed=fixed, allowed=allowed))
    shrinking = Counted(form.concave)
    found = descend(given, shrinking, cost, gibbs(cost, entropy), length=1.0, max_steps=300, tolerance=solver.tolerance)
    assert seen
    assert seen == sorted(seen, reverse=True)
    torch.testing.assert_close(found.probabilities, together.probabilities, rtol=0, atol=1e-12)


def test_looks_are_taken_on_the_way():
    term, unary, start = cycling()
    looks = []
    end = solve(term, unary, DCA(10), warm=DCAState(start), callback=looks.append)
    assert len(looks) == int(end.steps.max())
    assert looks[-1].energy.tolist() == pytest.approx(end.energy.tolist(), rel=1e-9)
    energies = torch.stack([look.energy for look in looks])
    assert bool((energies.diff(dim=0) <= 0).all())


def test_float32_converges():
    """Rounding of energies neither stops an image early nor keeps it going for ever."""
    term, unary = problem(weight=10.0, sigma_xy=4.0, size=(40, 50), batch=1, backend="lattice")
    term = replace(term.settings).bind(torch.rand(1, 3, 40, 50, generator=torch.Generator().manual_seed(0)))
    found = solve(term, unary.float(), MeanField(400, tolerance=1e-4), entropy=0.5)
    assert found.status == (Status.CONVERGED,)
    exact = solve(term, unary, MeanField(400, tolerance=1e-8), entropy=0.5)
    assert float((found.probabilities - exact.probabilities).abs().max()) < 5e-3


def test_mean_field_without_entropy_names_what_does_without():
    term, unary = problem()
    with pytest.raises(UsageError, match=r"mean-field needs an entropy weight > 0; got entropy = 0.*dca without one"):
        solve(term, unary, MeanField())


def test_grids_are_still_solved_by_colours():
    image = torch.zeros(1, 1, 5, 6, dtype=torch.float64)
    assert MeanField.accepts[1] is Concave
    found = solve(GridCRF().bind(image), torch.zeros(1, 2, 5, 6, dtype=torch.float64), MeanField(), entropy=1.0)
    assert bool(found.bound.isfinite())
