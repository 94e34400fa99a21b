"""ADM: conformance, its exact proposal step, and the decrease of the split energy."""

from pathlib import Path

import numpy as np
import pytest
import torch

from regloss import (
    ADM,
    DCA,
    KL,
    PDHG,
    AlphaExpansion,
    Batch,
    DenseCRF,
    GridCRF,
    MeanField,
    MissingForm,
    PartialCrossEntropy,
    StarShape,
    ThresholdDynamics,
    TotalVariation,
    TrustRegion,
    UsageError,
    Volume,
    solve,
)
from regloss.numerics import one_hot
from regloss.testing import OuterLoopConformance


class TestGridCRF(OuterLoopConformance):
    def make(self):
        return ADM(GridCRF(weight=0.4), coupling=0.7)


class TestEveryFewEpochs(OuterLoopConformance):
    def make(self):
        return ADM(
            [{"name": "grid-crf", "weight": 0.4}, {"name": "tv", "weight": 0.1}],
            {"name": "alpha-expansion", "max-cycles": 2, "workers": 1},
            coupling={"start": 0.1, "end": 1.0, "shape": "exponential"},
            divergence={"name": "robust-kl", "epsilon": 0.2},
            proposal_weight=0.5,
            seeded_only=True,
            update_every=2,
        )


class TestEuclidean(OuterLoopConformance):
    classes = 2

    def make(self):
        return ADM(TotalVariation(0.3), divergence="euclidean", coupling=2.0)


class TestVolumes(OuterLoopConformance):
    size = (4, 5, 6)

    def make(self):
        return ADM(GridCRF(weight=0.4), coupling=0.7)


class TestDenseByDifferencesOfConvex(OuterLoopConformance):
    def make(self):
        crf = DenseCRF(weight=2.0, sigma_xy=3.0, sigma_rgb=0.3, scale=1.0, backend="exact")
        return ADM(crf, DCA(max_steps=300, tolerance=1e-10), coupling=0.7, entropy="coupling")


class TestMeanField(OuterLoopConformance):
    def make(self):
        crf = DenseCRF(weight=2.0, sigma_xy=3.0, sigma_rgb=0.3, scale=1.0, backend="exact")
        return ADM(crf, MeanField(max_steps=300), coupling=0.7)


class TestVolumeBounds(OuterLoopConformance):
    def make(self):
        prior = [TotalVariation(0.3), Volume(lower=(0.1, 0.1, 0.1), unit="fraction")]
        return ADM(prior, PDHG(max_steps=2000), coupling=0.7, entropy=0.4)


def test_oracle_proposal(oracles: Path):
    """The X-step of a 3x4 image, enumerated: lambda Potts + gamma * -log S off the seeds, seeds hard."""
    case = dict(np.load(oracles / "potts.npz"))
    image = torch.from_numpy(case["img"][0]).movedim(-1, 0).unsqueeze(0)
    logits = torch.from_numpy(case["adm_S"]).log().T.reshape(1, 3, 3, 4)
    seeds = torch.from_numpy(case["adm_seeds"]).reshape(1, 3, 4)
    batch = Batch(image, seeds.masked_fill(seeds < 0, 255))
    loop = ADM(
        GridCRF(weight=float(case["adm_lambda"]), diagonal="unit"), AlphaExpansion(), coupling=float(case["adm_gamma"])
    )
    proposal = loop.propose(logits, batch)
    assert proposal.labels.flatten().tolist() == case["adm_X"].tolist()
    assert float(proposal.solution.energy) == pytest.approx(float(case["adm_E"]), abs=1e-9)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("classes", [2, 4])
def test_alternation_never_raises_the_split_energy(classes, seed):
    """Energy (6) of the paper, with the logits themselves as parameters: proposal steps from the previous proposal,
    and network steps with a small full gradient."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.rand(2, 3, 8, 8, generator=generator, dtype=torch.float64)
    labels = torch.randint(classes, (2, 8, 8), generator=generator)
    labels[torch.rand(2, 8, 8, generator=generator) < 0.9] = 255
    labels[:, 0, :classes] = torch.arange(classes)
    batch = Batch(image, labels)
    crf = GridCRF(weight=0.5)
    loop = ADM(crf, coupling=0.8)
    logits = torch.randn(2, classes, 8, 8, generator=generator, dtype=torch.float64)
    pixels = batch.pixels.sum()

    def split_energy(logits, proposal):
        """data + (R(X) + gamma KL(X || S)) / N, from the definitions."""
        potts = crf.bind(image).energy(one_hot(proposal.labels, classes, torch.float64)).sum()
        divergence = KL()(proposal.labels, logits, weight=(~batch.labelled).double()).sum()
        sums, counts = PartialCrossEntropy()(logits, batch)
        return float(sums.sum() / counts.sum() + (potts + 0.8 * divergence) / pixels)

    proposal = loop.propose(logits, batch)
    energies = [split_energy(logits, proposal)]
    for _ in range(6):
        for _ in range(10):
            variable = logits.clone().requires_grad_()
            (gradient,) = torch.autograd.grad(loop.objective(variable, batch, proposal), variable)
            logits = logits - 2.0 * gradient
            energies.append(split_energy(logits, proposal))
        proposal = loop.propose(logits, batch, warm=proposal.labels)
        energies.append(split_energy(logits, proposal))
    steps = np.diff(energies)
    assert steps.max() <= 1e-12
    assert energies[-1] < energies[0] - 0.1


def test_gradient_in_the_logits():
    """coupling * (S - X) / N off the seeds; (S - Y) / #seeds on them."""
    generator = torch.Generator().manual_seed(4)
    logits = torch.randn(1, 3, 5, 5, generator=generator, dtype=torch.float64)
    labels = torch.full((1, 5, 5), 255)
    labels[0, 0, :3] = torch.tensor([2, 1, 0])
    batch = Batch(torch.rand(1, 1, 5, 5, generator=generator, dtype=torch.float64), labels)
    loop = ADM(GridCRF(0.3), coupling=0.8)
    proposal = loop.propose(logits, batch)
    variable = logits.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loop.objective(variable, batch, proposal), variable)
    difference = logits.softmax(1) - one_hot(proposal.labels, 3, torch.float64)
    expected = torch.where(batch.labelled.unsqueeze(1), difference / 3, 0.8 * difference / 25)
    torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-12)


def test_proposals_stay_within_the_seeded_classes():
    generator = torch.Generator().manual_seed(5)
    logits = torch.randn(2, 4, 6, 6, generator=generator)
    logits[:, 3] += 3  # the network's favourite is seeded nowhere
    labels = torch.full((2, 6, 6), 255)
    labels[0, 0, :2] = torch.tensor([0, 1])
    labels[1, 0, 0] = 2  # a single seeded class restricts nothing
    batch = Batch(torch.rand(2, 1, 6, 6, generator=generator), labels)
    free = ADM(GridCRF(0.1)).propose(logits, batch).labels
    kept = ADM(GridCRF(0.1), seeded_only=True).propose(logits, batch).labels
    assert 3 in free[0]
    assert set(kept[0].unique().tolist()) == {0, 1}
    assert 3 in kept[1]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"regularizer": None}, "regularizer"),
        ({"regularizer": []}, "regularizer"),
        ({"coupling": -1.0}, "coupling"),
        ({"coupling": {"start": 1.0, "end": float("nan")}}, "finite"),
        ({"proposal_weight": -1.0}, "proposal_weight"),
        ({"proposal_weight": float("nan")}, "proposal_weight"),
        ({"update_every": "epoch"}, "update_every"),
        ({"update_every": -1}, "update_every"),
        ({"update_every": True}, "update_every"),
        ({"update_every": 1.5}, "update_every"),
        ({"solver": "alpha-expansoin"}, "'alpha-expansion'"),
    ],
)
def test_invalid_settings_are_refused(settings, words):
    with pytest.raises(UsageError, match=words):
        ADM(**{"regularizer": "grid-crf", **settings})


def test_solver_must_serve_the_regularizer():
    """Found out when the loop is made, not when it first proposes; the message names both sides."""
    with pytest.raises(MissingForm, match=r"alpha-expansion with tv: it offers Saddle.* needs GridGraph or Graph"):
        ADM(TotalVariation(isotropic=True), "alpha-expansion")


def test_proposals_need_labels():
    batch = Batch(torch.rand(1, 1, 4, 4), None)
    with pytest.raises(UsageError, match="labels"):
        ADM("grid-crf").propose(torch.zeros(1, 2, 4, 4), batch)


@pytest.mark.parametrize(("entropy", "weight"), [("coupling", 0.5), (0.2, 0.2)])
def test_soft_proposal_step_is_mean_field(entropy, weight):
    """Stationary: X_p is softmax of -(coupling * -log S_p + what its pairs cost) / entropy, seeds given."""
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, 1, 5, 6, generator=generator, dtype=torch.float64)
    logits = torch.randn(1, 3, 5, 6, generator=generator, dtype=torch.float64)
    labels = torch.full((1, 5, 6), 255)
    labels[0, 0, 0], labels[0, 4, 5] = 1, 2
    crf = DenseCRF(weight=2.0, sigma_xy=2.0, sigma_rgb=0.3, scale=1.0, backend="exact")
    loop = ADM(crf, DCA(max_steps=2000, tolerance=1e-12), coupling=0.5, entropy=entropy)
    proposal = loop.propose(logits, Batch(image, labels))
    x = proposal.solution.probabilities.requires_grad_()
    (slope,) = torch.autograd.grad(crf.bind(image).energy(x).sum(), x)
    expected = ((0.5 * logits.log_softmax(1) - slope) / weight).softmax(1)
    free = (labels == 255).unsqueeze(1)
    torch.testing.assert_close(torch.where(free, x.detach(), 0), torch.where(free, expected, 0), rtol=0, atol=1e-6)
    assert torch.equal(proposal.labels, x.detach().argmax(1))
    assert proposal.labels[0, 0, 0] == 1


@pytest.mark.parametrize("entropy", [-1.0, float("nan"), float("inf"), "much", True])
def test_invalid_entropies(entropy):
    with pytest.raises(UsageError, match="entropy"):
        ADM(DenseCRF(), "mean-field", entropy=entropy)


# -- Solvers over probabilities, in both loops that propose ------------------------------------------------------------


def example(classes=3, size=(7, 8)):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, classes, *size, generator=generator, dtype=torch.float64)
    labels = torch.full((2, *size), 255)
    labels[:, 3, 1 : 1 + classes] = torch.arange(classes)
    return logits, Batch(torch.rand(2, 3, *size, generator=generator, dtype=torch.float64), labels)


PRIORS = {
    "pdhg, tv and volumes": ([TotalVariation(0.3), Volume(lower=(10, 12, 8))], PDHG(2000)),
    "pdhg, star": (StarShape(label=1, center=(3.0, 2.0)), PDHG(2000)),
    "pdhg, star with the prediction's centre": (StarShape(label=1), PDHG(2000)),
    "mean-field, dense-crf": (DenseCRF(2.0, 3.0, 0.3, 1.0, "exact"), MeanField(300)),
    "mean-field, grid-crf": (GridCRF(0.4), MeanField(300)),
    "dca, dense-crf": (DenseCRF(2.0, 3.0, 0.3, 1.0, "exact"), DCA(300)),
    "dca, threshold-dynamics and volumes": ([ThresholdDynamics(0.3), Volume(lower=(10, 12, 8))], DCA(300)),
    "dca, tv": (TotalVariation(0.3), DCA(300)),
}


@pytest.mark.parametrize("loop", [ADM, TrustRegion])
@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("entropy", [0.3, "coupling"])
def test_the_proposal_step_is_the_problem_that_is_stated(loop, prior, entropy):
    """Unaries coupling * -log S, 0 on seeds; entropy * <X, log X>; the argmax is proposed."""
    logits, batch = example()
    regularizer, solver = PRIORS[prior]
    made = loop(regularizer, solver, coupling=0.6, seeded_only=False, entropy=entropy)
    proposal = made.propose(logits, batch)
    seeds = torch.where(batch.labelled, batch.labels, -1)
    unary = (-0.6 * logits.log_softmax(1)).masked_fill((seeds >= 0).unsqueeze(1), 0)
    start = torch.zeros_like(seeds) if loop is TrustRegion else logits.argmax(1)
    expected = solve(
        made.regularizer.bind(batch.image),
        unary,
        solver,
        entropy=0.6 if entropy == "coupling" else entropy,
        fixed=seeds,
        warm=torch.where(seeds >= 0, seeds, start),
    )
    torch.testing.assert_close(proposal.solution.probabilities, expected.probabilities, rtol=0, atol=1e-12)
    torch.testing.assert_close(proposal.solution.energy, expected.energy, rtol=1e-12, atol=1e-12)
    assert torch.equal(proposal.labels, expected.labels)
    assert torch.equal(proposal.labels[batch.labelled], batch.labels[batch.labelled])


@pytest.mark.parametrize("loop", [ADM, TrustRegion])
def test_without_a_prior_the_entropy_coupling_proposes_the_prediction(loop):
    """R = 0: X is S off the seeds, whatever the coupling."""
    logits, batch = example()
    made = loop(TotalVariation(0.0), "pdhg", coupling=0.2, seeded_only=False, entropy="coupling")
    found = made.propose(logits, batch).solution.probabilities
    free = (~batch.labelled).unsqueeze(1)
    torch.testing.assert_close(torch.where(free, found, 0), torch.where(free, logits.softmax(1), 0))


@pytest.mark.parametrize("loop", [ADM, TrustRegion])
@pytest.mark.parametrize(
    ("regularizer", "solver", "expected"),
    [
        ("grid-crf", "alpha-expansion", 0.0),
        ("grid-crf", "parallel-potts", 0.0),
        ("grid-crf", "mean-field", "coupling"),
        ("dense-crf", "mean-field", "coupling"),
        ("tv", "pdhg", "coupling"),
        ("dense-crf", "dca", 0.0),  # without entropy its steps are those of Frank-Wolfe
        ("tv", "dca", "coupling"),
    ],
)
def test_an_entropy_that_is_not_given(loop, regularizer, solver, expected):
    assert loop(regularizer, solver).entropy == expected


@pytest.mark.parametrize("loop", [ADM, TrustRegion])
@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (("grid-crf", "alpha-expansion", 0.5), r"alpha-expansion proposes labellings.*entropy = 0.5.*mean-field"),
        (("grid-crf", "parallel-potts", "coupling"), r"labellings, which have no entropy; got entropy = 'coupling'"),
        (("dense-crf", "mean-field", 0.0), r"mean-field needs an entropy above 0 with dense-crf.*\"coupling\""),
        (("tv", "pdhg", 0), r"pdhg needs an entropy above 0 with tv; got entropy = 0"),
        (("tv", "dca", 0), r"dca needs an entropy above 0 with tv"),
    ],
)
def test_an_entropy_that_the_solver_does_not_take(loop, settings, words):
    """Refused when the loop is made, not when it first proposes."""
    regularizer, solver, entropy = settings
    with pytest.raises(UsageError, match=words):
        loop(regularizer, solver, entropy=entropy)


@pytest.mark.parametrize("loop", [ADM, TrustRegion])
def test_a_coupling_of_0_is_no_entropy_for_solvers_that_need_one(loop):
    with pytest.raises(UsageError, match=r"coupling, which goes from 0 to 1. Give entropy as a number"):
        loop("tv", "pdhg", coupling={"start": 0.0, "end": 1.0})
    logits, batch = example()
    made = loop("tv", "pdhg", coupling={"start": 0.0, "end": 1.0}, entropy=0.2)
    assert bool(made.propose(logits, batch).solution.probabilities.isfinite().all())


def test_volumes_of_classes_that_are_not_allowed():
    """What forbids them is the loop's setting, which the message therefore names."""
    logits, batch = example()
    batch = Batch(batch.image, batch.labels.masked_fill(batch.labels == 2, 255))
    prior = [ThresholdDynamics(0.3), Volume(lower=(10, 12, 8))]
    with pytest.raises(UsageError, match=r"0 pixels may be class 2, whose least volume is 8.*seeded_only = false"):
        ADM(prior, "dca", seeded_only=True).propose(logits, batch)
    assert bool((ADM(prior, "dca").propose(logits, batch).labels == 2).any())


@pytest.mark.parametrize("divergence", ["euclidean", {"name": "robust-kl", "epsilon": 0.4}])
def test_the_divergence_of_stage_a(divergence):
    """Its unaries, times the coupling; that of stage B does not enter, nor this one there."""
    logits, batch = example()
    made = TrustRegion(GridCRF(0.5), coupling=1.3, proposal_divergence=divergence, divergence="kl", seeded_only=False)
    proposal = made.propose(logits, batch)
    seeds = torch.where(batch.labelled, batch.labels, -1)
    unary = 1.3 * made.proposal_divergence.unary(logits).masked_fill((seeds >= 0).unsqueeze(1), 0)
    start = seeds.clamp(min=0)
    expected = solve(GridCRF(0.5).bind(batch.image), unary, "alpha-expansion", fixed=seeds, warm=start)
    assert torch.equal(proposal.labels, expected.labels)
    torch.testing.assert_close(proposal.solution.energy, expected.energy)
    plain = TrustRegion(GridCRF(0.5), coupling=1.3, divergence="kl", seeded_only=False)
    assert float(made.objective(logits, batch, proposal)) == float(plain.objective(logits, batch, proposal))
    assert not torch.allclose(plain.propose(logits, batch).solution.energy, expected.energy)
