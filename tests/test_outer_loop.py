"""What all outer loops share: means over batch and processes, seeds, cadence."""

import pytest
import torch

from regloss import ADM, Batch, GradientDescent, GridCRF, OuterLoop, Proposal, RobustKL, TrustRegion, UsageError
from regloss.outer_loop import check_logits, seeded_labels, seeds_of


class Plain(OuterLoop):
    """The least that a loop needs."""

    def objective(self, logits, batch, proposal=None):
        return self.total_loss(some_part=logits.sum(), other=2 * logits.sum())

    def propose(self, logits, batch, warm=None):
        return None


# --------------------------------------------------------------------------------------------------------------------
# mean


def test_mean_is_over_everything_not_over_images():
    """A sparsely labelled image does not count as much as a densely labelled one."""
    totals, counts = torch.tensor([10.0, 1.0]), torch.tensor([10.0, 90.0])
    assert float(Plain().mean(totals, counts)) == pytest.approx(0.11)


def test_mean_of_nothing_is_zero_and_part_of_the_graph():
    totals = torch.zeros(2, requires_grad=True)
    mean = Plain().mean(totals, torch.zeros(2))
    assert float(mean.detach()) == 0
    (gradient,) = torch.autograd.grad(mean, totals)
    assert gradient.isfinite().all()


def test_means_of_processes_average_to_the_global_mean():
    """Four processes with different counts, one of them empty; data-parallel training averages their gradients."""
    totals = [torch.tensor([3.0, 5.0]), torch.tensor([7.0]), torch.tensor([0.0]), torch.tensor([1.0, 1.0, 2.0])]
    counts = [torch.tensor([2.0, 8.0]), torch.tensor([1.0]), torch.tensor([0.0]), torch.tensor([4.0, 0.0, 5.0])]
    means, gradients = [], []
    for total, count in zip(totals, counts, strict=True):
        loop = Plain()
        loop.world_size = 4
        loop.all_reduce = lambda value: torch.stack([c.sum() for c in counts]).sum().to(value)
        variable = total.clone().requires_grad_()
        mean = loop.mean(variable, count)
        means.append(float(mean.detach()))
        gradients.append(torch.autograd.grad(mean, variable)[0] / 4)
    assert sum(means) / 4 == pytest.approx(19 / 20)
    for gradient in gradients:
        torch.testing.assert_close(gradient, torch.full_like(gradient, 1 / 20))


def test_mean_takes_the_precision_of_the_totals():
    mean = Plain().mean(torch.ones(2, dtype=torch.float64), torch.tensor([3.0, 4.0]))
    assert mean.dtype == torch.float64
    assert float(mean) == pytest.approx(2 / 7, rel=1e-15)


@pytest.mark.parametrize(
    "loop",
    [
        GradientDescent(),
        ADM(GridCRF(0.5), coupling=0.3),
        TrustRegion(GridCRF(0.5), divergence=RobustKL(0.5)),
    ],
    ids=["gradient-descent", "adm", "trust-region"],
)
def test_weights_do_not_depend_on_the_size_of_the_image(loop):
    """Data term and divergence are the same for an image and for two copies of it side by side."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 6, 7, generator=generator, dtype=torch.float64)
    labels = torch.randint(3, (2, 6, 7), generator=generator)
    labels[torch.rand(2, 6, 7, generator=generator) < 0.8] = 255
    image = torch.rand(2, 1, 6, 7, generator=generator, dtype=torch.float64)
    batch = Batch(image, labels)
    proposal = loop.propose(logits, batch)
    once = float(loop.objective(logits, batch, proposal))
    wide = Batch(torch.cat([image, image], -1), torch.cat([labels, labels], -1))
    doubled = None if proposal is None else Proposal(torch.cat([proposal.labels, proposal.labels], -1))
    assert float(loop.objective(torch.cat([logits, logits], -1), wide, doubled)) == pytest.approx(once, rel=1e-12)


# --------------------------------------------------------------------------------------------------------------------
# total_loss, progress, cadence, presets


def test_the_total_loss_keeps_plain_numbers_by_name():
    loop, logits = Plain(), torch.ones(1, 2, 1, 1, requires_grad=True)
    objective = loop.objective(logits, None)
    assert loop.parts == {"some-part": 2.0, "other": 4.0}
    assert objective.requires_grad
    assert float(objective.detach()) == 6.0


@pytest.mark.parametrize("cadence", ["step", "never", 0, 1, 5])
def test_cadences(cadence):
    assert Plain(cadence).update_every == cadence


@pytest.mark.parametrize("cadence", ["epoch", -1, 2.0, True, None])
def test_other_cadences_are_refused(cadence):
    with pytest.raises(UsageError, match=r'"step", "never", or a number of epochs'):
        Plain(cadence)


def test_presets():
    assert GradientDescent.preset("grid-crf-scribbles").regularizer.weight == 25.0
    assert GradientDescent.preset("grid-crf-scribbles", weight_schedule=0.5).weight_schedule.start == 0.5
    assert ADM.preset("grid-crf-scribbles").regularizer.weight == 80.0
    with pytest.raises(UsageError, match=r"Plain has no preset 'x'. Its presets are: none"):
        Plain.preset("x")


def test_making_a_preset_does_not_change_it():
    first = ADM.preset("grid-crf-scribbles", regularizer="tv")
    assert first.regularizer.weight == 1.0
    assert ADM.preset("grid-crf-scribbles").regularizer == GridCRF(weight=80.0)


# --------------------------------------------------------------------------------------------------------------------
# Seeds


def test_seeds_are_labels_inside_the_region():
    labels = torch.tensor([[[0, 1], [255, 2]]])
    roi = torch.tensor([[[True, False], [True, True]]])
    image = torch.zeros(1, 1, 2, 2)
    assert seeds_of(Batch(image, labels), 3).tolist() == [[[0, 1], [-1, 2]]]
    assert seeds_of(Batch(image, labels, roi), 3).tolist() == [[[0, -1], [-1, 2]]]
    assert seeds_of(Batch(image, labels.byte()), 3).tolist() == [[[0, 1], [-1, 2]]]
    with pytest.raises(UsageError, match=r"0 to 1 \(K = 2\)"):
        seeds_of(Batch(image, labels), 2)
    with pytest.raises(UsageError, match="scribbles"):
        seeds_of(Batch(image, None), 2)


def test_seeded_labels():
    """Two or more seeded classes restrict; one or none does not."""
    seeds = torch.full((4, 3, 3), -1)
    seeds[0, 0] = torch.tensor([0, 2, 2])
    seeds[1, 0, 0] = 1
    seeds[2].view(-1)[:4] = torch.arange(4)
    expected = [[True, False, True, False], [True] * 4, [True] * 4, [True] * 4]
    assert seeded_labels(seeds, 4).tolist() == expected


def test_logits_must_fit_the_batch():
    batch = Batch(torch.zeros(1, 1, 4, 4), None)
    check_logits(torch.zeros(1, 2, 4, 4), batch)
    for logits, words in [
        (torch.zeros(1, 2, 2, 2), r"\(1, 2, 2, 2\).*size of its input"),
        (torch.zeros(2, 2, 4, 4), r"\(1, 4, 4\)"),
        (torch.zeros(1, 1, 4, 4), r"pair \(0, z\)"),
    ]:
        with pytest.raises(UsageError, match=words):
            check_logits(logits, batch)


def test_a_missing_proposal_is_asked_for():
    batch = Batch(torch.zeros(1, 1, 4, 4), torch.zeros(1, 4, 4, dtype=torch.int64))
    with pytest.raises(UsageError, match=r"ADM.objective needs a proposal.*loop.propose\(logits, batch\)"):
        ADM("grid-crf").objective(torch.zeros(1, 2, 4, 4), batch)


# --------------------------------------------------------------------------------------------------------------------
# updates


class Judge(Plain):
    """A loop with a network of its own."""

    def modules(self):
        return {"judge": torch.nn.Linear(1, 1)}


@pytest.mark.parametrize(("loop", "networks"), [(Plain(), ("network",)), (Judge(), ("network", "judge"))])
def test_a_step_is_one_update_of_everything_by_default(loop, networks):
    logits = torch.ones(1, 2, 3, 3, requires_grad=True)
    batch = Batch(torch.zeros(1, 1, 3, 3), None)
    (update,) = loop.updates(logits, batch, None, lambda image, roi: logits)
    assert update.networks == networks
    assert torch.equal(update.loss, loop.objective(logits, batch))


def test_metrics_stand_beside_the_parts():
    loop = Plain()
    assert loop.metrics == {}
    loop.objective(torch.ones(1, 2, 3, 3), Batch(torch.zeros(1, 1, 3, 3), None))
    loop.log_metric(judge_loss=torch.tensor(2.0, requires_grad=True), size=torch.tensor(3.0))
    loop.log_metric(size=torch.tensor(4.0))
    assert loop.metrics == {"judge-loss": 2.0, "size": 4.0}
    assert set(loop.parts) == {"some-part", "other"}
