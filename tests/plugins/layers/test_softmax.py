"""RegularizedSoftmax: reference gradients, properties of the Jacobian, the three ways backward, learnt settings."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import regloss
from regloss import (
    DCA,
    PDHG,
    AlphaExpansion,
    DenseCRF,
    MissingForm,
    NonlocalTV,
    RegularizedSoftmax,
    StarShape,
    Sum,
    ThresholdDynamics,
    TotalVariation,
    UsageError,
    Volume,
)
from regloss.forms import Saddle
from regloss.implicit import solve_adjoint
from regloss.layer import attach
from regloss_plugins.regularizers.nltv import NonlocalTerm

EXACT = PDHG(max_steps=20000, tolerance=1e-15)
EXACTLY: dict[str, Any] = {"backward_steps": 3000, "backward_tolerance": 1e-13}
REGULARIZERS = [
    TotalVariation(0.4),
    TotalVariation(0.4, isotropic=True),
    NonlocalTV(0.3, neighbors=3, sigma_rgb=0.3),
    Sum([TotalVariation(0.2), NonlocalTV(0.2, neighbors=3, sigma_rgb=0.3)]),
]
BY_NAME = pytest.mark.parametrize("regularizer", REGULARIZERS, ids=["tv", "isotropic", "nltv", "sum"])


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def image_of(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("name", ["nltv", "tv_aniso", "tv_iso"])
def test_reference_gradients(oracles: Path, name: str) -> None:
    """Logits, weight and entropy, at a gap below 1e-12."""
    data = np.load(oracles / f"{name}.npz")
    height, width = (6, 6) if name == "nltv" else (int(data["H"]), int(data["W"]))

    def planes(key: str) -> Tensor:
        return torch.from_numpy(data[key]).reshape(height, width, 3).permute(2, 0, 1).unsqueeze(0)

    lam, entropy = float(data["lam"]), float(data["eps"])
    if name == "nltv":
        regularizer: Any = NonlocalTV(lam)
        source = torch.arange(36).repeat_interleave(4)
        edges = torch.stack([source, torch.from_numpy(data["idx"]).flatten()], dim=1).unsqueeze(0)
        image: Any = NonlocalTerm(regularizer, edges, torch.from_numpy(data["wt"]).reshape(1, -1), (1, 6, 6))
    else:
        regularizer = TotalVariation(lam, isotropic=name == "tv_iso")
        image = torch.zeros(1, 1, height, width, dtype=torch.float64)
    layer = RegularizedSoftmax(regularizer, EXACT, entropy, learn=("weight", "entropy"), **EXACTLY).double()
    with torch.no_grad():
        layer.log_weight.fill_(np.log(lam))  # it was rounded to float32
        layer.log_entropy.fill_(np.log(entropy))
    logits = planes("o").clone().requires_grad_()
    probabilities = layer(logits, image)
    assert float(layer.solution.gap) <= 1e-12
    torch.testing.assert_close(probabilities, planes("A"), rtol=1e-6, atol=1e-6)
    (probabilities * planes("g")).sum().backward()
    torch.testing.assert_close(logits.grad, planes("vjp"), rtol=1e-5, atol=1e-6)
    assert float(layer.log_weight.grad) / lam == pytest.approx(float(data["dL_dlam"]), rel=1e-4)
    assert float(layer.log_entropy.grad) / entropy == pytest.approx(float(data["dL_deps"]), rel=1e-4)


@BY_NAME
def test_jacobian_is_symmetric_bounded_and_keeps_sums(regularizer: Any) -> None:
    image, logits = image_of(1, 3, 5, 7), random(1, 3, 5, 7, seed=1).requires_grad_()
    layer = RegularizedSoftmax(regularizer, EXACT, 0.4, **EXACTLY)
    probabilities = layer(logits, image)
    g, h = random(1, 3, 5, 7, seed=2), random(1, 3, 5, 7, seed=3)
    (of_g,) = torch.autograd.grad(probabilities, logits, g, retain_graph=True)
    (of_h,) = torch.autograd.grad(probabilities, logits, h)
    assert float(of_g.sum(1).abs().max()) < 1e-12
    assert float((of_g * h).sum()) == pytest.approx(float((of_h * g).sum()), rel=1e-8)
    assert float((of_g * g).sum()) >= 0
    assert float(of_g.norm()) <= float(g.norm()) / (2 * 0.4)
    # Also where conjugate gradients are stopped early.
    for steps in (1, 5):
        early = RegularizedSoftmax(regularizer, EXACT, 0.4, backward_steps=steps, backward_tolerance=0.0)
        (of_g,) = torch.autograd.grad(early(logits, image), logits, g)
        assert float(of_g.sum(1).abs().max()) < 1e-12
        assert float((of_g * g).sum()) >= 0
        assert float(of_g.norm()) <= float(g.norm()) / (2 * 0.4)


def test_looking_less_often_at_conjugate_gradients_changes_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, where every tenth step is looked at: by tensors, and through the steps of dca."""
    image, logits, g = image_of(2, 3, 4, 5), random(2, 3, 4, 5, seed=1).requires_grad_(), random(2, 3, 4, 5, seed=2)
    layers = [
        RegularizedSoftmax(TotalVariation(0.4), PDHG(200, 1e-8, compiled=False), 0.4, **EXACTLY),
        RegularizedSoftmax(ThresholdDynamics(0.8, sigma=1.0), DCA(200, 1e-9), 0.5, **EXACTLY),
    ]
    expected = [torch.autograd.grad(layer(logits, image), logits, g)[0] for layer in layers]
    monkeypatch.setattr("regloss.implicit.look_every", lambda device: 10)
    monkeypatch.setattr("regloss_plugins.solvers.dca.look_every", lambda device: 10)
    found = [torch.autograd.grad(layer(logits, image), logits, g)[0] for layer in layers]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)


@BY_NAME
def test_implicit_gradient_matches_finite_differences(regularizer: Any) -> None:
    """In the logits, the weights and the entropy; of probabilities and of their logarithms."""
    image, logits = image_of(2, 3, 4, 5), random(2, 3, 4, 5, seed=4)
    g, direction = random(2, 3, 4, 5, seed=5), random(2, 3, 4, 5, seed=6)
    layer = RegularizedSoftmax(regularizer, EXACT, 0.5, learn=("weight", "entropy"), **EXACTLY).double()
    for function in (layer.forward, layer.log_probabilities):
        layer.zero_grad()
        variable = logits.clone().requires_grad_()
        (function(variable, image) * g).sum().backward()
        step = 1e-5

        def value(at: Tensor, function: Any = function) -> float:
            return float((function(at, image) * g).sum())

        with torch.no_grad():
            slope = (value(logits + step * direction) - value(logits - step * direction)) / (2 * step)
            assert float((variable.grad * direction).sum()) == pytest.approx(slope, rel=1e-5, abs=1e-8)
            for parameter in (layer.log_weight, layer.log_entropy):
                for index in range(parameter.numel()):
                    flat = parameter.view(-1)
                    flat[index] += step
                    above = value(logits)
                    flat[index] -= 2 * step
                    slope = (above - value(logits)) / (2 * step)
                    flat[index] += step
                    assert float(parameter.grad.view(-1)[index]) == pytest.approx(slope, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize(
    ("regularizer", "mistaken"),
    [
        (TotalVariation(0.3), True),
        (TotalVariation(1.0), True),
        (NonlocalTV(0.1), True),
        (NonlocalTV(0.4), False),  # constant on every component of the graph: nothing to mistake
    ],
    ids=["tv-.3", "tv-1", "nltv-.1", "nltv-.4"],
)
def test_polished_gradient_of_an_inexact_solution(regularizer: Any, mistaken: bool) -> None:
    """At a gap of 1e-4 per pixel forward, within 1e-3 of the minimiser's gradient; without polishing it is not."""
    size = 32
    rows, columns = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    classes = (rows // 8 + columns // 8) % 3
    image = (0.2 + 0.3 * classes + 0.05 * random(3, size, size, seed=30)).clamp(0, 1).unsqueeze(0)
    score = 1.5 * regloss.solver.one_hot(classes.unsqueeze(0), 3, torch.float64) + random(1, 3, size, size, seed=31)
    term, g, direction = regularizer.bind(image), random(1, 3, size, size, seed=32), random(1, 3, size, size, seed=33)

    def gradient(solver: PDHG, **settings: Any) -> Tensor:
        layer = RegularizedSoftmax(regularizer, solver, **settings)
        logits = score.clone().requires_grad_()
        (layer(logits, term) * g).sum().backward()
        assert float(layer.solution.gap) <= solver.tolerance * size**2
        return logits.grad

    minimiser = PDHG(max_steps=20000, tolerance=1e-13)
    exact = gradient(minimiser, **EXACTLY)
    exactly = RegularizedSoftmax(regularizer, minimiser)
    step = 1e-6
    with torch.no_grad():
        ends = [float((exactly(score + sign * step * direction, term) * g).sum()) for sign in (1, -1)]
    assert float((exact * direction).sum()) == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-4)

    def error(**settings: Any) -> float:
        return float((gradient(PDHG(1000, 1e-4), **settings) - exact).norm() / exact.norm())

    assert error(polish=1e-8) <= 1e-3
    assert (error() > 1e-2) == mistaken


@pytest.mark.parametrize(("polish", "count"), [(None, 1), (1e-8, 2)])  # of another solution once more
@pytest.mark.parametrize("logarithms", [True, False])
def test_log_probabilities_are_computed_once(
    polish: float | None, count: int, logarithms: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    original = PDHG.log_probabilities

    def counted(*arguments: Any) -> Tensor:
        calls.append(arguments)
        return original(*arguments)

    monkeypatch.setattr(PDHG, "log_probabilities", counted)
    layer = RegularizedSoftmax(TotalVariation(0.3), polish=polish)
    logits = random(1, 3, 5, 6, seed=1).requires_grad_()
    call = layer.log_probabilities if logarithms else layer
    call(logits, image_of(1, 1, 5, 6))[:, 0].sum().backward()
    assert len(calls) == count


def test_gradcheck() -> None:
    layer = RegularizedSoftmax(TotalVariation(0.3), EXACT, 0.5, **EXACTLY)
    logits = random(1, 2, 3, 3, seed=7).requires_grad_()
    assert torch.autograd.gradcheck(lambda o: layer(o, image_of(1, 1, 3, 3)), (logits,), rtol=1e-5, atol=1e-6)


def test_edge_weights_get_gradients() -> None:
    """From the solution implicitly, and through the steps, on a graph of the user's own."""
    regularizer = NonlocalTV(0.3, neighbors=3, sigma_rgb=0.3)
    bound = regularizer.bind(image_of(2, 3, 4, 5))
    logits, g = random(2, 3, 4, 5, seed=8), random(2, 3, 4, 5, seed=9)
    scale = (bound.weights > 0) * (1 + 0.3 * random(*bound.weights.shape, seed=10).abs())
    for solver, backward, tolerance in ((EXACT, "implicit", 1e-5), (PDHG(8, 0.0), "unrolled", 1e-6)):
        layer = RegularizedSoftmax(regularizer, solver, 0.5, backward=backward, **EXACTLY)

        def value(weights: Tensor, layer: Any = layer) -> Tensor:
            return (layer(logits, NonlocalTerm(regularizer, bound.edges, weights, (2, 4, 5))) * g).sum()

        factor = torch.ones((), dtype=torch.float64, requires_grad=True)
        weights = bound.weights * factor * scale  # computed, not a leaf: as by a network
        (gradient,) = torch.autograd.grad(value(weights), factor)
        with torch.no_grad():
            slope = (value(bound.weights * scale * 1.00001) - value(bound.weights * scale * 0.99999)) / 2e-5
        assert float(gradient) == pytest.approx(float(slope), rel=tolerance, abs=1e-7)


@BY_NAME
def test_backward_may_be_called_twice(regularizer: Any) -> None:
    logits = random(1, 3, 4, 5, seed=28).requires_grad_()
    layer = RegularizedSoftmax(regularizer, learn=("weight", "entropy"))
    loss = layer(logits, image_of(1, 3, 4, 5))[:, 0].sum()
    loss.backward(retain_graph=True)
    once = [parameter.grad.clone() for parameter in (logits, *layer.parameters())]
    loss.backward()
    for parameter, first in zip((logits, *layer.parameters()), once, strict=True):
        torch.testing.assert_close(parameter.grad, 2 * first)


@pytest.mark.parametrize("method", ["accelerated", "projected-gradient", "lazy"])
@pytest.mark.parametrize("steps", ["diagonal", 0.05])
def test_unrolled_gradient_is_that_of_the_steps(method: Any, steps: Any) -> None:
    image, logits = image_of(2, 3, 5, 4), random(2, 3, 5, 4, seed=11)
    g, direction = random(2, 3, 5, 4, seed=12), random(2, 3, 5, 4, seed=13)
    for regularizer in REGULARIZERS:
        solver = PDHG(12, 1e-3, method, steps)
        layer = RegularizedSoftmax(
            regularizer, solver, 0.5, tolerance=0.0, backward="unrolled", learn=("weight", "entropy")
        ).double()
        variable = logits.clone().requires_grad_()
        (layer(variable, image) * g).sum().backward()
        assert layer.solution is None

        def value(at: Tensor, layer: Any = layer) -> float:
            return float((layer(at, image) * g).sum())

        step = 1e-6
        with torch.no_grad():
            slope = (value(logits + step * direction) - value(logits - step * direction)) / (2 * step)
            assert float((variable.grad * direction).sum()) == pytest.approx(slope, rel=1e-6, abs=1e-7)
            for parameter in (layer.log_weight, layer.log_entropy):
                parameter += step
                above = value(logits)
                parameter -= 2 * step
                slope = (above - value(logits)) / (2 * step)
                parameter += step
                assert float(parameter.grad.sum()) == pytest.approx(slope, rel=1e-6, abs=1e-7)
            if steps == "diagonal" and method == "accelerated":
                # Forward it is the solver's own result.
                term, entropy = regularizer.bind(image), float(layer.entropy)
                found = regloss.solve(term, -logits, PDHG(12, 0.0), entropy=entropy)
                torch.testing.assert_close(layer(logits, image), found.probabilities, rtol=0, atol=1e-6)


@BY_NAME
def test_one_step_gradient_is_that_of_one_step(regularizer: Any) -> None:
    """Of the step from dual variables that are held; forward nothing changes at a converged solution."""
    image, logits, g = image_of(1, 3, 5, 4), random(1, 3, 5, 4, seed=14), random(1, 3, 5, 4, seed=15)
    # Where it is not converged, no dual variable sits on a kink of the projection, so differences are derivatives.
    layer = RegularizedSoftmax(regularizer, PDHG(10, 0.0), 0.5, backward="one-step")
    variable = logits.clone().requires_grad_()
    probabilities = layer(variable, image)
    (gradient,) = torch.autograd.grad((probabilities * g).sum(), variable)
    state, direction, step = layer.solution.state, random(1, 3, 5, 4, seed=16), 1e-6

    def value(at: Tensor) -> float:
        found = regloss.solve(regularizer.bind(image), -at, PDHG(1, 0.0), entropy=0.5, warm=state)
        return float((found.probabilities * g).sum())

    slope = (value(logits + step * direction) - value(logits - step * direction)) / (2 * step)
    assert float((gradient * direction).sum()) == pytest.approx(slope, rel=1e-6, abs=1e-8)
    exact = RegularizedSoftmax(regularizer, EXACT, 0.5)(logits, image)
    layer = RegularizedSoftmax(regularizer, EXACT, 0.5, backward="one-step")
    torch.testing.assert_close(layer(variable, image), exact, rtol=0, atol=1e-6)
    with torch.no_grad():
        torch.testing.assert_close(layer(logits, image), exact, rtol=0, atol=1e-6)


def test_gradient_follows_the_gap() -> None:
    """The looser the solution, the less exact its gradient; at 1e-7 per pixel it is within 1e-3."""
    image, logits, g = image_of(1, 3, 24, 24), random(1, 3, 24, 24, seed=17), random(1, 3, 24, 24, seed=18)
    smooth = nn.functional.avg_pool2d(3 * logits, 5, stride=1, padding=2)
    for regularizer in (TotalVariation(0.3), NonlocalTV(0.3, neighbors=5, sigma_rgb=0.3)):
        gradients = []
        for tolerance in (1e-13, 1e-4, 1e-7):
            layer = RegularizedSoftmax(regularizer, PDHG(20000, tolerance), 0.5, backward_steps=3000)
            variable = smooth.clone().requires_grad_()
            (layer(variable, image) * g).sum().backward()
            gradients.append(variable.grad)
        loose, tight = ((gradient - gradients[0]).norm() / gradients[0].norm() for gradient in gradients[1:])
        assert float(tight) < 1e-3
        assert float(tight) < float(loose) < 0.2


def test_region_of_interest_and_batch() -> None:
    """Pixels outside are softmaxed alone; images do not see each other, forward and backward."""
    image, logits, g = image_of(2, 3, 6, 5), random(2, 3, 6, 5, seed=19), random(2, 3, 6, 5, seed=20)
    region = torch.ones(2, 6, 5, dtype=torch.bool)
    region[0, :, 3:] = False
    layer = RegularizedSoftmax(NonlocalTV(0.3, neighbors=3), EXACT, 0.5, **EXACTLY)
    variable = logits.clone().requires_grad_()
    together = layer(variable, image, region)
    (together * g).sum().backward()
    outside = ~region.unsqueeze(1).expand_as(logits)
    torch.testing.assert_close(together[outside], (logits / 0.5).softmax(1)[outside])
    for i in range(2):
        single = logits[[i]].clone().requires_grad_()
        alone = layer(single, image[[i]], region[[i]])
        (alone * g[[i]]).sum().backward()
        torch.testing.assert_close(alone[0], together[i], rtol=0, atol=1e-7)
        torch.testing.assert_close(single.grad[0], variable.grad[i], rtol=0, atol=1e-5)
    crop = layer(logits[:1, :, :, :3], image[:1, :, :, :3])
    torch.testing.assert_close(crop[0], together[0, :, :, :3], rtol=0, atol=1e-7)


@pytest.mark.parametrize("backward", ["implicit", "unrolled", "one-step"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_precision_follows_the_logits(backward: Any, dtype: torch.dtype) -> None:
    """Half precision, and autocast, are computed in float32; float32 is within 1e-4 of float64."""
    image, logits = image_of(1, 3, 5, 6).float(), random(1, 3, 5, 6, seed=21).to(dtype)
    solver = PDHG(400, 1e-6) if backward != "unrolled" else PDHG(20, 0.0)
    layer = RegularizedSoftmax(TotalVariation(0.3), solver, 0.5, backward=backward)
    variable = logits.clone().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        probabilities = layer(variable, image)
    (probabilities.float() * random(1, 3, 5, 6, seed=22)).sum().backward()
    assert probabilities.dtype == variable.grad.dtype == dtype
    exact = logits.double().requires_grad_()
    wanted = RegularizedSoftmax(TotalVariation(0.3), solver, 0.5, backward=backward)(exact, image.double())
    (wanted * random(1, 3, 5, 6, seed=22)).sum().backward()
    tolerance = {torch.float32: 1e-4, torch.float64: 1e-6, torch.bfloat16: 2e-2, torch.float16: 2e-3}[dtype]
    torch.testing.assert_close(probabilities.double(), wanted, rtol=0, atol=tolerance)
    torch.testing.assert_close(variable.grad.double(), exact.grad, rtol=0, atol=20 * tolerance)


def test_extreme_logits_have_finite_gradients() -> None:
    """Probabilities underflow, their logarithms do not, and neither breaks the gradient."""
    logits = torch.tensor([[[[400.0, -400.0, 0.0]], [[-400.0, 400.0, 0.0]]]]).requires_grad_()
    layer = RegularizedSoftmax(TotalVariation(0.3), PDHG(2000, 1e-6), 0.5)
    for function in (layer.forward, layer.log_probabilities):
        output = function(logits, torch.zeros(1, 1, 1, 3))
        assert bool(output.isfinite().all())
        (gradient,) = torch.autograd.grad(nn.functional.nll_loss(output, torch.tensor([[[1, 0, 0]]])), logits)
        assert bool(gradient.isfinite().all())


@pytest.mark.parametrize("backward", ["implicit", "unrolled", "one-step"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [(3, 4), (1, 5)])
@pytest.mark.parametrize(
    ("regularizer", "solver"),
    [
        (ThresholdDynamics(sigma=1.0), "dca"),
        (ThresholdDynamics(weight=0.0), "dca"),
        (NonlocalTV(neighbors=1), "pdhg"),
        (NonlocalTV(neighbors=1), "dca"),
        (TotalVariation(isotropic=True), "pdhg"),
        (Sum([ThresholdDynamics(sigma=1.0), TotalVariation()]), "dca"),
    ],
)
def test_gradients_are_finite_for_logits_of_any_size(
    regularizer: Any, solver: str, size: tuple[int, int], dtype: torch.dtype, backward: Any
) -> None:
    """From ones that all but vanish, at whose minima tensors are 0, to ones whose probabilities underflow."""
    layer = RegularizedSoftmax(regularizer, solver, 0.5, max_steps=5, backward=backward)
    image = image_of(2, 3, *size).to(dtype)
    for scale in (0.0, 1e-38, 1e-30, 1e-6, 1.0, 10.0, 1e4):
        logits = (scale * random(2, 3, *size, seed=5)).to(dtype).requires_grad_()
        for function in (layer.forward, layer.log_probabilities):
            output = function(logits, image)
            assert bool(output.isfinite().all())
            (gradient,) = torch.autograd.grad(output.amax(1).sum(), logits)
            assert bool(gradient.isfinite().all()), f"logits of {scale}"


def test_warm_start_and_bound_terms() -> None:
    image, logits = image_of(1, 3, 8, 8), random(1, 3, 8, 8, seed=23)
    layer = RegularizedSoftmax(TotalVariation(0.3), PDHG(2000, 1e-7), 0.5)
    cold = layer(logits, image)
    steps, state = int(layer.solution.steps), layer.solution.state
    for warm in (layer.solution, state):
        again = layer(logits, image, warm=warm)
        assert int(layer.solution.steps) < steps
        torch.testing.assert_close(again, cold, rtol=0, atol=1e-4)
    torch.testing.assert_close(layer(logits, layer.regularizer.bind(image)), cold)
    heavier = TotalVariation(0.6).bind(image)  # a term's own weight counts, unless the layer learns it
    assert not torch.allclose(layer(logits, heavier), cold)
    learnt = RegularizedSoftmax(TotalVariation(0.3), PDHG(2000, 1e-7), 0.5, learn=("weight",))
    torch.testing.assert_close(learnt(logits, heavier), cold, rtol=0, atol=1e-3)


@pytest.mark.parametrize("solver", [EXACT, DCA(500, 1e-10, convex=EXACT)], ids=["pdhg", "dca"])
def test_a_star_takes_its_center_from_the_logits(solver: Any) -> None:
    """Of each image its own, without a gradient; alone, in sums, with learnt weights, and on bound terms."""
    y, x = torch.meshgrid(torch.arange(9), torch.arange(11), indexing="ij")
    hole = [((y - a) ** 2 + (x - b) ** 2 <= 9) & ((y - a) ** 2 + (x - b - 1) ** 2 > 1) for a, b in ((4, 4), (5, 7))]
    logits = 0.5 * random(2, 2, 9, 11, seed=30)
    logits[:, 1] += 4 * torch.stack(hole) - 2
    image, g = torch.zeros(2, 1, 9, 11, dtype=torch.float64), random(2, 2, 9, 11, seed=31)
    center = StarShape().centered_on(logits.softmax(1)).center
    assert not torch.equal(center[0], center[1])
    for regularizer, given in (
        (StarShape(), StarShape(center=center)),
        (Sum([StarShape(), TotalVariation(0.1)]), Sum([StarShape(center=center), TotalVariation(0.1)])),
    ):
        gradients = []
        for chosen in (regularizer, given):
            layer = RegularizedSoftmax(chosen, solver, 0.5, **EXACTLY)
            variable = logits.clone().requires_grad_()
            found = layer(variable, image)
            (found * g).sum().backward()
            gradients.append((found.detach(), variable.grad))
            assert StarShape(center=center).bind(image).energy(found).tolist() == [0, 0]
        for mine, expected in zip(*gradients, strict=True):
            torch.testing.assert_close(mine, expected)
        layer = RegularizedSoftmax(regularizer, solver, 0.5)
        torch.testing.assert_close(layer(logits, regularizer.bind(image)), gradients[0][0])
        learnt = RegularizedSoftmax(regularizer, solver, 0.5, learn=("weight",)).double()
        torch.testing.assert_close(learnt(logits, image), gradients[0][0], rtol=0, atol=1e-6)
    with pytest.raises(UsageError, match="K = 1"):
        RegularizedSoftmax("star")(logits[:, :1], image)
    with pytest.raises(UsageError, match=r"class 2.*K = 2"):
        RegularizedSoftmax(StarShape(label=2))(logits, image)


def test_an_image_without_the_class_has_a_center_too() -> None:
    """The class nowhere the most probable one, or so improbable that nothing of it is left in float32."""
    for offset in (5.0, 1e4):
        logits = random(1, 2, 6, 7, seed=32).float()
        logits[:, 0] += offset
        variable = logits.requires_grad_()
        found = RegularizedSoftmax("star", "pdhg", 0.5)(variable, torch.zeros(1, 1, 6, 7))
        found[:, 1].sum().backward()
        assert float(found[:, 1].max().detach()) < 0.5
        assert bool(variable.grad.isfinite().all())


def test_settings_are_learnt_and_stored() -> None:
    """A few steps of descent move weight and entropy; a copy, and a saved state, know them."""
    image, logits = image_of(1, 3, 6, 6), random(1, 3, 6, 6, seed=24).float()
    layer = RegularizedSoftmax(["tv", {"name": "nltv", "neighbors": 3}], learn=("weight", "entropy"))
    assert layer.weight.shape == (2,)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.05)
    target, losses = torch.zeros(1, 6, 6, dtype=torch.int64), []
    for _ in range(5):
        optimizer.zero_grad()
        loss = nn.functional.nll_loss(layer.log_probabilities(logits, image), target)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses == sorted(losses, reverse=True)
    assert float(layer.entropy.detach()) != 0.5
    other = RegularizedSoftmax(["tv", {"name": "nltv", "neighbors": 3}], learn=("weight", "entropy"))
    other.load_state_dict(layer.state_dict())
    for twin in (other, copy.deepcopy(layer)):
        assert torch.equal(twin(logits, image), layer(logits, image))
    assert not list(RegularizedSoftmax("tv").parameters())


HEAT = ThresholdDynamics(0.6, sigma=1.1)  # at 1 the kernel gets one pixel longer
GRAPH = NonlocalTV(0.3, neighbors=3, sigma_xy=4.0, sigma_rgb=0.3, sigma_near=2.0)
BANDWIDTHS = {
    "heat": (HEAT, ["sigma"], "dca"),
    "perimeter": (ThresholdDynamics(0.6, sigma=1.3, perimeter=True), ["sigma"], "dca"),
    "sum": (Sum([HEAT, TotalVariation(0.2), ThresholdDynamics(0.2, sigma=1.9)]), ["sigma"], "dca"),
    "graph": (GRAPH, ["sigma_rgb", "sigma_xy"], "pdhg"),
    "rbf of patches": (replace(GRAPH, weights="rbf", patch=1), ["sigma_rgb", "sigma_xy"], "pdhg"),
    "graph and tv": (Sum([GRAPH, TotalVariation(0.1)]), ["sigma_rgb"], "pdhg"),
    "dense": (DenseCRF(0.5, sigma_xy=2.0, sigma_rgb=0.4, backend="exact"), ["sigma_rgb", "sigma_xy"], "dca"),
}


@pytest.mark.parametrize("backward", ["implicit", "unrolled"])
@pytest.mark.parametrize("name", BANDWIDTHS)
@pytest.mark.parametrize("weight", [(), ("weight",)], ids=["", "weight"])
def test_bandwidths_are_learnt(name: str, weight: Any, backward: Any) -> None:
    """Their gradients are the slopes of the layer, at the solution or through the steps."""
    regularizer, learn, kind = BANDWIDTHS[name]
    parts = regularizer.parts if isinstance(regularizer, Sum) else [regularizer]
    if kind == "dca":  # unrolled or not, a nested convex problem is differentiated at its solution
        solver: Any = DCA(300 if backward == "implicit" else 3, tolerance=0.0, convex=PDHG(2000, 1e-14))
    else:
        solver = replace(EXACT, max_steps=3000 if backward == "implicit" else 8)
    layer = RegularizedSoftmax(
        regularizer, solver, 1.0, backward=backward, learn=[*weight, *learn], tolerance=0.0, **EXACTLY
    ).double()
    image, logits, g = image_of(2, 3, 6, 7), random(2, 3, 6, 7, seed=40), random(2, 3, 6, 7, seed=41)
    (layer(logits, image) * g).sum().backward()
    step = 1e-5
    for setting in learn:
        parameter = layer.learnable_parameters()[setting]
        values = [float(getattr(part, setting)) for part in parts if hasattr(part, setting)]
        assert parameter.exp().tolist() == pytest.approx(values)
        assert parameter.grad is not None
        for place, slope in enumerate(parameter.grad.tolist()):
            assert abs(slope) > 1e-6
            found = []
            for moved in (step, -2 * step, step):
                with torch.no_grad():
                    parameter[place] += moved
                    found.append(float((layer(logits, image) * g).sum()))
            assert slope == pytest.approx((found[0] - found[1]) / (2 * step), rel=1e-4, abs=1e-7)


def test_a_learnt_bandwidth_is_told_stored_and_exported() -> None:
    layer = RegularizedSoftmax([HEAT, "tv", ThresholdDynamics()], "dca", 1.0, learn=("sigma",))
    assert list(layer.learnable_parameters()) == ["sigma"]
    names = {"sigma-threshold-dynamics-0": 1.1, "sigma-threshold-dynamics-2": 2.0}
    assert layer.scalars()["sigma"] == pytest.approx(names)
    single = RegularizedSoftmax(HEAT, "dca", 1.0, max_steps=5, learn=("weight", "sigma"))
    with torch.no_grad():
        single.learnable_parameters()["sigma"] += 0.3
    assert single.scalars()["sigma"] == {"sigma-threshold-dynamics": pytest.approx(1.1 * math.exp(0.3), rel=1e-5)}
    image, logits = image_of(1, 1, 6, 7).float(), random(1, 2, 6, 7, seed=42).float()
    by_hand = RegularizedSoftmax(ThresholdDynamics(0.6, sigma=1.1 * math.exp(0.3)), "dca", 1.0, max_steps=5)
    torch.testing.assert_close(single(logits, image), by_hand(logits, image))
    fixed = single.unrolled(5)
    assert not list(fixed.parameters())
    torch.testing.assert_close(fixed(logits, image), by_hand.unrolled(5)(logits, image))
    other = RegularizedSoftmax(HEAT, "dca", 1.0, max_steps=5, learn=("weight", "sigma"))
    other.load_state_dict(single.state_dict())
    assert torch.equal(other(logits, image), single(logits, image))
    with pytest.raises(UsageError, match="To learn sigma, give the image"):
        single(logits, HEAT.bind(image))


def test_it_tells_what_is_learnt() -> None:
    layer = RegularizedSoftmax([{"name": "tv", "weight": 2.0}, "nltv"], entropy=0.25, learn=("entropy",))
    assert layer.learnable_parameters() == {"entropy": layer.log_entropy}
    assert layer.scalars() == {"weight": {"weight-tv": 2, "weight-nltv": 1}, "entropy": {"entropy": 0.25}}
    assert list(RegularizedSoftmax("tv", learn=("weight", "entropy")).learnable_parameters()) == ["weight", "entropy"]
    assert RegularizedSoftmax("tv").learnable_parameters() == {}


def test_attached_networks_give_log_probabilities() -> None:
    network = nn.Conv2d(3, 2, 3, padding=1)
    image = image_of(2, 3, 7, 6).float()
    whole = attach(network, RegularizedSoftmax(TotalVariation(0.3)))
    output = whole(image)
    torch.testing.assert_close(output.softmax(1), whole.layer(network(image), image))
    torch.testing.assert_close(output.exp().sum(1), torch.ones(2, 7, 6))
    nn.functional.cross_entropy(output, torch.zeros(2, 7, 6, dtype=torch.int64)).backward()
    assert all(float(parameter.grad.abs().max()) > 0 for parameter in network.parameters())
    normalised = whole(3 * image - 1, guide=image)  # the network sees another image than the regularizer
    torch.testing.assert_close(normalised.softmax(1), whole.layer(network(3 * image - 1), image))


@pytest.mark.parametrize("regularizer", [TotalVariation(0.3), [TotalVariation(0.3), Volume(volumes=(20, 10))]], ids=str)
def test_log_probabilities_are_computed_once_a_step(regularizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward, backward and the rounding of hard constraints share them."""
    compute, calls = PDHG.log_probabilities, []

    def counted(self: PDHG, problem: Any, solution: Any) -> Tensor:
        calls.append(solution)
        return compute(self, problem, solution)

    layer = RegularizedSoftmax(regularizer, max_steps=5)
    logits, image = random(1, 2, 5, 6, seed=1).requires_grad_(), image_of(1, 1, 5, 6)
    layer(logits, image)
    expected = layer.solution
    monkeypatch.setattr(PDHG, "log_probabilities", counted)
    layer(logits, image).square().sum().backward()
    assert len(calls) == 1
    assert layer.solution is not None
    assert expected is not None
    assert layer.solution.labels.tolist() == expected.labels.tolist()
    assert layer.solution.log_probabilities is None


def test_memory_does_not_grow_with_the_steps() -> None:
    """What the implicit gradient keeps is what one solution is; unrolling keeps every step."""

    def kept(layer: RegularizedSoftmax) -> int:
        logits = random(1, 3, 16, 16, seed=25).requires_grad_()
        sizes: list[int] = []

        def pack(tensor: Tensor) -> Tensor:
            sizes.append(tensor.numel() * tensor.element_size())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            layer(logits, image_of(1, 3, 16, 16))
        return sum(sizes)

    implicit = [kept(RegularizedSoftmax("tv", PDHG(steps, 0.0))) for steps in (10, 50)]
    unrolled = [kept(RegularizedSoftmax("tv", PDHG(steps, 0.0), backward="unrolled")) for steps in (10, 50)]
    assert implicit[0] == implicit[1]
    assert unrolled[1] > 4 * unrolled[0]
    solution = 8 * 16 * 16 * 3 * 4  # probabilities, costs and dual variables for two axes
    assert implicit[1] <= solution


def test_adjoint_reports_its_residual() -> None:
    """Where the linear system is solved, and where it is stopped before."""
    image, logits = image_of(1, 3, 6, 6), random(1, 3, 6, 6, seed=26)
    layer = RegularizedSoftmax(TotalVariation(0.4), EXACT, 0.5)
    probabilities = layer(logits, image)
    form = layer.regularizer.bind(image).form(Saddle)

    def respond(x: Tensor) -> Tensor:
        return (probabilities * x - probabilities * (probabilities * x).sum(1, keepdim=True)) / 0.5

    start = respond(random(1, 3, 6, 6, seed=27))
    duals = layer.solution.state.duals
    for steps, tolerance in ((500, 1e-8), (3, 1e-8)):
        found = solve_adjoint(form, duals, probabilities, 0.5, start, respond, max_steps=steps, tolerance=tolerance)
        assert found.steps <= steps
        assert bool((found.residual <= tolerance).all()) == (steps == 500)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"entropy": 0.0}, "entropy"),
        ({"backward": "exact"}, "implicit"),
        ({"learn": ("sigma",)}, "With tv learn may hold weight, entropy; got 'sigma'"),
        ({"regularizer": "nltv", "learn": ("near",)}, "With nltv learn may hold weight, entropy, sigma_xy, sigma_rgb"),
        ({"regularizer": NonlocalTV(sigma_xy=math.inf), "learn": ("sigma_xy",)}, "must start finite and above 0"),
        ({"backward_steps": 0}, "backward_steps"),
        ({"polish": -1.0}, "tolerance"),
        ({"polish": 1e-7, "polish_steps": 0}, "max_steps"),
        ({"polish": 1e-7, "backward": "unrolled"}, "polish belongs"),
        ({"solver": "mean-field"}, "pdhg"),
        ({"solver": AlphaExpansion()}, "pdhg"),
        ({"max_steps": 0}, "max_steps"),
        ({"regularizer": None}, "softmax"),
        ({"regularizer": TotalVariation(0.0), "learn": ("weight",)}, "above 0"),
    ],
    ids=str,
)
def test_bad_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        RegularizedSoftmax(**{"regularizer": "tv", **settings})


@pytest.mark.parametrize("solver", ["pdhg", "dca"])
@pytest.mark.parametrize(
    ("regularizer", "message"),
    [
        (StarShape(center=(9, 1)), "outside the image"),
        (StarShape(center=(1, -3)), "outside the image"),
        (StarShape(center=[[1, 1], [2, 2]]), "must have the shape"),
        (StarShape(label=3), "K = 3"),
        (Volume(volumes=(5, 5, 5)), "sum to 15, and there are 16"),
        (Volume(volumes=(8, 8)), "2 classes.*K = 3"),
        (Volume(lower=(10, 10, 0)), "at least 20"),
        (Volume(upper=(5, 5, 5)), "at most 15"),
        (Volume(lower=(5, 0, 0), upper=(4, 16, 16)), "exceeds the upper"),
    ],
    ids=str,
)
def test_impossible_constraints_are_refused(regularizer: Any, message: str, solver: str) -> None:
    for chosen in (regularizer, [regularizer, TotalVariation(0.1)]):
        with pytest.raises(UsageError, match=message):
            RegularizedSoftmax(chosen, solver)(torch.zeros(1, 3, 4, 4), torch.zeros(1, 1, 4, 4))


def test_a_class_of_volume_zero_gets_nothing() -> None:
    """Documented limit: dca leaves the class out; gradients are finite."""
    logits = random(1, 3, 4, 4, seed=33).requires_grad_()
    found = RegularizedSoftmax(Volume(volumes=(10, 6, 0)), "dca", 0.5)(logits, torch.zeros(1, 1, 4, 4))
    assert float(found[:, 2].max().detach()) == 0
    found[:, 0].square().sum().backward()
    assert bool(logits.grad.isfinite().all())


def test_bad_input_is_refused() -> None:
    layer, image = RegularizedSoftmax("tv"), torch.zeros(1, 1, 3, 3)
    with pytest.raises(MissingForm, match="needs Saddle"):
        RegularizedSoftmax("grid-crf")
    with pytest.raises(MissingForm, match="convex: it offers Projection"):
        RegularizedSoftmax("convex")
    for value in (torch.inf, torch.nan):
        logits = torch.zeros(1, 2, 3, 3)
        logits[0, 0, 1, 1] = value
        with pytest.raises(UsageError, match="logits"):
            layer(logits, image)
    for wrong in (torch.zeros(1, 1, 3, 3), torch.zeros(1, 2, 3, 4), torch.zeros(2, 2, 3, 3)):
        with pytest.raises(UsageError):
            layer(wrong, image)
    with pytest.raises(UsageError, match="roi"):
        layer(torch.zeros(1, 2, 3, 3), layer.regularizer.bind(image), torch.ones(1, 3, 3, dtype=torch.bool))
    summed = RegularizedSoftmax(["tv", {"name": "tv", "isotropic": True}], learn=("weight",))
    with pytest.raises(UsageError, match="give the image"):
        summed(torch.zeros(1, 2, 3, 3), summed.regularizer.bind(image))
