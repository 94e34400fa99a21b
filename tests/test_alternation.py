"""Alternation of statistics and labels: energies against their definition, against brute force, and its guards."""

from dataclasses import dataclass, replace
from itertools import product

import pytest
import torch

import regloss
from regloss import (
    DCA,
    PDHG,
    AlphaExpansion,
    ChanVese,
    GaussianForce,
    GridCRF,
    HistogramForce,
    MissingForm,
    NonlocalTV,
    ReglossError,
    StarShape,
    Status,
    ThresholdDynamics,
    TotalVariation,
    UsageError,
    Volume,
    alternate,
    phases_by_color,
)
from regloss.solver import Solver

CUTS = AlphaExpansion(workers=1)


def picture(batch=1, channels=3, size=(14, 18), seed=0, spread=0.15):
    """A bright disk and a middling bar on a dark ground, noisy."""
    y, x = torch.meshgrid(*map(torch.arange, size), indexing="ij")
    value = 0.25 + 0.5 * ((y - 6) ** 2 + (x - 6) ** 2 < 20).float() + 0.25 * (x > 13).float()
    generator = torch.Generator().manual_seed(seed)
    noise = spread * torch.randn(batch, channels, *size, generator=generator)
    return (value + noise).clamp(0, 1)


def falls(found, slack=1e-6):
    energies = found.energies[1:]  # the start may be of another relaxation
    assert (energies[1:] <= energies[:-1] + slack * (1 + energies[:-1].abs())).all(), energies.tolist()
    return True


SOLVABLE = {
    "tv cuts": (TotalVariation(0.1), CUTS, 0.0),
    "tv pdhg": (TotalVariation(0.1, isotropic=True), PDHG(max_steps=400, tolerance=1e-6), 0.02),
    "grid-crf cuts": (GridCRF(0.1), CUTS, 0.0),
    "nltv cuts": (NonlocalTV(0.02, neighbors=4), CUTS, 0.0),
    "nltv pdhg": (NonlocalTV(0.02, neighbors=4), PDHG(max_steps=400, tolerance=1e-6), 0.02),
    "threshold dynamics": (ThresholdDynamics(0.2), DCA(), 0.02),
    "tv + volume": (
        TotalVariation(0.05) + Volume(volumes=(0.4, 0.3, 0.3), unit="fraction"),
        PDHG(max_steps=1500, tolerance=1e-4),
        0.02,
    ),
    "threshold dynamics + volume": (
        ThresholdDynamics(0.2) + Volume(volumes=(0.4, 0.3, 0.3), unit="fraction"),
        DCA(),
        0.02,
    ),
    "tv + star": (
        TotalVariation(0.05) + StarShape(label=2, center=(6, 6)),
        PDHG(max_steps=1500, tolerance=1e-4),
        0.02,
    ),
}


FORCES = {"means": ChanVese(), "normal": GaussianForce(), "histogram": HistogramForce()}
CASES = [(force, name) for force in FORCES for name in SOLVABLE if force == "means" or "tv +" not in name]


@pytest.mark.parametrize(("force", "name"), CASES)
def test_the_energy_falls(force, name):
    """With every prior, alone and in sums, in three phases; and it is what the definition says."""
    (regularizer, solver, entropy), force = SOLVABLE[name], FORCES[force]
    if not isinstance(force, ChanVese):  # nats instead of squared distances
        regularizer, entropy = regloss.Sum([regularizer], weight=20.0), 20 * entropy
    image = picture()
    found = alternate(force, regularizer, solver, image, phases_by_color(image, 3), entropy=entropy, max_rounds=4)
    assert falls(found)
    s, solution = found.solution.probabilities.double(), found.solution
    term = regularizer.bind(image)
    energy = (force.unary(image, found.statistics) * s).sum() + entropy * torch.special.xlogy(s, s).sum()
    energy = energy + term.energy(s)
    torch.testing.assert_close(solution.energy.double(), energy.reshape(1), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.energies[-1], solution.energy.double(), rtol=1e-6, atol=1e-6)
    assert bool(solution.bound <= solution.energy)


@pytest.mark.parametrize("force", [ChanVese(scale=(2.0, 1.0)), GaussianForce(min_variance=1e-2)])
def test_two_phases_are_global_for_their_statistics(force):
    """All labellings of a tiny image."""
    image = torch.rand(1, 1, 3, 4, generator=torch.Generator().manual_seed(2))
    start = (image[:, 0] > 0.5).long()
    weight = 0.1 if isinstance(force, ChanVese) else 0.5
    found = alternate(force, TotalVariation(weight), CUTS, image, start)
    assert found.status == (Status.CONVERGED,)
    unary = force.unary(image, found.statistics)
    every = torch.tensor(list(product((0, 1), repeat=12))).reshape(-1, 3, 4)
    hard = torch.stack([every == 0, every == 1], dim=1).float()
    cut = TotalVariation(weight).bind(image.expand(len(every), -1, -1, -1)).energy(hard)
    energies = (unary * hard).flatten(1).sum(1) + cut
    torch.testing.assert_close(found.solution.energy, energies.min().double().reshape(1), rtol=1e-6, atol=0)
    torch.testing.assert_close(found.solution.bound, found.solution.energy)


def test_the_relaxed_problem_is_global_too():
    """The gap of the last solution certifies that no labels, and no probabilities, are better for these means."""
    image = picture()
    found = alternate(
        "chan-vese",
        TotalVariation(0.1),
        PDHG(max_steps=2000, tolerance=1e-7),
        image,
        phases_by_color(image, 2),
        entropy=0.01,
    )
    assert float(found.solution.gap) <= 1e-7 * image[0, 0].numel()
    exact = regloss.solve(
        TotalVariation(0.1).bind(image), ChanVese().unary(image, found.statistics), CUTS
    )  # without the entropy, which is at most 0.01 log 2 a pixel
    assert (found.labels != exact.labels).float().mean() < 0.01


def test_history():
    image = picture()
    told = []
    found = alternate("chan-vese", TotalVariation(0.1), CUTS, image, phases_by_color(image, 2), callback=told.append)
    assert tuple(told) == found.history
    kinds = [(step.round, step.stage) for step in found.history]
    rounds = int(found.rounds[0])
    assert kinds == [(0, "start"), (1, "labels")] + [
        (number, half) for number in range(2, rounds + 1) for half in ("statistics", "labels")
    ]
    assert found.status == (Status.CONVERGED,)
    assert torch.equal(found.labels, found.solution.labels)
    # The start: labels of k-means, with their own means.
    start = torch.stack([phases_by_color(image, 2) == k for k in (0, 1)], dim=1).float()
    unary = ChanVese().unary(image, ChanVese().fit(image, start))
    expected = (unary * start).sum() + TotalVariation(0.1).bind(image).energy(start)
    torch.testing.assert_close(found.energies[0], expected.double().reshape(1), rtol=1e-6, atol=0)


def test_looks_of_the_solver_are_passed_on():
    image, looks = picture(batch=2), []
    alternate(
        "chan-vese",
        TotalVariation(0.1),
        PDHG(max_steps=40, tolerance=1e-9),
        image,
        phases_by_color(image, 2),
        entropy=0.05,
        max_rounds=1,
        callback=looks.append,
    )
    looks = [look for look in looks if look.stage == "step"]
    assert [look.steps for look in looks] == [0, 10, 20, 30, 40]
    assert all(look.round == 1 for look in looks)
    assert all(look.images.tolist() == [0, 1] for look in looks)
    assert all(bool((look.bound <= look.energy).all()) for look in looks)


def test_dca_tells_its_energies():
    image, looks = picture(), []
    found = alternate(
        "chan-vese",
        ThresholdDynamics(0.2),
        DCA(max_steps=7, tolerance=0.0),
        image,
        phases_by_color(image, 2),
        entropy=0.05,
        max_rounds=1,
        callback=looks.append,
    )
    looks = [look for look in looks if look.stage == "step"]
    assert [look.steps for look in looks] == list(range(1, 8))
    energies = [float(look.energy) for look in looks]
    assert energies == sorted(energies, reverse=True)
    assert energies[-1] == pytest.approx(float(found.solution.energy), rel=1e-6)


def test_batch_is_one_by_one():
    """Images that are done wait for the others, unchanged."""
    image = torch.cat([picture(seed=0), picture(seed=1, spread=0.3)])
    start = phases_by_color(image, 3)
    together = alternate("chan-vese", TotalVariation(0.05), CUTS, image, start)
    rounds = []
    for i in (0, 1):
        alone = alternate("chan-vese", TotalVariation(0.05), CUTS, image[[i]], start[[i]])
        rounds.append(int(alone.rounds))
        assert torch.equal(alone.labels[0], together.labels[i])
        torch.testing.assert_close(alone.solution.energy[0], together.solution.energy[i])
        torch.testing.assert_close(alone.statistics.mean[0], together.statistics.mean[i])
        torch.testing.assert_close(alone.energies[-1, 0], together.energies[-1, i])
    assert together.rounds.tolist() == rounds
    assert rounds[0] != rounds[1]  # or nothing was shown


def test_region_of_interest_is_a_crop():
    image = picture()
    roi = torch.zeros(1, 14, 18, dtype=torch.bool)
    roi[:, 2:12, 3:16] = True
    inner = image[:, :, 2:12, 3:16]
    whole = alternate("gaussian", TotalVariation(1.0), CUTS, image, phases_by_color(image, 2, roi), roi=roi)
    crop = alternate("gaussian", TotalVariation(1.0), CUTS, inner, phases_by_color(inner, 2))
    assert torch.equal(whole.labels[:, 2:12, 3:16], crop.labels)
    torch.testing.assert_close(whole.solution.energy, crop.solution.energy)


def test_seeds_and_forbidden_classes():
    image = picture()
    start = phases_by_color(image, 3)
    fixed = torch.full((1, 14, 18), -1)
    fixed[0, 0, :4] = 2
    allowed = torch.tensor([[True, False, True]])
    probabilities = torch.stack([start == 0, start == 9, start > 0], dim=1).float()  # none of class 1
    found = alternate("chan-vese", TotalVariation(0.05), CUTS, image, probabilities, fixed=fixed, allowed=allowed)
    assert falls(found)
    assert (found.labels[0, 0, :4] == 2).all()
    assert sorted(found.labels.unique().tolist()) == [0, 2]


def test_a_start_from_scribbles():
    """Statistics of a few pixels; the other pixels' labels play no part."""
    image = picture()
    start = torch.full((1, 14, 18), 255)
    start[0, 0], start[0, 5:8, 6] = 0, 1
    found = alternate("chan-vese", TotalVariation(0.05), CUTS, image, start, max_rounds=1)
    means = torch.stack([image[0, :, 0].mean(1), image[0, :, 5:8, 6].mean(1)]).double()
    torch.testing.assert_close(found.statistics.mean[0], means)
    assert found.energies.isnan().tolist() == [[True], [False]]
    assert found.rounds.tolist() == [1]


def test_features_beside_the_image():
    """What the force looks at need not be what the regularizer does."""
    image = picture()
    features = torch.cat([image * 20 - 10, -image], dim=1)
    found = alternate("chan-vese", GridCRF(20.0), CUTS, image, phases_by_color(features, 2), features=features)
    assert falls(found)
    assert found.statistics.mean.shape == (1, 2, 6)


def test_a_bound_term_is_used_as_it_is():
    image = picture()
    term = TotalVariation(0.05).bind(image)
    first = alternate("chan-vese", term, CUTS, image, phases_by_color(image, 2))
    second = alternate("chan-vese", "tv", CUTS, image, phases_by_color(image, 2))
    assert falls(first)
    assert not torch.equal(first.labels, second.labels)


def test_an_emptied_phase():
    """A prior that leaves no room for a phase: it keeps its mean, and the labels are of the others."""
    image = picture()
    found = alternate("chan-vese", TotalVariation(50.0), CUTS, image, phases_by_color(image, 2))
    assert found.status == (Status.CONVERGED,)
    assert len(found.labels.unique()) == 1
    assert found.statistics.mean.isfinite().all()


def test_a_flat_image():
    """All phases have the same mean: the documented limit is one phase."""
    image = torch.full((1, 3, 6, 8), 0.5)
    start = torch.zeros(1, 6, 8, dtype=torch.int64)
    start[0, :, 4:] = 1
    for force in ("chan-vese", "gaussian"):
        found = alternate(force, TotalVariation(0.1), CUTS, image, start)
        assert len(found.labels.unique()) == 1
        assert found.solution.energy.isfinite().all()


# -- Guards ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Wrong(ChanVese):
    """Moves its means away from where they should be, more with each fit."""

    def estimate(self, features, weights):
        found = super().estimate(features, weights)
        return found._replace(mean=1 - found.mean) if bool(weights[:, 0].mean() != self.mark()) else found

    def mark(self):
        return _MARK[0]


_MARK = [torch.tensor(0.0)]


@dataclass(frozen=True)
class Unsure(Wrong):
    exact = False


def marked(image, start):
    _MARK[0] = (start == 0).double().mean()  # so that the first fit is right
    return image, start


def test_a_fit_that_raises_the_energy():
    image, start = marked(picture(), phases_by_color(picture(), 2))
    with pytest.raises(ReglossError, match=r"raised the energy .* though it says that its fit is exact"):
        alternate(Wrong(), TotalVariation(0.1), CUTS, image, start)
    found = alternate(Unsure(), TotalVariation(0.1), CUTS, image, start)
    assert found.rounds.tolist() == [1]
    assert found.status == (Status.CONVERGED,)
    right = ChanVese().fit(image, torch.stack([start == 0, start == 1], 1).float())
    torch.testing.assert_close(found.statistics.mean, right.mean)


@dataclass(frozen=True)
class Sloppy(Solver):
    """Cuts, then, from the second call on, forgets the labels and claims a gap."""

    gap: float = 0.0
    ended: bool = True
    accepts = AlphaExpansion.accepts

    def minimise(self, problem):
        found = CUTS.minimise(problem)
        if problem.warm is None or not bool((problem.warm == found.labels).float().mean() > 0.98):
            return found
        worse = found.energy + 5.0
        status = (Status.CONVERGED if self.ended else Status.MAX_STEPS,) * len(worse)
        return replace(found, energy=worse, bound=worse - self.gap, labels=1 - found.labels, status=status)


def test_a_solver_that_raises_the_energy():
    image = picture()
    start = phases_by_color(image, 2)
    with pytest.raises(ReglossError, match=r"above the .* it started from, though its gap is"):
        alternate("chan-vese", TotalVariation(0.1), Sloppy(gap=1.0), image, start)
    right = alternate("chan-vese", TotalVariation(0.1), CUTS, image, start)
    for ended, status in ((True, Status.CONVERGED), (False, Status.MAX_STEPS)):
        found = alternate("chan-vese", TotalVariation(0.1), Sloppy(gap=6.0, ended=ended), image, start)
        assert falls(found)
        assert found.status == (status,)
        assert (found.labels == right.labels).float().mean() > 0.97  # never the labels that were worse


def test_a_solver_that_runs_out_of_steps_is_not_called_converged():
    image = picture()
    found = alternate(
        "chan-vese",
        TotalVariation(0.2),
        PDHG(max_steps=3, tolerance=0.0),
        image,
        phases_by_color(image, 2),
        entropy=0.01,
        max_rounds=200,
        tolerance=1e-3,
    )
    assert int(found.rounds) < 200
    assert found.status == (Status.MAX_STEPS,)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"start": torch.zeros(1, 14, 18, dtype=torch.int64)}, UsageError, "all one class"),
        ({"start": torch.ones(1, 14, 18, dtype=torch.int64)}, UsageError, "Class 0 has no pixels at the start of"),
        ({"start": torch.full((1, 14, 18), 255)}, UsageError, "all one class .* or none"),
        ({"start": torch.zeros(1, 1, 14, 18)}, UsageError, "at least two"),
        ({"start": torch.zeros(1, 14, 17, dtype=torch.int64)}, UsageError, "shape"),
        ({"start": torch.full((1, 14, 18), -1)}, UsageError, "255 where there is none"),
        ({"image": torch.full((1, 3, 14, 18), float("nan"))}, UsageError, "finite|NaN"),
        ({"features": torch.full((1, 3, 14, 18), float("inf"))}, UsageError, "infinite"),
        ({"max_rounds": 0}, UsageError, "max_rounds"),
        ({"tolerance": -1.0}, UsageError, "tolerance"),
        ({"regularizer": None}, UsageError, "needs a regularizer"),
        ({"regularizer": "threshold-dynamics"}, MissingForm, "Cannot use alpha-expansion with threshold-dynamics"),
        ({"regularizer": regloss.ConvexShape()}, MissingForm, "Cannot use alpha-expansion with convex"),
        ({"allowed": torch.ones(1, 3, dtype=torch.bool)}, UsageError, "allowed"),
        ({"region_force": "chan-vasa"}, UsageError, "Did you mean 'chan-vese'"),
    ],
)
def test_bad_input(change, error, message):
    image = picture()
    given = {
        "region_force": "chan-vese",
        "regularizer": TotalVariation(0.1),
        "solver": CUTS,
        "image": image,
        "start": phases_by_color(image, 2),
    } | change
    with pytest.raises(error, match=message):
        alternate(**given)


def test_arguments_are_not_modified():
    image = picture()
    start = phases_by_color(image, 2)
    copies = image.clone(), start.clone()
    alternate("gaussian", TotalVariation(1.0), PDHG(), image, start, entropy=1.0, max_rounds=2)
    assert torch.equal(image, copies[0])
    assert torch.equal(start, copies[1])
