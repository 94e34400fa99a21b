"""Soft self-labeling: conformance, the descent of its pseudo-labels, and what each cross entropy teaches."""

import math

import pytest
import torch

from regloss import Batch, DenseCRF, GridCRF, SoftSelfLabeling, UsageError, Volume, create
from regloss.outer_loop import Proposal
from regloss.solver import Status
from regloss.testing import OuterLoopConformance


class TestCollision(OuterLoopConformance):
    def make(self):
        return SoftSelfLabeling(GridCRF(weight=0.4), coupling=0.7, tolerance=0.0, max_steps=10)


class TestCrossEntropy(OuterLoopConformance):
    def make(self):
        return SoftSelfLabeling(
            [{"name": "grid-crf", "weight": 0.4, "relaxation": "normalized-quadratic"}, {"name": "tv", "weight": 0.1}],
            coupling={"start": 0.1, "end": 1.0},
            cross_entropy="cross-entropy",
            max_steps=5,
            proposal_weight=0.5,
            seeded_only=True,
        )


class TestDense(OuterLoopConformance):
    def make(self):
        return SoftSelfLabeling(DenseCRF(weight=1.5, sigma_xy=3.0, sigma_rgb=0.3, scale=1.0, relaxation="quadratic"))


class TestVolumes(OuterLoopConformance):
    size = (4, 5, 6)

    def make(self):
        return SoftSelfLabeling(GridCRF(weight=0.4, relaxation="collision-cross-entropy"), max_steps=5)


def example(classes=3, seed=0, size=(7, 8)):
    generator = torch.Generator().manual_seed(seed)
    image = torch.rand(2, 1, *size, generator=generator, dtype=torch.float64)
    labels = torch.randint(classes, (2, *size), generator=generator)
    labels[torch.rand(2, *size, generator=generator) > 0.2] = 255
    return 2 * torch.randn(2, classes, *size, generator=generator, dtype=torch.float64), Batch(image, labels)


def energy_of(loop, soft, logits, batch):
    """The definition, pixel by pixel."""
    prediction = logits.softmax(1)
    if loop.cross_entropy == "collision":
        apart = -(soft * prediction).sum(1).log()
    else:
        apart = -(soft * prediction.log()).sum(1)
    free = ~batch.labelled if batch.roi is None else ~batch.labelled & batch.roi
    prior = loop.regularizer.bind(batch.image, batch.roi).energy(soft)
    return loop.coupling.at(loop.progress) * (apart * free).flatten(1).sum(1) + prior


@pytest.mark.parametrize("prior", ["bilinear", "quadratic", "normalized-quadratic", "log-quadratic", "dense"])
@pytest.mark.parametrize("cross_entropy", ["collision", "cross-entropy"])
def test_energy_of_pseudo_labels_falls_with_every_step(cross_entropy, prior):
    """And is that of the definition, from the prediction on."""
    crf = DenseCRF(2.0, sigma_xy=3.0, sigma_rgb=0.3) if prior == "dense" else GridCRF(0.7, relaxation=prior)
    logits, batch = example()
    last = None
    for steps in range(1, 12):
        loop = SoftSelfLabeling(crf, coupling=0.8, cross_entropy=cross_entropy, max_steps=steps, tolerance=0.0)
        found = loop.propose(logits, batch)
        solution = found.solution
        torch.testing.assert_close(solution.energy, energy_of(loop, found.probabilities, logits, batch))
        start = logits.softmax(1).where(~batch.labelled.unsqueeze(1), 0)
        start += torch.nn.functional.one_hot(batch.labels.masked_fill(~batch.labelled, 0)).movedim(-1, 1) * (
            batch.labelled.unsqueeze(1)
        )
        torch.testing.assert_close(solution.start_energy, energy_of(loop, start, logits, batch))
        assert bool((solution.energy <= (solution.start_energy if last is None else last)).all())
        last = solution.energy
    assert bool((last < solution.start_energy - 1).all())


def test_how_far_pseudo_labels_are_from_a_constraint_is_told():
    """They descend on its penalty, and need not meet it."""
    logits, batch = example(classes=2)
    volume = {"name": "volume", "volumes": (0.9, 0.1), "unit": "fraction"}
    found = SoftSelfLabeling(["grid-crf", volume], max_steps=3).propose(logits, batch)
    expected = Volume(volumes=(0.9, 0.1), unit="fraction").bind(batch.image).violation(found.probabilities)
    assert found.solution.violation.tolist() == expected.tolist()
    assert bool((expected > 0.01).all())


def test_cross_entropy_is_minimised_by_the_lowest_of_a_brute_force():
    """Two free pixels, two classes: E is a bilinear form in two numbers, searched on a fine mesh."""
    image = torch.zeros(1, 1, 1, 2, dtype=torch.float64)
    logits = torch.tensor([[[[2.0, -0.5]], [[0.0, 0.0]]]], dtype=torch.float64)
    batch = Batch(image, torch.full((1, 1, 2), 255))
    loop = SoftSelfLabeling(GridCRF(1.5), cross_entropy="cross-entropy", max_steps=400, tolerance=0.0)
    cost = -logits.log_softmax(1)[0, :, 0]
    a, b = torch.cartesian_prod(*[torch.linspace(0, 1, 101, dtype=torch.float64)] * 2).unbind(1)
    data = a * cost[0, 0] + (1 - a) * cost[1, 0] + b * cost[0, 1] + (1 - b) * cost[1, 1]
    lowest = float((data + 1.5 * (1 - a * b - (1 - a) * (1 - b))).min())
    found = loop.propose(logits, batch)
    assert float(found.solution.energy) == pytest.approx(lowest, abs=1e-6)
    assert found.solution.status == (Status.CONVERGED,) or int(found.solution.steps) > 100


def test_collision_of_one_pixel():
    """Without a prior, collision cross entropy is least at the one-hot label of the largest probability."""
    logits = torch.tensor([0.3, 0.0, -0.3], dtype=torch.float64).reshape(1, 3, 1, 1)
    batch = Batch(torch.zeros(1, 1, 1, 1, dtype=torch.float64), torch.full((1, 1, 1), 255))
    loop = SoftSelfLabeling(GridCRF(0.0), max_steps=400, tolerance=0.0)
    found = loop.propose(logits, batch)
    assert found.probabilities.flatten().tolist() == pytest.approx([1, 0, 0], abs=1e-3)
    assert float(found.solution.energy) == pytest.approx(-float(logits.log_softmax(1).max()), abs=1e-3)


@pytest.mark.parametrize(("cross_entropy", "taught"), [("collision", 0.0), ("cross-entropy", 0.4)])
def test_doubtful_labels_teach_nothing_or_doubt(cross_entropy, taught):
    """Gradient of a sure network (.9, .1) at the uniform pseudo-label: none, or S - y."""
    logits = torch.tensor([0.9, 0.1], dtype=torch.float64).log().reshape(1, 2, 1, 1).requires_grad_()
    batch = Batch(torch.zeros(1, 1, 1, 1), torch.full((1, 1, 1), 255))
    loop = SoftSelfLabeling(GridCRF(), cross_entropy=cross_entropy)
    soft = torch.full((1, 2, 1, 1), 0.5, dtype=torch.float64)
    objective = loop.objective(logits, batch, Proposal(soft.argmax(1), probabilities=soft))
    objective.backward()
    assert float(objective.detach()) == pytest.approx(
        math.log(2) if cross_entropy == "collision" else -(math.log(0.9) + math.log(0.1)) / 2
    )
    assert float(logits.grad.flatten()[0]) == pytest.approx(taught, abs=1e-12)


def test_labels_alone_stand_for_one_hot_pseudo_labels():
    """Both cross entropies are then -ln S at the label."""
    logits, batch = example()
    labels = logits.argmin(1)
    values = [
        SoftSelfLabeling(GridCRF(), cross_entropy=kind).objective(logits, batch, Proposal(labels))
        for kind in ("collision", "cross-entropy")
    ]
    torch.testing.assert_close(values[0], values[1])


def test_seeded_only_leaves_other_classes_without_mass():
    logits, batch = example(classes=4)
    labels = batch.labels.clone()
    labels[0][labels[0] != 255] %= 2  # classes 0 and 1 alone in the first image
    found = SoftSelfLabeling(GridCRF(0.3), seeded_only=True).propose(logits, Batch(batch.image, labels))
    assert float(found.probabilities[0, 2:].max()) == 0
    assert float(found.probabilities[1, 2:].amin(1).max()) > 0
    torch.testing.assert_close(found.probabilities.sum(1), torch.ones_like(logits[:, 0]))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"regularizer": None}, "needs a regularizer"),
        ({"coupling": -1.0}, "coupling"),
        ({"cross_entropy": "kl"}, "cross_entropy"),
        ({"max_steps": 0}, "max_steps"),
        ({"tolerance": -1.0}, "tolerance"),
        ({"step": 0.0}, "step"),
        ({"proposal_weight": -1.0}, "proposal_weight"),
    ],
)
def test_invalid_settings_are_refused(settings, words):
    with pytest.raises(UsageError, match=words):
        SoftSelfLabeling(**{"regularizer": "grid-crf", **settings})


def test_labels_that_are_no_proposal_and_logits_of_a_diverged_network_are_refused():
    batch = Batch(torch.zeros(2, 1, 3, 4), torch.zeros(2, 3, 4, dtype=torch.int64))
    logits, labels = torch.zeros(2, 3, 3, 4), torch.zeros(2, 3, 4, dtype=torch.int64)
    loop = SoftSelfLabeling("grid-crf")
    for wrong, words in ((labels + 7, "0 to 2"), (labels - 1, "0 to 2"), (labels[:1], "shape")):
        with pytest.raises(UsageError, match=words):
            loop.objective(logits, batch, Proposal(wrong))
    for each in (loop, create("outer-loop", "dual-branch")):
        with pytest.raises(UsageError, match="logits holds 72 values that are NaN"):
            each.propose(logits * float("nan"), batch)
    with pytest.raises(UsageError, match=r"from 0 to 1; got nan"):
        loop.set_progress(float("nan"))
