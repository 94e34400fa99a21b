"""RegularizedSigmoid: nested sets, classes, convexity, gradients, and discs inside discs under noise."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import regloss
from regloss import (
    DCA,
    PDHG,
    ConvexShape,
    GridCRF,
    MissingForm,
    Ordered,
    Projection,
    RegularizedSigmoid,
    RegularizedSoftmax,
    StarShape,
    Status,
    Sum,
    ThresholdDynamics,
    TotalVariation,
    UsageError,
    Volume,
    attach,
)
from regloss_plugins.layers.sigmoid import log_classes, nested_logits
from regloss_plugins.regularizers.convex import dents
from regloss_plugins.regularizers.ordered import classes_of, isotonic, nested_of, ordered_sigmoid

EXACT = PDHG(max_steps=20000, tolerance=1e-14)
EXACTLY: dict[str, Any] = {"backward_steps": 3000, "backward_tolerance": 1e-12}
DYNAMICS = {"name": "threshold-dynamics", "weight": 3.0, "sigma": 1.5}
RADII = (1.5, 3, 5, 9, 15)


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def discs(count: int = 3, size: int = 40, seed: int = 0) -> Tensor:
    """(B, H, W) labels: 0 outside, 1 in the disc, 2 in the cup within it."""
    generator = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    centers = size / 2 + 4 * torch.rand(count, 2, 1, 1, generator=generator) - 2
    radii = size * (0.28 + 0.08 * torch.rand(count, 1, 1, generator=generator))
    squared = (y - centers[:, 0]) ** 2 + (x - centers[:, 1]) ** 2
    inner = (y - centers[:, 0] - 2) ** 2 + (x - centers[:, 1] - 1) ** 2  # not in the middle
    return (squared <= radii**2).long() + (inner <= (radii / 2) ** 2).long()


def noisy_logits(labels: Tensor, noise: float = 1.5, seed: int = 1, classes: int = 3) -> Tensor:
    clean = 3 * nn.functional.one_hot(labels, classes).movedim(-1, 1).double()
    return clean + noise * random(*clean.shape, seed=seed)


def blank(logits: Tensor) -> Tensor:
    return torch.zeros(logits.shape[0], 1, *logits.shape[2:], dtype=logits.dtype)


def is_nested_and_convex(predicted: Tensor, classes: int = 3) -> bool:
    """By the mask test on {label >= k}; nested they are as sublevel sets of one label map."""
    regions = [predicted >= k for k in range(1, classes)]
    return not any(bool(dents(region, radius).any()) for region in regions for radius in RADII)


# --------------------------------------------------------------------------------------------------------------------
# Without a prior, and the mapping between classes and sets


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_without_a_prior_it_gives_the_softmax_back(classes: int) -> None:
    """At entropy 1, values and gradients, for logits of any size; nothing is pooled, since log-odds come in order."""
    for scale in (1.0, 40.0):
        logits = (scale * random(2, classes, 5, 6, seed=0)).requires_grad_()
        layer = RegularizedSigmoid("ordered", entropy=1.0)
        found, expected = layer.log_probabilities(logits, blank(logits)), logits.log_softmax(1)
        torch.testing.assert_close(found.exp(), expected.exp(), rtol=0, atol=1e-6)
        if scale == 1:
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
        g = random(2, classes, 5, 6, seed=1)
        (of_layer,) = torch.autograd.grad((found.exp() * g).sum(), logits)
        (of_softmax,) = torch.autograd.grad((expected.exp() * g).sum(), logits)
        torch.testing.assert_close(of_layer, of_softmax, rtol=1e-6, atol=1e-5)
        plain = RegularizedSigmoid(None, entropy=1.0)(logits, blank(logits))
        torch.testing.assert_close(plain, nested_of(logits.softmax(1)), rtol=0, atol=1e-12)


def test_classes_are_differences_of_neighbouring_sets() -> None:
    u = random(2, 3, 4, 5, seed=2).sigmoid().sort(dim=1).values
    torch.testing.assert_close(log_classes(u.logit()).exp(), classes_of(u), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(nested_logits(classes_of(u).log()), u.logit(), rtol=1e-9, atol=1e-9)
    # Where sets agree, the class between them has next to no probability, and a finite logarithm.
    tied = log_classes(torch.tensor([0.3, 0.3, 0.9]).reshape(1, 3, 1, 1).requires_grad_())
    assert bool(tied.isfinite().all())
    assert float(tied[0, 2].exp().detach()) < 1e-6
    assert float(tied.exp().sum().detach()) == pytest.approx(1)


@pytest.mark.parametrize("entropy", [0.3, 1.0])
def test_plain_sets_are_ordered_exactly(entropy: float) -> None:
    """sigmoid(isotonic(y) / entropy), with the derivative that averages over pools."""
    y = random(2, 4, 5, 6, seed=3).requires_grad_()
    layer = RegularizedSigmoid("ordered", entropy=entropy, logits="sets")
    found = layer(y, blank(y))
    torch.testing.assert_close(found, ordered_sigmoid(y, entropy), rtol=0, atol=1e-12)
    assert float(torch.diff(found, dim=1).min().detach()) >= 0
    assert Ordered().bind(blank(y)).energy(found).tolist() == [0, 0]
    g = random(2, 4, 5, 6, seed=4)
    (gradient,) = torch.autograd.grad((found * g).sum(), y)
    pooled = isotonic(y.detach())
    through = g * found.detach() * (1 - found.detach()) / entropy
    same = pooled.unsqueeze(1) == pooled.unsqueeze(2)  # (B, L, L, *S)
    average = (through.unsqueeze(1) * same).sum(2) / same.sum(2)
    torch.testing.assert_close(gradient, average, rtol=1e-9, atol=1e-12)
    assert bool((same.sum(2) > 1).any())


def test_one_set_may_come_without_order() -> None:
    y = random(2, 1, 5, 6, seed=5)
    layer = RegularizedSigmoid(None, entropy=0.5, logits="sets")
    torch.testing.assert_close(layer(y, blank(y)), (y / 0.5).sigmoid())
    found = layer.log_probabilities(y, blank(y))
    torch.testing.assert_close(found.exp(), torch.cat([(-y / 0.5).sigmoid(), (y / 0.5).sigmoid()], 1))


# --------------------------------------------------------------------------------------------------------------------
# Priors


@pytest.mark.parametrize(
    ("prior", "solver"),
    [
        (TotalVariation(0.4), EXACT),
        (ThresholdDynamics(weight=1.0, sigma=1.0), DCA(2000, 1e-10)),
        (Volume(volumes=(0.6, 0.4), unit="fraction"), DCA()),
        (StarShape(), PDHG(5000, 1e-10)),
        (ThresholdDynamics(weight=1.0, sigma=1.0) + Volume(volumes=(0.6, 0.4), unit="fraction"), DCA(2000, 1e-10)),
    ],
    ids=["tv", "dynamics", "volume", "star", "sum"],
)
def test_for_two_classes_it_is_the_regularized_softmax(prior: Any, solver: Any) -> None:
    """Values, gradients, learnt weights, and what the solver reports."""
    logits, g = random(2, 2, 5, 6, seed=6), random(2, 2, 5, 6, seed=7)
    kept: list[tuple[Tensor, ...]] = []
    layers = [
        cls(prior, solver, 0.5, learn=("weight", "entropy"), **EXACTLY)
        for cls in (RegularizedSigmoid, RegularizedSoftmax)
    ]
    for layer in layers:
        variable = logits.clone().requires_grad_()
        found = layer.double().log_probabilities(variable, blank(logits))
        (found * g).sum().backward()
        kept.append((found.detach(), variable.grad, layer.log_weight.grad, layer.log_entropy.grad))
    for mine, other in zip(*kept, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)
    mine, other = (layer.solution for layer in layers)
    torch.testing.assert_close(mine.gap, other.gap)
    assert mine.status == other.status
    assert torch.equal(layers[0].weight, layers[1].weight)


@pytest.mark.parametrize(
    ("prior", "solver"),
    [
        (TotalVariation(0.5), PDHG(5000, 1e-10)),
        (ThresholdDynamics(weight=2.0, sigma=1.0), DCA(2000, 1e-9)),
        (ThresholdDynamics(weight=2.0, kernel="disk", radius=1.5), DCA(5000, 1e-9)),
    ],
    ids=["tv", "dynamics", "damped"],
)
def test_priors_that_keep_scores_in_order(prior: Any, solver: Any) -> None:
    """So "ordered" has nothing to do after them."""
    logits = 2 * random(2, 4, 9, 10, seed=8)
    free = RegularizedSigmoid(prior, solver, 0.5)(logits, blank(logits))
    assert float(torch.diff(free, dim=1).min()) > -1e-4
    both = RegularizedSigmoid([prior, "ordered"], solver, 0.5)(logits, blank(logits))
    torch.testing.assert_close(both, free, rtol=0, atol=1e-4)


def test_sets_that_a_prior_brings_out_of_order_are_ordered_after_it() -> None:
    """A star about another centre in each set; pooled are the scores that the solver ended with."""
    y = 2 * random(1, 2, 9, 10, seed=9)
    solver = PDHG(5000, 1e-10)
    free = RegularizedSigmoid(StarShape(), solver, 0.5, logits="sets")(y, blank(y))
    assert float(torch.diff(free, dim=1).min()) < -0.1
    both = RegularizedSigmoid([StarShape(), "ordered"], solver, 0.5, logits="sets")(y, blank(y))
    torch.testing.assert_close(both, isotonic(free.logit()).sigmoid(), rtol=0, atol=1e-6)


def test_each_set_is_made_convex_and_stays_in_the_larger_ones() -> None:
    labels = discs()
    labels[:, 18:22, 24:] = 0  # a slot, through the disc
    labels[:, 20:, 20:22] -= (labels[:, 20:, 20:22] == 2).long()  # and one in the cup
    logits = noisy_logits(labels, noise=0.0)
    image = blank(logits)
    before = RegularizedSigmoid("ordered", entropy=1.0)(logits, image)
    sets = RegularizedSigmoid(["ordered", "convex"], entropy=1.0)(logits, image)
    term = Sum([ConvexShape()]).bind(image)
    for u, old in zip(sets.unbind(1), before.unbind(1), strict=True):
        pair, given = torch.stack([1 - u, u], 1), torch.stack([1 - old, old], 1)
        assert bool((term.violation(given) > 0).all())
        assert term.energy(pair).tolist() == [0, 0, 0]
        filled = term.form(Projection).project(given)[:, 1]
        torch.testing.assert_close(torch.maximum(filled, u), u, rtol=0, atol=0)
    assert float(torch.diff(sets, dim=1).min()) >= 0
    # The mask of each set is the fill of its own; a pixel added to the cup is certain in the disc as well.
    added = (sets[:, 0] == 1) & (before[:, 0] < 0.5)
    assert bool(added.any())
    assert bool((sets[:, 1][added] == 1).all())


def test_the_order_of_the_regularizers_does_not_matter() -> None:
    logits = noisy_logits(discs(count=1))
    names: list[Any] = ["convex", "ordered", DYNAMICS]
    one = RegularizedSigmoid(names, "dca", 0.5)(logits, blank(logits))
    other = RegularizedSigmoid(names[::-1], "dca", 0.5)(logits, blank(logits))
    assert torch.equal(one, other)
    nested = Sum([Sum([DYNAMICS | {"weight": 1.5}], weight=2.0), Sum(["ordered", "convex"])])
    torch.testing.assert_close(RegularizedSigmoid(nested, "dca", 0.5)(logits, blank(logits)), one)


# --------------------------------------------------------------------------------------------------------------------
# Discs and cups


@pytest.mark.parametrize("noise", [1.0, 2.0, 3.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_every_predicted_cup_lies_in_its_disc_and_both_are_convex(noise: float, dtype: torch.dtype) -> None:
    """By argmax of what an attached network gives, whatever the noise and the precision; most pixels are right."""
    labels = discs()
    logits = noisy_logits(labels, noise).to(dtype)
    layer = RegularizedSigmoid([DYNAMICS, "ordered", {"name": "convex", "radii": RADII}], "dca", 1.0).eval()
    found = layer.log_probabilities(logits, blank(logits))
    assert found.dtype == dtype
    predicted = found.argmax(1)
    assert is_nested_and_convex(predicted)
    sets = layer(logits.to(torch.promote_types(dtype, torch.float32)), blank(logits).double())
    assert torch.equal(predicted, (sets > 0.5).sum(1))
    assert len(predicted.unique()) == 3
    right = float((predicted == labels).double().mean())
    assert right > 0.95 or noise == 3  # where the prior leaves specks, and what lies between them is filled
    # Without the shapes it is not so.
    assert not is_nested_and_convex(logits.argmax(1))


def test_the_median_class_is_raised_in_evaluation_only() -> None:
    """Of (.4, .3, .3) the label is 1; elsewhere nothing changes, and in training nothing at all."""
    given = torch.tensor([[0.4, 0.3, 0.3], [0.2, 0.1, 0.7], [0.6, 0.3, 0.1]]).log().T.reshape(1, 3, 1, 3)
    layer = RegularizedSigmoid("ordered", entropy=1.0)
    training = layer.log_probabilities(given, blank(given))
    torch.testing.assert_close(training, given)
    found = layer.eval().log_probabilities(given, blank(given))
    assert found.argmax(1).flatten().tolist() == [1, 2, 0]
    assert training.argmax(1).flatten().tolist() == [0, 2, 0]
    torch.testing.assert_close(found[..., 1:], given[..., 1:])
    torch.testing.assert_close(found.exp().sum(1), torch.ones(1, 1, 3))
    torch.testing.assert_close(found[0, :, 0, 0].exp(), torch.tensor([0.4, 0.4, 0.3]) / 1.1, rtol=1e-4, atol=0)


def test_a_network_learns_through_it() -> None:
    """Cross entropy on what the attached network gives; in evaluation every cup is convex and in its disc."""
    torch.manual_seed(0)
    labels = discs(count=4, size=24)
    image = (0.2 + 0.3 * labels + 0.15 * torch.randn(4, 24, 24)).clamp(0, 1).unsqueeze(1)
    network = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 3, 3, padding=1))
    # A prior stronger than the entropy has several solutions, of which an untrained network finds the wrong one.
    dynamics = ThresholdDynamics(weight=0.5, sigma=1.0)
    layer = RegularizedSigmoid([dynamics, "ordered", "convex"], "dca", 1.0, learn=("weight",))
    whole = attach(network, layer)
    optimizer = torch.optim.Adam(whole.parameters(), lr=0.02)
    losses = []
    for _ in range(25):
        loss = nn.functional.cross_entropy(whole(image), labels)
        optimizer.zero_grad()
        loss.backward()
        assert all(bool(parameter.grad.isfinite().all()) for parameter in whole.parameters())
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]
    predicted = whole.eval()(image).argmax(1)
    assert is_nested_and_convex(predicted)
    assert float((predicted == labels).double().mean()) > 0.8


# --------------------------------------------------------------------------------------------------------------------
# Gradients


@pytest.mark.parametrize("logits_are", ["classes", "sets"])
@pytest.mark.parametrize(
    ("prior", "solver"),
    [
        (["ordered"], "pdhg"),
        (["ordered", ConvexShape()], "pdhg"),
        ([TotalVariation(0.3), "ordered"], EXACT),
        ([ThresholdDynamics(weight=0.6, sigma=1.0), "ordered", ConvexShape()], DCA(5000, 1e-12)),
        ([StarShape(), "ordered"], EXACT),
    ],
    ids=["ordered", "convex", "tv", "dynamics", "star"],
)
def test_gradients_match_finite_differences(prior: Any, solver: Any, logits_are: Any) -> None:
    """Of set probabilities and of log-probabilities, in logits, weight and entropy."""
    logits, direction = 2 * random(1, 3, 5, 6, seed=11), random(1, 3, 5, 6, seed=12)
    # A hard constraint has no weight that mattered; masks and centres do not change over a step so small.
    learn = ("entropy",) if solver == "pdhg" or isinstance(prior[0], StarShape) else ("weight", "entropy")
    layer = RegularizedSigmoid(prior, solver, 0.6, logits=logits_are, learn=learn, **EXACTLY).double()
    for function in (layer.forward, layer.log_probabilities):
        g = random(*function(logits, blank(logits)).shape, seed=13)
        layer.zero_grad()
        variable = logits.clone().requires_grad_()
        (function(variable, blank(logits)) * g).sum().backward()
        step = 1e-5

        def value(at: Tensor, function: Any = function, g: Tensor = g) -> float:
            return float((function(at, blank(logits)) * g).sum())

        with torch.no_grad():
            slope = (value(logits + step * direction) - value(logits - step * direction)) / (2 * step)
            assert float((variable.grad * direction).sum()) == pytest.approx(slope, rel=1e-4, abs=1e-7)
            for parameter in layer.parameters():
                flat = parameter.view(-1)
                for index in range(len(flat)):
                    flat[index] += step
                    above = value(logits)
                    flat[index] -= 2 * step
                    slope = (above - value(logits)) / (2 * step)
                    flat[index] += step
                    assert float(parameter.grad.view(-1)[index]) == pytest.approx(slope, rel=1e-4, abs=1e-7)


def test_added_pixels_get_no_gradient_and_the_others_their_own() -> None:
    labels = discs(count=1)
    labels[:, 18:22, 24:] = 0
    logits = noisy_logits(labels, noise=0.0)[:, :2].clone().requires_grad_()
    plain = RegularizedSigmoid(None, entropy=1.0)(logits, blank(logits))
    filled = RegularizedSigmoid("convex", entropy=1.0)(logits, blank(logits))
    added = (filled != plain).squeeze(1)
    assert bool(added.any())
    (of_plain,) = torch.autograd.grad(plain.sum(), logits)
    (of_filled,) = torch.autograd.grad(filled.sum(), logits)
    assert float(of_filled.masked_select(added.unsqueeze(1)).abs().max()) == 0
    torch.testing.assert_close(
        of_filled.masked_select(~added.unsqueeze(1)), of_plain.masked_select(~added.unsqueeze(1))
    )


def test_confident_mistakes_keep_their_gradient() -> None:
    """Log-probabilities do not underflow: a pixel that is wrong by 200 still pulls with full force."""
    logits = torch.tensor([-100.0, 0.0, 100.0]).reshape(1, 3, 1, 1).requires_grad_()
    for classes in (RegularizedSigmoid("ordered", entropy=1.0), RegularizedSigmoid(["tv", "ordered"], "pdhg", 1.0)):
        loss = nn.functional.cross_entropy(
            classes.log_probabilities(logits, torch.zeros(1, 1, 1, 1)), torch.zeros(1, 1, 1).long()
        )
        (gradient,) = torch.autograd.grad(loss, logits)
        assert float(loss.detach()) == pytest.approx(200, rel=1e-3)
        torch.testing.assert_close(gradient.flatten(), torch.tensor([-1.0, 0.0, 1.0]), rtol=1e-3, atol=1e-3)


# --------------------------------------------------------------------------------------------------------------------
# Use


@pytest.mark.parametrize("backward", ["implicit", "unrolled", "one-step"])
def test_it_takes_the_settings_of_the_softmax(backward: Any) -> None:
    """Also half precision under autocast; a state that is saved, copied, and started from."""
    logits = noisy_logits(discs(count=2, size=16)).float()
    layer = RegularizedSigmoid(
        [DYNAMICS, "ordered", "convex"],
        "dca",
        0.5,
        max_steps=8,
        tolerance=0.0,
        backward=backward,
        learn=("weight", "entropy"),
    )
    variable = logits.clone().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = layer.log_probabilities(variable, blank(logits))
    assert found.dtype == torch.float32
    found[:, 1].sum().backward()
    assert bool(variable.grad.isfinite().all())
    assert float(variable.grad.abs().max()) > 0
    assert (layer.solution is None) == (backward == "unrolled")
    other = RegularizedSigmoid(
        [DYNAMICS, "ordered", "convex"],
        "dca",
        0.7,
        max_steps=8,
        tolerance=0.0,
        backward=backward,
        learn=("weight", "entropy"),
    )
    other.load_state_dict(layer.state_dict())
    for twin in (other, copy.deepcopy(layer)):
        torch.testing.assert_close(twin.log_probabilities(logits, blank(logits)), found.detach())
    torch.testing.assert_close(layer.weight.detach(), torch.tensor([3.0, 1.0, 1.0]))


def test_it_tells_what_is_learnt() -> None:
    """Sums in sums come with their weights multiplied; what is not solved for has a weight, too, but learns none."""
    layer = RegularizedSigmoid(
        Sum([Sum([ThresholdDynamics(weight=3.0, sigma=1.5)], weight=2.0), Ordered()]), "dca", 0.25, learn=("weight",)
    )
    weights = {"weight-threshold-dynamics": pytest.approx(6.0), "weight-ordered": 1}
    assert layer.scalars() == {"weight": weights, "entropy": {"entropy": 0.25}}
    assert layer.learnable_parameters() == {"weight": layer.log_weight}
    unsolved = RegularizedSigmoid("ordered", learn=("entropy",))
    assert unsolved.learnable_parameters() == {"entropy": unsolved.temperature}


def test_solutions_are_summed_and_warm_starts_are_faster() -> None:
    logits = noisy_logits(discs(count=2, size=20))
    layer = RegularizedSigmoid([TotalVariation(0.5), "ordered"], PDHG(3000, 1e-7), 0.5)
    cold = layer(logits, blank(logits))
    first = layer.solution
    assert first.status == (Status.CONVERGED,) * 2
    assert first.probabilities.shape == (2, 2, 20, 20)
    assert first.gap.shape == (2,)
    for warm in (first, first.state):
        again = layer(logits, blank(logits), warm=warm)
        assert int(layer.solution.steps.max()) < int(first.steps.max())
        torch.testing.assert_close(again, cold, rtol=0, atol=1e-3)


def test_regions_of_interest_and_batches() -> None:
    """Outside a region pixels are sigmoids alone; images do not see each other."""
    logits = noisy_logits(discs(count=2, size=16))
    roi = torch.ones(2, 16, 16, dtype=torch.bool)
    roi[0, :, 9:] = False
    layer = RegularizedSigmoid([DYNAMICS, "ordered", "convex"], DCA(500, 1e-8), 0.5)
    together = layer(logits, blank(logits), roi)
    outside = ~roi.unsqueeze(1).expand_as(together)
    torch.testing.assert_close(together[outside], (nested_logits(logits) / 0.5).sigmoid()[outside])
    for i in range(2):
        alone = layer(logits[[i]], blank(logits[[i]]), roi[[i]])
        torch.testing.assert_close(alone[0], together[i], rtol=0, atol=1e-6)


def test_volumes_have_three_dimensions_too() -> None:
    logits = 2 * random(1, 3, 6, 7, 8, seed=14)
    layer = RegularizedSigmoid(
        [DYNAMICS | {"sigma": 1.0}, "ordered", {"name": "convex", "radii": [1.5, 3]}], "dca", 0.5
    )
    predicted = layer.eval().log_probabilities(logits, blank(logits)).argmax(1)
    for k in (1, 2):
        assert not any(bool(dents(predicted >= k, radius).any()) for radius in (1.5, 3))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"logits": "scores"}, "classes"),
        ({"entropy": 0.0}, "entropy"),
        ({"entropy": math.nan}, "entropy"),
        ({"regularizer": "tv", "backward": "exact"}, "implicit"),
        ({"regularizer": "ordered", "learn": ("weight",)}, "no weight"),
        ({"regularizer": None, "learn": ("weight",)}, "no weight"),
        ({"regularizer": None, "learn": ("sigma",)}, "learn may hold weight, entropy; got 'sigma'"),
        # Also where there is nothing to solve and they would make no difference.
        ({"regularizer": "ordered", "backward": "exact"}, "backward must be one of"),
        ({"regularizer": "ordered", "backward_steps": 0}, "backward_steps must be at least 1"),
        ({"regularizer": "convex", "backward_tolerance": 1.0}, "backward_tolerance in"),
        ({"regularizer": "ordered", "backward": "unrolled", "polish": 1e-8}, 'polish belongs to backward = "implicit"'),
        ({"regularizer": "tv", "solver": "mean-field"}, "pdhg"),
        ({"regularizer": "threshold-dynamics"}, "dca"),
        ({"regularizer": GridCRF()}, "grid-crf"),
    ],
    ids=str,
)
def test_bad_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises((UsageError, MissingForm), match=message):
        RegularizedSigmoid(**settings)


def test_bad_input_is_refused() -> None:
    image = torch.zeros(1, 1, 4, 5)
    layer = RegularizedSigmoid(["tv", "ordered", "convex"])
    for value in (math.inf, -math.inf, math.nan):
        logits = torch.zeros(1, 3, 4, 5)
        logits[0, 0, 1, 1] = value
        with pytest.raises(UsageError, match="logits"):
            layer(logits, image)
    with pytest.raises(UsageError, match="K = 1"):
        layer(torch.zeros(1, 1, 4, 5), image)
    for bad in (torch.zeros(1, 3, 4, 5, dtype=torch.int64), torch.zeros(1, 0, 4, 5), torch.zeros(3, 4)):
        with pytest.raises(UsageError, match="logits"):
            RegularizedSigmoid("ordered", logits="sets")(bad, image)
    for regularizer in ("ordered", "tv", ["convex"]):
        with pytest.raises(UsageError, match="fit"):
            RegularizedSigmoid(regularizer)(torch.zeros(1, 3, 4, 6), image)
    with pytest.raises(UsageError, match="images"):
        layer(torch.zeros(1, 3, 4, 5), TotalVariation().bind(image))
    with pytest.raises(UsageError, match="ordered"):
        RegularizedSigmoid("tv").log_probabilities(torch.zeros(1, 3, 4, 5), image)
    with pytest.raises(UsageError, match="2 sets"):
        layer(torch.zeros(1, 3, 4, 5), image, warm=torch.zeros(1, 4, 5))
    with pytest.raises(UsageError, match="class 2"):
        RegularizedSigmoid(StarShape(label=2))(torch.zeros(1, 3, 4, 5), image)


def test_it_is_among_the_public_names() -> None:
    assert regloss.RegularizedSigmoid is RegularizedSigmoid
    assert "RegularizedSigmoid" in regloss.__all__
    assert "logits='classes'" in repr(RegularizedSigmoid("ordered"))
    assert np.isfinite(float(RegularizedSigmoid("ordered").entropy))
