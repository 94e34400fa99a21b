"""Relaxations of a pair: values on one-hot input, formulas, order, gradients."""

import math

import pytest
import torch

from regloss import GridCRF
from regloss.potts import RELAXATIONS, pair_cost

LOGARITHMIC = ("collision-cross-entropy", "collision-divergence", "log-quadratic")


def simplex(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).softmax(1)


@pytest.mark.parametrize("relaxation", RELAXATIONS)
def test_one_hot_pairs_cost_one_if_they_differ(relaxation):
    """The logarithmic ones are cut off where they would be infinite."""
    labels = torch.eye(4, dtype=torch.float64)
    cost = pair_cost(relaxation, labels.unsqueeze(2), labels.T.unsqueeze(0))
    differ = -math.log(1e-6) if relaxation in LOGARITHMIC else 1.0
    torch.testing.assert_close(cost, differ * (1 - labels), rtol=1e-12, atol=1e-12)


def test_formulas():
    p, q = simplex(50, 3, seed=0), simplex(50, 3, seed=1)
    dot, norms = (p * q).sum(1), p.norm(dim=1) * q.norm(dim=1)
    half = (p - q).square().sum(1) / 2
    expected = {
        "bilinear": 1 - dot,
        "quadratic": half,
        "total-variation": (p - q).abs().sum(1) / 2,
        "normalized-quadratic": 1 - dot / norms,
        "collision-cross-entropy": -dot.log(),
        "collision-divergence": -(dot / norms).log(),
        "log-quadratic": -(1 - half).log(),
    }
    assert set(expected) == set(RELAXATIONS)
    for relaxation, cost in expected.items():
        torch.testing.assert_close(pair_cost(relaxation, p, q), cost, rtol=1e-12, atol=1e-14)
    # -ln(1 - x) >= x, and equal pairs cost nothing but where softness itself does.
    for logarithmic, plain in zip(LOGARITHMIC, ("bilinear", "normalized-quadratic", "quadratic"), strict=True):
        assert bool((expected[logarithmic] >= expected[plain]).all())
    for relaxation in ("quadratic", "total-variation", "normalized-quadratic", "collision-divergence", "log-quadratic"):
        assert float(pair_cost(relaxation, p, p).abs().max()) < 1e-12


@pytest.mark.parametrize("relaxation", RELAXATIONS)
def test_grid_crf_takes_every_relaxation(relaxation):
    """Energy by pairs, and a gradient that is right inside the simplex and finite at its corners."""
    image = torch.rand(1, 3, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    term = GridCRF(relaxation=relaxation).bind(image)
    assert torch.autograd.gradcheck(term.energy, simplex(1, 3, 3, 4, seed=2).requires_grad_())
    hard = torch.zeros(1, 3, 3, 4, dtype=torch.float64)
    hard[:, 0, :, :2], hard[:, 1, :, 2:] = 1, 1
    (gradient,) = torch.autograd.grad(term.energy(hard.requires_grad_()).sum(), hard)
    assert bool(gradient.isfinite().all())
