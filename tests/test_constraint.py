"""Hard constraints: roundings against enumeration, and what solutions of random constrained problems obey."""

import numpy as np
import pytest
import torch
from scipy.optimize import linprog

from regloss import (
    ConvexShape,
    Ordered,
    RegularizedSoftmax,
    StarShape,
    Status,
    Sum,
    TotalVariation,
    UsageError,
    Volume,
    create,
    solve,
)
from regloss.constraint import EXACT, Constraints, raise_labels
from regloss.numerics import one_hot
from regloss.solver import linear_energy, negative_entropy
from regloss_plugins.kernels.assignment import assign

# --------------------------------------------------------------------------------------------------------------------
# Roundings, by enumeration


def every_labelling(size, classes):
    return torch.cartesian_prod(*[torch.arange(classes)] * int(np.prod(size))).reshape(-1, *size)


def cheapest(term, cost, possible, every):
    """Least cost (B,) of labels that obey the term and are possible, of all there are."""
    least = []
    for image in range(len(cost)):
        part = term[torch.tensor([image])]
        many = part[torch.zeros(len(every), dtype=torch.int64)]
        obeys = many.violation_of_labels(every, cost.shape[1]) == 0
        can = possible[image].unsqueeze(0).expand(len(every), -1, -1, -1).gather(1, every.unsqueeze(1)).all(1)
        total = cost[image].unsqueeze(0).expand(len(every), -1, -1, -1).gather(1, every.unsqueeze(1)).sum((1, 2, 3))
        least.append(float(total[obeys & can.flatten(1).all(1)].min()))
    return least


@pytest.mark.parametrize(
    "prior",
    [
        StarShape(label=1, center=(1, 1)),
        StarShape(label=0, center=[[0, 2], [2, 0]]),
        Volume(volumes=(4, 3, 2)),
        Volume(volumes=(3.4, 3.3, 2.3)),
        Volume(lower=(1, 4, 0), upper=(9, 5, 1)),
        Volume(lower=(0.3, 0.05, 0.1), upper=(0.9, 0.25, 1), unit="fraction"),
        Ordered(),
    ],
)
def test_rounded_labels_are_the_cheapest_that_obey(prior):
    """Free and with seeds, over all 19,683 labellings of 3 x 3 pixels."""
    size, classes = (3, 3), 3
    every = every_labelling(size, classes)
    term = prior.bind(torch.zeros(2, 1, *size, dtype=torch.float64))
    generator = torch.Generator().manual_seed(0)
    rounded = 0
    for trial in range(4):
        scores = torch.randn(2, classes, *size, generator=generator, dtype=torch.float64)
        if trial == 3:
            scores = scores.round()  # ties
        obeying = Constraints.of([term], scores).round(scores.flip(1)).labels
        seeds = torch.where(torch.rand(2, *size, generator=generator) > 0.7, obeying, -1)
        for fixed in (None, seeds):
            constraints = Constraints.of([term], scores, fixed=fixed)
            found = constraints.round(scores)
            cost = (-scores).gather(1, found.labels.unsqueeze(1)).sum((1, 2, 3))
            assert cost.tolist() == pytest.approx(cheapest(term, -scores, constraints.possible, every), abs=1e-9)
            assert found.violation.tolist() == [0, 0]
            rounded += int(found.changed.sum())
    assert rounded >= 4


@pytest.mark.parametrize("ties", [False, True])
def test_assignment_with_counts_is_that_of_the_linear_program(ties):
    generator = np.random.default_rng(1)
    for trial in range(40):
        classes, pixels = int(generator.integers(2, 6)), int(generator.integers(4, 25))
        cost = generator.normal(size=(classes, pixels))
        cost = np.round(cost) if ties else cost
        if trial % 3 == 0:
            barred = generator.random((classes, pixels)) < 0.2
            barred[generator.integers(0, classes, pixels), np.arange(pixels)] = False
            cost = np.where(barred, np.inf, cost)
        some = np.where(np.isfinite(cost), generator.random(cost.shape), -1).argmax(0)
        counts = np.bincount(some, minlength=classes)
        least = np.maximum(0, counts - generator.integers(0, 3, classes))
        most = least if trial % 4 == 0 else counts + generator.integers(0, 3, classes)
        least = counts if trial % 4 == 0 else least
        most = counts if trial % 4 == 0 else most
        labels = assign(cost, least, most)
        found = np.bincount(labels, minlength=classes)
        assert ((least <= found) & (found <= most)).all()
        rows = np.kron(np.eye(classes), np.ones((1, pixels)))
        program = linprog(
            np.where(np.isfinite(cost), cost, 1e3).ravel(),
            A_ub=np.vstack([rows, -rows]),
            b_ub=np.concatenate([most, -least]),
            A_eq=np.tile(np.eye(pixels), (1, classes)),
            b_eq=np.ones(pixels),
            bounds=(0, 1),
        )
        assert cost[labels, np.arange(pixels)].sum() == pytest.approx(program.fun, abs=1e-7)


def test_a_star_with_a_volume_has_the_best_labels_of_two_classes():
    """Together exact for two classes on these: no labels that obey both are cheaper."""
    size = (3, 4)
    every = every_labelling(size, 2)
    generator = torch.Generator().manual_seed(0)
    image = torch.zeros(1, 1, *size, dtype=torch.float64)
    for pixels in range(1, 12):
        scores = torch.randn(1, 2, *size, generator=generator, dtype=torch.float64)
        parts = [StarShape(center=(1, 2)).bind(image), Volume(volumes=(12 - pixels, pixels)).bind(image)]
        found = Constraints.of(parts, scores).round(scores)
        assert found.violation.tolist() == [0]
        ones = torch.zeros(len(every), dtype=torch.int64)
        obeys = (parts[0][ones].violation_of_labels(every, 2) == 0) & (every.flatten(1).sum(1) == pixels)
        cost = torch.where(every == 1, -scores[:, 1], -scores[:, 0]).sum((1, 2))
        mine = torch.where(found.labels == 1, -scores[:, 1], -scores[:, 0]).sum()
        # A price on the class finds the sets on the convex hull of costs over sizes; between them it is near.
        assert float(mine) <= float(cost[obeys].min()) + 2.5
        assert float(mine) >= float(cost[obeys].min()) - 1e-9


def test_a_convex_region_grows_around_seeds_of_others():
    """Where the fill would take a seed of another class, it starts from fewer pixels."""
    labels = torch.zeros(1, 20, 20, dtype=torch.int64)
    labels[:, 4:16, 4:8] = labels[:, 12:16, 4:16] = 1  # an L
    fixed = torch.full_like(labels, -1)
    fixed[:, 9, 10] = 0  # in its dent
    term = ConvexShape().bind(torch.zeros(1, 1, 20, 20))
    scores = one_hot(labels, 2, torch.float64) * 3
    scores[:, 1, 4:16, 4:8] += 1  # the upright is surer than the foot
    free = Constraints.of([term], scores).round(scores)
    assert int(free.labels[0, 9, 10]) == 1
    assert bool((free.labels >= labels).all())
    kept = Constraints.of([term], scores, fixed=fixed).round(scores)
    assert kept.violation.tolist() == [0]
    assert int(kept.labels[0, 9, 10]) == 0
    assert int(kept.labels[0, 4:16, 4:8].sum()) == 48
    assert bool((kept.labels <= free.labels).all())


# --------------------------------------------------------------------------------------------------------------------
# What is refused


@pytest.mark.parametrize(
    ("prior", "fixed", "message"),
    [
        (StarShape(center=(0, 0)), "1...  ..0.  ...1", r"star .* image 0 .*class 1"),
        (Volume(volumes=(10, 2)), "1111  ....  ....", r"volume .* image 0 .*4 pixels must be class 1.* 2"),
        (Volume(lower=(8, 0), upper=(12, 12)), "1111  1...  ....", r"volume .* image 0 .*7 pixels may be class 0"),
        (ConvexShape(radii=(1.5,)), "1111  10.1  1111", r"convex .* image 0 .*class 1"),
        (Ordered(), "0...  ....  ....", r"ordered .* image 0 .*class 1"),
    ],
)
def test_seeds_that_contradict_a_constraint_are_refused(prior, fixed, message):
    """Which image, which class; before anything is solved."""
    seeds = torch.tensor([[-1 if letter == "." else int(letter) for letter in row] for row in fixed.split()])
    term = prior.bind(torch.zeros(1, 1, 3, 4))
    solver = create("solver", "pdhg") if not isinstance(prior, ConvexShape) else None
    with pytest.raises(UsageError, match=message):
        Constraints.of([term], torch.zeros(1, 2, 3, 4), fixed=seeds.unsqueeze(0))
    if solver is not None:
        with pytest.raises(UsageError, match=message):
            solve(term, torch.zeros(1, 2, 3, 4), solver, entropy=0.5, fixed=seeds.unsqueeze(0))


def test_allowed_labels_that_contradict_a_constraint_are_refused():
    allowed = torch.tensor([[True, True, False]])
    term = Volume(lower=(0, 0, 3), upper=(12, 12, 12)).bind(torch.zeros(1, 1, 3, 4))
    with pytest.raises(UsageError, match=r"image 0 .*0 pixels may be class 2.* 3"):
        solve(term, torch.zeros(1, 3, 3, 4), "dca", entropy=0.5, allowed=allowed)


@pytest.mark.parametrize("solver", ["pdhg", "dca"])
@pytest.mark.parametrize(
    ("volume", "fixed", "message"),
    [
        ({"volumes": (11.5, 0.5)}, "11..  ....  ....", "2 pixels must be class 1, whose largest volume is 0.5"),
        ({"lower": (0, 5), "upper": (12, 12)}, "0000  0000  ....", "4 pixels may be class 1, whose least volume is 5"),
        (
            {"lower": (0, 0.5), "unit": "fraction"},
            "0000  000.  ....",
            "5 pixels may be class 1, whose least volume is 6",
        ),
    ],
)
def test_volumes_that_seeds_make_impossible_are_refused(volume, fixed, message, solver):
    """In the second image of a batch."""
    seeds = torch.full((2, 3, 4), -1)
    seeds[1] = torch.tensor([[-1 if letter == "." else int(letter) for letter in row] for row in fixed.split()])
    unary = torch.randn(2, 2, 3, 4, generator=torch.Generator().manual_seed(0))
    term = Volume(**volume).bind(torch.zeros(2, 1, 3, 4))
    with pytest.raises(UsageError, match=rf"volume constraint cannot be met in image 1 of the batch: {message}"):
        solve(term, unary, solver, entropy=0.5, fixed=seeds)
    seeds[1, :, :3] = -1
    solution = solve(term, unary, solver, entropy=0.5, fixed=seeds)
    assert bool(solution.energy.isfinite().all())
    assert Constraints.of([term], unary).violation_of_labels(solution.labels).tolist() == [0, 0]


def test_constraints_that_no_labels_meet_together_are_reported():
    """A star about one corner, with the other corner a seed, and a volume of two pixels."""
    image = torch.zeros(1, 1, 3, 3, dtype=torch.float64)
    term = Sum([StarShape(center=(0, 0)), Volume(volumes=(7, 2))]).bind(image)
    fixed = torch.full((1, 3, 3), -1)
    fixed[0, 2, 2] = 1
    unary = torch.randn(1, 2, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = solve(term, unary, "pdhg", entropy=0.5, fixed=fixed)
    assert found.status == (Status.INFEASIBLE,)
    assert 0 < float(found.violation) < 1.01
    assert bool(found.energy.isfinite().all())
    assert int(found.labels[0, 2, 2]) == 1


# --------------------------------------------------------------------------------------------------------------------
# Solutions


KINDS = (
    "star",
    "star of the prediction",
    "volume",
    "volume bounds",
    "ordered",
    "star + volume",
    "star + star",
    "convex",
)


def problems(kind, count, seed=0):
    """Random ones: 2D and 3D, with tv or without, regions of interest, entropies from .01 to 1, few and many steps."""
    generator = torch.Generator().manual_seed(seed + 1000 * KINDS.index(kind))

    def uniform(*shape):
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    for number in range(count):
        size = ((7, 8), (12, 9), (4, 5, 6), (15, 14))[number % 4]
        batch, classes = 1 + (number % 3 == 0), 2 + number % 3
        dtype = (torch.float64, torch.float32)[number % 2]
        unary = torch.randn(batch, classes, *size, generator=generator, dtype=torch.float64)
        unary = (unary * (0.3, 1, 4)[int(3 * uniform(1))]).to(dtype)
        center = [int(uniform(1) * length) for length in size]
        label, share = int(uniform(1) * classes), uniform(classes) + 0.1
        share = share / share.sum()
        star = StarShape(label=label, center=center)
        bounds = {"lower": (share * 0.8).tolist(), "upper": (share * 1.15 + 0.02).tolist(), "unit": "fraction"}
        chosen = {
            "star": [star],
            "star of the prediction": [StarShape(label=label)],
            "volume": [Volume(volumes=share.tolist(), unit="fraction")],
            "volume bounds": [Volume(**bounds)],
            "ordered": [Ordered()],
            "star + volume": [star, Volume(**bounds)],
            "convex": [ConvexShape(label=label, radii=(1.5, 3))],
            "star + star": [star, StarShape(label=(label + 1) % classes, center=[length // 2 for length in size])],
        }[kind]
        if number % 2:
            chosen = [TotalVariation(float(uniform(1))), *chosen]
        roi = uniform(batch, *size) > 0.15 if number % 5 == 0 else None
        term = Sum(chosen).bind(uniform(batch, 3, *size).to(dtype), roi)
        yield {
            "term": term,
            "unary": unary,
            "entropy": (0.01, 0.05, 0.2, 1.0)[int(4 * uniform(1))],
            "steps": (1, 5, 30, 300)[int(4 * uniform(1))],
            "solver": "projected" if kind == "convex" else ("pdhg", "dca")[number % 3 == 1],
        }


def check_solution(term, unary, entropy, solution):
    """Labels obey, energy and gap are finite and those of a point that obeys; returns the statuses."""
    constraints = Constraints.of([term], unary)
    assert constraints.violation_of_labels(solution.labels).tolist() == [0] * len(unary)
    for name in ("energy", "bound", "gap", "violation", "start_energy"):
        assert bool(getattr(solution, name).isfinite().all()), f"{name} is {getattr(solution, name)}"
    assert bool((solution.gap >= -1e-6 * solution.energy.abs()).all()), f"gap {solution.gap}, energy {solution.energy}"
    s = solution.probabilities.double()
    if bool((constraints.feasible(s.clamp(min=1e-300).log())[1] <= EXACT).all()):
        assert float(constraints.violation(s).max()) <= 1e-5  # in the unary's precision
    energy = linear_energy(unary.double(), s, term.roi) + entropy * negative_entropy(s, term.roi) + term.energy(s)
    size = linear_energy(unary.double().abs(), s, term.roi) + 1
    assert bool(((solution.energy - energy).abs() <= 1e-5 * size).all())
    return [status.name for status in solution.status]


def check_many(kind, count, seed=0):
    seen = []
    for given in problems(kind, count, seed):
        term, unary, entropy = given["term"], given["unary"], given["entropy"]
        solver = create("solver", given["solver"], max_steps=given["steps"])
        solution = solve(term, unary, solver, entropy=entropy)
        if kind == "star of the prediction":
            term = term.conditioned_on(torch.softmax(-unary / entropy, dim=1))
        seen += check_solution(term, unary, entropy, solution)
    return seen


@pytest.mark.parametrize("kind", KINDS)
def test_solutions_obey(kind):
    seen = check_many(kind, 10)
    assert ("NOT_MET" in seen) == (kind != "convex")  # whose iterates are filled
    assert {"OPTIMAL", "CONVERGED", "MAX_STEPS"} & set(seen)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_solutions_obey_in_hundreds_of_problems(kind):
    seen = check_many(kind, 200, seed=7)
    assert ({"CONVERGED", "MAX_STEPS"} if kind == "convex" else {"OPTIMAL", "MAX_STEPS", "NOT_MET"}) <= set(seen)


def test_labels_are_the_most_probable_ones_where_these_obey():
    """And the energy is the solver's own, when it has converged."""
    unary = torch.randn(1, 3, 6, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    prior = Volume(lower=(0.1, 0.1, 0.1), upper=(0.9, 0.9, 0.9), unit="fraction")
    found = solve(prior.bind(torch.zeros(1, 1, 6, 7)), unary, "pdhg", entropy=0.5)
    assert torch.equal(found.labels, unary.argmin(1))
    assert torch.equal(found.probabilities.argmax(1), found.labels)
    assert found.violation.tolist() == [0]
    assert float(found.gap) == pytest.approx(0, abs=1e-9)


def test_status_says_that_the_iterate_does_not_meet_it():
    unary = torch.randn(1, 2, 9, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    term = StarShape(center=(4, 4)).bind(torch.zeros(1, 1, 9, 9))
    short = solve(term, unary, create("solver", "pdhg", max_steps=2), entropy=0.2)
    assert short.status == (Status.NOT_MET,)
    assert float(short.violation) > 0.01
    long = solve(term, unary, create("solver", "pdhg", max_steps=20000, tolerance=1e-7), entropy=0.2)
    assert long.status == (Status.CONVERGED,)
    assert float(long.gap) <= 81e-7
    assert float(short.bound) <= float(long.energy) <= float(short.energy)


def test_progress_is_finite_and_tells_the_violation():
    unary = torch.randn(1, 2, 9, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    prior = TotalVariation(0.2) + StarShape(center=(4, 4))
    for solver in ("pdhg", "dca"):
        looks = []
        term = prior.bind(torch.zeros(1, 1, 9, 9, dtype=torch.float64))
        solve(term, unary, create("solver", solver, max_steps=40), entropy=0.2, callback=looks.append)
        assert looks or solver == "dca"  # a convex problem is one step of dca
        for look in looks:
            assert bool(look.energy.isfinite().all())
            assert bool((look.energy >= look.bound - 1e-9).all())
        if looks:
            assert float(looks[0].violation) > float(looks[-1].violation) >= 0


# --------------------------------------------------------------------------------------------------------------------
# Layers


@pytest.mark.parametrize(
    "prior",
    [
        Volume(lower=(0, 0.25), upper=(1, 1), unit="fraction"),
        StarShape(center=(4, 4)),
        [TotalVariation(0.1), StarShape(center=(4, 4)), Volume(volumes=(0.6, 0.4), unit="fraction")],
    ],
)
@pytest.mark.parametrize("backward", ["implicit", "unrolled", "one-step"])
def test_labels_of_a_layer_obey_in_evaluation_mode(prior, backward):
    """Also where soft mass alone meets the volume and no pixel would be of the class."""
    logits = torch.randn(2, 2, 9, 9, generator=torch.Generator().manual_seed(0))
    if isinstance(prior, Volume):
        logits[:, 0] += 2  # no pixel prefers the class by itself
    image = torch.zeros(2, 1, 9, 9)
    layer = RegularizedSoftmax(prior, entropy=2.0, max_steps=3, backward=backward)
    raw = layer(logits, image)
    layer.eval()
    terms = layer.bind(image).terms
    constraints = Constraints.of(terms, logits)
    assert bool((constraints.violation_of_labels(raw.argmax(1)) > 0).all())
    for found in (layer(logits, image), layer.log_probabilities(logits, image)):
        assert constraints.violation_of_labels(found.argmax(1)).tolist() == [0, 0]
    half = layer.log_probabilities(logits.half(), image)
    assert half.dtype == torch.float16
    assert constraints.violation_of_labels(half.argmax(1)).tolist() == [0, 0]
    if backward != "unrolled":
        assert constraints.violation_of_labels(layer.solution.labels).tolist() == [0, 0]
        assert bool(layer.solution.gap.isfinite().all())
        assert bool((layer.solution.gap >= -1e-6 * layer.solution.energy.abs()).all())


def test_raised_labels_are_the_argmax():
    generator = torch.Generator().manual_seed(0)
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        logs = torch.log_softmax(30 * torch.randn(2, 4, 50, generator=generator), dim=1).to(dtype)
        labels = torch.randint(0, 4, (2, 50), generator=generator)
        raised = raise_labels(logs, labels, dtype)
        assert torch.equal(raised.to(dtype).argmax(1), labels)
        kept = logs.argmax(1)
        assert torch.equal(raise_labels(logs, kept, dtype).argmax(1), kept)
        torch.testing.assert_close(raised.exp().sum(1), torch.ones(2, 50), rtol=0, atol=2e-2, check_dtype=False)
