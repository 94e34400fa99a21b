"""Dual ascent on grids in Triton against the steps by tensors in float64, run by Triton's interpreter."""

from __future__ import annotations

import pytest
from triton_interpreter import interpreted

CODE = """
import dataclasses
import torch

import regloss
from regloss import PDHG, TotalVariation
from regloss.dispatch import _registered, find
from regloss.dual_sets import Balls, Box
from regloss.operators import Gradient
from regloss_plugins.bindings.grid_steps import grid_steps
from regloss_plugins.kernels import grid_ascent_triton

# As on a CUDA device, where there is no code that goes image by image.
find("dual-steps", Gradient, Box, device=torch.device("cpu"))
called = []

def counted(problem, most):
    steps = grid_steps(problem, most)
    called.append(steps is not None)
    return steps

for kind in (Box, Balls):
    del _registered["dual-ascent", (Gradient, kind), "cpu"]
    _registered["dual-steps", (Gradient, kind), "cpu"] = counted


def check(shape, isotropic, method="accelerated", roi=None, spacing=None, factor=0.4, count=6, **settings):
    generator = torch.Generator().manual_seed(1)
    image = torch.rand(shape[0], 1, *shape[2:], generator=generator)
    unary = torch.randn(shape, generator=generator)
    regularizer = TotalVariation(factor, isotropic=isotropic)
    solver = PDHG(count, 0.0, method, check_every=4, **settings)
    found = regloss.solve(regularizer.bind(image, roi, spacing), unary, solver, entropy=0.5)
    reference = dataclasses.replace(solver, compiled=False)
    term = regularizer.bind(image.double(), roi, spacing)
    expected = regloss.solve(term, unary.double(), reference, entropy=0.5)
    torch.testing.assert_close(found.probabilities.double(), expected.probabilities, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.state.duals[0].double(), expected.state.duals[0], rtol=1e-5, atol=2e-5)
    torch.testing.assert_close(found.energy, expected.energy, rtol=1e-5, atol=1e-4)
    assert called.pop()  # the kernel took the steps

"""

CASES = {
    "sizes": """
for isotropic in (False, True):
    for shape in ((2, 3, 11, 13), (1, 2, 1, 1), (1, 21, 1, 9), (1, 33, 5, 1), (2, 2, 3, 4, 5)):
        check(shape, isotropic, count=6 if shape[1] < 10 else 2)
""",
    "settings": """
inside = torch.rand(2, 9, 8, generator=torch.Generator().manual_seed(2)) > 0.2
for isotropic in (False, True):
    check((2, 3, 9, 8), isotropic, roi=inside)
    check((2, 3, 9, 8), isotropic, spacing=(1.0, 2.5))
    check((2, 3, 9, 8), isotropic, method="projected-gradient", steps=0.03)
    check((2, 3, 9, 8), isotropic, momentum=0.9)
    check((2, 3, 9, 8), isotropic, factor=0.0)
""",
    "images-leave": """
# The first image is solved at once, the second goes on alone; a warm start goes on where it stopped.
unary = torch.randn(2, 2, 9, 8, generator=torch.Generator().manual_seed(3))
unary[0] = 0
roi = torch.ones(2, 9, 8, dtype=torch.bool)
roi[1, :3] = False
term = TotalVariation(0.4).bind(torch.zeros(2, 1, 9, 8), roi)
found = regloss.solve(term, unary, PDHG(30, 1e-7), entropy=0.5)
expected = regloss.solve(term, unary, PDHG(30, 1e-7, compiled=False), entropy=0.5)
assert found.steps.tolist() == expected.steps.tolist()
assert found.steps[0] < found.steps[1]
torch.testing.assert_close(found.probabilities, expected.probabilities, rtol=1e-5, atol=1e-5)
warm = regloss.solve(term, unary, PDHG(10, 0.0), entropy=0.5, warm=found.state)
cold = regloss.solve(term, unary, PDHG(10, 0.0, compiled=False), entropy=0.5, warm=found.state)
torch.testing.assert_close(warm.probabilities, cold.probabilities, rtol=1e-5, atol=1e-5)

image = torch.rand(1, 1, 10, 9, generator=torch.Generator().manual_seed(4))
called.clear()
denoised = regloss.denoise(image, TotalVariation(0.2), max_steps=20, tolerance=0.0).image  # one channel
exact = regloss.denoise(image.double(), TotalVariation(0.2), max_steps=20, tolerance=0.0).image
torch.testing.assert_close(denoised.double(), exact, rtol=1e-5, atol=1e-5)
assert called == [True, False]  # double precision is left to the tensors
""",
}


@pytest.mark.parametrize(
    "case", ["sizes", *(pytest.param(name, marks=pytest.mark.slow) for name in ("settings", "images-leave"))]
)
def test_steps_are_those_of_the_tensors(case: str) -> None:
    interpreted(CODE + CASES[case])
