"""Priors, their forms, solvers, layers, data terms, divergences and loops: the same numbers on every device."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import regloss
from regloss import registry
from regloss.batch import Batch
from regloss.forms import Composite, Concave, Graph, GridGraph, Saddle
from regloss.regularizer import Regularizer
from regloss.testing.suite import normal_values, random_image, random_labels

pytestmark = pytest.mark.gpu

SIZE = (8, 9)
REGION = torch.ones(2, *SIZE, dtype=torch.bool)
REGION[1, :2, 5:] = False
IMAGE = random_image(2, 3, SIZE)
LABELS = random_labels(2, *SIZE, classes=2, seed=4)
SEEDS = torch.where(normal_values(2, *SIZE, seed=3) > 0.8, LABELS, 255)
CENTER = {"star": {"center": (4, 4)}}


def regularizer(name: str, **settings: Any) -> Regularizer:
    """One for two classes."""
    kind = registry.get("regularizer", name)
    made: Regularizer = kind(**{**kind.example, **CENTER.get(name, {}), **settings})
    return made


def logits(place: Any, classes: int = 2) -> Tensor:
    values: Tensor = place(normal_values(2, classes, *SIZE, seed=1))
    return values.requires_grad_()


def with_gradient(value: Tensor, variable: Tensor) -> tuple[Tensor, Tensor]:
    (gradient,) = torch.autograd.grad(value.sum(), variable)
    return value.detach(), gradient


def test_there_is_a_gpu():
    if not torch.cuda.is_available():
        pytest.skip("there is no CUDA device, so everything here is compared on the CPU alone")
    assert torch.ones(1, device="cuda").sum().is_cuda


# --------------------------------------------------------------------------------------------------------------------
# Priors


@pytest.mark.parametrize("name", registry.names("regularizer"))
def test_energies_and_gradients(name, agrees):
    def work(place):
        scores = logits(place)
        term = regularizer(name, weight=0.7).bind(place(IMAGE), place(REGION))
        return with_gradient(term.penalty(scores.softmax(1)), scores)

    agrees(work, 1e-4)


@pytest.mark.parametrize("name", registry.names("regularizer"))
def test_forms(name, agrees):
    def work(place):
        s = logits(place).detach().softmax(1)
        term = regularizer(name, weight=0.7).bind(place(IMAGE), place(REGION))
        found = []
        for kind in term.regularizer.forms:
            form = term.form(kind)
            if isinstance(form, Composite):
                found += [] if form.concave is None else [form.concave.supergradient(s)]
                for part in form.parts:
                    residual = part.residual(s)
                    found += [residual, part.operator.adjoint(residual), part.dual_set.project(3 * residual)]
            elif isinstance(form, GridGraph | Graph):
                found.append(form.cut(place(LABELS)))
        return found

    if not set(regularizer(name).forms) & {Composite, Concave, Saddle, GridGraph, Graph}:
        pytest.skip(f"{name} has no form whose numbers could be compared")
    agrees(work, 1e-4)


# --------------------------------------------------------------------------------------------------------------------
# Solvers

SOLVERS: dict[str, tuple[str, dict[str, Any], float]] = {
    "pdhg": ("tv", {"max_steps": 30, "tolerance": 0.0}, 0.5),
    "dca": ("threshold-dynamics", {"max_steps": 20, "tolerance": 0.0}, 0.5),
    "mean-field": ("dense-crf", {"max_steps": 5}, 1.0),
    "projected": ("convex", {}, 0.5),
    "parallel-potts": ("grid-crf", {"max_steps": 40, "coarse_steps": 10, "check_every": 20}, 0.0),
}
OTHERS = [
    ("pdhg", "nltv", {"neighbors": 4}),
    ("pdhg", "volume", {}),
    ("pdhg", "star", {}),
    ("pdhg", "ordered", {}),
    ("pdhg", "tv", {"isotropic": True}),
]
PACKAGES = {"pymaxflow": "maxflow", "gco": "gco"}


@pytest.mark.parametrize(
    ("solver", "prior", "settings"), [*((name, None, {}) for name in registry.names("solver")), *OTHERS]
)
def test_solvers(solver, prior, settings, agrees):
    if solver in PACKAGES:
        pytest.importorskip(PACKAGES[solver])
    first, options, entropy = SOLVERS.get(solver, ("grid-crf", {}, 0.0))

    def work(place):
        term = regularizer(prior or first, weight=0.3, **settings).bind(place(IMAGE), place(REGION))
        fixed = place(torch.where(SEEDS == 255, -1, SEEDS)) if solver != "projected" else None
        if prior in ("volume", "star", "ordered"):
            fixed = None
        chosen = registry.create("solver", solver, **options)
        solution = regloss.solve(term, logits(place).detach(), chosen, entropy=entropy, fixed=fixed)
        return solution.energy, solution.probabilities

    agrees(work, 1e-3)


def test_on_random_costs_as_good_as_on_the_cpu(device):
    """Of three labels; no reference but the solver's own on the CPU, in the same precision."""
    image, unary = IMAGE[:, :1].float(), normal_values(2, 3, *SIZE, seed=6, dtype=torch.float32)
    for solver in ("alpha-expansion", "dual-chains", "parallel-potts"):
        energies = [
            regloss.solve(regularizer("grid-crf").bind(image.to(place)), unary.to(place), solver).energy.cpu()
            for place in ("cpu", device)
        ]
        torch.testing.assert_close(energies[1], energies[0], rtol=1e-3, atol=1e-3)


# --------------------------------------------------------------------------------------------------------------------
# Layers

STEPS = {"max_steps": 30, "tolerance": 0.0}
LAYERS: dict[str, Any] = {
    "tv": lambda: regloss.RegularizedSoftmax(regularizer("tv", weight=0.3), **STEPS),
    "tv-unrolled": lambda: regloss.RegularizedSoftmax(regularizer("tv", weight=0.3), backward="unrolled", **STEPS),
    "nltv": lambda: regloss.RegularizedSoftmax(regularizer("nltv", weight=0.3, neighbors=4), **STEPS),
    "volume": lambda: regloss.RegularizedSoftmax(regularizer("volume"), **STEPS),
    "star": lambda: regloss.RegularizedSoftmax(regularizer("star"), **STEPS),
    "ordered": lambda: regloss.RegularizedSoftmax(regularizer("ordered"), **STEPS),
    "tv-and-star": lambda: regloss.RegularizedSoftmax([regularizer("tv", weight=0.3), regularizer("star")], **STEPS),
    "tv-and-volume": lambda: regloss.RegularizedSoftmax(
        [regularizer("tv", weight=0.3, isotropic=True), regularizer("volume")], **STEPS
    ),
    "threshold-dynamics": lambda: regloss.RegularizedSoftmax(
        regularizer("threshold-dynamics"), solver="dca", backward="unrolled", **STEPS
    ),
    "sigmoid": lambda: regloss.create("layer", "sigmoid", regularizer=regularizer("tv", weight=0.3), **STEPS),
    "dense-crf": lambda: regloss.create("layer", "dense-crf", classes=2),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers(name, agrees):
    def work(place):
        scores, layer = logits(place), place(LAYERS[name]())
        found = layer(scores, place(IMAGE))
        weights = place(normal_values(*found.shape, seed=5))
        (gradient,) = torch.autograd.grad((weights * found).sum(), scores)
        return found.detach(), gradient

    agrees(work, 5e-3)


# --------------------------------------------------------------------------------------------------------------------
# Data terms, divergences, loops


@pytest.mark.parametrize("name", [name for name in registry.names("data-term") if name != "elbo"])
def test_data_terms(name, agrees):
    def work(place):
        scores = logits(place)
        term = registry.create("data-term", name, **registry.get("data-term", name).example)
        sums, counts = term(scores, Batch(place(IMAGE), place(SEEDS), place(REGION)))
        return *with_gradient(sums, scores), counts

    agrees(work, 1e-4)


@pytest.mark.parametrize("name", registry.names("divergence"))
def test_divergences(name, agrees):
    settings = {"robust-kl": {"epsilon": 0.2}}.get(name, {})

    def work(place):
        scores, measure = logits(place), registry.create("divergence", name, **settings)
        soft = measure(place(normal_values(2, 2, *SIZE, seed=7).softmax(1)), scores)
        return *with_gradient(measure(place(LABELS), scores) + soft, scores), measure.unary(scores.detach())

    agrees(work, 1e-4)


LOOPS: dict[str, Any] = {
    "gradient-descent": lambda: regloss.GradientDescent(regularizer("grid-crf")),
    "adm": lambda: regloss.ADM(regularizer("grid-crf"), coupling=0.3),
    "trust-region": lambda: regloss.TrustRegion(regularizer("grid-crf"), coupling=0.3),
    "soft-self-labeling": lambda: regloss.create(
        "outer-loop", "soft-self-labeling", regularizer=regularizer("grid-crf")
    ),
    "splitting": lambda: regloss.create("outer-loop", "splitting", regularizer=regularizer("tv", weight=0.1)),
}


@pytest.mark.parametrize("name", LOOPS)
def test_loops(name, agrees):
    def work(place):
        loop, scores = LOOPS[name](), logits(place)
        batch = Batch(place(IMAGE), place(SEEDS), place(REGION))
        proposal = loop.propose(scores.detach(), batch)
        return with_gradient(loop.objective(scores, batch, proposal), scores)

    agrees(work, 1e-3)


@pytest.mark.parametrize("name", LOOPS)
def test_autocast_changes_no_loop(name, device):
    """Logits in bfloat16; energies and solvers compute in single precision all the same."""
    scores = normal_values(2, 2, *SIZE, seed=1, dtype=torch.float32).to(device, torch.bfloat16)
    batch = Batch(IMAGE.float().to(device), SEEDS.to(device), REGION.to(device))
    found = []
    for enabled in (False, True):
        loop, given = LOOPS[name](), scores.clone().requires_grad_()
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled):
            proposal = loop.propose(given.detach(), batch)
            found.append(with_gradient(loop.objective(given, batch, proposal), given))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)
