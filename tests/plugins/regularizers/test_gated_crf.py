"""Gated CRF: conformance of every relaxation, its definition in plain loops, gates, memory, agreement with grid-crf."""

import itertools
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from regloss import GatedCRF, Graph, GridGraph, UsageError, solve
from regloss.potts import RELAXATIONS, pair_cost
from regloss.testing import RegularizerConformance


def energy_by_loops(crf, image, probabilities, relaxation="bilinear"):
    """One pair of pixels at a time, one image (C, *S)."""
    pixels = list(itertools.product(*map(range, image.shape[1:])))
    total = 0.0
    for p, q in itertools.combinations(pixels, 2):
        steps = [abs(a - b) for a, b in zip(p, q, strict=True)]
        if max(steps) > crf.radius:
            continue
        contrast = float((image[(..., *p)] - image[(..., *q)]).square().sum())
        weight = math.exp(-sum(s * s for s in steps) / (2 * crf.sigma_xy**2) - contrast / (2 * crf.sigma_rgb**2))
        gates = [
            (1 if crf.destination is None else float(crf.destination[(0, *to)]))
            * (1 if crf.source is None else float(crf.source[(0, *come)]))
            for to, come in ((p, q), (q, p))
        ]
        cost = pair_cost(relaxation, probabilities[None][(..., *p)], probabilities[None][(..., *q)])
        total += crf.weight * weight * sum(gates) / 2 * float(cost)
    return total


class GatedConformance(RegularizerConformance):
    nonnegative = True


class TestBilinear(GatedConformance):
    def make(self):
        return GatedCRF(weight=1.7, radius=2, sigma_xy=1.5, sigma_rgb=0.3)


class TestWindowLargerThanTheImage(GatedConformance):
    spatial = (1, 2)

    def make(self):
        return GatedCRF(radius=30, sigma_xy=4.0, sigma_rgb=0.5)


class TestQuadratic(GatedConformance):
    spatial = (2,)

    def make(self):
        return GatedCRF(radius=2, sigma_rgb=0.5, relaxation="quadratic")


class TestTotalVariation(GatedConformance):
    spatial = (2,)
    channels = 1

    def make(self):
        return GatedCRF(radius=1, sigma_rgb=0.5, relaxation="total-variation")


class TestNormalizedQuadratic(GatedConformance):
    spatial = (2, 3)

    def make(self):
        return GatedCRF(radius=1, sigma_rgb=0.5, relaxation="normalized-quadratic")


@pytest.mark.parametrize("relaxation", RELAXATIONS)
@pytest.mark.parametrize(("size", "radius"), [((5, 6), 2), ((4, 3), 9), ((3, 3, 4), 1)])
def test_energy_by_all_pairs(relaxation, size, radius):
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, 2, *size, generator=generator, dtype=torch.float64)
    s = torch.randn(1, 3, *size, generator=generator, dtype=torch.float64).softmax(1)
    crf = GatedCRF(weight=2.0, radius=radius, sigma_xy=2.0, sigma_rgb=0.4, relaxation=relaxation)
    expected = energy_by_loops(crf, image[0], s[0], relaxation)
    assert float(crf.bind(image).energy(s)) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("relaxation", RELAXATIONS)
def test_gradient_by_finite_differences(relaxation):
    """Also where nothing of it is linear, and through gates and a region of interest."""
    generator = torch.Generator().manual_seed(1)
    image = torch.rand(2, 3, 4, 5, generator=generator, dtype=torch.float64)
    region, source, destination = (torch.rand(2, 4, 5, generator=generator) > 0.3 for _ in range(3))
    crf = GatedCRF(radius=2, sigma_rgb=0.5, relaxation=relaxation, source=source, destination=destination)
    term = crf.bind(image, region)
    logits = torch.randn(2, 3, 4, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z: term.energy(z.softmax(1)), logits, rtol=1e-5, atol=1e-9)


def test_gates():
    """Sources and destinations, by hand and in loops; all open is no gate; nothing passes where either is shut."""
    generator = torch.Generator().manual_seed(2)
    image = torch.rand(1, 3, 4, 5, generator=generator, dtype=torch.float64)
    s = torch.randn(1, 3, 4, 5, generator=generator, dtype=torch.float64).softmax(1)
    source, destination = (torch.rand(1, 4, 5, generator=generator) > 0.4 for _ in range(2))
    settings = {"radius": 2, "sigma_rgb": 0.5}
    for masks in ({"source": source}, {"destination": destination}, {"source": source, "destination": destination}):
        crf = GatedCRF(**settings, **masks)
        term = crf.bind(image)
        assert float(term.energy(s)) == pytest.approx(energy_by_loops(crf, image[0], s[0]), rel=1e-10)
        labels = s.argmax(1)
        hard = torch.nn.functional.one_hot(labels, 3).movedim(-1, 1).double()
        torch.testing.assert_close(term.form(Graph).cut(labels), term.energy(hard), rtol=1e-12, atol=0)
    every, none = torch.ones_like(source), torch.zeros_like(source)
    plain = GatedCRF(**settings).bind(image).energy(s)
    torch.testing.assert_close(GatedCRF(**settings, source=every, destination=every).bind(image).energy(s), plain)
    assert float(GatedCRF(**settings, source=none).bind(image).energy(s)) == 0
    one_way = GatedCRF(**settings, source=source).bind(image).energy(s)
    other_way = GatedCRF(**settings, source=~source).bind(image).energy(s)
    torch.testing.assert_close(one_way + other_way, plain)


def test_graph_solvers_take_it():
    """Noisy unaries on two flat halves: alpha-expansion over a window of 5x5 finds the halves."""
    truth = torch.zeros(1, 14, 16, dtype=torch.int64)
    truth[:, :, 8:] = 1
    noise = torch.randn(1, 2, 14, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    unary = -torch.nn.functional.one_hot(truth, 2).movedim(-1, 1).double() + noise
    term = GatedCRF(weight=0.5, radius=2).bind(truth.double().unsqueeze(1) * 0.8 + 0.1)
    assert torch.equal(solve(term, unary, "alpha-expansion").labels, truth)


def test_window_larger_than_the_image_is_the_whole_image():
    image = torch.rand(1, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    just, beyond = (GatedCRF(radius=radius).bind(image).form(GridGraph) for radius in (4, 400))
    assert just.offsets == beyond.offsets
    assert torch.equal(just.weights, beyond.weights)


MEMORY = """
import sys, torch
import torch.nn.functional as F
from regloss import GatedCRF
torch.set_num_threads(1)
def peak():  # unlike getrusage's, it does not begin with the parent's
    lines = open('/proc/self/status').read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith('VmHWM'))
generator = torch.Generator().manual_seed(0)
image = torch.rand(1, 3, 150, 200, generator=generator)
s = torch.randn(1, 8, 150, 200, generator=generator).softmax(1).requires_grad_()
GatedCRF(radius=1).bind(image[..., :8, :8]).energy(s[..., :8, :8].detach()).sum()
before = peak()
if sys.argv[1] == "fused":
    energy = GatedCRF(radius=5).bind(image).energy(s).sum()
else:
    def neighbours(values):
        channels = values.shape[1]
        return F.unfold(values, 11, padding=5).reshape(channels, 121, 150, 200)
    inside = neighbours(torch.ones(1, 1, 150, 200))[0]
    y, x = torch.meshgrid(torch.arange(-5.0, 6), torch.arange(-5.0, 6), indexing="ij")
    distance = ((x**2 + y**2) / (2 * 6.0**2)).reshape(121, 1, 1)
    contrast = (neighbours(image) - image[0].unsqueeze(1)).square().sum(0) / (2 * 0.1**2)
    weights = torch.exp(-contrast - distance) * inside
    energy = (weights * (1 - (neighbours(s) * s[0].unsqueeze(1)).sum(0))).sum() / 2
    energy = energy - (1 - s.square().sum(1)).sum() / 2  # the window's centre
energy.backward()
after = peak()
print(float(energy), float((s.grad - s.grad.mean(1, keepdim=True)).norm()), after - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc to measure peak memory")
def test_takes_a_tenth_of_the_memory_of_unfolded_windows():
    """Energy, gradient along the simplex, and growth of the peak memory of a process of its own, forward and back."""
    rows = []
    for which in ("fused", "unfolded"):
        done = subprocess.run([sys.executable, "-c", MEMORY, which], capture_output=True, text=True, check=True)
        rows.append([float(word) for word in done.stdout.split()])
    (energy, gradient, fused), (other_energy, other_gradient, unfolded) = rows
    assert energy == pytest.approx(other_energy, rel=1e-4)
    assert gradient == pytest.approx(other_gradient, rel=1e-4)
    assert 0 <= fused <= unfolded / 10
    assert unfolded > 100_000  # KiB: the comparison measures something


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"radius": 0}, "radius"),
        ({"radius": 2.5}, "radius"),
        ({"sigma_xy": 0.0}, "sigma_xy"),
        ({"sigma_xy": math.nan}, "sigma_xy"),
        ({"sigma_rgb": 15.0}, "divided by 255"),
        ({"sigma_rgb": -0.1}, "sigma_rgb"),
        ({"relaxation": "convex"}, "bilinear, quadratic"),
        ({"source": torch.ones(1, 3, 3)}, "source must be a bool tensor"),
    ],
)
def test_invalid_settings_are_refused(settings, words):
    with pytest.raises(UsageError, match=words):
        GatedCRF(**settings)


def test_a_mask_must_fit_the_image():
    crf = GatedCRF(destination=torch.ones(1, 3, 4, dtype=torch.bool))
    with pytest.raises(UsageError, match="destination"):
        crf.bind(torch.zeros(1, 1, 4, 4))
