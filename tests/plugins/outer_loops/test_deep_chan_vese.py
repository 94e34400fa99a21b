"""Deep Chan-Vese for a data set: conformance, where its losses are smallest, and who learns from which of them."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from regloss import Batch, TotalVariation
from regloss.errors import UsageError
from regloss.testing import OuterLoopConformance
from regloss_plugins.data_terms.elbo import ELBO
from regloss_plugins.outer_loops.deep_chan_vese import (
    DeepChanVeseTraining,
    Discriminator,
    FiveConvolutions,
    conservation_loss,
    discriminator_loss,
    invariance_loss,
)
from regloss_plugins.segmenters.saliency import phases_by_saliency


def pixelwise(inputs, outputs, seed=0):
    """A network that sees one pixel at a time, so that crops do not matter."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Conv2d(inputs, outputs, 1).double()


def elbo(phases=2, channels=3, dimensions=1):
    means = torch.linspace(-3, 3, phases).reshape(-1, 1).repeat(1, dimensions)
    return ELBO(pixelwise(channels, dimensions), pixelwise(dimensions, channels, 1), means, channels=channels)


class TestConformance(OuterLoopConformance):
    """Without the conservation, which is drawn at random."""

    def make(self):
        return DeepChanVeseTraining(TotalVariation(0.3), elbo(3), conservation=0.0, start_fraction=0.0)


class TestStarting(OuterLoopConformance):
    """Always starting: progress is 0 unless it is set."""

    def make(self):
        return DeepChanVeseTraining(TotalVariation(0.3), elbo(3), start_fraction=0.5)

    # Saliency looks at the borders of what it is given, so a crop has another.
    def test_region_of_interest_is_a_crop(self):
        pytest.skip("the saliency of a crop is another one")


class TestOwnPhases(OuterLoopConformance):
    """Phases that are each image's own, and a start that keeps its weight."""

    def make(self):
        data = elbo(3)
        data.prior_pixels = 2.0
        return DeepChanVeseTraining(
            TotalVariation(0.3), data, conservation=0.0, invariance=0.0, start_fraction=0.0, start_weight=0.5
        )

    def test_region_of_interest_is_a_crop(self):
        pytest.skip("the saliency of a crop is another one")


def bernoulli(probability):
    """(1, 2, N) of a phase and the other."""
    probability = torch.as_tensor(probability, dtype=torch.float64).reshape(1, 1, -1)
    return torch.cat([probability, 1 - probability], 1)


# ---- the losses


def test_invariance_is_that_of_the_reference(oracles):
    with np.load(oracles / "deepcv.npz") as file:
        for a, b, expected in zip(file["bce_target"], file["bce_pred"], file["bce"], strict=True):
            found = invariance_loss(bernoulli(a), bernoulli(b).log())
            assert float(found) == pytest.approx(float(expected), rel=1e-10)


def test_invariance_is_smallest_where_the_outputs_agree():
    others = torch.linspace(0.001, 0.999, 999, dtype=torch.float64)
    losses = invariance_loss(bernoulli(0.3).expand(999, -1, -1), bernoulli(others).permute(2, 1, 0).log())
    assert float(others[losses.argmin()]) == pytest.approx(0.3, abs=1e-9)
    assert float(losses.min()) == pytest.approx(0.6109, abs=5e-5)
    entropy = -0.3 * math.log(0.3) - 0.7 * math.log(0.7)
    assert float(losses.min()) == pytest.approx(entropy, rel=1e-12)


def test_invariance_does_not_overflow():
    logits = torch.tensor([[[300.0], [-300.0]]], requires_grad=True)
    loss = invariance_loss(torch.tensor([[[0.0], [1.0]]]), logits)
    loss.sum().backward()
    assert float(loss.detach()) == 600.0
    assert torch.equal(logits.grad.flatten(), torch.tensor([1.0, -1.0]))


def test_discriminator_that_cannot_tell_says_one_in_three():
    # One photograph for two decoded phases: with equal distributions the best D is the share of photographs.
    logits = torch.linspace(-4, 4, 8001, dtype=torch.float64)
    losses = discriminator_loss(logits, [logits, logits])
    best = float(logits[losses.argmin()].sigmoid())
    assert best == pytest.approx(1 / 3, abs=1e-3)
    assert float(losses.min()) == pytest.approx(math.log(3) + 2 * math.log(1.5), abs=1e-6)


def test_discriminator_is_best_where_it_is_right():
    right = discriminator_loss(torch.tensor([30.0]), [torch.tensor([-30.0]), torch.tensor([-30.0])])
    assert 0 <= float(right) < 1e-12
    one_wrong = discriminator_loss(torch.tensor([30.0]), [torch.tensor([30.0]), torch.tensor([-30.0])])
    assert float(one_wrong) == pytest.approx(30.0)


def test_conservation_falls_as_the_discriminator_is_convinced():
    judged = torch.linspace(-200, 200, 401)
    losses = conservation_loss(judged)
    assert bool((losses[1:] <= losses[:-1]).all())
    assert float(losses[0]) == pytest.approx(200.0)
    assert 0 <= float(losses[-1]) < 1e-12
    assert bool(losses.isfinite().all())


# ---- the updates


def example(size=(6, 7), seed=0):
    generator = torch.Generator().manual_seed(seed)
    image = torch.rand(2, 3, *size, generator=generator, dtype=torch.float64)
    return pixelwise(3, 2, 5), Batch(image, None)


def touched(modules):
    return {
        name
        for name, module in modules.items()
        if any(p.grad is not None and float(p.grad.abs().sum()) > 0 for p in module.parameters())
    }


def test_each_update_teaches_its_networks_alone():
    network, batch = example()
    loop = DeepChanVeseTraining(None, elbo(), discriminator=Discriminator(3).double(), start_fraction=0.0)
    modules = {"network": network, **loop.modules()}
    order = []
    for update in loop.updates(network(batch.image), batch, None, lambda image, roi: network(image)):
        for module in modules.values():
            module.zero_grad()
        update.loss.backward()
        assert touched(modules) == set(update.networks)
        order.append(update.networks)
    assert order == [("network",), ("encoder", "decoder"), ("discriminator",)]
    assert set(loop.parts) == {"region", "regularizer", "conservation", "invariance"}
    assert set(loop.metrics) == {"reconstruction-loss", "encoder-loss", "discriminator-loss"}


def test_later_updates_see_what_earlier_ones_have_left():
    """The encoder's step changes what the discriminator is shown."""
    losses = []
    for changed in (False, True):
        network, batch = example()
        judge = Discriminator(3).double()
        judge.load_state_dict({name: torch.full_like(value, 0.1) for name, value in judge.state_dict().items()})
        loop = DeepChanVeseTraining(None, elbo(), discriminator=judge, start_fraction=0.0)
        torch.manual_seed(0)
        for update in loop.updates(network(batch.image), batch, None, lambda image, roi: network(image)):  # noqa: B023
            if changed and update.networks == ("encoder", "decoder"):
                with torch.no_grad():
                    loop.modules()["decoder"].weight.mul_(3)
        losses.append(loop.metrics["discriminator-loss"])
    assert losses[0] != losses[1]


def test_no_conservation_no_discriminator():
    network, batch = example()
    loop = DeepChanVeseTraining(None, elbo(), conservation=0.0, invariance=0.0, start_fraction=0.0)
    assert set(loop.modules()) == {"encoder", "decoder"}
    updates = list(loop.updates(network(batch.image), batch, None, lambda image, roi: network(image)))
    assert [update.networks for update in updates] == [("network",), ("encoder", "decoder")]
    assert set(loop.parts) == {"region", "regularizer"}


def test_the_start_is_the_saliency_map():
    _, batch = example((16, 18))
    image = batch.image * 0.1
    image[..., 5:11, 6:12] += 0.7
    loop = DeepChanVeseTraining(None, elbo(), start_fraction=0.4)
    mask = phases_by_saliency(image)
    assert 0 < int(mask.sum()) < mask.numel()
    logits = torch.stack([1 - 2 * mask, 2 * mask - 1], 1) * 50.0
    assert float(loop.objective(logits, Batch(image, None))) < 1e-12
    assert list(loop.parts) == ["start"]
    loop.set_progress(0.4)
    loop.objective(logits, Batch(image, None))
    assert set(loop.parts) == {"region", "regularizer", "conservation"}


def test_the_start_keeps_its_weight():
    """Afterwards the other terms are what they are without it."""
    network, batch = example((16, 18))
    logits = network(batch.image).detach()
    loops = [
        DeepChanVeseTraining(None, elbo(), conservation=0.0, start_fraction=0.4, start_weight=weight)
        for weight in (0.0, 0.5)
    ]
    for loop in loops:
        loop.objective(logits, batch)
        assert list(loop.parts) == ["start"]
    assert loops[0].parts == loops[1].parts
    taught = loops[0].parts["start"]
    for loop in loops:
        loop.set_progress(0.4)
    assert float(loops[1].objective(logits, batch)) - float(loops[0].objective(logits, batch)) == pytest.approx(
        0.5 * taught, rel=1e-10
    )
    assert set(loops[1].parts) - set(loops[0].parts) == {"start"}


def test_encoder_follows_the_network_although_the_start_has_weight():
    """What it sees is u, not the saliency map."""
    network, batch = example((16, 18))
    losses = []
    for weight in (0.0, 0.5):
        settings = {"conservation": 0.0, "invariance": 0.0, "start_fraction": 0.0, "start_weight": weight}
        loop = DeepChanVeseTraining(None, elbo(), **settings)
        torch.manual_seed(0)
        list(loop.updates(network(batch.image), batch, None, lambda image, roi: network(image)))
        losses.append(loop.metrics["encoder-loss"])
    assert losses[0] == losses[1]


def test_decoded_phases_are_those_of_each_image():
    """An image of one colour is what the decoder makes of its phases; the given means are far away."""
    data = ELBO(nn.Identity(), nn.Identity(), [[7.0], [-7.0]], variance=1e-8, channels=1, prior_pixels=1.0)
    data.prior_pixels = 1e-9  # the limits of the setting are those of single precision
    shown = []

    class Camera(nn.Module):
        def forward(self, image):
            shown.append(image.detach())
            return image.flatten(1).mean(1)

    image = torch.full((2, 1, 4, 4), 0.3, dtype=torch.float64)
    image[1], image[:, :, :2] = 0.8, 0.6
    logits = torch.zeros(2, 2, 4, 4, dtype=torch.float64)
    logits[:, 1, :2], logits[:, 0, 2:] = 40.0, 40.0
    loop = DeepChanVeseTraining(None, data, discriminator=Camera(), start_fraction=0.0)
    loop.objective(logits, Batch(image, None))
    torch.testing.assert_close(shown[0], image, atol=1e-3, rtol=0)


def test_nothing_salient_teaches_nothing():
    logits = torch.randn(1, 2, 6, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    flat = Batch(torch.full((1, 3, 6, 7), 0.5, dtype=torch.float64), None)
    assert float(DeepChanVeseTraining(None, elbo()).objective(logits, flat)) == 0.0


def test_views_are_mirrored_with_their_region_and_stay_images():
    _, batch = example((6, 8))
    roi = torch.zeros(2, 6, 8, dtype=torch.bool)
    roi[:, :4, :5] = True
    batch = Batch(batch.image * roi.unsqueeze(1), None, roi)
    loop = DeepChanVeseTraining(None, elbo(), jitter=0.0)
    seen = set()
    for seed in range(20):
        torch.manual_seed(seed)
        view = loop.augment(batch)
        assert torch.equal(view.batch.image, view.seen(batch.image))
        assert view.turns == 0
        assert torch.equal(view.batch.roi, roi.flip(view.axes))
        seen.add(view.axes)
    assert seen == {(), (-2,), (-1,), (-2, -1)}
    still = DeepChanVeseTraining(None, elbo(), jitter=0.3, flip=False).augment(batch)
    assert still.axes == ()
    assert 0.01 < float((still.batch.image - batch.image).abs().max()) <= 1.0
    assert float(still.batch.image[~roi.unsqueeze(1).expand_as(batch.image)].abs().max()) == 0.0


def test_views_are_turned_with_their_region_and_spacing():
    image = torch.rand(2, 3, 6, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    roi = torch.zeros(2, 6, 8, dtype=torch.bool)
    roi[:, :4, :5] = True
    batch = Batch(image * roi.unsqueeze(1), None, roi, spacing=(1.0, 2.0))
    loop = DeepChanVeseTraining(None, elbo(), jitter=0.0, flip=False, quarter_turns=True)
    seen = set()
    for seed in range(20):
        torch.manual_seed(seed)
        view = loop.augment(batch)
        for axes_of_shape, values in ((view.batch.image, batch.image), (view.batch.roi, roi)):
            expected = np.rot90(values.numpy(), view.turns, (-2, -1))
            assert np.array_equal(axes_of_shape.numpy(), expected)
        assert torch.equal(view.seen(batch.image), view.batch.image)
        assert view.batch.spacing == ((2.0, 1.0) if view.turns % 2 else (1.0, 2.0))
        seen.add(view.turns)
    assert seen == {0, 1, 2, 3}


def test_a_network_that_knows_no_direction_is_invariant_under_turns():
    """Seeing pixel by pixel, it finds in the turned image what it found in the image, turned: AuI is the entropy."""
    network, batch = example((6, 8))
    loop = DeepChanVeseTraining(
        TotalVariation(0.0), elbo(), jitter=0.0, conservation=0.0, start_fraction=0.0, quarter_turns=True
    )
    probabilities = network(batch.image).softmax(1)
    entropy = 10 * float(-(probabilities * probabilities.log()).sum(1).mean().detach())
    for seed in range(4):
        torch.manual_seed(seed)
        next(iter(loop.updates(network(batch.image), batch, None, lambda image, roi: network(image))))
        assert loop.parts["invariance"] == pytest.approx(entropy, rel=1e-9)


def test_discriminators_have_names():
    named = [
        DeepChanVeseTraining(None, elbo(), discriminator=given).discriminator
        for given in ("five-convolutions", {"name": "strided", "layers": 2}, None)
    ]
    assert [type(network) for network in named] == [FiveConvolutions, Discriminator, Discriminator]
    widths = [layer.out_channels for layer in named[0].features if isinstance(layer, nn.Conv2d)]
    assert widths == [32, 64, 128, 256, 512]
    assert sum(isinstance(layer, nn.Conv2d) for layer in named[1].features) == 2
    # Of 128 x 128 pixels the last layer sees each of the 4 x 4 that are left.
    image = torch.rand(1, 3, 128, 128)
    assert torch.equal(named[0](image), named[0].score(named[0].features[:10](image).flatten(1)).flatten())
    assert named[0](torch.rand(3, 3, 40, 72)).shape == (3,)


def test_one_phase_everywhere_does_not_pass_for_a_photograph():
    """Where D knows photographs of two colours from one colour, CRI asks for both phases."""
    decoder = nn.Conv2d(1, 1, 1).double()
    nn.init.constant_(decoder.weight, 1 / 6)
    nn.init.constant_(decoder.bias, 0.5)

    class Contrast(nn.Module):
        def forward(self, image):
            return 20 * (image.flatten(1).std(1) - 0.35)

    data = ELBO(pixelwise(1, 1), decoder, [[-3.0], [3.0]], covariances=1e-6, channels=1)
    loop = DeepChanVeseTraining(None, data, conservation=1.0, discriminator=Contrast(), start_fraction=0.0)
    batch = Batch(torch.rand(1, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0)), None)
    half = torch.zeros(1, 2, 8, 8, dtype=torch.float64)
    half[:, 0, :, :4], half[:, 1, :, 4:] = 30.0, 30.0
    one = torch.zeros_like(half)
    one[:, 0] = 30.0
    found = []
    for logits in (half, one):
        loop.objective(logits, batch)
        found.append(loop.parts["conservation"])
    assert found[0] < 0.1
    assert found[1] > 5.0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"invariance": -1.0}, "invariance must be"),
        ({"conservation": float("inf")}, "conservation must be"),
        ({"jitter": 1.0}, r"jitter must be a number in \[0, 1\)"),
        ({"start_fraction": 1.0}, "start_fraction must be"),
        ({"start_weight": -0.1}, "start_weight must be"),
        ({"start": "nothing"}, "no saliency called 'nothing'"),
        ({"discriminator": "five"}, "no discriminator called 'five'. Known: strided, five-convolutions"),
        ({"discriminator": {"name": "strided", "width": 3}}, "no setting 'width'. Its settings are channels, layers"),
        ({"data_term": "cross-entropy"}, 'needs the data term "elbo"'),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(UsageError, match=message):
        DeepChanVeseTraining(None, **{"data_term": elbo(), **settings})


def test_as_many_classes_as_phases():
    _, batch = example()
    with pytest.raises(UsageError, match="2 phases"):
        DeepChanVeseTraining(None, elbo()).objective(torch.zeros(2, 3, 6, 7), batch)
