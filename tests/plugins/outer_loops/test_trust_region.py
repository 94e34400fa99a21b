"""Robust trust region: conformance, its two stages, schedules."""

import pytest
import torch

from regloss import KL, Batch, Divergence, GridCRF, RobustKL, Schedule, TrustRegion, UsageError, solve
from regloss.testing import OuterLoopConformance


class TestGridCRF(OuterLoopConformance):
    def make(self):
        return TrustRegion(GridCRF(weight=0.4), coupling=0.3, divergence=RobustKL(0.5))


class TestGrowingEpsilon(OuterLoopConformance):
    def make(self):
        return TrustRegion(
            {"name": "grid-crf", "weight": 2.0, "connectivity": 4},
            coupling=Schedule(1.0, 0.1, shape="cosine"),
            epsilon={"start": 0.0, "end": 0.6},
            seeded_only=False,
            update_every=0,
        )


class TestPlain(OuterLoopConformance):
    classes = 2

    def make(self):
        return TrustRegion("tv", divergence="kl", coupling=2.0, proposal_weight=0.3)


class TestVolumes(OuterLoopConformance):
    size = (4, 5, 6)

    def make(self):
        return TrustRegion(GridCRF(weight=0.4), coupling=0.3, divergence=RobustKL(0.5))


def example():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 7, 7, generator=generator, dtype=torch.float64)
    labels = torch.full((2, 7, 7), 255)
    labels[:, 3, 1:4] = torch.arange(3)
    return logits, Batch(torch.rand(2, 3, 7, 7, generator=generator, dtype=torch.float64), labels)


def test_stage_a_is_the_plain_trust_region_problem():
    """Unaries coupling * -log S, not robust, and 0 on seeds; from background."""
    logits, batch = example()
    crf = GridCRF(weight=0.5)
    proposal = TrustRegion(crf, coupling=0.4, divergence=RobustKL(0.5)).propose(logits, batch)
    seeds = torch.where(batch.labelled, batch.labels, -1)
    unary = -0.4 * logits.log_softmax(1)
    background = torch.where(seeds >= 0, seeds, 0)
    expected = solve(crf.bind(batch.image), unary, "alpha-expansion", fixed=seeds, warm=background)
    assert torch.equal(proposal.labels, expected.labels)
    seeded = unary.gather(1, background.unsqueeze(1)).squeeze(1)[batch.labelled].reshape(2, -1).sum(1)
    torch.testing.assert_close(proposal.solution.energy, expected.energy - seeded, rtol=1e-9, atol=1e-9)


def test_stage_b_is_robust_off_the_seeds():
    logits, batch = example()
    loop = TrustRegion(GridCRF(0.5), divergence=RobustKL(0.5), proposal_weight=0.3)
    proposal = loop.propose(logits, batch)
    loop.objective(logits, batch, proposal)
    robust = RobustKL(0.5)(proposal.labels, logits, weight=(~batch.labelled).double()).sum() / (2 * 49)
    assert loop.parts["proposal"] == pytest.approx(0.3 * float(robust), rel=1e-9)
    seeds = KL()(batch.labels, logits).sum() / (2 * 3)
    assert loop.parts["data"] == pytest.approx(float(seeds), rel=1e-9)


def test_coupling_is_the_inverse_size_of_the_region():
    """At 0 proposals do not depend on the network; when it is large they are its argmax, but for the seeds."""
    logits, batch = example()
    loop = TrustRegion(GridCRF(0.5), coupling=0.0)
    assert torch.equal(loop.propose(logits, batch).labels, loop.propose(logits.flip(1), batch).labels)
    tight = TrustRegion(GridCRF(0.5), coupling=1e6).propose(logits, batch).labels
    assert torch.equal(tight, torch.where(batch.labelled, batch.labels, logits.argmax(1)))


def test_coupling_follows_its_schedule():
    logits, batch = example()
    loop = TrustRegion(GridCRF(0.5), coupling=Schedule(1e6, 0.0))
    first = loop.propose(logits, batch)
    loop.set_progress(1.0)
    last = loop.propose(logits, batch)
    assert torch.equal(last.labels, TrustRegion(GridCRF(0.5), coupling=0.0).propose(logits, batch).labels)
    assert not torch.equal(first.labels, last.labels)


def test_epsilon_follows_its_schedule():
    loop = TrustRegion(GridCRF(), epsilon=Schedule(0.0, 0.6))
    found = []
    for progress in (0.0, 0.5, 1.0):
        loop.set_progress(progress)
        found.append(loop.divergence.epsilon)
    assert found == pytest.approx([0.0, 0.3, 0.6])


def test_epsilon_is_judged_at_the_start():
    """An end that no training could use is refused before the training begins."""
    with pytest.raises(UsageError, match="epsilon"):
        TrustRegion(GridCRF(), epsilon=Schedule(0.0, 1.5))
    with pytest.raises(UsageError, match=r"KL has none.*robust-kl"):
        TrustRegion(GridCRF(), divergence="kl", epsilon=0.3)


def test_epsilon_needs_a_divergence_with_that_setting():
    """Also where the divergence is no dataclass at all."""

    class Mine(Divergence):
        def of_labels(self, labels, log_probabilities, seeds):
            return labels * 0.0

        def of_probabilities(self, target, log_probabilities, seeds):
            return target.sum(1) * 0.0

        def unary(self, logits):
            return logits * 0.0

    with pytest.raises(UsageError, match="Mine has none"):
        TrustRegion(GridCRF(), divergence=Mine(), epsilon=0.3)


def test_presets_carry_the_published_settings():
    """K = 21: epsilon just under 20/21; weight 100 on the mean over four pairs a pixel."""
    published = {
        "voc-scribbles": (0.944, 0.05),
        "voc-scribbles-80": (0.946, 0.075),
        "voc-scribbles-50": (0.9514, 0.1),
        "voc-scribbles-30": (0.9516, 0.1),
        "voc-clicks": (0.9522, 0.1),
    }
    assert TrustRegion.presets.keys() == published.keys()
    for name, (epsilon, coupling) in published.items():
        loop = TrustRegion.preset(name)
        assert loop.divergence.epsilon == epsilon < 20 / 21
        assert loop.coupling.at(0.3) == coupling
        assert (loop.regularizer.weight, loop.solver.max_cycles, loop.update_every) == (25.0, 5, 5)
    assert TrustRegion.preset("voc-scribbles", coupling=0.7).coupling.start == 0.7
    with pytest.raises(UsageError, match=r"no preset 'voc'.*voc-clicks"):
        TrustRegion.preset("voc")
