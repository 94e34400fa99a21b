"""Steps of the relaxed Potts model in Triton against tensors in float64, run by Triton's interpreter."""

from __future__ import annotations

from triton_interpreter import interpreted

CODE = """
import torch

import regloss
from regloss import GridCRF
from regloss.dispatch import _registered, find
from regloss_plugins.bindings.potts_steps import potts_steps
from regloss_plugins.solvers.parallel_potts import ParallelPotts, _Iteration, _one_channel

assert find("potts-steps", device=torch.device("cpu")) is None
taken = []


def counted(*given, **settings):
    found = potts_steps(*given, **settings)
    taken.append(found is not None)
    return found


def iterations(shape, weight):
    generator = torch.Generator().manual_seed(1)
    image = torch.rand(shape[0], 1, *shape[2:], generator=generator)
    unary = torch.randn(shape, generator=generator)
    graph = GridCRF(weight).bind(image).grid_graph()
    for dtype in (torch.float32, torch.float64):
        costs, weights = unary.to(dtype), graph.weights.to(dtype)
        two = shape[1] == 2
        costs, weights = _one_channel(costs, weights) if two else (costs, weights)
        start = torch.full_like(costs, 1 / shape[1])
        yield _Iteration(costs, graph.offsets, weights, 0.7, start, None, two)


def check(*shape, weight=0.6, steps=(3, 2)):
    fast, exact = iterations(shape, weight)
    for count in steps:
        exact.run(count)
        _registered["potts-steps", (), "cpu"] = counted
        fast.run(count)
        assert taken.pop()
        del _registered["potts-steps", (), "cpu"]
        for name in ("primal", "channels", "dual"):
            found, expected = getattr(fast, name), getattr(exact, name)
            torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    assert fast.steps == exact.steps == sum(steps)


check(2, 3, 7, 9)
check(1, 2, 9, 8)
check(1, 21, 1, 5)
check(1, 33, 4, 1, steps=(2,))
check(1, 4, 3, 4, 5, steps=(2, 1))
check(1, 3, 6, 5, weight=0.0, steps=(2,))

# The solver as a whole, seeds and a region included.
generator = torch.Generator().manual_seed(2)
unary, image = (torch.rand(1, count, 12, 9, generator=generator) for count in (3, 1))
roi = torch.rand(1, 12, 9, generator=generator) > 0.1
fixed = torch.where(torch.rand(1, 12, 9, generator=generator) > 0.9, 1, -1)
solver = ParallelPotts(max_steps=6, coarse_steps=4, check_every=6)
expected = regloss.solve(GridCRF(0.3).bind(image, roi), unary, solver, fixed=fixed)
_registered["potts-steps", (), "cpu"] = counted
found = regloss.solve(GridCRF(0.3).bind(image, roi), unary, solver, fixed=fixed)
assert taken == [True, True]
assert torch.equal(found.labels, expected.labels)
torch.testing.assert_close(found.bound, expected.bound, rtol=1e-5, atol=1e-5)
"""


def test_steps_are_those_of_the_tensors() -> None:
    interpreted(CODE)
