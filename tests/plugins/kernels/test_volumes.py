"""Softmax with volumes: reference vectors, extreme settings, derivatives."""

from pathlib import Path

import numpy as np
import pytest
import torch

from regloss_plugins.kernels.volumes import scale_to_volumes, volume_softmax


def tensors(oracles: Path):
    case = np.load(oracles / "vp.npz")
    given = {name: torch.from_numpy(np.asarray(case[name])) for name in case.files}
    given["cost"] = -given["o"].T[None]
    given["eps"] = float(given["eps"])
    return given


def random_case(batch=4):
    """Costs, and volumes from even to nearly empty classes."""
    scores = torch.randn(batch, 3, 20, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 1.2
    volumes = [[300.0, 80, 20], [0.5, 390, 9.5], [133, 133, 134], [400 - 2e-3, 1e-3, 1e-3]]
    return -scores, torch.tensor(volumes, dtype=torch.float64)


def test_oracle_exact(oracles: Path):
    case = tensors(oracles)
    volumes = case["V"][None]
    found = scale_to_volumes(case["cost"], case["eps"], volumes, volumes)
    assert bool(found.done.all())
    assert found.steps <= 10
    torch.testing.assert_close(found.probabilities[0].T, case["u"], rtol=0, atol=1e-11)
    torch.testing.assert_close(found.dual[0] - found.dual[0].mean(), case["q_centred"], rtol=0, atol=1e-9)


def test_oracle_bounds(oracles: Path):
    case = tensors(oracles)
    found = scale_to_volumes(case["cost"], case["eps"], case["lo"][None], case["hi"][None])
    assert bool(found.done.all())
    torch.testing.assert_close(found.probabilities[0].T, case["u_bounds"], rtol=0, atol=1e-9)
    torch.testing.assert_close(found.dual[0], case["q_bounds"], rtol=0, atol=1e-7)


def test_oracle_gradient(oracles: Path):
    case = tensors(oracles)
    cost, volumes = case["cost"].clone().requires_grad_(), case["V"][None]
    volume_softmax(cost, case["eps"], volumes, volumes).backward(case["g"].T[None])
    torch.testing.assert_close(-cost.grad[0].T, case["vjp"], rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("entropy", [1.0, 0.1, 0.02, 0.002])
@pytest.mark.parametrize("bounds", [(1, 1), (0.99, 1.5), (0, 1.2), (0.9, 1e9)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_volumes_are_met(entropy, bounds, dtype):
    """Also where the entropy is small against the costs, and classes are nearly empty."""
    cost, volumes = random_case()
    lower, upper = volumes * bounds[0], volumes * bounds[1]
    found = scale_to_volumes(cost.to(dtype), entropy, lower, upper)
    assert bool(found.done.all()), found.steps
    assert found.probabilities.dtype == dtype
    pixels, masses = 400, found.probabilities.double().flatten(2).sum(2)
    rounding = 1e-9 if dtype == torch.float64 else 1e-6
    assert bool((masses >= lower - rounding * pixels).all())
    assert bool((masses <= upper + rounding * pixels).all())
    # Complementarity: a class is pushed up only at its lower bound, and down only at its upper one.
    assert bool(((found.dual <= 0) | ((masses - lower).abs() <= rounding * pixels)).all())
    assert bool(((found.dual >= 0) | ((masses - upper).abs() <= rounding * pixels)).all())


def test_dual_value_is_the_energy():
    """At the solution G equals <cost, u> + entropy <u, log u>: the certificate of optimality."""
    cost, volumes = random_case()
    for lower, upper in ((volumes, volumes), (0.9 * volumes, 1.1 * volumes)):
        found = scale_to_volumes(cost, 0.3, lower, upper)
        u = found.probabilities
        energy = (cost * u + 0.3 * torch.special.xlogy(u, u)).flatten(1).sum(1)
        torch.testing.assert_close(found.value, energy, rtol=1e-8, atol=1e-7)


def test_starting_at_the_solution_takes_no_step():
    cost, volumes = random_case()
    first = scale_to_volumes(cost, 0.3, volumes, volumes)
    again = scale_to_volumes(cost, 0.3, volumes, volumes, dual=first.dual)
    assert again.steps == 0
    assert torch.equal(again.probabilities, first.probabilities)


def test_impossible_volumes_are_reported():
    cost, volumes = random_case()
    assert not bool(scale_to_volumes(cost, 0.3, 0.9 * volumes, 0.9 * volumes, max_steps=20).done.any())


def test_pixels_outside_do_not_count():
    cost, _ = random_case()
    inside = torch.zeros(4, 20, 20, dtype=torch.bool)
    inside[:, 3:15, 2:17] = True
    volumes = torch.tensor([[100.0, 50.0, 30.0]], dtype=torch.float64)
    found = scale_to_volumes(cost, 0.3, volumes, volumes, inside)
    crop = scale_to_volumes(cost[..., 3:15, 2:17], 0.3, volumes, volumes)
    torch.testing.assert_close(found.probabilities[..., 3:15, 2:17], crop.probabilities, rtol=0, atol=1e-10)


@pytest.mark.parametrize("exact", [True, False])
def test_derivatives_match_finite_differences(exact):
    """By costs, and by volumes along directions that keep their sum."""
    generator = torch.Generator().manual_seed(1)
    cost = torch.randn(1, 3, 4, 5, generator=generator, dtype=torch.float64)
    volumes = torch.tensor([[9.0, 4.0, 7.0]], dtype=torch.float64)
    lower, upper = (volumes, volumes) if exact else (volumes * torch.tensor([1.0, 0, 0]), volumes * 1.05)
    cotangent = torch.randn(1, 3, 4, 5, generator=generator, dtype=torch.float64)

    def loss(cost, lower, upper):
        return (volume_softmax(cost, 0.5, lower, upper) * cotangent).sum()

    given = [part.clone().requires_grad_() for part in (cost, lower, upper)]
    loss(*given).backward()
    step = 1e-5
    direction = torch.randn(cost.shape, generator=generator, dtype=torch.float64)
    expected = (loss(cost + step * direction, lower, upper) - loss(cost - step * direction, lower, upper)) / (2 * step)
    assert float((given[0].grad * direction).sum()) == pytest.approx(float(expected), rel=1e-7)
    turn = torch.tensor([[1.0, -0.4, -0.6]], dtype=torch.float64)
    if exact:
        ends = [loss(cost, lower + sign * step * turn, lower + sign * step * turn) for sign in (1, -1)]
        assert not given[2].grad.any()
    else:
        ends = [loss(cost, lower + sign * step * turn, upper) for sign in (1, -1)]
    assert float((given[1].grad * turn).sum()) == pytest.approx(
        float((ends[0] - ends[1]) / (2 * step)), rel=1e-6, abs=1e-9
    )


@pytest.mark.parametrize("entropy", [1e-12, 1e-30])
@pytest.mark.parametrize("size", [1.0, 1e6])
def test_tiny_entropies_take_bounded_work(entropy, size):
    """Where no dual variable can tell the volumes, it ends, finite, with a bound, and says that it is not done."""
    random = torch.Generator().manual_seed(2)
    cost = size * torch.randn(2, 3, 18, generator=random, dtype=torch.float64)
    volumes = torch.tensor([[9.4, 8.1, 0.5]], dtype=torch.float64)
    found = scale_to_volumes(cost, entropy, volumes, volumes)
    assert found.steps < 1000
    assert bool(found.probabilities.isfinite().all())
    masses = found.probabilities.sum(2)
    off = (masses - volumes).abs().amax(1)
    assert torch.equal(found.done, off <= 18e-10)
    # The bound lies below the energy of any point with these volumes; the product is one.
    product = (volumes / 18).unsqueeze(2).expand(2, 3, 18)
    assert bool((found.value <= (cost * product).flatten(1).sum(1) + 1e-9 * size).all())
    single = scale_to_volumes(cost[:1, :, :1], entropy, volumes / 18, volumes / 18)
    assert single.steps < 1000
    assert bool(single.probabilities.isfinite().all())


def test_starts_that_belong_to_other_costs():
    """They are no worse than none, and along (1, ..., 1), which exact volumes leave free, rounding adds nothing up."""
    generator = torch.Generator().manual_seed(0)
    volumes, dual = torch.tensor([[6.5625, 0.4375]], dtype=torch.float64), None
    for _ in range(40):
        cost = 1000 * torch.randn(1, 2, 7, generator=generator, dtype=torch.float64)
        found = scale_to_volumes(cost, 0.027, volumes, volumes, dual=dual)
        assert found.done.all()
        dual = found.dual
        assert float(dual.abs().max()) < 1e4
